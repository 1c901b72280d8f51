"""The grid against cuDNN as data, the most telling first: a budget cuts the end."""

from __future__ import annotations

from itertools import product

from ..cases import Case

T = 512
CELLS = ("gru", "lstm")
WIDTHS = (512, 256, 1024, 128, 768, 192, 2048, 64)
BATCHES = (64, 16, 1, 128, 256)
DTYPES = ("bf16", "fp32", "fp16")
CUDNNS_BEST = Case("lstm", 1024, 16, 768, 768, dtype="fp16")
"""Where cuDNN's own persistent kernel is at its best."""


def square(cell: str, B: int, H: int, dtype: str, **rest: int | bool) -> Case:
    """A layer as wide as its input."""
    return Case(cell, T, B, H, H, dtype=dtype, **rest)  # type: ignore[arg-type]


def core() -> list[Case]:
    """The first minute: every regime, both cells, one and more directions and layers."""
    found = [square(cell, B, H, "bf16") for H, B, cell in product(WIDTHS[:4], BATCHES[:2], CELLS)]
    found.append(CUDNNS_BEST)
    found += [square(cell, 64, H, "fp32") for H, cell in product(WIDTHS[:4], CELLS)]
    found += [square(cell, 16, 512, "bf16", D=2) for cell in CELLS]
    found += [square(cell, 16, 512, "bf16", L=L) for L, cell in product((2, 4, 6), CELLS)]
    found += [square(cell, 64, 512, "bf16", packed=True) for cell in CELLS]
    return found


def triton() -> list[Case]:
    """Where the Triton kernels have to be ahead of cuDNN's standard algorithm: narrow layers, few rows and many."""
    sizes = product((128, 256, 64), (64, 1, 256), (512, 128), CELLS)
    found = [Case(cell, steps, B, H, H, dtype="bf16") for H, B, steps, cell in sizes]
    return [*found, *(square("rnn", B, H, "bf16") for H, B in product((128, 256), (64, 256)))]


def grid() -> list[Case]:
    """Every case once."""
    found = core() + triton()
    found += [square(cell, B, H, dtype) for dtype, H, B, cell in product(DTYPES, WIDTHS, BATCHES, CELLS)]
    found += [square(cell, B, H, "bf16", D=2) for H, B, cell in product((256, 128, 1024), (16, 64), CELLS)]
    found += [square(cell, B, H, "bf16", L=L) for H, B, L, cell in product((256, 1024), (1, 16), (2, 4, 6), CELLS)]
    found += [square(cell, B, H, "bf16", packed=True) for H, B, cell in product((256, 1024), (16, 64), CELLS)]
    found += [square("rnn", B, H, "bf16") for H, B in product((128, 256, 512), (16, 64))]
    return list(dict.fromkeys(found))
