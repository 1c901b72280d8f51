"""Layers over packed rows (torch.nn.utils.rnn.PackedSequence): by torch's own op for them, or padded, with lengths."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import _VF, Tensor
from torch.nn import functional as F

from . import autograd, backends, cudnn, functional, modes, packed_scan
from .spec import LSTM, OF_THE_LOOP, CellSpec, Problem
from .spec import rates as noise_rates
from .stack import compute_dtype, projected_low, truncates, with_weight_dropout

States = tuple[Tensor, ...]


def recurrent(
    spec: CellSpec,
    data: Tensor,
    batch_sizes: Tensor,
    hx: Sequence[Tensor] | None,
    weights: Sequence[Tensor],
    *,
    bias: bool,
    num_layers: int,
    dropout: float,
    training: bool,
    bidirectional: bool,
    proj_size: int,
    recompute: bool,
    return_states: bool,
    zoneout: float | Sequence[float],
    recurrent_dropout: float,
    weight_dropout: float,
    bptt: int | None,
    layer_norm: bool,
    backend: str,
) -> tuple[Tensor, States, list[States]]:
    """As `functional.recurrent`, for packed rows.

    Args:
        data: [N, I], the steps of all rows in packed order.
        batch_sizes: [T], on the host: how many rows have a step t. The longest row comes first.
        hx: in the order of the rows.

    Returns:
        y [N, D*(P or H)]; the last states, in the order of the rows; every layer's states [T, B, D, ...], 0 beyond.
    """
    T, B, D = len(batch_sizes), int(batch_sizes[0]), 2 if bidirectional else 1
    active = dropout if training and num_layers > 1 else 0.0
    if weight_dropout and training:
        weights = with_weight_dropout(weights, num_layers * D, weight_dropout)
    rates = noise_rates(spec, zoneout, recurrent_dropout if training else 0.0)
    grad, traced = torch.is_grad_enabled() and autograd.any_requires_grad(data, *weights), modes.traced()
    problem = Problem(
        spec,
        T,
        B,
        data.shape[1],
        weights[1].shape[0] // len(spec.gates),
        num_layers,
        D,
        proj_size,
        compute_dtype(spec, data, hx, composite=True),
        data.device.type,
        bias,
        active,
        grad,
        lengths=False,  # torch's own op takes packed rows, though no lengths
        return_states=return_states,
        recompute=recompute,
        traced=traced,
        threads=torch.get_num_threads(),
        packed=True,
        bptt=truncates(bptt, T, grad, traced),
        zoneout=any(rates[:2]),
        recurrent_dropout=any(rates[2:]),
        drawn=bool(rates) and training,
        layer_norm=layer_norm,
    )
    chosen = backends.choose(backend, problem)
    low = modes.autocast_dtype(data)
    data, *rest = (t.to(problem.dtype) for t in (data, *(hx or ()), *weights))
    hx, weights = rest[: len(hx or ())], rest[len(hx or ()) :]
    with modes.without_autocast(data):
        noise = {"zoneout": zoneout, "recurrent_dropout": recurrent_dropout}
        y, last, states = _run(problem, chosen, data, batch_sizes, hx, weights, bptt, training, noise)
    if low is not None and proj_size and data.is_cpu and data.dtype != torch.float64:
        y, last = projected_low(y, last, low)
    return y, last, states


def _run(
    problem: Problem,
    chosen: str,
    data: Tensor,
    batch_sizes: Tensor,
    hx: Sequence[Tensor],
    weights: Sequence[Tensor],
    bptt: int | None,
    training: bool,
    noise: dict[str, Any],
) -> tuple[Tensor, States, list[States]]:
    recompute, return_states, active = problem.recompute, problem.return_states, problem.dropout
    T, B, D, num_layers = problem.T, problem.B, problem.D, problem.L
    if chosen == "aten":
        return _by_torch(problem, data, batch_sizes, hx, weights, training)
    asks = ("recompute", "return_states", "bptt", "traced", *OF_THE_LOOP)
    padded = any(getattr(problem, name) for name in asks)
    if backends.has_route(chosen) and not padded:
        return _as_they_lie(problem, data, batch_sizes, hx, weights, backends.route(chosen, problem.dtype))

    rows_alive = torch.arange(B) < batch_sizes.unsqueeze(1)  # [T, B]
    grid = Grid(T, B, rows_alive.flatten().nonzero().squeeze(1).to(data.device))
    run: Any = partial(
        functional.recurrent,
        problem.cell,
        bias=problem.bias,
        bidirectional=D == 2,
        proj_size=problem.proj_size,
        lengths=rows_alive.sum(0),
        recompute=recompute,
        return_states=return_states,
        training=training,
        bptt=bptt,
        layer_norm=problem.layer_norm,
        backend=chosen,
        **noise,
    )
    if not active:
        y, last, states = run(grid.pad(data), hx, weights, num_layers=num_layers)
        return grid.pack(y), last, states
    # As torch does, dropout draws for real steps only: on packed rows, so layer by layer.
    per, rows, ends, states = len(weights) // num_layers, data, [], []
    for layer in range(num_layers):
        own = weights[layer * per : (layer + 1) * per]
        start = [h[layer * D : (layer + 1) * D] for h in hx]
        y, end, kept = run(grid.pad(rows if layer == 0 else F.dropout(rows, active)), start, own)
        rows = grid.pack(y)
        ends.append(end)
        states += kept
    return rows, tuple(torch.cat(end) for end in zip(*ends, strict=True)), states


class Grid(NamedTuple):
    """Where packed rows stand among [T, B] padded ones."""

    T: int
    B: int
    places: Tensor  # [N], of T*B

    def pad(self, rows: Tensor) -> Tensor:
        """[N, F] to [T, B, F]."""
        full = rows.new_zeros(self.T * self.B, rows.shape[1])
        return full.index_copy(0, self.places, rows).view(self.T, self.B, -1)

    def pack(self, padded: Tensor) -> Tensor:
        """[T, B, F] to [N, F]."""
        return padded.flatten(0, 1).index_select(0, self.places)


def _as_they_lie(
    problem: Problem,
    data: Tensor,
    batch_sizes: Tensor,
    hx: Sequence[Tensor],
    weights: Sequence[Tensor],
    route: int,
) -> tuple[Tensor, States, list[States]]:
    spec, D = problem.cell, problem.D
    x, rows, each, ends = data, packed_scan.Rows.of(batch_sizes, data.device), len(weights) // problem.L, []
    for k in range(problem.L):
        h0, c0 = [h[k * D : (k + 1) * D] for h in hx] + [None] * (2 - len(hx))
        own = weights[k * each : (k + 1) * each]
        y, hn, cn = packed_scan.layer(x, h0, c0, own, rows, spec, D, route)
        ends.append((hn,) if cn is None else (hn, cn))
        x = F.dropout(y, problem.dropout) if problem.dropout and k + 1 < problem.L else y
    return y, tuple(torch.cat(end) for end in zip(*ends, strict=True)), []


def _by_torch(
    problem: Problem,
    data: Tensor,
    batch_sizes: Tensor,
    hx: Sequence[Tensor],
    weights: Sequence[Tensor],
    training: bool,
) -> tuple[Tensor, States, list[States]]:
    cell, edge = problem.cell, (problem.L * problem.D, problem.B)
    sizes = (problem.proj_size or problem.H, problem.H)[: len(cell.states)]
    start = hx or [data.new_zeros(*edge, size) for size in sizes]
    if data.is_cuda and not problem.traced:
        weights = cudnn.one_chunk(weights, problem)
    y, *last = getattr(_VF, cell.name)(
        data,
        batch_sizes,
        start if cell is LSTM else start[0],
        weights,
        problem.bias,
        problem.L,
        problem.dropout,
        training,
        problem.D == 2,
    )
    return y, tuple(last), []
