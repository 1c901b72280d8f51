"""A layer through a program's life: copied, pickled, moved, shared, reparametrised, compiled."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from close import assert_same
from pairs import LAYERS, B, H, I, T, gradients, initial, needs_kernel, pair, rand, tensors
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn.utils import parametrizations, parametrize

import fusedrnn

each_layer = pytest.mark.parametrize("name", LAYERS)
STACK = {"num_layers": 2, "bidirectional": True}


def saved_and_loaded(module: nn.Module) -> Any:
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@each_layer
@pytest.mark.parametrize("how", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved_and_loaded])
def test_copies_are_whole_and_apart(name: str, how: Any) -> None:
    layer, x = pair(name, **STACK)[1], rand(T, B, I)
    layer.backend, layer.recompute = "reference", True
    layer(x)
    twin = how(layer.eval())
    assert (type(twin), twin.backend, twin.recompute, twin.training) == (type(layer), "reference", True, False)
    assert repr(twin) == repr(layer)
    before = tensors(layer(x))
    assert_same(tensors(twin(x)), before)
    with torch.no_grad():
        for p in twin.parameters():
            p.add_(1.0)
    assert all(w is getattr(twin, n) for w, n in zip(twin._flat_weights, twin._flat_weights_names, strict=True))
    assert_same(tensors(layer(x)), before)
    assert not torch.allclose(twin(x)[0], before[0])


@each_layer
@pytest.mark.parametrize("swap", [False, True], ids=["set", "swap"])
def test_moves(name: str, swap: bool) -> None:
    """.to(), which gives the Parameters new data or swaps them for new ones; share_memory_."""
    stock, layer = pair(name, **STACK, dtype=torch.float)
    parameters = list(layer.parameters())
    torch.__future__.set_swap_module_params_on_conversion(swap)
    try:
        stock.double()
        layer.double()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    x = rand(T, B, I)
    assert_same(tensors(layer(x)), tensors(stock(x)))
    assert all(a is b for a, b in zip(layer.parameters(), parameters, strict=True))
    assert all(w is getattr(layer, n) for w, n in zip(layer._flat_weights, layer._flat_weights_names, strict=True))
    assert layer.share_memory() is layer
    assert all(p.is_shared() for p in layer.parameters())
    assert_same(tensors(layer(x)), tensors(stock(x)))


@each_layer
def test_from_meta_to_memory(name: str) -> None:
    layer = getattr(fusedrnn, name)(I, H, **STACK, device="meta").to_empty(device="cpu")
    torch.manual_seed(1)
    layer.reset_parameters()
    torch.manual_seed(1)
    stock = getattr(nn, name)(I, H, **STACK)
    assert all(torch.equal(a, b) for a, b in zip(layer.parameters(), stock.parameters(), strict=True))


@each_layer
def test_meta_and_fake_tensors(name: str) -> None:
    shapes = [t.shape for t in tensors(pair(name, **STACK)[0](rand(T, B, I)))]
    layer = getattr(fusedrnn, name)(I, H, **STACK, device="meta")
    out = tensors(layer(torch.empty(T, B, I, device="meta")))
    assert [(t.shape, t.is_meta) for t in out] == [(s, True) for s in shapes]
    with FakeTensorMode():
        layer = getattr(fusedrnn, name)(I, H, **STACK)
        out = tensors(layer(torch.empty(T, B, I)))
        out[0].sum().backward()
        assert [t.shape for t in out] == shapes
        assert layer.weight_hh_l1_reverse.grad.shape == layer.weight_hh_l1_reverse.shape


@each_layer
def test_functional_call_uses_what_it_is_given_and_leaves_nothing(name: str) -> None:
    stock, layer = pair(name, **STACK)
    x, other = rand(T, B, I), pair(name, **STACK)[0]
    own, before = list(layer.parameters()), vars(layer).copy()
    given = {n: p.detach().clone().requires_grad_() for n, p in other.named_parameters()}
    out = functional_call(layer, given, (x,))
    assert_same(tensors(out), tensors(other(x)))
    out[0].sum().backward()
    assert all(p.grad is not None for p in given.values())
    assert all(p.grad is None for p in own)
    low = functional_call(layer, {n: p.float() for n, p in given.items()}, (x.float(),))
    assert {t.dtype for t in tensors(low)} == {torch.float}
    assert all(a is b for a, b in zip(layer.parameters(), own, strict=True))
    assert all(a is b for a, b in zip(layer._flat_weights, own, strict=True))
    assert vars(layer).keys() == before.keys()
    assert_same(tensors(layer(x)), tensors(stock(x)))


class Scaled(nn.Module):
    """A parametrization with a weight of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5, dtype=torch.double))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.scale


