"""What torch's layers have not, on a GPU: jagged rows without a synchronisation, bptt, frozen."""

from __future__ import annotations

import pytest
import torch
from close import assert_same
from problems import DEVICE, REHEARSAL
from torch import Tensor

import fusedrnn

pytestmark = pytest.mark.gpu
LENGTHS = (5, 0, 9, 1)
BACKENDS = ("cuda", "reference")


def against_the_cpu(layer: torch.nn.Module, call: object) -> None:
    """Outputs and gradients of `call(layer, device)` in float64, on the GPU and by the reference on the CPU."""
    found = [t.cpu() for t in call(layer, DEVICE)]  # type: ignore[operator]
    layer.backend = "reference"
    assert_same(found, call(layer.cpu(), "cpu"))  # type: ignore[operator]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", ["GRU", "LSTM"])
def test_jagged_rows(cell: str, backend: str) -> None:
    layer = getattr(fusedrnn, cell)(
        6, 16, bidirectional=True, batch_first=True, backend=backend, device=DEVICE
    ).double()
    values = torch.randn(sum(LENGTHS), 6, dtype=torch.double)

    def run(layer: torch.nn.Module, device: str) -> list[Tensor]:
        leaf = values.to(device).requires_grad_()
        offsets = torch.tensor([0, *LENGTHS], device=device).cumsum(0)
        x = torch.nested.nested_tensor_from_jagged(leaf, offsets, min_seqlen=0, max_seqlen=9)
        watched = device != "cpu" and not REHEARSAL
        torch.cuda.set_sync_debug_mode("error" if watched else "default")
        try:
            y = layer(x)[0]
            return [y.values(), *torch.autograd.grad(y.values().sum(), [leaf, *layer.parameters()])]
        finally:
            torch.cuda.set_sync_debug_mode("default")

    against_the_cpu(layer, run)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_end_after_k_steps(backend: str) -> None:
    layer = fusedrnn.LSTM(6, 16, bidirectional=True, backend=backend, bptt=4).to(DEVICE).double()
    x, n = torch.randn(9, 4, 6, dtype=torch.double), torch.tensor([9, 0, 5, 8])

    def run(layer: torch.nn.Module, device: str) -> list[Tensor]:
        leaf = x.to(device).requires_grad_()
        y, (h, c) = layer(leaf, lengths=n.to(device))
        return [y, h, c, *torch.autograd.grad((y.sum(), h.sum(), c.sum()), [leaf, *layer.parameters()])]

    against_the_cpu(layer, run)


def test_frozen_gives_the_same_bits() -> None:
    layer = fusedrnn.GRU(6, 16, backend="cuda").to(DEVICE).eval()
    x = torch.randn(3, 4, 6).to(DEVICE)
    with torch.no_grad():
        want = layer(x)[0]
        with fusedrnn.frozen(layer):
            assert all(torch.equal(layer(x)[0], want) for _ in range(3))
