"""torch.func over layers (per-sample gradients, ensembles, Jacobians, Hessians, forward mode), and checkpointing."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from bare import B, Bare, Count, H, I, T, initial, label
from close import assert_same
from pairs import needs_kernel
from torch import Tensor
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from fusedrnn import ops
from fusedrnn.spec import GRU, LSTM, RNN_TANH, CellSpec

pytestmark = needs_kernel
DOUBLE = torch.double
MEMBERS = 3
LENGTHS = torch.tensor([[6, 2, 0], [1, 2, 3], [4, 5, 6]])


def members(spec: CellSpec, **options: Any) -> list[Bare]:
    return [Bare(spec, **options, backend="cpu").double() for _ in range(MEMBERS)]


def named(layer: Bare) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in layer.named_parameters()}


@pytest.mark.parametrize("spec", [GRU, LSTM, RNN_TANH], ids=lambda spec: spec.name)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_vmap_of_any_mix_of_batched_arguments(spec: CellSpec, bidirectional: bool) -> None:
    layers = members(spec, num_layers=2, bidirectional=bidirectional)
    params, _ = stack_module_state(layers)
    x, reset = torch.randn(MEMBERS, T, B, I, dtype=DOUBLE), torch.rand(MEMBERS, T, B) < 0.3
    hx = tuple(torch.stack([h] * MEMBERS) for h in initial(layers[0]))

    def call(p: Any, x: Any, lengths: Any, reset: Any, hx: Any) -> Tensor:
        return functional_call(layers[0], p, (x, lengths, reset, hx))[0]

    def one(i: int, j: int) -> Tensor:
        return layers[i](x[j], LENGTHS[j], reset[j], tuple(h[j] for h in hx))[0]

    found = vmap(call, (0, None, None, None, None))(params, x[0], LENGTHS[0], reset[0], tuple(h[0] for h in hx))
    assert_same([found], [torch.stack([one(i, 0) for i in range(MEMBERS)])])
    found = vmap(call, out_dims=2)(params, x, LENGTHS, reset, hx)
    assert_same([found], [torch.stack([one(i, i) for i in range(MEMBERS)], 2)])
    inner = vmap(call, (None, 0, 0, 0, 0))
    found = vmap(inner, (0, None, None, None, None))(params, x, LENGTHS, reset, hx)
    assert_same([found], [torch.stack([torch.stack([one(i, j) for j in range(MEMBERS)]) for i in range(MEMBERS)])])


@pytest.mark.parametrize(
    ("spec", "bidirectional", "recompute"),
    [(GRU, False, False), (GRU, True, True), (LSTM, True, False), (LSTM, False, True), (RNN_TANH, True, False)],
    ids=label,
)
@pytest.mark.parametrize("dims", [(None, 0, 0, 0), (0, None, None, None), (0, 0, 0, 0), (0, None, 0, None)], ids=str)
def test_gradients_of_every_member(
    spec: CellSpec, bidirectional: bool, recompute: bool, dims: tuple[int | None, ...]
) -> None:
    """Per-sample gradients (x batched), ensembles (weights batched), both, and masks of either kind."""
    layers = members(spec, bidirectional=bidirectional)
    params, _ = stack_module_state(layers)
    x, reset = torch.randn(MEMBERS, T, B, I, dtype=DOUBLE), torch.rand(MEMBERS, T, B) < 0.3
    given = [t if d == 0 else t[0] for t, d in zip((x, LENGTHS, reset), dims[1:], strict=True)]
    p = params if dims[0] == 0 else named(layers[0])

    def loss(p: Any, x: Tensor, lengths: Tensor, reset: Tensor) -> Tensor:
        return functional_call(layers[0], p, (x, lengths, reset, None, recompute))[0].pow(2).sum()

    with Count() as count:
        found, dx = vmap(grad(loss, (0, 1)), dims)(p, *given)
    assert [name.split()[0] for name in count.seen] == ["scan", "scan_backward"], "one call for all members"
    for i in range(MEMBERS):
        own = layers[i if dims[0] == 0 else 0]
        args = [t[i] if d == 0 else t for t, d in zip(given, dims[1:], strict=True)]
        args[0] = args[0].detach().requires_grad_()
        leaves = [args[0], *own.parameters()]
        want = torch.autograd.grad(own(*args)[0].pow(2).sum(), leaves)
        assert_same([dx[i], *(found[name][i] for name, _ in own.named_parameters())], want)


def test_vmap_of_biases_alone() -> None:
    layers = members(GRU, bidirectional=True)
    params, x = named(layers[0]), torch.randn(T, B, I, dtype=DOUBLE)
    for part in ("bias_hh", "bias_ih", "weight_ih"):
        mixed = {k: torch.stack([named(m)[k] for m in layers]) if part in k else t for k, t in params.items()}
        dims = {k: 0 if part in k else None for k in params}
        found = vmap(lambda p: functional_call(layers[0], p, (x,))[0], (dims,))(mixed)
        each = [{k: t[i] if part in k else t for k, t in mixed.items()} for i in range(MEMBERS)]
        assert_same([found], [torch.stack([functional_call(layers[0], p, (x,))[0] for p in each])])


@pytest.mark.parametrize("recompute", [False, True])
def test_vmap_inside_ordinary_autograd(recompute: bool) -> None:
    layer = Bare(GRU, recompute=recompute, backend="cpu").double()
    x = torch.randn(7, T, B, I, dtype=DOUBLE)
    leaves = list(layer.parameters())
    found = torch.autograd.grad(vmap(lambda x: layer(x)[0])(x).pow(2).sum(), leaves)
    assert_same(found, torch.autograd.grad(sum(layer(v)[0].pow(2).sum() for v in x), leaves))


def test_vmap_over_backward_of_a_layer_that_ran_outside() -> None:
    layer = Bare(LSTM, bidirectional=True, backend="cpu").double()
    x, ups = torch.randn(T, B, I, dtype=DOUBLE, requires_grad=True), torch.randn(4, T, B, 2 * H, dtype=DOUBLE)
    y = layer(x)[0]
    want = torch.stack([torch.autograd.grad(y, x, up, retain_graph=True)[0] for up in ups])
    assert_same([vmap(lambda up: torch.autograd.grad(y, x, up, retain_graph=True)[0])(ups)], [want])
    assert_same(torch.autograd.grad(y, x, ups, is_grads_batched=True), [want])


def test_vmap_without_gradients_keeps_nothing() -> None:
    layer, x = Bare(GRU, backend="cpu"), torch.randn(7, T, B, I)
    with torch.no_grad(), Count() as count:
        vmap(lambda x: layer(x)[0])(x)
    assert count.seen == ["scan False"]


def test_jacobians() -> None:
    layer, x = Bare(GRU, 3, 3, backend="cpu").double(), torch.randn(3, 2, 3, dtype=DOUBLE)
    stock, f = layer.twin(), lambda x: layer(x)[0]
    want = torch.autograd.functional.jacobian(lambda x: stock(x)[0], x)
    for found in (jacrev(f)(x), jacfwd(f)(x), torch.autograd.functional.jacobian(f, x, vectorize=True)):
        assert_same([found], [want])


@pytest.mark.parametrize("spec", [GRU, LSTM], ids=lambda spec: spec.name)
def test_hessians(spec: CellSpec) -> None:
    layer, x = Bare(spec, 3, 3, backend="cpu").double(), torch.randn(3, 2, 3, dtype=DOUBLE)
    stock, f = layer.twin(), lambda x: layer(x)[0].pow(2).sum()
    want = torch.autograd.functional.hessian(lambda x: stock(x)[0].pow(2).sum(), x)
    ways = (hessian(f), jacrev(jacrev(f)), jacrev(jacfwd(f)))
    for found in (*(way(x) for way in ways), torch.autograd.functional.hessian(f, x, vectorize=True)):
        assert_same([found], [want])
    product = torch.einsum("abcdef,def->abc", want, x)
    assert_same([jvp(grad(f), (x,), (x,))[1]], [product])
    assert_same([vjp(grad(f), x)[1](x)[0]], [product])
    assert_same([grad(lambda x: jvp(f, (x,), (torch.ones_like(x),))[1])(x)], [want.sum((3, 4, 5))])


def test_projection_under_vmap_and_jvp() -> None:
    """Where no kernel reaches, the reference does."""
    layer = Bare(LSTM, proj_size=2).double()
    x = torch.randn(4, T, B, I, dtype=DOUBLE)
    assert_same([vmap(lambda x: layer(x)[0])(x)], [torch.stack([layer(v)[0] for v in x])])
    found = jvp(lambda x: layer(x)[0], (x[0],), (x[1],))[1]
    assert_same([found], [torch.einsum("abcdef,def->abc", jacrev(lambda x: layer.twin()(x)[0])(x[0]), x[1])])


@pytest.mark.parametrize(("how", "runs"), [("reentrant", 2), ("hooks", 2), ("selective", 1)])
@pytest.mark.parametrize("recompute", [False, True])
def test_checkpoint(how: str, runs: int, recompute: bool) -> None:
    layer = Bare(LSTM, bidirectional=True, recompute=recompute, backend="cpu").double()
    x = torch.randn(T, B, I, dtype=DOUBLE, requires_grad=True)

    def policy(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        return CheckpointPolicy.MUST_SAVE if op is ops.layer else CheckpointPolicy.PREFER_RECOMPUTE

    extra = {}
    if how == "selective":
        extra["context_fn"] = functools.partial(create_selective_checkpoint_contexts, policy)
    with Count() as count:
        checkpoint(lambda x: layer(x)[0], x, use_reentrant=how == "reentrant", **extra).pow(2).sum().backward()
    names = [name.split()[0] for name in count.seen]
    backward = ["layer", "layer_backward"] * 2 if recompute else ["layer_backward"]  # a piece of each direction
    assert names == ["layer"] * runs + backward
    leaves = [x, *layer.parameters()]
    found = [t.grad for t in leaves]
    assert_same(found, torch.autograd.grad(layer(x)[0].pow(2).sum(), leaves))
