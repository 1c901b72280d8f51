"""The recurrence's two passes on random input, each against the reference, whoever runs them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from close import assert_no_worse, assert_same
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fusedrnn import reference
from fusedrnn.spec import LSTM, CellSpec

PRECISIONS = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "tf32": torch.float32,
    "fp32": torch.float32,
    "fp64": torch.float64,
}
Kernel = Callable[..., tuple[Tensor, ...]]


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
    packed: bool = False
    states: bool = True
    bias: bool = True
    upstream: tuple[str, ...] = ("y", "hn", "cn")
    seed: int = 1

    def __str__(self) -> str:
        asks = [name for name in ("lengths", "reset", "packed") if getattr(self, name)]
        lacks = [f"no_{name}" for name in ("states", "bias") if not getattr(self, name)]
        size = f"T{self.T}B{self.B}H{self.H}D{self.directions}"
        return "-".join([self.cell.name, size, *asks, *lacks])


def check(
    case: Case, precision: str, scan: Kernel, scan_backward: Kernel, passes: tuple[bool, ...] = (False, True)
) -> None:
    """Forward (False) and backward (True) of one case, by the rule of close.py, each on its own.

    The yardstick is the reference in the same dtype and, for TF32, with its products.

    Args:
        case: what is computed.
        precision: in which numbers.
        scan: takes gates_x, h0, c0, weight_hh, bias_hh, lengths, reset, offsets, cell and directions, as the op.
        scan_backward: takes the five gradients, gates, y, h0, cs, c0, weight_hh and the rest likewise.
        passes: which are compared.
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
    lengths = _lengths(case, S, generator) if case.lengths or case.packed else None
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
    masks, code, D = (lengths, reset), spec.code, case.directions
    alive = torch.ones(T, B, S, dtype=torch.bool)
    if lengths is not None:
        alive = torch.arange(T).view(-1, 1, 1) < lengths.T
    offsets = alive[..., 0].sum(1).cumsum(0) - alive[..., 0].sum(1) if case.packed else None

    def cast(*tensors: Tensor | None) -> list[Tensor | None]:
        return [None if t is None else t.to(dtype) for t in tensors]

    def lay(*tensors: Tensor | None) -> list[Tensor | None]:
        """Sequences as the kernels get them: packed, or with NaN where nobody shall read."""
        if offsets is not None:
            return [t if t is None or t.dim() == 1 else t[alive[..., 0]].unsqueeze(1) for t in tensors]
        return [t if t is None or t.dim() == 1 else t.masked_fill(~alive.unsqueeze(-1), torch.nan) for t in tensors]

    # a CPU has no TF32: there, the yardstick is in float64 but for the products
    products = Tf32Products() if precision == "tf32" else nullcontext()
    rough = (lambda *tensors: tensors) if precision == "tf32" else cast
    given = (gates_x, h0, c0, w, bias)
    truth = reference.scan(*given, *masks, spec, D)
    if False in passes:
        found = scan(*cast(*lay(gates_x), *given[1:]), *masks, offsets, code, D)
        with products:
            near = reference.scan(*rough(*given), *masks, spec, D)
        _compare(("y", "hn", "gates", "cs", "cn"), found, truth, near, dtype, lay if case.packed else None)
    if True not in passes:
        return

    # backward, from the truth rounded: what one wrote wrongly shall not hide what the other reads wrongly
    y, _, gates, cs, _ = (t.to(dtype).double() for t in truth)
    upstream = (dy, dhn, dgates, dcs, dcn)
    kept = (gates, y, h0, cs if lstm else None, c0)
    (dy_, dgates_, dcs_), (gates_, y_, cs_) = lay(dy, dgates, dcs), lay(gates, y, kept[3])
    found = scan_backward(
        *cast(dy_, dhn, dgates_, dcs_, dcn), *cast(gates_, y_, h0, cs_, c0, w), *masks, offsets, code, D
    )
    truth = reference.scan_backward(*upstream, *kept, w, *masks, spec, D)
    with products:
        near = reference.scan_backward(*rough(*upstream), *rough(*kept, w), *masks, spec, D)
    _compare(("dgates_x", "dh0", "dc0", "dq"), found, truth, near, dtype, lay if case.packed else None)


def _compare(
    names: tuple[str, ...], found: Any, truth: Any, near: Any, dtype: torch.dtype, lay: Callable[..., Any] | None
) -> None:
    if lay is not None:  # the sequences among them
        truth, near = ([lay(t)[0] if t.dim() == 4 else t for t in each] for each in (truth, near))
    if dtype == torch.float64:  # there is nothing more exact to compare with
        return assert_same(found, truth)
    assert_no_worse(
        dict(zip(names, found, strict=True)),
        dict(zip(names, truth, strict=True)),
        {name: t.to(dtype) for name, t in zip(names, near, strict=True)},
    )


def _lengths(case: Case, S: int, generator: torch.Generator) -> Tensor:
    if case.packed:
        lengths = torch.randint(1, case.T + 1, (case.B,), generator=generator)
        lengths[0] = case.T
        return lengths.sort(descending=True).values.expand(S, -1)
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
