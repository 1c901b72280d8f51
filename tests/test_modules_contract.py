"""What torch.nn's layers promise, item by item against them: parameters, init, repr, layouts, values, gradients."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from close import assert_no_worse, assert_same
from pairs import LAYERS, B, H, I, T, gradients, initial, pair, rand, tensors
from torch import nn

import fusedrnn
from fusedrnn.standin import OWN_ATTRIBUTES

each_layer = pytest.mark.parametrize("name", LAYERS)

OPTIONS: list[dict[str, Any]] = [
    {"num_layers": 1, "bidirectional": False, "bias": True},
    {"num_layers": 1, "bidirectional": True, "bias": False},
    {"num_layers": 3, "bidirectional": False, "bias": False},
    {"num_layers": 2, "bidirectional": True, "bias": True},
]
PROJECTED = [{**options, "proj_size": 2} for options in OPTIONS]
CASES = [
    pytest.param(name, o, id=f"{name}-{'-'.join(str(int(v)) for v in o.values())}")
    for name in LAYERS
    for o in OPTIONS + PROJECTED * (name == "LSTM")
]
each_case = pytest.mark.parametrize(("name", "options"), CASES)


@each_case
def test_parameters_and_initialisation(name: str, options: dict[str, Any]) -> None:
    """Same names in the same order, same numbers from the same seed, and the generator left in the same place."""
    found = []
    for package in (nn, fusedrnn):
        torch.manual_seed(3)
        layer = getattr(package, name)(I, H, **options)
        found.append((layer, torch.rand(1)))
    (stock, after), (ours, after_ours) = found
    assert torch.equal(after, after_ours)
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in stock.named_parameters()]
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), stock.parameters(), strict=True))
    assert not list(ours.buffers())
    assert not list(ours.children())


@each_case
def test_attributes(name: str, options: dict[str, Any]) -> None:
    stock, ours = getattr(nn, name)(I, H, **options), getattr(fusedrnn, name)(I, H, **options)
    assert vars(ours).keys() - set(OWN_ATTRIBUTES) == vars(stock).keys()
    plain = [k for k, v in vars(stock).items() if isinstance(v, (int, float, str, bool))]
    assert {k: vars(ours)[k] for k in plain} == {k: vars(stock)[k] for k in plain}
    assert ours._flat_weights_names == stock._flat_weights_names
    assert ours._all_weights == stock._all_weights
    assert [[id(w) for w in layer] for layer in ours.all_weights] == [
        [id(getattr(ours, n)) for n in layer] for layer in ours._all_weights
    ]
    assert all(w is getattr(ours, n) for w, n in zip(ours._flat_weights, ours._flat_weights_names, strict=True))


@each_case
def test_state_dict_both_ways(name: str, options: dict[str, Any]) -> None:
    stock, ours = pair(name, **options)
    x, other = rand(T, B, I), pair(name, **options)[0]
    ours.load_state_dict(other.state_dict())
    assert_same(tensors(ours(x)), tensors(other(x)))
    stock.load_state_dict(ours.state_dict())
    assert_same(tensors(stock(x)), tensors(other(x)))


@each_layer
@pytest.mark.parametrize(
    "options", [{}, {"num_layers": 2, "bias": False, "batch_first": True, "dropout": 0.5, "bidirectional": True}]
)
def test_repr(name: str, options: dict[str, Any]) -> None:
    for extra in ({}, {"proj_size": 2}) if name == "LSTM" else ({},):
        assert repr(getattr(fusedrnn, name)(I, H, **options, **extra)) == repr(
            getattr(nn, name)(I, H, **options, **extra)
        )
    assert repr(fusedrnn.RNN(I, H, nonlinearity="relu")) == repr(nn.RNN(I, H, nonlinearity="relu"))


@each_layer
def test_repr_says_what_torchs_layers_have_not(name: str) -> None:
    layer = getattr(fusedrnn, name)(I, H, bptt=3, recompute=True, layer_norm=True, backend="cpu")
    assert repr(layer) == f"{name}({I}, {H}, layer_norm=True, bptt=3, recompute=True, backend='cpu')"


@each_layer
def test_positional_arguments_mean_what_torch_documents(name: str) -> None:
    args = (I, H, 2, *("relu",) * (name == "RNN"), False, True, 0.25, True, *(2,) * (name == "LSTM"))
    ours, stock = getattr(fusedrnn, name)(*args), getattr(nn, name)(*args)
    assert repr(ours) == repr(stock)
    assert getattr(ours, "nonlinearity", None) == getattr(stock, "nonlinearity", None)
    assert getattr(fusedrnn, name)(*args, "meta", torch.double).weight_hh_l0.is_meta
    assert getattr(fusedrnn, name)(*args, None, torch.double).weight_hh_l0.dtype == torch.double


@each_case
@pytest.mark.parametrize("given", [False, True], ids=["zeros", "hx"])
@pytest.mark.parametrize("layout", ["T,B", "B,T", "T"])
def test_outputs_and_gradients(name: str, options: dict[str, Any], given: bool, layout: str) -> None:
    """Values, shapes and every gradient, from random upstream gradients, in float64."""
    stock, ours = pair(name, **options, batch_first=layout == "B,T")
    x = rand(*{"T,B": (T, B, I), "B,T": (B, T, I), "T": (T, I)}[layout])
    hx = tensors(initial(stock, None if layout == "T" else B)) if given else []
    found = []
    for layer in (stock, ours):
        leaves = [t.clone().requires_grad_() for t in (x, *hx)]
        states = tuple(leaves[1:]) if name == "LSTM" else leaves[-1]
        out = tensors(layer(leaves[0], states if given else None))
        found.append(out + gradients(out, [*leaves, *layer.parameters()]))
    assert_same(found[1], found[0])


@each_layer
@pytest.mark.parametrize("backend", ["reference", "aten", "auto"])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "batch_first": True}])
def test_strides_of_input_and_hx_do_not_matter(name: str, backend: str, options: dict[str, Any]) -> None:
    """torch says 'rnn: hx is not contiguous' on a GPU."""
    stock, ours = pair(name, **options, backend=backend)
    rows = 4 if options else 1
    x = rand(I, T, B).permute(1, 2, 0)
    wide = [rand(H, B, rows).permute(2, 1, 0), rand(rows, 1, 2 * H)[..., ::2].expand(rows, B, H)]
    x = x.transpose(0, 1) if options else x
    hx = tuple(wide) if name == "LSTM" else wide[1]
    assert_same(tensors(ours(x, hx)), tensors(stock(x, hx)))


@each_layer
def test_an_lstm_takes_a_list_and_an_empty_batch(name: str) -> None:
    stock, ours = pair(name, bidirectional=True)
    assert_same(tensors(ours(rand(T, 0, I))), tensors(stock(rand(T, 0, I))))
    if name == "LSTM":
        x, hx = rand(T, B, I), list(initial(stock))
        assert_same(tensors(ours(x, hx)), tensors(stock(x, hx)))


@each_layer
@pytest.mark.parametrize("backend", ["reference", "aten", "auto"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_dropout_is_torchs_bit_for_bit(name: str, backend: str, batch_first: bool) -> None:
    """Where the mask falls, and what the generator gives next."""
    stock, ours = pair(
        name,
        num_layers=3,
        dropout=0.4,
        bidirectional=True,
        batch_first=batch_first,
        backend=backend,
    )
    x, found = rand(B, T, I), []
    for layer in (stock, ours):
        torch.manual_seed(11)
        found.append([*tensors(layer(x)), torch.rand(1, dtype=torch.double)])
    assert_same(found[1], found[0])
    assert_same(tensors(ours.eval()(x)), tensors(stock.eval()(x)))


@pytest.mark.parametrize(("steps", "rows"), [(66_000, 1), (2, 66_000)])
def test_more_steps_or_rows_than_16_bits_count(steps: int, rows: int) -> None:
    """Where cuDNN's LSTM gives up."""
    stock, ours = pair("LSTM", 1, 2)
    x = rand(steps, rows, 1)
    with torch.no_grad():
        assert_same(tensors(ours(x)), tensors(stock(x)))


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_nonlinearity(nonlinearity: str) -> None:
    stock, ours = pair("RNN", I, H, 2, nonlinearity, bidirectional=True)
    x = rand(T, B, I)
    assert_same(tensors(ours(x)), tensors(stock(x)))


