"""Jagged nested tensors (torch.nested, layout=torch.jagged) in and out: as padded rows with lengths."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .packed import Grid


def check(name: str, x: Tensor, batch_first: bool, masked: bool) -> None:
    """Raises ValueError for a nested tensor that is none of [B, j, I] with its rows one behind the other."""
    if x.layout != torch.jagged:
        raise ValueError(
            f"{name}: Expected a nested tensor of layout torch.jagged, got {x.layout}. Make it one: "
            "torch.nested.nested_tensor(list(x.unbind()), layout=torch.jagged)"
        )
    if x.dim() != 3 or x._ragged_idx != 1:  # type: ignore[attr-defined]
        raise ValueError(f"{name}: Expected jagged input [B, j, I], ragged in its second axis, got {tuple(x.shape)}")
    if not batch_first:
        raise ValueError(f"{name}: jagged input is [B, j, I], the batch first: make the layer with batch_first=True")
    if x.lengths() is not None:  # type: ignore[attr-defined]
        raise ValueError(f"{name}: the rows of this nested tensor have gaps between them. Close them: x.contiguous()")
    if masked:
        raise ValueError(
            f"{name}: a nested tensor carries its lengths and takes no reset. Pad it: x.to_padded_tensor(0.0), with "
            "lengths=x.offsets().diff(), reset="
        )


class Rows:
    """The rows of a jagged [B, j, I], and where they stand in a padded [T, B, I].

    Nothing is read by the host but the longest row's length, and only where the nested tensor does not know it: made
    from a list it does, made from values and offsets it does if it was given `max_seqlen`.
    """

    def __init__(self, x: Tensor) -> None:
        nested: Any = x
        self.like, self.offsets = nested, nested.offsets()
        self.values: Tensor = nested.values()
        self.lengths = self.offsets.diff()
        steps, rows = max(nested._get_max_seqlen(), 1), x.shape[0]
        count = self.values.shape[0]
        row = torch.repeat_interleave(self.lengths, output_size=count)
        step = torch.arange(count, device=row.device) - self.offsets[row]
        self.grid = Grid(steps, rows, step * rows + row)

    def padded(self) -> Tensor:
        """[T, B, I], 0 beyond each row."""
        return self.grid.pad(self.values)

    def jagged(self, y: Tensor) -> Tensor:
        """[B, j, F] of the same offsets, from padded [T, B, F]."""
        return torch.nested.nested_tensor_from_jagged(
            self.grid.pack(y),
            self.offsets,
            min_seqlen=self.like._maybe_min_seqlen,
            max_seqlen=self.like._maybe_max_seqlen,
        )
