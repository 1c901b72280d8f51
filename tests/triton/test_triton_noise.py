"""Zoneout and recurrent dropout in the Triton kernels, interpreted: masks bit for bit, each pass in every regime."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from coop import coop
from kernels import Plan, check, forward, small
from recurrence_check import SECOND_ORDER, Case

from fusedrnn import philox
from fusedrnn.spec import GRU, LSTM, RNN_TANH, CellSpec
from fusedrnn.triton_kernels import launch, noise

pytestmark = pytest.mark.usefixtures("one_thread", "memory")
regimes = pytest.mark.parametrize("regime", ["resident", "streamed", "step"])
each_cell = pytest.mark.parametrize("cell", [GRU, LSTM, RNN_TANH], ids=lambda cell: cell.name)
KEY = (0xFFFFFFF9, 0x9ABCDEF0)
GRID = Plan("grid", "ieee", units=16, inner=16, k_split=2, tiles=2)


def noisy(case: Case, h: float, c: float, dropout: float, drawn: bool = True) -> Case:
    """The case with noise; only the LSTM has a c."""
    return replace(case, rates=(h, c if case.cell is LSTM else 0.0, dropout), key=KEY if drawn else None)


@pytest.mark.parametrize("rate", [2.0**-33, 2.0**-32, 0.3, 0.5, 1 - 2.0**-40, 1.0])
def test_dropouts_mask_is_the_specifications(rate: float) -> None:
    """Bit for bit, more than one tile of units and of rows, three streams."""
    key, like = torch.tensor(KEY), torch.zeros(1, dtype=torch.float64)
    _, mask = launch._drawn(key, (0.0, 0.0, rate), small("step", 70), like, 3, 19, 70)
    assert torch.equal(mask, philox.dropout_mask(rate, key, 3, 19, like, 70))


@pytest.mark.parametrize("rate", [2.0**-32, 0.3, 1.0])
@regimes
def test_zoneouts_masks_are_the_specifications(regime: str, rate: float) -> None:
    """Bit for bit: with gates that are all open but for zoneout, c says how often a unit was not held."""
    T, B, H, D, key = 5, 18, 20, 2, torch.tensor(KEY)
    gates_x = torch.full((T, B, D, 4 * H), 1e4, dtype=torch.float64)
    w = torch.zeros(D, 4 * H, H, dtype=torch.float64)
    given = (gates_x, None, None, w, None, None, None, None, LSTM.code, D, True, small(regime, H))
    y, _, _, cs, _ = launch.scan(*given, mask_key=key, rates=(rate, rate, 0.0))
    held = [philox.happens(rate, kind, key, T, D, B, H).transpose(1, 2) for kind in (0, 1)]

    def in_order(t: torch.Tensor) -> torch.Tensor:
        return torch.stack([t[:, :, 0], t.flip(0)[:, :, 1]], 2)

    assert torch.equal(in_order(cs), (~in_order(held[1])).double().cumsum(0))
    assert torch.equal(in_order(y) > 0, (~in_order(held[0])).cumsum(0) > 0)


@regimes
@each_cell
@pytest.mark.parametrize(
    "rates", [(0.3, 0.0, 0.0), (0.0, 0.6, 0.0), (0.0, 0.0, 0.4), (0.3, 0.6, 0.4)], ids=["h", "c", "dropout", "all"]
)
def test_against_the_reference(cell: CellSpec, rates: tuple[float, float, float], regime: str) -> None:
    """Lengths, resets, both directions, every gradient; drawn, and where there is an adjoint, in the mean."""
    if cell is not LSTM and rates[1] and not rates[0]:
        pytest.skip("only the LSTM has a c")
    masks: dict[str, Any] = {"lengths": True, "reset": True, "upstream": SECOND_ORDER}
    case = noisy(Case(cell, 4, 3, 5, 2, **masks, shared=cell is LSTM), *rates)
    check(case, "fp64", small(regime, 5))
    if not rates[2]:
        check(replace(case, key=None), "fp64", small(regime, 5), (False, True) if cell.kept else (False,))


@regimes
@each_cell
def test_more_than_one_tile_packed_rows_and_dtypes(cell: CellSpec, regime: str) -> None:
    how = small(regime, 20)
    check(noisy(Case(cell, 3, 18, 20), 0.3, 0.6, 0.4), "fp64", how)
    check(noisy(Case(cell, 3, 4, 20, 2, packed=True, states="", bias=False), 0.3, 0.6, 0.4), "fp64", how)
    for precision in ("fp32", "bf16", "fp16"):
        check(noisy(Case(cell, 3, 3, 20, lengths=True), 0.3, 0.6, 0.4), precision, how)


@each_cell
def test_over_the_grid(cell: CellSpec) -> None:
    with coop(at_memory=True):
        for case in (
            noisy(Case(cell, 3, 3, 20, 2, lengths=True, reset=True, upstream=SECOND_ORDER), 0.3, 0.6, 0.0),
            noisy(Case(cell, 3, 2, 20, packed=True), 0.3, 0.6, 0.0),
        ):
            check(case, "fp64", GRID)
        if cell.kept:
            check(noisy(Case(cell, 3, 2, 20, reset=True), 0.3, 0.6, 0.0, drawn=False), "fp64", GRID)
    with coop():
        check(noisy(Case(cell, 2, 40, 20), 0.3, 0.6, 0.0), "fp64", GRID)  # several launches: rows keep their number


@pytest.mark.parametrize("cell", [GRU, LSTM], ids=lambda cell: cell.name)
def test_launches_a_step_have_the_bits_of_one_launch(cell: CellSpec) -> None:
    case = noisy(Case(cell, 3, 3, 20, lengths=True, reset=True), 0.3, 0.6, 0.4)
    one, each = (forward(case, torch.float32, small(regime, 20)) for regime in ("streamed", "step"))
    assert all(torch.equal(a, b) for a, b in zip(one, each, strict=True))


def test_a_probability_that_no_word_falls_below_draws_nothing() -> None:
    case, how = Case(LSTM, 3, 3, 5), small("resident", 5)
    for tiny in (5e-324, 2.0**-33):
        found = forward(noisy(case, tiny, tiny, 0.0), torch.float64, how)
        assert all(torch.equal(a, b) for a, b in zip(found, forward(case, torch.float64, how), strict=True))


def test_kinds_are_philoxs() -> None:
    assert (noise.ZONEOUT_H.value, noise.ZONEOUT_C.value, noise.DROPOUT.value) == (
        philox.ZONEOUT_H,
        philox.ZONEOUT_C,
        philox.DROPOUT,
    )
