"""What is asked of fused layers beyond torch's: tasks, each with whom it is measured against and the ratio to keep.

Every task is a call that returns what it computes, so that a wrong one is refused before it is timed. The first of a
demand's tasks is torch's own, layer or ops: the measure of the others' errors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from .cases import Case
from .providers import FUSED, FUSED_RECOMPUTE, Inputs, fused_module, inputs, twin
from .ways import CELLS as STEPS

Task = Callable[[], Mapping[str, Tensor]]
Tasks = dict[str, Task]


@dataclass(frozen=True)
class Want:
    """One task's time over another's shall be at most, or at least, so much."""

    above: str
    below: str
    at_most: float = 0
    at_least: float = 0

    @property
    def unit(self) -> str:
        return f"{self.above}/{self.below}"

    def __str__(self) -> str:
        bound = f"at most {self.at_most:g}" if self.at_most else f"at least {self.at_least:g}"
        return f"{self.above} / {self.below} {bound}"

    def met(self, ratio: float) -> bool:
        return ratio <= self.at_most if self.at_most else ratio >= self.at_least


@dataclass(frozen=True)
class Demand:
    """What several tasks do, the tasks of a case, of torch's layer and inputs, and what is wanted of their times."""

    name: str
    build: Callable[[Case, nn.RNNBase, Inputs], Tasks]
    cases: Sequence[Case]
    wants: tuple[Want, ...]


def penalty(case: Case, source: nn.RNNBase, data: Inputs) -> Tasks:
    """A step of a gradient penalty: forward, the input's gradient with create_graph, and backward of its norm."""
    layers = {"nn": source, "fusedrnn": FUSED.build(case, source)}

    def task(layer: nn.Module) -> dict[str, Tensor]:
        x = data.x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(layer(x)[0].sum(), x, create_graph=True)
        loss = (slope.transpose(0, 1).flatten(1).norm(dim=1) - 1).square().sum()
        names, weights = zip(*layer.named_parameters(), strict=True)
        return dict(zip(names, torch.autograd.grad(loss, weights, materialize_grads=True), strict=True))

    return {name: lambda layer=layer: task(layer) for name, layer in layers.items()}


def per_row(case: Case, source: nn.RNNBase, data: Inputs) -> Tasks:
    """The weights' gradient of each row's own loss: by vmap(grad), by a loop over rows, by a loop over cells.

    There are two loops over cells. In "cells-by-step" the gradients of a step's gates meet the step's inputs as soon as
    they are there, in a product added to those of the other steps, as in Opacus (`create_or_accumulate_grad_sample`
    for its `RNNLinear`) but without its modules and their hooks. In "cells", the harder rival, they are kept, and all
    steps of a row meet in one product.
    """
    x, ours = data.x, FUSED.build(case, source)
    weights = {name: p.detach() for name, p in source.named_parameters()}

    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(ours, weights, (x,))[0].square().sum()

    mapped = vmap(grad(loss), (None, 1))

    def rows(layer: nn.Module) -> dict[str, Tensor]:
        found: list[tuple[Tensor, ...]] = []
        for b in range(x.shape[1]):
            total = layer(x[:, b : b + 1])[0].square().sum()
            found.append(torch.autograd.grad(total, list(layer.parameters())))
        return {name: torch.stack(parts) for name, parts in zip(weights, zip(*found, strict=True), strict=True)}

    def cells(by_step: bool) -> dict[str, Tensor]:
        step, (w_ih, w_hh, b_ih, b_hh) = STEPS[source.mode], source.parameters()
        state: tuple[Tensor, ...] = (x.new_zeros(x.shape[1], case.H),) * (2 if source.mode == "LSTM" else 1)
        gates: list[Tensor] = []
        products, seen, outputs = [], [], []
        for row in x:
            seen.append(state[0])
            gates.append(F.linear(row, w_ih, b_ih))
            products.append(F.linear(state[0], w_hh, b_hh))
            state = step(gates[-1], products[-1], state)
            outputs.append(state[0])
        total = torch.stack(outputs).square().sum()
        if by_step:
            sums = [x.new_zeros(x.shape[1], *w.shape) for w in (w_ih, w_hh, b_ih, b_hh)]
            for made, sources, k in ((gates, x, 0), (products, seen, 1)):
                for t, source_of_t in zip(made, sources, strict=True):
                    t.register_hook(partial(_meet, source_of_t.detach(), sums[k], sums[k + 2]))
            torch.autograd.grad(total, [*gates, *products])
            return dict(zip(weights, sums, strict=True))
        slopes = torch.autograd.grad(total, [*gates, *products])
        of_x, of_h = torch.stack(slopes[: case.T], 1), torch.stack(slopes[case.T :], 1)  # [B,T,G*H]
        told = torch.stack(seen, 1).detach()
        parts = of_x.mT @ x.transpose(0, 1), of_h.mT @ told, of_x.sum(1), of_h.sum(1)
        return dict(zip(weights, parts, strict=True))

    return {
        "nn-rows": lambda: rows(source),
        "fusedrnn-rows": lambda: rows(ours),
        "vmap": lambda: mapped(weights, x),
        "cells-by-step": lambda: cells(True),
        "cells": lambda: cells(False),
    }


