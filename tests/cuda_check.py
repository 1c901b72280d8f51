"""The CUDA kernels on the CPU's stand-in for a GPU, against the reference: run by test_cuda_kernels.py and mutations.

`host()` compiles csrc/cuda with csrc/host_device and registers its ops as torch.ops.fusedrnn_host.
"""

from __future__ import annotations

import functools
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from close import assert_no_worse
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fusedrnn import reference
from fusedrnn.spec import LSTM, CellSpec

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


def check(case: Case, regime: str, precision: str) -> None:
    """Forward and backward of one case in one regime, each on its own from the same numbers, by the rule of close.py.

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
    found = host().scan(*cast(*given), *masks, *RESERVED, code, D, True, route=route)
    truth = reference.scan(*given, *masks, spec, D)
    with products:
        near = reference.scan(*rough(*given), *masks, spec, D)
    _compare(("y", "hn", "gates", "cs", "cn"), found, truth, near, dtype)

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
