"""Latency of one small request: who answers fastest, and how late is the slowest answer in a hundred?

Question: what do a BiGRU for an LSTM, dynamic int8, ONNX Runtime and fused layers change in the P50, P95 and P99 of
batch 1 and of a small batch? Hypothesis: that of claim 7. Refuted by: a BiGRU, which has half as many gates again at
equal width, that answers no sooner than the LSTM; int8 or ONNX Runtime no faster than torch's layer without gradients.

Every way answers the same request, in turn, a thousand times and more, each call timed alone; its answer is compared
with float64 first, int8's by a tolerance of its own. A stream is answered a step at a time, its state carried on.
"""

from __future__ import annotations

import io
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from .. import floors, panels, plots
from ..answers import INT8, INT8_ERROR, QUIET, STREAM, Way, export, export_missing, int8_missing, quantized, ways, wrong
from ..cases import Case
from ..measure import no_collector, quartiles, ratios
from ..providers import FUSED, NN, inputs, twin
from ..record import Row, measured, remark, spread
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
    judge,
    remarks,
    select,
)
from .claims import difference, finals, learned, own

STUDY = "serving"
MODELS = {"LSTM": ("lstm", 1), "BiGRU": ("gru", 2)}
"""Cell and directions, at equal width."""
SIZES = {"quick": (6, 8, 8), "default": (20, 64, 128), "full": (50, 64, 128)}  # T, I, H
BATCHES = (1, 8)
CALLS = {"quick": 20, "default": 1000, "full": 5000}
BLOCKS = 5  # of consecutive calls, over which quartiles are taken
PERCENTILES = {"latency_p50": 0.50, "latency_p95": 0.95, "latency_p99": 0.99}
FEWEST_CALLS = 1000
SOONER = 0.75  # quoted: 53 of 78 ms, and 40 % faster: 0.68 and 0.71
HELPS = 0.95
ACCURACY = 0.003  # quoted loss
NO_GRAPH = "no GPU here: a CUDA graph needs one"
WARM_CALLS = 5
Key = tuple[str, str, str]  # model, provider, mode
PAIRS: tuple[tuple[Key, Key], ...] = (
    *((("BiGRU", name, QUIET), ("LSTM", name, QUIET)) for name in (NN.name, FUSED.name)),
    *(
        ((model, way, QUIET), (model, name, QUIET))
        for model in MODELS
        for way in (INT8, "onnxruntime")
        for name in (NN.name, FUSED.name)
    ),
)
"""Whose latency over whose, block by block."""


def run(ctx: Context) -> None:
    ctx.absent(STUDY, "CUDA graph", "cuda", NO_GRAPH)
    if reason := int8_missing():
        ctx.absent(STUDY, "every model", INT8, reason)
    T, I, H = SIZES[ctx.effort]
    left = ctx.unfinished(STUDY, {f"batch {B}": B for B in BATCHES})
    if not left:
        return
    with tempfile.TemporaryDirectory() as folder:
        files = {name: _export(ctx, name, Case(cell, T, 2, I, H, D=D), folder) for name, (cell, D) in MODELS.items()}
        for B, seconds in ctx.todo(STUDY, left):
            cases = {name: Case(cell, T, B, I, H, D=D) for name, (cell, D) in MODELS.items()}
            _batch(ctx, B, cases, files, seconds)


def _export(ctx: Context, name: str, case: Case, folder: str) -> Path | None:
    """The fused layer as an ONNX file for any T and B, or None, and the reason is recorded."""
    ctx.progress.show(f"ONNX file of {name}")
    if reason := export_missing():
        ctx.absent(STUDY, name, "onnxruntime", reason)
        return None
    path = Path(folder) / f"{name}.onnx"
    layer = FUSED.build(case, twin(case)).eval().requires_grad_(False)
    try:
        export(layer, inputs(case).x, path)
    except Exception as error:  # an exporter has many; the study goes on without this file
        ctx.recorder.add(remark(STUDY, "failed", f"{type(error).__name__}: {error}", name, provider="onnxruntime"))
        return None
    return path


