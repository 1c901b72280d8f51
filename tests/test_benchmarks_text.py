"""The text study end to end: tiny runs of all its parts, and of the reasons for the RNN's speed."""

from __future__ import annotations

import dataclasses
import random
import time
from pathlib import Path

import pytest
import studies
import torch

import fusedrnn
from benchmarks import __main__ as command
from benchmarks import corpora, data, models, plots, zoo
from benchmarks.models import TEXT_MODELS
from benchmarks.record import Row, read_rows
from benchmarks.studies import claims, reasons, text

EPOCH_TIMES = ("epoch_time", "epoch_time_whole")


def test_the_reasons_are_measured(tmp_path, monkeypatch, one_thread):
    forced, use_backend = [], fusedrnn.use_backend
    monkeypatch.setattr(fusedrnn, "use_backend", lambda name: (forced.append(name), use_backend(name))[1])
    monkeypatch.setattr(reasons, "WORDS", 50)
    with studies.Recorder(tmp_path / "rows.csv") as recorder:
        ctx = studies.Context(recorder, studies.Progress(1), studies.Budget(1), "quick")
        reasons.run(ctx, "text", 0.05, fused=True)
    found = studies.verdict("text", read_rows(tmp_path / "rows.csv"), "11b")
    assert "not measured" not in found.why
    assert len(recorder.rows) == 2 * 2 + 2 + 2
    assert set(forced) == {"reference"}, "the loop over time is torch's operations, step by step"


def test_a_wait_in_the_second_embedding_is_found_there(tmp_path, monkeypatch, one_thread):
    forward = models.CNN2.forward

    def slow(self, tokens, lengths):
        if len(self.channels) == 2:
            time.sleep(0.1)
        return forward(self, tokens, lengths)

    monkeypatch.setattr(reasons, "WORDS", 50)
    monkeypatch.setattr(models.CNN2, "forward", slow)
    with studies.Recorder(tmp_path / "rows.csv") as recorder:
        reasons.run(studies.Context(recorder, studies.Progress(1), studies.Budget(1), "quick"), "text", 0.5, fused=True)
    ratio = {(row.unit, row.T): row.p50 for row in recorder.rows}
    assert ratio["CNN2/CNN2-single", reasons.SHORT] > 1.2


def _grammar() -> data.Corpus:
    return data.Corpus("grammar", 2, data.grammar(128, 0), data.grammar(64, 1), ["small"], data.grammar(32, 2))


@pytest.fixture
def tiny(monkeypatch, one_thread):
    monkeypatch.setattr(data, "grammar_corpus", _grammar)
    monkeypatch.setattr(reasons, "WORDS", 50)
    monkeypatch.setattr(text, "REASONS_S", dict.fromkeys(text.REASONS_S, 0.01))
    monkeypatch.setattr(plots, "available", lambda: False)


def _small_plans(monkeypatch, epochs: int) -> None:
    plans = {
        name: dataclasses.replace(plan, epochs={effort: min(epochs, n) for effort, n in plan.epochs.items()}, seeds=1)
        for name, plan in text.PLANS.items()
    }
    monkeypatch.setattr(text, "PLANS", plans)
    monkeypatch.setattr(text, "RATES", text.RATES[:3])


def test_what_a_short_study_leaves_out_is_said(tmp_path, tiny):
    rows = studies.run("text", tmp_path, 1)
    assert {row.case.partition("/")[2] for row in rows if row.metric == "accuracy"} == set(TEXT_MODELS)
    told = [row.note for row in rows if row.metric == "skipped"]
    assert any("SelfAttention" in note and "`--full` has them" in note for note in told)
    tested = [row for row in rows if row.metric == "test_accuracy"]
    assert {row.n for row in tested} == {64}
    steps, whole = ({row.key[:-2]: row.p50 for row in rows if row.metric == name} for name in EPOCH_TIMES)
    assert steps.keys() == whole.keys()
    assert all(seconds < whole[key] for key, seconds in steps.items())
    assert {row.n for row in rows if row.metric == "accuracy"} == {32}
    assert {row.T for row in rows if row.metric == "accuracy_at_gap"} == set(data.GAPS)


