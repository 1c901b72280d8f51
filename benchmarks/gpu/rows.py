"""Rows of the grid: a CSV line a measurement, on disk before the next is made; a file that was cut off is taken up."""

from __future__ import annotations

import csv
import io
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..record import RecordError


@dataclass(frozen=True)
class GpuRow:
    """One provider's call on one GPU. Times are microseconds a time step of the whole call; empty where there is none.

    Attributes:
        case, cell, T, B, I, H, L, D, dtype, packed: what was called.
        mode: infer (forward alone) or train (forward and backward).
        variant: eager, or graph: captured in a CUDA graph and replayed.
        provider: who was asked.
        backend, regime: who ran, by fusedrnn's own word; torch's layers are "nn".
        us, us_p20, us_p80, n: the median over n samples, 20th and 80th percentile.
        ratio, ratio_p20, ratio_p80: nn's time over this one, over pairs.
        kept_bytes: what waits for backward; peak_bytes: largest memory of a training step above what stood before.
        device: the GPU's name.
        error: why there is no number.
    """

    case: str
    cell: str
    T: int
    B: int
    I: int
    H: int
    L: int
    D: int
    dtype: str
    packed: bool
    mode: str
    variant: str
    provider: str
    backend: str = ""
    regime: str = ""
    us: float | None = None
    us_p20: float | None = None
    us_p80: float | None = None
    n: int = 0
    ratio: float | None = None
    ratio_p20: float | None = None
    ratio_p80: float | None = None
    kept_bytes: int | None = None
    peak_bytes: int | None = None
    device: str = ""
    error: str = ""

    @property
    def key(self) -> tuple[str, ...]:
        """What was asked for."""
        return (self.case, self.mode, self.variant, self.provider)


FIELDS = {field.name: str(field.type) for field in fields(GpuRow)}


def _encode(row: GpuRow) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(_format(getattr(row, name)) for name in FIELDS)
    return text.getvalue()


def _format(value: Any) -> Any:
    return "" if value is None else f"{value:.5g}" if isinstance(value, float) else value


def _decode(kind: str, text: str) -> Any:
    if "None" in kind and not text:
        return None
    return {"str": str, "int": int, "float": float, "bool": lambda t: t == "True"}[kind.split()[0]](text)


def read(path: Path) -> list[GpuRow]:
    """The rows of a file, none if there is none; a torn last line is left out.

    Raises:
        RecordError: the columns are others, or a number is none.
    """
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    lines = list(csv.reader(io.StringIO(text[: text.rfind("\n") + 1])))
    if lines and lines[0] != list(FIELDS):
        raise RecordError(f"{path}: expected the columns {','.join(FIELDS)}; move the file away to start a new one")
    try:
        return [
            GpuRow(**{name: _decode(kind, word) for (name, kind), word in zip(FIELDS.items(), line, strict=True)})
            for line in lines[1:]
        ]
    except ValueError as error:
        raise RecordError(f"{path}: {error}") from None


class Rows:
    """Appends to a file.

    Raises:
        RecordError: the file holds rows of another GPU.
    """

    def __init__(self, path: Path, device: str) -> None:
        self.rows = read(path)
        if others := {row.device for row in self.rows} - {device}:
            raise RecordError(f"{path} holds rows of {', '.join(others)}, this is {device}: take another folder")
        self.keys = {row.key for row in self.rows}
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = path.read_bytes().rfind(b"\n") + 1 if path.exists() else 0
        self._file = path.open("r+b" if path.exists() else "wb")
        self._file.truncate(whole)
        self._file.seek(whole)
        if not whole:
            self._write(",".join(FIELDS) + "\n")

    def add(self, row: GpuRow) -> None:
        self._write(_encode(row))
        self.rows.append(row)
        self.keys.add(row.key)

    def _write(self, text: str) -> None:
        self._file.write(text.encode())
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> Rows:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
