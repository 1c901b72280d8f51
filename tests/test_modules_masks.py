"""lengths, reset and return_states: what torch.nn has not, against torch's layer run on the pieces."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from close import assert_same
from noisy_loop import seeded
from pairs import LAYERS, B, H, I, T, gradients, initial, needs_kernel, pair, rand, tensors
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fusedrnn

each_layer = pytest.mark.parametrize("name", LAYERS)
each_backend = pytest.mark.parametrize("backend", ["reference", "auto"])
STACK = {"num_layers": 2, "bidirectional": True}


@each_layer
@each_backend
@pytest.mark.parametrize("batch_first", [False, True])
def test_lengths_equal_packing(name: str, backend: str, batch_first: bool) -> None:
    """Values and gradients of pack, torch.nn, unpack; rows in any order, no step beyond a row's length counts."""
    stock, ours = pair(name, **STACK, batch_first=batch_first, backend=backend)
    x = rand(*((B, T, I) if batch_first else (T, B, I))).requires_grad_()
    hx, lengths = initial(stock), torch.tensor([2, T, 3])
    packed = pack_padded_sequence(x, lengths, batch_first, enforce_sorted=False)
    y, state = stock(packed, hx)
    expected = [pad_packed_sequence(y, batch_first, total_length=T)[0], *tensors([state])]
    expected += gradients(expected, [x, *stock.parameters()])
    poisoned = x.detach().clone()
    beyond = torch.arange(T).unsqueeze(1) >= lengths
    poisoned[beyond.T if batch_first else beyond] = 7.0
    poisoned.requires_grad_()
    out = tensors(ours(poisoned, hx, lengths))
    assert_same(out + gradients(out, [poisoned, *ours.parameters()]), expected)


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bptt": {"bptt": 2},
    "recompute": {"recompute": True},
    "layer_norm": {"layer_norm": True},
    "reset_state": {},
    "noise": {"zoneout": 0.2, "recurrent_dropout": 0.2},
}


@each_layer
@each_backend
@pytest.mark.parametrize("option", OPTIONS)
def test_nan_beyond_a_rows_length_reaches_no_gradient(name: str, backend: str, option: str) -> None:
    ours = getattr(fusedrnn, name)(I, H, **STACK, **OPTIONS[option], dtype=torch.double, backend=backend)
    clean, lengths, found = rand(T, B, I), torch.tensor([2, T, 3]), []
    more: dict[str, Any] = {}
    if option == "reset_state":
        start = rand(4, H)
        more = {"reset": torch.rand(T, B) < 0.3, "reset_state": (start, start) if name == "LSTM" else start}
    for beyond in (0.0, torch.nan):
        x = clean.masked_fill((torch.arange(T).unsqueeze(1) >= lengths).unsqueeze(2), beyond).requires_grad_()
        leaves = [x, *ours.parameters()]
        out, again = (seeded(ours, x, None, lengths, **more) for _ in range(2))
        found.append(out + gradients(out, leaves))
        slopes = torch.autograd.grad(again[0].square().sum(), leaves, create_graph=True)
        found[-1] += [*slopes, *gradients([sum(t.square().sum() for t in slopes)], leaves)]  # type: ignore[list-item]
    assert_same(found[1], found[0])


@each_layer
@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("option", ["plain", "layer_norm", "noise"])
def test_nan_beyond_a_rows_length_reaches_no_output(name: str, backend: str, option: str) -> None:
    """In bfloat16 torch's product on a CPU lets it reach the rows beside it."""
    options = OPTIONS[option] | {"backend": backend}
    ours = getattr(fusedrnn, name)(5, 16, dtype=torch.bfloat16, **options).eval()
    x, lengths = rand(6, 3, 5).bfloat16(), torch.tensor([2, 6, 3])
    x = x.masked_fill((torch.arange(6).unsqueeze(1) >= lengths).unsqueeze(2), torch.nan)
    with torch.no_grad():
        assert all(t.isfinite().all() for t in tensors(ours(x, None, lengths)))


