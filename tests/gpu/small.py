"""A small layer on the GPU, and the same one on the CPU by the reference, both in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from close import assert_same
from problems import DEVICE, REHEARSAL
from torch import Tensor

import fusedrnn

T, B, I, H = 9, 4, 6, 16
LENGTHS = torch.tensor([5, 0, 9, 1])

TRITON = pytest.mark.skipif(REHEARSAL, reason="tests/triton interprets these kernels")
KERNELS = ("cuda", pytest.param("triton", marks=TRITON))
each_kernel = pytest.mark.parametrize("backend", KERNELS)
each_backend = pytest.mark.parametrize("backend", [*KERNELS, "reference"])
each_cell = pytest.mark.parametrize("cell", ["GRU", "LSTM", "RNN"])


def small(cell: str, backend: str, *sizes: int, **options: Any) -> Any:
    return getattr(fusedrnn, cell)(*(sizes or (I, H)), device=DEVICE, dtype=torch.double, backend=backend, **options)


def rand(*sizes: int) -> Tensor:
    """Normal numbers in float64, on the CPU."""
    return torch.randn(sizes, dtype=torch.double)


def states(layer: Any, rows: int = B) -> list[Tensor]:
    """Initial ones, on the CPU."""
    edge = (layer.num_layers * (2 if layer.bidirectional else 1), rows)
    sizes = (layer.proj_size or layer.hidden_size, layer.hidden_size)[: 2 if layer.mode == "LSTM" else 1]
    return [rand(*edge, size) for size in sizes]


def as_hx(given: list[Tensor]) -> Any:
    return tuple(given) if len(given) == 2 else given[0]


def against_the_cpu(layer: Any, call: Callable[[Any, str], list[Tensor]]) -> None:
    """What `call(layer, device)` gives on the GPU, and on the CPU by the reference."""
    found = [t.cpu() for t in call(layer, DEVICE)]
    layer.backend = "reference"
    assert_same(found, call(layer.cpu(), "cpu"))
