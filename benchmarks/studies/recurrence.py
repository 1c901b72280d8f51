"""The price of serial time: an RNN and a convolution of exactly the same products, over sequence length.

Question: how does time grow with T where the work stays the same, and from which T on is the convolution faster?
Hypothesis: a tanh RNN of width H and a causal convolution of window 2 hold the same weights and products a step; with
T times B fixed the convolution's time stays, while the RNN's grows with T, since T products wait for one another.
Refuted by: an RNN no slower than the convolution at the largest T.

Times stand beside this machine's own best product and copy, as achieved FLOP/s and bytes/s of least traffic. The
parallel degree is counted: outputs that wait for no other, of a step of the RNN, and of all of the convolution.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .. import bands, busy, floors, panels, plots
from ..cases import MODES, Case
from ..measure import alternate, compare, gates, ratios
from ..providers import FUSED, NN, Call, Inputs, Provider, inputs, twin
from ..record import Row, measured, remark
from .base import (
    CONFIRMED,
    DEPENDS,
    REFUTED,
    SPENT,
    UNDECIDED,
    Context,
    Figure,
    Finding,
    Section,
    Table,
    Text,
    Verdict,
    decisive,
    judge,
    remarks,
    select,
)
from .claims import FASTER_BY_A_FIFTH

STUDY = "recurrence"
DEVICES = ("cpu", "cuda")
CONV = "conv"
WINDOW = 2
RECURRENT = (FUSED, NN)
PHRASE = 8
"""Steps: the length of claim 1's phrases, about."""
GRID = {
    "quick": [(64, 16, 8), (64, 16, 64)],
    "default": [(4096, 128, T) for T in (PHRASE, 4096, 64, 512)],
    "full": [(rows, H, T) for rows, H in ((4096, 128), (16384, 256)) for T in (PHRASE, 4096, 64, 512, 16, 2, 1024)],
}
"""Rows T times B, width, steps; the most telling first: a budget cuts the end."""
GATE_FLOP = 1e9
ROUNDS = {"quick": 3, "default": 5, "full": 15}
FILLS, FAR_FROM = 0.5, 0.25  # of the best product's speed
TWICE = 2.0  # the RNN's time over the convolution's, from which it cannot what the other can


class Convolution(nn.Module):
    """tanh of a causal convolution of window 2 on [B, I, T]: each output from the step and the one before."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.conv = nn.Conv1d(case.I, case.H, WINDOW)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.conv(F.pad(x, (WINDOW - 1, 0))))


class Products(Convolution):
    """The same written as one product of both steps: what a convolution is compared with first."""

    def forward(self, x: Tensor) -> Tensor:
        before = F.pad(x, (1, 0))[..., :-1]
        both = torch.stack([before, x], dim=-1).permute(0, 2, 1, 3).flatten(2)  # [B, T, I * 2]
        return torch.tanh(F.linear(both, self.conv.weight.flatten(1), self.conv.bias)).transpose(1, 2)


def _convolve(layer: nn.Module, x: Tensor, _: Tensor | None) -> tuple[Tensor, tuple[Tensor, ...]]:
    return layer(x), ()


CONVOLUTION = Provider(CONV, lambda case, source: Convolution(case), _convolve)


def case_of(rows: int, H: int, T: int) -> Case:
    return Case("rnn", T, max(1, rows // T), H, H)


def run(ctx: Context) -> None:
    threads = torch.get_num_threads()
    grid = [case_of(*sizes) for sizes in GRID[ctx.effort]]
    for case, seconds in ctx.todo(STUDY, {case.name: case for case in grid}):
        _case(ctx, case, seconds, threads)


def convolution(case: Case) -> Convolution:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Convolution(case)


def sideways(data: Inputs) -> Inputs:
    """The same numbers as a convolution wants them: [B, I, T]."""
    return Inputs(data.x.permute(1, 2, 0).contiguous(), data.gy.permute(1, 2, 0).contiguous(), None)


def wrong_convolution(case: Case, device: str) -> str | None:
    """Why the convolution is not the product that defines it, in float64, or None. In float32 it is torch's own op."""
    layer, data = convolution(case).double(), sideways(inputs(case)).to(torch.float64)
    as_products = Products(case).double()
    as_products.load_state_dict(layer.state_dict())
    truth = Call(CONVOLUTION, as_products, data).results()
    found = Call(CONVOLUTION, layer.to(device), data.to(device)).results()
    return compare({name: value.cpu() for name, value in found.items()}, truth, truth)


