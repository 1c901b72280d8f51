"""A layer with layer normalisation as a Python loop over rows and steps."""

from __future__ import annotations

from typing import Any

import torch
from pairs import I
from torch import Tensor
from torch.nn import functional as F

Weights = dict[str, Tensor]


def shaken(layer: Any) -> Any:
    """With gains that are not 1 and shifts that are not 0."""
    with torch.no_grad():
        for name, p in layer.named_parameters():
            if "_ln_" in name:
                p.add_(torch.randn_like(p) / 4)
    return layer


WIDE = (I, 16)
"""Over few units a variance is now and then tiny, and what is divided by it shows every rounding."""


def step(mode: str, w: Weights, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """One row, one step; eps is nn.LayerNorm's."""
    n, a, u = c.shape[-1], w["weight_ih"] @ x, w["weight_hh"] @ h
    gain_x, gain_h = w["weight_ln_ih"], w["weight_ln_hh"]
    b_x, b_h = (w.get(name, torch.zeros_like(a)) for name in ("bias_ih", "bias_hh"))
    if mode == "GRU":
        both, last = slice(0, 2 * n), slice(2 * n, 3 * n)
        rz = F.layer_norm(a[both], (2 * n,), gain_x[both], b_x[both])
        r, z = torch.sigmoid(rz + F.layer_norm(u[both], (2 * n,), gain_h[both], b_h[both])).chunk(2)
        q = F.layer_norm(u[last], (n,), gain_h[last], b_h[last])
        new = torch.tanh(F.layer_norm(a[last], (n,), gain_x[last], b_x[last]) + r * q)
        return (1 - z) * new + z * h, c
    total = F.layer_norm(a, a.shape, gain_x, b_x) + F.layer_norm(u, u.shape, gain_h, b_h)
    if mode != "LSTM":
        return torch.tanh(total) if mode == "RNN_TANH" else torch.relu(total), c
    i, f, g, o = total.chunk(4)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(F.layer_norm(c, (n,), w["weight_ln_c"], w.get("bias_ln_c")))
    return (w["weight_hr"] @ h if "weight_hr" in w else h), c


def loop(
    layer: Any, x: Tensor, hx: list[Tensor], lengths: Tensor | None = None, reset: Tensor | None = None
) -> list[Tensor]:
    """The layer on x [T,B,I], row by row."""
    ends = [len(x)] * x.shape[1] if lengths is None else lengths.tolist()
    last: list[list[Tensor]] = [[] for _ in hx]
    for k in range(layer.num_layers):
        outputs = []
        for s in range(2 if layer.bidirectional else 1):
            suffix = f"_l{k}" + ("_reverse" if s else "")
            own = {n.removesuffix(suffix): p for n, p in layer.named_parameters() if n.endswith(suffix)}
            index, rows, finals = len(last[0]), [], []
            for b, end in enumerate(ends):
                h, c = hx[0][index, b], hx[-1][index, b]
                y = [torch.zeros_like(h)] * len(x)
                for t in range(end)[:: -1 if s else 1]:
                    if reset is not None and t + s < end and reset[t + s, b]:
                        h, c = torch.zeros_like(h), torch.zeros_like(c)
                    h, c = step(layer.mode, own, x[t, b], h, c)
                    y[t] = h
                rows.append(torch.stack(y))
                finals.append((h, c))
            outputs.append(torch.stack(rows, 1))
            for kept, state in zip(last, zip(*finals, strict=True), strict=False):
                kept.append(torch.stack(state))
        x = torch.cat(outputs, -1)
    return [x, *(torch.stack(states) for states in last)]
