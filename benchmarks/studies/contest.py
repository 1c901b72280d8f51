"""Models in training against one another: a pilot sizes the training set to the budget; every epoch is a row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from ..models import encoder_parameters, products, serial_steps
from ..record import Row, measured
from ..training import EARLY_STEPS, Epoch, Example, Run, compete, seconds_a_step
from .base import Budget, Context
from .claims import ENDED

SEEDS = {"quick": 1, "default": 3, "full": 3}
MARGIN = 1.25  # of a plan over what its pilot says
FEWEST_BATCHES = 10  # of an epoch, however small the budget


@dataclass(frozen=True)
class Plan:
    """How a corpus is trained on; `least`: examples before epochs are cut (an eighth of it if quick)."""

    batch: int
    rate: float
    epochs: dict[str, int]
    least: int
    all_seeds: bool  # the set shrinks until every seed fits, not the first alone
    plateau: bool = False


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

    study: str
    corpus: str
    plan: Plan
    jobs: Sequence[Job]
    pilot: Sequence[Example]
    available: int
    training: Callable[[int], Callable[[int, int], list[Example]]]
    test: Sequence[Example]
    finished: Callable[[Run], None] = lambda run: None  # called for each run at its end


@dataclass(frozen=True)
class Costs:
    """Seconds a step, summed over jobs, as a pilot found them; `tests`: what an evaluation costs, in steps."""

    all_jobs: float
    own_jobs: float
    tests: float


def arithmetic(ctx: Context, study: str, case: str, model: nn.Module, steps: int, width: int) -> None:
    """Counts from the layers themselves: no measurement, the same on every machine."""
    counts = {
        "parameters_encoder": encoder_parameters(model),
        "parameters": encoder_parameters(model) + sum(parameter.numel() for parameter in model.head.parameters()),
        "products": products(model, steps),
        "products_a_step": products(model, 40) - products(model, 39),
        "serial_products": serial_steps(model, steps),
    }
    for metric, value in counts.items():
        ctx.recorder.add(measured(study, metric, "", [value], case, T=steps, I=width))


def fit(costs: Costs, plan: Plan, effort: str, available: int, budget_s: float) -> int:
    """How many training examples the budget holds over all epochs (and seeds, where the plan wants them).

    Rather than fewer than `plan.least`, fewer epochs, but two: a ratio of times needs them.
    """
    epochs = plan.epochs[effort]
    step_s = MARGIN * (costs.all_jobs + (SEEDS[effort] - 1 if plan.all_seeds else 0) * costs.own_jobs)
    all_epochs, two = (int(plan.batch * (budget_s / (count * step_s) - costs.tests)) for count in (epochs, 2))
    least = plan.least // 8 if effort == "quick" else min(plan.least, two)
    return min(available, max(all_epochs, least, FEWEST_BATCHES * plan.batch))


def train(ctx: Context, task: Task, budget: Budget) -> None:
    """Sizes the training set by a pilot, then trains seed by seed while the budget lasts; twins in the first alone."""
    plan, seeds = task.plan, SEEDS[ctx.effort]
    own = [job for job in task.jobs if not job.twin]
    ctx.progress.show(f"{task.corpus}: pilot")
    step_s = {id(job): seconds_a_step(job.build, task.pilot) for job in task.jobs}
    tests = sum(len(labels) for _, labels in task.test) / plan.batch / 3  # a test batch costs about a third of a step
    costs = Costs(sum(step_s.values()), sum(step_s[id(job)] for job in own), tests)
    draw = task.training(fit(costs, plan, ctx.effort, task.available, budget.left))
    epochs, before = plan.epochs[ctx.effort], budget.left
    for seed in range(seeds):
        if seed and (before - budget.left) * costs.own_jobs / costs.all_jobs > budget.left:
            ctx.skip(task.study, task.corpus, f"seed {seed} and later: the budget holds {seed} of {seeds} seeds")
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
            done=partial(_record, ctx, task),
            tick=partial(_tick, ctx, f"{task.corpus}, seed {seed}"),
        )
        for finished in runs:
            task.finished(finished)
        if done < epochs:
            ctx.skip(task.study, task.corpus, f"seed {seed}: epochs after {done} of {epochs}, the budget was spent")
        epochs, before = done, start  # further seeds are comparable only after as many epochs


def _tick(ctx: Context, where: str, what: str) -> None:
    ctx.progress.show(f"{where}: {what}")


def _record(ctx: Context, task: Task, run: Run, epoch: Epoch) -> None:
    where = {
        "provider": run.provider,
        "mode": "train",
        "seed": run.seed,
        "epoch": epoch.number,
        "B": task.plan.batch,
        "threads": torch.get_num_threads(),
    }
    case = f"{task.corpus}/{run.name}"
    ended = ENDED if run.finished else ""
    if epoch.number == 1:
        ctx.recorder.add(Row(task.study, case, "early_loss", "nats", epoch.early_loss, n=EARLY_STEPS, **where))
    ctx.recorder.add(
        Row(task.study, case, "epoch_time", "s", epoch.seconds, n=epoch.steps, **where),
        Row(task.study, case, "loss", "nats", epoch.loss, n=epoch.steps, **where),
        Row(task.study, case, "accuracy", "", epoch.accuracy, n=len(epoch.correct), note=ended, **where),
    )
