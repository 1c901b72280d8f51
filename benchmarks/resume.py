"""Training states on disk: written whole after every epoch, taken up by a later call with the same arguments."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from . import parallel
from .record import RecordError, cpu_name, isa, write_whole
from .training import Run

FOLDER, ARGUMENTS = "training", "arguments.json"


def digest(path: Path | None) -> str | None:
    """The content of a file or of a folder's files, in short; None stands for no file."""
    if path is None:
        return None
    found = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            found.update(file.relative_to(path).as_posix().encode() + b"\0" + file.read_bytes())
    return found.hexdigest()[:16]


class Saved:
    """The training states below a results folder, of one set of arguments on one machine.

    Raises:
        RecordError: states of other arguments are there, or one cannot be read or written.
    """

    def __init__(self, out: Path, arguments: dict[str, Any], *, overwrite: bool = False) -> None:
        self.folder = out / FOLDER
        if overwrite and not parallel.rank():
            shutil.rmtree(self.folder, ignore_errors=True)
        self._arguments = json.loads(json.dumps(arguments | machine()))
        self._plans = parallel.agree(self._read())

    def _read(self) -> dict[str, Any]:
        path = self.folder / ARGUMENTS
        if parallel.rank() or not path.exists():
            return {}
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
            there, plans = known["arguments"], known["plans"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RecordError(f"{path} cannot be read ({error!r}): give --overwrite to start anew") from error
        names = sorted(there.keys() | self._arguments.keys())
        changed = [name for name in names if there.get(name) != self._arguments.get(name)]
        if changed:
            told = ", ".join(f"{name} {there.get(name)!r}, now {self._arguments.get(name)!r}" for name in changed)
            raise RecordError(
                f"{self.folder} holds training begun with {told}: give the same arguments to go on, --overwrite to "
                "start anew, or another --out"
            )
        return plans

    def examples(self, corpus: str, plan: str, chosen: int | None = None) -> int | None:
        """How many examples a corpus is trained on; `chosen` is kept for later calls.

        Raises:
            RecordError: it was trained by another plan.
        """
        known = self._plans.get(corpus)
        if known and known["plan"] != plan:
            raise RecordError(
                f"{self.folder}: {corpus} was begun as {known['plan']}, now it is {plan}: give --overwrite to start "
                "anew, or another --out"
            )
        if chosen is not None:
            self._plans[corpus] = {"plan": plan, "examples": chosen}
            text = json.dumps({"arguments": self._arguments, "plans": self._plans}, indent=2) + "\n"
            if not parallel.rank():
                write_whole(self.folder / ARGUMENTS, text)
            return chosen
        return known["examples"] if known else None

    def _path(self, corpus: str, run: Run) -> Path:
        return self.folder / f"{corpus.replace('/', '-')}-{run.name}-{run.provider}-{run.seed}.pt"

    def keep(self, corpus: str, run: Run, *, over: bool = False) -> None:
        """Writes a run's state; a reader sees the old or the new one, never a part."""
        state, path = run.state(over=over), self._path(corpus, run)
        if parallel.rank():
            return
        part = path.with_name(path.name + ".part")
        content = io.BytesIO()
        torch.save(state, content)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                file.write(content.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise RecordError(f"cannot write {path}: {error.strerror}; the state before is kept") from error

    def take_up(self, corpus: str, run: Run) -> bool:
        """Whether a run's state was there, which it then has."""
        path, state = self._path(corpus, run), None
        if not parallel.rank() and path.exists():
            try:
                state = torch.load(path, weights_only=True)
            except Exception as error:  # of many kinds, by what is wrong with the file
                raise RecordError(f"{path} cannot be read ({error!r}): give --overwrite to start anew") from error
        state = parallel.agree(state)
        if state is None:
            return False
        run.take_up(state)
        return True


def machine() -> dict[str, Any]:
    """What a time, or the last bit of a weight, depends on."""
    return {
        "cpu": cpu_name(),
        "isa": isa(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "processes": parallel.size(),
    }
