"""Who is measured: torch's layers, the fused layers, their reference loop; one layer on one case's inputs."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

from . import ort
from .cases import CLASSES, DTYPES, MODES, Case


@dataclass(frozen=True)
class Inputs:
    x: Tensor | PackedSequence  # [T, B, I], or [B, T, I] where the batch comes first
    gy: Tensor  # [T, B, D*H], upstream gradient of the output, or of its data if that is packed
    lengths: Tensor | None  # [B], of a ragged case

    def to(self, where: torch.dtype | torch.device | str) -> Inputs:
        return Inputs(self.x.to(where), self.gy.to(where), self.lengths)


def inputs(case: Case, seed: int = 0) -> Inputs:
    """The same numbers for every provider."""
    generator, dtype = torch.Generator().manual_seed(seed), DTYPES[case.dtype]
    x = torch.randn(case.T, case.B, case.I, generator=generator).to(dtype)
    gy = torch.randn(case.T, case.B, case.D * case.width, generator=generator).to(dtype)
    lengths = None
    if case.ragged or case.packed:
        lengths = torch.randint((case.T + 1) // 2, case.T + 1, (case.B,), generator=generator)
        lengths[0] = case.T
    if case.batch_first:
        x, gy = x.transpose(0, 1).contiguous(), gy.transpose(0, 1).contiguous()
    if case.packed:
        x, gy = (pack_padded_sequence(t, lengths, case.batch_first, enforce_sorted=False) for t in (x, gy))
        return Inputs(x, gy.data, None)
    return Inputs(x, gy, lengths)


def arguments(case: Case) -> dict[str, Any]:
    """Constructor arguments, the same for nn and fusedrnn."""
    extra = {"nonlinearity": "relu"} if case.cell == "rnn_relu" else {}
    extra |= {"proj_size": case.proj} if case.proj else {}
    sizes = {"input_size": case.I, "hidden_size": case.H, "num_layers": case.L, "bidirectional": case.D == 2}
    return sizes | extra | {"bias": case.bias, "batch_first": case.batch_first, "dtype": DTYPES[case.dtype]}


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
    """A name, how to build its layer from torch's, how to call it, in which modes, and what is not installed for it."""

    name: str
    build: Callable[[Case, nn.RNNBase], nn.Module]
    forward: Callable[[nn.Module, Any, Tensor | None], tuple[Any, Any]]
    modes: tuple[str, ...] = MODES
    missing: Callable[[], str | None] = lambda: None


def _torch_forward(layer: nn.Module, x: Any, lengths: Tensor | None) -> tuple[Any, Any]:
    if lengths is None:
        return layer(x)
    first = layer.batch_first
    packed, states = layer(pack_padded_sequence(x, lengths, first, enforce_sorted=False))
    return pad_packed_sequence(packed, first, total_length=x.shape[1 if first else 0])[0], states


def _fused_forward(layer: nn.Module, x: Any, lengths: Tensor | None) -> tuple[Any, Any]:
    return layer(x) if lengths is None else layer(x, lengths=lengths)


def fused(name: str, backend: str, *, recompute: bool = False) -> Provider:
    def build(case: Case, source: nn.RNNBase) -> nn.Module:
        made = getattr(fused_module(), CLASSES[case.cell])
        layer: nn.Module = made(**arguments(case), backend=backend, recompute=recompute)
        layer.load_state_dict(source.state_dict())
        return layer

    return Provider(name, build, _fused_forward)


def checkpointed(name: str, inner: Provider, segments: Callable[[int], int]) -> Provider:
    """`inner` under torch.utils.checkpoint, its T steps cut into `segments(T)` calls: each runs again in backward."""

    def build(case: Case, source: nn.RNNBase) -> nn.Module:
        if case.ragged or case.packed or case.batch_first or case.D > 1:
            raise ValueError(f"{name} takes rows of one length, steps first and one direction, got {case.name}")
        return inner.build(case, source)

    def forward(layer: nn.Module, x: Tensor, _: Tensor | None) -> tuple[Tensor, Any]:
        outputs, states = [], None
        for part in x.chunk(segments(x.shape[0])):
            # there is no dropout here, so that no random state has to be kept
            y, states = checkpoint(layer, part, states, use_reentrant=False, preserve_rng_state=False)
            outputs.append(y)
        return torch.cat(outputs) if len(outputs) > 1 else outputs[0], states

    return Provider(name, build, forward, modes=("train",))


