"""`python -m benchmarks beyond`: what fused layers do beyond torch's, each beside the way without them.

One process, torch's own number of threads; all tasks of a case are compared first, then take turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from . import paired
from .cases import Case
from .demands import DEMANDS, Demand, rebuilt, tasks
from .measure import alternate, compare, kept_bytes, ratios
from .progress import Progress
from .providers import FUSED, FUSED_RECOMPUTE, Call, inputs, twin
from .record import Recorder, Row, environment_json, measured, remark, write_whole

STUDY = "beyond"
KEPT = 0.3
"""Of what waits for backward, the most that recompute may keep."""


def run(out: Path, *, budget_s: float, overwrite: bool) -> Path:
    """Measures what beyond.csv in `out` does not hold yet, then writes beyond.md beside it.

    Args:
        budget_s: Seconds of alternating calls a case.

    Raises:
        RecordError: the CSV holds rows of another processor or instruction set.
    """
    todo = [(demand, case) for demand in DEMANDS for case in demand.cases]
    progress = Progress(len(todo) * (1.5 * budget_s + 0.5))
    with Recorder(out / f"{STUDY}.csv", resume=not overwrite) as recorder:
        write_whole(out / f"{STUDY}.env.json", environment_json())
        try:
            for index, (demand, case) in enumerate(todo):
                where = {"mode": demand.name, "threads": torch.get_num_threads()}
                last = demand.wants[-1]
                if remark(STUDY, "ratio", "", case, unit=last.unit, provider=last.below, **where).key in recorder.keys:
                    continue
                progress.show(f"{index + 1}/{len(todo)}  {demand.name} {case.name}")
                if reason := refused(demand, case):
                    failed = remark(STUDY, "failed", reason, case, **where)
                    recorder.add(*[failed] * (failed.key not in recorder.keys))
                else:
                    recorder.add(*_rows(demand, case, budget_s, where))
        finally:
            progress.close()
            write_whole(out / f"{STUDY}.md", markdown(recorder.rows))
    return out / f"{STUDY}.md"


def refused(demand: Demand, case: Case) -> str | None:
    """Which task computes something else than torch's own, and how far off it is, or None."""
    exact, own = tasks(demand, case, torch.float64), tasks(demand, case)
    baseline = next(iter(own))
    truth, known = exact[baseline](), own[baseline]()
    reasons = ((name, compare(task(), known, truth)) for name, task in own.items())
    return next((f"{name}: {reason}" for name, reason in reasons if reason), None)


def _rows(demand: Demand, case: Case, budget_s: float, where: dict[str, Any]) -> list[Row]:
    """A time a task, then the ratios: a ratio that is there means that all of the case is."""
    samples = alternate(tasks(demand, case), budget_s)
    rows = [
        measured(STUDY, "time", "ms", [1e3 * s for s in values], case, provider=name, **where)
        for name, values in samples.items()
    ]
    if demand.build is rebuilt:
        calls = (Call(p, p.build(case, twin(case)), inputs(case)) for p in (FUSED_RECOMPUTE, FUSED))
        lean, whole = map(kept_bytes, calls)
        rows.append(measured(STUDY, "kept", "recompute/gates", [lean / whole], case, provider="gates", **where))
    for want in demand.wants:
        found = ratios(samples[want.above], samples[want.below])
        rows.append(measured(STUDY, "ratio", want.unit, found, case, provider=want.below, **where))
    return rows


def markdown(rows: Sequence[Row]) -> str:
    """A table a demand: times and ratios at every shape, and which are not as wanted."""
    lines = ["# Beyond torch's layers", "", *paired.machines(rows), ""]
    lines += ["Milliseconds, and one time over another's: the median over rounds. **Bold**: not as wanted.", ""]
    for demand in DEMANDS:
        lines += _table(demand, [row for row in rows if row.mode == demand.name])
    lines += [f"Failed: {row.mode}, {row.case}: {row.note}" for row in rows if row.metric == "failed"]
    return "\n".join(lines).rstrip() + "\n"


def _table(demand: Demand, rows: Sequence[Row]) -> list[str]:
    times = {(row.case, row.provider): row for row in rows if row.metric == "time"}
    found = {(row.case, row.unit): row for row in rows if row.metric == "ratio"}
    kept = {row.case: row.p50 for row in rows if row.metric == "kept"}
    cases = list(dict.fromkeys(case for case, _ in found))
    if not cases:
        return []
    names = [name for case, name in times if case == cases[0]]
    missed = {want: sum(not want.met(found[case, want.unit].p50) for case in cases) for want in demand.wants}
    told = [f"{want} missed at {count} of {len(cases)}" for want, count in missed.items()]
    header = ["case", "threads", *(f"{name}, ms" for name in names), *map(str, demand.wants)]
    header += [f"bytes kept, at most {KEPT}"] * bool(kept)
    lines = [f"## {demand.name[0].upper()}{demand.name[1:]}", "", f"{'; '.join(told)}.", ""]
    lines += [f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}"]
    for case in cases:
        cells = [case, str(times[case, names[0]].threads), *(f"{times[case, name].p50:.3g}" for name in names)]
        for want in demand.wants:
            row = found[case, want.unit]
            cells.append(_bold(paired.with_quartiles(row), want.met(row.p50)))
        cells += [_bold(f"{kept[case]:.2f}", kept[case] <= KEPT)] if kept else []
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _bold(text: str, met: bool) -> str:
    return text if met else f"**{text}**"
