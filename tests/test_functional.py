"""Stacks of layers on every backend against torch.nn, the public functions, dropout, autocast, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bare import STOCK, B, Bare, H, I, T, gradients, initial, label
from close import assert_no_worse, assert_same
from pairs import needs_kernel
from torch import Tensor, nn
from torch.func import functional_call

from fusedrnn import functional
from fusedrnn.errors import UnsupportedProblem
from fusedrnn.spec import GRU, LSTM, RNN_TANH, CellSpec

DOUBLE = torch.double
CPU = pytest.param("cpu", marks=needs_kernel)
STACKS = (
    {},
    {"num_layers": 2, "bidirectional": True},
    {"num_layers": 3, "bias": False},
    {"bidirectional": True, "bias": False},
)


def results(call: Any, x: Tensor, hx: tuple[Tensor, ...], weights: list[Tensor]) -> dict[str, Tensor]:
    """Outputs and every gradient of `call(x, hx)`, by name."""
    out = call(x, hx=hx)
    leaves = [x, *hx, *weights]
    return {f"{kind}{i}": t for kind, ts in (("out", out), ("grad", gradients(out, leaves))) for i, t in enumerate(ts)}


@pytest.mark.parametrize("how", STACKS, ids=label)
def test_equals_torch_on_every_backend(cell: CellSpec, how: dict[str, Any], backend: str) -> None:
    layer = Bare(cell, backend=backend, **how).double()
    x, hx = torch.randn(T, B, I, dtype=DOUBLE, requires_grad=True), initial(layer, requires_grad=True)
    found, want = (results(call, x, hx, list(layer.parameters())) for call in (layer, layer.twin()))
    assert_same(list(found.values()), list(want.values()))
    with torch.no_grad():
        assert_same(layer(x), layer.twin()(x))


@pytest.mark.parametrize("how", STACKS, ids=label)
@pytest.mark.parametrize("backend", ["auto", "aten", "reference"])
def test_projection_equals_torch(how: dict[str, Any], backend: str) -> None:
    layer = Bare(LSTM, backend=backend, proj_size=2, **how).double()
    x, hx = torch.randn(T, B, I, dtype=DOUBLE, requires_grad=True), initial(layer, requires_grad=True)
    found, want = (results(call, x, hx, list(layer.parameters())) for call in (layer, layer.twin()))
    assert_same(list(found.values()), list(want.values()))


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("how", [{}, {"num_layers": 2, "bidirectional": True}], ids=label)
def test_is_as_exact_as_torch(cell: CellSpec, dtype: torch.dtype, how: dict[str, Any]) -> None:
    _is_as_exact_as_torch(cell, dtype, 50, 4, 33, 40, **how)


@needs_kernel
@pytest.mark.parametrize("sizes", [(50, 4, 33, 40), (30, 20, 64, 64), (3, 2, 5, 129)], ids=str)
def test_inference_in_bfloat16_is_as_exact_as_torch(cell: CellSpec, sizes: tuple[int, int, int, int]) -> None:
    T, B, I, H = sizes
    how = {"num_layers": 2, "bidirectional": True}
    layer = Bare(cell, I, H, backend="cpu", **how).bfloat16()
    exact = Bare(cell, I, H, **how).double()
    exact.load_state_dict(layer.state_dict())
    x, hx = torch.randn(T, B, I, dtype=torch.bfloat16), initial(layer, B)
    with torch.no_grad():
        truth = exact.twin()(x.double(), tuple(h.double() for h in hx))
        found, torchs = layer(x, hx=hx), layer.twin()(x, hx)
    assert_no_worse(*(dict(zip(("y", "hn", "cn"), out, strict=False)) for out in (found, truth, torchs)))


@needs_kernel
@pytest.mark.slow
def test_is_as_exact_as_torch_over_many_steps(cell: CellSpec) -> None:
    """Where sums over all steps have many terms, and torch adds in pairs."""
    _is_as_exact_as_torch(cell, torch.float32, 1000, 1, 64, 64)
    _is_as_exact_as_torch(cell, torch.float32, 5000, 1, 2, 16)


def _is_as_exact_as_torch(cell: CellSpec, dtype: torch.dtype, T: int, B: int, I: int, H: int, **how: Any) -> None:
    """Of the same rounded numbers, in float64, what is the error of ours and of torch's?"""
    layer = Bare(cell, I, H, backend="cpu", **how).to(dtype)
    exact = Bare(cell, I, H, **how).double()
    exact.load_state_dict(layer.state_dict())
    x = torch.randn(T, B, I, dtype=dtype, requires_grad=True)
    hx = initial(layer, B, requires_grad=True)
    wide = (t.detach().double().requires_grad_() for t in (x, *hx))
    truth = results(exact.twin(), next(wide), tuple(wide), list(exact.parameters()))
    found, torchs = (results(call, x, hx, list(layer.parameters())) for call in (layer, layer.twin()))
    assert_no_worse(found, truth, torchs)


