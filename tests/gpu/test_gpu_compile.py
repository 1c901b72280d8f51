"""Compilers, export and activation checkpointing on a GPU."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from bare import Count
from close import assert_same
from pairs import tensors
from problems import DEVICE, REHEARSAL
from small import B, I, T, each_backend, each_cell, each_kernel, rand, small
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from fusedrnn import ops

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("fresh_graphs")]
SHAPES = ((7, 3), (9, 4), (5, 2))  # T, B


def given(steps: int, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """x, lengths and resets."""
    lengths = torch.randint(0, steps + 1, (rows,))
    return tuple(t.to(DEVICE) for t in (rand(steps, rows, I), lengths, torch.rand(steps, rows) < 0.2))  # type: ignore[return-value]


def results(call: Any, weights: Iterable[Tensor], x: Tensor, *masks: Tensor) -> list[Tensor]:
    """Outputs and gradients, on the CPU."""
    leaf = x.detach().requires_grad_()
    outputs = tensors(call(leaf, None, *masks))
    total = sum(t.square().sum() for t in outputs)
    return [t.detach().cpu() for t in (*outputs, *torch.autograd.grad(total, [leaf, *weights]))]


@each_kernel
@pytest.mark.parametrize("cell", ["GRU", "LSTM"])
def test_one_graph_for_every_time_and_batch(cell: str, backend: str) -> None:
    layer, counter = small(cell, backend, bidirectional=True), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=counter)
    frames = []
    for shape in SHAPES:
        args = given(*shape)
        found, want = (results(call, layer.parameters(), *args) for call in (compiled, layer))
        assert_same(found, want)
        frames.append(counter.frame_count)
    assert len(set(frames)) == 1, f"a new shape compiled anew: {frames}"


@pytest.mark.skipif(REHEARSAL, reason="a CPU has no CUDA graphs, which this mode is about")
@pytest.mark.parametrize("cell", ["GRU", "LSTM"])
def test_compiled_into_cuda_graphs(cell: str) -> None:
    layer = small(cell, "cuda", bidirectional=True)
    compiled = torch.compile(layer, fullgraph=True, mode="reduce-overhead")
    counters.clear()
    for _ in range(4):  # it warms up, records, and replays
        x = rand(T, B, I).to(DEVICE)
        torch.compiler.cudagraph_mark_step_begin()
        found, want = (results(call, layer.parameters(), x) for call in (compiled, layer))
        assert_same(found, want)
    assert counters["inductor"]["cudagraph_skips"] == 0


@each_kernel
@each_cell
def test_exported_for_every_time_and_batch(cell: str, backend: str) -> None:
    """Saved and loaded, it runs and passes gradients on."""
    layer = small(cell, backend, bidirectional=True).eval()
    rows, steps = torch.export.Dim("rows", min=1, max=4096), torch.export.Dim("steps", min=1, max=4096)
    x, *masks = given(T, B)
    shapes = ({0: steps, 1: rows}, None, {0: rows}, {0: steps, 1: rows})
    program = torch.export.export(layer, (x, None, *masks), dynamic_shapes=shapes, strict=False)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    loaded = torch.export.load(buffer).module()
    for shape in ((1, 1), (12, 5)):
        args = given(*shape)
        found, want = (results(call, [], *args) for call in (loaded, layer))
        assert_same(found, want)


@pytest.mark.parametrize(("how", "runs"), [("reentrant", 2), ("hooks", 2), ("selective", 1)])
@each_backend
@each_cell
def test_checkpoint(cell: str, backend: str, how: str, runs: int) -> None:
    """The same gradients, from as many runs of the kernel as there should be."""
    layer, x = small(cell, backend, bidirectional=True), rand(T, B, I).to(DEVICE)

    def policy(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        own = op in (ops.scan, ops.triton_scan)
        return CheckpointPolicy.MUST_SAVE if own else CheckpointPolicy.PREFER_RECOMPUTE

    contexts = functools.partial(create_selective_checkpoint_contexts, policy)
    extra = {"context_fn": contexts} if how == "selective" else {}

    def step(run: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """By `backward`, which is all that the reentrant form takes."""
        layer.zero_grad()
        leaf = x.detach().requires_grad_()
        y = run(leaf)
        y.square().sum().backward()
        return [t.cpu() for t in (y, leaf.grad, *(p.grad for p in layer.parameters()))]

    def plain(x: Tensor) -> Tensor:
        return layer(x)[0]

    want = step(plain)
    with Count() as count:
        found = step(lambda x: checkpoint(plain, x, use_reentrant=how == "reentrant", **extra))
    assert_same(found, want)
    if backend == "cuda":
        assert [name.split()[0] for name in count.seen] == ["scan"] * runs + ["scan_backward"]
