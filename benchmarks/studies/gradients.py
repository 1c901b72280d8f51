"""How far gradients reach through time, in float64.

Question: does the gradient of a state with respect to one n steps earlier vanish as the spectral norm of W_hh to the
power n, and what do the gates and tanh' change? Hypothesis: the power is an upper bound for a tanh RNN, and is reached
only where W_hh stretches every direction alike and tanh' is near 1; elsewhere gradients fall faster. Gates hold them
up. Refuted by: a norm above the bound; a plain layer's norm near the power; gated norms that fall as a tanh RNN's.

The Jacobian of every step is taken exactly, by autograd, and their products are formed; the same product is first
compared with what backward of the fused layer gives. An LSTM's is that of h_T with respect to (h, c), since gradients
travel along c.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .. import bands, data, panels, plots
from ..cases import CELLS, CLASSES
from ..measure import on_threads
from ..models import RecurrentClassifier
from ..models import Table as Embeddings
from ..providers import NN, fused_module
from ..record import Row, measured, remark
from ..training import Example, Run
from .base import (
    CONFIRMED,
    COUNT_TOLERANCE,
    DEPENDS,
    REFUTED,
    UNDECIDED,
    Context,
    Figure,
    Finding,
    Section,
    Table,
    Text,
    Verdict,
    judge,
    remarks,
    select,
)

STUDY = "gradients"
H = 16
LAGS = (1, 2, 4, 6, 8, 12, 18, 25)
NORMS = (0.5, 0.95, 1.5, 0.8, 1.0)  # the quoted ones first: a budget cuts the end
SHAPES = ("orthogonal", "uniform")
"""W_hh: every singular value alike, or uniform numbers as torch draws them, each gate's block scaled to the norm."""
DRIVES = {"quiet": 1e-3, "loud": 1.0}
"""Standard deviation of the input: in a quiet layer tanh' is 1, a loud one is driven as by embeddings."""
SEEDS = {"quick": 2, "default": 10, "full": 40}
OWN, TRAINED = "as torch starts it", "trained"
SENTENCES = {"quick": 256, "default": 2000, "full": 8000}
EPOCHS = {"quick": 1, "default": 4, "full": 15}
EMBEDDED = 50
AGREES = 1e-9  # of the norm of a gradient: sums in another order over 25 steps of float64
ROUNDING = 1e-9  # by which a norm may pass the bound
QUOTED = {(0.95, 25): 0.28, (0.5, 25): 3e-8}
REACHED, FAR_FROM = 0.5, 0.1  # of the bound: reached from there on, far from it below
HOLDS_UP = 10.0  # a gated cell's norm over a tanh RNN's
PHRASE_LAG, LONG_LAG = 6, 25  # a phrase of seven words; the steps quoted
ALIVE = 0.01  # of a gradient that still counts


@dataclass(frozen=True)
class Setting:
    """One kind of layer; `norm` is None for the weights that torch starts a layer of width 128 with."""

    cell: str
    shape: str
    drive: str
    norm: float | None

    @property
    def name(self) -> str:
        weights = OWN if self.norm is None else f"{self.shape}, norm {self.norm:g}"
        return f"{self.cell}, W_hh {weights}, {self.drive} input"


def grid() -> list[Setting]:
    return [Setting("rnn", "uniform", "loud", None)] + [
        Setting(cell, shape, drive, norm) for norm in NORMS for shape in SHAPES for drive in DRIVES for cell in CELLS
    ]


def run(ctx: Context) -> None:
    with on_threads(1):  # thousands of tiny products, which more threads only slow down
        _run(ctx)


