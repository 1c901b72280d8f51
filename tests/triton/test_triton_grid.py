"""The kernels over the whole GPU: their programs wait for each other, as threads that take turns at random."""

from __future__ import annotations

import pytest
from coop import coop
from kernels import Plan, check
from recurrence_check import Case
from triton.runtime.errors import InterpreterError

from fusedrnn.spec import GRU, LSTM, CellSpec
from fusedrnn.triton_kernels import grid, walk

pytestmark = pytest.mark.usefixtures("one_thread")
GRID = Plan("grid", "ieee", units=16, inner=16, k_split=2, tiles=2)


@pytest.mark.parametrize("seed", [0, 1])
def test_every_interleaving_is_right(cell: CellSpec, seed: int) -> None:
    case = Case(cell, 3, 3, 40, 2, lengths=bool(seed), reset=bool(seed), seed=seed)
    with coop(seed, at_memory=True) as baton:
        check(case, "fp64", GRID)
    assert baton.most_programs == 6  # two streams, three tiles of units


def test_more_rows_than_fit_are_several_launches(cell: CellSpec) -> None:
    with coop() as baton:
        check(Case(cell, 3, 40, 20, states="", bias=False), "fp64", GRID)
    assert baton.most_programs == 4  # of three tiles of rows, two at once


@pytest.mark.parametrize("cell", [GRU, LSTM], ids=lambda cell: cell.name)
def test_packed_rows_and_derivatives(cell: CellSpec) -> None:
    with coop(at_memory=True):
        check(Case(cell, 4, 3, 20, 2, packed=True), "fp32", GRID)
        check(Case(cell, 3, 3, 20, upstream=("y", "hn", "cn", "gates", "cs"), lengths=True), "fp64", GRID)


@pytest.mark.parametrize(
    ("goal", "text"), [(-1, "L2|NaN"), (1, "Deadlock"), (-(10**6), "L2|NaN")], ids=["early", "late", "never"]
)
def test_a_broken_barrier_shows(goal: int, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that goes on one arrival early, or does not wait at all, reads what is not there yet."""
    whole = walk.grid_sync

    def broken(barrier: object, arrivals: object) -> None:
        whole(barrier, arrivals + goal)

    monkeypatch.setattr(grid, "grid_sync", broken)
    with pytest.raises((AssertionError, InterpreterError), match=text):  # noqa: PT012  six orders of turns
        for seed in range(6):
            with coop(seed, at_memory=True, max_idle=300):
                check(Case(GRU, 3, 2, 40, seed=seed), "fp64", GRID)
