"""PackedSequence in and out, against torch's own layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from close import assert_same
from pairs import LAYERS, B, H, I, T, gradients, initial, outcome, pair, rand, tensors
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence

import fusedrnn
from fusedrnn import packed_scan

each_layer = pytest.mark.parametrize("name", LAYERS)
each_backend = pytest.mark.parametrize("backend", ["reference", "aten", "auto"])
each_order = pytest.mark.parametrize("lengths", [[T, 4, 1], [2, T, 3], [T, T, T]], ids=["sorted", "unsorted", "equal"])


def packed(lengths: list[int], dtype: torch.dtype = torch.double) -> PackedSequence:
    ordered = lengths == sorted(lengths, reverse=True)
    return pack_padded_sequence(rand(T, B, I).to(dtype), torch.tensor(lengths), enforce_sorted=ordered)


@each_layer
@each_backend
@each_order
@pytest.mark.parametrize("given", [False, True], ids=["zeros", "hx"])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "batch_first": True}])
def test_outputs_and_gradients(
    name: str, backend: str, lengths: list[int], given: bool, options: dict[str, Any]
) -> None:
    stock, ours = pair(name, **options, backend=backend)
    rows, found = packed(lengths), []
    hx = tensors(initial(stock)) if given else []
    for layer in (stock, ours):
        data, *states = (t.clone().requires_grad_() for t in (rows.data, *hx))
        whole = None if not given else tuple(states) if name == "LSTM" else states[0]
        y, state = layer(rows._replace(data=data), whole)
        assert isinstance(y, PackedSequence)
        assert torch.equal(y.batch_sizes, rows.batch_sizes)
        assert y.sorted_indices is rows.sorted_indices
        assert y.unsorted_indices is rows.unsorted_indices
        out = tensors((y, state))
        found.append(out + gradients(out, [data, *states, *layer.parameters()]))
    assert_same(found[1], found[0])


@pytest.mark.parametrize("backend", ["reference", "aten"])
def test_projection(backend: str) -> None:
    stock, ours = pair("LSTM", num_layers=2, bidirectional=True, proj_size=2, backend=backend)
    rows, hx = packed([2, T, 3]), initial(stock)
    assert_same(tensors(ours(rows, hx)), tensors(stock(rows, hx)))


@each_layer
@each_backend
@each_order
def test_dropout_is_torchs_bit_for_bit(name: str, backend: str, lengths: list[int]) -> None:
    """torch draws for the real steps only, in packed order."""
    stock, ours = pair(name, num_layers=3, bidirectional=True, dropout=0.4, backend=backend)
    rows, hx, found = packed(lengths), initial(stock), []
    for layer in (stock, ours):
        torch.manual_seed(11)
        found.append([*tensors(layer(rows, hx)), torch.rand(1, dtype=torch.double)])
    assert_same(found[1], found[0])
    assert_same(tensors(ours.eval()(rows, hx)), tensors(stock.eval()(rows, hx)))


@each_layer
def test_pack_sequence_of_rows(name: str) -> None:
    stock, ours = pair(name)
    rows = pack_sequence([rand(n, I) for n in (1, 5, 5, 2)], enforce_sorted=False)
    assert_same(tensors(ours(rows)), tensors(stock(rows)))


@each_layer
@each_backend
@each_order
def test_every_state(name: str, backend: str, lengths: list[int]) -> None:
    """Padded, in the caller's order of rows, whatever order the packing has."""
    if backend == "aten":
        with pytest.raises(fusedrnn.errors.UnsupportedProblem, match="return_states"):
            pair(name, backend=backend)[1](packed(lengths), return_states=True)
        return
    stock, ours = pair(name, num_layers=2, bidirectional=True, dropout=0.4, backend=backend)
    rows = packed(lengths)
    torch.manual_seed(1)
    y, state, states = ours(rows, return_states=True)
    torch.manual_seed(1)
    expected, last = stock(rows)
    padded, _ = pad_packed_sequence(y, total_length=T)
    assert_same([y.data, *tensors([state])], [expected.data, *tensors([last])])
    assert states.h.shape == (4, T, B, H)
    assert_same([torch.cat([states.h[2], states.h[3]], -1)], [padded])
    for kept, end in zip(tensors(states), tensors([state]), strict=True):
        assert_same([kept[0, n - 1, b] for b, n in enumerate(lengths)], list(end[0]))
        assert_same([kept[1, 0]], [end[1]])
        assert all(kept[:, n:, b].eq(0).all() for b, n in enumerate(lengths))


@each_layer
@pytest.mark.parametrize("backend", ["reference", "aten"])
def test_autocast_casts_everything(name: str, backend: str) -> None:
    layer = pair(name, num_layers=2, dtype=torch.float, backend=backend)[1]
    rows, hx = packed([2, T, 3], torch.float), initial(layer)
    with torch.autocast("cpu", torch.bfloat16):
        out = tensors(layer(rows, hx))
    to = torch.bfloat16 if name == "RNN" else torch.float  # torch's LSTM too carries packed states in their own dtype
    low = tuple(h.to(to) for h in tensors(hx))
    expected = tensors(layer.to(to)(rows.to(to), low if name == "LSTM" else low[0]))
    assert all(torch.equal(a, b) for a, b in zip(out, expected, strict=True))


