"""The studies' data and models: readers that name the line, generators, batches, arithmetic."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
import torch

from benchmarks import data, models


def _phrases(tmp_path: Path, *lines: str, header: str = "PhraseId\tSentenceId\tPhrase\tSentiment") -> Path:
    path = tmp_path / "train.tsv"
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


def test_phrases_are_read_and_split_by_sentence(tmp_path):
    lines = [f"{index}\t{index // 4}\tA Phrase number {index}\t{index % 5}" for index in range(80)]
    corpus = data.phrase_corpus(_phrases(tmp_path, *lines, "81\t3\t\t2"))
    assert len(corpus.train) + len(corpus.test) == 81
    assert not {phrase.group for phrase in corpus.train} & {phrase.group for phrase in corpus.test}
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


TABLE = models.Table(30, 50, 5)


@pytest.mark.parametrize(
    ("name", "encoder", "head", "products_a_step"),
    [
        ("RNN", 128 * (50 + 128) + 2 * 128, 128 * 5 + 5, 128 * (50 + 128)),
        ("CNN2", 2 * 16 * 50 * (2 + 3 + 4 + 5) + 64, 64 * 5 + 5, 22_400),
        ("TextCNN", 100 * 100 * (3 + 4 + 5) + 300, 300 * 5 + 5, 120_000),
        ("BiRNN", 2 * 400 * (50 + 100 + 2) + 2 * 400 * (200 + 100 + 2), 400 * 5 + 5, 2 * 400 * (150 + 300)),
    ],
)
def test_parameter_counts_are_the_formula(name, encoder, head, products_a_step):
    model = models.TEXT_MODELS[name](TABLE, "nn")
    assert models.encoder_parameters(model) == encoder
    assert sum(parameter.numel() for parameter in model.head.parameters()) == head
    assert models.products(model, 21) - models.products(model, 20) == products_a_step


@pytest.mark.parametrize("name", models.RECURRENT)
def test_fused_and_torch_models_agree(name):
    tokens, lengths = torch.randint(2, 30, (6, 3)), torch.tensor([6, 2, 4])
    torch.manual_seed(0)
    ours = models.TEXT_MODELS[name](TABLE, "fusedrnn").eval()
    torch.manual_seed(0)
    theirs = models.TEXT_MODELS[name](TABLE, "nn").eval()
    for rows in (None, lengths):
        torch.testing.assert_close(ours(tokens, rows), theirs(tokens, rows), rtol=1e-5, atol=1e-6)


def test_a_frozen_channel_is_not_trained():
    model = models.CNN2(TABLE, "nn")
    model(torch.randint(2, 30, (3, 2)), None).sum().backward()
    assert model.trained.weight.grad is not None
    assert model.frozen.weight.grad is None
