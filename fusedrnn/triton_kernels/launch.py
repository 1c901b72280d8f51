"""The op's two functions on tensors: allocate, point, launch. Nothing is written but fresh tensors.

Whoever calls has checked the arguments; their shapes are those of fusedrnn/reference.py.
"""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import backward, forward, grid, noise
from .config import GATES, GRU, KEPT, LSTM, Plan

Outputs = tuple[Tensor, ...]


def interpreted() -> bool:
    """Whether Triton was imported as its interpreter, which takes the CPU's tensors."""
    return not isinstance(forward.forward_resident, triton.runtime.JITFunction)


def scan(
    gates_x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weight_hh: Tensor,
    bias_hh: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    offsets: Tensor | None,
    cell: int,
    directions: int,
    save: bool,
    how: Plan,
    mask_key: Tensor | None = None,
    rates: Sequence[float] = (),
) -> Outputs:
    """y, hn, gates, cs and cn; those that there are none of come as [0]."""
    S, H = gates_x.shape[2], weight_hh.shape[2]
    T, B = _steps_and_rows(gates_x, lengths, offsets)
    sequence, edge = (*gates_x.shape[:3], H), (S, B, H)
    lstm, kept = cell == LSTM, KEPT[cell] if save else 0
    y, hn = gates_x.new_empty(sequence), gates_x.new_empty(edge)
    gates = gates_x.new_empty((*sequence[:3], kept * H) if kept else 0)
    cs, cn = gates_x.new_empty(sequence if lstm else 0), gates_x.new_empty(edge if lstm else 0)
    masks, strides = _masks(lengths, reset, offsets, gates_x.dtype)
    given, drawn = _dense(gates_x, h0, c0, weight_hh, bias_hh), _drawn(mask_key, rates, how, gates_x, S, B, H)
    out = (y, hn, gates if kept else None, cs if lstm else None, cn if lstm else None)
    sizes = (T, B, S, H, directions, *strides, *map(_bits, rates[:2] or (0.0, 0.0)))
    _run(forward, "forward", (*given, *masks, *drawn, *out), sizes, cell, T, how, gates_x)
    return y, hn, gates, cs, cn


def scan_backward(
    dy: Tensor | None,
    dhn: Tensor | None,
    dgates: Tensor | None,
    dcs: Tensor | None,
    dcn: Tensor | None,
    gates: Tensor,
    y: Tensor,
    h0: Tensor | None,
    cs: Tensor | None,
    c0: Tensor | None,
    weight_hh: Tensor,
    lengths: Tensor | None,
    reset: Tensor | None,
    offsets: Tensor | None,
    cell: int,
    directions: int,
    how: Plan,
    mask_key: Tensor | None = None,
    rates: Sequence[float] = (),
) -> Outputs:
    """dgates_x, dh0, dc0 and dq; those that there are none of come as [0]."""
    S, H = y.shape[2:]
    T, B = _steps_and_rows(y, lengths, offsets)
    lstm, gru = cell == LSTM, cell == GRU
    dgates_x, dh0 = y.new_empty(*y.shape[:3], GATES[cell] * H), y.new_empty(S, B, H)
    dc0, dq = y.new_empty((S, B, H) if lstm else 0), y.new_empty(y.shape if gru else 0)
    masks, strides = _masks(lengths, reset, offsets, y.dtype)
    given = _dense(dy, dhn, dgates, dcs, dcn, gates if KEPT[cell] else None, y, h0, cs, c0, weight_hh)
    drawn = _drawn(mask_key, rates, how, y, S, B, H)
    out = (dgates_x, dh0, dc0 if lstm else None, dq if gru else None)
    sizes = (T, B, S, H, directions, *strides, *map(_bits, rates[:2] or (0.0, 0.0)))
    # tiles take a turn more, which forms dh0
    turns = T if how.regime == "resident" else T + 1
    _run(backward, "backward", (*given, *masks, *drawn, *out), sizes, cell, turns, how, y)
    return dgates_x, dh0, dc0, dq


