"""What is measured, as data: shapes with their arithmetic, the grids of the kernel study and of `sweep`, the targets of
`figures`.

Names: T time, B batch, I input, H hidden, L layers, D directions, as everywhere in the project.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

GATES = {"gru": 3, "lstm": 4, "rnn": 1, "rnn_relu": 1}
CLASSES = {"gru": "GRU", "lstm": "LSTM", "rnn": "RNN", "rnn_relu": "RNN"}
DTYPES = {"fp32": torch.float32, "fp64": torch.float64, "bf16": torch.bfloat16, "fp16": torch.float16}
MODES = ("infer", "train")
"""infer: forward under no_grad. train: zero_grad(set_to_none), forward, backward with the input's gradient."""


@dataclass(frozen=True)
class Case:
    """A call of a recurrent layer.

    `ragged` and `packed`: rows of different length (uniform in [T/2, T]), else all take T steps. Ragged input is
    padded: fused layers are given lengths, nn packs it and pads what comes out. Packed input is a PackedSequence for
    both, and so is the output. `proj` is proj_size, 0 for none.
    """

    cell: str
    T: int
    B: int
    I: int
    H: int
    L: int = 1
    D: int = 1
    dtype: str = "fp32"
    ragged: bool = False
    packed: bool = False
    batch_first: bool = False
    bias: bool = True
    proj: int = 0

    def __post_init__(self) -> None:
        if self.cell not in GATES:
            raise ValueError(f"unknown cell {self.cell!r}; choose from {', '.join(GATES)}")
        if self.dtype not in DTYPES:
            raise ValueError(f"unknown dtype {self.dtype!r}; choose from {', '.join(DTYPES)}")
        if min(self.T, self.B, self.I, self.H, self.L) < 1 or self.D not in (1, 2):
            raise ValueError(f"sizes must be at least 1 and directions 1 or 2, got {self}")
        if self.ragged and self.packed:
            raise ValueError(f"a case is ragged (padded, with lengths) or packed, not both, got {self}")
        if self.proj and (self.cell != "lstm" or not 0 < self.proj < self.H):
            raise ValueError(f"proj needs an LSTM and lies between 1 and H - 1, got {self}")

    @property
    def name(self) -> str:
        extra = (
            [f"L{self.L}"] * (self.L > 1) + ["bidirectional"] * (self.D == 2) + [f"proj{self.proj}"] * bool(self.proj)
        )
        extra += ["no-bias"] * (not self.bias) + ["batch-first"] * self.batch_first
        extra += ["ragged"] * self.ragged + ["packed"] * self.packed
        return " ".join([self.cell, f"T{self.T}", f"B{self.B}", f"I{self.I}", f"H{self.H}", *extra, self.dtype])

    @property
    def itemsize(self) -> int:
        return DTYPES[self.dtype].itemsize

    @property
    def width(self) -> int:
        """Of the output of one direction."""
        return self.proj or self.H

    @property
    def output_bytes(self) -> int:
        """Of the outputs of all layers."""
        return self.T * self.B * self.width * self.D * self.L * self.itemsize

    @property
    def steps(self) -> float:
        """Mean steps a row takes."""
        return 0.75 * self.T if self.ragged or self.packed else self.T

    @property
    def weights(self) -> int:
        """Elements of the weight matrices of all layers and directions."""
        first = self.I + self.width
        rest = self.D * self.width + self.width
        gates = GATES[self.cell] * self.H * self.D * (first + (self.L - 1) * rest)
        return gates + self.L * self.D * self.proj * self.H

    def flop(self, mode: str) -> float:
        """Floating-point operations of the matrix products; a training step does them three times (y, dx, dW)."""
        return 2.0 * self.steps * self.B * self.weights * (3 if mode == "train" else 1)

    def bytes(self, mode: str) -> float:
        """Least traffic to memory: every operand once; in training, what backward needs is written and read once."""
        rows, width = self.steps * self.B, self.D * self.width
        inputs = rows * (self.I + (self.L - 1) * width)
        outputs = rows * width * self.L
        if mode == "infer":
            return self.itemsize * (inputs + outputs + self.weights)
        kept = rows * self.D * self.H * self.L * (GATES[self.cell] if GATES[self.cell] > 1 else 0)
        return self.itemsize * (3 * (inputs + outputs + self.weights) + 2 * kept)

    def floor_s(self, mode: str, flops_per_s: float, bytes_per_s: float) -> float:
        """No kernel can be faster: the larger of the two bounds, each against this machine's own measured ceiling."""
        return max(self.flop(mode) / flops_per_s, self.bytes(mode) / bytes_per_s)