def _batch(ctx: Context, B: int, cases: Mapping[str, Case], files: Mapping[str, Path | None], seconds: float) -> None:
    deadline, threads = time.perf_counter() + seconds, torch.get_num_threads()
    right: dict[Key, Way] = {}
    for model, case in cases.items():
        if case.D == 2:
            ctx.absent(STUDY, f"{model}, batch {B}", STREAM, "a layer that also reads backwards cannot answer a stream")
        for way in ways(case, files[model]):
            where = {"provider": way.provider, "mode": way.mode, "threads": threads}
            if reason := wrong(way, case):
                ctx.recorder.add(remark(STUDY, "failed", reason, f"{model}, batch {B}", **where))
            else:
                right[model, way.provider, way.mode] = way
    if min(BATCHES) == B:
        _sizes(ctx, cases, files)
    ctx.progress.show(f"latency of batch {B}")
    samples = latencies({key: way.call for key, way in right.items()}, CALLS[ctx.effort], deadline)
    count = min(map(len, samples.values()), default=0)
    if count < CALLS[ctx.effort]:
        ctx.skip(STUDY, f"batch {B}", f"{count} of {CALLS[ctx.effort]} calls: the budget was spent")
    if count < BLOCKS:
        return
    blocks = {
        key: {metric: _blocks(values, part) for metric, part in PERCENTILES.items()} for key, values in samples.items()
    }
    for (model, provider, mode), values in samples.items():
        sizes = {"cell": cases[model].cell, "T": cases[model].T, "B": B, "H": cases[model].H, "D": cases[model].D}
        where = {"provider": provider, "mode": mode, "threads": threads, **sizes}
        for metric, part in PERCENTILES.items():
            ends = spread(blocks[model, provider, mode][metric])
            value = percentile(values, part)
            ctx.recorder.add(Row(STUDY, f"{model}, batch {B}", metric, "ms", value, n=count, **ends, **where))
    streams = [replace(case, T=1) for case in cases.values() if case.D == 1]  # a stream's call is one step
    for case in (*cases.values(), *streams):
        floors.add(STUDY, ctx.recorder, case, "infer", threads)
    for above, below in PAIRS:
        if above in blocks and below in blocks:
            for metric in ("latency_p50", "latency_p99"):
                found = ratios(blocks[above][metric], blocks[below][metric])
                pair = (f"batch {B}", f"{metric}_ratio", unit_of(above, below), quartiles(found)[1])
                ctx.recorder.add(Row(STUDY, *pair, n=count, B=B, threads=threads, **spread(found)))


def latencies(calls: Mapping[Key, Callable[[], object]], count: int, deadline: float) -> dict[Key, list[float]]:
    """Seconds of single calls, by key: all warmed, then in turn, the order turned round every time."""
    for call in calls.values():
        for _ in range(WARM_CALLS):
            call()
    found: dict[Key, list[float]] = {key: [] for key in calls}
    with no_collector():
        for number in range(count):
            if time.perf_counter() > deadline:
                break
            for key in calls if number % 2 else reversed(calls):
                start = time.perf_counter()
                calls[key]()
                found[key].append(time.perf_counter() - start)
    return found


def percentile(seconds: Sequence[float], part: float) -> float:
    """Milliseconds that this part of the calls took at most."""
    return 1e3 * sorted(seconds)[math.ceil(part * len(seconds)) - 1]


def _blocks(seconds: Sequence[float], part: float) -> list[float]:
    length = len(seconds) // BLOCKS
    return [percentile(seconds[start : start + length], part) for start in range(0, BLOCKS * length, length)]


def unit_of(above: Key, below: Key) -> str:
    return f"{' '.join(above)} / {' '.join(below)}"


def _sizes(ctx: Context, cases: Mapping[str, Case], files: Mapping[str, Path | None]) -> None:
    """Bytes of a model as it is stored."""
    for model, case in cases.items():
        layer = FUSED.build(case, twin(case))
        stored = {NN.name: _stored(layer.state_dict())}
        if not int8_missing():
            stored[INT8] = _stored(quantized(layer).state_dict())
        if file := files[model]:
            stored["onnxruntime"] = file.stat().st_size
        for provider, size in stored.items():
            ctx.recorder.add(measured(STUDY, "bytes_stored", "bytes", [size], model, provider=provider))


def _stored(state: Mapping[str, Any]) -> int:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.tell()


