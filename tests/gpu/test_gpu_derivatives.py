"""Second derivatives and torch.func on a GPU, against float64 on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bare import Count
from close import assert_same
from pairs import tensors
from problems import DEVICE, REHEARSAL
from small import LENGTHS, TRITON, B, I, T, against_the_cpu, as_hx, each_backend, each_cell, rand, small, states
from torch import Tensor, nn
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, stack_module_state, vmap

import fusedrnn

pytestmark = pytest.mark.gpu
MEMBERS = 3


@pytest.mark.parametrize(
    ("backend", "options"),
    [
        ("cuda", {}),
        ("cuda", {"layer_norm": True}),
        ("cuda", {"recompute": True}),
        pytest.param("triton", {}, marks=TRITON),
        ("reference", {}),
    ],
    ids=str,
)
@each_cell
def test_gradient_penalty(cell: str, backend: str, options: dict[str, Any]) -> None:
    """To input, states and weights; some rows end early, one has no steps, some start anew."""
    layer = small(cell, backend, bidirectional=True, **options)
    given, reset = [rand(T, B, I), *states(layer)], torch.rand(T, B) < 0.2

    def run(layer: Any, device: str) -> list[Tensor]:
        x, *hx = (t.to(device).requires_grad_() for t in given)
        leaves = [x, *hx, *layer.parameters()]
        outputs = tensors(layer(x, as_hx(hx), lengths=LENGTHS.to(device), reset=reset.to(device)))
        slopes = torch.autograd.grad(sum(t.square().sum() for t in outputs), leaves, create_graph=True)
        return [*slopes, *torch.autograd.grad(sum(t.square().sum() for t in slopes), leaves)]

    against_the_cpu(layer, run)


@pytest.mark.skipif(REHEARSAL, reason="it is cuDNN that has none: torch's op on a CPU has second derivatives")
@pytest.mark.parametrize("package", [nn, fusedrnn], ids=["torch", "cudnn by name"])
def test_cudnn_has_no_second_derivative(package: Any) -> None:
    options = {} if package is nn else {"backend": "cudnn"}
    layer, x = package.GRU(I, 16, device=DEVICE, **options), torch.randn(T, B, I, device=DEVICE, requires_grad=True)
    (slope,) = torch.autograd.grad(layer(x)[0].square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="Double backwards is not supported for CuDNN RNNs"):
        slope.square().sum().backward()


@pytest.mark.parametrize("dims", [(None, 0), (0, None), (0, 0)], ids=["rows", "members", "rows of members"])
@each_backend
@each_cell
def test_outputs_and_gradients_of_each(cell: str, backend: str, dims: tuple[int | None, int | None]) -> None:
    """`vmap(grad(...))` over data, over stacked weights and over both, against a loop; by one call of the kernel."""
    layers = [small(cell, backend, bidirectional=True) for _ in range(MEMBERS)]
    first, x = layers[0], rand(MEMBERS, T, B, I)

    def loss(weights: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        y = functional_call(first, weights, (x,))[0]
        return y.square().sum(), y

    weights = stack_module_state(layers)[0] if dims[0] == 0 else dict(first.named_parameters())
    with Count() as count:
        (dweights, dx), y = vmap(grad(loss, (0, 1), has_aux=True), dims)(
            weights, (x if dims[1] == 0 else x[0]).to(DEVICE)
        )
    if backend == "cuda":
        assert count.seen == ["scan True", "scan_backward"]

    def alone(i: int) -> list[Tensor]:
        layer = layers[i if dims[0] == 0 else 0].cpu()
        layer.backend = "reference"
        leaf = x[i if dims[1] == 0 else 0].clone().requires_grad_()
        y = layer(leaf)[0]
        return [y, *torch.autograd.grad(y.square().sum(), [leaf, *layer.parameters()])]

    found = [t.cpu() for t in (y, dx, *(dweights[name] for name, _ in first.named_parameters()))]
    assert_same(found, [torch.stack(each) for each in zip(*map(alone, range(MEMBERS)), strict=True)])


@each_backend
@each_cell
def test_jacobians_by_every_way(cell: str, backend: str) -> None:
    layer, x, along = small(cell, backend), rand(3, 2, I), rand(3, 2, I)

    def run(x: Tensor) -> Tensor:
        return layer(x)[0]

    x_there = x.to(DEVICE)
    found = [jacrev(run)(x_there), jacfwd(run)(x_there), jvp(run, (x_there,), (along.to(DEVICE),))[1]]
    layer.cpu().backend = "reference"
    want = torch.autograd.functional.jacobian(run, x)
    assert_same([t.cpu() for t in found], [want, want, torch.einsum("abcdef,def->abc", want, along)])
