"""The vmap rules of the ops: members of a mapped axis are more rows or, with weights of their own, more streams.

Either way it stays one call of the op. The price is a copy where the mapped axis does not merge as a view. A leaf.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

States = tuple[Tensor, ...]
Dims = tuple[int | None, ...]
Rule = Callable[..., tuple[States, Dims]]
Axes = tuple[int | None, int]

# Where a mapped axis goes: into the batch, or (with mapped weights) into the streams.
_SEQUENCE: Axes = (1, 2)  # [T,B,S,...]
_EDGE: Axes = (1, 0)  # [S,B,...]
_WEIGHT: Axes = (None, 0)  # [S,...]


def scan_rule(call: Callable[..., States]) -> Rule:
    """The rule of `scan`; `call` runs the op at the next level."""
    axes = (_SEQUENCE, _EDGE, _EDGE, _WEIGHT, _WEIGHT, _EDGE, _SEQUENCE)
    folded = _rule(call, axes, (3, 4), 11, (_SEQUENCE, _EDGE, _SEQUENCE, _SEQUENCE, _EDGE))

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[States, Dims]:
        # what an outer level's formula would rebuild the gates from is not folded along: keep the gates there
        save, x = (*args, None)[14:16]  # whoever calls the op by itself may leave x to its default
        return folded(info, in_dims, *args[:14], save or x is not None, None, None, None, *args[18:])

    return rule


def adjoint_rule(call: Callable[..., States]) -> Rule:
    """The rule of `scan_backward`; `call` runs the op at the next level."""
    upstream = (_SEQUENCE, _EDGE, _SEQUENCE, _SEQUENCE, _EDGE)
    saved = (_SEQUENCE, _SEQUENCE, _EDGE, _SEQUENCE, _EDGE, _WEIGHT, _EDGE, _SEQUENCE)
    return _rule(call, upstream + saved, (10,), 18, (_SEQUENCE, _EDGE, _EDGE, _SEQUENCE))


def _rule(
    call: Callable[..., States], axes: Sequence[Axes], weights: Sequence[int], rates: int, out: Sequence[Axes]
) -> Rule:
    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[States, Dims]:
        if any(args[rates : rates + 1]):  # more rows would be drawn other masks: the doors take the reference's loop
            raise NotImplementedError("vmap of the op with rates: use fusedrnn's layers, or fusedrnn.reference")
        n = info.batch_size
        streams = any(args[i] is not None and in_dims[i] is not None for i in weights)
        tensors = args[: len(axes)]
        folded = (_fold(t, dim, pair[streams], n) for t, dim, pair in zip(tensors, in_dims, axes, strict=False))
        parts = call(*folded, *args[len(axes) :])
        at = tuple(None if t.dim() == 1 else pair[streams] for t, pair in zip(parts, out, strict=True))
        return tuple(_unfold(t, axis, n) for t, axis in zip(parts, at, strict=True)), at

    return rule


def _fold(t: Tensor | None, dim: int | None, into: int | None, size: int) -> Tensor | None:
    """Merges the mapped axis into axis `into`, as its slow part. Absent parts ([0]) have no axis to merge into."""
    if t is None or into is None:
        return t
    if dim is None:
        if t.dim() == 1:
            return t
        t = t.unsqueeze(into).expand(*t.shape[:into], size, *t.shape[into:])
    else:
        t = t.movedim(dim, into)
    return t.flatten(into, into + 1)


def _unfold(t: Tensor, axis: int | None, size: int) -> Tensor:
    return t if axis is None else t.reshape(*t.shape[:axis], size, t.shape[axis] // size, *t.shape[axis + 1 :])
