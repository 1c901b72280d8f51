"""Zoneout, recurrent dropout and weight dropout: against loops of torch's cells; derivatives, transforms, compilers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from close import assert_same
from noisy_loop import STACK, drawn, each_backend, each_layer, each_noise, loop, make, seeded
from pairs import LAYERS, B, H, I, T, gradients, initial, needs_kernel, rand, tensors
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fusedrnn import ops, philox
from fusedrnn.spec import GRU


def compared(layer: Any, **masks: Tensor) -> None:
    """Values and gradients, of everything, of the layer and of the loop."""
    x = rand(T, B, I).requires_grad_()
    hx = [h.requires_grad_() for h in tensors([initial(layer)])]
    leaves = [x, *hx, *layer.parameters()]
    found = seeded(layer, x, tuple(hx) if len(hx) == 2 else hx[0], **masks)
    torch.manual_seed(5)
    expected = loop(layer, x, hx, **masks)
    assert_same(found + gradients(found, leaves), expected + gradients(expected, leaves))


@each_layer
@each_backend
@each_noise
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_equals_a_loop_of_cells(name: str, backend: str, noise: dict[str, float], training: bool) -> None:
    if backend == "cpu" and name == "RNN" and not training:
        backend = "auto"  # of an RNN's mean the kernel has no gradient
    layer = make(name, **noise, **STACK, backend=backend).train(training)
    compared(layer)
    compared(layer, lengths=torch.tensor([2, T, 0]))
    compared(layer, lengths=torch.tensor([4, T, 1]), reset=torch.rand(T, B) < 0.4)


@each_backend
@pytest.mark.parametrize("zoneout", [(0.4, 0.0), (0.0, 0.4), (0.2, 0.7)])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_h_and_c_have_rates_of_their_own(backend: str, zoneout: tuple[float, float], training: bool) -> None:
    compared(make("LSTM", zoneout=zoneout, backend=backend).train(training))


@each_backend
def test_relu_and_no_bias(backend: str) -> None:
    compared(make("RNN", nonlinearity="relu", zoneout=0.3, recurrent_dropout=0.2, backend=backend))
    layer = make("LSTM", bias=False, zoneout=0.3, recurrent_dropout=0.2, weight_dropout=0.3, backend=backend)
    x, twin = rand(T, B, I), make("LSTM", zoneout=0.3, recurrent_dropout=0.2, weight_dropout=0.3, backend="reference")
    with torch.no_grad():
        for n, p in twin.named_parameters():
            p.copy_(getattr(layer, n)) if n.startswith("weight") else p.zero_()
    assert_same(seeded(layer, x), seeded(twin, x))


@each_noise
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_projected_states(noise: dict[str, float], training: bool) -> None:
    """Zoneout and dropout of h are of the projected one."""
    compared(make("LSTM", proj_size=2, **noise, **STACK).train(training))


def test_extreme_rates() -> None:
    for backend in ("reference", *(["cpu"] if not ops.missing else [])):
        for name in LAYERS:
            layer, x = make(name, zoneout=1, backend=backend), rand(T, B, I)
            hx = initial(layer)
            for trains in (True, False):
                with torch.no_grad():
                    y, last = layer.train(trains)(x, hx)
                first = tensors([hx])
                assert torch.equal(y, first[0].expand(T, B, H))
                assert all(torch.equal(a, b) for a, b in zip(tensors([last]), first, strict=True))
            layer = make(name, recurrent_dropout=1, backend=backend)
            blind = copy.deepcopy(layer)
            blind.recurrent_dropout = 0
            with torch.no_grad():
                blind.weight_hh_l0.zero_()
            assert_same(seeded(layer, x, hx), seeded(blind, x, hx))


@each_backend
@each_layer
def test_a_held_unit_forgets_what_is_not_finite(backend: str, name: str) -> None:
    """A state that overflowed, or a gradient, reaches nothing through a unit that kept its state."""
    layer, x = make(name, zoneout=0.5, backend=backend), rand(1, B, I)
    x[0, 1] = float("nan")
    x.requires_grad_()
    torch.manual_seed(5)
    held = drawn(0.5, philox.new_keys(1, x.device)[0], philox.ZONEOUT_H, 0, B, H)
    y = seeded(layer, x)[0]
    assert torch.equal(y[0, 1].isnan(), ~held[1])
    assert not y[0, [0, 2]].isnan().any()


# Derivatives, transforms, compilers.


@pytest.mark.slow
@each_layer
@each_backend
def test_gradcheck_and_gradgradcheck(name: str, backend: str, one_thread: None) -> None:
    layer = make(name, 2, 3, zoneout=0.3, recurrent_dropout=0.3, weight_dropout=0.2, backend=backend)
    x = rand(3, 2, 2).requires_grad_()
    hx = [h.requires_grad_() for h in tensors([initial(layer, 2)])]
    names = [n for n, _ in layer.named_parameters()]

    def run(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        state, weights = rest[: len(hx)], dict(zip(names, rest[len(hx) :], strict=True))
        torch.manual_seed(5)
        return tuple(tensors(torch.func.functional_call(layer, weights, (x, state if len(hx) == 2 else state[0]))))

    inputs = (x, *hx, *layer.parameters())
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)
    assert torch.autograd.gradcheck(run, inputs, check_forward_ad=True, check_backward_ad=False)


@needs_kernel
@each_noise
def test_every_way_in_draws_the_same(cell: Any, noise: dict[str, float]) -> None:
    """The kernel, the specification, rebuilt gates, another split of the batch's threads: bit for bit one mask."""
    name = {"GRU": "GRU", "LSTM": "LSTM"}.get(cell.mode, "RNN")
    own = {"nonlinearity": cell.mode[4:].lower()} if name == "RNN" else {}
    layer, x = make(name, I, 21, **noise, **STACK, **own), rand(9, 7, I).requires_grad_()
    leaves, found = [x, *layer.parameters()], []
    threads = torch.get_num_threads()
    for backend, recompute, count in (
        ("reference", False, 1),
        ("reference", True, 1),
        ("cpu", False, 1),
        ("cpu", True, 1),
        ("cpu", False, 3),
    ):
        layer.backend, layer.recompute = backend, recompute
        torch.set_num_threads(count)
        out = seeded(layer, x, lengths=torch.tensor([9, 3, 0, 9, 1, 8, 9]))
        found.append(out + gradients(out, leaves))
    torch.set_num_threads(threads)
    for other in found[1:]:
        assert_same(other, found[0])


