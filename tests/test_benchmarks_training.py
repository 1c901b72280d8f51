"""Training of the studies: taken up it is the same bit for bit, in two processes the same as in one."""

from __future__ import annotations

import io
import os
import random
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import data, models, parallel, training
from benchmarks.progress import Progress
from benchmarks.record import Recorder, RecordError, Row, read_rows
from benchmarks.resume import Saved
from benchmarks.studies.base import Budget, Context
from benchmarks.studies.contest import Job, Plan, Task, train

ROOT = Path(__file__).parents[1]
TABLE = models.Table(60, 8, 2)
PHRASES = data.grammar(96, 0)
WORDS = data.vocabulary(PHRASES)
PLAN = Plan(8, 3e-3, {"full": 5}, 0, all_seeds=False, plateau=True, patience=3, seeds=2, whole=True)


def _examples(phrases, rng=None):
    return [((b.tokens, b.lengths), b.labels) for b in data.batches(phrases, WORDS, 8, rng)]


class _Stops(Progress):
    """Interrupts in the middle of an epoch."""

    def __init__(self, where: str) -> None:
        super().__init__(1.0, stream=io.StringIO())
        self._where, self._seen = where, 0

    def show(self, what: str) -> None:
        self._seen += self._where in what
        if self._seen == 4:
            raise KeyboardInterrupt


def _task(ends: dict[tuple[str, int], training.Run]) -> Task:
    jobs = [
        Job("RNN", "fusedrnn", partial(models.RecurrentClassifier, TABLE, "fusedrnn")),
        Job("TextCNN", "conv", partial(models.TextCNN, TABLE, "nn")),
    ]
    draw = lambda count: lambda seed, epoch: _examples(PHRASES[:count], random.Random(1000 * seed + epoch))  # noqa: E731
    return Task(
        "text",
        "grammar",
        PLAN,
        jobs,
        _examples(PHRASES[:16]),
        len(PHRASES),
        draw,
        _examples(data.grammar(40, 1)),
        lambda run: ends.__setitem__((run.name, run.seed), run),
        _examples(data.grammar(40, 2)),
    )


def _train(folder: Path, stop: str = "never", seconds: float = 1e6, arguments: str = "", overwrite: bool = False):
    """Rows and runs; the rows of what an interruption left are those of the call that was interrupted."""
    ends: dict[tuple[str, int], training.Run] = {}
    saved = Saved(folder, {"data": arguments}, overwrite=overwrite)
    with Recorder(folder / "rows.csv") as recorder:
        try:
            ctx = Context(recorder, _Stops(stop), Budget(seconds), "full", saved=saved)
            train(ctx, _task(ends), ctx.budget)
        except KeyboardInterrupt:
            pass
    return recorder.rows, ends


def _outcome(rows: list[Row]) -> list[tuple]:
    return sorted(
        (row.case, row.metric, row.seed, row.epoch, row.note, row.p50)
        for row in rows
        if not row.metric.startswith("epoch_time")
    )


@pytest.mark.slow
def test_interrupted_and_taken_up_is_the_same_bit_for_bit(tmp_path, one_thread):
    rows, ends = _train(tmp_path / "whole")
    pieces = [_train(tmp_path / "cut", f"TextCNN (conv), epoch {epoch}") for epoch in (1, 3, 4)]
    assert all(_outcome(cut) != _outcome(rows) for cut, _ in pieces), "nothing was interrupted"
    kept = sorted(path.name for path in (tmp_path / "cut" / "training").glob("*.pt"))
    assert kept == ["text-grammar-RNN-fusedrnn-0.pt", "text-grammar-TextCNN-conv-0.pt"]
    taken_up, again = _train(tmp_path / "cut")
    assert _outcome(taken_up) == _outcome(rows)
    assert ends.keys() == again.keys() == {(name, seed) for name in ("RNN", "TextCNN") for seed in (0, 1)}
    for key, run in ends.items():
        for name, value in run.model.state_dict().items():
            assert torch.equal(value, again[key].model.state_dict()[name]), (key, name)
        assert torch.equal(run.tested, again[key].tested)


