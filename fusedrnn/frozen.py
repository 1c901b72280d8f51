"""`fusedrnn.frozen`: what a layer works out at every call, worked out once, for streams of short calls."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from . import backends, modes, modules, ops
from .explanation import explain
from .spec import LSTM, by_mode
from .stack import compute_dtype

Model = TypeVar("Model", bound=nn.Module)

_MOST = 64
"""Shapes that a layer remembers; a stream has one or two."""

_PLAIN = frozenset(
    ("bias", "num_layers", "dropout", "training", "bidirectional", "proj_size", "recompute", "bptt", "backend")
)
"""A layer's options that the direct way to the kernel takes care of; with any other that is on, it is not taken."""


@contextmanager
def frozen(model: Model) -> Iterator[Model]:
    """Holds the weights of every GRU, LSTM and RNN in `model`, itself included, for calls that follow one another.

    Inside, parametrizations and weight norm are evaluated once and not at every call, autocast's copies of the weights
    are made once a dtype, and on the CPU a call of a shape seen before (no masks, no autocast) goes to the kernel
    without the checks of the first. Results are those of the layer outside, bit for bit. On a GPU (where it has not
    run yet) the first two shall hold.

    Weights must not change inside: whether a change is seen is not defined. No counter is watched, since writes through
    `.data` move none. Compiled graphs and weights given by functional_call are used as they are. Cells are left alone:
    they are one call of torch's op.

    Leaving, also by an exception, restores every layer. Blocks may be nested, and entered by several threads: a layer
    is frozen for all threads from the first that enters to the last that leaves. A copy or a pickle made inside is not.

    Yields:
        model.

    Raises:
        TypeError: model is not a module.
        ValueError: there is no layer of this package in it.
        RuntimeError: by a layer called inside: it is in training mode, or gradients are on and its weights require one.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"frozen: expected a torch.nn.Module, got {type(model).__name__}")
    layers = [module for module in model.modules() if isinstance(module, modules._Layer)]
    if not layers:
        raise ValueError(
            "frozen: no GRU, LSTM or RNN of fusedrnn in the model; fusedrnn.convert(model) makes torch's so"
        )
    packs = [_Pack(layer) for layer in layers]
    for layer, pack in zip(layers, packs, strict=True):
        _enter(layer, pack)
    try:
        yield model
    finally:
        for layer, pack in zip(layers, packs, strict=True):
            _leave(layer, pack)


_lock = threading.Lock()
_held: WeakKeyDictionary[nn.Module, list[_Pack]] = WeakKeyDictionary()


def _enter(layer: nn.Module, pack: _Pack) -> None:
    with _lock:
        _held.setdefault(layer, []).append(pack)
        layer.__dict__["_pack"] = pack


def _leave(layer: nn.Module, pack: _Pack) -> None:
    """Not as a stack: threads leave in any order."""
    with _lock:
        packs = _held[layer]
        packs.remove(pack)
        if packs:
            layer.__dict__["_pack"] = packs[-1]
        else:
            del _held[layer], layer.__dict__["_pack"]


class _Pack:
    """What is kept for one layer."""

    def __init__(self, layer: Any) -> None:
        names = layer._flat_weights_names
        with torch.no_grad():
            self.own: list[Tensor] = layer._read(names)
        self.weights = [w.detach() for w in self.own]
        self.trains = any(p.requires_grad for p in layer.parameters())
        self.computed = [name for name in names if name not in layer._parameters]
        self.cast: dict[torch.dtype, list[Tensor]] = {}
        self.direct: dict[Any, bool] = {}
        self.spec, self.each = by_mode(layer.mode), len(names) // layer.num_layers
        self.D = 2 if layer.bidirectional else 1

    def __reduce__(self) -> tuple[Any, ...]:
        return _nothing, ()

    def refuse(self, layer: Any) -> None:
        """Raises RuntimeError where this call may be one of training."""
        name, mend = type(layer).__name__, "leave `fusedrnn.frozen` to train"
        if layer.training:
            raise RuntimeError(f"{name}: frozen, and in training mode: call model.eval(), or {mend}")
        if self.trains and torch.is_grad_enabled():
            raise RuntimeError(
                f"{name}: frozen, while gradients are on and its weights require one: run it under torch.no_grad() or "
                f"torch.inference_mode(), or {mend}"
            )

    def weights_for(self, layer: Any, x: Tensor, given: Sequence[Tensor], composite: bool) -> list[Tensor]:
        """The weights in the dtype that this call computes in."""
        if not self.computed:
            now: list[Tensor] = layer._read(layer._flat_weights_names)
            if any(a is not b for a, b in zip(now, self.own, strict=True)):
                return now  # functional_call, or a weight that was set anew
        if modes.autocast_dtype(x) is None or torch.float64 in (x.dtype, self.weights[0].dtype):
            return self.weights
        dtype = compute_dtype(self.spec, x, given, composite or layer.proj_size > 0)
        if dtype not in self.cast:
            self.cast[dtype] = [w.to(dtype) for w in self.weights]
        return self.cast[dtype]

    def run(self, layer: Any, x: Any, hx: Any, *asked: Any) -> Any:
        """What the layer returns, if this shape has been here before and the CPU's kernel takes it; else None."""
        if torch.compiler.is_compiling():
            return None
        self.refuse(layer)
        if asked != (None, None, False, None) or type(x) is not Tensor or torch.is_grad_enabled() or layer.zoneout:
            return None
        if torch._C._is_any_autocast_enabled() or modes.traced() or torch._C._get_tracing_state() is not None:
            return None
        key = (x.shape, x.dtype, layer.backend, backends.override(), torch.get_num_threads())
        if key not in self.direct:
            if len(self.direct) >= _MOST:
                self.direct.clear()
            self.direct[key] = self._is_direct(layer, x)
            return None
        if not self.direct[key] or not x.is_cpu:
            return None
        return self._direct(layer, x, hx)

    def _is_direct(self, layer: Any, x: Tensor) -> bool:
        others = any(value for name, value in layer._options().items() if name not in _PLAIN)
        plain = x.layout == torch.strided and x.dim() in (2, 3) and x.numel() > 0 and not (layer.recompute or others)
        fits = plain and x.shape[-1] == layer.input_size and x.dtype == self.weights[0].dtype
        return fits and explain(layer, x).chosen == "cpu"

    def _direct(self, layer: Any, x: Tensor, hx: Any) -> Any:
        one, lstm = x.dim() == 2, self.spec is LSTM
        if one:
            x = x.unsqueeze(1)
        elif layer.batch_first:
            x = x.transpose(0, 1)
        given: tuple[Any, ...] = () if hx is None else tuple(hx) if type(hx) in (tuple, list) else (hx,)
        edge = (layer.num_layers * self.D, *(() if one else (x.shape[1],)), layer.hidden_size)
        for h in given:
            if type(h) is not Tensor or h.shape != edge or h.dtype != x.dtype or not h.is_cpu:
                return None  # the layer says what is wrong
        if given and len(given) != len(self.spec.states):
            return None
        weights = self.weights if self.computed else layer._read(layer._flat_weights_names)
        starts: Any = [h.unsqueeze(1) if one else h for h in given]
        ends = []
        with torch._C._AutoDispatchBelowAutograd():
            for k in range(layer.num_layers):
                first: list[Any] = [h[k * self.D : (k + 1) * self.D] for h in starts]
                h0, c0 = first + [None] * (2 - len(first))
                own = weights[k * self.each : (k + 1) * self.each]
                x, hn, _, cn, _ = ops.layer(x, h0, c0, own, None, None, self.spec.code, layer.bias, False, False)
                ends.append((hn, cn) if lstm else (hn,))
        last = ends[0] if len(ends) == 1 else tuple(map(torch.cat, zip(*ends, strict=True)))
        if one:
            x, last = x.squeeze(1), tuple(h.squeeze(1) for h in last)
        elif layer.batch_first:
            x = x.transpose(0, 1)
        return x, last if lstm else last[0]


def _nothing() -> None:
    """What a copy of a frozen layer keeps."""
