"""Zoneout and dropouts inside the loop, on a GPU: drawn without the host, and anew at each replay of a graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from problems import DEVICE, REHEARSAL
from torch import Tensor

import fusedrnn

NOISES = ({"zoneout": 0.4}, {"recurrent_dropout": 0.4}, {"weight_dropout": 0.4})
each_noise = pytest.mark.parametrize("noise", NOISES, ids=lambda noise: next(iter(noise)))


TRITON = pytest.mark.skipif(REHEARSAL, reason="tests/triton interprets these kernels")
each_backend = pytest.mark.parametrize("backend", ["reference", pytest.param("triton", marks=TRITON)])


def start(cell: str, noise: dict[str, float], backend: str) -> tuple[Any, Tensor]:
    layer = getattr(fusedrnn, cell)(5, 16, num_layers=2, bidirectional=True, device=DEVICE, backend=backend, **noise)
    return layer, torch.randn(6, 3, 5, device=DEVICE)


@each_backend
@each_noise
@pytest.mark.parametrize("cell", ["GRU", "LSTM", "RNN"])
def test_nothing_is_read_on_the_host(cell: str, noise: dict[str, float], backend: str) -> None:
    layer, x = start(cell, noise, backend)
    layer(x)[0].sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        layer(x)[0].sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@each_backend
@each_noise
@pytest.mark.parametrize("cell", ["GRU", "LSTM", "RNN"])
@pytest.mark.skipif(REHEARSAL, reason="a CPU has no graphs")
def test_a_graph_draws_anew_at_each_replay(cell: str, noise: dict[str, float], backend: str) -> None:
    layer, x = start(cell, noise, backend)
    side = torch.cuda.Stream()
    with torch.no_grad():
        with torch.cuda.stream(side):
            layer(x)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = layer(x)[0]
        replays = []
        for _ in range(2):
            graph.replay()
            replays.append(y.clone())
    assert not torch.equal(*replays)
    assert all(r.isfinite().all() for r in replays)


@each_backend
@each_noise
def test_the_seed_of_the_device_makes_it_again(noise: dict[str, float], backend: str) -> None:
    layer, x = start("LSTM", noise, backend)
    found = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        found.append(layer(x)[0].detach())
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@TRITON
@pytest.mark.parametrize("cell", ["GRU", "LSTM", "RNN"])
@pytest.mark.parametrize("regime", ["resident", "streamed", "step", "grid"])
def test_triton_draws_the_references_masks(cell: str, regime: str) -> None:
    """From one seed the same outputs and gradients, to rounding; held units show a mask that differs at once."""
    noise = {"zoneout": 0.4} if regime == "grid" else {"zoneout": 0.4, "recurrent_dropout": 0.4}
    layer, x = start(cell, noise, f"triton:{regime}")
    layer, x, found = layer.half(), x.half().requires_grad_(), []
    for backend in (f"triton:{regime}", "reference"):
        layer.backend = backend
        torch.manual_seed(3)
        y = layer(x)[0]
        found.append([y, *torch.autograd.grad(y.float().square().sum(), [x, *layer.parameters()])])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.05)


def test_the_same_key_draws_the_same_on_the_host() -> None:
    key = torch.tensor([11, 2**32 - 7])
    for rate, kind in ((0.3, 0), (0.5, 1), (0.9, 2)):
        there = fusedrnn.philox.happens(rate, kind, key.to(DEVICE), 5, 2, 3, 13)
        assert torch.equal(there.cpu(), fusedrnn.philox.happens(rate, kind, key, 5, 2, 3, 13))
