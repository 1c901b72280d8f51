"""The gradients of a layer from what forward kept: the formula behind every door of `autograd`.

All of torch ops and of the adjoint, so that it can itself be differentiated, batched and compiled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import philox, products, reference
from .adjoint import adjoint
from .modes import transformed, without_autocast
from .spec import GRU, LSTM, CellSpec

MaybeTensor = Tensor | None
Gradients = tuple[MaybeTensor, ...]


def stacked(weights: Sequence[Tensor], directions: int) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """The directions' weights as w_ih [D*G*H,I], w_hh [D,G*H,H], b_ih [D*G*H], b_hh [D,G*H]."""
    each = len(weights) // directions
    ih, hh, *bias = (weights[k::each] for k in range(each))
    if directions == 1:
        return ih[0], hh[0].unsqueeze(0), *((bias[0][0], bias[1][0].unsqueeze(0)) if bias else (None, None))
    w_ih, w_hh = torch.cat(list(ih)), torch.stack(list(hh))
    return w_ih, w_hh, *((torch.cat(list(bias[0])), torch.stack(list(bias[1]))) if bias else (None, None))


def per_stream(lengths: Tensor | None, reset: Tensor | None, directions: int) -> tuple[Tensor | None, Tensor | None]:
    """Masks of rows, [B] and [T,B], as views over a layer's streams, [D,B] and [T,B,D]."""
    return (
        None if lengths is None else lengths.expand(directions, lengths.shape[0]),
        None if reset is None else reset.unsqueeze(-1).expand(*reset.shape, directions),
    )


def without_padding(x: Tensor, lengths: Tensor | None) -> Tensor:
    """[T,B,I] with zeros beyond each row's length [B], for products over all steps.

    Their gradient of W_ih sums over all steps, where 0 times NaN is no 0; and in bfloat16 torch's own product (2.13, on
    a CPU) lets a NaN reach its neighbours' rows.
    """
    if lengths is None:
        return x
    beyond = torch.arange(x.shape[0], device=x.device).unsqueeze(1) >= lengths
    return x.masked_fill(beyond.unsqueeze(2), 0)


