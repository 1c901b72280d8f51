"""The text study: each answer of its verdicts on made-up rows, and tiny runs end to end."""

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
from benchmarks.record import Row, measured, read_rows
from benchmarks.studies import base, claims, reasons, text, text_claims, text_report

EPOCH_TIMES = ("epoch_time", "epoch_time_whole")
CONFIRMED, REFUTED, DEPENDS, UNDECIDED = base.CONFIRMED, base.REFUTED, base.DEPENDS, base.UNDECIDED


def _model(
    case: str,
    provider: str,
    seconds: float,
    accuracy: float,
    *,
    epochs: int = 6,
    seeds: int = 3,
    whole: float = 0.0,
    curve: tuple[float, ...] = (),
    tested: bool = True,
) -> list[Row]:
    """A model's rows: `whole`: seconds of an epoch with all that belongs to it; `curve`: accuracy by epoch."""
    rows = []
    for seed in range(seeds):
        for epoch in range(1, epochs + 1):
            where = {"provider": provider, "seed": seed, "epoch": epoch}
            value = curve[epoch - 1] if curve else accuracy - 0.1 / epoch + 0.1 / epochs
            rows.append(Row("text", case, "epoch_time", "s", seconds * (1 + 0.001 * epoch), n=100, **where))
            rows.append(Row("text", case, "epoch_time_whole", "s", (whole or seconds) * (1 + 0.001 * epoch), **where))
            rows.append(Row("text", case, "accuracy", "", value + 0.001 * seed, n=4000, **where))
            rows.append(Row("text", case, "early_loss", "", 1.0, n=10, **where))
            rows.append(Row("text", case, "loss", "nats", 1.0 / epoch + 0.01 * seed, n=100, **where))
        if tested:
            rows.append(Row("text", case, "test_accuracy", "", accuracy + 0.001 * seed, n=4000, **where))
    return rows


def _pair(corpus: str, name: str, seconds: float, accuracy: float, nn: float = 0.0, **options) -> list[Row]:
    case = f"{corpus}/{name}"
    twin = options | {"seeds": 1}
    return _model(case, "fusedrnn", seconds, accuracy, **options) + _model(case, "nn", nn or seconds, accuracy, **twin)


def _verdict(rows: list[Row], claim: str) -> base.Verdict:
    return studies.verdict("text", rows, claim)


def _claim1(published: tuple[float, float], sound: tuple[float, float], whole: float = 0.0) -> list[Row]:
    """The RNN's time over CNN2's, and accuracy over CNN2's 0.6, both times."""
    rows = []
    for name, (seconds, accuracy), options in (
        ("published", published, {"seeds": 1, "epochs": 50, "tested": False, "whole": whole}),
        ("sound", sound, {}),
    ):
        cnn = options | {"whole": 1.0}
        rows += _pair(name, "RNN", seconds, accuracy, **options) + _model(f"{name}/CNN2", "conv", 1.0, 0.6, **cnn)
    return rows


@pytest.mark.parametrize(
    ("published", "sound", "whole", "verdict"),
    [
        ((0.75, 0.66), (0.7, 0.65), 0.78, CONFIRMED),
        ((1.2, 0.5), (1.5, 0.5), 1.2, REFUTED),
        ((0.75, 0.66), (0.75, 0.5), 0.75, DEPENDS),
        ((0.75, 0.66), (1.2, 0.65), 0.75, DEPENDS),
        ((0.75, 0.66), (0.7, 0.65), 0.9, DEPENDS),
        ((0.75, 0.605), (0.7, 0.65), 0.75, UNDECIDED),
    ],
)
def test_claim_1_is_judged_as_it_was_and_as_it_should_be(published, sound, whole, verdict):
    found = _verdict(_claim1(published, sound, whole), "1.")
    assert found.verdict == verdict, found
    assert "as it was: RNN against CNN2 after epoch 50" in found.measured
    assert "as it should be: RNN against CNN2 after epoch 6" in found.measured
    assert "65.83 against 61.42" in found.claim


def test_claim_1_says_why_the_two_trainings_differ():
    rows = _claim1((0.75, 0.66), (0.7, 0.65))
    assert "Why they differ" in _verdict(rows, "1.").why
    rows += [measured("text", "shared_sentences", "", [0.98], "published")]
    shuffled = {"epochs": 1, "seeds": 1, "tested": False}
    rows += _model("shuffled/RNN", "fusedrnn", 1.0, 0.6, **shuffled)
    rows += _model("shuffled/CNN2", "conv", 1.0, 0.55, **shuffled)
    why = _verdict(rows, "1.").why
    assert "98 % of the held-out phrases have phrases of their sentence in training" in why
    assert "shuffling alone takes RNN after epoch 1 from 56.2 % to 60.0 %" in why
    assert "CNN2 after epoch 1 from 50.2 % to 55.0 %" in why


