"""Weights in one chunk for cuDNN. What cuDNN does with them needs a GPU: tests/gpu."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fusedrnn import cudnn
from fusedrnn.spec import LSTM, Problem


def test_lie_together() -> None:
    weights = [torch.zeros(4, 3), torch.zeros(5)]
    assert not cudnn.lie_together(weights)
    chunk = torch.zeros(17)
    assert cudnn.lie_together([chunk[:12].view(4, 3), chunk[12:]])
    assert not cudnn.lie_together([chunk[:12], chunk[:12]]), "the same memory twice is no chunk"
    assert not cudnn.lie_together([chunk])


def test_one_chunk_copies_what_lies_apart_and_hands_gradients_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for torch's function, which only a build with CUDA has in full."""
    asked: list[Any] = []

    def flatten(weights: list[Tensor], *layout: Any) -> Tensor:
        asked.append(layout)
        chunk = torch.cat([w.flatten() for w in weights])
        for w, part in zip(weights, chunk.split([w.numel() for w in weights]), strict=True):
            w.set_(part.view(w.shape))
        return chunk

    monkeypatch.setattr(torch, "_cudnn_rnn_flatten_weight", flatten)
    monkeypatch.setattr(torch.backends.cudnn, "is_acceptable", lambda _: True)
    layer = nn.LSTM(3, 4, num_layers=2, bidirectional=True, proj_size=2)
    weights = [getattr(layer, name) for name in layer._flat_weights_names]
    before = [w.data_ptr() for w in weights]
    problem = Problem(LSTM, 1, 1, 3, 4, 2, 2, 2)
    chunked = cudnn.one_chunk(weights, problem)
    assert asked == [(5, 3, 2, 4, 2, 2, False, True)]
    assert cudnn.lie_together(chunked)
    assert [w.data_ptr() for w in weights] == before, "the layer's own parameters stay where they are"
    assert all(torch.equal(a, b) for a, b in zip(chunked, weights, strict=True))
    sum(((i + 1) * w).sum() for i, w in enumerate(chunked)).backward()
    assert all((w.grad == i + 1).all() for i, w in enumerate(weights))

    with torch.no_grad():
        weights[0].data.add_(1)  # moves no version counter
        assert torch.equal(cudnn.one_chunk(weights, problem)[0], weights[0])
    assert cudnn.one_chunk(chunked, problem) is chunked
