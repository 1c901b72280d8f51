"""Everybody side by side: each way to run one recurrent layer, and what stands in its place.

Question: which is fastest over sequence length and batch, a recurrent layer, convolutions or self-attention of equal
width; and of all ways to run the same recurrent layer, which? Hypothesis: convolutions and attention win where T is
long and the batch small, since they wait for no step; the fused layer is the fastest way to run a recurrent one.
Refuted by: a recurrent layer no slower at the longest T and batch 1; another way that beats the fused one.

Equal width is not equal work: the table counts parameters. What this machine has not is a row with its reason.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from .. import bands, encoders, floors, panels, plots
from ..cases import MODES, Case
from ..encoders import ENCODERS
from ..gpu.grid import captured
from ..measure import alternate, gates, kept_bytes, ratios
from ..providers import FUSED, FUSED_ATEN, NN, Call, Provider, inputs, twin
from ..record import Row, measured, remark
from ..ways import GRAPH, WAYS
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

STUDY = "providers"
DEVICES = ("cpu", "cuda")
WIDTH = 128
LENGTHS, BATCHES = (8, 64, 512), (1, 8, 64)
SHAPES = {
    "quick": [(8, 1)],
    "default": [(64, 8), (8, 64), (512, 1), (512, 8), (8, 1), (8, 8), (64, 1), (64, 64), (512, 64)],
    "full": [(64, 8), (8, 64), (512, 1), (512, 8), (8, 1), (8, 8), (64, 1), (64, 64), (512, 64)],
}
"""T, B: the first meets all ways to run it; a budget cuts the end."""
ROUNDS = {"quick": 2, "default": 5, "full": 15}
GATE_FLOP = 5e8


def case_of(T: int, B: int) -> Case:
    return Case("gru", T, B, WIDTH, WIDTH)


def run(ctx: Context) -> None:
    cases = [case_of(*sizes) for sizes in SHAPES[ctx.effort]]
    for case, seconds in ctx.todo(STUDY, {case.name: case for case in cases}):
        _case(ctx, case, _here(ctx, case) if case == cases[0] else [NN, FUSED], seconds)


def _here(ctx: Context, case: Case) -> list[Provider]:
    """All ways that this machine has; the others are recorded with their reasons."""
    found = []
    for way in WAYS:
        if reason := way.absent(ctx.device, case):
            ctx.absent(STUDY, case.name, way.provider.name, reason)
        elif way.slow_start and ctx.effort != "full":
            reason = "it compiles for most of a minute: measured by --full"
            ctx.recorder.add(remark(STUDY, "skipped", reason, case, provider=way.provider.name))
        else:
            found.append(way.provider)
    return found


def _gates(ctx: Context, case: Case, ways: Sequence[Provider]) -> dict[str, str | None]:
    others = [way for way in ways if way is not NN]
    reasons = gates(others, case, GATE_FLOP, ctx.device)
    short = case_of(min(case.T, 64), min(case.B, 4))
    return reasons | {encoder.name: encoders.wrong(encoder, short, ctx.device) for encoder in ENCODERS}


def _case(ctx: Context, case: Case, ways: Sequence[Provider], seconds: float) -> None:
    start, threads = time.perf_counter(), torch.get_num_threads()
    ctx.progress.show(f"gate {case.name}")
    reasons = _gates(ctx, case, ways)
    for name, reason in reasons.items():
        if reason:
            ctx.recorder.add(remark(STUDY, "failed", reason, case, provider=name, threads=threads))
    data = inputs(case).to(ctx.device)
    calls = {
        p.name: Call(p, p.build(case, twin(case)).to(ctx.device), data)
        for p in (*ways, *ENCODERS)
        if not reasons.get(p.name)
    }
    for name, call in calls.items():
        where: dict[str, Any] = {"provider": name, "mode": "train", "threads": threads}
        parameters = sum(parameter.numel() for parameter in call.layer.parameters())
        ctx.recorder.add(
            measured(STUDY, "bytes_kept", "bytes", [kept_bytes(call)], case, **where),
            measured(STUDY, "parameters", "", [parameters], case, **where),
        )
    for mode, share in zip(MODES, (0.3, 0.7), strict=True):
        ctx.progress.show(f"{mode} {case.name}")
        left = max(0.0, seconds - (time.perf_counter() - start)) * (share if mode == MODES[0] else 1.0)
        samples = alternate(
            _timed(ctx, case, mode, calls),
            0.8 * left,
            min_rounds=ROUNDS[ctx.effort],
            deadline=time.perf_counter() + left,
            clock=ctx.clock,
        )
        _record(ctx, case, mode, threads, samples)
        floors.add(STUDY, ctx.recorder, case, mode, threads, ctx.device)


def _timed(ctx: Context, case: Case, mode: str, calls: Mapping[str, Call]) -> dict[str, Callable[[], object]]:
    """What is called in turn: of `GRAPH` the replay, unless its call cannot be captured, which is recorded."""
    timed: dict[str, Callable[[], object]] = {name: getattr(call, mode) for name, call in calls.items()}
    if GRAPH.name in timed:
        try:
            timed[GRAPH.name] = captured(timed[GRAPH.name])
        except RuntimeError as error:
            ctx.recorder.add(remark(STUDY, "failed", str(error), case, provider=GRAPH.name, mode=mode))
            del timed[GRAPH.name]
    return timed


def _record(ctx: Context, case: Case, mode: str, threads: int, samples: Mapping[str, list[float]]) -> None:
    for name, values in samples.items():
        where: dict[str, Any] = {"provider": name, "mode": mode, "threads": threads}
        ctx.recorder.add(measured(STUDY, "time", "ms", [1e3 * s for s in values], case, **where))
        if name != FUSED.name and FUSED.name in samples:
            paired = ratios(values, samples[FUSED.name])
            ctx.recorder.add(measured(STUDY, "time_ratio", f"{name}/{FUSED.name}", paired, case, **where))


def verdicts(rows: Sequence[Row]) -> list[Verdict]:
    own = decisive(select(rows, study=STUDY))
    claim = "The fused layer is the fastest way to run a recurrent layer here."
    found = [_beaten(row) for row in select(own, metric="time_ratio", provider=_other_ways())]
    return [judge(claim, found or [Finding(UNDECIDED, "not measured")])]


def _other_ways() -> tuple[str, ...]:
    """But for the fused kernels by name: `fusedrnn` is one of them."""
    names = (way.provider.name for way in WAYS)
    return tuple(name for name in names if name == FUSED_ATEN.name or not name.startswith(FUSED.name))


def _beaten(row: Row) -> Finding:
    """Of another way's time over the fused layer's: the lower quartile above 1 confirms, the upper below 1 refutes."""
    verdict = CONFIRMED if row.p25 > 1 else REFUTED if row.p75 < 1 else DEPENDS
    told = f"{row.provider}, {row.mode}, T {row.T}, B {row.B}: {row.p50:.2f} times fusedrnn's"
    return Finding(verdict, told)


def section(rows: Sequence[Row]) -> Section:
    own = select(rows, study=STUDY)
    blocks: list = [
        Text(
            f"A GRU with as many inputs as units ({WIDTH}), and layers of the same width that stand in its place: "
            "**textcnn** and **cnn2** are filters of 3 to 5 and of 2 to 5 steps, **tcn** is as many dilated causal "
            "residual blocks as the last step needs to see the first, **attention** one layer of a transformer's "
            "encoder. All give features at every step. Every way to run the GRU passed the gate against float64; the "
            "others were compared with their definitions."
        )
    ]
    if select(own, metric="time_ratio"):
        blocks += [Figure("providers-shapes", plots.drawn(_figure, own), _caption(own)), _table(own)]
    return Section(
        "Providers: everybody side by side",
        "Which is fastest over sequence length and batch?",
        [*blocks, *remarks(rows, STUDY)],
    )


def _caption(rows: Sequence[Row]) -> str:
    told = []
    for mode, name in zip(MODES, ("inference", "a training step"), strict=True):
        found = [row for row in select(rows, metric="time", mode=mode) if row.provider != floors.FLOOR]
        cases = list(dict.fromkeys((row.T, row.B) for row in found))
        first = [min(select(found, T=T, B=B), key=lambda row: row.p50).provider for T, B in cases]
        counts = {name: first.count(name) for name in dict.fromkeys(first)}
        won = ", ".join(f"{name} at {n}" for name, n in sorted(counts.items(), key=lambda item: -item[1]))
        told.append(f"Fastest in {name}, of {len(cases)} shapes: {won}.")
    return (
        "Who is faster than the fused GRU, and where? Time over the fused layer's, medians of pairs; bands: "
        f"{bands.told(select(rows, metric='time_ratio'))}; below the dashed line is faster. {' '.join(told)}"
        f"{_floor_told(rows)}"
    )


def _floor_told(rows: Sequence[Row]) -> str:
    told = floors.told(rows)
    return f" {told} Here it is the GRU's, over the fused layer's time, dotted." if told else ""


def _floors(rows: Sequence[Row], mode: str, B: int) -> panels.Line:
    """Of the GRU, over the fused layer's time, by T."""
    own = select(rows, metric="time", mode=mode, B=B)
    fused = {row.T: row.p50 for row in select(own, provider=FUSED.name)}
    points = [(row.T, row.p50 / fused[row.T]) for row in select(own, provider=floors.FLOOR) if row.T in fused]
    return panels.Line(floors.FLOOR, [(T, y, y, y) for T, y in sorted(points)], panels.colour(floors.FLOOR), ":", "")


