"""Which kernel the CUDA planner chooses, on the numbers of six GPUs, none of which has to be there.

The tables come from data sheets; how many clusters a GPU holds at once is assumed (fusedrnn/gpu_plan.py).
"""

from __future__ import annotations

import ast
import itertools
from pathlib import Path
from typing import Any

import pytest
from devices import (
    A100,
    CELLS,
    GATED,
    H200,
    HALVES,
    PASSES,
    PERSISTENT,
    PRECISIONS,
    ROWS,
    SIZES,
    Cell,
    Exchange,
    Pass,
    Precision,
    Regime,
    altered,
    an_instance,
    ask,
    ask_or_reason,
    plan,
    takes,
)

from fusedrnn import gpu_plan


@pytest.fixture(params=gpu_plan.TABLE_DEVICES)
def device(request: pytest.FixtureRequest) -> Any:
    """Each GPU of the tables."""
    return gpu_plan.table_device(request.param)


# What the tables must give


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("cell", GATED)
def test_what_people_train_is_persistent_on_an_h200(cell: Any, pass_: Any) -> None:
    sizes = [(H, precision) for precision in HALVES for H in range(8, 1025, 8)]
    sizes += [(H, Precision.tf32) for H in range(8, 513, 8)]
    for (H, precision), B in itertools.product(sizes, (1, 2, 8, 9, 16, 24, 32, 33, 48, 57, 64)):
        assert ask(H200, cell, H, B, pass_=pass_, precision=precision).regime in PERSISTENT, (H, B, precision)


def test_every_request_has_a_plan_within_the_device(device: Any) -> None:
    for cell, precision, pass_, H, B, S in itertools.product(CELLS, PRECISIONS, PASSES, SIZES, ROWS, (1, 2)):
        for masked in (False, True):
            chosen = ask(device, cell, H, B, S, pass_=pass_, precision=precision, masked=masked)
            check(chosen, device, cell, H, B, S, pass_, precision, masked)


