"""The Triton kernels by themselves, interpreted, against the reference: each pass in every regime, dtype and mask.

Tiles are of 16 units and rows, so that with more units or rows every loop of the kernels runs more than once.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from close import assert_same
from kernels import backward, check, forward, small
from recurrence_check import SECOND_ORDER, Case, draw
from torch import Tensor

from fusedrnn import reference
from fusedrnn.spec import GRU, LSTM, RNN_TANH, CellSpec
from fusedrnn.triton_kernels import launch

pytestmark = pytest.mark.usefixtures("one_thread", "memory")
regimes = pytest.mark.parametrize("regime", ["resident", "streamed", "step"])


def against_reference(case: Case, regime: str, precision: str = "fp64") -> None:
    check(case, precision, small(regime, case.H))


@regimes
@pytest.mark.parametrize("masks", ["", "lengths", "reset", "lengths reset"])
def test_masks(cell: CellSpec, masks: str, regime: str) -> None:
    flags = dict.fromkeys(masks.split(), True)
    against_reference(Case(cell, 4, 3, 5, 2, shared=cell is LSTM, upstream=SECOND_ORDER, **flags), regime)


@regimes
def test_more_than_one_tile(cell: CellSpec, regime: str) -> None:
    case = Case(cell, 3, 18, 20, lengths=True, reset=True, upstream=SECOND_ORDER)
    against_reference(case, regime)


@regimes
def test_packed_rows(cell: CellSpec, regime: str) -> None:
    against_reference(Case(cell, 4, 5, 5, 2, packed=True, upstream=SECOND_ORDER), regime)


@regimes
@pytest.mark.parametrize("cell", [GRU, LSTM, RNN_TANH], ids=lambda cell: cell.name)
def test_shapes(cell: CellSpec, regime: str) -> None:
    """One of everything; whole tiles; two bidirectional members of an ensemble."""
    for case in (
        Case(cell, 1, 1, 1),
        Case(cell, 2, 16, 16),
        Case(cell, 2, 2, 17, 2, streams=4, lengths=True, reset=True),
        Case(cell, 2, 17, 3, packed=True),
    ):
        against_reference(case, regime)


@regimes
@pytest.mark.parametrize("cell", [GRU, LSTM, RNN_TANH], ids=lambda cell: cell.name)
def test_no_row_has_a_step(cell: CellSpec, regime: str) -> None:
    problem, how = draw(Case(cell, 2, 3, 5, 2, upstream=SECOND_ORDER), torch.float64), small(regime, 5)
    rest = (torch.zeros(2, 3, dtype=torch.int64), None, None, cell.code, 2)
    (dy, dhn, dgates, dcs, dcn), (gates_x, h0, c0, w, bias) = problem.upstream, problem.given
    y, hn, gates, cs, cn = launch.scan(gates_x, h0, c0, w, bias, *rest, True, how)
    kept = (gates, y, h0, cs if cell is LSTM else None, c0, w)
    dgates_x, dh0, dc0, dq = launch.scan_backward(dy, dhn, dgates, dcs, dcn, *kept, *rest, how)
    assert not any(t.any() for t in (y, gates, cs, dgates_x, dq))
    assert torch.equal(hn, h0)
    assert torch.equal(dh0, dhn)
    assert cell is not LSTM or (torch.equal(cn, c0) and torch.equal(dc0, dcn))


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
@pytest.mark.parametrize("regime", ["resident", "streamed"])
def test_a_nan_stays_in_its_row_and_large_numbers_saturate(cell: CellSpec, regime: str) -> None:
    gates_x, *rest = draw(Case(cell, 3, 3, 5), torch.float64).given
    gates_x[1, 0], gates_x[:, 1] = float("nan"), 1e4 * gates_x[:, 1]
    found = launch.scan(gates_x, *rest, None, None, None, cell.code, 1, True, small(regime, 5))
    assert found[0][:, 1:].isfinite().all()
    assert_same(found, reference.scan(gates_x, *rest, None, None, cell, 1))


@regimes
@pytest.mark.parametrize("given", ["hc y", "h hn", "c cn", " gates", " cs"])
def test_absent_tensors(given: str, regime: str) -> None:
    """Each initial state and each gradient that flows in, alone; biases in every second case."""
    states, upstream = given.split(" ")
    for number, cell in enumerate((LSTM, GRU, RNN_TANH)):
        case = Case(cell, 3, 3, 5, 2, lengths=number < 2, states=states, bias=number == 1, upstream=(upstream,))
        against_reference(case, regime)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("regime", ["resident", "streamed"])
def test_dtypes(cell: CellSpec, precision: str, regime: str) -> None:
    case = Case(cell, 5, 4, 20, lengths=True, reset=True, upstream=SECOND_ORDER)
    against_reference(case, regime, precision)


@pytest.mark.parametrize(("cell", "dtype"), [(GRU, torch.bfloat16), (LSTM, torch.float32)], ids=["gru", "lstm"])
def test_launches_a_step_have_the_bits_of_one_launch(cell: CellSpec, dtype: torch.dtype) -> None:
    case = Case(cell, 3, 3, 20, lengths=True, reset=True, upstream=SECOND_ORDER)
    one, each, again = (
        (*forward(case, dtype, how), *backward(case, dtype, how))
        for how in (small(regime, case.H) for regime in ("streamed", "step", "streamed"))
    )
    for a, b, c in zip(one, each, again, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


@regimes
@pytest.mark.parametrize("cell", [GRU, LSTM], ids=lambda cell: cell.name)
def test_kept_gates_are_left_out(cell: CellSpec, regime: str) -> None:
    case = Case(cell, 3, 3, 5, lengths=True)
    trained, inferred = (forward(case, torch.float32, small(regime, 5), save) for save in (True, False))
    assert inferred[2].shape == (0,)
    assert all(torch.equal(a, b) for i, (a, b) in enumerate(zip(trained, inferred, strict=True)) if i != 2)


def test_inputs_of_any_strides() -> None:
    """What comes transposed or expanded is read as its dense copy would be, and is left as it was."""
    case, how = Case(LSTM, 3, 3, 5, 2, lengths=True, upstream=SECOND_ORDER), small("resident", 5)
    problem = draw(case, torch.float64)

    def strided(t: Tensor | None) -> Any:
        return None if t is None else t.transpose(0, -1).contiguous().transpose(0, -1)

    given, rest = problem.laid(*problem.given), (problem.lengths, None, None, LSTM.code, 2)
    y, hn, gates, cs, cn = launch.scan(*given, *rest, True, how)
    assert_same(launch.scan(*map(strided, given), *rest, True, how), (y, hn, gates, cs, cn))
    inputs = (*problem.laid(*problem.upstream), gates, y, given[1], cs, *given[2:4])
    before = [t.clone() for t in inputs]
    found = launch.scan_backward(*map(strided, inputs), *rest, how)
    assert_same(found, launch.scan_backward(*inputs, *rest, how))
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(inputs, before, strict=True))
    dy = torch.ones(1, 1, 1, 1, dtype=torch.float64).expand_as(y)
    one, other = (launch.scan_backward(d, *[None] * 4, *inputs[5:], *rest, how) for d in (dy, dy.contiguous()))
    assert_same(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_small_states_are_not_lost(dtype: torch.dtype) -> None:
    """tanh(x) is x there, whatever a rounding of 1 is."""
    for scale in (1e-2, 1e-4, 1e-8, 1e-30):
        gates_x, *_, w, _ = draw(Case(RNN_TANH, 3, 2, 5), dtype).given
        gates_x *= scale
        y, *_ = launch.scan(gates_x, None, None, w, *[None] * 4, RNN_TANH.code, 1, True, small("resident", 5))
        h, w, truth = torch.zeros(2, 5, dtype=torch.double), w.double(), []
        for x in gates_x.double():
            h = torch.tanh(x[:, 0] + h @ w[0].T)
            truth.append(h)
        error = (y[:, :, 0].double() - torch.stack(truth)).norm() / torch.stack(truth).norm()
        assert error < 8 * torch.finfo(dtype).eps, (scale, error)
