"""Derivatives and transforms of the recurrence: one formula, one batching rule, and the doors `layer` and `scan`.

    caller                                  route
    forward-mode differentiation            reference loop: plain PyTorch ops have every derivative
    torch.func, with masks of units         reference loop: members that share a key shall draw the same
    torch.func, eager or compiled           Scan: a Function with setup_context and vmap, opaque to dynamo
    torch.compile, torch.export             the op `scan`, its formula and batching rule registered by torch.library
    eager on the CPU, a gradient is wanted  LayerEager over the op `layer`; with rates, ScanEager
    eager on the CPU, no gradient           the op `layer` below autograd; with rates, the op `scan`

`gates` is a differentiable output of `scan` although no caller reads it, and the adjoint is an op with a formula of its
own. First derivatives leave the gradient of `gates` None and cost nothing. A second derivative differentiates the
adjoint with respect to what forward kept (gates, y, cs) and sends that through the same fused backward, so nothing is
kept for a second derivative that may never be asked for. `layer` keeps its gates in an order of its own: its second
derivative rebuilds them from x and y and goes on by the same formula (formula.py). With `recompute` pieces of time run
again (pieces.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from . import batching, formula, ops, pieces, products, reference, units
from . import triton_ops as _triton_ops  # noqa: F401  registers what the Triton ops run
from .modes import forward_mode, maps_gradients, opaque, traced, transformed, without_autocast
from .spec import CELLS, LSTM, CellSpec

States = tuple[Tensor, ...]
MaybeTensor = Tensor | None
Gradients = tuple[MaybeTensor, ...]
Source = tuple[MaybeTensor, MaybeTensor, MaybeTensor]

_below_autograd = torch._C._AutoDispatchBelowAutograd
_RESERVED: tuple[Any, ...] = (None, None, None)  # reset_h, reset_c, offsets


def layer(
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    reset: Tensor | None,
    spec: CellSpec,
    directions: int,
    *,
    recompute: bool = False,
    states: bool = False,
    route: int | None = None,
    mask_key: Tensor | None = None,
    rates: Sequence[float] = (),
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """One layer, projections included.

    Args:
        x: [T,B,I].
        h0: [D,B,H], zeros if None.
        c0: [D,B,H], likewise; for the LSTM.
        weights: for each direction w_ih [G*H,I], w_hh [G*H,H] and, with biases, b_ih and b_hh [G*H].
        lengths: [B] int64.
        reset: [T,B] bool.
        spec: the cell.
        directions: 1 or 2.
        recompute: keep states only for backward, and rebuild the gates there.
        states: return the LSTM's cs in any case.
        route: which kernel on a GPU shall run it and how, of `backends.route`; None for the CPU's.
        mask_key: int64 [2], what zoneout and recurrent dropout are drawn by; None for zoneout's expectation.
        rates: of zoneout of h, zoneout of c, recurrent dropout; () for none.

    Returns:
        y [T,B,D*H], hn [D,B,H], cs [T,B,D*H] ([0] if nobody wants it), cn [D,B,H]; the last two None but for the LSTM.
    """
    if route is not None or rates or not x.is_cpu or traced() or ops.missing is not None:
        return _projected(x, h0, c0, weights, lengths, reset, spec, directions, recompute, route, mask_key, rates)
    bias = len(weights) == 4 * directions
    if torch.is_grad_enabled() and any_requires_grad(x, h0, c0, *weights):
        out: Any = LayerEager.apply(x, h0, c0, lengths, reset, spec, bias, recompute and bool(spec.kept), *weights)  # type: ignore[no-untyped-call]
        y, hn, cs, cn = out if spec is LSTM else (*out, None, None)
        return y, hn, cs, cn
    with _below_autograd():
        y, hn, cs, cn, _ = ops.layer(x, h0, c0, weights, lengths, reset, spec.code, bias, False, states)
    return (y, hn, cs, cn) if spec is LSTM else (y, hn, None, None)


def _projected(
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    reset: Tensor | None,
    spec: CellSpec,
    directions: int,
    recompute: bool,
    route: int | None,
    mask_key: Tensor | None,
    rates: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """`layer` as a projection by torch and `scan`."""
    H = weights[1].shape[-1]
    odd = route is not None and H % units.MULTIPLE != 0
    if odd:
        weights, (h0, c0) = units.padded(weights, (h0, c0), spec)
    route = route or 0
    w_ih, w_hh, b_ih, b_hh = formula.stacked(weights, directions)
    gates_x = formula.apart(products.linear(x, w_ih, b_ih, route), directions)
    masks = formula.per_stream(lengths, reset, directions)
    source = (x, w_ih, b_ih)
    y, hn, _, cs, cn = scan(
        gates_x, h0, c0, w_hh, b_hh, *masks, spec, directions, source, recompute, route, mask_key, rates
    )
    if odd:
        y, hn, cs, cn = (t if t.dim() == 1 else t[..., :H].contiguous() for t in (y, hn, cs, cn))
    return (y.flatten(2), hn, cs.flatten(2), cn) if spec is LSTM else (y.flatten(2), hn, None, None)


def scan(
    gates_x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weight_hh: Tensor,
    bias_hh: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    spec: CellSpec,
    directions: int,
    source: Source = (None, None, None),
    recompute: bool = False,
    route: int = 0,
    mask_key: Tensor | None = None,
    rates: Sequence[float] = (),
) -> States:
    """The time loop. Shapes and results are those of `reference.scan`, but `gates` may come back empty.

    Args:
        gates_x: [T,B,S,G*H].
        h0: [S,B,H], zeros if None.
        c0: [S,B,H], likewise; for the LSTM.
        weight_hh: [S,G*H,H].
        bias_hh: [S,G*H].
        lengths: [S,B] int64.
        reset: [T,B,S] bool.
        spec: the cell.
        directions: 1 or 2.
        source: (x, w_ih, b_ih) with gates_x = linear(x, w_ih, b_ih): what backward rebuilds the gates from.
        recompute: keep states only for backward, and rebuild the gates from `source`.
        route: which kernel on a GPU shall run it and how, of `backends.route`; 0 for the CPU's.
        mask_key: as in `layer`, like `rates`.
        rates: see above.
    """
    args = (gates_x, h0, c0, weight_hh, bias_hh, lengths, reset)
    if forward_mode() or (rates and transformed()):
        return reference.scan(*args, spec, directions, mask_key, rates)
    # an exported program should be trainable, yet compute no gates where it only infers: it always rebuilds them
    recompute = recompute or torch.compiler.is_exporting()
    kept = source if recompute else (None, None, None)
    call = (*args, *_RESERVED, mask_key, rates, spec.code, directions)
    out: States
    if transformed():
        out = Scan.apply(*call, torch.is_grad_enabled() and not recompute, *kept, route)  # type: ignore[no-untyped-call]
        return out
    grad = torch.is_grad_enabled() and any_requires_grad(*args[:5])
    if torch.compiler.is_compiling():
        out = ops.scan_for(route)(*call, grad and not recompute, *kept, route)
    elif grad:
        out = ScanEager.apply(*call, not recompute, *kept, route)  # type: ignore[no-untyped-call]
    else:
        with _below_autograd():
            out = ops.scan_for(route)(*call, False, route=route)
    return out


def any_requires_grad(*tensors: Tensor | None) -> bool:
    """Whether a gradient of any of these may be wanted."""
    return any(t is not None and t.requires_grad for t in tensors)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: States) -> None:
    _, h0, c0, weight_hh, bias_hh, lengths, reset = inputs[:7]
    mask_key, ctx.rates = inputs[10:12]
    ctx.cell, ctx.directions, ctx.save, *source, ctx.route = inputs[12:]
    y, _, gates, cs, _ = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(h0, c0, weight_hh, bias_hh, lengths, reset, mask_key, *source, y, gates, cs)


def _backward(
    ctx: Any, dy: MaybeTensor, dhn: MaybeTensor, dgates: MaybeTensor, dcs: MaybeTensor, dcn: MaybeTensor
) -> Gradients:
    h0, c0, weight_hh, bias_hh, lengths, reset, mask_key, *source, y, gates, cs = ctx.saved_tensors
    spec, need = CELLS[ctx.cell], ctx.needs_input_grad
    rebuild = bool(spec.kept) and not ctx.save
    if rebuild and source[0] is None:
        raise RuntimeError("scan kept no gates and was given no x and weight_ih to rebuild them from: pass save=True")
    with without_autocast(y):
        grads = formula.gradients(
            (dy, dhn, dgates, dcs, dcn),
            None if rebuild else gates,
            source,
            (y, h0, cs, c0, weight_hh, lengths, reset),
            bias_hh,
            spec,
            ctx.directions,
            need[3:5],
            ctx.route,
            mask_key,
            ctx.rates,
        )
    return *grads, *[None] * 14


@opaque
class Scan(Function):
    """The formula for torch.func, which refuses both register_autograd and forward(ctx, ...)."""

    @staticmethod
    def forward(*args: Any) -> Any:
        with _below_autograd():
            return ops.scan_for(args[18])(*args)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        return _members(info, in_dims, *args)

    setup_context = staticmethod(_setup)
    backward = staticmethod(_backward)


_members = batching.scan_rule(Scan.apply)


class ScanEager(Function):
    """The formula for plain eager mode, where setup_context costs an inspect.signature a call."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Any:
        with _below_autograd():
            out = ops.scan_for(args[18])(*args[:15], route=args[18])
        _setup(ctx, args, out)
        return out

    backward = staticmethod(_backward)