NN = Provider("nn", lambda case, source: source, _torch_forward)
FUSED = fused("fusedrnn", "auto")
FUSED_CPU = fused("fusedrnn-cpu", "cpu")
FUSED_TRITON = replace(
    fused("fusedrnn-triton", "triton"),
    missing=lambda: None if torch.cuda.is_available() else "the Triton kernels run on NVIDIA GPUs",
)
FUSED_ATEN = fused("fusedrnn-aten", "aten")
REFERENCE = fused("reference", "reference")
ONNXRUNTIME = Provider(
    "onnxruntime", ort.Layer, lambda layer, x, lengths: layer(x, lengths), modes=("infer",), missing=ort.missing
)
FUSED_RECOMPUTE = fused("fusedrnn-recompute", "auto", recompute=True)
SEGMENTS: dict[str, Callable[[int], int]] = {"": lambda T: 1, "-4": lambda T: 4, "-sqrt": math.isqrt}
"""Of time, by how a checkpointing provider's name ends: the whole call, four, the root of its steps."""
CHECKPOINTED = (
    *(checkpointed(f"nn-checkpoint{ending}", NN, segments) for ending, segments in SEGMENTS.items()),
    checkpointed("fusedrnn-checkpoint-sqrt", FUSED, SEGMENTS["-sqrt"]),
)
PROVIDERS = {
    provider.name: provider
    for provider in (
        NN,
        FUSED,
        FUSED_CPU,
        FUSED_TRITON,
        FUSED_ATEN,
        FUSED_RECOMPUTE,
        REFERENCE,
        ONNXRUNTIME,
        *CHECKPOINTED,
    )
}


OUTPUTS = ("y", "h_n", "c_n")


class Call:
    """One provider's layer on one case's inputs. `infer` and `train` are what is timed.

    `leaf` is the tensor that gets the input's gradient.
    """

    def __init__(self, provider: Provider, layer: nn.Module, data: Inputs) -> None:
        self.layer, self.lengths, self._forward = layer, data.lengths, provider.forward
        self.modes = provider.modes
        self.x, self.gy = data.x, data.gy
        self.leaf = _data(data.x).clone().requires_grad_()
        self.x_grad = PackedSequence(self.leaf, *data.x[1:]) if isinstance(data.x, PackedSequence) else self.leaf

    def infer(self) -> tuple[Any, Any]:
        with torch.no_grad():
            return self._forward(self.layer, self.x, self.lengths)

    def train(self) -> Sequence[Tensor]:
        self.clear()
        _data(self._forward(self.layer, self.x_grad, self.lengths)[0]).backward(self.gy)
        return ()

    def clear(self) -> None:
        self.layer.zero_grad(set_to_none=True)
        self.leaf.grad = None

    def backend(self, mode: str) -> str:
        """Which backend of fusedrnn runs `mode`."""
        with torch.set_grad_enabled(mode == "train"):
            return chosen_backend(self.layer, self.x, self.lengths)

    def forward_kept(self) -> Sequence[Tensor]:
        """Forward with its graph, which lives as long as the returned outputs."""
        y, states = self._forward(self.layer, self.x_grad, self.lengths)
        return [_data(y), *_flat(states)]

    def results(self) -> dict[str, Tensor]:
        """Outputs, final states and every gradient, from random upstream gradients of all of them.

        Outputs and states alone of a provider that does not train.
        """
        if "train" not in self.modes:
            y, states = self.infer()
            return dict(zip(OUTPUTS, [_data(y), *_flat(states)], strict=False))
        self.clear()
        outputs = self.forward_kept()
        generator = torch.Generator().manual_seed(1)
        upstream = [self.gy] + [torch.randn(s.shape, generator=generator).to(s) for s in outputs[1:]]
        torch.autograd.backward(outputs, upstream)
        found = {name: value.detach() for name, value in zip(OUTPUTS, outputs, strict=False)}
        found["dx"] = _present(self.leaf.grad, self.leaf)
        for name, parameter in self.layer.named_parameters():
            found[f"d_{name}"] = _present(parameter.grad, parameter)
        self.clear()
        return found


def _data(x: Tensor | PackedSequence) -> Tensor:
    return x.data if isinstance(x, PackedSequence) else x


def _flat(states: Any) -> list[Tensor]:
    return list(states) if isinstance(states, tuple) else [states]


def _present(gradient: Tensor | None, of: Tensor) -> Tensor:
    return torch.full_like(of, torch.nan) if gradient is None else gradient


def chosen_backend(layer: nn.Module, x: Tensor | PackedSequence, lengths: Tensor | None = None) -> str:
    """Which backend fusedrnn takes for this layer and input, with gradients if they are enabled here."""
    return str(fused_module().explain(layer, x, lengths=lengths).chosen)
