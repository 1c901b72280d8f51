"""Which implementation runs a call, and why not another: pure decisions over a `Problem`.

`stack` runs what is chosen here. "auto" takes the first backend that can take the call and is not measured slower
than a later one; a backend asked for by name takes the call or says why it cannot, and never hands it on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, lru_cache

import torch

from . import gpu_plan, measured, modes, ops, products, triton_plan
from .errors import BackendUnavailable, UnsupportedProblem
from .spec import LSTM, OF_THE_LOOP, Problem
from .triton_kernels import config

AUTO = "auto"
Reason = str | None


def _none(_: Problem) -> Reason:
    return None


def _always() -> Reason:
    return None


@dataclass(frozen=True)
class Backend:
    """One implementation.

    Attributes:
        name: what `backend=` calls it.
        what: what it is, in a few words.
        why_not: why it cannot take a problem, None if it can.
        slower: why "auto" passes it over although it can.
        unavailable: why this machine has none of it, None if it has.
    """

    name: str
    what: str
    why_not: Callable[[Problem], Reason] = _none
    slower: Callable[[Problem], Reason] = _none
    unavailable: Callable[[], Reason] = _always


def _loop_why_not(p: Problem) -> Reason:
    """Of the time loop, whichever kernel runs it."""
    if p.zoneout and not p.drawn and p.grad and not p.cell.kept:
        return "in eval it has no gradients of an RNN with zoneout"
    return "it has no projection (proj_size)" if p.proj_size else None


def _cpu_why_not(p: Problem) -> Reason:
    if ops.missing is not None:
        return ops.missing
    if p.device != "cpu":
        return f"it runs on the CPU, the input is on {p.device}"
    if p.dtype not in (torch.float32, torch.float64, torch.bfloat16):
        return f"it computes in float32, float64 and bfloat16, not in {dtype_name(p.dtype)}"
    return _loop_why_not(p)


GPU = "cuda"
"""torch.device.type of what the CUDA kernels run on; tests run them on a stand-in, and say so here."""

REGIMES = ("", "step", "cta", "cluster", "grid")
"""How a CUDA kernel holds the weights, at the index of its code in the ops' `route`; "": as the planner says."""


def has_route(name: str) -> bool:
    """Whether the backend called `name` is of those that take the op's argument `route`."""
    return name.startswith(("cuda", "triton"))


def route(name: str, dtype: torch.dtype) -> int:
    """The ops' `route` for the backend called `name`: its kernels, regime, and whether float32 may be taken as TF32."""
    code = triton_plan.code(name) if name.startswith("triton") else REGIMES.index(name.partition(":")[2])
    return code | products.ALLOW_TF32 if dtype == torch.float32 and products.layers_allow_tf32() else code


def _cuda_why_not(p: Problem) -> Reason:
    if p.device != GPU:
        return f"it runs on NVIDIA GPUs, the input is on {p.device}"
    if ops.cuda_missing is not None:
        return ops.cuda_missing
    if p.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        return f"it computes in float16, bfloat16, float32 and float64, not in {dtype_name(p.dtype)}"
    reason = _loop_why_not(p)
    if reason is None and p.layer_norm and p.H % 8:  # padded weights would change mean and variance
        return f"with layer_norm it takes a multiple of 8 hidden units, not {p.H}"
    return reason