def _run(ctx: Context) -> None:
    for _ in ctx.todo(STUDY, {"bounds": None}):
        ctx.recorder.add(
            *(
                measured(STUDY, "bound", "", [norm**lag], f"norm {norm:g}", T=lag, provider="bound", mode=f"{norm:g}")
                for norm in NORMS
                for lag in LAGS
            )
        )
    refused = {cell: reason for cell in CELLS if (reason := disagrees(Setting(cell, "uniform", "loud", 1.0)))}
    ctx.recorder.add(*(remark(STUDY, "failed", reason, cell) for cell, reason in refused.items()))
    for cell, _ in ctx.todo(STUDY, {trained_name(cell): cell for cell in CELLS if cell not in refused}):
        _trained(ctx, cell)
    right = {setting.name: setting for setting in grid() if setting.cell not in refused}
    for setting, _ in ctx.todo(STUDY, right):
        ctx.progress.show(f"Jacobians: {setting.name}")
        mode = OWN if setting.norm is None else f"{setting.norm:g}"
        where: dict[str, Any] = {"cell": setting.cell, "H": _width(setting), "dtype": "fp64", "mode": mode}
        for lag, values in norms(walk(setting, SEEDS[ctx.effort])).items():
            ctx.recorder.add(measured(STUDY, "jacobian", "", values, setting.name, provider="nn", T=lag, **where))


def trained_name(cell: str) -> str:
    return f"{cell}, trained on the grammar"


def _trained(ctx: Context, cell: str) -> None:
    """A classifier of the text study, after its training, on sentences that it has not seen."""
    corpus = data.grammar_corpus(train=SENTENCES[ctx.effort])
    words = data.vocabulary(corpus.train)
    table = Embeddings(len(words) + 2, EMBEDDED, corpus.classes)
    run = Run(CLASSES[cell], NN.name, 0, functools.partial(RecurrentClassifier, table, NN.name, CLASSES[cell]), 1e-3)

    def examples(phrases: Sequence[data.Phrase], rng: random.Random | None) -> list[Example]:
        found = data.batches(phrases, words, 64 if rng else 256, rng)
        return [((batch.tokens, batch.lengths), batch.labels) for batch in found]

    validation = examples(corpus.validation, None)
    for epoch in range(EPOCHS[ctx.effort]):
        ctx.progress.show(f"training {run.name}, epoch {epoch + 1}")
        run.epoch(examples(corpus.train, random.Random(epoch)), validation, lambda: None)
    model = run.model.double().eval()
    long = [phrase for phrase in corpus.test if len(phrase.tokens) >= max(LAGS)][: SEEDS[ctx.effort]]
    x = torch.stack([model.embedding(_indices(phrase, words)).detach() for phrase in long])
    where: dict[str, Any] = {"cell": cell, "H": model.encoder.layer.hidden_size, "dtype": "fp64", "mode": TRAINED}
    done = run.epochs[-1]
    row = Row(STUDY, trained_name(cell), "accuracy", "", done.accuracy, n=len(done.correct), epoch=done.number, **where)
    ctx.recorder.add(row)
    for lag, values in norms(follow(cell, [model.encoder.layer] * len(x), x)).items():
        ctx.recorder.add(measured(STUDY, "jacobian", "", values, trained_name(cell), provider="nn", T=lag, **where))


def _indices(phrase: data.Phrase, words: dict[str, int]) -> Tensor:
    return torch.tensor([words.get(token, data.UNKNOWN) for token in phrase.tokens[: max(LAGS)]])


def _width(setting: Setting) -> int:
    return 128 if setting.norm is None else H


def layer(setting: Setting, seed: int) -> nn.RNNBase:
    """torch's layer in float64; biases are zero but where the weights are torch's own."""
    torch.manual_seed(seed)
    width = _width(setting)
    made: nn.RNNBase = getattr(nn, CLASSES[setting.cell])(width, width, dtype=torch.float64)
    if setting.norm is None:
        return made
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.startswith("bias"):
                parameter.zero_()
        for block in made.weight_hh_l0.split(width):
            if setting.shape == "orthogonal":
                nn.init.orthogonal_(block)
            block.mul_(setting.norm / torch.linalg.matrix_norm(block, 2))
    return made


@dataclass(frozen=True)
class Walk:
    """Layers of one kind, N of them, and what they did from a zero state."""

    layers: Sequence[nn.RNNBase]
    x: Tensor  # [N, T, I]
    jacobians: Tensor  # [N, T, S, S], of every step