_BEFORE_WEIGHTS = 8  # arguments of LayerEager


class LayerEager(Function):
    """A whole layer in plain eager mode on the CPU, by the fused ops `layer` and `layer_backward`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        lengths: Tensor | None,
        reset: Tensor | None,
        spec: CellSpec,
        bias: bool,
        recompute: bool,
        *weights: Tensor,
    ) -> States:
        with _below_autograd():
            y, hn, cs, cn, kept = ops.layer(x, h0, c0, weights, lengths, reset, spec.code, bias, not recompute, True)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, h0, c0, lengths, reset, y, cs, kept, *weights)
        ctx.spec, ctx.bias, ctx.recompute = spec, bias, recompute
        return (y, hn, cs, cn) if spec is LSTM else (y, hn)

    @staticmethod
    def backward(
        ctx: Any, dy: MaybeTensor, dhn: MaybeTensor, dcs: MaybeTensor = None, dcn: MaybeTensor = None
    ) -> Gradients:
        x, h0, c0, lengths, reset, y, cs, kept, *weights = ctx.saved_tensors
        need = ctx.needs_input_grad
        graph = torch.is_grad_enabled() or traced() or maps_gradients()
        if graph or ctx.recompute:
            saved, wanted = (x, h0, c0, lengths, reset, y, cs), (need[0], *need[_BEFORE_WEIGHTS:])
            run = formula.layer if graph else pieces.gradients
            dx, dh0, dc0, dweights = run((dy, dhn, dcs, dcn), saved, weights, ctx.spec, ctx.bias, wanted)
            return dx, dh0, dc0, *[None] * (_BEFORE_WEIGHTS - 3), *dweights
        of_weights = any(need[_BEFORE_WEIGHTS:])
        asked = need[0] * ops.WANT_X | (need[1] or need[2]) * ops.WANT_STATES | of_weights * ops.WANT_WEIGHTS
        with _below_autograd():
            dx, dh0, dc0, *dweights = ops.layer_backward(
                dy, dhn, dcs, dcn, x, h0, c0, weights, y, cs, kept, lengths, reset, ctx.spec.code, ctx.bias, asked
            )
        return (
            dx if need[0] else None,
            dh0 if need[1] else None,
            dc0 if need[2] else None,
            *[None] * (_BEFORE_WEIGHTS - 3),
            *(dweights if of_weights else (None,) * len(weights)),
        )


# What torch.compile and torch.export record is the op itself, so the op must be differentiable and batchable.
for _op in (ops.scan, ops.triton_scan):
    torch.library.register_autograd(_op, _backward, setup_context=_setup)
    torch.library.register_vmap(_op, batching.scan_rule(_op))
