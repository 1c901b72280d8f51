"""Products in the layers' own precision: which one is taken, and that the op's formula is that of a product."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from close import assert_same
from torch import Tensor
from torch.library import Library, opcheck
from torch.nn import functional as F

from fusedrnn import backends, ops, products

ASKED: list[bool] = []


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The op `product` for CPU tensors, and taken; what it is told about TF32 goes to ASKED."""

    def product(a: Tensor, b: Tensor, tf32: bool) -> Tensor:
        ASKED.append(tf32)
        return torch.mm(a, b)

    library = Library("fusedrnn", "IMPL")
    library.impl("product", product, "CPU")
    monkeypatch.setattr(products, "_differs", lambda t, route: True)
    ASKED.clear()
    yield
    library._destroy()


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("route", [0, products.ALLOW_TF32])
def test_equals_torchs_products_and_hands_the_precision_on(route: int) -> None:
    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.double, requires_grad=True)

    x, w, b, p, q = draw(5, 3, 4), draw(6, 4), draw(6), draw(2, 3, 4), draw(2, 4, 5)
    for found, want in (
        (products.linear(x, w, b, route), F.linear(x, w, b)),
        (products.linear(x, w, None, route), F.linear(x, w)),
        (products.matmul(p, q, route), p @ q),
        (products.matmul(p[0], q[0], route), p[0] @ q[0]),
    ):
        assert_same([found], [want])
        used = torch.autograd.grad(want.sum(), (x, w, b, p, q), allow_unused=True, retain_graph=True)
        leaves = [t for t, grad in zip((x, w, b, p, q), used, strict=True) if grad is not None]
        upstream = torch.randn_like(want)
        assert_same(torch.autograd.grad(found, leaves, upstream), torch.autograd.grad(want, leaves, upstream))
    assert ASKED
    assert set(ASKED) == {bool(route)}, "the gradient's products are not told"


@pytest.mark.usefixtures("on_cpu")
def test_the_op_holds_torchs_rules() -> None:
    a, b = torch.randn(3, 4, requires_grad=True), torch.randn(4, 2, requires_grad=True)
    opcheck(ops.product, (a, b, True))


def test_the_op_is_taken_where_the_two_flags_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnGpu:
        is_cuda, dtype = True, torch.float32

    on_gpu, half = OnGpu(), OnGpu()
    half.dtype = torch.bfloat16
    monkeypatch.setattr(ops, "cuda_missing", None)
    for of_torch in (False, True):
        monkeypatch.setattr(products, "_torch_allows_tf32", lambda allowed=of_torch: allowed)
        for of_layers in (0, products.ALLOW_TF32):
            assert products._differs(on_gpu, 3 | of_layers) == (bool(of_layers) != of_torch)
            assert not products._differs(half, of_layers)
            assert not products._differs(torch.zeros(1), of_layers)
    monkeypatch.setattr(ops, "cuda_missing", "no nvcc")
    assert not products._differs(on_gpu, 0)  # there is no such op


def test_route(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("cuda", "cuda:step", "cuda:cta", "cuda:grid", "triton", "triton:resident", "triton:step")
    assert [backends.route(name, torch.bfloat16) for name in names] == [0, 1, 2, 4, 16, 17, 20]
    before = torch.backends.cudnn.rnn.fp32_precision
    try:
        for precision, bit in (("tf32", products.ALLOW_TF32), ("ieee", 0)):
            torch.backends.cudnn.rnn.fp32_precision = precision
            assert backends.route("cuda:cluster", torch.float32) == 3 | bit
            assert backends.route("cuda:cluster", torch.float64) == 3
            assert backends.route("triton", torch.float32) == 16 | bit
    finally:
        torch.backends.cudnn.rnn.fp32_precision = before