@pytest.mark.parametrize("backend", [CPU, "reference"])
@pytest.mark.parametrize("recompute", [False, True])
def test_masks_pass_through_every_layer(cell: CellSpec, backend: str, recompute: bool) -> None:
    """Each row's first segment equals a run of it alone; the rest is in the reference's own tests."""
    layer = Bare(cell, num_layers=2, bidirectional=True, backend=backend, recompute=recompute).double()
    x, lengths = torch.randn(T, B, I, dtype=DOUBLE, requires_grad=True), torch.tensor([6, 2, 4])
    reset = torch.zeros(T, B, dtype=torch.bool)
    reset[3, 0] = True
    y = layer(x, lengths, reset)[0]
    for row, n in enumerate((3, 2, 4)):
        alone = layer.twin()(x[:n, row : row + 1])[0]
        assert_same([y[:n, row : row + 1]], [alone])
        want = torch.autograd.grad(alone.sum(), x)
        assert_same(torch.autograd.grad(y[:n, row].sum(), x, retain_graph=True), want)
    assert not y[2:, 1].any()


@pytest.mark.parametrize("backend", [CPU, "reference"])
def test_masks_of_other_integers_and_no_rows(backend: str) -> None:
    layer = Bare(GRU, backend=backend)
    x, lengths = torch.randn(T, B, I), torch.tensor([6, 0, 3])
    with torch.no_grad():
        want = layer(x, lengths)
        for dtype in (torch.int32, torch.uint8):
            torch.testing.assert_close(layer(x, lengths.to(dtype)), want, rtol=0, atol=0)
    x = torch.randn(T, 0, I, requires_grad=True)
    y, h = layer(x)
    y.sum().backward()
    assert (y.shape, h.shape, x.grad.shape) == ((T, 0, H), (1, 0, H), x.shape)
    assert not layer.weight_hh_l0.grad.any()


