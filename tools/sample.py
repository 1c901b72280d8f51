"""Which faults a run tries: all, those of a name, or one in N, which changes with the sources: each has its turn."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Parts of names, and `--one-in N`."""
    parser.add_argument("only", nargs="*", help="parts of the faults' names; all of them by default")
    text = "try about one fault in N: which, changes with csrc/ and the Triton kernels"
    parser.add_argument("--one-in", type=int, default=1, metavar="N", help=text)


def chosen(names: Sequence[str], only: Sequence[str] = (), one_in: int = 1, root: Path = ROOT) -> list[int]:
    """The places of those to try: with a part of `only` in the name, and of these about one in `one_in`, at least one.

    Raises:
        ValueError: `one_in` is less than 1.
    """
    if one_in < 1:
        raise ValueError(f"--one-in: expected at least 1, got {one_in}")
    seed = hashlib.sha256()
    for path in _sources(root):
        seed.update(path.read_bytes())

    def rank(place: int) -> bytes:
        own = seed.copy()
        own.update(names[place].encode())
        return own.digest()

    places = [place for place, name in enumerate(names) if not only or any(part in name for part in only)]
    return sorted(sorted(places, key=rank)[: -(-len(places) // one_in)])


def _sources(root: Path) -> Iterable[Path]:
    folders, suffixes = (root / "csrc", root / "fusedrnn" / "triton_kernels"), {".h", ".cpp", ".cu", ".py"}
    return sorted(path for folder in folders for path in folder.rglob("*") if path.suffix in suffixes)
