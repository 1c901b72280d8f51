"""Results as data: one tidy CSV row a measurement, the environment beside it, and files that are whole or absent."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import datetime
import errno
import functools
import importlib
import importlib.metadata
import io
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .cases import Case
from .measure import fifths, quartiles
from .providers import chosen_backend, fused_module

ROOT = Path(__file__).resolve().parent.parent


class RecordError(RuntimeError):
    """A result could not be written; what was measured before is on disk."""


@dataclass(frozen=True)
class Row:
    """One measurement. Sizes are 0 where they mean nothing; "failed" and "skipped" carry their reason in `note`.

    `p20` and `p80` are None in rows of files that have no such columns.
    """

    study: str
    case: str
    metric: str
    unit: str = ""
    p50: float | None = None
    p25: float | None = None
    p75: float | None = None
    n: int = 1
    cell: str = ""
    T: int = 0
    B: int = 0
    I: int = 0
    H: int = 0
    L: int = 0
    D: int = 0
    dtype: str = ""
    threads: int = 0
    provider: str = ""
    mode: str = ""
    seed: int = -1
    epoch: int = -1
    note: str = ""
    cpu: str = ""
    isa: str = ""
    p20: float | None = None
    p80: float | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        """What is measured, without what came out."""
        what = (self.metric, self.unit)
        return (self.study, self.case, self.threads, self.provider, self.mode, self.seed, self.epoch, *what)


_SIZES = ("cell", "T", "B", "I", "H", "L", "D", "dtype")
_STATISTICS = ("metric", "unit", "p20", "p25", "p50", "p75", "p80", "n", "note", "cpu", "isa")
FIELDS = ("study", "case", *_SIZES, "threads", "provider", "mode", "seed", "epoch", *_STATISTICS)
EARLIER = tuple(name for name in FIELDS if name not in ("p20", "p80"))
"""Columns of files that were written before there were these two."""
HEADER = ",".join(FIELDS) + "\n"
_TYPES = {field.name: str(field.type) for field in dataclasses.fields(Row)}


def measured(study: str, metric: str, unit: str, values: Sequence[float], case: Case | str, **rest: Any) -> Row:
    """A row from samples: their median, and how they spread."""
    rest |= spread(values) | _sizes(case)
    return Row(study=study, metric=metric, unit=unit, p50=quartiles(values)[1], n=len(values), **rest)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Columns of a row beside the median: quartiles, 20th and 80th percentile."""
    (p25, _, p75), (p20, _, p80) = quartiles(values), fifths(values)
    return {"p20": p20, "p25": p25, "p75": p75, "p80": p80}


def remark(study: str, metric: str, note: str, case: Case | str, **rest: Any) -> Row:
    """A row that says why there is no number."""
    return Row(study=study, metric=metric, note=" ".join(note.split()), n=0, **_sizes(case), **rest)


FINISHED = "finished"


def finished_parts(rows: Sequence[Row]) -> list[Row]:
    """The rows up to each mark that a part of a study is finished; what a part that was cut off has left is dropped."""
    kept: list[Row] = []
    parts: dict[str, list[Row]] = {}
    for row in rows:
        part = parts.setdefault(row.study, [])
        part.append(row)
        if row.metric == FINISHED:
            kept += parts.pop(row.study)
    return kept


def _sizes(case: Case | str) -> dict[str, Any]:
    if isinstance(case, str):
        return {"case": case}
    return {
        "case": case.name,
        **{name: getattr(case, name) for name in _SIZES},
    }


def _format(value: Any) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _encode(row: Row) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow([_format(getattr(row, name)) for name in FIELDS])
    return text.getvalue().encode()


def _decode(name: str, text: str) -> Any:
    if _TYPES[name].startswith("float"):
        return float(text) if text else None
    return int(text) if _TYPES[name] == "int" else text


def read_rows(path: Path) -> list[Row]:
    """Rows of a recorded CSV, of one without `p20` and `p80` too; the torn last line of a killed run is left out.

    Raises:
        RecordError: the columns are not those of a record, or a field is not a number where one belongs.
    """
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    lines = list(csv.reader(io.StringIO(whole)))
    if not lines or tuple(lines[0]) not in (FIELDS, EARLIER):
        raise RecordError(f"{path}: expected the columns {','.join(FIELDS)}; move the file away to start a new one")
    rows = []
    for number, line in enumerate(lines[1:], 2):
        try:
            rows.append(Row(**{name: _decode(name, text) for name, text in zip(lines[0], line, strict=True)}))
        except ValueError as error:
            raise RecordError(f"{path}, row {number}: {error}") from None
    return rows


