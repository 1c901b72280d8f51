"""Models in training against one another: a pilot sizes the training set to the budget; every epoch is a row.

Where the context keeps training states, a later call with the same arguments goes on from each run's last epoch; the
rows of epochs already done are written again from the states.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .. import parallel
from ..arithmetic import counts
from ..data import UNKNOWN
from ..record import Row, measured
from ..training import EARLY_STEPS, STOP_AT, Epoch, Example, Run, compete, seconds_a_step
from .base import Budget, Context
from .claims import ENDED, STALE

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
    patience: int = 0  # epochs without a better validation accuracy after which a run ends; 0: none do
    seeds: int = 0  # 0: as many as the effort asks for
    whole: bool = False  # all examples, however long it takes


@dataclass(frozen=True)
class Job:
    """A model to train. A `twin` repeats another job on torch's layers: once, for its time and its curve."""

    model: str
    provider: str
    build: Callable[[], nn.Module]
    twin: bool = False
    rate: float = 0.0  # 0: the plan's


@dataclass(frozen=True)
class Task:
    """A corpus ready for training; `training(count)` chooses examples, its result shuffles them by seed and epoch.

    `validation` is looked at after every epoch; `test`, where there is one, once, with the weights of the best epoch.
    """

    study: str
    corpus: str
    plan: Plan
    jobs: Sequence[Job]
    pilot: Sequence[Example]
    available: int
    training: Callable[[int], Callable[[int, int], list[Example]]]
    validation: Sequence[Example]
    finished: Callable[[Run], None] = lambda run: None  # called for each run at its end
    test: Sequence[Example] = ()

    @property
    def key(self) -> str:
        return f"{self.study}/{self.corpus}"


@dataclass(frozen=True)
class Costs:
    """Seconds a step, summed over jobs, as a pilot found them; `tests`: what an evaluation costs, in steps."""

    all_jobs: float
    own_jobs: float
    tests: float


def arithmetic(ctx: Context, study: str, case: str, model: nn.Module, steps: int, width: int) -> None:
    """Counts from the layers themselves: no measurement, the same on every machine."""
    text = any(isinstance(module, nn.Embedding) for module in model.modules())

    def arguments(steps: int) -> tuple[Tensor | None, ...]:
        if text:
            return torch.full((steps, 1), UNKNOWN), None
        return (torch.zeros(1, steps, width, dtype=torch.float64),)

    for metric, value in counts(model, arguments, steps).items():
        ctx.recorder.add(measured(study, metric, "", [value], case, T=steps, I=width))


def fit(costs: Costs, plan: Plan, effort: str, available: int, budget_s: float) -> int:
    """How many training examples the budget holds over all epochs (and seeds, where the plan wants them).

    Rather than fewer than `plan.least`, fewer epochs, but two: a ratio of times needs them.
    """
    if plan.whole:
        return available
    epochs = plan.epochs[effort]
    step_s = MARGIN * (costs.all_jobs + (SEEDS[effort] - 1 if plan.all_seeds else 0) * costs.own_jobs)
    all_epochs, two = (int(plan.batch * (budget_s / (count * step_s) - costs.tests)) for count in (epochs, 2))
    least = plan.least // 8 if effort == "quick" else min(plan.least, two)
    return min(available, max(all_epochs, least, FEWEST_BATCHES * plan.batch))


def train(ctx: Context, task: Task, budget: Budget) -> None:
    """Sizes the training set by a pilot, then trains seed by seed while the budget lasts; twins in the first alone."""
    plan, seeds = task.plan, task.plan.seeds or SEEDS[ctx.effort]
    own = [job for job in task.jobs if not job.twin]
    ctx.progress.show(f"{task.corpus}: pilot")
    step_s = parallel.agree([seconds_a_step(job.build, task.pilot, ctx.device) for job in task.jobs])
    tests = sum(len(labels) for _, labels in task.validation) / plan.batch / 3  # a batch costs about a third of a step
    own_s = sum(seconds for job, seconds in zip(task.jobs, step_s, strict=True) if not job.twin)
    costs = Costs(sum(step_s), own_s, tests)
    draw = task.training(_examples(ctx, task, costs, budget))
    epochs, before = plan.epochs[ctx.effort], budget.left
    go_on = "; the same command goes on" if ctx.saved else ""
    for seed in range(seeds):
        if seed and parallel.agree((before - budget.left) * costs.own_jobs / costs.all_jobs > budget.left):
            reason = f"seed {seed} and later: the budget holds {seed} of {seeds} seeds{go_on}"
            ctx.skip(task.study, task.corpus, reason)
            return
        start = budget.left
        # where every seed is wanted, the first may take its share of the time and no more
        share = costs.all_jobs / (costs.all_jobs + (seeds - 1) * costs.own_jobs) if plan.all_seeds and not seed else 1.0
        runs = [_run(ctx, task, job, seed) for job in (own if seed else task.jobs)]
        done = compete(
            runs,
            partial(draw, seed),
            task.validation,
            epochs,
            seconds=share * start,
            done=partial(_done, ctx, task),
            tick=partial(_tick, ctx, f"{task.corpus}, seed {seed}"),
        )
        for ended in runs:
            ctx.progress.show(f"{task.corpus}, seed {seed}: test of {ended.name}")
            _end(ctx, task, ended)
        if done < epochs:
            reason = f"seed {seed}: epochs after {done} of {epochs}, the budget was spent{go_on}"
            ctx.skip(task.study, task.corpus, reason)
        epochs, before = done, start  # further seeds are comparable only after as many epochs


