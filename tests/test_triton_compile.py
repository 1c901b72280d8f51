"""What Triton's compiler makes of the kernels that hold W_hh, on no GPU: the widest, for sm_80, sm_89 and sm_90.

`python tools/triton_check.py` compiles them all.
"""

from __future__ import annotations

import itertools
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from fusedrnn import triton_plan
from fusedrnn.triton_kernels import config
from fusedrnn.triton_kernels.config import GRU, LSTM, TANH

sys.path.append(str(Path(__file__).parents[1] / "tools"))
import triton_check
from triton_check import DEVICES, Job, Report, fault, weight_loads

pytestmark = [
    pytest.mark.xdist_group("compiled"),
    pytest.mark.slow,
    pytest.mark.skipif(
        triton_plan.missing() is not None and not os.environ.get("CI"), reason=str(triton_plan.missing())
    ),
]


KINDS = {"half": ("bf16", "ieee"), "tf32": ("fp32", "tf32"), "tf32x3": ("fp32", "tf32x3"), "fp64": ("fp64", "ieee")}
FORWARD, BACKWARD = False, True


def job(sm: int, cell: int, kind: str, regime: str, backward: bool, H: int = 0, drawn: bool = False) -> Job:
    """The kernel of H, or the widest that one SM holds; with lengths and resets, which need most registers."""
    H = H or config.RESIDENT[kind][sm][cell]
    how = config.plan(cell, 512, 16, 1, H, *KINDS[kind], backward, DEVICES[sm], regime, masked=True, zoneout=drawn)
    return Job(sm, cell, KINDS[kind][0], H, backward, True, how, "drawn" if drawn else "")


WIDEST = [
    job(90, GRU, "half", "resident", FORWARD),
    job(90, GRU, "half", "resident", BACKWARD),
    job(90, LSTM, "half", "resident", BACKWARD),
    job(90, LSTM, "half", "resident", BACKWARD, 120),  # 16 does not divide it
    job(90, TANH, "half", "resident", BACKWARD),
    job(90, GRU, "tf32", "resident", BACKWARD),
    job(90, LSTM, "tf32x3", "resident", BACKWARD),
    job(80, GRU, "half", "resident", BACKWARD),
    job(80, LSTM, "half", "resident", BACKWARD),
    job(80, TANH, "half", "resident", FORWARD),
    job(90, GRU, "half", "grid", FORWARD, 1024),
    job(90, LSTM, "half", "grid", BACKWARD, 1024),
    job(90, TANH, "half", "grid", FORWARD, 1024),
    job(80, LSTM, "half", "grid", FORWARD, 512),
    # zoneout and, but for the grid, recurrent dropout
    job(90, GRU, "half", "grid", FORWARD, 1024, drawn=True),
    job(80, LSTM, "half", "resident", BACKWARD, 64, drawn=True),
    # sm_89 and sm_86 have a tenth of a megabyte of shared memory
    job(89, GRU, "half", "resident", FORWARD),
    job(89, LSTM, "tf32", "resident", BACKWARD),
    job(89, LSTM, "half", "grid", FORWARD, 512),
    *(
        job(89, cell, kind, "grid", BACKWARD, config.GRID[kind][89][cell])
        for cell in (GRU, LSTM, TANH)
        for kind in ("tf32", "tf32x3")
        if config.GRID[kind][89][cell]
    ),
]
ANYWHERE = [
    job(80, GRU, "fp64", "step", BACKWARD, 64),
    job(90, LSTM, "half", "streamed", FORWARD, 256),
    job(90, LSTM, "tf32x3", "step", FORWARD, 2040, drawn=True),
    job(90, LSTM, "tf32x3", "streamed", FORWARD, 2048),
    job(80, LSTM, "tf32x3", "step", FORWARD, 2040),
    job(89, LSTM, "half", "step", FORWARD, 2048),
    job(89, GRU, "half", "step", FORWARD, 2040),
]
RESIDENT, STREAMED = WIDEST[0], ANYWHERE[1]
TOO_WIDE = replace(RESIDENT, how=replace(RESIDENT.how, units=256))
TOO_MANY_ROWS = replace(RESIDENT, how=replace(RESIDENT.how, rows=64, warps=4))
NOT_A_POWER_OF_TWO = replace(RESIDENT, how=replace(RESIDENT.how, units=24))
WRONG = [TOO_WIDE, TOO_MANY_ROWS, NOT_A_POWER_OF_TWO]


