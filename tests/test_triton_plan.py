"""Which Triton kernel a call gets, with which tiles, on the numbers of GPUs that do not have to be there."""

from __future__ import annotations

import itertools
import re
from math import ceil

import pytest
import torch

from fusedrnn import spec, triton_plan
from fusedrnn.spec import Problem
from fusedrnn.triton_kernels import config
from fusedrnn.triton_kernels.config import GRU, LSTM, NAMES, RELU, TANH, Device, Plan

H200 = Device(90, 132, 232448)
A100 = Device(80, 108, 166912)
L4 = Device(89, 58, 101376)
RTX_5090 = Device(120, 170, 101376)
GPUS = pytest.mark.parametrize("gpu", [H200, A100, L4, RTX_5090], ids=["h200", "a100", "l4", "rtx5090"])
KINDS = {"half": ("bf16", "ieee"), "tf32": ("fp32", "tf32"), "tf32x3": ("fp32", "tf32x3"), "fp64": ("fp64", "ieee")}
CELLS = (GRU, LSTM, TANH, RELU)
SIZES = (1, 2, 16, 31, 33, 64, 65, 100, 128, 129, 192, 256, 257, 384, 500, 512, 640, 1000, 1024, 1025, 2048, 2049, 4096)
TABLES = {"resident": config.RESIDENT, "grid": config.GRID}


def plan(
    cell: int, H: int, kind: str = "half", gpu: Device = H200, *, T: int = 512, B: int = 64, S: int = 1,
    backward: bool = False, regime: str = "", masked: bool = False,
) -> Plan:  # fmt: skip
    return config.plan(cell, T, B, S, H, *KINDS[kind], backward, gpu, regime, masked)


def limit(table: str, cell: int, kind: str, gpu: Device) -> int:
    """The most units that a regime takes by the tables, 0 if none."""
    column = 89 if gpu.smem_bytes < A100.smem_bytes else gpu.sm
    return TABLES[table].get(kind, {}).get(column, (0, 0, 0))[min(cell, TANH)]


def refusal(cell: int, H: int, kind: str, gpu: Device, S: int, regime: str) -> str | None:
    try:
        plan(cell, H, kind, gpu, S=S, regime=regime)
    except ValueError as error:
        return str(error)
    return None


@GPUS
def test_every_call_has_a_plan(gpu: Device) -> None:
    for cell, kind, H, B, S, T in itertools.product(CELLS, KINDS, SIZES, (1, 17, 512), (1, 2, 4), (1, 8, 512)):
        chosen = plan(cell, H, kind, gpu, T=T, B=B, S=S)
        assert chosen.regime in config.REGIMES[1:]
        assert chosen.precision == KINDS[kind][1]
        for size in (chosen.rows, chosen.units, chosen.inner, chosen.k_split, chosen.warps):
            assert size & (size - 1) == 0 < size  # Triton's tiles and numbers of warps are powers of two
        assert min(chosen.rows, chosen.units, chosen.inner) >= 16  # tl.dot multiplies no fewer


@GPUS
def test_a_call_is_of_one_regime(gpu: Device) -> None:
    """Both passes, with lengths and resets or without; fp16 is bf16, and relu tanh."""
    for cell, kind, H in itertools.product(CELLS, KINDS, SIZES):
        same = {plan(cell, H, kind, gpu, backward=b, masked=m).regime for b in (False, True) for m in (False, True)}
        assert len(same) == 1, (cell, kind, H)
        assert plan(TANH, H, kind, gpu) == plan(RELU, H, kind, gpu)
        assert config.plan(cell, 9, 9, 1, H, "fp16", "ieee", False, gpu) == plan(cell, H, gpu=gpu, T=9, B=9)


@GPUS
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cell", CELLS)
def test_resident_up_to_the_limit(cell: int, kind: str, gpu: Device) -> None:
    most = limit("resident", cell, kind, gpu)
    for H in range(1, most + 1):
        chosen = plan(cell, H, kind, gpu)
        assert (chosen.regime, chosen) == ("resident", plan(cell, H, kind, gpu, regime="resident"))
        assert chosen.units >= H
    assert plan(cell, most + 1, kind, gpu).regime != "resident"
    with pytest.raises(
        ValueError, match=f"^resident: .* got {most + 1} hidden units, in {NAMES[kind]} .* holds {most};"
    ):
        plan(cell, most + 1, kind, gpu, regime="resident")


