"""Trains the study's models: seeded, epochs of several runs in turn, time of training apart from everything else."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .measure import no_collector

CLIP = 1.0
"""Largest gradient norm."""
EARLY_STEPS = 10
"""Steps over which two providers must lose alike; later, training amplifies the last bit of a weight at will."""
STOP_AT, LEAST_EPOCHS = 0.995, 3
"""A run has nothing left to learn, and ends, at this held-out accuracy; but not before so many epochs are timed."""
PILOT_S = 0.5
"""A pilot of one model ends after so long."""

Example = tuple[tuple[Tensor | None, ...], Tensor]
"""Arguments of the model, and labels."""


@dataclass
class Epoch:
    number: int
    seconds: float  # training steps alone
    steps: int
    loss: float  # mean over the training steps
    early_loss: float  # over the first of them
    accuracy: float  # held-out
    correct: Tensor  # held-out, per example


@dataclass
class Run:
    """One model in training. Its random state is its own, so that runs in turn draw what each would draw alone."""

    name: str
    provider: str
    seed: int
    build: Callable[[], nn.Module]
    rate: float
    plateau: bool = False  # halve the rate when held-out accuracy stalls for two epochs
    epochs: list[Epoch] = field(default_factory=list)

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)
        self.model = self.build()
        self._random = torch.get_rng_state()
        self._trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self._adam = torch.optim.Adam(self._trained, lr=self.rate)
        self._schedule = (
            torch.optim.lr_scheduler.ReduceLROnPlateau(self._adam, mode="max", factor=0.5, patience=2)
            if self.plateau
            else None
        )

    @property
    def finished(self) -> bool:
        return len(self.epochs) >= LEAST_EPOCHS and self.epochs[-1].accuracy >= STOP_AT

    def step(self, example: Example) -> Tensor:
        arguments, labels = example
        self._adam.zero_grad(set_to_none=True)
        loss = F.cross_entropy(self.model(*arguments), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(self._trained, CLIP)
        self._adam.step()
        return loss.detach()

    def epoch(self, train: Sequence[Example], test: Iterable[Example], tick: Callable[[], None]) -> Epoch:
        """One pass over `train`, timed, then the held-out accuracy."""
        torch.set_rng_state(self._random)
        self.model.train()
        losses, seconds = [], 0.0
        with no_collector():
            for example in train:
                start = time.perf_counter()
                losses.append(self.step(example))
                seconds += time.perf_counter() - start
                tick()
        self._random = torch.get_rng_state()
        correct = self.evaluate(test)
        accuracy = correct.double().mean().item()
        if self._schedule:
            self._schedule.step(accuracy)
        loss, early = (torch.stack(part).mean().item() for part in (losses, losses[:EARLY_STEPS]))
        done = Epoch(len(self.epochs) + 1, seconds, len(train), loss, early, accuracy, correct)
        self.epochs.append(done)
        return done

    @torch.no_grad()
    def evaluate(self, test: Iterable[Example]) -> Tensor:
        self.model.eval()
        return torch.cat([self.model(*arguments).argmax(-1) == labels for arguments, labels in test])


def compete(
    runs: Sequence[Run],
    epoch_examples: Callable[[int], Sequence[Example]],
    test: Sequence[Example],
    epochs: int,
    seconds: float,
    done: Callable[[Run, Epoch], None],
    tick: Callable[[str], None],
) -> int:
    """Trains all runs epoch by epoch on the same batches, in turn, the order turned round every time.

    Another epoch begins while its half, judged by the last, fits into `seconds`; the first always does.

    Returns:
        Epochs done, or all of them where every run has ended early.
    """
    stop, last = time.monotonic() + seconds, 0.0
    for number in range(1, epochs + 1):
        start = time.monotonic()
        if number > 1 and start + last / 2 > stop:
            return number - 1
        active = [run for run in runs if not run.finished]
        if not active:
            break
        examples = epoch_examples(number)
        for run in active if number % 2 else reversed(active):
            what = f"{run.name} ({run.provider}), epoch {number}"
            done(run, run.epoch(examples, test, partial(tick, what)))
        last = time.monotonic() - start
    return epochs


def seconds_a_step(build: Callable[[], nn.Module], examples: Sequence[Example]) -> float:
    """A pilot: the median over a few steps of a throw-away model, warmed first; three where they are slow."""
    with torch.random.fork_rng(devices=[]):
        run = Run("", "", 0, build, rate=0.0)
        for example in examples[:2]:
            run.step(example)
        seconds = []
        for example in examples:
            start = time.perf_counter()
            run.step(example)
            seconds.append(time.perf_counter() - start)
            if len(seconds) >= 3 and sum(seconds) > PILOT_S:
                break
    return statistics.median(seconds)
