"""The Triton kernels on the GPU against float64 on the CPU: few shapes, for each has to be compiled first."""

from __future__ import annotations

import close
import problems
import pytest
import torch
from problems import DEVICE, DTYPES, REHEARSAL, Case
from test_gpu_parity import compare, name
from torch import Tensor

import fusedrnn
from fusedrnn.errors import UnsupportedProblem

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(REHEARSAL, reason="tests/triton interprets these kernels")]
CELLS = ("GRU", "LSTM", "RNN_tanh", "RNN_relu")
T = 20


def check(case: Case, backend: str, kind: str, packed: bool = False) -> None:
    """One backend and dtype; skipped where the regime asked for does not take it."""
    problem = problems.make(case)
    dtype, allowed = DTYPES[kind]
    with problems.products(allowed):
        layer = problems.fused(problem, backend, dtype)
        told = fusedrnn.explain(layer, problem.x.to(DEVICE, dtype), **problem.masks)
        try:
            found = problems.results(problem, layer, packed)
        except UnsupportedProblem as refusal:
            pytest.skip(f"this GPU: {refusal}")
        assert told.chosen == backend, told
        compare(found, problems.truth(problem), problems.torchs(problem, dtype))


@pytest.mark.parametrize("kind", ["bf16", "tf32", "fp32", "fp16", "fp64"])
@pytest.mark.parametrize("cell", CELLS)
def test_as_planned(cell: str, kind: str) -> None:
    check(Case(cell, T, 5, 24, 60, D=2, lengths=True), "triton", kind)


@pytest.mark.parametrize("regime", ["resident", "streamed", "step", "grid"])
@pytest.mark.parametrize("cell", CELLS)
def test_regimes(cell: str, regime: str) -> None:
    check(Case(cell, T, 20, 24, 256 if regime == "grid" else 100, lengths=True, reset=True), f"triton:{regime}", "bf16")


WIDE = (
    Case("GRU", T, 16, 64, 512),
    Case("LSTM", T, 16, 64, 512, D=2),
    Case("GRU", T, 64, 64, 1024),
    Case("LSTM", T, 3, 64, 1024),
    Case("GRU", T, 9, 33, 200, recompute=True),
    Case("RNN_tanh", T, 16, 64, 512),
)


@pytest.mark.parametrize("case", WIDE, ids=name)
def test_wide(case: Case) -> None:
    check(case, "triton", "bf16")


@pytest.mark.parametrize("cell", ["GRU", "LSTM"])
def test_packed_rows(cell: str) -> None:
    check(Case(cell, 13, 6, 24, 64, D=2, lengths=True), "triton", "bf16", packed=True)


def _layer(backend: str, H: int, cell: str = "GRU") -> tuple[torch.nn.Module, Tensor]:
    layer = getattr(fusedrnn, cell)(H, H, backend=backend, device=DEVICE, dtype=torch.bfloat16)
    x = torch.randn(T, 16, H, device=DEVICE, dtype=torch.bfloat16, generator=torch.Generator(DEVICE).manual_seed(0))
    told = fusedrnn.explain(layer, x)
    if told.chosen is None:
        pytest.skip(f"this GPU: {told.refusal}")
    return layer, x


ONE_OF_EACH = [("triton:resident", 128), ("triton:streamed", 128), ("triton:step", 128), ("triton:grid", 512)]


@pytest.mark.parametrize(("backend", "H"), ONE_OF_EACH)
def test_the_same_bits_a_hundred_times(backend: str, H: int) -> None:
    layer, x = _layer(backend, H)

    def step() -> list[Tensor]:
        leaf = x.detach().requires_grad_()
        y = layer(leaf)[0]
        return [y.detach(), *torch.autograd.grad(y, [leaf, *layer.parameters()], torch.ones_like(y))]

    first = step()
    assert not any(t.isnan().any() for t in first)
    assert all(torch.equal(a, b) for _ in range(100) for a, b in zip(step(), first, strict=True))


@pytest.mark.parametrize(("backend", "H"), ONE_OF_EACH)
def test_thousands_of_steps(backend: str, H: int) -> None:
    layer, x = _layer(backend, H)
    x = x[:1].expand(4096, -1, -1).contiguous()
    with torch.no_grad():
        y = layer(x)[0]
        assert torch.equal(y, layer(x)[0])
        layer.backend = "reference"
        want = layer(x[:64])[0]
    torch.testing.assert_close(y[:64], want, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(("backend", "H"), ONE_OF_EACH)
def test_captured_and_replayed(backend: str, H: int) -> None:
    layer, x = _layer(backend, H)
    given = x.clone()
    with torch.no_grad():
        layer(given)  # compiled before the capture
        graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            layer(given)
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph):
            y = layer(given)[0]
        for seed in range(3):
            given.copy_(torch.randn(x.shape, device=DEVICE, generator=torch.Generator(DEVICE).manual_seed(seed)))
            graph.replay()
            torch.cuda.synchronize()
            assert torch.equal(y, layer(given)[0])


def test_compiled() -> None:
    layer, x = _layer("triton", 64)
    compiled = torch.compile(layer, fullgraph=True)
    with torch.no_grad():
        close.assert_same([compiled(x)[0].double()], [layer(x)[0].double()])
