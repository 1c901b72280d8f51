"""Recurrent and convolutional models trained side by side.

Question: which is faster an epoch, and which ends more accurate, the recurrent or the convolutional model, and what
do fused layers change?
Hypothesis: that of the claims in `text_claims.py`. Refuted by: the thresholds there, fixed before anything was
measured.

Data: `--data` (movie-review phrases, or a folder of positive and negative texts), or by default a small grammar in
which word order decides. With `--full` on the phrases claim 1 is trained twice, on all of them: as it was ("published")
and as it should be ("sound"). Further models, and a sweep of learning rates, belong to `--full` too.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from .. import data
from ..corpora import corpus, leak, published
from ..models import TEXT_MODELS, Table
from ..providers import FUSED, NN, fused_module
from ..record import Row, measured, remark
from ..training import Example, Run
from ..zoo import ALL_MODELS, ALL_RECURRENT
from . import reasons
from .base import Context
from .contest import Job, Plan, Task, arithmetic, train
from .text_claims import verdicts
from .text_report import section

__all__ = ["run", "section", "verdicts"]
STUDY = "text"
DEVICES = ("cpu", "cuda")
CONV = "conv"
WIDTH = 50  # of a random embedding table
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
SWEPT = ("BiRNN", "TextCNN")
CLAIM1 = ("RNN", "CNN2")
COMPARED = ("grammar", "phrases", "polarity", "sound", "published")
"""What is trained until its accuracy says something."""
REASONS_S = {"quick": 1.0, "default": 5.0, "full": 30.0}

CHOSEN = Plan(64, 1e-3, {"quick": 1, "default": 5, "full": 10}, 6400, all_seeds=True, plateau=True, patience=5)
PLANS = {
    # accuracy stands still until a model finds the rule: that ends nothing, and lowers no rate
    "grammar": Plan(64, 1e-3, {"quick": 1, "default": 10, "full": 15}, 8000, all_seeds=False),
    "phrases": CHOSEN,
    "polarity": CHOSEN,
    "published": Plan(64, 1e-3, {"full": 50}, 0, all_seeds=False, seeds=1, whole=True),
    "shuffled": Plan(64, 1e-3, {"full": 1}, 0, all_seeds=False, seeds=1, whole=True),
    "sound": Plan(64, 1e-3, {"full": 30}, 0, all_seeds=False, plateau=True, patience=5, whole=True),
    "sweep": Plan(64, 1e-3, {"full": 5}, 6400, all_seeds=False, seeds=1),
}
EVALUATED = {"quick": 500, "default": 4000, "full": 1 << 30}
"""At most so many examples of the validation and of the test part."""


@dataclass(frozen=True)
class Part:
    """One contest: on which examples, in which order, of whom; `share` of what is left of the budget."""

    name: str
    corpus: data.Corpus
    models: Sequence[str]
    share: float = 1.0
    shuffled: bool = True
    rates: Sequence[float] = ()
    twins: bool = True  # recurrent models on torch's layers too


def run(ctx: Context) -> None:
    for _ in ctx.todo(STUDY, {"training": None}):
        _run(ctx)


def _run(ctx: Context) -> None:
    try:
        fused_module()
        fused = True
    except ImportError as error:
        ctx.recorder.add(remark(STUDY, "failed", str(error), "all models", provider=FUSED.name))
        fused = False
    found = corpus(ctx.data) if ctx.data else data.grammar_corpus()
    reasons.run(ctx, STUDY, REASONS_S[ctx.effort], fused)
    for part in parts(found, ctx.effort):
        _train(ctx, part, fused)
    if ctx.effort != "full":
        left_out = "; ".join(name for name in ALL_MODELS if name not in TEXT_MODELS)
        also = "claim 1 as it was and as it should be on all phrases, " if found.name == "phrases" else ""
        ctx.skip(STUDY, found.name, f"{also}{left_out}, and learning rates: `--full` has them")


def parts(found: data.Corpus, effort: str) -> list[Part]:
    """What is trained on a corpus, each part by its share of what those before have left of the budget."""
    if effort != "full":
        return [Part(found.name, found, tuple(TEXT_MODELS))]
    twice = []
    if found.name == "phrases":
        as_it_was = published([*found.train, *found.validation, *found.test])
        twice = [
            Part("published", as_it_was, CLAIM1, 1 / 3, shuffled=False),
            Part("shuffled", replace(as_it_was, name="shuffled"), CLAIM1, 1 / 8, twins=False),
            Part("sound", found, CLAIM1, 1 / 2),
        ]
    sweep = Part("sweep", found, SWEPT, 1.0, rates=RATES, twins=False)
    return [*twice, Part(found.name, found, tuple(ALL_MODELS), 4 / 5), sweep]


def _train(ctx: Context, part: Part, fused: bool) -> None:
    found, plan = part.corpus, PLANS[part.name]
    words = data.vocabulary(found.train)
    table = _table(ctx, part, words)
    _notes(ctx, part)
    jobs = [job for model in part.models for job in _jobs(part, model, table, fused)]
    test_phrases = data.subsample(found.test, EVALUATED[ctx.effort], seed=0)
    watched = data.subsample(found.validation, EVALUATED[ctx.effort], seed=0) or test_phrases
    test = data.batches(test_phrases, words, 256, None)
    if not part.rates:
        mean = sum(max(1, len(phrase.tokens)) for phrase in found.train) / len(found.train)
        for model in part.models:
            arithmetic(ctx, STUDY, f"{part.name}/{model}", ALL_MODELS[model](table, NN.name), round(mean), table.width)

    def examples(phrases: Sequence[data.Phrase], rng: random.Random) -> list[Example]:
        if not part.shuffled:
            return _examples(data.sorted_batches(phrases, words, plan.batch))
        return _examples(data.batches(phrases, words, plan.batch, rng))

    def training(count: int) -> Callable[[int, int], list[Example]]:
        chosen = found.train if count >= len(found.train) else data.subsample(found.train, count, seed=0)
        told = f"Trained on {len(chosen)} of {len(found.train)} examples"
        if found.validation:
            told += f", validated on {len(watched)} of {len(found.validation)}"
        ctx.note(STUDY, part.name, f"{told}, tested on {len(test_phrases)} of {len(found.test)}.")
        return lambda seed, epoch: examples(chosen, random.Random(1000 * seed + epoch))

    pilot = _examples(data.batches(data.subsample(found.train, 640, seed=1), words, plan.batch, random.Random(0)))
    validation = _examples(data.batches(watched, words, 256, None))
    task = Task(STUDY, part.name, plan, jobs, pilot, len(found.train), training, validation)
    if found.validation:
        task = replace(task, test=_examples(test))
    if part.name == "grammar":
        gaps = torch.cat([batch.gaps for batch in test])
        task = replace(task, finished=lambda run: _record_gaps(ctx, part.name, run, gaps))
    train(ctx, task, ctx.budget.share(part.share))


def _notes(ctx: Context, part: Part) -> None:
    for note in part.corpus.notes:
        ctx.note(STUDY, part.name, note)
    if part.name == "published":
        shared = leak(part.corpus)
        ctx.recorder.add(measured(STUDY, "shared_sentences", "", [shared], part.name))
        ctx.note(
            STUDY,
            part.name,
            f"As it was: phrases held out at random, of which {100 * shared:.1f} % have phrases of their sentence "
            "among those trained on; batches sorted by length, always in that order; one seed, its last epoch quoted; "
            "the RNN's pretrained table is trained, CNN2's is frozen, beside a random one that is trained.",
        )


def _table(ctx: Context, part: Part, words: Mapping[str, int]) -> Table:
    size, classes = len(words) + 2, part.corpus.classes
    as_published = part.name in ("published", "shuffled")
    if ctx.embeddings is None:
        ctx.note(
            STUDY,
            part.name,
            f"No `--embeddings`: the pretrained table is a random one of width {WIDTH}.",
        )
        return Table(size, WIDTH, classes, published=as_published)
    width, found = data.read_vectors(ctx.embeddings, words)
    pretrained = torch.randn(size, width, generator=torch.Generator().manual_seed(0)) * 0.1
    pretrained[data.PAD] = 0
    for word, values in found.items():
        pretrained[words[word]] = torch.tensor(values)
    ctx.note(
        STUDY,
        part.name,
        f"Word vectors of width {width} from the given file cover {len(found)} of {len(words)} words; the others "
        "start at random.",
    )
    return Table(size, width, classes, pretrained, as_published)


def _jobs(part: Part, model: str, table: Table, fused: bool) -> list[Job]:
    build = partial(ALL_MODELS[model], table)
    if part.rates:
        provider = (FUSED.name if fused else NN.name) if model in ALL_RECURRENT else CONV
        return [Job(at_rate(model, rate), provider, _on(build, provider), rate=rate) for rate in part.rates]
    if model not in ALL_RECURRENT:
        return [Job(model, CONV, _on(build, CONV))]
    jobs = [Job(model, FUSED.name, _on(build, FUSED.name))] if fused else []
    if part.twins or not fused:
        jobs.append(Job(model, NN.name, _on(build, NN.name), twin=fused))
    return jobs


def at_rate(model: str, rate: float) -> str:
    return f"{model}@{rate:g}"


def _on(build: Callable[[str], nn.Module], provider: str) -> Callable[[], nn.Module]:
    return partial(build, NN.name if provider == CONV else provider)


def _examples(batches: Sequence[data.Batch]) -> list[Example]:
    return [((batch.tokens, batch.lengths), batch.labels) for batch in batches]


def _record_gaps(ctx: Context, name: str, run: Run, gaps: torch.Tensor) -> None:
    """T is the number of words between the cue and what it governs."""
    if run.tested is None:
        return
    correct = run.tested.double()
    for gap in data.GAPS:
        hits = correct[gaps == gap]
        if not len(hits):
            continue
        where = {"provider": run.provider, "mode": f"gap {gap}", "seed": run.seed, "T": gap}
        ctx.recorder.add(
            Row(STUDY, f"{name}/{run.name}", "accuracy_at_gap", "", hits.mean().item(), n=len(hits), **where)
        )