@each_layer
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.half])
def test_other_dtypes_are_no_less_accurate_than_torchs(name: str, dtype: torch.dtype) -> None:
    stock, ours = pair(name, num_layers=2, dtype=dtype)
    x, exact, found = rand(T, B, I).to(dtype), copy.deepcopy(stock).double(), []
    for layer in (ours, exact, stock):
        out = tensors(layer(x.to(layer.weight_ih_l0.dtype)))
        found.append(dict(enumerate(out)))
    assert_no_worse(*found)


@each_layer
def test_autocast_casts_input_states_and_weights(name: str) -> None:
    """To its own dtype, but of a GRU on a CPU to the state's; gradients of Parameters are float32."""
    stock, ours = pair(name, num_layers=2, bidirectional=True, dtype=torch.float)
    x, hx = rand(T, B, I).float().requires_grad_(), initial(stock)
    with torch.autocast("cpu", torch.bfloat16):
        out = tensors(ours(x, hx))
    torch.autograd.backward(out, [torch.ones_like(t) for t in out])
    assert {t.grad.dtype for t in (x, *ours.parameters())} == {torch.float32}
    dtype = torch.float if name == "GRU" else torch.bfloat16
    ours.to(dtype)
    expected = tensors(ours(x.to(dtype), tuple(h.to(dtype) for h in hx) if name == "LSTM" else hx.to(dtype)))
    assert all(torch.equal(a, b) for a, b in zip(out, expected, strict=True))


