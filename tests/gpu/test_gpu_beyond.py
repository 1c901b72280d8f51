"""What torch's layers have not, on a GPU: jagged rows without a synchronisation."""

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
