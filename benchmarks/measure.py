"""How things are measured: the gate, alternating calls, this machine's ceilings, bytes kept.

The gate comes first: a provider whose outputs or gradients are wrong is never timed.
"""

from __future__ import annotations

import copy
import functools
import gc
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch

from .cases import Case
from .providers import NN, OUTPUTS, Call, Provider, inputs, twin

SAMPLE_S = 4e-3
"""A sample lasts at least about this long: shorter calls are timed in bursts."""
LONG_SHARE = 20
"""With a deadline, a call longer than this part of what is left is warmed once."""
GATE_FLOP = 60e9
"""A gate in float64 may cost this much; a larger case is gated on fewer time steps of the same layer."""

Clock = Callable[[Callable[[], object], int], float]
"""Seconds a call, of so many calls in a row."""


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile of at least one value."""
    if not values:
        raise ValueError("no samples")
    if len(values) == 1:
        return values[0], values[0], values[0]
    p25, p50, p75 = statistics.quantiles(values, n=4, method="inclusive")
    return p25, p50, p75


def fifths(values: Sequence[float]) -> tuple[float, float, float]:
    """20th percentile, median, 80th percentile of at least one value."""
    if not values:
        raise ValueError("no samples")
    if len(values) == 1:
        return values[0], values[0], values[0]
    parts = statistics.quantiles(values, n=5, method="inclusive")
    return parts[0], statistics.median(values), parts[3]


# two-sided 95 % points of Student's t for 1..10 degrees of freedom
_T95 = (12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


def interval95(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean by Student's t (2 to 11 values, beyond that the last tabulated point)."""
    if len(values) < 2:
        raise ValueError("an interval needs at least two values")
    half = _T95[min(len(values) - 2, len(_T95) - 1)] * statistics.stdev(values) / len(values) ** 0.5
    mean = statistics.fmean(values)
    return mean - half, mean + half


def errors(result: torch.Tensor, truth: torch.Tensor) -> tuple[float, float]:
    """Relative L2 error, and largest error over the truth's largest magnitude."""
    difference, reference = result.double() - truth, truth
    l2, peak = reference.norm().item(), reference.abs().max().item()
    return difference.norm().item() / (l2 or 1.0), difference.abs().max().item() / (peak or 1.0)


def compare(
    result: Mapping[str, torch.Tensor], baseline: Mapping[str, torch.Tensor], truth: Mapping[str, torch.Tensor]
) -> str | None:
    """Why `result` is wrong, or None: its error may be twice the baseline's plus 4 eps, in both measures.

    A baseline in float64 is the truth itself and has no error; 32 eps stand for it, as in tests/close.py.
    """
    for name, expected in truth.items():
        got = result.get(name)
        if got is None:
            return f"{name} is missing"
        if got.shape != expected.shape:
            return f"{name} has shape {tuple(got.shape)}, expected {tuple(expected.shape)}"
        if not torch.equal(got.isfinite(), expected.isfinite()):
            return f"{name} has NaN or Inf where the truth has none, or the reverse"
        eps = torch.finfo(got.dtype).eps
        floor, allowed = 4 * eps, (32 * eps,) * 2 if got.dtype == torch.float64 else errors(baseline[name], expected)
        for measure, ours, theirs in zip(("L2", "max"), errors(got, expected), allowed, strict=True):
            if not ours <= 2 * theirs + floor:  # NaN is wrong too
                return f"{name}: {measure} error {ours:.1e}, torch's own {theirs:.1e}"
    return None


def gate(provider: Provider, case: Case) -> str | None:
    """Why a provider's outputs or gradients are wrong, or None."""
    return gates([provider], case)[provider.name]


def gates(
    providers: Iterable[Provider], case: Case, flop: float = GATE_FLOP, device: str = "cpu"
) -> dict[str, str | None]:
    """Runs outputs and every gradient of providers against nn in float64; by name, why they are wrong, or None.

    Of a provider that does not train, outputs alone.

    A case that costs more than `flop` is checked on its first steps, of the same layer and batch. What a provider
    raises is its reason too.
    """
    short = replace(case, T=max(1, min(case.T, int(case.T * flop / case.flop("train")))))
    layer = twin(short)
    data = inputs(short)
    truth = Call(NN, copy.deepcopy(layer).double(), data.to(torch.float64)).results()
    data, layer = data.to(device), layer.to(device)
    baseline = _on_host(Call(NN, layer, data).results())
    reasons: dict[str, str | None] = {}
    for provider in providers:
        try:
            result = _on_host(Call(provider, provider.build(short, layer).to(device), data).results())
        except Exception as error:  # a study goes on without this provider, and records why
            reasons[provider.name] = f"{type(error).__name__}: {error}"
        else:
            trains = "train" in provider.modes
            expected = {name: value for name, value in truth.items() if trains or name in OUTPUTS}
            reasons[provider.name] = compare(result, baseline, expected)
    return reasons


