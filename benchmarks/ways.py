"""Other ways to run one and the same recurrent layer, and why a machine has not all of them."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cases import Case
from .providers import FUSED, FUSED_ATEN, FUSED_CPU, NN, REFERENCE, Provider, fused, fused_module, inputs, twin

Absent = Callable[[str, Case], str | None]
"""Why a device has no such way to run a case, or None."""


@dataclass(frozen=True)
class Way:
    """`slow_start`: it compiles for most of a minute before its first call."""

    provider: Provider
    absent: Absent = lambda device, case: None
    slow_start: bool = False


def _gru(gates: Tensor, products: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    r, z = (gates + products).chunk(3, -1)[:2]
    r, z = r.sigmoid(), z.sigmoid()
    n = torch.tanh(gates.chunk(3, -1)[2] + r * products.chunk(3, -1)[2])
    return (n + z * (state[0] - n),)


def _lstm(gates: Tensor, products: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    i, f, g, o = (gates + products).chunk(4, -1)
    c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _rnn(gates: Tensor, products: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (torch.tanh(gates + products),)


CELLS = {"GRU": _gru, "LSTM": _lstm, "RNN_TANH": _rnn}


@functools.cache
def _compiled(mode: str) -> Callable[..., tuple[Tensor, ...]]:
    cell = CELLS[mode]

    def step(gates: Tensor, weight: Tensor, bias: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        return cell(gates, F.linear(state[0], weight, bias), state)

    return torch.compile(step, dynamic=False)


def _loop(layer: nn.RNNBase, x: Tensor, _: Tensor | None) -> tuple[Tensor, Any]:
    """One layer, one direction: the input's product for all steps at once, then a compiled step T times."""
    gates = F.linear(x, layer.weight_ih_l0, layer.bias_ih_l0).unbind(0)
    state = (x.new_zeros(x.shape[1], layer.hidden_size),) * (2 if layer.mode == "LSTM" else 1)
    step, outputs = _compiled(layer.mode), []
    for row in gates:
        state = step(row, layer.weight_hh_l0, layer.bias_hh_l0, *state)
        outputs.append(state[0])
    last = tuple(part[None] for part in state)
    return torch.stack(outputs), last if len(last) > 1 else last[0]


COMPILED_LOOP = Provider("nn-compiled-loop", lambda case, source: source, _loop)


def _no_cudnn(layer: nn.Module, x: Tensor, lengths: Tensor | None) -> tuple[Any, Any]:
    with torch.backends.cudnn.flags(enabled=False):
        return NN.forward(layer, x, lengths)


def _apart(case: Case, source: nn.RNNBase) -> nn.RNNBase:
    """Every weight in memory of its own, as wrappers leave it that replace parameters."""
    for parameter in source.parameters():
        parameter.data = parameter.data.clone()
    return source


def _backend(name: str) -> Way:
    """A backend of the package by name; it says itself why it is not here."""

    def absent(device: str, case: Case) -> str | None:
        layer, data = FUSED.build(case, twin(case)).to(device), inputs(case).to(device)
        verdicts = fused_module().explain(layer, data.x, lengths=data.lengths).verdicts
        return next(verdict.why_not for verdict in verdicts if verdict.name == name.partition(":")[0])

    return Way(fused(f"fusedrnn-{name}", name), absent)


def _gpu_alone(reason: str) -> Absent:
    return lambda device, case: reason if device == "cpu" else None


GRAPH = Provider("nn-graph", NN.build, NN.forward)
"""torch's layer; whoever times it captures its calls in a CUDA graph first."""
WAYS = (
    Way(NN),
    Way(GRAPH, _gpu_alone("no GPU here: a CUDA graph needs one")),
    Way(Provider("nn-no-cudnn", NN.build, _no_cudnn), _gpu_alone("no GPU here: nn itself runs without cuDNN")),
    Way(Provider("nn-unflattened", _apart, NN.forward), _gpu_alone("on a CPU weights lie apart from the start")),
    Way(
        COMPILED_LOOP,
        lambda device, case: (
            None if device != "cpu" or shutil.which("c++") else "torch.compile needs a C++ compiler on a CPU"
        ),
        slow_start=True,
    ),
    Way(FUSED),
    Way(FUSED_CPU, _backend("cpu").absent),
    *map(_backend, ("cuda", "cuda:step", "triton", "triton:step")),
    Way(FUSED_ATEN),
    Way(REFERENCE),
)