def verdicts(rows: Sequence[Row]) -> list[Verdict]:
    mine = select(rows, study=STUDY)
    claim = (
        "7. Replacing LSTM by BiGRU cuts P99 latency from 78 to 53 ms and gives 40 % faster inference for 0.3 % "
        "accuracy; dynamic int8 and ONNX help further."
    )
    nothing = [Finding(UNDECIDED, "not measured")]
    found = [part for provider in (NN.name, FUSED.name) for part in _bigru(mine, provider)]
    found += [part for model in MODELS for way in (INT8, "onnxruntime") for part in _helps(mine, model, way)]
    found += _accuracy(rows) if found else []
    beside = [part for model in MODELS for way in (INT8, "onnxruntime") for part in _beside(mine, model, way)]
    return [
        judge(claim, found or nothing),
        judge("7b. At batch 1 a fused layer answers sooner than dynamic int8 and ONNX Runtime.", beside or nothing),
    ]


def _ratio(rows: Sequence[Row], metric: str, above: Key, below: Key) -> Row | None:
    """Of batch 1."""
    return next(iter(select(rows, metric=f"{metric}_ratio", unit=unit_of(above, below), B=1)), None)


def _bigru(rows: Sequence[Row], provider: str) -> list[Finding]:
    """Latency of the BiGRU over the LSTM's: up to 0.75 confirms, above 1 refutes."""
    findings = []
    for metric, label in (("latency_p99", "P99"), ("latency_p50", "P50")):
        row = _ratio(rows, metric, ("BiGRU", provider, QUIET), ("LSTM", provider, QUIET))
        if row is not None:
            verdict = CONFIRMED if row.p75 <= SOONER else REFUTED if row.p25 > 1 else DEPENDS
            why = f"{label}, {plots.LABELS[provider]}"
            findings.append(_enough(row, verdict, f"{why}: BiGRU / LSTM {_spread(row)}", why))
    return findings


def _helps(rows: Sequence[Row], model: str, way: str) -> list[Finding]:
    """P50 over that of torch's layer without gradients: up to 0.95 confirms, from 1 on refutes."""
    row = _ratio(rows, "latency_p50", (model, way, QUIET), (model, NN.name, QUIET))
    if row is None:
        return []
    verdict = CONFIRMED if row.p75 <= HELPS else REFUTED if row.p25 >= 1 else DEPENDS
    return [_enough(row, verdict, f"{model}: {way} / torch.nn {_spread(row)}", f"{way} helps, {model}")]


def _beside(rows: Sequence[Row], model: str, way: str) -> list[Finding]:
    row = _ratio(rows, "latency_p50", (model, way, QUIET), (model, FUSED.name, QUIET))
    if row is None:
        return []
    verdict = CONFIRMED if row.p25 > 1 else REFUTED if row.p75 < 1 else DEPENDS
    return [_enough(row, verdict, f"{model}: {way} / fused {_spread(row)}", f"{way}, {model}")]


def _enough(row: Row, verdict: str, told: str, why: str) -> Finding:
    if row.n < FEWEST_CALLS:
        return Finding(UNDECIDED, told, f"{why}, {row.n} of {FEWEST_CALLS} calls")
    return Finding(verdict, told, why)


def _accuracy(rows: Sequence[Row]) -> list[Finding]:
    """Where the study of cells has trained both: at most 0.3 points lost confirms, more beyond the interval refutes."""
    trained = select(rows, study="cells")
    cases = ("series/BiGRU", "series/LSTM")
    ends = [finals(trained, case, own(trained, case)) for case in cases]
    if not all(map(learned, ends)):
        return []
    mean, half = difference(*ends)
    verdict = CONFIRMED if mean >= -ACCURACY else REFUTED if mean + half < -ACCURACY else UNDECIDED
    return [
        Finding(verdict, f"accuracy {100 * mean:+.1f} ± {100 * half:.1f} points on the Gaussian series", "accuracy")
    ]


def _spread(row: Row) -> str:
    return f"{row.p50:.2f} ({row.p25:.2f}-{row.p75:.2f})"