class Recorder:
    """Appends rows, each whole on disk before the next is measured, stamped with CPU or `machine`, and instruction set.

    With `resume` a file that is there is taken up, as much of it as `keep` leaves; one that lacks columns gets them.

    Raises:
        RecordError: the file cannot be written, or a run to be taken up was made on another machine.
    """

    def __init__(
        self,
        path: Path,
        *,
        resume: bool = False,
        machine: str = "",
        keep: Callable[[list[Row]], list[Row]] = lambda rows: rows,
    ) -> None:
        self.path = path
        self.rows: list[Row] = []
        self._stamp = {"cpu": machine or cpu_name(), "isa": isa()}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if resume and path.exists() and path.stat().st_size:
                self.rows = read_rows(path)
                self._refuse_other_machines()
                whole = path.read_bytes().startswith(HEADER.encode())
                if len(kept := keep(self.rows)) < len(self.rows) or not whole:
                    self.rows = kept
                    write_whole(path, HEADER + "".join(_encode(row).decode() for row in kept))
                self._end = path.read_bytes().rfind(b"\n") + 1
                self._file = os.open(path, os.O_WRONLY)
            else:
                self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
                self._end = 0
                self._append(HEADER.encode())
        except OSError as error:
            raise RecordError(f"cannot write {path}: {error.strerror}") from error
        self.keys = {row.key for row in self.rows}

    def _refuse_other_machines(self) -> None:
        here = (self._stamp["cpu"], self._stamp["isa"])
        if others := {(row.cpu, row.isa) for row in self.rows} - {here}:
            raise RecordError(f"{self.path} holds rows of {others}, this is {here}: take another --out")

    def add(self, *rows: Row) -> None:
        """Writes rows.

        Raises:
            RecordError: the disk is full or gone; the file then ends with the last whole row.
        """
        for row in rows:
            stamped = dataclasses.replace(row, **self._stamp)
            self._append(_encode(stamped))
            self.rows.append(stamped)
            self.keys.add(stamped.key)

    def _append(self, data: bytes) -> None:
        try:
            if os.pwrite(self._file, data, self._end) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.ftruncate(self._file, self._end + len(data))
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._end)
            raise RecordError(f"cannot write {self.path}: {error.strerror}; the rows before are kept") from error
        self._end += len(data)

    def close(self) -> None:
        os.close(self._file)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def write_whole(path: Path, text: str) -> None:
    """Writes a file by way of a temporary one: a reader sees the old or the new text, never a part.

    Raises:
        RecordError: it could not be written; an older file is untouched.
    """
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise RecordError(f"cannot write {path}: {error.strerror}") from error


@functools.cache
def cpu_name() -> str:
    """The processor's name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@functools.cache
def isa() -> str:
    """The instruction set of the fused CPU kernel, or torch's where that kernel is missing."""
    try:
        import fusedrnn  # noqa: F401  registers the op

        return str(torch.ops.fusedrnn.isa())
    except (ImportError, AttributeError, RuntimeError):
        return str(torch.backends.cpu.get_cpu_capability())


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(("git", "-C", str(ROOT), *arguments), capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def environment() -> dict[str, Any]:
    """What a reader needs to repeat the run; no path and no host name."""
    try:
        fused = fused_module()
        version = getattr(fused, "__version__", "unknown")
        backend = chosen_backend(fused.GRU(8, 8), torch.zeros(2, 1, 8))
        sources = importlib.import_module("fusedrnn._build").read_record().get("sources")
    except Exception as error:  # a broken build is a fact of the environment, whatever it raises
        version, backend, sources = f"not importable ({type(error).__name__})", "none", None
    sha, changes = (
        _git("rev-parse", "HEAD"),
        _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results"),
    )
    return {
        "cpu": cpu_name(),
        "isa": isa(),
        "cores": os.cpu_count(),
        "busy_cores": busy_cores(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "onnxruntime": _version("onnxruntime"),
        "allocator": _allocator(),
        "fusedrnn": version,
        "kernels": sources,
        "backend": backend,
        "git_sha": sha,
        "git_dirty": None if changes is None else bool(changes),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(
            ["python -m benchmarks", *(Path(word).name if os.sep in word else word for word in sys.argv[1:])]
        ),
    }


def busy_cores(seconds: float = 0.5) -> float:
    """Cores that others keep busy, over so many seconds in which this process sleeps.

    The load average will not do: a minute after a build it still tells of the build. Where there is no /proc/stat: it.
    """
    try:
        before = _idle_and_all()
        time.sleep(seconds)
        idle, total = (after - was for after, was in zip(_idle_and_all(), before, strict=True))
    except (OSError, ValueError):
        return round(os.getloadavg()[0], 1)
    return round((1 - idle / max(total, 1)) * (os.cpu_count() or 1), 1)


def _idle_and_all() -> tuple[int, int]:
    """Ticks of all cores since the start: idle (waiting for a disk is idle too), and of every kind but guests'."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return ticks[3] + ticks[4], sum(ticks)


def _allocator() -> str:
    """What hands out memory: where large blocks that are freed go back to the system, every call pays for them anew."""
    preloaded = [Path(name).name for name in os.environ.get("LD_PRELOAD", "").split()]
    settings = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith("MALLOC_")]
    return " ".join(preloaded + settings) or "default"


def environment_json(**extra: Any) -> str:
    return json.dumps(environment() | extra, indent=2, ensure_ascii=False) + "\n"
