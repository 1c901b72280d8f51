"""`python -m benchmarks sweep`: the ratio of `figures` over other shapes and options, worst first.

It asks whether a fused layer is anywhere slower than torch's: a ratio below 0.95 stands on top.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from . import paired
from .cases import MODES, SLOWER, sweep_grid
from .providers import PROVIDERS
from .record import Row, write_whole

STUDY = "sweep"


def run(
    out: Path,
    *,
    cells: Sequence[str],
    threads: Sequence[int],
    modes: Sequence[str],
    budget_s: float,
    provider: str,
    against: str,
    overwrite: bool,
) -> Path:
    """Measures what sweep.csv in `out` does not hold yet, then writes sweep.md beside it.

    Args:
        budget_s: Seconds of alternating calls a row.

    Raises:
        RecordError: the CSV holds rows of another processor or instruction set.
    """
    plan = paired.Plan(STUDY, sweep_grid(cells), threads, modes, PROVIDERS[provider], PROVIDERS[against], budget_s)
    paired.run(plan, out, overwrite=overwrite, write=lambda rows: write_whole(out / "sweep.md", markdown(rows)))
    return out / "sweep.md"


def markdown(rows: Sequence[Row]) -> str:
    """Of each pair of providers: how many ratios are too low, by mode and thread count, then every row, worst first."""
    times = paired.Times(rows)
    lines = []
    for unit, found in paired.by_unit(rows).items():
        base, _, ours = unit.partition("/")
        lines += [f"# {paired.title(unit)} over other shapes and options", "", *paired.machines(rows), ""]
        lines += [_verdict(found), "", *_summary(found), "", paired.FLOOR, ""]
        header = (paired.title(unit), "case", "mode", "threads", f"{base}, ms", f"{ours}, ms", "of floor", "backend")
        lines += _markdown_head(header)
        for row in sorted(found, key=lambda row: row.p50):
            theirs, own = (times.row(row, name) for name in (base, ours))
            ratio = paired.with_quartiles(row)
            cells = [f"**{ratio}**" if row.p50 < SLOWER else ratio, row.case, row.mode, str(row.threads)]
            cells += [_ms(theirs), _ms(own), times.share(row, ours), own.note if own else ""]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join([*(lines or ["# Nothing measured", ""]), *paired.failures(rows)]).rstrip() + "\n"


def _verdict(found: Sequence[Row]) -> str:
    slower = [row for row in found if row.p50 < SLOWER]
    clearly = sum(row.p75 < SLOWER for row in slower)
    lowest = min(found, key=lambda row: row.p50)
    return (
        f"**{len(slower)} of {len(found)} below {SLOWER}**, {clearly} of them with the upper quartile too. Lowest: "
        f"{paired.with_quartiles(lowest)} at {lowest.case}, {lowest.mode}, threads: {lowest.threads}."
    )


def _summary(found: Sequence[Row]) -> list[str]:
    lines = _markdown_head(("mode", "threads", "rows", f"below {SLOWER}", "lowest", "median", "highest"))
    for mode in MODES:
        for threads in sorted({row.threads for row in found}, reverse=True):
            values = [row.p50 for row in found if (row.mode, row.threads) == (mode, threads)]
            if values:
                counts = [len(values), sum(value < SLOWER for value in values)]
                spread = [f"{f(values):.2f}" for f in (min, statistics.median, max)]
                lines.append(f"| {' | '.join([mode, str(threads), *map(str, counts), *spread])} |")
    return lines


def _markdown_head(names: Sequence[str]) -> list[str]:
    return [f"| {' | '.join(names)} |", f"|{' --- |' * len(names)}"]


def _ms(row: Row | None) -> str:
    return f"{row.p50:.3g}" if row else ""
