"""A study in parts: a rerun does what is left, and what a part that was cut off has written is dropped."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.progress import Progress
from benchmarks.record import FINISHED, Recorder, Row, finished_parts, read_rows
from benchmarks.studies.base import Budget, Context


def _study(path: Path, names: str, *, seconds: float = 60, cut_at: str = "") -> list[str]:
    """Runs a study of one part a letter, two rows each, and says which it did; it is cut off within `cut_at`."""
    done = []
    with Recorder(path, resume=True, keep=finished_parts) as recorder:
        ctx = Context(recorder, Progress(1), Budget(seconds), "full")
        ctx.absent("s", "gpu", "cuda", "no GPU here")
        for name, _ in ctx.todo("s", {name: name for name in names}):
            recorder.add(Row("s", name, "first", p50=1.0))
            if name == cut_at:
                raise KeyboardInterrupt
            recorder.add(Row("s", name, "second", p50=2.0))
            done.append(name)
    return done


def _values(path: Path) -> list[tuple[str, str]]:
    return [(row.case, row.metric) for row in read_rows(path) if row.n]


def test_a_rerun_does_what_is_left(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    with pytest.raises(KeyboardInterrupt):
        _study(path, "abc", cut_at="b")
    assert _values(path) == [("a", "first"), ("a", "second"), ("b", "first")]
    assert _study(path, "abc") == ["b", "c"]
    whole = [(name, metric) for name in "abc" for metric in ("first", "second")]
    assert _values(path) == whole
    assert _study(path, "abc") == []
    assert _values(path) == whole
    assert [row.case for row in read_rows(path) if row.metric == "absent"] == ["gpu"]


def test_what_did_not_fit_is_done_by_a_rerun_and_no_longer_said(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    assert _study(path, "ab", seconds=0) == ["a"]
    assert [row.case for row in read_rows(path) if row.metric == "skipped"] == ["b"]
    assert _study(path, "ab") == ["b"]
    assert not [row for row in read_rows(path) if row.metric == "skipped"]


def test_the_seconds_left_are_shared_out(tmp_path: Path) -> None:
    with Recorder(tmp_path / "rows.csv") as recorder:
        ctx = Context(recorder, Progress(1), Budget(100), "full")
        shares = [seconds for _, seconds in ctx.todo("s", dict.fromkeys("abcd"))]
    assert shares == pytest.approx([25, 100 / 3, 50, 100], rel=0.01)


def test_a_mark_of_one_study_keeps_no_rows_of_another() -> None:
    rows = [
        Row("s", "a", "x"),
        Row("t", "a", "x"),
        Row("t", "a", FINISHED),
        Row("s", "a", "y"),
        Row("s", "b", FINISHED),
    ]
    assert [(row.study, row.metric) for row in finished_parts(rows)] == [
        ("t", "x"),
        ("t", FINISHED),
        ("s", "x"),
        ("s", "y"),
        ("s", FINISHED),
    ]
