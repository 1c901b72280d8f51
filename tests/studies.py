"""Runs one study end to end, in seconds, into a folder."""

from __future__ import annotations

from pathlib import Path

from benchmarks import report
from benchmarks.progress import Progress
from benchmarks.record import Recorder, Row, environment, read_rows
from benchmarks.studies import STUDIES
from benchmarks.studies.base import Budget, Context, Verdict


def run(name: str, folder: Path, seconds: float, effort: str = "quick") -> list[Row]:
    """The rows as they are on disk; the report is written from them, too."""
    with Recorder(folder / "rows.csv") as recorder:
        STUDIES[name].run(Context(recorder, Progress(seconds), Budget(seconds), effort))
    rows = read_rows(folder / "rows.csv")
    report.write(folder, rows, environment())
    return rows


def verdict(name: str, rows: list[Row], claim: str) -> Verdict:
    """The verdict on the claim that begins so."""
    return next(found for found in STUDIES[name].verdicts(rows) if found.claim.startswith(claim))
