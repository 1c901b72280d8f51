"""The verdicts of the text study: each of their answers, on made-up rows; figures out of rows."""

from __future__ import annotations

import dataclasses

import pytest
import studies

from benchmarks import plots, zoo
from benchmarks.record import Row, measured, remark
from benchmarks.studies import base, claims, reasons, text, text_claims, text_report

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


@pytest.mark.parametrize(
    ("count", "told"),
    [(6400, "the built-in grammar (6,400 of 8,000 examples to train on)"), (8000, "the built-in grammar:")],
)
def test_a_figure_says_what_time_forbade(count, told):
    note = f"Trained on {count} of 8000 examples, validated on 9 of 9, tested on 9 of 9."
    rows = [*_model("grammar/CNN2", "conv", 1.0, 0.6), remark("text", "note", note, "grammar")]
    captions = [block.caption for block in text_report.section(rows).blocks if isinstance(block, base.Figure)]
    assert told in captions[0]


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
