"""What figures draw around medians, and that their captions say which it is."""

from __future__ import annotations

import dataclasses

import pytest

from benchmarks import bands, panels, plots
from benchmarks.cases import Case
from benchmarks.record import Row, measured

CASE = Case("gru", 6, 3, 4, 4)
WIDE = measured("kernels", "speedup", "nn/fusedrnn", [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], CASE, mode="infer", threads=1)
EARLIER = dataclasses.replace(WIDE, p20=None, p80=None)
ALONE = Row("kernels", "machine", "ceiling", "FLOP/s", 7.0)


def test_a_series_is_drawn_by_what_all_its_rows_have() -> None:
    assert bands.ends([WIDE, WIDE]) == [(2.0, 5.0)] * 2
    assert bands.ends([WIDE, EARLIER]) == bands.ends([EARLIER, EARLIER]) == [(2.25, 4.75)] * 2
    assert bands.ends([EARLIER, ALONE]) == [(2.25, 4.75), (7.0, 7.0)]


def test_the_caption_says_which() -> None:
    assert bands.told([WIDE]) == "from the 20th to the 80th percentile"
    assert bands.told([EARLIER]) == "quartiles"
    assert (
        bands.told([WIDE, EARLIER]) == "from the 20th to the 80th percentile, quartiles where those were not recorded"
    )


def test_a_line_has_its_band_in_order_and_scaled() -> None:
    line = panels.line("a", [(8, WIDE), (2, WIDE)], "#000000", scale=10.0)
    assert line.points == [(2, 20.0, 35.0, 50.0), (8, 20.0, 35.0, 50.0)]


@pytest.mark.parametrize(("row", "ends"), [(WIDE, [2.0, 5.0]), (EARLIER, [2.25, 4.75])])
def test_bars_of_a_figure_end_there(row: Row, ends: list[float]) -> None:
    figures = pytest.importorskip("matplotlib.figure")
    figure = figures.Figure()
    plots.speedups(figure, [row])
    bar, dot, _level = figure.axes[0].lines
    assert list(bar.get_xdata()) == ends
    assert list(dot.get_xdata()) == [3.5]


def test_the_figure_of_aims_names_its_bars() -> None:
    pytest.importorskip("matplotlib")
    assert "bar: quartiles" in (plots.drawn(plots.aims, [EARLIER]) or "")
    assert "bar: from the 20th" in (plots.drawn(plots.aims, [WIDE]) or "")


@pytest.mark.parametrize(("ends", "drawn"), [((8, 8), [0, 1]), ((8, 64), [8, 64])])
def test_a_level_over_one_x_is_seen(ends: tuple[int, int], drawn: list[int]) -> None:
    figures = pytest.importorskip("matplotlib.figure")
    figure = figures.Figure()
    panels.draw(figure, [panels.Panel("", "T", "ms", [panels.level("floor", ends, 1.0)])])
    assert [list(line.get_xdata()) for line in figure.axes[0].lines] == [drawn]
