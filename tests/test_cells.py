"""GRUCell, LSTMCell and RNNCell against torch's own."""

from __future__ import annotations

import copy
import itertools
import pickle
from typing import Any

import pytest
import torch
from close import assert_same
from pairs import B, H, I, gradients, needs_kernel, outcome, rand, tensors
from torch import nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.utils import parametrizations

import fusedrnn
from fusedrnn.errors import UnsupportedProblem

CELLS = ("GRUCell", "LSTMCell", "RNNCell")
each_cell = pytest.mark.parametrize("name", CELLS)


def pair(name: str, **kwargs: Any) -> tuple[nn.Module, nn.Module]:
    """torch's and ours, in float64 unless told."""
    stock = getattr(nn, name)(I, H, **{"dtype": torch.double, **kwargs})
    return stock, fusedrnn.convert(copy.deepcopy(stock))


def ones(*size: int, **kwargs: Any) -> Any:
    return torch.ones(size, **kwargs)


def state(name: str, *edge: int) -> Any:
    return (rand(*edge, H), rand(*edge, H)) if name == "LSTMCell" else rand(*edge, H)


@each_cell
@pytest.mark.parametrize("bias", [True, False])
def test_parameters_initialisation_and_state_dict(name: str, bias: bool) -> None:
    found = []
    for package in (nn, fusedrnn):
        torch.manual_seed(3)
        found.append((getattr(package, name)(I, H, bias), torch.rand(1)))
    (stock, after), (ours, after_ours) = found
    assert torch.equal(after, after_ours)
    assert repr(ours) == repr(stock)
    assert isinstance(ours, type(stock))
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in stock.named_parameters()]
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), stock.parameters(), strict=True))
    other, x = pair(name, bias=bias)[0], rand(B, I)
    ours.double().load_state_dict(other.state_dict())
    stock.double().load_state_dict(ours.state_dict())
    for cell in (stock, ours):
        assert_same(tensors(cell(x)), tensors(other(x)))


@each_cell
@pytest.mark.parametrize("backend", ["reference", "aten", "auto", pytest.param("cpu", marks=needs_kernel)])
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_outputs_and_gradients(name: str, backend: str, batched: bool, given: bool, bias: bool) -> None:
    stock, ours = pair(name, bias=bias)
    ours.backend = backend
    edge = (B,) if batched else ()
    x, hx, found = rand(*edge, I), tensors(state(name, *edge)) if given else [], []
    for cell in (stock, ours):
        leaves = [t.clone().requires_grad_() for t in (x, *hx)]
        states = tuple(leaves[1:]) if name == "LSTMCell" else leaves[-1]
        out = tensors(cell(leaves[0], states if given else None))
        found.append(out + gradients(out, [*leaves, *cell.parameters()]))
    assert_same(found[1], found[0])


@each_cell
def test_a_named_backend_takes_the_step_or_says_why_not(name: str) -> None:
    cell, x = pair(name, dtype=torch.half)[1], rand(B, I).half()
    cell(x)
    with fusedrnn.use_backend("cudnn"), pytest.raises(UnsupportedProblem, match="cuDNN runs on a GPU"):
        cell(x)
    cell.backend = "cudnn"
    with pytest.raises(UnsupportedProblem, match="cuDNN runs on a GPU"):
        cell(x)


@each_cell
def test_loop_equals_layer(name: str) -> None:
    layer, cell = getattr(fusedrnn, name.removesuffix("Cell"))(I, H, dtype=torch.double), pair(name)[1]
    cell.load_state_dict({n: getattr(layer, f"{n}_l0") for n in cell.state_dict()})
    x, hx, steps = rand(6, B, I), None, []
    for x_t in x:
        hx = cell(x_t, hx)
        steps.append(tensors(hx)[0])
    y, last = layer(x)
    assert_same([torch.stack(steps), *(h.unsqueeze(0) for h in tensors(hx))], [y, *tensors(last)])


def test_nonlinearity() -> None:
    stock, ours = pair("RNNCell", nonlinearity="relu")
    x = rand(B, I)
    assert repr(ours) == repr(stock)
    assert_same([ours(x)], [stock(x)])
    for cell in (stock, ours):
        cell.nonlinearity = "sigmoid"
    expected = outcome(lambda: stock(x))
    assert expected is not None
    assert outcome(lambda: ours(x)) == expected


CONSTRUCTORS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "one size": ((4,), {}),
    "unknown keyword": ((4, 6), {"depth": 2}),
    "too many": ((4,) * 9, {}),
    "negative size": ((4, -1), {}),
    "float size": ((4.0, 6), {}),
}


@each_cell
@pytest.mark.parametrize("case", CONSTRUCTORS)
def test_constructor_errors_are_torchs(name: str, case: str) -> None:
    args, kwargs = CONSTRUCTORS[case]
    expected = outcome(lambda: getattr(nn, name)(*args, **kwargs))
    assert expected is not None
    assert outcome(lambda: getattr(fusedrnn, name)(*args, **kwargs)) == expected


