"""What a figure draws around medians, by series: from the 20th to the 80th percentile, or quartiles."""

from __future__ import annotations

from collections.abc import Sequence

from .record import Row

WIDE, NARROW = "from the 20th to the 80th percentile", "quartiles"


def ends(rows: Sequence[Row]) -> list[tuple[float, float]]:
    """Low and high end at each row of a series: p20 and p80 where all rows have them, else p25 and p75.

    A row with a median alone ends there.
    """
    if all(map(_wide, rows)):
        return [(row.p20, row.p80) for row in rows]
    return [(row.p50 if row.p25 is None else row.p25, row.p50 if row.p75 is None else row.p75) for row in rows]


def told(rows: Sequence[Row]) -> str:
    """Which of the two a caption has to name for series of these rows."""
    wide = [row for row in rows if _wide(row)]
    if len(wide) == len(rows):
        return WIDE
    return f"{WIDE}, {NARROW} where those were not recorded" if wide else NARROW


def _wide(row: Row) -> bool:
    return row.p20 is not None and row.p80 is not None
