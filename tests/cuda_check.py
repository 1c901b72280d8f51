"""The CUDA kernels on the CPU's stand-in for a GPU, against the reference: run by test_cuda_kernels.py and mutations.

`host()` compiles csrc/cuda with csrc/host_device and registers its ops as torch.ops.fusedrnn_host.
"""

from __future__ import annotations

import functools
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from close import assert_no_worse, assert_same
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fusedrnn import reference
from fusedrnn.spec import CELLS, LSTM, CellSpec

ROOT = Path(__file__).parents[1]
REGIMES = {"auto": 0, "step": 1, "cta": 2, "cluster": 3, "grid": 4}
ALLOW_TF32 = 8
PRECISIONS = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "tf32": torch.float32,
    "fp32": torch.float32,
    "fp64": torch.float64,
}
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


@dataclass(frozen=True)
class Case:
    """A recurrence and what flows into it and back: sizes, masks, and which of the optional tensors there are."""

    cell: CellSpec
    T: int
    B: int
    H: int
    directions: int = 1
    streams: int | None = None
    lengths: bool = False
    reset: bool = False
    states: bool = True
    bias: bool = True
    upstream: tuple[str, ...] = ("y", "hn", "cn")
    seed: int = 1

    def __str__(self) -> str:
        asks = [name for name in ("lengths", "reset") if getattr(self, name)]
        lacks = [f"no_{name}" for name in ("states", "bias") if not getattr(self, name)]
        size = f"T{self.T}B{self.B}H{self.H}D{self.directions}"
        return "-".join([self.cell.name, size, *asks, *lacks])


def check(case: Case, regime: str, precision: str, passes: tuple[bool, ...] = (False, True)) -> None:
    """Forward (False) and backward (True) of one case in one regime, by the rule of close.py, each on its own.

    The yardstick is the reference in the same dtype and, for TF32, with its products.
    """
    spec, dtype, lstm = case.cell, PRECISIONS[precision], case.cell is LSTM
    S = case.streams or case.directions
    generator = torch.Generator().manual_seed(case.seed)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype).double()

    T, B, H, G = case.T, case.B, case.H, len(spec.gates)
    gates_x, w = normal(T, B, S, G * H), normal(S, G * H, H, scale=0.7 * H**-0.5)
    bias = normal(S, G * H, scale=0.2) if case.bias else None
    h0 = normal(S, B, H) if case.states else None
    c0 = normal(S, B, H) if case.states and lstm else None
    lengths = _lengths(case, S, generator) if case.lengths else None
    reset = torch.rand(T, B, S, generator=generator) < 0.25 if case.reset else None
    dy, dhn, dcn, dgates, dcs = (
        normal(*shape) if name in case.upstream and (lstm or name not in ("cs", "cn")) else None
        for name, shape in (
            ("y", (T, B, S, H)),
            ("hn", (S, B, H)),
            ("cn", (S, B, H)),
            ("gates", (T, B, S, len(spec.kept) * H)),
            ("cs", (T, B, S, H)),
        )
    )
    dgates = dgates if spec.kept else None
    route = REGIMES[regime] | (ALLOW_TF32 if precision == "tf32" else 0)
    masks, code, D = (lengths, reset), spec.code, case.directions

    def cast(*tensors: Tensor | None) -> list[Tensor | None]:
        return [None if t is None else t.to(dtype) for t in tensors]

    # a CPU has no TF32: there, the yardstick is in float64 but for the products
    products = Tf32Products() if precision == "tf32" else nullcontext()
    rough = (lambda *tensors: tensors) if precision == "tf32" else cast
    given = (gates_x, h0, c0, w, bias)
    truth = reference.scan(*given, *masks, spec, D)
    if False in passes:
        found = host().scan(*cast(*given), *masks, *RESERVED, code, D, True, route=route)
        with products:
            near = reference.scan(*rough(*given), *masks, spec, D)
        _compare(("y", "hn", "gates", "cs", "cn"), found, truth, near, dtype)
    if True not in passes:
        return

    # backward, from the truth rounded: what one wrote wrongly shall not hide what the other reads wrongly
    y, _, gates, cs, _ = (t.to(dtype).double() for t in truth)
    upstream = (dy, dhn, dgates, dcs, dcn)
    kept = (gates, y, h0, cs if lstm else None, c0)
    found = host().scan_backward(*cast(*upstream), *cast(*kept, w), *masks, code, D, route)
    truth = reference.scan_backward(*upstream, *kept, w, *masks, spec, D)
    with products:
        near = reference.scan_backward(*rough(*upstream), *rough(*kept, w), *masks, spec, D)
    _compare(("dgates_x", "dh0", "dc0", "dq"), found, truth, near, dtype)


def _compare(
    names: tuple[str, ...], found: Any, truth: tuple[Tensor, ...], near: tuple[Tensor, ...], dtype: torch.dtype
) -> None:
    if dtype == torch.float64:  # there is nothing more exact to compare with
        return assert_same(found, truth)
    assert_no_worse(
        dict(zip(names, found, strict=True)),
        dict(zip(names, truth, strict=True)),
        {name: t.to(dtype) for name, t in zip(names, near, strict=True)},
    )


def _lengths(case: Case, S: int, generator: torch.Generator) -> Tensor:
    lengths = torch.randint(0, case.T + 1, (case.B,), generator=generator)
    lengths[0] = case.T
    if case.B > 1:
        lengths[-1] = 0
    return lengths.expand(S, -1)


class Tf32Products(TorchFunctionMode):
    """Matrix products of operands that are rounded to TF32's 11 significant bits, to nearest."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.__matmul__, torch.Tensor.matmul, torch.matmul):
            args = tuple(map(self.rounded, args))
        return func(*args, **(kwargs or {}))

    @staticmethod
    def rounded(t: Tensor) -> Tensor:
        bits = t.float().contiguous().view(torch.int32)
        return ((bits + 0x1000) & ~0x1FFF).view(torch.float32).double()


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
        Case(row.cell, 5, B + 3, row.H, 2, states=False, bias=False, seed=2),
        Case(row.cell, 1, 2 * B - 1, row.H, upstream=("hn",), seed=3),
    ]
    if row.masked:
        cases += [
            Case(row.cell, 6, B + 3, row.H, 2, lengths=True, seed=4),
            Case(row.cell, 6, B, row.H, 2, reset=True, seed=5),
            Case(row.cell, 7, B, row.H - 8, 2, lengths=True, reset=True, seed=6),
            Case(row.cell, 4, 3, 8, states=False, seed=7),
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
