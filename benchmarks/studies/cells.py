"""RNN, GRU and LSTM, in one direction and in both, on the Gaussian series: at equal width and at equal parameters.

Question: what do gates and a second direction cost in parameters, time and memory, and what do they gain in accuracy?
Hypothesis: that of claim 3. Refuted by: parameters or times outside the quoted ranges; for the second part, an accuracy
that both directions do not lift, or that the choice of cell moves as much.

As published: 1,000 series a class, 80/20 split, batches of 32, Adam at 0.01, the rate halved where held-out accuracy
stalls for two epochs, 10 epochs; out[:, -1] is classified, where the reverse direction has read one step only (models
named "-last"). As it should be: both final states. Gradients are clipped at norm 1, and 2,000 fresh series a class
are added to the 400 held out, whose own interval would be over a point wide. Each is also trained at the width whose
parameters come nearest those of the GRU ("-equal").
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from .. import data, panels, plots
from ..cases import GATES, Case
from ..measure import gates, kept_bytes, quartiles
from ..models import SeriesClassifier
from ..providers import FUSED, NN, Call, inputs, twin
from ..record import Row, measured, remark
from ..training import Example, Run
from .base import (
    CONFIRMED,
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
from .claims import (
    EPOCHS_TO_JUDGE,
    FASTER_BY_A_FIFTH,
    PROVIDERS,
    at_most,
    difference,
    finals,
    half_width,
    learned,
    own,
    paired,
    trains_alike,
)
from .contest import Job, Plan, Task, arithmetic, train
from .text_report import figures, table

STUDY = "cells"
DEVICES = ("cpu", "cuda")
CORPUS = "series"
CELLS = ("LSTM", "GRU", "RNN")
HIDDEN = 128
PLAN = Plan(32, 0.01, {"quick": 1, "default": 10, "full": 10}, 1600, all_seeds=False, plateau=True)
SERIES = 1000  # a class, four fifths of them to train on
FRESH = 2000  # a class
FEWER = (0.70, 0.75)  # the GRU's parameters over the LSTM's
DOUBLE = (1.8, 2.2)
READOUTS = {"": "both final states", "-last": "as published", "-equal": "at equal parameters"}


def name_of(cell: str, directions: int, ending: str = "") -> str:
    return ("Bi" if directions == 2 else "") + cell + ending


def width(cell: str, directions: int) -> int:
    """The width whose layer has nearest as many parameters as the GRU of the common width in one direction."""

    def parameters(cell: str, directions: int, hidden: int) -> int:
        return directions * GATES[cell.lower()] * hidden * (hidden + 3)  # of the state, the input and two biases

    wanted = parameters("GRU", 1, HIDDEN)
    return min(range(1, 3 * HIDDEN), key=lambda hidden: abs(parameters(cell, directions, hidden) - wanted))


def models() -> dict[str, tuple[str, int, int, str]]:
    """Cell, directions, width and readout by name; the GRU in one direction is its own equal."""
    found = {}
    for directions in (1, 2):
        for cell in CELLS:
            found[name_of(cell, directions)] = (cell, directions, HIDDEN, "final")
            if directions == 2:
                found[name_of(cell, 2, "-last")] = (cell, 2, HIDDEN, "last")
            if (cell, directions) != ("GRU", 1):
                found[name_of(cell, directions, "-equal")] = (cell, directions, width(cell, directions), "final")
    return found


def run(ctx: Context) -> None:
    for _ in ctx.todo(STUDY, {"training": None}):
        _run(ctx)


def _run(ctx: Context) -> None:
    ctx.note(STUDY, CORPUS, f"Gaussian series: T {data.SERIES_T}, I 1; class 0 N(0.5, 1), class 1 N(-0.5, 1.2).")
    ctx.recorder.add(measured(STUDY, "bayes_accuracy", "", [data.bayes_accuracy()], f"{CORPUS}/Bayes"))
    jobs = []
    for name, (cell, directions, hidden, readout) in models().items():
        refused = _layer(ctx, name, cell, directions, hidden)
        ours = NN.name if refused else FUSED.name
        build = partial(SeriesClassifier, cell, directions, hidden, readout)
        jobs.append(Job(name, ours, partial(build, ours)))
        if not (refused or name.endswith(("-last", "-equal"))):
            jobs.append(Job(name, NN.name, partial(build, NN.name), twin=True))
        arithmetic(ctx, STUDY, f"{CORPUS}/{name}", build(NN.name), data.SERIES_T, 1)
    x, labels = data.series(SERIES, seed=0)
    count = 4 * len(x) // 5
    fresh = data.series(FRESH // 8 if ctx.effort == "quick" else FRESH, seed=1)
    test = [*_batches(x[count:], labels[count:]), *_batches(*fresh)]

    def epoch(wanted: int, seed: int, number: int) -> list[Example]:
        order = torch.randperm(wanted, generator=torch.Generator().manual_seed(1000 * seed + number))
        return [((x[rows],), labels[rows]) for rows in order.split(PLAN.batch)]

    def training(wanted: int) -> Callable[[int, int], list[Example]]:
        ctx.note(
            STUDY,
            CORPUS,
            f"Trained on {wanted} of {count} series, tested on the {len(x) - count} held out and {len(fresh[0])} fresh "
            "ones.",
        )
        return partial(epoch, wanted)

    def finished(run_: Run) -> None:
        held_out = run_.epochs[-1].correct[: len(x) - count].double().mean().item()
        where = {"provider": run_.provider, "seed": run_.seed, "epoch": len(run_.epochs)}
        row = Row(STUDY, f"{CORPUS}/{run_.name}", "accuracy_held_out", "", held_out, n=len(x) - count, **where)
        ctx.recorder.add(row)

    pilot = epoch(count, 9, 0)[:10]
    train(ctx, Task(STUDY, CORPUS, PLAN, jobs, pilot, count, training, test, finished), ctx.budget)


def _batches(x: Tensor, labels: Tensor, size: int = 256) -> list[Example]:
    return [((x[i : i + size],), labels[i : i + size]) for i in range(0, len(x), size)]


def _layer(ctx: Context, name: str, cell: str, directions: int, hidden: int) -> bool:
    """Gates the fused layer, records what each keeps for backward; whether the gate refused."""
    case = Case(cell.lower(), data.SERIES_T, PLAN.batch, 1, hidden, D=directions, batch_first=True)
    ctx.progress.show(f"gate {case.name}")
    reason = gates([FUSED], case, device=ctx.device)[FUSED.name]
    if reason:
        ctx.recorder.add(remark(STUDY, "failed", reason, f"{CORPUS}/{name}", provider=FUSED.name))
    for provider in (NN,) if reason else (NN, FUSED):
        layer = provider.build(case, twin(case)).to(ctx.device)
        kept = kept_bytes(Call(provider, layer, inputs(case).to(ctx.device)))
        ctx.recorder.add(
            measured(STUDY, "bytes_kept", "bytes", [kept], f"{CORPUS}/{name}", provider=provider.name, mode="train")
        )
    return reason is not None


def verdicts(rows: Sequence[Row]) -> list[Verdict]:
    rows = select(rows, study=STUDY)
    return [trains_alike(rows), _costs(rows), _directions(rows)] if rows else [_costs(rows), _directions(rows)]


def _costs(rows: Sequence[Row]) -> Verdict:
    claim = (
        "3. At equal width GRU has 25 to 30 % fewer parameters than LSTM and trains 20 to 25 % faster; "
        "bidirectional doubles both."
    )
    count = {row.case: row.p50 for row in select(rows, metric="parameters_encoder")}
    if not count:
        return judge(claim, [Finding(UNDECIDED, "not measured")])
    share = count["series/GRU"] / count["series/LSTM"]
    double = {count[f"series/Bi{cell}"] / count[f"series/{cell}"] for cell in ("GRU", "LSTM")}
    findings = [
        Finding(
            CONFIRMED if FEWER[0] <= share <= FEWER[1] else REFUTED,
            f"GRU / LSTM parameters {share:.2f}",
            "parameters, GRU",
        ),
        Finding(
            CONFIRMED if double == {2.0} else REFUTED, "both directions: twice the parameters", "parameters, directions"
        ),
        *(
            at_most(rows, ("series/GRU", name), ("series/LSTM", name), FASTER_BY_A_FIFTH, f"GRU / LSTM, {label} layers")
            for name, label in PROVIDERS
        ),
    ]
    for cell in ("GRU", "LSTM"):
        for name, label in PROVIDERS:
            found = paired(rows, (f"series/Bi{cell}", name), (f"series/{cell}", name))
            if len(found) >= 2:
                p25, p50, p75 = quartiles(found)
                verdict = CONFIRMED if DOUBLE[0] <= p50 <= DOUBLE[1] else REFUTED
                told = f"Bi{cell} / {cell}, {label} layers: {p50:.2f} ({p25:.2f}-{p75:.2f})"
                findings.append(Finding(verdict, told, f"time, Bi{cell}, {label}"))
    return judge(claim, findings)


def _directions(rows: Sequence[Row]) -> Verdict:
    claim = (
        "3b. Both directions matter more for accuracy than the choice of cell "
        "(quoted: LSTM 92.1, BiLSTM 93.8, GRU 91.5, BiGRU 93.6 %)."
    )
    findings = [_matter_more(rows, ending, label) for ending, label in READOUTS.items()]
    if bayes := select(rows, metric="bayes_accuracy"):
        first = findings[0]
        told = f"{first.measured}; best possible {100 * bayes[0].p50:.2f} %"
        findings[0] = first._replace(measured=told, why=first.why or first.measured)
    return judge(claim, findings)


def _matter_more(rows: Sequence[Row], ending: str, label: str) -> Finding:
    """Undecided: too few epochs, or every difference within its 95 % interval. Confirmed: the second direction lifts
    every cell beyond its interval, and its largest change is above the cells'. Refuted: any other."""

    def end(cell: str, directions: int) -> list[Row]:
        alone = directions == 1 and (ending == "-last" or cell == "GRU")
        case = f"{CORPUS}/{name_of(cell, directions, '' if alone else ending)}"
        return finals(rows, case, own(rows, case))

    ends = {(cell, directions): end(cell, directions) for cell in CELLS for directions in (1, 2)}
    if not all(map(learned, ends.values())):
        return Finding(UNDECIDED, f"{label}: not all were trained for {EPOCHS_TO_JUDGE} epochs")
    lifts = [difference(ends[cell, 2], ends[cell, 1]) for cell in CELLS]
    choices = [difference(ends[a, ways], ends[b, ways]) for ways in (1, 2) for a, b in combinations(CELLS, 2)]
    gain, choice = (max(abs(mean) for mean, _ in pairs) for pairs in (lifts, choices))
    accuracies = ", ".join(f"{name_of(*key)} {100 * _mean(found):.1f} %" for key, found in ends.items())
    why = f"{label}: directions change at most {100 * gain:.1f} points, the cell {100 * choice:.1f}"
    if not any(abs(mean) > half for mean, half in lifts + choices):
        return Finding(UNDECIDED, f"{label}: {accuracies}", f"{why}, all within their 95 % intervals")
    confirmed = all(mean > half for mean, half in lifts) and gain > choice
    return Finding(CONFIRMED if confirmed else REFUTED, f"{label}: {accuracies}", why)


