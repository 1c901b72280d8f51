"""`python -m benchmarks compare`: fused against torch's layer at one's own shape, as a table, within a budget."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping, Sequence

import torch

from .cases import MODES, Case
from .measure import GATE_FLOP, alternate, ceilings, gates, kept_bytes, quartiles, ratios
from .peak import STEPS, peak_bytes
from .progress import Progress
from .providers import FUSED, NN, REFERENCE, Call, Provider, inputs, twin

REFERENCE_SECONDS = 1.0
"""The reference loop takes part where one training step of it is estimated below this."""
BUDGET_S = 24.0
"""Seconds of a table: below half a minute together with the start of Python and torch."""
GATE_SHARE = 0.1
GATE_SLOWER = 8
"""A gate runs nn in float64 and all in the case's own dtype: so many times longer than the product at its best."""
SHARES = {"infer": 0.2, "train": 0.5}
"""Parts of what is left of the budget; the rest is for memory."""
LAYER_SLOWER = 2
"""A layer takes about so many times the product at its best."""
CALLS = 2
"""The fewest calls of a measurement: one warms, one is timed."""
TRAIN_SLOWER = 3.3
"""A training step takes about so many forward passes."""
CHILD_S = 4.0
"""A process that measures peak memory takes about this long to start."""


def run(
    case: Case,
    wanted: Sequence[Provider] = (),
    *,
    budget_s: float = BUDGET_S,
    reference: bool | None = None,
    peak: bool | None = None,
) -> str:
    """Gates, measures, and lays out the table; a provider that fails its gate gets its reason instead of a time.

    Args:
        wanted: Whom to time beside nn; the fused layer, and the reference where it is quick, if empty.
        budget_s: Seconds for all of it: training steps and memory are left out where they do not fit, and it is said.
        reference: Whether the reference takes part.
        peak: Whether to measure peak memory, at any cost if True; None: where it fits into the budget.

    Raises:
        ValueError: not even forward passes fit into the budget.
    """
    progress = Progress(budget_s)
    deadline = time.perf_counter() + budget_s
    progress.show(f"gate {case.name}")
    threads = torch.get_num_threads()
    flops_per_s, bytes_per_s = ceilings(threads)
    candidates = _candidates(case, wanted, reference)
    least = CALLS * (1 + len(candidates)) * LAYER_SLOWER * case.flop("infer") / flops_per_s
    if least > budget_s:
        raise ValueError(
            f"{case.name} on {threads} threads takes at least {least:.3g} s here, the budget is {budget_s:g} s: "
            f"give fewer --steps or --budget {math.ceil(5 * least)}"
        )
    reasons = gates(candidates, case, min(GATE_FLOP, GATE_SHARE * budget_s * flops_per_s / GATE_SLOWER))
    remarks = [f"{name}: refused by the gate: {reason}" for name, reason in reasons.items() if reason]
    providers = [NN, *(provider for provider in candidates if not reasons[provider.name])]
    layer, data = twin(case), inputs(case)
    calls = {provider.name: Call(provider, provider.build(case, copy.deepcopy(layer)), data) for provider in providers}
    samples: dict[str, dict[str, list[float]]] = {}
    step_s = 0.0  # of all providers together, estimated until it is measured
    for mode, share in SHARES.items():
        progress.show(f"{mode} {case.name}")
        now = time.perf_counter()
        if CALLS * step_s > max(deadline - now, 0.0):
            needed, left = CALLS * step_s, deadline - now
            remarks.append(_left_out("training steps", needed, left, f"--budget {_enough(budget_s, needed, left)}"))
            continue
        seconds = max(0.0, deadline - now) * share
        samples[mode] = alternate(
            {name: getattr(call, mode) for name, call in calls.items() if mode in call.modes},
            seconds,
            min_rounds=3,
            deadline=now + seconds,
        )
        step_s = sum(map(max, samples[mode].values())) * (TRAIN_SLOWER if mode == "infer" else 1)
    kept = {}
    if step_s / TRAIN_SLOWER <= max(deadline - time.perf_counter(), 0.0):
        kept = {name: kept_bytes(call) for name, call in calls.items() if "train" in call.modes}
    progress.show("peak memory")
    left, needed = deadline - time.perf_counter(), CHILD_S + (STEPS + 1) * step_s
    peaks: Mapping[str, int | str] = {}
    if peak or (peak is None and needed <= left):
        peaks = peak_bytes(
            [p for p in providers if p is not REFERENCE and "train" in p.modes], case, 60 if peak else left
        )
        remarks += [f"{name}: no peak memory: {value}" for name, value in peaks.items() if isinstance(value, str)]
    elif peak is None:
        remarks.append(_left_out("peak memory", needed, left, "--peak"))
    progress.close()
    lines = [("provider", "infer, ms", "nn / it", "train, ms", "nn / it", "kept, MiB", "peak, MiB")]
    for name in calls:
        cells = [cell for mode in MODES for cell in _times(samples.get(mode, {}), name)]
        lines.append((name, *cells, _mib(kept.get(name)), _mib(peaks.get(name))))
    if case.dtype == "fp32":
        floor = [f"{1e3 * case.floor_s(mode, flops_per_s, bytes_per_s):.3f}" for mode in MODES]
        lines.append(("floor", floor[0], "", floor[1], "", "", ""))
    pairs = [f"{len(samples[mode][NN.name])} pairs of {mode}" for mode in samples]
    title = f"{case.name}, {threads} threads, {', '.join(pairs)}"
    if FUSED.name in calls:
        title += f"; backend: {' and '.join(dict.fromkeys(calls[FUSED.name].backend(mode) for mode in samples))}"
    return "\n".join([title, _aligned(lines), *remarks])


def _candidates(case: Case, wanted: Sequence[Provider], reference: bool | None) -> list[Provider]:
    chosen = list(wanted) or [FUSED]
    if _wants_reference(case, False if wanted and reference is None else reference):
        chosen.append(REFERENCE)
    return [provider for provider in dict.fromkeys(chosen) if provider is not NN]


def _wants_reference(case: Case, wanted: bool | None) -> bool:
    """About 60 us a step, layer and direction, and 10 GFLOP/s: enough to tell seconds from minutes."""
    estimate = 3 * case.T * case.L * case.D * 60e-6 + case.flop("train") / 10e9
    return estimate < REFERENCE_SECONDS if wanted is None else wanted


def _enough(budget_s: float, needed: float, left: float) -> int:
    """A budget that also holds what is needed, with room for a slower second."""
    return math.ceil(budget_s + 2 * needed - min(left, 0)) + 1


def _left_out(what: str, needed: float, left: float, instead: str) -> str:
    return f"{what} left out: about {needed:.0f} s, and {max(left, 0):.0f} s of the budget are left; {instead} has them"


def _times(samples: Mapping[str, Sequence[float]], name: str) -> tuple[str, str]:
    """Median milliseconds, and the paired ratio to nn."""
    if name not in samples:
        return "-", "-"
    p25, p50, p75 = quartiles(ratios(samples[NN.name], samples[name]))
    ratio = "1" if name == NN.name else f"{p50:.2f} ({p25:.2f}-{p75:.2f})"
    return f"{1e3 * quartiles(samples[name])[1]:.3f}", ratio


def _mib(peak: int | str | None) -> str:
    return f"{peak / 2**20:.2f}" if isinstance(peak, int) else "-"


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
