"""The specification: recurrent layers and their adjoint as plain PyTorch loops.

Any dtype, any device, any transform, any order of derivative: nothing here writes into a tensor or reads one on the
host. It shares no code with the kernels that it checks. Besides, forward-mode differentiation and second derivatives
run through it.

Shapes: T time, B batch, I input, H hidden, P = proj_size or H, G gates, Z kept gates, D directions, S streams. Stream s
runs backwards in time iff s % D == 1.

Rows: with `lengths`, a row takes its steps t < length only (clamped to [0, T]); outputs beyond are 0, its last state is
the one after its last step (the initial one if there is none), and a reverse stream starts at t = length - 1. A `reset`
at t separates step t-1 from step t in both directions: what would be carried over is zero, so that the result is that
of the segments run one by one. In a forward stream a reset at t = 0 drops the initial state; a reset at a step beyond
the row's length does nothing. With `resets`, what would be carried over is not zero but a state that is given.

Noise: `rates` are the probabilities of zoneout of h, zoneout of c, and recurrent dropout; () for none. Zoneout: a unit
keeps the state that the step began with and does not become what the cell makes of it; the LSTM's h is that of the c
before zoneout. Without a key it becomes the mean of both, weighted by the probability. Recurrent dropout: the product
with W_hh, and it alone, sees the state times one mask a sequence. `philox` says what is drawn.

Layer normalisation: each product with W_ih and W_hh is normalised, by itself, before its bias is added, and the LSTM's
c where the output's tanh takes it; the c that is carried on is not. `scan_backward` has none.

Over 400 lines: forward, its adjoint and what they share are one specification.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, cast, overload

import torch
from torch import Tensor
from torch.nn import functional as F

from . import philox
from .spec import GRU, LSTM, RNN_TANH, CellSpec

States = tuple[Tensor, ...]


def activate(gates_x: Tensor, gates_h: Tensor, cell: CellSpec) -> Tensor:
    """The gates of a step (or of all steps at once) from the two halves of their pre-activation.

    GRU: r, z = sigmoid(a + b), n = tanh(a + r q), q = b. LSTM: i, f, o = sigmoid(a + b), g = tanh(a + b).
    RNN: the new state, tanh(a + b) or relu(a + b).

    Args:
        gates_x: [..., G*H], W_ih x + b_ih.
        gates_h: [..., G*H], W_hh h + b_hh.
        cell: the cell.

    Returns:
        [..., Z*H], the blocks that `cell.kept` names; [..., H] for an RNN.
    """
    if cell == GRU:
        (r_x, z_x, n_x), (r_h, z_h, q) = gates_x.chunk(3, -1), gates_h.chunk(3, -1)
        r = torch.sigmoid(r_x + r_h)
        return torch.cat([r, torch.sigmoid(z_x + z_h), torch.tanh(n_x + r * q), q], -1)
    total = gates_x + gates_h
    if cell == LSTM:
        i, f, g, o = total.chunk(4, -1)
        return torch.cat([torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)], -1)
    return torch.tanh(total) if cell == RNN_TANH else torch.relu(total)


def advance(
    gates: Tensor, h: Tensor, c: Tensor | None, cell: CellSpec, norm_c: Sequence[Tensor] = ()
) -> tuple[Tensor, Tensor | None]:
    """The next state.

    GRU: h' = (1 - z) n + z h. LSTM: c' = f c + i g, h' = o tanh(c'). RNN: the gate itself.

    Args:
        gates: as `activate` returns them.
        h: the state before.
        c: the LSTM's cell state before.
        cell: the cell.
        norm_c: gain and, if there is one, shift of a normalisation of c' before its tanh; each broadcasts.
    """
    if cell == GRU:
        _, z, n, _ = gates.chunk(4, -1)
        return (1 - z) * n + z * h, None
    if cell == LSTM:
        i, f, g, o = gates.chunk(4, -1)
        c = f * cast(Tensor, c) + i * g
        return o * torch.tanh(_norm(c, *norm_c) if norm_c else c), c
    return gates, None


def standardised(product: Tensor, cell: CellSpec) -> Tensor:
    """A product with W_ih or W_hh [..., G*H] of mean 0 and variance 1: the GRU's r and z together, its n apart; of LSTM
    and RNN, all gates together.
    """
    units = product.shape[-1] // len(cell.gates)
    if cell != GRU:
        return F.layer_norm(product, product.shape[-1:])
    parts = torch.split_with_sizes(product, [2 * units, units], -1)
    return torch.cat([F.layer_norm(part, part.shape[-1:]) for part in parts], -1)


def _norm(t: Tensor, gain: Tensor, shift: Tensor | None = None) -> Tensor:
    scaled = F.layer_norm(t, t.shape[-1:]) * gain
    return scaled if shift is None else scaled + shift


def layer(
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    reset: Tensor | None,
    cell: CellSpec,
    directions: int,
    mask_key: Tensor | None = None,
    rates: Sequence[float] = (),
    norms: Sequence[Tensor] = (),
    resets: Sequence[Tensor] = (),
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """One layer, projections included.

    Args:
        x: [T,B,I].
        h0: [D,B,P], zeros if None.
        c0: [D,B,H], likewise; for the LSTM.
        weights: for each direction w_ih [G*H,I], w_hh [G*H,P], with biases b_ih and b_hh [G*H], with a projection w_hr
            [P,H].
        lengths: [B] integers.
        reset: [T,B] bool.
        cell: the cell.
        directions: 1 or 2.
        mask_key: int64 [2], what the noise is drawn by; None for zoneout's expectation.
        rates: of zoneout of h, zoneout of c, recurrent dropout; () for none.
        norms: for each direction what `spec.norm_names` names: gains [G*H], those of c [H]; () for no normalisation.
        resets: the states behind a reset, h [D,P] and, of the LSTM, c [D,H]; () for zeros.

    Returns:
        y [T,B,D*P], hn [D,B,P], cs [T,B,D*H] and cn [D,B,H]; the last two None but for the LSTM.
    """
    each = len(weights) // directions
    units = weights[1].shape[1], weights[1].shape[0] // len(cell.gates)
    masks = philox.masks(rates, mask_key, x.shape[0], directions, x.shape[1], x, units)
    runs = []
    for d in range(directions):
        w_ih, w_hh, *rest = weights[d * each : (d + 1) * each]
        b_ih, b_hh = (rest[0], rest[1].unsqueeze(0)) if each >= 4 else (None, None)
        h, c = (None if state is None else state[d : d + 1] for state in (h0, c0))
        ends = None if lengths is None else lengths.unsqueeze(0)
        cuts = None if reset is None else reset.unsqueeze(1)
        own = norms[d * len(norms) // directions : (d + 1) * len(norms) // directions]
        gates_x = projected(x, w_ih, b_ih, own[0] if own else None, cell).unsqueeze(1)
        w_hr = rest[-1] if each % 2 else None
        held_h, held_c, dropout = (None if m is None else m.narrow(m.dim() - 3, d, 1) for m in masks)
        given = (gates_x, h, c, w_hh.unsqueeze(0), b_hh, ends, cuts, held_h, held_c, dropout, w_hr)
        starts = [t[d : d + 1] for t in resets]
        runs.append(_forward(d == 1, *given, [t.unsqueeze(0) for t in own[1:]], starts, cell=cell))
    y, hn, _, cs, cn = zip(*runs, strict=True)
    edge, sequence = torch.cat(hn), torch.cat(y, -1).squeeze(1)
    return (
        (sequence, edge, torch.cat(cs, -1).squeeze(1), torch.cat(cn)) if cell == LSTM else (sequence, edge, None, None)
    )


def scan(
    gates_x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weight_hh: Tensor,
    bias_hh: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    cell: CellSpec,
    directions: int,
    mask_key: Tensor | None = None,
    rates: Sequence[float] = (),
    norms: Sequence[Tensor] = (),
    resets: Sequence[Tensor] = (),
) -> States:
    """The recurrence alone, as the compiled ops define it.

    Args:
        gates_x: [T,B,S,G*H].
        h0: [S,B,H], zeros if None.
        c0: [S,B,H], likewise; for the LSTM.
        weight_hh: [S,G*H,H].
        bias_hh: [S,G*H].
        lengths: [S,B] integers.
        reset: [T,B,S] bool.
        cell: the cell.
        directions: 1 or 2.
        mask_key: as in `layer`, like `rates`.
        rates: see above.
        norms: gains of the products with W_hh [S,G*H] and, of the LSTM, gain and, if there is one, shift of c [S,H]; ()
            for no normalisation.
        resets: the states behind a reset, h and, of the LSTM, c [S,H]; () for zeros.

    Returns:
        y [T,B,S,H], hn [S,B,H], gates [T,B,S,Z*H] ([0] for an RNN), cs [T,B,S,H] and cn [S,B,H] ([0] but for the LSTM).
    """
    noise = _noise(rates, mask_key, gates_x, weight_hh)
    sequences = (_swap(gates_x), h0, c0, weight_hh, bias_hh, lengths, _swap(reset), *noise, *norms, *resets)
    dims = (1, 0, 0, 0, 0, 0, 1, 1, 1, 0, *[0] * (len(norms) + len(resets)))
    end = 10 + len(norms)

    def run(reverse: bool, *args: Any) -> States:
        forward: Callable[..., States] = _forward
        return forward(reverse, *args[:10], norms=args[10:end], resets=args[end:], cell=cell)

    y, hn, gates, cs, cn = _each_direction(run, directions, sequences, dims, (1, 0, 1, 1, 0))
    return _swap(y), hn, _swap(gates), _swap(cs), cn


def previous(
    y: Tensor,
    h0: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    directions: int,
    start: Tensor | None = None,
) -> Tensor:
    """The state that each step started from, [T,B,S,H]; 0 of a step beyond its row's length.

    Args:
        y: [T,B,S,H], the states after each step.
        h0: [S,B,H], zeros if None.
        lengths: [S,B] integers.
        reset: [T,B,S] bool.
        directions: 1 or 2.
        start: the state behind a reset [S,H], zeros if None.
    """
    sequences = (_swap(y), h0, lengths, _swap(reset), start)
    return _swap(_each_direction(_previous, directions, sequences, (1, 0, 0, 1, 0), (1,))[0])


def scan_backward(
    dy: Tensor | None,
    dhn: Tensor | None,
    dgates: Tensor | None,
    dcs: Tensor | None,
    dcn: Tensor | None,
    gates: Tensor,
    y: Tensor,
    h0: Tensor | None,
    cs: Tensor | None,
    c0: Tensor | None,
    weight_hh: Tensor,
    lengths: Tensor | None,
    reset: Tensor | None,
    cell: CellSpec,
    directions: int,
    mask_key: Tensor | None = None,
    rates: Sequence[float] = (),
) -> States:
    """The adjoint of `scan`, as a function of what it kept, as the compiled op defines it.

    Args:
        dy: gradient of y; like the other four, None stands for zero.
        dhn: gradient of hn.
        dgates: gradient of gates.
        dcs: gradient of cs.
        dcn: gradient of cn.
        gates: [T,B,S,Z*H], unused for an RNN.
        y: [T,B,S,H].
        h0: as in `scan`, like everything below.
        cs: [T,B,S,H], for the LSTM.
        c0: see above.
        weight_hh: see above.
        lengths: see above.
        reset: see above.
        cell: see above.
        directions: see above.
        mask_key: see above.
        rates: see above.

    Returns:
        dgates_x [T,B,S,G*H], dh0 [S,B,H], dc0 [S,B,H] ([0] but for the LSTM), and dq [T,B,S,H], the gradient of
        W_hn h + b_hn ([0] but for the GRU).

    Raises:
        ValueError: an RNN with zoneout and no key: the output, all that is kept of it, is no longer its gate.
    """
    if rates and rates[0] and mask_key is None and not cell.kept:
        raise ValueError("the adjoint of an RNN with zoneout's expectation cannot be had from its output alone")
    h_prev = previous(y, h0, lengths, reset, directions)
    c_prev = None if cs is None else previous(cs, c0, lengths, reset, directions)
    sequences = (
        *map(_swap, (dy, dgates, dcs, gates if cell.kept else None, y, cs, h_prev, c_prev, reset)),
        dhn,
        dcn,
        weight_hh,
        lengths,
        *_noise(rates, mask_key, y, weight_hh),
    )
    dims = (1,) * 9 + (0,) * 4 + (1, 1, 0)
    dgates_x, dh0, dc0, dq = _each_direction(partial(_backward, cell=cell), directions, sequences, dims, (1, 0, 0, 1))
    return _swap(dgates_x), dh0, dc0, _swap(dq)


def projected(x: Tensor, w_ih: Tensor, b_ih: Tensor | None, gain: Tensor | None, cell: CellSpec) -> Tensor:
    """W_ih x + b_ih [..., G*H]; with `gain` [G*H], the product normalised."""
    if gain is None:
        return F.linear(x, w_ih, b_ih)
    product = standardised(F.linear(x, w_ih), cell) * gain
    return product if b_ih is None else product + b_ih


def _forward(
    reverse: bool,
    gates_x: Tensor,
    h: Tensor | None,
    c: Tensor | None,
    w_hh: Tensor,
    b_hh: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    held_h: Tensor | None,
    held_c: Tensor | None,
    dropout: Tensor | None,
    w_hr: Tensor | None = None,
    norms: Sequence[Tensor] = (),
    resets: Sequence[Tensor] = (),
    *,
    cell: CellSpec,
) -> States:
    """`scan` for streams of one direction, sequences [T,S,B,...]."""
    start_h, start_c = [t.unsqueeze(1) for t in (*resets, *resets)][:2] or (0.0, 0.0)
    steps, streams, rows, _ = gates_x.shape
    h = gates_x.new_zeros(streams, rows, w_hh.shape[-1]) if h is None else h
    if cell == LSTM:
        c = gates_x.new_zeros(streams, rows, w_hh.shape[-2] // len(cell.gates)) if c is None else c
    ys, kept, cs = {}, {}, {}
    for t in _walk(steps, reverse):
        live, cut = _rows(t, reverse, steps, lengths, reset)
        h, c = _zero(cut, h, start_h), None if c is None else _zero(cut, c, start_c)
        # 0 times NaN is no 0: of a row that has not got the step, nothing enters its products
        old_h, old_c = _only(live, h), None if c is None else _only(live, c)
        seen = old_h if dropout is None else old_h * dropout
        gates_h = seen @ w_hh.mT
        gates_h = standardised(gates_h, cell) * norms[0].unsqueeze(1) if norms else gates_h
        gates_h = gates_h if b_hh is None else gates_h + b_hh.unsqueeze(1)
        gates = activate(gates_x[t], gates_h, cell)
        new_h, new_c = advance(gates, old_h, old_c, cell, [t.unsqueeze(1) for t in norms[1:]])
        new_h = _zoned(held_h, t, old_h, new_h if w_hr is None else new_h @ w_hr.mT)
        ys[t], kept[t] = _only(live, new_h), _only(live, gates)
        h = _only(live, new_h, h)
        if new_c is not None:
            new_c = _zoned(held_c, t, cast(Tensor, old_c), new_c)
            cs[t], c = _only(live, new_c), _only(live, new_c, cast(Tensor, c))
    none = gates_x.new_zeros(0)
    gates = _in_time(kept) if cell.kept else none
    return (_in_time(ys), h, gates, _in_time(cs), c) if c is not None else (_in_time(ys), h, gates, none, none)


def _previous(
    reverse: bool, y: Tensor, h0: Tensor | None, lengths: Tensor | None, reset: Tensor | None, start: Tensor | None
) -> States:
    first = y.new_zeros(1, *y.shape[1:]) if h0 is None else h0.unsqueeze(0)
    shifted = torch.cat([y[1:], first]) if reverse else torch.cat([first, y[:-1]])
    if reset is not None:
        cut = torch.cat([reset[1:], torch.zeros_like(reset[:1])]) if reverse else reset
        shifted = _zero(cut.unsqueeze(-1), shifted, 0.0 if start is None else start.unsqueeze(1))
    if reverse and lengths is not None:
        steps = torch.arange(1, y.shape[0] + 1, device=y.device).view(-1, 1, 1)
        shifted = torch.where((steps == lengths).unsqueeze(-1), first, shifted)
    if lengths is not None:
        steps = torch.arange(y.shape[0], device=y.device).view(-1, 1, 1)
        shifted = torch.where((steps < lengths).unsqueeze(-1), shifted, 0)
    return (shifted,)


def _backward(
    reverse: bool,
    dy: Tensor | None,
    dgates: Tensor | None,
    dcs: Tensor | None,
    gates: Tensor | None,
    y: Tensor,
    cs: Tensor | None,
    h_prev: Tensor,
    c_prev: Tensor | None,
    reset: Tensor | None,
    dh: Tensor | None,
    dc: Tensor | None,
    w_hh: Tensor,
    lengths: Tensor | None,
    held_h: Tensor | None,
    held_c: Tensor | None,
    dropout: Tensor | None,
    *,
    cell: CellSpec,
) -> States:
    """`scan_backward` for streams of one direction, sequences [T,S,B,...]."""
    steps = y.shape[0]
    dh = torch.zeros_like(y[0]) if dh is None else dh
    dc = torch.zeros_like(y[0]) if dc is None else dc
    dgates_x, dq = {}, {}
    for t in reversed(_walk(steps, reverse)):
        live, cut = _rows(t, reverse, steps, lengths, reset)
        up: Sequence[Tensor | int] = (0,) * 4 if dgates is None else dgates[t].chunk(4, -1)
        total, kept_h = _parted(held_h, t, dh if dy is None else dh + dy[t])
        through_h: Tensor | None = None
        through_c: Tensor | None = None
        if cell == GRU:
            r, z, n, q = cast(Tensor, gates)[t].chunk(4, -1)
            dn = (total * (1 - z) + up[2]) * (1 - n * n)
            dr = (dn * q + up[0]) * r * (1 - r)
            dz = (total * (h_prev[t] - n) + up[1]) * z * (1 - z)
            through_q = dn * r + up[3]
            at_x, at_h, through_h = torch.cat([dr, dz, dn], -1), torch.cat([dr, dz, through_q], -1), total * z
            dq[t] = _only(live, through_q)
        elif cell == LSTM:
            i, f, g, o = cast(Tensor, gates)[t].chunk(4, -1)
            # zoneout keeps the old c, or a mean: the cell's own is made again
            tanh_c = torch.tanh(cast(Tensor, cs)[t] if held_c is None else f * cast(Tensor, c_prev)[t] + i * g)
            total_c, kept_c = _parted(held_c, t, dc if dcs is None else dc + dcs[t])
            total_c = total_c + total * o * (1 - tanh_c * tanh_c)
            di = (total_c * g + up[0]) * i * (1 - i)
            df = (total_c * cast(Tensor, c_prev)[t] + up[1]) * f * (1 - f)
            dg = (total_c * i + up[2]) * (1 - g * g)
            do = (total * tanh_c + up[3]) * o * (1 - o)
            at_x = at_h = torch.cat([di, df, dg, do], -1)
            through_c = total_c * f if kept_c is None else total_c * f + kept_c
        else:
            at_x = at_h = total * ((1 - y[t] * y[t]) if cell == RNN_TANH else (y[t] > 0).to(y.dtype))
        dgates_x[t] = _only(live, at_x)
        before = at_h @ w_hh if dropout is None else at_h @ w_hh * dropout
        for part in (through_h, kept_h):
            before = before if part is None else before + part
        dh = _only(live, _zero(cut, before), dh)
        if through_c is not None:
            dc = _only(live, _zero(cut, through_c), dc)
    none = y.new_zeros(0)
    return _in_time(dgates_x), dh, dc if cell == LSTM else none, _in_time(dq) if cell == GRU else none


def _noise(
    rates: Sequence[float], mask_key: Tensor | None, sequence: Tensor, weight_hh: Tensor
) -> tuple[Tensor | None, ...]:
    """Masks for a sequence [T,B,S,...]: zoneout's [T,S,B,H] and dropout's [S,B,H]."""
    steps, rows, streams, _ = sequence.shape
    return philox.masks(rates, mask_key, steps, streams, rows, sequence, (weight_hh.shape[-1],) * 2)


def _zoned(held: Tensor | None, t: int, old: Tensor, new: Tensor) -> Tensor:
    """The state after zoneout; `held` says which units keep the old one or, as numbers, how much of it."""
    if held is None:
        return new
    return torch.where(held[t], old, new) if held.dtype == torch.bool else held[t] * old + (1 - held[t]) * new


def _parted(held: Tensor | None, t: int, gradient: Tensor) -> tuple[Tensor, Tensor | None]:
    """Its adjoint: the gradients of the new state and of the old one."""
    if held is None:
        return gradient, None
    if held.dtype == torch.bool:
        return torch.where(held[t], 0.0, gradient), torch.where(held[t], gradient, 0.0)
    return (1 - held[t]) * gradient, held[t] * gradient


def _walk(steps: int, reverse: bool) -> range:
    return range(steps - 1, -1, -1) if reverse else range(steps)


def _rows(
    t: int, reverse: bool, steps: int, lengths: Tensor | None, reset: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """The rows that have a step t (None: all), and those whose state is zeroed before it (None: none); [S,B,1]."""
    live = None if lengths is None else (lengths > t).unsqueeze(-1)
    boundary = t + reverse
    if reset is None or boundary == steps:
        return live, None
    cut = reset[boundary] if lengths is None else reset[boundary] & (lengths > boundary)
    return live, cut.unsqueeze(-1)


def _only(where: Tensor | None, value: Tensor, otherwise: Tensor | float = 0.0) -> Tensor:
    return value if where is None else torch.where(where, value, otherwise)


def _zero(where: Tensor | None, value: Tensor, start: Tensor | float = 0.0) -> Tensor:
    return value if where is None else torch.where(where, start, value)


def _in_time(steps: dict[int, Tensor]) -> Tensor:
    return torch.stack([steps[t] for t in range(len(steps))])


def _each_direction(
    run: Callable[..., States],
    directions: int,
    args: Iterable[Tensor | None],
    dims_in: Sequence[int],
    dims_out: Sequence[int],
) -> States:
    """Runs the streams of each direction apart, and puts them back in order.

    Args:
        run: takes whether time runs backwards, and the arguments for the streams of one direction.
        directions: 1 or 2.
        args: for all streams.
        dims_in: each argument's axis of streams.
        dims_out: each result's.
    """
    if directions == 1:
        return run(False, *args)
    given = list(zip(args, dims_in, strict=True))
    forward, reverse = (
        run(d == 1, *(None if t is None else _every_second(t, dim, d) for t, dim in given)) for d in range(2)
    )
    return tuple(
        # by reshape, because is_grads_batched has no rule for flatten
        a
        if a.dim() == 1
        else torch.stack([a, b], dim + 1).reshape(*a.shape[:dim], 2 * a.shape[dim], *a.shape[dim + 1 :])
        for a, b, dim in zip(forward, reverse, dims_out, strict=True)
    )


def _every_second(t: Tensor, dim: int, first: int) -> Tensor:
    return t[(slice(None),) * dim + (slice(first, None, 2),)]


@overload
def _swap(t: Tensor) -> Tensor: ...


@overload
def _swap(t: None) -> None: ...


@overload
def _swap(t: Tensor | None) -> Tensor | None: ...


def _swap(t: Tensor | None) -> Tensor | None:
    """[T,B,S,...] to [T,S,B,...] and back; [0] stays."""
    return t if t is None or t.dim() == 1 else t.transpose(1, 2)
