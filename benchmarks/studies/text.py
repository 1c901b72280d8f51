"""Recurrent and convolutional models trained side by side.

Question: which is faster an epoch, and which ends more accurate, the recurrent or the convolutional model, and what
do fused layers change?
Hypothesis: that of the claims in `claims.py`. Refuted by: the thresholds there, fixed before anything was measured.

Data: `--data` (movie-review phrases), or by default a small grammar in which word order decides, and Gaussian series
for the cells.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from .. import data
from ..models import RECURRENT, TEXT_MODELS, SeriesClassifier, Table, encoder_parameters, products, serial_steps
from ..providers import FUSED, NN, fused_module
from ..record import Row, measured, remark
from ..training import EARLY_STEPS, Epoch, Example, Run, compete, seconds_a_step
from .base import Budget, Context
from .claims import ENDED, verdicts
from .text_report import section

__all__ = ["run", "section", "verdicts"]
STUDY = "text"
CONV = "conv"
WIDTH = 50  # of a random embedding table
SEEDS = {"quick": 1, "default": 3, "full": 3}


@dataclass(frozen=True)
class Plan:
    """How a corpus is trained on; `least`: examples before epochs are cut (an eighth of it if quick)."""

    batch: int
    rate: float
    epochs: dict[str, int]
    least: int
    all_seeds: bool  # the set shrinks until every seed fits, not the first alone
    plateau: bool = False


PLANS = {
    "grammar": Plan(64, 1e-3, {"quick": 1, "default": 10, "full": 15}, 8000, all_seeds=False),
    "phrases": Plan(64, 1e-3, {"quick": 1, "default": 5, "full": 10}, 6400, all_seeds=True),
    "series": Plan(32, 0.01, {"quick": 1, "default": 10, "full": 10}, 1600, all_seeds=False, plateau=True),
}
SERIES_HIDDEN = 128
MARGIN = 1.25  # of a plan over what its pilot says
FEWEST_BATCHES = 10  # of an epoch, however small the budget
SERIES_TRAIN = 800  # a class
TEST_PHRASES = {"quick": 500, "default": 4000, "full": 1 << 30}
SERIES_TEST = 2000  # a class; fresh draws: a fifth of the 2,000 series would leave an interval of over a point


@dataclass(frozen=True)
class Job:
    """A model to train. A `twin` repeats another job on torch's layers: once, for its time and its curve."""

    model: str
    provider: str
    build: Callable[[], nn.Module]
    twin: bool = False


@dataclass(frozen=True)
class Task:
    """A corpus ready for training; `training(count)` chooses examples, its result shuffles them by seed and epoch."""

    corpus: str
    jobs: Sequence[Job]
    pilot: Sequence[Example]
    available: int
    training: Callable[[int], Callable[[int, int], list[Example]]]
    test: Sequence[Example]
    gaps: torch.Tensor | None = None  # of each test example, where accuracy by cue distance is wanted


@dataclass(frozen=True)
class Costs:
    """Seconds a step, summed over jobs, as a pilot found them; `tests`: what an evaluation costs, in steps."""

    all_jobs: float
    own_jobs: float
    tests: float


def run(ctx: Context) -> None:
    try:
        fused_module()
        fused = True
    except ImportError as error:
        ctx.recorder.add(remark(STUDY, "failed", str(error), "all models", provider=FUSED.name))
        fused = False
    if ctx.data:
        _text(ctx, data.phrase_corpus(ctx.data), ctx.budget, fused)
        return
    _series(ctx, ctx.budget.share(0.35), fused)
    _text(ctx, data.grammar_corpus(), ctx.budget, fused)


def _text(ctx: Context, corpus: data.Corpus, budget: Budget, fused: bool) -> None:
    words = data.vocabulary(corpus.train)
    table = _table(ctx, corpus, words)
    for note in corpus.notes:
        ctx.note(STUDY, corpus.name, note)
    test_phrases = data.subsample(corpus.test, TEST_PHRASES[ctx.effort], seed=0)
    held_out = data.batches(test_phrases, words, 256, None)
    jobs = [job for model in TEXT_MODELS for job in _text_jobs(model, table, fused)]
    mean = sum(max(1, len(phrase.tokens)) for phrase in corpus.train) / len(corpus.train)
    for model in TEXT_MODELS:
        _arithmetic(ctx, f"{corpus.name}/{model}", TEXT_MODELS[model](table, NN.name), round(mean), table.width)

    def examples(phrases: Sequence[data.Phrase], rng: random.Random) -> list[Example]:
        return [_example(batch) for batch in data.batches(phrases, words, PLANS[corpus.name].batch, rng)]

    def training(count: int) -> Callable[[int, int], list[Example]]:
        chosen = corpus.train if count >= len(corpus.train) else data.subsample(corpus.train, count, seed=0)
        of_train = f"{len(chosen)} of {len(corpus.train)}"
        of_test = f"{len(test_phrases)} of {len(corpus.test)}"
        ctx.note(STUDY, corpus.name, f"Trained on {of_train} examples, tested on {of_test}.")
        return lambda seed, epoch: examples(chosen, random.Random(1000 * seed + epoch))

    pilot = examples(data.subsample(corpus.train, 640, seed=1), random.Random(0))
    test = [_example(batch) for batch in held_out]
    gaps = torch.cat([batch.gaps for batch in held_out]) if corpus.name == "grammar" else None
    _train(ctx, Task(corpus.name, jobs, pilot, len(corpus.train), training, test, gaps), budget)


