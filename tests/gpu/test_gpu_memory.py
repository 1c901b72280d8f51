"""`recompute` on a GPU: the gradients of a layer that keeps its gates, noise included, and what it does not keep."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from close import assert_same
from pairs import tensors
from problems import DEVICE, REHEARSAL
from small import LENGTHS, TRITON, B, I, T, each_cell, each_kernel, rand, small
from torch import Tensor

import fusedrnn

pytestmark = pytest.mark.gpu
NOISES = ({}, {"zoneout": 0.4}, {"recurrent_dropout": 0.4}, {"weight_dropout": 0.4})


@pytest.mark.parametrize(
    ("backend", "noise"),
    [
        *itertools.product(("cuda", "reference"), NOISES),
        pytest.param("triton", {"recurrent_dropout": 0.4}, marks=TRITON),
    ],
    ids=str,
)
@each_cell
def test_recompute_gives_the_same_gradients(cell: str, backend: str, noise: dict[str, Any]) -> None:
    """With the same masks, which are drawn once a call: the generator has moved on when backward runs."""
    layer = small(cell, backend, num_layers=2, bidirectional=True, **noise)
    x, reset = rand(T, B, I).to(DEVICE), (torch.rand(T, B) < 0.2).to(DEVICE)

    def run(recompute: bool) -> list[Tensor]:
        layer.recompute = recompute
        torch.manual_seed(5)
        leaf = x.detach().requires_grad_()
        outputs = tensors(layer(leaf, lengths=LENGTHS.to(DEVICE), reset=reset))
        torch.rand(3, device=DEVICE)
        gradients = torch.autograd.grad(sum(t.square().sum() for t in outputs), [leaf, *layer.parameters()])
        return [t.cpu() for t in (*outputs, *gradients)]

    assert_same(run(True), run(False))


@pytest.mark.skipif(REHEARSAL, reason="a CPU's allocator does not count")
@each_kernel
@pytest.mark.parametrize("cell", ["GRU", "LSTM"])
def test_recompute_keeps_the_states_alone(cell: str, backend: str) -> None:
    """Beyond input and output at most 0.3 of what is kept with the gates: nothing of a GRU, of an LSTM c."""
    torch.use_deterministic_algorithms(False)  # which fill memory, and may take some for it
    layer = getattr(fusedrnn, cell)(64, 64, device=DEVICE, backend=backend)
    x = torch.randn(128, 64, 64, device=DEVICE)

    def kept(recompute: bool) -> int:
        layer.recompute = recompute
        layer(x)  # what stays, a library's workspace, is no part of a call
        before = torch.cuda.memory_allocated()
        outputs = tensors(layer(x))
        return torch.cuda.memory_allocated() - before - sum(t.nbytes for t in outputs)

    lean, whole = kept(True), kept(False)
    assert whole >= 4 * 128 * 64 * 64 * 4, "the gates of all steps"
    assert lean <= 0.3 * whole, f"{lean / 2**20:.2f} MiB of {whole / 2**20:.2f}"
