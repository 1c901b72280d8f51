"""Text and series for the studies: readers that name the line they stumble over, and two generators.

Readers raise `DataError`; generators are functions of their seed.
"""

from __future__ import annotations

import collections
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

PAD, UNKNOWN = 0, 1
HEADER = ["PhraseId", "SentenceId", "Phrase", "Sentiment"]
CLASSES_OF_PHRASES = 5
VALIDATION_SHARE, TEST_SHARE = 0.05, 0.1
"""Of the sentences."""
NOT_TEXT = "not UTF-8 text"
MALFORMED_SHARE = 0.01
"""More malformed lines than this and the file is refused; fewer are left out and counted."""


class DataError(ValueError):
    """A data file that cannot be used; says which, at which line, and what was expected."""


@dataclass(frozen=True)
class Phrase:
    """Tokens and label. `group`: phrases of one stay on one side of a split. `gap`: words between cue and target."""

    tokens: tuple[str, ...]
    label: int
    group: int
    gap: int = -1


@dataclass
class Corpus:
    """Without `validation` the test part is looked at after every epoch, and nothing is chosen by it."""

    name: str
    classes: int
    train: list[Phrase]
    test: list[Phrase]
    notes: list[str] = field(default_factory=list)
    validation: list[Phrase] = field(default_factory=list)


def lines(path: Path) -> Iterator[tuple[int, str | DataError]]:
    """Lines by number; in place of one that is not UTF-8, the error that says so."""
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                try:
                    yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    yield number, DataError(f"{path.name}, line {number}: not UTF-8 text ({error.reason})")
    except OSError as error:
        raise DataError(f"cannot read {path.name}: {error.strerror}") from error


class LeftOut:
    """Malformed lines of one source: few are told, more than 1 % make it unusable."""

    def __init__(self, source: str) -> None:
        self._source, self._total, self._reasons = source, 0, list[str]()

    def line(self, where: str, reason: str | None) -> bool:
        """Counts a line; whether it is left out."""
        self._total += 1
        if reason:
            self._reasons.append(f"{where}: {reason}")
        return bool(reason)

    def notes(self) -> list[str]:
        bad, shown = len(self._reasons), "; ".join(self._reasons[:5])
        if bad > MALFORMED_SHARE * self._total:
            raise DataError(f"{self._source}: {bad} of {self._total} lines are malformed; {shown}")
        return [f"{bad} malformed lines left out ({shown})"] if bad else []


def read_phrases(path: Path) -> tuple[list[Phrase], list[str]]:
    """Reads the movie-review phrases: tab-separated PhraseId, SentenceId, Phrase, Sentiment (0 to 4), with that header.

    Returns:
        The phrases in file order, lower-cased and split at blanks (a phrase may have no token), and remarks about
        left-out lines.

    Raises:
        DataError: no such file, not UTF-8, another header, no phrase, or more than 1 % of the lines malformed.
    """
    phrases, left_out = list[Phrase](), LeftOut(path.name)
    for number, line in lines(path):
        if number == 1:
            if line != "\t".join(HEADER):
                raise DataError(
                    f"{path.name}, line 1: expected the columns {' '.join(HEADER)} separated by tabs, got "
                    f"{str(line)[:80]!r}"
                )
            continue
        fields = line.split("\t") if isinstance(line, str) else []
        if not left_out.line(f"line {number}", _malformed(fields) if fields else NOT_TEXT):
            phrases.append(Phrase(tuple(fields[2].lower().split()), int(fields[3]), int(fields[1])))
    notes = left_out.notes()
    if not phrases:
        raise DataError(f"{path.name}: no phrases after the header")
    return phrases, notes


def _malformed(fields: Sequence[str]) -> str | None:
    if len(fields) != len(HEADER):
        return f"expected {len(HEADER)} tab-separated fields, got {len(fields)}"
    for name, text in zip(("PhraseId", "SentenceId"), fields, strict=False):
        if not text.isdecimal():
            return f"{name} must be a whole number, got {text[:20]!r}"
    if fields[3] not in tuple("01234"):
        return f"Sentiment must be 0 to 4, got {fields[3][:20]!r}"
    return None


def read_vectors(path: Path, vocabulary: dict[str, int]) -> tuple[int, dict[str, list[float]]]:
    """Reads word vectors in GloVe's text format, a word and its numbers a line, and keeps those of the vocabulary.

    Returns:
        Width of the vectors, and word -> numbers. Numbers are checked for the words kept, the count of fields on
        every line.

    Raises:
        DataError: no such file, not UTF-8, empty, a line with another count of numbers, or something that is no
        finite number.
    """
    width, found = 0, dict[str, list[float]]()
    for number, line in lines(path):
        if not isinstance(line, str):
            raise line
        width = width or len(line.split()) - 1
        if width < 1:
            raise DataError(f"{path.name}, line {number}: expected a word and its numbers, got {line[:60]!r}")
        # from the right: a few words of published tables contain blanks
        word, *numbers = line.rstrip().rsplit(" ", width)
        if len(numbers) != width or not word:
            raise DataError(f"{path.name}, line {number}: expected a word and {width} numbers, got {line[:60]!r}")
        if word in vocabulary:
            try:
                values = [float(text) for text in numbers]
            except ValueError as error:
                raise DataError(f"{path.name}, line {number}: {error}") from None
            if not all(map(math.isfinite, values)):
                raise DataError(f"{path.name}, line {number}: not a finite number in {line[:60]!r}")
            found[word] = values
    if not width:
        raise DataError(f"{path.name}: empty")
    return width, found


