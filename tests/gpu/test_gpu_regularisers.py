"""Zoneout, dropouts, layer normalisation and states that resets go back to, on a GPU: without the host, drawn anew in
each replay."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from close import assert_no_worse, assert_same
from normed_loop import shaken
from problems import DEVICE, DTYPES, REHEARSAL, exact, products
from torch import Tensor

import fusedrnn

NOISES = ({"zoneout": 0.4}, {"recurrent_dropout": 0.4}, {"weight_dropout": 0.4})
each_noise = pytest.mark.parametrize("noise", NOISES, ids=lambda noise: next(iter(noise)))
TRITON = pytest.mark.skipif(REHEARSAL, reason="tests/triton interprets these kernels")
each_backend = pytest.mark.parametrize("backend", ["cuda", pytest.param("triton", marks=TRITON), "reference"])
KERNELS = ["cuda", *(pytest.param(name, marks=TRITON) for name in ("triton", "triton:streamed", "triton:step"))]


def start(cell: str, noise: dict[str, float], backend: str) -> tuple[Any, Tensor]:
    layer = getattr(fusedrnn, cell)(5, 16, num_layers=2, bidirectional=True, device=DEVICE, backend=backend, **noise)
    return layer, torch.randn(6, 3, 5, device=DEVICE)


@pytest.mark.parametrize("cell", ["GRU", "LSTM", "RNN"])
@pytest.mark.parametrize("backend", ["cuda", "reference"])
def test_layer_norm_reads_nothing_on_the_host(backend: str, cell: str) -> None:
    no_reads(*start(cell, {"layer_norm": True}, backend))


@each_noise
@each_backend
@pytest.mark.parametrize("cell", ["GRU", "LSTM", "RNN"])
def test_nothing_is_read_on_the_host(cell: str, noise: dict[str, float], backend: str) -> None:
    no_reads(*start(cell, noise, backend))


def no_reads(layer: Any, x: Tensor) -> None:
    layer(x)[0].sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        layer(x)[0].sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@each_noise
@each_backend
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


@each_noise
@each_backend
def test_the_seed_of_the_device_makes_it_again(noise: dict[str, float], backend: str) -> None:
    layer, x = start("LSTM", noise, backend)
    found = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        found.append(layer(x)[0].detach())
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize("kind", [kind for kind in DTYPES if kind != "tf32"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("cell", ["GRU", "LSTM", "RNN"])
@pytest.mark.parametrize("kernels", KERNELS)
def test_the_kernels_give_what_the_reference_gives(kernels: str, cell: str, training: bool, kind: str) -> None:
    """With the same key: outputs and every gradient, by the reference's own error, which there is none of in TF32."""
    compare(kernels, cell, training, kind, {"recurrent_dropout": 0.4})


@TRITON
@pytest.mark.parametrize("cell", ["GRU", "LSTM", "RNN"])
@pytest.mark.parametrize("kernels", ["triton:resident", "triton:grid"])
def test_kernels_that_hold_the_weights_do_so_with_noise(kernels: str, cell: str) -> None:
    """In 16 bits, and over the whole GPU without dropout: what else they refuse."""
    compare(kernels, cell, True, "fp16", {} if kernels == "triton:grid" else {"recurrent_dropout": 0.4})


@pytest.mark.parametrize("kind", [kind for kind in DTYPES if kind != "tf32"])
@pytest.mark.parametrize("noise", [{}, {"zoneout": 0.3, "recurrent_dropout": 0.4}], ids=["plain", "noise"])
@pytest.mark.parametrize("cell", ["GRU", "LSTM", "RNN"])
def test_layer_norm_in_the_kernels(cell: str, noise: dict[str, float], kind: str) -> None:
    """One layer from given states, cuts in float64 alone: else single errors, the reference's too, hang on the draw."""
    options: dict[str, Any] = {"bidirectional": True, "device": DEVICE, "backend": "cuda"}
    layer = shaken(getattr(fusedrnn, cell)(5, 32, layer_norm=True, **options, **noise))
    states = [exact(torch.randn(2, 3, 32)) for _ in range(2 if cell == "LSTM" else 1)]
    agree(layer, "cuda", kind, exact(torch.randn(6, 3, 64)), states, cuts=kind == "fp64")


@pytest.mark.parametrize("kind", [kind for kind in DTYPES if kind != "tf32"])
@pytest.mark.parametrize("noise", [{}, {"zoneout": 0.3, "recurrent_dropout": 0.4}], ids=["plain", "noise"])
@pytest.mark.parametrize("cell", ["GRU", "LSTM", "RNN"])
def test_resets_go_back_to_a_state_in_the_kernels(cell: str, noise: dict[str, float], kind: str) -> None:
    """Of one layer, with H that is padded and, in float64 alone, normalised: see above."""
    options: dict[str, Any] = {"bidirectional": True, "device": DEVICE, "backend": "cuda"}
    for H, more in ((29, {}), (32, {"layer_norm": True}))[: 1 + (kind == "fp64")]:
        layer = shaken(getattr(fusedrnn, cell)(5, H, **options, **noise, **more))
        starts = [exact(torch.randn(2, H)) for _ in range(2 if cell == "LSTM" else 1)]
        agree(layer, "cuda", kind, exact(torch.randn(6, 3, 2 * H)), starts=starts)


def compare(kernels: str, cell: str, training: bool, kind: str, noise: dict[str, float]) -> None:
    layer, _ = start(cell, noise | {"zoneout": 0.3 * (training or cell != "RNN")}, kernels)
    agree(layer.train(training), kernels, kind, torch.ones(6, 3, 32))


def agree(
    layer: Any,
    kernels: str,
    kind: str,
    upstream: Tensor,
    states: Sequence[Tensor] = (),
    cuts: bool = True,
    starts: Sequence[Tensor] = (),
) -> None:
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(exact(p))
    x, lengths = exact(torch.randn(6, 3, 5)), torch.tensor([6, 0, 4], device=DEVICE)
    reset = (torch.rand(6, 3) < 0.3).to(DEVICE) if cuts else None
    dtype, allowed = DTYPES[kind]

    def run(backend: str, dtype: torch.dtype) -> dict[str, Tensor]:
        layer.to(dtype).backend = backend
        torch.manual_seed(5)
        leaf, *given = (t.to(DEVICE, dtype).requires_grad_() for t in (x, *states, *starts))
        hx, back = (
            (some[0] if len(some) == 1 else tuple(some)) if some else None
            for some in (given[: len(states)], given[len(states) :])
        )
        y = layer(leaf, hx, lengths=lengths, reset=reset, reset_state=back)[0]
        gradients = torch.autograd.grad(y, [leaf, *given, *layer.parameters()], upstream.to(DEVICE, dtype))
        return {str(i): t.detach().cpu() for i, t in enumerate((y, *gradients))}

    with products(allowed):
        truth, near, found = run("reference", torch.float64), run("reference", dtype), run(kernels, dtype)
    if dtype is torch.float64:
        assert_same(list(found.values()), list(truth.values()))
    else:
        assert_no_worse(found, truth, near)


@pytest.mark.parametrize("cell", ["GRU", "LSTM", "RNN"])
def test_layer_norm_is_as_exact_as_on_the_host(cell: str) -> None:
    layer, x = start(cell, {"layer_norm": True}, "reference")

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
