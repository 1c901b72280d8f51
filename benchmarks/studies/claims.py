"""The claims that the text study can judge, by thresholds fixed beforehand, and what all models in training share."""

from __future__ import annotations

from collections.abc import Sequence

from ..measure import interval95, quartiles
from ..record import Row
from .base import CONFIRMED, COUNT_TOLERANCE, DEPENDS, REFUTED, UNDECIDED, Finding, Verdict, judge, select

FASTER_BY_A_FIFTH = 0.80  # "20 to 25 % faster": time at most this share
FAR, NEAR = (6, 8, 12), (0, 1)  # words between: beyond, and well within, the widest window of 5
SAME_LOSS = 1e-3  # the losses of the first ten steps agree to this share
TELLS = 0.9  # accuracy from which a model is said to tell the cases apart
SEEDS_FOR_INTERVAL = 3
EPOCHS_TO_JUDGE = 5  # an accuracy after fewer decides nothing
ENDED = "ended early: nothing left to learn"  # unless the run says so
PROVIDERS = (("fusedrnn", "fused"), ("nn", "torch's"))


def times(rows: Sequence[Row], case: str, provider: str) -> dict[tuple[int, int], float]:
    """Seconds of training by seed and epoch."""
    return {(row.seed, row.epoch): row.p50 for row in select(rows, metric="epoch_time", case=case, provider=provider)}


def paired(rows: Sequence[Row], above: tuple[str, str], below: tuple[str, str]) -> list[float]:
    """Ratios of epoch times, epochs of the same seed and number: measured in turn, on the same batches."""
    first, second = times(rows, *above), times(rows, *below)
    return [first[key] / second[key] for key in sorted(first.keys() & second.keys())]


def finals(rows: Sequence[Row], case: str, provider: str) -> list[Row]:
    """The accuracy row of each seed's last epoch; a seed that was cut off before the others is left out."""
    last: dict[int, Row] = {}
    for row in select(rows, metric="accuracy", case=case, provider=provider):
        if row.seed not in last or row.epoch > last[row.seed].epoch:
            last[row.seed] = row
    most = max((row.epoch for row in last.values()), default=0)
    return [last[seed] for seed in sorted(last) if last[seed].epoch == most or last[seed].note == ENDED]


def learned(finals_: Sequence[Row]) -> bool:
    """Whether every seed was trained long enough for its accuracy to decide anything."""
    return bool(finals_) and all(row.epoch >= EPOCHS_TO_JUDGE or row.note == ENDED for row in finals_)


def half_width(finals_: Sequence[Row]) -> tuple[float, str]:
    """Half of the 95 % interval of an accuracy: over seeds where there are three, else of the test set alone."""
    values = [row.p50 for row in finals_]
    if len(values) >= SEEDS_FOR_INTERVAL:
        low, high = interval95(values)
        return (high - low) / 2, f"{len(values)} seeds"
    return 1.96 * (values[0] * (1 - values[0]) / finals_[0].n) ** 0.5, "test set alone, one seed"


def difference(first: Sequence[Row], second: Sequence[Row]) -> tuple[float, float]:
    """Mean difference of two accuracies, paired by seed, and half its 95 % interval."""
    seconds = {row.seed: row for row in second}
    values = [row.p50 - seconds[row.seed].p50 for row in first if row.seed in seconds]
    mean = sum(values) / len(values)
    if len(values) >= SEEDS_FOR_INTERVAL:
        low, high = interval95(values)
        return mean, (high - low) / 2
    return mean, 1.96 * sum(row.p50 * (1 - row.p50) / row.n for row in (first[0], second[0])) ** 0.5


def more_accurate(rows: Sequence[Row], better: tuple[str, str], than: tuple[str, str]) -> Finding:
    first, second = finals(rows, *better), finals(rows, *than)
    names = f"{better[0].rpartition('/')[2]} against {than[0].rpartition('/')[2]}"
    if not first or not second:
        return Finding(UNDECIDED, f"no accuracy of {names}")
    mean, half = difference(first, second)
    verdict = CONFIRMED if mean > half else REFUTED if mean < -half else UNDECIDED
    if not (learned(first) and learned(second)):
        verdict, names = UNDECIDED, f"{names}, fewer than {EPOCHS_TO_JUDGE} epochs"
    ends = " / ".join(f"{100 * sum(row.p50 for row in side) / len(side):.1f} %" for side in (first, second))
    after = f"after epoch {first[0].epoch}" + (f" and {second[0].epoch}" if second[0].epoch != first[0].epoch else "")
    return Finding(
        verdict, f"accuracy {after} {ends}, {100 * mean:+.1f} ± {100 * half:.1f} points", f"accuracy, {names}"
    )


def at_most(rows: Sequence[Row], above: tuple[str, str], below: tuple[str, str], limit: float, label: str) -> Finding:
    """Confirmed: upper quartile of the ratio at most `limit`. Refuted: lower quartile above 1. Between: it depends."""
    found = paired(rows, above, below)
    if len(found) < 2:
        return Finding(UNDECIDED, f"{label}: not measured")
    p25, p50, p75 = quartiles(found)
    verdict = CONFIRMED if p75 <= limit else REFUTED if p25 > 1 else DEPENDS
    return Finding(verdict, f"{label}: epoch time ratio {p50:.2f} ({p25:.2f}-{p75:.2f})", f"speed, {label}")