@modes.constant
def _measured_gpu() -> str:
    """The current GPU's name if there is a table of it, else nothing."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "a GPU"
    return name if measured.points(name) else ""


def _cuda_slower(p: Problem) -> Reason:
    name = _measured_gpu()
    if not name:  # nor was it seen right there
        return _UNMEASURED
    if p.traced:
        return None
    faster = _measured_faster(p, name)
    if faster == "triton":
        return f"measured slower than the Triton kernels on {name} for such sizes"
    if _aten_why_not(p) is not None:
        return None  # there is nothing faster to hand it to
    if faster == "aten":
        return f"measured slower than cuDNN on {name} for such sizes"
    if faster is None and gpu_plan.slower_than_cudnn(p):
        return "no such size is measured, and by its planner's model it is slower than cuDNN"
    return None


def _measured_faster(p: Problem, gpu: str) -> str | None:
    able = [name for name, why_not in (("cuda", _cuda_why_not), ("triton", triton_plan.why_not)) if why_not(p) is None]
    return measured.faster(p, gpu, able, tf32=products.layers_allow_tf32())


_UNMEASURED = "nothing is measured on this GPU: `python -m fusedrnn tune` checks and times it"


def _triton_slower(p: Problem) -> Reason:
    if p.device == "cpu":
        return "Triton's interpreter is for tests"
    name = _measured_gpu()
    if not name:
        return _UNMEASURED
    if p.traced or _aten_why_not(p) is not None:
        return None
    faster = _measured_faster(p, name)
    if faster == "triton":
        return None
    rival = "the CUDA kernels" if faster == "cuda" else "cuDNN"
    return f"not measured faster than {rival} on {name} for such sizes"


def _cpu_slower(p: Problem) -> Reason:
    if p.traced or _aten_why_not(p) is not None:
        return None  # there is nothing faster to hand it to
    return next((reason for holds, reason in CPU_SLOWER if holds(p)), None)


@cache
def multiplies_bf16() -> bool:
    """Whether this processor has instructions for products of bfloat16, which torch uses."""
    return any(getattr(torch.cpu, f"_is_{name}_supported", bool)() for name in ("avx512_bf16", "amx_tile"))


def _infers_by_amx(p: Problem) -> bool:
    """Whether the fused kernel multiplies bfloat16 as well: with AMX, where nothing is kept for backward."""
    return p.dtype == torch.bfloat16 and not p.grad and ops.instruction_set == "amx"


CPU_SLOWER: tuple[tuple[Callable[[Problem], bool], str], ...] = (
    (
        lambda p: ops.instruction_set == "generic" and p.B >= 16 and p.H >= 128,
        "measured slower than torch on a machine without AVX2, from B = 16 and H = 128",
    ),
    (
        lambda p: (
            p.dtype == torch.bfloat16
            and multiplies_bf16()
            and not _infers_by_amx(p)
            and (p.cell is LSTM or p.B * p.H**2 >= 2**21 or (p.T * p.B <= 4 and p.H >= 512))
        ),
        "measured slower than torch, which uses this processor's own products of bfloat16",
    ),
    (
        lambda p: _infers_by_amx(p) and p.cell is not LSTM and p.T <= 2 and p.T * p.B > 4 and p.H >= 1024,
        "measured slower than torch on one or two steps of a bfloat16 layer this wide, whose weights it lays out anew",
    ),
    (
        lambda p: p.dtype == torch.float64 and p.H >= 256 and (p.T * p.B <= 4 or (p.T == 1 and p.B <= 16)),
        "measured slower than torch on so few steps in float64, where it lays out the weights anew in any case",
    ),
    (
        lambda p: p.cell is not LSTM and p.grad and p.T * p.B == 1 and p.H >= 1024,
        "measured slower than torch in training on a single step of a single row this wide",
    ),
)
"""Where the CPU kernel is slower than torch's own op, by timing layers with backend="cpu" against torch's.

