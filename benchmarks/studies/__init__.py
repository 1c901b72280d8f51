"""The studies, each a file: question, grid, what it records, its section of the report, verdicts from the rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..record import Row
from . import kernels, text
from .base import Context, Section, Verdict


@dataclass(frozen=True)
class Study:
    name: str
    run: Callable[[Context], None]
    section: Callable[[Sequence[Row]], Section]
    verdicts: Callable[[Sequence[Row]], list[Verdict]]
    seconds: dict[str, float]  # budget by effort


STUDIES = {
    "kernels": Study(
        "kernels", kernels.run, kernels.section, kernels.verdicts, {"quick": 10, "default": 125, "full": 900}
    ),
    "text": Study("text", text.run, text.section, text.verdicts, {"quick": 10, "default": 160, "full": 1800}),
}