CELLS = ("gru", "lstm", "rnn")
BASE = {"T": 50, "B": 32, "I": 128, "H": 128}
SWEEPS = {
    "H": {"quick": (64, 256), "default": (32, 64, 128, 256, 512), "full": (16, 32, 64, 128, 256, 512, 1024)},
    "T": {"quick": (10,), "default": (10, 50, 200, 800), "full": (5, 10, 25, 50, 100, 200, 400, 800, 1600)},
    "B": {"quick": (1,), "default": (1, 8, 32, 128), "full": (1, 2, 4, 8, 16, 32, 64, 128, 256)},
}


def along(sweep: str, value: int, cell: str) -> Case:
    """The base case with one size changed; the input is as wide as the layer."""
    sizes = BASE | {sweep: value} | ({"I": value} if sweep == "H" else {})
    return Case(cell, **sizes)


def kernel_grid(effort: str) -> list[Case]:
    """The cases of the kernel study, the most telling first: a budget cuts the end of this list."""
    grid: list[Case] = [Case(cell, **BASE) for cell in CELLS]
    for index in range(max(len(values[effort]) for values in SWEEPS.values())):
        for sweep, values in SWEEPS.items():
            if index < len(values[effort]):
                grid += [along(sweep, values[effort][index], cell) for cell in CELLS]
        if index == 0:
            grid += [Case(cell, **BASE, ragged=True) for cell in CELLS] + [Case(cell, **BASE, D=2) for cell in CELLS]
        if index == 1:
            grid += [Case(cell, **BASE, L=2) for cell in CELLS]
    if effort == "full":
        grid += [Case(cell, **BASE, D=2, ragged=True) for cell in CELLS]
        grid += [Case(cell, **BASE, L=2, D=2) for cell in CELLS] + [Case(cell, **BASE, packed=True) for cell in CELLS]
        grid += [Case(cell, **BASE, dtype=dtype) for dtype in ("fp64", "bf16") for cell in CELLS]
    return list(dict.fromkeys(grid))


SMOKE = (
    Case("gru", 20, 16, 32, 64),
    Case("lstm", 20, 16, 32, 64),
    Case("rnn", 20, 16, 32, 64),
    Case("gru", 20, 16, 32, 64, ragged=True),
)
"""The small set of `pytest benchmarks`."""

# T, B, H, and I where it is not H: few steps of every width, rows few and many, series long and short
_SWEEP_SHAPES = (
    *((1, 1, H) for H in (8, 64, 128, 256, 512, 1024)),
    *((1, B, H) for B, H in ((4, 1024), (32, 128), (32, 512), (256, 64), (256, 512))),
    *((2, B, H) for B, H in ((1, 256), (1, 1024), (4, 512), (32, 64))),
    *((16, B, H) for B, H in ((1, 8), (1, 512), (1, 1024), (4, 128), (4, 1024))),
    *((16, B, H) for B, H in ((32, 64), (32, 512), (256, 8), (256, 128), (256, 256))),
    *(
        (100, B, H)
        for B, H in ((1, 8), (1, 256), (1, 512), (4, 64), (4, 256), (32, 8), (32, 128), (32, 512), (256, 64))
    ),
    *((1000, B, H) for B, H in ((1, 64), (4, 8))),
    (100, 32, 128, 1),
    (16, 32, 64, 1024),
)
_SWEEP_OPTIONS: tuple[dict[str, Any], ...] = (
    {"D": 2},
    {"L": 2},
    {"L": 2, "D": 2},
    {"batch_first": True},
    {"bias": False},
    {"ragged": True},
    {"packed": True},
    {"D": 2, "packed": True},
    {"dtype": "fp64"},
    {"dtype": "bf16"},
)
_SWEEP_BF16 = ((30, 16, 512), (30, 64, 256), (30, 256, 64), (1, 1, 512))
"""T, B, H in bfloat16, for which some processors have products of their own."""
_SWEEP_BASE = {"T": 30, "B": 16, "I": 64, "H": 128}
_SWEEP_LONE = {"T": 16, "B": 1, "I": 256, "H": 256}
"""Every option at the base; two directions, two layers and bf16 at a lone row too."""


