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
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from . import gpu_plan, measured, modes, ops, products
from .errors import BackendUnavailable, UnsupportedProblem
from .spec import LSTM, Problem, by_mode

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


def _cpu_why_not(p: Problem) -> Reason:
    if ops.missing is not None:
        return ops.missing
    if p.device != "cpu":
        return f"it runs on the CPU, the input is on {p.device}"
    if p.dtype not in (torch.float32, torch.float64, torch.bfloat16):
        return f"it computes in float32, float64 and bfloat16, not in {_name(p.dtype)}"
    return "it has no projection (proj_size)" if p.proj_size else None


GPU = "cuda"
"""torch.device.type of what the CUDA kernels run on; tests run them on a stand-in, and say so here."""

REGIMES = ("", "step", "cta", "cluster", "grid")
"""How a CUDA kernel holds the weights, at the index of its code in the ops' `route`; "": as the planner says."""


def route(name: str, dtype: torch.dtype) -> int:
    """The ops' `route` for the backend called `name`: its regime, and whether float32 may be multiplied as TF32."""
    code = REGIMES.index(name.partition(":")[2])
    return code | products.ALLOW_TF32 if dtype == torch.float32 and products.layers_allow_tf32() else code


def _cuda_why_not(p: Problem) -> Reason:
    if p.device != GPU:
        return f"it runs on NVIDIA GPUs, the input is on {p.device}"
    if ops.cuda_missing is not None:
        return ops.cuda_missing
    if p.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        return f"it computes in float16, bfloat16, float32 and float64, not in {_name(p.dtype)}"
    return "it has no projection (proj_size)" if p.proj_size else None


@modes.constant
def _measured_gpu() -> str:
    """The current GPU's name if there is a table of it, else nothing."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "a GPU"
    return name if measured.points(name) else ""


def _cuda_slower(p: Problem) -> Reason:
    name = _measured_gpu()
    if not name:  # nor was it seen right there
        return "nothing is measured on this GPU: `python -m fusedrnn tune` checks and times it"
    if p.traced or _aten_why_not(p) is not None:
        return None  # there is nothing faster to hand it to
    faster = measured.faster(p, name, tf32=products.layers_allow_tf32())
    if faster == "aten":
        return f"measured slower than cuDNN on {name} for such sizes"
    if faster is None and gpu_plan.slower_than_cudnn(p):
        return "no such size is measured, and by its planner's model it is slower than cuDNN"
    return None


def _cpu_slower(p: Problem) -> Reason:
    if p.traced or _aten_why_not(p) is not None:
        return None  # there is nothing faster to hand it to
    return next((reason for holds, reason in CPU_SLOWER if holds(p)), None)


@cache
def multiplies_bf16() -> bool:
    """Whether this processor has instructions for products of bfloat16: torch uses them, the fused kernel does not."""
    return any(getattr(torch.cpu, f"_is_{name}_supported", bool)() for name in ("avx512_bf16", "amx_tile"))


CPU_SLOWER: tuple[tuple[Callable[[Problem], bool], str], ...] = (
    (
        lambda p: ops.instruction_set == "generic" and p.B >= 16 and p.H >= 128,
        "measured slower than torch on a machine without AVX2, from B = 16 and H = 128",
    ),
    (
        lambda p: (
            p.dtype == torch.bfloat16
            and multiplies_bf16()
            and (p.cell is LSTM or p.B * p.H**2 >= 2**21 or (p.T * p.B <= 4 and p.H >= 512))
        ),
        "measured slower than torch, which uses this processor's own products of bfloat16",
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
    asked = [name for name in ("lengths", "reset", "return_states", "recompute") if getattr(p, name)]
    return f"torch's own op has no {', '.join(asked)}" if asked else None


def _aten_slower(p: Problem) -> Reason:
    # not slow but fragile: vmap rules are missing, and compilers unroll the time loop
    return "torch.compile, torch.export, torch.func and forward mode do not take it whole" if p.traced else None


BACKENDS = (
    Backend("cuda", "fused CUDA kernel", _cuda_why_not, _cuda_slower, lambda: ops.cuda_missing),
    Backend("cpu", "fused C++ kernel", _cpu_why_not, _cpu_slower, lambda: ops.missing),
    Backend("aten", "torch's own op", _aten_why_not, _aten_slower),
    Backend("reference", "loop of PyTorch ops, the specification"),
)
"""Every backend, in the order in which "auto" asks them."""

_BY_NAME = {backend.name: backend for backend in BACKENDS}
_FORCED_REGIMES = tuple(f"cuda:{regime}" for regime in REGIMES[1:])

NAMES = (AUTO, *_BY_NAME, *_FORCED_REGIMES, "cudnn")
"""What `backend=` may be. "cuda:REGIME" is the CUDA kernel in a regime of its own; "cudnn" torch's own op on a GPU."""


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Runs every layer called inside on backend `name`, whatever the layer's own `backend` says.

    Holds for the current thread or task. A graph compiled or exported inside keeps the backend it was made with.

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
        return _choose(name, problem)
    return _remembered(name, problem, _gpu_state() if problem.device == "cuda" else None)


def _gpu_state() -> object:
    """What else the choice on a GPU depends on: which GPU, and whether TF32 is allowed."""
    return torch.cuda.is_available() and torch.cuda.current_device(), products.layers_allow_tf32()


