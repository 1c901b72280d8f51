"""The GPU's busy share, on made-up events of a profiler, and its row."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import studies
import torch
from torch.autograd import DeviceType

from benchmarks import busy, floors
from benchmarks.cases import Case
from benchmarks.progress import Progress
from benchmarks.providers import NN, Call, inputs, twin
from benchmarks.record import Recorder, measured
from benchmarks.studies import base, recurrence


@dataclass
class Event:
    start: float
    end: float
    name: str = "gru_scan"
    device_type: DeviceType = DeviceType.CUDA
    is_user_annotation: bool = False

    @property
    def time_range(self) -> SimpleNamespace:
        return SimpleNamespace(start=self.start, end=self.end)


@pytest.mark.parametrize(
    ("intervals", "length"),
    [
        ([], 0.0),
        ([(1.0, 3.0), (5.0, 6.0)], 3.0),
        ([(1.0, 3.0), (2.0, 5.0)], 4.0),
        ([(5.0, 6.0), (0.0, 10.0), (9.0, 11.0)], 11.0),
        ([(0.0, 10.0), (2.0, 3.0), (4.0, 12.0)], 12.0),
        ([(1.0, 3.0), (1.0, 3.0), (3.0, 4.0)], 3.0),
    ],
)
def test_overlaps_count_once(intervals: list[tuple[float, float]], length: float) -> None:
    assert busy.union(intervals) == length


def test_kernels_alone_count() -> None:
    events = [
        Event(1, 2),
        Event(2, 9, "Memcpy HtoD (Pageable -> Device)"),
        Event(3, 9, "Memset (Device)"),
        Event(0, 9, "aten::gru", DeviceType.CPU),
        Event(0, 9, "step", is_user_annotation=True),
        Event(4, 5, "volta_sgemm"),
    ]
    assert busy.kernels(events) == [(1, 2), (4, 5)]


@pytest.mark.parametrize(("seconds", "share"), [(8e-6, 0.5), (3e-6, 1.0)])
def test_the_share_is_of_the_time_without_the_profiler(
    seconds: float, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(busy, "_seconds", lambda call: seconds)
    monkeypatch.setattr(busy, "_profiled", lambda call: [Event(0, 3), Event(101, 102), Event(1, 2)])
    assert busy.share(lambda: None) == pytest.approx(share)


@pytest.mark.filterwarnings("ignore")  # that there is no CUDA
def test_a_profiler_that_sees_no_kernel_gives_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    calls: list[int] = []
    assert busy.share(lambda: calls.append(1) or torch.ones(3) + 1) == busy.NO_KERNEL
    assert len(calls) == 2 * busy.CALLS


def test_a_profiler_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(call: object) -> None:
        raise RuntimeError("CUPTI_ERROR_INSUFFICIENT_PRIVILEGES")

    monkeypatch.setattr(busy, "_seconds", lambda call: 1.0)
    monkeypatch.setattr(busy, "_profiled", fail)
    assert busy.share(lambda: None) == "the profiler failed: CUPTI_ERROR_INSUFFICIENT_PRIVILEGES"


@pytest.mark.parametrize(("found", "metric"), [(0.25, "busy"), (busy.NO_KERNEL, "skipped")])
def test_the_study_of_recurrence_records_it(
    found: float | str, metric: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(busy, "share", lambda call: found)
    case = Case("rnn", 4, 2, 3, 3)
    with Recorder(tmp_path / "rows.csv") as recorder:
        ctx = base.Context(recorder, Progress(1), base.Budget(60), "quick", device="cuda")
        recurrence._busy(ctx, case, "infer", 1, {NN.name: Call(NN, twin(case), inputs(case))})
    (row,) = recorder.rows
    assert (row.metric, row.provider, row.mode, row.p50) == (metric, "nn", "infer", found if metric == "busy" else None)


def test_the_table_of_recurrence_has_a_column_where_it_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    monkeypatch.setattr(floors, "ceilings", lambda threads, device: (1e10, 1e9))
    monkeypatch.setitem(recurrence.GRID, "quick", [(16, 8, 4)])
    rows = studies.run("recurrence", tmp_path, 1)
    assert "GPU busy, %" not in recurrence._table(rows).header
    case, where = recurrence.case_of(16, 8, 4), {"provider": "nn", "mode": "infer"}
    share = measured("recurrence", "busy", "of the time", [0.25], case, **where)
    table = recurrence._table([*rows, share])
    assert table.header[-1] == "GPU busy, %"
    assert {(line[1], line[2]): line[-1] for line in table.rows}["torch.nn", "infer"] == "25"
    assert {line[-1] for line in table.rows} == {"25", "-"}