@GPUS
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cell", CELLS)
def test_grid_up_to_the_limit(cell: int, kind: str, gpu: Device) -> None:
    most = limit("grid", cell, kind, gpu)
    for H in range(1, most + 1):
        if ceil(H / 16) <= gpu.sms:
            assert plan(cell, H, kind, gpu, regime="grid").regime == "grid"
        else:
            with pytest.raises(ValueError, match=f"^grid: all programs .* got {ceil(H / 16)} .* on {gpu.sms} SMs;"):
                plan(cell, H, kind, gpu, regime="grid")
    with pytest.raises(ValueError, match=f"^grid: .* got {most + 1} hidden units, in {NAMES[kind]} .* holds {most};"):
        plan(cell, most + 1, kind, gpu, regime="grid")


@GPUS
def test_programs_that_wait_for_each_other_run_at_once(gpu: Device) -> None:
    """Those of a launch are no more than the SMs; launches cover the rows, and the parts of k all of H."""
    found = 0
    for cell, kind, B, S in itertools.product(CELLS, config.GRID, (1, 16, 17, 64, 512), (1, 2, 4)):
        for H in range(8, 2049, 24):
            try:
                chosen = plan(cell, H, kind, gpu, B=B, S=S, regime="grid")
            except ValueError:
                continue
            found += 1
            assert chosen.tiles >= 1
            assert chosen.tiles * S * ceil(H / chosen.units) <= gpu.sms, (H, B, S)
            assert chosen.tiles <= ceil(B / chosen.rows)
    assert found > 200


def test_the_grid_has_a_kernel_a_width() -> None:
    """Of the next one in `WIDTHS`, which is what `tools/triton_check.py` compiles."""

    def kernel(H: int) -> tuple[int, ...]:
        chosen = plan(TANH, H, regime="grid", gpu=Device(90, 10**6, H200.smem_bytes))
        return chosen.inner, chosen.k_split, ceil(H / (chosen.inner * chosen.k_split))

    for low, high in itertools.pairwise((0, *config.WIDTHS)):
        assert {kernel(H) for H in range(low + 1, high + 1)} == {kernel(high)}
        inner, parts, chunks = kernel(high)
        assert inner * parts * chunks == high  # no part multiplies zeros alone


@pytest.mark.parametrize("regime", ["streamed", "step"])
@GPUS
def test_two_regimes_take_everything(regime: str, gpu: Device) -> None:
    for cell, kind, H, S in itertools.product(CELLS, KINDS, SIZES, (1, 64)):
        assert plan(cell, H, kind, gpu, S=S, regime=regime).regime == regime


@GPUS
def test_what_a_refusal_offers_can_be_had(gpu: Device) -> None:
    """It says what was got and what is allowed; each of the regimes it names takes the call."""
    for cell, kind, H, S, regime in itertools.product(CELLS, KINDS, SIZES, (1, 2, 8), TABLES):
        reason = refusal(cell, H, kind, gpu, S, regime)
        if reason is not None:
            said, _, offered = reason.partition("; take ")
            assert re.match(rf"{regime}: .*\bgot \d+ .*(holds \d+|{gpu.sms} SMs)$", said), reason
            ways = re.findall(r"triton:(\w+)", offered)
            assert regime not in ways
            assert [refusal(cell, H, kind, gpu, S, way) for way in ways] == [None] * len(ways)


# The choice


def test_what_people_train_holds_w_hh_on_an_h200() -> None:
    """16-bit GRU and LSTM of up to 1024 units. Just above what one SM holds, and for two streams between the widths
    where a tile of rows is a launch of its own, reading W_hh again is estimated to cost less than the barriers."""
    for cell, H, B, S in itertools.product((GRU, LSTM), range(8, 1025, 8), (1, 8, 16, 33, 64), (1, 2)):
        regime = plan(cell, H, B=B, S=S).regime
        if H <= 128:
            assert regime == "resident"
        elif H > 352 or (H >= 240 and S == 1):
            assert regime == "grid", (cell, H, B, S)
        else:
            assert regime in ("grid", "streamed")


