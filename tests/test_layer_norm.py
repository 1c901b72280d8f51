"""Layer normalisation: against a naive loop; derivatives, compilers, other options and inputs, precision."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from close import assert_same
from noisy_loop import STACK, each_backend, each_layer, make, seeded
from normed_loop import WIDE, Weights, loop, shaken
from pairs import B, H, I, T, gradients, initial, rand, tensors
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fusedrnn


def compared(layer: Any, backend: str, **masks: Tensor) -> None:
    """Values and gradients, of everything."""
    layer.backend = backend
    x, hx = rand(T, B, I).requires_grad_(), [h.requires_grad_() for h in tensors([initial(layer)])]
    leaves = [x, *hx, *layer.parameters()]
    found, expected = tensors(layer(x, state(hx), **masks)), loop(layer, x, hx, **masks)
    assert_same(found + gradients(found, leaves), expected + gradients(expected, leaves))


def state(hx: Any) -> Any:
    return tuple(hx) if len(hx) == 2 else hx[0]


@each_layer
@each_backend
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
def test_equals_a_naive_loop(name: str, bias: bool, backend: str) -> None:
    layer = shaken(make(name, *WIDE, **STACK, bias=bias, layer_norm=True))
    compared(layer, backend)
    compared(layer, backend, lengths=torch.tensor([2, T, 0]))
    compared(layer, backend, lengths=torch.tensor([4, T, 1]), reset=torch.rand(T, B) < 0.4)


@each_backend
def test_relu(backend: str) -> None:
    compared(shaken(make("RNN", *WIDE, nonlinearity="relu", layer_norm=True)), backend)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
def test_projections(bias: bool) -> None:
    layer = shaken(make("LSTM", *WIDE, proj_size=8, **STACK, bias=bias, layer_norm=True))
    compared(layer, "auto", lengths=torch.tensor([2, T, 0]))


@each_layer
def test_at_the_start_products_are_standardised(name: str) -> None:
    """Gains of 1: the scale of the weights and of the input is nothing to the layer, but for eps."""
    layer, x = make(name, layer_norm=True), rand(T, B, I)
    large = copy.deepcopy(layer)
    with torch.no_grad():
        large.weight_ih_l0.mul_(1e6)
        large.weight_hh_l0.mul_(1e6)
        larger = copy.deepcopy(large)
        larger.weight_ih_l0.mul_(8)
        larger.weight_hh_l0.mul_(8)
    torch.testing.assert_close(large(x)[0], larger(x)[0], rtol=0, atol=1e-9)
    assert not torch.allclose(make(name)(x)[0], layer(x)[0])


# Derivatives, transforms, compilers.


@each_layer
def test_gradcheck_and_gradgradcheck(name: str, one_thread: None) -> None:
    layer = shaken(make(name, 2, 3, layer_norm=True))
    x = rand(2, 2, 2).requires_grad_()
    hx = [h.requires_grad_() for h in tensors([initial(layer, 2)])]
    run = as_function(layer, len(hx))
    inputs = (x, *hx, *layer.parameters())
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)
    assert torch.autograd.gradcheck(run, inputs, check_forward_ad=True, check_backward_ad=False)


def as_function(layer: Any, states: int) -> Callable[..., tuple[Tensor, ...]]:
    names = [n for n, _ in layer.named_parameters()]

    def run(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        weights = dict(zip(names, rest[states:], strict=True))
        return tuple(tensors(torch.func.functional_call(layer, weights, (x, state(rest[:states])))))

    return run


@each_layer
def test_transforms(name: str) -> None:
    layer, x = shaken(make(name, layer_norm=True)), rand(2, T, B, I)
    weights = {n: torch.stack([p, 2 * p]).detach() for n, p in layer.named_parameters()}

    def loss(weights: Weights, x: Tensor) -> Tensor:
        return torch.func.functional_call(layer, weights, (x,))[0].square().sum()

    found = torch.func.vmap(torch.func.grad(loss))(weights, x)
    for i in range(2):
        own = {n: w[i].clone().requires_grad_() for n, w in weights.items()}
        want = torch.autograd.grad(loss(own, x[i]), list(own.values()))
        assert_same([found[n][i] for n in own], want)


@each_layer
def test_compiles_whole(name: str, fresh_graphs: None) -> None:
    layer, x = shaken(make(name, layer_norm=True)), rand(T, B, I).requires_grad_()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    leaves, lengths = [x, *layer.parameters()], torch.tensor([2, T, 0])
    found, want = (tensors(f(x, lengths=lengths)) for f in (compiled, layer))
    assert_same(found + gradients(found, leaves), want + gradients(want, leaves))


def test_exports() -> None:
    layer, x = shaken(make("LSTM", layer_norm=True)), rand(T, B, I)
    assert_same(tensors(torch.export.export(layer, (x,)).module()(x)), tensors(layer(x)))


# With the layers' other options and inputs.


@each_layer
def test_recompute_and_bptt(name: str) -> None:
    layer, x = shaken(make(name, **STACK, layer_norm=True)), rand(T, B, I).requires_grad_()
    leaves, found = [x, *layer.parameters()], []
    for recompute in (False, True):
        layer.recompute = recompute
        out = tensors(layer(x))
        found.append(out + gradients(out, leaves))
    assert_same(*found)

    layer = shaken(make(name, layer_norm=True))
    y, last, parts = None, None, []
    for part in x.split(2):
        y, last = layer(part, None if last is None else state([h.detach() for h in tensors([last])]))
        parts.append(y)
    want = [torch.cat(parts), *tensors([last])]
    layer.bptt = 2
    found = tensors(layer(x))
    leaves = [x, *layer.parameters()]
    assert_same(found + gradients(found, leaves), want + gradients(want, leaves))


@each_layer
def test_zoneout_and_dropouts(name: str) -> None:
    """Held states are held, and h is that of the c before zoneout; weight dropout is torch's."""
    layer, x = shaken(make(name, zoneout=0.3, layer_norm=True)).eval(), rand(1, B, I)
    hx = tensors([initial(layer)])
    plain = copy.deepcopy(layer)
    plain.zoneout = 0.0
    found, new = tensors(layer(x, state(hx))), tensors(plain(x, state(hx)))
    want = [0.3 * old + 0.7 * now for old, now in zip(hx, new[1:], strict=True)]
    assert_same(found, [want[0], *want])

    layer = shaken(make(name, **STACK, recurrent_dropout=0.3, weight_dropout=0.4, layer_norm=True))
    x = rand(T, B, I)
    assert torch.equal(seeded(layer, x)[0], seeded(layer, x)[0])
    assert not torch.equal(layer(x)[0], layer(x)[0])
    layer.recurrent_dropout = 0.0
    found, twin = seeded(layer, x), copy.deepcopy(layer)
    twin.weight_dropout = 0.0
    torch.manual_seed(5)
    with torch.no_grad():
        for n in (n for n in twin._flat_weights_names if n.startswith("weight_hh")):
            getattr(twin, n).copy_(F.dropout(getattr(twin, n), 0.4))
    assert_same(found, tensors(twin(x)))