@each_layer
@each_backend
@pytest.mark.parametrize("graph", [False, True])
def test_states_that_no_step_starts_from_reach_no_gradient(name: str, backend: str, graph: bool) -> None:
    """The initial state of a row of no steps, and where a reset beyond a row's length would go back to."""
    ours = getattr(fusedrnn, name)(I, H, bidirectional=True, dtype=torch.double, backend=backend)
    lengths, reset = torch.tensor([0, T, 2]), torch.zeros(T, B, dtype=torch.bool)
    reset[3, 2] = True
    infinite = torch.full((2, H), torch.inf, dtype=torch.double)
    hx = rand(2, B, H)
    hx[:, 0] = torch.nan
    state = (hx, hx) if name == "LSTM" else hx
    start = (infinite, infinite) if name == "LSTM" else infinite
    for more in ({}, {"reset": reset, "reset_state": start}):
        y = ours(rand(T, B, I), state, lengths, **more)[0]
        found = torch.autograd.grad(y.sum(), list(ours.parameters()), create_graph=graph)
        assert all(t.isfinite().all() for t in (y, *found))


@each_layer
@each_backend
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_a_row_without_steps_keeps_its_state(name: str, backend: str, dtype: torch.dtype) -> None:
    stock, ours = pair(name, **STACK, backend=backend)
    x, hx = rand(T, B, I), initial(stock)
    y, state = ours(x, hx, torch.tensor([0, T, 0], dtype=dtype))
    assert y[:, [0, 2]].eq(0).all()
    for last, first in zip(tensors([state]), tensors([hx]), strict=True):
        assert torch.equal(last[:, [0, 2]], first[:, [0, 2]])
    middle = [h[:, 1:2] for h in tensors([hx])]
    assert_same([y[:, 1:2]], [stock(x[:, 1:2], tuple(middle) if name == "LSTM" else middle[0])[0]])


def segments(reset: Tensor) -> list[tuple[int, int]]:
    """[start, stop) of every segment of one row."""
    cuts = [0, *(t for t in range(1, len(reset)) if reset[t]), len(reset)]
    return list(itertools.pairwise(cuts))


def piecewise(layer: Any, x: Tensor, reset: Tensor, hx: Any) -> Tensor:
    """Outputs [T, D*H] of one row of a one-layer `layer`, segment by segment."""
    parts = []
    pieces = segments(reset)
    for k, (start, stop) in enumerate(pieces):
        states = [h.clone() for h in tensors([hx])]
        for h in states:
            if k > 0 or reset[0]:
                h[0] = 0  # the forward direction enters at the first step
            if k < len(pieces) - 1:
                h[1:] = 0  # the reverse direction at the last
        parts.append(layer(x[start:stop], tuple(states) if len(states) == 2 else states[0])[0])
    return torch.cat(parts)


@each_layer
@each_backend
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_reset_equals_segments_run_one_by_one(name: str, backend: str, bidirectional: bool, batch_first: bool) -> None:
    stock, ours = pair(name, bidirectional=bidirectional, backend=backend)
    ours.batch_first = batch_first
    x, hx = rand(T, B, I).requires_grad_(), initial(stock)
    reset = torch.tensor([[0, 0, 0, 1, 0, 0], [1, 1, 0, 0, 0, 1], [0, 0, 1, 1, 1, 0]], dtype=torch.bool)  # [B, T]
    rows = [tuple(h[:, b] for h in hx) if name == "LSTM" else hx[:, b] for b in range(B)]
    expected = [torch.stack([piecewise(stock, x[:, b], reset[b], rows[b]) for b in range(B)], 1)]
    expected += gradients(expected, [x, *stock.parameters()])
    y = ours(x.transpose(0, 1), hx, reset=reset)[0].transpose(0, 1) if batch_first else ours(x, hx, reset=reset.T)[0]
    assert_same([y, *gradients([y], [x, *ours.parameters()])], expected)