def ones(*size: int, dtype: torch.dtype = torch.float) -> Any:
    return torch.ones(size, dtype=dtype)


ERRORS: dict[str, tuple[Any, Any]] = {
    "input dtype": (ones(T, B, I, dtype=torch.double), None),
    "input size": (ones(T, B, I + 1), None),
    "data 3-D": (ones(T, B, I, I), None),
    "data 1-D": (ones(T, B), None),
    "hx layers": (ones(T, B, I), ones(2, B, H)),
    "hx batch": (ones(T, B, I), ones(1, B + 1, H)),
    "hx features": (ones(T, B, I), ones(1, B, H + 1)),
    "hx rank 2": (ones(T, B, I), ones(B, H)),
    "hx rank 4": (ones(T, B, I), ones(1, 1, B, H)),
}


@pytest.mark.parametrize("name", ["GRU", "RNN"])
@pytest.mark.parametrize("case", ERRORS)
def test_errors_are_torchs(name: str, case: str) -> None:
    stock, ours = pair(name, dtype=torch.float)
    x, hx = ERRORS[case]
    rows = pack_padded_sequence(x, torch.tensor([T, 4, 1]))
    expected = outcome(lambda: stock(rows, hx))
    assert expected is not None
    assert outcome(lambda: ours(rows, hx)) == expected


LSTM_ERRORS = {
    "input dtype": (ValueError, r"RNN input dtype \(torch.float64\) does not match weight dtype \(torch.float32\)"),
    "input size": (RuntimeError, r"input.size\(-1\) must be equal to input_size. Expected 5, got 6"),
    "data 3-D": (RuntimeError, "input must have 2 dimensions, got 3"),
    "data 1-D": (RuntimeError, "input must have 2 dimensions, got 1"),
    "hx layers": (RuntimeError, r"Expected hidden\[0\] size \(1, 3, 4\), got \[2, 3, 4\]"),
    "hx batch": (RuntimeError, r"Expected hidden\[0\] size \(1, 3, 4\), got \[1, 4, 4\]"),
    "hx features": (RuntimeError, r"Expected hidden\[0\] size \(1, 3, 4\), got \[1, 3, 5\]"),
    "hx rank 2": (ValueError, "LSTM: Expected hx and cx to be 3-D .* for packed input, got 2-D and 2-D"),
    "hx rank 4": (ValueError, "LSTM: Expected hx and cx to be 3-D .* for packed input, got 4-D and 4-D"),
}


@pytest.mark.parametrize("case", ERRORS)
@pytest.mark.parametrize("ordered", [True, False])
def test_an_lstm_errs_in_words(case: str, ordered: bool) -> None:
    """torch checks nothing here: an index or a product somewhere fails, and 4-D states kill the process."""
    x, hx = ERRORS[case]
    rows = pack_padded_sequence(x, torch.tensor([T, 4, 1] if ordered else [1, T, 4]), enforce_sorted=ordered)
    error, text = LSTM_ERRORS[case]
    with pytest.raises(error, match=text):
        pair("LSTM", dtype=torch.float)[1](rows, None if hx is None else (hx, hx))


@each_layer
def test_hx_of_another_dtype(name: str) -> None:
    hx = ones(1, B, H, dtype=torch.double)
    with pytest.raises(ValueError, match=f"{name}: Expected hx of the input's dtype torch.float32, got torch.float64"):
        pair(name, dtype=torch.float)[1](packed([T, 4, 1], torch.float), (hx, hx) if name == "LSTM" else hx)


@each_layer
def test_lengths_and_reset_are_for_padded_input(name: str) -> None:
    layer, rows = pair(name)[1], packed([T, 4, 1])
    for masks in ({"lengths": torch.tensor([1, 2, 3])}, {"reset": torch.zeros(T, B, dtype=torch.bool)}):
        with pytest.raises(ValueError, match="a PackedSequence carries its lengths and takes no reset"):
            layer(rows, **masks)


def test_modules_of_torch_accept_the_output() -> None:
    """As in any model: packed through a stack of layers of both kinds."""
    first, second = fusedrnn.LSTM(I, H, bidirectional=True), nn.GRU(2 * H, 2)
    rows = packed([2, T, 3], torch.float)
    y, _ = pad_packed_sequence(second(first(rows)[0])[0], batch_first=True)
    assert y.shape == (B, T, 2)
    assert y[0, 2:].eq(0).all()


def test_packed_rows_are_refused_in_a_cuda_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay would read what was copied from the host at capture."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match=r"cannot be captured in a CUDA graph: .* lengths= instead"):
        packed_scan.Rows.of(torch.tensor([2, 1]), torch.device("cuda"))
    packed_scan.Rows.of(torch.tensor([2, 1]), torch.device("cpu"))
