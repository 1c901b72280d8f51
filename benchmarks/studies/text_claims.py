"""The claims that the text study judges, by thresholds that were fixed beforehand: 1, 2, 6, 10, 11 and 12."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..measure import quartiles
from ..record import Row
from .base import CONFIRMED, COUNT_TOLERANCE, DEPENDS, REFUTED, UNDECIDED, Finding, Verdict, judge, select
from .claims import (
    EPOCHS_TO_JUDGE,
    FAR,
    FASTER_BY_A_FIFTH,
    NEAR,
    PROVIDERS,
    at_most,
    corpus_of,
    difference,
    finals,
    learned,
    more_accurate,
    own,
    paired,
    trains_alike,
)

TELLS = 0.9  # accuracy from which a model is said to tell the cases apart
TOLERATED = 0.02  # below the best rate's accuracy a rate still trains
NEAR_BEST = 0.01  # below its own best accuracy a model has converged; as accurate as another is at most so far below
AS_FAST = 1.1  # times the other's time
COUNTS = 1.05  # a reason for speed counts if without it the ratio of times changes by so much
CONVERGED_BY = 2  # epochs, as claimed

Model = tuple[str, str]
"""A case and who ran it."""

QUOTED = {"RNN": {1: 45.05, 10: 61.84, 30: 64.38, 50: 65.83}, "CNN2": {1: 34.96, 10: 58.65, 30: 61.15, 50: 61.42}}
"""Accuracies in percent by epoch, with which claim 1 came."""
TRAININGS = {"published": "as it was", "sound": "as it should be"}


def verdicts(rows: Sequence[Row]) -> list[Verdict]:
    rows = select(rows, study="text")
    corpus = corpus_of(rows) or "phrases"
    on_corpus = [claim(rows, corpus) for claim in (_claim1, _claim2, _claim6, _claim10)]
    return [trains_alike(rows), *on_corpus, _claim11(rows), _reasons(rows), _claim12(rows, corpus)]


def model_of(rows: Sequence[Row], corpus: str, name: str) -> Model:
    """A model, and who trained it for its accuracy."""
    case = f"{corpus}/{name}"
    return case, "conv" if select(rows, metric="accuracy", case=case, provider="conv") else own(rows, case)


def _on(claim: str, corpus: str) -> str:
    data = {"grammar": "the built-in grammar", "polarity": "the positive and negative texts"}
    return claim if corpus not in data else f"{claim} (Here on {data[corpus]}; `--data` takes the movie reviews.)"


def _claim1(rows: Sequence[Row], corpus: str) -> Verdict:
    claim = (
        "1. A tanh RNN trains 20 to 25 % faster an epoch than the two-channel CNN2, "
        "and ends more accurate (65.83 against 61.42 %)."
    )
    trained = {
        name: f"{how}: " for name, how in TRAININGS.items() if select(rows, metric="accuracy", case=f"{name}/RNN")
    }
    findings = []
    for name, when in (trained or {corpus: ""}).items():
        rnn, cnn = f"{name}/RNN", (f"{name}/CNN2", "conv")
        for provider, label in PROVIDERS:
            findings.append(at_most(rows, (rnn, provider), cnn, FASTER_BY_A_FIFTH, f"{when}{label} layers"))
            if name == "published":
                label = f"{when}{label} layers, batching and evaluation included"
                findings.append(
                    at_most(rows, (rnn, provider), cnn, FASTER_BY_A_FIFTH, label, metric="epoch_time_whole")
                )
        findings.append(more_accurate(rows, model_of(rows, name, "RNN"), cnn, when))
    judged = judge(_on(claim, corpus), findings)
    return Verdict(judged.claim, judged.measured, judged.verdict, f"{judged.why}{_why_apart(rows, trained)}")


def _why_apart(rows: Sequence[Row], trained: Iterable[str]) -> str:
    """What parts the two trainings, in numbers where there are some."""
    told = []
    if "published" in trained:
        shared = select(rows, metric="shared_sentences")
        share = f"{100 * shared[0].p50:.0f} % of the" if shared else "the"
        told.append(f"as it was, {share} held-out phrases have phrases of their sentence in training")
    for name in ("RNN", "CNN2"):
        first = [_at_epoch(rows, model_of(rows, training, name), 1) for training in ("published", "shuffled")]
        if None not in first:
            ends = " to ".join(f"{100 * value:.1f} %" for value in first if value is not None)
            told.append(f"shuffling alone takes {name} after epoch 1 from {ends}")
    return f". Why they differ: {'; '.join(told)}." if told else ""


def _at_epoch(rows: Sequence[Row], model: Model, epoch: int) -> float | None:
    case, provider = model
    return next(
        (row.p50 for row in select(rows, metric="accuracy", case=case, provider=provider, seed=0, epoch=epoch)), None
    )


def _claim2(rows: Sequence[Row], corpus: str) -> Verdict:
    claim = (
        "2. BiRNN is slower a step than TextCNN, needs 1 epoch where TextCNN needs 5, ends more accurate, "
        "costs more products and is less parallel; takes larger steps; first and last output joined is why."
    )
    case, cnn = f"{corpus}/BiRNN", (f"{corpus}/TextCNN", "conv")
    birnn = model_of(rows, corpus, "BiRNN")
    findings = [
        finding
        for name, label in PROVIDERS
        if (finding := _slower(rows, (case, name), cnn, f"slower a step, {label} layers"))
    ]
    findings += [_fewer_epochs(rows, birnn, cnn), more_accurate(rows, birnn, cnn)]
    for metric, label in (("products", "products a sentence"), ("serial_products", "products one after another")):
        findings += _more(rows, metric, label, case, cnn[0])
    findings.append(_larger_steps(rows))
    for other in ("BiRNN-last", "BiRNN-final"):
        findings.append(more_accurate(rows, birnn, model_of(rows, corpus, other)))
    findings.append(more_accurate(rows, birnn, (f"{corpus}/TextCNN-average", "conv")))
    return judge(_on(claim, corpus), findings)


def _slower(rows: Sequence[Row], model: Model, other: Model, label: str) -> Finding | None:
    """Confirmed: lower quartile of the ratio above 1. Refuted: upper quartile below. None where it was not measured."""
    found = paired(rows, model, other)
    if len(found) < 2:
        return None
    p25, p50, p75 = quartiles(found)
    verdict = CONFIRMED if p25 > 1 else REFUTED if p75 < 1 else DEPENDS
    return Finding(verdict, f"{label}: {p50:.2f} ({p25:.2f}-{p75:.2f})", label)


def _more(rows: Sequence[Row], metric: str, label: str, case: str, other: str) -> list[Finding]:
    values = [row.p50 for name in (case, other) for row in select(rows, metric=metric, case=name)]
    if len(values) != 2:
        return []
    verdict = CONFIRMED if values[0] > values[1] else REFUTED
    return [Finding(verdict, f"{label} {values[0]:,.0f} / {values[1]:,.0f}", label)]


def _fewer_epochs(rows: Sequence[Row], model: Model, other: Model) -> Finding:
    """Confirmed: the first epoch reaches what the other has after five (or its last). Refuted: no earlier."""
    mine, theirs = (
        {row.epoch: row.p50 for row in select(rows, metric="accuracy", case=case, provider=provider, seed=0)}
        for case, provider in (model, other)
    )
    if not mine or len(theirs) < 2:
        return Finding(UNDECIDED, "too few epochs to compare")
    reference = min(5, max(theirs))
    needed = next((epoch for epoch in sorted(mine) if mine[epoch] >= theirs[reference]), None)
    verdict = REFUTED if needed is None or needed >= reference else CONFIRMED if needed == 1 else DEPENDS
    reached = "never" if needed is None else f"after {needed}"
    return Finding(verdict, f"TextCNN's accuracy after {reference} epochs is reached {reached}", "epochs needed")


def rates(rows: Sequence[Row], model: str) -> dict[float, float]:
    """Accuracy by learning rate, of the sweep."""
    found = {}
    for row in select(rows, metric="test_accuracy"):
        name, _, rate = row.case.partition("@")
        if name == f"sweep/{model}":
            found[float(rate)] = row.p50
    return found


def _larger_steps(rows: Sequence[Row]) -> Finding:
    """Confirmed: BiRNN still trains at a larger rate than TextCNN; refuted: TextCNN at a larger. Equal: undecided."""
    found = [rates(rows, name) for name in ("BiRNN", "TextCNN")]
    if min(map(len, found)) < 3:
        return Finding(UNDECIDED, "learning rates: not swept")
    kept = [[rate for rate in sorted(own_) if own_[rate] >= max(own_.values()) - TOLERATED] for own_ in found]
    largest = [own_[-1] for own_ in kept]
    verdict = CONFIRMED if largest[0] > largest[1] else REFUTED if largest[0] < largest[1] else UNDECIDED
    told = f"rates within {100 * TOLERATED:.0f} points of the best one: " + " / ".join(
        f"{own_[0]:g} to {own_[-1]:g}" for own_ in kept
    )
    return Finding(verdict, told, "larger steps, BiRNN against TextCNN")


def _claim6(rows: Sequence[Row], corpus: str) -> Verdict:
    claim = (
        "6. Self-attention is one parallel step, converges in 1 to 2 epochs and is faster than BiRNN; a light BiGRU "
        "joined to CNN features has CNN's speed and BiRNN's accuracy."
    )
    attention, light = (f"{corpus}/SelfAttention", "conv"), f"{corpus}/CNN-BiGRU"
    if not select(rows, metric="accuracy", case=attention[0]):
        return judge(_on(claim, corpus), [Finding(UNDECIDED, "not trained here: `--full` trains it")])
    birnn = f"{corpus}/BiRNN"
    findings = _more(rows, "serial_products", "products one after another, BiRNN / SelfAttention", birnn, attention[0])
    findings.append(_converges(rows, attention))
    for provider, label in PROVIDERS:
        faster = _slower(rows, (birnn, provider), attention, f"SelfAttention is faster than BiRNN on {label} layers")
        findings.append(faster or Finding(UNDECIDED, f"BiRNN on {label} layers: not measured"))
        findings.append(_as_fast(rows, (light, provider), (f"{corpus}/TextCNN", "conv"), label))
    findings.append(_as_accurate(rows, model_of(rows, corpus, "CNN-BiGRU"), model_of(rows, corpus, "BiRNN")))
    return judge(_on(claim, corpus), findings)


def _converges(rows: Sequence[Row], model: Model) -> Finding:
    """Confirmed: within a point of its best validation accuracy by epoch 2, in every seed; refuted: in none."""
    case, provider = model
    needed = []
    for final in finals(rows, case, provider):
        own_ = {
            row.epoch: row.p50 for row in select(rows, metric="accuracy", case=case, provider=provider, seed=final.seed)
        }
        needed.append(min(epoch for epoch in own_ if own_[epoch] >= max(own_.values()) - NEAR_BEST))
    if not needed or not learned(finals(rows, case, provider)):
        return Finding(UNDECIDED, f"SelfAttention: not trained for {EPOCHS_TO_JUDGE} epochs")
    early = [epoch <= CONVERGED_BY for epoch in needed]
    verdict = CONFIRMED if all(early) else DEPENDS if any(early) else REFUTED
    epochs = ", ".join(map(str, needed))
    return Finding(verdict, f"SelfAttention is within a point of its best after epoch {epochs}", "epochs to converge")


def _as_fast(rows: Sequence[Row], model: Model, other: Model, label: str) -> Finding:
    """Confirmed: upper quartile of the ratio at most 1.1. Refuted: lower quartile above that."""
    found = paired(rows, model, other)
    name = f"CNN-BiGRU's time over TextCNN's, {label} layers"
    if len(found) < 2:
        return Finding(UNDECIDED, f"{name}: not measured")
    p25, p50, p75 = quartiles(found)
    verdict = CONFIRMED if p75 <= AS_FAST else REFUTED if p25 > AS_FAST else DEPENDS
    return Finding(verdict, f"{name}: {p50:.2f} ({p25:.2f}-{p75:.2f})", f"CNN's speed, {label} layers")


def _as_accurate(rows: Sequence[Row], model: Model, other: Model) -> Finding:
    """Confirmed: with its interval no more than a point below. Refuted: with its interval more than that below."""
    first, second = finals(rows, *model), finals(rows, *other)
    if not (learned(first) and learned(second)):
        return Finding(UNDECIDED, f"CNN-BiGRU and BiRNN: not both trained for {EPOCHS_TO_JUDGE} epochs")
    mean, half = difference(first, second)
    verdict = CONFIRMED if mean - half >= -NEAR_BEST else REFUTED if mean + half < -NEAR_BEST else UNDECIDED
    told = f"CNN-BiGRU's accuracy is BiRNN's {100 * mean:+.1f} ± {100 * half:.1f} points"
    return Finding(verdict, told, "BiRNN's accuracy")


IMPROVED = {
    "CNN2": ("CNN2-64", "CNN2-128", "CNN2-dilated", "CNN2-residual", "CNN2-single"),
    "RNN": ("GRU", "LSTM", "RNN-both", "RNN-attention"),
}
"""What claim 10 says of each model's variants: that they improve it."""


