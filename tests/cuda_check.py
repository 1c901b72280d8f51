"""The CUDA kernels on the CPU's stand-in for a GPU, against the reference: run by test_cuda_kernels.py and mutations.

`host()` compiles csrc/cuda with csrc/host_device and registers its ops as torch.ops.fusedrnn_host.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any, NamedTuple

import recurrence_check
import torch
from recurrence_check import PRECISIONS, Case
from torch import Tensor

from fusedrnn.spec import CELLS, CellSpec

ROOT = Path(__file__).parents[1]
REGIMES = {"auto": 0, "step": 1, "cta": 2, "cluster": 3, "grid": 4}
ALLOW_TF32 = 8
RESERVED: tuple[Any, ...] = (None, None, None, None, [])


@functools.cache
def host() -> Any:
    """torch.ops.fusedrnn_host, compiled and loaded at the first call."""
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import host_device
    finally:
        sys.path.pop(0)
    torch.ops.load_library(host_device.build())
    return torch.ops.fusedrnn_host


def check(case: Case, regime: str, precision: str, passes: tuple[bool, ...] = (False, True)) -> None:
    """As `recurrence_check.check`, in one regime of the kernels."""
    route = REGIMES[regime] | (ALLOW_TF32 if precision == "tf32" else 0)

    def scan(*given: Any) -> tuple[Tensor, ...]:
        *tensors, offsets, cell, directions = given
        return host().scan(*tensors, None, None, offsets, *case.noise, cell, directions, True, route=route)

    def scan_backward(*given: Any) -> tuple[Tensor, ...]:
        *tensors, offsets, cell, directions = given
        return host().scan_backward(*tensors, cell, directions, route, offsets, *case.noise)

    recurrence_check.check(case, precision, scan, scan_backward, passes)


class Row(NamedTuple):
    """A row of the table of instances: see csrc/cuda/instance.h."""

    index: int
    cell: CellSpec
    precision: str
    backward: bool
    exchange: str
    masked: bool
    H: int
    group_rows: int

    def __str__(self) -> str:
        return f"{self.index}-{self.exchange}-{'backward' if self.backward else 'forward'}-H{self.H}"


EXCHANGES = ("cta", "cluster", "scatter", "grid", "split")


def rows() -> list[Row]:
    """The kernels that the library has."""
    fields = host().rows()
    found = []
    for index, at in enumerate(range(0, len(fields), 12)):
        cell, precision, backward, exchange, masked, H, _, count, chains, *_ = fields[at : at + 12]
        names = (list(PRECISIONS)[precision], bool(backward), EXCHANGES[exchange], bool(masked))
        found.append(Row(index, CELLS[cell], *names, H, count * chains))
    return found


def run_row(row: Row) -> None:
    """The cases that show a fault of one kernel: groups full and in part, two streams, and what its masks are for."""
    B, regime = row.group_rows, {"scatter": "cluster", "split": "grid"}.get(row.exchange, row.exchange)
    cases = [
        Case(row.cell, 6, B, row.H, seed=1),
        Case(row.cell, 5, B + 3, row.H, 2, states="", bias=False, seed=2),
        Case(row.cell, 1, 2 * B - 1, row.H, upstream=("hn",), seed=3),
    ]
    if row.masked:
        cases += [
            Case(row.cell, 6, B + 3, row.H, 2, lengths=True, seed=4),
            Case(row.cell, 6, B, row.H, 2, reset=True, seed=5),
            Case(row.cell, 7, B, row.H - 8, 2, lengths=True, reset=True, seed=6),
            Case(row.cell, 4, 3, 8, states="", seed=7),
        ]
    host().only(row.index)
    try:
        for case in cases:
            try:
                check(case, regime, row.precision, passes=(row.backward,))
            except (AssertionError, RuntimeError) as error:
                raise AssertionError(f"{row}, {case}: {error}") from error
    finally:
        host().only(-1)
