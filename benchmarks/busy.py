"""GPU busy share: the part of a call's time in which at least one CUDA kernel runs, by torch's profiler.

Kernels are seen in calls under the profiler; the time they are divided by is that of calls without it, since it makes
launches slower, and so the gaps between kernels longer. Not yet run on a GPU.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

CALLS = 10
NO_KERNEL = "the profiler saw no CUDA kernel: it may lack the right to, or CUPTI"
NOT_KERNELS = ("Memcpy", "Memset")
"""How the profiler's names begin for copies and fills, which are no kernels."""


def share(call: Callable[[], object]) -> float | str:
    """Of the time of calls that are warm already, at most 1; or why it is not known."""
    seconds = _seconds(call)
    try:
        found = kernels(_profiled(call))
    except RuntimeError as error:
        return f"the profiler failed: {error}"
    return min(1.0, union(found) / 1e6 / seconds) if found else NO_KERNEL


def kernels(events: Iterable[Any]) -> list[tuple[float, float]]:
    """Start and end of each CUDA kernel among a profiler's events, in microseconds."""
    return [
        (event.time_range.start, event.time_range.end)
        for event in events
        if event.device_type == DeviceType.CUDA
        and not event.is_user_annotation
        and not event.name.startswith(NOT_KERNELS)
    ]


def union(intervals: Iterable[tuple[float, float]]) -> float:
    """The length that intervals cover together: where they overlap, once."""
    covered, reached = 0.0, -math.inf
    for start, end in sorted(intervals):
        covered += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return covered


def _repeat(call: Callable[[], object]) -> None:
    for _ in range(CALLS):
        call()
    torch.cuda.synchronize()


def _seconds(call: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    _repeat(call)
    return time.perf_counter() - start


def _profiled(call: Callable[[], object]) -> Iterable[Any]:
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        _repeat(call)
    return profiler.events()
