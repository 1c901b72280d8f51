"""Figures, drawn from recorded rows alone: log2 axes, bands, labels at the lines, one colour a provider.

matplotlib is optional (extra "study"); without it `drawn` gives None and the report says so.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any

from . import bands
from .cases import CELLS, MODES, SWEEPS, Case, along, target
from .record import Row

COLOURS = {
    "fusedrnn": "#2b6fdf",
    "fusedrnn-cpu": "#2b6fdf",
    "nn": "#dd7a1c",
    "conv": "#2a9d6a",
    "reference": "#9a63c9",
    "floor": "#8a8f98",
}
LABELS = {
    "fusedrnn": "fusedrnn",
    "nn": "torch.nn",
    "conv": "convolution",
    "floor": "floor",
    "reference": "reference loop",
}
DASHES = {
    "BiRNN": "--",
    "TextCNN": "--",
    "GRU": "--",
    "BiLSTM": "-.",
    "BiGRU": ":",
    "BiLSTM-last": "-.",
    "BiGRU-last": ":",
}
INK = "#010203"  # stands for the page's own text colour until the SVG is written
STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "grid.color": "#8a8f98",
    "grid.alpha": 0.25,
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.6,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}
Label = tuple[float, float, str, str]  # x, y, provider, text
Draw = Callable[[Any, Sequence[Row]], Any]


def available() -> bool:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def drawn(draw: Draw, rows: Sequence[Row]) -> str | None:
    """The figure as an SVG that takes its text colour from the page, or None without matplotlib."""
    if not available():
        return None
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE | {"svg.hashsalt": draw.__name__ + (rows[0].case if rows else "")}):
        figure = Figure(layout="constrained")
        draw(figure, rows)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r' id="[a-z0-9A-Z.]+_\d+"', "", svg)  # matplotlib numbers every figure from 1: doubles in one page
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    return re.sub(r'width="([\d.]+)pt" height="[\d.]+pt"', r'width="100%" style="max-width:\1pt"', svg, count=1)


def standalone(svg: str) -> str:
    """A drawing as a file of its own, with ink and paper of its own."""
    return svg.replace('style="max-width', 'style="color:#1c2024;background:#fff;max-width', 1) + "\n"


def scaling(figure: Any, rows: Sequence[Row]) -> None:
    """Time of a training step against H, T and B, a row of panels for each cell."""
    found = {(row.case, row.provider): row for row in rows if row.metric == "time" and row.mode == "train"}
    figure.set_size_inches(9.2, 7.2)
    axes = figure.subplots(len(CELLS), len(SWEEPS), sharey="row", squeeze=False)
    for line, cell in zip(axes, CELLS, strict=True):
        for axis, (sweep, values) in zip(line, SWEEPS.items(), strict=True):
            for provider in ("floor", "nn", "fusedrnn"):
                points = [(value, found.get((along(sweep, value, cell).name, provider))) for value in values["full"]]
                # the floor runs into the fused line at the right: it is named where it is lowest
                label = "" if sweep != "B" else "left" if provider == "floor" else "right"
                _band(axis, [(value, row) for value, row in points if row], provider, label)
            _log2(axis, "x")
            _log2(axis, "y")
            axis.set_title(cell.upper() if sweep == "H" else "")
            axis.set_xlabel(sweep if cell == CELLS[-1] else "")
        line[0].set_ylabel("training step, ms")


def speedups(figure: Any, rows: Sequence[Row]) -> None:
    """nn / fused of every case, inference and training beside each other."""
    found = [row for row in rows if row.metric == "speedup"]
    cases = list(
        dict.fromkeys(
            row.case
            for row in sorted(found, key=lambda row: (CELLS.index(row.cell), row.D, row.L, row.H, row.T, row.B))
        )
    )
    figure.set_size_inches(9.2, 1.2 + 0.19 * len(cases))
    axes = figure.subplots(1, len(MODES), sharey=True, sharex=True)
    for axis, mode in zip(axes, MODES, strict=True):
        own = [row for row in found if row.mode == mode]
        bars(axis, own, [-cases.index(row.case) for row in own], COLOURS["fusedrnn"])
        axis.axvline(1, color=COLOURS["nn"])
        axis.set_title({"infer": "inference", "train": "training step"}[mode])
        axis.set_xlabel("torch.nn's time / fusedrnn's")
        _log2(axis, "x")
    axes[0].set_yticks(
        [-index for index in range(len(cases))], [case.removesuffix(" fp32") for case in cases], fontsize=7.5
    )


def aims(figure: Any, rows: Sequence[Row]) -> None:
    """nn / fused of the shapes of `figures`, a panel for each mode and thread count, with the ratio to reach."""
    found = [row for row in rows if row.metric == "speedup"]
    lines = list(dict.fromkeys((row.T, row.B, row.I, row.H, row.cell) for row in found))
    panels = [(mode, n) for mode in MODES for n in sorted({row.threads for row in found}, reverse=True)]
    figure.set_size_inches(9.2, 1.3 + 0.2 * len(lines))
    axes = figure.subplots(1, len(panels), sharey=True, sharex=True, squeeze=False)[0]
    for axis, (mode, threads) in zip(axes, panels, strict=True):
        own = [row for row in found if (row.mode, row.threads) == (mode, threads)]
        heights = [-lines.index((row.T, row.B, row.I, row.H, row.cell)) for row in own]
        bars(axis, own, heights, COLOURS["fusedrnn"])
        for row, y in zip(own, heights, strict=True):
            case = Case(row.cell, row.T, row.B, row.I, row.H, row.L, row.D, row.dtype)
            aim = target(case, threads, mode, row.isa)
            if aim:
                axis.plot(aim, y, "|", color=INK, markersize=8)
        axis.axvline(1, color=COLOURS["nn"])
        counted = "1 thread" if threads == 1 else f"{threads} threads"
        axis.set_title(f"{'inference' if mode == 'infer' else 'training step'}, {counted}")
        _log2(axis, "x")
    axes[0].set_yticks(
        [-index for index in range(len(lines))],
        [f"{cell.upper()}  T{T} B{B} I{I} H{H}" for T, B, I, H, cell in lines],
        fontsize=7.5,
    )
    figure.supxlabel(
        f"torch.nn's time / fusedrnn's (dot: median; bar: {bands.told(found)}); upright stroke: the ratio to reach",
        fontsize=9,
    )


def kept_bytes(figure: Any, rows: Sequence[Row]) -> None:
    """Bytes kept for backward against the bytes of the output, both providers."""
    figure.set_size_inches(9.2, 3.2)
    axes = figure.subplots(1, len(CELLS), sharey=True)
    for axis, cell in zip(axes, CELLS, strict=True):
        for provider in ("nn", "fusedrnn"):
            points = sorted(
                (row.T * row.B * row.H * row.D * row.L * 4 / 2**20, row.p50 / 2**20)
                for row in rows
                if row.metric == "bytes_kept" and row.provider == provider and row.cell == cell and row.p50
            )
            if points:
                axis.plot(*zip(*points, strict=True), "o", color=COLOURS[provider], markersize=4)
                if axis is axes[0]:
                    _label(axis, *points[-1], provider)
        axis.set_title(cell.upper())
        axis.set_xlabel("output of all layers, MiB")
        _log2(axis, "x")
        _log2(axis, "y")
    axes[0].set_ylabel("kept for backward, MiB")


def learning(figure: Any, rows: Sequence[Row]) -> None:
    """Held-out accuracy after each epoch, a line for each model, further seeds pale; the best possible where known."""
    figure.set_size_inches(9.2, 3.6)
    left, right = figure.subplots(1, 2, sharey=True)
    labels: dict[int, list[Label]] = {0: [], 1: []}
    for case, provider in _runs(rows, "accuracy"):
        own = [row for row in rows if (row.case, row.provider) == (case, provider)]
        seconds = {(row.seed, row.epoch): row.p50 for row in own if row.metric == "epoch_time"}
        model = case.rpartition("/")[2]
        for seed in sorted({row.seed for row in own if row.metric == "accuracy"}):
            line = sorted((row.epoch, row.p50) for row in own if row.metric == "accuracy" and row.seed == seed)
            times = list(itertools.accumulate(seconds.get((seed, epoch), 0.0) for epoch, _ in line))
            style = {"color": COLOURS[provider], "linestyle": DASHES.get(model, "-"), "alpha": 1 if seed == 0 else 0.3}
            left.plot([epoch for epoch, _ in line], [value for _, value in line], "o", markersize=2.5, **style)
            right.plot(times, [value for _, value in line], "o", markersize=2.5, **style)
            if seed == 0:
                labels[0].append((line[-1][0], line[-1][1], provider, model))
                labels[1].append((times[-1], line[-1][1], provider, model))
    for row in rows:
        if row.metric == "bayes_accuracy":
            for axis in (left, right):
                axis.axhline(row.p50, color=COLOURS["floor"], linewidth=0.8)
            left.annotate("best possible", (1, row.p50), (0, 3), textcoords="offset points", fontsize=8)
    left.set_ylabel("held-out accuracy")
    left.set_xlabel("epoch")
    left.xaxis.get_major_locator().set_params(integer=True)
    right.set_xlabel("seconds of training")
    for axis, own_labels in zip((left, right), labels.values(), strict=True):
        axis.margins(x=0.2)
        _spread(axis, own_labels)


def epoch_seconds(figure: Any, rows: Sequence[Row]) -> None:
    """Training time of an epoch, a bar a run."""
    runs = list(dict.fromkeys((row.case, row.provider) for row in rows if row.metric == "epoch_time" and row.seed == 0))
    figure.set_size_inches(9.2, 0.8 + 0.32 * len(runs))
    axis = figure.subplots()
    for y, (case, provider) in enumerate(reversed(runs)):
        values = sorted(
            row.p50
            for row in rows
            if row.metric == "epoch_time" and (row.case, row.provider, row.seed) == (case, provider, 0)
        )
        middle = values[len(values) // 2]
        axis.barh(y, middle, color=COLOURS[provider], height=0.6)
        axis.plot([values[0], values[-1]], [y, y], color=INK, linewidth=0.8)
        axis.annotate(f" {middle:.2f} s", (values[-1], y), va="center", fontsize=8.5)
    axis.set_yticks(
        range(len(runs)), [f"{case.rpartition('/')[2]}, {LABELS[provider]}" for case, provider in reversed(runs)]
    )
    axis.set_xlabel("seconds of training an epoch (line: least to most)")
    axis.margins(x=0.12)


def cue_distance(figure: Any, rows: Sequence[Row]) -> None:
    """Held-out accuracy against the number of words between the cue and what it governs."""
    figure.set_size_inches(9.2, 3.6)
    axis = figure.subplots()
    labels: list[Label] = []
    for case, provider in _runs(rows, "accuracy_at_gap"):
        points: dict[int, list[float]] = {}
        for row in rows:
            if (row.case, row.provider, row.metric) == (case, provider, "accuracy_at_gap"):
                points.setdefault(row.T, []).append(row.p50)
        gaps = sorted(points)
        means = [sum(points[gap]) / len(points[gap]) for gap in gaps]
        model = case.rpartition("/")[2]
        axis.plot(gaps, means, "o", linestyle=DASHES.get(model, "-"), color=COLOURS[provider], markersize=3.5)
        labels.append((gaps[-1], means[-1], provider, model))
    _spread(axis, labels)
    axis.axvline(4, color=COLOURS["floor"], linewidth=0.8)
    axis.annotate(" widest window: 5 words", (4, axis.get_ylim()[0]), fontsize=8, va="bottom")
    axis.set_xlabel("words between cue and target")
    axis.set_ylabel("held-out accuracy")
    axis.margins(x=0.1)


def _runs(rows: Sequence[Row], metric: str) -> list[tuple[str, str]]:
    """Models with their provider; torch's twin of a fused model, which lies on the same line, is left out."""
    runs = dict.fromkeys((row.case, row.provider) for row in rows if row.metric == metric)
    return [(case, provider) for case, provider in runs if provider != "nn" or (case, "fusedrnn") not in runs]


