"""The grid of `python -m benchmarks gpu` and its table, with a CPU for a GPU; with planted faults."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pairs import needs_kernel
from stand_in import stand_in

from benchmarks import measure, providers
from benchmarks.__main__ import main
from benchmarks.cases import Case
from benchmarks.gpu import cases, grid, table
from benchmarks.gpu.rows import GpuRow, Rows, read
from benchmarks.providers import fused
from benchmarks.record import RecordError
from fusedrnn import measured

SMALL, OTHER = Case("gru", 6, 3, 4, 4), Case("lstm", 5, 2, 4, 4, D=2)
OURS = fused("fusedrnn-reference", "reference")
BENCH = grid.Bench(torch.device("cpu"), "a GPU", graphs=False, ours=OURS, extra=())


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid, "SAMPLE_BUDGET_S", 0.001)


def run(path: Path, bench: grid.Bench = BENCH, only: tuple[Case, ...] = (SMALL, OTHER), budget_s: float = 60) -> int:
    return grid.run(path, bench, budget_s, only)


def test_the_grid_holds_what_was_asked_for_once() -> None:
    every = cases.grid()
    assert len(every) == len(set(every)) == len({case.name for case in every})
    assert every[: len(cases.core())] == cases.core()
    square = {(c.cell, c.H, c.B, c.dtype) for c in every if (c.T, c.L, c.D, c.packed) == (512, 1, 1, False)}
    widths, batches = (64, 128, 192, 256, 512, 768, 1024, 2048), (1, 16, 64, 128, 256)
    wanted = {(c, H, B, d) for c in ("gru", "lstm") for H in widths for B in batches for d in ("bf16", "fp16", "fp32")}
    assert wanted <= square
    assert {case.L for case in every} == {1, 2, 4, 6}
    assert all(case.B <= 16 for case in every if case.L > 1)
    assert any(case.packed for case in cases.core())
    assert any(case.D == 2 for case in cases.core())


def test_every_measurement_is_a_row_with_who_ran(tmp_path: Path) -> None:
    assert run(tmp_path / "grid.csv") == 0
    rows = read(tmp_path / "grid.csv")
    assert {row.provider for row in rows} == {"nn", "nn-standard", OURS.name}
    assert len(rows) == len({row.key for row in rows}) == 2 * 2 * 3
    assert not [row.error for row in rows if row.error]
    for row in rows:
        assert row.us_p20 <= row.us <= row.us_p80
        assert row.ratio_p20 <= row.ratio <= row.ratio_p80
        assert row.backend == ("reference" if row.provider == OURS.name else "nn")
        assert (row.kept_bytes is None) == (row.mode == "infer")
    assert all(row.ratio == 1 for row in rows if row.provider == "nn")


def test_a_run_that_was_cut_off_is_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, asked = tmp_path / "grid.csv", []
    run(path, only=(SMALL,))
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.rfind(b"\n", 0, -1) + 9])  # the last row is torn
    assert len(read(path)) == 5
    monkeypatch.setattr(measure, "wall", lambda call, count: asked.append(call) or 1.0)
    run(path)
    rows = read(path)
    assert len(rows) == len({row.key for row in rows}) == 12
    assert rows[:5] == read(path)[:5]
    asked.clear()
    run(path)
    assert not asked


def test_the_budget_ends_it_between_cases(tmp_path: Path) -> None:
    assert run(tmp_path / "grid.csv", budget_s=0) == 0
    assert read(tmp_path / "grid.csv") == []


def test_a_row_that_another_backend_ran_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = SimpleNamespace(chosen="aten")
    monkeypatch.setattr(providers.fused_module(), "explain", lambda *a, **k: told)
    run(tmp_path / "grid.csv", only=(SMALL,))
    ours = [row for row in read(tmp_path / "grid.csv") if row.provider == OURS.name]
    assert {row.error for row in ours} == {"reference was asked for, aten ran"}
    assert {row.us for row in ours} == {None}


@pytest.mark.parametrize(
    ("asked", "backend", "regime", "right"),
    [
        ("fusedrnn-cuda", "cuda", "cluster of 8", True),
        ("fusedrnn-cuda", "aten", "", False),
        ("fusedrnn-cuda:step", "cuda", "step", True),
        ("fusedrnn-cuda:step", "cuda:step", "", True),
        ("fusedrnn-cuda:step", "cuda", "grid", False),
        ("fusedrnn-cuda:step", "cuda", "", False),
        ("fusedrnn", "aten", "", True),
        ("nn", "nn", "", True),
    ],
)
def test_who_may_run_a_row(asked: str, backend: str, regime: str, right: bool) -> None:
    side = dataclasses.replace(OURS, name=asked)
    assert (grid.unexpected(side, backend, regime) is None) == right


def test_what_is_wrong_is_not_timed(tmp_path: Path) -> None:
    wrong = dataclasses.replace(
        OURS, forward=lambda layer, x, lengths: (layer(x)[0] * 1.01, layer(x)[1]), name="fusedrnn-reference"
    )
    run(tmp_path / "grid.csv", dataclasses.replace(BENCH, ours=wrong), (SMALL,))
    rows = read(tmp_path / "grid.csv")
    assert all(row.error.startswith("y: L2 error") for row in rows if row.provider == OURS.name)
    assert all(row.us for row in rows if row.provider != OURS.name)


def test_a_backend_that_is_not_there_is_a_row(tmp_path: Path) -> None:
    run(tmp_path / "grid.csv", dataclasses.replace(BENCH, ours=fused("fusedrnn-none", "none")), (SMALL,))
    rows = read(tmp_path / "grid.csv")
    assert all("Unknown backend" in row.error for row in rows if row.provider == "fusedrnn-none")
    assert sum(bool(row.us) for row in rows) == 4


def test_a_call_that_hangs_becomes_a_row_and_ends_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid, "ANSWER_S", 0.2)
    left: list[int] = []
    hangs = dataclasses.replace(OURS, forward=lambda layer, x, lengths: time.sleep(0.5))
    grid.run(tmp_path / "grid.csv", dataclasses.replace(BENCH, ours=hangs), 60, (SMALL,), leave=left.append)
    assert left == [grid.AGAIN]
    assert {row.error for row in read(tmp_path / "grid.csv")} == {"no answer in 0 s"}


def test_a_spoilt_device_ends_the_process(tmp_path: Path) -> None:
    def fault(layer: object, x: object, lengths: object) -> object:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    assert (
        run(tmp_path / "grid.csv", dataclasses.replace(BENCH, ours=dataclasses.replace(OURS, forward=fault)))
        == grid.AGAIN
    )
    rows = read(tmp_path / "grid.csv")
    assert {row.case for row in rows} == {SMALL.name}
    assert all("illegal memory access" in row.error for row in rows)
    assert run(tmp_path / "grid.csv") == 0
    assert {row.case for row in read(tmp_path / "grid.csv") if row.us} == {OTHER.name}


@needs_kernel
@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_rows_of_the_kernels_on_the_stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = (
        Case("gru", 6, 3, 8, 8, dtype="bf16"),
        Case("lstm", 5, 2, 8, 8, L=2, D=2, dtype="fp32"),
        Case("lstm", 5, 3, 8, 16, dtype="bf16", packed=True),
        Case("rnn", 5, 2, 8, 8, dtype="bf16"),
    )
    monkeypatch.setattr(grid, "core", lambda: shapes[:3])
    monkeypatch.setattr(grid, "captured", lambda call: call)

    def clock(call: Callable[[], object], count: int) -> float:
        call()
        return 1e-3

    # the stand-in is the CUDA kernels'
    bench = grid.Bench(torch.device("cpu"), "a GPU", clock, extra=[p for p in grid.EXTRA if p is not grid.TRITON])
    with stand_in():
        assert run(tmp_path / "grid.csv", bench, shapes) == 0
    rows = read(tmp_path / "grid.csv")
    assert not [(row.key, row.error) for row in rows if row.error]
    assert {(row.provider, row.variant) for row in rows if row.case == shapes[0].name} == {
        ("nn", "eager"),
        ("nn-standard", "eager"),
        ("fusedrnn-cuda", "eager"),
        ("fusedrnn-cuda:step", "eager"),
        ("fusedrnn", "eager"),
        ("nn", "graph"),
        ("fusedrnn-cuda", "graph"),
    }
    assert {row.variant for row in rows if row.packed} == {"eager"}
    assert {row.provider for row in rows if row.case == shapes[3].name} == {"nn", "nn-standard", "fusedrnn-cuda"}
    for row in rows:
        who = row.provider.removeprefix("fusedrnn-")
        assert row.backend == who.removesuffix("-standard") or row.provider == "fusedrnn"
        assert bool(row.regime) == row.backend.startswith("cuda")
        assert row.regime == "step" or who != "cuda:step"
        assert row.us == pytest.approx(1e3 / row.T, rel=1e-4)
        assert row.ratio == 1
        assert row.n >= 2
        assert (row.kept_bytes is None) == ((row.mode, row.variant) != ("train", "eager"))
    assert {point.ratio for point in table.points(rows)} == {1.0}
    assert len(table.points(rows)) == 6


def test_a_call_that_cannot_be_captured_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(call: object) -> object:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(grid, "captured", refuse)
    assert run(tmp_path / "grid.csv", dataclasses.replace(BENCH, graphs=True), (SMALL,)) == 0
    rows = [row for row in read(tmp_path / "grid.csv") if row.variant == "graph"]
    assert {row.provider for row in rows} == {"nn", OURS.name}
    assert {row.error for row in rows} == {"RuntimeError: operation not permitted when stream is capturing"}


def test_the_device_times_calls_by_events(monkeypatch: pytest.MonkeyPatch) -> None:
    class Event:
        at: float | None = None

        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = 1000.0 * len(calls)

        def synchronize(self) -> None:
            assert self.at is not None

        def elapsed_time(self, end: Event) -> float:
            assert self.at is not None
            assert end.at is not None
            return end.at - self.at

    calls: list[int] = []
    monkeypatch.setattr(torch.cuda, "Event", Event)
    assert grid.device_clock(lambda: calls.append(1), 4) == 1.0
    assert len(calls) == 4


def test_rows_of_another_gpu_are_refused(tmp_path: Path) -> None:
    run(tmp_path / "grid.csv", only=(SMALL,))
    with pytest.raises(RecordError, match="another folder"):
        run(tmp_path / "grid.csv", dataclasses.replace(BENCH, name="another"))


def made_up(path: Path, device: str = "NVIDIA H100", **changes: object) -> None:
    bench = dataclasses.replace(BENCH, name=device, ours=grid.OURS)
    with Rows(path, device) as rows:
        for H, B, mode, ratio in ((128, 16, "infer", 3.0), (1024, 16, "infer", 0.5), (128, 16, "train", 0.9)):
            case = cases.square("gru", B, H, "bf16")
            for name, its in (("nn", 1.0), (grid.OURS.name, ratio), (grid.TRITON.name, 0.9 * ratio)):
                row = grid.row(bench, case, mode, "eager", name, ratio=its, us=2.0)
                rows.add(dataclasses.replace(row, **changes))


def test_a_table_is_made_from_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_up(tmp_path / "grid.csv")
    monkeypatch.setattr(measured, "SHIPPED", tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert main(["gpu-table", str(tmp_path / "grid.csv")]) == 0
    assert (tmp_path / "nvidia-h100.json").exists()
    ask = measured.Problem(measured_cell(), 50, 16, 99, 160, dtype=torch.bfloat16, device="cuda")
    assert measured.faster(ask, "NVIDIA H100") == "cuda"
    assert measured.faster(ask, "NVIDIA H100", ["triton"]) == "triton"
    assert measured.faster(ask._replace(H=900), "NVIDIA H100") == "aten"
    assert measured.faster(ask._replace(grad=True), "NVIDIA H100") == "aten"
    measured.points.cache_clear()


def measured_cell() -> object:
    from fusedrnn.spec import GRU

    return GRU


@pytest.mark.parametrize(
    "changes", [{"error": "wrong"}, {"ratio": None}, {"packed": True}, {"variant": "graph"}], ids=str
)
def test_rows_that_say_nothing_make_no_table(tmp_path: Path, changes: dict[str, object]) -> None:
    made_up(tmp_path / "grid.csv", **changes)
    with pytest.raises(RecordError, match="expected rows"):
        table.write(tmp_path / "grid.csv", tmp_path / "x.json")


def test_columns_of_another_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "grid.csv").write_text("a,b\n1,2\n")
    with pytest.raises(RecordError, match="columns"):
        read(tmp_path / "grid.csv")


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    row = GpuRow("c", "gru", 1, 2, 3, 4, 5, 1, "bf16", True, "train", "graph", "nn", us=1.5, kept_bytes=7, device="g")
    with Rows(tmp_path / "x.csv", "g") as rows:
        rows.add(row)
    assert read(tmp_path / "x.csv") == [row]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_command_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gpu"]) == 2
    assert "no GPU" in capsys.readouterr().err
    assert main(["gpu", "--list"]) == 0
