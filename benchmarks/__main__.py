"""Command line of the laboratory: `python -m benchmarks --help`."""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from . import beyond, compare, figures, memory, parallel, report, sweep
from .arguments import parser
from .cases import FIGURE_SHAPES, MODES, Case
from .corpora import corpus
from .data import DataError, read_vectors
from .gpu import cases as gpu_cases
from .gpu import grid as gpu_grid
from .gpu import table as gpu_table
from .progress import Progress
from .providers import NN, PROVIDERS
from .record import FINISHED, Recorder, RecordError, Row, environment, finished_parts, read_rows, write_whole
from .resume import Saved, digest
from .studies import STUDIES
from .studies.base import Budget, Context

INTERRUPTED = 130
ENVIRONMENT = "env.json"
SAME = ("effort", "data", "embeddings", "processes", "torch", "fusedrnn", "kernels", "threads")
"""Of the environment: what rows of one folder have in common."""
TRAINED = ("text", "cells")
SHOWN = 40
"""Lines of a long table that are printed."""


def run_study(options: argparse.Namespace) -> int:
    names = options.names or list(STUDIES)
    if unknown := [name for name in names if name not in STUDIES]:
        raise DataError(f"unknown study {', '.join(unknown)}; there are {', '.join(STUDIES)}")
    parallel.refuse(names, "text")
    if "text" in names:
        _check_data(options)
    if elsewhere := [name for name in names if options.device not in STUDIES[name].devices]:
        raise DataError(
            f"{', '.join(elsewhere)} runs on no {options.device}: name those that do "
            f"({', '.join(name for name in STUDIES if options.device in STUDIES[name].devices)}), or leave out --device"
        )
    if options.device == "cuda" and not torch.cuda.is_available():
        raise DataError("torch sees no GPU here")
    with parallel.processes():
        if not parallel.rank():
            return _run_studies(options, names)
        with tempfile.TemporaryDirectory() as folder:  # of another process's rows nobody has a use
            saved = _saved(options)
            options.out, options.rows = Path(folder), Path(folder) / "rows.csv"
            return _run_studies(options, names, saved)


