"""The adjoint of the recurrence as a function that can itself be differentiated, batched and compiled.

It is a function of the upstream gradients and of what forward kept. Its derivative goes through the reference: slow, a
loop of PyTorch ops, and of any order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from . import batching, modes, ops, reference
from .spec import CELLS

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
    ctx.save_for_backward(*inputs[:TENSORS], mask_key)


def _backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    (*tensors, mask_key), need = ctx.saved_tensors, ctx.needs_input_grad
    wanted = [i for i, t in enumerate(tensors) if t is not None and need[i]]

    def run(*picked: Tensor) -> States:
        given = dict(zip(wanted, picked, strict=True))
        rest = (ctx.cell, ctx.directions, 0, None, mask_key, ctx.rates)
        return _reference(*(given.get(i, t) for i, t in enumerate(tensors)), *rest)

    y = tensors[6]
    with modes.without_autocast(y):
        pull = torch.func.vjp(run, *(tensors[i] for i in wanted))[1]
        found = dict(zip(wanted, pull(grads), strict=True))
    return *(found.get(i) for i in range(len(tensors))), *[None] * ctx.others


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
