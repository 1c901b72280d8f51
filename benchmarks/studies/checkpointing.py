"""Memory against time: activation checkpointing of torch's layers, and recomputation in fused ones.

Question: what does torch.utils.checkpoint over a whole layer, or over segments of its time, save in a training step,
and what does it cost, beside a fused layer that keeps its gates, or with recompute=True its states alone? Hypothesis:
segments save most of the memory for about a third more time, since forward runs twice of three parts; a fused layer
with recompute=True takes less of both, for it runs an eighth of all steps again at a time, in the same kernel. Refuted
by: memory above 0.9 of the plain layer's, or a step of twice its time; for the second part, a fused step that is slower
or larger.

Whole-layer checkpointing keeps nothing but the input, yet repeats all of the layer at once in backward: alone it has
the plain layer's peak, and gains in a model of many layers, where each keeps its input and one at a time is repeated.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from typing import Any

import torch

from .. import floors, panels, plots
from ..cases import Case
from ..measure import alternate, gates, kept_bytes, ratios
from ..peak import device_peak_bytes, peak_bytes
from ..providers import CHECKPOINTED, FUSED, FUSED_RECOMPUTE, NN, Call, Provider, inputs, twin
from ..record import Row, measured, remark
from .base import (
    CONFIRMED,
    DEPENDS,
    REFUTED,
    UNDECIDED,
    Context,
    Figure,
    Finding,
    Section,
    Table,
    Text,
    Verdict,
    decisive,
    judge,
    remarks,
    select,
)

STUDY = "checkpointing"
DEVICES = ("cpu", "cuda")
PROVIDERS = (NN, *CHECKPOINTED, FUSED, FUSED_RECOMPUTE)
TIME_SEGMENTS = "nn-checkpoint-sqrt"
RATIOS = (
    *((provider.name, NN.name) for provider in PROVIDERS[1:]),
    (TIME_SEGMENTS, FUSED_RECOMPUTE.name),
)
"""Whose time over whose, round by round."""
JUDGED = (NN.name, TIME_SEGMENTS, FUSED_RECOMPUTE.name)
"""Whose peak the verdicts stand on: measured first."""
SIZES = {"B": 16, "I": 128, "H": 128}
GRID = {
    "quick": [Case("gru", 64, 4, 16, 16)],
    "default": [Case("gru", 1024, **SIZES), Case("gru", 256, **SIZES), Case("lstm", 1024, **SIZES)],
    "full": [Case(cell, T, **SIZES) for T in (1024, 4096, 256) for cell in ("gru", "lstm")],
}
"""The most telling first: a budget cuts the end."""
GATE_FLOP = 2e9  # longer cases are gated on their first steps, of every provider
PEAK_FROM_BYTES = 8 << 20  # of the output: resident sizes are known to some megabytes only
FIRST = 0.6  # part of all seconds for the most telling case
TIMED = 0.5  # part of a case's seconds
CHILD_S = 8.0  # a process that measures the peak
ROUNDS = {"quick": 3, "default": 5, "full": 9}
SAVES, SAVES_LITTLE = 0.5, 0.9  # of the plain layer's memory
CHEAP, DEAR = 1.5, 2.0  # of the plain layer's time
NO_MORE, CLEARLY_MORE = 1.0, 1.1  # memory of recompute over that of checkpointing


def run(ctx: Context) -> None:
    grid = GRID[ctx.effort]
    for case, seconds in ctx.todo(STUDY, {case.name: case for case in grid}):
        _case(ctx, case, ctx.budget.share(FIRST).seconds if case is grid[0] else seconds)


def _case(ctx: Context, case: Case, seconds: float) -> None:
    threads = torch.get_num_threads()
    where: dict[str, Any] = {"mode": "train", "threads": threads}
    ctx.progress.show(f"gate {case.name}")
    reasons = gates(PROVIDERS[1:], case, GATE_FLOP, ctx.device)
    for name, reason in reasons.items():
        if reason:
            ctx.recorder.add(remark(STUDY, "failed", reason, case, provider=name, threads=threads))
    providers = [provider for provider in PROVIDERS if not reasons.get(provider.name)]
    data = inputs(case).to(ctx.device)
    calls = {p.name: Call(p, p.build(case, copy.deepcopy(twin(case))).to(ctx.device), data) for p in providers}
    for provider in providers:
        kept = kept_bytes(calls[provider.name])
        ctx.recorder.add(measured(STUDY, "bytes_kept", "bytes", [kept], case, provider=provider.name, **where))
    ctx.progress.show(f"time {case.name}")
    samples = alternate(
        {name: call.train for name, call in calls.items()},
        seconds * TIMED,
        min_rounds=ROUNDS[ctx.effort],
        deadline=time.perf_counter() + seconds * TIMED,
        clock=ctx.clock,
    )
    for name, values in samples.items():
        ctx.recorder.add(measured(STUDY, "time", "ms", [1e3 * s for s in values], case, provider=name, **where))
    floors.add(STUDY, ctx.recorder, case, "train", threads, ctx.device)
    for above, below in RATIOS:
        if above in samples and below in samples:
            values = ratios(samples[above], samples[below])
            ctx.recorder.add(measured(STUDY, "time_ratio", f"{above}/{below}", values, case, provider=above, **where))
    if case.output_bytes < PEAK_FROM_BYTES:
        return
    for provider in sorted(providers, key=lambda provider: provider.name not in JUDGED):
        ctx.progress.show(f"peak memory {case.name}, {provider.name}")
        peak = _peak(ctx, provider, case, calls[provider.name])
        if isinstance(peak, str):
            ctx.recorder.add(remark(STUDY, "skipped", f"peak memory: {peak}", case, provider=provider.name, **where))
        else:
            ctx.recorder.add(measured(STUDY, "bytes_peak", "bytes", [peak], case, provider=provider.name, **where))


def _peak(ctx: Context, provider: Provider, case: Case, call: Call) -> int | str:
    if ctx.device != "cpu":
        return device_peak_bytes(call)
    if ctx.budget.left < CHILD_S:
        return "the budget of this study was spent"
    return peak_bytes([provider], case, timeout_s=ctx.budget.left)[provider.name]


def _memory(rows: Sequence[Row], case: str) -> tuple[dict[str, float], str]:
    """Bytes by provider: the peak where it was measured of everyone, else what is kept."""
    for metric, label in (("bytes_peak", "peak"), ("bytes_kept", "kept")):
        found = {row.provider: row.p50 for row in select(rows, metric=metric, case=case)}
        if set(JUDGED) <= found.keys():
            return found, label
    return {}, ""


def verdicts(rows: Sequence[Row]) -> list[Verdict]:
    own = decisive(select(rows, study=STUDY))
    cases = list(dict.fromkeys(row.case for row in select(own, metric="time_ratio")))
    claim = "5. cuDNN GRU with torch.utils.checkpoint over time segments trades speed for memory well."
    if any(row.isa and not row.cpu.startswith("NVIDIA") for row in own):
        claim += " (Here torch's own GRU and LSTM on a CPU: cuDNN needs a GPU.)"
    beside = "5b. A fused layer with recompute=True is the better trade: a shorter step in no more memory."
    nothing = [Finding(UNDECIDED, "no case with time and peak memory")]
    return [
        judge(claim, [part for case in cases for part in _trade(own, case)] or nothing),
        judge(beside, [part for case in cases for part in _beside(own, case)] or nothing),
    ]


def _ratio(rows: Sequence[Row], case: str, unit: str) -> Row | None:
    return next(iter(select(rows, metric="time_ratio", case=case, unit=unit)), None)


def _trade(rows: Sequence[Row], case: str) -> list[Finding]:
    """Peak over the plain layer's: half confirms, 0.9 refutes. Time: up to 1.5 confirms, above 2 refutes."""
    bytes_, label = _memory(rows, case)
    ratio = _ratio(rows, case, f"{TIME_SEGMENTS}/{NN.name}")
    if label != "peak" or ratio is None:
        return []
    share = bytes_[TIME_SEGMENTS] / max(bytes_[NN.name], 1)
    memory = CONFIRMED if share <= SAVES else REFUTED if share > SAVES_LITTLE else DEPENDS
    speed = CONFIRMED if ratio.p75 <= CHEAP else REFUTED if ratio.p25 > DEAR else DEPENDS
    return [
        Finding(memory, f"{case}: peak memory {share:.2f} of nn's", f"memory, {case}"),
        Finding(speed, f"{case}: time {_spread(ratio)} of nn's", f"time, {case}"),
    ]


