"""Recurrent and convolutional models trained side by side.

Question: which is faster an epoch, and which ends more accurate, the recurrent or the convolutional model, and what
do fused layers change?
Hypothesis: that of the claims in `claims.py`. Refuted by: the thresholds there, fixed before anything was measured.

Data: `--data` (movie-review phrases), or by default a small grammar in which word order decides.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch

from .. import data
from ..models import RECURRENT, TEXT_MODELS, Table
from ..providers import FUSED, NN, fused_module
from ..record import Row, remark
from ..training import Example, Run
from .base import Context
from .claims import verdicts
from .contest import Job, Plan, Task, arithmetic, train
from .text_report import section

__all__ = ["run", "section", "verdicts"]
STUDY = "text"
CONV = "conv"
WIDTH = 50  # of a random embedding table


PLANS = {
    "grammar": Plan(64, 1e-3, {"quick": 1, "default": 10, "full": 15}, 8000, all_seeds=False),
    "phrases": Plan(64, 1e-3, {"quick": 1, "default": 5, "full": 10}, 6400, all_seeds=True),
}
TEST_PHRASES = {"quick": 500, "default": 4000, "full": 1 << 30}


def run(ctx: Context) -> None:
    try:
        fused_module()
        fused = True
    except ImportError as error:
        ctx.recorder.add(remark(STUDY, "failed", str(error), "all models", provider=FUSED.name))
        fused = False
    _text(ctx, data.phrase_corpus(ctx.data) if ctx.data else data.grammar_corpus(), fused)


def _text(ctx: Context, corpus: data.Corpus, fused: bool) -> None:
    words = data.vocabulary(corpus.train)
    table = _table(ctx, corpus, words)
    for note in corpus.notes:
        ctx.note(STUDY, corpus.name, note)
    test_phrases = data.subsample(corpus.test, TEST_PHRASES[ctx.effort], seed=0)
    held_out = data.batches(test_phrases, words, 256, None)
    jobs = [job for model in TEXT_MODELS for job in _text_jobs(model, table, fused)]
    mean = sum(max(1, len(phrase.tokens)) for phrase in corpus.train) / len(corpus.train)
    for model in TEXT_MODELS:
        arithmetic(ctx, STUDY, f"{corpus.name}/{model}", TEXT_MODELS[model](table, NN.name), round(mean), table.width)

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
    task = Task(STUDY, corpus.name, PLANS[corpus.name], jobs, pilot, len(corpus.train), training, test)
    if corpus.name == "grammar":
        gaps = torch.cat([batch.gaps for batch in held_out])
        task = replace(task, finished=lambda run: _record_gaps(ctx, corpus.name, run, gaps))
    train(ctx, task, ctx.budget)


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
