"""The laboratory's instruments: cases, gate, clock, records, budgets; with planted faults."""

from __future__ import annotations

import csv
import dataclasses
import os
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from benchmarks import cases, measure, peak, record
from benchmarks.cases import Case
from benchmarks.providers import FUSED, NN, REFERENCE, Call, Provider, inputs, twin
from benchmarks.record import Recorder, RecordError, Row, measured, read_rows, remark
from benchmarks.studies import contest, text

ROOT = Path(__file__).resolve().parent.parent
SMALL = Case("gru", 6, 3, 4, 5)


@pytest.mark.parametrize("effort", ["quick", "default", "full"])
def test_grids_hold_every_cell_once_a_case(effort):
    grid = cases.kernel_grid(effort)
    assert len(grid) == len(set(grid)) == len({case.name for case in grid})
    assert {case.cell for case in grid} == set(cases.CELLS)
    assert any(case.ragged for case in grid)
    assert any(case.D == 2 for case in grid)


@pytest.mark.parametrize(
    "wrong",
    [
        {"cell": "elman"},
        {"T": 0},
        {"D": 3},
        {"dtype": "fp8"},
        {"proj": 2},
        {"ragged": True, "packed": True},
        {"cell": "lstm", "proj": 5},
    ],
)
def test_impossible_cases_are_refused(wrong):
    with pytest.raises(ValueError, match=r"unknown|sizes|proj|not both"):
        dataclasses.replace(SMALL, **wrong)


def test_the_sweep_holds_shapes_and_options_without_a_target():
    grid = cases.sweep_grid(cases.CELLS)
    assert len(grid) == len(set(grid)) == len({case.name for case in grid})
    assert not [case for case in grid if cases.target(case, 2, "infer", "avx512")]
    for cell in cases.CELLS:
        own = [case for case in grid if case.cell == cell]
        assert {case.H for case in own if case.T == case.B == 1} == {8, 64, 128, 256, 512, 1024}
        assert {case.B for case in own} >= {1, 4, 32, 256}
        assert {case.dtype for case in own} == {"fp32", "fp64", "bf16"}
        for option in ("L2", "bidirectional", "batch-first", "no-bias", "ragged", "packed"):
            assert any(option in case.name.split() for case in own), option
    assert any("proj64" in case.name for case in grid)
    assert any(case.cell == "rnn_relu" for case in grid)
    assert not [case for case in cases.sweep_grid(["gru"]) if case.cell != "gru"]


OPTIONS = ({"packed": True, "D": 2}, {"batch_first": True}, {"batch_first": True, "ragged": True}, {"bias": False})


@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_the_gate_passes_every_option(option):
    case = dataclasses.replace(SMALL, **option)
    assert measure.gates([NN, FUSED, REFERENCE], case) == {"nn": None, "fusedrnn": None, "reference": None}


def test_a_packed_case_is_packed_for_both_sides():
    case = Case("lstm", 6, 3, 4, 5, packed=True)
    for provider in (NN, FUSED):
        call = Call(provider, provider.build(case, twin(case)), inputs(case))
        assert isinstance(call.x, PackedSequence)
        assert call.x.batch_sizes[-1] < case.B
        assert isinstance(call.infer()[0], PackedSequence)
        call.train()
        assert call.leaf.grad.shape == call.x.data.shape


def test_a_float64_case_may_round_in_another_order():
    truth = {"y": torch.ones(3, dtype=torch.float64)}
    near, far = ({"y": truth["y"] * (1 + n * torch.finfo(torch.float64).eps)} for n in (8, 200))
    assert measure.compare(near, truth, truth) is None
    assert measure.compare(far, truth, truth).startswith("y: ")


def test_the_backend_of_a_call_is_that_of_its_mode_and_lengths():
    case = Case("lstm", 6, 3, 4, 5, proj=2)
    call = Call(FUSED, FUSED.build(case, twin(case)), inputs(case))
    assert (call.backend("infer"), call.backend("train")) == ("aten", "aten")
    ragged = dataclasses.replace(SMALL, ragged=True)
    call = Call(FUSED, FUSED.build(ragged, twin(ragged)), inputs(ragged))
    assert call.backend("train") in ("cpu", "reference")


FLOPS = (
    SMALL,
    Case("lstm", 6, 3, 4, 5, L=2, D=2),
    Case("rnn", 1, 1, 1, 1, D=2),
    Case("lstm", 6, 3, 4, 5, 2, 2, proj=3),
)


@pytest.mark.parametrize("case", FLOPS)
def test_flops_count_the_weights_of_the_layer(case):
    weights = sum(p.numel() for name, p in twin(case).named_parameters() if name.startswith("weight"))
    assert case.weights == weights
    assert case.flop("infer") == 2 * case.T * case.B * weights
    assert case.flop("train") == 3 * case.flop("infer")


