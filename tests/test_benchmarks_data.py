"""The studies' data: readers that name the line, splits, generators, batches."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
import torch

from benchmarks import corpora, data


def _phrases(tmp_path: Path, *lines: str, header: str = "PhraseId\tSentenceId\tPhrase\tSentiment") -> Path:
    path = tmp_path / "train.tsv"
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


def test_phrases_are_read_and_split_by_sentence(tmp_path):
    lines = [f"{index}\t{index // 4}\tA Phrase number {index}\t{index % 5}" for index in range(80)]
    corpus = data.phrase_corpus(_phrases(tmp_path, *lines, "81\t3\t\t2"))
    parts = [corpus.train, corpus.validation, corpus.test]
    assert sum(map(len, parts)) == 81
    sentences = [{phrase.group for phrase in part} for part in parts]
    assert all(sentences)
    assert sum(map(len, sentences)) == len(set.union(*sentences)) == 20
    assert corpus.train[0].tokens[:2] == ("a", "phrase")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("7\t1\tno label", "line 3: expected 4 tab-separated fields, got 3"),
        ("7\t1\tgood\t9", "line 3: Sentiment must be 0 to 4, got '9'"),
        ("seven\t1\tgood\t1", "line 3: PhraseId must be a whole number"),
    ],
)
def test_malformed_phrases_are_named_by_line(tmp_path, line, reason):
    with pytest.raises(data.DataError, match=reason):
        data.read_phrases(_phrases(tmp_path, "1\t1\tgood\t3", line))


def test_few_malformed_phrases_are_left_out_and_told(tmp_path):
    lines = [f"{index}\t{index}\tgood\t3" for index in range(200)]
    phrases, notes = data.read_phrases(_phrases(tmp_path, *lines, "broken"))
    assert len(phrases) == 200
    assert "1 malformed lines left out (line 202" in notes[0]


def test_other_unusable_files(tmp_path):
    with pytest.raises(data.DataError, match="line 1: expected the columns PhraseId"):
        data.read_phrases(_phrases(tmp_path, "1\t1\tgood\t3", header="id,text"))
    with pytest.raises(data.DataError, match="No such file"):
        data.read_phrases(tmp_path / "absent.tsv")
    (tmp_path / "latin.tsv").write_bytes(b"PhraseId\tSentenceId\tPhrase\tSentiment\n1\t1\tcaf\xe9\t2\n")
    with pytest.raises(data.DataError, match="line 2: not UTF-8"):
        data.read_phrases(tmp_path / "latin.tsv")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("good 1 2 3\nbad 1 2\n", "line 2: expected a word and 3 numbers"),
        ("good 1 2 3\nbad 1 two 3\n", "line 2: could not convert string to float: 'two'"),
        ("good 1 nan 3\n", "line 1: not a finite number"),
        ("good\n", "line 1: expected a word and its numbers"),
        ("", "empty"),
    ],
)
def test_malformed_vectors_are_named_by_line(tmp_path, content, reason):
    path = tmp_path / "vectors.txt"
    path.write_text(content)
    with pytest.raises(data.DataError, match=reason):
        data.read_vectors(path, {"good": 2, "bad": 3})


def test_vectors_are_kept_for_the_vocabulary(tmp_path):
    path = tmp_path / "vectors.txt"
    path.write_text("good 1 2\n. . . 3 4\nother 5 6\n")
    assert data.read_vectors(path, {"good": 2, ". . .": 3}) == (2, {"good": [1.0, 2.0], ". . .": [3.0, 4.0]})


def test_generators_are_functions_of_their_seed():
    assert data.grammar(50, 3) == data.grammar(50, 3) != data.grammar(50, 4)
    x, labels = data.series(20, 3)
    again, _ = data.series(20, 3)
    assert torch.equal(x, again)
    assert x.shape == (40, data.SERIES_T, 1)
    assert labels.sum() == 20


def test_the_best_possible_accuracy_is_that_of_the_likelihood_ratio_on_draws():
    x, labels = data.series(50_000, seed=3)
    likelihood = [
        (-0.5 * ((x[..., 0].double() - mean) / sd) ** 2).sum(1) - data.SERIES_T * math.log(sd)
        for mean, sd in zip(data.SERIES_MEAN, data.SERIES_SD, strict=True)
    ]
    right = ((likelihood[1] > likelihood[0]) == labels.bool()).double().mean().item()
    exact = data.bayes_accuracy()
    assert abs(right - exact) < 4 * (exact * (1 - exact) / len(x)) ** 0.5


def test_words_alone_do_not_decide_the_grammar():
    by_words: dict[tuple[str, ...], set[int]] = {}
    cues = data._POSITIVE + data._NEGATIVE + ["not", "just", "but"]
    for phrase in data.grammar(20_000, 0):
        by_words.setdefault(tuple(sorted(token for token in phrase.tokens if token in cues)), set()).add(phrase.label)
    assert all(labels == {0, 1} for labels in by_words.values())


def test_batches_hold_every_phrase_once():
    phrases = [data.Phrase(tuple("abc"[: index % 4]), index % 2, index) for index in range(50)]
    words = data.vocabulary(phrases)
    found = data.batches(phrases, words, 8, random.Random(0))
    assert sum(batch.tokens.shape[1] for batch in found) == 50
    for batch in found:
        if batch.lengths is None:
            assert (batch.tokens != data.PAD).all()
        else:
            assert ((batch.tokens != data.PAD).sum(0) == batch.lengths).all()
            assert batch.lengths.min() >= 1


def test_subsamples_take_whole_sentences():
    phrases = [data.Phrase(("a",), 0, index // 5) for index in range(100)]
    chosen = data.subsample(phrases, 23, seed=0)
    assert len(chosen) == 20
    assert len({phrase.group for phrase in chosen}) == 4


def test_sorted_batches_are_always_the_same_ones():
    phrases = [data.Phrase(tuple("abcd"[: length % 5]), 0, length) for length in (3, 1, 4, 0, 2, 3, 1)]
    words = data.vocabulary(phrases)
    found = data.sorted_batches(phrases, words, 3)
    assert [batch.tokens.shape for batch in found] == [(1, 3), (3, 3), (4, 1)]
    assert [batch.lengths is None for batch in found] == [True, False, True]
    again = data.sorted_batches(phrases, words, 3)
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(found, again, strict=True))


def test_a_phrase_without_a_token_is_one_unknown_word():
    (batch,) = data.sorted_batches([data.Phrase((), 1, 0)], {"good": 2}, 4)
    assert batch.tokens.tolist() == [[data.UNKNOWN]]


def test_as_published_sentences_fall_on_both_sides():
    phrases = [data.Phrase((str(index),), 0, index // 10) for index in range(1000)]
    found = corpora.published(phrases)
    assert (len(found.train), len(found.test), found.validation) == (950, 50, [])
    assert sorted(found.train + found.test, key=lambda phrase: int(phrase.tokens[0])) == phrases
    assert corpora.leak(found) == 1
    assert corpora.published(phrases) == found
    assert corpora.leak(data.split("phrases", 5, phrases, [])) == 0


def _lines(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_texts_are_read_a_line_or_a_file(tmp_path):
    _lines(tmp_path / "a" / "rt-polarity.pos", "Good film .", "good FILM .", *[f"fine {i}" for i in range(20)])
    _lines(tmp_path / "a" / "rt-polarity.neg", *[f"bad {i}" for i in range(20)])
    phrases, notes = corpora.read_polarity(tmp_path / "a")
    assert notes == []
    assert [sum(phrase.label == label for phrase in phrases) for label in (0, 1)] == [20, 22]
    twice = [phrase.group for phrase in phrases if phrase.tokens == ("good", "film", ".")]
    assert len(twice) == 2
    assert len(set(twice)) == 1, "one text twice may stand on both sides of a split"
    for index in range(20):
        _lines(tmp_path / "b" / "pos" / f"{index}.txt", f"Good {index}", "and long")
        _lines(tmp_path / "b" / "neg" / f"{index}.txt", f"bad {index}")
    found = corpora.corpus(tmp_path / "b")
    assert (found.name, found.classes) == ("polarity", 2)
    everything = found.train + found.validation + found.test
    assert len(everything) == 40
    assert {("good", "7", "and", "long"), ("bad", "7")} <= {phrase.tokens for phrase in everything}


def test_malformed_texts_are_counted_and_named_by_line(tmp_path):
    _lines(tmp_path / "a.neg", *["bad"] * 150)
    (tmp_path / "a.pos").write_bytes(b"good\n" * 150 + b"caf\xe9\n \n")
    phrases, notes = corpora.read_polarity(tmp_path)
    assert len(phrases) == 300
    expected = "2 malformed lines left out (a.pos, line 151: not UTF-8 text; a.pos, line 152: no word)"
    assert notes == [expected]
    (tmp_path / "a.pos").write_bytes(b"good\n" * 150 + b"caf\xe9\n" * 9)
    with pytest.raises(data.DataError, match=r"9 of 309 lines are malformed; a.pos, line 151"):
        corpora.read_polarity(tmp_path)


@pytest.mark.parametrize(("names", "missing"), [((), "neg"), (("a.neg",), "pos"), (("neg/1.txt",), "pos")])
def test_a_folder_without_texts_of_both_kinds_is_refused(tmp_path, names, missing):
    for name in names:
        _lines(tmp_path / name, "dull")
    with pytest.raises(data.DataError, match=f"no {missing} texts; expected files ending in .pos and .neg"):
        corpora.corpus(tmp_path)


def test_lines_that_are_not_text_are_counted_as_malformed(tmp_path):
    path = _phrases(tmp_path, *[f"{index}\t{index}\tgood\t3" for index in range(200)])
    path.write_bytes(path.read_bytes() + b"7\t7\tcaf\xe9\t2\n")
    phrases, notes = data.read_phrases(path)
    assert len(phrases) == 200
    assert "1 malformed lines left out (line 202: not UTF-8 text)" in notes[0]
