"""Hidden units that only fill up: the kernels of a GPU get a multiple of eight.

The CUDA kernels take no other; the Triton kernels mask what is missing, and spill registers where sixteen bytes of a
row do not lie together.

A unit whose weights, biases, initial state and state behind a reset are zero keeps a state of zero, whatever the cell.
So a layer runs on padded weights, and the units are cut off its outputs; the gradients follow by themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from .spec import CellSpec

MULTIPLE = 8


def padded(
    weights: Sequence[Tensor], states: Sequence[Tensor | None], spec: CellSpec
) -> tuple[list[Tensor], list[Any]]:
    """Weights, as of `autograd.layer`, and states [...,H] with H rounded up to a multiple of eight; None stays."""
    H, gates = weights[1].shape[-1], len(spec.gates)
    more = -H % MULTIPLE
    wide = []
    for i, w in enumerate(weights):
        columns = (0, more if i % 2 == 1 else 0) if w.dim() == 2 else ()  # weight_hh has one a unit
        blocks = w.reshape(gates, H, *w.shape[1:])
        wide.append(F.pad(blocks, (*columns, 0, more)).flatten(0, 1))
    return wide, [None if state is None else F.pad(state, (0, more)) for state in states]
