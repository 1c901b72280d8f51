"""Jagged nested tensors in and out: equal to torch's layers on a PackedSequence of the same rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from close import assert_same
from pairs import LAYERS, H, I, gradients, initial, outcome, pair, rand, tensors
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

import fusedrnn

each_layer = pytest.mark.parametrize("name", LAYERS)
LENGTHS = (3, 6, 1)
STACK = {"num_layers": 2, "bidirectional": True, "batch_first": True}


def nested(values: Tensor, lengths: tuple[int, ...] = LENGTHS, **known: int) -> Tensor:
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    return torch.nested.nested_tensor_from_jagged(values, offsets, **known)


@each_layer
@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("options", [{"batch_first": True}, STACK], ids=["one", "stack"])
def test_equals_packed_rows(name: str, backend: str, given: bool, options: dict[str, Any]) -> None:
    stock, ours = pair(name, **options, backend=backend)
    values = rand(sum(LENGTHS), I).requires_grad_()
    hx = initial(stock) if given else None
    y, state = stock(pack_sequence(list(values.split(LENGTHS)), enforce_sorted=False), hx)
    padded = pad_packed_sequence(y, batch_first=True)[0]
    expected = [torch.cat([row[:n] for row, n in zip(padded, LENGTHS, strict=True)]), *tensors([state])]
    expected += gradients(expected, [values, *stock.parameters()])
    x = nested(values)
    y, state = ours(x, hx)
    assert y.layout == torch.jagged
    assert y.offsets() is x.offsets()
    assert y.shape[:2] == x.shape[:2], "one symbol for the ragged axis: what follows may add the two"
    found = [y.values(), *tensors([state])]
    assert_same(found + gradients(found, [values, *ours.parameters()]), expected)


@each_layer
def test_rows_without_steps_and_of_one_tensor_each(name: str) -> None:
    """A row without steps keeps its state; the gradient arrives in the nested leaf."""
    _, ours = pair(name, **STACK)
    rows, hx = [rand(n, I) for n in (0, 4, 0)], initial(ours)
    x = torch.nested.nested_tensor(rows, layout=torch.jagged, requires_grad=True)
    y, state = ours(x, hx)
    alone = tuple(h[:, 1:2] for h in hx) if name == "LSTM" else hx[:, 1:2]
    want, last = ours(rows[1].unsqueeze(0), alone)
    assert_same([y.values(), *(h[:, 1:2] for h in tensors([state]))], [want[0], *tensors([last])])
    for end, start in zip(tensors([state]), tensors([hx]), strict=True):
        assert torch.equal(end[:, [0, 2]], start[:, [0, 2]])
    (g,) = torch.autograd.grad(y.values().sum(), x)
    assert g.values().shape == (4, I)
    assert g.values().ne(0).all()
    nothing = torch.nested.nested_tensor([rand(0, I)] * 3, layout=torch.jagged)
    y, state = ours(nothing, hx)
    assert y.values().shape == (0, 2 * H)
    assert all(torch.equal(a, b) for a, b in zip(tensors([state]), tensors([hx]), strict=True))


@each_layer
def test_states_of_every_step(name: str) -> None:
    _, ours = pair(name, **STACK)
    values = rand(sum(LENGTHS), I)
    y, state, states = ours(nested(values), return_states=True)
    padded = torch.nn.utils.rnn.pad_sequence(values.split(LENGTHS), batch_first=True)
    want = ours(padded, None, torch.tensor(LENGTHS), None, True)
    assert_same([*tensors([state]), *tensors(states)], [*tensors([want[1]]), *tensors(want[2])])
    assert_same([y.to_padded_tensor(0.0)], [want[0]])


def test_the_longest_row_is_taken_as_the_tensor_knows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU asking for it is a synchronisation."""
    _, ours = pair("GRU", batch_first=True)
    values = rand(sum(LENGTHS), I)
    want = ours(nested(values))[0].values()
    read = []
    item = Tensor.item
    monkeypatch.setattr(Tensor, "item", lambda t: (read.append(t), item(t))[1])
    y = ours(nested(values, max_seqlen=8))[0]
    assert not read
    assert y._maybe_max_seqlen == 8
    assert torch.equal(y.values(), want)


def test_passes_on_to_other_layers_and_through_autocast() -> None:
    gru, lstm = (pair(name, batch_first=True)[1] for name in ("GRU", "LSTM"))
    values = rand(sum(LENGTHS), I)
    mixed = torch.nn.Linear(H, I, dtype=torch.double)
    y = lstm(mixed(gru(nested(values))[0]).relu())[0]
    rows = [lstm(mixed(gru(row.unsqueeze(0))[0]).relu())[0][0] for row in values.split(LENGTHS)]
    assert_same([y.values()], [torch.cat(rows)])
    with torch.autocast("cpu", torch.bfloat16):
        assert lstm.float()(nested(values.float()))[0].dtype == torch.bfloat16


def test_compiles_as_a_full_graph(fresh_graphs: None) -> None:
    _, ours = pair("GRU", **STACK)
    values = rand(sum(LENGTHS), I).requires_grad_()

    def run(layer: Any) -> list[Tensor]:
        y, h = layer(nested(values, min_seqlen=1, max_seqlen=6))
        return [y.values(), h, *gradients([y.values(), h], [values, *ours.parameters()])]

    assert_same(run(torch.compile(ours, fullgraph=True, backend="aot_eager")), run(ours))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_what_cannot_be_taken() -> None:
    _, ours = pair("GRU", batch_first=True)
    x = nested(rand(sum(LENGTHS), I))
    gaps = torch.nested.narrow(rand(3, 8, I), 1, torch.tensor([0, 1, 2]), torch.tensor(LENGTHS), torch.jagged)
    assert_same([ours(gaps.contiguous())[0].values()], [ours(nested(gaps.contiguous().values()))[0].values()])
    for layer, call, text in (
        (
            ours,
            (torch.nested.nested_tensor([rand(2, I), rand(3, I)]),),
            r"layout torch.jagged, got torch.strided",
        ),
        (ours, (x.transpose(1, 2),), r"Expected jagged input \[B, j, I\], ragged in its second axis, got \(3, 5, j"),
        (ours, (gaps,), r"gaps between them. Close them: x.contiguous\(\)"),
        (ours, (x, None, torch.tensor(LENGTHS)), r"carries its lengths and takes no reset. Pad it"),
        (pair("GRU")[1], (x,), r"make the layer with batch_first=True"),
        (ours, (x.float(),), r"RNN input dtype \(torch.float32\) does not match weight dtype"),
    ):
        with pytest.raises(ValueError, match=text):
            layer(*call)
    for call, text in (
        ((nested(rand(10, 7)),), "must be equal to input_size. Expected 5, got 7"),
        ((x, rand(1, 2, H)), r"Expected hidden size \(1, 3, 4\), got \[1, 2, 4\]"),
        ((x, rand(1, H)), "For batched 3-D input, hx should also be 3-D but got 2-D"),
    ):
        with pytest.raises(RuntimeError, match=text):
            ours(*call)
    found = outcome(lambda: pair("GRU", batch_first=True, backend="aten")[1](x))
    assert found is not None
    assert found[0] is fusedrnn.errors.UnsupportedProblem