def _run_studies(options: argparse.Namespace, names: Sequence[str], saved: Saved | None = None) -> int:
    seconds = {name: options.budget or STUDIES[name].seconds[options.effort] for name in names}
    progress = Progress(sum(seconds.values()), stream=io.StringIO() if parallel.rank() else None)
    interrupted = False
    machine = torch.cuda.get_device_name() if options.device == "cuda" else ""
    path = options.rows or options.out / "rows.csv"
    facts = environment() | {"effort": options.effort, "processes": parallel.size(), "budget_s": seconds}
    facts |= {"data": digest(options.data), "embeddings": digest(options.embeddings)}
    known = _known(options, path, facts)
    saved = saved or _saved(options)
    keep = partial(_kept, options, names)
    with Recorder(path, resume=bool(known), machine=machine, keep=keep) as recorder:
        recorder.keys = parallel.agree(recorder.keys)  # what is finished is so in every process, or one waits in vain
        if done := sum(row.metric == FINISHED for row in recorder.rows):
            told = f"{path} holds {done} finished parts of {known['date']}, which are kept; --overwrite measures anew"
            print(told, file=sys.stderr)
        if not options.rows:
            write_whole(path.with_name(ENVIRONMENT), json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
        try:
            for name in names:
                files = (options.data, options.embeddings)
                budget = Budget(seconds[name])
                STUDIES[name].run(Context(recorder, progress, budget, options.effort, *files, options.device, saved))
        except KeyboardInterrupt:
            interrupted = True
        if options.rows:
            progress.close()
            return INTERRUPTED if interrupted else 0
        progress.show("report")
        page = report.write(options.out, recorder.rows, facts, interrupted=interrupted)
    progress.close()
    if interrupted:
        print(
            f"interrupted: the {len(recorder.rows)} rows measured until then are in {options.out / 'rows.csv'}, "
            f"their report is {page}",
            file=sys.stderr,
        )
        return INTERRUPTED
    print(f"report: {page}   the same as Markdown: {page.with_suffix('.md')}   rows: {options.out / 'rows.csv'}")
    return 0


def _known(options: argparse.Namespace, path: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """The environment of the rows that are there, nothing where there are none, or all are to be measured anew.

    Raises:
        RecordError: they were made with other arguments or versions.
    """
    if not path.exists() or not path.stat().st_size:
        return {}
    if options.overwrite and (not options.names or all(row.study in options.names for row in read_rows(path))):
        return {}
    anew = "name no study and all is measured anew" if options.overwrite else "give --overwrite to measure anew"
    if options.rows:
        return {"date": "an earlier call"}
    try:
        known: dict[str, Any] = json.loads(path.with_name(ENVIRONMENT).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecordError(
            f"{path} has rows whose {ENVIRONMENT} cannot be read ({error}): {anew}, or give another --out"
        ) from None
    changed = [name for name in SAME if known.get(name) != facts[name]]
    if changed:
        told = ", ".join(f"{name} {known.get(name)!r}, now {facts[name]!r}" for name in changed)
        raise RecordError(
            f"{path} holds rows made with {told}: give the same arguments to go on; or {anew}, or give another --out"
        )
    return known


def _kept(options: argparse.Namespace, names: Sequence[str], rows: list[Row]) -> list[Row]:
    """What a rerun does not measure again: other studies' rows, and finished parts of its own without --overwrite.

    Long training keeps states, not rows: they are written again from these.
    """
    trained = TRAINED if options.effort == "full" else ()
    own = finished_parts([row for row in rows if row.study in names and row.study not in trained])
    if options.overwrite:
        own = []
    return [row for row in rows if row.study not in names] + own


def _saved(options: argparse.Namespace) -> Saved | None:
    """Where a long training goes on from; one that takes minutes starts anew."""
    if options.effort != "full":
        return None
    arguments = {"data": digest(options.data), "embeddings": digest(options.embeddings)}
    anew = options.overwrite and not (options.names and set(options.names).isdisjoint(TRAINED))
    return Saved(options.rows.parent if options.rows else options.out, arguments, overwrite=anew)


def _check_data(options: argparse.Namespace) -> None:
    """A file that cannot be used is said before minutes of measuring."""
    if options.data:
        corpus(options.data)
    if options.embeddings:
        read_vectors(options.embeddings, {})


def run_compare(options: argparse.Namespace) -> int:
    if options.threads:
        torch.set_num_threads(options.threads)
    directions = 2 if options.bidirectional else 1
    case = Case(
        options.cell,
        options.steps,
        options.batch,
        options.input,
        options.hidden,
        options.layers,
        directions,
        options.dtype,
        options.ragged,
    )
    wanted = [PROVIDERS[name] for name in options.provider or ()]
    if reason := next(filter(None, (provider.missing() for provider in wanted)), None):
        raise DataError(reason)
    print(compare.run(case, wanted, budget_s=options.budget, reference=options.reference, peak=options.peak))
    return 0


def run_figures(options: argparse.Namespace) -> int:
    _check_shapes(options)
    print(figures.run(options.out, shapes=options.shapes, **_paired(options)).read_text(encoding="utf-8"))
    return 0


def run_sweep(options: argparse.Namespace) -> int:
    table = sweep.run(options.out, **_paired(options))
    text = table.read_text(encoding="utf-8").splitlines()
    print("\n".join(text[:SHOWN]), f"\n... all of it: {table}" if len(text) > SHOWN else "")
    return 0


def run_peak(options: argparse.Namespace) -> int:
    _check_shapes(options)
    if options.provider == NN.name or "train" not in PROVIDERS[options.provider].modes:
        raise DataError(f"--provider: expected one that trains, to stand beside nn, got {options.provider}")
    if options.repeats < 1:
        raise DataError(f"--repeats: expected at least 1, got {options.repeats}")
    names = ("cells", "shapes", "threads", "provider", "repeats", "overwrite")
    table = memory.run(options.out, **{name: getattr(options, name) for name in names})
    print(table.read_text(encoding="utf-8"))
    return 0


def run_beyond(options: argparse.Namespace) -> int:
    table = beyond.run(options.out, budget_s=options.budget, overwrite=options.overwrite)
    print(table.read_text(encoding="utf-8"))
    return 0


def _check_shapes(options: argparse.Namespace) -> None:
    if outside := [shape for shape in options.shapes if not 0 <= shape < len(FIGURE_SHAPES)]:
        raise DataError(f"--shapes: {outside} not in 0 to {len(FIGURE_SHAPES) - 1}")


def _paired(options: argparse.Namespace) -> dict[str, Any]:
    names = ("cells", "threads", "provider", "against", "overwrite")
    sides = PROVIDERS[options.provider], PROVIDERS[options.against]
    modes = options.modes or [mode for mode in MODES if all(mode in side.modes for side in sides)]
    return {name: getattr(options, name) for name in names} | {"modes": modes, "budget_s": options.budget}


def run_report(options: argparse.Namespace) -> int:
    rows = read_rows(options.folder / "rows.csv")
    facts = json.loads((options.folder / ENVIRONMENT).read_text(encoding="utf-8"))
    print(f"report: {report.write(options.folder, rows, facts)}")
    return 0


def run_gpu(options: argparse.Namespace) -> int:
    if options.list:
        print("\n".join(case.name for case in gpu_cases.grid()))
        return 0
    if not torch.cuda.is_available():
        raise DataError("torch sees no GPU here; `--list` shows what would be measured")
    return gpu_grid.run(options.out, gpu_grid.gpu(), options.budget)


def run_gpu_table(options: argparse.Namespace) -> int:
    print(gpu_table.write(options.csv, options.file))
    return 0


COMMANDS = {
    "study": run_study,
    "compare": run_compare,
    "figures": run_figures,
    "sweep": run_sweep,
    "peak": run_peak,
    "beyond": run_beyond,
    "gpu": run_gpu,
    "gpu-table": run_gpu_table,
    "report": run_report,
}


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        return COMMANDS[options.command](options)
    except (DataError, RecordError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except FileNotFoundError as error:
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; what was measured is kept", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