def _beside(rows: Sequence[Row], case: str) -> list[Finding]:
    bytes_, label = _memory(rows, case)
    ratio = _ratio(rows, case, f"{TIME_SEGMENTS}/{FUSED_RECOMPUTE.name}")
    if label != "peak" or ratio is None:
        return []
    share = bytes_[FUSED_RECOMPUTE.name] / max(bytes_[TIME_SEGMENTS], 1)
    memory = CONFIRMED if share <= NO_MORE else REFUTED if share > CLEARLY_MORE else DEPENDS
    speed = CONFIRMED if ratio.p25 > 1 else REFUTED if ratio.p75 < 1 else DEPENDS
    return [
        Finding(memory, f"{case}: peak memory {share:.2f} of checkpointing's", f"memory, {case}"),
        Finding(speed, f"{case}: checkpointing takes {_spread(ratio)} times as long", f"time, {case}"),
    ]


def _spread(row: Row) -> str:
    return f"{row.p50:.2f} ({row.p25:.2f}-{row.p75:.2f})"


def section(rows: Sequence[Row]) -> Section:
    own = select(rows, study=STUDY)
    blocks: list = [
        Text(
            "A training step of one layer. `nn-checkpoint` repeats the whole call in backward, `-4` and `-sqrt` cut "
            "time into four segments, or into as many as the root of its steps, and repeat one at a time. "
            "`fusedrnn-recompute` keeps states alone and runs an eighth of time again at once. All passed the gate "
            "against float64 first. **Kept** waits for backward beyond input, weights and output; in a model of many "
            "layers it adds up, while the rest of the **peak** is there once."
        )
    ]
    if select(own, metric="time"):
        blocks += [Figure("checkpointing-pareto", plots.drawn(_figure, own), _caption(own)), _table(own)]
    return Section(
        "Checkpointing: memory against time",
        "What does checkpointing save in a training step, and what does it cost?",
        [*blocks, *remarks(rows, STUDY)],
    )