def _on_host(results: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.cpu() for name, value in results.items()}


@contextmanager
def no_collector() -> Iterator[None]:
    """Keeps Python's garbage collector out of what is timed."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@contextmanager
def on_threads(count: int) -> Iterator[None]:
    """torch on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def burst_of(seconds: float) -> int:
    """Calls in a sample, for calls of this length."""
    return max(1, min(200, round(SAMPLE_S / max(seconds, 1e-9))))


def alternate(
    calls: Mapping[str, Callable[[], object]],
    budget_s: float,
    *,
    min_rounds: int = 5,
    max_rounds: int = 300,
    deadline: float = math.inf,
    clock: Clock | None = None,
) -> dict[str, list[float]]:
    """Seconds a call, by name: all warmed, then in turn, the order turned round every time; samples i are a pair.

    At least `min_rounds` samples are taken, two where even those would take three times the budget. Warming is not
    part of the budget. A `deadline`, of `time.perf_counter`, holds for everything: long calls are warmed once, and
    no round begins that would end behind it, but for the first. `clock` stands for the wall's, for calls that return
    before they are done.
    """
    clock = clock or wall
    repeats: dict[str, int] = {}
    for name, call in calls.items():
        seconds = clock(call, 1)
        if seconds < (deadline - time.perf_counter()) / LONG_SHARE:
            seconds = clock(call, 1)
        repeats[name] = burst_of(seconds)
    order, samples = list(calls), {name: list[float]() for name in calls}
    begun = last = time.perf_counter()
    with no_collector():
        for round_ in range(max_rounds):
            now = time.perf_counter()
            spent, round_s, last = now - begun, now - last, now
            if (spent >= budget_s and round_ >= min_rounds) or (spent >= 3 * budget_s and round_ >= 2):
                break
            if round_ and now + round_s > deadline:
                break
            for name in order if round_ % 2 else reversed(order):
                samples[name].append(clock(calls[name], repeats[name]))
    return samples


def wall(call: Callable[[], object], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count


def device_clock(call: Callable[[], object], count: int) -> float:
    """Seconds a call on the current CUDA stream, by events."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(count):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / count


def ratios(numerator: Sequence[float], denominator: Sequence[float]) -> list[float]:
    """Paired ratios, round by round."""
    return [a / b for a, b in zip(numerator, denominator, strict=True)]


@functools.cache
def ceilings(threads: int, device: str = "cpu") -> tuple[float, float]:
    """This machine's best float32 matrix product (FLOP/s) and copy (bytes/s, read and written) on so many threads.

    A GPU multiplies as its recurrent layers may: in TF32, unless that is switched off for them.
    """
    size, words, clock = (1024, 1 << 24, wall) if device == "cpu" else (4096, 1 << 27, device_clock)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    try:
        with on_threads(threads):
            a, b, c = (torch.ones(size, size, device=device) for _ in range(3))
            source, target = torch.ones(words, device=device), torch.empty(words, device=device)
            product = min(clock(lambda: torch.mm(a, b, out=c), 1) for _ in range(30))
            copying = min(clock(lambda: target.copy_(source), 1) for _ in range(8))
            return 2 * size**3 / product, 2 * source.nbytes / copying
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def kept_bytes(call: Call) -> int:
    """Bytes that wait for backward beyond input, weights and outputs: the storages of all tensors that forward saves.

    torch's allocator is not asked: it does not see memory that a kernel pools by itself.
    """
    storages: dict[int, int] = {}

    def note(saved: torch.Tensor) -> torch.Tensor:
        storage = saved.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
        outputs = call.forward_kept()
    known = [call.leaf, *outputs, *call.layer.parameters()]
    if call.lengths is not None:
        known.append(call.lengths)
    for tensor in known:
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(storages.values())
