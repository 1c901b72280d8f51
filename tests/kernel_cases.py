"""The cases of the CPU kernel's check (kernel_check.py), random ones, and what is true of them by the reference."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fusedrnn import reference
from fusedrnn.spec import CELLS, LSTM, CellSpec

FULL = (torch.float64, torch.float32)
"""What is computed in itself both ways; bfloat16 has kernels of its own for inference only, on some processors."""

SIZES = (
    (9, 6, 5, 20),
    (7, 13, 3, 33),
    (5, 1, 4, 16),
    (4, 64, 9, 70),
    (2, 40, 5, 150),
    (1, 1, 1, 1),
    (2, 3, 16, 96),
    (1, 5, 5, 70),
    (2, 2, 40, 47),
    (1, 3, 33, 64),
    (1, 4, 5, 50),
)
"""T, B, I, H: odd tails of every vector width, row blocks of every height, one and several chunks of steps, weights
packed and read in place."""

THREADS = (1, 2, 3, 4)

SHARED = ((3, 5, 4, 50), (2, 3, 16, 96), (5, 64, 3, 70), (4, 35, 40, 47))
"""For several threads, which get rows, units and streams of their own; backward too has several chunks of steps."""


NORMED = ((9, 6, 5, 20), (2, 40, 5, 150), (2, 3, 16, 96), (1, 4, 5, 50), (5, 64, 3, 70))
"""Of these the sizes that layer normalisation, and states that resets go back to, are tried at."""

NAMES = ("y", "hn", "cs", "cn")
"""What a layer returns."""


class More(NamedTuple):
    """What norm_scan takes, its masks, and by the reference in each type its results and every gradient."""

    given: list[Tensor | None]
    masks: tuple[Tensor | None, Tensor | None]
    results: dict[torch.dtype, list[Tensor]]


@dataclass
class Case:
    """One random layer and everything that flows into it and back, in float64; its truths are worked out once."""

    cell: CellSpec
    x: Tensor
    states: list[Tensor]
    weights: list[Tensor]
    upstream: dict[str, Tensor]  # by output; "gates" for the largest cell, of which each takes its own
    lengths: Tensor | None
    reset: Tensor | None
    directions: int
    mask_key: Tensor | None = None
    rates: tuple[float, ...] = ()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, cell=CELLS[state["cell"].code])  # which is asked for by `is`

    @property
    def size(self) -> tuple[int, ...]:
        """T, B, I, H."""
        return (*self.x.shape, self.states[0].shape[-1])

    @functools.cached_property
    def layer_truth(self) -> tuple[dict[str, Tensor], list[Tensor]]:
        """By the reference: a layer's outputs, by name, and every gradient."""
        leaves = [t.clone().requires_grad_() for t in (self.x, *self.states, *self.weights)]
        x, (h0, *c0), weights = leaves[0], leaves[1 : 1 + len(self.states)], leaves[1 + len(self.states) :]
        given = (x, h0, c0[0] if c0 else None, weights, self.lengths, self.reset)
        out = reference.layer(*given, self.cell, self.directions)
        want = {name: t for name, t in zip(NAMES, out, strict=True) if t is not None}
        expected = torch.autograd.grad(list(want.values()), leaves, [self.upstream[name] for name in want])
        return {name: t.detach() for name, t in want.items()}, list(expected)

    @functools.cached_property
    def scan_truth(self) -> tuple[tuple[Tensor | None, ...], ...]:
        """What scan takes, its masks, what its adjoint takes, and by the reference the results of both."""
        spec, D, lstm = self.cell, self.directions, self.cell is LSTM
        each = [self.weights[4 * d : 4 * d + 4] for d in range(D)]
        gates_x = torch.stack([torch.nn.functional.linear(self.x, w[0], w[2]) for w in each], 2)
        w_hh, b_hh = torch.stack([w[1] for w in each]), torch.stack([w[3] for w in each])
        h0, c0 = self.states[0], self.states[1] if lstm else None
        lengths = None if self.lengths is None else self.lengths.expand(D, -1)
        reset = None if self.reset is None else self.reset.unsqueeze(-1).expand(*self.reset.shape, D)
        noise = (self.mask_key, self.rates)
        want = reference.scan(gates_x, h0, c0, w_hh, b_hh, lengths, reset, spec, D, *noise)
        y, _, gates, cs, _ = want
        dy, dcs = (self.upstream[name].unflatten(-1, (D, -1)) for name in ("y", "cs"))
        dgates = self.upstream["gates"][..., : gates.shape[-1]] if spec.kept else None
        upstream = (dy, self.upstream["hn"], dgates, dcs if lstm else None, self.upstream["cn"] if lstm else None)
        kept = (gates, y, h0, cs if lstm else None, c0, w_hh)
        expected = reference.scan_backward(*upstream, *kept, lengths, reset, spec, D, *noise)
        return (gates_x, h0, c0, w_hh, b_hh), (lengths, reset), (*upstream, *kept), (*want, *expected)

    @functools.cached_property
    def norm_truth(self) -> More:
        """Of layer normalisation and, where there are resets, states of their own that they go back to."""
        return self._more(True, self.reset is not None)

    @functools.cached_property
    def start_truth(self) -> More:
        """Of such states alone."""
        return self._more(False, True)

    def _more(self, normed: bool, starts: bool) -> More:
        inputs, masks, _, _ = self.scan_truth
        spec, D, (_, H) = self.cell, self.directions, self.weights[1].shape
        generator = torch.Generator().manual_seed(7)

        def normal(n: int, wanted: bool, mean: float = 0.0) -> Tensor | None:
            drawn = torch.randn(D, n, generator=generator, dtype=torch.float64)
            return mean + drawn / 4 if wanted else None

        lstm = spec is LSTM
        resets = [normal(H, starts), normal(H, starts and lstm)]
        gains = [normal(len(spec.gates) * H, normed, 1.0), *(normal(H, normed and lstm, mean) for mean in (1.0, 0.0))]
        given, results = [*inputs, *resets, *gains], {}
        for dtype in FULL:
            leaves = [None if t is None else t.detach().to(dtype).requires_grad_() for t in given]
            extra = ([t for t in some if t is not None] for some in (leaves[7:], leaves[5:7]))
            y, hn, _, cs, cn = reference.scan(*leaves[:5], *masks, spec, D, self.mask_key, self.rates, *extra)
            out = [y, hn, *((cs, cn) if lstm else ())]
            wanted = [t for t in leaves if t is not None]
            results[dtype] = [t.detach() for t in (*out, *torch.autograd.grad(out, wanted, self.reaching(dtype)))]
        return More(given, masks, results)

    def reaching(self, dtype: torch.dtype) -> list[Tensor]:
        """The gradients of the loop's y and hn, and of the LSTM's cs and cn."""
        of = self.upstream
        dy, dcs = (of[name].unflatten(-1, (self.directions, -1)) for name in ("y", "cs"))
        return [t.to(dtype) for t in (dy, of["hn"], *((dcs, of["cn"]) if self.cell is LSTM else ()))]

    @functools.cached_property
    def noises(self) -> dict[str, Case]:
        """The case with each kind of noise."""
        return {noise: noisy(self, noise) for noise in NOISES}

    @functools.cached_property
    def bfloat_truth(self) -> tuple[tuple[Tensor | None, ...], ...]:
        """Of the layer rounded to bfloat16: results of layer, what scan takes, its masks, and its results."""
        x, *rest = (t.bfloat16() for t in (self.x, *self.states, *self.weights))
        h0, c0, weights = rest[0], rest[1] if self.cell is LSTM else None, rest[len(self.states) :]
        D = self.directions
        wide = [None if t is None else t.double() for t in (x, h0, c0)]
        layer = reference.layer(*wide, [w.double() for w in weights], self.lengths, self.reset, self.cell, D)
        each = [weights[4 * d : 4 * d + 4] for d in range(D)]
        gates_x = torch.stack([torch.nn.functional.linear(x, w[0], w[2]) for w in each], 2)
        w_hh, b_hh = torch.stack([w[1] for w in each]), torch.stack([w[3] for w in each])
        lengths = None if self.lengths is None else self.lengths.expand(D, -1)
        reset = None if self.reset is None else self.reset.unsqueeze(-1).expand(*self.reset.shape, D)
        given = (gates_x, h0, c0, w_hh, b_hh)
        wide = [None if t is None else t.double() for t in given]
        return layer, given, (lengths, reset), reference.scan(*wide, lengths, reset, self.cell, D)


