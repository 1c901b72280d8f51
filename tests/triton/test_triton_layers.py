"""Whole layers on the Triton backend, its kernels interpreted: all that a layer does but the GPU itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from bare import B, Bare, T, gradients, initial
from close import assert_no_worse, assert_same
from fused_layers import DOUBLE, FusedLayers
from test_functional import results
from torch import Tensor

import fusedrnn
from fusedrnn import ops
from fusedrnn.errors import UnsupportedProblem
from fusedrnn.spec import GRU, LSTM, RNN_RELU, CellSpec
from fusedrnn.triton_kernels import launch

pytestmark = pytest.mark.usefixtures("one_thread")


class TestLayers(FusedLayers):
    backend = "triton"
    fast = True


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_is_as_exact_as_torch(cell: CellSpec, dtype: torch.dtype) -> None:
    if cell is RNN_RELU and dtype != torch.float32:
        pytest.skip("next to 0 a rounding decides whether a gradient passes; test_triton_kernels.py compares each pass")
    layer = Bare(cell, 20, 24, backend="triton", bidirectional=True).to(dtype)
    exact = Bare(cell, 20, 24, bidirectional=True).double()
    exact.load_state_dict(layer.state_dict())
    x, hx = torch.randn(5, 5, 20, dtype=dtype, requires_grad=True), initial(layer, 5, requires_grad=True)
    wide = (t.detach().double().requires_grad_() for t in (x, *hx))
    truth = results(exact.twin(), next(wide), tuple(wide), list(exact.parameters()))
    found, torchs = (results(call, x, hx, list(layer.parameters())) for call in (layer, layer.twin()))
    assert_no_worse(found, truth, torchs)


@pytest.mark.parametrize("regime", ["resident", "streamed", "step"])
def test_regimes_by_name(cell: CellSpec, regime: str) -> None:
    layer, x = Bare(cell, 4, 18, backend=f"triton:{regime}"), torch.randn(T, B, 4)  # no float64 is resident
    told = fusedrnn.explain(fusedrnn.convert(layer.twin().stock, backend=f"triton:{regime}"), x)
    assert (told.chosen, told.regime) == (f"triton:{regime}", regime)
    assert f"forward   {regime}" in str(told)
    torch.testing.assert_close(layer(x), layer.twin()(x))


def test_a_regime_that_cannot_is_refused_by_name() -> None:
    layer, x = Bare(GRU, 4, 300, backend="triton:resident"), torch.randn(T, B, 4)
    with pytest.raises(UnsupportedProblem, match=r"backend 'triton:resident' cannot take this call: .*300"):
        layer(x)
    layer.backend = "triton:grid"  # the interpreter runs one program after the other: none may wait for another
    with pytest.raises(UnsupportedProblem, match=r"backend 'triton:grid' cannot take this call"):
        layer(x)
    layer.backend = "triton"
    layer(x[:2])


def test_auto_leaves_the_interpreter_alone() -> None:
    told = fusedrnn.explain(fusedrnn.GRU(4, 8), torch.randn(T, B, 4))
    assert told.chosen != "triton"
    assert "Triton's interpreter is for tests" in str(told)


def test_compiled_with_one_graph_for_every_length() -> None:
    torch._dynamo.reset()
    layer = fusedrnn.GRU(4, 8, bidirectional=True, backend="triton")
    graphs = 0

    def count(module: torch.fx.GraphModule, inputs: object) -> Any:
        nonlocal graphs
        graphs += 1
        assert any("triton_scan" in str(node.target) for node in module.graph.nodes)
        return module.forward

    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=count)
    for steps, rows in ((5, 3), (4, 3), (6, 2)):
        x = torch.randn(steps, rows, 4)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x)[0], layer(x)[0])
    assert graphs == 1


@pytest.mark.parametrize("backend", ["triton", "triton:step"])
def test_compiled_gradients(backend: str) -> None:
    torch._dynamo.reset()
    layer = fusedrnn.LSTM(4, 6, backend=backend).double()
    x = torch.randn(4, 2, 4, dtype=DOUBLE, requires_grad=True)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")

    def run(call: Any) -> list[Tensor]:
        y = call(x)[0]
        return [y, *gradients((y,), [x, *layer.parameters()])]

    assert_same(run(compiled), run(layer))


def test_exported_with_open_sizes() -> None:
    layer, x = fusedrnn.GRU(4, 8, backend="triton"), torch.randn(5, 3, 4)
    sizes = ({0: torch.export.Dim("T", min=2), 1: torch.export.Dim("B", min=2)},)
    with torch.no_grad():
        program = torch.export.export(layer, (x,), dynamic_shapes=sizes)
        other = torch.randn(7, 2, 4)
        torch.testing.assert_close(program.module()(other)[0], layer(other)[0])


@pytest.mark.parametrize("name", ["GRUCell", "LSTMCell", "RNNCell"])
def test_cells(name: str) -> None:
    ours = getattr(fusedrnn, name)(5, 7, backend="triton", dtype=DOUBLE)
    theirs = getattr(torch.nn, name)(5, 7, dtype=DOUBLE)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, 5, dtype=DOUBLE, requires_grad=True)

    def run(cell: Any) -> list[Tensor]:
        out = cell(x)
        out = out if isinstance(out, tuple) else (out,)
        return [*out, *gradients(out, [x, *cell.parameters()])]

    assert_same(run(ours), run(theirs))


@pytest.mark.parametrize("rates", [[], [0.3, 0.0, 0.3]], ids=["", "noise"])
def test_opcheck(rates: list[float]) -> None:
    w, gates_x = torch.randn(2, 12, 4, dtype=DOUBLE), torch.randn(3, 2, 2, 12, dtype=DOUBLE)
    key = torch.tensor([1, 2]) if rates else None
    rest = (None, None, None, key, rates, GRU.code, 2, True, None, None, None, ops.TRITON)
    torch.library.opcheck(ops.triton_scan, (gates_x.requires_grad_(), None, None, w, None, None, None, *rest))


@pytest.fixture
def call() -> Any:
    def scan(gates_x: Tensor, w: Tensor, route: int = ops.TRITON, cell: CellSpec = GRU, **given: Any) -> Any:
        names = ("lengths", "reset", "reset_h", "reset_c", "offsets", "mask_key")
        rest = (*(given.get(name) for name in names), given.get("rates", []))
        rest = (*rest, cell.code, given.get("directions", 1), True)
        return ops.triton_scan(gates_x, given.get("h0"), given.get("c0"), w, given.get("bias"), *rest, route=route)

    return scan


def test_bad_input_to_the_ops(call: Any) -> None:
    gates_x, w = torch.zeros(2, 3, 1, 24), torch.zeros(1, 24, 8)
    ends, cuts = torch.tensor([[1, 2, 2]]), torch.zeros(2, 3, 1, dtype=torch.bool)
    for text, run in (
        ("gates_x: expected", lambda: call(gates_x[..., :23], w)),
        ("expected gates_x", lambda: call(gates_x[0], w)),
        ("route: expected", lambda: call(gates_x, w, 16 + 5)),
        ("route: expected", lambda: call(gates_x, w, 32)),
        ("expected float16", lambda: call(gates_x.int(), w.int())),
        ("cell: expected", lambda: ops.triton_scan(gates_x, *[None] * 2, w, *[None] * 7, [], 4, 1, True)),
        ("directions: expected", lambda: call(gates_x, w, directions=3)),
        ("multiple of 2 streams", lambda: call(gates_x, w, directions=2)),
        ("h0: expected", lambda: call(gates_x, w, h0=torch.zeros(1, 2, 8))),
        ("c0 is for the LSTM", lambda: call(gates_x, w, c0=torch.zeros(1, 3, 8))),
        ("weight_hh: expected", lambda: call(gates_x, w.double())),
        ("at least one step", lambda: call(gates_x[:0], w)),
        ("lengths: expected", lambda: call(gates_x, w, lengths=ends.int())),
        ("lengths: expected", lambda: call(gates_x, w, lengths=ends[:, :2])),
        ("reset: expected", lambda: call(gates_x, w, reset=cuts[:1])),
        ("offsets: expected int64", lambda: call(gates_x, w, offsets=torch.tensor([0, 3]))),
        ("packed rows take no resets", lambda: call(gates_x, w, offsets=ends[0], lengths=ends, reset=cuts)),
        ("offsets: expected sequences", lambda: call(gates_x, w, offsets=torch.tensor([0, 3]), lengths=ends)),
        *(
            (f"{name} is reserved", lambda name=name: call(gates_x, w, **{name: torch.ones(1)}))
            for name in ("reset_h", "reset_c")
        ),
        ("rates: expected those of zoneout of h, .* got 1", lambda: call(gates_x, w, rates=[0.1])),
        ("rates: expected probabilities, got 1.5", lambda: call(gates_x, w, rates=[1.5, 0.0, 0.0])),
        ("only the LSTM has a c", lambda: call(gates_x, w, rates=[0.0, 0.5, 0.0])),
        ("drawn by a mask_key", lambda: call(gates_x, w, rates=[0.0, 0.0, 0.5])),
        ("mask_key: expected", lambda: call(gates_x, w, rates=[0.5, 0.0, 0.0], mask_key=torch.ones(2))),
        ("does not stay|resident", lambda: call(torch.zeros(2, 3, 1, 3 * 300), torch.zeros(1, 900, 300), 16 + 1)),
    ):
        with pytest.raises(RuntimeError, match=text):
            run()
    y = torch.zeros(2, 3, 1, 8)
    for text, given in (
        ("dy: expected", {"dy": torch.zeros(2, 3, 1, 7)}),
        ("needs cs", {"cell": LSTM, "gates": torch.zeros(2, 3, 1, 32), "w": torch.zeros(1, 32, 8)}),
        ("gates: expected", {"gates": torch.zeros(2, 3, 1, 31)}),
    ):
        gates, weight = given.get("gates", torch.zeros(2, 3, 1, 32)), given.get("w", w)
        absent = [None] * 4
        with pytest.raises(RuntimeError, match=text):
            ops.triton_scan_backward(
                given.get("dy"), *absent, gates, y, None, None, None, weight, None, None, given.get("cell", GRU).code, 1
            )


def test_no_rows(cell: CellSpec) -> None:
    layer = Bare(cell, 3, 5, backend="triton")
    x = torch.zeros(4, 0, 3, requires_grad=True)
    y = layer(x)[0]
    assert y.shape == (4, 0, 5)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert gradient.shape == x.shape


def test_hidden_units_are_filled_up(cell: CellSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """To a multiple of eight, where the kernels do not spill."""
    seen = []
    scan = launch.scan
    monkeypatch.setattr(launch, "scan", lambda *given: seen.append(given[3].shape[2]) or scan(*given))
    for H in (1, 8, 13):
        Bare(cell, 3, H, backend="triton")(torch.randn(2, 2, 3))
    assert seen == [8, 8, 16]


@pytest.mark.parametrize("name", ["lengths", "reset"])
def test_masks_of_rows_that_lie_far_apart(name: str, tmp_path: Path) -> None:
    """More than 2^31 elements: the file behind them is never read, but for the elements themselves."""
    row, B = 2**30, 3
    dtype, shape, strides = (torch.int64, (B,), (row,)) if name == "lengths" else (torch.bool, (T, B), (1, row))
    memory = torch.from_file(str(tmp_path / "mask"), shared=True, size=(B - 1) * row + T, dtype=dtype)
    mask = memory.as_strided(shape, strides)
    mask[..., -1] = mask[..., 0] = 1
    layer, x = Bare(GRU, 3, 5, backend="triton"), torch.randn(T, B, 3)
    found = layer(x, **{name: mask})
    layer.backend = "reference"
    torch.testing.assert_close(found, layer(x, **{name: mask}))
