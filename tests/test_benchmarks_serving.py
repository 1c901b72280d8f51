"""The study of latency: every way to answer and its gate, each verdict on made-up rows, runs end to end."""

from __future__ import annotations

import dataclasses
import math

import pytest
import studies
import torch

from benchmarks import answers
from benchmarks.answers import INT8, QUIET, STREAM
from benchmarks.cases import Case
from benchmarks.providers import FUSED, inputs, twin
from benchmarks.record import Row
from benchmarks.studies import base, serving

LSTM, BIGRU = Case("lstm", 5, 1, 8, 16), Case("gru", 5, 2, 8, 16, D=2)
exports = pytest.mark.skipif(answers.export_missing() is not None, reason="needs onnx, onnxscript and onnxruntime")


@pytest.mark.parametrize("case", [LSTM, BIGRU], ids=lambda case: case.name)
def test_every_way_gives_the_right_answer(case):
    found = answers.ways(case, None)
    assert {answers.wrong(way, case) for way in found} == {None}
    assert {way.provider for way in found} == {"nn", "fusedrnn", INT8}
    assert (STREAM in {way.mode for way in found}) == (case.D == 1)
    grads = {way.mode: way.call()[0].requires_grad for way in found}
    assert grads["eager"]
    assert not grads[QUIET]


@pytest.mark.parametrize("share", [1e-3, 0.2])
def test_a_wrong_answer_is_refused(share):
    way = next(way for way in answers.ways(LSTM, None) if way.provider == (INT8 if share > 0.1 else "nn"))
    spoiled = dataclasses.replace(way, whole=lambda: tuple((1 + share) * value for value in way.call()))
    assert answers.wrong(spoiled, LSTM).startswith("y: ")


def test_a_stream_carries_its_state_and_begins_anew():
    way = next(way for way in answers.ways(LSTM, None) if way.mode == STREAM)
    whole = twin(LSTM)(inputs(LSTM).x)[0]
    for _ in range(2):
        torch.testing.assert_close(torch.cat([way.call()[0] for _ in range(LSTM.T)]), whole)


@exports
@pytest.mark.slow
def test_the_exported_file_answers_any_batch_and_length(tmp_path):
    path = tmp_path / "layer.onnx"
    layer = FUSED.build(BIGRU, twin(BIGRU)).eval().requires_grad_(False)
    answers.export(layer, inputs(BIGRU).x, path)
    for case in (BIGRU, dataclasses.replace(BIGRU, T=3, B=1)):
        way = answers.ways(case, path)[-1]
        assert way.provider == "onnxruntime"
        assert answers.wrong(way, case) is None


def test_percentiles_and_blocks():
    seconds = [value / 1e3 for value in range(1, 101)]
    assert [serving.percentile(seconds, part) for part in (0.5, 0.95, 0.99, 1.0)] == pytest.approx([50, 95, 99, 100])
    assert serving._blocks(seconds, 0.5) == pytest.approx([10, 30, 50, 70, 90])


def test_calls_take_turns_until_the_deadline():
    order = []
    calls = {("a", "b", name): lambda name=name: order.append(name) for name in "xy"}
    found = serving.latencies(calls, 3, math.inf)
    assert "".join(order[2 * serving.WARM_CALLS :]) == "yxxyyx"
    assert {len(values) for values in found.values()} == {3}
    assert not any(serving.latencies(calls, 3, 0.0).values())


def _rows(bigru: float, int8: float, onnxruntime: float, beside: float, calls: int = 1000) -> list[Row]:
    """P50 and P99 of BiGRU over LSTM; of int8 and ONNX Runtime over torch's, and over fused layers'."""
    values = {}
    for name in ("nn", "fusedrnn"):
        values[("BiGRU", name, QUIET), ("LSTM", name, QUIET)] = bigru
        for model in serving.MODELS:
            for way, over_nn in ((INT8, int8), ("onnxruntime", onnxruntime)):
                values[(model, way, QUIET), (model, name, QUIET)] = over_nn if name == "nn" else beside
    return [
        Row("serving", "batch 1", f"{metric}_ratio", serving.unit_of(*pair), p, 0.98 * p, 1.02 * p, calls, B=1)
        for pair, p in values.items()
        for metric in ("latency_p50", "latency_p99")
    ]


@pytest.mark.parametrize(
    ("bigru", "int8", "onnxruntime", "verdict"),
    [
        (0.65, 0.7, 0.7, base.CONFIRMED),
        (1.5, 1.5, 1.5, base.REFUTED),
        (1.5, 0.7, 0.7, base.DEPENDS),
        (0.9, 0.7, 0.7, base.DEPENDS),
    ],
)
def test_verdict_on_a_bigru_for_an_lstm(bigru, int8, onnxruntime, verdict):
    assert studies.verdict("serving", _rows(bigru, int8, onnxruntime, 1.0), "7. ").verdict == verdict


@pytest.mark.parametrize(("beside", "verdict"), [(2.0, base.CONFIRMED), (0.5, base.REFUTED), (1.0, base.DEPENDS)])
def test_verdict_beside_int8_and_onnxruntime(beside, verdict):
    assert studies.verdict("serving", _rows(1.5, 1.5, 1.5, beside), "7b").verdict == verdict


def test_fewer_than_a_thousand_calls_decide_nothing():
    rows = _rows(0.65, 0.7, 0.7, 2.0, calls=999)
    assert {found.verdict for found in serving.verdicts(rows)} == {base.UNDECIDED}


@pytest.mark.parametrize(("bigru", "part"), [(0.9, base.CONFIRMED), (0.8, base.REFUTED)])
def test_accuracy_comes_from_the_study_of_cells(bigru, part):
    rows = _rows(0.65, 0.7, 0.7, 2.0)
    for case, accuracy in (("series/LSTM", 0.9), ("series/BiGRU", bigru)):
        for seed in range(3):
            where = {"provider": "fusedrnn", "seed": seed, "epoch": 10}
            rows.append(Row("cells", case, "accuracy", "", accuracy + 0.001 * seed, n=4400, **where))
    assert f"accuracy: {part}" in studies.verdict("serving", rows, "7. ").why


@pytest.mark.slow
def test_the_study_runs_and_says_what_is_absent(tmp_path, monkeypatch, one_thread):
    monkeypatch.setattr(serving, "export_missing", lambda: "needs a tool")
    wrong = serving.wrong
    monkeypatch.setattr(serving, "wrong", lambda way, case: "wrong" if way.provider == INT8 else wrong(way, case))
    rows = studies.run("serving", tmp_path, 6)
    absent = {(row.provider, row.note) for row in base.select(rows, metric="absent")}
    assert {("cuda", serving.NO_GRAPH), ("onnxruntime", "needs a tool")} <= absent
    assert {row.provider for row in base.select(rows, metric="failed")} == {INT8}
    found = base.select(rows, metric="latency_p99")
    assert {(row.provider, row.mode) for row in found if row.D == 2} == {
        (name, mode) for name in ("nn", "fusedrnn") for mode in ("eager", QUIET)
    }
    assert {row.B for row in found} == set(serving.BATCHES)
    asked = {(row.cell, row.T, row.B) for row in base.select(rows, metric="time", provider="floor")}
    assert asked == {(cell, T, B) for cell, T in (("lstm", 6), ("lstm", 1), ("gru", 6)) for B in serving.BATCHES}
    assert "serving-latency" in (tmp_path / "report.md").read_text()