def make(cell: CellSpec, directions: int, size: tuple[int, int, int, int], lengths: bool, reset: bool) -> Case:
    T, B, I, H = size
    generator = torch.Generator().manual_seed(T * B * H + directions)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    gates, edge, sequence = len(cell.gates) * H, (directions, B, H), (T, B, directions * H)
    shapes = [(gates, I), (gates, H), (gates,), (gates,)] * directions
    return Case(
        cell,
        normal(T, B, I),
        [normal(*edge) for _ in cell.states],
        [(2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1) / H**0.5 for shape in shapes],
        {
            "y": normal(*sequence),
            "hn": normal(*edge),
            "cs": normal(*sequence),
            "cn": normal(*edge),
            "gates": normal(T, B, directions, 4 * H),
        },
        torch.randint(0, T + 3, (B,), generator=generator) if lengths else None,
        torch.rand(T, B, generator=generator) < 0.3 if reset else None,
        directions,
    )


NOISES = ("both", "mean", "dropout")
"""Zoneout and recurrent dropout; zoneout's expectation; recurrent dropout."""


def noise_of(kind: str, cell: CellSpec) -> tuple[tuple[int, int] | None, tuple[float, ...]]:
    """Key and rates of one of NOISES. The ops have no adjoint of an RNN's expectation: there zoneout is drawn."""
    h, c = (0.0, 0.0) if kind == "dropout" else (0.3, 0.6 if cell is LSTM else 0.0)
    key = None if kind == "mean" and cell.kept else (0x9ABCDEF0, 0x12345678)
    return key, (h, c, 0.0 if kind == "mean" else 0.4)


