"""What the CUDA planner would do with a call, as text and as values. Needs no GPU, and no CUDA in torch.

The planner itself is csrc/cuda/plan.cpp; here are the numbers of GPUs that it is asked about, and what of a `Problem`
it has to know.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

from .spec import Problem

if TYPE_CHECKING:
    from . import _plan

# name: compute capability, SMs, shared memory of a CTA (KB), L2 (MB), clock (GHz), memory (GB/s), clusters of 1 to 16
# CTAs resident at once. Shared memory: CUDA C++ Programming Guide, technical specifications per compute capability.
# The most clusters are assumptions, to be asked of the driver where there is one: the SMs of a GPC bound them. For 8
# CTAs, 120 of an H100's 132 SMs are reported (NVIDIA/cutlass issue 1921). H100 and H200 are one chip.
_NO_CLUSTERS = (0, 0, 0, 0, 0)
_HOPPER_CLUSTERS = (132, 66, 32, 15, 6)
_TABLE: dict[str, tuple[tuple[int, int], int, int, int, float, float, tuple[int, ...]]] = {
    # NVIDIA H100 Tensor Core GPU data sheet (SXM): 3.35 TB/s, 989 TFLOP/s dense bf16 = 132 SMs x 4096 FLOP x 1.83 GHz
    "h100": ((9, 0), 132, 227, 50, 1.83, 3350, _HOPPER_CLUSTERS),
    # NVIDIA H200 Tensor Core GPU data sheet (SXM): 4.8 TB/s, 989 TFLOP/s
    "h200": ((9, 0), 132, 227, 50, 1.83, 4800, _HOPPER_CLUSTERS),
    # NVIDIA A100 80GB data sheet (SXM): 2039 GB/s; A100 architecture white paper: 108 SMs, 40 MB of L2, 1.41 GHz
    "a100": ((8, 0), 108, 163, 40, 1.41, 2039, _NO_CLUSTERS),
    # NVIDIA L4 data sheet: 300 GB/s, 7424 cores = 58 SMs, 48 MB of L2, 2.04 GHz
    "l4": ((8, 9), 58, 99, 48, 2.04, 300, _NO_CLUSTERS),
    # NVIDIA Ada GPU architecture white paper, GeForce RTX 4090: 1008 GB/s, 128 SMs, 72 MB of L2, 2.52 GHz
    "rtx4090": ((8, 9), 128, 99, 72, 2.52, 1008, _NO_CLUSTERS),
    # NVIDIA DGX B200 data sheet: 64 TB/s of 8 GPUs. 148 SMs, 126 MB of L2: device queries that users published;
    # 2.25 PFLOP/s dense bf16 = 148 SMs x 8192 FLOP x 1.86 GHz
    "b200": ((10, 0), 148, 227, 126, 1.86, 8000, (148, 74, 36, 16, 7)),
}
TABLE_DEVICES = tuple(_TABLE)
"""GPUs that `table_device` knows."""

_PRECISIONS = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.float64: "fp64"}


def table_device(name: str) -> _plan.Device:
    """A GPU from its data sheet, to plan for where there is none.

    Args:
        name: one of `TABLE_DEVICES`.

    Raises:
        ValueError: `name` is none of them.
        RuntimeError: the planner's module is not there.
    """
    if name not in _TABLE:
        raise ValueError(f"Unknown GPU {name!r}; expected one of {', '.join(map(repr, _TABLE))}")
    planner = _planner()
    if planner is None:
        raise RuntimeError("the planner's module fusedrnn._plan is missing; `python -m fusedrnn` says how to build it")
    (major, minor), sms, smem_kb, l2_mb, clock_ghz, memory_gbs, max_clusters = _TABLE[name]
    device: _plan.Device = planner.Device(
        major=major,
        minor=minor,
        sms=sms,
        smem_bytes=smem_kb << 10,
        l2_bytes=l2_mb << 20,
        clock_ghz=clock_ghz,
        memory_gbs=memory_gbs,
        max_clusters=max_clusters,
    )
    return device


def describe(problem: Problem, device: Any, *, regime: str = "automatic", tf32: bool | None = None) -> str | None:
    """The plans of a call's layers as text: a line for forward and, where a gradient is wanted, one for backward.

    All layers of a call have the same plan: it does not depend on their input, whose projection is no part of the
    kernel. Sizes that torch.compile keeps open, and empty batches, have none.

    Args:
        problem: the call.
        device: torch.cuda.get_device_properties(...), or what `table_device` returns. Of the former's clusters nothing
            is known: as many are assumed as on an H100, by the number of SMs.
        regime: "automatic", "step", "cta", "cluster" or "grid".
        tf32: whether products of float32 are computed in TF32; None asks torch.backends.cudnn.rnn.fp32_precision.

    Returns:
        The text, None where there is no plan. A regime that cannot take the call gives its reason in place of the plan.

    Raises:
        ValueError: there is no such regime.
    """
    lines = [
        f"{name:<9} no: {plan}" if isinstance(plan, str) else f"{name:<9} {plan!r}"
        for name, plan in plans(problem, device, regime, tf32).items()
    ]
    head = [] if problem.L == 1 else [f"each of {problem.L} layers:"]
    return "\n".join([*head, *lines]) if lines else None


def plans(
    problem: Problem, device: Any, regime: str = "automatic", tf32: bool | None = None
) -> dict[str, _plan.CudaPlan | str]:
    """The plans of a call's passes, "forward" and "backward", or why there is none; arguments as of `describe`."""
    planner = _planner()
    if planner is None or problem.dtype not in _PRECISIONS or problem.proj_size:
        return {}
    if not (isinstance(problem.T, int) and isinstance(problem.B, int)) or min(problem.T, problem.B) < 1:
        return {}
    if regime not in planner.Regime.__members__:
        raise ValueError(
            f"Unknown regime {regime!r}; expected one of {', '.join(map(repr, planner.Regime.__members__))}"
        )
    target = device if isinstance(device, planner.Device) else _from_properties(planner, device)
    shape = planner.Shape(
        cell=getattr(planner.Cell, problem.cell.name),
        T=problem.T,
        B=problem.B,
        H=(problem.H + 7) // 8 * 8,  # as the ops pad it
        S=problem.D,
        directions=problem.D,
    )
    found: dict[str, _plan.CudaPlan | str] = {}
    for name in ("forward", "backward") if problem.grad else ("forward",):
        try:
            found[name] = planner.cuda_plan(
                shape,
                target,
                pass_=getattr(planner.Pass, name),
                precision=getattr(planner.Precision, _precision(problem, tf32)),
                masked=problem.lengths or problem.reset or problem.packed,
                noise=problem.zoneout or problem.recurrent_dropout,
                norm=problem.layer_norm,
                reset_state=problem.reset_state,
                regime=getattr(planner.Regime, regime),
            )
        except ValueError as error:
            found[name] = str(error)
    return found