@pytest.mark.slow
def test_all_models_are_trained_by_a_full_study(tmp_path, tiny, monkeypatch):
    _small_plans(monkeypatch, 2)
    rows = studies.run("text", tmp_path, 200, "full")
    trained = {(row.case, row.provider) for row in rows if row.metric == "epoch_time"}
    for name in zoo.ALL_MODELS:
        providers = {"fusedrnn", "nn"} if name in zoo.ALL_RECURRENT else {"conv"}
        assert {provider for case, provider in trained if case == f"grammar/{name}"} == providers
    assert {case for case, _ in trained if case.startswith("sweep/")} == {
        f"sweep/{text.at_rate(model, rate)}" for model in text.SWEPT for rate in text.RATES[:3]
    }
    for model in text.SWEPT:
        losses = {row.p50 for row in rows if row.case.startswith(f"sweep/{model}@") and row.metric == "loss"}
        assert len(losses) == 2 * 3, "a rate that was not used"
    assert not [row for row in rows if row.metric in ("failed", "skipped")]
    alike = studies.verdict("text", rows, "A recurrent model trains")
    starts = {(row.case, row.provider): row.p50 for row in rows if row.metric == "early_loss" and row.seed == 0}
    for name in zoo.ALL_RECURRENT:
        ours, theirs = (starts[f"grammar/{name}", provider] for provider in ("fusedrnn", "nn"))
        assert ours == pytest.approx(theirs, rel=claims.SAME_LOSS), name
        assert f"grammar/{name}: " in alike.measured
    markdown = (tmp_path / "report.md").read_text()
    for caption in ("What does an epoch's time buy on", "Which model takes larger steps?", "Why the RNN is fast"):
        assert caption in markdown
    assert "What a forward pass of one sentence" in markdown


def _table(path: Path, count: int = 1200) -> Path:
    rng = random.Random(0)
    words = ["good", "bad", "film", "not", "quite"]
    lines = [f"{i}\t{i // 6}\t{' '.join(rng.choices(words, k=i % 9))}\t{i % 5}" for i in range(count)]
    path.write_text("\n".join(["PhraseId\tSentenceId\tPhrase\tSentiment", *lines]) + "\n")
    return path


@pytest.mark.slow
def test_claim_1_is_trained_both_ways_and_taken_up(tmp_path, tiny, monkeypatch):
    _small_plans(monkeypatch, 2)
    monkeypatch.setattr(
        text, "ALL_MODELS", {name: zoo.ALL_MODELS[name] for name in ("RNN", "CNN2", "TextCNN", "BiRNN")}
    )
    arguments = [
        "study",
        "text",
        "--full",
        "--data",
        str(_table(tmp_path / "train.tsv")),
        "--out",
        str(tmp_path / "out"),
    ]
    assert command.main([*arguments, "--budget", "0.01"]) == 0
    first = read_rows(tmp_path / "out" / "rows.csv")
    assert {row.epoch for row in first if row.metric == "accuracy" and row.case == "published/RNN"} == {1}
    assert command.main([*arguments, "--budget", "100"]) == 0
    rows = read_rows(tmp_path / "out" / "rows.csv")
    trained = {(row.case, row.provider) for row in rows if row.metric == "epoch_time"}
    for name in ("published", "sound"):
        for model in (("RNN", "fusedrnn"), ("RNN", "nn"), ("CNN2", "conv")):
            assert (f"{name}/{model[0]}", model[1]) in trained
    assert {case for case, _ in trained if case.startswith("shuffled")} == {"shuffled/RNN", "shuffled/CNN2"}
    tested = {row.case.partition("/")[0] for row in rows if row.metric == "test_accuracy"}
    assert tested == {"sound", "phrases", "sweep"}, "as it was, nothing is chosen and nothing tested apart"
    assert {row.n for row in rows if row.metric == "accuracy" and row.case == "published/RNN"} == {60}
    assert next(row.p50 for row in rows if row.metric == "shared_sentences") > 0.95

    def of_first(found: list[Row]) -> dict[tuple, float | None]:
        wanted = {"epoch_time", "accuracy", "loss"}
        return {
            row.key: row.p50 for row in found if row.case == "published/RNN" and row.epoch == 1 and row.metric in wanted
        }

    assert of_first(first) == of_first(rows), "the first epoch was trained again"
    markdown = (tmp_path / "out" / "report.md").read_text()
    assert "as claim 1 was measured" in markdown
    assert "in brackets as quoted" in markdown
    assert command.main([*arguments, "--embeddings", str(_table(tmp_path / "vectors.txt", 1))]) == 2


