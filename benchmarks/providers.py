"""Who is measured: torch's layers, the fused layers, their reference loop; one layer on one case's inputs."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from .cases import CLASSES, DTYPES, Case


@dataclass(frozen=True)
class Inputs:
    x: Tensor  # [T, B, I]
    gy: Tensor  # [T, B, D*H], upstream gradient of the output
    lengths: Tensor | None  # [B]

    def to(self, dtype: torch.dtype) -> Inputs:
        return Inputs(self.x.to(dtype), self.gy.to(dtype), self.lengths)


def inputs(case: Case, seed: int = 0) -> Inputs:
    """The same numbers for every provider."""
    generator, dtype = torch.Generator().manual_seed(seed), DTYPES[case.dtype]
    x = torch.randn(case.T, case.B, case.I, generator=generator).to(dtype)
    gy = torch.randn(case.T, case.B, case.D * case.H, generator=generator).to(dtype)
    lengths = None
    if case.ragged:
        lengths = torch.randint((case.T + 1) // 2, case.T + 1, (case.B,), generator=generator)
        lengths[0] = case.T
    return Inputs(x, gy, lengths)


def arguments(case: Case) -> dict[str, Any]:
    """Constructor arguments, the same for nn and fusedrnn."""
    extra = {"nonlinearity": "relu"} if case.cell == "rnn_relu" else {}
    sizes = {"input_size": case.I, "hidden_size": case.H, "num_layers": case.L, "bidirectional": case.D == 2}
    return sizes | extra | {"dtype": DTYPES[case.dtype]}


def twin(case: Case, seed: int = 0) -> nn.RNNBase:
    """torch's layer, whose weights every provider takes over; the caller's random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer: nn.RNNBase = getattr(nn, CLASSES[case.cell])(**arguments(case))
    return layer


def fused_module() -> ModuleType:
    """The package under study; raises ImportError with its reason where it cannot be had."""
    module = importlib.import_module("fusedrnn")
    if not hasattr(module, "GRU"):
        raise ImportError("fusedrnn is installed without its layers")
    return module


@dataclass(frozen=True)
class Provider:
    """A name, how to build its layer from torch's, and how to call it."""

    name: str
    build: Callable[[Case, nn.RNNBase], nn.Module]
    forward: Callable[[nn.Module, Tensor, Tensor | None], tuple[Tensor, Any]]


def _torch_forward(layer: nn.Module, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Any]:
    if lengths is None:
        return layer(x)
    packed, states = layer(pack_padded_sequence(x, lengths, enforce_sorted=False))
    return pad_packed_sequence(packed, total_length=x.shape[0])[0], states


def _fused_forward(layer: nn.Module, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Any]:
    return layer(x) if lengths is None else layer(x, lengths=lengths)


def _fused(name: str, backend: str) -> Provider:
    def build(case: Case, source: nn.RNNBase) -> nn.Module:
        layer: nn.Module = getattr(fused_module(), CLASSES[case.cell])(**arguments(case), backend=backend)
        layer.load_state_dict(source.state_dict())
        return layer

    return Provider(name, build, _fused_forward)


NN = Provider("nn", lambda case, source: source, _torch_forward)
FUSED = _fused("fusedrnn", "auto")
FUSED_CPU = _fused("fusedrnn-cpu", "cpu")
FUSED_ATEN = _fused("fusedrnn-aten", "aten")
REFERENCE = _fused("reference", "reference")
PROVIDERS = {provider.name: provider for provider in (NN, FUSED, FUSED_CPU, FUSED_ATEN, REFERENCE)}


class Call:
    """One provider's layer on one case's inputs. `infer` and `train` are what is timed."""

    def __init__(self, provider: Provider, layer: nn.Module, data: Inputs) -> None:
        self.layer, self.lengths, self._forward = layer, data.lengths, provider.forward
        self.x, self.x_grad, self.gy = data.x, data.x.clone().requires_grad_(), data.gy

    def infer(self) -> tuple[Tensor, Any]:
        with torch.no_grad():
            return self._forward(self.layer, self.x, self.lengths)

    def train(self) -> Sequence[Tensor]:
        self.clear()
        self._forward(self.layer, self.x_grad, self.lengths)[0].backward(self.gy)
        return ()

    def clear(self) -> None:
        self.layer.zero_grad(set_to_none=True)
        self.x_grad.grad = None

    def forward_kept(self) -> Sequence[Tensor]:
        """Forward with its graph, which lives as long as the returned outputs."""
        y, states = self._forward(self.layer, self.x_grad, self.lengths)
        return [y, *_flat(states)]

    def results(self) -> dict[str, Tensor]:
        """Outputs, final states and every gradient, from random upstream gradients of all of them."""
        self.clear()
        y, states = self._forward(self.layer, self.x_grad, self.lengths)
        outputs = [y, *_flat(states)]
        generator = torch.Generator().manual_seed(1)
        upstream = [self.gy] + [torch.randn(s.shape, generator=generator).to(s.dtype) for s in outputs[1:]]
        torch.autograd.backward(outputs, upstream)
        found = {name: value.detach() for name, value in zip(("y", "h_n", "c_n"), outputs, strict=False)}
        found["dx"] = _present(self.x_grad.grad, self.x_grad)
        for name, parameter in self.layer.named_parameters():
            found[f"d_{name}"] = _present(parameter.grad, parameter)
        self.clear()
        return found


def _flat(states: Any) -> list[Tensor]:
    return list(states) if isinstance(states, tuple) else [states]


def _present(gradient: Tensor | None, of: Tensor) -> Tensor:
    return torch.full_like(of, torch.nan) if gradient is None else gradient


def chosen_backend(layer: nn.Module, x: Tensor) -> str:
    """Which backend fusedrnn takes for this layer and input."""
    return str(fused_module().explain(layer, x).chosen)