def refusal(problem: Problem, regime: str) -> str | None:
    """Why `regime` cannot take a call on the current GPU, None if it can.

    Args:
        problem: the call.
        regime: "step", "cta", "cluster" or "grid".
    """
    if regime == "step":
        return None
    found = plans(problem, _current_device(), regime).values()
    return next((reason for reason in found if isinstance(reason, str)), None)


def current(problem: Problem, backend: str) -> str | None:
    """`describe` for the current GPU and a backend's name, "cuda" or "cuda:REGIME"."""
    return describe(problem, _current_device(), regime=backend.partition(":")[2] or "automatic")


def regime(problem: Problem, backend: str) -> str | None:
    """The regime of the forward pass on the current GPU, for "cuda" or "cuda:REGIME"."""
    found = plans(problem, _current_device(), backend.partition(":")[2] or "automatic").get("forward")
    return None if found is None or isinstance(found, str) else str(found.regime.name)


CUDNN_US = {"forward": 12.0, "backward": 25.0}
"""Microseconds that cuDNN's kernel a step takes, about: research of 2021 and of other GPUs, no measurement of ours."""


def slower_than_cudnn(problem: Problem) -> bool:
    """Whether the planner's model gives a step more time, on the current GPU, than cuDNN takes."""
    found = plans(problem, _current_device())
    return any(not isinstance(plan, str) and plan.us_per_step > CUDNN_US[name] for name, plan in found.items())


def _current_device() -> Any:
    """The current GPU's properties; where there is none, an H200's, if there is a planner to ask at all."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties()
    return table_device("h200") if _planner() else None


def _precision(problem: Problem, tf32: bool | None) -> str:
    if problem.dtype != torch.float32:
        return _PRECISIONS[problem.dtype]
    if tf32 is None:
        tf32 = torch.backends.cudnn.rnn.fp32_precision == "tf32"  # type: ignore[attr-defined]
    return "tf32" if tf32 else "fp32"


def _from_properties(planner: ModuleType, properties: Any) -> _plan.Device:
    """A Device of torch's properties of a GPU."""
    sms, major = properties.multi_processor_count, properties.major
    hopper = _HOPPER_CLUSTERS[0]
    clusters = [sms * n // hopper for n in _HOPPER_CLUSTERS] if major >= 9 else _NO_CLUSTERS
    per_sm = properties.shared_memory_per_multiprocessor
    device: _plan.Device = planner.Device(
        major=major,
        minor=properties.minor,
        sms=sms,
        smem_bytes=per_sm - 1024,  # of which the driver keeps 1 KB a CTA: Programming Guide, compute capability 8.x on
        l2_bytes=properties.L2_cache_size,
        clock_ghz=properties.clock_rate / 1e6,  # given in kHz
        memory_gbs=2 * properties.memory_clock_rate * 1e3 * properties.memory_bus_width / 8 / 1e9,  # double data rate
        max_clusters=clusters,
    )
    return device


@functools.cache
def _planner() -> ModuleType | None:
    try:
        from . import _plan
    except ImportError:
        return None
    return _plan