def _claim10(rows: Sequence[Row], corpus: str) -> Verdict:
    claim = (
        "10. CNN2 improves with more filters (16, 64, 128), dilation, residual blocks, a single channel; "
        "RNN with gates, both directions, attention pooling."
    )
    findings = [
        more_accurate(rows, model_of(rows, corpus, variant), model_of(rows, corpus, base))
        for base, variants in IMPROVED.items()
        for variant in variants
        if select(rows, metric="accuracy", case=f"{corpus}/{variant}")
    ]
    return judge(
        _on(claim, corpus), findings or [Finding(UNDECIDED, "its models were not trained here: `--full` trains them")]
    )


def _claim11(rows: Sequence[Row]) -> Verdict:
    claim = (
        '11. Word order is why: the RNN tells "not good" from "good" '
        "and uses cues farther apart than a window of 2 to 5 words."
    )
    if not select(rows, metric="accuracy_at_gap"):
        told = "the distance of cues is known on the built-in grammar: a run without `--data` trains on it"
        return judge(claim, [Finding(UNDECIDED, told)])
    findings = []
    for model in ("RNN", "BiRNN"):
        case = f"grammar/{model}"
        if not learned(finals(rows, case, own(rows, case))):
            findings.append(Finding(UNDECIDED, f"{model}: not trained for {EPOCHS_TO_JUDGE} epochs"))
            continue
        near, far = (_pooled(rows, case, own(rows, case), gaps) for gaps in (NEAR, FAR))
        windows = [_pooled(rows, f"grammar/{name}", "conv", FAR) for name in ("CNN2", "TextCNN")]
        if near is None or far is None or None in windows:
            findings.append(Finding(UNDECIDED, f"{model}: not measured"))
            continue
        best = max(window for window, _ in windows)
        half = 1.96 * (2 * 0.25 / far[1]) ** 0.5
        findings.append(
            Finding(
                CONFIRMED if near[0] >= TELLS else REFUTED,
                f"{model} with cues 0 to 1 words apart {100 * near[0]:.0f} %",
                f"{model} near",
            )
        )
        verdict = CONFIRMED if far[0] > best + half else REFUTED if far[0] < best - half else UNDECIDED
        findings.append(
            Finding(
                verdict,
                f"{model} beyond the window {100 * far[0]:.0f} %, best convolution {100 * best:.0f} %",
                f"{model} far",
            )
        )
    return judge(claim, findings)


