"""The study `providers`: encoders against their definitions, ways to run a layer, verdicts, a tiny run."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import pytest
import studies
import torch

from benchmarks import encoders, measure, ways
from benchmarks.cases import MODES, Case
from benchmarks.encoders import ENCODERS
from benchmarks.progress import Progress
from benchmarks.providers import FUSED, NN, Call, Provider, inputs, twin
from benchmarks.record import Recorder, Row, measured
from benchmarks.studies import base, providers

CASE = Case("gru", 9, 3, 16, 16)


@pytest.mark.parametrize("encoder", ENCODERS, ids=lambda encoder: encoder.name)
@pytest.mark.parametrize("T", [1, 2, 5, 9, 40])
def test_an_encoder_is_what_its_definition_says(encoder: Provider, T: int) -> None:
    assert encoders.wrong(encoder, dataclasses.replace(CASE, T=T)) is None


@pytest.mark.parametrize("made", [encoders.Windows, encoders.TCN, encoders.SelfAttention])
def test_a_wrong_encoder_is_refused(made: type, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = made.forward
    monkeypatch.setattr(made, "forward", lambda self, x: 1.001 * forward(self, x))
    reasons = [encoders.wrong(encoder, CASE) for encoder in ENCODERS if isinstance(encoder.build(CASE, None), made)]
    assert reasons
    assert all(reason and reason.startswith("y: ") for reason in reasons)


@pytest.mark.parametrize("name", ["tcn", "attention"])
def test_what_decides_over_all_steps_sees_the_first_at_the_last(name: str) -> None:
    encoder = next(encoder for encoder in ENCODERS if encoder.name == name)
    for T in (2, 9, 40, 300):
        case = dataclasses.replace(CASE, T=T, B=1, dtype="fp64")
        x = torch.randn(T, 1, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
        y, _ = encoder.forward(encoder.build(case, None), x, None)  # type: ignore[arg-type]
        (gradient,) = torch.autograd.grad(y[-1].square().sum(), x)
        assert gradient[0].abs().max() > 0


@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
def test_a_loop_of_steps_is_the_layer(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Uncompiled: compiling takes most of a minute, and what it compiles is torch's."""
    monkeypatch.setattr(torch, "compile", lambda step, **_: step)
    ways._compiled.cache_clear()
    try:
        assert measure.gates([ways.COMPILED_LOOP], dataclasses.replace(CASE, cell=cell)) == {"nn-compiled-loop": None}
    finally:
        ways._compiled.cache_clear()


def test_every_way_is_here_or_says_why() -> None:
    names = {way.provider.name for way in ways.WAYS}
    assert {"nn", "nn-no-cudnn", "nn-unflattened", "nn-compiled-loop", "fusedrnn", "reference"} <= names
    assert {f"fusedrnn-{name}" for name in ("cpu", "cuda", "cuda:step", "triton", "triton:step", "aten")} <= names
    absent = {way.provider.name: way.absent("cpu", CASE) for way in ways.WAYS}
    assert "NVIDIA" in absent["fusedrnn-cuda"]
    assert absent["nn"] is absent["fusedrnn"] is absent["fusedrnn-cpu"] is absent["reference"] is None
    there = [way.provider for way in ways.WAYS if absent[way.provider.name] is None and not way.slow_start]
    assert set(measure.gates(there, CASE).values()) == {None}


def _ratio(name: str, low: float, high: float) -> Row:
    values = [low, low, (low + high) / 2, high, high]
    case = providers.case_of(64, 8)
    return measured("providers", "time_ratio", f"{name}/fusedrnn", values, case, provider=name, mode="infer")


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        ([("nn", 1.2, 1.5), ("reference", 5, 6)], base.CONFIRMED),
        ([("nn", 0.5, 0.6)], base.REFUTED),
        ([("nn", 0.9, 1.1)], base.DEPENDS),
        ([("nn", 1.2, 1.5), ("fusedrnn-cpu", 0.5, 0.6), ("textcnn", 0.1, 0.2)], base.CONFIRMED),
        ([("fusedrnn-aten", 0.5, 0.6)], base.REFUTED),
        ([("nn-graph", 0.5, 0.6)], base.REFUTED),
        ([], base.UNDECIDED),
    ],
)
def test_verdict_on_the_fastest_way(found: list, verdict: str) -> None:
    (only,) = providers.verdicts([_ratio(*row) for row in found])
    assert only.verdict == verdict


def test_a_run_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "WIDTH", 8)
    rows = studies.run("providers", tmp_path, 2.0)
    assert not [row for row in rows if row.metric == "failed"]
    timed = {row.provider for row in rows if row.metric == "time" and row.mode == "train"}
    assert timed >= {"nn", "fusedrnn", "fusedrnn-cpu", "reference", *(encoder.name for encoder in ENCODERS)}
    absent = {row.provider: row.note for row in rows if row.metric == "absent"}
    assert {"nn-graph", "nn-no-cudnn", "nn-unflattened", "fusedrnn-cuda", "fusedrnn-triton"} <= absent.keys()
    assert all(absent.values())
    assert [row.provider for row in rows if row.metric == "skipped"] == ["nn-compiled-loop"]
    text = (tmp_path / "report.md").read_text()
    assert "a CUDA graph needs one" in text
    assert "| attention |" in text


@pytest.mark.parametrize("mode", MODES)
def test_of_the_graph_the_replay_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    """With a stand-in for the capture, which needs a GPU."""
    asked: list[object] = []
    monkeypatch.setattr(providers, "captured", lambda call: asked.append(call) or "replay")
    calls = {p.name: Call(p, p.build(CASE, twin(CASE)), inputs(CASE)) for p in (NN, ways.GRAPH)}
    with Recorder(tmp_path / "rows.csv") as recorder:
        ctx = base.Context(recorder, Progress(1), base.Budget(1), "quick", device="cuda")
        timed = providers._timed(ctx, CASE, mode, calls)
    assert timed == {"nn": getattr(calls["nn"], mode), "nn-graph": "replay"}
    assert asked == [getattr(calls["nn-graph"], mode)]


def test_a_graph_that_cannot_be_captured_is_recorded_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(call: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    here = ways.Way(ways.GRAPH)
    monkeypatch.setattr(providers, "captured", refuse)
    monkeypatch.setattr(providers, "WIDTH", 8)
    monkeypatch.setattr(providers, "ENCODERS", ())
    monkeypatch.setattr(providers, "WAYS", (ways.Way(NN), here, ways.Way(FUSED)))
    rows = studies.run("providers", tmp_path, 2.0)
    failed = base.select(rows, metric="failed")
    assert [(row.provider, row.mode) for row in failed] == [("nn-graph", mode) for mode in MODES]
    assert "stream is capturing" in failed[0].note
    assert {row.provider for row in base.select(rows, metric="time")} == {"nn", "fusedrnn", "floor"}


def test_a_planted_sleep_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(layer, x, lengths):
        time.sleep(0.02)
        return NN.forward(layer, x, lengths)

    slow = ways.Way(Provider("nn-late", NN.build, late))
    monkeypatch.setattr(providers, "WIDTH", 8)
    monkeypatch.setattr(providers, "ENCODERS", ())
    monkeypatch.setattr(providers, "WAYS", (ways.Way(NN), ways.Way(FUSED), slow))
    rows = studies.run("providers", tmp_path, 2.0)
    found = base.select(rows, metric="time_ratio", provider="nn-late", mode="infer")
    assert found[0].p25 > 3
