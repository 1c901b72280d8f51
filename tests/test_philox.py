"""The draws of zoneout and recurrent dropout by themselves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fusedrnn import philox


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_published_words(counter: str, key: str, expected: str) -> None:
    """Random123's kat_vectors, philox4x32 10."""
    numbers = [[int(word, 16) for word in text.split()] for text in (counter, key)]
    assert philox.words(*numbers) == tuple(int(word, 16) for word in expected.split())
    by_tensors = philox.words(*([torch.tensor(n) for n in each] for each in numbers))
    assert [f"{int(word):08x}" for word in by_tensors] == expected.split()


def word(key: Tensor, t: int, b: int, h: int, s: int, kind: int) -> int:
    """One unit's word, by the layout that philox.py's docstring fixes."""
    return philox.words((t, b, h // 4, 4 * s + kind), [int(k) for k in key])[h % 4]


def test_a_unit_is_drawn_by_where_it_stands() -> None:
    key, rate = torch.tensor([123, 2**32 - 1]), 0.37
    for kind in (philox.ZONEOUT_H, philox.ZONEOUT_C, philox.DROPOUT):
        found = philox.happens(rate, kind, key, 3, 2, 4, 10)
        for t, s, b, h in ((0, 0, 0, 0), (2, 1, 3, 9), (1, 0, 2, 7), (2, 1, 0, 4)):
            assert bool(found[t, s, b, h]) == (word(key, t, b, h, s, kind) < int(rate * 2**32))
        assert torch.equal(philox.happens(rate, kind, key, 2, 1, 3, 9), found[:2, :1, :3, :9])


def test_rates_are_met_and_independent() -> None:
    """Of n draws the share deviates by less than 4 sigma; so does that of two kinds', streams', steps' agreement."""
    key, shape = torch.tensor([5, 6]), (20, 2, 10, 50)
    n = 20 * 2 * 10 * 50
    for rate in (0.05, 0.3, 0.5, 0.9):
        h, c = (philox.happens(rate, kind, key, *shape) for kind in (0, 1))
        deviation = 4 * (rate * (1 - rate) / n) ** 0.5
        for mask in (h, c):
            assert abs(float(mask.double().mean()) - rate) < deviation
        for a, b in (
            (h, c),
            (h[:, 0], h[:, 1]),
            (h[1:], h[:-1]),
            (h[..., 1:, :], h[..., :-1, :]),
            (h[..., 4:], h[..., :-4]),
        ):
            both, expected = float((a & b).double().mean()), rate**2
            assert abs(both - expected) < 4 * (expected * (1 - expected) / a.numel()) ** 0.5
    assert not philox.happens(0.0, 0, key, *shape).any()
    assert philox.happens(1.0, 0, key, *shape).all()
    assert not philox.dropout_mask(1.0, key, 2, 3, torch.zeros(1), 5).any()


def test_keys_come_from_torchs_generator() -> None:
    torch.manual_seed(3)
    first, second = (philox.new_keys(2, torch.device("cpu")) for _ in range(2))
    torch.manual_seed(3)
    assert torch.equal(philox.new_keys(2, torch.device("cpu")), first)
    assert not torch.equal(first, second)
    assert first.dtype == torch.int64
    many = philox.new_keys(1000, torch.device("cpu"))
    assert 0 <= int(many.min()) < 2**24
    assert 2**32 - 2**24 < int(many.max()) < 2**32
