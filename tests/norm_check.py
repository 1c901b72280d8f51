"""The recurrence with layer normalisation and with states that resets go back to, both passes on random input: what the
ops `norm_scan` and `norm_scan_backward` have to return, and the comparison, as in recurrence_check.py.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from recurrence_check import PRECISIONS, Case, Tf32Products, _compare, draw
from torch import Tensor
from torch.nn import functional as F

from fusedrnn import philox, reference
from fusedrnn.spec import GRU, LSTM, RNN_TANH, CellSpec

MaybeTensor = Tensor | None
FORWARD = ("y", "hn", "gates", "cs", "cn", "products")
BACKWARD = ("dgates_x", "dh0", "dc0", "dq", "dproducts", "dreset_h", "dreset_c")


def gains(case: Case, dtype: torch.dtype) -> tuple[MaybeTensor, ...]:
    """gain_hh [S,G*H], gain_c and, with biases, shift_c [S,H], in float64 with the dtype's values."""
    S, H, lstm = case.streams or case.directions, case.H, case.cell is LSTM
    generator = torch.Generator().manual_seed(case.seed + 1000)

    def about(mean: float, units: int) -> Tensor:
        return (mean + torch.randn(S, units, generator=generator, dtype=torch.float64) / 4).to(dtype).double()

    return (
        about(1.0, len(case.cell.gates) * H),
        about(1.0, H) if lstm else None,
        about(0.0, H) if lstm and case.bias else None,
    )


def starts(case: Case, dtype: torch.dtype) -> tuple[MaybeTensor, ...]:
    """reset_h and reset_c [S,H], likewise; None without."""
    generator = torch.Generator().manual_seed(case.seed + 2000)
    size = (2, case.streams or case.directions, case.H)
    h, c = torch.randn(size, generator=generator, dtype=torch.float64).to(dtype).double()
    return h if case.starts else None, c if case.starts and case.cell is LSTM else None


def scan(
    given: Any,
    norms: Any,
    resets: Any,
    lengths: MaybeTensor,
    reset: MaybeTensor,
    spec: CellSpec,
    directions: int,
    noise: Any,
) -> tuple[Tensor, ...]:
    """By the reference: its results, and W_hh's products [T,B,S,G*H], [0] without normalisation.

    Args:
        given: gates_x, h0, c0, weight_hh, bias_hh.
        norms: gain_hh, gain_c, shift_c; None without normalisation.
        resets: reset_h and reset_c, None for zeros.
        lengths: as in `reference.scan`, like those below.
        reset: see above.
        spec: the cell.
        directions: see above.
        noise: mask_key and rates.
    """
    _, h0, _, w, _ = given
    there, back = ([t for t in some if t is not None] for some in (norms, resets))
    found = reference.scan(*given, lengths, reset, spec, directions, *noise, there, back)
    if not there:
        return *found, w.new_zeros(0)
    seen = reference.previous(found[0], h0, lengths, reset, directions, resets[0])
    key, rates = noise
    if rates and rates[2]:
        seen = seen * philox.dropout_mask(rates[2], key, *seen.shape[2:0:-1], seen, seen.shape[3]).transpose(0, 1)
    products = (seen.transpose(1, 2) @ w.mT).transpose(1, 2)
    if lengths is not None:
        steps = torch.arange(len(products)).view(-1, 1, 1)
        products = torch.where((steps < lengths.t()).unsqueeze(-1), products, 0.0)
    return *found, products


def scan_backward(
    upstream: Any,
    kept: Any,
    norms: Any,
    resets: Any,
    lengths: MaybeTensor,
    reset: MaybeTensor,
    spec: CellSpec,
    directions: int,
    noise: Any,
) -> tuple[Tensor, ...]:
    """The adjoint, as a function of what forward kept: `reference.scan_backward` with what is normalised, and `resets`.

    Args:
        upstream: gradients of y, hn, gates, which is not taken, cs and cn; None for zero.
        kept: gates, y, h0, cs, c0, weight_hh, products.
        norms: as in `scan`, like those below.
        resets: see above; of the result, their gradients are of each row, [S,B,H], [0] without.
        lengths: see above.
        reset: see above.
        spec: see above.
        directions: see above.
        noise: see above.
    """
    dy, dhn, _, dcs, dcn = upstream
    gates, y, h0, cs, c0, w, products = kept
    h_prev = reference.previous(y, h0, lengths, reset, directions, resets[0])
    c_prev = None if cs is None else reference.previous(cs, c0, lengths, reset, directions, resets[1])
    normed = norms[0] is not None
    steps = (dy, dcs, gates if spec.kept else None, y, cs, h_prev, c_prev, products if normed else None, reset)
    key, rates = noise
    masks = reference._noise(rates, key, y, w)
    sequences = (*map(reference._swap, steps), dhn, dcn, w, lengths, *masks, *norms)
    dims, out = (*[1] * 9, *[0] * 4, 1, 1, *[0] * 4), (1, 0, 0, 1, 1, 0, 0)
    run = partial(_backward, cell=spec)
    dgates_x, dh0, dc0, dq, dproducts, *back = reference._each_direction(run, directions, sequences, dims, out)
    back = [y.new_zeros(0) if state is None else d for state, d in zip(resets, back, strict=True)]
    return reference._swap(dgates_x), dh0, dc0, reference._swap(dq), reference._swap(dproducts), *back


