"""`figures` and `sweep`: rows that are taken up, and tables from made-up rows."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pairs import needs_kernel

from benchmarks import __main__ as command
from benchmarks import cases, figures, floors, paired, plots, record, sweep
from benchmarks.cases import Case
from benchmarks.record import Row, measured, read_rows, remark

ROOT = Path(__file__).resolve().parent.parent
SMALL = Case("gru", 6, 3, 4, 5)


@pytest.mark.slow
def test_a_real_interrupt_keeps_the_figures_measured(tmp_path):
    run = [
        sys.executable,
        "-m",
        "benchmarks",
        "figures",
        "--shapes",
        "1,2",
        "--threads",
        "1",
        "--budget",
        "0.2",
        "--out",
        str(tmp_path),
    ]
    # a shell's background job starts its children with SIGINT ignored, and Python then leaves it so
    process = subprocess.Popen(
        run,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    path, deadline = tmp_path / "figures.csv", time.monotonic() + 60
    while (not path.exists() or path.read_bytes().count(b"\n") < 4) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=60)
    assert process.returncode == command.INTERRUPTED, complaint
    assert "what was measured is kept" in complaint
    assert [row for row in read_rows(path) if row.metric == "speedup"]
    assert (tmp_path / "figures.md").exists()


def test_figures_are_taken_up_where_they_ended(tmp_path, capsys):
    options = [
        "figures",
        "--shapes",
        "1",
        "--cells",
        "rnn",
        "--threads",
        "1",
        "--budget",
        "0.05",
        "--out",
        str(tmp_path),
    ]
    assert command.main([*options, "--modes", "infer"]) == 0
    before = (tmp_path / "figures.csv").read_bytes()
    assert command.main(options) == 0
    after = (tmp_path / "figures.csv").read_bytes()
    assert after.startswith(before)
    assert [row.mode for row in read_rows(tmp_path / "figures.csv") if row.metric == "speedup"] == ["infer", "train"]
    assert "| 20, 32, 1, 64 | rnn |" in capsys.readouterr().out
    assert (tmp_path / "figures.svg").exists() == plots.available()
    (tmp_path / "figures.csv").write_bytes(after.replace(record.isa().encode() + b"\n", b"another\n"))
    assert command.main(options) == 2
    assert "take another --out" in capsys.readouterr().err


def test_the_figures_table_marks_what_is_below_its_target():
    case = Case("gru", *cases.FIGURE_SHAPES[0])
    rows = [
        dataclasses.replace(
            measured("figures", "speedup", "nn/fusedrnn", [r], case, mode=mode, threads=1), isa="avx512", cpu="a CPU"
        )
        for mode, r in (("infer", 2.5), ("train", 1.5))
    ]
    table = figures.markdown(rows)
    assert "2.50 (2.50-2.50) of 2 |" in table
    assert "**1.50 (1.50-1.50) of 2**" in table
    assert "1 of 2 figures reached" in table


def test_the_figures_table_says_what_share_of_the_floor_is_reached_and_what_is_out_of_reach():
    case = Case("gru", *cases.FIGURE_SHAPES[0])
    where = {"mode": "train", "threads": 1}
    rows = [measured("figures", "ceiling", unit, [1e11], "machine", threads=1) for unit in floors.UNITS]
    for provider, ms in (("nn", 3.0), ("fusedrnn", 2.0), ("floor", 1.6)):  # at the floor: 1.875, short of 2
        rows.append(measured("figures", "time", "ms", [ms], case, provider=provider, **where))
    rows.append(measured("figures", "speedup", "nn/fusedrnn", [1.5], case, provider="fusedrnn", **where))
    table = figures.markdown([dataclasses.replace(row, isa="avx512", cpu="a CPU") for row in rows])
    assert "| **1.50 (1.50-1.50) of 2†**, 80 % |" in table
    assert "1 (†) ask for less time than the machine's floor" in table
    assert "a CPU (avx512); its ceilings: 100 GFLOP/s and 100 GB/s with threads: 1." in table
    near = [dataclasses.replace(row, p50=1.4) if row.provider == "floor" else row for row in rows]
    assert "†" not in figures.markdown([dataclasses.replace(row, isa="avx512") for row in near])


def test_targets_are_against_torch_alone():
    case = Case("gru", *cases.FIGURE_SHAPES[0])
    row = measured("figures", "speedup", "onnxruntime/fusedrnn", [1.0], case, mode="infer", threads=1)
    table = figures.markdown([dataclasses.replace(row, isa="avx512")])
    assert "# onnxruntime / fusedrnn" in table
    assert " of " not in table


def _ratio(case: Case, *values: float, backend: str = "cpu", mode: str = "infer") -> list[Row]:
    where = {"mode": mode, "threads": 2}
    return [
        measured("sweep", "time", "ms", [2.0], case, provider="nn", **where),
        measured("sweep", "time", "ms", [1.0], case, provider="fusedrnn", note=backend, **where),
        measured("sweep", "time", "ms", [0.25], case, provider="floor", **where),
        measured("sweep", "speedup", "nn/fusedrnn", values, case, provider="fusedrnn", **where),
    ]


def test_the_sweep_table_has_the_worst_on_top():
    other = dataclasses.replace(SMALL, packed=True)
    rows = [*_ratio(SMALL, 1.9, 2.0, 2.1), *_ratio(other, 0.5, 0.7, 0.9, backend="aten")]
    rows += _ratio(other, 0.8, 0.9, 1.2, mode="train")
    table = sweep.markdown(rows)
    lines = [line for line in table.splitlines() if line.startswith("|") and "fp32" in line]
    assert lines[0].startswith(
        "| **0.70 (0.60-0.80)** | gru T6 B3 I4 H5 packed fp32 | infer | 2 | 2 | 1 | 25 % | aten |"
    )
    assert "**0.90" in lines[1]
    assert lines[2].startswith("| 2.00 (1.95-2.05) | gru T6 B3 I4 H5 fp32")
    assert "**2 of 3 below 0.95**, 1 of them with the upper quartile too. Lowest: 0.70" in table
    assert "| infer | 2 | 2 | 1 | 0.70 | 1.35 | 2.00 |" in table


def test_what_failed_is_said_until_it_is_measured():
    failed = remark("sweep", "failed", "y is wrong", SMALL, unit="nn/fusedrnn", mode="infer", threads=2)
    assert "Failed: gru T6 B3 I4 H5 fp32, infer on 2: y is wrong" in sweep.markdown([failed])
    assert not paired.failures([failed, *_ratio(SMALL, 2.0)])


@pytest.fixture
def two_cases(monkeypatch):
    monkeypatch.setattr(sweep, "sweep_grid", lambda cells: [SMALL, dataclasses.replace(SMALL, packed=True)])


def test_the_sweep_is_taken_up_and_keeps_pairs_of_providers_apart(tmp_path, capsys, two_cases):
    options = ["sweep", "--threads", "1", "--budget", "0.01", "--out", str(tmp_path)]
    assert command.main([*options, "--modes", "train"]) == 0
    before = (tmp_path / "sweep.csv").read_bytes()
    assert command.main(options) == 0
    assert (tmp_path / "sweep.csv").read_bytes().startswith(before)
    assert command.main([*options, "--against", "fusedrnn-aten"]) == 0
    found = [
        (row.unit, row.case.split()[-2], row.mode)
        for row in read_rows(tmp_path / "sweep.csv")
        if row.metric == "speedup"
    ]
    assert len(found) == len(set(found)) == 8
    assert "of 4 below 0.95" in capsys.readouterr().out
    titles = [line for line in (tmp_path / "sweep.md").read_text().splitlines() if line.startswith("#")]
    assert [line.split(" over")[0] for line in titles] == ["# nn / fusedrnn", "# fusedrnn-aten / fusedrnn"]
    assert (tmp_path / "sweep.env.json").exists()
    rows = read_rows(tmp_path / "sweep.csv")
    assert [row.unit for row in rows if row.metric == "ceiling"] == ["FLOP/s", "bytes/s"]  # once, for all three runs
    for row in rows:
        if row.provider == "floor":
            best = [r.p50 for r in rows if r.metric == "ceiling"]
            case = dataclasses.replace(SMALL, packed="packed" in row.case)
            assert row.p50 == pytest.approx(1e3 * case.floor_s(row.mode, *best), rel=1e-4)
    assert sum(row.provider == "floor" for row in rows) == 8


@needs_kernel
def test_a_provider_that_fails_its_gate_is_recorded_once(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "sweep_grid", lambda cells: [Case("lstm", 4, 2, 3, 5, proj=2)])
    options = ["sweep", "--provider", "fusedrnn-cpu", "--threads", "1", "--budget", "0.01", "--out", str(tmp_path)]
    assert command.main(options) == command.main(options) == 0
    rows = read_rows(tmp_path / "sweep.csv")
    assert [(row.metric, row.mode) for row in rows] == [("failed", "infer"), ("failed", "train")]
    assert "no projection" in (tmp_path / "sweep.md").read_text()
