"""The four reasons that are given for the RNN's speed in claim 1, one ablation each, by the time of training steps.

Short sentences, CNN2's second embedding, its 64 filters, and a recurrence that is one fused call. Random phrases over
a table of the movie reviews' size; no accuracy depends on it. The models take turns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch

from ..measure import alternate, ratios
from ..models import CNN2, RecurrentClassifier, Table
from ..providers import FUSED, NN, fused_module
from ..record import measured
from ..training import Example, Run
from .base import Context

CASE = "reasons"
WORDS, WIDTH, CLASSES, BATCH = 16_500, 50, 5, 64
SHORT, LONG = 7, 28  # words: the phrases' mean, and as many as one in fifty has
FEW_FILTERS = 4  # of each of four widths


Build = Callable[[], torch.nn.Module]


def run(ctx: Context, study: str, seconds: float, fused: bool) -> None:
    """Records the ratios that `text_claims` judges, as rows "time_ratio" of the case "reasons"."""
    ctx.progress.show("reasons for the RNN's speed")
    table = Table(WORDS, WIDTH, CLASSES, published=True)
    found = {
        f"{name} T{T}": _step(build, T, loop, ctx.device)
        for name, (build, lengths, loop) in _contenders(table, fused).items()
        for T in lengths
    }
    samples = alternate(found, seconds, max_rounds=200, clock=ctx.clock)

    def ratio(above: str, below: str, T: int) -> None:
        values = ratios(samples[f"{above} T{T}"], samples[f"{below} T{T}"])
        row = measured(study, "time_ratio", f"{above}/{below}", values, CASE, T=T, B=BATCH, mode=f"train T{T}")
        ctx.recorder.add(row)

    for T in (SHORT, LONG):
        for provider in (NN.name, FUSED.name) if fused else (NN.name,):
            ratio(f"RNN {provider}", "CNN2", T)
    ratio("CNN2", "CNN2-single", SHORT)
    ratio("CNN2", "CNN2-few", SHORT)
    if fused:
        for provider in (NN.name, FUSED.name):
            ratio("RNN loop", f"RNN {provider}", SHORT)


def _contenders(table: Table, fused: bool) -> Mapping[str, tuple[Build, tuple[int, ...], bool]]:
    """How each is built, at which lengths it is timed, and whether its recurrence is a loop of torch's operations."""
    both = (SHORT, LONG)
    found: dict[str, tuple[Build, tuple[int, ...], bool]] = {
        f"RNN {NN.name}": (partial(RecurrentClassifier, table, NN.name), both, False),
        "CNN2": (partial(CNN2, table, NN.name), both, False),
        "CNN2-single": (partial(CNN2, table, NN.name, channels=1), (SHORT,), False),
        "CNN2-few": (partial(CNN2, table, NN.name, filters=FEW_FILTERS), (SHORT,), False),
    }
    if fused:
        ours = partial(RecurrentClassifier, table, FUSED.name)
        found |= {f"RNN {FUSED.name}": (ours, both, False), "RNN loop": (ours, (SHORT,), True)}
    return found


def _step(build: Build, T: int, loop: bool, device: str) -> Callable[[], object]:
    run_ = Run("", "", 0, build, rate=1e-3, processes=1, device=device)
    generator = torch.Generator().manual_seed(T)
    tokens = torch.randint(2, WORDS, (T, BATCH), generator=generator)
    labels = torch.randint(CLASSES, (BATCH,), generator=generator)
    example: Example = (tokens.to(device), None), labels.to(device)

    def in_a_loop() -> None:
        with fused_module().use_backend("reference"):
            run_.step(example)

    return in_a_loop if loop else partial(run_.step, example)