@pytest.mark.slow
def test_a_budget_ends_a_piece_and_the_next_goes_on(tmp_path, one_thread):
    whole, _ = _train(tmp_path / "whole")
    first, _ = _train(tmp_path / "pieces", seconds=1e-3)
    assert max(row.epoch for row in first if row.metric == "accuracy") == 1
    assert [row.note for row in first if row.metric == "skipped"] == [
        "seed 0: epochs after 1 of 5, the budget was spent; the same command goes on",
        "seed 1 and later: the budget holds 1 of 2 seeds; the same command goes on",
    ]
    for _ in range(20):
        rows, _ = _train(tmp_path / "pieces", seconds=1e-3)
        if not [row for row in rows if row.metric == "skipped" and "seed 0:" in row.note]:
            break
    rows, _ = _train(tmp_path / "pieces")
    assert _outcome(rows) == _outcome(whole)


@pytest.mark.slow
def test_what_is_over_is_not_trained_again(tmp_path, one_thread, monkeypatch):
    rows, _ = _train(tmp_path)
    monkeypatch.setattr(training.Run, "epoch", None)
    again, _ = _train(tmp_path)
    assert _outcome(again) == _outcome(rows)
    assert {row.p50 for row in rows if row.metric == "epoch_time"} == {
        row.p50 for row in again if row.metric == "epoch_time"
    }
    sizes = [path.stat().st_size for path in (tmp_path / "training").glob("*.pt")]
    assert max(sizes) < 20_000, "weights of what is over"


def test_other_arguments_are_refused_and_overwritten_on_demand(tmp_path, one_thread):
    _train(tmp_path, "RNN (fusedrnn), epoch 2", arguments="this")
    with pytest.raises(
        RecordError, match=r"begun with data 'this', now 'that': give the same arguments to go on, --ov"
    ):
        _train(tmp_path, arguments="that")
    Saved(tmp_path, {"data": "this"}).examples("text/grammar", str(PLAN))
    with pytest.raises(RecordError, match="text/grammar was begun as Plan"):
        Saved(tmp_path, {"data": "this"}).examples("text/grammar", "another plan")
    _train(tmp_path, "RNN (fusedrnn), epoch 1", arguments="that", overwrite=True)
    assert not list((tmp_path / "training").glob("*.pt"))


def test_torn_states_are_named(tmp_path, one_thread):
    _train(tmp_path, "RNN (fusedrnn), epoch 2")
    (path,) = (tmp_path / "training").glob("*RNN*.pt")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RecordError, match=rf"{path.name} cannot be read .*--overwrite"):
        _train(tmp_path)
    (tmp_path / "training" / "arguments.json").write_text("{")
    with pytest.raises(RecordError, match=r"arguments.json cannot be read .*--overwrite"):
        _train(tmp_path)


def test_a_state_is_whole_or_absent(tmp_path, one_thread, monkeypatch):
    run = training.Run("RNN", "nn", 0, partial(models.RecurrentClassifier, TABLE, "nn"), 1e-3)
    saved = Saved(tmp_path, {})
    saved.keep("text/grammar", run)
    (path,) = (tmp_path / "training").iterdir()
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    run.step(_examples(PHRASES[:8])[0])
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RecordError, match="No space left on device; the state before is kept"):
        saved.keep("text/grammar", run)
    assert path.read_bytes() == before
    assert list((tmp_path / "training").iterdir()) == [path]


def _run(**options) -> training.Run:
    return training.Run("RNN", "nn", 0, partial(models.RecurrentClassifier, TABLE, "nn"), 1e-3, **options)


def _at(run: training.Run, accuracies: list[float], monkeypatch) -> list[int]:
    """Epochs with these validation accuracies; the best one's number after each."""
    given = iter(accuracies)
    monkeypatch.setattr(run, "evaluate", lambda _: torch.arange(1000) < 1000 * next(given))
    best = []
    for _ in accuracies:
        run.epoch(_examples(PHRASES[:16]), [], lambda: None)
        best.append(run.best)
    return best


