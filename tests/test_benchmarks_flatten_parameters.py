"""The study of flatten_parameters: what happens to weights, its gate, verdicts on made-up rows, a run end to end."""

from __future__ import annotations

import dataclasses

import pytest
import studies

from benchmarks.cases import Case
from benchmarks.providers import FUSED, NN, Call, inputs
from benchmarks.record import Row
from benchmarks.studies import base, flatten_parameters
from benchmarks.studies.flatten_parameters import BUILT, EVENTS, FLATTENED, NO_CUDNN, NORMED, REPLACED

SMALL = Case("lstm", 5, 2, 3, 4)


@pytest.mark.parametrize("provider", [NN, FUSED], ids=lambda provider: provider.name)
@pytest.mark.parametrize("event", EVENTS)
def test_what_happens_to_weights_leaves_outputs_as_they_were(provider, event):
    assert flatten_parameters.wrong(provider, SMALL, event, "cpu") is None


def test_another_weight_is_refused(monkeypatch):
    def spoil(layer):
        layer.weight_hh_l0.data[0] += 0.01
        return layer

    monkeypatch.setitem(EVENTS, BUILT, spoil)
    assert flatten_parameters.wrong(NN, SMALL, BUILT, "cpu").startswith("y: ")


def test_the_layout_counts_blocks_behind_weights():
    call = Call(NN, flatten_parameters.made(NN, SMALL, BUILT, "cpu"), inputs(SMALL))
    found = {row.metric: row.p50 for row in flatten_parameters._layout(SMALL, call, {})}
    assert found == {"storages": 4, "bytes_behind": 1, "weights": 4 * 16 * (3 + 4 + 2), "warnings": 0}


def _rows(flattened: float, moved: float, storages: int = 4, *, spread: float = 0.01) -> list[Row]:
    rows = []
    for provider in ("nn", "fusedrnn"):
        for event in EVENTS:
            where = {"provider": provider, "mode": event, "cell": "lstm"}
            ratio = {BUILT: 1.0, FLATTENED: flattened, NORMED: 2.0}.get(event, moved)
            values = (ratio, ratio * (1 - spread), ratio * (1 + spread))
            rows.append(Row("flatten_parameters", SMALL.name, "time_ratio", "", *values, n=5, **where))
            blocks = storages if event == FLATTENED else 4
            rows.append(Row("flatten_parameters", SMALL.name, "storages", "", blocks, **where))
            rows.append(Row("flatten_parameters", SMALL.name, "bytes_behind", "", 1.0, **where))
    return rows


@pytest.mark.parametrize(
    ("flattened", "storages", "spread", "verdict"),
    [
        (1.02, 4, 0.01, base.CONFIRMED),
        (1.3, 1, 0.01, base.REFUTED),
        (1.0, 1, 0.01, base.DEPENDS),
        (1.1, 4, 0.2, base.UNDECIDED),
    ],
)
def test_verdict_on_flattening_on_a_cpu(flattened, storages, spread, verdict):
    rows = _rows(flattened, 1.0, storages, spread=spread)
    assert studies.verdict("flatten_parameters", rows, "4b").verdict == verdict
    found = studies.verdict("flatten_parameters", rows, "4. ")
    assert (found.verdict, found.measured) == (base.UNDECIDED, NO_CUDNN)


def test_a_ratio_of_one_pair_decides_nothing():
    rows = [dataclasses.replace(row, n=1) for row in _rows(1.3, 1.3)]
    assert {found.verdict for found in flatten_parameters.verdicts(rows)} == {base.UNDECIDED}


@pytest.mark.parametrize(
    ("moved", "spread", "verdict"),
    [
        (0.9, 0.01, base.CONFIRMED),
        (1.3, 0.01, base.REFUTED),
        (1.1, 0.2, base.UNDECIDED),
    ],
)
def test_verdict_on_moved_weights(moved, spread, verdict):
    rows = _rows(1.0, moved, spread=spread)
    assert studies.verdict("flatten_parameters", rows, "4c").verdict == verdict


@pytest.mark.parametrize(
    ("more", "ratio", "first", "verdict"),
    [
        (1.0, 1.5, 3.0, base.CONFIRMED),
        (0.0, 1.0, 1.0, base.REFUTED),
        (1.0, 1.0, 1.0, base.DEPENDS),
        (0.5, 1.5, 3.0, base.DEPENDS),
    ],
)
def test_verdict_from_rows_of_a_gpu(more, ratio, first, verdict):
    rows = _rows(1.0, ratio)
    for event, peak in ((BUILT, 5e6), (REPLACED, 5e6 + more * 1e6)):
        where = {"provider": "nn", "mode": event}
        rows.append(Row("flatten_parameters", SMALL.name, "bytes_peak", "bytes", peak, **where))
        rows.append(Row("flatten_parameters", SMALL.name, "weights", "bytes", 1e6, **where))
        rows.append(Row("flatten_parameters", SMALL.name, "first_call", "", first, first, first, **where))
    assert studies.verdict("flatten_parameters", rows, "4. ").verdict == verdict
    assert not [v for v in flatten_parameters.verdicts(rows) if v.claim.startswith("4b")]


def test_the_study_runs_and_says_what_is_absent(tmp_path, one_thread, monkeypatch):
    wrong = flatten_parameters.wrong
    refused = (FUSED, "deep copy")
    monkeypatch.setattr(
        flatten_parameters,
        "wrong",
        lambda p, case, event, d: "wrong" if (p, event) == refused else wrong(p, case, event, d),
    )
    rows = studies.run("flatten_parameters", tmp_path, 2)
    assert {row.note for row in base.select(rows, metric="absent")} == {NO_CUDNN}
    assert [row.mode for row in base.select(rows, metric="failed")] == ["deep copy"]
    assert len(base.select(rows, metric="time_ratio")) == 2 * len(EVENTS) - 1
    markdown = (tmp_path / "report.md").read_text()
    assert "flatten-parameters-time" in markdown
    assert "Absent on this machine" in markdown