def _table(ctx: Context, corpus: data.Corpus, words: dict[str, int]) -> Table:
    size = len(words) + 2
    if ctx.embeddings is None:
        ctx.note(
            STUDY,
            corpus.name,
            f"No `--embeddings`: the pretrained table is a random one of width {WIDTH}, and the frozen channel a "
            "random projection.",
        )
        return Table(size, WIDTH, corpus.classes)
    width, found = data.read_vectors(ctx.embeddings, words)
    pretrained = torch.randn(size, width, generator=torch.Generator().manual_seed(0)) * 0.1
    pretrained[data.PAD] = 0
    for word, values in found.items():
        pretrained[words[word]] = torch.tensor(values)
    ctx.note(
        STUDY,
        corpus.name,
        f"Word vectors of width {width} from the given file cover {len(found)} of {len(words)} words; the others "
        "start at random.",
    )
    return Table(size, width, corpus.classes, pretrained)


def _text_jobs(model: str, table: Table, fused: bool) -> list[Job]:
    if model not in RECURRENT:
        return [Job(model, CONV, partial(TEXT_MODELS[model], table, NN.name))]
    jobs = [Job(model, FUSED.name, partial(TEXT_MODELS[model], table, FUSED.name))] if fused else []
    return [*jobs, Job(model, NN.name, partial(TEXT_MODELS[model], table, NN.name), twin=fused)]


def _example(batch: data.Batch) -> Example:
    return (batch.tokens, batch.lengths), batch.labels


