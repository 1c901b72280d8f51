"""On the fused kernels: layer normalisation, and states to which a reset goes back.

The products with W_ih are torch's, over all steps, and so is their normalisation. The time loop is the op `norm_scan`:
a step is its product with W_hh, the normalisation of it and the cell. Its adjoint, `norm_scan_backward`, ends at the
gradients of the pre-activations and of the product; those of weights, biases, gains and shifts are taken here, over all
steps at once. A second derivative is one of the reference's loop, and so are forward mode and torch.func.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from . import formula, ops, philox, products, reference, units
from .autograd import any_requires_grad
from .modes import forward_mode, maps_gradients, traced, transformed, without_autocast
from .spec import CELLS, GRU, LSTM, CellSpec

MaybeTensor = Tensor | None

_below_autograd = torch._C._AutoDispatchBelowAutograd


def layer(
    *args: Any, recompute: bool = False, states: bool = False, route: int | None = None, **options: Any
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """One layer, projections included: arguments and results of `autograd.layer`, and two more.

    Args:
        args: see there.
        recompute: keep nothing but the inputs for backward, and run the layer again there.
        states: see there; the LSTM's cs is returned in any case.
        route: see there.
        options: see there; `norms`, for each direction what `spec.norm_names` names: gains [G*H], those of c [H]; and
            `resets`, where a reset goes back to, [D,H] of each state. Without one of them nothing is normalised, and a
            reset goes back to zeros.
    """
    if forward_mode() or transformed():
        return reference.layer(*args, **options)
    if recompute and torch.is_grad_enabled() and not traced():
        return checkpoint(  # type: ignore[no-any-return]
            _layer, *args, use_reentrant=False, preserve_rng_state=False, route=route, **options
        )
    return _layer(*args, route=route, **options)


def _layer(
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    reset: Tensor | None,
    spec: CellSpec,
    directions: int,
    *,
    norms: Sequence[Tensor] = (),
    resets: Sequence[Tensor] = (),
    route: int | None,
    mask_key: Tensor | None = None,
    rates: Sequence[float] = (),
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    H = weights[1].shape[-1]
    odd = route is not None and H % units.MULTIPLE != 0
    if odd:
        weights, (h0, c0, *resets) = units.padded(weights, (h0, c0, *resets), spec)
    route = route or 0
    w_ih, w_hh, b_ih, b_hh = formula.stacked(weights, directions)
    each = len(norms) // directions
    gains = [torch.stack(list(norms[k::each])) for k in range(each)]
    gain_ih, gain_hh, gain_c, shift_c = (*gains, None, None, None, None)[:4]
    reset_h, reset_c = (*resets, None, None)[:2]
    source = x, w_ih, b_ih, gain_ih
    loop = _gates_x(spec, route, directions, *source), h0, c0, w_hh, b_hh
    more = reset_h, reset_c, gain_hh, gain_c, shift_c
    save = torch.is_grad_enabled() and any_requires_grad(*loop, *more)
    # an exported program should be trainable
    save = save or torch.compiler.is_exporting()
    masks = formula.per_stream(lengths, reset, directions)
    call = (*loop, *masks, *more, mask_key, rates, spec.code, directions, save, route)
    if torch.compiler.is_compiling():
        y, hn, _, cs, cn, _ = ops.norm_scan(*call)
    elif save:
        y, hn, _, cs, cn, _ = NormScan.apply(*call, *source)  # type: ignore[no-untyped-call]
    else:
        with _below_autograd():
            y, hn, _, cs, cn, _ = ops.norm_scan(*call)
    if odd:
        y, hn, cs, cn = (t if t.dim() == 1 else t[..., :H].contiguous() for t in (y, hn, cs, cn))
    return (y.flatten(2), hn, cs.flatten(2), cn) if spec is LSTM else (y.flatten(2), hn, None, None)


def _gates_x(
    spec: CellSpec, route: int, D: int, x: Tensor, w_ih: Tensor, b_ih: Tensor | None, gain_ih: Tensor | None
) -> Tensor:
    """[T,B,D,G*H], of weights [D*G*H,I], biases [D*G*H] and gains [D,G*H]."""
    if gain_ih is None:
        return formula.apart(products.linear(x, w_ih, b_ih, route), D)
    product = reference.standardised(formula.apart(products.linear(x, w_ih, None, route), D), spec) * gain_ih
    return product if b_ih is None else product + b_ih.view(D, -1)


_ARGUMENTS = 18  # of the op
_SAVED = 16


class NormScan(Function):
    """The op in plain eager mode: its arguments, and what `gates_x` was made from."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Any:
        with _below_autograd():
            out = ops.norm_scan(*args[:_ARGUMENTS])
        _setup(ctx, args[:_ARGUMENTS], out, args[_ARGUMENTS:])
        return out

    @staticmethod
    def backward(ctx: Any, *upstream: MaybeTensor) -> Any:
        saved = ctx.saved_tensors  # once: checkpoint makes them at every look
        if torch.is_grad_enabled() or traced() or maps_gradients():
            with without_autocast(saved[_SAVED - 1]):
                grads: Sequence[MaybeTensor] = _by_the_reference(ctx, saved, upstream)
        else:
            with _below_autograd():
                grads = _by_the_adjoint(ctx, saved, upstream)
        return *grads, *[None] * (len(saved) - _SAVED)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...], source: Sequence[MaybeTensor] = ()) -> None:
    _, h0, c0, w_hh, b_hh, lengths, reset, *more, mask_key, ctx.rates, ctx.cell, ctx.directions, _, ctx.route = inputs
    y, _, gates, cs, _, product = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(h0, c0, w_hh, b_hh, *more, lengths, reset, mask_key, gates, cs, product, y, *source)


