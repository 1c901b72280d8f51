"""Zoneout and recurrent dropout in the CUDA kernels, run by the CPU's stand-in for a GPU: masks, ops and layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bare import label
from close import assert_same
from cuda_check import check, host
from kernel_cases import NOISES, noise_of
from pairs import LAYERS, B, I, T, gradients, needs_kernel, rand, tensors
from recurrence_check import PRECISIONS, SECOND_ORDER, Case
from stand_in import stand_in
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence

import fusedrnn
from fusedrnn import backends, philox
from fusedrnn.errors import UnsupportedProblem
from fusedrnn.spec import GRU, LSTM, RNN_RELU, RNN_TANH, Problem

pytestmark = [needs_kernel, pytest.mark.slow, pytest.mark.usefixtures("stand_in", "one_thread")]
STEP, ALLOW_TF32 = 1, 8
KEY = torch.tensor([2**32 - 3, 77])
each_kind = pytest.mark.parametrize("kind", NOISES)
each_precision = pytest.mark.parametrize("precision", PRECISIONS)


@pytest.fixture(name="stand_in")
def _stand_in() -> Any:
    with stand_in():
        yield


# The ops.


# of the very first unit: that of h is not below its word, that of c is
AT_THE_WORDS = tuple(
    (int(philox.words((0, 0, 0, kind), KEY.tolist())[0]) + more) / 2**32
    for kind, more in ((philox.ZONEOUT_H, 0), (philox.ZONEOUT_C, 1))
)


@each_precision
@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("rates", [(0.3, 0.6), AT_THE_WORDS])
def test_zoneouts_masks_are_philoxs_bit_for_bit(precision: str, backwards: bool, rates: tuple[float, float]) -> None:
    """An LSTM whose c is that of the step alone, another one each: what was held is what did not change."""
    steps, rows, streams, units = 5, 37, 4, 24
    dtype = PRECISIONS[precision]
    i, f, o = torch.tensor([50.0, -50.0, 50.0]).view(3, 1, 1, 1, 1).expand(3, steps, rows, streams, units)
    g = torch.arange(1, steps + 1).view(-1, 1, 1, 1).expand(steps, rows, streams, units) / steps
    gates_x = torch.cat([i, f, g, o], -1).to(dtype)
    states = torch.full((2, streams, rows, units), 7.0, dtype=dtype)
    w = torch.zeros(streams, 4 * units, units, dtype=dtype)
    call = (gates_x, *states, w, *[None] * 6, KEY, [*rates, 0.0], LSTM.code, 1 + backwards, False)
    y, _, _, cs, _ = host().scan(*call, route=STEP | ALLOW_TF32 * (precision == "tf32"))
    for found, rate, kind in ((y, rates[0], philox.ZONEOUT_H), (cs, rates[1], philox.ZONEOUT_C)):
        held = philox.happens(rate, kind, KEY, steps, streams, rows, units)
        for s in range(streams):
            of_stream = found[:, :, s].flip(0) if backwards and s % 2 else found[:, :, s]
            same = of_stream == torch.cat([torch.full_like(of_stream[:1], 7.0), of_stream[:-1]])
            assert torch.equal(same.flip(0) if backwards and s % 2 else same, held[:, s])


@each_precision
@pytest.mark.parametrize("rate", [0.5, 1.0])
def test_dropouts_masks_are_philoxs_bit_for_bit(precision: str, rate: float) -> None:
    """An RNN that hands on what its product sees: ones, times the mask at each step."""
    steps, rows, streams, units, dtype = 3, 37, 4, 24, PRECISIONS[precision]
    w, ones = torch.eye(units, dtype=dtype).expand(streams, -1, -1), torch.ones(streams, rows, units, dtype=dtype)
    gates_x = torch.zeros(steps, rows, streams, units, dtype=dtype)
    call = (gates_x, ones, None, w, *[None] * 6, KEY, [0.0, 0.0, rate], RNN_RELU.code, 2, False)
    y = host().scan(*call, route=STEP | ALLOW_TF32 * (precision == "tf32"))[0]
    mask = philox.dropout_mask(rate, KEY, streams, rows, ones, units).transpose(0, 1)
    for t in range(steps):
        assert torch.equal(y[t, :, 0::2], mask[:, 0::2] ** (t + 1))
        assert torch.equal(y[t, :, 1::2], mask[:, 1::2] ** (steps - t))


@each_precision
@each_kind
@pytest.mark.parametrize(
    "case",
    [
        {"T": 6, "B": 13, "H": 40, "directions": 2, "upstream": SECOND_ORDER},
        {"T": 4, "B": 37, "H": 16, "streams": 3, "states": "", "bias": False, "lengths": True},
        {"T": 6, "B": 5, "H": 24, "directions": 2, "lengths": True, "reset": True},
        {"T": 5, "B": 9, "H": 24, "directions": 2, "packed": True},
        {"T": 1, "B": 1, "H": 8, "states": "h", "upstream": ("hn", "cn")},
    ],
    ids=label,
)
def test_the_time_step_kernel(cell: Any, precision: str, kind: str, case: dict[str, Any]) -> None:
    key, rates = noise_of(kind, cell)
    check(Case(cell, rates=rates, key=key, **case), "auto", precision)


@pytest.mark.parametrize("rates", [(0.4, 0.0, 0.0), (0.0, 0.4, 0.0), (0.0, 0.7, 0.2)])
def test_rates_of_their_own(rates: tuple[float, ...]) -> None:
    check(Case(LSTM, 5, 3, 24, 2, upstream=SECOND_ORDER, rates=rates, key=(2**32 - 3, 77)), "step", "fp64")


def test_what_the_ops_refuse() -> None:
    gates_x, w, y = torch.zeros(2, 3, 1, 8), torch.zeros(1, 8, 8), torch.zeros(2, 3, 1, 8)

    def scan(key: Tensor | None, *rates: float, route: int = 0) -> Any:
        reserved = (None, None, None, key, list(rates), RNN_TANH.code, 1, True)
        return host().scan(gates_x, None, None, w, None, None, None, *reserved, route=route)

    def scan_backward(key: Tensor | None, *rates: float) -> Any:
        absent: Any = [None] * 5
        kept = (torch.zeros(0), y, None, None, None, w, None, None)
        return host().scan_backward(*absent, *kept, RNN_TANH.code, 1, 0, None, key, list(rates))

    for text, call in (
        ("rates: expected those of zoneout of h", lambda: scan(KEY, 0.5)),
        ("rates: expected probabilities, got 1.5", lambda: scan(KEY, 1.5, 0.0, 0.0)),
        ("only the LSTM has a c", lambda: scan(KEY, 0.5, 0.5, 0.0)),
        ("recurrent dropout is drawn by a mask_key", lambda: scan(None, 0.0, 0.0, 0.5)),
        (r"mask_key: expected \[2\], got \[3\]", lambda: scan(torch.zeros(3, dtype=torch.int64), 0.5, 0.0, 0.0)),
        ("mask_key: expected int64", lambda: scan(torch.zeros(2), 0.5, 0.0, 0.0)),
        ("cta: zoneout and recurrent dropout are the time-step kernel's", lambda: scan(KEY, 0.5, 0.0, 0.0, route=2)),
        ("cannot be had from its output alone", lambda: scan_backward(None, 0.5, 0.0, 0.0)),
    ):
        with pytest.raises(RuntimeError, match=text):
            call()
    scan(None, 0.5, 0.0, 0.0)
    scan_backward(KEY, 0.5, 0.0, 0.0)


# Whole layers, against the reference in float64.


def results(layer: Any, x: Tensor, call: Any = None, **masks: Tensor) -> list[Tensor]:
    """Outputs and every gradient, from a generator that always starts alike."""
    torch.manual_seed(5)
    x = x.detach().requires_grad_()
    out = call(layer, x) if call else tensors(layer(x, **masks))
    return out + gradients(out, [x, *layer.parameters()])


def compared(name: str, *, H: int, training: bool, call: Any = None, x: Tensor | None = None, **options: Any) -> None:
    torch.manual_seed(0)
    layer = getattr(fusedrnn, name)(I, H, dtype=torch.double, num_layers=2, bidirectional=True, **options)
    layer.train(training)
    x = rand(T, B, I) if x is None else x
    lengths, reset = torch.tensor([2, T, 0]), torch.rand(T, B) < 0.4
    for masks in ({},) if call else ({}, {"lengths": lengths}, {"lengths": lengths, "reset": reset}):
        layer.backend = "cuda"
        found = results(layer, x, call, **masks)
        layer.backend = "reference"
        assert_same(found, results(layer, x, call, **masks))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("H", [8, 13])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("recompute", [False, True])
def test_layers(name: str, H: int, training: bool, recompute: bool) -> None:
    noise = {"zoneout": 0.3, "recurrent_dropout": 0.4, "weight_dropout": 0.2}
    if name == "RNN" and not training:
        noise["zoneout"] = 0.0  # of its mean the kernels have no gradient
    compared(name, H=H, training=training, recompute=recompute, **noise)


@pytest.mark.parametrize("name", LAYERS)
def test_packed_rows_draw_in_their_sorted_order(name: str) -> None:
    lengths = [3, 6, 1, 6]

    def call(layer: Any, x: Tensor) -> list[Tensor]:
        y, last = layer(pack_sequence(list(x.split(lengths)), enforce_sorted=False))
        return [y.data, *tensors([last])]

    compared(name, H=8, training=True, call=call, x=rand(16, I), zoneout=0.3, recurrent_dropout=0.4)


@pytest.mark.parametrize("name", LAYERS)
def test_first_and_second_derivatives(name: str) -> None:
    layer = getattr(fusedrnn, name)(2, 3, dtype=torch.double, zoneout=0.3, recurrent_dropout=0.3, backend="cuda")

    def run(x: Tensor) -> Tensor:
        torch.manual_seed(5)
        return layer(x)[0]

    x = rand(3, 2, 2).requires_grad_()
    assert torch.autograd.gradcheck(run, (x,))
    assert torch.autograd.gradgradcheck(run, (x,))


def test_regimes_and_what_the_backend_refuses() -> None:
    problem = Problem(GRU, T, B, I, 8, zoneout=True, drawn=True)
    assert backends.choose("cuda", problem) == "cuda"
    assert backends.choose("cuda:step", problem) == "cuda:step"
    for regime in ("cta", "cluster", "grid"):
        with pytest.raises(UnsupportedProblem, match=f"{regime}: zoneout and recurrent dropout are the time-step"):
            backends.choose(f"cuda:{regime}", problem)
    mean = problem._replace(cell=RNN_TANH, drawn=False)
    assert backends.choose("cuda", mean) == "cuda"
    with pytest.raises(UnsupportedProblem, match="in eval it has no gradients of an RNN with zoneout"):
        backends.choose("cuda", mean._replace(grad=True))


@pytest.mark.parametrize("name", LAYERS)
def test_what_is_held_or_not_leaves_no_trace(name: str) -> None:
    """All units held, all dropped, and NaN in the other state; an RNN's mean, of which there is no gradient."""
    for zoneout, recurrent_dropout, training in (
        (1.0, 0.0, True),
        (0.0, 1.0, True),
        (0.5, 0.0, True),
        (0.3, 0.0, False),
    ):
        layer = getattr(fusedrnn, name)(I, 8, zoneout=zoneout, recurrent_dropout=recurrent_dropout).double()
        x, found = rand(T, B, I), []
        x[-1, 1] = float("nan")
        for layer.backend in ("cuda", "reference"):
            torch.manual_seed(5)
            with torch.no_grad():
                found.append(tensors(layer.train(training)(x)))
        assert_same(*found)


@pytest.mark.parametrize("name", LAYERS)
def test_compiles_whole(name: str, fresh_graphs: None) -> None:
    layer = getattr(fusedrnn, name)(I, 8, zoneout=0.3, recurrent_dropout=0.4, backend="cuda").double()
    compiled, x = torch.compile(layer, fullgraph=True, backend="aot_eager"), rand(T, B, I)
    leaf = x.clone().requires_grad_()
    torch.manual_seed(5)
    out = tensors(compiled(leaf))
    assert_same(out + gradients(out, [leaf, *layer.parameters()]), results(layer, x))
