"""Command line of the laboratory: `python -m benchmarks {study,compare,figures,report} --help`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from . import compare, figures, report
from .cases import CELLS, CLASSES, DTYPES, FIGURE_SHAPES, MODES, Case
from .data import DataError, phrase_corpus, read_vectors
from .progress import Progress
from .providers import FUSED, FUSED_CPU, PROVIDERS
from .record import Recorder, RecordError, environment, environment_json, read_rows, write_whole
from .studies import STUDIES
from .studies.base import Budget, Context

INTERRUPTED = 130
DEFAULT_OUT = Path("study-out")


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Fused layers, torch's layers and convolutions, measured on this machine.",
    )
    commands = top.add_subparsers(dest="command", required=True)

    study = commands.add_parser("study", help="run studies and write a report (about 5 minutes on 2 cores)")
    study.add_argument(
        "names", nargs="*", metavar="NAME", help=f"studies to run, of: {', '.join(STUDIES)} (default: all)"
    )
    study.add_argument(
        "--data",
        type=Path,
        help="movie-review phrases: a tab-separated file with PhraseId, SentenceId, Phrase, Sentiment",
    )
    study.add_argument("--embeddings", type=Path, help="word vectors in GloVe's text format")
    effort = study.add_mutually_exclusive_group()
    effort.add_argument(
        "--quick",
        dest="effort",
        action="store_const",
        const="quick",
        default="default",
        help="seconds: does everything run?",
    )
    effort.add_argument(
        "--full",
        dest="effort",
        action="store_const",
        const="full",
        help="larger grids, more epochs and seeds; up to an hour",
    )
    study.add_argument("--budget", type=float, metavar="S", help="seconds a study, instead of its own")
    study.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder of the results (default: %(default)s)")

    own = commands.add_parser("compare", help="one's own shape: a table in less than half a minute")
    own.add_argument(
        "--provider",
        action="append",
        choices=list(PROVIDERS),
        help="whom to time beside nn; may be repeated (default: fusedrnn, and the reference where it is quick)",
    )
    own.add_argument("--cell", choices=list(CLASSES), default="gru")
    for name, default in (("input", 256), ("hidden", 256), ("batch", 64), ("steps", 512), ("layers", 1)):
        own.add_argument(f"--{name}", type=int, default=default)
    own.add_argument("--bidirectional", action="store_true")
    own.add_argument(
        "--ragged", action="store_true", help="rows of different length: lengths= against a PackedSequence"
    )
    own.add_argument("--dtype", choices=list(DTYPES), default="fp32")
    own.add_argument("--threads", type=int, help="torch's threads (default: torch's own choice)")
    own.add_argument(
        "--reference",
        action=argparse.BooleanOptionalAction,
        help="the reference loop too (default: where it takes less than a second, and no --provider is given)",
    )
    own.add_argument(
        "--peak",
        action=argparse.BooleanOptionalAction,
        help="peak memory, in processes of its own (default: where the budget allows)",
    )
    own.add_argument("--budget", type=float, default=compare.BUDGET_S, metavar="S", help="seconds for the whole table")

    aims = commands.add_parser("figures", help="the ratios to reach, row by row; takes up a run that was cut off")
    aims.add_argument("--cells", type=_words(CELLS), default=list(CELLS))
    aims.add_argument("--threads", type=_numbers, default=[2, 1])
    aims.add_argument(
        "--shapes",
        type=_numbers,
        default=list(range(len(FIGURE_SHAPES))),
        help=f"indices of {FIGURE_SHAPES} (T, B, I, H)",
    )
    aims.add_argument("--modes", type=_words(MODES), default=list(MODES))
    aims.add_argument(
        "--provider",
        choices=[FUSED.name, FUSED_CPU.name],
        default=FUSED.name,
        help="what auto picks, or the fused CPU kernel by name",
    )
    aims.add_argument("--budget", type=float, default=2.0, metavar="S", help="seconds a row")
    aims.add_argument("--out", type=Path, default=DEFAULT_OUT)
    aims.add_argument("--overwrite", action="store_true", help="measure again what is there")

    again = commands.add_parser("report", help="write the report again from recorded rows")
    again.add_argument("folder", nargs="?", type=Path, default=DEFAULT_OUT)
    return top


def _words(known: Sequence[str]):
    def parse(text: str) -> list[str]:
        words = text.split(",")
        if unknown := [word for word in words if word not in known]:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; choose from {', '.join(known)}")
        return words

    return parse


def _numbers(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected whole numbers separated by commas, got {text!r}") from None


def run_study(options: argparse.Namespace) -> int:
    names = options.names or list(STUDIES)
    if unknown := [name for name in names if name not in STUDIES]:
        raise DataError(f"unknown study {', '.join(unknown)}; there are {', '.join(STUDIES)}")
    if "text" in names:
        _check_data(options)
    seconds = {name: options.budget or STUDIES[name].seconds[options.effort] for name in names}
    progress = Progress(sum(seconds.values()))
    interrupted = False
    with Recorder(options.out / "rows.csv") as recorder:
        facts = environment()
        write_whole(options.out / "env.json", environment_json(effort=options.effort, budget_s=seconds))
        try:
            for name in names:
                context = Context(
                    recorder, progress, Budget(seconds[name]), options.effort, options.data, options.embeddings
                )
                STUDIES[name].run(context)
        except KeyboardInterrupt:
            interrupted = True
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


def _check_data(options: argparse.Namespace) -> None:
    """A file that cannot be used is said before minutes of measuring."""
    if options.data:
        phrase_corpus(options.data)
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
    print(compare.run(case, wanted, budget_s=options.budget, reference=options.reference, peak=options.peak))
    return 0


def run_figures(options: argparse.Namespace) -> int:
    if outside := [shape for shape in options.shapes if not 0 <= shape < len(FIGURE_SHAPES)]:
        raise DataError(f"--shapes: {outside} not in 0 to {len(FIGURE_SHAPES) - 1}")
    table = figures.run(
        options.out,
        cells=options.cells,
        threads=options.threads,
        shapes=options.shapes,
        modes=options.modes,
        budget_s=options.budget,
        provider=options.provider,
        overwrite=options.overwrite,
    )
    print(table.read_text(encoding="utf-8"))
    return 0


def run_report(options: argparse.Namespace) -> int:
    rows = read_rows(options.folder / "rows.csv")
    facts = json.loads((options.folder / "env.json").read_text(encoding="utf-8"))
    print(f"report: {report.write(options.folder, rows, facts)}")
    return 0


COMMANDS = {"study": run_study, "compare": run_compare, "figures": run_figures, "report": run_report}


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
