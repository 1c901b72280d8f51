"""The one comparison of results.

A result's error against a float64 truth may be at most twice that of torch's own kernel in the same dtype plus 4 eps,
in relative L2 and in the maximum over the truth's maximum. NaN and infinities must stand where the truth has them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

FACTOR = 2
ULPS = 4


@dataclass(frozen=True)
class Error:
    """Relative L2 error, largest error over the truth's largest value, and where the largest one is."""

    l2: float
    peak: float
    worst: tuple[int, ...]


def error(found: Tensor, truth: Tensor) -> Error:
    """The error of `found`; AssertionError if shapes or non-finite values differ."""
    assert found.shape == truth.shape, f"shape {tuple(found.shape)}, expected {tuple(truth.shape)}"
    found, truth = found.detach().double(), truth.detach().double()
    for name, mask in (("NaN", torch.isnan), ("+inf", torch.isposinf), ("-inf", torch.isneginf)):
        wrong = (mask(found) != mask(truth)).nonzero()
        assert not len(wrong), f"{name} differs at {len(wrong)} places, first at {tuple(wrong[0].tolist())}"
    if not truth.numel():
        return Error(0.0, 0.0, ())
    finite = truth.isfinite()
    difference, size = (torch.where(finite, t, 0.0) for t in (found - truth, truth))
    worst = torch.unravel_index(difference.abs().argmax(), truth.shape)
    # a truth of zeros has no scale: there, the error is taken as it is
    l2, peak = (norm(difference) / (norm(size) or 1.0) for norm in (_l2, _peak))
    return Error(l2, peak, tuple(int(i) for i in worst))


def _l2(t: Tensor) -> float:
    return float(t.norm())


def _peak(t: Tensor) -> float:
    return float(t.abs().max())


def assert_no_worse(found: Mapping[str, Tensor], truth: Mapping[str, Tensor], torchs: Mapping[str, Tensor]) -> None:
    """Every tensor of `found` against the float64 `truth`, bounded by the error of `torchs`, of the same dtype."""
    assert found.keys() == truth.keys() == torchs.keys()
    faults = []
    for name, value in found.items():
        assert value.dtype == torchs[name].dtype, f"{name}: {value.dtype}, torch's is {torchs[name].dtype}"
        faults += _fault(name, value, truth[name], error(torchs[name], truth[name]))
    assert not faults, "\n".join(faults)


def assert_same(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Two float64 computations of the same in different order: as above, with 32 eps in place of torch's error."""
    assert len(found) == len(expected)
    eps = torch.finfo(torch.float64).eps
    faults = []
    for i, (value, want) in enumerate(zip(found, expected, strict=True)):
        assert value.dtype == want.dtype == torch.float64, f"#{i}: {value.dtype} against {want.dtype}, expected float64"
        faults += _fault(f"#{i}", value, want, Error(32 * eps, 32 * eps, ()))
    assert not faults, "\n".join(faults)


def _fault(name: str, found: Tensor, truth: Tensor, allowed: Error) -> list[str]:
    got, floor = error(found, truth), ULPS * torch.finfo(found.dtype).eps
    if got.l2 <= FACTOR * allowed.l2 + floor and got.peak <= FACTOR * allowed.peak + floor:
        return []
    at = f"{float(found[got.worst])!r} at {got.worst}, expected {float(truth[got.worst])!r}"
    return [f"{name}: L2 {got.l2:.2e} (torch {allowed.l2:.2e}), peak {got.peak:.2e} (torch {allowed.peak:.2e}); {at}"]
