"""Trains the study's models: seeded, epochs of several runs in turn, time of training apart from everything else.

The whole state of a run (`Run.state`) can be kept after every epoch and taken up again: interrupted and taken up is
the same, bit for bit, as never interrupted.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from . import parallel
from .measure import no_collector

CLIP = 1.0
"""Largest gradient norm."""
EARLY_STEPS = 10
"""Steps over which two providers must lose alike; later, training amplifies the last bit of a weight at will."""
STOP_AT, LEAST_EPOCHS = 0.995, 3
"""A run has nothing left to learn, and ends, at this held-out accuracy; but not before so many epochs are timed."""
PILOT_S = 0.5
"""A pilot of one model ends after so long."""

Example = tuple[parallel.Arguments, Tensor]
"""Arguments of the model, and labels."""


@dataclass
class Epoch:
    number: int
    seconds: float  # training steps alone
    steps: int
    loss: float  # mean over the training steps
    early_loss: float  # over the first of them
    accuracy: float  # on the validation part
    correct: Tensor  # there, per example
    whole_s: float = 0.0  # batching, training and evaluation


@dataclass
class Run:
    """One model in training. Its random state is its own, so that runs in turn draw what each would draw alone."""

    name: str
    provider: str
    seed: int
    build: Callable[[], nn.Module]
    rate: float
    plateau: bool = False  # halve the rate when validation accuracy stalls for two epochs
    patience: int = 0  # epochs without a better validation accuracy after which it ends; 0: none do
    keep_best: bool = False  # the weights of the best epoch, for the test
    epochs: list[Epoch] = field(default_factory=list)
    best: int = 0  # number of the epoch with the best validation accuracy
    tested: Tensor | None = None  # per test example, by the weights of the best epoch
    processes: int = field(default_factory=parallel.size)
    device: str = "cpu"

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)
        self.model = self.build().to(self.device)
        if parallel.rank():  # dropout of its own for each process's rows
            torch.manual_seed(self.seed + 1_000_003 * parallel.rank())
        self._random, self._on_device = torch.get_rng_state(), self._device_random()
        self._trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        # one pass over a large table instead of a dozen
        self._adam = torch.optim.Adam(self._trained, lr=self.rate, fused=True)
        self._schedule = (
            torch.optim.lr_scheduler.ReduceLROnPlateau(self._adam, mode="max", factor=0.5, patience=2)
            if self.plateau
            else None
        )
        self._best_weights: dict[str, Tensor] | None = None
        self._called = self.model if self.processes == 1 else DistributedDataParallel(self.model)

    def _device_random(self) -> Tensor | None:
        return torch.cuda.get_rng_state() if self.device == "cuda" else None

    def _wait(self) -> None:
        """For what a GPU has been given."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def _there(self, example: Example) -> Example:
        """On the device, but for lengths, which torch's packing wants on the host."""
        arguments, labels = example
        moved = (t if t is None or t.dim() == 1 else t.to(self.device) for t in arguments)
        return tuple(moved), labels.to(self.device)

    @property
    def finished(self) -> bool:
        """Whether it ended before its epochs were over: nothing left to learn, or no longer learning."""
        if not self.epochs:
            return False
        stale = bool(self.patience) and self.epochs[-1].number - self.best >= self.patience
        return stale or (len(self.epochs) >= LEAST_EPOCHS and self.epochs[-1].accuracy >= STOP_AT)

    def step(self, example: Example) -> Tensor:
        self._adam.zero_grad(set_to_none=True)
        loss = self._loss(*example)
        loss.backward()
        nn.utils.clip_grad_norm_(self._trained, CLIP)
        self._adam.step()
        return loss.detach()

    def _loss(self, arguments: parallel.Arguments, labels: Tensor) -> Tensor:
        if self.processes == 1:
            return F.cross_entropy(self.model(*arguments), labels)
        arguments, labels, weight = parallel.share(arguments, labels)
        return weight * F.cross_entropy(self._called(*arguments), labels, reduction="sum")

    def epoch(
        self, train: Sequence[Example], validation: Sequence[Example], tick: Callable[[], None], batching_s: float = 0.0
    ) -> Epoch:
        """One pass over `train`, timed, then the validation accuracy."""
        begun = time.perf_counter()
        torch.set_rng_state(self._random)
        if self._on_device is not None:
            torch.cuda.set_rng_state(self._on_device)
        self.model.train()
        losses, seconds = [], 0.0
        with no_collector():
            for example in map(self._there, train):
                start = time.perf_counter()
                losses.append(self.step(example))
                seconds += time.perf_counter() - start
                tick()
            start = time.perf_counter()
            self._wait()
            seconds += time.perf_counter() - start
        self._random, self._on_device = torch.get_rng_state(), self._device_random()
        correct = self.evaluate(validation)
        accuracy = correct.double().mean().item()
        if self._schedule:
            self._schedule.step(accuracy)
        found = torch.stack(losses)
        if self.processes > 1:
            found = parallel.mean(found)
        loss, early = (part.mean().item() for part in (found, found[:EARLY_STEPS]))
        whole_s = batching_s + time.perf_counter() - begun
        done = Epoch(len(self.epochs) + 1, seconds, len(train), loss, early, accuracy, correct, whole_s)
        self.epochs.append(done)
        if not self.best or accuracy > self.epochs[self.best - 1].accuracy:
            self.best, self.tested = done.number, None
            self._best_weights = copy.deepcopy(self.model.state_dict()) if self.keep_best else None
        return done

    @torch.no_grad()
    def evaluate(self, examples: Sequence[Example]) -> Tensor:
        self.model.eval()

        def right(example: Example) -> Tensor:
            arguments, labels = self._there(example)
            return (self.model(*arguments).argmax(-1) == labels).cpu()

        parts = list(examples)
        return torch.cat(parallel.spread(parts, right) if self.processes > 1 else [right(part) for part in parts])

    def test(self, examples: Sequence[Example]) -> None:
        """Tests the weights of the best epoch, unless that was done; training goes on from the last epoch's."""
        if self.tested is not None or self._best_weights is None:
            return
        last = copy.deepcopy(self.model.state_dict())
        self.model.load_state_dict(self._best_weights)
        self.tested = self.evaluate(examples)
        self.model.load_state_dict(last)

    def state(self, *, over: bool = False) -> dict[str, Any]:
        """All that a run has to be taken up from, in all processes; `over`: what came out alone, without weights."""
        history = {"epochs": [asdict(epoch) for epoch in self.epochs], "best": self.best, "tested": self.tested}
        if over:
            return history
        return history | {
            "model": self.model.state_dict(),
            "best_weights": self._best_weights,
            "adam": self._adam.state_dict(),
            "schedule": self._schedule.state_dict() if self._schedule else None,
            "random": parallel.gather(self._random) if self.processes > 1 else [self._random],
            "on_device": self._on_device,
        }

    def take_up(self, state: dict[str, Any]) -> None:
        """Goes back to a kept state."""
        self.epochs = [Epoch(**epoch) for epoch in state["epochs"]]
        self.best, self.tested = state["best"], state["tested"]
        if "model" not in state:
            return
        self.model.load_state_dict(state["model"])
        self._adam.load_state_dict(state["adam"])
        if self._schedule:
            self._schedule.load_state_dict(state["schedule"])
        self._best_weights = state["best_weights"]
        self._random, self._on_device = state["random"][parallel.rank()], state["on_device"]


