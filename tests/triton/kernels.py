"""The Triton kernels by a plan of their own, against the reference."""

from __future__ import annotations

from functools import partial
from typing import Any

import recurrence_check
import torch
from recurrence_check import Case, draw
from torch import Tensor

from fusedrnn.spec import LSTM
from fusedrnn.triton_kernels import launch
from fusedrnn.triton_kernels.config import Plan


def small(regime: str, H: int) -> Plan:
    """Tiles of 16, so that with more units or rows every loop of the kernels runs more than once."""
    units = max(16, 1 << (H - 1).bit_length()) if regime == "resident" else 16
    return Plan(regime, "ieee", rows=16, units=units, inner=16)


def check(case: Case, precision: str, how: Plan, passes: tuple[bool, ...] = (False, True)) -> None:
    """As `recurrence_check.check`."""
    mask_key, rates = case.noise
    drawn: dict[str, Any] = {"how": how, "mask_key": mask_key, "rates": rates}
    scan, scan_backward = partial(launch.scan, save=True, **drawn), partial(launch.scan_backward, **drawn)
    recurrence_check.check(case, precision, scan, scan_backward, passes)


def forward(case: Case, dtype: torch.dtype, how: Plan, save: bool = True) -> tuple[Tensor, ...]:
    """y, hn, gates, cs and cn."""
    problem = draw(case, dtype)
    given = (*problem.laid(*problem.given), problem.lengths, problem.reset, problem.offsets)
    return launch.scan(*given, case.cell.code, case.directions, save, how, *case.noise)


def backward(case: Case, dtype: torch.dtype, how: Plan) -> tuple[Tensor, ...]:
    """dgates_x, dh0, dc0 and dq, from what `forward` kept."""
    problem = draw(case, dtype)
    y, _, gates, cs, _ = forward(case, dtype, how)
    _, h0, c0, w, _ = problem.given
    kept = (gates, y, *problem.laid(h0), cs if case.cell is LSTM else None, *problem.laid(c0, w))
    masks = (problem.lengths, problem.reset, problem.offsets)
    given = (*problem.laid(*problem.upstream), *kept, *masks, case.cell.code, case.directions, how)
    return launch.scan_backward(*given, *case.noise)
