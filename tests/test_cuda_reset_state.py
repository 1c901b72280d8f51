"""States that resets go back to in the CUDA kernels, run by the CPU's stand-in for a GPU: ops and layers."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import norm_check
import pytest
import torch
from close import assert_same
from cuda_check import ALLOW_TF32, host
from kernel_cases import NOISES, noise_of
from normed_loop import shaken
from pairs import LAYERS, B, I, T, gradients, initial, needs_kernel, rand, tensors
from recurrence_check import PRECISIONS, Case
from stand_in import stand_in
from test_reset_state import RESET, pair, starts
from torch import Tensor

import fusedrnn
from fusedrnn import backends, ops
from fusedrnn.errors import UnsupportedProblem
from fusedrnn.spec import GRU, LSTM, Problem

pytestmark = [needs_kernel, pytest.mark.slow, pytest.mark.usefixtures("stand_in", "one_thread")]
each_precision = pytest.mark.parametrize("precision", PRECISIONS)
each_name = pytest.mark.parametrize("name", LAYERS)
each_normed = pytest.mark.parametrize("normed", [False, True], ids=["plain", "normed"])
EVERY = ("y", "hn", "cn", "cs")
"""Gradients that can flow in."""


@pytest.fixture(name="stand_in")
def _stand_in() -> Iterator[None]:
    with stand_in():
        yield


# The ops.


def check(case: Case, precision: str, normed: bool) -> None:
    route = ALLOW_TF32 if precision == "tf32" else 0
    norm_check.check(
        case,
        precision,
        lambda *given: ops.norm_scan(*given, route=route),
        lambda *given: ops.norm_scan_backward(*given, route=route),
        normed,
    )


@each_precision
@each_normed
def test_the_ops(cell: Any, precision: str, normed: bool) -> None:
    check(Case(cell, 6, 5, 24, 2, lengths=True, reset=True, starts=True, upstream=EVERY), precision, normed)


@pytest.mark.parametrize("precision", ["bf16", "fp64"])
@each_normed
@pytest.mark.parametrize("kind", NOISES)
def test_with_noise(cell: Any, precision: str, normed: bool, kind: str) -> None:
    key, rates = noise_of(kind, cell)
    case = Case(cell, 4, 11, 40, 2, lengths=True, reset=True, starts=True, states="", bias=False, rates=rates, key=key)
    check(case, precision, normed)


@each_normed
def test_rates_of_their_own(normed: bool) -> None:
    for rates in ((0.4, 0.0, 0.0), (0.0, 0.4, 0.0), (0.0, 0.0, 0.4)):
        case = Case(LSTM, 5, 3, 24, 2, reset=True, starts=True, upstream=EVERY, rates=rates, key=(2**32 - 3, 77))
        check(case, "fp64", normed)


@each_normed
def test_a_reset_at_the_first_step_at_the_last_at_each_and_at_none(cell: Any, normed: bool) -> None:
    """Backwards in time the first step is never behind a reset: none cuts where nothing was."""
    steps, rows, units, G = 3, 4, 8, len(cell.gates)
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.double)

    reset = torch.tensor([[1, 0, 1, 0], [0, 0, 1, 0], [0, 1, 1, 0]], dtype=torch.bool).unsqueeze(-1).expand(-1, -1, 2)
    more = [normal(2, units), normal(2, units) if cell is LSTM else None]
    more += [1 + normal(2, G * units) / 4] if normed else [None]
    more += [1 + normal(2, units) / 4 if normed and cell is LSTM else None, None]
    w, none = normal(2, G * units, units), torch.zeros(0, dtype=torch.double)
    tail = (None, reset, *more, None, [], cell.code, 2)
    y, _, gates, cs, _, products = ops.norm_scan(normal(steps, rows, 2, G * units), None, None, w, None, *tail, True)
    kept = (gates, y, None, cs if cell is LSTM else None, None, w, products if normed else none)
    found = ops.norm_scan_backward(torch.ones_like(y), None, None, None, *kept, *tail)
    dh0, dreset_h = found[1], found[5]
    assert [bool(d.any()) for d in dh0[0]] == [False, True, False, True]  # forwards in time
    assert [bool(d.any()) for d in dh0[1]] == [True] * rows
    assert [bool(d.any()) for d in dreset_h[0]] == [True, True, True, False]
    assert [bool(d.any()) for d in dreset_h[1]] == [False, True, True, False]


@each_normed
def test_nothing_of_it_depends_on_timing(normed: bool) -> None:
    case = Case(LSTM, 4, 9, 40, 2, lengths=True, reset=True, starts=True, rates=(0.2, 0.1, 0.3), key=(5, 7))
    found: list[list[Tensor]] = []

    def noted(op: Any, *given: Any) -> Any:
        out = op(*given)
        found[-1].extend(t.clone() for t in out if t.numel())
        return out

    try:
        for seed in (1, 2, 3):
            host().seed(seed)
            found.append([])
            norm_check.check(
                case, "fp32", partial(noted, ops.norm_scan), partial(noted, ops.norm_scan_backward), normed
            )
    finally:
        host().seed(1)
    assert all(all(map(torch.equal, one, found[0])) for one in found[1:])


def test_without_any_of_its_options_it_is_scan() -> None:
    gates_x, w = rand(3, 4, 2, 24), rand(2, 24, 8)
    given, tail = (gates_x, None, None, w, None, None, None, None, None), (None, [], GRU.code, 2, True)
    found = ops.norm_scan(*given, None, None, None, *tail)
    assert not found[5].numel()
    assert all(map(torch.equal, found, ops.scan(*given, None, *tail)))


def test_what_the_ops_refuse() -> None:
    start, w = torch.zeros(1, 8), torch.zeros(1, 24, 8)

    def scan(*resets: Any, route: int = 0, cell: Any = GRU) -> Any:
        units = len(cell.gates) * 8
        tail = (None, None, *resets, None, None, None, None, [], cell.code, 1, True)
        return ops.norm_scan(
            torch.zeros(2, 3, 1, units), None, None, w.new_zeros(1, units, 8), None, *tail, route=route
        )

    for said, call in (
        (r"reset_h: expected \[1, 8\], got \[2, 8\]", lambda: scan(torch.zeros(2, 8), None)),
        ("reset_h: expected the dtype", lambda: scan(start.double(), None)),
        ("expected both of an LSTM, reset_h alone of other cells, or none", lambda: scan(start, start)),
        ("expected both of an LSTM, reset_h alone of other cells, or none", lambda: scan(start, None, cell=LSTM)),
        ("cta: reset_state is the time-step kernel's, expected none", lambda: scan(start, None, route=2)),
    ):
        with pytest.raises(RuntimeError, match=said):
            call()
    scan(start, None, route=1)


# Whole layers, against the reference in float64.


def results(layer: Any, x: Tensor, hx: list[Tensor], start: list[Tensor], **masks: Any) -> list[Tensor]:
    """Outputs and every gradient, from a generator that always starts alike."""
    torch.manual_seed(5)
    leaves = [t.detach().requires_grad_() for t in (x, *hx, *start)]
    at = 1 + len(hx)
    out = tensors(layer(leaves[0], pair(leaves[1:at]), reset_state=pair(leaves[at:]), **masks))
    return out + gradients(out, [*leaves, *layer.parameters()])


def compared(name: str, H: int, training: bool = True, **options: Any) -> None:
    torch.manual_seed(0)
    settings = {"num_layers": 2, "bidirectional": True} | options
    layer = shaken(getattr(fusedrnn, name)(I, H, dtype=torch.double, **settings)).train(training)
    x, hx, start = rand(T, B, I), tensors([initial(layer)]), starts(layer)
    for masks in ({"reset": RESET}, {"reset": RESET, "lengths": torch.tensor([4, T, 0])}):
        layer.backend = "cuda"
        found = results(layer, x, hx, start, **masks)
        layer.backend = "reference"
        assert_same(found, results(layer, x, hx, start, **masks))


NORMED = {"layer_norm": True, "num_layers": 1}
"""Of two layers rounding errors hang on the draw: a variance of the second is now and then tiny."""


@each_name
def test_layers(name: str) -> None:
    compared(name, 8)
    compared(name, 13)
    compared(name, 40, num_layers=1, bias=False)


@each_name
def test_with_layer_norm(name: str) -> None:
    compared(name, 16, **NORMED)


def test_relu() -> None:
    compared("RNN", 13, nonlinearity="relu", num_layers=1)


@each_name
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_layers_with_noise(name: str, training: bool) -> None:
    noise = {"zoneout": 0.3, "recurrent_dropout": 0.4, "weight_dropout": 0.2}
    if name == "RNN" and not training:
        noise["zoneout"] = 0.0  # of its mean the kernels have no gradient
    compared(name, 13, training, **noise)
    compared(name, 16, training, **NORMED, **noise)


@each_name
def test_recompute_and_truncation(name: str) -> None:
    compared(name, 13, recompute=True)
    compared(name, 8, bptt=2)


@each_name
def test_first_and_second_derivatives(name: str) -> None:
    layer, x = getattr(fusedrnn, name)(2, 3, dtype=torch.double, backend="cuda"), rand(3, 2, 2).requires_grad_()
    start, reset = starts(layer), torch.tensor([[True, False], [False, True], [True, False]])

    def run(x: Tensor, *start: Tensor) -> Tensor:
        return layer(x, reset=reset, reset_state=pair(start))[0]

    assert torch.autograd.gradcheck(run, (x, *start))
    assert torch.autograd.gradgradcheck(run, (x, *start))


def test_compiles_whole(fresh_graphs: None) -> None:
    layer = fusedrnn.LSTM(I, 13, backend="cuda").double()
    x, start = rand(T, B, I), starts(layer)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    found, want = (tensors(f(x, reset=RESET, reset_state=pair(start))) for f in (compiled, layer))
    leaves = [*start, *layer.parameters()]
    assert_same(found + gradients(found, leaves), want + gradients(want, leaves))


def test_regimes_and_what_the_backend_refuses() -> None:
    problem = Problem(GRU, T, B, I, 8, reset=True, reset_state=True)
    for name in ("cuda", "cuda:step"):
        assert backends.choose(name, problem) == name
    assert backends.choose("cuda", problem._replace(H=13)) == "cuda"
    for regime in ("cta", "cluster", "grid"):
        with pytest.raises(UnsupportedProblem, match=f"{regime}: reset_state is the time-step kernel's, expected none"):
            backends.choose(f"cuda:{regime}", problem)
    with pytest.raises(UnsupportedProblem, match="with layer_norm it takes a multiple of 8 hidden units, not 13"):
        backends.choose("cuda", problem._replace(H=13, layer_norm=True))
    layer = fusedrnn.GRU(I, 8, backend="cuda")
    told = fusedrnn.explain(layer, rand(T, B, I).float(), reset=RESET, reset_state=torch.zeros(1, 8))
    assert told.chosen == "cuda"
