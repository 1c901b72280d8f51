"""Which kernel runs a call, with which tiles: a pure function of numbers, in plain Python.

    resident  W_hh stays in one SM's shared memory and registers; a program a tile of rows
    grid      W_hh is split over programs on many SMs, which meet at a barrier every step
    streamed  a program a tile of rows reads W_hh from L2 at every step
    step      a launch a step

What is here was compiled for sm_80, sm_89 and sm_90 by Triton 3.6 and 3.9, with and without lengths and resets,
forward and backward, and spills no register, but for some float64 tiles of an LSTM by Triton 3.6:
`python tools/triton_check.py 80 89 90` does it again. With zoneout and recurrent dropout the widest of each kind
were, for sm_80 and sm_90. Nothing is tuned at run time, and no time below was measured on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

GRU, LSTM, TANH, RELU = range(4)
GATES = (3, 4, 1, 1)
KEPT = (4, 4, 0, 0)
REGIMES = ("", "resident", "streamed", "grid", "step")
"""At the index of its code in the ops' `route`; "": whichever is estimated fastest."""

REGISTERS = 254
"""Of a thread, asked for: else ptxas may spill some to make room for a second program on an SM, for which there is no
shared memory. In some LSTM and some wide backward kernels it then fills them all and spills; left alone it does not."""

SMALL_SMEM_BYTES = 101376
"""Of sm_86, sm_89 and sm_120."""


@dataclass(frozen=True)
class Device:
    """What a plan depends on: compute capability as in sm_90, SMs, and the shared memory that a program may have."""

    sm: int
    sms: int
    smem_bytes: int


@dataclass(frozen=True)
class Plan:
    """How one pass runs.

    Attributes:
        regime: see above.
        precision: tl.dot's: tf32, tf32x3 (float32 in three products of TF32), ieee.
        rows: batch rows a program.
        units: hidden units of a tile; resident: all of them, up to the next power of two.
        warps: of a program.
        registers: of a thread, None: as ptxas likes.
        stages: of Triton's software pipeline, in the loop over `inner`.
        inner: units of the previous step that are multiplied at once; grid: by each of the `k_split` parts.
        k_split: grid: parts of the product, one a warp.
        tiles: grid: tiles of rows a launch.
    """

    regime: str
    precision: str
    rows: int = 16
    units: int = 64
    warps: int = 4
    registers: int | None = REGISTERS
    stages: int = 1
    inner: int = 64
    k_split: int = 1
    tiles: int = 1

    def __str__(self) -> str:
        products = f"products in {self.precision}, " if self.precision != "ieee" else ""
        tiles = {"resident": "", "grid": f" and {self.units} units", "step": f" and {self.units} units"}
        return f"{self.regime}: {products}{self.rows} rows{tiles.get(self.regime, '')} a program, {self.warps} warps"


# Most units, rounded up to a power of two, whose W_hh stays on chip; by the kind of product, for GRU, LSTM and RNN.
# Limited by shared memory, but for tf32x3, where registers spill above. In float64 3.6 spills at once.
RESIDENT = {
    "half": {90: (128, 128, 256), 80: (128, 128, 256), 89: (64, 64, 128)},
    "tf32": {90: (128, 64, 128), 80: (64, 32, 64), 89: (64, 32, 64)},
    "tf32x3": {90: (64, 64, 128), 80: (32, 32, 64), 89: (32, 32, 64)},
}
# Most units whose W_hh stays on chip when programs of 16 units hold it; shared memory or registers limit them.
GRID = {
    "half": {90: (1536, 1024, 2048), 80: (1024, 1024, 1536), 89: (768, 512, 1536)},
    "tf32": {90: (512, 512, 1024), 80: (512, 512, 1024), 89: (384, 256, 1024)},
    "tf32x3": {90: (256, 0, 768), 80: (256, 0, 512), 89: (0, 0, 512)},
}
WIDTHS = (256, 384, 512, 768, 1024, 1536, 2048)
"""What the grid rounds H up to: each is a kernel of its own."""
NAMES = {"half": "16 bits", "tf32": "float32 as TF32", "tf32x3": "full float32", "fp64": "float64"}
"""Of the kinds of product, in refusals."""
SPILLS = {("half", LSTM, 768), ("tf32", LSTM, 384)}
"""Widths at which one pass spills a few registers: the next one is taken."""
# For the choice between regimes, in microseconds. Assumptions, not measurements.
LAUNCH_US = 30.0  # by Triton's launcher, in Python
GRID_STEP_US = 3.0  # barrier, and the way through L2
L2_BYTES_PER_US = 64 * 1.7e3  # that one SM reads: 64 bytes a clock


