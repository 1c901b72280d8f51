"""A reset that goes back to a state of its own: against segments run one by one, and through every way in."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from close import assert_same
from noisy_loop import STACK, each_backend, each_layer, make
from pairs import B, H, I, T, gradients, initial, needs_kernel, rand, tensors
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

import fusedrnn
from fusedrnn.errors import UnsupportedProblem

RESET = torch.tensor([[1, 0, 0], [0, 0, 1], [0, 0, 0], [1, 0, 1], [0, 0, 1], [1, 0, 0]], dtype=torch.bool)
"""[T, B]: at the first step, nowhere, twice in a row."""


def pair(states: Any) -> Any:
    return tuple(states) if len(states) == 2 else states[0]


def starts(layer: Any) -> list[Tensor]:
    """[L*D, H] of each state."""
    return [rand(h.shape[0], h.shape[2]).requires_grad_() for h in tensors([initial(layer)])]


def segments(layer: Any, x: Tensor, hx: list[Tensor], start: list[Tensor], reset: Tensor, ends: list[int]) -> Any:
    """The layer on x [T,B,I], segment by segment; y and the last states."""
    rows, lasts = [], []
    directions = 2 if layer.bidirectional else 1
    forward = (torch.arange(hx[0].shape[0]) % directions == 0).view(-1, 1, 1)
    for b, end in enumerate(ends):
        bounds = [0, *(t for t in range(1, end) if reset[t, b]), end]
        own = [h[:, b : b + 1] for h in hx]
        back = [s.unsqueeze(1) for s in start]
        ys, last = [], own
        for a, e in pairwise(bounds) if end else ():
            ahead = own if a == 0 and not reset[0, b] else back
            behind = own if e == end else back
            given = [torch.where(forward, f, r) for f, r in zip(ahead, behind, strict=True)]
            y, new = layer(x[a:e, b : b + 1], pair(given))
            ys.append(y)
            new = tensors([new])
            last = new if a == 0 else [torch.where(forward, n, old) for n, old in zip(new, last, strict=True)]
        rest = x.new_zeros(len(x) - end, 1, directions * last[0].shape[2])
        rows.append(torch.cat([*ys, rest]))
        lasts.append(last)
    return [torch.cat(rows, 1), *(torch.cat(parts, 1) for parts in zip(*lasts, strict=True))]


def compared(layer: Any, backend: str, lengths: Tensor | None = None) -> None:
    """Values and gradients of everything."""
    x, hx, start = (
        rand(T, B, I).requires_grad_(),
        [h.requires_grad_() for h in tensors([initial(layer)])],
        starts(layer),
    )
    leaves = [x, *hx, *start, *layer.parameters()]
    ends = [T] * B if lengths is None else lengths.tolist()
    want = segments(layer, x, hx, start, RESET, ends)
    layer.backend = backend
    found = tensors(layer(x, pair(hx), lengths=lengths, reset=RESET, reset_state=pair(start)))
    assert_same(found + gradients(found, leaves), want + gradients(want, leaves))


@each_layer
@each_backend
@pytest.mark.parametrize("options", [{}, STACK], ids=["one", "stack"])
def test_equals_segments_run_one_by_one(name: str, backend: str, options: dict[str, Any]) -> None:
    compared(make(name, **options), backend)
    compared(make(name, **options), backend, torch.tensor([4, T, 0]))
    compared(make(name, **options, layer_norm=True), backend, torch.tensor([T, 2, 3]))


def test_projections() -> None:
    compared(make("LSTM", I, H, proj_size=2, **STACK), "auto", torch.tensor([4, T, 5]))


@each_layer
@needs_kernel
def test_with_noise_the_backends_agree(name: str) -> None:
    layer, x = make(name, **STACK, zoneout=0.3, recurrent_dropout=0.4), rand(T, B, I).requires_grad_()
    start, found = starts(layer), []
    for backend in ("cpu", "reference"):
        torch.manual_seed(3)
        layer.backend = backend
        out = tensors(layer(x, reset=RESET, reset_state=pair(start)))
        found.append(out + gradients(out, [x, *start, *layer.parameters()]))
    assert_same(*found)


@each_layer
def test_bptt_and_recompute(name: str) -> None:
    """Windows by hand: each from the detached states of the one before; in one direction."""
    layer, x = make(name), rand(T, B, I)
    start, parts, last = starts(layer), [], None
    for a in range(0, T, 2):
        hx = None if last is None else pair([h.detach() for h in tensors([last])])
        y, last = layer(x[a : a + 2], hx, reset=RESET[a : a + 2], reset_state=pair(start))
        parts.append(y)
    leaves = [*start, *layer.parameters()]
    want = [torch.cat(parts)]
    want += gradients(want, leaves)
    layer.bptt = 2
    found = [layer(x, reset=RESET, reset_state=pair(start))[0]]
    assert_same(found + gradients(found, leaves), want)

    whole = make(name, **STACK)
    start, found = starts(whole), []
    for recompute in (False, True):
        whole.recompute = recompute
        y = [whole(x, reset=RESET, reset_state=pair(start))[0]]
        found.append(y + gradients(y, [*start, *whole.parameters()]))
    assert_same(*found)


@each_layer
def test_bptt_in_both_directions_keeps_the_values(name: str) -> None:
    layer, x = make(name, **STACK), rand(T, B, I)
    start = starts(layer)
    want = tensors(layer(x, reset=RESET, reset_state=pair(start)))
    layer.bptt = 2
    assert_same(tensors(layer(x, reset=RESET, reset_state=pair(start))), want)


@each_layer
def test_every_order_and_transform(name: str, one_thread: None) -> None:
    layer, x = make(name, 2, 2), rand(3, 2, 2).requires_grad_()
    start, reset = starts(layer), torch.tensor([[True, False], [False, True], [True, False]])

    def run(x: Tensor, *start: Tensor) -> Tensor:
        return layer(x, reset=reset, reset_state=pair(start))[0]

    assert torch.autograd.gradcheck(run, (x, *start), check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(run, (x, *start))
    rows = [torch.stack([s, 2 * s]).detach() for s in start]
    mapped = torch.func.vmap(torch.func.grad(lambda *s: run(x.detach(), *s).square().sum()))(*rows)
    for i in range(2):
        leaf = rows[0][i].clone().requires_grad_()
        (want,) = torch.autograd.grad(run(x.detach(), leaf, *(r[i] for r in rows[1:])).square().sum(), leaf)
        assert_same([mapped[i]], [want])


@each_layer
def test_compiles_whole_with_any_number_of_steps(name: str, fresh_graphs: None) -> None:
    layer = make(name, **STACK)
    start = starts(layer)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for steps in (T, T - 1):
        x, reset = rand(steps, B, I), RESET[:steps]
        leaves = [*start, *layer.parameters()]
        found, want = (tensors(f(x, reset=reset, reset_state=pair(start))) for f in (compiled, layer))
        assert_same(found + gradients(found, leaves), want + gradients(want, leaves))


def test_layouts_autocast_and_functions() -> None:
    layer = make("GRU", batch_first=True)
    x, (start,) = rand(T, B, I), starts(layer)
    want = layer(x.transpose(0, 1), reset=RESET.T, reset_state=start)[0]
    one = layer(x[:, 0], reset=RESET[:, 0], reset_state=start)[0]
    assert_same([one], [want[0]])
    weights = list(layer.parameters())
    assert_same([fusedrnn.functional.gru(x, None, weights, reset=RESET, reset_state=start)[0]], [want.transpose(0, 1)])
    low = layer.float()
    with torch.autocast("cpu", torch.bfloat16):
        found = low(x.transpose(0, 1).float(), reset=RESET.T, reset_state=start.float())[0]
    assert float((found - want).norm() / want.norm()) < 0.02


def test_it_is_learned() -> None:
    """Rows say nothing until they are reset: what they say then is what the state was taught."""
    layer, start = make("GRU", 1, 4, seed=2), nn.Parameter(torch.zeros(1, 4, dtype=torch.double))
    x, reset = torch.zeros(4, 2, 1, dtype=torch.double), torch.zeros(4, 2, dtype=torch.bool)
    reset[2, 0] = True
    optimizer, losses = torch.optim.Adam([start, *layer.parameters()], 0.05), []
    for _ in range(60):
        y, _ = layer(x, reset=reset, reset_state=start)
        losses.append((y[2:, 0] - 0.5).square().mean() + y[:, 1].square().mean())
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0] / 10
    assert start.detach().abs().max() > 0.1


def test_errors() -> None:
    gru, lstm, x = make("GRU"), make("LSTM"), rand(T, B, I)
    start = torch.zeros(1, H, dtype=torch.double)
    for error, said, layer, given in (
        (ValueError, "reset_state: there is no reset", gru, {"reset_state": start}),
        (RuntimeError, r"reset_state: Expected size \(1, \d+\)", gru, {"reset": RESET, "reset_state": start[0]}),
        (TypeError, "reset_state: Expected a tuple of two tensors", lstm, {"reset": RESET, "reset_state": start}),
        (
            TypeError,
            r"two tensors, h and c, got \(Tensor, NoneType\)",
            lstm,
            {"reset": RESET, "reset_state": (start, None)},
        ),
        (TypeError, "reset_state: Expected a tensor, got float", gru, {"reset": RESET, "reset_state": 0.0}),
        (RuntimeError, "reset_state's c: Expected size", lstm, {"reset": RESET, "reset_state": (start, start[0])}),
        (ValueError, "reset_state: Expected torch.float64", gru, {"reset": RESET, "reset_state": start.float()}),
    ):
        with pytest.raises(error, match=said):
            layer(x, **given)
    with pytest.raises(ValueError, match="a PackedSequence carries its lengths and takes no reset"):
        gru(pack_sequence([x[:, 0]]), reset_state=start)
    with pytest.raises(ValueError, match="reset_state: there is no reset"):
        fusedrnn.explain(gru, x, reset_state=start)
    with pytest.raises(TypeError, match="reset: Expected a Tensor, got list"):
        fusedrnn.functional.gru(x, None, list(gru.parameters()), batch_first=True, reset=[[True]])
    rnn = make("RNN", zoneout=0.1).eval().requires_grad_(False)
    told = fusedrnn.explain(rnn, x, reset=RESET, reset_state=start.clone().requires_grad_())
    assert told.problem.grad
    gru.backend = "aten"
    with pytest.raises(UnsupportedProblem, match=r"torch's own op has no reset, reset_state"):
        gru(x, reset=RESET, reset_state=start)
    gru.backend = "auto"
    with fusedrnn.frozen(gru.eval()), torch.no_grad():
        for _ in range(3):
            assert_same([gru(x, reset=RESET, reset_state=start)[0]], [gru(x, reset=RESET)[0]])
    with pytest.raises(UnsupportedProblem, match="ONNX has no recurrent operator with reset"):
        fusedrnn.onnx.recurrent(
            fusedrnn.spec.GRU, x, None, list(gru.parameters()), bias=True, num_layers=1, bidirectional=False,
            proj_size=0, lengths=None, reset=None, return_states=False, reset_state=[start]
        )  # fmt: skip