def _mean(found: Iterable[Row]) -> float:
    values = [row.p50 for row in found]
    return sum(values) / len(values)


def section(rows: Sequence[Row]) -> Section:
    mine = select(rows, study=STUDY)
    blocks: list = [
        Text(
            "Names: `-last` classifies out[:, -1] as published, where the reverse direction has read one step; all "
            "others both final states; `-equal` has about the parameters of the GRU. Batches of 32, Adam at 0.01, the "
            "rate halved where accuracy stalls. The best possible accuracy is exact: the likelihood ratio of this data "
            "is a threshold on the sum of (x - c)^2, which is noncentral chi-square in either class."
        )
    ]
    if select(mine, metric="accuracy"):
        caption = (
            "What do parameters buy? Held-out accuracy after the last epoch, with 95 % intervals; the dashed line is "
            f"the best possible. {_answer(mine)}"
        )
        blocks += [
            Figure("cells-parameters", plots.drawn(_figure, mine), caption),
            *figures(CORPUS, "the Gaussian series", [row for row in mine if not row.case.endswith("-equal")]),
            table(mine, "the Gaussian series"),
            _memory(mine),
        ]
    return Section(
        "Cells: gates, directions, and what they buy",
        "What do gates and a second direction cost, and what do they gain?",
        [*blocks, *remarks(rows, STUDY)],
    )