@pytest.fixture(scope="module")
def compiled() -> dict[Job, Report | str]:
    """All of them at once, because they take the processors of a machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TRITON_INTERPRET", raising=False)  # the processes that compile read it anew
        return dict(triton_check.run([*WIDEST, *ANYWHERE, *WRONG], 2))


@pytest.mark.parametrize("one", WIDEST, ids=str)
def test_w_hh_stays_on_chip(one: Job, compiled: dict[Job, Report | str]) -> None:
    report = compiled[one]
    assert isinstance(report, Report), report
    assert fault(one, report) is None
    assert report.weight_loads == report.local == 0
    assert report.shared <= DEVICES[one.sm].smem_bytes


@pytest.mark.parametrize("one", ANYWHERE, ids=str)
def test_the_other_regimes_compile(one: Job, compiled: dict[Job, Report | str]) -> None:
    report = compiled[one]
    assert isinstance(report, Report), report
    assert fault(one, report) is None
    assert report.local == 0


def test_the_cells_and_architectures_are_there() -> None:
    for regime in triton_check.HOLDS:
        assert {one.cell for one in WIDEST if one.how.regime == regime} == {GRU, LSTM, TANH}
        assert {one.sm for one in WIDEST if one.how.regime == regime} == {80, 89, 90}


# What it would look like, were it not so


def test_a_load_of_w_hh_at_every_step_is_seen(compiled: dict[Job, Report | str]) -> None:
    report = compiled[STREAMED]
    assert isinstance(report, Report), report
    assert report.weight_loads > 0
    claimed = replace(STREAMED, how=replace(STREAMED.how, regime="resident"))
    assert fault(claimed, report) == f"{report.weight_loads} loads of W_hh in the time loop"


def test_too_much_shared_memory_is_seen(compiled: dict[Job, Report | str]) -> None:
    report = compiled[TOO_WIDE]
    assert isinstance(report, Report), report
    assert report.shared > 3 * 256 * 256 * 2  # W_hh itself
    assert fault(TOO_WIDE, report) == f"{report.shared} bytes of shared memory, sm_90 has 232448"


def test_spills_are_seen(compiled: dict[Job, Report | str]) -> None:
    report = compiled[TOO_MANY_ROWS]
    assert isinstance(report, Report), report
    assert report.registers >= 250
    assert fault(TOO_MANY_ROWS, report) == f"{report.local} accesses to local memory"


def test_a_spill_is_a_fault_of_tiles_too_but_in_float64() -> None:
    spilt = Report(registers=254, shared=4096, local=17, weight_loads=4)
    assert fault(ANYWHERE[1], spilt) == "17 accesses to local memory"
    assert fault(ANYWHERE[0], spilt) is None


@pytest.mark.parametrize(
    ("arguments", "setting", "status", "told"),
    [
        (["75"], "", 2, "expected one of 80, 89, 90, got '75'"),
        (["90a"], "", 2, "expected one of 80, 89, 90, got '90a'"),
        (["--only", "no such kernel"], "", 0, "0 instances, 0 spills"),
        ([], "1", 2, "the interpreter compiles nothing; unset it"),
    ],
)
def test_the_tool_refuses_in_a_line(
    arguments: list[str],
    setting: str,
    status: int,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", setting)
    with pytest.MonkeyPatch.context() if status == 0 else pytest.raises(SystemExit) as ended:
        assert triton_check.main(arguments) == status
    if status:
        assert ended.value.code == status
    out, err = capfd.readouterr()
    assert told in out + err


def test_what_does_not_compile_is_that_kernels_result_alone(compiled: dict[Job, Report | str]) -> None:
    report = compiled[NOT_A_POWER_OF_TWO]
    assert isinstance(report, str)
    assert "CompilationError" in report or "ValueError" in report, report


@pytest.mark.parametrize(
    ("loop", "expected"),
    [
        ("%x = tt.load %p_3, %m", 1),
        ("%x = ttg.async_copy_global_to_local %p_3, %view mask %m", 1),
        ("%x = tt.load %carried, %m", 1),
        ("%x = tt.load %q, %m\n %y = tt.load %row, %p_3", 0),
    ],
)
def test_pointers_are_followed(loop: str, expected: int) -> None:
    text = f"""
  tt.func public @kernel(%w: !tt.ptr<bf16>, %y: !tt.ptr<bf16>) {{
    %p = tt.splat %w : !tt.ptr<bf16> -> tensor<16x!tt.ptr<bf16>>
    %p_3 = tt.addptr %p, %k : tensor<16x!tt.ptr<bf16>>, tensor<16xi64>
    %q = tt.splat %y : !tt.ptr<bf16> -> tensor<16x!tt.ptr<bf16>>
    %before = tt.load %p_3, %m : tensor<16x!tt.ptr<bf16>>
    %row = tt.addptr %q, %before : tensor<16x!tt.ptr<bf16>>, tensor<16xi64>
    %r:2 = scf.for %i = %c0 to %n step %c1 iter_args(%h = %zero, %carried = %p) -> (tensor<16x!tt.ptr<bf16>>) {{
      {loop} : tensor<16x!tt.ptr<bf16>>
      %d = tt.dot %x, %h, %z
    }}
    scf.for %t = %n to %T step %c1 {{
      %z = tt.load %p_3, %m : tensor<16x!tt.ptr<bf16>>
    }}
"""
    assert weight_loads(text) == expected


@pytest.mark.parametrize("sm", [80, 90])
def test_the_tool_compiles_all_that_a_plan_can_name(sm: int) -> None:
    """Of what holds W_hh: every size of tile, both passes, with lengths and resets and without."""

    def kernel(one: Job) -> tuple[object, ...]:
        chunks = -(-one.H // (one.how.inner * one.how.k_split)) if one.how.regime == "grid" else 1
        return one.cell, one.dtype, one.backward, one.masked, replace(one.how, tiles=1), chunks

    found = {kernel(one) for one in triton_check.jobs(sm)}
    sizes = (*range(16, 2049, 16), 1, 100, 1000)
    for cell, (dtype, precision), regime, H in itertools.product(
        (GRU, LSTM, TANH), KINDS.values(), triton_check.HOLDS, sizes
    ):
        for backward, masked in itertools.product((False, True), repeat=2):
            try:
                how = config.plan(cell, 9, 1, 1, H, dtype, precision, backward, DEVICES[sm], regime, masked)
            except ValueError:
                continue
            one = Job(sm, cell, dtype, H, backward, masked, how)
            assert kernel(one) in found, str(one)
