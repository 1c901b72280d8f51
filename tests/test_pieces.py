"""recompute on the CPU, in pieces of time: gradients of the whole, whatever is masked or wanted, and less memory."""

from __future__ import annotations

import itertools
import weakref
from typing import Any

import pytest
import torch
from close import assert_same
from torch import Tensor

import fusedrnn
from fusedrnn import ops
from fusedrnn import pieces as in_pieces

T, B, I, H = 7, 5, 3, 4


@pytest.fixture
def pieces(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Three steps a piece, so that T makes two whole ones and a rest; returns the sizes that were asked for."""
    monkeypatch.setattr(in_pieces, "ROWS", 1)
    monkeypatch.setattr(in_pieces, "PIECES", 3)
    seen: list[int] = []
    run = ops.layer_backward

    def count(*args: Any) -> Any:
        seen.append(args[4].shape[0])
        return run(*args)

    monkeypatch.setattr(ops, "layer_backward", count)
    return seen


def gradients(layer: Any, leaves: list[Tensor], **masks: Tensor) -> list[Tensor]:
    """Of everything, from upstream gradients of the output, the final states and the states of every step."""
    lstm = isinstance(layer, fusedrnn.LSTM)
    hx: Any = tuple(leaves[1:]) if lstm else leaves[1]
    y, last, states = layer(leaves[0], hx, return_states=True, **masks)
    outputs = [y, *(last if lstm else [last]), *(t for t in states if t is not None)]
    generator = torch.Generator().manual_seed(2)
    upstream = [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in outputs]
    found = torch.autograd.grad(outputs, [*leaves, *layer.parameters()], upstream)
    return [*outputs, *found]


@pytest.mark.parametrize("cell", ["GRU", "LSTM", "RNN"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("masked", [(), ("lengths",), ("reset",), ("lengths", "reset")], ids="-".join)
def test_pieces_give_what_the_whole_gives(
    cell: str, bidirectional: bool, bias: bool, masked: tuple[str, ...], pieces: list[int]
) -> None:
    torch.manual_seed(0)
    kept = getattr(fusedrnn, cell)(I, H, bidirectional=bidirectional, bias=bias, dtype=torch.float64, backend="cpu")
    lean = getattr(fusedrnn, cell)(I, H, bidirectional=bidirectional, bias=bias, recompute=True, backend="cpu").double()
    lean.load_state_dict(kept.state_dict())
    shapes = [(T, B, I)] + [(1 + bidirectional, B, H)] * (2 if cell == "LSTM" else 1)
    leaves = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    masks = {"lengths": torch.tensor([7, 0, 3, 4, 6]), "reset": torch.rand(T, B) < 0.4}
    given = {name: masks[name] for name in masked}
    found = gradients(lean, leaves, **given)
    # an RNN keeps nothing but its states in any case
    assert pieces == ([T] if cell == "RNN" else [1, 3, 3, 3, 3, 1] if bidirectional else [1, 3, 3])
    assert_same(found, gradients(kept, leaves, **given))


def test_only_what_is_wanted_is_computed(pieces: list[int]) -> None:
    for wanted in itertools.product([False, True], repeat=3):
        torch.manual_seed(1)
        layer = fusedrnn.GRU(I, H, recompute=True, dtype=torch.float64)
        leaves = [torch.randn(T, B, I, dtype=torch.float64), layer.weight_ih_l0, layer.bias_hh_l0]
        for p in layer.parameters():
            p.requires_grad_(False)
        for leaf, want in zip(leaves, wanted, strict=True):
            leaf.requires_grad_(want)
        if not any(wanted):
            continue
        layer(leaves[0])[0].square().sum().backward()
        assert [leaf.grad is not None for leaf in leaves] == list(wanted)
        assert layer.weight_hh_l0.grad is None
    assert pieces


def test_sixteen_bits_are_summed_in_thirty_two(pieces: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    run, values = ops.layer_backward, iter([256, 1, 1])

    def given(*args: Any) -> list[Tensor]:
        value = next(values)
        return [t if i < 3 else torch.full_like(t, value) for i, t in enumerate(run(*args))]

    monkeypatch.setattr(ops, "layer_backward", given)
    layer = fusedrnn.GRU(1, 1, recompute=True, dtype=torch.bfloat16)
    layer(torch.randn(T, 2, 1, dtype=torch.bfloat16))[0].sum().backward()
    assert pieces == [1, 3, 3]
    assert all((p.grad == 258).all() for p in layer.parameters())  # in bfloat16 256 + 1 is 256


@pytest.mark.parametrize("cell", ["GRU", "LSTM"])
def test_the_gates_of_one_piece_are_all_there_are(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run, kept = ops.layer, []

    def watched(*args: Any) -> Any:
        out = run(*args)
        assert not any(t.numel() for t in (ref() for ref in kept) if t is not None), "of the piece before"
        kept.append(weakref.ref(out[4]))
        sizes.append(out[4].numel())
        return out

    monkeypatch.setattr(ops, "layer", watched)
    totals = []
    for recompute in (False, True):
        sizes: list[int] = []
        x = torch.randn(512, 16, 8, requires_grad=True)
        getattr(fusedrnn, cell)(8, 16, recompute=recompute)(x)[0].sum().backward()
        totals.append(sizes)
    (whole,), (forward, *each) = totals
    assert forward == 0
    assert each == [whole // in_pieces.PIECES] * in_pieces.PIECES


def test_a_stream_is_the_whole_run_bit_for_bit() -> None:
    layer = fusedrnn.GRU(I, H, recompute=True, dtype=torch.float64, backend="cpu")
    x, h, stream = torch.randn(T, B, I, dtype=torch.float64), None, []
    for step in x.split(1):
        y, h = layer(step, h)
        stream.append(y)
    assert torch.equal(torch.cat(stream), layer(x)[0])
