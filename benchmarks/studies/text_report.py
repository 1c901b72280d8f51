"""The text study's section of the report, from the rows alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from .. import panels, plots
from ..measure import quartiles
from ..models import TEXT_MODELS
from ..record import Row
from .base import Figure, Section, Table, Text, remarks, select
from .claims import finals, half_width, paired, times
from .text_claims import QUOTED, model_of, rates

NAMES = {
    "published": "the movie-review phrases, as claim 1 was measured",
    "shuffled": "the same, batches shuffled: one epoch",
    "sound": "the movie-review phrases, as claim 1 should be measured",
    "phrases": "the movie-review phrases",
    "polarity": "the positive and negative texts",
    "grammar": "the built-in grammar",
}
SWEPT = ("BiRNN", "TextCNN")


def section(rows: Sequence[Row]) -> Section:
    own_rows = select(rows, study="text")
    blocks: list = [
        Text(
            "Seeded; Adam; gradients clipped at norm 1; batches of one length, shuffled, what fills none "
            "gathered into padded ones. Runs train epoch by epoch in turn, "
            "on the same batches; torch's twin of a fused model starts from the same weights and draws the same "
            "dropout. Time is of the training steps alone: "
            "no evaluation, no batching. The validation part chooses the epoch whose weights are tested, once; on real "
            "text it halves the rate after two epochs without a better accuracy and ends a run after five. A run ends "
            "early, too, once nothing is left to learn. Every model's tables start from the same word vectors and are "
            "trained. Learning curves are of the validation part, accuracies in tables of the test part."
        )
    ]
    for corpus, name in NAMES.items():
        part = [row for row in own_rows if row.case.partition("/")[0] == corpus]
        name += _share(part)
        if select(part, metric="epoch_time"):
            base = [row for row in part if row.case.partition("/")[2] in TEXT_MODELS]
            blocks += [Text(f"**On {name}.**"), *figures(f"text-{corpus}", name, base), *_losses(corpus, base)]
            blocks += [*_zoo(corpus, name, part), table(part, name), *_quoted(corpus, part), *_costs(part, name)]
    return Section(
        "Text: recurrent and convolutional models in training",
        "Which trains faster, and which ends more accurate?",
        [*blocks, *_sweep(own_rows), *_reasons(own_rows), *remarks(rows, "text")],
    )


def _share(rows: Sequence[Row]) -> str:
    """What a caption has to say where time forbade to train on everything."""
    told = (re.match(r"Trained on (\d+) of (\d+) examples", row.note) for row in select(rows, metric="note"))
    for found in filter(None, told):
        if found[1] != found[2]:
            return f" ({int(found[1]):,} of {int(found[2]):,} examples to train on)"
    return ""


def figures(prefix: str, name: str, rows: Sequence[Row]) -> list[Figure]:
    best = max((row for row in select(rows, metric="accuracy") if row.epoch > 0), key=lambda row: row.p50)
    fastest = min(select(rows, metric="epoch_time"), key=lambda row: row.p50)
    figures = [
        Figure(
            f"{prefix}-learning",
            plots.drawn(plots.learning, rows),
            f"Which model learns faster, by epochs and by seconds? Highest on {name}: {_model(best)}, "
            f"{100 * best.p50:.1f} % at epoch {best.epoch}. Pale lines: further seeds.",
        ),
        Figure(
            f"{prefix}-epoch",
            plots.drawn(plots.epoch_seconds, rows),
            f"How long is an epoch of training? Shortest: {_model(fastest)} with "
            f"{plots.LABELS[fastest.provider]}, {fastest.p50:.2f} s.",
        ),
    ]
    if select(rows, metric="accuracy_at_gap"):
        caption = (
            "Who uses a cue that is farther away than a window? Accuracy by the number of words between, mean of seeds."
        )
        figures.append(Figure(f"{prefix}-distance", plots.drawn(plots.cue_distance, rows), caption))
    return figures


def _model(row: Row) -> str:
    return row.case.rpartition("/")[2]


def table(rows: Sequence[Row], name: str) -> Table:
    lines = []
    counts = {
        (row.case, row.metric): row.p50 for row in rows if row.metric.startswith(("parameters", "products", "serial"))
    }
    for case, provider in dict.fromkeys((row.case, row.provider) for row in select(rows, metric="epoch_time")):
        seconds = list(times(rows, case, provider).values())
        steps = select(rows, metric="epoch_time", case=case, provider=provider)
        rates = [row.n / row.p50 for row in steps]
        ends = finals(rows, case, provider)
        half, over = half_width(ends)
        ratio = paired(rows, (case, "nn"), (case, provider)) if provider == "fusedrnn" else []
        p25, p50, p75 = quartiles(seconds)
        lines.append(
            [
                case.rpartition("/")[2],
                "attention" if "Attention" in case else plots.LABELS[provider],
                f"{counts.get((case, 'parameters'), 0):,.0f}",
                f"{counts.get((case, 'products'), 0):,.0f}",
                f"{p50:.2f} ({p25:.2f}-{p75:.2f})",
                f"{quartiles(rates)[1]:.0f}",
                "{1:.2f} ({0:.2f}-{2:.2f})".format(*quartiles(ratio)) if ratio else "-",
                f"{100 * sum(row.p50 for row in ends) / len(ends):.1f} ± {100 * half:.1f} ({over})",
                str(max(row.epoch for row in ends)),
            ]
        )
    header = (
        "model",
        "layers",
        "parameters",
        "products a sentence",
        "s an epoch",
        "steps/s",
        "nn / fused",
        "accuracy, %",
        "epochs",
    )
    return Table(
        header,
        lines,
        f"On {name}: parameters without embeddings; times as medians with quartiles over epochs; 95 % intervals.",
    )


def _losses(corpus: str, rows: Sequence[Row]) -> list[Figure]:
    """Curves, where there are some."""
    found = _curves(rows)
    if not any(len(points) > 1 for points in found.values()):
        return []
    least = min(found, key=lambda name: found[name][-1][2])
    caption = (
        "How far does the loss on the training part fall? Means over an epoch's steps, while the weights change; "
        f"bands: all seeds. Lowest after its last epoch: {least}, {found[least][-1][2]:.3f} nats."
    )
    return [Figure(f"text-{corpus}-loss", plots.drawn(_draw_losses, rows), caption)]


def _curves(rows: Sequence[Row]) -> dict[str, list[tuple[float, float, float, float]]]:
    """By model: epoch; least, mean and largest training loss of all seeds."""
    found = {}
    for case in dict.fromkeys(row.case for row in select(rows, metric="loss")):
        corpus, _, name = case.partition("/")
        _, provider = model_of(rows, corpus, name)
        by_epoch: dict[int, list[float]] = {}
        for row in select(rows, metric="loss", case=case, provider=provider):
            by_epoch.setdefault(row.epoch, []).append(row.p50)
        found[name] = [(epoch, min(all_), sum(all_) / len(all_), max(all_)) for epoch, all_ in sorted(by_epoch.items())]
    return found


def _draw_losses(figure: Any, rows: Sequence[Row]) -> None:
    lines = [
        panels.Line(name, points, panels.PALETTE[index % 6])
        for index, (name, points) in enumerate(_curves(rows).items())
    ]
    panels.draw(figure, [panels.Panel("", "epoch", "training loss, nats", lines, 0, 0)])


def _zoo(corpus: str, name: str, rows: Sequence[Row]) -> list[Figure]:
    """All models where there are more than the four of claims 1 and 2."""
    if {row.case.partition("/")[2] for row in select(rows, metric="epoch_time")} <= TEXT_MODELS.keys():
        return []
    points = _points(rows)
    best = max(points, key=lambda model: points[model][2])
    caption = (
        f"What does an epoch's time buy on {name}? Accuracy on the test part against the seconds of a training epoch; "
        f"bars: 95 % intervals. Most accurate: {best}, {100 * points[best][2]:.1f} % at {points[best][0]:.2f} s."
    )
    return [Figure(f"text-{corpus}-models", plots.drawn(_draw_zoo, rows), caption)]


def _points(rows: Sequence[Row]) -> dict[str, tuple[float, float, float, float]]:
    """By model: median seconds of an epoch, and accuracy with its interval."""
    found = {}
    for case in dict.fromkeys(row.case for row in select(rows, metric="epoch_time")):
        name = case.partition("/")[2]
        _, provider = model_of(rows, case.partition("/")[0], name)
        ends = finals(rows, case, provider)
        seconds = quartiles(list(times(rows, case, provider).values()))[1]
        middle, (half, _) = sum(row.p50 for row in ends) / len(ends), half_width(ends)
        found[name] = (seconds, middle - half, middle, middle + half)
    return found


def _draw_zoo(figure: Any, rows: Sequence[Row]) -> None:
    markers = "osD^vP"
    lines = [
        panels.Line(name, [point], panels.PALETTE[index % 6], " ", markers[index // 6])
        for index, (name, point) in enumerate(_points(rows).items())
    ]
    panels.draw(figure, [panels.Panel("", "seconds of training an epoch", "test accuracy", lines, 2, 0)], height=4.5)


def _quoted(corpus: str, rows: Sequence[Row]) -> list[Table]:
    """The accuracies that claim 1 came with, beside those measured."""
    if corpus not in ("published", "shuffled"):
        return []
    lines = []
    for name, quoted in QUOTED.items():
        case, provider = model_of(rows, corpus, name)
        here = {row.epoch: row.p50 for row in select(rows, metric="accuracy", case=case, provider=provider, seed=0)}
        whole = list(times(rows, case, provider, "epoch_time_whole").values())
        cells = [f"{100 * here[epoch]:.2f} ({value:.2f})" if epoch in here else "-" for epoch, value in quoted.items()]
        lines.append([name, *cells, f"{quartiles(whole)[1]:.2f}" if whole else "-"])
    header = ("model", *(f"epoch {epoch}" for epoch in QUOTED["RNN"]), "s an epoch, batching and evaluation included")
    return [Table(header, lines, "Held-out accuracy in percent, in brackets as quoted (on other word vectors).")]


def _costs(rows: Sequence[Row], name: str) -> list[Table]:
    """Counts from the layers."""
    metrics = ("parameters", "products_a_step", "flop", "bytes", "serial_products")
    found = {(row.case, row.metric): row for row in rows if row.metric in metrics}
    cases = dict.fromkeys(case for case, metric in found if metric == "flop")
    lines = [
        [case.partition("/")[2], *(f"{found[case, metric].p50:,.0f}" for metric in metrics)]
        for case in cases
        if all((case, metric) in found for metric in metrics)
    ]
    header = ("model", "parameters", "products a further word", "FLOP", "bytes", "products one after another")
    steps = next(iter(found.values())).T if found else 0
    caption = (
        f"What a forward pass of one sentence of {steps} words costs on {name}, counted from the layers: parameters "
        "without embeddings; FLOP of the matrix products; bytes if every weight, and every layer's input and output, "
        "moves once in float32."
    )
    return [Table(header, lines, caption)] if lines else []


def _sweep(rows: Sequence[Row]) -> list[Figure]:
    found = {name: rates(rows, name) for name in SWEPT}
    if not all(found.values()):
        return []
    best = "; ".join(f"{name}: {max(of, key=of.__getitem__):g}" for name, of in found.items())
    caption = f"Which model takes larger steps? Test accuracy by learning rate, one seed. Best rates: {best}."
    return [Figure("text-rates", plots.drawn(_draw_sweep, rows), caption)]


def _draw_sweep(figure: Any, rows: Sequence[Row]) -> None:
    lines = [
        panels.Line(name, [(rate, y, y, y) for rate, y in sorted(rates(rows, name).items())], panels.PALETTE[index])
        for index, name in enumerate(SWEPT)
    ]
    panels.draw(figure, [panels.Panel("", "learning rate", "test accuracy", lines, 10, 0)])


def _reasons(rows: Sequence[Row]) -> list[Table]:
    found = select(rows, case="reasons", metric="time_ratio")
    lines = [(row.unit, str(row.T), f"{row.p50:.2f} ({row.p25:.2f}-{row.p75:.2f})") for row in found]
    caption = (
        "Why the RNN is fast, one ablation a line: ratios of a training step's time on random phrases over a table of "
        "the movie reviews' size. CNN2-few has 16 filters in all, CNN2-single one embedding; the loop is fusedrnn's "
        "reference, torch's operations step by step."
    )
    return [Table(("time of / time of", "words", "ratio"), lines, caption)] if lines else []
