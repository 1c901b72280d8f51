"""Layer normalisation on the fused kernels.

The products with W_ih are torch's, over all steps, and so is their normalisation. The time loop is the op `norm_scan`: a
step is its product with W_hh, the normalisation of it and the cell. Its adjoint, `norm_scan_backward`, ends at the
gradients of the pre-activations and of the product; those of weights, biases, gains and shifts are taken here, over all
steps at once. A second derivative is one of the reference's loop: so is all that is not plain eager mode, to which
`backends` hands no kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from . import formula, ops, philox, products, reference
from .autograd import any_requires_grad
from .modes import maps_gradients, traced, without_autocast
from .spec import GRU, LSTM, CellSpec

MaybeTensor = Tensor | None


def layer(*args: Any, recompute: bool = False, states: bool = False, **options: Any) -> Any:
    """One layer, projections included: arguments and results of `autograd.layer`, and `norms`.

    Args:
        args: see there.
        recompute: keep nothing but the inputs for backward, and run the layer again there.
        states: see there.
        options: see there; and `norms`, for each direction what `spec.norm_names` names: gains [G*H], those of c [H].
    """
    if recompute and torch.is_grad_enabled():
        return checkpoint(_layer, *args, use_reentrant=False, preserve_rng_state=False, **options)
    return _layer(*args, **options)


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
    norms: Sequence[Tensor],
    route: int = 0,
    mask_key: Tensor | None = None,
    rates: Sequence[float] = (),
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    w_ih, w_hh, b_ih, b_hh = formula.stacked(weights, directions)
    each = len(norms) // directions
    gain_ih, *loop = (torch.stack(list(norms[k::each])) for k in range(each))
    gain_hh, gain_c, shift_c = (*loop, None, None)[:3]
    source = x, w_ih, b_ih, gain_ih
    masks = formula.per_stream(lengths, reset, directions)
    args = (_gates_x(*source, spec, route), h0, c0, w_hh, b_hh, gain_hh, gain_c, shift_c)
    options = (*masks, mask_key, rates, spec, directions, route)
    if torch.is_grad_enabled() and any_requires_grad(*args):
        y, hn, cs, cn = NormScan.apply(*args, *options, *source)  # type: ignore[no-untyped-call]
    else:
        y, hn, _, cs, cn, _ = _forward(args, options, False)
    return (y.flatten(2), hn, cs.flatten(2), cn) if spec is LSTM else (y.flatten(2), hn, None, None)


def _gates_x(x: Tensor, w_ih: Tensor, b_ih: Tensor | None, gain_ih: Tensor, spec: CellSpec, route: int) -> Tensor:
    """[T,B,D,G*H], of weights [D*G*H,I], biases [D*G*H] and gains [D,G*H]."""
    D = gain_ih.shape[0]
    product = reference.standardised(formula.apart(products.linear(x, w_ih, None, route), D), spec) * gain_ih
    return product if b_ih is None else product + b_ih.view(D, -1)


def _forward(args: tuple[Any, ...], options: tuple[Any, ...], save: bool) -> tuple[Tensor, ...]:
    *scan, gain_hh, gain_c, shift_c = args
    lengths, reset, mask_key, rates, spec, directions, route = options
    norms = gain_hh, gain_c, shift_c
    with torch._C._AutoDispatchBelowAutograd():
        return ops.norm_scan(  # type: ignore[no-any-return]
            *scan, lengths, reset, *norms, mask_key, rates, spec.code, directions, save, route
        )


_INPUTS, _OPTIONS, _SOURCE = 8, 7, 4  # arguments of NormScan


class NormScan(Function):
    """The loop: tensors with gradients, options, and what `gates_x` was made from."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Any:
        inputs, options, source = args[:_INPUTS], args[_INPUTS:-_SOURCE], args[-_SOURCE:]
        y, hn, gates, cs, cn, product = _forward(inputs, options, True)
        lengths, reset, mask_key, *ctx.options = options
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[1:], lengths, reset, mask_key, *source, y, gates, cs, product)
        return y, hn, cs, cn

    @staticmethod
    def backward(ctx: Any, *upstream: MaybeTensor) -> Any:
        saved = ctx.saved_tensors
        inputs, (lengths, reset, mask_key), source = saved[:7], saved[7:10], saved[10:14]
        options = lengths, reset, mask_key, *ctx.options
        run = _by_the_reference if torch.is_grad_enabled() or traced() or maps_gradients() else _by_the_kernel
        with without_autocast(saved[-4]):
            grads = run(upstream, inputs, options, source, saved[14:], ctx.needs_input_grad)
        return *grads, *[None] * (_OPTIONS + _SOURCE)


