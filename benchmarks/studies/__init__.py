"""The studies, each a file: question, grid, what it records, its section of the report, verdicts from the rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType

from ..record import Row
from . import cells, checkpointing, flatten_parameters, gradients, kernels, providers, recurrence, serving, text
from .base import Context, Section, Verdict


@dataclass(frozen=True)
class Study:
    name: str
    run: Callable[[Context], None]
    section: Callable[[Sequence[Row]], Section]
    verdicts: Callable[[Sequence[Row]], list[Verdict]]
    seconds: dict[str, float]  # budget by effort
    devices: tuple[str, ...] = ("cpu",)


def _study(module: ModuleType, quick: float, default: float, full: float) -> Study:
    seconds = {"quick": quick, "default": default, "full": full}
    devices = getattr(module, "DEVICES", ("cpu",))
    return Study(module.STUDY, module.run, module.section, module.verdicts, seconds, devices)


_ALL = (
    _study(kernels, 10, 50, 700),
    _study(providers, 5, 40, 250),
    _study(text, 10, 70, 1500),
    _study(cells, 6, 50, 500),
    _study(gradients, 3, 12, 90),
    _study(checkpointing, 3, 40, 400),
    _study(recurrence, 3, 20, 250),
    _study(flatten_parameters, 3, 10, 60),
    _study(serving, 5, 30, 130),
)
STUDIES = {study.name: study for study in _ALL}
