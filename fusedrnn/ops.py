"""The ops: their schemas, the compiled library behind them, and what they return for tensors without data.

Without the compiled library the same schemas are defined here, so that the package imports and its other backends run.
The Triton kernels stand behind two ops of their own, `triton_scan` and `triton_scan_backward`, with the schemas of
`scan` and `scan_backward`: `triton_ops` registers what they run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _build
from .spec import CELLS, GRU, LSTM

SCHEMAS = (
    "scan(Tensor gates_x, Tensor? h0, Tensor? c0, Tensor weight_hh, Tensor? bias_hh, Tensor? lengths, Tensor? reset,"
    " Tensor? reset_h, Tensor? reset_c, Tensor? offsets, Tensor? mask_key, float[] rates, int cell, int directions,"
    " bool save, Tensor? x=None, Tensor? weight_ih=None, Tensor? bias_ih=None, int route=0)"
    " -> (Tensor y, Tensor hn, Tensor gates, Tensor cs, Tensor cn)",
    "scan_backward(Tensor? dy, Tensor? dhn, Tensor? dgates, Tensor? dcs, Tensor? dcn, Tensor gates, Tensor y,"
    " Tensor? h0, Tensor? cs, Tensor? c0, Tensor weight_hh, Tensor? lengths, Tensor? reset, int cell, int directions,"
    " int route=0, Tensor? offsets=None, Tensor? mask_key=None, float[] rates=[])"
    " -> (Tensor dgates_x, Tensor dh0, Tensor dc0, Tensor dq)",
    "layer(Tensor x, Tensor? h0, Tensor? c0, Tensor[] weights, Tensor? lengths, Tensor? reset, int cell, bool bias,"
    " bool save, bool states) -> (Tensor y, Tensor hn, Tensor cs, Tensor cn, Tensor kept)",
    "layer_backward(Tensor? dy, Tensor? dhn, Tensor? dcs, Tensor? dcn, Tensor x, Tensor? h0, Tensor? c0,"
    " Tensor[] weights, Tensor y, Tensor cs, Tensor kept, Tensor? lengths, Tensor? reset, int cell, bool bias,"
    " int wanted) -> Tensor[]",
    "product(Tensor a, Tensor b, bool tf32) -> Tensor",
    "norm_scan(Tensor gates_x, Tensor? h0, Tensor? c0, Tensor weight_hh, Tensor? bias_hh, Tensor? lengths, Tensor? reset,"
    " Tensor gain_hh, Tensor? gain_c, Tensor? shift_c, Tensor? mask_key, float[] rates, int cell, int directions,"
    " bool save, int route=0)"
    " -> (Tensor y, Tensor hn, Tensor gates, Tensor cs, Tensor cn, Tensor products)",
    "norm_scan_backward(Tensor? dy, Tensor? dhn, Tensor? dcs, Tensor? dcn, Tensor gates, Tensor y, Tensor? h0,"
    " Tensor? cs, Tensor? c0, Tensor weight_hh, Tensor products, Tensor? lengths, Tensor? reset, Tensor gain_hh,"
    " Tensor? gain_c, Tensor? shift_c, Tensor? mask_key, float[] rates, int cell, int directions, int route=0)"
    " -> (Tensor dgates_x, Tensor dh0, Tensor dc0, Tensor dq, Tensor dproducts)",
)
"""What csrc/ops.cpp registers under "fusedrnn", word for word."""

missing = _build.status()
"""Why there is no compiled code, with the command that mends it; None if there is."""

cuda_missing = missing or _build.cuda_status()
"""Why there are no CUDA kernels; None if there are."""

if missing is not None:
    _library = torch.library.Library("fusedrnn", "DEF")  # type: ignore[no-untyped-call]
    for _schema in SCHEMAS:
        _library.define(_schema, tags=torch.Tag.pt2_compliant_tag)  # type: ignore[no-untyped-call]

triton_library = torch.library.Library("fusedrnn", "FRAGMENT")  # type: ignore[no-untyped-call]
for _schema in SCHEMAS[:2]:
    triton_library.define(f"triton_{_schema}", tags=torch.Tag.pt2_compliant_tag)  # type: ignore[no-untyped-call]

scan = torch.ops.fusedrnn.scan.default
scan_backward = torch.ops.fusedrnn.scan_backward.default
triton_scan = torch.ops.fusedrnn.triton_scan.default
triton_scan_backward = torch.ops.fusedrnn.triton_scan_backward.default
layer = torch.ops.fusedrnn.layer.default
layer_backward = torch.ops.fusedrnn.layer_backward.default
product = torch.ops.fusedrnn.product.default
norm_scan = torch.ops.fusedrnn.norm_scan.default
norm_scan_backward = torch.ops.fusedrnn.norm_scan_backward.default

TRITON = 16
"""The bit of `route` for the Triton kernels; the ops of the others refuse it."""


def scan_for(route: int) -> torch._ops.OpOverload[..., Any]:
    """The op `scan` of the kernels that `route` means."""
    return triton_scan if route & TRITON else scan


def scan_backward_for(route: int) -> torch._ops.OpOverload[..., Any]:
    """The op `scan_backward` of the kernels that `route` means."""
    return triton_scan_backward if route & TRITON else scan_backward


WANT_X, WANT_STATES, WANT_WEIGHTS = 1, 2, 4
"""Bits of layer_backward's `wanted`."""

instruction_set: str | None = torch.ops.fusedrnn.isa() if missing is None else None
"""The instruction set that the CPU kernel runs on: "generic", "avx2", "avx512" or "amx" (avx512 and AMX)."""


