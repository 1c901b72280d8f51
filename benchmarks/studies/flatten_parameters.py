"""What flatten_parameters does: the chunk of memory behind a layer's weights, what takes it apart, and what that costs.

Question: does one chunk of weights save memory or time, and what do .to, deepcopy, weight norm and replaced weights do
to it? Hypothesis: on a GPU cuDNN wants one chunk; weights that lie apart are copied together at every call, with a
warning. On a CPU flatten_parameters returns at once and weights lie apart from the start. Fused layers read weights
where they lie. Refuted by: on a GPU, no more memory and no more time with weights apart; on a CPU, memory or time that
change; a fused layer that is slower after its weights were moved.

What there is no cuDNN for stands as absent; the same code measures it on a GPU.
"""

from __future__ import annotations

import copy
import functools
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrizations

from .. import bands, floors, plots
from ..cases import Case
from ..measure import alternate, compare, ratios
from ..peak import device_peak_bytes
from ..providers import FUSED, NN, OUTPUTS, Call, Provider, inputs, twin
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

STUDY = "flatten_parameters"
DEVICES = ("cpu", "cuda")
PROVIDERS = (NN, FUSED)
GRID = {
    "quick": [Case("gru", 8, 2, 16, 16)],
    "default": [Case("lstm", 10, 8, 256, 256), Case("gru", 10, 8, 256, 256)],
    "full": [Case(cell, T, 8, H, H) for H in (256, 1024) for cell in ("lstm", "gru") for T in (10, 100)],
}
BUILT, FLATTENED, REPLACED, NORMED = "as built", "flattened again", "weights replaced", "weight norm"
ROUNDS = {"quick": 3, "default": 5, "full": 25}
NO_CUDNN = "no GPU here: on a CPU there is no cuDNN, and flatten_parameters returns at once"
SAME = 0.05  # times that differ by less are alike
EXTRA, NO_EXTRA = 0.9, 0.1  # of the weights' bytes, as further memory
STALL, NO_STALL = 1.5, 1.1  # a first call's time over the second's


def _flattened(layer: nn.RNNBase) -> nn.RNNBase:
    layer.flatten_parameters()
    return layer


def _replaced(layer: nn.RNNBase) -> nn.RNNBase:
    """As wrappers do that give every parameter memory of their own."""
    for parameter in layer.parameters():
        parameter.data = parameter.data.clone()
    return layer


def _normed(layer: nn.RNNBase) -> nn.RNNBase:
    return parametrizations.weight_norm(layer, "weight_hh_l0")


EVENTS: dict[str, Callable[[nn.RNNBase], nn.RNNBase]] = {
    BUILT: lambda layer: layer,
    FLATTENED: _flattened,
    "to float64 and back": lambda layer: layer.double().float(),
    "deep copy": copy.deepcopy,
    REPLACED: _replaced,
    NORMED: _normed,
}


def run(ctx: Context) -> None:
    if ctx.device == "cpu":
        for metric in ("copy of weights that lie apart at every call", "its warning", "memory of a chunk"):
            ctx.absent(STUDY, metric, "cuDNN", NO_CUDNN)
    for case, seconds in ctx.todo(STUDY, {case.name: case for case in GRID[ctx.effort]}):
        _case(ctx, case, seconds)


def made(provider: Provider, case: Case, event: str, device: str) -> nn.RNNBase:
    """A layer on its device to which this has happened; all have the same weights."""
    return EVENTS[event](provider.build(case, twin(case)).to(device))


def _results(provider: Provider, layer: nn.Module, case: Case, where: torch.dtype | str) -> dict[str, torch.Tensor]:
    """Outputs and the input's gradient: under weight norm the weights' gradients are those of other parameters."""
    found = Call(provider, layer, inputs(case).to(where)).results()
    return {name: value.cpu() for name, value in found.items() if name in (*OUTPUTS, "dx")}