def walk(setting: Setting, seeds: int) -> Walk:
    layers, drawn = [], []
    for seed in range(seeds):
        with torch.random.fork_rng(devices=[]):
            layers.append(layer(setting, seed))
            drawn.append(DRIVES[setting.drive] * torch.randn(max(LAGS), _width(setting), dtype=torch.float64))
    return follow(setting.cell, layers, torch.stack(drawn))


def follow(cell: str, layers: Sequence[nn.RNNBase], x: Tensor) -> Walk:
    """One layer a row of x [N, T, I]."""
    weights = [torch.stack(same).detach() for same in zip(*(own.parameters() for own in layers), strict=True)]
    step = torch.func.vmap(functools.partial(_step, cell))
    states = [torch.zeros(len(x), _state(cell, layers[0].hidden_size), dtype=torch.float64)]
    for t in range(x.shape[1]):
        states.append(step(states[-1], x[:, t], *weights))
    # the states of all steps are known by now: their Jacobians need not wait for one another
    over_steps = torch.func.vmap(torch.func.jacrev(functools.partial(_step, cell)), (0, 0, *[None] * 4))
    return Walk(layers, x, torch.func.vmap(over_steps)(torch.stack(states[:-1], dim=1), x, *weights))


def _state(cell: str, width: int) -> int:
    return width * (2 if cell == "lstm" else 1)


