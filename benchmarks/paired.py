"""Two providers over a grid of cases: what `figures` and `sweep` measure. A run that was cut off can be taken up.

One process; the two sides alternate, the order turned round every repetition; short calls in bursts of about 4 ms;
the ratio is the median over pairs, with quartiles. Every case passes its gate first.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from .cases import Case
from .measure import alternate, gates, ratios
from .progress import Progress
from .providers import NN, Call, Provider, inputs, twin
from .record import Recorder, RecordError, Row, cpu_name, environment_json, isa, measured, remark, write_whole


@dataclass(frozen=True)
class Plan:
    """What is measured: `base`'s time over `ours`, of every case, mode and thread count; `budget_s` seconds a row."""

    study: str
    cases: Sequence[Case]
    threads: Sequence[int]
    modes: Sequence[str]
    ours: Provider
    base: Provider
    budget_s: float

    @property
    def unit(self) -> str:
        return f"{self.base.name}/{self.ours.name}"


def run(plan: Plan, out: Path, *, overwrite: bool, write: Callable[[Sequence[Row]], None]) -> None:
    """Measures what the study's CSV in `out` does not hold yet.

    Args:
        write: Makes tables and figures of the rows; called at the end, also where the run is cut off.

    Raises:
        RecordError: the CSV holds rows of another processor or instruction set.
    """
    before = torch.get_num_threads()
    todo = [(count, case, mode) for count in plan.threads for case in plan.cases for mode in plan.modes]
    progress = Progress(len(todo) * (1.5 * plan.budget_s + 0.5))
    path = out / f"{plan.study}.csv"
    with Recorder(path, resume=not overwrite) as recorder:
        here = (cpu_name(), isa())
        if others := {(row.cpu, row.isa) for row in recorder.rows} - {here}:
            raise RecordError(f"{path} holds rows of {others}, this is {here}: take another --out")
        write_whole(out / f"{plan.study}.env.json", environment_json())
        gated: dict[Case, str | None] = {}
        try:
            for index, (count, case, mode) in enumerate(todo):
                where = {"provider": plan.ours.name, "mode": mode, "threads": count}
                if remark(plan.study, "speedup", "", case, unit=plan.unit, **where).key in recorder.keys:
                    continue
                torch.set_num_threads(count)
                progress.show(f"{index + 1}/{len(todo)}  {mode} {case.name}, {count} threads")
                if case not in gated:
                    gated[case] = _refused(plan, case)
                if reason := gated[case]:
                    failed = remark(plan.study, "failed", reason, case, unit=plan.unit, **where)
                    if failed.key not in recorder.keys:
                        recorder.add(failed)
                    continue
                recorder.add(*_measure(plan, case, mode, count))
        finally:
            torch.set_num_threads(before)
            progress.close()
            write(recorder.rows)


def _refused(plan: Plan, case: Case) -> str | None:
    sides = [provider for provider in (plan.ours, plan.base) if provider is not NN]
    return next((f"{name}: {reason}" for name, reason in gates(sides, case).items() if reason), None)


def _measure(plan: Plan, case: Case, mode: str, threads: int) -> list[Row]:
    layer, data = twin(case), inputs(case)
    # a layer of its own for each: sharing weights would let one provider's step warm the other's caches
    calls = {p.name: Call(p, p.build(case, copy.deepcopy(layer)), data) for p in (plan.base, plan.ours)}
    samples = alternate({name: getattr(call, mode) for name, call in calls.items()}, plan.budget_s)
    where = {"mode": mode, "threads": threads}
    rows = []
    for name, call in calls.items():
        note = call.backend(mode) if hasattr(call.layer, "backend") else ""
        milliseconds = [1e3 * s for s in samples[name]]
        rows.append(measured(plan.study, "time", "ms", milliseconds, case, provider=name, note=note, **where))
    paired = ratios(samples[plan.base.name], samples[plan.ours.name])
    # the ratio last: a row that is there means that its times are there
    today = f"at {time.strftime('%Y-%m-%d')}"
    rows.append(measured(plan.study, "speedup", plan.unit, paired, case, provider=plan.ours.name, note=today, **where))
    time.sleep(min(1.0, 0.2 * plan.budget_s))  # a shared machine that has lent its reserve gets it back
    return rows


def by_unit(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The ratios, by whose time over whose they are; of the same figure twice, the later."""
    found: dict[str, dict[tuple, Row]] = {}
    for row in rows:
        if row.metric == "speedup":
            found.setdefault(row.unit, {})[row.case, row.threads, row.mode] = row
    return {unit: list(by_key.values()) for unit, by_key in found.items()}


def title(unit: str) -> str:
    return unit.replace("/", " / ")


def with_quartiles(row: Row) -> str:
    return f"{row.p50:.2f} ({row.p25:.2f}-{row.p75:.2f})"


def machines(rows: Sequence[Row]) -> list[str]:
    return [f"{cpu} ({isa})." for cpu, isa in sorted({(row.cpu, row.isa) for row in rows})]


def failures(rows: Sequence[Row]) -> list[str]:
    """What failed its gate and was not measured later, a line a reason."""
    done = {(row.unit, row.case, row.threads, row.mode) for row in rows if row.metric == "speedup"}
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.metric == "failed" and (row.unit, row.case, row.threads, row.mode) not in done:
            reasons.setdefault((row.case, row.note), []).append(f"{row.mode} on {row.threads}")
    return [f"Failed: {case}, {', '.join(where)}: {note}" for (case, note), where in reasons.items()]
