"""The study of cells: its models, each of its verdicts on made-up rows, a tiny run end to end."""

from __future__ import annotations

import pytest
import studies

from benchmarks import data, measure
from benchmarks.models import SeriesClassifier, encoder_parameters
from benchmarks.providers import FUSED
from benchmarks.record import Row
from benchmarks.studies import base, cells
from benchmarks.studies.cells import CELLS, name_of


def test_every_cell_is_trained_at_equal_width_as_published_and_at_equal_parameters():
    found = cells.models()
    assert {cells.name_of(cell, ways) for cell in CELLS for ways in (1, 2)} <= found.keys()
    assert {f"Bi{cell}-last" for cell in CELLS} <= found.keys()
    count = {
        name: encoder_parameters(SeriesClassifier(cell, ways, hidden, readout, "nn"))
        for name, (cell, ways, hidden, readout) in found.items()
    }
    equal = [value for name, value in count.items() if name.endswith("-equal")]
    assert len(equal) == 5
    assert equal == pytest.approx([count["GRU"]] * 5, rel=0.01)
    assert count["BiLSTM"] == 2 * count["LSTM"]


def _epochs(name: str, provider: str, seconds: float, accuracy: float, epochs: int = 10) -> list[Row]:
    rows = []
    for seed in range(3):
        for epoch in range(1, epochs + 1):
            where = {"provider": provider, "seed": seed, "epoch": epoch}
            noisy = accuracy + 0.001 * (seed - 1)
            rows.append(Row("cells", f"series/{name}", "epoch_time", "s", seconds * (1 + 0.01 * epoch), n=50, **where))
            rows.append(Row("cells", f"series/{name}", "accuracy", "", noisy, n=4400, **where))
            rows.append(Row("cells", f"series/{name}", "early_loss", "", 1.0, n=10, **where))
    return rows


def _rows(
    accuracy: dict[str, float], gru: float = 0.75, double: float = 2.0, slower: float = 1.0, epochs: int = 10
) -> list[Row]:
    """`gru`: time and parameters over the LSTM's; `double`: those of both directions; `slower`: torch's time."""
    rows = []
    for name, (cell, ways, _, _) in cells.models().items():
        cost = {"LSTM": 1.0, "GRU": gru, "RNN": 0.3}[cell] * (double if ways == 2 else 1.0)
        value = accuracy.get(name, accuracy[name_of(cell, ways)])
        rows += _epochs(name, "fusedrnn", cost, value, epochs)
        rows.append(Row("cells", f"series/{name}", "parameters_encoder", "", 1000 * cost))
        if not name.endswith(("-last", "-equal")):
            rows += _epochs(name, "nn", slower * cost, value, epochs)
    return [*rows, Row("cells", "series/Bayes", "bayes_accuracy", "", data.bayes_accuracy())]


LEVEL = {name_of(cell, ways): 0.9 for cell in CELLS for ways in (1, 2)}
LIFTED = LEVEL | {f"Bi{cell}": 0.95 for cell in CELLS}


@pytest.mark.parametrize(
    ("gru", "double", "verdict"),
    [(0.72, 2.0, base.CONFIRMED), (1.2, 1.1, base.REFUTED), (0.72, 1.1, base.DEPENDS), (0.95, 2.0, base.DEPENDS)],
)
def test_verdict_on_what_gates_and_directions_cost(gru, double, verdict):
    assert studies.verdict("cells", _rows(LEVEL, gru, double), "3. ").verdict == verdict


@pytest.mark.parametrize(
    ("accuracy", "verdict"),
    [
        (LIFTED, base.CONFIRMED),
        (LEVEL, base.UNDECIDED),
        (LEVEL | {"LSTM": 0.95, "BiLSTM": 0.95}, base.REFUTED),
        (LIFTED | {f"Bi{cell}-last": 0.8 for cell in CELLS}, base.DEPENDS),
    ],
)
def test_verdict_on_directions_against_cells(accuracy, verdict):
    found = studies.verdict("cells", _rows(accuracy), "3b")
    assert found.verdict == verdict, found
    assert "best possible 98.26 %" in found.measured


def test_fewer_epochs_decide_nothing():
    assert studies.verdict("cells", _rows(LIFTED, epochs=2), "3b").verdict == base.UNDECIDED


def test_a_slower_fused_model_is_told():
    assert studies.verdict("cells", _rows(LEVEL, slower=1.5), "A recurrent").verdict == base.CONFIRMED
    assert studies.verdict("cells", _rows(LEVEL, slower=0.5), "A recurrent").verdict == base.REFUTED


@pytest.fixture
def tiny(monkeypatch, one_thread):
    monkeypatch.setattr(cells, "HIDDEN", 6)
    monkeypatch.setattr(cells, "SERIES", 40)
    monkeypatch.setattr(cells, "FRESH", 64)


@pytest.mark.slow
def test_the_study_runs(tmp_path, tiny):
    rows = studies.run("cells", tmp_path, 4)
    names = {row.case.partition("/")[2] for row in base.select(rows, metric="accuracy")}
    assert names == set(cells.models())
    assert base.select(rows, metric="bayes_accuracy")[0].p50 == pytest.approx(0.9826, abs=1e-4)
    assert {row.n for row in base.select(rows, metric="accuracy_held_out")} == {16}
    assert not base.select(rows, metric="failed")
    markdown = (tmp_path / "report.md").read_text()
    assert "cells-parameters" in markdown
    assert "series-epoch" in markdown


@pytest.mark.slow
def test_a_wrong_fused_layer_is_not_trained(tmp_path, tiny, monkeypatch):
    def refuse(providers, case, **_):
        return {FUSED.name: "y: wrong" if case.name.startswith("gru") else None}

    monkeypatch.setattr(cells, "gates", refuse)
    rows = studies.run("cells", tmp_path, 4)
    assert {row.case for row in base.select(rows, metric="failed")} >= {"series/GRU", "series/BiGRU"}
    assert {row.provider for row in base.select(rows, metric="accuracy", case="series/GRU")} == {"nn"}
    assert {row.provider for row in base.select(rows, metric="accuracy", case="series/RNN")} == {"nn", "fusedrnn"}
    assert measure.gates is not refuse
