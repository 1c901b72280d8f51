"""A study in parts: a rerun does what is left, and what a part that was cut off has written is dropped."""

from __future__ import annotations

import argparse
import dataclasses
import json
from functools import partial
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks.progress import Progress
from benchmarks.record import FINISHED, Recorder, Row, finished_parts, read_rows
from benchmarks.studies import STUDIES
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


def _command(folder: Path, *extra: str) -> int:
    return command.main(["study", "s", "t", "--quick", "--budget", "1", "--out", str(folder), *extra])


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two studies of two parts each; the second's second part is cut off at its first try."""
    done: list[str] = []

    def run(name: str, ctx: Context) -> None:
        for part, _ in ctx.todo(name, {part: part for part in "ab"}):
            ctx.recorder.add(Row(name, part, "time", "ms", 1.0))
            done.append(name + part)
            if done == ["sa", "sb", "ta", "tb"]:
                raise KeyboardInterrupt

    for name in "st":
        study = dataclasses.replace(STUDIES["gradients"], name=name, run=partial(run, name))
        monkeypatch.setitem(STUDIES, name, study)
    return done


def test_the_command_goes_on_where_it_was_cut_off(
    tmp_path: Path, counted: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert _command(tmp_path) == command.INTERRUPTED
    assert _command(tmp_path) == 0
    assert counted == ["sa", "sb", "ta", "tb", "tb"]
    assert "holds 3 finished parts" in capsys.readouterr().err
    times = [row.study + row.case for row in read_rows(tmp_path / "rows.csv") if row.metric == "time"]
    assert times == ["sa", "sb", "ta", "tb"]
    assert _command(tmp_path, "--overwrite") == 0
    assert counted[5:] == ["sa", "sb", "ta", "tb"]


def test_one_study_anew_leaves_the_others_rows(tmp_path: Path, counted: list[str]) -> None:
    counted.append("")  # nothing is cut off
    assert command.main(["study", "s", "--quick", "--out", str(tmp_path)]) == 0
    assert command.main(["study", "t", "--quick", "--out", str(tmp_path)]) == 0
    assert {row.study for row in read_rows(tmp_path / "rows.csv")} == {"s", "t"}


def test_one_study_overwritten_leaves_the_others_rows(
    tmp_path: Path, counted: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    counted.append("")
    assert _command(tmp_path) == 0
    before = read_rows(tmp_path / "rows.csv")
    again = ["study", "s", "--quick", "--overwrite", "--out", str(tmp_path)]
    assert command.main(again) == 0
    assert counted[1:] == ["sa", "sb", "ta", "tb", "sa", "sb"]
    after = read_rows(tmp_path / "rows.csv")
    assert [row for row in after if row.study == "t"] == [row for row in before if row.study == "t"]
    assert sorted(row.key for row in after) == sorted(row.key for row in before)
    facts = json.loads((tmp_path / "env.json").read_text())
    (tmp_path / "env.json").write_text(json.dumps(facts | {"kernels": "others"}))
    whole = (tmp_path / "rows.csv").read_bytes()
    assert command.main(again) == 2
    assert "name no study and all is measured anew" in capsys.readouterr().err
    assert (tmp_path / "rows.csv").read_bytes() == whole
    assert command.main(["study", "s", "t", "--quick", "--overwrite", "--out", str(tmp_path)]) == 0


def test_rows_of_other_arguments_are_refused_and_kept(
    tmp_path: Path, counted: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    counted.append("")
    assert _command(tmp_path) == 0
    before = (tmp_path / "rows.csv").read_bytes()
    assert command.main(["study", "s", "--out", str(tmp_path)]) == 2
    assert "effort 'quick', now 'default'" in capsys.readouterr().err
    facts = json.loads((tmp_path / "env.json").read_text())
    (tmp_path / "env.json").write_text(json.dumps(facts | {"kernels": "others"}))
    assert _command(tmp_path) == 2
    assert "kernels 'others', now" in capsys.readouterr().err
    (tmp_path / "env.json").unlink()
    assert _command(tmp_path) == 2
    assert "give --overwrite" in capsys.readouterr().err
    assert (tmp_path / "rows.csv").read_bytes() == before


def test_long_training_writes_its_rows_anew(tmp_path: Path) -> None:
    rows = [Row("text", "a", "x"), Row("text", "training", FINISHED), Row("kernels", "a", "x"), Row("s", "a", "x")]
    assert command._kept(argparse.Namespace(effort="default", overwrite=False), ["text", "kernels"], rows) == [
        rows[3],
        rows[0],
        rows[1],
    ]
    assert command._kept(argparse.Namespace(effort="full", overwrite=False), ["text", "kernels"], rows) == [rows[3]]
