"""The derivative of the adjoint of GRU and LSTM: one loop of a product and few ops a step, and ops over all steps.

The adjoint is linear in the gradients that come in, so its derivative with respect to them is a recurrence forward in
time, its transpose, with coefficients that are known for all steps before. What kept gates get is known after it. (An
RNN's transpose is its adjoint again, and runs on the kernel: `adjoint`.)

All is plain PyTorch, so that it has derivatives of its own. Inside, sequences are [T,S,B,...] in the order in which
each row of each stream takes its steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .spec import GRU, CellSpec

MaybeTensor = Tensor | None


def derivative(
    spec: CellSpec, directions: int, tensors: Sequence[Any], results: Sequence[Tensor], grads: Sequence[Tensor]
) -> dict[int, Any]:
    """By the place among the adjoint's arguments.

    Args:
        spec: GRU or LSTM.
        directions: 1 or 2.
        tensors: dy, dhn, dgates, dcs, dcn, gates, y, h0, cs, c0, weight_hh, lengths, reset, as in
            `reference.scan_backward`.
        results: dgates_x, dh0, dc0, dq, what it returned.
        grads: the gradients of these.
    """
    dy, dhn, dgates, dcs, dcn, gates, y, h0, cs, c0, weight, lengths, reset = (_given(t) for t in tensors)
    order = _Order(y.shape, lengths, reset, directions)
    gates, dgates = order(gates), order(dgates)
    up = (0,) * 4 if dgates is None else dgates.chunk(4, -1)
    of_x, of_q = order(grads[0]), order(_given(grads[3]))
    step: Any
    if spec == GRU:
        step = _Gru(gates, order.before(order(y), h0), up, of_x, of_q)
        slopes = torch.cat([order(results[0])[..., : 2 * y.shape[-1]], order(results[3])], -1)
    else:
        step = _Lstm(gates, order(cs), order.before(order(cs), c0), up, of_x)
        slopes = order(results[0])
    dh, dc, dh_before, dc_before = order.run(step, grads[1], _given(grads[2]), weight)
    # what the adjoint carried, again: its serial part is in the slopes
    arriving = order.after(slopes @ weight, dhn)
    step.carry(order, arriving if dy is None else arriving + order(dy), order(dcs), dcn)
    kept = step.of_kept(dh_before, dc_before)
    grads_of_kept: list[Any] = [None if t is None else order.real(t) for t in kept]
    of_gates, of_before, of_cs, of_dgates = grads_of_kept
    found: dict[int, Any] = {
        0: order.back(order.real(dh)),
        1: dh[-1],
        2: order.back(of_dgates),
        5: order.back(of_gates),
        10: _by_stream(slopes).mT @ _by_stream(dh_before),
    }
    of_states, of_first = order.handed_on(of_before)
    if spec == GRU:
        return found | {6: order.back(of_states), 7: of_first}
    return found | {3: order.back(order.real(dc)), 4: dc[-1], 8: order.back(of_states + of_cs), 9: of_first}


def _given(t: Any) -> Any:
    return None if t is None or t.dim() == 1 else t


def _by_stream(t: Tensor) -> Tensor:
    """[T,S,B,N] to [S,T*B,N]."""
    return t.transpose(0, 1).reshape(t.shape[1], -1, t.shape[-1])


class _Order:
    """[T,B,S,...] to [T,S,B,...] with each row's steps in the order in which its stream takes them, and back."""

    def __init__(self, shape: Sequence[int], lengths: MaybeTensor, reset: MaybeTensor, directions: int) -> None:
        T, _, S, _ = shape
        self.directions, self.index = directions, None
        self.live: MaybeTensor = None
        self.cut: MaybeTensor = None
        if lengths is not None:
            steps, ends = torch.arange(T, device=lengths.device).view(-1, 1, 1), lengths.clamp(0, T)
            self.live = (steps < ends).unsqueeze(-1)
            self.index = torch.where(steps < ends, ends - 1 - steps, steps)
        if reset is not None:
            cut = self(reset.unsqueeze(-1))
            if directions == 2:  # between a step and the one behind it in time
                shifted = torch.cat([torch.zeros_like(cut[:1]), cut[:-1]])
                cut = torch.where(self._backwards(S, cut), shifted, cut)
            self.cut = cut if self.live is None else cut & self.live

    def _backwards(self, streams: int, like: Tensor) -> Tensor:
        return (torch.arange(streams, device=like.device) % 2 == 1).view(-1, 1, 1)

    def _turn(self, t: Tensor) -> Tensor:
        if self.directions == 1:
            return t
        turned = t.flip(0)
        if self.index is not None:
            turned = t.gather(0, self.index.unsqueeze(-1).expand(t.shape))
        return torch.where(self._backwards(t.shape[1], t), turned, t)

    def __call__(self, t: Any) -> Any:
        return None if t is None else self._turn(t.transpose(1, 2))

    def back(self, t: Any) -> Any:
        """To the order in which the ops have it."""
        return None if t is None else self._turn(t).transpose(1, 2)

    def real(self, t: Tensor) -> Tensor:
        """Zeros beyond the rows' ends."""
        return t if self.live is None else torch.where(self.live, t, 0.0)

    def before(self, states: Tensor, first: MaybeTensor) -> Tensor:
        """What each step started from."""
        first = torch.zeros_like(states[:1]) if first is None else first.unsqueeze(0)
        shifted = torch.cat([first, states[:-1]])
        return shifted if self.cut is None else torch.where(self.cut, 0.0, shifted)

    def handed_on(self, of_before: Tensor) -> tuple[Tensor, Tensor]:
        """The adjoint of `before`: the gradients of the states and of the first one."""
        kept = self.real(of_before)
        kept = kept if self.cut is None else torch.where(self.cut, 0.0, kept)
        return torch.cat([kept[1:], torch.zeros_like(kept[:1])]), kept[0]

    def after(self, before: Tensor, last: MaybeTensor) -> Tensor:
        """What each step gets from the one after it, which hands back `before`; a row's last step gets `last`."""
        last = torch.zeros_like(before[0]) if last is None else last
        kept = before if self.cut is None else torch.where(self.cut, 0.0, before)
        shifted = torch.cat([kept[1:], last.unsqueeze(0)])
        if self.live is None:
            return shifted
        ends = torch.cat([~self.live[1:], torch.ones_like(self.live[:1])])
        return torch.where(ends, last, shifted)

    def run(self, step: Any, dh: Any, dc: Any, weight: Tensor) -> Any:
        """The loop: the gradients of what each step was given for h and c, and of what it handed back."""
        some: tuple[list[Any], ...] = ([], [], [], [])
        given_h, given_c, handed_h, handed_c = some
        turned = weight.mT
        for t in range(step.steps):
            if self.cut is not None:
                dh = torch.where(self.cut[t], 0.0, dh)
                dc = None if dc is None else torch.where(self.cut[t], 0.0, dc)
            handed_h.append(dh)
            handed_c.append(dc)
            new_h, new_c = step(t, dh, dc, dh @ turned)
            if self.live is not None:
                new_h = torch.where(self.live[t], new_h, dh)
                new_c = None if new_c is None else torch.where(self.live[t], new_c, dc)
            dh, dc = new_h, new_c
            given_h.append(dh)
            given_c.append(dc)
        return tuple(None if parts[0] is None else torch.stack(parts) for parts in some)