def corpus_of(rows: Sequence[Row]) -> str | None:
    """The text corpus that was trained on; the real one where both are there."""
    names = {row.case.partition("/")[0] for row in select(rows, metric="accuracy")}
    return next((name for name in ("phrases", "grammar") if name in names), None)


def own(rows: Sequence[Row], case: str) -> str:
    """Who trained a recurrent model for its accuracy: fused, or torch's where there is no other."""
    return "fusedrnn" if select(rows, metric="accuracy", case=case, provider="fusedrnn") else "nn"


def verdicts(rows: Sequence[Row]) -> list[Verdict]:
    rows = select(rows, study="text")
    corpus = corpus_of(rows)
    found = [trains_alike(rows)]
    if corpus:
        found += [_claim1(rows, corpus), _claim2(rows, corpus)]
    if select(rows, metric="accuracy_at_gap"):
        found.append(_claim11(rows))
    if corpus:
        found.append(_claim12(rows, corpus))
    return found


def trains_alike(rows: Sequence[Row]) -> Verdict:
    """Alike: the losses of the first steps agree. Later, rounding alone parts even two runs of torch: that is told."""
    claim = "A recurrent model trains faster on fused layers than on torch's, and alike."
    findings = []
    for case in dict.fromkeys(row.case for row in select(rows, metric="accuracy", provider="nn")):
        found = paired(rows, (case, "nn"), (case, "fusedrnn"))
        starts = [select(rows, metric="early_loss", case=case, provider=name, seed=0) for name, _ in PROVIDERS]
        if len(found) < 2 or not all(starts):
            continue
        apart = abs(starts[0][0].p50 / starts[1][0].p50 - 1)
        ends = [finals(rows, case, name)[0].p50 for name, _ in PROVIDERS]
        p25, p50, p75 = quartiles(found)
        verdict = REFUTED if apart > SAME_LOSS or p75 < 1 else CONFIRMED if p25 > 1 else DEPENDS
        told = f"first losses {100 * apart:.4f} % apart, last accuracies {100 * abs(ends[0] - ends[1]):.1f} points"
        findings.append(Finding(verdict, f"{case}: {p50:.2f} times ({p25:.2f}-{p75:.2f}), {told}", case))
    return judge(claim, findings or [Finding(UNDECIDED, "not measured")])


def _claim1(rows: Sequence[Row], corpus: str) -> Verdict:
    claim = (
        "1. A tanh RNN trains 20 to 25 % faster an epoch than the two-channel CNN2, "
        "and ends more accurate (65.83 against 61.42 %)."
    )
    rnn, cnn = f"{corpus}/RNN", (f"{corpus}/CNN2", "conv")
    speed = [at_most(rows, (rnn, name), cnn, FASTER_BY_A_FIFTH, f"{label} layers") for name, label in PROVIDERS]
    return judge(_on(claim, corpus), [*speed, more_accurate(rows, (rnn, own(rows, rnn)), cnn)])


def _claim2(rows: Sequence[Row], corpus: str) -> Verdict:
    claim = (
        "2. BiRNN is slower a step than TextCNN, needs 1 epoch where TextCNN needs 5, ends more accurate, "
        "costs more products and is less parallel."
    )
    case, cnn = f"{corpus}/BiRNN", (f"{corpus}/TextCNN", "conv")
    findings = []
    for name, label in PROVIDERS:
        found = paired(rows, (case, name), cnn)
        if len(found) >= 2:
            p25, p50, p75 = quartiles(found)
            verdict = CONFIRMED if p25 > 1 else REFUTED if p75 < 1 else DEPENDS
            findings.append(
                Finding(
                    verdict,
                    f"{label} layers: step time ratio {p50:.2f} ({p25:.2f}-{p75:.2f})",
                    f"slower a step, {label} layers",
                )
            )
    findings += [_fewer_epochs(rows, (case, own(rows, case)), cnn), more_accurate(rows, (case, own(rows, case)), cnn)]
    for metric, label in (("products", "products a sentence"), ("serial_products", "products one after another")):
        values = [row.p50 for name in (case, cnn[0]) for row in select(rows, metric=metric, case=name)]
        if len(values) == 2:
            findings.append(
                Finding(
                    CONFIRMED if values[0] > values[1] else REFUTED,
                    f"{label} {values[0]:,.0f} / {values[1]:,.0f}",
                    label,
                )
            )
    return judge(_on(claim, corpus), findings)


def _fewer_epochs(rows: Sequence[Row], model: tuple[str, str], other: tuple[str, str]) -> Finding:
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


def _claim11(rows: Sequence[Row]) -> Verdict:
    claim = (
        '11. Word order is why: the RNN tells "not good" from "good" '
        "and uses cues farther apart than a window of 2 to 5 words."
    )
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


def _on(claim: str, corpus: str) -> str:
    return (
        claim if corpus == "phrases" else f"{claim} (Here on the built-in grammar; `--data` takes the movie reviews.)"
    )
