"""The specification against torch.nn: whole, row by row, and segment by segment."""

from __future__ import annotations

import itertools

import pytest
import torch
from bare import STOCK, B, H, I, T, scan_arguments
from close import assert_same
from torch import Tensor, nn

from fusedrnn import reference
from fusedrnn.spec import CELLS, GRU, LSTM, RNN_TANH, CellSpec, by_mode

OPTIONS = ({}, {"bias": False}, {"bidirectional": True}, {"bidirectional": True, "bias": False})
LENGTHS = torch.tensor([4, 0, 6])


def stock(spec: CellSpec, **options: object) -> nn.RNNBase:
    if spec.mode.startswith("RNN"):
        options["nonlinearity"] = spec.mode[4:].lower()
    return STOCK[spec.mode](I, H, dtype=torch.float64, **options)


def start(layer: nn.RNNBase, rows: int = B) -> list[Tensor]:
    """Random states that want a gradient."""
    directions = 2 if layer.bidirectional else 1
    sizes = (layer.proj_size or H, H)[: len(by_mode(layer.mode).states)]
    return [torch.randn(directions, rows, size, dtype=torch.float64, requires_grad=True) for size in sizes]


def run_stock(layer: nn.RNNBase, x: Tensor, hx: list[Tensor] | None) -> list[Tensor]:
    """y and the last states."""
    lstm = layer.mode == "LSTM"
    y, last = layer(x, hx if hx is None or lstm else hx[0])
    return [y, *(last if lstm else (last,))]


def run(
    layer: nn.RNNBase, x: Tensor, hx: list[Tensor] | None, lengths: Tensor | None = None, reset: Tensor | None = None
) -> list[Tensor]:
    spec, weights = by_mode(layer.mode), layer._flat_weights
    h0, c0 = (*(hx or ()), None, None)[:2]
    directions = 2 if layer.bidirectional else 1
    y, hn, _, cn = reference.layer(x, h0, c0, weights, lengths, reset, spec, directions)
    return [y, hn] if cn is None else [y, hn, cn]


