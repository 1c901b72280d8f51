"""The arguments of `python -m benchmarks`."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from . import compare
from .cases import CELLS, CLASSES, DTYPES, FIGURE_SHAPES, MODES
from .providers import FUSED, NN, PROVIDERS
from .studies import STUDIES

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
        help="movie-review phrases, a tab-separated file with PhraseId, SentenceId, Phrase, Sentiment; or a folder of "
        "positive and negative texts, in files ending in .pos and .neg or in folders pos and neg of .txt files",
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
        help="larger grids, more epochs, seeds and models; up to an hour. Training goes on where an earlier call with "
        "the same arguments and --out ended",
    )
    study.add_argument(
        "--overwrite",
        action="store_true",
        help="measure and train anew, what is named or everything; else what an earlier call finished is kept",
    )
    study.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where (default: %(default)s)")
    study.add_argument("--rows", type=Path, metavar="FILE", help="write the rows alone, there, and no report")
    study.add_argument("--budget", type=_seconds, metavar="S", help="seconds a study, instead of its own")
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
    own.add_argument("--threads", type=_count, help="torch's threads (default: torch's own choice)")
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
    own.add_argument(
        "--budget", type=_seconds, default=compare.BUDGET_S, metavar="S", help="seconds for the whole table"
    )

    aims = commands.add_parser("figures", help="the ratios to reach, row by row; takes up a run that was cut off")
    _add_shapes(aims)
    _add_paired(aims, budget_s=2.0)

    wide = commands.add_parser("sweep", help="the same ratio over other shapes and options, worst first")
    _add_paired(wide, budget_s=0.25)

    memory = commands.add_parser("peak", help="peak memory of a training step at the shapes of figures (4 minutes)")
    memory.add_argument("--cells", type=_words(CELLS), default=list(CELLS))
    _add_shapes(memory)
    memory.add_argument("--threads", type=_count, help="torch's threads (default: torch's own choice)")
    memory.add_argument("--provider", choices=list(PROVIDERS), default=FUSED.name, help="beside nn (%(default)s)")
    memory.add_argument("--repeats", type=int, default=3, help="processes a measurement (default: %(default)s)")
    memory.add_argument("--out", type=Path, default=DEFAULT_OUT)
    memory.add_argument("--overwrite", action="store_true", help="measure again what is there")

    beyond = commands.add_parser(
        "beyond", help="second derivatives, gradients of rows, rebuilt gates, streams (2 minutes)"
    )
    beyond.add_argument("--budget", type=_seconds, default=2.0, metavar="S", help="seconds a case (%(default)s)")
    beyond.add_argument("--out", type=Path, default=DEFAULT_OUT)
    beyond.add_argument("--overwrite", action="store_true", help="measure again what is there")

    device = commands.add_parser("gpu", help="the grid against cuDNN; takes up a run that was cut off")
    device.add_argument("--out", type=Path, default=DEFAULT_OUT / "grid.csv", help="the CSV (default: %(default)s)")
    device.add_argument("--budget", type=_seconds, default=180.0, metavar="S", help="seconds in all (%(default)s)")
    device.add_argument("--list", action="store_true", help="print the cases in their order, and measure nothing")
    table = commands.add_parser("gpu-table", help="what auto goes by on a GPU model, from a CSV of `gpu`")
    table.add_argument("csv", type=Path)
    table.add_argument("--file", type=Path, help="what is written (default: the GPU's file in the package)")

    again = commands.add_parser("report", help="write the report again from recorded rows")
    again.add_argument("folder", nargs="?", type=Path, default=DEFAULT_OUT)
    return top


def _add_shapes(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--shapes",
        type=_numbers,
        default=list(range(len(FIGURE_SHAPES))),
        help=f"indices of {FIGURE_SHAPES} (T, B, I, H)",
    )


def _add_paired(command: argparse.ArgumentParser, budget_s: float) -> None:
    """What `figures` and `sweep` have in common."""
    command.add_argument("--cells", type=_words(CELLS), default=list(CELLS))
    command.add_argument("--threads", type=_counts, default=[2, 1], help="counts, separated by commas (default: 2,1)")
    command.add_argument("--modes", type=_words(MODES), help="default: those that both sides do")
    command.add_argument(
        "--provider",
        choices=list(PROVIDERS),
        default=FUSED.name,
        help="whose time is divided by: what auto picks, or a backend by name (default: %(default)s)",
    )
    command.add_argument(
        "--against", choices=list(PROVIDERS), default=NN.name, help="whose time is divided (default: %(default)s)"
    )
    command.add_argument("--budget", type=_seconds, default=budget_s, metavar="S", help="seconds a row (%(default)s)")
    command.add_argument("--out", type=Path, default=DEFAULT_OUT)
    command.add_argument("--overwrite", action="store_true", help="measure again what is there")


def _words(known: Sequence[str]):
    def parse(text: str) -> list[str]:
        words = text.split(",")
        if unknown := [word for word in words if word not in known]:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; choose from {', '.join(known)}")
        return words

    return parse


def _count(text: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"expected a positive number of seconds, got {text!r}")
    return seconds


def _counts(text: str) -> list[int]:
    return [_count(word) for word in text.split(",")]


def _numbers(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected whole numbers separated by commas, got {text!r}") from None
