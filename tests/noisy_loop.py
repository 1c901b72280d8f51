"""A layer with zoneout and dropouts as a Python loop of torch's cells, over rows that are drawn as philox.py says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from pairs import LAYERS, H, I, needs_kernel, tensors
from torch import Tensor, nn
from torch.nn import functional as F

import fusedrnn
from fusedrnn import philox

CPU = pytest.param("cpu", marks=needs_kernel)
each_layer = pytest.mark.parametrize("name", LAYERS)
each_backend = pytest.mark.parametrize("backend", ["reference", CPU])
STACK = {"num_layers": 2, "bidirectional": True}
NOISES = (
    {"zoneout": 0.3},
    {"recurrent_dropout": 0.4},
    {"zoneout": 0.3, "recurrent_dropout": 0.4},
    {"weight_dropout": 0.4},
    {"zoneout": 0.2, "recurrent_dropout": 0.3, "weight_dropout": 0.4},
)
each_noise = pytest.mark.parametrize("noise", NOISES, ids=lambda noise: "-".join(noise))


def make(name: str, *sizes: int, seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    return getattr(fusedrnn, name)(*(sizes or (I, H)), dtype=torch.double, **options)


def seeded(layer: Any, *args: Any, **kwargs: Any) -> list[Tensor]:
    """Outputs from a generator that always starts alike."""
    torch.manual_seed(5)
    return tensors(layer(*args, **kwargs))


def drawn(rate: float, key: Tensor, kind: int, s: int, rows: int, units: int, t: int = 0) -> Tensor:
    """Bool [B,H]."""
    b, h = torch.arange(rows).unsqueeze(1), torch.arange(units)
    words = torch.stack(philox.words((t, b, h // 4, 4 * s + kind), key))
    return words.gather(0, (h % 4).expand(1, rows, units))[0] < int(rate * 2**32)


def cell_of(layer: Any) -> nn.Module:
    kind = {"GRU": nn.GRUCell, "LSTM": nn.LSTMCell}.get(layer.mode)
    if kind is None:
        return nn.RNNCell(1, 1, nonlinearity=layer.nonlinearity)
    return kind(1, 1)


def step(layer: Any, weights: Sequence[Tensor], x: Tensor, h: Tensor, c: Tensor | None, factor: Tensor) -> list[Tensor]:
    """torch's cell, whose product sees h * factor."""
    cell, names = cell_of(layer), ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    cell.hidden_size, cell.input_size = h.shape[1], x.shape[1]
    own = dict(zip(names, weights, strict=False))
    seen = h * factor
    out = torch.func.functional_call(cell, own, (x, seen if c is None else (seen, c)))
    if layer.mode == "GRU":  # the cell's z h sees what the product sees, the layer's all of h
        n = h.shape[1]
        w_ih, w_hh, b_ih, b_hh = (w[n : 2 * n] for w in weights[:4])
        out = out + torch.sigmoid(F.linear(x, w_ih, b_ih) + F.linear(seen, w_hh, b_hh)) * (h - seen)
    return list(out) if c is not None else [out]


def zoned(rate: float, held: Tensor | None, old: Tensor, new: Tensor) -> Tensor:
    if held is None:
        return rate * old + (1 - rate) * new
    return torch.where(held, old, new)


def loop(
    layer: Any, x: Tensor, hx: list[Tensor], lengths: Tensor | None = None, reset: Tensor | None = None
) -> list[Tensor]:
    """The layer on x [T,B,I] as a loop over layers, directions, steps and rows; draws as the layer does."""
    weights = list(layer._flat_weights)
    L, D = layer.num_layers, 2 if layer.bidirectional else 1
    each, training = len(weights) // (L * D), layer.training
    if layer.weight_dropout and training:
        weights = [F.dropout(w, layer.weight_dropout) if i % each == 1 else w for i, w in enumerate(weights)]
    zoneout = layer.zoneout if isinstance(layer.zoneout, tuple) else (layer.zoneout,) * 2
    dropout = layer.recurrent_dropout if training else 0.0
    steps, rows, _ = x.shape
    keys = philox.new_keys(L, x.device) if training and (any(zoneout) or dropout) else None
    ends = [steps] * rows if lengths is None else lengths.tolist()
    last: list[list[Tensor]] = [[] for _ in hx]
    for k in range(L):
        outputs = []
        for s in range(D):
            key, own = None if keys is None else keys[k], weights[(k * D + s) * each : (k * D + s + 1) * each]
            w_hr = own[-1] if layer.proj_size else None
            start = [state[k * D + s] for state in hx]
            size = [state.shape[-1] for state in start]
            factor = torch.ones(rows, size[0], dtype=x.dtype)
            if dropout:
                factor = (~drawn(dropout, key, philox.DROPOUT, s, rows, size[0])).to(x.dtype) / (1 - dropout)
            states, y = [[state[b : b + 1] for b in range(rows)] for state in start], {}
            for t in range(steps)[:: -1 if s else 1]:
                held = [
                    None
                    if key is None
                    else drawn(zoneout[i], key, (philox.ZONEOUT_H, philox.ZONEOUT_C)[i], s, rows, n, t)
                    for i, n in enumerate(size)
                ]
                for b in range(rows):
                    if t >= ends[b]:
                        y[t, b] = x.new_zeros(1, size[0])
                        continue
                    old = [state[b] for state in states]
                    cut = t + s  # the boundary with the step before, in the direction's order
                    if reset is not None and cut < ends[b] and bool(reset[cut, b]):
                        old = [torch.zeros_like(state) for state in old]
                    c = old[1] if len(old) == 2 else None
                    if w_hr is None:
                        new = step(layer, own, x[t, b : b + 1], old[0], c, factor[b : b + 1])
                    else:
                        gates = F.linear(x[t, b : b + 1], own[0], own[2]) + F.linear(old[0] * factor[b], own[1], own[3])
                        i, f, g, o = gates.chunk(4, -1)
                        new_c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                        new = [(o.sigmoid() * new_c.tanh()) @ w_hr.mT, new_c]
                    for i, state in enumerate(states):
                        mask = None if held[i] is None else held[i][b]
                        state[b] = zoned(zoneout[i], mask, old[i], new[i])
                    y[t, b] = states[0][b]
            outputs.append(torch.stack([torch.cat([y[t, b] for b in range(rows)]) for t in range(steps)]))
            for i, state in enumerate(states):
                last[i].append(torch.cat(state))
        x = torch.cat(outputs, -1)
    return [x, *(torch.stack(state) for state in last)]
