"""Fused layers against torch's, layer by layer.

Question: how much faster is a fused layer than nn's, where, and at what memory? Hypothesis: faster wherever the
product of a step is too small to fill the machine, that is at small H and B, and never slower. Refuted by: no case
clearly faster; a case with nn / fused below 0.95, and its upper quartile below 1, makes it "depends".
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch

from .. import bands, floors, plots
from ..cases import BASE, MODES, SLOWER, Case, kernel_grid
from ..measure import alternate, gate, kept_bytes, ratios
from ..peak import peak_bytes
from ..providers import FUSED, NN, Call, inputs, twin
from ..record import Row, measured, remark
from .base import (
    CONFIRMED,
    DEPENDS,
    REFUTED,
    SPENT,
    UNDECIDED,
    Context,
    Figure,
    Section,
    Table,
    Text,
    Verdict,
    remarks,
    select,
)

STUDY = "kernels"
PROVIDERS = (FUSED, NN)
PEAK_FROM_BYTES = 8 << 20
"""Peak memory is taken from this size of the output on: resident sizes are known to some megabytes only."""
ROUNDS = {"quick": 3, "default": 5, "full": 15}


def run(ctx: Context) -> None:
    """Gates (and so warms) every case, then times them while the budget lasts; what does not fit is recorded."""
    threads = torch.get_num_threads()
    gating = ctx.budget.share(0.35)
    reasons: dict[Case, str | None] = {}
    left = ctx.unfinished(STUDY, {case.name: case for case in kernel_grid(ctx.effort)})
    for case in left.values():
        if reasons and gating.left <= 0:
            break
        ctx.progress.show(f"gate {case.name}")
        reasons[case] = gate(FUSED, case)
    for case, seconds in ctx.todo(STUDY, {case.name: case for case in reasons}):
        if reason := reasons[case]:
            ctx.recorder.add(remark(STUDY, "failed", reason, case, provider=FUSED.name, threads=threads))
        _case(ctx, case, [NN] if reason else list(PROVIDERS), seconds, threads)
    for case in left.values():
        if case not in reasons:
            ctx.skip(STUDY, case.name, SPENT)


def _case(ctx: Context, case: Case, providers: list, seconds: float, threads: int) -> None:
    layer, data = twin(case), inputs(case)
    # a layer of its own for each: sharing weights would let one provider's step warm the other's caches
    calls = {p.name: Call(p, p.build(case, copy.deepcopy(layer)), data) for p in providers}
    for mode, share in zip(MODES, (0.25, 0.6), strict=True):
        ctx.progress.show(f"{mode} {case.name}")
        samples = alternate(
            {name: getattr(call, mode) for name, call in calls.items()}, seconds * share, min_rounds=ROUNDS[ctx.effort]
        )
        for name, call in calls.items():
            note = call.backend(mode) if name == FUSED.name else ""
            milliseconds = [1e3 * s for s in samples[name]]
            ctx.recorder.add(
                measured(STUDY, "time", "ms", milliseconds, case, provider=name, mode=mode, threads=threads, note=note)
            )
        if len(calls) == 2:
            paired = ratios(samples[NN.name], samples[FUSED.name])
            ctx.recorder.add(
                measured(STUDY, "speedup", "nn/fusedrnn", paired, case, provider=FUSED.name, mode=mode, threads=threads)
            )
        floors.add(STUDY, ctx.recorder, case, mode, threads)
    where = {"mode": "train", "threads": threads}
    for name, call in calls.items():
        kept = [kept_bytes(call)]
        ctx.recorder.add(measured(STUDY, "bytes_kept", "bytes", kept, case, provider=name, **where))
    if case.output_bytes < PEAK_FROM_BYTES:
        return
    ctx.progress.show(f"peak memory {case.name}")
    for name, peak in peak_bytes(providers, case).items():
        if isinstance(peak, int):
            ctx.recorder.add(measured(STUDY, "bytes_peak", "bytes", [peak], case, provider=name, **where))
        else:
            ctx.recorder.add(remark(STUDY, "skipped", f"peak memory: {peak}", case, provider=name, **where))


def verdicts(rows: Sequence[Row]) -> list[Verdict]:
    found = select(rows, study=STUDY, metric="speedup")
    claim = "A fused layer is never slower than torch's, and faster where the product of one step is small."
    if not found:
        return [Verdict(claim, "nothing", UNDECIDED, "no case passed its gate within the budget")]
    slower = [row for row in found if row.p50 < SLOWER and row.p75 < 1]
    unclear = [row for row in found if row.p50 < SLOWER and row not in slower]  # too noisy to call slower, or not
    faster = [row for row in found if row.p25 > 1]
    low, high = min(found, key=lambda row: row.p50), max(found, key=lambda row: row.p50)
    text = (
        f"{len(faster)} of {len(found)} measurements faster, {len(slower)} slower; nn / fused from {low.p50:.2f} "
        f"({low.mode}, {low.case}) to {high.p50:.2f} ({high.mode}, {high.case})"
    )
    if not slower and not unclear and len(faster) > len(found) / 2:
        return [Verdict(claim, text, CONFIRMED, f"no case below {SLOWER} of torch's speed")]
    if faster:
        names = "; ".join(f"{row.mode} {row.case} ({row.p50:.2f})" for row in (slower or unclear)[:4])
        why = (
            f"{'slower' if slower else 'too noisy to tell'} at {names}" if names else "too few cases are clearly faster"
        )
        return [Verdict(claim, text, DEPENDS, why)]
    return [Verdict(claim, text, REFUTED, "no case is clearly faster")]


def section(rows: Sequence[Row]) -> Section:
    own = select(rows, study=STUDY)
    blocks: list = [
        Text(
            "Outputs and every gradient of a fused layer are compared with torch's layer in float64 before "
            "anything is timed: an error may be "
            "twice torch's own in the same number format. Calls alternate; a ratio is the median over pairs, "
            "with quartiles. `infer` is forward under "
            "`no_grad`; `train` is zeroing gradients, forward and backward, the input's gradient included."
        )
    ]
    figures = (
        ("kernels-scaling", plots.scaling, "How does a training step grow with H, T and B?", _scaling_answer),
        ("kernels-speedup", plots.speedups, "Where are fused layers faster?", _speedup_answer),
        ("kernels-memory", plots.kept_bytes, "What waits for backward?", _memory_answer),
    )
    for name, draw, question, answer in figures:
        text = answer(own)
        if text:
            blocks.append(Figure(name, plots.drawn(draw, own), f"{question} {text}"))
    blocks += [_table(own), *remarks(rows, STUDY)]
    return Section(
        "Kernels: fused layers against torch's", "How much faster is a fused layer, where, and at what memory?", blocks
    )


def _scaling_answer(rows: Sequence[Row]) -> str:
    if not select(rows, metric="time", provider=NN.name, mode="train") or not (floor := floors.told(rows)):
        return ""
    return (
        f"Base case T {BASE['T']}, B {BASE['B']}, H {BASE['H']}, one size varied at a time (I = H in the first "
        f"column). Bands: {bands.told(select(rows, metric='time', mode='train'))}. {floor}"
    )


def _speedup_answer(rows: Sequence[Row]) -> str:
    found = select(rows, metric="speedup")
    if not found:
        return ""
    best = max(found, key=lambda row: row.p50)
    most = f"most at {best.case}, {best.mode}: {best.p50:.1f} times"
    return f"Right of the line they are; {most}. Bars, of paired ratios: {bands.told(found)}."


def _memory_answer(rows: Sequence[Row]) -> str:
    kept = {(row.case, row.provider): row.p50 for row in select(rows, metric="bytes_kept")}
    shares = [
        kept[case, FUSED.name] / value
        for (case, name), value in kept.items()
        if name == NN.name and value and (case, FUSED.name) in kept
    ]
    if not shares:
        return ""
    return (
        f"Bytes saved from forward to backward, beyond input, weights and output: fused {min(shares):.2f} to "
        f"{max(shares):.2f} of torch's (0: an RNN saves its output alone). The table's peak is what the system "
        "saw of a "
        "fresh process over two training steps, taken for the largest outputs."
    )


def _table(rows: Sequence[Row]) -> Table:
    by = {(row.case, row.provider, row.mode, row.metric): row for row in rows}
    lines = []
    for case in dict.fromkeys(row.case for row in rows if row.metric == "time"):
        cells = [case]
        for mode in MODES:
            ratio = by.get((case, FUSED.name, mode, "speedup"))
            for name in (NN.name, FUSED.name, floors.FLOOR):
                row = by.get((case, name, mode, "time"))
                cells.append(_ms(row.p50) if row else "-")
            cells.append(f"{ratio.p50:.2f} ({ratio.p25:.2f}-{ratio.p75:.2f})" if ratio else "-")
        for metric in ("bytes_kept", "bytes_peak"):
            pair = [by.get((case, name, "train", metric)) for name in (NN.name, FUSED.name)]
            cells.append(" / ".join(f"{row.p50 / 2**20:.1f}" if row else "-" for row in pair))
        lines.append(cells)
    header = [
        "case",
        *(f"{mode}: {name}" for mode in MODES for name in ("nn, ms", "fused, ms", "floor, ms", "nn / fused")),
        "kept, MiB",
        "peak, MiB",
    ]
    return Table(header, lines, "Median time a call; ratios are medians of pairs with quartiles; memory as nn / fused.")


def _ms(value: float) -> str:
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 100 else f"{value:.0f}"
