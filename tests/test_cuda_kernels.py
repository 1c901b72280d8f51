"""Every CUDA kernel, run by the CPU's stand-in for a GPU, against the reference: outputs and gradients of the ops.

The stand-in runs warps in random order, delivers remote stores late and torn, and starts with NaN in shared memory: a
wait that lacks shows as a wrong result, a NaN, or an error of the stand-in.
"""

from __future__ import annotations

import itertools
import os
from typing import Any

import pytest
import torch
from bare import label
from cuda_check import RESERVED, check, host, rows, run_row
from recurrence_check import PRECISIONS, Case

from fusedrnn import _build
from fusedrnn.spec import GRU, LSTM

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("library", "one_thread")]  # it compiles them first
MASKS = list(itertools.product((False, True), repeat=2))


@pytest.fixture(scope="module")
def library() -> Any:
    if _build.compiler() is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("there is no C++ compiler: the CUDA kernels do not run")
    return host()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    "case",
    [
        {"T": 7, "B": 5, "H": 24, "bias": False},
        {"T": 6, "B": 13, "H": 40, "directions": 2, "upstream": ("y", "hn", "cn", "gates", "cs")},
        {"T": 1, "B": 1, "H": 8, "states": "", "upstream": ("y",)},
        {"T": 9, "B": 9, "H": 72, "directions": 2, "states": "", "upstream": ("hn",)},
        {"T": 5, "B": 37, "H": 16, "streams": 3, "upstream": ("cn",)},
    ],
    ids=label,
)
def test_time_step_kernel(cell: Any, precision: str, case: dict[str, Any]) -> None:
    for seed, (lengths, reset) in enumerate(MASKS):
        check(Case(cell, lengths=lengths, reset=reset, shared=seed % 2 == 1, seed=seed, **case), "step", precision)


@pytest.mark.parametrize("precision", ["bf16", "fp16", "tf32", "fp32"])
def test_every_persistent_kernel(cell: Any, precision: str) -> None:
    """Every row of the stand-in's table, one by one; the planner is asked for nothing but that row."""
    tried = 0
    for row in rows():
        if (row.cell, row.precision) != (cell, precision):
            continue
        tried += 1
        run_row(row)
    assert tried >= 8


@pytest.mark.parametrize("precision", ["bf16", "fp16", "tf32", "fp32"])
def test_a_users_nan_is_not_the_grids_sentinel(cell: Any, precision: str) -> None:
    """The grid polls for anything but 0xffffffff: inputs of nothing else must come out as another NaN, and not hang."""
    dtype = PRECISIONS[precision]

    def ones(*shape: int) -> torch.Tensor:
        words = torch.full(shape, -1, dtype=torch.int16 if dtype.itemsize == 2 else torch.int32)
        return words.view(dtype)

    T, B, H, G, Z = 4, 3, 64, len(cell.gates), len(cell.kept)
    w, lstm = torch.zeros(1, G * H, H, dtype=dtype), cell is LSTM
    state = ones(1, B, H)
    route = 4 + (8 if precision == "tf32" else 0)
    y, *_ = host().scan(
        ones(T, B, 1, G * H),
        state,
        state if lstm else None,
        w,
        None,
        None,
        None,
        *RESERVED,
        cell.code,
        1,
        True,
        route=route,
    )
    kept = (
        ones(T, B, 1, Z * H) if Z else ones(0),
        ones(T, B, 1, H),
        state,
        *((ones(T, B, 1, H), state) if lstm else (None, None)),
    )
    dgates_x, _, _, dq = host().scan_backward(
        ones(T, B, 1, H), state, None, None, state if lstm else None, *kept, w, None, None, cell.code, 1, route
    )
    for found in (y, dgates_x, *([dq] if cell is GRU else [])):
        assert found.isnan().all() or cell.name == "rnn_relu"
        assert not (found.view(torch.int16 if dtype.itemsize == 2 else torch.int32) == -1).any()
