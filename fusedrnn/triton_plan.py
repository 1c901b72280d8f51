"""Whether Triton can run a call, and how: the questions of `triton_kernels.config`, asked with torch's words."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import re
import shutil
from collections.abc import Sequence

import torch

from . import modes, ops, products
from .spec import Problem
from .triton_kernels import config

OLDEST = (3, 6)
NAMES = ("triton", "pytorch-triton", "triton-windows")
"""Distributions that bring the module `triton`."""
DTYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32", torch.float64: "fp64"}

INTERPRETED_AS = config.Device(sm=90, sms=1, smem_bytes=232448)
"""What Triton's interpreter passes for. One SM: it runs one program after the other, so none may wait for another."""
ROWS = 2**31
"""More rows of a sequence, [T, B, S], than there may be."""
STREAMS = 65535
"""As many as a launch may have."""
ASSUMED = config.Device(sm=90, sms=132, smem_bytes=232448)
"""For plans on a machine without a GPU: an H200."""


@modes.constant
def missing() -> str | None:
    """Why the Triton kernels cannot run on this machine, None if they can."""
    return _triton_missing()


@functools.cache
def _triton_missing() -> str | None:
    version = _version()
    if version is None:
        return "Triton is not installed (`pip install triton`)"
    if tuple(int(n) for n in re.findall(r"\d+", version)[:2]) < OLDEST:
        return f"Triton {version} is installed, it needs 3.6 or newer (`pip install --upgrade triton`)"
    if torch.version.hip is not None:
        return "the Triton kernels are for NVIDIA GPUs, this torch is built for AMD's"
    if os.name == "posix" and not (
        interpreting() or os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    ):
        return "Triton builds its launchers with a C compiler, and there is none: install gcc or clang, or set CC"
    return None


def _version() -> str | None:
    """Triton's, without importing it, which takes a second; None if it is not installed."""
    try:
        if importlib.util.find_spec("triton") is None:
            return None
    except (ImportError, ValueError):  # somebody's import hook, or a stub in sys.modules, says no
        return None
    for name in NAMES:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


