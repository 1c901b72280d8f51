"""The floor: the time of a case at this machine's best product and copy, as rows beside what was measured."""

from __future__ import annotations

from collections.abc import Sequence

from .cases import Case
from .measure import ceilings
from .record import Recorder, Row, measured

FLOOR, CEILING = "floor", "ceiling"
UNITS = ("FLOP/s", "bytes/s")


def best(study: str, recorder: Recorder, threads: int, device: str = "cpu") -> tuple[float, float]:
    """This machine's best product and copy, in FLOP/s and bytes/s: as recorded, or measured and recorded now."""
    own = [row for row in recorder.rows if (row.study, row.metric, row.threads) == (study, CEILING, threads)]
    known = {row.unit: row.p50 for row in own}
    if set(known) != set(UNITS):
        known = dict(zip(UNITS, ceilings(threads, device), strict=True))
        recorder.add(*(measured(study, CEILING, unit, [known[unit]], "machine", threads=threads) for unit in UNITS))
    return known["FLOP/s"], known["bytes/s"]


def add(study: str, recorder: Recorder, case: Case, mode: str, threads: int, device: str = "cpu") -> None:
    """Records a case's floor. Of other types than float32 there is none: the best product is float32's."""
    if case.dtype == "fp32":
        floor = 1e3 * case.floor_s(mode, *best(study, recorder, threads, device))
        recorder.add(measured(study, "time", "ms", [floor], case, provider=FLOOR, mode=mode, threads=threads))


def told(rows: Sequence[Row]) -> str:
    """What a caption says of the floor in a study's rows; nothing where they hold none."""
    known = {row.unit: row.p50 for row in rows if row.metric in (CEILING, "peak")}  # "peak": in earlier rows of kernels
    if set(known) != set(UNITS) or not any(row.provider == FLOOR for row in rows):
        return ""
    return (
        f"The floor is the larger of the products over {known['FLOP/s'] / 1e9:.0f} GFLOP/s and the least traffic "
        f"over {known['bytes/s'] / 1e9:.0f} GB/s, both measured here."
    )