def _backward(
    reverse: bool,
    dy: MaybeTensor,
    dcs: MaybeTensor,
    gates: Any,
    y: Tensor,
    cs: Any,
    h_prev: Tensor,
    c_prev: Any,
    products: Any,
    reset: MaybeTensor,
    dh: Any,
    dc: Any,
    w: Tensor,
    lengths: MaybeTensor,
    held_h: MaybeTensor,
    held_c: MaybeTensor,
    dropout: MaybeTensor,
    gain: Any,
    gain_c: Any,
    shift_c: MaybeTensor,
    *,
    cell: CellSpec,
) -> tuple[Tensor, ...]:
    """Of streams of one direction, sequences [T,S,B,...]."""
    none, zero, units = y.new_zeros(0), torch.zeros_like(y[0]), y.shape[-1:]
    dh, dc = zero if dh is None else dh, zero if dc is None else dc
    back_h, back_c = zero, zero
    dgates_x, dq, dproducts = {}, {}, {}
    for t in reversed(reference._walk(len(y), reverse)):
        live, cut = reference._rows(t, reverse, len(y), lengths, reset)
        total, stays = reference._parted(held_h, t, dh if dy is None else dh + dy[t])
        past, past_c, of_output = zero, zero, zero
        if cell == GRU:
            r, z, n, q = gates[t].chunk(4, -1)
            dn = total * (1 - z) * (1 - n * n)
            dr, dz, of_output = dn * q * r * (1 - r), total * (h_prev[t] - n) * z * (1 - z), dn * r
            at_x, at_h, past = torch.cat([dr, dz, dn], -1), torch.cat([dr, dz, of_output], -1), total * z
        elif cell == LSTM:
            i, f, g, o = gates[t].chunk(4, -1)
            c = cs[t] if held_c is None else f * c_prev[t] + i * g
            x = c if gain_c is None else F.layer_norm(c, units) * gain_c.unsqueeze(1)
            tanh_c = torch.tanh(x if shift_c is None else x + shift_c.unsqueeze(1))
            of_output = of_c = total * o * (1 - tanh_c * tanh_c)
            total_c, stays_c = reference._parted(held_c, t, dc if dcs is None else dc + dcs[t])
            if gain_c is not None:
                of_c = through(partial(F.layer_norm, normalized_shape=units), c, of_output * gain_c.unsqueeze(1))
            total_c = total_c + of_c
            di, df, dg = total_c * g * i * (1 - i), total_c * c_prev[t] * f * (1 - f), total_c * i * (1 - g * g)
            at_x = at_h = torch.cat([di, df, dg, total * tanh_c * o * (1 - o)], -1)
            past_c = total_c * f if stays_c is None else total_c * f + stays_c
        else:
            at_x = at_h = total * ((1 - y[t] * y[t]) if cell == RNN_TANH else (y[t] > 0).to(y.dtype))
        dv = at_h
        if gain is not None:
            dv = through(partial(reference.standardised, cell=cell), products[t], at_h * gain.unsqueeze(1))
        before = dv @ w
        before = past + (before if dropout is None else before * dropout)
        before = before if stays is None else before + stays
        dgates_x[t], dproducts[t] = reference._only(live, at_x), reference._only(live, dv)
        dq[t] = reference._only(live, of_output)
        if cut is not None:
            back_h, back_c = back_h + torch.where(cut, before, 0.0), back_c + torch.where(cut, past_c, 0.0)
        dh = reference._only(live, reference._zero(cut, before), dh)
        dc = reference._only(live, reference._zero(cut, past_c), dc)
    return (
        reference._in_time(dgates_x),
        dh,
        dc if cell == LSTM else none,
        reference._in_time(dq) if cell == GRU or gain_c is not None else none,
        none if gain is None else reference._in_time(dproducts),
        back_h,
        back_c,
    )


def through(function: Callable[[Tensor], Tensor], x: Tensor, gradient: Tensor) -> Tensor:
    """The gradient of x, of that of function(x)."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(function(x), x, gradient)[0]


Op = Callable[..., tuple[Tensor, ...]]


def check(case: Case, precision: str, norm_scan: Op, norm_scan_backward: Op, normed: bool = True) -> None:
    """Forward and backward of one case, by the rule of close.py, each on its own."""
    dtype, lstm = PRECISIONS[precision], case.cell is LSTM
    problem, resets = draw(case, dtype), starts(case, dtype)
    norms = gains(case, dtype) if normed else (None, None, None)
    rest = (problem.lengths, problem.reset, case.cell, case.directions, case.noise)

    def cast(tensors: Any) -> list[MaybeTensor]:
        return [None if t is None else t.to(dtype) for t in tensors]

    tf32 = precision == "tf32"
    products, rough = (Tf32Products, list) if tf32 else (nullcontext, cast)
    more = (*cast(resets), *cast(norms))
    tail = (problem.lengths, problem.reset, *more, *case.noise, case.cell.code, case.directions)
    found = norm_scan(*problem.laid(*problem.given), *tail, True)
    truth = scan(problem.given, norms, resets, *rest)
    with products():
        near = scan(rough(problem.given), rough(norms), rough(resets), *rest)
    _compare(FORWARD, found, problem.expected(*truth), problem.expected(*near), dtype)

    y, _, gates, cs, _, of_w = (t.to(dtype).double() for t in truth)
    _, h0, c0, w, _ = problem.given
    kept = (gates, y, h0, cs if lstm else None, c0, w, of_w)
    dy, dhn, _, dcs, dcn = problem.laid(*problem.upstream)
    found = norm_scan_backward(dy, dhn, dcs, dcn, *problem.laid(*kept), *tail)
    truth = scan_backward(problem.upstream, kept, norms, resets, *rest)
    with products():
        near = scan_backward(rough(problem.upstream), rough(kept), rough(norms), rough(resets), *rest)
    _compare(BACKWARD, found, problem.expected(*truth), problem.expected(*near), dtype)
