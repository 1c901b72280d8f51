"""`fusedrnn.explain`: which backend runs a call, how, and why every other one does not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from . import checks, gpu_plan, jagged, modes, triton_plan
from .backends import AUTO, BACKENDS, dtype_name, override, pick
from .errors import BackendUnavailable, UnsupportedProblem
from .spec import OF_THE_LOOP, Problem, by_mode, rates
from .stack import compute_dtype, truncates


@dataclass(frozen=True)
class Verdict:
    """What one backend says: why it cannot take the problem, and why "auto" passes it over although it can."""

    name: str
    what: str
    why_not: str | None
    slower: str | None

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
        """How the CUDA or Triton kernels run it on the current GPU, a line a pass; None on other backends."""
        chosen = self.chosen or ""
        if chosen.startswith("triton"):
            return triton_plan.describe(self.problem, chosen)
        return gpu_plan.current(self.problem, chosen) if chosen.startswith("cuda") else None

    @property
    def regime(self) -> str | None:
        """The regime of the CUDA or Triton kernels' forward pass; None on other backends."""
        chosen = self.chosen or ""
        if chosen.startswith("triton"):
            return triton_plan.regime(self.problem, chosen)
        return gpu_plan.regime(self.problem, chosen) if chosen.startswith("cuda") else None

    def __str__(self) -> str:
        p = self.problem
        sizes = [f"{name}={getattr(p, name)}" for name in ("T", "B", "I", "H", "L", "D", "proj_size")]
        flags = ("grad", "packed", "lengths", "reset", "return_states", "recompute", "bptt", *OF_THE_LOOP, "traced")
        asks = [name for name in flags if getattr(p, name)]
        head = " ".join([p.cell.mode, *sizes[: 7 if p.proj_size else 6], dtype_name(p.dtype), p.device, *asks])
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
    reset_state: Any = None,
) -> Explanation:
    """Which backend would run `layer(input, hx, lengths, reset, ...)`, and why every other one would not.

    Args:
        layer: a fusedrnn layer, or a torch.nn one: what `convert` would make of it.
        input: what it would be called with; only its shape, dtype and device count. So with the rest.
        hx: as in the layer's forward, like those below.
        lengths: see above.
        reset: see above.
        return_states: see above.
        reset_state: see above.

    Raises:
        TypeError: `layer` is no recurrent layer.
        ValueError: there is a reset_state and no reset.
    """
    if not isinstance(layer, nn.RNNBase):
        raise TypeError(
            f"explain: Expected a GRU, LSTM or RNN layer, got {type(layer).__name__}. (A cell is one step, no loop: in "
            "plain eager mode 'auto' runs torch's own op.)"
        )
    if reset_state is not None:
        checks.reset_there(reset)
    problem = _problem(layer, input, hx, lengths, reset, return_states, reset_state)
    asked = str(override() or getattr(layer, "backend", AUTO))
    chosen, refusal = None, None
    try:
        chosen = pick(asked, problem)
    except (UnsupportedProblem, BackendUnavailable) as error:
        refusal = str(error)
    verdicts = (Verdict(b.name, b.what, b.why_not(problem), b.slower(problem)) for b in BACKENDS)
    return Explanation(problem, asked, chosen, refusal, tuple(verdicts))


def _problem(
    layer: Any,
    input: Tensor | PackedSequence,
    hx: Any,
    lengths: Tensor | None,
    reset: Tensor | None,
    return_states: bool,
    reset_state: Any,
) -> Problem:
    cell = by_mode(layer.mode)
    hx = None if hx is None else checks.state_list(hx, len(cell.states))
    if isinstance(input, PackedSequence):
        x, steps, rows = input.data, len(input.batch_sizes), int(input.batch_sizes[0])
    elif input.is_nested:
        jagged.check(type(layer).__name__, input, layer.batch_first, lengths is not None or reset is not None)
        ragged = jagged.Rows(input)
        x, lengths, steps, rows = ragged.values, ragged.lengths, ragged.grid.T, ragged.grid.B
    else:
        x = input
        steps, rows = (1, 0) if layer.batch_first else (0, 1)
        steps, rows = (x.shape[0], 1) if x.dim() == 2 else (x.shape[steps], x.shape[rows])
    training = layer.training
    noise = rates(cell, getattr(layer, "zoneout", 0.0), getattr(layer, "recurrent_dropout", 0.0) if training else 0.0)
    starts = reset_state if isinstance(reset_state, (tuple, list)) else [reset_state]
    tensors = (x, *layer.parameters(), *(t for t in (*(hx or ()), *starts) if isinstance(t, Tensor)))
    traced = modes.traced()
    grad = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    return Problem(
        cell,
        steps,
        rows,
        layer.input_size,
        layer.hidden_size,
        layer.num_layers,
        2 if layer.bidirectional else 1,
        layer.proj_size,
        compute_dtype(cell, x, hx, isinstance(input, PackedSequence) or layer.proj_size > 0),
        x.device.type,
        layer.bias,
        layer.dropout if layer.training else 0.0,
        grad,
        lengths is not None,
        reset is not None,
        return_states,
        getattr(layer, "recompute", False),
        traced,
        torch.get_num_threads(),
        isinstance(input, PackedSequence),
        truncates(getattr(layer, "bptt", None), steps, grad, traced),
        any(noise[:2]),
        any(noise[2:]),
        bool(noise) and training,
        getattr(layer, "layer_norm", False),
        reset_state is not None,
    )