def _caption(rows: Sequence[Row]) -> str:
    told = []
    for case in dict.fromkeys(row.case for row in select(rows, metric="time")):
        bytes_, label = _memory(rows, case)
        times = {row.provider: row.p50 for row in select(rows, metric="time", case=case)}
        best = [
            name
            for name in bytes_
            if name in times
            and not any(
                bytes_[other] <= bytes_[name] and times.get(other, times[name]) < times[name] for other in bytes_
            )
        ]
        told.append(f"{case}, {label}: {', '.join(best)}" if best else f"{case}: nothing to compare")
    question = "Which choices are worth making? Down and to the left is better."
    best = f"Those that no other beats in both memory and time: {'; '.join(told)}."
    return f"{question} {best} {floors.told(rows)}".rstrip()


def _figure(figure: Any, rows: Sequence[Row]) -> None:
    found = []
    for case in dict.fromkeys(row.case for row in select(rows, metric="time")):
        bytes_, label = _memory(rows, case)
        lines = []
        for index, provider in enumerate(PROVIDERS):
            times = select(rows, metric="time", case=case, provider=provider.name)
            if times and bytes_.get(provider.name):
                point = [(bytes_[provider.name] / 2**20, times[0])]
                lines.append(panels.line(provider.name, point, panels.colour(provider.name, index + 1), " "))
        if lines and (floor := select(rows, metric="time", case=case, provider=floors.FLOOR)):
            sizes = (x for own in lines for x, *_ in own.points)
            lines.append(panels.level(floors.FLOOR, sizes, floor[0].p50, ":"))
        title = case.removesuffix(" fp32")
        found.append(panels.Panel(title, f"{label} memory, MiB", "training step, ms", lines))
    panels.draw(figure, found)


def _table(rows: Sequence[Row]) -> Table:
    by = {(row.case, row.provider, row.metric): row for row in rows if row.metric != "time_ratio"}
    lines = []
    for case in dict.fromkeys(row.case for row in select(rows, metric="time")):
        for provider in PROVIDERS:
            if (step := by.get((case, provider.name, "time"))) is None:
                continue
            ratio = _ratio(rows, case, f"{provider.name}/{NN.name}")
            memory = [by.get((case, provider.name, metric)) for metric in ("bytes_kept", "bytes_peak")]
            mib = [f"{row.p50 / 2**20:.1f}" if row else "-" for row in memory]
            lines.append([case, provider.name, f"{step.p50:.2f}", _spread(ratio) if ratio else "1", *mib])
    header = ("case", "layers", "step, ms", "of nn's time", "kept, MiB", "peak, MiB")
    return Table(header, lines, "Median time of a training step, with quartiles of paired ratios; memory.")
