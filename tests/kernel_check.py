"""The CPU kernel's four ops against the reference, masks and all: run by test_kernel.py, here or under another setting.

`python tests/kernel_check.py` runs the checks in a process of its own, where FUSEDRNN_ISA chooses the instruction set,
FUSEDRNN_SPLIT how threads share the work, and FUSEDRNN_POISON fills the kernel's scratch memory with NaN.
"""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from fusedrnn import ops, reference
from fusedrnn.spec import CELLS, LSTM, CellSpec

BOUND = {torch.float64: 2e-14, torch.float32: 1e-6, torch.bfloat16: 5e-3}
"""Largest relative L2 error against float64; tests/test_functional.py holds the kernel to torch's own error."""

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

SHARED = ((3, 5, 4, 50), (2, 3, 16, 96), (5, 64, 3, 70), (4, 35, 40, 47))
"""For several threads, which get rows, units and streams of their own; backward too has several chunks of steps."""


@dataclass
class Case:
    """One random layer and everything that flows into it and back, in float64."""

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


def check_layer(case: Case) -> None:
    """`layer` and `layer_backward`: outputs and every gradient; and inference gives the bits of training."""
    leaves = [t.clone().requires_grad_() for t in (case.x, *case.states, *case.weights)]
    x, (h0, *c0), weights = leaves[0], leaves[1 : 1 + len(case.states)], leaves[1 + len(case.states) :]
    lstm = case.cell is LSTM
    out = reference.layer(x, h0, c0[0] if lstm else None, weights, case.lengths, case.reset, case.cell, case.directions)
    names = ("y", "hn", "cs", "cn")
    want = {name: t for name, t in zip(names, out, strict=True) if t is not None}
    expected = torch.autograd.grad(list(want.values()), leaves, [case.upstream[name] for name in want])

    for dtype in FULL:
        x, *rest = (t.to(dtype) for t in (case.x, *case.states, *case.weights))
        h0, c0_, weights = rest[0], rest[1] if lstm else None, rest[len(case.states) :]
        masks = (case.lengths, case.reset)
        y, hn, cs, cn, kept = ops.layer(x, h0, c0_, weights, *masks, case.cell.code, True, True, True)
        plain = ops.layer(x, h0, c0_, weights, *masks, case.cell.code, True, False, True)
        for trained, inferred in zip((y, hn, cs, cn), plain, strict=False):
            assert torch.equal(trained, inferred), "inference and training differ"
        dy, dhn, dcs, dcn = (case.upstream[name].to(dtype) if name in want else None for name in names)
        dx, dh0, dc0, *dweights = ops.layer_backward(
            dy, dhn, dcs, dcn, x, h0, c0_, weights, y, cs, kept, *masks, case.cell.code, True, 7
        )
        found = [y, hn, *([cs, cn] if lstm else []), dx, dh0, *([dc0] if lstm else []), *dweights]
        _compare(found, [*want.values(), *expected], dtype)


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


def check_scan(case: Case) -> None:
    """`scan` and `scan_backward`, the gradients that reach the kept gates included."""
    spec, D, lstm = case.cell, case.directions, case.cell is LSTM
    each = [case.weights[4 * d : 4 * d + 4] for d in range(D)]
    gates_x = torch.stack([torch.nn.functional.linear(case.x, w[0], w[2]) for w in each], 2)
    w_hh, b_hh = torch.stack([w[1] for w in each]), torch.stack([w[3] for w in each])
    h0, c0 = case.states[0], case.states[1] if lstm else None
    lengths = None if case.lengths is None else case.lengths.expand(D, -1)
    reset = None if case.reset is None else case.reset.unsqueeze(-1).expand(*case.reset.shape, D)
    noise = (case.mask_key, case.rates)
    want = reference.scan(gates_x, h0, c0, w_hh, b_hh, lengths, reset, spec, D, *noise)
    y, _, gates, cs, _ = want
    dy, dcs = (case.upstream[name].unflatten(-1, (D, -1)) for name in ("y", "cs"))
    dgates = case.upstream["gates"][..., : gates.shape[-1]] if spec.kept else None
    upstream = (dy, case.upstream["hn"], dgates, dcs if lstm else None, case.upstream["cn"] if lstm else None)
    kept = (gates, y, h0, cs if lstm else None, c0, w_hh)
    expected = reference.scan_backward(*upstream, *kept, lengths, reset, spec, D, *noise)

    for dtype in FULL:
        given = [None if t is None else t.to(dtype) for t in (gates_x, h0, c0, w_hh, b_hh)]
        found = ops.scan(*given, lengths, reset, None, None, None, *noise, spec.code, D, True)
        given = [None if t is None else t.to(dtype) for t in (*upstream, *kept)]
        back = ops.scan_backward(*given, lengths, reset, spec.code, D, 0, None, *noise)
        _compare([*found, *back], [*want, *expected], dtype)


