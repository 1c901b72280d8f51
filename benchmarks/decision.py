"""The decision page of the report: recurrent or convolutional, by length, batch and latency bound, from the rows alone.

Thresholds are fixed here. What was not measured is said, with the command that measures it.
"""

from __future__ import annotations

from collections.abc import Sequence

from .cases import MODES
from .providers import FUSED, NN
from .record import Row
from .studies import kernels, providers, serving, text
from .studies.base import Section, Table, Text, decisive, select
from .studies.claims import FAR, NEAR, finals, half_width, own

EVEN = 1.1
"""Within this ratio of times, quartiles included, neither is said to be faster."""
WINDOWS, ALL_STEPS = ("textcnn", "cnn2"), ("tcn", "attention")
"""What sees a few steps, and what sees all of them as a recurrent layer does."""
BOUNDS_MS = (0.5, 1, 5, 20, 100)
NAMED = 3  # of the ways that keep within a bound


def section(rows: Sequence[Row]) -> Section | None:
    """None where nothing that decides was measured."""
    parts = [_by_shape(rows), _by_latency(rows), _by_order(rows), _by_accuracy(rows), _which_layer(rows)]
    if not any(isinstance(part, Table) for part in parts):
        return None
    lead = Text(
        f"Read it from the top: the first line that binds you decides. **Either** means within {EVEN:g} times of each "
        "other, quartiles included."
    )
    return Section("Decision: recurrent or convolutional?", "Which should I take, on this machine?", [lead, *parts])


def _missing(what: str, study: str) -> Text:
    return Text(f"{what}: not measured; `python -m benchmarks study {study}` does.")


def _by_shape(rows: Sequence[Row]) -> Text | Table:
    found = decisive(select(rows, study=providers.STUDY, metric="time_ratio"))
    lines = []
    for T, B in sorted({(row.T, row.B) for row in found}):
        cells = [
            faster([row for name in names for row in select(found, T=T, B=B, mode=mode, provider=name)])
            for names in (WINDOWS, ALL_STEPS)
            for mode in MODES
        ]
        lines.append([str(T), str(B), *cells])
    if not lines:
        return _missing("By length and batch", providers.STUDY)
    header = ("T", "B", *(f"{what}: {mode}" for what in ("a few steps decide", "all steps decide") for mode in MODES))
    caption = (
        f"By length and batch, at width {providers.WIDTH}. Where the answer lies within a few steps, windows of 2 to 5 "
        "steps (textcnn, cnn2) can take the place of a GRU; where it may lie anywhere, what sees every step can "
        "(tcn, attention)."
    )
    return Table(header, lines, caption)


def faster(rivals: Sequence[Row]) -> str:
    """Who is fastest of the fused GRU and its rivals, whose times over the GRU's these are."""
    if not rivals:
        return "-"
    best = min(rivals, key=lambda row: row.p50)
    if best.p75 * EVEN < 1:
        return f"{best.provider}, {1 / best.p50:.1f} times"
    return f"GRU, {best.p50:.1f} times" if best.p25 > EVEN else f"either ({best.provider} at {best.p50:.2f})"


def _by_latency(rows: Sequence[Row]) -> Text | Table:
    found = select(rows, study=serving.STUDY, metric="latency_p99", B=1)
    whole = sorted((row for row in found if row.mode != serving.STREAM), key=lambda row: row.p50)
    if not whole:
        return _missing("By latency bound", serving.STUDY)
    lines = []
    for bound in BOUNDS_MS:
        within = [row for row in whole if row.p50 <= bound]
        named = "; ".join(f"{_way(row)} {row.p50:.2f} ms" for row in within[:NAMED])
        further = f"; and {len(within) - NAMED} more" if len(within) > NAMED else ""
        lines.append((f"{bound:g} ms", (named or "none of those measured") + further))
    sizes = f"{whole[0].T} steps, H {whole[0].H}" if whole[0].T else "short series"
    few = f" Of {whole[0].n} calls: too few for a P99." if whole[0].n < serving.FEWEST_CALLS else ""
    return Table(("P99 at most", "soonest first"), lines, f"By latency bound: one request, {sizes}.{few}")


def _way(row: Row) -> str:
    return f"{row.case.partition(',')[0]} on {row.provider}, {row.mode}"


def _by_order(rows: Sequence[Row]) -> Text | Table:
    found = select(rows, study=text.STUDY, metric="accuracy_at_gap")
    lines = []
    for case, provider in dict.fromkeys((row.case, row.provider) for row in found):
        if provider == NN.name and select(found, case=case, provider=FUSED.name):
            continue
        sides = [select(found, case=case, provider=provider, T=gaps) for gaps in (NEAR, FAR)]
        lines.append((case.rpartition("/")[2], *map(_pooled, sides)))
    if not lines:
        return _missing("If the order of distant words decides", f"{text.STUDY}` without `--data")
    return Table(
        ("model", f"{NEAR[0]} to {NEAR[-1]} words between", f"{FAR[0]} to {FAR[-1]} words between"),
        lines,
        "If the order of words decides: accuracy on the built-in grammar, by the words between the two that matter. "
        "Half right is a guess.",
    )


def _pooled(rows: Sequence[Row]) -> str:
    """The accuracy over all of them, by how many answers each stands on."""
    count = sum(row.n for row in rows)
    return f"{100 * sum(row.p50 * row.n for row in rows) / count:.0f} %" if count else "-"


def _by_accuracy(rows: Sequence[Row]) -> Text | Table:
    mine = [row for row in select(rows, study=text.STUDY) if row.case.partition("/")[0] in text.COMPARED]
    lines = []
    for case in dict.fromkeys(row.case for row in select(mine, metric="accuracy")):
        provider = text.CONV if select(mine, metric="accuracy", case=case, provider=text.CONV) else own(mine, case)
        ends = finals(mine, case, provider)
        half, over = half_width(ends)
        mean = sum(row.p50 for row in ends) / len(ends)
        seconds = [row.p50 for row in select(mine, metric="epoch_time", case=case, provider=provider)]
        epoch = f"{sorted(seconds)[len(seconds) // 2]:.2f}" if seconds else "-"
        corpus, _, model = case.partition("/")
        lines.append((mean, (corpus, model, f"{100 * mean:.1f} ± {100 * half:.1f} ({over})", epoch)))
    if not lines:
        return _missing("By accuracy", text.STUDY)
    lines.sort(key=lambda line: (line[1][0], -line[0]))
    caption = "By accuracy, best first: on the test part, by the weights of the best epoch (`published`: of the last)."
    return Table(("data", "model", "accuracy, %", "s an epoch"), [line for _, line in lines], caption)


def _which_layer(rows: Sequence[Row]) -> Text | Table:
    found = select(rows, study=kernels.STUDY, metric="speedup")
    if not found:
        return _missing("If recurrent, on which layers", kernels.STUDY)
    slower = [row for row in found if row.p75 < kernels.SLOWER]
    least = min(found, key=lambda row: row.p50)
    told = "; ".join(f"{row.mode} {row.case}" for row in slower) or "none"
    return Text(
        f"If recurrent: fused layers. Of {len(found)} measurements, torch's layers were clearly faster in: {told}. "
        f"Least gain: {least.p50:.2f} times, {least.mode}, {least.case}."
    )
