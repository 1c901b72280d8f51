"""Panels of lines beside each other, described as data: what most studies draw."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from . import bands
from .plots import COLOURS, INK
from .record import Row

PALETTE = ("#2b6fdf", "#dd7a1c", "#2a9d6a", "#9a63c9", "#c2385a", "#7a6a2f")
"""For lines that are no provider's."""
OTHERS = ("#c2385a", "#7a6a2f", "#1391a0", "#8c4a1f", "#d36fb6", "#6aa61c", "#4b3f99", "#57707a")
"""For providers that have no colour of their own: none of these is another's."""


@dataclass(frozen=True)
class Line:
    """Points are x, low end of the band, median, high end. `style` is matplotlib's; " " leaves markers alone."""

    name: str
    points: Sequence[tuple[float, float, float, float]]
    colour: str
    style: str = "-"
    marker: str = "o"


@dataclass(frozen=True)
class Panel:
    """`x_base`, `y_base`: of a logarithmic axis, 0 for a linear one."""

    title: str
    x: str
    y: str
    lines: Sequence[Line]
    x_base: int = 2
    y_base: int = 2


def line(
    name: str,
    found: Iterable[tuple[float, Row]],
    colour: str,
    style: str = "-",
    marker: str = "o",
    *,
    scale: float = 1.0,
) -> Line:
    """A line through the medians of rows times `scale`, by the x that stands beside each, with a band."""
    pairs = sorted(found, key=lambda pair: pair[0])
    ends = bands.ends([row for _, row in pairs])
    points = [
        (x, scale * low, scale * row.p50, scale * high) for (x, row), (low, high) in zip(pairs, ends, strict=True)
    ]
    return Line(name, points, colour, style, marker)


def level(name: str, ends: Iterable[float], y: float, style: str = "--") -> Line:
    """A grey line without a band, at y from the first to the last x."""
    xs = sorted(ends)
    return Line(name, [(x, y, y, y) for x in (*xs[:1], *xs[-1:])], COLOURS["floor"], style, "")


def draw(figure: Any, panels: Sequence[Panel], columns: int = 3, height: float = 3.2) -> None:
    """Lines with bands, one legend below for all panels; equal y axes where the y labels are equal."""
    if not panels:
        return
    columns = min(columns, len(panels))
    lines = -(-len(panels) // columns)
    figure.set_size_inches(9.2, height * lines + 0.5)
    axes = list(figure.subplots(lines, columns, squeeze=False, sharey=len({panel.y for panel in panels}) == 1).flat)
    handles: dict[str, Any] = {}
    for axis, panel in zip(axes, panels, strict=False):
        for own in panel.lines:
            if own.points:
                handles.setdefault(own.name, _line(axis, own))
        for which, base in (("x", panel.x_base), ("y", panel.y_base)):
            if base:
                getattr(axis, f"set_{which}scale")("log", base=base)
        if panel.x_base == 2:
            axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_title(panel.title)
        axis.set_xlabel(panel.x)
        axis.set_ylabel(panel.y)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    if handles:
        figure.legend(
            handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False, labelcolor=INK
        )


def _line(axis: Any, own: Line) -> Any:
    x, low, middle, high = zip(*own.points, strict=True)
    if not own.marker and len(set(x)) == 1:  # between two ends that are one there is nothing to see
        return axis.axhline(middle[0], linestyle=own.style, color=own.colour)
    (handle,) = axis.plot(x, middle, linestyle=own.style, marker=own.marker, markersize=3.5, color=own.colour)
    if len(x) == 1:
        axis.vlines(x, low, high, color=own.colour, alpha=0.4)
    axis.fill_between(x, low, high, color=own.colour, alpha=0.2, linewidth=0)
    return handle


def colour(provider: str, index: int = 0) -> str:
    """A provider's colour everywhere, or by its place one that is nobody's."""
    return COLOURS.get(provider, OTHERS[index % len(OTHERS)])