def check_bfloat(case: Case) -> None:
    """`layer` and `scan` for inference in bfloat16: right, and the same bits again."""
    x, *rest = (t.bfloat16() for t in (case.x, *case.states, *case.weights))
    h0, c0, weights = rest[0], rest[1] if case.cell is LSTM else None, rest[len(case.states) :]
    code, D = case.cell.code, case.directions
    wide = [None if t is None else t.double() for t in (x, h0, c0)]
    masks = (case.lengths, case.reset)
    want = reference.layer(*wide, [w.double() for w in weights], *masks, case.cell, D)
    found = ops.layer(x, h0, c0, weights, *masks, code, True, False, True)
    again = ops.layer(x, h0, c0, weights, *masks, code, True, False, True)
    _compare(
        [a for a, b in zip(found, want, strict=False) if b is not None], [b for b in want if b is not None], x.dtype
    )
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True)), "two runs differ"

    each = [weights[4 * d : 4 * d + 4] for d in range(D)]
    gates_x = torch.stack([torch.nn.functional.linear(x, w[0], w[2]) for w in each], 2)
    w_hh, b_hh = torch.stack([w[1] for w in each]), torch.stack([w[3] for w in each])
    lengths = None if case.lengths is None else case.lengths.expand(D, -1)
    reset = None if case.reset is None else case.reset.unsqueeze(-1).expand(*case.reset.shape, D)
    given = (gates_x, h0, c0, w_hh, b_hh)
    want = reference.scan(*(None if t is None else t.double() for t in given), lengths, reset, case.cell, D)
    found = ops.scan(*given, lengths, reset, None, None, None, None, [], code, D, False)
    kept = [i for i, t in enumerate(found) if t.numel()]
    _compare([found[i] for i in kept], [want[i] for i in kept], x.dtype)


def _compare(found: list[Tensor], want: list[Tensor], dtype: torch.dtype) -> None:
    assert len(found) == len(want)
    for i, (a, b) in enumerate(zip(found, (t.detach() for t in want), strict=True)):
        assert a.shape == b.shape, f"#{i}: {tuple(a.shape)}, expected {tuple(b.shape)}"
        assert a.dtype == dtype
        error = float((a.double() - b).norm()) / (float(b.norm()) or 1.0)
        assert error <= BOUND[dtype], f"#{i}: relative error {error:.1e}, allowed {BOUND[dtype]:.0e}"  # NaN fails too


def check_all(sizes: tuple[tuple[int, int, int, int], ...]) -> int:
    """Every cell and direction at these sizes, with both masks and with none, without noise and with one kind each.

    Returns:
        The number of cases.
    """
    number = 0
    for size, cell, directions, masked in itertools.product(sizes, CELLS, (1, 2), (False, True)):
        plain = make(cell, directions, size, masked, masked)
        # three sizes of the same give each its turn: 16 cases a size
        noise = noisy(plain, NOISES[number % 3])
        for check, case in ((check_layer, plain), (check_scan, plain), (check_scan, noise), (check_bfloat, plain)):
            try:
                check(case)
            except AssertionError as error:
                masks = "lengths and reset" if masked else "no masks"
                what = f"{check.__name__}, {cell.name}, {directions}-directional, T B I H = {size}, {masks}"
                what += f", rates {case.rates}" if case.rates else ""
                raise AssertionError(f"{what}: {error}") from error
        number += 1
    return number


if __name__ == "__main__":
    for threads in (1, 2, 3, 4):
        torch.set_num_threads(threads)
        sizes = SIZES[threads - 1 :: 4] + (SHARED if threads > 1 else ())
        print(ops.instruction_set, threads, check_all(sizes), "cases right")
