"""Layer normalisation in the CUDA kernels, run by the CPU's stand-in for a GPU: ops and layers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import norm_check
import pytest
import torch
from bare import label
from close import assert_same
from cuda_check import ALLOW_TF32, host
from kernel_cases import NOISES, noise_of
from normed_loop import shaken
from pairs import LAYERS, B, I, T, gradients, initial, needs_kernel, rand, tensors
from recurrence_check import PRECISIONS, Case, draw
from stand_in import stand_in
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence

import fusedrnn
from fusedrnn import backends, ops, reference
from fusedrnn.errors import UnsupportedProblem
from fusedrnn.spec import GRU, LSTM, RNN_RELU, RNN_TANH, Problem

pytestmark = [needs_kernel, pytest.mark.slow, pytest.mark.usefixtures("stand_in", "one_thread")]
each_precision = pytest.mark.parametrize("precision", PRECISIONS)
each_kind = pytest.mark.parametrize("kind", NOISES)
EVERY = ("y", "hn", "cn", "cs")
"""Gradients that can flow in."""


@pytest.fixture(name="stand_in")
def _stand_in() -> Iterator[None]:
    with stand_in():
        yield


# The ops.


def check(case: Case, precision: str) -> None:
    route = ALLOW_TF32 if precision == "tf32" else 0
    norm_check.check(
        case,
        precision,
        lambda *given: ops.norm_scan(*given, route=route),
        lambda *given: ops.norm_scan_backward(*given, route=route),
    )


@each_precision
@pytest.mark.parametrize(
    "case",
    [
        {"T": 5, "B": 13, "H": 40, "directions": 2, "upstream": EVERY},
        {"T": 3, "B": 2, "H": 264, "states": "", "bias": False},  # more units than a CTA has threads
        {"T": 4, "B": 37, "H": 16, "streams": 3, "states": "", "lengths": True},
        {"T": 6, "B": 5, "H": 24, "directions": 2, "lengths": True, "reset": True, "upstream": EVERY},
        {"T": 1, "B": 1, "H": 32, "states": "h", "upstream": ("hn", "cn")},
    ],
    ids=label,
)
def test_the_ops(cell: Any, precision: str, case: dict[str, Any]) -> None:
    check(Case(cell, **case), precision)


@each_precision
@each_kind
@pytest.mark.parametrize(
    "case",
    [
        {"T": 5, "B": 4, "H": 24, "directions": 2, "lengths": True, "reset": True, "upstream": EVERY},
        {"T": 3, "B": 9, "H": 16, "states": "", "bias": False},
    ],
    ids=label,
)
def test_with_noise(cell: Any, precision: str, kind: str, case: dict[str, Any]) -> None:
    key, rates = noise_of(kind, cell)
    check(Case(cell, rates=rates, key=key, **case), precision)


@pytest.mark.parametrize("rates", [(0.4, 0.0, 0.0), (0.0, 0.4, 0.0), (0.0, 0.7, 0.2)])
def test_rates_of_their_own(rates: tuple[float, ...]) -> None:
    check(Case(LSTM, 5, 3, 24, 2, upstream=EVERY, rates=rates, key=(2**32 - 3, 77)), "fp64")


@pytest.mark.parametrize("starts", [False, True])
@pytest.mark.parametrize("kind", [None, *NOISES])
def test_the_adjoint_they_are_held_to_is_autograds(cell: Any, kind: str | None, starts: bool) -> None:
    key, rates = noise_of(kind, cell) if kind else (None, ())
    case = Case(cell, 5, 4, 16, 2, lengths=True, reset=True, upstream=EVERY, rates=rates, key=key, starts=starts)
    problem, norms = draw(case, torch.float64), norm_check.gains(case, torch.float64)
    masks, resets = (problem.lengths, problem.reset), norm_check.starts(case, torch.float64)
    leaves = [t.requires_grad_() for t in (*problem.given, *norms, *resets) if t is not None]
    rest = (resets, *masks, cell, 2, case.noise)
    y, hn, gates, cs, cn, products = norm_check.scan(problem.given, norms, *rest)
    dy, dhn, _, dcs, dcn = problem.upstream
    flows = [(out, d) for out, d in ((y, dy), (hn, dhn), (cs, dcs), (cn, dcn)) if d is not None]
    outs, above = zip(*flows, strict=True)
    want = dict(zip(leaves, torch.autograd.grad(outs, leaves, above), strict=True))
    with torch.no_grad():
        _, h0, c0, w, bias = problem.given
        kept = (gates, y, h0, cs if cell is LSTM else None, c0, w, products)
        found = norm_check.scan_backward(problem.upstream, kept, norms, *rest)
    dgates_x, dh0, dc0, dq, dproducts, *back = found
    of_sum = torch.cat([dgates_x[..., :32], dq], -1) if cell is GRU else dgates_x
    seen = reference.previous(y, h0, *masks, 2, resets[0])
    if rates and rates[2]:
        seen = seen * fusedrnn.philox.dropout_mask(rates[2], torch.tensor(key), 2, 4, seen, 16).transpose(0, 1)
    pairs = [(dgates_x, problem.given[0]), (dh0, h0), (of_sum.sum((0, 1)), bias)]
    pairs += [(torch.einsum("tbsg,tbsh->sgh", dproducts, seen), w)]
    pairs += [((of_sum * reference.standardised(products, cell)).sum((0, 1)), norms[0])]
    if cell is LSTM:
        pairs += [(dc0, c0), (dq.sum((0, 1)), norms[2])]
    pairs += [(of_rows.sum(1), state) for of_rows, state in zip(back, resets, strict=True) if state is not None]
    assert_same([value for value, _ in pairs], [want[leaf] for _, leaf in pairs])


@each_precision
def test_results_depend_on_neither_timing_nor_the_other_rows(cell: Any, precision: str) -> None:
    case = Case(
        cell, 3, 11, 264, 2, lengths=True, reset=True, rates=(0.2, 0.2 if cell is LSTM else 0.0, 0.3), key=(5, 7)
    )
    problem, norms = draw(case, PRECISIONS[precision]), norm_check.gains(case, torch.float64)
    route = ALLOW_TF32 if precision == "tf32" else 0

    def run(rows: int) -> list[Tensor]:
        def cut(t: Tensor | None, axis: int = 1) -> Tensor | None:
            return None if t is None else t.narrow(axis, 0, rows)

        gates_x, h0, c0, w, bias = problem.laid(*problem.given)
        masks = (cut(problem.lengths), cut(problem.reset), None, None)
        tail = (*masks, *(None if t is None else t.to(w.dtype) for t in norms), *case.noise, cell.code, 2)
        y, hn, gates, cs, cn, products = ops.norm_scan(
            cut(gates_x), cut(h0), cut(c0), w, bias, *tail, True, route=route
        )
        dy, dhn, _, dcs, dcn = map(cut, problem.laid(*problem.upstream))
        kept = (gates, y, cut(h0), cs if cell is LSTM else None, cut(c0), w, products)
        back = ops.norm_scan_backward(dy, dhn, dcs, dcn, *kept, *tail, route=route)
        return [t for t in (y, hn, gates, cs, cn, products, *back) if t.numel()]

    want = run(11)
    try:
        for seed in (2, 3):
            host().seed(seed)
            assert all(map(torch.equal, run(11), want))
    finally:
        host().seed(1)
    assert all(torch.equal(few, all_.narrow(1, 0, 4)) for few, all_ in zip(run(4), want, strict=True))


def test_what_the_ops_refuse() -> None:
    gates_x, w, y = torch.zeros(2, 3, 1, 32), torch.zeros(1, 32, 8), torch.zeros(2, 3, 1, 8)
    gain, of_c = torch.ones(1, 32), torch.ones(1, 8)

    def scan(gain: Tensor = gain, of_c: Any = of_c, shift: Any = None, rates: Any = (), route: int = 0) -> Any:
        masks, code = [None] * 4, LSTM.code
        return ops.norm_scan(
            gates_x, None, None, w, None, *masks, gain, of_c, shift, None, list(rates), code, 1, True, route
        )

    def scan_backward(products: Tensor, gain: Tensor = gain) -> Any:
        absent: Any = [None] * 4
        kept = (gates_x, y, None, y, None, w, products)
        return ops.norm_scan_backward(*absent, *kept, *[None] * 4, gain, of_c, None, None, [], LSTM.code, 1)

    def of_gru(of_c: Tensor | None) -> Any:
        masks: Any = [None] * 4
        return ops.norm_scan(
            gates_x[..., :24],
            None,
            None,
            w[:, :24],
            None,
            *masks,
            gain[:, :24],
            of_c,
            None,
            None,
            [],
            GRU.code,
            1,
            True,
        )

    for text, call in (
        (r"gain_hh: expected \[1, 32\], got \[1, 31\]", lambda: scan(gain[:, :31])),
        ("gain_hh: expected the dtype", lambda: scan(gain.double())),
        (r"gain_c: expected \[1, 8\], got \[2, 8\]", lambda: scan(of_c=torch.ones(2, 8))),
        ("the LSTM has a gain of c", lambda: scan(of_c=None)),
        ("other cells have none", lambda: of_gru(of_c)),
        (r"shift_c: expected \[1, 8\], got \[1, 4\]", lambda: scan(shift=torch.ones(1, 4))),
        ("rates: expected those of zoneout", lambda: scan(rates=(0.5,))),
        ("cta: layer normalisation is the time-step kernel's, expected none", lambda: scan(route=2)),
        ("grid: layer normalisation is the time-step kernel's, expected none", lambda: scan(route=4)),
        (r"products: expected \[2, 3, 1, 32\], got \[2, 3, 1, 8\]", lambda: scan_backward(y)),
        ("gain_hh: expected", lambda: scan_backward(gates_x, gain[0])),
    ):
        with pytest.raises(RuntimeError, match=text):
            call()
    scan(route=1)
    scan_backward(gates_x)
    of_gru(None)


# Whole layers, against the reference in float64.


def results(layer: Any, x: Tensor, hx: list[Tensor], call: Any = None, **masks: Tensor) -> list[Tensor]:
    """Outputs and every gradient, from a generator that always starts alike."""
    torch.manual_seed(5)
    leaves = [t.detach().requires_grad_() for t in (x, *hx)]
    state = None if not hx else tuple(leaves[1:]) if len(hx) == 2 else leaves[1]
    out = call(layer, leaves[0]) if call else tensors(layer(leaves[0], state, **masks))
    return out + gradients(out, [*leaves, *layer.parameters()])


def compared(name: str, *, call: Any = None, x: Tensor | None = None, training: bool = True, **options: Any) -> None:
    torch.manual_seed(0)
    settings = {"num_layers": 2, "bidirectional": True} | options
    layer = shaken(getattr(fusedrnn, name)(I, 16, dtype=torch.double, layer_norm=True, **settings)).train(training)
    x = rand(T, B, I) if x is None else x
    lengths, reset = torch.tensor([2, T, 0]), torch.rand(T, B) < 0.4
    for masks in ({},) if call else ({}, {"lengths": lengths}, {"lengths": lengths, "reset": reset}):
        hx = [] if call else tensors([initial(layer)])
        layer.backend = "cuda"
        found = results(layer, x, hx, call, **masks)
        layer.backend = "reference"
        assert_same(found, results(layer, x, hx, call, **masks))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
def test_layers(name: str, bias: bool) -> None:
    compared(name, bias=bias)


def test_relu() -> None:
    compared("RNN", nonlinearity="relu", num_layers=1)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_noise(name: str, training: bool) -> None:
    noise = {"zoneout": 0.3, "recurrent_dropout": 0.4, "weight_dropout": 0.2}
    if name == "RNN" and not training:
        noise["zoneout"] = 0.0  # of its mean the kernels have no gradient
    compared(name, training=training, **noise)


@pytest.mark.parametrize("name", LAYERS)
def test_recompute_truncation_and_states(name: str) -> None:
    compared(name, recompute=True)
    compared(name, call=lambda layer, x: tensors(layer(x)), bptt=2)
    compared(name, call=lambda layer, x: tensors(layer(x, return_states=True)))


@pytest.mark.parametrize("name", LAYERS)
def test_packed_rows(name: str) -> None:
    lengths = [3, 6, 1, 6]

    def call(layer: Any, x: Tensor) -> list[Tensor]:
        y, last = layer(pack_sequence(list(x.split(lengths)), enforce_sorted=False))
        return [y.data, *tensors([last])]

    compared(name, call=call, x=rand(16, I))


@pytest.mark.parametrize("name", LAYERS)
def test_first_and_second_derivatives(name: str) -> None:
    layer = shaken(getattr(fusedrnn, name)(2, 8, dtype=torch.double, layer_norm=True, backend="cuda"))
    x = rand(3, 2, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: layer(x)[0], (x,))
    assert torch.autograd.gradgradcheck(lambda x: layer(x)[0].sum(-1), (x,))


@pytest.mark.parametrize("name", LAYERS)
def test_compiles_whole(name: str, fresh_graphs: None) -> None:
    layer = shaken(getattr(fusedrnn, name)(I, 16, layer_norm=True, zoneout=0.3, backend="cuda").double())
    compiled, x = torch.compile(layer, fullgraph=True, backend="aot_eager"), rand(T, B, I)
    leaf = x.clone().requires_grad_()
    torch.manual_seed(5)
    out = tensors(compiled(leaf))
    assert_same(out + gradients(out, [leaf, *layer.parameters()]), results(layer, x, []))


def test_without_gradients_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, run = [], ops.norm_scan

    def noted(*given: Any) -> Any:
        out = run(*given)
        kept.append((out[2].numel(), out[5].numel()))
        return out

    monkeypatch.setattr(ops, "norm_scan", noted)
    layer, x = fusedrnn.GRU(I, 8, layer_norm=True, backend="cuda"), rand(T, B, I).float()
    with torch.no_grad():
        want = layer(x)[0]
    assert torch.equal(layer(x)[0], want)
    assert kept == [(0, 0), (T * B * 32, T * B * 24)]


def test_regimes_and_what_the_backend_refuses() -> None:
    problem = Problem(GRU, T, B, I, 8, layer_norm=True)
    assert backends.choose("cuda", problem) == "cuda"
    assert backends.choose("cuda:step", problem) == "cuda:step"
    for regime in ("cta", "cluster", "grid"):
        with pytest.raises(UnsupportedProblem, match=f"{regime}: layer normalisation is the time-step kernel's"):
            backends.choose(f"cuda:{regime}", problem)
    with pytest.raises(UnsupportedProblem, match="with layer_norm it takes a multiple of 8 hidden units, not 13"):
        backends.choose("cuda", problem._replace(H=13))
    for cell in (RNN_TANH, RNN_RELU):
        with pytest.raises(UnsupportedProblem, match="in eval it has no gradients of an RNN with zoneout"):
            backends.choose("cuda", problem._replace(cell=cell, zoneout=True, grad=True))
