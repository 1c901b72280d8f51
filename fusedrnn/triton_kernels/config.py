"""stub"""

from dataclasses import dataclass

REGIMES = ("", "resident", "streamed", "grid", "step")
GRU, LSTM, TANH, RELU = range(4)
GATES = (3, 4, 1, 1)
KEPT = (4, 4, 0, 0)


@dataclass(frozen=True)
class Device:
    sm: int
    sms: int
    smem_bytes: int


@dataclass(frozen=True)
class Plan:
    regime: str
    rows: int = 16
    units: int = 64
    inner: int = 64
    warps: int = 4
    stages: int = 1
    k_split: int = 1
    precision: str = "tf32"

    def __str__(self) -> str:
        return f"{self.regime}: {self.rows} rows a program, {self.warps} warps, products in {self.precision}"


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
) -> Plan:
    padded = max(16, 1 << (H - 1).bit_length())
    if regime == "resident" and padded > 128:
        raise ValueError(f"resident: does not stay on chip at H = {H}")
    if regime == "grid":
        raise ValueError("grid: no")
    regime = regime or ("resident" if padded <= 128 else "step")
    return Plan(regime, 16, padded if regime == "resident" else min(padded, 64), min(padded, 64), 4, 1, 1, precision)