def _spread(axis: Any, labels: Sequence[Label]) -> None:
    """Labels at line ends, from the top, moved down until none covers another."""
    (left, right), (low, high) = axis.get_xlim(), axis.get_ylim()
    width, height = 0.15 * (right - left), 0.05 * (high - low)
    placed: list[tuple[float, float]] = []
    for x, end, provider, text in sorted(labels, key=lambda label: -label[1]):
        y = end
        for other_x, other_y in placed:
            if abs(other_x - x) < width and abs(other_y - y) < height:
                y = other_y - height
        placed.append((x, y))
        _label(axis, x, y, provider, text)


def _band(axis: Any, points: list[tuple[int, Row]], provider: str, label: str) -> None:
    if not points:
        return
    x, rows = [value for value, _ in points], [row for _, row in points]
    style = {"linestyle": "--", "linewidth": 1} if provider == "floor" else {"marker": "o", "markersize": 3}
    axis.plot(x, [row.p50 for row in rows], color=COLOURS[provider], **style)
    axis.fill_between(x, *zip(*bands.ends(rows), strict=True), color=COLOURS[provider], alpha=0.2, linewidth=0)
    if label == "left":
        _label(axis, x[0], rows[0].p50 * 2, provider)
    elif label:
        _label(axis, x[-1], rows[-1].p50, provider)


def bars(axis: Any, rows: Sequence[Row], heights: Sequence[float], colour: str, label: str | None = None) -> None:
    """A series of medians as dots, each at its height, on a bar to both ends of what it spreads over."""
    for end, y in zip(bands.ends(rows), heights, strict=True):
        axis.plot(end, [y, y], color=colour, alpha=0.4, linewidth=3.5, solid_capstyle="round")
    axis.plot([row.p50 for row in rows], heights, "o", color=colour, markersize=3.5, label=label)


def _label(axis: Any, x: float, y: float, provider: str, text: str = "") -> None:
    axis.annotate(
        text or LABELS[provider],
        (x, y),
        (4, 0),
        textcoords="offset points",
        color=COLOURS[provider],
        va="center",
        fontsize=8,
        annotation_clip=False,
    )


def _log2(axis: Any, which: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    getattr(axis, f"set_{which}scale")("log", base=2)
    ticks = getattr(axis, f"{which}axis")
    ticks.set_major_locator(LogLocator(base=2, numticks=6))
    ticks.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ticks.set_minor_locator(NullLocator())