def _case(ctx: Context, case: Case, seconds: float, threads: int) -> None:
    ctx.progress.show(f"gate {case.name}")
    start = time.perf_counter()
    reasons = gates([FUSED], case, GATE_FLOP, ctx.device) | {CONV: wrong_convolution(case, ctx.device)}
    for name, reason in reasons.items():
        if reason:
            ctx.recorder.add(remark(STUDY, "failed", reason, case, provider=name, threads=threads))
    data = inputs(case).to(ctx.device)
    calls = {p.name: Call(p, p.build(case, twin(case)).to(ctx.device), data) for p in RECURRENT}
    calls[CONV] = Call(CONVOLUTION, convolution(case).to(ctx.device), sideways(data))
    calls = {name: call for name, call in calls.items() if not reasons.get(name)}
    for name, call in calls.items():
        degree = case.B * case.H * (case.T if name == CONV else 1)
        row = {"provider": name, "mode": "infer", "threads": threads}
        ctx.recorder.add(
            measured(STUDY, "parallel_degree", "", [degree], case, **row),
            measured(STUDY, "operations", "", [operations(call)], case, **row),
        )
    left = max(0.0, seconds - (time.perf_counter() - start))
    for mode, share in zip(MODES, (0.25, 0.6), strict=True):
        ctx.progress.show(f"{mode} {case.name}")
        samples = alternate(
            {name: getattr(call, mode) for name, call in calls.items()},
            left * share,
            min_rounds=ROUNDS[ctx.effort],
            deadline=time.perf_counter() + 2 * left * share,
            clock=ctx.clock,
        )
        _record(ctx, case, mode, threads, samples)
        floors.add(STUDY, ctx.recorder, case, mode, threads, ctx.device)
    for mode in MODES if ctx.device != "cpu" else ():
        _busy(ctx, case, mode, threads, calls)


def _busy(ctx: Context, case: Case, mode: str, threads: int, calls: Mapping[str, Call]) -> None:
    """The part of a call's time in which the GPU runs a kernel."""
    for name, call in calls.items():
        where: dict[str, Any] = {"provider": name, "mode": mode, "threads": threads}
        share = busy.share(getattr(call, mode)) if ctx.budget.left > 0 else SPENT
        if isinstance(share, str):
            ctx.recorder.add(remark(STUDY, "skipped", f"GPU busy share: {share}", case, **where))
        else:
            ctx.recorder.add(measured(STUDY, "busy", "of the time", [share], case, **where))


def _record(ctx: Context, case: Case, mode: str, threads: int, samples: dict[str, list[float]]) -> None:
    for name, values in samples.items():
        where: dict[str, Any] = {"provider": name, "mode": mode, "threads": threads}
        speeds = (("flops", "FLOP/s", case.flop(mode)), ("traffic", "bytes/s", case.bytes(mode)))
        ctx.recorder.add(
            measured(STUDY, "time", "ms", [1e3 * s for s in values], case, **where),
            *(
                measured(STUDY, metric, unit, [work / s for s in values], case, **where)
                for metric, unit, work in speeds
            ),
        )
        if name != CONV and CONV in samples:
            paired = ratios(values, samples[CONV])
            ctx.recorder.add(measured(STUDY, "time_ratio", f"{name}/{CONV}", paired, case, **where))