def _meet(inputs: Tensor, of_weight: Tensor, of_bias: Tensor, slope: Tensor) -> None:
    """Adds a step's share to the gradients of each row, [B,G*H,I] and [B,G*H]."""
    of_weight += torch.einsum("bg,bi->bgi", slope, inputs)
    of_bias += slope


def rebuilt(case: Case, source: nn.RNNBase, data: Inputs) -> Tasks:
    """A training step that keeps the gates, and one that rebuilds them."""

    def task(layer: nn.Module) -> dict[str, Tensor]:
        x = data.x.detach().requires_grad_()
        y, _ = layer(x)
        names, weights = zip(*layer.named_parameters(), strict=True)
        return dict(zip(("x", *names), torch.autograd.grad(y, [x, *weights], data.gy), strict=True))

    layers = {"nn": source, "gates": FUSED.build(case, source), "recompute": FUSED_RECOMPUTE.build(case, source)}
    return {name: lambda layer=layer: task(layer) for name, layer in layers.items()}


def stream(case: Case, source: nn.RNNBase, data: Inputs) -> Tasks:
    """T calls of one step each, the state carried on: torch's layer, ours, and ours frozen."""
    ours, frozen = FUSED.build(case, source).eval(), fused_module().frozen

    def task(layer: nn.Module) -> dict[str, Tensor]:
        outputs, state = [], None
        with torch.inference_mode():
            for row in data.x.split(1):
                y, state = layer(row, state)
                outputs.append(y)
        return {"y": torch.cat(outputs)}

    def kept() -> dict[str, Tensor]:
        with frozen(ours):
            return task(ours)

    return {"nn": lambda: task(source), "fusedrnn": lambda: task(ours), "frozen": kept}


def normed(case: Case, source: nn.RNNBase, data: Inputs) -> Tasks:
    """A training step with layer normalisation: a loop of PyTorch's ops, which is what there is without, and ours.

    From states that are not zero: a c near 0 has a variance near 0, and what is divided by that is anybody's rounding.
    """
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(2, 1, case.B, case.H, generator=generator).to(data.x.dtype)
    hx = tuple(states) if source.mode == "LSTM" else states[0]

    def task(backend: str) -> Task:
        name = type(source).__name__
        layer = getattr(fused_module(), name)(case.I, case.H, layer_norm=True, backend=backend).to(data.x.dtype)
        layer.load_state_dict(source.state_dict(), strict=False)

        def step() -> dict[str, Tensor]:
            x = data.x.detach().requires_grad_()
            names, weights = zip(*layer.named_parameters(), strict=True)
            return dict(zip(("x", *names), torch.autograd.grad(layer(x, hx)[0], [x, *weights], data.gy), strict=True))

        return step

    return {"loop": task("reference"), "fusedrnn": task("cpu")}


def _grid(cells: Sequence[str], *shapes: tuple[int, int, int, int]) -> list[Case]:
    return [Case(cell, *shape) for shape in shapes for cell in cells]


_CELLS = ("gru", "lstm", "rnn")
_SMALL = (32, 16, 32, 64), (64, 16, 64, 128), (100, 32, 128, 256)

DEMANDS = (
    Demand("gradient penalty", penalty, _grid(_CELLS, *_SMALL), (Want("fusedrnn", "nn", at_most=2),)),
    Demand(
        "gradient of each row",
        per_row,
        _grid(("gru", "lstm"), (32, 16, 32, 64), (64, 32, 64, 128), (100, 64, 64, 128)),
        (
            Want("nn-rows", "vmap", at_least=3),
            Want("fusedrnn-rows", "vmap", at_least=3),
            Want("cells-by-step", "vmap", at_least=3),
            Want("cells", "vmap", at_least=3),
        ),
    ),
    Demand(
        "gates rebuilt",
        rebuilt,
        _grid(("gru", "lstm"), (100, 64, 128, 256), (512, 16, 128, 128), (1024, 16, 128, 128)),
        (Want("recompute", "gates", at_most=1.2),),
    ),
    Demand("layer normalisation", normed, _grid(_CELLS, *_SMALL), (Want("loop", "fusedrnn", at_least=3),)),
    Demand(
        "one step a call",
        stream,
        _grid(_CELLS, (64, 1, 64, 128), (64, 1, 128, 256), (64, 8, 256, 512)),
        (Want("nn", "frozen", at_least=1), Want("fusedrnn", "frozen", at_least=1)),
    ),
)


def tasks(demand: Demand, case: Case, dtype: torch.dtype | None = None) -> Tasks:
    """Of the case, or of its same numbers in float64."""
    source, data = twin(case), inputs(case)
    if dtype is torch.float64:
        return demand.build(replace(case, dtype="fp64"), source.double(), data.to(dtype))
    return demand.build(case, source, data)
