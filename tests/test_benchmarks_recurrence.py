"""The study of serial time: its convolution and its gate, each of its verdicts on made-up rows, a run end to end."""

from __future__ import annotations

import pytest
import studies
import torch

from benchmarks import floors, measure
from benchmarks.cases import MODES, Case
from benchmarks.providers import FUSED, NN, Call, inputs, twin
from benchmarks.record import Row
from benchmarks.studies import base, recurrence
from benchmarks.studies.recurrence import CONV, PHRASE

SMALL = Case("rnn", 7, 3, 5, 5)


def test_both_hold_the_same_weights_and_products():
    convolution = recurrence.convolution(SMALL)
    assert convolution.conv.weight.numel() == SMALL.weights
    assert SMALL.flop("infer") == 2 * SMALL.T * SMALL.B * convolution.conv.weight.numel()


def test_the_convolution_reads_this_step_and_the_one_before():
    layer = recurrence.convolution(SMALL)
    x = torch.randn(1, 5, 7, requires_grad=True)
    layer(x)[0, :, 3].sum().backward()
    assert x.grad[0].abs().sum(0).nonzero().flatten().tolist() == [2, 3]


def test_the_gate_passes_the_convolution_and_sees_a_wrong_one(monkeypatch):
    assert recurrence.wrong_convolution(SMALL, "cpu") is None
    forward = recurrence.Convolution.forward
    monkeypatch.setattr(recurrence.Convolution, "forward", lambda self, x: 1.001 * forward(self, x))
    assert recurrence.wrong_convolution(SMALL, "cpu").startswith("y: ")


def test_a_fused_layer_is_one_operation_and_torchs_some_a_step():
    count = {
        provider.name: [
            recurrence.operations(Call(provider, provider.build(case, twin(case)), inputs(case)))
            for case in (SMALL, Case("rnn", 14, 3, 5, 5))
        ]
        for provider in (NN, FUSED)
    }
    assert count["nn"][1] > count["nn"][0] + 7
    assert count["fusedrnn"][1] == count["fusedrnn"][0]


def _rows(longest: float, phrase: float, share: float, degree: int | None = None) -> list[Row]:
    """The RNNs' time over the convolution's at T 512 and at a phrase's length; the convolution's share of the best."""
    rows = [Row("recurrence", "machine", "ceiling", "FLOP/s", 1e11)]
    for T, ratio in ((PHRASE, phrase), (512, longest)):
        case = recurrence.case_of(4096, 128, T)
        where = {"T": T, "B": case.B, "H": 128}
        for provider in ("fusedrnn", "nn"):
            for mode in MODES:
                unit, values = f"{provider}/{CONV}", (ratio, 0.98 * ratio, 1.02 * ratio)
                rows.append(
                    Row("recurrence", case.name, "time_ratio", unit, *values, 5, provider=provider, mode=mode, **where)
                )
        rows.append(Row("recurrence", case.name, "flops", "FLOP/s", share * 1e11, provider=CONV, mode="infer", **where))
        degrees = {"nn": degree or case.B * case.H, CONV: case.B * case.H * T}
        for provider, value in degrees.items():
            rows.append(Row("recurrence", case.name, "parallel_degree", "", value, provider=provider, **where))
    return rows


@pytest.mark.parametrize(
    ("longest", "share", "parts"),
    [
        (5.0, 0.7, {base.CONFIRMED}),
        (0.5, 0.1, {base.REFUTED}),
        (1.5, 0.3, {base.DEPENDS}),
    ],
)
def test_parts_of_the_verdict_on_parallelism(longest, share, parts):
    found = recurrence._filled(_rows(longest, 0.5, share), 128)
    assert len(found) == 3
    assert {finding.verdict for finding in found} == parts


def test_verdict_on_parallelism():
    found = studies.verdict("recurrence", _rows(5.0, 0.5, 0.7), "9.")
    assert found.verdict == base.DEPENDS, found
    assert "a recurrent step, quoted B: refuted" in found.why  # B times H outputs of a step wait for no other
    assert "the convolution is faster from T 512 on" in found.measured
    rows = [row for row in _rows(5.0, 0.5, 0.7) if row.metric != "parallel_degree"]
    assert studies.verdict("recurrence", rows, "9.").verdict == base.CONFIRMED
    rows = [row for row in _rows(0.5, 0.5, 0.1) if row.metric != "parallel_degree"]
    assert studies.verdict("recurrence", rows, "9.").verdict == base.REFUTED
    assert studies.verdict("recurrence", [], "9.").verdict == base.UNDECIDED


@pytest.mark.parametrize(
    ("phrase", "verdict"), [(0.7, base.CONFIRMED), (1.5, base.REFUTED), (0.9, base.DEPENDS), (1.0, base.DEPENDS)]
)
def test_verdict_on_short_phrases(phrase, verdict):
    assert studies.verdict("recurrence", _rows(5.0, phrase, 0.7), "1c").verdict == verdict


def test_no_crossing_is_said():
    assert "nowhere faster" in recurrence._crossing(_rows(0.9, 0.5, 0.7), 128, "nn", "infer")


@pytest.mark.slow
def test_the_study_runs_and_times_nothing_that_is_wrong(tmp_path, monkeypatch, one_thread):
    monkeypatch.setattr(floors, "ceilings", lambda threads, device: (1e10, 1e9))
    monkeypatch.setattr(recurrence, "wrong_convolution", lambda case, device: "wrong" if case.T == 8 else None)
    rows = studies.run("recurrence", tmp_path, 2)
    assert {(row.provider, row.T) for row in base.select(rows, metric="failed")} == {(CONV, 8)}
    timed = {(row.provider, row.T) for row in base.select(rows, metric="time")}
    assert timed == {(name, T) for name in ("nn", "fusedrnn", "floor") for T in (8, 64)} | {(CONV, 64)}
    assert "recurrence-length" in (tmp_path / "report.md").read_text()


def test_ceilings_are_rates():
    flops, bytes_ = measure.ceilings(1)
    assert flops > 1e8
    assert bytes_ > 1e7