def _by_the_kernel(
    upstream: Sequence[MaybeTensor],
    inputs: Sequence[Any],
    options: tuple[Any, ...],
    _: Sequence[Any],
    kept: Sequence[Any],
    need: Sequence[bool],
) -> Sequence[MaybeTensor]:
    h0, c0, w_hh, b_hh, gain_hh, gain_c, shift_c = inputs
    lengths, reset, mask_key, rates, spec, directions, route = options
    y, gates, cs, product = kept
    dy, dhn, dcs, dcn = upstream
    of_lstm = (dcs, dcn, cs) if spec is LSTM else (None, None, None)
    dcs, dcn, cs = of_lstm
    norms = gain_hh, gain_c, shift_c
    with torch._C._AutoDispatchBelowAutograd():
        dgates_x, dh0, dc0, dq, dproduct = ops.norm_scan_backward(
            dy, dhn, dcs, dcn, gates, y, h0, cs, c0, w_hh, product, lengths, reset, *norms, mask_key, rates,
            spec.code, directions, route,
        )  # fmt: skip
    H = y.shape[-1]
    dh0, dc0 = None if h0 is None else dh0, None if c0 is None else dc0
    dw = db = dgain = dgain_c = dshift_c = None
    if need[3]:
        seen = reference.previous(y, h0, lengths, reset, directions)
        if rates and rates[2]:
            mask = philox.dropout_mask(rates[2], mask_key, seen.shape[2], seen.shape[1], y, H)
            seen = seen * mask.transpose(0, 1)
        dw = products.matmul(_by_stream(dproduct).mT, _by_stream(seen), route)
    if need[4] or need[5]:
        of_sum = torch.cat([dgates_x[..., : 2 * H], dq], -1) if spec is GRU else dgates_x
        db = of_sum.sum((0, 1)) if need[4] else None
        dgain = (of_sum * reference.standardised(product, spec)).sum((0, 1)) if need[5] else None
    if need[6]:
        c = cs
        if rates and rates[1]:  # not what zoneout made of it
            i, f, g, _ = gates.chunk(4, -1)
            c = f * reference.previous(cs, c0, lengths, reset, directions) + i * g
        dgain_c = (dq * F.layer_norm(c, (H,))).sum((0, 1))
    dshift_c = dq.sum((0, 1)) if need[7] else None
    return dgates_x, dh0, dc0, dw, db, dgain, dgain_c, dshift_c


def _by_stream(t: Tensor) -> Tensor:
    """[T,B,S,N] to [S,T*B,N]."""
    return t.reshape(-1, *t.shape[2:]).transpose(0, 1)


def _by_the_reference(
    upstream: Sequence[MaybeTensor],
    inputs: Sequence[Any],
    options: tuple[Any, ...],
    source: Sequence[Any],
    _: Sequence[Any],
    need: Sequence[bool],
) -> Sequence[MaybeTensor]:
    """The same with a graph: the loop by PyTorch's ops, and its derivative."""
    lengths, reset, mask_key, rates, spec, directions, route = options
    graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # views: a gradient with respect to them ends there, even where two inputs are one tensor
        own = [None if t is None else t.view_as(t) for t in (_gates_x(*source, spec, route), *inputs)]
        gates_x, h0, c0, w_hh, b_hh, *norms = own
        given = [t for t in norms if t is not None]
        y, hn, _, cs, cn = reference.scan(
            gates_x, h0, c0, w_hh, b_hh, lengths, reset, spec, directions, mask_key, rates, given
        )
    ends = [(out, grad) for out, grad in zip((y, hn, cs, cn), upstream, strict=True) if grad is not None]
    wanted = [i for i, t in enumerate(own) if t is not None and need[i]]
    grads: list[MaybeTensor] = [None] * _INPUTS
    if ends and wanted:
        outs, above = zip(*ends, strict=True)
        leaves = [own[i] for i in wanted]
        found = torch.autograd.grad(outs, leaves, above, create_graph=graph, allow_unused=True)
        for i, grad in zip(wanted, found, strict=True):
            grads[i] = grad
    return grads