@needs_kernel
def test_no_rows_with_masks_second_derivatives_and_recompute() -> None:
    for recompute in (False, True):
        layer = Bare(LSTM, bidirectional=True, recompute=recompute, backend="cpu")
        x = torch.randn(T, 0, I, requires_grad=True)
        y = layer(x, torch.zeros(0, dtype=torch.int64), torch.zeros(T, 0, dtype=torch.bool))[0]
        (g,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        assert torch.autograd.grad(g.sum(), x)[0].shape == x.shape


@pytest.mark.parametrize("spec", [GRU, LSTM], ids=label)
@pytest.mark.parametrize("backend", [CPU, "reference"])
def test_states_of_every_layer_and_step(spec: CellSpec, backend: str) -> None:
    layer = Bare(spec, num_layers=2, bidirectional=True).double()
    x, lengths = torch.randn(T, B, I, dtype=DOUBLE), torch.tensor([6, 2, 4])
    how = {"num_layers": 2, "bidirectional": True, "lengths": lengths, "return_states": True, "backend": backend}
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            y, last, states = functional.recurrent(spec, x, None, layer._flat_weights, **how)
        assert [tuple(s.shape for s in layer) for layer in states] == [((T, B, 2, H),) * len(spec.states)] * 2
        assert_same([states[1][0].flatten(2)], [y])
        for k, kept in enumerate(states):
            for final, state in zip(last, kept, strict=True):
                forward = state[lengths - 1, torch.arange(B), 0]
                assert_same([final[2 * k], final[2 * k + 1]], [forward, state[0, :, 1]])


def test_dropout_draws_as_torch_does(backend: str) -> None:
    layer = Bare(LSTM, num_layers=3, bidirectional=True, dropout=0.4, backend=backend).double()
    x, found = torch.randn(T, B, I, dtype=DOUBLE, requires_grad=True), []
    for call in (layer, layer.twin()):
        torch.manual_seed(5)
        y = call(x)[0]
        found.append([y, *torch.autograd.grad(y.sum(), x), torch.rand(3, dtype=DOUBLE)])
    assert_same(*found)
    layer.eval()
    assert_same(layer(x), layer.twin()(x))
    one = Bare(GRU, dropout=0.0, backend=backend)
    one.dropout = 0.5
    x = torch.randn(T, B, I)
    torch.testing.assert_close(one(x), one.eval()(x))  # no layer but the last: nothing to drop


def test_recompute_on_the_reference_keeps_nothing_of_a_step() -> None:
    """By checkpointing: the input is kept alone, and gradients are the same."""
    layer, x = Bare(LSTM, proj_size=2, backend="reference").double(), torch.randn(T, B, I, dtype=DOUBLE)
    kept, found = [], []
    for recompute in (False, True):
        seen: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, seen=seen: (seen.append(t), t)[1], lambda t: t):
            y = layer(x, recompute=recompute)[0]
        kept.append(sum(t.numel() for t in seen))
        found.append([y, *gradients((y,), list(layer.parameters()))])
    assert kept[1] == x.numel() < kept[0]
    assert_same(*found)