def _backward(ctx: Any, *upstream: MaybeTensor) -> Sequence[MaybeTensor]:
    return _by_the_adjoint(ctx, ctx.saved_tensors, upstream)


def _by_the_adjoint(ctx: Any, saved: Sequence[Any], upstream: Sequence[MaybeTensor]) -> Sequence[MaybeTensor]:
    """The gradients of the op's arguments, by its adjoint and products over all steps."""
    dy, dhn, dgates, dcs, dcn, dproducts = upstream
    if dgates is not None or dproducts is not None:
        raise RuntimeError("norm_scan has no derivative of gates and products: they are kept for backward alone")
    h0, c0, w_hh, _, *more, lengths, reset, mask_key, gates, cs, product, y = saved[:_SAVED]
    reset_h, reset_c, *_ = more
    spec, rates, directions, route = CELLS[ctx.cell], ctx.rates, ctx.directions, ctx.route
    normed = more[2] is not None
    need, H = ctx.needs_input_grad, y.shape[-1]
    of_c = cs if spec is LSTM else None
    with without_autocast(y):
        dgates_x, dh0, dc0, dq, dproduct, dreset_h, dreset_c = ops.norm_scan_backward(
            dy, dhn, dcs, dcn, gates, y, h0, of_c, c0, w_hh, product, lengths, reset, *more,
            mask_key, rates, spec.code, directions, route,
        )  # fmt: skip
        du = torch.cat([dgates_x[..., : 2 * H], dq], -1) if spec is GRU else dgates_x
        dw = db = dgain = dgain_c = dshift_c = None
        if need[3]:
            seen = reference.previous(y, h0, lengths, reset, directions, reset_h)
            if rates and rates[2]:
                mask = philox.dropout_mask(rates[2], mask_key, seen.shape[2], seen.shape[1], y, H)
                seen = seen * mask.transpose(0, 1)
            dw = products.matmul(products.by_stream(dproduct if normed else du).mT, products.by_stream(seen), route)
        db = du.sum((0, 1)) if need[4] else None
        dgain = (du * reference.standardised(product, spec)).sum((0, 1)) if need[9] else None
        if need[10]:
            c = cs
            if rates and rates[1]:  # not what zoneout made of it
                i, f, g, _ = gates.chunk(4, -1)
                c = f * reference.previous(cs, c0, lengths, reset, directions, reset_c) + i * g
            dgain_c = (dq * F.layer_norm(c, (H,))).sum((0, 1))
        if need[11]:
            dshift_c = dq.sum((0, 1))
    dh0, dc0 = None if h0 is None else dh0, None if c0 is None else dc0
    # of each row's resets, which all go back to one state
    dreset_h, dreset_c = (None if t is None else grad.sum(1) for t, grad in ((reset_h, dreset_h), (reset_c, dreset_c)))
    return dgates_x, dh0, dc0, dw, db, None, None, dreset_h, dreset_c, dgain, dgain_c, dshift_c, *[None] * 6


def _by_the_reference(ctx: Any, saved: Sequence[Any], upstream: Sequence[MaybeTensor]) -> list[MaybeTensor]:
    """The same with a graph: the loop by PyTorch's ops, and its derivative."""
    *inputs, lengths, reset, mask_key = saved[:12]
    source = saved[_SAVED:]
    spec, D, graph = CELLS[ctx.cell], ctx.directions, torch.is_grad_enabled()
    with torch.enable_grad():
        # views: a gradient with respect to them ends there, even where two inputs are one tensor
        own = [None if t is None else t.view_as(t) for t in (_gates_x(spec, ctx.route, D, *source), *inputs)]
        resets, norms = ([t for t in some if t is not None] for some in (own[5:7], own[7:]))
        scan: Any = reference.scan
        out = scan(*own[:5], lengths, reset, spec, D, mask_key, ctx.rates, norms, resets)
    ends = [(t, grad) for t, grad in zip(out, upstream[:5], strict=True) if grad is not None]
    places = (0, 1, 2, 3, 4, 7, 8, 9, 10, 11)  # of `own` among the op's arguments
    wanted = [(i, t) for i, t in zip(places, own, strict=True) if t is not None and ctx.needs_input_grad[i]]
    grads: list[MaybeTensor] = [None] * _ARGUMENTS
    if ends and wanted:
        outs, above = zip(*ends, strict=True)
        leaves = [t for _, t in wanted]
        found = torch.autograd.grad(outs, leaves, above, create_graph=graph, allow_unused=True)
        for (i, _), grad in zip(wanted, found, strict=True):
            grads[i] = grad
    return grads


torch.library.register_autograd(ops.norm_scan, _backward, setup_context=_setup)