def set_plain(layer: nn.Module) -> None:
    """As WeightDrop does: a tensor computed from a Parameter of another name, set under the weight's."""
    layer.raw = nn.Parameter(layer.weight_hh_l0.detach() + 1.0)
    if "weight_hh_l0" in layer._parameters:
        del layer.weight_hh_l0
    layer.weight_hh_l0 = layer.raw * 0.5


def replace(layer: nn.Module) -> None:
    layer.weight_hh_l0 = nn.Parameter(layer.weight_hh_l0.detach() + 1.0)


def tie(layer: nn.Module) -> None:
    layer.weight_hh_l0_reverse = layer.weight_hh_l0
    layer.bias_ih_l1 = layer.bias_hh_l1


CHANGES = {
    "parametrized": lambda layer: parametrize.register_parametrization(layer, "weight_hh_l0", Scaled()),
    "weight_norm": lambda layer: parametrizations.weight_norm(layer, "weight_ih_l1"),
    "old weight_norm": lambda layer: nn.utils.weight_norm(layer, "weight_hh_l0"),
    "old spectral_norm": lambda layer: nn.utils.spectral_norm(layer, "weight_hh_l0"),
    "plain tensor": set_plain,
    "new Parameter": replace,
    "shadowed": lambda layer: layer.__dict__.update(weight_hh_l0=layer.weight_hh_l0.detach() * 2),
    "tied": tie,
    "in place": lambda layer: layer.weight_hh_l0.data.mul_(2.0),
}


@each_layer
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.filterwarnings("ignore:.*(weight_norm|spectral_norm).* is deprecated")
def test_weights_that_change_are_the_weights_used(name: str, change: str) -> None:
    """At every call, before and after the change; gradients reach what the weight comes from."""
    stock, ours = pair(name, **STACK)
    x = rand(T, B, I)
    first = tensors(ours(x))
    found = []
    for layer in (stock, ours):
        torch.manual_seed(1)
        CHANGES[change](layer)
        torch.manual_seed(2)
        out = tensors(layer(x))
        out[0].pow(2).sum().backward()
        found.append([*out, *(p.grad for p in layer.parameters() if p.grad is not None)])
    assert_same(found[1], found[0])
    if change != "weight_norm":  # which changes the source of the weight, not the weight
        assert change == "old weight_norm" or not torch.allclose(first[0], found[1][0])
    if change == "plain tensor":  # and again, now that it is one
        set_plain(stock)
        set_plain(ours)
        assert_same(tensors(ours(x)), tensors(stock(x)))
    if change == "parametrized":
        for layer in (stock, ours):
            parametrize.remove_parametrizations(layer, "weight_hh_l0")
        assert type(ours) is getattr(fusedrnn, name)
        assert_same(tensors(ours(x)), tensors(stock(x)))


@each_layer
def test_data_parallel_replicas_use_their_own_weights(name: str) -> None:
    """As torch.nn.parallel.replicate does it, by hand: it wants GPUs."""
    stock, layer = pair(name)
    x, doubled = rand(T, B, I), copy.deepcopy(stock)
    with torch.no_grad():
        for p in doubled.parameters():
            p.mul_(2.0)
    replica = layer._replicate_for_data_parallel()
    for n, p in layer.named_parameters():
        setattr(replica, n, p * 2.0)
    assert_same(tensors(replica(x)), tensors(doubled(x)))
    assert_same(tensors(layer(x)), tensors(stock(x)))
    replica(x)[0].sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


