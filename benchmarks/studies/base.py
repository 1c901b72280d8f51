"""What every study is made of: its context, its verdicts, and the blocks of its section of the report."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

from ..measure import Clock, device_clock, wall
from ..progress import Progress
from ..record import FINISHED, Recorder, Row, remark
from ..resume import Saved

CONFIRMED, REFUTED, DEPENDS, UNDECIDED = "confirmed", "refuted", "depends", "undecided"
FEWEST_PAIRS = 3  # of calls that took turns; a ratio of fewer decides nothing
COUNT_TOLERANCE = 0.02  # a quoted count holds within 2 %
SPENT = "the budget of this study was spent"
T = TypeVar("T")


class Budget:
    """Seconds that a part of the study may take."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self._start = seconds, time.monotonic()

    @property
    def left(self) -> float:
        return self.seconds - (time.monotonic() - self._start)

    def share(self, part: float) -> Budget:
        """A budget of this part of what is left."""
        return Budget(max(0.0, self.left * part))


@dataclass
class Context:
    """What a study gets to work with."""

    recorder: Recorder
    progress: Progress
    budget: Budget
    effort: str  # quick, default or full
    data: Path | None = None
    embeddings: Path | None = None
    device: str = "cpu"
    saved: Saved | None = None  # training states to go on from

    @property
    def clock(self) -> Clock:
        """Wall time, or a GPU's own."""
        return wall if self.device == "cpu" else device_clock

    def skip(self, study: str, case: str, reason: str) -> None:
        """Says in the results what did not fit."""
        self._say(remark(study, "skipped", reason, case))

    def absent(self, study: str, case: str, provider: str, reason: str) -> None:
        """Says in the results what this machine cannot run."""
        self._say(remark(study, "absent", reason, case, provider=provider))

    def note(self, study: str, case: str, text: str) -> None:
        self._say(remark(study, "note", text, case))

    def _say(self, new: Row) -> None:
        """Once, in a run that goes on from an earlier one too."""
        if not any((row.key, row.note) == (new.key, new.note) for row in self.recorder.rows):
            self.recorder.add(new)

    def todo(self, study: str, parts: Mapping[str, T]) -> Iterator[tuple[T, float]]:
        """What an earlier run has not finished, the most telling first, each part with its share of the seconds left.

        The first is done in any case, others while the budget lasts; what does not fit is recorded as skipped. A part
        is marked when the next is asked for: one that was cut off is done anew by the next run.
        """
        left = self.unfinished(study, parts)
        for index, (name, part) in enumerate(left.items()):
            if index and self.budget.left <= 0:
                self.skip(study, name, SPENT)
                continue
            yield part, max(0.0, self.budget.left) / (len(left) - index)
            self.recorder.add(remark(study, FINISHED, "", name))

    def unfinished(self, study: str, parts: Mapping[str, T]) -> dict[str, T]:
        """Those that no earlier run has finished."""
        known = self.recorder.keys
        return {name: part for name, part in parts.items() if remark(study, FINISHED, "", name).key not in known}


@dataclass(frozen=True)
class Verdict:
    """A claim, what was measured here, the verdict, and why."""

    claim: str
    measured: str
    verdict: str
    why: str


class Finding(NamedTuple):
    """One part of a claim: how it came out, what was measured, and why."""

    verdict: str
    measured: str
    why: str = ""


def judge(claim: str, findings: Sequence[Finding]) -> Verdict:
    """All parts alike: their verdict. Parts that contradict one another: it depends. Else too little is decided."""
    kinds = {finding.verdict for finding in findings}
    mixed = DEPENDS in kinds or {CONFIRMED, REFUTED} <= kinds
    verdict = DEPENDS if mixed else UNDECIDED if UNDECIDED in kinds else kinds.pop()
    why = "; ".join(f"{finding.why or finding.measured}: {finding.verdict}" for finding in findings)
    return Verdict(claim, "; ".join(dict.fromkeys(finding.measured for finding in findings)), verdict, why)


@dataclass(frozen=True)
class Text:
    """A paragraph; `code` and **strong** as in Markdown, nothing else."""

    text: str


@dataclass(frozen=True)
class Table:
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


@dataclass(frozen=True)
class Figure:
    """An SVG, or none where no plotting package is there; the caption states question and answer."""

    name: str
    svg: str | None
    caption: str


@dataclass(frozen=True)
class Section:
    title: str
    question: str
    blocks: Sequence[Text | Table | Figure] = field(default_factory=list)


def select(rows: Sequence[Row], **wanted: object) -> list[Row]:
    """Rows whose columns have these values; a tuple means any of them."""
    return [
        row
        for row in rows
        if all(
            getattr(row, name) in value if isinstance(value, tuple) else getattr(row, name) == value
            for name, value in wanted.items()
        )
    ]


def decisive(rows: Sequence[Row]) -> list[Row]:
    """Without the ratios of too few pairs."""
    return [row for row in rows if row.metric != "time_ratio" or row.n >= FEWEST_PAIRS]


def remarks(rows: Sequence[Row], study: str) -> list[Text | Table | Figure]:
    """What a study noted, what it lacked, skipped and failed at, as blocks of the report."""
    blocks: list[Text | Table | Figure] = [Text(row.note) for row in select(rows, study=study, metric="note")]
    titles = {"absent": "Absent on this machine", "skipped": "Did not fit into the budget", "failed": "Failed"}
    for metric, title in titles.items():
        cases: dict[tuple[str, str, str], list[str]] = {}
        for row in select(rows, study=study, metric=metric):
            cases.setdefault((row.note, row.provider or "all", row.mode or "all"), []).append(row.case)
        if cases:
            lines = [("; ".join(names), provider, mode, why) for (why, provider, mode), names in cases.items()]
            blocks.append(Table(("cases", "provider", "mode", "why"), lines, f"{title}."))
    return blocks