def test_the_last_epoch_counts_where_nothing_was_tested_apart_and_else_the_best():
    (row,) = claims.finals(
        _model("a/RNN", "nn", 1.0, 0.6, seeds=1, tested=False, curve=(0.9,) * 5 + (0.4,)), "a/RNN", "nn"
    )
    assert (row.p50, row.epoch) == (0.4, 6)
    (row,) = claims.finals(_model("a/RNN", "nn", 1.0, 0.6, seeds=1, curve=(0.9,) * 5 + (0.4,)), "a/RNN", "nn")
    assert (row.p50, row.epoch) == (0.6, 6)


def test_a_seed_that_was_cut_off_is_left_out_and_one_that_ended_early_is_not():
    rows = _model("a/RNN", "nn", 1.0, 0.6)
    for note, count in (("", 2), (claims.STALE.format(5), 3)):
        cut = [
            dataclasses.replace(row, epoch=4, note=note) if (row.seed, row.metric) == (1, "test_accuracy") else row
            for row in rows
        ]
        assert len(claims.finals(cut, "a/RNN", "nn")) == count


BIRNN, TEXTCNN = (0.6, 0.69, 0.70, 0.70, 0.70, 0.70), (0.3, 0.4, 0.45, 0.5, 0.55, 0.55)


def _claim2(
    *,
    ratio: float = 2.0,
    better: float = 0.7,
    curve: tuple[float, ...] = BIRNN,
    more: float = 2.0,
    joined: float = 0.05,
) -> list[Row]:
    """`joined`: what the first and last output gain over either alone; TextCNN ends at 0.6, its average at 0.5."""
    rows = _pair("grammar", "BiRNN", ratio, better, curve=curve)
    rows += _model("grammar/TextCNN", "conv", 1.0, 0.6, curve=TEXTCNN)
    rows += _model("grammar/TextCNN-average", "conv", 1.0, 0.6 + (0.6 - better), curve=TEXTCNN)
    for name in ("BiRNN-last", "BiRNN-final"):
        rows += _pair("grammar", name, ratio, better - joined)
    for metric in ("products", "serial_products"):
        rows += [Row("text", "grammar/BiRNN", metric, "", more), Row("text", "grammar/TextCNN", metric, "", 1.0)]
    return rows


def _swept(model: str, accuracies: tuple[float, ...]) -> list[Row]:
    return [
        Row("text", f"sweep/{text.at_rate(model, rate)}", "test_accuracy", "", value, n=1000, seed=0, epoch=5)
        for rate, value in zip(text.RATES, accuracies, strict=True)
    ]


FAR_RATES, NEAR_RATES = (0.7, 0.69, 0.7, 0.69, 0.3), (0.6, 0.6, 0.5, 0.3, 0.3)


@pytest.mark.parametrize(
    ("options", "sweep", "verdict"),
    [
        ({}, (FAR_RATES, NEAR_RATES), CONFIRMED),
        (
            {"ratio": 0.5, "better": 0.5, "curve": (0.2,) * 6, "more": 0.5, "joined": -0.05},
            (NEAR_RATES, FAR_RATES),
            None,
        ),
        ({"ratio": 0.5}, (FAR_RATES, NEAR_RATES), DEPENDS),
        ({"curve": (0.2, 0.3, 0.6, 0.6, 0.6, 0.6)}, (FAR_RATES, NEAR_RATES), DEPENDS),
        ({"more": 0.5}, (FAR_RATES, NEAR_RATES), DEPENDS),
        ({"joined": -0.05}, (FAR_RATES, NEAR_RATES), DEPENDS),
        ({"joined": 0.0}, (FAR_RATES, NEAR_RATES), UNDECIDED),
        ({}, (NEAR_RATES, FAR_RATES), DEPENDS),
        ({}, (FAR_RATES, FAR_RATES), UNDECIDED),
    ],
)
def test_claim_2(options, sweep, verdict):
    rows = _claim2(**options)
    for model, accuracies in zip(("BiRNN", "TextCNN"), sweep, strict=True):
        rows += _swept(model, accuracies)
    found = _verdict(rows, "2.")
    assert found.verdict == (verdict or REFUTED), found