@each_backend
def test_transforms(backend: str) -> None:
    """vmap draws as torch's dropout does: not at all by default, alike, or each member its own."""
    layer = make("GRU", 3, 8, zoneout=0.4, recurrent_dropout=0.3, backend=backend)
    x, weights = rand(4, T, 2, 3), dict(layer.named_parameters())

    def run(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(layer, weights, (x,))[0]

    with pytest.raises(RuntimeError, match="randomness"):
        torch.func.vmap(run, (None, 0))(weights, x)
    torch.manual_seed(5)
    same = torch.func.vmap(run, (None, 0), randomness="same")(weights, x)
    assert_same([same], [torch.stack([seeded(layer, member)[0] for member in x])])
    alike = x[:1].expand_as(x)
    one, two, *_ = torch.func.vmap(run, (None, 0), randomness="different")(weights, alike)
    assert not torch.equal(one, two)

    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return run(weights, x).square().sum()

    torch.manual_seed(5)
    found = torch.func.vmap(torch.func.grad(loss), (None, 0), randomness="same")(weights, x)
    for i in range(len(x)):
        torch.manual_seed(5)
        want = torch.autograd.grad(loss(weights, x[i]), list(weights.values()))
        assert_same([found[n][i] for n in weights], want)
    torch.manual_seed(5)
    tangent = torch.ones_like(x[0])
    _, forward = torch.func.jvp(lambda x: run(weights, x).sum(), (x[0],), (tangent,))
    leaf = x[0].clone().requires_grad_()
    (back,) = torch.autograd.grad(seeded(layer, leaf)[0].sum(), leaf)
    assert_same([forward], [(back * tangent).sum()])


@needs_kernel
def test_the_op_itself_is_not_mapped_over_with_rates() -> None:
    """More rows would be drawn other masks; opcheck sees that all else of the op is as compilers want it."""
    key, w, gates_x = torch.tensor([1, 2]), rand(2, 12, 4), rand(3, 2, 2, 12)
    rest = (None, None, None, key, [0.3, 0.0, 0.3], GRU.code, 2, True)
    with pytest.raises(NotImplementedError, match="vmap of the op with rates"):
        torch.func.vmap(lambda g: ops.scan(g, None, None, w, None, None, None, *rest))(gates_x.expand(2, 3, 2, 2, 12))
    torch.library.opcheck(ops.scan, (gates_x.requires_grad_(), None, None, w, None, None, None, *rest))


@needs_kernel
def test_many_gradients_of_one_call() -> None:
    layer, x = make("LSTM", 3, 8, zoneout=0.4, recurrent_dropout=0.3, backend="cpu"), rand(T, 2, 3).requires_grad_()
    y = seeded(layer, x)[0]
    upstream = rand(3, *y.shape)
    one_by_one = torch.stack([torch.autograd.grad(y, x, u, retain_graph=True)[0] for u in upstream])
    (batched,) = torch.autograd.grad(y, x, upstream, is_grads_batched=True, retain_graph=True)
    mapped = torch.func.vmap(lambda u: torch.autograd.grad(y, x, u, retain_graph=True)[0])(upstream)
    assert_same([batched, mapped], [one_by_one, one_by_one])


@needs_kernel
@each_layer
@each_noise
def test_compiles_whole(name: str, noise: dict[str, float], fresh_graphs: None) -> None:
    layer, x = make(name, **noise, backend="cpu"), rand(T, B, I).requires_grad_()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    leaves = [x, *layer.parameters()]
    for training in (True, False):
        if name == "RNN" and not training:
            continue  # the kernel has no gradient of its mean
        layer.train(training)
        found, want = (seeded(f, x) for f in (compiled, layer))
        assert_same(found + gradients(found, leaves), want + gradients(want, leaves))
    with torch.no_grad():
        assert_same(seeded(compiled, x), seeded(layer, x))


@needs_kernel
@pytest.mark.slow
def test_inductor_draws_anew_and_by_the_seed(fresh_graphs: None) -> None:
    layer, x = make("GRU", zoneout=0.5, recurrent_dropout=0.2, backend="cpu"), rand(T, B, I)
    compiled = torch.compile(layer, fullgraph=True)
    first, second = seeded(compiled, x)[0], compiled(x)[0]
    assert not torch.equal(first, second)
    assert torch.equal(seeded(compiled, x)[0], first)


@each_backend
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint_draws_again_what_it_drew(backend: str, reentrant: bool) -> None:
    layer = make("LSTM", zoneout=0.4, recurrent_dropout=0.3, weight_dropout=0.2, backend=backend)
    x = rand(T, B, I).requires_grad_()
    found = []
    for run in (lambda: layer(x)[0], lambda: checkpoint(lambda x: layer(x)[0], x, use_reentrant=reentrant)):
        torch.manual_seed(5)
        run().square().sum().backward()
        found.append([p.grad.clone() for p in (x, *layer.parameters())])
        for p in (x, *layer.parameters()):
            p.grad = None
    assert_same(*found)