def noisy(case: Case, noise: str) -> Case:
    """The case with noise."""
    key, rates = noise_of(noise, case.cell)
    return dataclasses.replace(case, mask_key=None if key is None else torch.tensor(key), rates=rates)


_known: dict[tuple[int, int, int, int], list[Case]] = {}


def cases(size: tuple[int, int, int, int]) -> list[Case]:
    """Every cell and direction of a size, with both masks and with none; kept for other numbers of threads."""
    if size not in _known:
        each = itertools.product(CELLS, (1, 2), (False, True))
        _known[size] = [make(cell, directions, size, masked, masked) for cell, directions, masked in each]
    return _known[size]


def save(path: Path) -> None:
    """Writes all cases and what is true of them."""
    for threads in THREADS:
        prepare(of_threads(threads))
    torch.save(_known, path)


def load(path: Path) -> None:
    """Takes what `save` wrote."""
    _known.update(torch.load(path, weights_only=False))


def of_threads(threads: int) -> tuple[tuple[int, int, int, int], ...]:
    """The sizes that are checked on so many threads."""
    return SIZES[threads - 1 :: len(THREADS)] + (SHARED if threads > 1 else ())


def with_noise(sizes: tuple[tuple[int, int, int, int], ...]) -> Iterator[tuple[Case, Case]]:
    """Cases of these sizes, without noise and with one kind each: three sizes of the same give each its turn."""
    for number, plain in enumerate(itertools.chain.from_iterable(map(cases, sizes))):
        yield plain, plain.noises[NOISES[number % 3]]


def prepare(sizes: tuple[tuple[int, int, int, int], ...]) -> None:
    """Works out what is true of the cases of `check_all`, for processes that are forked after."""
    for plain, noise in with_noise(sizes):
        for truth in (plain.layer_truth, plain.scan_truth, noise.scan_truth, plain.bfloat_truth):
            assert truth
        if plain.size in NORMED:
            for case in (plain, noise):
                assert case.norm_truth
                assert case.reset is None or case.start_truth