@GPUS
def test_the_cheapest_by_the_written_down_costs(gpu: Device) -> None:
    """As config.py has them: launches, barriers, and W_hh from L2."""
    for cell, kind, H, B, T in itertools.product(CELLS, KINDS, SIZES, (1, 64, 512), (1, 4, 512)):
        bytes_ = config.GATES[cell] * H * H * {"half": 2, "fp64": 8}.get(kind, 4)
        costs = {
            "streamed": config.LAUNCH_US + T * max(1.0, bytes_ / config.L2_BYTES_PER_US),
            "step": T * config.LAUNCH_US,
        }
        try:
            tiles = plan(cell, H, kind, gpu, B=B, T=T, regime="grid").tiles
            launches = ceil(ceil(B / 16) / tiles)
            costs["grid"] = launches * (config.LAUNCH_US + T * config.GRID_STEP_US)
        except ValueError:
            pass
        chosen = plan(cell, H, kind, gpu, B=B, T=T).regime
        if limit("resident", cell, kind, gpu) < H:
            assert costs[chosen] == min(costs.values()), (cell, kind, H, B, T)


def test_one_step_is_one_launch() -> None:
    for cell, kind, H in itertools.product(CELLS, KINDS, SIZES):
        assert plan(cell, H, kind, T=1).regime in ("resident", "step")


def test_a_gpu_that_is_not_known_holds_what_its_shared_memory_does() -> None:
    """Not what a larger one holds: half the shared memory, or an architecture that no table has."""
    blackwell = Device(100, 148, 232448)
    for cell, kind, H in itertools.product(CELLS, KINDS, SIZES):
        assert plan(cell, H, kind, RTX_5090).regime == "resident" or limit("resident", cell, kind, L4) < H
        assert plan(cell, H, kind, blackwell).regime == "resident" or limit("resident", cell, kind, A100) < H
    for kind, table in itertools.product(KINDS, TABLES):
        for cell in (GRU, LSTM, TANH):
            h200, a100, l4 = (limit(table, cell, kind, gpu) for gpu in (H200, A100, L4))
            assert h200 >= a100 >= l4, (table, kind, cell)


def test_the_interpreter_never_waits() -> None:
    """It runs one program after the other."""
    for cell, kind, H in itertools.product(CELLS, KINDS, SIZES):
        chosen = plan(cell, H, kind, triton_plan.INTERPRETED_AS)
        assert chosen.regime != "grid" or H <= 16


# The line in explain()


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        ({"cell": GRU, "H": 128}, "resident: 16 rows a program, 8 warps"),
        ({"cell": GRU, "H": 64, "kind": "tf32x3"}, "resident: products in tf32x3, 16 rows a program, 8 warps"),
        ({"cell": LSTM, "H": 512}, "grid: 16 rows and 16 units a program, 8 warps"),
        ({"cell": GRU, "H": 4096}, "step: 16 rows and 64 units a program, 4 warps"),
        ({"cell": GRU, "H": 4096, "regime": "streamed"}, "streamed: 16 rows a program, 4 warps"),
    ],
)
def test_a_plan_is_one_line(asked: dict[str, object], line: str) -> None:
    assert str(plan(**asked)) == line  # type: ignore[arg-type]


# A call's own words


def test_too_many_rows_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_plan, "missing", lambda: None)
    half = Problem(spec.GRU, 2**16, 2**14, 1, 8, device="cuda")
    for more in ({}, {"T": 2**17 - 1}, {"T": 2**17, "packed": True}):  # packed rows are those that there are
        assert triton_plan.why_not(half._replace(**more)) is None
    for more in ({"T": 2**17}, {"B": 2**15}, {"D": 2}):
        assert "32 bits" in str(triton_plan.why_not(half._replace(**more)))


def test_interpreted_tensors_of_a_gpu_wait_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """With TRITON_INTERPRET=1 programs run one after the other, wherever tensors are."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    route = triton_plan.code("triton")
    chosen = triton_plan.plan(GRU, 512, 16, 1, 512, torch.bfloat16, route, False, False, (), 0)
    assert chosen.regime != "grid"
    problem = Problem(spec.GRU, 512, 16, 512, 512, dtype=torch.bfloat16, device="cuda")
    assert triton_plan.regime(problem, "triton") == chosen.regime