def phrase_corpus(path: Path, seed: int = 0) -> Corpus:
    """The movie-review phrases, split by sentence."""
    return split("phrases", CLASSES_OF_PHRASES, *read_phrases(path), seed)


def split(name: str, classes: int, phrases: Sequence[Phrase], notes: Sequence[str], seed: int = 0) -> Corpus:
    """Train, validation and test, whole sentences each."""
    groups = sorted({phrase.group for phrase in phrases})
    random.Random(seed).shuffle(groups)
    ends = [max(1, round(share * len(groups))) for share in (TEST_SHARE, VALIDATION_SHARE)]
    parts = groups[: ends[0]], groups[ends[0] : sum(ends)], groups[sum(ends) :]
    test, validation, train = ([phrase for phrase in phrases if phrase.group in chosen] for chosen in map(set, parts))
    if not train:
        raise DataError(f"{name}: a split by sentence needs three sentences, got {len(groups)}")
    told = (
        f"{len(phrases)} phrases of {len(groups)} sentences, split by sentence: {len(train)} to train, "
        f"{len(validation)} to validate, {len(test)} to test"
    )
    return Corpus(name, classes, train, test, [told, *notes], validation)


def subsample(phrases: Sequence[Phrase], at_most: int, seed: int) -> list[Phrase]:
    """Whole groups at random until the next would pass `at_most` phrases (one group at least)."""
    members: dict[int, list[Phrase]] = collections.defaultdict(list)
    for phrase in phrases:
        members[phrase.group].append(phrase)
    groups = sorted(members)
    random.Random(seed).shuffle(groups)
    chosen: list[Phrase] = []
    for group in groups:
        if chosen and len(chosen) + len(members[group]) > at_most:
            break
        chosen += members[group]
    return chosen


GAPS = (0, 1, 2, 3, 4, 6, 8, 12)
_POSITIVE, _NEGATIVE, _NEUTRAL, _FILLERS = map(
    str.split,
    (
        "good great fine lovely moving funny clever warm",
        "bad poor dull weak awful silly flat cold",
        "long short french new quiet modern loud old",
        "the film was and it , really quite so rather very as they say in my own view to be fair at times",
    ),
)


def grammar(count: int, seed: int) -> list[Phrase]:
    """Sentences whose label (1 positive) is decided by word order alone, `gap` fillers between the words that matter.

    Negation: "not .. good .. just .. long": one of the markers "not" and "just" stands before the cue word and one
    before a neutral word; all orders hold the same words. Contrast: "good .. but .. bad": the cue word after "but"
    decides. A window of up to `gap` + 1 words sees one of these words at a time, and nothing marks where a sentence
    begins.
    """
    rng = random.Random(seed)
    return [_sentence(rng, index) for index in range(count)]


def _sentence(rng: random.Random, index: int) -> Phrase:
    gap, positive = rng.choice(GAPS), rng.random() < 0.5
    cue, opposite = (_POSITIVE, _NEGATIVE) if positive else (_NEGATIVE, _POSITIVE)
    if rng.random() < 2 / 3:
        negated, cue_first = rng.random() < 0.5, rng.random() < 0.5
        pairs = [("not" if negated else "just", rng.choice(cue)), ("just" if negated else "not", rng.choice(_NEUTRAL))]
        words = [word for pair in (pairs if cue_first else pairs[::-1]) for word in pair]
        label = positive != negated
    else:
        words, label = [rng.choice(opposite), "but", rng.choice(cue)], positive
    tokens = _fill(rng, rng.randrange(4))
    for word in words:
        tokens += [word, *_fill(rng, gap)]
    tokens = tokens[: len(tokens) - gap] + _fill(rng, rng.randrange(4))
    return Phrase(tuple(tokens), int(label), index, gap)


def _fill(rng: random.Random, count: int) -> list[str]:
    return [rng.choice(_FILLERS) for _ in range(count)]


def grammar_corpus(train: int = 8000, validation: int = 1000, test: int = 2000, seed: int = 0) -> Corpus:
    rule = "both classes hold the same words, their order decides"
    note = f"{train} sentences to train, {validation} to validate, {test} to test from the built-in grammar; {rule}."
    return Corpus("grammar", 2, grammar(train, seed), grammar(test, seed + 1), [note], grammar(validation, seed + 2))


