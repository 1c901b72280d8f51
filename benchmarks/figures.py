"""`python -m benchmarks figures`: the ratios to reach, nn / fused; rows are appended, a run can be taken up again.

One process; the two sides alternate, the order turned round every repetition; short calls in bursts of about 4 ms;
the ratio is the median over pairs, with quartiles. Every case passes its gate first.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from . import plots
from .cases import FIGURE_SHAPES, MODES, Case, target
from .measure import alternate, gate, ratios
from .progress import Progress
from .providers import NN, PROVIDERS, Call, inputs, twin
from .record import Recorder, RecordError, Row, cpu_name, environment_json, isa, measured, remark, write_whole

STUDY = "figures"


def grid(cells: Sequence[str], shapes: Sequence[int]) -> list[Case]:
    return [Case(cell, *FIGURE_SHAPES[shape]) for shape in shapes for cell in cells]


def run(
    out: Path,
    *,
    cells: Sequence[str],
    threads: Sequence[int],
    shapes: Sequence[int],
    modes: Sequence[str],
    budget_s: float,
    provider: str,
    overwrite: bool,
) -> Path:
    """Measures what the CSV in `out` does not hold yet, then writes figures.md and figures.svg beside it.

    Args:
        budget_s: Seconds of alternating calls a row.

    Raises:
        RecordError: the CSV holds rows of another processor or instruction set.
    """
    ours = PROVIDERS[provider]
    before = torch.get_num_threads()
    todo = [(count, case, mode) for count in threads for case in grid(cells, shapes) for mode in modes]
    progress = Progress(len(todo) * (budget_s + 1))
    with Recorder(out / "figures.csv", resume=not overwrite) as recorder:
        here = (cpu_name(), isa())
        if others := {(row.cpu, row.isa) for row in recorder.rows} - {here}:
            raise RecordError(f"{out / 'figures.csv'} holds rows of {others}, this is {here}: take another --out")
        write_whole(out / "figures.env.json", environment_json())
        gated: dict[Case, str | None] = {}
        try:
            for index, (count, case, mode) in enumerate(todo):
                probe = remark(STUDY, "speedup", "", case, provider=ours.name, mode=mode, threads=count)
                if probe.key in recorder.keys:
                    continue
                torch.set_num_threads(count)
                progress.show(f"{index + 1}/{len(todo)}  {mode} {case.name}, {count} threads")
                if case not in gated:
                    gated[case] = gate(ours, case)
                if gated[case]:
                    recorder.add(
                        remark(STUDY, "failed", str(gated[case]), case, provider=ours.name, mode=mode, threads=count)
                    )
                    continue
                recorder.add(*_measure(ours, case, mode, count, budget_s))
        finally:
            torch.set_num_threads(before)
            progress.close()
            write_whole(out / "figures.md", markdown(recorder.rows))
            if any(row.metric == "speedup" for row in recorder.rows) and (
                svg := plots.drawn(plots.aims, recorder.rows)
            ):
                write_whole(out / "figures.svg", plots.standalone(svg))
    return out / "figures.md"


def _measure(ours, case: Case, mode: str, threads: int, budget_s: float) -> list[Row]:
    layer, data = twin(case), inputs(case)
    calls = {p.name: Call(p, p.build(case, copy.deepcopy(layer)), data) for p in (NN, ours)}
    samples = alternate({name: getattr(call, mode) for name, call in calls.items()}, budget_s)
    where = {"mode": mode, "threads": threads}
    rows = [
        measured(STUDY, "time", "ms", [1e3 * s for s in samples[name]], case, provider=name, **where) for name in calls
    ]
    paired = ratios(samples[NN.name], samples[ours.name])
    # the ratio last: a row that is there means that its times are there
    rows.append(
        measured(
            STUDY,
            "speedup",
            f"nn/{ours.name}",
            paired,
            case,
            provider=ours.name,
            note=f"at {time.strftime('%Y-%m-%d')}",
            **where,
        )
    )
    time.sleep(min(1.0, 0.2 * budget_s))  # a shared machine that has lent its reserve gets it back
    return rows


def markdown(rows: Sequence[Row]) -> str:
    """The table, a line a shape and cell, each cell of it: measured (quartiles) of target."""
    found = {(row.case, row.threads, row.mode): row for row in rows if row.metric == "speedup"}
    stamps = sorted({(row.cpu, row.isa) for row in found.values()})
    columns = [
        (mode, count) for mode in MODES for count in sorted({row.threads for row in found.values()}, reverse=True)
    ]
    lines = ["# nn / fusedrnn: measured (quartiles), beside the figure to reach", ""]
    lines += [f"{cpu} ({isa})." for cpu, isa in stamps]
    header = [
        "T, B, I, H",
        "cell",
        *(f"{mode}, {count} threads" if count > 1 else f"{mode}, 1 thread" for mode, count in columns),
    ]
    lines += ["", f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}"]
    short, total = 0, 0
    for name in dict.fromkeys(row.case for row in found.values()):
        cells = []
        for mode, count in columns:
            row = found.get((name, count, mode))
            if row is None:
                cells.append("")
                continue
            aim = target(Case(row.cell, row.T, row.B, row.I, row.H, row.L, row.D, row.dtype), count, mode, row.isa)
            total += aim is not None
            below = aim is not None and row.p50 < aim
            short += below
            text = f"{row.p50:.2f} ({row.p25:.2f}-{row.p75:.2f})" + (f" of {aim:g}" if aim else "")
            cells.append(f"**{text}**" if below else text)
        first = next(row for row in found.values() if row.case == name)
        lines.append(f"| {first.T}, {first.B}, {first.I}, {first.H} | {first.cell} | {' | '.join(cells)} |")
    lines += ["", f"{total - short} of {total} figures reached; the others are bold."]
    lines += [f"Failed: {row.case}, {row.mode}: {row.note}" for row in rows if row.metric == "failed"]
    return "\n".join(lines) + "\n"
