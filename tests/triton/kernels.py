"""The Triton kernels by a plan of their own, against the reference."""

from __future__ import annotations

from typing import Any

import recurrence_check
from recurrence_check import Case
from torch import Tensor

from fusedrnn.triton_kernels import launch
from fusedrnn.triton_kernels.config import Plan


def check(case: Case, precision: str, how: Plan, passes: tuple[bool, ...] = (False, True)) -> None:
    """As `recurrence_check.check`."""

    def scan(*given: Any) -> tuple[Tensor, ...]:
        return launch.scan(*given, True, how)

    def scan_backward(*given: Any) -> tuple[Tensor, ...]:
        return launch.scan_backward(*given, how)

    recurrence_check.check(case, precision, scan, scan_backward, passes)
