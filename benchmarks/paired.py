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

from . import floors
from .cases import Case
from .measure import alternate, gates, ratios
from .progress import Progress
from .providers import NN, Call, Provider, inputs, twin
from .record import Recorder, Row, environment_json, measured, remark, write_whole

FLOOR = (
    "The floor is the larger of FLOP and least traffic, each over this machine's ceiling; N % is the floor over our "
    "time (above 100 % where operands stay in the cache, which the traffic does not allow for)."
)


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

    def __post_init__(self) -> None:
        if self.ours == self.base:
            raise ValueError(f"--provider and --against are both {self.ours.name}: there is nothing to compare")
        for side in (self.ours, self.base):
            if reason := side.missing():
                raise ValueError(reason)
            if unable := set(self.modes) - set(side.modes):
                raise ValueError(
                    f"{side.name} does {', '.join(side.modes)} alone, not {', '.join(unable)}: give --modes"
                )

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
    with Recorder(out / f"{plan.study}.csv", resume=not overwrite) as recorder:
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
                _measure(recorder, plan, case, mode, count)
        finally:
            torch.set_num_threads(before)
            progress.close()
            write(recorder.rows)


def _refused(plan: Plan, case: Case) -> str | None:
    sides = [provider for provider in (plan.ours, plan.base) if provider is not NN]
    return next((f"{name}: {reason}" for name, reason in gates(sides, case).items() if reason), None)


def _measure(recorder: Recorder, plan: Plan, case: Case, mode: str, threads: int) -> None:
    layer, data = twin(case), inputs(case)
    # a layer of its own for each: sharing weights would let one provider's step warm the other's caches
    calls = {p.name: Call(p, p.build(case, copy.deepcopy(layer)), data) for p in (plan.base, plan.ours)}
    samples = alternate({name: getattr(call, mode) for name, call in calls.items()}, plan.budget_s)
    where = {"mode": mode, "threads": threads}
    for name, call in calls.items():
        note = call.backend(mode) if hasattr(call.layer, "backend") else ""
        milliseconds = [1e3 * s for s in samples[name]]
        recorder.add(measured(plan.study, "time", "ms", milliseconds, case, provider=name, note=note, **where))
    floors.add(plan.study, recorder, case, mode, threads)
    paired = ratios(samples[plan.base.name], samples[plan.ours.name])
    # the ratio last: a row that is there means that its times are there
    today = f"at {time.strftime('%Y-%m-%d')}"
    who = {"provider": plan.ours.name, "note": today}
    recorder.add(measured(plan.study, "speedup", plan.unit, paired, case, **who, **where))
    time.sleep(min(1.0, 0.2 * plan.budget_s))  # a shared machine that has lent its reserve gets it back


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


class Times:
    """Median milliseconds of recorded rows."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = {(r.case, r.threads, r.mode, r.provider): r for r in rows if r.metric == "time"}

    def row(self, ratio: Row, provider: str) -> Row | None:
        return self._rows.get((ratio.case, ratio.threads, ratio.mode, provider))

    def over_floor(self, ratio: Row, provider: str) -> float | None:
        """A provider's time over the machine's floor, where both are known."""
        time_, floor = self.row(ratio, provider), self.row(ratio, "floor")
        return time_.p50 / floor.p50 if time_ and floor and floor.p50 else None

    def share(self, ratio: Row, provider: str) -> str:
        """Of the floor that a provider reaches, in percent."""
        over = self.over_floor(ratio, provider)
        return f"{100 / over:.0f} %" if over else ""


def machines(rows: Sequence[Row]) -> list[str]:
    """A line a machine, with its ceilings."""
    lines = []
    for cpu, isa_ in sorted({(row.cpu, row.isa) for row in rows}):
        best: dict[int, dict[str, float]] = {}
        for row in rows:
            if row.metric == floors.CEILING and (row.cpu, row.isa) == (cpu, isa_):
                best.setdefault(row.threads, {})[row.unit] = row.p50
        text = [
            f"{found['FLOP/s'] / 1e9:.0f} GFLOP/s and {found['bytes/s'] / 1e9:.0f} GB/s with threads: {threads}"
            for threads, found in sorted(best.items(), reverse=True)
            if set(found) == set(floors.UNITS)
        ]
        lines.append(f"{cpu} ({isa_})" + (f"; its ceilings: {', '.join(text)}." if text else "."))
    return lines


def failures(rows: Sequence[Row]) -> list[str]:
    """What failed its gate and was not measured later, a line a reason."""
    done = {(row.unit, row.case, row.threads, row.mode) for row in rows if row.metric == "speedup"}
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.metric == "failed" and (row.unit, row.case, row.threads, row.mode) not in done:
            reasons.setdefault((row.case, row.note), []).append(f"{row.mode} on {row.threads}")
    return [f"Failed: {case}, {', '.join(where)}: {note}" for (case, note), where in reasons.items()]
