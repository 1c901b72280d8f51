"""Autocast's dtypes on a GPU are torch's; frozen casts once; projections go where they can."""

from __future__ import annotations

import copy
import functools
import itertools
from typing import Any

import pytest
import torch
from close import assert_no_worse
from pairs import tensors
from problems import DEVICE, DTYPES
from small import B, H, I, T, against_the_cpu, as_hx, each_backend, each_cell, rand, small, states
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import fusedrnn
from fusedrnn.errors import UnsupportedProblem

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:LSTM with projections is not supported")]
LOW = [DTYPES[kind][0] for kind in ("fp16", "bf16") if kind in DTYPES]
each_low = pytest.mark.parametrize("low", LOW, ids=str)
ROWS = functools.partial(pack_padded_sequence, lengths=torch.tensor([5, 9, 9, 1]), enforce_sorted=False)


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@each_low
@pytest.mark.parametrize("backend", ["cuda", "reference"])
@each_cell
def test_autocast_gives_torchs_dtypes_no_less_accurate(cell: str, backend: str, low: torch.dtype, packed: bool) -> None:
    """Of outputs and states, whatever input and states come in; against torch's layer on this device."""
    stock = getattr(nn, cell)(I, H, 2, bidirectional=True, device=DEVICE)
    layer = fusedrnn.convert(copy.deepcopy(stock), backend=backend)
    exact, compared = copy.deepcopy(stock).cpu().double(), 0

    def run(layer: nn.Module, x: Tensor, hx: list[Tensor]) -> dict[int, Tensor]:
        weight = next(layer.parameters())
        x, hx = ROWS(x) if packed else x, [h.to(weight.device) for h in hx]
        return dict(enumerate(t.cpu() for t in tensors(layer(x.to(weight.device), as_hx(hx) if hx else None))))

    for of_x, of_hx in itertools.product((torch.float, low), (None, torch.float, low)):
        x, hx = rand(T, B, I).to(of_x), [] if of_hx is None else [h.to(of_hx) for h in states(layer)]
        with torch.no_grad(), torch.autocast(DEVICE, low):
            try:
                torchs = run(stock, x, hx)
            except RuntimeError:  # what torch does not mix, nobody expects
                continue
            found = run(layer, x, hx)
            assert_no_worse(found, run(exact, x.double(), [h.double() for h in hx]), torchs)
        compared += 1
    assert compared >= 2


@each_low
@each_backend
@each_cell
def test_autocast_is_a_cast_of_everything(cell: str, backend: str, low: torch.dtype) -> None:
    """To the bit, backward too; gradients have the dtypes of what they belong to."""
    layer = getattr(fusedrnn, cell)(I, H, 2, bidirectional=True, device=DEVICE, backend=backend)
    given = [t.to(DEVICE, torch.float) for t in (rand(T, B, I), *states(layer))]

    def run(enabled: bool) -> list[Tensor]:
        x, *hx = (t.to(next(layer.parameters()).dtype).requires_grad_() for t in given)
        with torch.autocast(DEVICE, low, enabled=enabled):
            y = layer(x, as_hx(hx))[0]
        return [y, *torch.autograd.grad(y, [x, *hx, *layer.parameters()], torch.ones_like(y))]

    y, *gradients = run(True)
    assert {g.dtype for g in gradients} == {torch.float}
    layer.to(y.dtype)
    want_y, *want = run(False)
    assert torch.equal(y, want_y)
    assert all(torch.equal(a, b.float()) for a, b in zip(gradients, want, strict=True))


@pytest.mark.parametrize("backend", ["reference", "cudnn", "auto"])
def test_projection(backend: str) -> None:
    layer = small("LSTM", backend, num_layers=2, bidirectional=True, proj_size=5)
    given = [rand(T, B, I), *states(layer)]

    def run(layer: Any, device: str) -> list[Tensor]:
        x, *hx = (t.to(device).requires_grad_() for t in given)
        outputs = tensors(layer(x, as_hx(hx)))
        return [*outputs, *torch.autograd.grad(sum(t.square().sum() for t in outputs), [x, *hx, *layer.parameters()])]

    against_the_cpu(layer, run)


@pytest.mark.parametrize("low", [None, *LOW], ids=str)
def test_projection_under_autocast(low: torch.dtype | None) -> None:
    """Outputs, h and c each in torch's dtype."""
    stock = nn.LSTM(I, H, proj_size=5, device=DEVICE)
    layer, x = fusedrnn.convert(copy.deepcopy(stock)), rand(T, B, I).to(DEVICE, torch.float)
    with torch.autocast(DEVICE, low, enabled=low is not None):
        found, want = tensors(layer(x)), tensors(stock(x))
    assert [t.dtype for t in found] == [t.dtype for t in want]


def test_the_kernels_refuse_a_projection_by_name() -> None:
    layer = small("LSTM", "cuda", proj_size=5)
    with pytest.raises(UnsupportedProblem, match=r"backend 'cuda' cannot take this call: .*proj_size"):
        layer(rand(T, B, I).to(DEVICE))
