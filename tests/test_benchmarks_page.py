"""The report in a browser, and its decision page."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import browser
import pytest

from benchmarks import decision, record, report
from benchmarks.cases import MODES, Case
from benchmarks.record import Row, measured
from benchmarks.studies import kernels, providers, recurrence, serving
from benchmarks.studies.base import Table, Text

needs_browser = pytest.mark.skipif(browser.CHROMIUM is None, reason="no Chromium here: apt install chromium")


def _ratio(name: str, low: float, middle: float, high: float, T: int = 8, B: int = 1, mode: str = "infer") -> Row:
    case, unit = providers.case_of(T, B), f"{name}/fusedrnn"
    values = [low, low, middle, high, high]
    return measured("providers", "time_ratio", unit, values, case, provider=name, mode=mode)


def _times() -> list[Row]:
    names = ("nn", "fusedrnn", *decision.WINDOWS, *decision.ALL_STEPS)
    rows = []
    for T, B in ((8, 1), (512, 1), (8, 64)):
        for mode in MODES:
            for index, name in enumerate(names):
                where = {"provider": name, "mode": mode}
                case = providers.case_of(T, B)
                rows.append(measured("providers", "time", "ms", [1.0 + index], case, **where))
                rows.append(measured("providers", "bytes_kept", "bytes", [1e6], case, provider=name, mode="train"))
                rows.append(measured("providers", "parameters", "", [1e5], case, provider=name, mode="train"))
                if name != "fusedrnn":
                    rows.append(_ratio(name, 0.9 + index, 1.0 + index, 1.1 + index, T, B, mode))
    return rows


def _latencies(calls: int = 1000) -> list[Row]:
    sizes = {"cell": "gru", "T": 20, "B": 1, "H": 128, "D": 1, "mode": "no_grad"}
    return [
        Row("serving", "BiGRU, batch 1", metric, "ms", ms, ms, ms, calls, provider=name, **sizes)
        for name, ms in (("nn", 3.0), ("fusedrnn", 0.7))
        for metric in serving.PERCENTILES
    ]


@needs_browser
def test_the_report_shows_in_a_browser_without_a_word_on_the_console(tmp_path: Path) -> None:
    page = report.write(tmp_path, [*_times(), *_latencies()], record.environment())
    assert browser.console(page) == []
    for screen in (500, 1200):
        taken, shown = browser.widths(page, screen)
        assert taken <= shown, screen  # what is wider scrolls by itself, not the page


@needs_browser
def test_the_browser_tells_of_a_fault_in_a_page(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    faults = "<script>missing()</script><div style='width:3000px'>wide</div>"
    page.write_text(f"<!doctype html><html><body>{faults}</body></html>")
    assert [line for line in browser.console(page) if "missing is not defined" in line]
    taken, shown = browser.widths(page, 500)
    assert taken > shown


@pytest.mark.parametrize(
    ("ratios", "told"),
    [
        ([("textcnn", 0.4, 0.5, 0.6), ("cnn2", 0.8, 0.9, 0.95)], "textcnn, 2.0 times"),
        ([("textcnn", 1.2, 1.5, 1.8), ("cnn2", 2.0, 2.1, 2.2)], "GRU, 1.5 times"),
        ([("textcnn", 0.8, 0.9, 0.95)], "either (textcnn at 0.90)"),
        ([("textcnn", 0.5, 1.3, 2.0)], "either (textcnn at 1.30)"),
        ([], "-"),
    ],
)
def test_who_is_faster_needs_more_than_the_spread(ratios: list, told: str) -> None:
    assert decision.faster([_ratio(*numbers) for numbers in ratios]) == told


def _tables(rows: list[Row]) -> list[Table]:
    page = decision.section(rows)
    return [block for block in page.blocks if isinstance(block, Table)] if page else []


def test_the_decision_is_by_length_batch_and_latency() -> None:
    shapes, bounds = _tables([*_times(), *_latencies()])
    assert [tuple(line[:2]) for line in shapes.rows] == [("8", "1"), ("8", "64"), ("512", "1")]
    assert set(shapes.rows[0][2:]) == {"GRU, 3.0 times", "GRU, 5.0 times"}
    by_bound = dict(bounds.rows)
    assert by_bound["0.5 ms"] == "none of those measured"
    assert by_bound["1 ms"].startswith("BiGRU on fusedrnn")
    assert "on nn" not in by_bound["1 ms"]
    assert by_bound["5 ms"].index("fusedrnn") < by_bound["5 ms"].index("on nn")


def test_too_few_calls_and_pairs_are_said_or_left_out() -> None:
    (bounds,) = _tables(_latencies(calls=20))
    assert "too few for a P99" in bounds.caption
    two = dataclasses.replace(_ratio("textcnn", 1, 1, 1), n=2)
    assert decision.section([two]) is None


def test_what_was_not_measured_is_named_with_its_command() -> None:
    page = decision.section(_latencies())
    assert page
    told = " ".join(block.text for block in page.blocks if isinstance(block, Text))
    for study in (providers.STUDY, kernels.STUDY, "text"):
        assert f"`python -m benchmarks study {study}`" in told
    assert serving.STUDY not in told


def test_claims_come_by_number_and_studies_that_were_not_run_are_named(tmp_path: Path) -> None:
    case = Case("gru", 6, 3, 4, 5)
    rows = [
        measured("kernels", "speedup", "", [2.0, 2.0, 2.0], case, mode="train"),
        measured("recurrence", "ceiling", "FLOP/s", [1e11], "machine"),
        measured("gradients", "bound", "", [1.0], case),
    ]
    text = report.write(tmp_path, rows, record.environment()).with_suffix(".md").read_text()
    head = text.split("## Verdicts")[1].split("\n## ")[0]
    order = [head.index(start) for start in ("| 1c.", "| 8.", "| 8b.", "| 9.", "| A fused layer")]
    assert order == sorted(order)
    assert "`checkpointing` (claims 5, 5b)" in head
    assert f"`{recurrence.STUDY}`" not in head