def test_a_learning_rate_is_larger_by_the_largest_that_still_trains():
    rows = _swept("BiRNN", FAR_RATES) + _swept("TextCNN", NEAR_RATES)
    found = text_claims._larger_steps(rows)
    assert found.verdict == CONFIRMED
    assert "0.0003 to 0.01 / 0.0003 to 0.001" in found.measured
    assert text_claims._larger_steps(rows[:6]).verdict == UNDECIDED


def _claim6(
    *,
    serial: float = 8.0,
    early: int = 2,
    attention: float = 0.5,
    light: float = 1.0,
    accuracy: float = 0.7,
) -> list[Row]:
    curve = tuple(0.65 if epoch < early else 0.7 for epoch in range(1, 7))
    rows = _pair("grammar", "BiRNN", 1.0, 0.7) + _model("grammar/TextCNN", "conv", 1.0, 0.6)
    rows += _model("grammar/SelfAttention", "conv", attention, 0.7, curve=curve)
    rows += _pair("grammar", "CNN-BiGRU", light, accuracy)
    return [
        *rows,
        Row("text", "grammar/BiRNN", "serial_products", "", 15.0),
        Row("text", "grammar/SelfAttention", "serial_products", "", serial),
    ]


@pytest.mark.parametrize(
    ("options", "verdict"),
    [
        ({}, CONFIRMED),
        ({"serial": 20.0, "early": 5, "attention": 2.0, "light": 1.5, "accuracy": 0.5}, REFUTED),
        ({"early": 5}, DEPENDS),
        ({"attention": 2.0}, DEPENDS),
        ({"light": 1.5}, DEPENDS),
        ({"accuracy": 0.5}, DEPENDS),
        ({"serial": 20.0}, DEPENDS),
    ],
)
def test_claim_6(options, verdict):
    found = _verdict(_claim6(**options), "6.")
    assert found.verdict == verdict, found


def test_claim_6_is_open_without_its_models_and_after_few_epochs():
    assert _verdict(_pair("grammar", "BiRNN", 1.0, 0.7), "6.").verdict == UNDECIDED
    few = [row for row in _claim6() if row.epoch <= 2 and row.metric != "test_accuracy"]
    assert text_claims._converges(few, ("grammar/SelfAttention", "conv")).verdict == UNDECIDED
    assert text_claims._as_accurate(few, ("grammar/CNN-BiGRU", "nn"), ("grammar/BiRNN", "nn")).verdict == UNDECIDED


def test_as_accurate_is_beyond_the_interval():
    light, birnn = ("grammar/CNN-BiGRU", "nn"), ("grammar/BiRNN", "nn")

    def verdict(accuracy: float, seeds: int) -> str:
        rows = _model(*light, 1.0, accuracy, seeds=seeds) + _model(*birnn, 1.0, 0.7, seeds=seeds)
        return text_claims._as_accurate(rows, light, birnn).verdict

    assert [verdict(0.7, seeds) for seeds in (3, 1)] == [CONFIRMED, UNDECIDED]
    assert [verdict(0.685, seeds) for seeds in (3, 1)] == [REFUTED, UNDECIDED]


def _claim10(gain: dict[str, float]) -> list[Row]:
    rows = _model("grammar/CNN2", "conv", 1.0, 0.6) + _pair("grammar", "RNN", 1.0, 0.6)
    for variants in text_claims.IMPROVED.values():
        for name in variants:
            accuracy = 0.6 + gain.get(name, gain["all"])
            if name.startswith("CNN2"):
                rows += _model(f"grammar/{name}", "conv", 1.0, accuracy)
            else:
                rows += _pair("grammar", name, 1.0, accuracy)
    return rows


@pytest.mark.parametrize(
    ("gain", "verdict"),
    [
        ({"all": 0.05}, CONFIRMED),
        ({"all": -0.05}, REFUTED),
        ({"all": 0.05, "CNN2-single": -0.05}, DEPENDS),
        ({"all": 0.05, "GRU": 0.0}, UNDECIDED),
    ],
)
def test_claim_10(gain, verdict):
    found = _verdict(_claim10(gain), "10.")
    assert found.verdict == verdict, found
    assert _verdict(_model("grammar/CNN2", "conv", 1.0, 0.6), "10.").verdict == UNDECIDED


