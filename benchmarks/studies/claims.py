"""What the verdicts on all models in training share: epoch times, accuracies, their intervals; thresholds."""

from __future__ import annotations

from collections.abc import Sequence

from ..measure import interval95, quartiles
from ..record import Row
from .base import CONFIRMED, DEPENDS, REFUTED, UNDECIDED, Finding, Verdict, judge, select

FASTER_BY_A_FIFTH = 0.80  # "20 to 25 % faster": time at most this share
FAR, NEAR = (6, 8, 12), (0, 1)  # words between: beyond, and well within, the widest window of 5
SAME_LOSS = 1e-3  # the losses of the first ten steps agree to this share
SEEDS_FOR_INTERVAL = 3
EPOCHS_TO_JUDGE = 5  # an accuracy after fewer decides nothing
ENDED, STALE = "ended early: nothing left to learn", "ended early: {} epochs without a better validation accuracy"
PROVIDERS = (("fusedrnn", "fused"), ("nn", "torch's"))


def times(rows: Sequence[Row], case: str, provider: str, metric: str = "epoch_time") -> dict[tuple[int, int], float]:
    """Seconds by seed and epoch: of training alone, or of "epoch_time_whole", with batching and evaluation."""
    return {(row.seed, row.epoch): row.p50 for row in select(rows, metric=metric, case=case, provider=provider)}


def paired(
    rows: Sequence[Row], above: tuple[str, str], below: tuple[str, str], metric: str = "epoch_time"
) -> list[float]:
    """Ratios of epoch times, epochs of the same seed and number: measured in turn, on the same batches."""
    first, second = times(rows, *above, metric), times(rows, *below, metric)
    return [first[key] / second[key] for key in sorted(first.keys() & second.keys())]


def finals(rows: Sequence[Row], case: str, provider: str) -> list[Row]:
    """Each seed's accuracy on the test part, by the weights of its best epoch, or where nothing was tested apart, after
    its last epoch. `epoch` is how many were trained; a seed that was cut off before the others is left out."""
    last: dict[int, Row] = {}
    found = [select(rows, metric=name, case=case, provider=provider) for name in ("test_accuracy", "accuracy")]
    for row in found[0] or found[1]:
        if row.seed not in last or row.epoch > last[row.seed].epoch:
            last[row.seed] = row
    most = max((row.epoch for row in last.values()), default=0)
    return [last[seed] for seed in sorted(last) if last[seed].epoch == most or ended(last[seed])]


def ended(row: Row) -> bool:
    """Whether a run ended by itself, rather than that its epochs or its budget were spent."""
    return row.note.startswith("ended early")


def learned(finals_: Sequence[Row]) -> bool:
    """Whether every seed was trained long enough for its accuracy to decide anything."""
    return bool(finals_) and all(row.epoch >= EPOCHS_TO_JUDGE or ended(row) for row in finals_)


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


def more_accurate(rows: Sequence[Row], better: tuple[str, str], than: tuple[str, str], when: str = "") -> Finding:
    """Confirmed: the difference is above its interval. Refuted: below minus that. `when` says of which training."""
    first, second = finals(rows, *better), finals(rows, *than)
    names = f"{better[0].rpartition('/')[2]} against {than[0].rpartition('/')[2]}"
    if not first or not second:
        return Finding(UNDECIDED, f"{when}no accuracy of {names}")
    if not {row.seed for row in first} & {row.seed for row in second}:
        return Finding(UNDECIDED, f"{when}{names}: no seed that both were trained with")
    mean, half = difference(first, second)
    verdict = CONFIRMED if mean > half else REFUTED if mean < -half else UNDECIDED
    why = f"{when}accuracy, {names}"
    if not (learned(first) and learned(second)):
        verdict, why = UNDECIDED, f"{why}, fewer than {EPOCHS_TO_JUDGE} epochs"
    ends = " / ".join(f"{100 * sum(row.p50 for row in side) / len(side):.1f} %" for side in (first, second))
    after = f"after epoch {first[0].epoch}" + (f" and {second[0].epoch}" if second[0].epoch != first[0].epoch else "")
    return Finding(
        verdict,
        f"{when}{names} {after} {ends}, {100 * mean:+.1f} ± {100 * half:.1f} points",
        why,
    )


def at_most(
    rows: Sequence[Row],
    above: tuple[str, str],
    below: tuple[str, str],
    limit: float,
    label: str,
    metric: str = "epoch_time",
) -> Finding:
    """Confirmed: upper quartile of the ratio at most `limit`. Refuted: lower quartile above 1. Between: it depends."""
    found = paired(rows, above, below, metric)
    if len(found) < 2:
        return Finding(UNDECIDED, f"{label}: not measured")
    p25, p50, p75 = quartiles(found)
    verdict = CONFIRMED if p75 <= limit else REFUTED if p25 > 1 else DEPENDS
    return Finding(verdict, f"{label}: epoch time ratio {p50:.2f} ({p25:.2f}-{p75:.2f})", f"speed, {label}")


def corpus_of(rows: Sequence[Row]) -> str | None:
    """The text corpus that was trained on; the real one where both are there."""
    names = {row.case.partition("/")[0] for row in select(rows, metric="accuracy")}
    if names & {"published", "sound"}:
        return "phrases"
    return next((name for name in ("phrases", "polarity", "grammar") if name in names), None)


def own(rows: Sequence[Row], case: str) -> str:
    """Who trained a recurrent model for its accuracy: fused, or torch's where there is no other."""
    return "fusedrnn" if select(rows, metric="accuracy", case=case, provider="fusedrnn") else "nn"


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