def double(*values: Any) -> list[Any]:
    return [tuple(h.double() for h in v) if type(v) is tuple else v if v is None else v.double() for v in values]


@each_layer
@pytest.mark.parametrize("backend", ["auto", "aten", "reference"])
@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported")
def test_autocast_gives_torchs_dtypes_no_less_accurate(name: str, backend: str, low: torch.dtype) -> None:
    """Whatever the dtypes of input and states, and the layout: in torch, no cell does as the next."""
    wide = [{"proj_size": 2}] if name == "LSTM" else []
    for options in ({}, {"num_layers": 2, "bidirectional": True}, *wide):
        stock, ours = pair(name, **options, dtype=torch.float, backend=backend)
        for given, kind in itertools.product((torch.float, low), (None, torch.float, low)):
            hx = None if kind is None else initial(stock)
            hx = hx if hx is None else tuple(h.to(kind) for h in hx) if name == "LSTM" else hx.to(kind)
            x = rand(T, B, I).to(given)
            rows = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([6, 4, 2]))
            with torch.autocast("cpu", low), torch.no_grad():
                for sequence in (x, rows):
                    try:
                        want = tensors(stock(sequence, hx))
                    except RuntimeError:
                        continue  # this torch cannot
                    found = tensors(ours(sequence, hx))
                    exact = tensors(copy.deepcopy(stock).double()(*double(sequence, hx)))
                    assert_no_worse(*(dict(enumerate(out)) for out in (found, exact, want)))


@each_layer
def test_gradients_accumulate_and_frozen_weights_get_none(name: str) -> None:
    stock, ours = pair(name, num_layers=2)
    for layer in (stock, ours):
        layer.weight_hh_l0.requires_grad_(False)
        layer.bias_ih_l1.requires_grad_(False)
    x = rand(T, B, I)
    for layer in (stock, ours):
        y = layer(layer(x)[0].matmul(x.new_ones(H, I)))[0]  # twice in one graph
        y.pow(2).sum().backward()
        layer(x)[0].sum().backward()
    assert ours.weight_hh_l0.grad is None
    assert ours.bias_ih_l1.grad is None
    assert_same(*([p.grad for p in m.parameters() if p.requires_grad] for m in (ours, stock)))


@each_layer
def test_requires_grad_follows_torch(name: str) -> None:
    stock, ours = pair(name)
    x, wanted = rand(T, B, I), rand(T, B, I).requires_grad_()
    for context in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        for frozen, data in itertools.product((False, True), (x, wanted)):
            flags = []
            for layer in (stock, ours):
                layer.requires_grad_(not frozen)
                with context():
                    out = tensors(layer(data))
                flags.append([(t.requires_grad, t.is_inference()) for t in out])
            assert flags[0] == flags[1]
