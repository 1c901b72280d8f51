"""What the CUDA planner predicts: orders that must hold on any GPU, and numbers that were worked out before it."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
from devices import (
    CELLS,
    H200,
    PASSES,
    PERSISTENT,
    PRECISIONS,
    Cell,
    Exchange,
    Pass,
    Regime,
    altered,
    an_instance,
    ask,
    fields,
    plan,
)

from fusedrnn import gpu_plan


@pytest.fixture(params=gpu_plan.TABLE_DEVICES)
def device(request: pytest.FixtureRequest) -> Any:
    """Each GPU of the tables."""
    return gpu_plan.table_device(request.param)


@pytest.mark.parametrize(
    ("kernel", "smem_kb"),
    [  # counted by hand from the prototype's layout, and compiled with it
        (an_instance(), 4),
        (an_instance(H=192, units=192, k_registers=6), 114),
        (an_instance(cell=Cell.lstm, H=192, units=192, k_registers=4), 198),
        (an_instance(H=192, units=192, k_registers=18, pass_=Pass.backward), 126),
        (an_instance(Exchange.cluster, H=512, units=32, k_split=4, cluster=16), 28),
        (an_instance(Exchange.cluster, H=512, units=32, k_split=4, cluster=16, chains=2), 56),
        (an_instance(Exchange.cluster, H=768, units=48, k_split=2, k_registers=14, cluster=16), 123),
        (an_instance(Exchange.scatter, H=512, units=32, k_split=4, cluster=16), 35),
        (an_instance(Exchange.scatter, cell=Cell.lstm, H=768, units=48, k_split=2, k_registers=48, cluster=16), 198),
        (an_instance(Exchange.grid), 24),
        (an_instance(Exchange.grid, H=2048, k_registers=34, pass_=Pass.backward), 64),
        (an_instance(Exchange.grid, cell=Cell.lstm, H=2048, k_registers=10), 128),
    ],
)
def test_shared_memory_is_what_the_kernels_use(kernel: Any, smem_kb: int) -> None:
    assert round(kernel.smem_bytes / 1024) == smem_kb


@pytest.mark.parametrize(
    ("kernel", "us"),
    [  # from the model that was written before the planner, at the same clock
        (an_instance(), 0.37),
        (an_instance(cell=Cell.lstm), 0.45),
        (an_instance(Exchange.cluster, H=512, units=32, k_split=4, cluster=16), 0.80),
        (an_instance(Exchange.cluster, cell=Cell.lstm, H=512, units=32, k_split=4, cluster=16), 0.89),
        (an_instance(Exchange.scatter, H=512, units=32, k_split=4, cluster=16), 1.06),
        (an_instance(Exchange.grid), 1.24),
        (an_instance(Exchange.grid, pass_=Pass.backward), 2.02),
    ],
)
def test_the_model_is_the_one_that_was_published(kernel: Any, us: float) -> None:
    device = altered(H200, clock_ghz=1.85)
    asked = {"cell": kernel.cell, "H": kernel.H, "pass_": kernel.pass_, "regime": kernel.regime}
    assert ask(device, B=8, T=10**6, instances=[kernel], **asked).us_per_step == pytest.approx(us, rel=0.04)


@pytest.mark.parametrize("masked", [False, True])
def test_more_rows_are_never_cheaper(device: Any, masked: bool) -> None:
    for cell, precision, pass_, H in itertools.product(CELLS, PRECISIONS, PASSES, (64, 256, 512, 1000, 1024, 2048)):
        last = 0.0
        for B in (*range(1, 34), 40, 48, 63, 64, 65, 96, 128, 129, 200, 256, 400, 512, 513, 1024):
            us = ask(device, cell, H, B, pass_=pass_, precision=precision, masked=masked).us_per_step
            assert us >= 0.99 * last, (cell, precision, pass_, H, B)
            last = us


def test_more_streams_faster_clocks_and_longer_calls(device: Any) -> None:
    for cell, precision, H, B in itertools.product(CELLS, PRECISIONS, (64, 256, 1024), (1, 64, 512)):
        asked = {"cell": cell, "precision": precision, "H": H, "B": B}
        us = ask(device, **asked).us_per_step
        assert ask(device, S=2, **asked).us_per_step >= us
        assert ask(device, T=8, **asked).us_per_step >= us  # what a call costs is shared by fewer steps
        assert ask(altered(device, clock_ghz=2 * device.clock_ghz), **asked).us_per_step <= us


def test_teams_that_are_not_resident_wait_for_those_that_are() -> None:
    kernel = an_instance(Exchange.cluster, H=512, units=32, k_split=4, cluster=16)
    six, seven = (ask(H200, B=8 * teams, T=10**6, regime=Regime.cluster, instances=[kernel]) for teams in (6, 7))
    assert (six.groups, seven.groups) == (6, 7)
    assert seven.us_per_step == pytest.approx(2 * six.us_per_step, rel=0.01)


def test_one_step_is_a_step() -> None:
    """Packing the weights for a resident kernel does not pay for a single step."""
    for cell, pass_ in itertools.product(CELLS, PASSES):
        assert ask(H200, cell, 256, 1, T=1, pass_=pass_).regime == Regime.step
        assert ask(H200, cell, 256, 1, T=100, pass_=pass_).regime in PERSISTENT


def test_memory_bounds_what_chips_could_do_faster() -> None:
    slow = altered(H200, memory_gbs=1)
    assert ask(slow, H=64).us_per_step > 64 * 64 * 8 * 2 / 1e3  # gates, kept values and output of 64 rows


def test_a_plan_is_a_pure_function() -> None:
    """The same whatever was asked before, and whatever the order of the table."""
    chance = random.Random(0)
    table = plan.cuda_instances()
    shuffled = chance.sample(table, len(table))
    cases = list(itertools.product(gpu_plan.TABLE_DEVICES, CELLS, PRECISIONS, PASSES, (72, 512, 1024), (1, 65)))
    chance.shuffle(cases)
    first = [answer(case) for case in cases[:400]]
    assert [fields(answer(case)) for case in reversed(cases[:400])] == [fields(one) for one in reversed(first)]
    for case, one in zip(cases[:40], first, strict=False):
        other = answer(case, instances=shuffled)
        assert other.us_per_step == one.us_per_step


def answer(case: tuple[Any, ...], **asked: Any) -> Any:
    name, cell, precision, pass_, H, B = case
    return ask(gpu_plan.table_device(name), cell, H, B, pass_=pass_, precision=precision, **asked)
