"""The text study's section of the report, from the rows alone."""

from __future__ import annotations

from collections.abc import Sequence

from .. import plots
from ..measure import quartiles
from ..record import Row
from .base import Figure, Section, Table, Text, remarks, select
from .claims import finals, half_width, paired, times

NAMES = {"grammar": "the built-in grammar", "phrases": "the movie-review phrases"}


def section(rows: Sequence[Row]) -> Section:
    own = select(rows, study="text")
    blocks: list = [
        Text(
            "Seeded; Adam; gradients clipped at norm 1; batches of one length, shuffled, what fills none "
            "gathered into padded ones. Runs train epoch by epoch in turn, "
            "on the same batches; torch's twin of a fused model starts from the same weights and draws the same "
            "dropout. Time is of the training steps alone: "
            "no evaluation, no batching. A run ends early once nothing is left to learn."
        )
    ]
    for corpus, name in NAMES.items():
        part = [row for row in own if row.case.partition("/")[0] == corpus]
        if select(part, metric="epoch_time"):
            blocks += [Text(f"**On {name}.**"), *figures(f"text-{corpus}", name, part), table(part, name)]
    return Section(
        "Text: recurrent and convolutional models in training",
        "Which trains faster, and which ends more accurate?",
        [*blocks, *remarks(rows, "text")],
    )


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
                plots.LABELS[provider],
                f"{counts.get((case.removesuffix('-last'), 'parameters'), 0):,.0f}",
                f"{counts.get((case.removesuffix('-last'), 'products'), 0):,.0f}",
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