@pytest.mark.parametrize("backend", ["auto", CPU, "aten", "reference"])
def test_autocast_is_a_cast_of_everything_but_double(cell: CellSpec, backend: str) -> None:
    layer, x = Bare(cell, num_layers=2, backend=backend), torch.randn(T, B, I, requires_grad=True)
    hx, low = initial(layer), torch.bfloat16
    with torch.autocast("cpu", low):
        found = layer(x, hx=hx)
    to = torch.float if cell is GRU else low  # torch's GRU carries its state in the state's dtype
    weights = {name: p.to(to) for name, p in layer.named_parameters()}
    want = functional_call(layer, weights, x.to(to), {"hx": tuple(h.to(to) for h in hx)})
    leaves = [x, *layer.parameters()]
    for a, b in zip((*found, *gradients(found, leaves)), (*want, *gradients(want, leaves)), strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    with torch.autocast("cpu", low):
        assert layer.double()(x.double())[0].dtype == torch.float64


def public(spec: CellSpec, *args: Any, **options: Any) -> Any:
    """The public function of a cell."""
    if spec.mode.startswith("RNN"):
        return functional.rnn(*args, spec.mode[4:].lower(), **options)
    return (functional.gru if spec is GRU else functional.lstm)(*args, **options)


@pytest.mark.parametrize("batch_first", [False, True])
def test_public_functions_equal_torch(cell: CellSpec, batch_first: bool) -> None:
    how: dict[str, Any] = {"num_layers": 2, "bidirectional": True, "batch_first": batch_first}
    own = {"nonlinearity": cell.mode[4:].lower()} if cell.mode.startswith("RNN") else {}
    stock = STOCK[cell.mode](I, H, **how, **own).double()
    x = torch.randn(*((B, T) if batch_first else (T, B)), I, dtype=DOUBLE)
    hx = tuple(torch.randn(4, B, H, dtype=DOUBLE) for _ in cell.states)
    for given in (hx if cell is LSTM else hx[0], None):
        y, last = public(cell, x, given, stock._flat_weights, **how)
        want, end = stock(x, given)
        assert_same([y, *(last if cell is LSTM else (last,))], [want, *(end if cell is LSTM else (end,))])


def test_public_functions_take_masks_in_the_layout_of_the_input() -> None:
    weights, x = list(nn.GRU(I, H).double().parameters()), torch.randn(T, B, I, dtype=DOUBLE)
    lengths, reset = torch.tensor([6, 2, 4]), torch.rand(T, B) < 0.3
    y, h, states = functional.gru(x, None, weights, lengths=lengths, reset=reset, return_states=True)
    turned = functional.gru(
        x.transpose(0, 1), None, weights, batch_first=True, lengths=lengths, reset=reset.T, return_states=True
    )
    assert_same([turned[0].transpose(0, 1), turned[1], turned[2][0][0]], [y, h, states[0][0]])
    y, _ = functional.lstm(x, None, list(nn.LSTM(I, H, proj_size=2).double().parameters()), proj_size=2)
    assert y.shape == (T, B, 2)


W = [torch.zeros(3 * H, I), torch.zeros(3 * H, H), torch.zeros(3 * H), torch.zeros(3 * H)]
X = torch.zeros(T, B, I)


@pytest.mark.parametrize(
    ("args", "options", "error", "text"),
    [
        ((X[0], None, W), {}, ValueError, "GRU: Expected input to be 3D, got 2D instead"),
        ((X[:0], None, W), {}, RuntimeError, "Expected sequence length to be larger than 0 in RNN"),
        ((X.double(), None, W), {}, ValueError, "does not match weight dtype"),
        ((X[..., :2], None, W), {}, RuntimeError, "must be equal to input_size. Expected 5, got 2"),
        ((X, torch.zeros(1, 2, H), W), {}, RuntimeError, r"Expected hidden size \(1, 3, 4\), got \[1, 2, 4\]"),
        ((X, torch.zeros(1, B, H).double(), W), {}, ValueError, "Expected hx of the input's dtype"),
        ((X, None, W[:3]), {}, ValueError, "Expected 4 tensors, weight_ih, weight_hh, bias_ih, bias_hh .* got 3"),
        ((X, None, W), {"bias": False}, ValueError, "Expected 2 tensors"),
        ((X, None, [*W[:3], W[3][1:]]), {}, RuntimeError, r"bias_hh of layer 0: Expected size \(12,\), got \[11\]"),
        ((X, None, W * 2), {"num_layers": 2}, RuntimeError, r"weight_ih of layer 1: Expected size \(12, 4\)"),
        ((X, None, [*W[:3], W[3].double()]), {}, ValueError, "bias_hh of layer 0: Expected torch.float32 on cpu"),
        ((X, None, W), {"lengths": torch.ones(2).long()}, ValueError, r"lengths: Expected size \(3,\)"),
        ((X, None, W), {"lengths": torch.ones(3)}, ValueError, "lengths: Expected integers"),
        ((X, None, W), {"reset": torch.ones(B, T).bool()}, ValueError, r"reset: Expected size \(6, 3\)"),
        ((X, None, W), {"backend": "cuda3"}, ValueError, "Unknown backend 'cuda3'"),
        ((X, None, W), {"backend": "aten", "recompute": True}, UnsupportedProblem, "has no recompute"),
    ],
)
def test_public_functions_say_what_is_wrong(
    args: tuple[Any, ...], options: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        functional.gru(*args, **options)


def test_public_functions_check_what_is_their_own() -> None:
    with pytest.raises(ValueError, match="Unknown nonlinearity 'sin'"):
        functional.rnn(X, None, W, "sin")
    weights = [torch.zeros(4 * H, I), torch.zeros(4 * H, H)]
    with pytest.raises(TypeError, match="tuple"):
        functional.lstm(X, torch.zeros(1, B, H), weights, bias=False)
    bad = (torch.zeros(1, B, H), torch.zeros(1, B, 2))
    with pytest.raises(RuntimeError, match=r"Expected hidden\[1\] size"):
        functional.lstm(X, bad, weights, bias=False)
    weights = [torch.zeros(4 * H, I), torch.zeros(4 * H, 2), torch.zeros(3, H)]
    with pytest.raises(RuntimeError, match="weight_hr of layer 0"):
        functional.lstm(X, None, weights, bias=False, proj_size=2)


@needs_kernel
def test_the_same_call_gives_the_same_bits() -> None:
    for spec in (GRU, LSTM, RNN_TANH):
        layer = Bare(spec, 64, 96, bidirectional=True, backend="cpu")
        x = torch.randn(40, 17, 64, requires_grad=True)
        leaves = [x, *layer.parameters()]
        found = [[*out, *gradients(out, leaves)] for out in (layer(x), layer(x))]
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