def _figure(figure: Any, rows: Sequence[Row]) -> None:
    found = []
    shown = (NN.name, *(encoder.name for encoder in ENCODERS))
    for mode in MODES:
        for B in sorted({row.B for row in select(rows, metric="time_ratio")}):
            own = select(rows, metric="time_ratio", mode=mode, B=B)
            lines = [
                panels.line(name, [(row.T, row) for row in select(own, provider=name)], panels.colour(name, index + 1))
                for index, name in enumerate(shown)
            ]
            if own:
                lines.append(panels.level("fusedrnn", (row.T for row in own), 1.0))
            lines.append(_floors(rows, mode, B))
            title = f"{'inference' if mode == 'infer' else 'training step'}, B {B}"
            found.append(panels.Panel(title, "T", "time / fusedrnn's", lines))
    panels.draw(figure, found)


def _table(rows: Sequence[Row]) -> Table:
    """The shape that met all ways."""
    first = select(rows, metric="time")[0].case
    by = {(row.provider, row.mode, row.metric): row for row in select(rows, case=first)}
    lines = []
    names = dict.fromkeys(row.provider for row in select(rows, metric="time", case=first))
    for name in (name for name in names if name != floors.FLOOR):
        cells = [name, f"{by[name, 'train', 'parameters'].p50:,.0f}"]
        for mode in MODES:
            step, ratio = by.get((name, mode, "time")), by.get((name, mode, "time_ratio"))
            cells.append(f"{step.p50:.3f}" if step else "-")
            cells.append(f"{ratio.p50:.2f} ({ratio.p25:.2f}-{ratio.p75:.2f})" if ratio else "1")
        lines.append([*cells, f"{by[name, 'train', 'bytes_kept'].p50 / 2**20:.2f}"])
    header = ("provider", "parameters", *(f"{mode}{what}" for mode in MODES for what in (", ms", ": / fusedrnn")))
    return Table((*header, "kept, MiB"), lines, f"All that this machine can run, at {first}.")
