"""The recurrence's two passes on random input, each against the reference, whoever runs them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

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
SECOND_ORDER = ("y", "hn", "cn", "gates", "cs")
"""Every gradient that can flow in: a second derivative's reach what forward kept."""


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
    shared: bool = False  # all streams have the masks of one, by expanded views, as a layer's have
    packed: bool = False  # rows lie packed, in order of their lengths
    states: str = "hc"  # the initial ones that there are
    bias: bool = True
    upstream: tuple[str, ...] = ("y", "hn", "cn")
    seed: int = 1
    rates: tuple[float, ...] = ()  # of zoneout of h, of c, of recurrent dropout
    key: tuple[int, int] | None = None  # what they are drawn by
    starts: bool = False  # a reset goes back to a state that is given; what norm_check.py compares

    @property
    def noise(self) -> tuple[Tensor | None, tuple[float, ...]]:
        """The ops' mask_key and rates."""
        return None if self.key is None else torch.tensor(self.key), self.rates

    def __str__(self) -> str:
        asks = [name for name in ("lengths", "reset", "shared", "packed", "starts") if getattr(self, name)]
        lacks = [f"no_{name}0" for name in "hc" if name not in self.states] + ["no_bias"] * (not self.bias)
        asks += ["drawn" if self.key else "mean", *map(str, self.rates)] if self.rates else []
        size = f"T{self.T}B{self.B}H{self.H}D{self.directions}S{self.streams or self.directions}"
        return "-".join([self.cell.name, size, *asks, *lacks])


class Problem(NamedTuple):
    """A case's tensors, floats in float64 with the dtype's values; sequences [T, B, S, ...], also of packed rows."""

    given: tuple[Tensor | None, ...]  # gates_x, h0, c0, weight_hh, bias_hh
    upstream: tuple[Tensor | None, ...]  # dy, dhn, dgates, dcs, dcn
    lengths: Tensor | None
    reset: Tensor | None
    offsets: Tensor | None
    dtype: torch.dtype

    def laid(self, *tensors: Tensor | None) -> list[Tensor | None]:
        """As the kernels get them: in the dtype, sequences packed, or with NaN beyond the rows' ends."""
        return [None if t is None else self._laid(t.to(self.dtype), float("nan")) for t in tensors]

    def expected(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Results of the reference as the kernels have them."""
        return tuple(self._laid(t, 0.0) for t in tensors)

    def _laid(self, t: Tensor, padding: float) -> Tensor:
        if t.dim() != 4 or self.lengths is None:
            return t
        there = torch.arange(len(t)).view(-1, 1, 1) < self.lengths.t()  # [T, B, S]
        if self.offsets is not None:
            return t[there[..., 0]].unsqueeze(1)
        return t.masked_fill(~there.unsqueeze(-1), padding)


def draw(case: Case, dtype: torch.dtype) -> Problem:
    """The case's tensors, from its seed alone."""
    spec, lstm, S = case.cell, case.cell is LSTM, case.streams or case.directions
    T, B, H, G = case.T, case.B, case.H, len(spec.gates)
    generator = torch.Generator().manual_seed(case.seed)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype).double()

    gates_x, w = normal(T, B, S, G * H), normal(S, G * H, H, scale=0.7 * H**-0.5)
    bias = normal(S, G * H, scale=0.2) if case.bias else None
    h0 = normal(S, B, H) if "h" in case.states else None
    c0 = normal(S, B, H) if "c" in case.states and lstm else None
    upstream = tuple(
        normal(*shape) if name in case.upstream and (lstm or name not in ("cs", "cn")) and shape[-1] else None
        for name, shape in (
            ("y", (T, B, S, H)),
            ("hn", (S, B, H)),
            ("gates", (T, B, S, len(spec.kept) * H)),
            ("cs", (T, B, S, H)),
            ("cn", (S, B, H)),
        )
    )
    several = 1 if case.shared or case.packed else S
    lengths = reset = offsets = None
    if case.lengths or case.packed:
        # below 0 means 0, above T means T
        lengths = torch.randint(1, T + 1, (several, B), generator=generator)
        lengths[0, -1], lengths[-1, 0], lengths[-1, -1], lengths[0, 0] = -1, T + 1, 0, T
        if case.packed:
            lengths = lengths.clamp(1, T).sort(descending=True).values
            offsets = torch.tensor([0, *((lengths[0] > t).sum() for t in range(T - 1))]).cumsum(0)
        lengths = lengths.expand(S, -1)
    if case.reset:
        reset = torch.rand(T, B, several, generator=generator) < 0.3
        reset[0, 0] = reset[T // 2, 0] = True  # of the full row: the first state, and one within
        reset = reset.expand(-1, -1, S) if case.shared else reset.transpose(0, 1).contiguous().transpose(0, 1)
    return Problem((gates_x, h0, c0, w, bias), upstream, lengths, reset, offsets, dtype)


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
    spec, dtype, lstm, D = case.cell, PRECISIONS[precision], case.cell is LSTM, case.directions
    problem = draw(case, dtype)
    masks = (problem.lengths, problem.reset)

    def cast(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        return tuple(None if t is None else t.to(dtype) for t in tensors)

    # a CPU has no TF32: there, the yardstick is in float64 but for the products
    products = Tf32Products() if precision == "tf32" else nullcontext()
    rough = (lambda *tensors: tensors) if precision == "tf32" else cast
    truth = reference.scan(*problem.given, *masks, spec, D, *case.noise)
    if False in passes:
        found = scan(*problem.laid(*problem.given), *masks, problem.offsets, spec.code, D)
        with products:
            near = reference.scan(*rough(*problem.given), *masks, spec, D, *case.noise)
        _compare(("y", "hn", "gates", "cs", "cn"), found, problem.expected(*truth), problem.expected(*near), dtype)
    if True not in passes:
        return

    # backward, from the truth rounded: what one wrote wrongly shall not hide what the other reads wrongly
    y, _, gates, cs, _ = (t.to(dtype).double() for t in truth)
    _, h0, c0, w, _ = problem.given
    kept = (gates, y, h0, cs if lstm else None, c0, w)
    found = scan_backward(*problem.laid(*problem.upstream, *kept), *masks, problem.offsets, spec.code, D)
    truth = reference.scan_backward(*problem.upstream, *kept, *masks, spec, D, *case.noise)
    with products:
        near = reference.scan_backward(*rough(*problem.upstream), *rough(*kept), *masks, spec, D, *case.noise)
    _compare(("dgates_x", "dh0", "dc0", "dq"), found, problem.expected(*truth), problem.expected(*near), dtype)


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
