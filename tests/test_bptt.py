"""Truncated backpropagation through time, against segments run one by one with detached states between them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from close import assert_same
from pairs import LAYERS, B, H, I, T, gradients, initial, needs_kernel, pair, rand, tensors
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fusedrnn
from fusedrnn import functional

each_layer = pytest.mark.parametrize("name", LAYERS)
each_backend = pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=needs_kernel)])
STEPS = 7


def as_state(name: str, states: list[Tensor]) -> Any:
    return tuple(states) if name == "LSTM" else states[0]


def by_hand(layer: Any, k: int, x: Tensor, hx: Any) -> list[Tensor]:
    """What users write: one direction, segment by segment."""
    outputs, state = [], hx
    for start in range(0, len(x), k):
        y, state = layer(x[start : start + k], state)
        outputs.append(y)
        last = tensors([state])
        state = as_state("LSTM" if isinstance(state, tuple) else "GRU", [h.detach() for h in last])
    return [torch.cat(outputs), *last]


@each_layer
@each_backend
@pytest.mark.parametrize("k", [1, 2, 3, STEPS])
@pytest.mark.parametrize("recompute", [False, True])
def test_equals_detached_segments(name: str, backend: str, k: int, recompute: bool) -> None:
    """T is a multiple of k for 1 and T alone; gradients of x, hx and all weights, of two layers."""
    stock, ours = pair(name, num_layers=2, backend=backend)
    ours.bptt, ours.recompute = k, recompute
    x, hx = rand(STEPS, B, I).requires_grad_(), initial(stock)
    for h in tensors([hx]):
        h.requires_grad_()
    want = by_hand(stock, k, x, hx)
    want += gradients(want, [x, *tensors([hx]), *stock.parameters()])
    found = tensors(ours(x, hx))
    assert_same(found + gradients(found, [x, *tensors([hx]), *ours.parameters()]), want)


def row_by_hand(layer: Any, k: int, x: Tensor, reset: Tensor, hx: list[Tensor]) -> list[Tensor]:
    """One row [T, I] of a layer of two directions, each run alone: the reverse one from the last segment to the first.

    States are cut at multiples of k, and are zeros where `reset` says so.
    """
    H, T, name = layer.hidden_size, len(x), type(layer).__name__
    halves, ends = [], []
    for d in (0, 1):
        steps = range(T) if d == 0 else range(T - 1, -1, -1)
        states, rows = [h[d : d + 1] for h in hx], {}
        for t in steps:
            if reset[t] if d == 0 else t + 1 < T and reset[t + 1]:
                states = [torch.zeros_like(h) for h in states]
            elif (t if d == 0 else t + 1) % k == 0 and 0 < (t if d == 0 else t + 1) < T:
                states = [h.detach() for h in states]
            both = [torch.cat([h, h]) for h in states]
            y, last = layer(x[t : t + 1], as_state(name, both))
            rows[t], states = y[:, d * H : (d + 1) * H], [h[d : d + 1] for h in tensors([last])]
        halves.append(torch.cat([rows[t] for t in range(T)]))
        ends.append(states)
    return [torch.cat(halves, 1), *(torch.cat(pair) for pair in zip(*ends, strict=True))]


@each_layer
@each_backend
@pytest.mark.parametrize("k", [2, 3])
def test_both_directions_with_lengths_and_resets(name: str, backend: str, k: int) -> None:
    stock, ours = pair(name, bidirectional=True, backend=backend)
    ours.bptt = k
    lengths = [STEPS, 4, 1, 3, 6]
    x, hx = rand(STEPS, len(lengths), I).requires_grad_(), initial(stock, len(lengths))
    for h in tensors([hx]):
        h.requires_grad_()
    reset = torch.rand(STEPS, len(lengths)) < 0.3
    rows = [
        row_by_hand(stock, k, x[:n, b], reset[:n, b], [h[:, b] for h in tensors([hx])]) for b, n in enumerate(lengths)
    ]
    want = [torch.stack([torch.cat([r[0], r[0].new_zeros(STEPS - len(r[0]), 2 * H)]) for r in rows], 1)]
    want += [torch.stack(states, 1) for states in list(zip(*rows, strict=True))[1:]]
    want += gradients(want, [x, *tensors([hx]), *stock.parameters()])
    found = tensors(ours(x, hx, torch.tensor(lengths), reset))
    assert_same(found + gradients(found, [x, *tensors([hx]), *ours.parameters()]), want)


@each_layer
@each_backend
@pytest.mark.parametrize("k", [1, 2, 5, 100])
def test_outputs_and_states_stay_what_they_are(name: str, backend: str, k: int) -> None:
    """Of a stack with everything; without a gradient not a bit changes. A row of no steps keeps its state."""
    _, ours = pair(name, num_layers=2, bidirectional=True, backend=backend)
    x, hx, lengths = rand(T, B, I), initial(ours), torch.tensor([T + 3, 0, 3])
    reset = torch.rand(T, B) < 0.3
    want = tensors(ours(x, hx, lengths, reset, True))
    ours.bptt = k
    assert_same(tensors(ours(x, hx, lengths, reset, True)), want)
    assert_same(tensors(ours(x, hx)), tensors(ours.eval().requires_grad_(False)(x, hx)))
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(tensors(ours(x, hx, lengths, reset, True)), want, strict=True))


@each_layer
def test_other_inputs(name: str) -> None:
    """Packed, unbatched, batch first, by function: as padded rows with lengths."""
    _, ours = pair(name, num_layers=2, bidirectional=True)
    ours.bptt = 2
    x, lengths = rand(T, B, I).requires_grad_(), torch.tensor([2, T, 3])
    want = tensors(ours(x, None, lengths))
    want_g = gradients(want, [x, *ours.parameters()])
    y, state = ours(pack_padded_sequence(x, lengths, enforce_sorted=False))
    found = [pad_packed_sequence(y)[0], *tensors([state])]
    assert_same(found + gradients(found, [x, *ours.parameters()]), want + want_g)
    ours.batch_first = True
    y, state = ours(x.transpose(0, 1), None, lengths)
    found = [y.transpose(0, 1), *tensors([state])]
    assert_same(found + gradients(found, [x, *ours.parameters()]), want + want_g)
    if name != "RNN":
        run = functional.gru if name == "GRU" else functional.lstm
        y, state = run(x, None, list(ours.parameters()), num_layers=2, bidirectional=True, lengths=lengths, bptt=2)
        found = [y, *tensors([state])]
        assert_same(found + gradients(found, [x, *ours.parameters()]), want + want_g)
    one, whole = tensors(ours(x[:, 1])), tensors(ours(x[:, 1:2].transpose(0, 1)))
    whole = [whole[0].squeeze(0), *(h.squeeze(1) for h in whole[1:])]
    assert_same(one + gradients(one, [x]), whole + gradients(whole, [x]))


@needs_kernel
def test_transforms_and_second_derivatives() -> None:
    """per-sample gradients, forward mode and create_graph see the cut too."""
    _, ours = pair("LSTM", backend="cpu")
    ours.bptt = 2
    weights = {n: p.detach() for n, p in ours.named_parameters()}
    x = rand(3, STEPS, 1, I)

    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(ours, weights, (x,))[0].square().sum()

    each = vmap(grad(loss), (None, 0))(weights, x)
    for i in range(3):
        want = torch.autograd.grad(ours(x[i])[0].square().sum(), list(ours.parameters()))
        assert_same([each[n][i] for n in weights], list(want))
    direction = rand(STEPS, 1, I)
    tangent = jvp(lambda x: loss(weights, x), (x[0],), (direction,))[1]
    leaf = x[0].clone().requires_grad_()
    (g,) = torch.autograd.grad(ours(leaf)[0].square().sum(), leaf, create_graph=True)
    assert_same([tangent], [(g * direction).sum().detach()])
    found = torch.autograd.grad(g.square().sum(), list(ours.parameters()))
    (g,) = torch.autograd.grad(by_hand(ours, 2, leaf, None)[0].square().sum(), leaf, create_graph=True)
    assert_same(list(found), list(torch.autograd.grad(g.square().sum(), list(ours.parameters()))))


@needs_kernel
@pytest.mark.slow
def test_compiles_for_every_number_of_steps(fresh_graphs: None) -> None:
    _, ours = pair("GRU", num_layers=2, bidirectional=True)
    ours.bptt = 3
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda x: ours(x)[0], fullgraph=True, dynamic=True, backend=counter)
    frames = []
    for steps in (11, 8, 9, 14):
        x = rand(steps, B, I).requires_grad_()
        found, want = compiled(x), ours(x)[0]
        leaves = [x, *ours.parameters()]
        assert_same([found, *gradients([found], leaves)], [want, *gradients([want], leaves)])
        frames.append(counter.frame_count)
    assert len(set(frames)) == 1, "a new number of steps compiled anew"


@each_layer
def test_no_rows(name: str) -> None:
    layer = getattr(fusedrnn, name)(I, H, bidirectional=True, bptt=2)
    for lengths in (None, torch.zeros(0, dtype=torch.long)):
        x = torch.zeros(6, 0, I, requires_grad=True)
        y, _ = layer(x, lengths=lengths)
        y.sum().backward()
        assert y.shape == (6, 0, 2 * H)
        assert all(p.grad is not None and not p.grad.any() for p in layer.parameters())


def test_what_it_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = fusedrnn.GRU(I, H, bptt=3)
    assert (layer.bptt, copy.deepcopy(layer).bptt, fusedrnn.GRU(I, H).bptt) == (3, 3, None)
    assert "bptt" not in vars(fusedrnn.revert(copy.deepcopy(layer)))
    assert fusedrnn.convert(torch.nn.GRU(I, H)).bptt is None
    calls: tuple[tuple[Callable[[], object], type[Exception], str], ...] = (
        (lambda: fusedrnn.GRU(I, H, bptt=0), ValueError, "at least 1 step, or None for gradients through all"),
        (lambda: setattr(layer, "bptt", 2.0), TypeError, "Expected a number of steps, or None, got float"),
        (lambda: setattr(layer, "bptt", True), TypeError, "got bool"),
        (
            lambda: functional.gru(rand(T, B, I).float(), None, list(layer.parameters()), bptt=-1),
            ValueError,
            "got -1",
        ),
    )
    for call, kind, text in calls:
        with pytest.raises(kind, match=text):
            call()
    layer.backend = "aten"
    with pytest.raises(fusedrnn.errors.UnsupportedProblem, match="torch's own op has no bptt"):
        layer(torch.randn(T, B, I))
    assert fusedrnn.explain(layer, torch.randn(T, B, I)).chosen is None
    with torch.no_grad():
        layer(torch.randn(T, B, I))
    layer(torch.randn(3, B, I))


@needs_kernel
def test_the_first_run_keeps_nothing_for_backward() -> None:
    _, ours = pair("GRU", I, 8 * H, backend="cpu")
    x, kept = rand(T, B, I), []
    for ours.bptt in (None, 3):
        seen: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, seen=seen: (seen.append(t.numel()), t)[1], lambda t: t):
            ours(x)
        kept.append(sum(seen))
    assert kept[1] < 1.2 * kept[0]
