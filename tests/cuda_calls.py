"""Calls of the CUDA kernels, compiled by g++ and run on the CPU (csrc/host_device), against the reference in float64.

Run by tools/mutate_cuda.py. Outputs begin as NaN, and the stand-in refuses an access outside the tensors of the call.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import norm_check
import torch
from torch import Tensor

from fusedrnn import philox, reference
from fusedrnn.spec import CELLS, GRU, LSTM, RNN_RELU, RNN_TANH, CellSpec


class Precision(NamedTuple):
    """Of a call: its number in csrc/cuda/call.h, the type of the tensors, and the error allowed."""

    code: int
    dtype: torch.dtype
    bound: float  # of the largest absolute error, over the largest expected value or 1


PRECISIONS = {
    "bf16": Precision(0, torch.bfloat16, 1e-2),
    "fp16": Precision(1, torch.float16, 1.5e-3),
    "tf32": Precision(2, torch.float32, 2.5e-3),
    "fp32": Precision(3, torch.float32, 2e-6),
    "fp64": Precision(4, torch.float64, 1e-13),
}


@dataclass(frozen=True)
class Case:
    """A call of both passes, and what is special about it."""

    cell: CellSpec
    precision: str
    T: int
    B: int
    H: int
    directions: int = 2
    members: int = 1  # of an ensemble
    lengths: str = ""  # "random": 0 to T + 1; "packed": rows lie packed
    reset: bool = False
    absent: tuple[str, ...] = ()  # inputs that are not given
    derivatives: bool = True  # gradients reach the kept gates and cs
    seed: int = 1
    rates: tuple[float, ...] = ()  # of zoneout of h, of c, of recurrent dropout
    drawn: bool = True  # by a key; else zoneout's expectation
    norm: bool = False  # layer normalisation; no gradient reaches the kept gates then
    starts: bool = False  # resets go back to states that are given; likewise

    def __str__(self) -> str:
        marks = [self.lengths, "reset" * self.reset, *(f"no {name}" for name in self.absent)]
        marks += ["norm"] * self.norm + ["starts"] * self.starts
        marks += [f"rates {self.rates}{' drawn' * self.drawn}"] * bool(self.rates)
        size = f"T B S H = {self.T} {self.B} {self.directions * self.members} {self.H}"
        return ", ".join([self.cell.name, self.precision, size, *(mark for mark in marks if mark)])


class Instance(NamedTuple):
    """A row of the table of kernels, with the fields of csrc/cuda/instance.h."""

    row: int
    cell: int
    precision: int
    backward: int
    exchange: int
    masked: int
    H: int
    units: int
    rows: int
    chains: int
    k_split: int
    k_registers: int
    cluster: int

    def __str__(self) -> str:
        exchange = ("cta", "cluster", "scatter", "grid", "split")[self.exchange]
        shape = f"H {self.H}, units {self.units}, rows {self.rows} x {self.chains}, k / {self.k_split}"
        return f"{exchange} {shape}{', masked' if self.masked else ''}"


class Run(NamedTuple):
    """One pass of a case: what goes in, and what has to come out."""

    backward: bool
    given: dict[str, Tensor]  # in the precision's type
    expected: dict[str, Tensor]  # in float64
    lengths: Tensor | None
    reset: Tensor | None
    offsets: Tensor | None
    key: Tensor | None


FIELDS = (
    "w", "bias", "h0", "c0", "reset_h", "reset_c", "gates_x", "y", "cs", "gates", "hn", "cn", "dy", "dgates", "dcs",
    "dhn", "dcn", "dgates_x", "dq", "dh0", "dc0", "dreset_h", "dreset_c", "gain", "gain_c", "shift_c", "products",
    "dproducts",
)  # fmt: skip
"""The tensors of a Call and of its NormTensors, in their order."""
STEP, NORM_STEP = -1, -2
"""In place of a row of the table: the time-step kernel, without and with layer normalisation."""


def key_of(seed: int) -> tuple[int, int]:
    """What the noise of a case is drawn by."""
    return 2**32 - 1 - seed, 5


def prepare(case: Case) -> tuple[Run, Run]:
    """Random tensors for both passes, and what the reference makes of them."""
    cell, T, B, H, S = case.cell, case.T, case.B, case.H, case.directions * case.members
    G, Z, dtype = len(cell.gates), len(cell.kept), PRECISIONS[case.precision].dtype
    generator = torch.Generator().manual_seed(case.seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).double()

    ends, reset, offsets = None, None, None
    if case.lengths == "random":
        ends = torch.randint(-1, T + 2, (B, S), generator=generator).t()
        ends[:, ::3] = 0
    elif case.lengths == "packed":
        ends = torch.randint(1, T + 1, (B,), generator=generator).sort(descending=True).values.expand(S, B)
    clamped = None if ends is None else ends.clamp(0, T)
    if case.reset:
        reset = (torch.rand(B, T, S, generator=generator) < 0.35).transpose(0, 1)
    rows = [B] * T
    if case.lengths == "packed" and clamped is not None:
        rows = [int((clamped[0] > t).sum()) for t in range(T)]
        offsets = torch.tensor([0, *rows]).cumsum(0)[:-1].contiguous()

    def lay(sequence: Tensor) -> Tensor:
        return torch.cat([sequence[t, :n] for t, n in enumerate(rows)]) if offsets is not None else sequence

    def typed(t: Tensor) -> Tensor:
        return t.to(dtype).contiguous()

    w, bias, gates_x = normal(S, G * H, H) / H**0.5, normal(S, G * H) / 3, normal(T, B, S, G * H)
    state: dict[str, Tensor] = {"w": w.to(dtype).double(), "bias": bias.to(dtype).double(), "h0": normal(S, B, H)}
    if cell is LSTM:
        state["c0"] = normal(S, B, H)
    state = {name: t for name, t in state.items() if name not in case.absent}
    key = torch.tensor(key_of(case.seed)) if case.rates and case.drawn else None
    h0, c0, masks = state.get("h0"), state.get("c0"), (clamped, reset, cell, case.directions)
    norms: dict[str, Tensor] = {}
    if case.norm:
        norms["gain"] = (1 + normal(S, G * H) / 4).to(dtype).double()
        if cell is LSTM:
            norms |= {"gain_c": (1 + normal(S, H) / 4).to(dtype).double(), "shift_c": normal(S, H)}
        norms = {name: t for name, t in norms.items() if name not in case.absent}
    if case.starts:
        norms |= {"reset_h": normal(S, H)} | ({"reset_c": normal(S, H)} if cell is LSTM else {})
    of_norms = norms.get("gain"), norms.get("gain_c"), norms.get("shift_c")
    resets = norms.get("reset_h"), norms.get("reset_c")
    loop = gates_x, h0, c0, state["w"], state.get("bias")
    if case.norm or case.starts:
        y, hn, gates, cs, cn, products = norm_check.scan(loop, of_norms, resets, *masks, (key, case.rates))
    else:
        y, hn, gates, cs, cn = reference.scan(*loop, *masks, key, case.rates)
    out = {"y": lay(y), "hn": hn}
    out |= {"products": products} if case.norm else {}
    out |= {"gates": lay(gates)} if Z else {}
    out |= {"cs": lay(cs), "cn": cn} if cell is LSTM else {}
    given = {name: typed(t) for name, t in (state | norms | {"gates_x": lay(gates_x)}).items()}
    forward = Run(False, given, out, ends, reset, offsets, key)

    y, gates, cs = (t.to(dtype).double() for t in (y, gates, cs))
    upstream = {"dy": normal(T, B, S, H), "dhn": normal(S, B, H)}
    if cell is LSTM:
        upstream |= {"dcn": normal(S, B, H)} | ({"dcs": normal(T, B, S, H)} if case.derivatives else {})
    if Z and case.derivatives and not (case.norm or case.starts):
        upstream["dgates"] = normal(T, B, S, Z * H)
    upstream = {name: t for name, t in upstream.items() if name not in case.absent}
    dy, dhn, dgates, dcs, dcn = (upstream.get(name) for name in ("dy", "dhn", "dgates", "dcs", "dcn"))
    kept_cs = cs if cell is LSTM else None
    kept_loop = (gates, y, h0, kept_cs, c0, state["w"])
    if case.norm or case.starts:
        products = products.to(dtype).double()
        above, kept_loop = (dy, dhn, dgates, dcs, dcn), (*kept_loop, products)
        found = norm_check.scan_backward(above, kept_loop, of_norms, resets, *masks, (key, case.rates))
    else:
        found = reference.scan_backward(dy, dhn, dgates, dcs, dcn, *kept_loop, *masks, key, case.rates)
    dgates_x, dh0, dc0, dq, *more = found
    out = {"dgates_x": lay(dgates_x), "dh0": dh0}
    out |= {"dc0": dc0} if cell is LSTM else {}
    out |= {"dq": lay(dq)} if dq.numel() else {}
    out |= {name: t for name, t in zip(("dproducts", "dreset_h", "dreset_c"), more, strict=False) if t.numel()}
    kept = {"y": y} | ({"gates": gates} if Z else {}) | ({"cs": cs} if cell is LSTM else {})
    sequences = kept | {name: t for name, t in upstream.items() if t.dim() == 4}
    edges = {name: t for name, t in (state | upstream).items() if t.dim() == 3 and name != "bias"}
    sequences = {name: lay(t) for name, t in sequences.items()} | ({"products": products} if case.norm else {})
    given = {name: typed(t) for name, t in (sequences | edges | norms).items()}
    return forward, Run(True, given, out, ends, reset, offsets, key)


def load(path: Path) -> ctypes.CDLL:
    """The library that tests/cpp/cuda_library.cpp was compiled to."""
    library = ctypes.CDLL(str(path))
    library.cuda_last_error.restype = ctypes.c_char_p
    library.cuda_run.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_uint]
    library.cuda_memory.argtypes = [ctypes.c_void_p, ctypes.c_int64]
    library.cuda_memory.restype = None
    return library


def instances(library: ctypes.CDLL) -> list[Instance]:
    """The kernels that the library has, beside the time-step kernel."""
    values, found = (ctypes.c_int * (len(Instance._fields) - 1))(), list[Instance]()
    while library.cuda_instance(len(found), values):
        found.append(Instance(len(found), *values))
    return found


def fault(library: ctypes.CDLL, case: Case, run: Run, seed: int, row: int = STEP) -> str:
    """Runs one pass, by a kernel of the table or a time-step kernel, and says what is wrong; "" if nothing is."""
    precision, S = PRECISIONS[case.precision], case.directions * case.members
    found = {name: torch.full(t.shape, float("nan"), dtype=precision.dtype) for name, t in run.expected.items()}
    tensors = {**run.given, **found}
    masks = {"lengths": run.lengths, "reset": run.reset, "offsets": run.offsets, "key": run.key}
    library.cuda_memory(None, 0)
    for t in (*tensors.values(), *masks.values()):
        if t is not None:
            library.cuda_memory(t.untyped_storage().data_ptr(), t.untyped_storage().nbytes())
    values = [int(run.backward), precision.code, case.cell.code, case.directions, case.T, case.B, S, case.H]
    values += [_address(run.lengths), *(run.lengths.stride() if run.lengths is not None else (0, 0))]
    values += [_address(run.reset), *(run.reset.stride() if run.reset is not None else (0, 0, 0))]
    values += [_address(run.offsets), *map(_bits, case.rates or (0.0, 0.0, 0.0)), _address(run.key)]
    values += [*(_address(tensors.get(name)) for name in FIELDS)]
    if library.cuda_run((ctypes.c_int64 * len(values))(*values), row, seed):
        return str(library.cuda_last_error().decode())
    for name, expected in run.expected.items():
        error = float((found[name].double() - expected).abs().max() / expected.abs().max().clamp(min=1))
        if not error <= precision.bound:  # NaN fails too
            return f"{name}: error {error:.1e}, allowed {precision.bound:.0e}"
    return ""


def _bits(x: float) -> int:
    return int(struct.unpack("q", struct.pack("d", x))[0])


def _address(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


def kernel_cases(instance: Instance) -> Iterable[Case]:
    """For a kernel of the table: two batch groups and a tail, and what masks it takes."""
    cell, precision = CELLS[instance.cell], list(PRECISIONS)[instance.precision]
    T, B = 6, instance.rows * instance.chains + 3
    plain = Case(cell, precision, T, B, instance.H, derivatives=False, seed=instance.row)
    yield plain
    if instance.masked:
        yield replace(plain, H=instance.H - 8, lengths="random", directions=1)
        yield replace(plain, T=5, lengths="random", reset=True, absent=("h0", "c0", "dhn", "dcn"))
        yield replace(plain, H=instance.H - 8, lengths="packed", reset=True, absent=("bias", "dy"))
    else:
        yield replace(plain, T=1, absent=("h0", "c0", "dhn", "dcn"), directions=1)


def step_cases() -> Iterable[Case]:
    """For the time-step kernel: every cell and precision, tails of every tile, every mask, everything absent once."""
    seed = 0
    for precision in PRECISIONS:
        for cell in CELLS:
            for lengths, reset in (("", False), ("random", False), ("random", True), ("packed", True)):
                T, B, H = ((5, 3, 40), (4, 13, 24), (4, 9, 72), (3, 35, 8))[seed % 4]
                yield Case(cell, precision, T, B, H, lengths=lengths, reset=reset, seed=(seed := seed + 1))
    plain = Case(LSTM, "fp64", 4, 5, 16, derivatives=False)
    for absent in (("h0", "c0"), ("bias",), ("dy",), ("dhn", "dcn"), ("h0", "c0", "dy", "dhn")):
        yield replace(plain, absent=absent, lengths="random", reset=True)
        yield replace(plain, absent=absent, cell=GRU, precision="bf16")
    for seed, (cell, precision) in enumerate(((GRU, "fp64"), (LSTM, "fp64"), (RNN_TANH, "fp32"), (LSTM, "bf16"))):
        noisy = Case(cell, precision, 4, 35, 40, lengths="random", reset=True, seed=seed, rates=(0.25, 0.0, 0.5))
        yield replace(noisy, rates=(0.25, 0.625, 0.5) if cell is LSTM else noisy.rates)
        yield replace(noisy, rates=(0.0, 0.0, 0.5), T=3, B=9, lengths="packed", reset=False, absent=("h0",))
        if cell.kept:
            yield replace(noisy, rates=(0.25, 0.625 * (cell is LSTM), 0.0), B=9, drawn=False)
    # the first unit's word is not below this rate
    word = int(philox.words((0, 0, 0, philox.ZONEOUT_H), key_of(plain.seed))[0])
    yield replace(plain, cell=RNN_TANH, precision="fp32", T=1, B=1, H=8, rates=(word / 2**32, 0.0, 0.0))
    yield from start_cases(norm=False)
    for cell in (GRU, RNN_TANH, RNN_RELU):
        yield replace(plain, cell=cell, T=1, B=1, H=8, directions=1, members=2)
        yield replace(plain, cell=cell, precision="fp16", T=3, B=40, H=136, directions=1)


def start_cases(norm: bool) -> Iterable[Case]:
    """Resets that go back to states that are given: with masks, noise and neither."""
    for seed, cell in enumerate(CELLS):
        plain = Case(cell, "fp64", 4, 9, 24, reset=True, seed=seed, norm=norm, starts=True)
        yield plain
        rates = (0.25, 0.625 * (cell is LSTM), 0.5)
        yield replace(plain, B=4, lengths="random", rates=rates, absent=("h0", "c0", "dhn", "dcn"))
    yield replace(plain, cell=GRU, precision="bf16", T=3, H=40, lengths="random")


def norm_cases() -> Iterable[Case]:
    """For the time-step kernel with layer normalisation, likewise; more units than a CTA has threads."""
    for seed, cell in enumerate(CELLS):
        for lengths, reset, sizes in (
            ("", False, (2, 2, 264)),
            ("random", False, (3, 3, 40)),
            ("random", True, (4, 9, 16)),
        ):
            yield Case(cell, "fp64", *sizes, lengths=lengths, reset=reset, seed=seed, norm=True)
        noisy = Case(cell, "fp64", 3, 4, 24, lengths="random", reset=True, seed=seed, rates=(0.25, 0.0, 0.5), norm=True)
        yield replace(noisy, rates=(0.25, 0.625, 0.5) if cell is LSTM else noisy.rates)
        yield replace(noisy, rates=(0.0, 0.0, 0.5), T=2, absent=("h0",))
        if cell.kept:
            yield replace(noisy, rates=(0.25, 0.625 * (cell is LSTM), 0.0), drawn=False)
    plain = Case(LSTM, "fp64", 3, 5, 16, norm=True)
    for absent in (("h0", "c0"), ("bias", "shift_c"), ("dy",), ("dhn", "dcn"), ("h0", "c0", "dy", "dhn")):
        yield replace(plain, absent=absent, lengths="random", reset=True)
    yield from start_cases(norm=True)
    # quick, and with cuts in its rows
    yield replace(plain, B=3, H=8, lengths="random", reset=True, rates=(0.0, 0.5, 0.0), seed=6)
    for cell in (GRU, RNN_TANH):
        yield replace(plain, cell=cell, precision="fp16", T=2, B=9, directions=1, members=2)