def apart(t: Tensor, directions: int) -> Tensor:
    """[T,B,D*N] to [T,B,D,N]."""
    return t.view(*t.shape[:-1], directions, t.shape[-1] // directions)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _rows(t: Tensor) -> Tensor:
    """[T,B,...] to [T*B,...]; by reshape, because is_grads_batched has no rule for flatten."""
    return t.reshape(-1, *t.shape[2:])


def gradients(
    upstream: Gradients,
    gates: Tensor | None,
    source: Sequence[Any],
    saved: tuple[Any, ...],
    bias_hh: Tensor | None,
    spec: CellSpec,
    directions: int,
    wanted: Sequence[bool],
    route: int = 0,
    mask_key: Tensor | None = None,
    rates: Sequence[float] = (),
) -> Gradients:
    """The formula, of torch ops and the adjoint op, all of them differentiable.

    Args:
        upstream: gradients of y, hn, gates, cs, cn.
        gates: what forward kept; None to rebuild it from `source` and the states, by two products over all steps.
        source: x, weight_ih, bias_ih.
        saved: y, h0, cs, c0, weight_hh, lengths, reset.
        bias_hh: [S,G*H].
        spec: the cell.
        directions: 1 or 2.
        wanted: whether the gradients of weight_hh and of bias_hh are.
        route: as in `scan`, like those below.
        mask_key: see above.
        rates: see above.

    Returns:
        Gradients of gates_x, h0, c0, weight_hh, bias_hh.
    """
    dy, dhn, dgates, dcs, dcn = upstream
    y, h0, cs, c0, weight_hh, lengths, reset = saved
    rows: Any = None
    if wanted[0] or gates is None:
        seen = reference.previous(y, h0, lengths, reset, directions)
        if rates and rates[2]:
            _, B, S, H = y.shape
            seen = seen * philox.dropout_mask(rates[2], mask_key, S, B, y, H).transpose(0, 1)  # type: ignore[arg-type]
        rows = _rows(seen).transpose(0, 1)
    if gates is None:
        x, weight_ih, bias_ih = source
        gates_x = apart(products.linear(x, weight_ih, bias_ih, route), weight_hh.shape[0])
        gates_h = products.matmul(rows, weight_hh.mT, route).transpose(0, 1).reshape(gates_x.shape)
        gates = reference.activate(gates_x, gates_h if bias_hh is None else gates_h + bias_hh, spec)
    # absent outputs come as [0], and so may their gradients
    dgates = dgates if spec.kept else None
    dcs, dcn, cs = (dcs, dcn, cs) if spec is LSTM else (None, None, None)
    kept = gates, y, h0, cs, c0, weight_hh, lengths, reset
    how = spec.code, directions, route, None, mask_key, rates
    dgates_x, dh0, dc0, dq = adjoint(dy, dhn, dgates, dcs, dcn, *kept, *how)
    # of W_hh h + b_hh; the GRU's n has its own, q. In parts, not joined: that would copy them all. But by torch.func
    # the gradients of weights may be a row's, and to join those is the larger copy
    parts = (dgates_x[..., : 2 * y.shape[-1]], dq) if spec is GRU else (dgates_x,)
    parts = (torch.cat(parts, -1),) if len(parts) > 1 and transformed() else parts
    dweight_hh = (
        _joined([products.matmul(_rows(d).permute(1, 2, 0), rows, route) for d in parts]) if wanted[0] else None
    )
    dbias_hh = _joined([d.sum((0, 1)) for d in parts]) if wanted[1] else None
    return dgates_x, None if h0 is None else dh0, None if c0 is None else dc0, dweight_hh, dbias_hh


def layer(
    upstream: Gradients,
    saved: tuple[Any, ...],
    weights: Sequence[Tensor],
    spec: CellSpec,
    bias: bool,
    need: Sequence[bool],
) -> tuple[MaybeTensor, MaybeTensor, MaybeTensor, list[MaybeTensor]]:
    """A whole layer, projections included; the gates are rebuilt.

    Args:
        upstream: gradients of y, hn, cs, cn.
        saved: x, h0, c0, lengths, reset, y, cs, as `autograd.layer` has them.
        weights: as there.
        spec: the cell.
        bias: whether there are biases among the weights.
        need: whether the gradient of x is wanted, and of each weight.

    Returns:
        Gradients of x, h0, c0 and the weights.
    """
    x, h0, c0, lengths, reset, y, cs = saved
    x = without_padding(x, lengths)
    each = 4 if bias else 2
    D = len(weights) // each
    of_ih, of_hh, *of_bias = (any(need[1 + k :: each]) for k in range(each))
    of_b_ih, of_b_hh = of_bias or (False, False)
    w_ih, w_hh, b_ih, b_hh = stacked(weights, D)
    dy, dhn, dcs, dcn = upstream
    dy, dcs, cs, y = (t if t is None or t.dim() == 1 else apart(t, D) for t in (dy, dcs, cs, y))
    with without_autocast(x):
        dgates_x, dh0, dc0, dw_hh, db_hh = gradients(
            (dy, dhn, None, dcs, dcn),
            None if spec.kept else x.new_empty(0),
            (x, w_ih, b_ih),
            (y, h0, cs, c0, w_hh, *per_stream(lengths, reset, D)),
            b_hh,
            spec,
            D,
            (of_hh, of_b_hh),
        )
        rows: Any = None if dgates_x is None else dgates_x.reshape(-1, w_ih.shape[0])
        dx = (rows @ w_ih).view(x.shape) if need[0] else None
        dw_ih = (rows.mT @ x.reshape(-1, x.shape[-1])).view(D, -1, x.shape[-1]) if of_ih else None
        db_ih = rows.sum(0).view(D, -1) if of_b_ih else None
    parts = (dw_ih, dw_hh, db_ih, db_hh)[:each]
    return dx, dh0, dc0, [None if t is None else t[d] for d in range(D) for t in parts]