@each_layer
def test_packed_and_jagged_rows_and_states(name: str) -> None:
    lengths, x = torch.tensor([T, 4, 2]), rand(T, B, I)
    layer = shaken(make(name, **STACK, layer_norm=True, batch_first=True))
    want = tensors(layer(x.transpose(0, 1), lengths=lengths))
    y, last = layer(pack_padded_sequence(x, lengths))
    assert_same([pad_packed_sequence(y, batch_first=True)[0], *tensors([last])], want)
    rows = torch.nested.nested_tensor([x[:n, b] for b, n in enumerate(lengths)], layout=torch.jagged)
    y, last = layer(rows)
    assert_same([y.to_padded_tensor(0.0), *tensors([last])], want)
    *_, states = layer(x.transpose(0, 1), return_states=True)
    assert_same([torch.cat([states.h[2], states.h[3]], -1).transpose(0, 1)], tensors(layer(x.transpose(0, 1)))[:1])


@each_layer
def test_dropout_between_packed_layers(name: str) -> None:
    """There, packed rows go layer by layer."""
    layer, x = shaken(make(name, **STACK, dropout=0.5, layer_norm=True)), rand(T, B, I)
    rows = pack_padded_sequence(x, torch.tensor([T, 4, 2]))
    found = seeded(layer, rows)
    weights = list(layer.parameters())
    for k, inputs in enumerate((I, 2 * H)):
        one = make(name, inputs, H, bidirectional=True, layer_norm=True)
        with torch.no_grad():
            for own, w in zip(one.parameters(), weights[k * len(weights) // 2 :], strict=False):
                own.copy_(w)
        y, _ = one(rows)
        torch.manual_seed(5)
        rows = rows._replace(data=F.dropout(y.data, 0.5))
    assert_same([found[0]], [y.data])


@each_layer
def test_lower_precision_and_autocast(name: str) -> None:
    exact, x = shaken(make(name, 16, 16, **STACK, layer_norm=True)), rand(T, B, 16)
    want = exact(x)[0]
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        found = copy.deepcopy(exact).to(dtype)(x.to(dtype))[0]
        assert found.dtype == dtype
        assert float((found.double() - want).norm() / want.norm()) < 30 * torch.finfo(dtype).eps
    layer, plain = exact.float(), make(name, 16, 16, **STACK).float()
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x.float())
        assert [t.dtype for t in tensors(found)] == [t.dtype for t in tensors(plain(x.float()))]
    assert float((found[0].double() - want).norm() / want.norm()) < 30 * torch.finfo(torch.bfloat16).eps
    found[0].sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in layer.parameters())


@each_layer
def test_functional_is_the_module(name: str) -> None:
    layer, x = shaken(make(name, **STACK, layer_norm=True)), rand(T, B, I)
    function, weights = getattr(fusedrnn.functional, name.lower()), list(layer.parameters())
    options = {"num_layers": 2, "bidirectional": True, "layer_norm": True}
    assert_same(tensors(function(x, None, weights, **options)), tensors(layer(x)))
    with pytest.raises(ValueError, match=r"weights: Expected \d+ tensors, weight_ih, .*weight_ln_hh"):
        function(x, None, weights[:-1], **options)
    with pytest.raises(RuntimeError, match=r"ln_.* of layer 1: Expected size"):
        function(x, None, [*weights[:-1], weights[-1][:-1]], **options)
    with pytest.raises(TypeError, match="layer_norm: Expected True or False, got str"):
        function(x, None, weights, **options | {"layer_norm": "yes"})
