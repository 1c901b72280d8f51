"""Weights as cuDNN wants them: in one chunk of memory, in its order. A leaf.

torch's own op compacts weights that are not, at every call and with a warning. Here it is done without one, at every
call as well: a copy kept between calls would have to guess whether the weights have changed since, and a write through
`.data` leaves no trace. Weights that torch.nn's `flatten_parameters` has laid out are taken as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .spec import GRU, LSTM, RNN_RELU, RNN_TANH, Problem

_MODES = {RNN_RELU: 0, RNN_TANH: 1, LSTM: 2, GRU: 3}  # torch.backends.cudnn.rnn.get_cudnn_mode


def one_chunk(weights: Sequence[Tensor], problem: Problem) -> Sequence[Tensor]:
    """The weights, in torch's order, as views of one chunk; the same gradients reach them."""
    if lie_together(weights) or not torch.backends.cudnn.is_acceptable(weights[0]):  # type: ignore[no-untyped-call]
        return weights
    p = problem
    layout = len(weights) // (p.L * p.D), p.I, _MODES[p.cell], p.H, p.proj_size, p.L
    out: Sequence[Tensor] = OneChunk.apply(layout, p.D == 2, *weights)  # type: ignore[no-untyped-call]
    return out


def lie_together(weights: Sequence[Tensor]) -> bool:
    """Whether the weights fill one storage, as `flatten_parameters` leaves them."""
    first = weights[0].untyped_storage()
    return (
        len(weights) > 1
        and all(w.untyped_storage().data_ptr() == first.data_ptr() for w in weights)
        and sum(w.nbytes for w in weights) <= first.nbytes()
    )


class OneChunk(Function):
    """Tensors copied into cuDNN's chunk; the identity for gradients."""

    @staticmethod
    def forward(ctx: Any, layout: tuple[int, ...], bidirectional: bool, *weights: Tensor) -> tuple[Tensor, ...]:
        # flatten_weight makes what it is given into views of the chunk: so it is given others over the same memory
        views = [w.new_empty(0).set_(w.detach()) for w in weights]  # type: ignore[call-overload]
        flatten: Any = torch._cudnn_rnn_flatten_weight
        flatten(views, *layout, False, bidirectional)
        return tuple(views)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return None, None, *grads
