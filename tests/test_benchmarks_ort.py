"""ONNX Runtime as a provider: its results, what it refuses, and how it is compared with."""

from __future__ import annotations

import dataclasses
import importlib.util

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import measure, ort, sweep
from benchmarks.cases import Case
from benchmarks.providers import NN, ONNXRUNTIME, PROVIDERS, Call, inputs, twin
from benchmarks.record import read_rows

SMALL = Case("gru", 6, 3, 4, 5)
installed = pytest.mark.skipif(ort.missing() is not None, reason="needs onnx and onnxruntime")
OPTIONS = (
    {},
    {"D": 2},
    {"L": 2},
    {"L": 2, "D": 2},
    {"batch_first": True},
    {"batch_first": True, "D": 2},
    {"bias": False},
    {"ragged": True, "D": 2},
)


@installed
@pytest.mark.parametrize("option", OPTIONS, ids=str)
@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn", "rnn_relu"])
def test_the_gate_passes_onnxruntime(cell, option):
    assert measure.gate(ONNXRUNTIME, dataclasses.replace(SMALL, cell=cell, **option)) is None


@installed
@pytest.mark.parametrize("gate_weights", ["weight_ih_l0", "bias_hh_l0"])
def test_the_gate_sees_other_weights(gate_weights):
    def build(case, source):
        with torch.no_grad():
            getattr(source, gate_weights)[-1] += 0.01
        layer = ort.Layer(case, source)
        with torch.no_grad():
            getattr(source, gate_weights)[-1] -= 0.01
        return layer

    assert measure.gate(dataclasses.replace(ONNXRUNTIME, build=build), SMALL).startswith("y: ")


@installed
def test_a_call_reads_its_input_where_it_lies():
    layer, data = twin(SMALL), inputs(SMALL)
    call = Call(ONNXRUNTIME, ONNXRUNTIME.build(SMALL, layer), data)
    call.infer()
    data.x.mul_(0.5)
    torch.testing.assert_close(call.infer()[0], Call(NN, layer, data).infer()[0])


@installed
@pytest.mark.parametrize(
    ("option", "why"), [({"dtype": "fp64"}, "fp32 only"), ({"packed": True}, "PackedSequence"), ({"proj": 2}, "proj")]
)
def test_what_onnxruntime_cannot_take_is_refused_by_name(option, why):
    assert why in measure.gate(ONNXRUNTIME, dataclasses.replace(SMALL, cell="lstm", **option))


@installed
def test_the_sweep_against_onnxruntime_is_of_inference(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sweep, "sweep_grid", lambda cells: [SMALL])
    options = ["sweep", "--against", "onnxruntime", "--threads", "1", "--budget", "0.01", "--out", str(tmp_path)]
    assert command.main(options) == 0
    found = [(row.unit, row.mode) for row in read_rows(tmp_path / "sweep.csv") if row.metric == "speedup"]
    assert found == [("onnxruntime/fusedrnn", "infer")]
    assert "# onnxruntime / fusedrnn" in (tmp_path / "sweep.md").read_text()
    assert command.main([*options, "--modes", "infer,train"]) == 2
    assert "onnxruntime does infer alone, not train" in capsys.readouterr().err


@installed
def test_compare_leaves_training_to_those_that_train(capsys):
    shape = ["--input", "4", "--hidden", "5", "--batch", "2", "--steps", "6", "--budget", "0.5", "--no-peak"]
    assert command.main(["compare", *shape, "--provider", "onnxruntime"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("onnxruntime"))
    assert line.split()[-4:] == ["-", "-", "-", "-"]
    assert float(line.split()[1]) > 0


@pytest.mark.parametrize("arguments", [["sweep", "--against"], ["figures", "--provider"], ["compare", "--provider"]])
def test_without_onnxruntime_it_is_said_what_to_install(tmp_path, monkeypatch, capsys, arguments):
    find = importlib.util.find_spec

    def without(name: str, *rest: object) -> object:  # whether onnx itself is here or not
        return None if name == "onnxruntime" else find("json") if name == "onnx" else find(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    monkeypatch.chdir(tmp_path)
    assert command.main([*arguments, "onnxruntime"]) == 2
    assert "needs onnxruntime, not installed here: pip install -e .[onnx]" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert PROVIDERS["onnxruntime"] is ONNXRUNTIME
