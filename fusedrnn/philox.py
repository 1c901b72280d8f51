"""Random masks from a counter: the specification of zoneout's and recurrent dropout's draws. A leaf.

A unit's word depends on the key and on where the unit stands, on nothing else: every backend, forward, backward, a
rebuilt forward and any split of the work draw the same. The generator is Philox4x32-10. Its counter is

    word 0    time step t, whatever the direction; 0 for recurrent dropout, which draws once a sequence
    word 1    row b of the batch, in the order in which rows are run (a PackedSequence's: the longest first)
    word 2    h // 4: a block's four words are those of units h, h+1, h+2, h+3
    word 3    4 s + kind: stream s of the layer's (with both directions 0 and 1), kind 0 zoneout of h, 1 of c, 2 dropout

and its key two words a layer. An event of probability p takes place iff the unit's word is below floor(p 2^32).

Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"; tests hold it to the vectors of Random123.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Word = Tensor | int

_MULTIPLIERS, _WEYL = (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85)
_ROUNDS, _MASK = 10, 0xFFFFFFFF
ZONEOUT_H, ZONEOUT_C, DROPOUT = range(3)


def new_keys(layers: int, device: torch.device) -> Tensor:
    """A key a layer, int64 [L,2] of 32-bit words, from torch's generator of the device; stays there, unread.

    So torch.manual_seed makes it again, and a CUDA graph shall draw another one at each replay (not yet run on a GPU).
    """
    return torch.randint(2**32, (layers, 2), device=device, dtype=torch.int64)


def words(counter: Sequence[Word], key: Sequence[Word]) -> tuple[Word, ...]:
    """Philox4x32-10.

    Args:
        counter: four words, int64 tensors that broadcast or numbers, from 0 to 2^32 - 1.
        key: two, likewise.

    Returns:
        Four.
    """
    (a, b, c, d), (k, m) = counter, key
    for _ in range(_ROUNDS):
        (high_a, low_a), (high_c, low_c) = _product(_MULTIPLIERS[0], a), _product(_MULTIPLIERS[1], c)
        a, b, c, d = high_c ^ b ^ k, low_c, high_a ^ d ^ m, low_a
        k, m = (k + _WEYL[0]) & _MASK, (m + _WEYL[1]) & _MASK
    return a, b, c, d


def _product(constant: int, word: Word) -> tuple[Word, Word]:
    """The two words of a product of two, by halves of the constant: nothing leaves an int64."""
    low = word * (constant & 0xFFFF)
    high = word * (constant >> 16) + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)


def happens(rate: float, kind: int, key: Tensor, steps: int, streams: int, rows: int, units: int) -> Tensor:
    """Whether the event of probability `rate` takes place at a unit: bool [T,S,B,H]."""

    def count(n: int, axis: int) -> Tensor:
        return torch.arange(n, device=key.device).view([-1 if i == axis else 1 for i in range(4)])

    counter = count(steps, 0), count(rows, 2), count((units + 3) // 4, 3), 4 * count(streams, 1) + kind
    drawn = torch.stack(torch.broadcast_tensors(*words(counter, key.unbind(-1))), -1)  # type: ignore[no-untyped-call]
    return drawn.flatten(-2)[..., :units] < int(rate * 2**32)


def dropout_mask(rate: float, key: Tensor, streams: int, rows: int, like: Tensor, units: int) -> Tensor:
    """What recurrent dropout multiplies the state by, [S,B,H]: 0 with probability `rate`, else 1 / (1 - rate)."""
    stays = ~happens(rate, DROPOUT, key, 1, streams, rows, units)[0]
    return stays.to(like.dtype) * (1 / (1 - rate) if rate < 1 else 0.0)


def zoneout_mask(
    rate: float, kind: int, key: Tensor | None, steps: int, streams: int, rows: int, like: Tensor, units: int
) -> Tensor:
    """Which units keep their state, bool [T,S,B,H]; without a key how much of it each keeps, `rate` in as many axes."""
    if key is None:
        return like.new_full((1, 1, 1, 1), rate).expand(steps, streams, 1, 1)
    return happens(rate, kind, key, steps, streams, rows, units)


def masks(
    rates: Sequence[float], key: Tensor | None, steps: int, streams: int, rows: int, like: Tensor, units: Sequence[int]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Zoneout's masks of h and c and dropout's, None where the rate is 0.

    Args:
        rates: of zoneout of h, of c, of recurrent dropout; or none at all.
        key: int64 [2]; None for zoneout's expectation.
        steps: T.
        streams: S.
        rows: B.
        like: a tensor of the masks' dtype and device.
        units: of h and of c.

    Raises:
        ValueError: dropout without a key, which has no expectation: where it is not drawn, its rate is 0.
    """
    if not rates:
        return None, None, None
    held = [
        zoneout_mask(rate, kind, key, steps, streams, rows, like, size) if rate else None
        for rate, kind, size in zip(rates, (ZONEOUT_H, ZONEOUT_C), units, strict=False)
    ]
    if not rates[2]:
        return held[0], held[1], None
    if key is None:
        raise ValueError("recurrent dropout is drawn by a key: expected one, or a rate of 0")
    return held[0], held[1], dropout_mask(rates[2], key, streams, rows, like, units[0])
