"""Whole layers on the CUDA backend, its kernels run by the CPU's stand-in: all that a layer does but the GPU itself."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from bare import B, Bare, T, initial
from close import assert_no_worse
from fused_layers import DOUBLE, FusedLayers
from pairs import needs_kernel
from stand_in import stand_in
from test_functional import results
from torch import Tensor

import fusedrnn
from fusedrnn import ops, products
from fusedrnn.errors import UnsupportedProblem
from fusedrnn.spec import GRU, CellSpec

pytestmark = [needs_kernel, pytest.mark.slow, pytest.mark.usefixtures("stand_in", "one_thread")]


@pytest.fixture(name="stand_in")
def _stand_in() -> Iterator[None]:
    with stand_in():
        yield


class TestLayers(FusedLayers):
    backend = "cuda"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tf32", [False, True])
def test_is_as_exact_as_torch(cell: CellSpec, dtype: torch.dtype, tf32: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "layers_allow_tf32", lambda: tf32)
    layer = Bare(cell, 20, 24, backend="cuda", bidirectional=True).to(dtype)
    exact = Bare(cell, 20, 24, bidirectional=True).double()
    exact.load_state_dict(layer.state_dict())
    x, hx = torch.randn(12, 5, 20, dtype=dtype, requires_grad=True), initial(layer, 5, requires_grad=True)
    wide = (t.detach().double().requires_grad_() for t in (x, *hx))
    truth = results(exact.twin(), next(wide), tuple(wide), list(exact.parameters()))
    found, torchs = (results(call, x, hx, list(layer.parameters())) for call in (layer, layer.twin()))
    if tf32 and dtype == torch.float32:  # the yardstick is torch's float32: nothing but TF32 is so far from it
        with pytest.raises(AssertionError, match="out0: L2"):
            assert_no_worse(found, truth, torchs)
    else:
        assert_no_worse(found, truth, torchs)


def test_regimes_by_name() -> None:
    layer, x = Bare(GRU, 4, 8, backend="cuda:step"), torch.randn(T, B, 4)
    want = layer.twin()(x)
    torch.testing.assert_close(layer(x), want)
    layer.double().backend = "cuda:cta"
    with pytest.raises(UnsupportedProblem, match=r"backend 'cuda:cta' cannot take this call: .*fp64"):
        layer(x.double())


def test_bad_input_to_the_ops() -> None:
    gates_x, w = torch.zeros(2, 3, 1, 24), torch.zeros(1, 24, 8)
    rest = (None, None, None, None, [], GRU.code, 1, True)

    def scan(gates_x: Tensor, w: Tensor, route: int = 0, **options: Any) -> Any:
        return ops.scan(gates_x, options.get("h0"), None, w, None, None, None, *rest, route=route)

    for text, call in (
        (
            "expected a multiple of 8 hidden units, got 4|a multiple of 8 hidden units, got 4",
            lambda: scan(gates_x[..., :12], w[:, :12, :4]),
        ),
        ("route: expected a regime from 0 to 4", lambda: scan(gates_x, w, 5)),
        ("route: expected a regime from 0 to 4", lambda: scan(gates_x, w, 16)),
        ("the CUDA kernels take float16", lambda: scan(gates_x.to(torch.int32), w.to(torch.int32))),
        ("h0: expected", lambda: scan(gates_x, w, h0=torch.zeros(1, 2, 8))),
        ("weight_hh: expected the dtype", lambda: scan(gates_x, w.double())),
    ):
        with pytest.raises(RuntimeError, match=text):
            call()


def test_two_threads_at_once() -> None:
    layer, x = fusedrnn.LSTM(4, 8, backend="cuda").double(), torch.randn(9, 3, 4, dtype=DOUBLE)
    want = layer(x)[0].detach()
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: layer(x)[0].detach(), range(6)))
    assert all(torch.equal(y, want) for y in found)


def test_bad_packed_input_to_the_ops() -> None:
    w, rows = torch.zeros(1, 24, 8), torch.tensor([[3, 3]])

    def scan(gates_x: Tensor, offsets: Tensor, lengths: Tensor = rows, reset: Tensor | None = None) -> Any:
        reserved = (None, None, offsets, None, [], GRU.code, 1, True)
        return ops.scan(gates_x, None, None, w, None, lengths, reset, *reserved)

    fine, offsets = torch.zeros(6, 1, 1, 24), torch.tensor([0, 2, 4])
    scan(fine, offsets)
    for text, call in (
        ("sequences", lambda: scan(torch.zeros(6, 2, 1, 24), offsets)),
        ("sequences", lambda: scan(torch.zeros(7, 1, 1, 24), offsets)),
        ("sequences", lambda: scan(torch.zeros(1, 1, 1, 24), offsets)),
        ("at least one step and one row", lambda: scan(fine, offsets[:0])),
        ("at least one step and one row", lambda: scan(fine, offsets, rows[:, :0])),
        ("int64", lambda: scan(fine, offsets.int())),
        ("no resets", lambda: scan(fine, offsets, rows, torch.zeros(6, 1, 1, dtype=torch.bool))),
    ):
        with pytest.raises(RuntimeError, match=text):
            call()
    y = torch.zeros(2, 3, 1, 8)
    with pytest.raises(RuntimeError, match="dy: expected"):
        ops.scan_backward(
            torch.ones(5), None, None, None, None, torch.zeros(2, 3, 1, 32), y, None, None, None, w, None, None, 0, 1
        )
