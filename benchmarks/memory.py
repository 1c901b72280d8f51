"""`python -m benchmarks peak`: peak memory of a training step, nn beside fusedrnn, at the shapes of `figures`.

A fresh process a measurement, one after the other; the median of a few, since what the system counts are pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from . import paired
from .figures import grid
from .peak import peak_bytes
from .progress import Progress
from .providers import NN, PROVIDERS
from .record import Recorder, Row, environment_json, measured, remark, write_whole

STUDY = "peak"
CHILD_S = 4.0
"""A process takes about this long; for the progress bar alone."""
NOISE_MIB = 0.25
"""Resident sizes are known to about this much. A smaller difference counts as none, as do quartiles that overlap."""


def run(
    out: Path,
    *,
    cells: Sequence[str],
    shapes: Sequence[int],
    threads: int | None,
    provider: str,
    repeats: int,
    overwrite: bool,
) -> Path:
    """Measures what peak.csv in `out` does not hold yet, then writes peak.md beside it.

    Args:
        threads: torch's own choice if None.
        repeats: Processes a measurement.

    Raises:
        RecordError: the CSV holds rows of another processor or instruction set.
    """
    todo = [(case, name) for case in grid(cells, shapes) for name in (NN.name, provider)]
    if threads:
        torch.set_num_threads(threads)
    where = {"mode": "train", "threads": torch.get_num_threads()}
    progress = Progress(len(todo) * repeats * CHILD_S)
    with Recorder(out / "peak.csv", resume=not overwrite) as recorder:
        write_whole(out / "peak.env.json", environment_json())
        try:
            for index, (case, name) in enumerate(todo):
                if remark(STUDY, "peak", "", case, unit="MiB", provider=name, **where).key in recorder.keys:
                    continue
                progress.show(f"{index + 1}/{len(todo)}  {name} {case.name}")
                found = [peak_bytes([PROVIDERS[name]], case)[name] for _ in range(repeats)]
                if reason := next((value for value in found if isinstance(value, str)), None):
                    failed = remark(STUDY, "failed", reason, case, provider=name, **where)
                    recorder.add(*[failed] * (failed.key not in recorder.keys))
                else:
                    mib = [value / 2**20 for value in found]
                    recorder.add(measured(STUDY, "peak", "MiB", mib, case, provider=name, **where))
        finally:
            progress.close()
            write_whole(out / "peak.md", markdown(recorder.rows))
    return out / "peak.md"


def markdown(rows: Sequence[Row]) -> str:
    """A table a provider: peak memory beside nn's, and where it is above."""
    peaks = {(row.case, row.threads, row.provider): row for row in rows if row.metric == "peak"}
    lines = ["# Peak memory of a training step, MiB", "", *paired.machines(rows), ""]
    lines += [
        "Above what the process held before: the inputs and the layer, with packed weights. Median (quartiles).",
        "",
    ]
    for provider in dict.fromkeys(name for _, _, name in peaks if name != NN.name):
        pairs = [
            (row, peaks[case, threads, provider])
            for (case, threads, name), row in peaks.items()
            if name == NN.name and (case, threads, provider) in peaks
        ]
        above = [
            (theirs, ours) for theirs, ours in pairs if ours.p25 > theirs.p75 and ours.p50 > theirs.p50 + NOISE_MIB
        ]
        lines += [f"**{provider} above nn at {len(above)} of {len(pairs)}** (bold): by more than the noise.", ""]
        header = ("T, B, I, H", "cell", "threads", NN.name, provider, f"{provider} / nn")
        lines += [f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}"]
        for theirs, ours in pairs:
            ratio = f"{ours.p50 / theirs.p50:.2f}" if theirs.p50 else ""
            cells = [f"{ours.T}, {ours.B}, {ours.I}, {ours.H}", ours.cell, str(ours.threads), _mib(theirs), _mib(ours)]
            cells.append(f"**{ratio}**" if (theirs, ours) in above else ratio)
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    failed = [row for row in rows if row.metric == "failed" and (row.case, row.threads, row.provider) not in peaks]
    lines += [f"Failed: {row.case}, {row.provider}: {row.note}" for row in failed]
    return "\n".join(lines).rstrip() + "\n"


def _mib(row: Row) -> str:
    return f"{row.p50:.1f} ({row.p25:.1f}-{row.p75:.1f})"