@each_layer
@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=needs_kernel)])
def test_no_reset_is_no_reset(name: str, backend: str) -> None:
    ours = pair(name, **STACK, backend=backend)[1]
    x = rand(T, B, I)
    found = tensors(ours(x, reset=torch.zeros(T, B, dtype=torch.bool)))
    assert all(torch.equal(a, b) for a, b in zip(found, tensors(ours(x)), strict=True))


@each_layer
def test_lengths_and_reset_of_unbatched_input(name: str) -> None:
    ours = pair(name, **STACK)[1]
    x, reset = rand(T, I), torch.tensor([0, 0, 1, 0, 1, 0], dtype=torch.bool)
    batched = ours(x.unsqueeze(1), None, torch.tensor([4]), reset.unsqueeze(1), True)
    expected = [t.squeeze(1) if t is batched[0] else t.squeeze(-2) for t in tensors(batched)]
    for lengths in (torch.tensor(4), torch.tensor([4])):
        assert_same(tensors(ours(x, None, lengths, reset, True)), expected)


@each_layer
@each_backend
@pytest.mark.parametrize("batch_first", [False, True])
def test_return_states(name: str, backend: str, batch_first: bool) -> None:
    """The state that step t leaves behind is the last state of a run that ends with t."""
    stock, ours = pair(name, **STACK, batch_first=batch_first, backend=backend)
    x = rand(*((B, T, I) if batch_first else (T, B, I)))
    y, state, states = ours(x, return_states=True)
    h_n = state[0] if name == "LSTM" else state
    assert states.h.shape == (4, T, B, H)
    assert (states.c is None) == (name != "LSTM")
    assert_same([y, h_n], [stock(x)[0], tensors([stock(x)[1]])[0]])
    assert_same([states.h[0, -1], states.h[1, 0], states.h[2, -1], states.h[3, 0]], list(h_n))
    prefix = x[:, :3] if batch_first else x[:3]
    for kept, last in zip(tensors(states), tensors([stock(prefix)[1]]), strict=True):
        assert_same([kept[0, 2]], [last[0]])


@each_backend
def test_gradients_flow_from_every_cell_state(backend: str) -> None:
    stock, ours = pair("LSTM", backend=backend)
    x = rand(T, B, I).requires_grad_()
    kept = ours(x, return_states=True)[2].c
    looped = torch.stack([stock(x[: t + 1])[1][1] for t in range(T)], 1)
    assert_same(gradients([kept], [x, *ours.parameters()]), gradients([looped], [x, *stock.parameters()]))


def test_states_of_an_lstm_with_projection() -> None:
    y, (h_n, c_n), (h, c) = pair("LSTM", num_layers=2, proj_size=2)[1](rand(T, B, I), return_states=True)
    assert (h.shape, c.shape) == ((2, T, B, 2), (2, T, B, H))
    assert_same([h[1], h[:, -1], c[:, -1]], [y, h_n, c_n])


def kept_for_backward(call: Callable[[], Any]) -> tuple[Any, int]:
    """What `call` returns, and how many numbers autograd keeps of it."""
    sizes: dict[int, int] = {}

    def keep(t: Tensor) -> Tensor:
        sizes[t.data_ptr()] = t.numel()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        return call(), sum(sizes.values())


@each_layer
def test_recompute_changes_nothing_but_memory(name: str) -> None:
    ours = pair(name, I, 8 * H)[1]
    x, found, numbers = rand(T, B, I).requires_grad_(), [], []
    for recompute in (False, True):
        ours.recompute = recompute
        result, kept = kept_for_backward(lambda: ours(x))
        out = tensors(result)
        found.append(out + gradients(out, [x, *ours.parameters()]))
        numbers.append(kept)
    assert_same(found[1], found[0])
    if name != "RNN":  # which keeps its states only, either way
        assert numbers[1] <= numbers[0] - T * B * 8 * H
