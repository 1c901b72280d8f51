"""What a kernel owes to the device: bits, streams, graphs, memory; that it never waits for what does not come."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import close
import problems
import pytest
import sanitize
import torch
from problems import DEVICE, REHEARSAL, Case
from torch import Tensor, nn

import fusedrnn
from fusedrnn.errors import UnsupportedProblem

WIDTH = {"cuda": 256, "cuda:step": 96, "cuda:cta": 64, "cuda:cluster": 256, "cuda:grid": 768}
if REHEARSAL:
    WIDTH = {"cuda": 24, "cuda:step": 16}
T, REPEATS, MANY_STEPS = (3, 2, 9) if REHEARSAL else (20, 200, 4096)
pytestmark = pytest.mark.gpu


@pytest.fixture(params=WIDTH)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def layer_of(backend: str, cell: str = "GRU", dtype: torch.dtype = torch.bfloat16, B: int = 16) -> nn.Module:
    """A layer of a width that the regime takes; skipped where this GPU has no such regime."""
    H = WIDTH[backend]
    layer = getattr(fusedrnn, cell)(H, H, backend=backend, device=DEVICE, dtype=dtype)
    told = fusedrnn.explain(layer, torch.empty(8, B, H, device=DEVICE, dtype=dtype))
    if told.chosen is None:
        pytest.skip(f"this GPU: {told.refusal}")
    return layer


def given(layer: nn.Module, T: int, B: int = 16, seed: int = 0) -> Tensor:
    generator = torch.Generator(DEVICE).manual_seed(seed)
    return torch.randn(T, B, layer.input_size, device=DEVICE, dtype=layer.weight_ih_l0.dtype, generator=generator)


def step(layer: nn.Module, x: Tensor, *state: object) -> list[Tensor]:
    """Output and every gradient."""
    x = x.detach().requires_grad_()
    y = layer(x, *state)[0]
    return [y.detach(), *torch.autograd.grad(y, [x, *layer.parameters()], torch.ones_like(y))]


def same(found: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("cell", ["GRU", "LSTM"])
def test_the_same_bits_two_hundred_times(backend: str, cell: str) -> None:
    layer = layer_of(backend, cell, B=64)
    x = given(layer, 2 * T, 64)
    first = step(layer, x)
    assert not any(t.isnan().any() for t in first)
    differing = [i for i in range(REPEATS) if not same(step(layer, x), first)]
    assert not differing


ROWS = {"cuda": 528, "cuda:step": 64, "cuda:cta": 1056, "cuda:cluster": 128, "cuda:grid": 16}
if REHEARSAL:
    ROWS = dict.fromkeys(ROWS, 9)
"""About as many as are resident at once in groups of 8, on 132 multiprocessors."""


def test_thousands_of_steps_with_every_group_at_work(backend: str) -> None:
    B = ROWS[backend]
    layer = layer_of(backend, B=B)
    x = given(layer, MANY_STEPS, B)
    with torch.no_grad():
        y = layer(x)[0]
        again = layer(x)[0]
    assert torch.equal(y, again)
    some = [0, B // 2, B - 1]
    exact = fusedrnn.GRU(layer.input_size, layer.hidden_size, backend="reference", dtype=torch.double)
    exact.load_state_dict(layer.state_dict())
    stock = nn.GRU(layer.input_size, layer.hidden_size, device=DEVICE, dtype=x.dtype)
    stock.load_state_dict(layer.state_dict())
    with torch.no_grad():
        truth = exact(x[:, some].double().cpu())[0]
        torchs = stock(x[:, some].contiguous())[0]
    close.assert_no_worse({"y": y[:, some].cpu()}, {"y": truth}, {"y": torchs.cpu()})


@pytest.mark.skipif(REHEARSAL, reason="a CPU has no graphs")
def test_a_cuda_graph_gives_what_eager_gives(backend: str) -> None:
    layer = layer_of(backend)
    x, other = given(layer, T), given(layer, T, seed=1)
    expected = [step(layer, t) for t in (x, other, x)]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            step(layer, x)
    torch.cuda.current_stream().wait_stream(side)
    graph, static = torch.cuda.CUDAGraph(), x.clone()
    with torch.cuda.graph(graph):
        found = step(layer, static)
    for data, want in zip((x, other, x), expected, strict=True):
        static.copy_(data)
        graph.replay()
        assert same(found, want)


def test_two_streams_at_once(backend: str) -> None:
    layers = [layer_of(backend) for _ in range(2)]
    data = [given(layer, 10 * T, seed=i) for i, layer in enumerate(layers)]
    expected = [step(layer, x) for layer, x in zip(layers, data, strict=True)]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in layers]
    found: list[list[list[Tensor]]] = [[], []]
    for _ in range(10):
        for i, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                found[i].append(step(layers[i], data[i]))
    torch.cuda.synchronize()
    assert all(same(result, expected[i]) for i in (0, 1) for result in found[i])


def test_it_waits_for_the_current_stream(backend: str) -> None:
    layer = layer_of(backend)
    x = given(layer, T)
    expected = step(layer, x)
    late, side = torch.zeros_like(x), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(20_000_000)
        late.copy_(x)
        found = step(layer, late)
    side.synchronize()
    assert same(found, expected)


def test_the_tensors_device_is_taken(backend: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    layer = layer_of(backend)
    x = given(layer, T)
    expected = step(layer, x)
    assert torch.cuda.current_device() == 0
    found = step(layer.to("cuda:1"), x.to("cuda:1"))
    assert all(t.device.index == 1 for t in found)
    assert same([t.to("cuda:0") for t in found], expected)


def test_nothing_is_synchronised(backend: str) -> None:
    layer = layer_of(backend)
    x, lengths = given(layer, T), torch.arange(16, device=DEVICE)
    call: Callable[[], object] = lambda: layer(x, lengths=lengths)[0].sum().backward()  # noqa: E731
    call()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_no_value_stands_for_one_that_has_not_come(backend: str, dtype: torch.dtype) -> None:
    """All bits set is a NaN, and what an exchange fills memory with."""
    layer = layer_of(backend, dtype=dtype)
    x, h0 = given(layer, T), torch.zeros(1, 16, layer.hidden_size, device=DEVICE, dtype=dtype)
    with torch.no_grad():
        expected = layer(x, h0)[0]
        h0[:, 3].view({2: torch.int16, 4: torch.int32}[dtype.itemsize]).fill_(-1)
        h0[:, 5] = torch.inf
        found = layer(x, h0)[0]
    assert found[:, 3].isnan().all()
    others = [b for b in range(16) if b not in (3, 5)]
    assert torch.equal(found[:, others], expected[:, others])


def test_rows_of_no_steps_keep_their_state(backend: str) -> None:
    layer = layer_of(backend)
    x, h0 = given(layer, T), torch.full((1, 16, layer.hidden_size), torch.nan, device=DEVICE, dtype=torch.bfloat16)
    y, last = layer(x, h0, lengths=torch.zeros(16, dtype=torch.int64, device=DEVICE))
    assert not y.any()
    assert last.isnan().all()


@pytest.mark.parametrize("cell", ["GRU", "LSTM"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_the_sanitizers_calls(backend: str, cell: str, dtype: torch.dtype) -> None:
    sanitize.call(backend, WIDTH[backend], cell, dtype)


def test_torchs_own_route_never_speaks_of_chunks() -> None:
    layer = fusedrnn.LSTM(64, 64, 2, backend="cudnn", device=DEVICE, dtype=torch.float16)
    x = given(layer, T)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(layer, x)
        before = layer(x)[0]
        with torch.no_grad():
            layer.weight_hh_l0.data = layer.weight_hh_l0.data * 0.5
        changed = layer(x)[0]
        assert not torch.equal(before, changed)
        layer.load_state_dict({name: t.clone() for name, t in layer.state_dict().items()})
        assert torch.equal(layer(x)[0], changed)
        copied = copy.deepcopy(layer)
        torch.optim.SGD(copied.parameters(), 0.1).step()
        assert torch.equal(copied(x)[0], changed)
        layer.half().to("cpu").to(DEVICE)
        assert torch.equal(layer(x)[0], changed)


@pytest.mark.parametrize("cell", ["GRU", "LSTM"])
def test_compiled_as_one_graph(cell: str, fresh_graphs: None) -> None:
    layer = layer_of("cuda", cell)
    x = given(layer, T)
    expected = step(layer, x)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    leaf = x.clone().requires_grad_()
    y = compiled(leaf)[0]
    assert torch.equal(y, expected[0])
    assert torch.equal(torch.autograd.grad(y, leaf, torch.ones_like(y))[0], expected[1])


def peak_bytes(layer: nn.Module, x: Tensor) -> int:
    step(layer, x)  # what stays, a library's workspace, is no part of a step
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step(layer, x)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


SIZES = ((7, 1), (16, 2)) if REHEARSAL else ((128, 1), (512, 1), (256, 2), (1024, 1))


@pytest.mark.parametrize(
    "case",
    [Case(cell, min(MANY_STEPS, 512), min(4 * T, 64), H, H, D=D) for cell in ("GRU", "LSTM") for H, D in SIZES],
    ids=lambda case: f"{case.cell}-H{case.H}-D{case.D}",
)
def test_a_training_step_takes_no_more_memory_than_torchs(case: Case) -> None:
    torch.use_deterministic_algorithms(False)  # which fill memory, and may take some for it
    problem = problems.make(case)
    x = problem.x.to(DEVICE, torch.bfloat16)
    try:
        ours = peak_bytes(problems.fused(problem, "cuda", torch.bfloat16), x)
    except UnsupportedProblem as refusal:
        pytest.fail(str(refusal))
    theirs = peak_bytes(problem.layer.to(DEVICE, torch.bfloat16), x)
    assert ours <= theirs, f"{ours / 2**20:.1f} MiB, torch's {theirs / 2**20:.1f}"