def vocabulary(phrases: Sequence[Phrase]) -> dict[str, int]:
    """Word -> index, commonest first; 0 pads, 1 stands for unknown words."""
    counts = collections.Counter(token for phrase in phrases for token in phrase.tokens)
    return {word: index for index, (word, _) in enumerate(counts.most_common(), 2)}


@dataclass(frozen=True)
class Batch:
    tokens: Tensor  # [T, B], PAD beyond a row's end
    lengths: Tensor | None  # [B], None where all rows are T long
    labels: Tensor  # [B]
    gaps: Tensor  # [B]


def batches(phrases: Sequence[Phrase], words: dict[str, int], size: int, rng: random.Random | None) -> list[Batch]:
    """Batches of phrases of one length, in random order; what fills no batch is gathered, by length, into padded ones.

    A phrase without a token counts as one unknown word. Without `rng` the order is fixed (evaluation).
    """
    by_length: dict[int, list[Phrase]] = collections.defaultdict(list)
    for phrase in phrases:
        by_length[max(1, len(phrase.tokens))].append(phrase)
    full: list[list[Phrase]] = []
    rest: list[Phrase] = []
    for length in sorted(by_length):
        group = by_length[length]
        if rng:
            rng.shuffle(group)
        whole = len(group) - len(group) % size
        full += [group[start : start + size] for start in range(0, whole, size)]
        rest += group[whole:]
    full += [rest[start : start + size] for start in range(0, len(rest), size)]
    if rng:
        rng.shuffle(full)
    return [_batch(group, words) for group in full]


def sorted_batches(phrases: Sequence[Phrase], words: dict[str, int], size: int) -> list[Batch]:
    """Batches of the phrases sorted by length, always the same ones in the same order."""
    order = sorted(phrases, key=lambda phrase: len(phrase.tokens))
    return [_batch(order[start : start + size], words) for start in range(0, len(order), size)]


def _batch(group: Sequence[Phrase], words: dict[str, int]) -> Batch:
    lengths = [max(1, len(phrase.tokens)) for phrase in group]
    tokens = torch.full((len(group), max(lengths)), PAD)
    for row, phrase in enumerate(group):
        tokens[row, : lengths[row]] = torch.tensor([words.get(token, UNKNOWN) for token in phrase.tokens] or [UNKNOWN])
    ragged = torch.tensor(lengths) if min(lengths) < max(lengths) else None
    return Batch(
        tokens.t().contiguous(), ragged, torch.tensor([p.label for p in group]), torch.tensor([p.gap for p in group])
    )


SERIES_MEAN, SERIES_SD, SERIES_T = (0.5, -0.5), (1.0, 1.2), 20


def series(per_class: int, seed: int) -> tuple[Tensor, Tensor]:
    """Independent draws, class 0 from N(0.5, 1), class 1 from N(-0.5, 1.2) (standard deviations), in random order.

    Returns:
        x [N, T, 1] float32 and labels [N], N = 2 per_class, T = 20.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(2).repeat_interleave(per_class)
    noise = torch.randn(2 * per_class, SERIES_T, 1, generator=generator)
    x = noise * torch.tensor(SERIES_SD)[labels, None, None] + torch.tensor(SERIES_MEAN)[labels, None, None]
    order = torch.randperm(2 * per_class, generator=generator)
    return x[order], labels[order]


def bayes_accuracy() -> float:
    """What the best possible classifier of the series reaches, exactly.

    It compares likelihoods: class 1 where sum_t (x_t - m0)^2 / s0^2 - (x_t - m1)^2 / s1^2 > 2 T log(s1 / s0). With
    p = 1/s0^2 - 1/s1^2 and c = (m0/s0^2 - m1/s1^2) / p the sum is p Q - T p c^2 + T (m0^2/s0^2 - m1^2/s1^2), where
    Q = sum_t (x_t - c)^2: a threshold on Q. In class i, Q / s_i^2 is noncentral chi-square with T degrees of freedom
    and noncentrality T (m_i - c)^2 / s_i^2: a Poisson mixture of chi-squares with T + 2j degrees.
    """
    (m0, m1), (s0, s1), T = SERIES_MEAN, SERIES_SD, SERIES_T
    p = 1 / s0**2 - 1 / s1**2
    c = (m0 / s0**2 - m1 / s1**2) / p
    threshold = (2 * T * math.log(s1 / s0) - T * (m0**2 / s0**2 - m1**2 / s1**2)) / p + T * c**2
    j = torch.arange(1000, dtype=torch.float64)

    def below(mean: float, sd: float) -> float:
        half = torch.tensor(T * (mean - c) ** 2 / sd**2 / 2, dtype=torch.float64)
        poisson = (j * half.log() - half - torch.lgamma(j + 1)).exp()
        return float(poisson @ torch.special.gammainc(T / 2 + j, torch.full_like(j, threshold / sd**2 / 2)))

    return (below(m0, s0) + 1 - below(m1, s1)) / 2
