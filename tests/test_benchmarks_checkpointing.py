"""The study of checkpointing: its providers pass the gate, keep less, and each verdict comes from made-up rows."""

from __future__ import annotations

import dataclasses

import pytest
import studies
import torch

from benchmarks import __main__ as command
from benchmarks import measure, panels, plots
from benchmarks.cases import Case
from benchmarks.providers import CHECKPOINTED, FUSED_RECOMPUTE, NN, PROVIDERS, Call, Provider, inputs, twin
from benchmarks.record import Row, read_rows
from benchmarks.studies import base, checkpointing
from benchmarks.studies.checkpointing import TIME_SEGMENTS

SMALL = Case("lstm", 9, 3, 4, 5)


@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
def test_the_gate_passes_checkpointed_layers(cell):
    found = measure.gates([*CHECKPOINTED, FUSED_RECOMPUTE], dataclasses.replace(SMALL, cell=cell))
    assert set(found.values()) == {None}


def test_checkpointing_keeps_less():
    case = Case("gru", 64, 4, 8, 16)
    kept = {}
    for name in (NN.name, "nn-checkpoint", TIME_SEGMENTS):
        provider = PROVIDERS[name]
        kept[name] = measure.kept_bytes(Call(provider, provider.build(case, twin(case)), inputs(case)))
    handed_on = 7 * case.B * case.H * case.itemsize  # the states between eight segments
    assert kept["nn-checkpoint"] == 0
    assert kept[TIME_SEGMENTS] == handed_on < kept[NN.name] / 8


@pytest.mark.parametrize("option", [{"D": 2}, {"ragged": True}, {"packed": True}, {"batch_first": True}])
def test_what_segments_cannot_take_is_refused(option):
    reason = measure.gate(PROVIDERS[TIME_SEGMENTS], dataclasses.replace(SMALL, **option))
    assert "takes rows of one length, steps first and one direction" in reason


def _rows(
    memory: float, time: float, beside_memory: float, beside_time: float, metric: str = "bytes_peak"
) -> list[Row]:
    """Of checkpointing over torch's; of recompute over checkpointing's, and checkpointing's time over recompute's."""
    mib = {NN.name: 100e6, TIME_SEGMENTS: 100e6 * memory, FUSED_RECOMPUTE.name: 100e6 * memory * beside_memory}
    rows = [Row("checkpointing", SMALL.name, metric, "bytes", value, provider=name) for name, value in mib.items()]
    for unit, value in ((NN.name, time), (FUSED_RECOMPUTE.name, beside_time)):
        values = (value, 0.98 * value, 1.02 * value)
        rows.append(Row("checkpointing", SMALL.name, "time_ratio", f"{TIME_SEGMENTS}/{unit}", *values, n=5))
    return rows


@pytest.mark.parametrize(
    ("memory", "time", "verdict"),
    [
        (0.3, 1.3, base.CONFIRMED),
        (0.95, 2.5, base.REFUTED),
        (0.3, 2.5, base.DEPENDS),
        (0.7, 1.3, base.DEPENDS),
        (0.3, 1.8, base.DEPENDS),
    ],
)
def test_verdict_on_time_segments(memory, time, verdict):
    assert studies.verdict("checkpointing", _rows(memory, time, 0.9, 2.0), "5. ").verdict == verdict


@pytest.mark.parametrize(
    ("memory", "time", "verdict"),
    [(0.9, 2.0, base.CONFIRMED), (1.5, 0.5, base.REFUTED), (1.05, 2.0, base.DEPENDS), (0.9, 1.0, base.DEPENDS)],
)
def test_verdict_on_recompute(memory, time, verdict):
    assert studies.verdict("checkpointing", _rows(0.3, 1.3, memory, time), "5b").verdict == verdict


def test_without_a_peak_nothing_is_decided():
    rows = _rows(0.3, 1.3, 0.9, 2.0, metric="bytes_kept")
    assert {studies.verdict("checkpointing", rows, claim).verdict for claim in ("5. ", "5b")} == {base.UNDECIDED}


def test_the_study_refuses_a_wrong_provider_and_measures_the_others(tmp_path, monkeypatch, one_thread):
    wrong = Provider("wrong", NN.build, lambda layer, x, lengths: (1.001 * layer(x)[0], layer(x)[1]), modes=("train",))
    monkeypatch.setattr(checkpointing, "PROVIDERS", (*checkpointing.PROVIDERS, wrong))
    monkeypatch.setattr(checkpointing, "PEAK_FROM_BYTES", 0)
    monkeypatch.setattr(checkpointing, "CHILD_S", 0)
    monkeypatch.setattr(checkpointing, "peak_bytes", lambda providers, case, timeout_s: {providers[0].name: 1 << 20})
    rows = studies.run("checkpointing", tmp_path, 4)
    assert [row.note[:3] for row in base.select(rows, metric="failed", provider="wrong")] == ["y: "]
    timed = {row.provider for row in base.select(rows, metric="time")}
    right = {provider.name for provider in checkpointing.PROVIDERS} - {"wrong"}
    assert timed == right | {"floor"}
    assert {row.provider for row in base.select(rows, metric="bytes_peak")} == right
    assert "checkpointing-pareto" in (tmp_path / "report.md").read_text()


def test_rows_alone_go_to_the_file_named(tmp_path, monkeypatch, one_thread):
    monkeypatch.chdir(tmp_path)
    options = ["study", "checkpointing", "--quick", "--budget", "1", "--rows", "some.csv"]
    assert command.main(options) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["some.csv"]
    assert base.select(read_rows(tmp_path / "some.csv"), study="checkpointing", metric="time_ratio")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("kernels", "kernels runs on no cuda: name those that do (providers, text,"),
        ("checkpointing", "torch sees no GPU here"),
    ],
)
def test_a_device_that_is_not_there_is_said(tmp_path, capsys, name, complaint):
    assert command.main(["study", name, "--device", "cuda", "--out", str(tmp_path / "out")]) == 2
    assert complaint in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_no_two_providers_have_one_colour():
    colours = [panels.colour(provider.name, index) for index, provider in enumerate(checkpointing.PROVIDERS)]
    assert len(set(colours)) == len(checkpointing.PROVIDERS)
    assert not {*panels.OTHERS} & {*plots.COLOURS.values()}