class _Gru:
    """dn = (g (1 - z) + u_n) n', dr = (dn q + u_r) r', dz = (g (h - n) + u_z) z', dq = dn r + u_q; and g z goes on."""

    def __init__(self, gates: Tensor, h: Tensor, up: Sequence[Any], of_x: Tensor, of_q: Tensor) -> None:
        self.r, self.z, self.n, self.q = gates.chunk(4, -1)
        self.h, self.up, self.steps = h, up, gates.shape[0]
        self.of_r, self.of_z, self.of_n = of_x.chunk(3, -1)
        self.of_q = torch.zeros_like(self.of_n) if of_q is None else of_q
        self.slope_r, self.slope_z = self.r * (1 - self.r), self.z * (1 - self.z)
        self.slope_n = 1 - self.n * self.n
        self.to_r, self.to_z = self.q * self.slope_r, (h - self.n) * self.slope_z
        self.to_n = (1 - self.z) * self.slope_n
        self.seen: list[Sequence[Tensor]] = []

    def __call__(self, t: int, dh: Tensor, dc: Any, back: Tensor) -> tuple[Tensor, None]:
        r, z, q = back.chunk(3, -1)
        r, z, q = self.of_r[t] + r, self.of_z[t] + z, self.of_q[t] + q
        n = self.of_n[t] + self.r[t] * q + self.to_r[t] * r
        self.seen.append((r, z, n, q))
        return self.to_n[t] * n + self.to_z[t] * z + self.z[t] * dh, None

    def carry(self, order: _Order, arriving: Tensor, dcs: Any, dcn: Any) -> None:
        """The gradient of each step's h: what arrives, and z times that of the step after it."""
        g, carried = [], None
        for t in reversed(range(self.steps)):
            now = arriving[t]
            if carried is not None:
                now = now + carried
            g.append(now)
            carried = self.z[t] * now
            carried = carried if order.cut is None else torch.where(order.cut[t], 0.0, carried)
            carried = carried if order.live is None else torch.where(order.live[t], carried, 0.0)
        self.g = torch.stack(g[::-1])

    def of_kept(self, dh_before: Tensor, _: Any) -> tuple[Tensor, Tensor, None, Tensor]:
        """Gradients of the kept gates, of the state before and of `dgates`."""
        r, z, n, q = (torch.stack(some) for some in zip(*self.seen, strict=True))
        u_r, u_z, u_n, _ = self.up
        at_n, at_z = self.g * (1 - self.z) + u_n, self.g * (self.h - self.n) + u_z
        dn = at_n * self.slope_n
        of_gates = torch.cat(
            [
                r * (dn * self.q + u_r) * (1 - 2 * self.r) + q * dn,
                z * at_z * (1 - 2 * self.z) - n * self.slope_n * self.g + dh_before * self.g,
                -2 * n * at_n * self.n - z * self.g * self.slope_z,
                r * dn * self.slope_r,
            ],
            -1,
        )
        of_dgates = torch.cat([r * self.slope_r, z * self.slope_z, n * self.slope_n, q], -1)
        return of_gates, z * self.g * self.slope_z, None, of_dgates