def _run(
    kernels: Any, name: str, pointers: Any, sizes: tuple[Any, ...], cell: int, turns: int, how: Plan, like: Tensor
) -> None:
    T, B, S, H, *strides = sizes
    block = math.gcd(H, 16)
    sizes = (T, B, S, H // block, *strides)
    wide = like.dtype == torch.float64
    common = {
        "CELL": cell,
        "BLOCK": block,
        "G": GATES[cell],
        "Z": KEPT[cell],
        "AT": tl.float64 if wide else tl.float32,
        "PRECISION": how.precision,
        "UNITS": how.units,
        "ROWS": how.rows,
        "STAGES": how.stages,
        "num_warps": how.warps,
        "num_stages": how.stages,
        "maxnreg": how.registers,
        "enable_fp_fusion": True,
    }
    tiles = triton.cdiv(B, how.rows)
    if how.regime == "resident":
        getattr(kernels, f"{name}_resident")[tiles, S](*pointers, *sizes, **common)
        return
    if how.regime == "grid":
        _run_grid(name, pointers, sizes, H, how, like, common)
        return
    state = partial(like.new_empty, S, B, H, dtype=_accumulator(like))
    carries: tuple[Tensor | None, ...] = (state() if cell in (GRU, LSTM) else None,)
    if name == "backward":
        zone_h = strides[-2]
        carries = state() if cell == GRU or zone_h is not None else None, state() if cell == LSTM else None
    common |= {"INNER": how.inner, "STREAMED": how.regime == "streamed"}
    kernel = getattr(kernels, f"{name}_tiled")
    if how.regime == "streamed":
        kernel[tiles, S, 1](*pointers, *carries, 0, turns, *sizes, LAST=True, **common)
        return
    for turn in range(turns):
        last = turn == turns - 1
        kernel[tiles, S, triton.cdiv(H, how.units)](*pointers, *carries, turn, turn + 1, *sizes, LAST=last, **common)


def _run_grid(
    name: str, pointers: Any, sizes: tuple[Any, ...], H: int, how: Plan, like: Tensor, common: dict[str, Any]
) -> None:
    """As many tiles of rows a launch as are resident at once."""
    _, B, S = sizes[:3]
    kernel = getattr(grid, f"{name}_grid")
    common = common | {"INNER": how.inner, "K_SPLIT": how.k_split, "CHUNKS": triton.cdiv(H, how.inner * how.k_split)}
    del common["STAGES"]
    if like.is_cuda:
        common["launch_cooperative_grid"] = True  # what is not resident together must not wait for each other
    tiles = triton.cdiv(B, how.rows)
    for tile in range(0, tiles, how.tiles):
        count = min(how.tiles, tiles - tile)
        barrier = torch.zeros(count * S, dtype=torch.int32, device=like.device)
        kernel[count, S, triton.cdiv(H, how.units)](*pointers, barrier, tile, *sizes, **common)


def _steps_and_rows(sequence: Tensor, lengths: Tensor | None, offsets: Tensor | None) -> tuple[int, int]:
    if offsets is None or lengths is None:
        return sequence.shape[0], sequence.shape[1]
    return len(offsets), lengths.shape[1]


def _masks(
    lengths: Tensor | None, reset: Tensor | None, offsets: Tensor | None, dtype: torch.dtype
) -> tuple[Any, tuple[int, ...]]:
    """Pointers and strides: views over a layer's streams are read as they are, where 32 bits address their rows.

    In float64 a byte of reset becomes eight: Triton 3.6 lays the operands of a product out for the narrowest load
    that they depend on, their masks' too, and has but one layout for float64.
    """
    if reset is not None:
        reset = _near(reset.long() if dtype == torch.float64 else reset.view(torch.uint8))
    lengths = None if lengths is None else _near(lengths)
    of_lengths = (0, 0) if lengths is None else lengths.stride()
    of_reset = (0, 0, 0) if reset is None else reset.stride()
    return (lengths, reset, None if offsets is None else offsets.contiguous()), (*of_lengths, *of_reset)


def _drawn(
    mask_key: Tensor | None, rates: Sequence[float], how: Plan, like: Tensor, S: int, B: int, H: int
) -> tuple[Tensor | None, ...]:
    """The key and, where the kernels take it, recurrent dropout's mask [S, B, H]; None for what is not needed."""
    taken = 1 if how.regime == "grid" else 2
    if not rates or mask_key is None:
        return (None, None)[:taken]
    key, dropout, rate = mask_key.contiguous(), None, rates[2]
    if _bits(rate) is not None:
        dropout = like.new_empty(S, B, H, dtype=_accumulator(like))
        scale = 1 / (1 - rate) if rate < 1 else 1.0  # of 1 all are dropped
        programs, tile = (triton.cdiv(H, 64), triton.cdiv(B, 16), S), {"UNITS": 64, "ROWS": 16}
        noise.draw_dropout[programs](dropout, key, _bits(rate), _bits(scale), B, H, **tile)
    return (key if any(rates[:2]) else None, dropout)[:taken]


def _bits(number: float) -> int | None:
    """Of a double; None for 0 and for what is next to it, whose bits Triton would take for those of a shorter type."""
    return struct.unpack("<q", struct.pack("<d", number))[0] if number >= sys.float_info.min else None


def _accumulator(like: Tensor) -> torch.dtype:
    return torch.float64 if like.dtype == torch.float64 else torch.float32


def _near(mask: Tensor) -> Tensor:
    """The mask, or a copy without the gaps of a view whose last element is 2^31 elements behind its first, or more."""
    return (
        mask if sum((n - 1) * s for n, s in zip(mask.shape, mask.stride(), strict=True)) < 2**31 else mask.contiguous()
    )


def _dense(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    return tuple(None if t is None else t.contiguous() for t in tensors)