def plan(
    cell: int,
    T: int,
    B: int,
    S: int,
    H: int,
    dtype: str,
    precision: str,
    backward: bool,
    device: Device,
    regime: str = "",
    masked: bool = False,
    zoneout: bool = False,
    dropout: bool = False,
) -> Plan:
    """How one pass of a recurrence runs.

    Args:
        cell: its code.
        T: steps.
        B: rows.
        S: streams.
        H: hidden units.
        dtype: fp16, bf16, fp32 or fp64.
        precision: of products: tf32 or tf32x3 for fp32, else ieee.
        backward: which pass; both have the same limits, so that a call is of one regime.
        device: the GPU.
        regime: one of `REGIMES`.
        masked: whether rows have lengths or resets; the limits hold with and without.
        zoneout: whether there is zoneout.
        dropout: whether there is recurrent dropout.

    Raises:
        ValueError: the regime that is named cannot take it.
    """
    kind = precision if dtype == "fp32" else "fp64" if dtype == "fp64" else "half"
    noise = zoneout or dropout
    tiled = _tiled(cell, kind, precision, regime or "step", device, backward, noise)
    if regime in ("", "resident"):
        limit = _resident_limit(cell, kind, device, noise)
        refusal = _not_resident(cell, S, H, kind, device, limit, zoneout, dropout)
        if refusal is None:
            return _resident(cell, H, kind, precision, limit, noise)
        if regime:
            raise ValueError(refusal)
    if regime in ("", "grid"):
        refusal = _not_in_grid(cell, S, H, kind, device, zoneout, dropout)
        if regime and refusal is not None:
            raise ValueError(refusal)
        if refusal is None:
            chosen = _grid(cell, B, S, H, kind, precision, backward, device)
            if regime:
                return chosen
            launches = ceil(ceil(B / chosen.rows) / chosen.tiles)
            if launches * (LAUNCH_US + T * GRID_STEP_US) <= min(T * LAUNCH_US, _streamed_us(cell, T, H, dtype)):
                return chosen
    if regime:
        return tiled
    # one launch whose programs read all of W_hh every step, or a launch a step that reads it once
    streamed = _streamed_us(cell, T, H, dtype) < T * LAUNCH_US
    return _tiled(cell, kind, precision, "streamed" if streamed else "step", device, backward, noise)


def _column(device: Device) -> int:
    """Of the tables: what a GPU is not known to hold is left to the other regimes."""
    if device.smem_bytes <= SMALL_SMEM_BYTES:
        return 89
    return 90 if device.sm == 90 else 80


def _limit(table: dict[str, dict[int, tuple[int, int, int]]], cell: int, kind: str, device: Device) -> int:
    return table[kind][_column(device)][min(cell, TANH)] if kind in table else 0


def _padded(H: int) -> int:
    return max(32, 1 << (H - 1).bit_length())


def _held(limit: int, kind: str, device: Device) -> str:
    return f"in {NAMES[kind]} sm_{device.sm} holds {limit}"


def _resident_limit(cell: int, kind: str, device: Device, noise: bool) -> int:
    limit = _limit(RESIDENT, cell, kind, device)
    if not noise:
        return limit
    return 0 if kind == "tf32x3" else limit // 2  # for its draws registers are needed that wider tiles have not


