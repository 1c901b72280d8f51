"""The choice by measurement: tables of points, the nearest one's answer, and the command that makes a user's own."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path

import pytest
import torch

import fusedrnn
from fusedrnn import __main__ as command
from fusedrnn import measured, ops, triton_plan, tune
from fusedrnn.measured import Point
from fusedrnn.spec import GRU, LSTM, Problem

NAME = "NVIDIA H100 80GB HBM3"


def problem(H: int = 256, B: int = 16, **rest: object) -> Problem:
    return Problem(**{"cell": GRU, "T": 9, "B": B, "I": 5, "H": H, "dtype": torch.bfloat16, "device": "cuda"} | rest)


def point(H: int, B: int, ratio: float, **rest: object) -> Point:
    return Point(
        **{"cell": "gru", "dtype": "bf16", "L": 1, "D": 1, "grad": False, "H": H, "B": B, "ratio": ratio} | rest
    )


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache and the package's tables, both in an empty folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(measured, "SHIPPED", tmp_path / "tables")
    measured.points.cache_clear()
    yield tmp_path
    measured.points.cache_clear()


def ship(*points: Point) -> None:
    measured.write(measured.SHIPPED / measured.file_name(NAME), NAME, points, {})


def test_without_a_table_nothing_is_known() -> None:
    assert measured.faster(problem(), NAME) is None


def test_the_nearest_point_in_log_sizes_answers() -> None:
    ship(point(128, 16, 3.0), point(512, 16, 0.8), point(256, 64, 0.5))
    assert measured.faster(problem(H=180), NAME) == "cuda"
    assert measured.faster(problem(H=360), NAME) == "aten"  # 181 and 256 * sqrt(2) are the borders in log H
    assert measured.faster(problem(H=256, B=48), NAME) == "aten"
    assert measured.faster(problem(H=256), "another GPU") is None


def test_a_ratio_of_one_is_ours() -> None:
    ship(point(256, 16, 1.0))
    assert measured.faster(problem(), NAME) == "cuda"


def test_the_fastest_of_those_that_can_answers() -> None:
    ship(point(256, 16, 1.5), point(256, 16, 2.5, backend="triton"), point(1024, 16, 0.9, backend="triton"))
    assert measured.faster(problem(), NAME) == "triton"
    assert measured.faster(problem(), NAME, ["cuda"]) == "cuda"
    assert measured.faster(problem(H=1024), NAME) == "aten"  # of the CUDA kernels nothing is measured there
    assert measured.faster(problem(H=1024), NAME, ["cuda"]) == "cuda"
    assert measured.faster(problem(H=1024), NAME, ["triton"]) == "aten"
    assert measured.faster(problem(), NAME, []) is None


def test_ratios_at_different_sizes_are_not_compared() -> None:
    """A kernel that is far ahead at small sizes is not taken for one that is ahead at large ones."""
    ship(point(64, 16, 9.0), point(64, 16, 8.0, backend="triton"), point(256, 16, 1.5, backend="triton"))
    assert measured.faster(problem(H=64), NAME) == "cuda"
    assert measured.faster(problem(H=256), NAME) == "triton"


def test_where_kernels_failed_they_are_not_taken() -> None:
    ship(point(256, 16, 0.0), point(256, 16, 1.5, backend="triton"), point(512, 16, 0.0, backend="triton"))
    assert measured.faster(problem(), NAME) == "triton"
    assert measured.faster(problem(H=512), NAME) == "aten"


@pytest.mark.parametrize(
    "other", [{"cell": LSTM}, {"dtype": torch.float16}, {"D": 2}, {"grad": True}, {"traced": True}], ids=str
)
def test_points_of_another_kind_are_silent(other: dict[str, object]) -> None:
    ship(point(256, 16, 3.0))
    assert measured.faster(problem(), NAME) == "cuda"
    assert measured.faster(problem(**other), NAME) is None


def test_products_in_full_float32_were_not_measured() -> None:
    ship(point(256, 16, 3.0, dtype="fp32"))
    assert measured.faster(problem(dtype=torch.float32), NAME) == "cuda"
    assert measured.faster(problem(dtype=torch.float32), NAME, tf32=False) is None


def test_points_of_as_many_layers_go_first() -> None:
    ship(point(256, 16, 3.0), point(512, 16, 0.7, L=4))
    assert measured.faster(problem(L=4), NAME) == "aten"
    assert measured.faster(problem(L=2), NAME) == "cuda"


@pytest.mark.parametrize("far", [{"H": 1025}, {"H": 63}, {"B": 65}, {"B": 3}, {"B": 0}], ids=str)
def test_a_point_speaks_for_its_neighbourhood_alone(far: dict[str, int]) -> None:
    ship(point(256, 16, 3.0))
    assert measured.faster(problem(H=1024), NAME) == "cuda"
    assert measured.faster(problem(**far), NAME) is None


def test_the_users_own_table_goes_first() -> None:
    ship(point(256, 16, 3.0))
    measured.write(measured.own_path(NAME), NAME, [point(256, 16, 0.5)], {})
    assert measured.faster(problem(), NAME) == "aten"


def test_a_table_of_another_version_is_not_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    ship(point(256, 16, 3.0))
    with monkeypatch.context() as patch:
        patch.setattr(fusedrnn, "__version__", "0.0.9")
        measured.write(measured.own_path(NAME), NAME, [point(256, 16, 0.5)], {})
    assert measured.faster(problem(), NAME) == "cuda"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format": 2}', '{"format": 1, "fusedrnn": "x", "points": [{"H": 1}]}'], ids=repr
)
def test_a_broken_table_is_none(text: str) -> None:
    path = measured.SHIPPED / measured.file_name(NAME)
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert measured.faster(problem(), NAME) is None


def test_shipped_tables_can_be_read() -> None:
    folder = Path(fusedrnn.__file__).parent / "tables"
    for path in folder.glob("*.json"):
        assert measured.read(path), path.name
        assert path.name == measured.file_name(json.loads(path.read_text())["device"])


def test_files_are_written_whole_and_named_after_the_gpu(folders: Path) -> None:
    path = measured.own_path(NAME)
    assert path == folders / "cache" / "fusedrnn" / "nvidia-h100-80gb-hbm3.json"
    measured.write(path, NAME, [point(256, 16, 2.5)], {"torch": "x"})
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    table = json.loads(path.read_text())
    assert (table["device"], table["torch"], table["fusedrnn"]) == (NAME, "x", fusedrnn.__version__)
    assert measured.read(path) == (point(256, 16, 2.5),)


def test_a_relative_cache_folder_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    assert measured.own_path(NAME).parent == Path(os.path.expanduser("~")) / ".cache" / "fusedrnn"


def test_the_grid_of_tune_holds_a_point_once() -> None:
    grid = list(tune.grid())
    assert len(grid) == len(set(grid))
    assert {p.cell for p in grid} == {"gru", "lstm"}
    assert {p.grad for p in grid} == {True, False}


@pytest.mark.parametrize("grad", [False, True])
def test_tune_takes_the_median_of_pairs(grad: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "T", 3)
    calls: list[object] = []

    def clock(call: object) -> float:
        call()
        if call not in calls:
            calls.append(call)
        return (1.0, 4.0)[calls.index(call)]

    ratio = tune.measure(point(8, 2, 0.0, dtype="fp32", grad=grad, backend="aten"), clock, torch.device("cpu"))
    assert ratio == 4.0  # the first round is turned round: ours is the first call, of one second


def test_tune_times_nothing_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "T", 3)
    forward = fusedrnn.GRU.forward
    monkeypatch.setattr(fusedrnn.GRU, "forward", lambda *a, **k: (forward(*a, **k)[0] + 1, None))
    with pytest.raises(ValueError, match="differs"):
        tune.measure(point(8, 2, 0.0, dtype="fp32", backend="aten"), lambda call: 1.0, torch.device("cpu"))


def test_tune_times_no_gradient_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Right outputs are not enough where training is timed."""
    monkeypatch.setattr(tune, "T", 3)
    forward = fusedrnn.GRU.forward

    def half_a_gradient(*a: object, **k: object) -> tuple[torch.Tensor, None]:
        y = forward(*a, **k)[0]
        return y.detach() + (y - y.detach()) / 2, None

    monkeypatch.setattr(fusedrnn.GRU, "forward", half_a_gradient)
    for grad in (False, True):
        asked = (point(8, 2, 0.0, dtype="fp32", grad=grad, backend="aten"), lambda call: 1.0, torch.device("cpu"))
        if grad:
            with pytest.raises(ValueError, match="differs"):
                tune.measure(*asked)
        else:
            assert tune.measure(*asked) == 1.0