class _Counter(TorchDispatchMode):
    """Counts the operations that torch dispatches."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def operations(call: Call) -> int:
    """Operations that torch dispatches in a forward pass."""
    with _Counter() as counter:
        call.infer()
    return counter.count


def verdicts(rows: Sequence[Row]) -> list[Verdict]:
    own = decisive(select(rows, study=STUDY))
    widths = list(dict.fromkeys(row.H for row in select(own, metric="time_ratio")))
    nothing = [Finding(UNDECIDED, "not measured")]
    claim = (
        "9. A recurrent layer offers parallelism B; a convolution B·K·(T-w+1): the conv path fills the machine where "
        "the recurrence cannot."
    )
    found = [*_degrees(own), *(part for H in widths for part in _filled(own, H))]
    short = "1c. On phrases of about 7 words an RNN's training step is 20 to 25 % shorter than a convolution's."
    return [
        judge(claim, found or nothing),
        judge(f"{short} (Here of equal products, T {PHRASE}.)", [p for H in widths for p in _short(own, H)] or nothing),
    ]


def _degrees(rows: Sequence[Row]) -> list[Finding]:
    """The counts, against the formulas quoted: over the padded T + w - 1 steps, T - w + 1 is T."""
    findings = []
    for provider, label, of in (
        (NN.name, "a recurrent step, quoted B", lambda row: row.B),
        (CONV, "the convolution, quoted B·K·(T-w+1)", lambda row: row.B * row.H * row.T),
    ):
        found = select(rows, metric="parallel_degree", provider=provider)
        if found:
            last = found[-1]
            told = f"outputs that wait for no other, {label}: {last.p50:,.0f} at B {last.B}, H {last.H}, T {last.T}"
            findings.append(Finding(CONFIRMED if all(row.p50 == of(row) for row in found) else REFUTED, told, label))
    return findings


def _ratio(rows: Sequence[Row], H: int, T: int, provider: str, mode: str) -> Row | None:
    unit = f"{provider}/{CONV}"
    return next(iter(select(rows, metric="time_ratio", H=H, T=T, unit=unit, mode=mode)), None)


def _filled(rows: Sequence[Row], H: int) -> list[Finding]:
    """At the largest T, in inference: how near the convolution is to the best product, and how far the RNN behind."""
    longest = max(row.T for row in select(rows, metric="time_ratio", H=H))
    best = next((row.p50 for row in select(rows, metric="ceiling", unit="FLOP/s")), None)
    findings = []
    for row in select(rows, metric="flops", H=H, T=longest, provider=CONV, mode="infer"):
        if best:
            share = row.p50 / best
            verdict = CONFIRMED if share >= FILLS else REFUTED if share < FAR_FROM else DEPENDS
            told = f"H {H}, T {longest}: convolution at {100 * share:.0f} % of the best product"
            findings.append(Finding(verdict, told, f"the convolution fills the machine, H {H}"))
    for provider in RECURRENT:
        if ratio := _ratio(rows, H, longest, provider.name, "infer"):
            verdict = CONFIRMED if ratio.p25 >= TWICE else REFUTED if ratio.p75 <= 1 else DEPENDS
            label = plots.LABELS[provider.name]
            told = f"{label} takes {_spread(ratio)} times as long; {_crossing(rows, H, provider.name, 'infer')}"
            findings.append(Finding(verdict, told, f"the recurrence cannot, H {H}, {label}"))
    return findings


def _crossing(rows: Sequence[Row], H: int, provider: str, mode: str) -> str:
    """From which T on the convolution is faster, by the lower quartile."""
    found = sorted(select(rows, metric="time_ratio", H=H, unit=f"{provider}/{CONV}", mode=mode), key=lambda row: row.T)
    slower = []
    for row in reversed(found):
        if row.p25 <= 1:
            break
        slower.append(row.T)
    return (
        f"the convolution is faster from T {slower[-1]} on" if slower else "the convolution is nowhere faster for sure"
    )


def _short(rows: Sequence[Row], H: int) -> list[Finding]:
    """A training step at a phrase's length: time at most 0.8 of the convolution's confirms, above 1 refutes."""
    findings = []
    for provider in RECURRENT:
        if ratio := _ratio(rows, H, PHRASE, provider.name, "train"):
            verdict = CONFIRMED if ratio.p75 <= FASTER_BY_A_FIFTH else REFUTED if ratio.p25 > 1 else DEPENDS
            label = plots.LABELS[provider.name]
            findings.append(Finding(verdict, f"H {H}, {label}: {_spread(ratio)} of the convolution's time", label))
    return findings


def _spread(row: Row) -> str:
    return f"{row.p50:.2f} ({row.p25:.2f}-{row.p75:.2f})"


def section(rows: Sequence[Row]) -> Section:
    own = select(rows, study=STUDY)
    blocks: list = [
        Text(
            "A tanh RNN with as many inputs as units, and a causal convolution of window 2 with its tanh: the same "
            "weights, the same products a step. T times B is fixed, so that every length costs as much; B falls "
            "as T grows. Each has its own layout, and both passed their gate against float64. **Operations** are what "
            "torch dispatches in one forward pass: a fused layer is one, torch's RNN some a step."
        )
    ]
    if select(own, metric="time"):
        blocks += [Figure("recurrence-length", plots.drawn(_figure, own), _caption(own)), _table(own)]
    return Section(
        "Recurrence: the price of serial time",
        "How does time grow with T where the work stays the same?",
        [*blocks, *remarks(rows, STUDY)],
    )


def _caption(rows: Sequence[Row]) -> str:
    answers = [
        f"H {H}, {plots.LABELS[provider.name]}, {mode}: {_crossing(rows, H, provider.name, mode)}"
        for H in dict.fromkeys(row.H for row in select(rows, metric="time_ratio"))
        for provider in RECURRENT
        for mode in MODES
        if select(rows, metric="time_ratio", H=H, unit=f"{provider.name}/{CONV}", mode=mode)
    ]
    told = "; ".join(answers) or "no convolution to compare with"
    notes = f"Bands: {bands.told(select(rows, metric=('time', 'flops')))}. {floors.told(rows)}".rstrip()
    return (
        "Where do a recurrence and a convolution of equal products cross? Left: a call; right: the products a second "
        f"that it comes to, the dashed line this machine's best. {notes} {told[0].upper()}{told[1:]}."
    )


def _figure(figure: Any, rows: Sequence[Row]) -> None:
    best = next((row.p50 for row in select(rows, metric="ceiling", unit="FLOP/s")), None)
    found = []
    for H in dict.fromkeys(row.H for row in select(rows, metric="time")):
        for mode in MODES:
            own = [row for row in rows if row.H == H and row.mode == mode]
            for metric, label, scale in (("time", "ms", 1.0), ("flops", "GFLOP/s", 1e-9)):
                lines = []
                for name in (FUSED.name, NN.name, CONV):
                    points = [(row.T, row) for row in select(own, metric=metric, provider=name)]
                    lines.append(panels.line(plots.LABELS[name], points, panels.colour(name), scale=scale))
                if metric == "flops" and best:
                    lengths = (row.T for row in select(own, metric=metric))
                    lines.append(panels.level("best product", lengths, best * scale))
                if floor := [(row.T, row) for row in select(own, metric=metric, provider=floors.FLOOR)]:
                    lines.append(panels.line(floors.FLOOR, floor, panels.colour(floors.FLOOR), ":", ""))
                title = f"{'inference' if mode == 'infer' else 'training step'}, H {H}"
                found.append(panels.Panel(title, "T", label, lines))
    panels.draw(figure, found, columns=2)


def _table(rows: Sequence[Row]) -> Table:
    best = {row.unit: row.p50 for row in select(rows, metric="ceiling")}
    by = {(row.case, row.provider, row.mode, row.metric): row for row in rows}
    lines, on_gpu = [], bool(select(rows, metric="busy"))
    timed = (row for row in select(rows, metric="time") if row.provider != floors.FLOOR)
    for case, name, mode in dict.fromkeys((row.case, row.provider, row.mode) for row in timed):
        step, flops, traffic = (by[case, name, mode, metric] for metric in ("time", "flops", "traffic"))
        ratio = by.get((case, name, mode, "time_ratio"))
        counts = [by.get((case, name, "infer", metric)) for metric in ("parallel_degree", "operations")]
        shares = [f"{100 * row.p50 / best[row.unit]:.1f}" if row.unit in best else "-" for row in (flops, traffic)]
        lines.append(
            [case, plots.LABELS[name], mode, f"{step.p50:.3f}", _spread(ratio) if ratio else "1", *shares]
            + [f"{row.p50:,.0f}" if row else "-" for row in counts]
            + ([f"{100 * shared.p50:.0f}" if (shared := by.get((case, name, mode, "busy"))) else "-"] if on_gpu else [])
        )
    header = ("case", "layers", "mode", "ms", "of conv's time", "% of best product", "% of best copy")
    last = ("parallel degree", "operations", *["GPU busy, %"] * on_gpu)
    return Table([*header, *last], lines, "Time, and what it comes to of this machine's best.")
