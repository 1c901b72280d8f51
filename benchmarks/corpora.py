"""Corpora for the text study: positive and negative texts in a folder, the phrases as they were published.

Readers raise `DataError`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from .data import CLASSES_OF_PHRASES, NOT_TEXT, Corpus, DataError, LeftOut, Phrase, lines, phrase_corpus, split

POLARITIES = ("neg", "pos")
"""Labels 0 and 1, as files and folders are named."""
PUBLISHED_SHARE = 0.05
"""Of the phrases, whatever sentence they come from."""


def read_polarity(folder: Path) -> tuple[list[Phrase], list[str]]:
    """Reads positive (label 1) and negative (0) texts: files that end in .pos and .neg, a text a line, or folders
    pos and neg of .txt files, a text a file.

    Returns:
        The texts, lower-cased and split at blanks, equal ones in one group; and remarks about left-out lines.

    Raises:
        DataError: neither is there, more than 1 % of the lines are empty or not UTF-8, or a label has no text.
    """
    phrases, groups, left_out = list[Phrase](), dict[tuple[str, ...], int](), LeftOut(folder.name)
    for label, polarity in enumerate(POLARITIES):
        before = len(phrases)
        for where, text in _texts(folder, polarity):
            tokens = tuple(text.lower().split()) if text else ()
            if not left_out.line(where, NOT_TEXT if text is None else None if tokens else "no word"):
                phrases.append(Phrase(tokens, label, groups.setdefault(tokens, len(groups))))
        if len(phrases) == before:
            left_out.notes()
            raise DataError(
                f"{folder.name}: no {polarity} texts; expected files ending in .pos and .neg, a text a line, or "
                "folders pos and neg of .txt files"
            )
    return phrases, left_out.notes()


def _texts(folder: Path, polarity: str) -> Iterator[tuple[str, str | None]]:
    """Where each text stands, and the text, None where it is not UTF-8."""
    for path in sorted(folder.glob(f"*.{polarity}")):
        for number, line in lines(path):
            yield f"{path.name}, line {number}", line if isinstance(line, str) else None
    for path in sorted((folder / polarity).glob("*.txt")):
        found = [line for _, line in lines(path)]
        kept = [line for line in found if isinstance(line, str)]
        yield f"{polarity}/{path.name}", " ".join(kept) if len(kept) == len(found) else None


def corpus(path: Path) -> Corpus:
    """Movie-review phrases from a file, or positive and negative texts from a folder, split by sentence.

    Phrases of one sentence overlap and must not fall on both sides of a split.
    """
    if path.is_dir():
        phrases, notes = read_polarity(path)
        return split("polarity", len(POLARITIES), phrases, notes)
    return phrase_corpus(path)


def published(phrases: Sequence[Phrase], seed: int = 0) -> Corpus:
    """The phrases as the quoted accuracies had them: 5 % held out at random, so that sentences fall on both sides."""
    order = list(range(len(phrases)))
    random.Random(seed).shuffle(order)
    count = max(1, round(PUBLISHED_SHARE * len(phrases)))
    held_out, train = ([phrases[index] for index in sorted(part)] for part in (order[:count], order[count:]))
    return Corpus("published", CLASSES_OF_PHRASES, train, held_out)


def leak(corpus: Corpus) -> float:
    """The share of test phrases whose sentence has phrases to train on."""
    known = {phrase.group for phrase in corpus.train}
    return sum(phrase.group in known for phrase in corpus.test) / len(corpus.test)