@functools.cache
def _expected(case: Case, device: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """What torch's own layer gives, and the truth in float64."""
    baseline = _results(NN, twin(case).to(device), case, device)
    return baseline, _results(NN, twin(case).double(), case, torch.float64)


def wrong(provider: Provider, case: Case, event: str, device: str) -> str | None:
    """Why outputs or the input's gradient are not what they were before, by the gate's rule; None if they are."""
    baseline, truth = _expected(case, device)
    return compare(_results(provider, made(provider, case, event, device), case, device), baseline, truth)


def _case(ctx: Context, case: Case, seconds: float) -> None:
    start, threads = time.perf_counter(), torch.get_num_threads()
    data = inputs(case).to(ctx.device)
    calls: dict[tuple[str, str], Call] = {}
    for provider in PROVIDERS:
        for event in EVENTS:
            ctx.progress.show(f"gate {provider.name}, {event}")
            where = {"provider": provider.name, "mode": event, "threads": threads}
            if reason := wrong(provider, case, event, ctx.device):
                ctx.recorder.add(remark(STUDY, "failed", reason, case, **where))
                continue
            calls[provider.name, event] = call = Call(provider, made(provider, case, event, ctx.device), data)
            ctx.recorder.add(*_layout(case, call, where))
            if ctx.device != "cpu":
                peak = [device_peak_bytes(call)]
                ctx.recorder.add(measured(STUDY, "bytes_peak", "bytes", peak, case, **where))
            firsts = [_first_over_second(provider, case, event, ctx) for _ in range(ROUNDS[ctx.effort])]
            ctx.recorder.add(measured(STUDY, "first_call", "first/second", firsts, case, **where))
    ctx.progress.show(f"calls of {case.name}")
    left = max(0.0, seconds - (time.perf_counter() - start))
    samples = alternate(
        {"/".join(key): call.infer for key, call in calls.items()},
        0.8 * left,
        deadline=time.perf_counter() + left,
        clock=ctx.clock,
    )
    floors.add(STUDY, ctx.recorder, case, "infer", threads, ctx.device)
    for name, event in calls:
        values, where = samples[f"{name}/{event}"], {"provider": name, "mode": event, "threads": threads}
        ctx.recorder.add(measured(STUDY, "time", "ms", [1e3 * s for s in values], case, **where))
        if built := samples.get(f"{name}/{BUILT}"):
            ctx.recorder.add(measured(STUDY, "time_ratio", "event/built", ratios(values, built), case, **where))


def _layout(case: Case, call: Call, where: dict[str, Any]) -> list[Row]:
    """Storages behind the weights as a call finds them, their bytes over the weights', and warnings of a call."""
    weights = [getattr(call.layer, name).detach() for name in call.layer._flat_weights_names]
    storages = {weight.untyped_storage().data_ptr(): weight.untyped_storage().nbytes() for weight in weights}
    own = sum(weight.nbytes for weight in weights)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        call.infer()
    values = (
        ("storages", "", len(storages)),
        ("bytes_behind", "of weights", sum(storages.values()) / own),
        ("weights", "bytes", own),
        ("warnings", "", len(heard)),
    )
    return [measured(STUDY, metric, unit, [value], case, **where) for metric, unit, value in values]


def _first_over_second(provider: Provider, case: Case, event: str, ctx: Context) -> float:
    """A fresh layer's first call over its second."""
    call = Call(provider, made(provider, case, event, ctx.device), inputs(case).to(ctx.device))
    first, second = (ctx.clock(call.infer, 1) for _ in range(2))
    return first / second


def verdicts(rows: Sequence[Row]) -> list[Verdict]:
    own = decisive(select(rows, study=STUDY))
    claim = "4. flatten_parameters saves memory and costs one extra copy and a stall at its first call."
    on_gpu = bool(select(own, metric="bytes_peak"))
    cudnn = _cudnn(own) if on_gpu else [Finding(UNDECIDED, NO_CUDNN if own else "not measured")]
    found = [judge(claim, cudnn)]
    if not on_gpu:
        same = _nothing_changes(own) or [Finding(UNDECIDED, "not measured")]
        found.append(judge("4b. On a CPU flatten_parameters changes neither memory nor time.", same))
    moved = _moved(own) or [Finding(UNDECIDED, "not measured")]
    return [*found, judge("4c. Moving, copying or replacing its weights slows no later call of a fused layer.", moved)]


def _cudnn(rows: Sequence[Row]) -> list[Finding]:
    """Weights apart beside one chunk: further memory, a slower call; and the first call of a layer as built."""
    findings = []
    for case in dict.fromkeys(row.case for row in select(rows, metric="bytes_peak")):
        by = {(row.metric, row.mode): row for row in select(rows, case=case, provider=NN.name)}
        if ("bytes_peak", REPLACED) in by:
            more = by["bytes_peak", REPLACED].p50 - by["bytes_peak", BUILT].p50
            share = more / by["weights", BUILT].p50
            verdict = CONFIRMED if share >= EXTRA else REFUTED if share <= NO_EXTRA else DEPENDS
            findings.append(Finding(verdict, f"{case}: weights apart take {share:.2f} of their size more", "memory"))
        if ratio := by.get(("time_ratio", REPLACED)):
            verdict = CONFIRMED if ratio.p25 > 1 + SAME else REFUTED if ratio.p75 <= 1 + SAME else DEPENDS
            findings.append(Finding(verdict, f"{case}: a call with weights apart {_spread(ratio)}", "a copy"))
        if first := by.get(("first_call", BUILT)):
            verdict = CONFIRMED if first.p25 >= STALL else REFUTED if first.p75 <= NO_STALL else DEPENDS
            findings.append(Finding(verdict, f"{case}: first call over second {_spread(first)}", "a stall"))
    return findings


def _nothing_changes(rows: Sequence[Row]) -> list[Finding]:
    findings = []
    for case in dict.fromkeys(row.case for row in select(rows, metric="time_ratio")):
        by = {(row.metric, row.mode): row for row in select(rows, case=case, provider=NN.name)}
        if not {("storages", FLATTENED), ("time_ratio", FLATTENED)} <= by.keys():
            continue
        pairs = [[by[metric, event].p50 for event in (BUILT, FLATTENED)] for metric in ("storages", "bytes_behind")]
        told = f"{case}: {pairs[0][0]:.0f} storages before, {pairs[0][1]:.0f} after"
        findings.append(Finding(CONFIRMED if all(a == b for a, b in pairs) else REFUTED, told, f"memory, {case}"))
        findings.append(_alike(by["time_ratio", FLATTENED], f"{case}: time after over before", f"time, {case}"))
    return findings


def _moved(rows: Sequence[Row]) -> list[Finding]:
    """Of fused layers; but for weight norm, which computes W_hh anew at every call."""
    found = select(rows, metric="time_ratio", provider=FUSED.name)
    found = [row for row in found if row.mode not in (BUILT, FLATTENED, NORMED)]
    return [_alike(row, f"{row.case}: {row.mode}", f"{row.mode}, {row.cell}", slower_alone=True) for row in found]


def _alike(row: Row, told: str, why: str, *, slower_alone: bool = False) -> Finding:
    """Confirmed: the median within 5 %. Refuted: the quartiles outside of that, on one side. Else undecided."""
    low = -1.0 if slower_alone else 1 - SAME
    verdict = UNDECIDED
    if low <= row.p50 <= 1 + SAME:
        verdict = CONFIRMED
    elif row.p25 > 1 + SAME or row.p75 < low:
        verdict = REFUTED
    return Finding(verdict, f"{told} {_spread(row)}", why)


def _spread(row: Row) -> str:
    return f"{row.p50:.2f} ({row.p25:.2f}-{row.p75:.2f})"


def section(rows: Sequence[Row]) -> Section:
    own = select(rows, study=STUDY)
    blocks: list = [
        Text(
            "What happened to a layer before it is called; all have the same weights, and each gives the same outputs, "
            "by the gate, before it is timed. **Storages** is the number of blocks of memory behind the weights as a "
            "call finds them. **First call** is that of a fresh layer, over its second."
        )
    ]
    if select(own, metric="time_ratio"):
        caption = (
            "Does it cost anything later that weights were moved? A call's time over that of the layer as built, "
            f"medians of pairs; bars: {bands.told(select(own, metric='time_ratio'))}. {_answer(own)}{_floor_told(own)}"
        )
        blocks += [Figure("flatten-parameters-time", plots.drawn(_figure, own), caption), _table(own)]
    return Section(
        "flatten_parameters: the chunk behind the weights",
        "Does one chunk of weights save memory or time, and what takes it apart?",
        [*blocks, *remarks(rows, STUDY)],
    )


def _answer(rows: Sequence[Row]) -> str:
    worst = max(select(rows, metric="time_ratio"), key=lambda row: row.p50)
    return f"Most: {worst.mode}, {plots.LABELS[worst.provider]}, {worst.cell}: {worst.p50:.2f}."


def _floor_told(rows: Sequence[Row]) -> str:
    told = floors.told(rows)
    return f" {told} It is drawn dotted in each layer's colour, over its time as built." if told else ""


def _figure(figure: Any, rows: Sequence[Row]) -> None:
    found = select(rows, metric="time_ratio")
    cases, events = (list(dict.fromkeys(getattr(row, name) for row in found)) for name in ("case", "mode"))
    figure.set_size_inches(9.2, 1.0 + 0.34 * len(events) * -(-len(cases) // 2))
    axes = figure.subplots(-(-len(cases) // 2), min(2, len(cases)), sharey=True, sharex=True, squeeze=False).flat
    for axis, case in zip(axes, cases, strict=False):
        for shift, provider in enumerate(PROVIDERS):
            own = select(found, case=case, provider=provider.name)
            heights = [-events.index(row.mode) - 0.25 * shift for row in own]
            plots.bars(axis, own, heights, plots.COLOURS[provider.name], plots.LABELS[provider.name])
            if floor := _floor(rows, case, provider):
                axis.axvline(floor, color=plots.COLOURS[provider.name], linewidth=1, linestyle=":")
        axis.axvline(1, color=plots.INK, linewidth=0.6)
        axis.set_title(case)
        axis.set_xlabel("call's time / as built")
        axis.set_yticks([-index for index in range(len(events))], events)
    axes[0].legend(frameon=False, fontsize=8)


def _floor(rows: Sequence[Row], case: str, provider: Provider) -> float | None:
    """Over the time of the layer as built."""
    floor = select(rows, metric="time", case=case, provider=floors.FLOOR)
    built = select(rows, metric="time", case=case, provider=provider.name, mode=BUILT)
    return floor[0].p50 / built[0].p50 if floor and built else None


def _table(rows: Sequence[Row]) -> Table:
    lines = []
    timed = (row for row in select(rows, metric="time") if row.provider != floors.FLOOR)
    for case, name, event in dict.fromkeys((row.case, row.provider, row.mode) for row in timed):
        by = {row.metric: row for row in select(rows, case=case, provider=name, mode=event)}
        counts = [f"{by[metric].p50:.0f}" for metric in ("storages", "warnings")]
        ratio, peak = by.get("time_ratio"), by.get("bytes_peak")
        cells = [f"{by['bytes_behind'].p50:.2f}", f"{by['time'].p50:.3f}", _spread(ratio) if ratio else "-"]
        cells += [_spread(by["first_call"]), f"{peak.p50 / 2**20:.1f}" if peak else "-"]
        lines.append([case, plots.LABELS[name], event, *counts, *cells])
    header = ("case", "layers", "what happened", "storages", "warnings", "bytes behind / weights", "ms", "/ as built")
    return Table([*header, "first call / second", "peak, MiB"], lines, "Weights in memory, and calls in inference.")