FORWARDS: dict[str, tuple[Any, Any]] = {
    "input 3-D": (ones(1, B, I), None),
    "input 0-D": (ones(), None),
    "input None": (None, None),
    "hx 3-D": (ones(B, I), ones(1, B, H)),
    "hx 0-D": (ones(B, I), ones()),
    "input size": (ones(B, I + 1), None),
    "input size, 1-D": (ones(I + 1), None),
    "hx features": (ones(B, I), ones(B, H + 1)),
    "hx features, 1-D": (ones(I), ones(H + 1)),
    "hx batch": (ones(B, I), ones(B + 1, H)),
    "hx batch and input size": (ones(B, I + 1), ones(B + 1, H)),
}


@each_cell
@pytest.mark.parametrize("case", FORWARDS)
def test_forward_errors_are_torchs(name: str, case: str) -> None:
    stock, ours = pair(name, dtype=torch.float)
    x, h = FORWARDS[case]
    hx = (h, h) if name == "LSTMCell" and h is not None else h
    expected = outcome(lambda: stock(x, hx))
    assert expected is not None
    assert outcome(lambda: ours(x, hx)) == expected


@pytest.mark.parametrize(
    "hx", [(ones(B, H),), (ones(B, H),) * 3, (ones(B, H), ones(B, H + 1)), (ones(B, H), ones(1, B, H))]
)
def test_errors_of_a_pair_are_torchs(hx: Any) -> None:
    stock, ours = pair("LSTMCell", dtype=torch.float)
    expected = outcome(lambda: stock(ones(B, I), hx))
    assert expected is not None
    assert outcome(lambda: ours(ones(B, I), hx)) == expected


@each_cell
def test_words_where_torch_mumbles(name: str) -> None:
    cell = pair(name, dtype=torch.float)[1]
    both = (lambda h: (h, h)) if name == "LSTMCell" else (lambda h: h)
    with pytest.raises(ValueError, match=r"to be 2D as the input is, got 1D"):
        cell(ones(B, I), both(ones(H)))
    with pytest.raises(ValueError, match=r"to be 1D as the input is, got 2D"):
        cell(ones(I), both(ones(1, H)))
    with pytest.raises(ValueError, match=r"RNN input dtype \(torch.float64\) does not match weight dtype"):
        cell(ones(B, I, dtype=torch.double))
    with pytest.raises(ValueError, match=f"{name}: Expected hx of the input's dtype torch.float32, got torch.int64"):
        cell(ones(B, I), both(ones(B, H, dtype=torch.long)))
    with pytest.raises(RuntimeError, match="Input and hidden tensors are not at the same device"):
        cell(ones(B, I), both(ones(B, H, device="meta")))
    with pytest.raises(ValueError, match=r"Unknown backend 'warp'"):
        cell.backend = "warp"
    if name == "LSTMCell":
        with pytest.raises(TypeError, match=r"hx to be a tuple \(h, c\), got Tensor"):
            cell(ones(B, I), ones(2, B, H))


@each_cell
def test_copies_and_moves(name: str) -> None:
    stock, ours = pair(name)
    x, hx = rand(B, I), state(name, B)
    expected = tensors(stock(x, hx))
    for twin in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert_same(tensors(twin(x, hx)), expected)
    assert_same(tensors(ours(x[:0])), tensors(stock(x[:0])))
    assert {t.dtype for t in tensors(copy.deepcopy(ours).bfloat16()(x.bfloat16()))} == {torch.bfloat16}
    assert all(t.is_meta for t in tensors(copy.deepcopy(ours).to("meta")(x.to("meta"))))
    both = pair(name, dtype=torch.float)
    with torch.autocast("cpu", torch.bfloat16):
        for given, backend in itertools.product((x.float(), x.bfloat16()), ("auto", "reference")):
            both[1].backend = backend
            assert [t.dtype for t in tensors(both[1](given))] == [t.dtype for t in tensors(both[0](given))]


@each_cell
def test_other_weights_than_its_own(name: str) -> None:
    stock, ours = pair(name)
    x, hx = rand(B, I), state(name, B)
    expected = tensors(stock(x, hx))
    weights, _ = stack_module_state([pair(name)[1], ours])
    mapped = vmap(lambda w: functional_call(ours, w, (x, hx)))(weights)
    assert_same([t[1] for t in tensors(mapped)], expected)
    for cell in (stock, ours):
        parametrizations.weight_norm(cell, "weight_hh")
        with torch.no_grad():
            cell.parametrizations.weight_hh.original0.mul_(2.0)
    changed = tensors(stock(x, hx))
    assert not torch.allclose(changed[0], expected[0])
    assert_same(tensors(ours(x, hx)), changed)


@pytest.mark.slow
@each_cell
@pytest.mark.usefixtures("fresh_graphs")
def test_compiles_as_a_full_graph(name: str) -> None:
    cell = pair(name)[1]
    x, hx, found = rand(B, I).requires_grad_(), state(name, B), []
    for run in (cell, torch.compile(cell, fullgraph=True, backend="aot_eager")):
        out = tensors(run(x, hx))
        found.append(out + gradients(out, [x, *cell.parameters()]))
    assert_same(found[1], found[0])
