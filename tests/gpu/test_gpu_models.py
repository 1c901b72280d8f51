"""A whole model converted on a GPU, trained there and reverted, beside the same one in torch's layers on the CPU."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from close import assert_same
from problems import DEVICE
from small import B, H, I, T, each_backend, rand
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import fusedrnn

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:RNN module weights are not part of single contiguous"),
]


class Model(nn.Module):
    """Every class of layer, two of them reparametrised."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(I, I)
        self.gru = parametrizations.weight_norm(nn.GRU(I, H, num_layers=2, bidirectional=True), "weight_hh_l0")
        self.lstm = parametrizations.spectral_norm(nn.LSTM(2 * H, H), "weight_ih_l0")
        self.lstm.parametrizations.eval()  # in training torch's layer takes four steps of its iteration a call
        self.inner = nn.Sequential(nn.RNN(H, H, nonlinearity="relu"))
        self.cells = nn.ModuleList([nn.GRUCell(H, H), nn.LSTMCell(H, H), nn.RNNCell(H, H)])

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(self.lstm(self.gru(self.embed(x))[0])[0])[0][-1]
        for cell in self.cells:
            h = cell(h)
            h = h[0] if isinstance(h, tuple) else h
        return h


def kinds(model: nn.Module) -> list[tuple[str, type]]:
    """By name and base: that of a parametrised layer is a class of its own each time."""
    return [(type(m).__name__, type(m).__bases__[0]) for m in model.modules()]


@pytest.mark.parametrize("backend", ["auto", "cuda"])
def test_a_model_there_and_back(backend: str) -> None:
    """Its Parameters, momentum, hooks and checkpoints live on; it trains as the model that nobody touched."""
    host, model = Model().double(), Model().double().to(DEVICE)  # torch's layers with weight norm cannot be copied
    model.load_state_dict(host.state_dict())
    own, before, calls = list(model.parameters()), kinds(model), []
    model.gru.register_forward_hook(lambda module, given, out: calls.append(isinstance(module, fusedrnn.GRU)))
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.01, momentum=0.9) for m in (model, host)]
    reports: list[Any] = []

    def step() -> None:
        x = rand(T, B, I)
        for m, optimizer in zip((model, host), optimizers, strict=True):
            optimizer.zero_grad()
            m(x.to(next(m.parameters()).device)).square().sum().backward()
            optimizer.step()

    step()
    fusedrnn.convert(model, backend=backend, report=reports.append)
    step()
    step()
    kept = io.BytesIO()
    torch.save(model.state_dict(), kept)
    fusedrnn.revert(model)
    step()
    assert calls == [False, True, True, False]
    assert [one.name for one in reports[0].replaced] == ["gru", "lstm", "inner.0", "cells.0", "cells.1", "cells.2"]
    assert kinds(model) == before
    assert all(a is b for a, b in zip(model.parameters(), own, strict=True))
    assert_same([t.cpu() for t in model.state_dict().values()], list(host.state_dict().values()))
    kept.seek(0)
    stock = Model().double()
    stock.load_state_dict(torch.load(kept, map_location="cpu"))


@each_backend
def test_a_checkpoint_of_torchs_layers_runs_on_every_backend(backend: str) -> None:
    host = Model().double().eval()
    model = fusedrnn.convert(Model().double().to(DEVICE), backend=backend).eval()
    model.load_state_dict(host.state_dict())
    x = rand(T, B, I)
    with torch.no_grad():
        assert_same([model(x.to(DEVICE)).cpu()], [host(x)])
