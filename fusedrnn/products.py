"""Matrix products in the precision of the recurrent layers.

In float32 on a GPU torch has one flag for recurrent layers, `torch.backends.cudnn.rnn.fp32_precision`, and another for
torch.mm. A layer's projections and weight gradients follow the first, as cuDNN's do: where the two differ, by the op
`product`, which is told what to do. Everywhere else they are torch's own products.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from . import modes, ops

ALLOW_TF32 = 8
"""The bit of the ops' `route` that allows products of TF32."""


@modes.constant
def layers_allow_tf32() -> bool:
    """Whether a recurrent layer may multiply float32 as TF32: torch's default."""
    precision: str = torch.backends.cudnn.rnn.fp32_precision  # type: ignore[attr-defined]
    return precision == "tf32"


@modes.constant
def _torch_allows_tf32() -> bool:
    precision: str = torch.backends.cuda.matmul.fp32_precision
    return precision == "tf32"


def linear(x: Tensor, w: Tensor, b: Tensor | None, route: int) -> Tensor:
    """`x @ w.T + b`: x [..., I], w [N, I], b [N]."""
    if not _differs(x, route):
        return F.linear(x, w, b)
    y = _product(x.reshape(-1, x.shape[-1]), w.mT, route).view(*x.shape[:-1], w.shape[0])
    return y if b is None else y + b


def matmul(a: Tensor, b: Tensor, route: int) -> Tensor:
    """`a @ b`, of matrices [M, K] and [K, N] or of as many pairs of them: [S, M, K] and [S, K, N]."""
    if not _differs(a, route):
        return a @ b
    if a.dim() == 2:
        return _product(a, b, route)
    return torch.stack([_product(x, y, route) for x, y in zip(a, b, strict=True)])


def by_stream(t: Tensor) -> Tensor:
    """[T,B,S,N] to [S,T*B,N]: the rows of each stream, for a product over all steps."""
    return t.reshape(-1, *t.shape[2:]).transpose(0, 1)


def _product(a: Tensor, b: Tensor, route: int) -> Tensor:
    return ops.product(a, b, bool(route & ALLOW_TF32))  # type: ignore[no-any-return]


def _differs(t: Tensor, route: int) -> bool:
    # torch.func has no rule for the op, and without the CUDA kernels there is none: there torch.mm's own flag holds
    return (
        t.is_cuda
        and ops.cuda_missing is None
        and t.dtype == torch.float32
        and bool(route & ALLOW_TF32) != _torch_allows_tf32()
        and not modes.transformed()
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    a, b, ctx.tf32 = inputs
    ctx.save_for_backward(a, b)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    a, b = ctx.saved_tensors
    return (
        ops.product(grad, b.mT, ctx.tf32) if ctx.needs_input_grad[0] else None,
        ops.product(a.mT, grad, ctx.tf32) if ctx.needs_input_grad[1] else None,
        None,
    )


torch.library.register_autograd("fusedrnn::product", _backward, setup_context=_setup)
