"""The adjoint of the recurrence as a function that can itself be differentiated, batched and compiled.

It is a function of the upstream gradients and of what forward kept. Its derivative, of any order, is a loop of PyTorch
ops (`second`; with noise, the reference's); an RNN's is the adjoint again, in the opposite direction of time, and so a
kernel's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from . import batching, modes, ops, products, reference, second
from .spec import CELLS, RNN_TANH

States = tuple[Tensor, ...]
TENSORS = 13  # of scan_backward's arguments: gradients, what forward kept, weight_hh, masks
ROUTE = TENSORS + 2
RATES = ROUTE + 3


def adjoint(*args: Any) -> States:
    """The op `scan_backward`, or what stands for it where the op does not reach."""
    out: States
    transformed = modes.transformed()
    if modes.forward_mode() or (transformed and args[RATES]):
        return _reference(*args)
    if transformed:
        out = ScanBackward.apply(*args)  # type: ignore[no-untyped-call]
    elif torch.compiler.is_compiling() or torch.is_grad_enabled():
        out = ops.scan_backward_for(args[ROUTE])(*args)
    else:
        with torch._C._AutoDispatchBelowAutograd():
            out = ops.scan_backward_for(args[ROUTE])(*args)
    return out


def _reference(*args: Any) -> States:
    *tensors, cell, directions, _route, _offsets, mask_key, rates = args
    run: Any = reference.scan_backward
    out: States = run(*tensors, CELLS[cell], directions, mask_key, rates)
    return out


def _setup(ctx: Any, inputs: tuple[Any, ...], output: States) -> None:
    ctx.cell, ctx.directions = inputs[TENSORS : TENSORS + 2]
    ctx.others = len(inputs) - TENSORS
    mask_key, ctx.rates = inputs[RATES - 1 : RATES + 1]
    ctx.route = inputs[ROUTE]
    results = (None,) * 4 if ctx.rates else output
    ctx.save_for_backward(*inputs[:TENSORS], mask_key, *results)


def _backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    saved, need, spec = ctx.saved_tensors, ctx.needs_input_grad, CELLS[ctx.cell]
    tensors, mask_key, results = saved[:TENSORS], saved[TENSORS], saved[TENSORS + 1 :]
    if not ctx.rates:
        with modes.without_autocast(results[0]):
            if spec.kept:
                found = second.derivative(spec, ctx.directions, tensors, results, grads)
            else:
                found = _of_rnn(ctx, tensors, results[0], grads[0], grads[1])
        return *(found.get(i) if need[i] else None for i in range(TENSORS)), *[None] * ctx.others
    wanted = [i for i, t in enumerate(tensors) if t is not None and need[i]]

    def run(*picked: Tensor) -> States:
        given = dict(zip(wanted, picked, strict=True))
        rest = (ctx.cell, ctx.directions, 0, None, mask_key, ctx.rates)
        return _reference(*(given.get(i, t) for i, t in enumerate(tensors)), *rest)

    y = tensors[6]
    with modes.without_autocast(y):
        pull = torch.func.vjp(run, *(tensors[i] for i in wanted))[1]
        pulled = dict(zip(wanted, pull(grads), strict=True))
    return *(pulled.get(i) for i in range(len(tensors))), *[None] * ctx.others


def _of_rnn(
    ctx: Any, tensors: Sequence[Any], slopes: Tensor, of_slopes: Tensor, of_dh0: Tensor
) -> dict[int, Tensor | None]:
    """The derivative of an RNN's adjoint, by the place among its arguments.

    The adjoint is a_t = s_t g_t, where g_t is dy_t and, from the step after, a W; s is the activation's slope at y. So
    the gradient of g is m_t = s_t (of a_t, and from the step before m W'): the adjoint again, W transposed and each
    row's steps in the opposite order.

    Args:
        ctx: of the adjoint.
        tensors: its arguments.
        slopes: a [T,B,S,H], what it returned.
        of_slopes: the gradient of that.
        of_dh0: the gradient of what else it returned [S,B,H].
    """
    dy, dhn, *_, weight, lengths, reset = tensors
    y, D = tensors[6], ctx.directions
    tanh = CELLS[ctx.cell] == RNN_TANH

    def turn(t: Tensor) -> Tensor:
        return _turned(t, lengths)

    cuts = None
    if reset is not None:  # between a step and the one before it, in either order
        cuts = torch.cat([torch.zeros_like(reset[:1]), turn(reset)[:-1]])
    entering = reference.previous(torch.zeros_like(y), of_dh0, lengths, reset, D)
    upward = turn(of_slopes + _times(entering, weight.mT))
    absent = torch.empty(0, dtype=y.dtype, device=y.device)  # of y's own making vmap would give it rows
    given = upward, None, None, None, None, absent, turn(y), None, None, None, weight.mT.contiguous()
    turned = adjoint(*given, lengths, cuts, ctx.cell, D, ctx.route, None, None, ())[0]
    of_g = turn(turned)

    before = reference.previous(of_g, of_dh0, lengths, reset, D)
    of_y = None
    if tanh:
        end = torch.zeros_like(of_dh0) if dhn is None or dhn.dim() == 1 else dhn
        g = turn(reference.previous(turn(_times(slopes, weight)), end, lengths, cuts, D))
        g = g if dy is None or dy.dim() == 1 else g + dy
        of_y = -2 * y * g * (of_slopes + _times(before, weight.mT))
    backwards = torch.arange(y.shape[2], device=y.device).view(1, -1, 1) % D == 1
    of_dhn = torch.where(backwards, of_g[0], turned[0]).transpose(0, 1)  # of each row's last step
    if lengths is not None:
        of_dhn = torch.where((lengths > 0).unsqueeze(-1), of_dhn, of_dh0)
    of_weight = products.by_stream(slopes).mT @ products.by_stream(before)
    return {0: of_g, 1: of_dhn, 6: of_y, 10: of_weight}


def _times(rows: Tensor, weight: Tensor) -> Tensor:
    """[T,B,S,N] times [S,N,M], stream by stream."""
    return (products.by_stream(rows) @ weight).transpose(0, 1).reshape(*rows.shape[:3], weight.shape[-1])


def _turned(t: Tensor, lengths: Tensor | None) -> Tensor:
    """[T,B,S,...], each row's steps in the opposite order; what lies beyond its length [S,B] stays."""
    if lengths is None:
        return t.flip(0)
    step, ends = torch.arange(t.shape[0], device=t.device).view(-1, 1, 1), lengths.clamp(0, t.shape[0]).mT
    index = torch.where(step < ends, ends - 1 - step, step)
    return t.gather(0, index.view(*index.shape, *[1] * (t.dim() - 3)).expand(t.shape))


@modes.opaque
class ScanBackward(Function):
    """The adjoint for torch.func."""

    @staticmethod
    def forward(*args: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return ops.scan_backward_for(args[ROUTE])(*args)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        return _members(info, in_dims, *args)

    setup_context = staticmethod(_setup)
    backward = staticmethod(_backward)


_members = batching.adjoint_rule(ScanBackward.apply)

for _op in (ops.scan_backward, ops.triton_scan_backward):
    torch.library.register_autograd(_op, _backward, setup_context=_setup)
    torch.library.register_vmap(_op, batching.adjoint_rule(_op))
