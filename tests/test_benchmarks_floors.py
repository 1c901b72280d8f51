"""The floor in rows and figures: ceilings recorded once, a floor a case, where each figure draws it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import floors, panels, plots
from benchmarks.answers import INT8, QUIET, STREAM
from benchmarks.cases import Case
from benchmarks.record import Recorder, Row, measured
from benchmarks.studies import base, checkpointing, flatten_parameters, providers, recurrence, serving

CASE = Case("gru", 8, 1, 16, 16)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    """How often the machine was asked, which gives 100 GFLOP/s and 10 GB/s."""
    calls: list[tuple[int, str]] = []

    def ceilings(threads: int, device: str) -> tuple[float, float]:
        calls.append((threads, device))
        return 1e11, 1e10

    monkeypatch.setattr(floors, "ceilings", ceilings)
    return calls


def test_the_machine_is_asked_once_a_study_and_thread_count(tmp_path: Path, asked: list[tuple[int, str]]) -> None:
    with Recorder(tmp_path / "rows.csv") as recorder:
        for study, threads in (("a", 1), ("a", 1), ("b", 1), ("a", 2)):
            floors.add(study, recorder, CASE, "infer", threads)
    with Recorder(tmp_path / "rows.csv", resume=True) as recorder:
        floors.add("a", recorder, CASE, "train", 1)
        assert len(base.select(recorder.rows, metric=floors.CEILING)) == 6
    assert asked == [(1, "cpu"), (1, "cpu"), (2, "cpu")]


def test_a_floor_is_the_larger_of_the_two_bounds(tmp_path: Path, asked: list[tuple[int, str]]) -> None:
    with Recorder(tmp_path / "rows.csv") as recorder:
        for case in (CASE, replace(CASE, B=512), replace(CASE, dtype="bf16")):
            floors.add("a", recorder, case, "infer", 1, "cuda")
        lone, many = base.select(recorder.rows, metric="time", provider=floors.FLOOR)
    assert asked == [(1, "cuda")]
    assert lone.p50 == pytest.approx(1e3 * CASE.bytes("infer") / 1e10)
    assert many.p50 == pytest.approx(1e3 * replace(CASE, B=512).flop("infer") / 1e11)


def _floor(study: str, case: Case, mode: str, ms: float) -> list[Row]:
    best = [measured(study, floors.CEILING, unit, [2e9], "machine") for unit in floors.UNITS]
    return [*best, measured(study, "time", "ms", [ms], case, provider=floors.FLOOR, mode=mode)]


def _time(study: str, case: Case, provider: str, mode: str, ms: float) -> Row:
    return measured(study, "time", "ms", [ms], case, provider=provider, mode=mode)


def test_a_caption_names_both_ceilings_where_there_is_a_floor() -> None:
    rows = _floor("providers", CASE, "infer", 1.0)
    assert "over 2 GFLOP/s and the least traffic over 2 GB/s" in floors.told(rows)
    assert floors.told(rows[:2]) == floors.told(rows[2:]) == ""


def _drawn(monkeypatch: pytest.MonkeyPatch, study: Any, rows: Sequence[Row]) -> list[panels.Panel]:
    found: list[panels.Panel] = []
    monkeypatch.setattr(panels, "draw", lambda figure, panels_, **_: found.extend(panels_))
    study._figure(None, rows)
    return found


def _line(panel: panels.Panel) -> list[tuple[float, float]]:
    (found,) = (line for line in panel.lines if line.name == floors.FLOOR)
    assert {(low, high) for _, low, _, high in found.points} == {(y, y) for _, _, y, _ in found.points}
    return [(x, y) for x, _, y, _ in found.points]


def test_checkpointing_draws_it_under_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = _floor("checkpointing", CASE, "train", 0.5)
    for provider, mib in zip(checkpointing.JUDGED, (1, 2, 4), strict=True):
        where = {"provider": provider, "mode": "train"}
        rows.append(measured("checkpointing", "bytes_kept", "bytes", [mib * 2**20], CASE, **where))
        rows.append(_time("checkpointing", CASE, provider, "train", 3.0))
    (panel,) = _drawn(monkeypatch, checkpointing, rows)
    assert _line(panel) == [(1, 0.5), (4, 0.5)]
    assert "The floor is" in checkpointing._caption(rows)
    assert floors.FLOOR not in {cells[1] for cells in checkpointing._table(rows).rows}


def test_recurrence_draws_it_over_length_beside_times_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = []
    for T, ms in ((64, 0.25), (8, 0.5)):
        case = recurrence.case_of(64, 16, T)
        rows += _floor("recurrence", case, "infer", ms)
        rows.append(_time("recurrence", case, "nn", "infer", 2.0))
        for metric, unit in (("flops", "FLOP/s"), ("traffic", "bytes/s")):
            rows.append(measured("recurrence", metric, unit, [1e9], case, provider="nn", mode="infer"))
    times, speeds = (panel for panel in _drawn(monkeypatch, recurrence, rows) if "inference" in panel.title)
    assert _line(times) == [(8, 0.5), (64, 0.25)]
    assert [line.name for line in speeds.lines if line.name not in plots.LABELS.values()] == ["best product"]
    assert "The floor is" in recurrence._caption(rows)
    assert len(recurrence._table(rows).rows) == 2


def test_providers_draw_it_over_the_fused_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = _floor("providers", CASE, "infer", 0.5)
    for provider, ms in (("nn", 4.0), ("fusedrnn", 2.0)):
        rows.append(_time("providers", CASE, provider, "infer", ms))
        rows += [
            measured("providers", metric, "", [1.0], CASE, provider=provider, mode="train")
            for metric in ("parameters", "bytes_kept")
        ]
    rows.append(measured("providers", "time_ratio", "nn/fusedrnn", [2.0], CASE, provider="nn", mode="infer"))
    panel = _drawn(monkeypatch, providers, rows)[0]
    assert _line(panel) == [(8, 0.25)]
    caption = providers._caption(rows)
    assert "Fastest in inference, of 1 shapes: fusedrnn at 1." in caption
    assert "over the fused layer's time" in caption
    assert [cells[0] for cells in providers._table(rows).rows] == ["nn", "fusedrnn"]


def test_flatten_parameters_draws_it_over_the_layer_as_built() -> None:
    figures = pytest.importorskip("matplotlib.figure")
    rows = _floor("flatten_parameters", CASE, "infer", 0.5)
    for provider, ms in ((flatten_parameters.NN, 2.0), (flatten_parameters.FUSED, 1.0)):
        where = {"provider": provider.name, "mode": flatten_parameters.BUILT}
        rows.append(measured("flatten_parameters", "time_ratio", "event/built", [1.0], CASE, **where))
        rows.append(_time("flatten_parameters", CASE, provider.name, flatten_parameters.BUILT, ms))
        assert flatten_parameters._floor(rows, CASE.name, provider) == 0.5 / ms
    figure = figures.Figure()
    flatten_parameters._figure(figure, rows)
    dotted = {line.get_xdata()[0] for line in figure.axes[0].lines if line.get_linestyle() == ":"}
    assert dotted == {0.25, 0.5}
    assert "drawn dotted" in flatten_parameters._floor_told(rows)


def test_serving_draws_it_for_what_a_call_answers() -> None:
    case = Case("lstm", 20, 8, 64, 128)
    rows = _floor("serving", case, "infer", 0.5) + _floor("serving", replace(case, T=1), "infer", 0.125)
    sizes = {"cell": "lstm", "T": 20, "B": 8, "H": 128, "D": 1}
    answers = [
        Row("serving", "LSTM, batch 8", "latency_p50", "ms", 1.0, provider=provider, mode=mode, **sizes)
        for provider, mode in (("nn", QUIET), ("nn", STREAM), (INT8, QUIET))
    ]
    assert [serving._floor(rows, answer) for answer in answers] == [0.5, 0.125, None]
    assert serving._floor(rows, replace(answers[0], B=1)) is None