def _series(ctx: Context, budget: Budget, fused: bool) -> None:
    ctx.note(STUDY, "series", "Gaussian series: T 20, I 1, H 128; class 0 N(0.5, 1), class 1 N(-0.5, 1.2).")
    ctx.recorder.add(measured(STUDY, "bayes_accuracy", "", [data.bayes_accuracy()], "series/Bayes"))
    jobs = []
    for cell, directions in (("LSTM", 1), ("GRU", 1), ("LSTM", 2), ("GRU", 2)):
        name = ("Bi" if directions == 2 else "") + cell
        build = partial(SeriesClassifier, cell, directions, SERIES_HIDDEN, "final")
        ours = FUSED.name if fused else NN.name
        jobs += [Job(name, ours, partial(build, ours))] + [
            Job(name, NN.name, partial(build, NN.name), twin=True)
        ] * fused
        if directions == 2:
            jobs.append(Job(f"{name}-last", ours, partial(SeriesClassifier, cell, 2, SERIES_HIDDEN, "last", ours)))
        _arithmetic(ctx, f"series/{name}", build(NN.name), data.SERIES_T, 1)
    x, labels = data.series(SERIES_TRAIN, seed=0)
    test_x, test_labels = data.series(SERIES_TEST // 8 if ctx.effort == "quick" else SERIES_TEST, seed=1)
    test: list[Example] = [((test_x[i : i + 256],), test_labels[i : i + 256]) for i in range(0, len(test_x), 256)]

    def epoch(count: int, seed: int, number: int) -> list[Example]:
        order = torch.randperm(count, generator=torch.Generator().manual_seed(1000 * seed + number))
        return [((x[rows],), labels[rows]) for rows in order.split(PLANS["series"].batch)]

    def training(count: int) -> Callable[[int, int], list[Example]]:
        ctx.note(STUDY, "series", f"Trained on {count} of {len(x)} series, tested on {len(test_x)} fresh ones.")
        return partial(epoch, count)

    _train(ctx, Task("series", jobs, epoch(len(x), 9, 0)[:10], len(x), training, test), budget)


def _arithmetic(ctx: Context, case: str, model: nn.Module, steps: int, width: int) -> None:
    """Counts from the layers themselves: no measurement, the same on every machine."""
    counts = {
        "parameters_encoder": encoder_parameters(model),
        "parameters": encoder_parameters(model) + sum(parameter.numel() for parameter in model.head.parameters()),
        "products": products(model, steps),
        "products_a_step": products(model, 40) - products(model, 39),
        "serial_products": serial_steps(model, steps),
    }
    for metric, value in counts.items():
        ctx.recorder.add(measured(STUDY, metric, "", [value], case, T=steps, I=width))


def fit(costs: Costs, plan: Plan, effort: str, available: int, budget_s: float) -> int:
    """How many training examples the budget holds over all epochs (and seeds, where the plan wants them).

    Rather than fewer than `plan.least`, fewer epochs, but two: a ratio of times needs them.
    """
    epochs = plan.epochs[effort]
    step_s = MARGIN * (costs.all_jobs + (SEEDS[effort] - 1 if plan.all_seeds else 0) * costs.own_jobs)
    all_epochs, two = (int(plan.batch * (budget_s / (count * step_s) - costs.tests)) for count in (epochs, 2))
    least = plan.least // 8 if effort == "quick" else min(plan.least, two)
    return min(available, max(all_epochs, least, FEWEST_BATCHES * plan.batch))


def _train(ctx: Context, task: Task, budget: Budget) -> None:
    """Sizes the training set by a pilot, then trains seed by seed while the budget lasts; twins in the first alone."""
    plan, seeds = PLANS[task.corpus], SEEDS[ctx.effort]
    own = [job for job in task.jobs if not job.twin]
    ctx.progress.show(f"{task.corpus}: pilot")
    step_s = {id(job): seconds_a_step(job.build, task.pilot) for job in task.jobs}
    tests = sum(len(labels) for _, labels in task.test) / plan.batch / 3  # a test batch costs about a third of a step
    costs = Costs(sum(step_s.values()), sum(step_s[id(job)] for job in own), tests)
    draw = task.training(fit(costs, plan, ctx.effort, task.available, budget.left))
    epochs, before = plan.epochs[ctx.effort], budget.left
    for seed in range(seeds):
        if seed and (before - budget.left) * costs.own_jobs / costs.all_jobs > budget.left:
            ctx.skip(STUDY, task.corpus, f"seed {seed} and later: the budget holds {seed} of {seeds} seeds")
            return
        start = budget.left
        # where every seed is wanted, the first may take its share of the time and no more
        share = costs.all_jobs / (costs.all_jobs + (seeds - 1) * costs.own_jobs) if plan.all_seeds and not seed else 1.0
        runs = [
            Run(job.model, job.provider, seed, job.build, plan.rate, plan.plateau)
            for job in (own if seed else task.jobs)
        ]
        done = compete(
            runs,
            partial(draw, seed),
            task.test,
            epochs,
            seconds=share * start,
            done=partial(_record, ctx, task.corpus, plan),
            tick=partial(_tick, ctx, f"{task.corpus}, seed {seed}"),
        )
        if task.gaps is not None:
            for finished in runs:
                _record_gaps(ctx, task.corpus, finished, task.gaps)
        if done < epochs:
            ctx.skip(STUDY, task.corpus, f"seed {seed}: epochs after {done} of {epochs}, the budget was spent")
        epochs, before = done, start  # further seeds are comparable only after as many epochs


def _tick(ctx: Context, where: str, what: str) -> None:
    ctx.progress.show(f"{where}: {what}")


def _record(ctx: Context, corpus: str, plan: Plan, run: Run, epoch: Epoch) -> None:
    where = {
        "provider": run.provider,
        "mode": "train",
        "seed": run.seed,
        "epoch": epoch.number,
        "B": plan.batch,
        "threads": torch.get_num_threads(),
    }
    case = f"{corpus}/{run.name}"
    ended = ENDED if run.finished else ""
    if epoch.number == 1:
        ctx.recorder.add(Row(STUDY, case, "early_loss", "nats", epoch.early_loss, n=EARLY_STEPS, **where))
    ctx.recorder.add(
        Row(STUDY, case, "epoch_time", "s", epoch.seconds, n=epoch.steps, **where),
        Row(STUDY, case, "loss", "nats", epoch.loss, n=epoch.steps, **where),
        Row(STUDY, case, "accuracy", "", epoch.accuracy, n=len(epoch.correct), note=ended, **where),
    )


def _record_gaps(ctx: Context, corpus: str, run: Run, gaps: torch.Tensor) -> None:
    """T is the number of words between the cue and what it governs."""
    correct = run.epochs[-1].correct.double()
    for gap in data.GAPS:
        hits = correct[gaps == gap]
        if not len(hits):
            continue
        where = {"provider": run.provider, "mode": f"gap {gap}", "seed": run.seed, "T": gap}
        ctx.recorder.add(
            Row(STUDY, f"{corpus}/{run.name}", "accuracy_at_gap", "", hits.mean().item(), n=len(hits), **where)
        )
