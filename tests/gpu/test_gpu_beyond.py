"""What torch's layers have not, on a GPU: masks and jagged rows without the host, bptt, states, frozen, explain."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from close import assert_same
from pairs import tensors
from problems import DEVICE, REHEARSAL
from small import (
    LENGTHS,
    B,
    H,
    I,
    T,
    against_the_cpu,
    as_hx,
    each_backend,
    each_cell,
    each_kernel,
    rand,
    small,
    states,
)
from torch import Tensor
from torch.nn.utils import parametrizations

import fusedrnn
from fusedrnn import __main__ as doctor

pytestmark = pytest.mark.gpu


@each_backend
@pytest.mark.parametrize("cell", ["GRU", "LSTM"])
def test_jagged_rows(cell: str, backend: str) -> None:
    layer = small(cell, backend, bidirectional=True, batch_first=True)
    values = rand(int(LENGTHS.sum()), I)

    def run(layer: torch.nn.Module, device: str) -> list[Tensor]:
        leaf = values.to(device).requires_grad_()
        offsets = torch.tensor([0, *LENGTHS.tolist()], device=device).cumsum(0)
        x = torch.nested.nested_tensor_from_jagged(leaf, offsets, min_seqlen=0, max_seqlen=9)
        watched = device != "cpu" and not REHEARSAL
        torch.cuda.set_sync_debug_mode("error" if watched else "default")
        try:
            y = layer(x)[0]
            return [y.values(), *torch.autograd.grad(y.values().sum(), [leaf, *layer.parameters()])]
        finally:
            torch.cuda.set_sync_debug_mode("default")

    against_the_cpu(layer, run)


@each_backend
def test_gradients_end_after_k_steps(backend: str) -> None:
    layer = small("LSTM", backend, bidirectional=True, bptt=4)
    x, n = rand(T, B, I), torch.tensor([9, 0, 5, 8])

    def run(layer: torch.nn.Module, device: str) -> list[Tensor]:
        leaf = x.to(device).requires_grad_()
        y, (h, c) = layer(leaf, lengths=n.to(device))
        return [y, h, c, *torch.autograd.grad((y.sum(), h.sum(), c.sum()), [leaf, *layer.parameters()])]

    against_the_cpu(layer, run)


@each_backend
@each_cell
def test_every_state_has_gradients(cell: str, backend: str) -> None:
    layer = small(cell, backend, num_layers=2, bidirectional=True, batch_first=True)
    x, upstream = rand(B, T, I), rand(2, 4, T, B, H)

    def run(layer: Any, device: str) -> list[Tensor]:
        leaf = x.to(device).requires_grad_()
        every = tensors(layer(leaf, lengths=LENGTHS.to(device), return_states=True)[-1])
        leaves = [leaf, *layer.parameters()]
        return [*every, *torch.autograd.grad(every, leaves, list(upstream.to(device)[: len(every)]))]

    against_the_cpu(layer, run)


@each_backend
@each_cell
def test_lengths_from_anywhere_in_any_order(cell: str, backend: str) -> None:
    """On the host or the device, 32 or 64 bits; a row may have no steps, and more than T mean T."""
    layer = small(cell, backend, bidirectional=True)
    x, lengths = rand(T, B, I).to(DEVICE), torch.tensor([3, T + 5, 0, 8])
    found = [tensors(layer(x, lengths=n)) for n in (lengths, lengths.to(DEVICE), lengths.int().to(DEVICE))]
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))
    for b, n in enumerate(lengths.clamp(max=T).tolist()):
        y, *last = (t[:, b : b + 1].cpu() for t in found[0])
        assert not y[n:].any()
        if n:
            assert_same([y[:n], *last], [t.cpu() for t in tensors(layer(x[:n, b : b + 1]))])
        else:
            assert not any(t.any() for t in last)


@each_backend
@each_cell
def test_a_reset_makes_segments_that_ran_one_by_one(cell: str, backend: str) -> None:
    """In both directions; nothing is read on the host."""
    layer = small(cell, backend, bidirectional=True)
    x = rand(T, 1, I).to(DEVICE)
    reset = torch.zeros(T, 1, dtype=torch.bool, device=DEVICE)
    reset[[3, 7]] = True
    layer(x, reset=reset)
    torch.cuda.set_sync_debug_mode("error")
    try:
        y = layer(x, reset=reset, return_states=True)[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_same([y.cpu()], [torch.cat([layer(part)[0] for part in x.split([3, 4, 2])]).cpu()])


@pytest.mark.parametrize("frozen", [False, True], ids=["", "frozen"])
@each_backend
@each_cell
def test_steps_one_by_one_equal_the_run(cell: str, backend: str, frozen: bool) -> None:
    """To rounding, for how many rows a product has decides how cuBLAS adds; the same bits each time."""
    layer = small(cell, backend, num_layers=2).eval()
    x, start = rand(T, 2, I).to(DEVICE), as_hx([h.to(DEVICE) for h in states(layer, 2)])

    def stream() -> list[Tensor]:
        state, outputs = start, []
        for step in x.split(1):
            y, state = layer(step, state)
            outputs.append(y)
        return [torch.cat(outputs), *tensors(state)]

    with torch.no_grad():
        want = tensors(layer(x, start))
        with fusedrnn.frozen(layer) if frozen else nullcontext():
            found, again = stream(), stream()
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    assert_same([t.cpu() for t in found], [t.cpu() for t in want])


@each_cell
def test_frozen_gives_the_same_bits_and_refuses_training(cell: str) -> None:
    layer = parametrizations.weight_norm(small(cell, "cuda"), "weight_hh_l0").float()
    runs: list[None] = []
    layer.parametrizations.weight_hh_l0[0].register_forward_hook(lambda *_: runs.append(None))
    x = torch.randn(8, 4, I, device=DEVICE)
    with fusedrnn.frozen(layer), pytest.raises(RuntimeError, match="frozen, and in training mode"):
        layer(x)
    layer.eval()
    with fusedrnn.frozen(layer), pytest.raises(RuntimeError, match="frozen, while gradients are on"):
        layer(x)
    for low in (None, torch.bfloat16):
        with torch.no_grad(), torch.autocast(DEVICE, low, enabled=low is not None):
            want = {steps: layer(x[:steps])[0] for steps in (1, 2, 8)}
            runs.clear()
            with fusedrnn.frozen(layer):
                assert all(torch.equal(layer(x[:steps])[0], want[steps]) for steps in want for _ in range(3))
            assert len(runs) == 1, "the parametrization was evaluated once"
    layer.train()(x)[0].sum().backward()


@each_kernel
@each_cell
def test_explain_names_the_kernel(cell: str, backend: str) -> None:
    layer, x = small(cell, backend, bidirectional=True), torch.empty(T, B, I, device=DEVICE, dtype=torch.double)
    told = fusedrnn.explain(layer, x)
    assert (told.asked, told.chosen, told.refusal) == (backend, backend, None)
    assert told.regime
    assert [line.split()[0] for line in str(told.plans).splitlines()] == ["forward", "backward"]
    assert f"\n> {backend}" in str(told)
    layer.proj_size = 3
    refused = fusedrnn.explain(layer, x)
    assert refused.chosen is None
    assert "proj_size" in str(refused.refusal)


@pytest.mark.skipif(REHEARSAL, reason="the doctor asks torch for a GPU")
def test_the_doctor_tries_every_cell_on_the_gpu() -> None:
    facts = doctor.examine()
    assert facts["ok"], facts["troubles"]
    tried = {(t["backend"], t["cell"]) for t in facts["self_test"] if t["device"] == "cuda"}
    assert tried >= {(name, cell) for name in ("cuda", "triton", "aten") for cell in ("GRU", "LSTM", "RNN")}