`python -m benchmarks sweep --provider fusedrnn-cpu` asks again; benchmarks/results/sweep.md holds what "auto" comes to.
"""


def _aten_why_not(p: Problem) -> Reason:
    own = ("lengths", "reset", "return_states", "recompute", "bptt", *OF_THE_LOOP)
    asked = [name for name in own if getattr(p, name)]
    return f"torch's own op has no {', '.join(asked)}" if asked else None


def _aten_slower(p: Problem) -> Reason:
    # not slow but fragile: vmap rules are missing, and compilers unroll the time loop
    return "torch.compile, torch.export, torch.func and forward mode do not take it whole" if p.traced else None


BACKENDS = (
    Backend("cuda", "fused CUDA kernel", _cuda_why_not, _cuda_slower, lambda: ops.cuda_missing),
    Backend("triton", "fused Triton kernel", triton_plan.why_not, _triton_slower, lambda: triton_plan.missing()),
    Backend("cpu", "fused C++ kernel", _cpu_why_not, _cpu_slower, lambda: ops.missing),
    Backend("aten", "torch's own op", _aten_why_not, _aten_slower),
    Backend("reference", "loop of PyTorch ops, the specification"),
)
"""Every backend, in the order in which "auto" asks them."""

_BY_NAME = {backend.name: backend for backend in BACKENDS}
_FORCED_REGIMES = {f"cuda:{regime}": gpu_plan.refusal for regime in REGIMES[1:]}
_FORCED_REGIMES |= {f"triton:{regime}": triton_plan.refusal for regime in config.REGIMES[1:]}

NAMES = (AUTO, *_BY_NAME, *_FORCED_REGIMES, "cudnn")
"""What `backend=` may be. "cuda:REGIME" and "triton:REGIME" force how these kernels hold the weights; "cudnn" is
torch's own op on a GPU."""


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Runs every layer called inside on backend `name`, whatever the layer's own `backend` says.

    Holds for the current thread or task. A graph compiled or exported inside keeps the backend it was made with; a
    function that torch.compile takes whole cannot enter it, the caller can.

    Raises:
        ValueError: there is no such backend.
    """
    check_name(name)
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


_forced: ContextVar[str | None] = ContextVar("fusedrnn.use_backend", default=None)


@modes.constant
def override() -> str | None:
    """The backend that `use_backend` demands here and now, None outside of it."""
    return _forced.get()


def check_name(name: str) -> None:
    """Raises ValueError if there is no backend called `name`."""
    if name not in NAMES:
        raise ValueError(f"Unknown backend {name!r}; expected one of {', '.join(map(repr, NAMES))}")


def choose(name: str, problem: Problem) -> str:
    """The backend that runs `problem` where `name` is asked for.

    Raises:
        ValueError: there is no such backend.
        UnsupportedProblem: the backend asked for cannot take the problem.
        BackendUnavailable: the backend asked for does not exist on this machine.
    """
    name = override() or name
    # a symbolic T has no hash, and a cache is nothing a graph can hold
    if problem.traced or not isinstance(problem.T, int):
        return pick(name, problem)
    return _remembered(name, problem, _gpu_state() if problem.device == "cuda" else None)


def _gpu_state() -> object:
    """What else the choice on a GPU depends on: which GPU, and whether TF32 is allowed."""
    return torch.cuda.is_available() and torch.cuda.current_device(), products.layers_allow_tf32()


def pick(name: str, problem: Problem) -> str:
    """`choose` as if `use_backend` stood nowhere, and without a memory."""
    if name == AUTO:
        able = [backend for backend in BACKENDS if backend.why_not(problem) is None]
        return next((backend for backend in able if backend.slower(problem) is None), able[-1]).name
    check_name(name)
    reason = _cudnn_why_not(problem) if name == "cudnn" else None
    backend = _BY_NAME["aten" if name == "cudnn" else name.partition(":")[0]]
    missing = backend.unavailable()
    if missing is not None:
        raise BackendUnavailable(f"backend {name!r}: {missing}")
    reason = reason or backend.why_not(problem)
    if reason is None and name in _FORCED_REGIMES:
        reason = _FORCED_REGIMES[name](problem, name.partition(":")[2])
    if reason is not None:
        raise UnsupportedProblem(f"backend {name!r} cannot take this call: {reason}; backend='auto' finds one that can")
    return name if name in _FORCED_REGIMES else backend.name


@lru_cache(maxsize=4096)
def _remembered(name: str, problem: Problem, _: object) -> str:
    return pick(name, problem)


def _cudnn_why_not(p: Problem) -> Reason:
    return None if p.device == "cuda" else f"cuDNN runs on a GPU, the input is on {p.device}"


def dtype_name(dtype: torch.dtype) -> str:
    """The dtype's name in torch."""
    return str(dtype).removeprefix("torch.")
