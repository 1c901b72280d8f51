"""The study of gradients through time: exact Jacobians, its gate, and each of its verdicts on made-up rows."""

from __future__ import annotations

import dataclasses

import pytest
import studies
import torch

from benchmarks.record import Row
from benchmarks.studies import base, gradients
from benchmarks.studies.gradients import LAGS, OWN, Setting


def test_norms_of_an_orthogonal_quiet_layer_are_the_powers():
    found = gradients.norms(gradients.walk(Setting("rnn", "orthogonal", "quiet", 0.5), seeds=2))
    for lag in LAGS:
        assert found[lag] == pytest.approx([0.5**lag] * 2, rel=1e-3)


@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
def test_backward_of_the_fused_layer_is_the_product_of_jacobians(cell, monkeypatch):
    setting = Setting(cell, "uniform", "loud", 1.0)
    assert gradients.disagrees(setting) is None
    walk = gradients.walk
    monkeypatch.setattr(
        gradients, "walk", lambda *_, **kw: dataclasses.replace(own := walk(*_, **kw), jacobians=own.jacobians * 1.001)
    )
    assert gradients.disagrees(setting).startswith("backward and the product of Jacobians differ by")


def test_a_cell_that_disagrees_is_not_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(gradients, "disagrees", lambda setting: "wrong" if setting.cell == "gru" else None)
    monkeypatch.setattr(gradients, "NORMS", (0.5,))
    rows = studies.run("gradients", tmp_path, 10)
    assert [row.note for row in base.select(rows, metric="failed", case="gru")] == ["wrong"]
    assert {row.cell for row in base.select(rows, metric="jacobian")} == {"lstm", "rnn"}
    assert torch.get_num_threads() > 0


def _rows(power_share: float, plain_share: float, gated: float, own: tuple[float, float]) -> list[Row]:
    """Norms after the quoted steps, as shares of the power; gated cells' as a multiple of the plain RNN's."""
    rows = []

    def add(setting: Setting, lag: int, value: float) -> None:
        mode = OWN if setting.norm is None else f"{setting.norm:g}"
        rows.append(
            Row("gradients", setting.name, "jacobian", "", value, value, value, cell=setting.cell, T=lag, mode=mode)
        )

    for norm in (0.5, 0.95):
        add(Setting("rnn", "orthogonal", "quiet", norm), 25, power_share * norm**25)
        add(Setting("rnn", "uniform", "loud", norm), 25, plain_share * norm**25)
        for cell in ("gru", "lstm"):
            add(Setting(cell, "uniform", "loud", norm), 25, gated * plain_share * norm**25)
    for lag, value in zip((6, 25), own, strict=True):
        add(Setting("rnn", "uniform", "loud", None), lag, value)
    return rows


@pytest.mark.parametrize(
    ("power_share", "plain_share", "verdict"),
    [
        (1.0, 0.6, base.CONFIRMED),
        (1.0, 0.01, base.DEPENDS),
        (1.0, 0.3, base.DEPENDS),
        (1.1, 0.01, base.DEPENDS),
    ],
)
def test_verdict_on_the_power(power_share, plain_share, verdict):
    rows = _rows(power_share, plain_share, 100, (0.1, 1e-6))
    found = studies.verdict("gradients", rows, "8. ")
    assert found.verdict == verdict, found
    assert ("upper bound: refuted" in found.why) == (power_share > 1)


@pytest.mark.parametrize(
    ("own", "verdict"),
    [((0.1, 1e-6), base.CONFIRMED), ((0.1, 0.1), base.REFUTED), ((1e-3, 1e-6), base.REFUTED), ((), base.UNDECIDED)],
)
def test_verdict_on_the_short_text(own, verdict):
    rows = _rows(1.0, 0.1, 100, own or (0.1, 1e-6))
    rows = rows if own else [row for row in rows if row.mode != OWN]
    assert studies.verdict("gradients", rows, "8b").verdict == verdict


def test_quartiles_on_both_sides_leave_the_short_text_open():
    rows = [dataclasses.replace(row, p25=1e-9, p75=1.0) for row in _rows(1.0, 0.1, 100, (0.1, 1e-6))]
    assert studies.verdict("gradients", rows, "8b").verdict == base.UNDECIDED


@pytest.mark.parametrize(("gated", "verdict"), [(100, base.CONFIRMED), (0.5, base.REFUTED), (5, base.DEPENDS)])
def test_verdict_on_gates(gated, verdict):
    assert studies.verdict("gradients", _rows(1.0, 0.1, gated, (0.1, 1e-6)), "8c").verdict == verdict


def test_the_study_runs(tmp_path):
    rows = studies.run("gradients", tmp_path, 20)
    assert not base.select(rows, metric=("failed", "skipped"))
    assert {row.cell for row in base.select(rows, metric="jacobian")} == {"gru", "lstm", "rnn"}
    assert studies.verdict("gradients", rows, "8. ").verdict == base.DEPENDS
    assert "gradients-lag" in (tmp_path / "report.md").read_text()


def _trained_rows(short: float, long: float) -> list[Row]:
    name, where = gradients.trained_name("rnn"), {"cell": "rnn", "mode": gradients.TRAINED}
    return [Row("gradients", name, "jacobian", "", v, v, v, T=lag, **where) for lag, v in ((6, short), (25, long))]


@pytest.mark.parametrize(("long", "verdict"), [(1e-6, base.CONFIRMED), (0.1, base.DEPENDS)])
def test_a_trained_layer_has_a_say_on_the_short_text_and_none_on_the_power(long, verdict):
    rows = _rows(1.0, 0.6, 100, (0.1, 1e-6)) + _trained_rows(0.1, long)
    assert studies.verdict("gradients", rows, "8b").verdict == verdict
    assert studies.verdict("gradients", rows, "8. ").verdict == base.CONFIRMED


def test_trained_layers_are_followed_over_their_own_sentences(tmp_path, monkeypatch):
    followed = {}
    follow = gradients.follow
    monkeypatch.setattr(gradients, "NORMS", ())
    monkeypatch.setattr(
        gradients,
        "follow",
        lambda cell, layers, x: followed.setdefault(cell, []).append((layers, x)) or follow(cell, layers, x),
    )
    rows = studies.run("gradients", tmp_path, 20)
    for cell in ("gru", "lstm", "rnn"):
        layers, x = followed[cell][-1]
        assert x.shape[1:] == (max(LAGS), layers[0].input_size)
        start = x[:1].transpose(0, 1).clone()
        state = torch.zeros(1, 1, layers[0].hidden_size, dtype=torch.float64, requires_grad=True)
        hx = (state, torch.zeros_like(state)) if cell == "lstm" else state
        (of_first,) = torch.autograd.grad(layers[0](start, hx)[0][-1].sum(), state)
        jacobians = follow(cell, layers[:1], x[:1]).jacobians[0]
        product = torch.linalg.multi_dot(list(jacobians.flip(0)))[: layers[0].hidden_size]
        torch.testing.assert_close(product.sum(0)[: layers[0].hidden_size], of_first.flatten(), rtol=1e-9, atol=1e-12)
        found = base.select(rows, case=gradients.trained_name(cell), metric="jacobian")
        assert [row.T for row in found] == list(LAGS)
    assert "accuracy reached after 1 epochs" in (tmp_path / "report.md").read_text()