def test_tune_stops_at_its_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    def slow(*_: object) -> float:
        time.sleep(0.02)
        return 2.0

    monkeypatch.setattr(tune, "measure", slow)
    found = tune.run(0.1, lambda call: 1.0, torch.device("cpu"), "triton", show=told.append)
    assert {point.backend for point in found} == {"triton"}
    assert 1 <= len(found) < 20
    assert "budget" in told[-1]


def test_tune_leaves_out_what_the_kernels_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> float:
        raise fusedrnn.errors.UnsupportedProblem("too wide")

    monkeypatch.setattr(tune, "measure", refuse)
    told: list[str] = []
    assert tune.run(5.0, lambda call: 1.0, torch.device("cpu"), show=told.append) == []
    assert told[0].endswith("left out, too wide")


def test_tune_goes_on_where_kernels_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(point: Point, *_: object) -> float:
        if point.H == 128:
            raise RuntimeError("out of resource: shared memory")
        return 2.0

    monkeypatch.setattr(tune, "measure", fail)
    told: list[str] = []
    found = tune.run(5.0, lambda call: 1.0, torch.device("cpu"), show=told.append)
    assert {point.ratio for point in found if point.H == 128} == {0.0}
    assert {point.ratio for point in found if point.H != 128} == {2.0}
    assert told[0].endswith("failed, out of resource: shared memory")


def test_what_is_wrong_does_not_cost_the_other_kernels(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing of the kernels that are wrong is kept, all of the others."""

    def measure(point: Point, *_: object) -> float:
        if point.backend == "triton" and point.H == 256:
            raise tune.WrongResult("triton gru H256: differs")
        return 2.0

    monkeypatch.setattr(tune, "measure", measure)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", lambda index: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: NAME)
    monkeypatch.setattr(ops, "cuda_missing", None)
    monkeypatch.setattr(triton_plan, "missing", lambda: None)
    assert tune.main(["--out", str(tmp_path / "table.json")]) == 1
    assert {point.backend for point in measured.read(tmp_path / "table.json") or ()} == {"cuda"}
    assert "nothing that was measured of triton is kept" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_tune_without_a_gpu_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["tune"]) == 1
    assert "no GPU" in capsys.readouterr().err