def test_the_best_epoch_is_tested_and_training_goes_on_from_the_last(monkeypatch, one_thread):
    run = _run(keep_best=True)
    tested = []
    assert _at(run, [0.5, 0.7, 0.6, 0.7], monkeypatch) == [1, 2, 2, 2]
    last = {name: value.clone() for name, value in run.model.state_dict().items()}

    def evaluate(_):
        tested.append({name: value.clone() for name, value in run.model.state_dict().items()})
        return torch.ones(3)

    monkeypatch.setattr(run, "evaluate", evaluate)
    run.test([])
    run.test([])
    assert len(tested) == 1
    again = _run(keep_best=True)
    _at(again, [0.5, 0.7], monkeypatch)
    for name, value in again.model.state_dict().items():
        assert torch.equal(tested[0][name], value), name
        assert torch.equal(last[name], run.model.state_dict()[name])
    assert not torch.equal(tested[0]["head.weight"], last["head.weight"])


def test_a_run_ends_when_it_no_longer_gets_better(monkeypatch, one_thread):
    run = _run(plateau=True, patience=3)
    _at(run, [0.5, 0.7, 0.7], monkeypatch)
    assert not run.finished
    _at(run, [0.6], monkeypatch)
    assert not run.finished
    _at(run, [0.69], monkeypatch)
    assert run.finished
    assert run.epochs[-1].number - run.best == 3
    assert run._adam.param_groups[0]["lr"] == 5e-4, "the rate is halved after two epochs without a better accuracy"
    patient = _run()
    _at(patient, [0.5] * 9, monkeypatch)
    assert not patient.finished


def test_a_stall_is_taken_up_with_the_rest(monkeypatch, one_thread):
    run, again = _run(plateau=True, patience=4), _run(plateau=True, patience=4)
    _at(run, [0.7, 0.6, 0.6], monkeypatch)
    again.take_up(run.state())
    for either in (run, again):
        _at(either, [0.6], monkeypatch)
        assert either._adam.param_groups[0]["lr"] == 5e-4
        assert not either.finished
        _at(either, [0.6], monkeypatch)
        assert either.finished


def test_an_epochs_whole_time_holds_batching_and_evaluation(one_thread):
    run = _run()
    epoch = run.epoch(_examples(PHRASES[:16]), _examples(PHRASES[:16]), lambda: None, batching_s=100.0)
    assert 100 + epoch.seconds < epoch.whole_s < 200


WORKER = """
import sys
import torch
from benchmarks import models, parallel, training
sys.path.insert(0, "tests")
import test_benchmarks_training as here
with parallel.processes():
    run = here.float64_run("{model}")
    losses = [run.epoch(here.uneven(epoch), here.uneven(9), lambda: None) for epoch in range(2)]
    if not parallel.rank():
        torch.save({{"model": run.model.state_dict(), "state": run.state(), "size": parallel.size()}}, "{path}")
    else:
        run.state()
"""


def float64_run(name: str) -> training.Run:
    """No dropout, which draws other masks in every process."""
    build = {"BiRNN": models.BiRNN, "CNN2": models.CNN2}[name]
    provider = "fusedrnn" if name == "BiRNN" else "nn"
    return training.Run(name, provider, 0, lambda: build(TABLE, provider).double(), 3e-3, plateau=True, keep_best=True)


def uneven(seed: int) -> list[training.Example]:
    """Batches of odd size, the last of one row: then the second process has none."""
    return _examples(PHRASES[:45], random.Random(seed)) + _examples(PHRASES[50:51])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["BiRNN", "CNN2"])
def test_two_processes_train_as_one(tmp_path, name, one_thread):
    (tmp_path / "worker.py").write_text(WORKER.format(model=name, path=tmp_path / "two.pt"))
    _torchrun(str(tmp_path / "worker.py"))
    two = torch.load(tmp_path / "two.pt", weights_only=True)
    assert two["size"] == 2
    one = float64_run(name)
    epochs = [one.epoch(uneven(epoch), uneven(9), lambda: None) for epoch in range(2)]
    assert any(len(labels) % 2 for _, labels in uneven(0))
    for key, value in one.model.state_dict().items():
        torch.testing.assert_close(two["model"][key], value, rtol=1e-9, atol=1e-12, msg=key)
    start = float64_run(name).model.state_dict()
    assert not torch.allclose(two["model"]["head.weight"], start["head.weight"])
    for mine, theirs in zip(epochs, two["state"]["epochs"], strict=True):
        assert theirs["loss"] == pytest.approx(mine.loss, rel=1e-9)
        assert torch.equal(theirs["correct"], mine.correct)
    assert len(two["state"]["random"]) == 2