def compete(
    runs: Sequence[Run],
    epoch_examples: Callable[[int], Sequence[Example]],
    validation: Sequence[Example],
    epochs: int,
    seconds: float,
    done: Callable[[Run, Epoch], None],
    tick: Callable[[str], None],
) -> int:
    """Trains all runs epoch by epoch on the same batches, in turn, the order turned round every time.

    Runs that were taken up go on from their last epoch. Another epoch begins while its half, judged by the last, fits
    into `seconds`; the first always does.

    Returns:
        Epochs done, or all of them where every run has ended early.
    """
    stop, last = time.monotonic() + seconds, 0.0
    for number in range(1, epochs + 1):
        start = time.monotonic()
        active = [run for run in runs if not run.finished and len(run.epochs) < number]
        if not active:
            continue
        if last and parallel.agree(start + last / 2 > stop):
            return number - 1
        examples = epoch_examples(number)
        batching_s = time.monotonic() - start
        for run in active if number % 2 else reversed(active):
            what = f"{run.name} ({run.provider}), epoch {number}"
            done(run, run.epoch(examples, validation, partial(tick, what), batching_s))
        last = time.monotonic() - start
    return epochs


def seconds_a_step(build: Callable[[], nn.Module], examples: Sequence[Example], device: str = "cpu") -> float:
    """A pilot: the median over a few steps of a throw-away model, warmed first; three where they are slow."""
    with torch.random.fork_rng(devices=[]):
        run = Run("", "", 0, build, rate=0.0, processes=1, device=device)
        for example in map(run._there, examples[:2]):
            run.step(example)
        run._wait()
        seconds = []
        for example in map(run._there, examples):
            start = time.perf_counter()
            run.step(example)
            run._wait()
            seconds.append(time.perf_counter() - start)
            if len(seconds) >= 3 and sum(seconds) > PILOT_S:
                break
    return statistics.median(seconds)
