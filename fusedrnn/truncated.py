"""Truncated backpropagation through time: gradients end at every k-th step, the forward pass goes on.

The layer runs as it is, without a gradient. Then its segments of k steps run side by side, as rows of one call, each
from the state that the first run came to: no gradient crosses, and backward walks k steps where it would walk T.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

MaybeTensor = Tensor | None
Layer = Callable[..., tuple[Tensor, Tensor, MaybeTensor, MaybeTensor]]


def layer(
    run: Layer,
    k: int,
    x: Tensor,
    h0: MaybeTensor,
    c0: MaybeTensor,
    weights: Any,
    lengths: MaybeTensor,
    reset: MaybeTensor,
    spec: Any,
    directions: int,
    *,
    ragged: bool,
    recompute: bool = False,
    states: bool = False,
    resets: Sequence[Tensor] = (),
) -> tuple[Tensor, Tensor, MaybeTensor, MaybeTensor]:
    """What `run` returns, with gradients that end at the multiples of k: between steps k-1 and k, 2k-1 and 2k, ...

    In either direction: the reverse one takes the state over from step 2k to step 2k-1 as a constant.

    Args:
        run: the layer, called with all but `run`, `k` and `ragged`.
        k: steps of a segment.
        x: [T, B, I].
        ragged: whether T may be other than a multiple of k.
        resets: where a reset goes back to, [D, N] of each state; () for zeros.
    """
    T, B, _ = x.shape
    more = {"resets": resets} if resets else {}
    with torch.no_grad():
        y, hn, cs, cn = run(x, h0, c0, weights, lengths, reset, spec, directions, recompute=False, states=True, **more)
    if lengths is None and ragged:
        lengths = torch.full((B,), T, dtype=torch.int64, device=x.device)
    if lengths is not None:
        lengths = lengths.clamp(0, T)
    parts = _Segments(k, T, B, lengths, reset, directions, ragged)
    start_h, start_c = (*resets, None, None)[:2]
    h0 = parts.initial(y.detach(), hn, h0, start_h)
    c0 = None if cn is None else parts.initial(cs.detach(), cn, c0, start_c)  # type: ignore[union-attr]
    of_parts = None if lengths is None else (lengths - parts.firsts(x.device)).clamp(0, k).flatten()
    reset = None if reset is None else parts.folded(reset)
    y, hn, cs, cn = run(
        parts.folded(x), h0, c0, weights, of_parts, reset, spec, directions, recompute=recompute, states=states, **more
    )
    cs = cs if cs is None or cs.dim() == 1 else parts.unfolded(cs)
    return parts.unfolded(y), parts.last(hn), cs, None if cn is None else parts.last(cn)


class _Segments:
    """n segments of k steps of B rows: row j*B + b of a folded tensor is segment j of row b."""

    def __init__(
        self, k: int, T: int, B: int, lengths: MaybeTensor, reset: MaybeTensor, directions: int, ragged: bool
    ) -> None:
        self.n, self.k, self.T, self.B = T // k + ragged, k, T, B
        self.lengths, self.reset, self.directions, self.ragged = lengths, reset, directions, ragged

    def firsts(self, device: torch.device) -> Tensor:
        """The first step of each segment, [n, 1]."""
        return torch.arange(self.n, device=device).unsqueeze(1) * self.k

    def folded(self, t: Tensor) -> Tensor:
        """[T, B, ...] to [k, n*B, ...], zeros beyond T."""
        return self._apart(t).flatten(1, 2)

    def _apart(self, t: Tensor) -> Tensor:
        """[T, B, ...] to [k, n, B, ...]."""
        if self.ragged:  # by k steps, cut to what is wanted: compilers guard against a size of 0 or 1 of what is padded
            t = torch.cat([t, t.new_zeros(self.k, *t.shape[1:])])[: self.n * self.k]
        return t.reshape(self.n, self.k, *t.shape[1:]).transpose(0, 1)

    def unfolded(self, t: Tensor) -> Tensor:
        """[k, n*B, ...] to [T, B, ...]."""
        return t.view(self.k, self.n, self.B, *t.shape[2:]).transpose(0, 1).flatten(0, 1)[: self.T]

    def initial(self, states: Tensor, like: Tensor, given: MaybeTensor, start: MaybeTensor) -> Tensor:
        """What each segment starts from, [D, n*B, H]: one of the first run's states [T, B, D*H], or the layer's own."""
        own = torch.zeros_like(like) if given is None else given
        kept = self._apart(states.view(*states.shape[:2], self.directions, like.shape[-1]))
        forward = torch.cat([own[:1], kept[-1, :-1, :, 0]])
        if self.directions == 1:
            return forward.flatten(0, 1).unsqueeze(0)
        reverse = kept[0, 1:, :, 1]
        if self.reset is not None:
            crossed = self._apart(self.reset)[0, 1:].unsqueeze(2)
            reverse = torch.where(crossed, 0.0 if start is None else start[1], reverse)
        if self.lengths is not None:  # a row that has ended by then starts in this segment
            ended = self.lengths <= self.firsts(own.device)[1:]
            reverse = torch.where(ended.unsqueeze(2), own[1], reverse)
        return torch.stack([forward, torch.cat([reverse, own[1:]])]).flatten(1, 2)

    def last(self, t: Tensor) -> Tensor:
        """[D, n*B, H] to [D, B, H]: forward, of the segment that holds a row's last step; reverse, of the first."""
        each = t.view(self.directions, self.n, self.B, t.shape[-1])
        if self.lengths is None:
            forward = each[0, -1]
        else:
            at = ((self.lengths - 1).clamp(min=0) // self.k, torch.arange(self.B, device=t.device))
            forward = each[0][at]
        return forward.unsqueeze(0) if self.directions == 1 else torch.stack([forward, each[1, 0]])