@each_layer
def test_hooks_run(name: str) -> None:
    layer, seen = pair(name)[1], []
    layer.register_forward_pre_hook(lambda m, args, kwargs: seen.append(sorted(kwargs)), with_kwargs=True)
    layer.register_forward_hook(lambda m, args, out: (out[0] + 1.0, out[1]))
    layer.register_full_backward_hook(lambda m, grad_in, grad_out: seen.append(len(grad_in)))
    x = rand(T, B, I).requires_grad_()
    y, _ = layer(x, hx=None, lengths=torch.tensor([1, 2, 3]))
    y.sum().backward()
    assert y[-1].eq(1.0).all()
    assert seen == [["hx", "lengths"], 1]


@each_layer
def test_beside_torchs_class_in_multiple_inheritance(name: str) -> None:
    """For who asks isinstance(layer, nn.LSTM)."""
    both = type(name, (getattr(fusedrnn, name), getattr(nn, name)), {})
    stock, _ = pair(name, **STACK)
    layer = both(I, H, **STACK, dtype=torch.double, backend="reference")
    layer.load_state_dict(stock.state_dict())
    x, hx = rand(T, B, I), initial(stock)
    assert isinstance(layer, getattr(nn, name))
    assert repr(layer) == repr(stock).removesuffix(")") + ", backend='reference')"
    assert_same(tensors(layer(x, hx)), tensors(stock(x, hx)))
    assert_same(tensors(copy.deepcopy(layer)(x, hx)), tensors(stock(x, hx)))


@each_layer
def test_flatten_parameters_does_nothing(name: str) -> None:
    layer = pair(name)[1]
    places = [p.data_ptr() for p in layer.parameters()]
    assert layer.flatten_parameters() is None
    assert [p.data_ptr() for p in layer.parameters()] == places


class Tagged(Tensor):
    """A tensor subclass that counts the functions it meets."""

    met = 0

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        Tagged.met += 1
        return super().__torch_function__(func, types, args, kwargs or {})


@each_layer
def test_tensor_subclasses_pass(name: str) -> None:
    stock, layer = pair(name)
    x, Tagged.met = rand(T, B, I), 0
    out = layer(x.as_subclass(Tagged))[0]
    assert Tagged.met > 0
    assert_same([out.as_subclass(Tensor)], [stock(x)[0]])


@each_layer
def test_per_sample_gradients_and_ensembles(name: str) -> None:
    layers = [pair(name)[1] for _ in range(3)]
    x = rand(4, T, 1, I)

    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(layers[0], weights, (x,))[0].pow(2).sum()

    weights = {n: p.detach() for n, p in layers[0].named_parameters()}
    each = vmap(grad(loss), (None, 0))(weights, x)
    for i in range(4):
        own = torch.autograd.grad(layers[0](x[i])[0].pow(2).sum(), list(layers[0].parameters()))
        assert_same([g[i] for g in each.values()], list(own))
    stacked, _ = stack_module_state(layers)
    assert_same([vmap(loss, (0, None))(stacked, x[0])], [torch.stack([m(x[0])[0].pow(2).sum() for m in layers])])


@pytest.mark.slow
@needs_kernel
@pytest.mark.usefixtures("fresh_graphs")
@pytest.mark.parametrize(
    ("name", "options"), [("GRU", {"bidirectional": True}), ("LSTM", {"num_layers": 2}), ("RNN", {})]
)
def test_compiles_as_a_full_graph(name: str, options: dict[str, Any]) -> None:
    """Forward and backward, with masks where bidirectional; again after an optimizer's step and with other shapes."""
    layer = pair(name, **options, batch_first=True)[1]
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for rows, steps in ((3, 6), (4, 9)):
        x = rand(rows, steps, I).requires_grad_()
        masks = (torch.randint(0, steps, (rows,)), torch.rand(rows, steps) < 0.3) if layer.bidirectional else ()
        found = []
        for run in (layer, compiled):
            out = tensors(run(x, None, *masks))
            found.append(out + gradients(out, [x, *layer.parameters()]))
        assert_same(found[1], found[0])
        tensors(compiled(x, None, *masks))[0].sum().backward()
        optimizer.step()
