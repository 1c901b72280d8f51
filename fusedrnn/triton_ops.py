"""The ops `triton_scan` and `triton_scan_backward`: checks, plan, launch. Triton is imported with the first call.

Registered for CUDA tensors and, for Triton's interpreter, for the CPU's. Compilers see ops, as they do with the
compiled ones: there is nothing to gain from a time loop that they can read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType

import torch
from torch import Tensor

from . import ops, triton_plan
from .errors import BackendUnavailable
from .spec import CELLS, LSTM, CellSpec
from .triton_kernels import config

Outputs = tuple[Tensor, ...]


def _scan(
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
) -> Outputs:
    _refuse(reset_h=reset_h is not None, reset_c=reset_c is not None)
    spec = _cell(cell, directions, gates_x, route)
    _noise(spec, gates_x, mask_key, rates)
    _check(gates_x.dim() == 4 and weight_hh.dim() == 3, "expected gates_x [T, B, S, G*H] and weight_hh [S, G*H, H]")
    S = gates_x.shape[2]
    H, G = weight_hh.shape[2], len(spec.gates)
    T, rows = _steps_and_rows(gates_x, lengths, reset, offsets, directions)
    _like(gates_x, gates_x=(gates_x, (*gates_x.shape[:3], G * H)), weight_hh=(weight_hh, (S, G * H, H)))
    _like(gates_x, bias_hh=(bias_hh, (S, G * H)), h0=(h0, (S, rows, H)), c0=(c0, (S, rows, H)))
    _check(spec is LSTM or c0 is None, "c0 is for the LSTM only")
    if rows == 0:
        return ops._scan_fake(
            gates_x, h0, c0, weight_hh, bias_hh, lengths, reset, None, None, offsets, None, [], cell, directions, save
        )
    how = _plan(spec, T, rows, S, H, gates_x, route, False, lengths is not None or reset is not None, rates)
    launch = _kernels(gates_x)
    given = (gates_x, h0, c0, weight_hh, bias_hh, lengths, reset, offsets)
    with _on(gates_x):
        outputs: Outputs = launch.scan(*given, cell, directions, save, how, mask_key, rates)
    return outputs


def _scan_backward(
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
) -> Outputs:
    spec = _cell(cell, directions, y, route)
    _noise(spec, y, mask_key, rates)
    _check(
        bool(spec.kept) or mask_key is not None or not any(rates),
        "rates: the adjoint of an RNN with zoneout's expectation cannot be had from its output alone",
    )
    _check(y.dim() == 4 and weight_hh.dim() == 3, "expected y [T, B, S, H] and weight_hh [S, G*H, H]")
    S, H = y.shape[2:]
    G, Z = len(spec.gates), len(spec.kept)
    T, rows = _steps_and_rows(y, lengths, reset, offsets, directions)
    sequence, edge = tuple(y.shape), (S, rows, H)
    kept = (*sequence[:3], Z * H)
    _like(y, weight_hh=(weight_hh, (S, G * H, H)), h0=(h0, edge))
    # autograd passes empty tensors for absent gradients
    dy, dhn, dgates, dcs, dcn = (None if t is None or t.dim() == 1 else t for t in (dy, dhn, dgates, dcs, dcn))
    _like(y, dy=(dy, sequence), dhn=(dhn, edge))
    if Z:
        _like(y, gates=(gates, kept), dgates=(dgates, kept))
    if spec is LSTM:
        _check(cs is not None, "the LSTM's adjoint needs cs")
        _like(y, cs=(cs, sequence), c0=(c0, edge), dcs=(dcs, sequence), dcn=(dcn, edge))
    else:
        cs = c0 = dcs = dcn = None
    dgates = dgates if Z else None
    if rows == 0:
        return ops._scan_backward_fake(
            dy, dhn, dgates, dcs, dcn, gates, y, h0, cs, c0, weight_hh, lengths, reset, cell, directions, route, offsets
        )
    how = _plan(spec, T, rows, S, H, y, route, True, lengths is not None or reset is not None, rates)
    launch = _kernels(y)
    given = (dy, dhn, dgates, dcs, dcn, gates, y, h0, cs, c0, weight_hh, lengths, reset, offsets)
    with _on(y):
        outputs: Outputs = launch.scan_backward(*given, cell, directions, how, mask_key, rates)
    return outputs


def _kernels(like: Tensor) -> ModuleType:
    """The module that launches, imported with the first call."""
    try:
        from .triton_kernels import launch
    except Exception as error:  # whatever a broken installation raises
        told = f"{type(error).__name__}: {error}"
        raise BackendUnavailable(f"backend 'triton': Triton is installed but cannot be imported: {told}") from error
    if not (like.is_cuda or launch.interpreted()):
        raise BackendUnavailable(
            "backend 'triton': Triton was imported before TRITON_INTERPRET=1 was set, and takes no CPU tensors in this "
            "process; set it before the process starts"
        )
    return launch


def _check(holds: bool, text: str) -> None:
    if not holds:
        raise RuntimeError(f"fusedrnn: {text}")


def _refuse(**given: bool) -> None:
    for name, is_given in given.items():
        _check(not is_given, f"triton_scan: {name} is reserved and not taken by the kernels yet; pass None")


def _cell(cell: int, directions: int, like: Tensor, route: int) -> CellSpec:
    _check(0 <= cell < len(CELLS), f"cell: expected 0 (GRU), 1 (LSTM), 2 (RNN tanh) or 3 (RNN relu), got {cell}")
    _check(directions in (1, 2), f"directions: expected 1 or 2, got {directions}")
    _check(like.dtype in triton_plan.DTYPES, f"expected float16, bfloat16, float32 or float64, got {like.dtype}")
    known = len(config.REGIMES)
    _check(route & 7 < known and route < 32, f"route: expected a regime below {known}, plus flags, got {route}")
    return CELLS[cell]


def _noise(spec: CellSpec, like: Tensor, mask_key: Tensor | None, rates: Sequence[float]) -> None:
    """As csrc/check.h, `check_noise`."""
    if not rates:
        return
    told = "rates: expected those of zoneout of h, zoneout of c and recurrent dropout, or none"
    _check(len(rates) == 3, f"{told}, got {len(rates)}")
    for rate in rates:
        _check(0 <= rate <= 1, f"rates: expected probabilities, got {rate}")
    _check(spec is LSTM or rates[1] == 0, "rates: only the LSTM has a c, and zoneout of it")
    told = "rates: recurrent dropout is drawn by a mask_key: expected one, or a rate of 0"
    _check(mask_key is not None or rates[2] == 0, told)
    if mask_key is not None:
        fits = tuple(mask_key.shape) == (2,) and mask_key.dtype == torch.int64 and mask_key.device == like.device
        _check(fits, f"mask_key: expected torch.int64 [2] on {like.device}, got {_said(mask_key)}")


def _steps_and_rows(
    sequence: Tensor, lengths: Tensor | None, reset: Tensor | None, offsets: Tensor | None, directions: int
) -> tuple[int, int]:
    """T and B: of the sequence [T, B, S, ...] or, where rows lie packed, [N, 1, S, ...], of offsets and lengths."""
    T, B, S, _ = sequence.shape
    _check(S > 0 and S % directions == 0, f"expected a multiple of {directions} streams, got {S}")
    if offsets is not None:
        _check(
            lengths is not None and lengths.dim() == 2 and offsets.dim() == 1 and offsets.dtype == torch.int64,
            "offsets: expected int64 [T], and lengths [S, B] beside it",
        )
        _check(reset is None, "offsets: packed rows take no resets")
        N, T, B = T, len(offsets), 0 if lengths is None else lengths.shape[1]
        _check(T > 0 and B > 0, f"offsets: expected at least one step and one row, got {T} and {B}")
        _check(
            sequence.shape[1] == 1 and B <= N <= T * B,
            f"offsets: expected sequences [N, 1, S, ...] with N rows of {T} steps and at most {B} rows a step, got "
            f"{list(sequence.shape)}",
        )
    _check(T > 0, "expected at least one step")
    _check(S <= triton_plan.STREAMS, f"expected at most {triton_plan.STREAMS} streams, got {S}")
    rows = math.prod(sequence.shape[:3])
    _check(rows < triton_plan.ROWS, f"expected less than 2^31 rows, got {' * '.join(map(str, sequence.shape[:3]))}")
    for name, mask, shape, dtype in (
        ("lengths", lengths, (S, B), torch.int64),
        ("reset", reset, (T, B, S), torch.bool),
        ("offsets", offsets, (T,), torch.int64),
    ):
        if mask is not None:
            fits = tuple(mask.shape) == shape and mask.dtype == dtype and mask.device == sequence.device
            _check(fits, f"{name}: expected {dtype} {list(shape)} on {sequence.device}, got {_said(mask)}")
    return T, B


def _like(like: Tensor, **tensors: tuple[Tensor | None, tuple[int, ...]]) -> None:
    for name, (t, shape) in tensors.items():
        if t is not None and (tuple(t.shape) != shape or t.dtype != like.dtype or t.device != like.device):
            raise RuntimeError(
                f"fusedrnn: {name}: expected {like.dtype} {list(shape)} on {like.device}, got {_said(t)}"
            )


def _said(t: Tensor) -> str:
    return f"{t.dtype} {list(t.shape)} on {t.device}"


def _plan(
    spec: CellSpec,
    T: int,
    B: int,
    S: int,
    H: int,
    like: Tensor,
    route: int,
    backward: bool,
    masked: bool,
    rates: Sequence[float],
) -> config.Plan:
    _check(H > 0, "expected at least one hidden unit")
    gpu = like.device.index if like.is_cuda else None
    try:
        return triton_plan.plan(spec.code, T, B, S, H, like.dtype, route, backward, masked, rates, gpu)
    except ValueError as error:
        raise RuntimeError(f"fusedrnn: {error}") from None


def _on(t: Tensor) -> AbstractContextManager[object]:
    return torch.cuda.device(t.device) if t.is_cuda else nullcontext()


for _name, _function in (("triton_scan", _scan), ("triton_scan_backward", _scan_backward)):
    for _key in ("CUDA", "CPU"):
        ops.triton_library.impl(_name, _function, _key)  # type: ignore[no-untyped-call]