def sweep_grid(cells: Sequence[str]) -> list[Case]:
    """Shapes and options that no target was set for: where a fused layer might be slower than torch's."""
    grid = [Case(cell, T, B, *(I or (H,)), H) for T, B, H, *I in _SWEEP_SHAPES for cell in cells]
    grid += [Case(cell, **_SWEEP_BASE | option) for option in _SWEEP_OPTIONS for cell in cells]
    grid += [Case(cell, **_SWEEP_LONE | option) for option in ({"D": 2}, {"L": 2}, {"dtype": "bf16"}) for cell in cells]
    grid += [Case(cell, T, B, H, H, dtype="bf16") for T, B, H in _SWEEP_BF16 for cell in cells]
    grid += [Case(cell, 1, 1, 512, 512, dtype="fp64") for cell in cells]
    if "lstm" in cells:
        grid += [Case("lstm", **sizes, proj=64) for sizes in (_SWEEP_BASE, _SWEEP_LONE)]
    if "rnn" in cells:
        grid += [Case("rnn_relu", **sizes) for sizes in (_SWEEP_BASE, _SWEEP_LONE)]
    return grid


SLOWER = 0.95
"""Below this ratio nn / fused a case counts as slower."""

FIGURE_SHAPES = (
    (30, 64, 50, 128),
    (20, 32, 1, 64),
    (100, 1, 64, 128),
    (100, 64, 128, 256),
    (512, 16, 256, 512),
    (200, 8, 512, 1024),
)
"""T, B, I, H of `figures`."""

# nn / fusedrnn, per shape and instruction set: (infer on 2 threads, on 1, train on 2, on 1) for GRU, LSTM, RNN
_TARGETS = {
    (30, 64, 50, 128): {
        "AVX-512": ((2.8, 2.0, 3.3, 2.0), (1.5, 1.15, 1.35, 1.15), (3.1, 1.8, 3.2, 1.8)),
        "AVX2": ((2.1, 1.55, 2.3, 1.75), (1.35, 1.25, 1.15, 1.15), (2.2, 1.75, 2.35, 1.7)),
    },
    (20, 32, 1, 64): {
        "AVX-512": ((6.0, 3.5, 7.5, 5.3), (2.5, 1.6, 2.2, 1.6), (7.0, 4.0, 5.8, 4.0)),
        "AVX2": ((4.3, 3.3, 6.5, 4.7), (2.05, 1.9, 1.7, 1.5), (5.0, 3.6, 4.8, 4.3)),
    },
    (100, 1, 64, 128): {
        "AVX-512": ((13.0, 8.0, 17.0, 14.0), (3.0, 1.9, 2.4, 1.7), (12.0, 10.0, 18.0, 15.0)),
        "AVX2": ((10.5, 7.0, 19.0, 14.0), (2.2, 1.45, 1.9, 1.35), (8.0, 6.0, 13.0, 12.0)),
    },
    (100, 64, 128, 256): {
        "AVX-512": ((1.8, 1.4, 2.1, 1.5), (1.05, 0.95, 1.4, 1.2), (1.9, 1.4, 2.0, 1.4)),
        "AVX2": ((1.6, 1.25, 1.5, 1.25), (1.0, 1.05, 1.05, 1.1), (1.7, 1.45, 1.7, 1.2)),
    },
    (512, 16, 256, 512): {
        "AVX-512": ((2.5, 1.9, 2.5, 1.9), (1.1, 1.05, 1.4, 1.25), (2.6, 1.6, 2.4, 1.8)),
        "AVX2": ((2.1, 1.45, 2.15, 1.7), (1.05, 1.05, 1.2, 1.0), (1.85, 1.5, 1.6, 1.3)),
    },
    (200, 8, 512, 1024): {
        "AVX-512": ((2.4, 2.1, 3.5, 3.1), (1.15, 1.4, 1.4, 2.1), (2.2, 2.4, 2.5, 2.3)),
        "AVX2": ((3.5, 2.5, 3.7, 3.1), (1.45, 1.4, 1.4, 1.35), (3.0, 1.85, 2.7, 2.4)),
    },
}


def target(case: Case, threads: int, mode: str, isa: str) -> float | None:
    """The ratio to reach, or None where none was set (other shapes, thread counts, instruction sets)."""
    name = isa.upper().replace("-", "").replace("_", "")
    family = "AVX-512" if name.startswith(("AVX512", "AMX")) else "AVX2" if name.startswith("AVX2") else ""
    per_cell = _TARGETS.get((case.T, case.B, case.I, case.H), {}).get(family)
    if per_cell is None or case.cell not in CELLS or threads not in (1, 2) or (case.L, case.D) != (1, 1):
        return None
    return per_cell[CELLS.index(case.cell)][(0 if mode == "infer" else 2) + (0 if threads == 2 else 1)]