def _choose(name: str, problem: Problem) -> str:
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
        reason = gpu_plan.refusal(problem, name.partition(":")[2])
    if reason is not None:
        raise UnsupportedProblem(f"backend {name!r} cannot take this call: {reason}; backend='auto' finds one that can")
    return name if name in _FORCED_REGIMES else backend.name


@lru_cache(maxsize=4096)
def _remembered(name: str, problem: Problem, _: object) -> str:
    return _choose(name, problem)


def _cudnn_why_not(p: Problem) -> Reason:
    return None if p.device == "cuda" else f"cuDNN runs on a GPU, the input is on {p.device}"


@dataclass(frozen=True)
class Verdict:
    """What one backend says: why it cannot take the problem, and why "auto" passes it over although it can."""

    name: str
    what: str
    why_not: Reason
    slower: Reason

    def __str__(self) -> str:
        if self.why_not is not None:
            return f"no: {self.why_not}"
        return "yes" if self.slower is None else f"yes, but {self.slower}"


@dataclass(frozen=True)
class Explanation:
    """Which backend runs a problem, and what each says to it. `str()` makes a table of it.

    Attributes:
        problem: the call.
        asked: the backend asked for, by the layer or by `use_backend`.
        chosen: the backend that runs it, None if the one asked for cannot.
        refusal: why that one cannot.
        verdicts: one a backend, in the order in which "auto" asks them.
    """

    problem: Problem
    asked: str
    chosen: str | None
    refusal: str | None
    verdicts: tuple[Verdict, ...]

    @property
    def plans(self) -> str | None:
        """How the CUDA kernels run it on the current GPU, a line a pass; None on other backends."""
        chosen = self.chosen or ""
        return gpu_plan.current(self.problem, chosen) if chosen.startswith("cuda") else None

    @property
    def regime(self) -> str | None:
        """The regime of the CUDA kernels' forward pass, "step", "cta", "cluster" or "grid"; None on other backends."""
        chosen = self.chosen or ""
        return gpu_plan.regime(self.problem, chosen) if chosen.startswith("cuda") else None

    def __str__(self) -> str:
        p = self.problem
        sizes = [f"{name}={getattr(p, name)}" for name in ("T", "B", "I", "H", "L", "D", "proj_size")]
        flags = ("grad", "packed", "lengths", "reset", "return_states", "recompute", "traced")
        asks = [name for name in flags if getattr(p, name)]
        head = " ".join([p.cell.mode, *sizes[: 7 if p.proj_size else 6], _name(p.dtype), p.device, *asks])
        chosen = self.chosen or ""
        rows = [
            f"{'>' if v.name == chosen.partition(':')[0] else ' '} {v.name:<9}  {v.what:<38}  {v}"
            for v in self.verdicts
        ]
        tail = [f"  {line}" for line in (self.plans or "").splitlines()] + ([self.refusal] if self.refusal else [])
        return "\n".join([head, *rows, *tail])


def explain(
    layer: Any,
    input: Tensor | PackedSequence,
    hx: Any = None,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    return_states: bool = False,
) -> Explanation:
    """Which backend would run `layer(input, hx, lengths, reset, return_states)`, and why every other one would not.

    Args:
        layer: a fusedrnn layer, or a torch.nn one: what `convert` would make of it.
        input: what it would be called with; only its shape, dtype and device count. So with the rest.
        hx: as in the layer's forward, like those below.
        lengths: see above.
        reset: see above.
        return_states: see above.

    Raises:
        TypeError: `layer` is no recurrent layer.
    """
    if not isinstance(layer, nn.RNNBase):
        raise TypeError(
            f"explain: Expected a GRU, LSTM or RNN layer, got {type(layer).__name__}. (A cell is one step, no loop: in "
            "plain eager mode 'auto' runs torch's own op.)"
        )
    problem = _problem(layer, input, lengths, reset, return_states)
    asked = str(override() or getattr(layer, "backend", AUTO))
    chosen, refusal = None, None
    try:
        chosen = _choose(asked, problem)
    except (UnsupportedProblem, BackendUnavailable) as error:
        refusal = str(error)
    verdicts = (Verdict(b.name, b.what, b.why_not(problem), b.slower(problem)) for b in BACKENDS)
    return Explanation(problem, asked, chosen, refusal, tuple(verdicts))


def _problem(
    layer: Any, input: Tensor | PackedSequence, lengths: Tensor | None, reset: Tensor | None, return_states: bool
) -> Problem:
    if isinstance(input, PackedSequence):
        x, steps, rows = input.data, len(input.batch_sizes), int(input.batch_sizes[0])
    else:
        x = input
        steps, rows = (1, 0) if layer.batch_first else (0, 1)
        steps, rows = (x.shape[0], 1) if x.dim() == 2 else (x.shape[steps], x.shape[rows])
    tensors = (x, *layer.parameters())
    return Problem(
        by_mode(layer.mode),
        steps,
        rows,
        layer.input_size,
        layer.hidden_size,
        layer.num_layers,
        2 if layer.bidirectional else 1,
        layer.proj_size,
        modes.compute_dtype(x),
        x.device.type,
        layer.bias,
        layer.dropout if layer.training else 0.0,
        torch.is_grad_enabled() and any(t.requires_grad for t in tensors),
        lengths is not None,
        reset is not None,
        return_states,
        getattr(layer, "recompute", False),
        modes.traced(),
        torch.get_num_threads(),
        isinstance(input, PackedSequence),
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
