"""`python -m benchmarks figures`: the ratios to reach, nn / fusedrnn, as a table and a figure beside their rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from . import paired, plots
from .cases import FIGURE_SHAPES, MODES, Case, target
from .providers import NN, PROVIDERS
from .record import Row, write_whole

STUDY = "figures"
BEYOND = "†"


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
    against: str,
    overwrite: bool,
) -> Path:
    """Measures what figures.csv in `out` does not hold yet, then writes figures.md and figures.svg beside it.

    Args:
        budget_s: Seconds of alternating calls a row.

    Raises:
        RecordError: the CSV holds rows of another processor or instruction set.
    """
    plan = paired.Plan(STUDY, grid(cells, shapes), threads, modes, PROVIDERS[provider], PROVIDERS[against], budget_s)

    def write(rows: Sequence[Row]) -> None:
        write_whole(out / "figures.md", markdown(rows))
        ratios = next((found for unit, found in paired.by_unit(rows).items() if unit.startswith(f"{NN.name}/")), [])
        if ratios and (svg := plots.drawn(plots.aims, ratios)):
            write_whole(out / "figures.svg", plots.standalone(svg))

    paired.run(plan, out, overwrite=overwrite, write=write)
    return out / "figures.md"


def markdown(rows: Sequence[Row]) -> str:
    """A table a pair of providers."""
    lines = [line for unit, found in paired.by_unit(rows).items() for line in _table(unit, found, rows)]
    return "\n".join([*(lines or ["# Nothing measured", ""]), *paired.failures(rows)]).rstrip() + "\n"


def _table(unit: str, found: Sequence[Row], rows: Sequence[Row]) -> list[str]:
    """A line a shape and cell, each cell of it: measured (quartiles) of target, and the share of the floor."""
    base, _, ours = unit.partition("/")
    times = paired.Times(rows)
    by_place = {(row.case, row.threads, row.mode): row for row in found}
    counts = sorted({row.threads for row in found}, reverse=True)
    columns = [(mode, count) for mode in MODES for count in counts if any(row.mode == mode for row in found)]
    header = [
        "T, B, I, H",
        "cell",
        *(f"{mode}, {count} threads" if count > 1 else f"{mode}, 1 thread" for mode, count in columns),
    ]
    aims = ", beside the figure to reach" if base == NN.name else ""
    lines = [f"# {paired.title(unit)}: measured (quartiles){aims}", ""]
    lines += [*paired.machines(rows), "", f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}"]
    short, total, beyond, floors = 0, 0, 0, False
    for name in dict.fromkeys(row.case for row in found):
        cells = []
        for mode, count in columns:
            row = by_place.get((name, count, mode))
            if row is None:
                cells.append("")
                continue
            aim = _aim(row)
            below = aim is not None and row.p50 < aim
            total += aim is not None
            short += below
            most = times.over_floor(row, base)  # the ratio of a kernel that runs at the floor
            out_of_reach = aim is not None and most is not None and aim > most
            beyond += out_of_reach
            text = paired.with_quartiles(row) + (f" of {aim:g}" if aim else "") + BEYOND * out_of_reach
            share = times.share(row, ours)
            floors = floors or bool(share)
            cells.append((f"**{text}**" if below else text) + (f", {share}" if share else ""))
        first = next(row for row in found if row.case == name)
        lines.append(f"| {first.T}, {first.B}, {first.I}, {first.H} | {first.cell} | {' | '.join(cells)} |")
    notes = [f"{total - short} of {total} figures reached; the others are bold."] * bool(total)
    notes += [f"{beyond} ({BEYOND}) ask for less time than the machine's floor."] * bool(beyond)
    return [*lines, "", *([" ".join(notes), ""] if notes else []), *([paired.FLOOR, ""] if floors else [])]


def _aim(row: Row) -> float | None:
    """The ratio to reach; there are some against nn alone."""
    case = Case(row.cell, row.T, row.B, row.I, row.H, row.L, row.D, row.dtype)
    return target(case, row.threads, row.mode, row.isa) if row.unit.startswith(f"{NN.name}/") else None
