"""The Triton kernels by themselves, interpreted, against the reference: each pass in every regime, dtype and mask.

Tiles are of 16 units and rows, so that with more units or rows every loop of the kernels runs more than once.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from close import assert_same
from scan_check import SECOND_ORDER, Case, Kernels, check, draw
from torch import Tensor

from fusedrnn.spec import GRU, LSTM, RNN_TANH, CellSpec
from fusedrnn.triton_kernels import launch
from fusedrnn.triton_kernels.config import Plan

pytestmark = pytest.mark.usefixtures("one_thread")
EVERY_REGIME = ("resident", "streamed", "step")
regimes = pytest.mark.parametrize("regime", EVERY_REGIME)


def kernels(regime: str, H: int) -> Kernels:
    units = max(16, 1 << (H - 1).bit_length()) if regime == "resident" else 16
    how = Plan(regime, rows=16, units=units, inner=16, precision="ieee")
    return Kernels(partial(launch.scan, how=how), partial(launch.scan_backward, how=how))


def against_reference(case: Case, regime: str, precision: str = "fp64") -> None:
    check(case, kernels(regime, case.H), precision)


def forward(case: Case, regime: str, dtype: torch.dtype, save: bool = True) -> tuple[Tensor, ...]:
    problem = draw(case, dtype)
    given = (*problem.laid(*problem.given), problem.lengths, problem.reset, problem.offsets)
    return kernels(regime, case.H).scan(*given, case.cell.code, case.directions, save)


def backward(case: Case, regime: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """From what forward of the same regime kept."""
    problem, lstm = draw(case, dtype), case.cell is LSTM
    y, _, gates, cs, _ = forward(case, regime, dtype)
    _, h0, c0, w, _ = problem.laid(*problem.given)
    kept = (gates, y, h0, cs if lstm else None, c0, w, problem.lengths, problem.reset, problem.offsets)
    return kernels(regime, case.H).scan_backward(
        *problem.laid(*problem.upstream), *kept, case.cell.code, case.directions
    )


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


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cell", [GRU, LSTM], ids=lambda cell: cell.name)
def test_launches_a_step_have_the_bits_of_one_launch(cell: CellSpec, dtype: torch.dtype) -> None:
    case = Case(cell, 3, 3, 20, 2, lengths=True, reset=True, upstream=SECOND_ORDER)
    one, each, again = (
        (*forward(case, regime, dtype), *backward(case, regime, dtype)) for regime in ("streamed", "step", "streamed")
    )
    for a, b, c in zip(one, each, again, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


@regimes
@pytest.mark.parametrize("cell", [GRU, LSTM], ids=lambda cell: cell.name)
def test_kept_gates_are_left_out(cell: CellSpec, regime: str) -> None:
    case = Case(cell, 3, 3, 5, lengths=True)
    trained, inferred = (forward(case, regime, torch.float32, save) for save in (True, False))
    assert inferred[2].shape == (0,)
    assert all(torch.equal(a, b) for i, (a, b) in enumerate(zip(trained, inferred, strict=True)) if i != 2)


def test_inputs_of_any_strides() -> None:
    """What comes transposed or expanded is read as its dense copy would be, and is left as it was."""
    case = Case(LSTM, 3, 3, 5, 2, lengths=True, upstream=SECOND_ORDER)
    problem = draw(case, torch.float64)
    scan, scan_backward = kernels("resident", 5)

    def strided(t: Tensor | None) -> Any:
        return None if t is None else t.transpose(0, -1).contiguous().transpose(0, -1)

    given, rest = problem.laid(*problem.given), (problem.lengths, None, None, LSTM.code, 2)
    y, hn, gates, cs, cn = scan(*given, *rest, True)
    assert_same(scan(*map(strided, given), *rest, True), (y, hn, gates, cs, cn))
    inputs = (*problem.laid(*problem.upstream), gates, y, given[1], cs, *given[2:4])
    before = [t.clone() for t in inputs]
    found = scan_backward(*map(strided, inputs), *rest)
    assert_same(found, scan_backward(*inputs, *rest))
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(inputs, before, strict=True))
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    expanded = (one.expand_as(y), *[None] * 4)
    assert_same(
        scan_backward(*expanded, *inputs[5:], *rest),
        scan_backward(torch.ones_like(y), *[None] * 4, *inputs[5:], *rest),
    )