def test_as_published_batches_are_sorted_and_never_shuffled(tmp_path, tiny, monkeypatch):
    drawn = []

    def train(ctx, task, budget):
        drawn.append((task, [task.training(10_000)(0, epoch) for epoch in (1, 2)]))

    monkeypatch.setattr(text, "train", train)
    monkeypatch.setattr(text, "arithmetic", lambda *_: None)
    found = corpora.corpus(_table(tmp_path / "train.tsv"))
    with studies.Recorder(tmp_path / "rows.csv") as recorder:
        ctx = studies.Context(recorder, studies.Progress(1), studies.Budget(1), "full")
        for part in text.parts(found, "full")[:3]:
            text._train(ctx, part, fused=True)
    order = {
        task.corpus: [[tuple(arguments[0].shape) for arguments, _ in epoch] for epoch in epochs]
        for task, epochs in drawn
    }
    assert order["published"][0] == sorted(order["published"][0], key=lambda shape: shape[0])
    (_, (first, second)), *_ = drawn
    assert all(torch.equal(a[0][0], b[0][0]) for a, b in zip(first, second, strict=True))
    assert order["shuffled"][0] != order["shuffled"][1]
    assert order["sound"][0] != order["sound"][1]
    tasks = {task.corpus: task for task, _ in drawn}
    assert [len(tasks[name].test) > 0 for name in ("published", "shuffled", "sound")] == [False, False, True]
    channels = {name: tasks[name].jobs[-1].build().channels for name in ("published", "sound")}
    assert [channel.weight.requires_grad for channel in channels["published"]] == [True, False]
    assert [channel.weight.requires_grad for channel in channels["sound"]] == [True, True]


@pytest.mark.parametrize("kind", ["lines", "files"])
def test_a_folder_of_texts_is_studied(tmp_path, tiny, kind):
    rng = random.Random(0)
    for polarity, words in (("pos", ["good", "fine"]), ("neg", ["bad", "dull"])):
        texts = [" ".join(rng.choices([*words, "film", "a"], k=6)) for _ in range(80)]
        if kind == "lines":
            (tmp_path / f"rt.{polarity}").write_text("\n".join(texts) + "\n")
        else:
            (tmp_path / polarity).mkdir()
            for index, line in enumerate(texts):
                (tmp_path / polarity / f"{index}.txt").write_text(line)
    arguments = ["study", "text", "--quick", "--budget", "1", "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    assert command.main(arguments) == 0
    rows = read_rows(tmp_path / "out" / "rows.csv")
    assert {row.case for row in rows if row.metric == "test_accuracy"} == {f"polarity/{name}" for name in TEXT_MODELS}
    markdown = (tmp_path / "out" / "report.md").read_text()
    assert "the positive and negative texts" in markdown


def test_other_word_vectors_are_another_study(tmp_path, tiny, capsys):
    vectors = tmp_path / "vectors.txt"
    vectors.write_text("good 0.1 0.2 0.3\n")
    arguments = ["study", "text", "--quick", "--budget", "1", "--out", str(tmp_path / "out")]
    assert command.main(arguments) == 0
    assert command.main([*arguments, "--embeddings", str(vectors)]) == 2
    assert "embeddings None, now" in capsys.readouterr().err
    assert command.main([*arguments, "--embeddings", str(vectors), "--overwrite"]) == 0