def section(rows: Sequence[Row]) -> Section:
    mine = select(rows, study=STUDY)
    blocks: list = [
        Text(
            "One request after another, the ways in turn, each call timed alone by the wall's clock. `eager` keeps a "
            "graph for gradients, as a forgotten `no_grad` does; `stream` is one step with its state carried on, while "
            "all others answer the whole series. `int8` is torch's dynamic quantization of the reverted layer; ONNX "
            "Runtime runs the file that `torch.onnx.export` wrote of the fused layer. Every answer was compared with "
            f"float64 first, int8's with {100 * INT8_ERROR:.0f} % allowed."
        )
    ]
    if found := select(mine, metric="latency_p50", B=1):
        best = min((row for row in found if row.mode != STREAM), key=lambda row: row.p50)
        caption = (
            "Who answers soonest, and how late is the slowest in a hundred? Dot: half of the calls, bar to the stroke: "
            f"99 %. Soonest of whole series at batch 1: {plots.LABELS.get(best.provider, best.provider)}, {best.mode}, "
            f"{best.case.partition(',')[0]}.{_floor_told(mine)}"
        )
        blocks += [Figure("serving-latency", plots.drawn(_figure, mine), caption), _table(mine), _stored_table(mine)]
    return Section(
        "Serving: latency of one small request",
        "Who answers fastest, and how late is the slowest answer in a hundred?",
        [*blocks, *remarks(rows, STUDY)],
    )


def _floor_told(rows: Sequence[Row]) -> str:
    told = floors.told(rows)
    return f" {told} It is the grey stroke; int8's is another." if told else ""


def _floor(rows: Sequence[Row], answer: Row) -> float | None:
    """Of what a call answers; none of 8 bits, whose products are others."""
    if answer.provider == INT8:
        return None
    T = 1 if answer.mode == STREAM else answer.T
    case = {"cell": answer.cell, "D": answer.D, "B": answer.B, "T": T}
    found = select(rows, metric="time", provider=floors.FLOOR, **case)
    return found[0].p50 if found else None


def _figure(figure: Any, rows: Sequence[Row]) -> None:
    found = select(rows, metric="latency_p50")
    batches, names = list(dict.fromkeys(row.B for row in found)), list(dict.fromkeys(map(_name, found)))
    figure.set_size_inches(9.2, 1.0 + 0.24 * len(names))
    for axis, B in zip(figure.subplots(1, len(batches), sharey=True, squeeze=False)[0], batches, strict=True):
        for row in select(found, B=B):
            late = select(rows, metric="latency_p99", case=row.case, provider=row.provider, mode=row.mode)[0]
            y, colour = -names.index(_name(row)), panels.colour(row.provider, 3 + (row.provider == INT8))
            axis.plot([row.p50, late.p50], [y, y], color=colour, alpha=0.5)
            axis.plot(row.p50, y, "o", color=colour, markersize=4)
            axis.plot(late.p50, y, "|", color=colour, markersize=8)
            if floor := _floor(rows, row):
                axis.plot(floor, y, "|", color=plots.COLOURS[floors.FLOOR], markersize=8)
        axis.set_xscale("log")
        axis.set_title(f"batch {B}")
        axis.set_xlabel("latency, ms")
        axis.set_yticks([-index for index in range(len(names))], names, fontsize=8)


def _name(row: Row) -> str:
    return f"{row.case.partition(',')[0]}, {plots.LABELS.get(row.provider, row.provider)}, {row.mode}"


def _table(rows: Sequence[Row]) -> Table:
    by = {(row.case, row.provider, row.mode, row.metric): row for row in rows}
    lines = [
        [
            row.case,
            plots.LABELS.get(row.provider, row.provider),
            row.mode,
            *(_milliseconds(by[row.case, row.provider, row.mode, metric]) for metric in PERCENTILES),
            str(row.n),
        ]
        for row in select(rows, metric="latency_p50")
    ]
    header = ("request", "layers", "mode", "P50, ms", "P95, ms", "P99, ms", "calls")
    return Table(header, lines, f"Latency of single calls; in brackets, quartiles over {BLOCKS} blocks of them.")


def _milliseconds(row: Row) -> str:
    return f"{row.p50:.3f} ({row.p25:.3f}-{row.p75:.3f})"


def _stored_table(rows: Sequence[Row]) -> Table:
    lines = [
        (row.case, "float32" if row.provider == NN.name else row.provider, f"{row.p50 / 2**10:.0f}")
        for row in select(rows, metric="bytes_stored")
    ]
    return Table(("model", "as", "KiB"), lines, "A model as it is stored.")