def _step(cell: str, state: Tensor, x: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> Tensor:
    """One step of a row, in plain ops since torch's cells take no vmap; the state of an LSTM is (h, c) end to end."""
    h = state[: w_hh.shape[1]]
    of_x, of_h = w_ih @ x + b_ih, w_hh @ h + b_hh
    if cell == "rnn":
        return torch.tanh(of_x + of_h)
    if cell == "gru":
        (r, z, n), (h_r, h_z, h_n) = of_x.chunk(3), of_h.chunk(3)
        z = torch.sigmoid(z + h_z)
        return (1 - z) * torch.tanh(n + torch.sigmoid(r + h_r) * h_n) + z * h
    i, f, g, o = (of_x + of_h).chunk(4)
    c = f.sigmoid() * state[w_hh.shape[1] :] + i.sigmoid() * g.tanh()
    return torch.cat([o.sigmoid() * c.tanh(), c])


def norms(walked: Walk) -> dict[int, list[float]]:
    """Spectral norm of dh_T / d(state n steps before) by n, of every layer."""
    jacobians, found = walked.jacobians, {}
    eye = torch.eye(jacobians.shape[-1], dtype=torch.float64)[: walked.layers[0].hidden_size]
    product = eye.expand(len(jacobians), -1, -1)
    for lag in range(1, max(LAGS) + 1):
        product = product @ jacobians[:, -lag]
        if lag in LAGS:
            found[lag] = torch.linalg.matrix_norm(product, 2).tolist()
    return found


def disagrees(setting: Setting) -> str | None:
    """Why backward of the fused layer gives another product of Jacobians over all steps, or None."""
    found = walk(setting, seeds=1)
    width = _width(setting)
    fused = getattr(fused_module(), CLASSES[setting.cell])(width, width, dtype=torch.float64)
    fused.load_state_dict(found.layers[0].state_dict())
    start = torch.zeros(_state(setting.cell, 1), 1, 1, width, dtype=torch.float64, requires_grad=True)
    y, _ = fused(found.x.transpose(0, 1), tuple(start) if setting.cell == "lstm" else start[0])
    upstream = torch.linspace(-1, 1, width, dtype=torch.float64)
    (got,) = torch.autograd.grad(y[-1, 0] @ upstream, start)
    product = functools.reduce(torch.matmul, found.jacobians[0].flip(0))[:width]
    expected = upstream @ product
    apart = ((got.flatten() - expected).norm() / expected.norm()).item()
    return None if apart <= AGREES else f"backward and the product of Jacobians differ by {apart:.1e}"


def verdicts(rows: Sequence[Row]) -> list[Verdict]:
    own = select(rows, study=STUDY, metric="jacobian")
    arithmetic = [
        Finding(
            CONFIRMED if abs(norm**lag / quoted - 1) <= COUNT_TOLERANCE else REFUTED,
            f"{norm:g}^{lag} = {norm**lag:.3g}",
            f"{norm:g}^{lag}, quoted {quoted:g}",
        )
        for (norm, lag), quoted in QUOTED.items()
    ]
    claim = "8. Gradients vanish as the norm of W_hh to the power T-1 (0.95^25 = 0.28, 0.5^25 = 3e-8)."
    power = [_bounded(own), _reached(own, "orthogonal", "quiet"), _reached(own, "uniform", "loud")]
    return [
        judge(claim, [*(arithmetic if own else []), *power]),
        judge(
            "8b. The short text explains why the RNN trains.",
            [
                _short_text(own, Setting("rnn", "uniform", "loud", None).name, "before training"),
                *([_short_text(own, trained_name("rnn"), "trained")] if select(own, case=trained_name("rnn")) else []),
            ],
        ),
        judge("8c. Gates carry gradients where a tanh RNN's vanish.", [_gated(own, cell) for cell in ("gru", "lstm")]),
    ]


def _bounded(rows: Sequence[Row]) -> Finding:
    """Of a tanh RNN: the norm's upper quartile against the power."""
    found = [row for row in select(rows, cell="rnn") if row.mode not in (OWN, TRAINED)]
    if not found:
        return Finding(UNDECIDED, "no norms of a tanh RNN")
    above = [row for row in found if row.p75 > float(row.mode) ** row.T * (1 + ROUNDING)]
    told = f"{len(found) - len(above)} of {len(found)} norms of a tanh RNN below the power"
    return Finding(REFUTED if above else CONFIRMED, told, "the power is an upper bound")


def _reached(rows: Sequence[Row], shape: str, drive: str) -> Finding:
    """Median norms of a tanh RNN after the quoted steps, as a share of the power: all reached, all far, or between."""
    label = f"{shape} W_hh and {drive} input"
    settings = [Setting("rnn", shape, drive, norm) for norm, _ in QUOTED]
    found = [row for setting in settings for row in select(rows, case=setting.name, T=LONG_LAG)]
    if len(found) < len(settings):
        return Finding(UNDECIDED, f"{label}: not measured")
    shares = [row.p50 / float(row.mode) ** row.T for row in found]
    verdict = CONFIRMED if min(shares) >= REACHED else REFUTED if max(shares) < FAR_FROM else DEPENDS
    told = " and ".join(f"{row.p50:.2g} at norm {row.mode}" for row in found)
    return Finding(verdict, f"{label}: {told} over {LONG_LAG} steps", f"the power is reached, {label}")


def _short_text(rows: Sequence[Row], case: str, when: str) -> Finding:
    """A tanh RNN: the first word's gradient counts in a phrase, and would not over a long text."""
    found = {row.T: row for row in select(rows, case=case)}
    if not {PHRASE_LAG, LONG_LAG} <= found.keys():
        return Finding(UNDECIDED, "not measured")
    short, long = found[PHRASE_LAG], found[LONG_LAG]
    told = f"norm over {PHRASE_LAG} steps {short.p50:.2g}, over {LONG_LAG} {long.p50:.2g}, {when}"
    if short.p25 < ALIVE <= short.p75 or long.p25 < ALIVE <= long.p75:
        return Finding(UNDECIDED, told, f"{when}, quartiles on both sides of {ALIVE:g}")
    return Finding(CONFIRMED if short.p50 >= ALIVE > long.p50 else REFUTED, told, f"{when}, counts from {ALIVE:g} on")


def _gated(rows: Sequence[Row], cell: str) -> Finding:
    """Median norms over the tanh RNN's after the quoted steps, norms below 1: all ten times, all less, or between."""
    ratios = []
    for norm in (norm for norm in NORMS if norm < 1):
        pair = [select(rows, case=Setting(name, "uniform", "loud", norm).name, T=LONG_LAG) for name in (cell, "rnn")]
        if all(pair):
            ratios.append(pair[0][0].p50 / pair[1][0].p50)
    if not ratios:
        return Finding(UNDECIDED, f"{CLASSES[cell]}: not measured")
    verdict = CONFIRMED if min(ratios) >= HOLDS_UP else REFUTED if max(ratios) < 1 else DEPENDS
    return Finding(verdict, f"{CLASSES[cell]}'s norm over the RNN's: at least {min(ratios):.2g} times", CLASSES[cell])


def section(rows: Sequence[Row]) -> Section:
    own = select(rows, study=STUDY)
    blocks: list = [
        Text(
            f"Exact Jacobians of every step by autograd, in float64, multiplied; H {H}, {max(LAGS)} steps from a zero "
            "state, seeds drawn anew for weights and input. First the same product was compared with backward of the "
            "fused layer. **Quiet** input leaves tanh' at 1, **loud** input is standard normal. **Orthogonal** W_hh "
            "stretches every direction alike; **uniform** W_hh has its largest singular value alone at the norm, and "
            "a smaller spectral radius, which decides over many steps. In a GRU and an LSTM the norm is that of each "
            "gate's block, and bounds nothing. **Trained** layers are those of the text study's classifiers, of width "
            f"128, on the built-in grammar, followed over held-out sentences{_accuracies(rows)}."
        )
    ]
    if select(own, metric="jacobian"):
        caption = (
            "How fast does the gradient fade with the steps between? Lines are medians over seeds; bands: "
            f"{bands.told(select(own, metric='jacobian'))}; grey the norm of W_hh to the power of the steps. "
            f"{_answer(own)}"
        )
        blocks += [Figure("gradients-lag", plots.drawn(_figure, own), caption), _table(own)]
    return Section(
        "Gradients: how far they reach through time",
        "Do gradients vanish as the norm of W_hh to the power of the steps?",
        [*blocks, *remarks(rows, STUDY)],
    )


def _accuracies(rows: Sequence[Row]) -> str:
    found = select(rows, study=STUDY, metric="accuracy")
    told = ", ".join(f"{CLASSES[row.cell]} {100 * row.p50:.0f} %" for row in found)
    return f" (accuracy reached after {found[0].epoch} epochs: {told})" if found else ""


def _answer(rows: Sequence[Row]) -> str:
    return "; ".join(
        finding.measured
        for finding in (_reached(rows, "orthogonal", "quiet"), _reached(rows, "uniform", "loud"))
        if finding.verdict != UNDECIDED
    )


def _figure(figure: Any, rows: Sequence[Row]) -> None:
    shown = [norm for norm in (0.5, 0.95, 1.5) if select(rows, metric="jacobian", mode=f"{norm:g}")]
    found = []
    for shape, drive in (("orthogonal", "quiet"), ("uniform", "loud")):
        for norm in shown:
            bound = [(row.T, row) for row in select(rows, metric="bound", mode=f"{norm:g}")]
            lines = [panels.line("bound", bound, plots.COLOURS["floor"], "--", "")]
            for index, cell in enumerate(CELLS):
                own = select(rows, metric="jacobian", case=Setting(cell, shape, drive, norm).name)
                lines.append(panels.line(CLASSES[cell], [(row.T, row) for row in own], panels.PALETTE[index]))
            title = f"norm {norm:g}, {shape}, {drive}"
            found.append(panels.Panel(title, "steps between", "norm of the gradient", lines, x_base=0, y_base=10))
    panels.draw(figure, found)


def _table(rows: Sequence[Row]) -> Table:
    lines = []
    for name in dict.fromkeys(row.case for row in select(rows, metric="jacobian")):
        by_lag = {row.T: row for row in select(rows, metric="jacobian", case=name)}
        mode = next(iter(by_lag.values())).mode
        power = "-" if mode in (OWN, TRAINED) else f"{float(mode) ** LONG_LAG:.2g}"
        lines.append([name, *(f"{by_lag[lag].p50:.2g}" if lag in by_lag else "-" for lag in LAGS), power])
    header = ["layer", *(f"{lag} steps" for lag in LAGS), f"norm^{LONG_LAG}"]
    return Table(header, lines, "Median norm of the gradient through so many steps.")