def test_every_variant_of_claim_10_is_a_model():
    for base_, variants in text_claims.IMPROVED.items():
        assert {base_, *variants} <= zoo.ALL_MODELS.keys()


def _reasons(
    short: float = 0.5,
    long: float = 0.9,
    table: float = 1.3,
    filters: float = 1.2,
    loop: float = 3.0,
    spread: float = 0.01,
) -> list[Row]:
    def row(above: str, below: str, value: float, T: int) -> Row:
        values = [value * (1 - spread), value, value * (1 + spread)]
        return measured("text", "time_ratio", f"{above}/{below}", values, reasons.CASE, T=T)

    rows = []
    for provider in ("nn", "fusedrnn"):
        rows += [row(f"RNN {provider}", "CNN2", short, 7), row(f"RNN {provider}", "CNN2", long, 28)]
        rows.append(row("RNN loop", f"RNN {provider}", loop, 7))
    return [*rows, row("CNN2", "CNN2-single", table, 7), row("CNN2", "CNN2-few", filters, 7)]


@pytest.mark.parametrize(
    ("options", "verdict"),
    [
        ({}, CONFIRMED),
        ({"long": 0.4, "table": 1.0, "filters": 0.9, "loop": 1.0}, REFUTED),
        ({"long": 0.5}, DEPENDS),
        ({"table": 1.0}, DEPENDS),
        ({"filters": 1.0}, DEPENDS),
        ({"loop": 1.0}, DEPENDS),
        ({"spread": 0.5}, DEPENDS),
    ],
)
def test_the_four_reasons(options, verdict):
    found = _verdict(_reasons(**options), "11b")
    assert found.verdict == verdict, found
    if not options:
        assert "at 7 words 0.50, at 28 0.90" in found.measured


def test_a_reason_without_fused_layers_is_open():
    rows = [row for row in _reasons() if "fusedrnn" not in row.unit and "loop" not in row.unit]
    found = _verdict(rows, "11b")
    assert found.verdict == UNDECIDED
    assert "not measured" in found.why


def test_the_reasons_are_measured(tmp_path, monkeypatch, one_thread):
    forced, use_backend = [], fusedrnn.use_backend
    monkeypatch.setattr(fusedrnn, "use_backend", lambda name: (forced.append(name), use_backend(name))[1])
    monkeypatch.setattr(reasons, "WORDS", 50)
    with studies.Recorder(tmp_path / "rows.csv") as recorder:
        ctx = studies.Context(recorder, studies.Progress(1), studies.Budget(1), "quick")
        reasons.run(ctx, "text", 0.05, fused=True)
    found = _verdict(read_rows(tmp_path / "rows.csv"), "11b")
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


@pytest.mark.parametrize(
    ("width", "products", "parameters", "filters", "verdict"),
    [
        (50, 22_784, 23_685, 22_400, DEPENDS),
        (50, 22_784, 23_685, 44_800, CONFIRMED),
        (50, 10, 10, 10, REFUTED),
        (300, 22_784, 23_685, 44_800, UNDECIDED),
    ],
)
def test_claim_12(width, products, parameters, filters, verdict):
    rows = _model("phrases/RNN", "nn", 1.0, 0.6)
    for case, metric, value in (
        ("RNN", "products_a_step", products),
        ("RNN", "parameters", parameters),
        ("CNN2", "products_a_step", filters),
    ):
        rows.append(Row("text", f"phrases/{case}", metric, "", float(value), I=width))
    assert _verdict(rows, "12.").verdict == verdict


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
        assert len(losses) == 2 * 3 - 2, "the first epoch's first step does not depend on the rate, all else does"
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


def test_figures_come_out_of_rows(tmp_path):
    if not plots.available():
        pytest.skip("matplotlib is not installed")
    rows = _claim10({"all": 0.05}) + _swept("BiRNN", FAR_RATES) + _swept("TextCNN", NEAR_RATES)
    drawn = {block.name: block for block in text_report.section(rows).blocks if isinstance(block, base.Figure)}
    assert {"text-grammar-learning", "text-grammar-models", "text-rates"} <= drawn.keys()
    assert "Lowest after its last epoch: CNN2, 0.177 nats" in drawn["text-grammar-loss"].caption
    assert "training loss, nats" in drawn["text-grammar-loss"].svg
    assert "CNN2-residual" in drawn["text-grammar-models"].svg
    assert "Best rates: BiRNN: 0.0003; TextCNN: 0.0003" in drawn["text-rates"].caption