def check(
    chosen: Any, device: Any, cell: Any, H: int, B: int, S: int, pass_: Any, precision: Any, masked: bool
) -> None:
    assert 0 < chosen.us_per_step < 1e6
    if chosen.regime == Regime.step:
        assert chosen.instance == -1
        return
    kernel = plan.cuda_instances()[chosen.instance]
    assert (kernel.cell, kernel.precision, kernel.pass_, kernel.regime) == (cell, precision, pass_, chosen.regime)
    assert kernel.H >= H
    assert kernel.masked or not (masked or kernel.H != H)
    assert kernel.exchange != Exchange.split or not (masked or kernel.H != H)
    assert chosen.groups == -(-B // (kernel.rows * kernel.chains))
    assert (chosen.team, chosen.cluster, chosen.threads) == (kernel.team, kernel.cluster, kernel.threads)
    assert kernel.smem_bytes == chosen.smem_bytes <= device.smem_bytes
    if chosen.cluster > 1:
        assert device.major >= 9
        clusters = device.max_clusters[[1, 2, 4, 8, 16].index(chosen.cluster)]
        assert chosen.wave * chosen.team <= clusters * chosen.cluster
        assert clusters >= 1
    if chosen.regime == Regime.grid:
        assert 1 <= chosen.wave <= S * chosen.groups
        assert chosen.wave * chosen.team <= device.sms
    else:
        assert chosen.wave == 0


@pytest.mark.parametrize("name", ["a100", "l4", "rtx4090"])
def test_no_clusters_before_hopper(name: str) -> None:
    device = gpu_plan.table_device(name)
    boastful = altered(device, max_clusters=H200.max_clusters)  # says it could
    for cell, precision, pass_, H, B in itertools.product(CELLS, PRECISIONS, PASSES, SIZES, (1, 64, 512)):
        for one in (device, boastful):
            assert ask(one, cell, H, B, pass_=pass_, precision=precision).cluster == 1


def test_every_kernel_of_the_table_is_reached_by_some_gpu() -> None:
    """A row of the table that no data sheet has room for is a row too many."""
    devices = [gpu_plan.table_device(name) for name in gpu_plan.TABLE_DEVICES]
    for n, kernel in enumerate(plan.cuda_instances()):
        asked = {"cell": kernel.cell, "pass_": kernel.pass_, "precision": kernel.precision, "masked": kernel.masked}
        assert any(takes(kernel, device, **asked) for device in devices), (
            n,
            kernel.H,
            kernel.exchange,
            kernel.smem_bytes,
        )
        assert kernel.H % kernel.units == kernel.units % 16 == kernel.team % kernel.cluster == 0


# The rules, one by one


def test_a_kernel_takes_what_it_is_built_for() -> None:
    kernel = an_instance()
    assert takes(kernel)
    assert not takes(kernel, cell=Cell.lstm)
    assert not takes(kernel, precision=Precision.fp16)
    assert not takes(kernel, pass_=Pass.backward)
    assert not takes(kernel, H=136)


def test_masks_and_smaller_sizes_need_a_kernel_with_masks() -> None:
    plain, masked = an_instance(), an_instance(masked=True)
    assert not takes(plain, masked=True)
    assert not takes(plain, H=120)
    assert takes(masked)
    assert takes(masked, masked=True)
    assert takes(masked, H=120)
    assert takes(masked, H=8)


@pytest.mark.parametrize("masked", [False, True])
def test_the_split_grid_never_takes_masks(masked: bool) -> None:
    kernel = an_instance(Exchange.split, masked=masked)
    assert takes(kernel)
    assert not takes(kernel, masked=True)
    assert not takes(kernel, H=1016)


@pytest.mark.parametrize("exchange", list(Exchange.__members__.values()))
def test_shared_memory_is_that_of_the_device(exchange: Any) -> None:
    kernel = an_instance(exchange)
    assert takes(kernel, altered(H200, smem_bytes=kernel.smem_bytes))
    assert not takes(kernel, altered(H200, smem_bytes=kernel.smem_bytes - 1))


@pytest.mark.parametrize("exchange", [Exchange.cluster, Exchange.scatter, Exchange.split])
def test_clusters_need_hopper_and_room(exchange: Any) -> None:
    kernel = an_instance(exchange)
    assert takes(kernel)
    assert not takes(kernel, altered(H200, major=8, minor=9))
    place = [1, 2, 4, 8, 16].index(kernel.cluster)
    none = [0 if n == place else most for n, most in enumerate(H200.max_clusters)]
    assert not takes(kernel, altered(H200, max_clusters=none))
    only = [kernel.team // kernel.cluster if n == place else 0 for n in range(5)]
    assert takes(kernel, altered(H200, max_clusters=only))
    if exchange == Exchange.split:  # all clusters of a team at once
        assert not takes(kernel, altered(H200, max_clusters=[0, only[1] - 1, 0, 0, 0]))


@pytest.mark.parametrize("exchange", [Exchange.grid, Exchange.split])
def test_a_grid_is_resident_as_a_whole(exchange: Any) -> None:
    kernel = an_instance(exchange)
    assert not takes(kernel, altered(H200, cooperative=False))
    if exchange == Exchange.grid:
        assert takes(kernel, altered(H200, sms=kernel.team))
        assert not takes(kernel, altered(H200, sms=kernel.team - 1))
    five = ask(H200, H=1024, B=40, regime=Regime.grid, instances=[kernel])
    assert (five.groups, five.wave) == (5, 2)
    assert ask(H200, H=1024, B=8, regime=Regime.grid, instances=[kernel]).wave == 1


@pytest.mark.parametrize("regime", PERSISTENT)
def test_double_outer_derivatives_and_noise_go_step_by_step(regime: Any) -> None:
    for asked in ({"precision": Precision.fp64}, {"derivatives": True, "pass_": Pass.backward}, {"noise": True}):
        assert ask(H200, H=128, **asked).regime == Regime.step
        with pytest.raises(
            ValueError, match=f"^{regime.name}: (got fp64|gradients of the kept values|zoneout and rec)"
        ):
            ask(H200, H=128, regime=regime, **asked)


def test_nothing_is_resident_before_ampere() -> None:
    turing = altered(A100, major=7, minor=5)
    assert ask(turing, H=64).regime == Regime.step
    with pytest.raises(
        ValueError, match=r"^cta: sm_75 is too old: got compute capability 7\.5, expected at least 8\.0$"
    ):
        ask(turing, H=64, regime=Regime.cta)


# Forced regimes


def test_a_forced_regime_is_that_regime_or_a_reason(device: Any) -> None:
    for cell, precision, pass_, H, B in itertools.product(CELLS, PRECISIONS, PASSES, SIZES, (1, 64)):
        asked = {"cell": cell, "H": H, "B": B, "pass_": pass_, "precision": precision}
        costs = [ask(device, regime=Regime.step, **asked).us_per_step]
        for regime in PERSISTENT:
            chosen = ask_or_reason(device, regime=regime, **asked)
            if isinstance(chosen, str):
                assert chosen.startswith(f"{regime.name}: ")
                assert len(chosen) > len(regime.name) + 15
            else:
                assert chosen.regime == regime
                costs.append(chosen.us_per_step)
        free = ask(device, **asked)
        assert free.us_per_step == min(costs), asked  # the cheapest wins


@pytest.mark.parametrize(
    ("device", "regime", "asked", "reason"),
    [
        (A100, "cluster", {}, "sm_80 has no thread block clusters"),
        (H200, "cta", {"H": 1024}, r"W_hh of H = 1024 does not fit one SM, expected H <= \d+"),
        (altered(A100, cooperative=False), "grid", {"H": 1024}, "cannot hold a grid resident"),
        (
            altered(H200, sms=40),
            "grid",
            {"instances": [an_instance(Exchange.grid)], "H": 1024},
            "64 CTAs needed, 40 SMs are there",
        ),
        (
            altered(H200, max_clusters=[132, 0, 0, 0, 0]),
            "cluster",
            {},
            r"clusters of \d+ CTAs needed, the device runs none",
        ),
        (altered(H200, smem_bytes=1024), "cta", {"H": 64}, r"\d+ bytes of shared memory needed, 1024 are there"),
        (
            H200,
            "grid",
            {"instances": [an_instance(Exchange.grid)], "masked": True, "H": 1024},
            "takes no lengths, resets",
        ),
        (
            H200,
            "cta",
            {"instances": [an_instance(H=H, units=H, masked=True) for H in (64, 128, 96)], "H": 136},
            "W_hh of H = 136 does not fit one SM, expected H <= 128",
        ),
        (H200, "grid", {"instances": []}, "this build has no kernel of that regime"),
        (H200, "cta", {"instances": [an_instance()], "cell": Cell.lstm}, "there is no kernel for lstm, bf16, forward"),
    ],
)
def test_a_refusal_says_why(device: Any, regime: Any, asked: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=f"^{regime}: .*{reason}"):
        ask(device, regime=getattr(Regime, regime), **asked)


# The values in Python


def test_a_plan_is_one_line() -> None:
    kernel = an_instance(Exchange.cluster, H=512, units=32, k_split=4, cluster=16, chains=2)
    chosen = ask(H200, regime=Regime.cluster, instances=[kernel])
    assert repr(chosen) == f"cluster of 16, 8x2 rows, 4 groups, 256 threads, 57 KB, {chosen.us_per_step:.2f} us/step"
    assert repr(ask(H200, H=128, B=8, regime=Regime.cta, instances=[an_instance()])).startswith(
        "one CTA, 8x1 rows, 1 group, "
    )
    split = repr(ask(H200, H=1024, regime=Regime.grid, instances=[an_instance(Exchange.split)]))
    assert split.startswith("grid of 64 in clusters of 2, 8x1 rows, 8 groups, ")
    assert repr(ask(H200, H=1024, regime=Regime.grid, instances=[an_instance(Exchange.grid)])).startswith(
        "grid of 64, 8x1"
    )
    step = ask(H200, regime=Regime.step)
    assert repr(step) == f"time-step kernel, {step.us_per_step:.2f} us/step"


def test_the_typed_face_is_the_modules() -> None:
    """fusedrnn/_plan.pyi names what the compiled module has, no more and no less."""
    tree = ast.parse((Path(__file__).parents[1] / "fusedrnn" / "_plan.pyi").read_text())
    named = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    assert set(named) == {name for name in vars(plan) if not name.startswith("_")}
    for name, node in named.items():
        if not isinstance(node, ast.ClassDef):
            continue
        members = {m.name for m in node.body if isinstance(m, ast.FunctionDef)}
        members |= {m.targets[0].id for m in node.body if isinstance(m, ast.Assign)}
        public = {m for m in vars(getattr(plan, name)) if not m.startswith("_")} - {"name", "value"}
        assert members - {"__init__"} == public, name


def test_values_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="B: expected at least 1, got 0"):
        ask(H200, B=0)
    with pytest.raises(ValueError, match="sms: expected at least 1, got 0"):
        altered(H200, sms=0)
    with pytest.raises(ValueError, match="clock_ghz, memory_gbs: expected above 0"):
        altered(H200, clock_ghz=0.0)
    with pytest.raises(ValueError, match="cluster: expected 1, 2, 4, 8 or 16, got 3"):
        an_instance(cluster=3)
    with pytest.raises(AttributeError):
        H200.sms = 1
