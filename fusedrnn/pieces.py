"""Gradients of a layer on the CPU that kept its states alone: a piece of time runs again, then backward, then the next.

A piece starts from a state that forward kept, so that the gates of one are all that there are at a time. The reverse
direction runs as a forward one over rows that are turned round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import ops
from .spec import LSTM, CellSpec

MaybeTensor = Tensor | None

PIECES, ROWS = 8, 256
"""Pieces of time, as many as have at least this many rows each: their gates take about half as much as the output."""


def gradients(
    upstream: Sequence[MaybeTensor],
    saved: tuple[Any, ...],
    weights: Sequence[Tensor],
    spec: CellSpec,
    bias: bool,
    need: Sequence[bool],
) -> tuple[MaybeTensor, MaybeTensor, MaybeTensor, list[MaybeTensor]]:
    """`formula.layer` by the fused kernels, without a graph: arguments and results are its."""
    x, h0, c0, lengths, reset, y, cs = saved
    each = 4 if bias else 2
    D = len(weights) // each
    H = y.shape[-1] // D
    # 16-bit sums over pieces would round each time
    wide = torch.promote_types(x.dtype, torch.float32)
    totals = [torch.zeros_like(w, dtype=wide) if any(need[1:]) else None for w in weights]
    dx = torch.zeros_like(x) if need[0] else None
    firsts = []
    for d in range(D):
        own = slice(d * H, (d + 1) * H), slice(d, d + 1), slice(d * each, (d + 1) * each)
        firsts.append(
            _direction(
                bool(d),
                tuple(t if t is None or t.dim() == 1 else t[..., own[0]] for t in (upstream[0], upstream[2], y, cs)),
                tuple(None if t is None else t[own[1]] for t in (upstream[1], upstream[3], h0, c0)),
                (x, lengths, reset),
                weights[own[2]],
                spec,
                bias,
                dx,
                totals[own[2]],
            )
        )
    dh0, dc0 = (None if any(t is None for t in parts) else torch.cat(parts) for parts in zip(*firsts, strict=True))
    dweights = [t.to(x.dtype) if t is not None and wanted else None for t, wanted in zip(totals, need[1:], strict=True)]
    return dx, None if h0 is None else dh0, None if c0 is None else dc0, dweights


def _direction(
    reverse: bool,
    sequences: tuple[Any, ...],
    edges: tuple[Any, ...],
    rows: tuple[Any, ...],
    weights: Sequence[Tensor],
    spec: CellSpec,
    bias: bool,
    dx: MaybeTensor,
    totals: Sequence[MaybeTensor],
) -> tuple[MaybeTensor, MaybeTensor]:
    """Adds one direction's gradients to `dx` and `totals`, and returns those of its first states."""
    (dy, dcs, y, cs), (dh, dc, h0, c0), (x, lengths, reset) = sequences, edges, rows
    T, B = x.shape[:2]
    size = max(-(-T // PIECES), -(-ROWS // max(B, 1)))
    asked = (dx is not None) * ops.WANT_X | ops.WANT_STATES | any(t is not None for t in totals) * ops.WANT_WEIGHTS
    starts = range(0, T, size)
    for at in starts if reverse else reversed(starts):
        end = min(at + size, T)
        own = None if lengths is None else (lengths - at).clamp(0, end - at)
        cut = _turned(own, at, end) if reverse else lambda t, at=at, end=end: t if t is None else t[at:end]
        h, c = (
            None if states.dim() == 1 else _entered(reverse, states, first, at, end, lengths, reset)
            for states, first in ((y, h0), (cs, c0))
        )
        zeroed = _resets(reverse, reset, cut)
        given = cut(x), h, c, weights
        with torch._C._AutoDispatchBelowAutograd():
            *_, kept = ops.layer(*given, own, zeroed, spec.code, bias, True, True)
            told = (cut(dy), dh, cut(dcs) if spec is LSTM else None, dc)
            states = cut(y), cut(cs) if spec is LSTM else cs, kept
            of_x, dh, dc, *of_weights = ops.layer_backward(*told, *given, *states, own, zeroed, spec.code, bias, asked)
        del kept, states  # before the next piece makes its own
        if dx is not None:
            dx[at:end] += _turned(own, 0, end - at)(of_x) if reverse else of_x
        for total, part in zip(totals, of_weights, strict=True):
            if total is not None:
                total += part
        dc = dc if spec is LSTM else None
        if reverse and reset is not None and end < T:  # what crossed a reset was no gradient of the state before it
            crossed = reset[end] if lengths is None else reset[end] & (end < lengths)
            dh, dc = (None if t is None else t.masked_fill(crossed.unsqueeze(-1), 0) for t in (dh, dc))
    return dh, dc


def _turned(own: MaybeTensor, at: int, end: int) -> Callable[[Any], Any]:
    """Of [T,B,...] the steps from `at` to `end`, each row's `own` first of them in the opposite order."""

    def turn(whole: Tensor | None) -> Any:
        if whole is None:
            return None
        t = whole[at:end]
        if own is None:
            return t.flip(0)
        step = torch.arange(end - at).unsqueeze(1)
        index = torch.where(step < own, own - 1 - step, step)
        return t.gather(0, index.view(*index.shape, *[1] * (t.dim() - 2)).expand(t.shape))

    return turn


def _entered(
    reverse: bool, states: Any, first: MaybeTensor, at: int, end: int, lengths: MaybeTensor, reset: MaybeTensor
) -> MaybeTensor:
    """The state [1,B,H] that a piece starts from, of those after each step [T,B,H]."""
    if not reverse:
        return states[at - 1 : at] if at else first
    if end == states.shape[0]:
        return first
    kept = states[end : end + 1]
    if reset is not None:
        kept = kept.masked_fill(reset[end].unsqueeze(-1), 0)
    if lengths is None:
        return kept  # type: ignore[no-any-return]
    return torch.where((end < lengths).unsqueeze(-1), kept, torch.zeros_like(kept) if first is None else first)


def _resets(reverse: bool, reset: MaybeTensor, cut: Callable[[Any], Any]) -> Any:
    """Of the piece's own steps. Backwards in time a reset is between a step and the one before it."""
    if reset is None or not reverse:
        return cut(reset)
    turned = cut(reset.roll(-1, 0)).clone()
    turned[0] = False  # the state that the piece starts from has it already
    return turned