def _not_resident(
    cell: int, S: int, H: int, kind: str, device: Device, limit: int, zoneout: bool, dropout: bool
) -> str | None:
    if _padded(H) <= limit:
        return None
    grid = "" if _not_in_grid(cell, S, H, kind, device, zoneout, dropout) else "triton:grid, "
    return (
        f"resident: W_hh does not stay in one SM, got {H} hidden units, {_held(limit, kind, device)}; "
        f"take {grid}triton:streamed or triton:step"
    )


def _resident(cell: int, H: int, kind: str, precision: str, limit: int, noise: bool) -> Plan:
    units = _padded(H)
    if kind == "tf32x3":  # narrower LSTM tiles spill
        units = max(units, min(64, limit))
    wide = units > 64 or kind == "tf32x3" or (noise and cell == LSTM)
    registers = None if kind == "tf32" and cell == LSTM and units == 64 else REGISTERS
    return Plan("resident", precision, units=units, warps=8 if wide else 4, registers=registers)


def _not_in_grid(cell: int, S: int, H: int, kind: str, device: Device, zoneout: bool, dropout: bool) -> str | None:
    if dropout:
        return "grid: it has no recurrent_dropout; take triton:streamed or triton:step"
    if zoneout and kind == "tf32x3":  # of the GRU's backward it spills
        return f"grid: in {NAMES[kind]} it has no zoneout; take triton:streamed or triton:step"
    limit = _limit(GRID, cell, kind, device)
    if limit < H:
        return (
            f"grid: 16 units' part of W_hh does not stay in an SM, got {H} hidden units, "
            f"{_held(limit, kind, device)}; take triton:streamed or triton:step"
        )
    programs = S * ceil(H / 16)
    if programs > device.sms:
        sms = "in the interpreter, which runs one" if device.sms == 1 else f"on {device.sms} SMs"
        return (
            f"grid: all programs must run at once, got {programs} for {S} streams of {H} hidden units {sms}; "
            "take triton:streamed or triton:step"
        )
    return None


def _grid(cell: int, B: int, S: int, H: int, kind: str, precision: str, backward: bool, device: Device) -> Plan:
    k_split = 8
    width = next(width for width in WIDTHS if width >= H and (kind, min(cell, TANH), width) not in SPILLS)
    # as much at once as leaves no part empty and takes 16 KB, or 32 KB in float32
    inner = next(inner for inner in (64, 32, 16) if width % (inner * k_split) == 0)
    tiles = min(ceil(B / 16), device.sms // (S * ceil(H / 16)))
    fills = (kind == "half" and width >= 1024 and device.sm == 90) or (kind == "tf32" and cell == LSTM and width > 256)
    registers = None if backward and fills else REGISTERS
    return Plan("grid", precision, units=16, warps=8, registers=registers, inner=inner, k_split=k_split, tiles=tiles)


def _tiled(cell: int, kind: str, precision: str, regime: str, device: Device, backward: bool, noise: bool) -> Plan:
    if kind == "half":  # wider, an LSTM spills, and on sm_89 or with noise a GRU
        small = cell == LSTM or (cell == GRU and (noise or _column(device) == 89))
        warps = 8 if cell == LSTM or (cell == GRU and noise) else 4
        return Plan(regime, precision, stages=2, inner=32 if small else 64, warps=warps)
    units = 16 if kind == "fp64" else 32
    if noise and cell == LSTM and kind == "tf32x3":
        return Plan(regime, precision, units=16, inner=16, registers=REGISTERS if backward else None)
    if noise and cell == LSTM and kind == "tf32":
        return Plan(regime, precision, units=units, inner=16, warps=8)
    inner = 16 if kind == "tf32x3" and cell in (GRU, LSTM) else units  # with lengths and resets 32 spill
    return Plan(regime, precision, units=units, inner=inner)


def _streamed_us(cell: int, T: int, H: int, dtype: str) -> float:
    bytes_ = GATES[cell] * H * H * {"fp32": 4, "fp64": 8}.get(dtype, 2)
    return LAUNCH_US + T * max(1.0, bytes_ / L2_BYTES_PER_US)
