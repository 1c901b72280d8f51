"""What every test starts from: one seed, uninitialised memory that shows, and threads that sleep while they wait."""

from __future__ import annotations

import os
from collections.abc import Iterator

os.environ.setdefault("FUSEDRNN_POISON", "1")  # the library asks once: before it is imported
# OpenMP asks once too: beside a busy process, threads that spin while they wait make small calls many times slower
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch
from pairs import needs_kernel

from fusedrnn import spec


@pytest.fixture(autouse=True)
def _start() -> Iterator[None]:
    """One seed, and NaN in every torch.empty; FUSEDRNN_POISON does it for the ops. What nobody wrote shows."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1).isnan(), "torch no longer fills memory in deterministic mode: find another way to poison it"
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def fresh_graphs() -> Iterator[None]:
    """Dynamo without what earlier tests compiled."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For thousands of tiny calls, which threads only slow down, beside a busy process a hundredfold."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=spec.CELLS, ids=lambda cell: cell.name)
def cell(request: pytest.FixtureRequest) -> spec.CellSpec:
    """Each cell."""
    return request.param


@pytest.fixture(params=[pytest.param("cpu", marks=needs_kernel), "aten", "reference"])
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend."""
    return request.param