def test_targets_by_shape_thread_count_and_instruction_set():
    case = Case("lstm", 200, 8, 512, 1024)
    assert cases.target(case, 1, "train", "avx512") == cases.target(case, 1, "train", "amx") == 2.1
    assert cases.target(case, 2, "infer", "AVX2") == 1.45
    assert cases.target(case, 1, "train", "generic") is None
    assert cases.target(SMALL, 1, "train", "avx2") is None


def _spoiled(factor: float, what: str) -> Provider:
    class Spoiled(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x):
            y, h = self.layer(x)
            return (y * factor if what == "output" else y + factor * (y.detach() - y)), h

        def named_parameters(self, *args, **kwargs):
            return self.layer.named_parameters(*args, **kwargs)

    return Provider("spoiled", lambda case, source: Spoiled(source), lambda layer, x, lengths: layer(x))


@pytest.mark.parametrize(
    ("provider", "names"), [(_spoiled(1 + 1e-4, "output"), "y"), (_spoiled(1e-4, "gradient"), "dx")]
)
def test_the_gate_refuses_a_wrong_provider(provider, names):
    assert measure.gate(provider, SMALL).startswith(f"{names}: ")


def test_the_gate_passes_torch_and_the_reference():
    for case in (
        SMALL,
        Case("lstm", 7, 3, 4, 5, ragged=True),
        Case("rnn", 6, 2, 3, 4, L=2, D=2),
        Case("gru", 5, 2, 3, 4, dtype="fp64"),
    ):
        assert measure.gate(NN, case) is None
        assert measure.gate(REFERENCE, case) is None


@pytest.mark.parametrize("case", [SMALL, Case("lstm", 7, 3, 4, 5, ragged=True), Case("rnn", 6, 2, 3, 4, D=2)])
def test_the_gate_passes_the_fused_layers(case):
    assert measure.gate(FUSED, case) is None


def test_the_gate_tells_what_a_provider_raises():
    def build(case, source):
        raise RuntimeError("no such kernel")

    assert measure.gate(Provider("absent", build, NN.forward), SMALL) == "RuntimeError: no such kernel"


def test_a_planted_sleep_shows_up():
    samples = measure.alternate({"fast": lambda: None, "slow": lambda: time.sleep(2e-3)}, 0.05)
    assert len(samples["fast"]) == len(samples["slow"]) >= 5
    assert measure.quartiles(measure.ratios(samples["slow"], samples["fast"]))[0] > 10


def test_a_deadline_holds_where_one_call_is_slow():
    calls = []

    def slow():
        calls.append(time.sleep(0.1))

    samples = measure.alternate({"slow": slow}, 0.1, deadline=time.perf_counter() + 0.1)
    assert len(samples["slow"]) == 1
    assert len(calls) == 2  # one to warm, one timed


def test_gates_share_the_truth_and_go_no_further_than_asked(monkeypatch):
    steps = []
    monkeypatch.setattr(measure, "inputs", lambda case: steps.append(case.T) or inputs(case))
    wrong = _spoiled(1 + 1e-4, "output")
    found = measure.gates([FUSED, wrong], SMALL, flop=SMALL.flop("train") / 3)
    assert found["fusedrnn"] is None
    assert found[wrong.name].startswith("y: ")
    assert steps == [2]


def test_kept_bytes_count_what_the_graph_holds():
    case = Case("rnn", 50, 4, 8, 16)
    y_bytes = case.output_bytes
    call = Call(NN, twin(case), inputs(case))
    assert y_bytes / 2 < measure.kept_bytes(call) < 20 * y_bytes
    call.layer.requires_grad_(False)
    call.x_grad.requires_grad_(False)
    assert measure.kept_bytes(call) == 0


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
def test_peak_bytes_see_the_output_of_a_large_call():
    case = Case("rnn", 2000, 32, 8, 64)
    found = peak.peak_bytes([NN], case)["nn"]
    assert case.output_bytes < found < 20 * case.output_bytes


def test_intervals_and_quartiles():
    assert measure.quartiles([3.0]) == (3.0, 3.0, 3.0)
    assert measure.quartiles([1, 2, 3, 4, 5]) == (2, 3, 4)
    assert measure.fifths([3.0]) == (3.0, 3.0, 3.0)
    assert measure.fifths([5.0, 1.0, 3.0, 2.0, 4.0, 6.0]) == (2.0, 3.5, 5.0)
    low, high = measure.interval95([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5))