def _pooled(rows: Sequence[Row], case: str, provider: str, gaps: tuple[int, ...]) -> tuple[float, int] | None:
    """Accuracy over these gaps and all seeds, and how many answers it stands on."""
    found = select(rows, metric="accuracy_at_gap", case=case, provider=provider, T=gaps)
    count = sum(row.n for row in found)
    return (sum(row.p50 * row.n for row in found) / count, count) if count else None


def _reasons(rows: Sequence[Row]) -> Verdict:
    claim = (
        "11b. Four reasons for the RNN's speed beside CNN2: short sentences, the second embedding, 64 filters, "
        "a fused recurrence."
    )
    ratio = {(row.unit, row.T): row for row in select(rows, case="reasons", metric="time_ratio")}
    if not ratio:
        return judge(claim, [Finding(UNDECIDED, "not measured")])
    lengths = sorted({length for _, length in ratio})
    findings = []
    for provider, label in PROVIDERS:
        ends = [ratio.get((f"RNN {provider}/CNN2", length)) for length in (lengths[0], lengths[-1])]
        if None not in ends and lengths[0] < lengths[-1]:
            findings.append(_grows(*ends, label))
    for unit, label in (
        ("CNN2/CNN2-single", "the second embedding"),
        ("CNN2/CNN2-few", "64 filters against 16"),
        *((f"RNN loop/RNN {provider}", f"a loop over time against {label} layers") for provider, label in PROVIDERS),
    ):
        row = ratio.get((unit, lengths[0]))
        if row is None:
            findings.append(Finding(UNDECIDED, f"{label}: not measured"))
            continue
        verdict = CONFIRMED if row.p25 >= COUNTS else REFUTED if row.p75 < COUNTS else DEPENDS
        findings.append(Finding(verdict, f"{label}: {row.p50:.2f} ({row.p25:.2f}-{row.p75:.2f})", label))
    return judge(claim, findings)


