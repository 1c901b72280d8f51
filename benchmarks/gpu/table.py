"""`python -m benchmarks gpu-table`: the committed table of a GPU model, from the grid's CSV."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fusedrnn import measured
from fusedrnn.measured import Point

from ..record import RecordError
from .grid import EAGER, OURS, TRITON
from .rows import GpuRow, read

NAMES = {"rnn": "rnn_tanh"}
BACKENDS = {OURS.name: "cuda", TRITON.name: "triton"}


def points(rows: Sequence[GpuRow]) -> list[Point]:
    """Eager rows of whole layers on the fused kernels. Packed rows are left out: `auto` does not ask for lengths."""
    found = {
        row.key: Point(
            NAMES.get(row.cell, row.cell),
            row.dtype,
            row.L,
            row.D,
            row.mode == "train",
            row.H,
            row.B,
            row.ratio,
            BACKENDS[row.provider],
        )
        for row in rows
        if row.provider in BACKENDS and row.variant == EAGER and row.ratio and not row.packed and not row.error
    }
    return sorted(found.values(), key=lambda p: (p.backend, p.cell, p.dtype, p.L, p.D, p.grad, p.H, p.B))


def write(csv: Path, path: Path | None = None) -> Path:
    """Writes the table of the CSV's GPU, into the package unless a path is given.

    Raises:
        RecordError: the CSV holds no rows of the fused kernels, or those of several GPUs.
    """
    rows = read(csv)
    devices = sorted({row.device for row in rows})
    found = points(rows)
    if len(devices) != 1 or not found:
        raise RecordError(f"{csv}: expected rows of the fused kernels on one GPU, got {len(found)} on {devices}")
    path = path or measured.SHIPPED / measured.file_name(devices[0])
    measured.write(path, devices[0], found, {"rows": csv.name})
    return path