def _scan_fake(
    gates_x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weight_hh: Tensor,
    bias_hh: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    reset_h: Tensor | None,
    reset_c: Tensor | None,
    offsets: Tensor | None,
    mask_key: Tensor | None,
    rates: Sequence[float],
    cell: int,
    directions: int,
    save: bool,
    x: Tensor | None = None,
    weight_ih: Tensor | None = None,
    bias_ih: Tensor | None = None,
    route: int = 0,
) -> tuple[Tensor, ...]:
    T, B, S, _ = gates_x.shape
    H, spec = weight_hh.shape[-1], CELLS[cell]
    kept = len(spec.kept) if save else 0
    rows = B if offsets is None or lengths is None else lengths.shape[1]
    sequence, edge, none = (T, B, S, H), (S, rows, H), (0,)
    return (
        gates_x.new_empty(sequence),
        gates_x.new_empty(edge),
        gates_x.new_empty((T, B, S, kept * H) if kept else none),
        gates_x.new_empty(sequence if spec == LSTM else none),
        gates_x.new_empty(edge if spec == LSTM else none),
    )


def _scan_backward_fake(
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
    cell: int,
    directions: int,
    route: int = 0,
    offsets: Tensor | None = None,
    mask_key: Tensor | None = None,
    rates: Sequence[float] = (),
) -> tuple[Tensor, ...]:
    T, B, S, H = y.shape
    spec = CELLS[cell]
    edge = (S, B if offsets is None or lengths is None else lengths.shape[1], H)
    return (
        y.new_empty((T, B, S, len(spec.gates) * H)),
        y.new_empty(edge),
        y.new_empty(edge if spec == LSTM else (0,)),
        y.new_empty((T, B, S, H) if spec == GRU else (0,)),
    )


def _norm_scan_fake(
    gates_x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weight_hh: Tensor,
    bias_hh: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    gain_hh: Tensor,
    gain_c: Tensor | None,
    shift_c: Tensor | None,
    mask_key: Tensor | None,
    rates: Sequence[float],
    cell: int,
    directions: int,
    save: bool,
    route: int = 0,
) -> tuple[Tensor, ...]:
    loop, masks = (gates_x, h0, c0, weight_hh, bias_hh), (lengths, reset, None, None, None, mask_key)
    results = _scan_fake(*loop, *masks, rates, cell, directions, save)
    return *results, gates_x.new_empty(gates_x.shape if save else (0,))


def _norm_scan_backward_fake(
    dy: Tensor | None,
    dhn: Tensor | None,
    dcs: Tensor | None,
    dcn: Tensor | None,
    gates: Tensor,
    y: Tensor,
    h0: Tensor | None,
    cs: Tensor | None,
    c0: Tensor | None,
    weight_hh: Tensor,
    products: Tensor,
    lengths: Tensor | None,
    reset: Tensor | None,
    gain_hh: Tensor,
    gain_c: Tensor | None,
    shift_c: Tensor | None,
    mask_key: Tensor | None,
    rates: Sequence[float],
    cell: int,
    directions: int,
    route: int = 0,
) -> tuple[Tensor, ...]:
    kept, masks = (gates, y, h0, cs, c0, weight_hh), (lengths, reset)
    dgates_x, dh0, dc0, dq = _scan_backward_fake(dy, dhn, None, dcs, dcn, *kept, *masks, cell, directions)
    dq = y.new_empty(y.shape) if CELLS[cell] == LSTM else dq
    return dgates_x, dh0, dc0, dq, y.new_empty(dgates_x.shape)


def _layer_fake(
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: list[Tensor],
    lengths: Tensor | None,
    reset: Tensor | None,
    cell: int,
    bias: bool,
    save: bool,
    states: bool,
) -> tuple[Tensor, ...]:
    T, B, _ = x.shape
    H, D, spec = weights[1].shape[-1], len(weights) // (4 if bias else 2), CELLS[cell]
    sequence, edge, none = (T, B, D * H), (D, B, H), (0,)
    kept = len(spec.kept) if save else 0
    return (
        x.new_empty(sequence),
        x.new_empty(edge),
        x.new_empty(sequence if spec == LSTM and (save or states) else none),
        x.new_empty(edge if spec == LSTM else none),
        x.new_empty((T, B, D * kept * H) if kept else none),
    )


def _layer_backward_fake(
    dy: Tensor | None,
    dhn: Tensor | None,
    dcs: Tensor | None,
    dcn: Tensor | None,
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: list[Tensor],
    y: Tensor,
    cs: Tensor,
    kept: Tensor,
    lengths: Tensor | None,
    reset: Tensor | None,
    cell: int,
    bias: bool,
    wanted: int,
) -> list[Tensor]:
    H, D = weights[1].shape[-1], len(weights) // (4 if bias else 2)
    none, edge, states = x.new_empty(0), (D, x.shape[1], H), wanted & WANT_STATES
    return [
        torch.empty_like(x) if wanted & WANT_X else none,
        x.new_empty(edge) if states else none,
        x.new_empty(edge) if states and CELLS[cell] == LSTM else none,
        *(torch.empty_like(w) if wanted & WANT_WEIGHTS else none for w in weights),
    ]


def _product_fake(a: Tensor, b: Tensor, tf32: bool) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[1])


for _name, _fake in (
    ("scan", _scan_fake),
    ("scan_backward", _scan_backward_fake),
    ("triton_scan", _scan_fake),
    ("triton_scan_backward", _scan_backward_fake),
    ("layer", _layer_fake),
    ("layer_backward", _layer_backward_fake),
    ("product", _product_fake),
    ("norm_scan", _norm_scan_fake),
    ("norm_scan_backward", _norm_scan_backward_fake),
):
    torch.library.register_fake(f"fusedrnn::{_name}", _fake)