@modes.constant
def interpreting() -> bool:
    """Whether Triton's interpreter stands in for a GPU: TRITON_INTERPRET=1, read as Triton reads it."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


def why_not(problem: Problem) -> str | None:
    """Why the Triton kernels cannot take a call, None if they can."""
    if problem.device != "cuda" and not (problem.device == "cpu" and interpreting()):
        absent = missing()
        return f"it runs on NVIDIA GPUs, the input is on {problem.device}" + (f"; and {absent}" if absent else "")
    if missing() is not None:
        return missing()
    if problem.dtype not in DTYPES:
        dtype = str(problem.dtype).removeprefix("torch.")
        return f"it computes in float16, bfloat16, float32 and float64, not in {dtype}"
    if problem.proj_size:
        return "it has no projection (proj_size)"
    if problem.layer_norm:
        return "its kernels have no layer_norm"
    if problem.reset_state:
        return "its kernels have no reset_state: there a reset goes back to zeros"
    if problem.zoneout and not problem.drawn and problem.grad and not problem.cell.kept:
        return "in eval it has no gradients of an RNN with zoneout"
    if _current(problem).sm < 80:
        return "it needs a GPU of compute capability 8.0 or newer"
    if not problem.traced and not problem.packed and problem.T * problem.B * problem.D >= ROWS:
        return (
            f"it counts rows in 32 bits, got {problem.T} steps of {problem.B} rows in {problem.D} directions; "
            "call it on parts of the batch"
        )
    return None


def plan(
    cell: int,
    T: int,
    B: int,
    S: int,
    H: int,
    dtype: torch.dtype,
    route: int,
    backward: bool,
    masked: bool,
    rates: Sequence[float],
    gpu: int | None,
) -> config.Plan:
    """How one pass of the recurrence runs.

    Args:
        cell: its code.
        T: steps.
        B: rows.
        S: streams.
        H: hidden units.
        dtype: of the tensors.
        route: as of `backends.route`.
        backward: which pass.
        masked: whether rows have lengths, resets or offsets.
        rates: as of the ops.
        gpu: index of the GPU; None for the interpreter.

    Raises:
        ValueError: the regime that `route` names cannot take it; says why.
    """
    device = INTERPRETED_AS if gpu is None or interpreting() else _device(gpu)
    regime = config.REGIMES[route & 7]
    tf32, noise = bool(route & products.ALLOW_TF32), (any(rates[:2]), any(rates[2:]))
    return _plan(cell, T, B, S, H, DTYPES[dtype], tf32, backward, masked, *noise, device, regime)


@functools.lru_cache(maxsize=4096)
def _plan(
    cell: int,
    T: int,
    B: int,
    S: int,
    H: int,
    dtype: str,
    tf32: bool,
    backward: bool,
    masked: bool,
    zoneout: bool,
    dropout: bool,
    device: config.Device,
    regime: str,
) -> config.Plan:
    # full float32 is three products of TF32: Triton's own "ieee" does without tensor cores, and with LSTM tiles its
    # compiler aborts
    precision = ("tf32" if tf32 else "tf32x3") if dtype == "fp32" else "ieee"
    return config.plan(cell, T, B, S, H, dtype, precision, backward, device, regime, masked, zoneout, dropout)


def _current(problem: Problem) -> config.Device:
    if problem.device == "cpu" or interpreting():
        return INTERPRETED_AS
    return _of_this_machine()


@modes.constant
def _of_this_machine() -> config.Device:
    return _device(torch.cuda.current_device()) if torch.cuda.is_available() else ASSUMED


@functools.cache
def _device(gpu: int) -> config.Device:
    properties = torch.cuda.get_device_properties(gpu)
    return config.Device(
        sm=10 * properties.major + properties.minor,
        sms=properties.multi_processor_count,
        smem_bytes=properties.shared_memory_per_block_optin,  # type: ignore[attr-defined]
    )


def plans(problem: Problem, regime: str = "") -> dict[str, config.Plan | str]:
    """The plans of a call's passes, "forward" and "backward", on the current GPU, or why there is none.

    All layers of a call have the same. Sizes that torch.compile keeps open, and empty batches, have none.
    """
    if not (isinstance(problem.T, int) and isinstance(problem.B, int)) or min(problem.T, problem.B) < 1:
        return {}
    if problem.dtype not in DTYPES or problem.proj_size:
        return {}
    found: dict[str, config.Plan | str] = {}
    for name in ("forward", "backward") if problem.grad else ("forward",):
        try:
            found[name] = _plan(
                problem.cell.code,
                problem.T,
                problem.B,
                problem.D,
                problem.H,
                DTYPES[problem.dtype],
                products.layers_allow_tf32(),
                name == "backward",
                problem.lengths or problem.reset or problem.packed,
                problem.zoneout,
                problem.recurrent_dropout,
                _current(problem),
                regime,
            )
        except ValueError as error:
            found[name] = str(error)
    return found


def refusal(problem: Problem, regime: str) -> str | None:
    """Why `regime`, one of `config.REGIMES`, cannot take a call on the current GPU; None if it can."""
    return next((reason for reason in plans(problem, regime).values() if isinstance(reason, str)), None)


def describe(problem: Problem, backend: str) -> str | None:
    """The plans of a call on backend "triton" or "triton:REGIME" as text, a line a pass; None where there is none."""
    found = plans(problem, backend.partition(":")[2])
    head = [] if problem.L == 1 else [f"each of {problem.L} layers:"]
    return "\n".join([*head, *(f"{name:<9} {chosen}" for name, chosen in found.items())]) if found else None


def regime(problem: Problem, backend: str) -> str | None:
    """The regime of the forward pass of a call on backend "triton" or "triton:REGIME"."""
    found = plans(problem, backend.partition(":")[2]).get("forward")
    return None if found is None or isinstance(found, str) else found.regime


def code(name: str) -> int:
    """The ops' `route` for a backend called "triton" or "triton:REGIME", without the bit of TF32."""
    return ops.TRITON | config.REGIMES.index(name.partition(":")[2])