def _trained(rows: Sequence[Row]) -> dict[str, list[Row]]:
    cases = dict.fromkeys(row.case for row in select(rows, metric="accuracy"))
    return {case: finals(rows, case, own(rows, case)) for case in cases}


def _answer(rows: Sequence[Row]) -> str:
    best, found = max(_trained(rows).items(), key=lambda item: _mean(item[1]))
    return f"Highest: {best.rpartition('/')[2]}, {100 * _mean(found):.1f} % after epoch {found[0].epoch}."


def _figure(figure: Any, rows: Sequence[Row]) -> None:
    count = {row.case: row.p50 for row in select(rows, metric="parameters_encoder")}
    points: dict[str, list[tuple[float, float, float, float]]] = {}
    for case, found in _trained(rows).items():
        middle, (half, _) = _mean(found), half_width(found)
        kind = case.rpartition("/")[2].removesuffix("-equal")
        points.setdefault(kind, []).append((count[case], middle - half, middle, middle + half))
    lines = []
    for kind, where in points.items():
        colour = panels.PALETTE[next(i for i, cell in enumerate(CELLS) if cell in kind)]
        style = (" ", "^") if kind.endswith("-last") else ("-", "s") if kind.startswith("Bi") else ("--", "o")
        lines.append(panels.Line(kind, sorted(where), colour, *style))
    if bayes := select(rows, metric="bayes_accuracy"):
        lines.append(panels.level("best possible", count.values(), bayes[0].p50))
    panels.draw(figure, [panels.Panel("", "parameters of the layer", "held-out accuracy", lines, 10, 0)], height=3.8)


def _memory(rows: Sequence[Row]) -> Table:
    kept = {(row.case, row.provider): row.p50 / 2**20 for row in select(rows, metric="bytes_kept")}
    held_out = {row.case: row for row in select(rows, metric="accuracy_held_out", seed=0)}
    lines = []
    for case in dict.fromkeys(case for case, _ in kept):
        pair = " / ".join(f"{kept[case, p]:.2f}" if (case, p) in kept else "-" for p in (NN.name, FUSED.name))
        split = f"{100 * held_out[case].p50:.1f}" if case in held_out else "-"
        lines.append((case.rpartition("/")[2], pair, split))
    header = ("model", "kept a step, MiB: nn / fused", "accuracy on the 20 % held out, %")
    return Table(header, lines, "What waits for backward in a training step; accuracy as published, first seed.")