def with_gradients(out: list[Tensor], leaves: list[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    upstream = [torch.randn(o.shape, generator=generator, dtype=o.dtype) for o in out]
    return [*out, *torch.autograd.grad(out, leaves, upstream, materialize_grads=True)]


def in_segments(layer: nn.RNNBase, x: Tensor, hx: list[Tensor], lengths: Tensor, reset: Tensor) -> list[Tensor]:
    """Every row's segments run one by one by torch, each direction apart, put together: what lengths and reset mean."""
    spec, halves = by_mode(layer.mode), []
    each = len(layer._flat_weights) // (2 if layer.bidirectional else 1)
    for d in range(2 if layer.bidirectional else 1):
        one = stock(spec, bias=layer.bias)
        one._flat_weights = layer._flat_weights[d * each : (d + 1) * each]
        rows = []
        for b in range(x.shape[1]):
            n = int(lengths[b])
            cuts = [t for t in range(n) if reset[t, b]]
            edges = [0, *(t for t in cuts if t > 0), n] if n else []
            spans = list(itertools.pairwise(edges))[:: -1 if d else 1]
            state, outputs = [h[d : d + 1, b : b + 1] for h in hx], {}
            for k, (first, last) in enumerate(spans):
                if k or (d == 0 and first in cuts):
                    state = [torch.zeros_like(h) for h in state]
                piece = x[first:last, b : b + 1]
                y, *state = run_stock(one, piece.flip(0) if d else piece, state)
                outputs[first] = y.flip(0) if d else y
            parts = [outputs[first] for first in sorted(outputs)]
            pad = x.new_zeros(x.shape[0] - n, 1, layer.hidden_size)
            rows.append([torch.cat([*parts, pad]), *state])
        halves.append([torch.cat(part, 1) for part in zip(*rows, strict=True)])
    y, *last = zip(*halves, strict=True)
    return [torch.cat(y, -1), *(torch.cat(h) for h in last)]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("given", [True, False])
def test_equals_torch(cell: CellSpec, options: dict[str, bool], given: bool) -> None:
    layer = stock(cell, **options)
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    hx = start(layer) if given else None
    leaves = [x, *(hx or ()), *layer.parameters()]
    assert_same(with_gradients(run(layer, x, hx), leaves), with_gradients(run_stock(layer, x, hx), leaves))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_projection_equals_torch(options: dict[str, bool]) -> None:
    layer = stock(LSTM, proj_size=2, **options)
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    hx = start(layer)
    leaves = [x, *hx, *layer.parameters()]
    assert_same(with_gradients(run(layer, x, hx), leaves), with_gradients(run_stock(layer, x, hx), leaves))


@pytest.mark.parametrize("bidirectional", [False, True])
def test_lengths_and_resets_are_segments_run_one_by_one(cell: CellSpec, bidirectional: bool) -> None:
    layer = stock(cell, bidirectional=bidirectional)
    rows = 8
    x = torch.randn(T, rows, I, dtype=torch.float64, requires_grad=True)
    hx = start(layer, rows)
    lengths = torch.tensor([6, 6, 6, 4, 4, 1, 0, 3])
    reset = torch.zeros(T, rows, dtype=torch.bool)
    reset[0, 1] = reset[3, 1] = reset[5, 2] = True  # at the first step, inside, at the last step
    reset[4, 3] = reset[5, 3] = True  # at padded steps: at the first of them, which stands beside a real one
    reset[1, 4] = reset[2, 4] = reset[3, 4] = True  # neighbours
    reset[:, 5] = reset[:, 6] = True
    leaves = [x, *hx, *layer.parameters()]
    found = with_gradients(run(layer, x, hx, lengths, reset), leaves)
    assert_same(found, with_gradients(in_segments(layer, x, hx, lengths, reset), leaves))


def test_lengths_are_clamped() -> None:
    layer = stock(GRU, bidirectional=True)
    x, hx = torch.randn(T, B, I, dtype=torch.float64), start(layer)
    assert_same(run(layer, x, hx, torch.tensor([-3, 9, 4])), run(layer, x, hx, torch.tensor([0, T, 4])))


def test_padding_is_not_read() -> None:
    """NaN beyond a row's length reaches neither outputs nor gradients."""
    layer = stock(LSTM, bidirectional=True)
    x, hx = torch.randn(T, B, I, dtype=torch.float64), start(layer)
    dirty = x.clone()
    for b, n in enumerate(LENGTHS.tolist()):
        dirty[n:, b] = torch.nan
    assert_same(run(layer, dirty, hx, LENGTHS), run(layer, x, hx, LENGTHS))


def streams(cell: CellSpec, masked: bool) -> tuple[list[Tensor | None], tuple[Tensor | None, Tensor | None]]:
    """Two members of two directions: arguments of `scan`, and its masks, which differ in every stream."""
    args = scan_arguments(cell, streams=4, requires_grad=True)
    lengths = torch.tensor([[6, 3, 0], [5, 6, 1], [2, 6, 6], [4, 4, 4]])
    return args, (lengths, torch.rand(T, B, 4) < 0.3) if masked else (None, None)


def of_streams(t: Tensor | None, which: slice) -> Tensor | None:
    """Those streams of [T,B,S,...] or [S,...]."""
    return t if t is None or t.dim() == 1 else t[:, :, which] if t.dim() == 4 else t[which]


@pytest.mark.parametrize("masked", [False, True])
def test_members_are_streams(cell: CellSpec, masked: bool) -> None:
    args, (lengths, reset) = streams(cell, masked)
    whole = reference.scan(*args, lengths, reset, cell, 2)
    for which in (slice(0, 2), slice(2, 4)):
        masks = None if lengths is None else lengths[which], None if reset is None else reset[:, :, which]
        alone = reference.scan(*(of_streams(t, which) for t in args), *masks, cell, 2)
        assert_same([of_streams(t, which) for t in whole], alone)


def test_layer_is_projection_and_scan(cell: CellSpec) -> None:
    layer = stock(cell, bidirectional=True)
    x, hx, reset = torch.randn(T, B, I, dtype=torch.float64), start(layer), torch.rand(T, B) < 0.3
    ih, hh, b_ih, b_hh = (torch.stack(layer._flat_weights[k::4]) for k in range(4))
    gates_x = torch.einsum("tbi,sgi->tbsg", x, ih) + b_ih
    c0 = hx[1] if cell is LSTM else None
    masks = LENGTHS.expand(2, B), reset.unsqueeze(-1).expand(T, B, 2)
    y, hn, _, cs, cn = reference.scan(gates_x, hx[0], c0, hh, b_hh, *masks, cell, 2)
    found = reference.layer(x, hx[0], c0, layer._flat_weights, LENGTHS, reset, cell, 2)
    if cell is LSTM:
        assert_same(found, [y.flatten(2), hn, cs.flatten(2), cn])
    else:
        assert_same(found[:2], [y.flatten(2), hn])
        assert found[2:] == (None, None)


@pytest.mark.parametrize("masked", [False, True])
def test_adjoint_is_the_gradient(cell: CellSpec, masked: bool) -> None:
    """scan_backward, written by hand, against autograd through scan, from gradients of everything that scan returns."""
    args, masks = streams(cell, masked)
    out = reference.scan(*args, *masks, cell, 2)
    y, _, gates, cs, _ = out
    upstream = [torch.randn_like(t) if t.requires_grad else None for t in out]
    pairs = [(o, g) for o, g in zip(out, upstream, strict=True) if g is not None]
    found = reference.scan_backward(
        *upstream, gates, y, args[1], cs if cell is LSTM else None, args[2], args[3], *masks, cell, 2
    )
    outputs, given = zip(*pairs, strict=True)
    leaves = [t for t in args[:3] if t is not None]
    want = torch.autograd.grad(outputs, leaves, given, retain_graph=True)
    assert_same([t for t in found[:3] if t.dim() > 1], want)
    if cell is GRU:
        dq_bias = torch.autograd.grad(outputs, args[4], given)[0][:, 2 * H :]
        assert_same([found[3].sum((0, 1))], [dq_bias])


def test_adjoint_without_initial_states_and_with_one_upstream_gradient() -> None:
    for cell in CELLS:
        gates_x, _, _, weight, bias = scan_arguments(cell, requires_grad=True)
        out = reference.scan(gates_x, None, None, weight, bias, None, None, cell, 2)
        for i in (0, 1, *((3, 4) if cell is LSTM else ())):
            upstream: list[Tensor | None] = [None] * 5
            upstream[i] = torch.randn_like(out[i])
            found = reference.scan_backward(
                *upstream, out[2], out[0], None, out[3] if cell is LSTM else None, None, weight, None, None, cell, 2
            )
            want = torch.autograd.grad(out[i], gates_x, upstream[i], retain_graph=True)
            assert_same(found[:1], want)


@pytest.mark.parametrize("masked", [False, True])
def test_previous_is_what_each_step_started_from(masked: bool) -> None:
    """A step from `previous` gives the step's output: checked on the tanh cell, whose step is one line."""
    args, (lengths, reset) = streams(RNN_TANH, masked)
    gates_x, h0, _, weight, bias = args
    y = reference.scan(*args, lengths, reset, RNN_TANH, 2)[0]
    before = reference.previous(y, h0, lengths, reset, 2)
    again = torch.tanh(gates_x + torch.einsum("tbsh,sgh->tbsg", before, weight) + bias)
    if lengths is not None:
        again = torch.where((torch.arange(T).view(T, 1, 1) < lengths.T).unsqueeze(-1), again, 0.0)
    assert_same([y], [again])


def test_computes_in_the_dtype_given(cell: CellSpec) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        args = scan_arguments(cell, dtype=dtype)
        assert {t.dtype for t in reference.scan(*args, None, None, cell, 2)} == {dtype}