def _torchrun(*arguments: str, check: bool = True) -> subprocess.CompletedProcess:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)]
    done = subprocess.run([*launch, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert not check or done.returncode == 0, done.stderr[-4000:]
    return done


@pytest.mark.slow
def test_the_study_runs_under_torchrun(tmp_path):
    study = ["-m", "benchmarks", "study", "text", "--quick", "--budget", "2", "--out", str(tmp_path / "out")]
    _torchrun(*study)
    assert "## Text" in (tmp_path / "out" / "report.md").read_text()
    rows = read_rows(tmp_path / "out" / "rows.csv")
    _torchrun(*study)
    assert read_rows(tmp_path / "out" / "rows.csv") == rows, "what is finished is not trained again"
    assert "torchrun trains the study text alone" in _torchrun(*study[:3], "cells", check=False).stderr


def test_a_share_of_a_batch():
    arguments, labels, weight = parallel.share((torch.arange(12).view(3, 4), None), torch.arange(4))
    assert torch.equal(arguments[0], torch.arange(12).view(3, 4))
    assert arguments[1] is None
    assert torch.equal(labels, torch.arange(4))
    assert weight == 0.25


def test_the_second_process_without_a_row_takes_part_without_weight(monkeypatch):
    monkeypatch.setattr(parallel, "size", lambda: 2)
    monkeypatch.setattr(parallel, "rank", lambda: 1)
    arguments, labels, weight = parallel.share((torch.arange(9).view(3, 3), torch.tensor([3, 2, 1])), torch.arange(3))
    assert arguments[0].tolist() == [[1], [4], [7]]
    assert (arguments[1].tolist(), labels.tolist(), weight) == ([2], [1], 2 / 3)
    *_, labels, weight = parallel.share((torch.zeros(3, 1),), torch.tensor([5]))
    assert (labels.tolist(), weight) == ([5], 0.0)


def test_overwrite_and_states_belong_to_full_runs(tmp_path, monkeypatch, one_thread):
    options = command.parser().parse_args(["study", "text", "--out", str(tmp_path)])
    assert command._saved(options) is None
    options = command.parser().parse_args(["study", "text", "--full", "--out", str(tmp_path)])
    assert command._saved(options).folder == tmp_path / "training"


def test_on_a_gpu_all_but_lengths_is_moved_and_waited_for(monkeypatch):
    """On a stand-in: what would be moved, when is waited, and that dropout's state on the device is its own."""
    moved, calls, state = [], [], [torch.zeros(1)]
    monkeypatch.setattr(torch.Tensor, "to", lambda self, where, **_: moved.append((tuple(self.shape), where)) or self)
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, where: moved.append(("model", where)) or self)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: calls.append("wait"))
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: state[0].clone())
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda new: calls.append(("state", new.item())))
    run = training.Run("m", "conv", 0, lambda: torch.nn.Linear(3, 2), rate=0.1, processes=1, device="cuda")
    assert moved == [("model", "cuda")]
    state[0] += 7  # another run draws

    class Model(torch.nn.Linear):
        def forward(self, x, lengths):
            return super().forward(x)

    run.model.__class__ = Model
    example = (
        (torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.full((4,), 3)),
        torch.ones(4).long(),
    )
    run.epoch([example], [example], lambda: None)
    to_it = [what for what in moved[1:] if what[1] == "cuda"]
    assert to_it == [((4, 3), "cuda"), ((4,), "cuda")] * 2  # rows and labels, in training and evaluation
    assert calls == [("state", 0.0), "wait"]
    assert run.state()["on_device"].item() == 7
