"""One random problem for every backend and dtype: its numbers are exact in all of them, so that there is one truth."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import fusedrnn

REHEARSAL = bool(os.environ.get("FUSEDRNN_GPU_REHEARSAL"))
"""Whether the CPU takes the GPU's place (conftest.py): a mistake in these tests shall show where there is no GPU."""
DEVICE = "cpu" if REHEARSAL else "cuda"
REGIMES = ("cuda:step", "cuda:cta", "cuda:cluster", "cuda:grid")
BACKENDS = ("cuda", *REGIMES, "cudnn", "reference")
DTYPES = {
    "fp16": (torch.float16, "ieee"),
    "bf16": (torch.bfloat16, "ieee"),
    "tf32": (torch.float32, "tf32"),
    "fp32": (torch.float32, "ieee"),
    "fp64": (torch.float64, "ieee"),
}
"""The dtype, and what torch allows products of float32 in RNNs."""
if REHEARSAL:
    BACKENDS = ("cuda", "cuda:step", "cudnn", "reference")
    DTYPES = {kind: DTYPES[kind] for kind in ("bf16", "fp32", "fp64")}


@dataclass(frozen=True)
class Case:
    cell: str
    T: int
    B: int
    I: int
    H: int
    L: int = 1
    D: int = 1
    lengths: bool = False
    reset: bool = False
    recompute: bool = False
    states: bool = True


@dataclass
class Problem:
    case: Case
    layer: nn.RNNBase  # torch's, float64, on the CPU
    x: Tensor
    hx: Any
    lengths: Tensor | None
    reset: Tensor | None

    @property
    def masks(self) -> dict[str, Tensor]:
        found = {"lengths": self.lengths, "reset": self.reset}
        return {name: mask for name, mask in found.items() if mask is not None}


def exact(t: Tensor) -> Tensor:
    """Rounded to what every dtype holds."""
    return t.to(torch.bfloat16).to(torch.float16).double()


def make(case: Case, seed: int = 0) -> Problem:
    generator = torch.Generator().manual_seed(seed)
    name, _, kind = case.cell.partition("_")
    torch.manual_seed(seed)
    layer = getattr(nn, name)(
        case.I,
        case.H,
        case.L,
        bidirectional=case.D == 2,
        dtype=torch.double,
        **({"nonlinearity": kind} if kind else {}),
    )
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(exact(parameter))
    x = exact(torch.randn(case.T, case.B, case.I, generator=generator, dtype=torch.double))
    if kind == "relu":
        _away_from_the_kink(layer, x, generator)
    edge = (case.L * case.D, case.B, case.H)
    normal = lambda *size: exact(torch.randn(size, generator=generator, dtype=torch.double))  # noqa: E731
    hx = None
    if case.states:
        hx = (normal(*edge), normal(*edge)) if case.cell == "LSTM" else normal(*edge)
    lengths = None
    if case.lengths:  # torch packs no empty rows; with resets, it is not asked
        lengths = torch.randint(0 if case.reset else 1, case.T + 1, (case.B,), generator=generator)
        lengths[0] = case.T
    reset = torch.rand(case.T, case.B, generator=generator) < 0.2 if case.reset else None
    return Problem(case, layer, x, hx, lengths, reset)


def _away_from_the_kink(layer: nn.RNNBase, x: Tensor, generator: torch.Generator) -> None:
    """Makes every sum that relu sees about 8 or -8: near 0, rounding alone decides whether a gradient passes."""
    x[..., 0].copy_(torch.randint(0, 2, x.shape[:2], generator=generator) * 2 - 1)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            parameter.div_(4)
            if name.startswith("weight_ih"):
                signs = torch.randint(0, 2, parameter.shape[:1], generator=generator) * 2 - 1
                parameter[:, 0].copy_(8 * signs)


def fused(problem: Problem, backend: str, dtype: torch.dtype, device: str = DEVICE) -> nn.Module:
    layer = fusedrnn.convert(copy.deepcopy(problem.layer).to(device, dtype), backend=backend)
    layer.recompute = problem.case.recompute
    return layer


def results(problem: Problem, layer: nn.Module, packed: bool = False) -> dict[str, Tensor]:
    """Outputs, states and every gradient, on the CPU, in the layer's dtype.

    Args:
        packed: hand torch's own layer a PackedSequence where there are lengths.
    """
    weight = next(layer.parameters())
    x = problem.x.detach().to(weight).requires_grad_()
    hx = problem.hx if problem.hx is None or isinstance(problem.hx, tuple) else (problem.hx,)
    given = [h.detach().to(weight).requires_grad_() for h in hx or ()]
    arguments = [] if hx is None else [tuple(given) if len(given) == 2 else given[0]]
    if not packed:
        y, last = layer(x, *arguments, **{name: mask.to(weight.device) for name, mask in problem.masks.items()})
    elif problem.lengths is None:
        y, last = layer(x, *arguments)
    else:
        rows = nn.utils.rnn.pack_padded_sequence(x, problem.lengths, enforce_sorted=False)
        y, last = layer(rows, *arguments)
        y = nn.utils.rnn.pad_packed_sequence(y, total_length=problem.case.T)[0]
    outputs = [y, *(last if isinstance(last, tuple) else (last,))]
    generator = torch.Generator().manual_seed(1)
    upstream = [exact(torch.randn(t.shape, generator=generator, dtype=torch.double)).to(t) for t in outputs]
    leaves = {"x": x, **{f"hx{i}": h for i, h in enumerate(given)}, **dict(layer.named_parameters())}
    gradients = torch.autograd.grad(outputs, list(leaves.values()), upstream, materialize_grads=True)
    found = dict(zip(("y", "h_n", "c_n"), outputs, strict=False))
    found |= {f"d_{name}": t for name, t in zip(leaves, gradients, strict=True)}
    return {name: t.detach().cpu() for name, t in found.items()}


def truth(problem: Problem) -> dict[str, Tensor]:
    return results(problem, fused(problem, "reference", torch.double, "cpu"))


def torchs(problem: Problem, dtype: torch.dtype) -> dict[str, Tensor]:
    """What torch makes of it in this dtype on the GPU: cuDNN, where it can, else the loop of its ops."""
    if problem.reset is not None:
        return results(problem, fused(problem, "reference", dtype))
    return results(problem, copy.deepcopy(problem.layer).to(DEVICE, dtype), packed=True)


@contextmanager
def products(allowed: str) -> Iterator[None]:
    """What products of float32 in RNNs may be taken in."""
    rnn = torch.backends.cudnn.rnn
    before = rnn.fp32_precision
    rnn.fp32_precision = allowed
    try:
        yield
    finally:
        rnn.fp32_precision = before