class _Lstm:
    """C = dc + e o tanh'(c), di = (C g + u_i) i', df = (C b + u_f) f', dg = (C i + u_g) g', do = (e tanh(c) + u_o) o'.

    e is the gradient of h, b the c before; C f goes on.
    """

    def __init__(self, gates: Tensor, c: Tensor, c_before: Tensor, up: Sequence[Any], of_x: Tensor) -> None:
        self.i, self.f, self.g, self.o = gates.chunk(4, -1)
        self.c_before, self.up, self.steps = c_before, up, gates.shape[0]
        self.of = of_x.chunk(4, -1)
        self.tanh_c = torch.tanh(c)
        self.slopes = (self.i * (1 - self.i), self.f * (1 - self.f), 1 - self.g * self.g, self.o * (1 - self.o))
        self.slope_c = 1 - self.tanh_c * self.tanh_c
        to_i, to_f, to_g, to_o = self.slopes
        self.to_c = (self.g * to_i, c_before * to_f, self.i * to_g)
        self.c_of_h, self.o_of_h = self.o * self.slope_c, self.tanh_c * to_o
        self.seen: list[Sequence[Tensor]] = []

    def __call__(self, t: int, dh: Tensor, dc: Tensor, back: Tensor) -> tuple[Tensor, Tensor]:
        i, f, g, o = (of[t] + more for of, more in zip(self.of, back.chunk(4, -1), strict=True))
        to_i, to_f, to_g = self.to_c
        c = to_i[t] * i + to_f[t] * f + to_g[t] * g + self.f[t] * dc
        self.seen.append((i, f, g, o, c))
        return self.c_of_h[t] * c + self.o_of_h[t] * o, c

    def carry(self, order: _Order, arriving: Tensor, dcs: Any, dcn: Any) -> None:
        """The gradients of each step's h and c."""
        self.h, whole = arriving, []
        carried = torch.zeros_like(arriving[0]) if dcn is None else dcn
        for t in reversed(range(self.steps)):
            now = carried if dcs is None else carried + dcs[t]
            now = now + self.c_of_h[t] * arriving[t]
            whole.append(now)
            before = self.f[t] * now
            before = before if order.cut is None else torch.where(order.cut[t], 0.0, before)
            carried = before if order.live is None else torch.where(order.live[t], before, carried)
        self.c = torch.stack(whole[::-1])

    def of_kept(self, dh_before: Tensor, dc_before: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gradients of the kept gates, of the c before, of the step's c and of `dgates`."""
        i, f, g, o, c = (torch.stack(some) for some in zip(*self.seen, strict=True))
        to_i, to_f, to_g, to_o = self.slopes
        u_i, u_f, u_g, u_o = self.up
        of_gates = torch.cat(
            [
                i * (self.c * self.g + u_i) * (1 - 2 * self.i) + g * self.c * to_g,
                f * (self.c * self.c_before + u_f) * (1 - 2 * self.f) + dc_before * self.c,
                i * self.c * to_i - 2 * g * (self.c * self.i + u_g) * self.g,
                c * self.h * self.slope_c + o * (self.h * self.tanh_c + u_o) * (1 - 2 * self.o),
            ],
            -1,
        )
        of_c = self.h * self.slope_c * (o * to_o - 2 * c * self.o * self.tanh_c)
        of_dgates = torch.cat([i * to_i, f * to_f, g * to_g, o * to_o], -1)
        return of_gates, f * self.c * to_f, of_c, of_dgates
