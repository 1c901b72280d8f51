"""Every backend on the GPU against float64 on the CPU, with torch's own error in the same dtype as the measure."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import close
import problems
import pytest
import torch
from problems import BACKENDS, DEVICE, DTYPES, Case, Problem
from torch import Tensor

import fusedrnn
from fusedrnn.errors import UnsupportedProblem

CELLS = ("GRU", "LSTM", "RNN_tanh", "RNN_relu")
WIDTHS = (1, 7, 8, 63, 64, 65, 128, 129, 256, 512, 768, 1024)
BATCHES = (1, 5, 64)
NEVER_REFUSE = {"cuda", "cuda:step", "reference"}


def grid() -> list[Case]:
    """Every cell, width and batch; directions, masks, recompute and the initial state go round."""
    found = []
    for i, (cell, H, B) in enumerate(itertools.product(CELLS, WIDTHS, BATCHES)):
        # 36 shapes a cell: the shift moves what goes round from cell to cell
        turn = i + i // 36
        found.append(
            Case(
                cell,
                T=4 if H >= 512 else 11,
                B=B,
                I=(5, 24)[turn % 2],
                H=H,
                D=1 + turn // 2 % 2,
                lengths=turn % 3 > 0,
                reset=turn % 3 == 2,
                recompute=turn % 5 == 0,
                states=turn % 7 > 0,
            )
        )
    return found


def name(case: Case) -> str:
    flags = [flag for flag in ("lengths", "reset", "recompute") if getattr(case, flag)]
    return "-".join([case.cell, f"T{case.T}", f"B{case.B}", f"H{case.H}", f"D{case.D}", f"L{case.L}", *flags])


def faults(case: Case, backends: tuple[str, ...], dtypes: tuple[str, ...]) -> list[str]:
    """What is wrong, a line a backend and dtype."""
    # a tensor of one number has a large relative error by chance, where the number is small: so there are more of them
    draws = [problems.make(case, seed) for seed in range(max(1, 8 // (case.B * case.H)))]
    found, truth = [], joined(map(problems.truth, draws))
    for kind in filter(DTYPES.__contains__, dtypes):
        dtype, allowed = DTYPES[kind]
        with problems.products(allowed):
            torchs = joined(problems.torchs(problem, dtype) for problem in draws)
            for backend in filter(BACKENDS.__contains__, backends):
                try:
                    compare(joined(run(problem, backend, dtype) for problem in draws), truth, torchs)
                except UnsupportedProblem as refusal:
                    if backend in NEVER_REFUSE:
                        found.append(f"{backend} {kind}: {refusal}")
                except AssertionError as error:
                    found.append(f"{backend} {kind}: {error}")
    return found


def joined(results: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Results of several problems of the same sizes as one."""
    each = list(results)
    return {name: torch.stack([result[name] for result in each]) for name in each[0]}


def run(problem: Problem, backend: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """A backend's results; AssertionError if another one runs."""
    layer = problems.fused(problem, backend, dtype)
    told = fusedrnn.explain(layer, problem.x.to(DEVICE, dtype), **problem.masks)
    result = problems.results(problem, layer)
    assert str(told.chosen).split(":")[0] == {"cudnn": "aten"}.get(backend, backend).split(":")[0], told
    return result


def compare(result: dict[str, Tensor], truth: dict[str, Tensor], torchs: dict[str, Tensor]) -> None:
    if result["y"].dtype is torch.float64:
        close.assert_same(list(result.values()), [truth[name] for name in result])
    else:
        close.assert_no_worse(result, truth, torchs)


@pytest.mark.parametrize("case", grid(), ids=name)
def test_every_backend_and_dtype(case: Case) -> None:
    wrong = faults(case, BACKENDS, tuple(DTYPES))
    assert not wrong, "\n".join(wrong)


LONGER = (
    Case("GRU", 200, 16, 128, 128),
    Case("LSTM", 200, 16, 128, 256, D=2),
    Case("GRU", 100, 72, 64, 512, lengths=True),
    Case("LSTM", 100, 8, 64, 1024),
    Case("GRU", 60, 8, 64, 2048),
    Case("LSTM", 40, 9, 33, 100, L=3, D=2, lengths=True),
    Case("GRU", 1, 3, 5, 64),
    Case("RNN_tanh", 300, 33, 16, 200, lengths=True, reset=True),
)


@pytest.mark.parametrize("case", LONGER, ids=name)
def test_more_steps_and_layers(case: Case) -> None:
    wrong = faults(case, ("cuda", *problems.REGIMES), ("bf16", "tf32"))
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("backend", ["cuda", "cudnn"])
@pytest.mark.parametrize("cell", ["GRU", "LSTM"])
def test_packed_rows(cell: str, backend: str) -> None:
    problem = problems.make(Case(cell, 13, 6, 24, 64, D=2, lengths=True))
    layer = problems.fused(problem, backend, torch.bfloat16)
    close.assert_no_worse(
        problems.results(problem, layer, packed=True), problems.truth(problem), problems.torchs(problem, torch.bfloat16)
    )
