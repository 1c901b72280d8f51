"""Zoneout, dropouts and layer normalisation inside the loop, on a GPU: without the host, drawn anew in each replay."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from close import assert_no_worse
from problems import DEVICE, REHEARSAL
from torch import Tensor

import fusedrnn

NOISES = ({"zoneout": 0.4}, {"recurrent_dropout": 0.4}, {"weight_dropout": 0.4})
each_noise = pytest.mark.parametrize("noise", NOISES, ids=lambda noise: next(iter(noise)))
each_kind = pytest.mark.parametrize("noise", [*NOISES, {"layer_norm": True}], ids=lambda noise: next(iter(noise)))


def start(cell: str, noise: dict[str, Any]) -> tuple[Any, Tensor]:
    """On the backend that takes them on a GPU; in a rehearsal "auto" would take another."""
    layer = getattr(fusedrnn, cell)(
        5, 16, num_layers=2, bidirectional=True, device=DEVICE, backend="reference", **noise
    )
    return layer, torch.randn(6, 3, 5, device=DEVICE)


@each_kind
@pytest.mark.parametrize("cell", ["GRU", "LSTM", "RNN"])
def test_nothing_is_read_on_the_host(cell: str, noise: dict[str, float]) -> None:
    layer, x = start(cell, noise)
    layer(x)[0].sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        layer(x)[0].sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@each_noise
@pytest.mark.parametrize("cell", ["GRU", "LSTM", "RNN"])
@pytest.mark.skipif(REHEARSAL, reason="a CPU has no graphs")
def test_a_graph_draws_anew_at_each_replay(cell: str, noise: dict[str, float]) -> None:
    layer, x = start(cell, noise)
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


@each_noise
def test_the_seed_of_the_device_makes_it_again(noise: dict[str, float]) -> None:
    layer, x = start("LSTM", noise)
    found = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        found.append(layer(x)[0].detach())
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize("cell", ["GRU", "LSTM", "RNN"])
def test_layer_norm_is_as_exact_as_on_the_host(cell: str) -> None:
    layer, x = start(cell, {"layer_norm": True})

    def run(layer: Any, x: Tensor) -> dict[str, Tensor]:
        y = layer(x)[0]
        y.square().sum().backward()
        return {"y": y.cpu()} | {name: p.grad.cpu() for name, p in layer.named_parameters()}

    host = copy.deepcopy(layer).cpu()
    truth = run(copy.deepcopy(host).double(), x.cpu().double())
    assert_no_worse(run(layer, x), truth, run(host, x.cpu()))


def test_the_same_key_draws_the_same_on_the_host() -> None:
    key = torch.tensor([11, 2**32 - 7])
    for rate, kind in ((0.3, 0), (0.5, 1), (0.9, 2)):
        there = fusedrnn.philox.happens(rate, kind, key.to(DEVICE), 5, 2, 3, 13)
        assert torch.equal(there.cpu(), fusedrnn.philox.happens(rate, kind, key, 5, 2, 3, 13))