def _rows() -> list[Row]:
    return [
        measured("kernels", "time", "ms", [1.0, 2.0, 4.0], SMALL, provider="nn", mode="train", threads=2),
        remark("kernels", "failed", 'says "no",\nand why', SMALL, provider="fusedrnn"),
    ]


def test_rows_come_back_as_they_were(tmp_path):
    with Recorder(tmp_path / "rows.csv") as recorder:
        recorder.add(*_rows())
        assert read_rows(tmp_path / "rows.csv") == recorder.rows
    first, second = recorder.rows
    assert (first.p25, first.p50, first.p75, first.n, first.T, first.cell) == (1.5, 2.0, 3.0, 3, 6, "gru")
    assert (first.p20, first.p80) == pytest.approx((1.4, 3.2))
    assert second.note == 'says "no", and why'
    assert (first.cpu, first.isa) == (record.cpu_name(), record.isa())


def test_a_killed_run_is_taken_up_behind_its_last_whole_row(tmp_path):
    path = tmp_path / "rows.csv"
    with Recorder(path) as recorder:
        recorder.add(_rows()[0])
    whole = path.read_bytes()
    path.write_bytes(whole + b'kernels,"gru T6')
    with Recorder(path, resume=True) as recorder:
        assert len(recorder.rows) == 1
        recorder.add(_rows()[1])
    assert path.read_bytes().startswith(whole)
    assert len(read_rows(path)) == 2


def _written_earlier(path: Path) -> list[Row]:
    """A file without the columns p20 and p80, and its rows."""
    with Recorder(path) as recorder:
        recorder.add(*_rows())
    lines = list(csv.reader(path.open()))
    kept = [index for index, name in enumerate(lines[0]) if name not in ("p20", "p80")]
    with path.open("w") as file:
        csv.writer(file, lineterminator="\n").writerows([line[index] for index in kept] for line in lines)
    return [dataclasses.replace(row, p20=None, p80=None) for row in recorder.rows]


def test_a_file_with_quartiles_alone_is_read(tmp_path):
    path = tmp_path / "rows.csv"
    expected = _written_earlier(path)
    assert "p20" not in path.read_text()
    assert read_rows(path) == expected


def test_a_file_with_quartiles_alone_gets_the_new_columns_when_it_is_taken_up(tmp_path):
    path = tmp_path / "rows.csv"
    expected = _written_earlier(path)
    with Recorder(path, resume=True) as recorder:
        recorder.add(_rows()[0])
    rows = read_rows(path)
    assert rows[:2] == expected
    assert (rows[2].p20, rows[2].p80) == pytest.approx((1.4, 3.2))
    assert path.read_text().startswith(record.HEADER)


def test_a_full_disk_leaves_whole_rows(tmp_path, monkeypatch):
    path = tmp_path / "rows.csv"
    with Recorder(path) as recorder:
        recorder.add(_rows()[0])
        before, write = path.read_bytes(), os.pwrite
        monkeypatch.setattr(os, "pwrite", lambda file, text, at: write(file, text[:10], at))
        with pytest.raises(RecordError, match="No space left on device; the rows before are kept"):
            recorder.add(_rows()[1])
    assert path.read_bytes() == before


def test_report_files_are_whole_or_absent(tmp_path, monkeypatch):
    path = tmp_path / "report.md"
    record.write_whole(path, "old")

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(RecordError, match="No space left"):
        record.write_whole(path, "new")
    assert path.read_bytes() == b"old"
    assert [child.name for child in tmp_path.iterdir()] == ["report.md"]


def test_foreign_tables_are_refused(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(RecordError, match="expected the columns study,case"):
        read_rows(path)


def test_the_environment_names_the_machine_and_no_path():
    facts = record.environment()
    assert {
        "cpu",
        "isa",
        "cores",
        "threads",
        "torch",
        "python",
        "fusedrnn",
        "git_sha",
        "git_dirty",
        "date",
    } <= facts.keys()
    assert str(ROOT) not in record.environment_json()


def test_the_training_set_shrinks_to_the_budget():
    plan = text.PLANS["phrases"]
    costs = contest.Costs(all_jobs=0.05, own_jobs=0.03, tests=20)
    wide, tight, short, none = (contest.fit(costs, plan, "default", 140_000, seconds) for seconds in (1e6, 160, 20, 0))
    assert wide == 140_000
    assert plan.least < tight < 140_000
    assert none == contest.FEWEST_BATCHES * plan.batch < short < plan.least
    for count, epochs, seconds in ((tight, plan.epochs["default"], 160), (short, 2, 20)):
        steps = epochs * (count / plan.batch + costs.tests)
        assert contest.MARGIN * steps * (0.05 + 2 * 0.03) == pytest.approx(seconds, rel=0.01)