def _grows(short: Row, long: Row, label: str) -> Finding:
    """Confirmed: from short to long sentences the RNN's time over CNN2's rises, beyond the quartiles."""
    rise = [long.p25 / short.p75, long.p50 / short.p50, long.p75 / short.p25]
    verdict = CONFIRMED if rise[0] >= COUNTS else REFUTED if rise[2] < COUNTS else DEPENDS
    told = f"RNN's time over CNN2's at {short.T} words {short.p50:.2f}, at {long.T} {long.p50:.2f}, {label} layers"
    return Finding(verdict, told, f"short sentences, {label} layers")


def _claim12(rows: Sequence[Row], corpus: str) -> Verdict:
    claim = "12. Quoted arithmetic: RNN 22.8K products a step and 23.5K parameters; CNN2 44.8K convolution parameters."
    findings = []
    for label, case, metric, quoted in (
        ("RNN products a step", "RNN", "products_a_step", 22_800),
        ("RNN parameters without embedding", "RNN", "parameters", 23_500),
        ("CNN2 convolution weights", "CNN2", "products_a_step", 44_800),
    ):
        found = select(rows, case=f"{corpus}/{case}", metric=metric)
        if not found or found[0].I != 50:
            findings.append(Finding(UNDECIDED, f"{label}: not counted at width 50"))
            continue
        value = found[0].p50
        holds = abs(value / quoted - 1) <= COUNT_TOLERANCE
        findings.append(
            Finding(CONFIRMED if holds else REFUTED, f"{label} {value:,.0f}", f"{label}, quoted {quoted:,}")
        )
    return judge(claim, findings)
