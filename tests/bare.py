"""A module with no more to it than parameters over functional.recurrent, torch's twin of it, and random calls."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fusedrnn import functional, ops
from fusedrnn.spec import LSTM, CellSpec

I, H, T, B = 5, 4, 6, 3
STOCK: dict[str, Any] = {"GRU": nn.GRU, "LSTM": nn.LSTM, "RNN_TANH": nn.RNN, "RNN_RELU": nn.RNN}


class Bare(nn.RNNBase):
    """Layers of one cell; forward returns y and the last states in one flat tuple."""

    def __init__(
        self, spec: CellSpec, *sizes: int, backend: str = "auto", recompute: bool = False, **options: Any
    ) -> None:
        super().__init__(spec.mode, *(sizes or (I, H)), **options)
        self.spec, self.backend, self.recompute = spec, backend, recompute

    def forward(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        reset: Tensor | None = None,
        hx: tuple[Tensor, ...] | None = None,
        recompute: bool | None = None,
    ) -> tuple[Tensor, ...]:
        y, last, _ = functional.recurrent(
            self.spec,
            x,
            hx,
            [getattr(self, name) for name in self._flat_weights_names],
            bias=self.bias,
            num_layers=self.num_layers,
            dropout=self.dropout,
            training=self.training,
            bidirectional=self.bidirectional,
            proj_size=self.proj_size,
            lengths=lengths,
            reset=reset,
            recompute=self.recompute if recompute is None else recompute,
            backend=self.backend,
        )
        return y, *last

    def twin(self) -> Twin:
        """Torch's layer with the same weights, called and answering as this one."""
        return Twin(self)


class Twin(nn.Module):
    """Torch's layer with `layer`'s very parameters."""

    def __init__(self, layer: Bare) -> None:
        super().__init__()
        own = {"proj_size": layer.proj_size} if layer.mode == "LSTM" else {}
        own |= {"nonlinearity": layer.mode[4:].lower()} if layer.mode.startswith("RNN") else {}
        options = {name: getattr(layer, name) for name in ("num_layers", "bias", "dropout", "bidirectional")}
        self.stock = STOCK[layer.mode](layer.input_size, layer.hidden_size, **options, **own)
        for name in layer._flat_weights_names:
            setattr(self.stock, name, getattr(layer, name))
        self.train(layer.training)

    def forward(self, x: Any, hx: tuple[Tensor, ...] | None = None) -> tuple[Any, ...]:
        lstm = isinstance(self.stock, nn.LSTM)
        y, last = self.stock(x, hx if hx is None or lstm else hx[0])
        return y, *(last if lstm else (last,))


class Count(TorchDispatchMode):
    """Which of our ops ran, by name, with a forward's `save` behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for name, at in (("scan", 14), ("scan_backward", None), ("layer", 8), ("layer_backward", None)):
            if func is getattr(ops, name):
                self.seen.append(name if at is None else f"{name} {args[at]}")
        return func(*args, **(kwargs or {}))


def initial(layer: Bare, batch: int = B, **options: Any) -> tuple[Tensor, ...]:
    """Random initial states."""
    edge = (layer.num_layers * (2 if layer.bidirectional else 1), batch)
    sizes = (layer.proj_size or layer.hidden_size, layer.hidden_size)[: len(layer.spec.states)]
    options = {"dtype": layer.weight_ih_l0.dtype} | options
    return tuple(torch.randn(*edge, size, **options) for size in sizes)


def gradients(out: tuple[Tensor, ...], leaves: list[Tensor], **options: Any) -> list[Tensor]:
    """Of `leaves`, from upstream gradients that are random but the same at every call."""
    generator = torch.Generator().manual_seed(1)
    upstream = [torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o.dtype) for o in out]
    return list(torch.autograd.grad(out, leaves, upstream, **options))


def scan_arguments(
    spec: CellSpec, steps: int = T, rows: int = B, streams: int = 2, hidden: int = H, **options: Any
) -> list[Tensor | None]:
    """Random gates_x, h0, c0, weight_hh and bias_hh of the op `scan`, float64 unless told."""
    options = {"dtype": torch.float64} | options
    gates = len(spec.gates) * hidden
    h0, c0 = (torch.randn(streams, rows, hidden, **options) for _ in range(2))
    weight, bias = torch.randn(streams, gates, hidden, **options), torch.randn(streams, gates, **options)
    return [torch.randn(steps, rows, streams, gates, **options), h0, c0 if spec is LSTM else None, weight, bias]


def label(value: object) -> str:
    """A test's name for a cell or for options."""
    if isinstance(value, dict):
        return "-".join(name if chosen is True else f"{name}={chosen}" for name, chosen in value.items()) or "plain"
    return value.name if isinstance(value, CellSpec) else str(value)
