"""The recurrence over packed rows on a GPU's kernels: no padded copy of them, in forward or in backward.

Packed rows lie as in torch.nn.utils.rnn.PackedSequence, [N, ...]: step t's from row `offsets[t]` on, the longest
sequence first. A second derivative takes the padded way.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from . import autograd, formula, modes, ops, products, units
from .spec import GRU, LSTM, CellSpec

_below_autograd = torch._C._AutoDispatchBelowAutograd


class Rows(NamedTuple):
    """Where packed rows lie, on the device.

    Attributes:
        offsets: [T], the first row of each step.
        lengths: [B], the steps of each sequence.
        places: [N], of a row in a padded [T*B].
        previous: [D, N], the row that a step starts from in each direction; N + b: the initial state of sequence b.
    """

    offsets: Tensor
    lengths: Tensor
    places: Tensor
    previous: Tensor

    @staticmethod
    def of(batch_sizes: Tensor, device: torch.device) -> Rows:
        """Made on the host, where `batch_sizes` [T] is.

        Raises:
            RuntimeError: a CUDA graph is being captured, which would keep the addresses of what is copied here.
        """
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                "A PackedSequence cannot be captured in a CUDA graph: its batch_sizes are on the host. Pass a padded "
                "input with lengths= instead."
            )
        B, N = int(batch_sizes[0]), int(batch_sizes.sum())
        alive = torch.arange(B) < batch_sizes.unsqueeze(1)  # [T, B]
        offsets = batch_sizes.cumsum(0) - batch_sizes
        place = (offsets.unsqueeze(1) + torch.arange(B)).masked_fill(~alive, -1)
        first = N + torch.arange(B).unsqueeze(0)
        before = torch.cat([first, place[:-1]])
        after = torch.cat([place[1:], torch.full((1, B), -1)])
        after = torch.where(after < 0, first, after)  # a backward row starts at its own last step
        previous = torch.stack([before[alive], after[alive]])
        places = alive.flatten().nonzero().squeeze(1)
        parts = (offsets, alive.sum(0), places, previous)
        return Rows(*(t.to(device, non_blocking=True) for t in parts))


def layer(
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Any,
    rows: Rows,
    spec: CellSpec,
    directions: int,
    route: int,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """One layer over packed rows x [N, I]; the rest as of `autograd.layer`. Returns y [N, D*H], hn and cn [D, B, H]."""
    H = weights[1].shape[-1]
    if H % units.MULTIPLE:
        weights, (h0, c0) = units.padded(weights, (h0, c0), spec)
    w_ih, w_hh, b_ih, b_hh = formula.stacked(weights, directions)
    gates_x = products.linear(x, w_ih, b_ih, route).view(x.shape[0], 1, directions, -1)
    save = torch.is_grad_enabled() and autograd.any_requires_grad(gates_x, h0, c0, w_hh, b_hh)
    y, hn, cn = PackedScan.apply(gates_x, h0, c0, w_hh, b_hh, rows, spec, directions, route, save)  # type: ignore[no-untyped-call]
    y, hn, cn = (t if t.dim() == 1 else t[..., :H] for t in (y, hn, cn))
    return y.flatten(1), hn.contiguous(), cn.contiguous() if spec is LSTM else None


class PackedScan(Function):
    """`scan` with offsets: gates_x [N, 1, D, G*H], y [N, 1, D, H]."""

    @staticmethod
    def forward(
        ctx: Any,
        gates_x: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        weight_hh: Tensor,
        bias_hh: Tensor | None,
        rows: Rows,
        spec: CellSpec,
        directions: int,
        route: int,
        save: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.rows, ctx.spec, ctx.directions, ctx.route = rows, spec, directions, route
        lengths = rows.lengths.expand(directions, -1)
        rest: Any = (None, None, rows.offsets, None, [], spec.code, directions, save)
        with _below_autograd():
            op = ops.scan_for(route)
            y, hn, gates, cs, cn = op(gates_x, h0, c0, weight_hh, bias_hh, lengths, None, *rest, route=route)
        ctx.save_for_backward(gates_x, h0, c0, weight_hh, bias_hh, y, gates, cs)
        return y, hn, cn

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        given, kept = ctx.saved_tensors[:5], ctx.saved_tensors[5:]
        with modes.without_autocast(kept[0]):
            formula = _padded_gradients if torch.is_grad_enabled() else _gradients
            return *formula(ctx, given, kept, upstream), *[None] * 5


def _gradients(
    ctx: Any, given: tuple[Any, ...], kept: tuple[Tensor, ...], upstream: tuple[Tensor | None, ...]
) -> list[Tensor | None]:
    """Of gates_x, h0, c0, weight_hh, bias_hh."""
    (_, h0, c0, weight_hh, _), (y, gates, cs), (dy, dhn, dcn) = given, kept, upstream
    spec, rows, lstm, need = ctx.spec, ctx.rows, ctx.spec is LSTM, ctx.needs_input_grad
    adjoint = (dy, dhn, None, None, dcn if lstm else None, gates, y, h0, cs if lstm else None, c0, weight_hh)
    lengths = rows.lengths.expand(ctx.directions, -1)
    with _below_autograd():
        dgates_x, dh0, dc0, dq = ops.scan_backward_for(ctx.route)(
            *adjoint, lengths, None, spec.code, ctx.directions, ctx.route, rows.offsets
        )
    parts = (dgates_x[..., : 2 * y.shape[-1]], dq) if spec is GRU else (dgates_x,)
    dweight = None
    if need[3]:
        started = _started_from(y.squeeze(1), h0, rows)
        dweight = torch.cat([products.matmul(d.squeeze(1).permute(1, 2, 0), started, ctx.route) for d in parts], 1)
    dbias = torch.cat([d.sum((0, 1)) for d in parts], 1) if need[4] else None
    return [dgates_x, dh0 if need[1] else None, dc0 if need[2] else None, dweight, dbias]


def _started_from(y: Tensor, h0: Tensor | None, rows: Rows) -> Tensor:
    """The state that each step of y [N, D, H] started from, [D, N, H]."""
    B = len(rows.lengths)
    initial = y.new_zeros(y.shape[1], B, y.shape[2]) if h0 is None else h0
    states = torch.cat([y.transpose(0, 1), initial], 1)
    return torch.stack([s.index_select(0, p) for s, p in zip(states, rows.previous, strict=False)])


def _padded_gradients(
    ctx: Any, inputs: tuple[Any, ...], _kept: tuple[Tensor, ...], upstream: tuple[Tensor | None, ...]
) -> list[Tensor | None]:
    """The gradients by the padded way, which can be differentiated again."""
    gates_x, h0, c0, weight_hh, bias_hh = inputs
    rows, D = ctx.rows, ctx.directions
    T, B = len(rows.offsets), len(rows.lengths)
    padded = gates_x.new_zeros(T * B, *gates_x.shape[2:]).index_copy(0, rows.places, gates_x.squeeze(1))
    y, hn, _, _, cn = autograd.scan(
        padded.unflatten(0, (T, B)),
        h0,
        c0,
        weight_hh,
        bias_hh,
        rows.lengths.expand(D, -1),
        None,
        ctx.spec,
        D,
        route=ctx.route,
    )
    outputs = (y.flatten(0, 1).index_select(0, rows.places).unsqueeze(1), hn, cn)
    given = [(out, grad) for out, grad in zip(outputs, upstream, strict=True) if grad is not None]
    wanted = [t for t, need in zip(inputs, ctx.needs_input_grad, strict=False) if need]
    found = iter(torch.autograd.grad([o for o, _ in given], wanted, [g for _, g in given], create_graph=True))
    return [next(found) if need else None for need in ctx.needs_input_grad[:5]]
