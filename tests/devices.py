"""Requests to the CUDA planner, the GPUs they are planned for, and kernels to choose from, for its tests."""

from __future__ import annotations

from typing import Any

import pytest

from fusedrnn import gpu_plan

plan = pytest.importorskip("fusedrnn._plan", reason="the planner's module is not built")

Cell, Pass, Precision, Regime, Exchange = plan.Cell, plan.Pass, plan.Precision, plan.Regime, plan.Exchange
CELLS, PASSES, PRECISIONS = [list(kind.__members__.values()) for kind in (Cell, Pass, Precision)]
GATED, HALVES = (Cell.gru, Cell.lstm), (Precision.bf16, Precision.fp16)
PERSISTENT = (Regime.cta, Regime.cluster, Regime.grid)
T = 512
SIZES = (8, 64, 72, 128, 136, 176, 192, 256, 264, 384, 512, 520, 768, 776, 1024, 1032, 1536, 2048)
ROWS = (1, 8, 9, 16, 64, 65, 128, 512)
FIELDS = ("regime", "instance", "groups", "team", "cluster", "threads", "smem_bytes", "wave", "us_per_step")


def ask(
    device: Any,
    cell: Any = Cell.gru,
    H: int = 512,
    B: int = 64,
    S: int = 1,
    T: int = T,
    pass_: Any = Pass.forward,
    precision: Any = Precision.bf16,
    **asked: Any,
) -> Any:
    """The plan of a request."""
    shape = plan.Shape(cell=cell, T=T, B=B, H=H, S=S)
    return plan.cuda_plan(shape, device, pass_=pass_, precision=precision, **asked)


def fields(chosen: Any) -> tuple[Any, ...]:
    return tuple(getattr(chosen, name) for name in FIELDS)


def altered(device: Any, **changes: Any) -> Any:
    """The GPU with other numbers."""
    names = (
        "major",
        "minor",
        "sms",
        "smem_bytes",
        "l2_bytes",
        "clock_ghz",
        "memory_gbs",
        "cooperative",
        "max_clusters",
    )
    return plan.Device(**{name: getattr(device, name) for name in names} | changes)


H200 = gpu_plan.table_device("h200")
A100 = gpu_plan.table_device("a100")


def an_instance(exchange: Any = Exchange.cta, **changes: Any) -> Any:
    """A kernel, of a shape that fits its exchange."""
    shapes = {
        Exchange.cta: {"H": 128, "units": 128},
        Exchange.cluster: {"H": 256, "units": 32, "k_split": 4, "cluster": 8},
        Exchange.scatter: {"H": 256, "units": 32, "k_split": 4, "cluster": 8, "pass_": Pass.backward},
        Exchange.grid: {"H": 1024, "units": 16, "k_split": 8},
        Exchange.split: {"H": 1024, "units": 16, "k_split": 8, "cluster": 2},
    }
    common = {"cell": Cell.gru, "precision": Precision.bf16, "pass_": Pass.forward, "masked": False}
    return plan.Instance(exchange=exchange, **common | shapes[exchange] | changes)


def ask_or_reason(device: Any, **asked: Any) -> Any:
    """The plan, or the text of the refusal."""
    try:
        return ask(device, **asked)
    except ValueError as error:
        return str(error)


def takes(instance: Any, device: Any = H200, **asked: Any) -> bool:
    """Whether a table of this one kernel serves the request, rather than the time-step kernel."""
    asked = {"H": instance.H, "pass_": instance.pass_, "regime": instance.regime} | asked
    chosen = ask_or_reason(device, instances=[instance], **asked)
    if isinstance(chosen, str):  # nor may it be chosen where nobody asked for it
        assert (
            ask(device, instances=[instance], **asked | {"regime": Regime.automatic, "T": 10**6}).regime == Regime.step
        )
    return not isinstance(chosen, str) and chosen.instance == 0