def _examples(ctx: Context, task: Task, costs: Costs, budget: Budget) -> int:
    """How many examples to train on: as before, where training is taken up."""
    known = ctx.saved.examples(task.key, str(task.plan)) if ctx.saved else None
    count = known or parallel.agree(fit(costs, task.plan, ctx.effort, task.available, budget.left))
    if ctx.saved:
        count = max(count, min(task.plan.least, task.available))  # what does not fit, a later call trains
        ctx.saved.examples(task.key, str(task.plan), count)
    return count


def _run(ctx: Context, task: Task, job: Job, seed: int) -> Run:
    """A new run, or one taken up, the rows of its epochs written again."""
    plan = task.plan
    options = {"plateau": plan.plateau, "patience": plan.patience, "keep_best": bool(task.test), "device": ctx.device}
    run = Run(job.model, job.provider, seed, job.build, job.rate or plan.rate, **options)
    if ctx.saved and ctx.saved.take_up(task.key, run):
        for epoch in run.epochs:
            _record(ctx, task, run, epoch)
    return run


def _tick(ctx: Context, where: str, what: str) -> None:
    ctx.progress.show(f"{where}: {what}")


def _done(ctx: Context, task: Task, run: Run, epoch: Epoch) -> None:
    if ctx.saved:
        ctx.saved.keep(task.key, run)
    _record(ctx, task, run, epoch)


def _end(ctx: Context, task: Task, run: Run) -> None:
    """The test, and what else is to be said of a run; one that is over needs its weights no more."""
    if not run.epochs:
        return
    run.test(task.test)
    if run.tested is not None:
        where = _where(task, run, len(run.epochs))
        accuracy = run.tested.double().mean().item()
        ctx.recorder.add(
            Row(
                task.study,
                f"{task.corpus}/{run.name}",
                "test_accuracy",
                "",
                accuracy,
                n=len(run.tested),
                note=_note(run),
                **where,
            ),
            Row(task.study, f"{task.corpus}/{run.name}", "best_epoch", "", float(run.best), **where),
        )
    task.finished(run)
    if ctx.saved and (run.finished or len(run.epochs) >= task.plan.epochs[ctx.effort]):
        ctx.saved.keep(task.key, run, over=True)


def _where(task: Task, run: Run, epoch: int) -> dict[str, Any]:
    where = {"provider": run.provider, "mode": "train", "seed": run.seed, "epoch": epoch}
    return where | {"B": task.plan.batch, "threads": torch.get_num_threads()}


def _note(run: Run) -> str:
    if not run.finished:
        return ""
    return STALE.format(run.patience) if run.epochs[-1].accuracy < STOP_AT else ENDED


def _record(ctx: Context, task: Task, run: Run, epoch: Epoch) -> None:
    where, case = _where(task, run, epoch.number), f"{task.corpus}/{run.name}"
    note = _note(run) if epoch is run.epochs[-1] else ""
    if epoch.number == 1:
        ctx.recorder.add(Row(task.study, case, "early_loss", "nats", epoch.early_loss, n=EARLY_STEPS, **where))
    ctx.recorder.add(
        Row(task.study, case, "epoch_time", "s", epoch.seconds, n=epoch.steps, **where),
        Row(task.study, case, "epoch_time_whole", "s", epoch.whole_s, n=epoch.steps, **where),
        Row(task.study, case, "loss", "nats", epoch.loss, n=epoch.steps, **where),
        Row(task.study, case, "accuracy", "", epoch.accuracy, n=len(epoch.correct), note=note, **where),
    )
