"""torch's layer and ours side by side, with the same weights, in float64 unless told."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fusedrnn
from fusedrnn import ops

LAYERS = ("GRU", "LSTM", "RNN")
I, H, T, B = 5, 4, 6, 3

needs_kernel = pytest.mark.skipif(ops.missing is not None, reason=f"no compiled ops: {ops.missing}")
"""Else a graph holds the reference's loop, unrolled."""


def pair(name: str, *args: Any, backend: str = "auto", **kwargs: Any) -> tuple[nn.Module, nn.Module]:
    """(torch's, ours) of one class name; sizes I, H unless given."""
    stock = getattr(nn, name)(*(args or (I, H)), **{"dtype": torch.double, **kwargs})
    return stock, fusedrnn.convert(copy.deepcopy(stock), backend=backend)


def rand(*size: int) -> Tensor:
    """Normal float64 numbers."""
    return torch.randn(size, dtype=torch.double)


def initial(layer: nn.Module, batch: int | None = B) -> Any:
    """A random hx for `layer`; batch None: for unbatched input."""
    rows = layer.num_layers * (2 if layer.bidirectional else 1)
    edge = (rows,) if batch is None else (rows, batch)
    h, c = (
        rand(*edge, size).to(layer.weight_ih_l0.dtype)
        for size in (layer.proj_size or layer.hidden_size, layer.hidden_size)
    )
    return (h, c) if layer.mode == "LSTM" else h


def tensors(result: Any) -> list[Tensor]:
    """All tensors in nested outputs, data only of a PackedSequence."""
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, nn.utils.rnn.PackedSequence):
        return [result.data]
    return [t for part in result or () if part is not None for t in tensors(part)]


def gradients(out: list[Tensor], leaves: list[Tensor]) -> list[Tensor]:
    """Of `leaves`, zeros where none reaches; from upstream gradients that are random, but the same at every call."""
    generator = torch.Generator().manual_seed(1)
    upstream = [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in out]
    return list(torch.autograd.grad(out, leaves, upstream, materialize_grads=True))


def outcome(call: Callable[[], Any]) -> tuple[type[BaseException], str] | None:
    """The exception that `call` raises, as (type, text); None if it returns."""
    try:
        call()
    except Exception as error:
        return type(error), str(error)
    return None
