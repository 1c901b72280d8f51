"""`python -m benchmarks gpu`: fused kernels against cuDNN over the grid, eager and captured in CUDA graphs.

A case is compared with float64 before it is timed. Providers alternate; times are the device's, by events, so that gaps
between launches count. A row of a backend asked for by name that another one ran is an error. A call that does not come
back, or that spoils the device for the process, becomes a row too; the process then ends with status `AGAIN`, and the
next one goes on behind it.
"""

from __future__ import annotations

import copy
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ..cases import DTYPES, MODES, Case
from ..measure import Clock, alternate, compare, device_clock, fifths, kept_bytes, ratios
from ..providers import FUSED_TRITON, NN, Call, Inputs, Provider, fused, fused_module, twin
from ..providers import inputs as host_inputs
from .cases import core, grid, triton
from .rows import GpuRow, Rows

AGAIN = 75
"""Exit status: call once more, what was measured is kept."""
ANSWER_S = 40.0
"""A case that takes longer hangs."""
GATE_STEPS = 24
SAMPLE_BUDGET_S = 0.2
EAGER, GRAPH = "eager", "graph"


def _standard_forward(layer: nn.Module, x: Tensor, _: Tensor | None) -> tuple[Tensor, Any]:
    T, B, _I = x.shape
    y, states = layer(PackedSequence(x.reshape(T * B, -1), torch.full((T,), B)))
    return y.data.view(T, B, -1), states


NN_STANDARD = Provider("nn-standard", lambda case, source: source, _standard_forward)
"""torch's layer, its input as a PackedSequence of equal lengths: cuDNN then takes its STANDARD algorithm."""
OURS = fused("fusedrnn-cuda", "cuda")
TRITON = FUSED_TRITON
EXTRA = (TRITON, fused("fusedrnn-cuda:step", "cuda:step"), fused("fusedrnn", "auto"))
"""Measured beside `OURS` at the most telling cases; of these Triton's in CUDA graphs too."""


@dataclass(frozen=True)
class Bench:
    """The device and how it is asked. `graphs`: whether calls can be captured."""

    device: torch.device
    name: str
    clock: Clock | None = None
    graphs: bool = True
    ours: Provider = OURS
    extra: Sequence[Provider] = EXTRA


def gpu() -> Bench:
    return Bench(torch.device("cuda"), torch.cuda.get_device_name(), device_clock)


def run(
    path: Path,
    bench: Bench,
    budget_s: float,
    cases: Sequence[Case] | None = None,
    modes: Sequence[str] = MODES,
    leave: Callable[[int], None] = os._exit,
) -> int:
    """Measures what the CSV does not hold yet, until the budget is spent; 0, or `AGAIN`.

    Args:
        leave: ends the process where a call hangs.

    Raises:
        RecordError: the CSV holds rows of another GPU.
    """
    deadline = time.monotonic() + budget_s
    telling = {*core(), *triton()}
    with Rows(path, bench.name) as rows:
        for case in grid() if cases is None else cases:
            sides = [NN, *[NN_STANDARD] * (not case.packed), bench.ours, *(bench.extra if case in telling else ())]
            todo = [(m, v, s) for m in modes for v, s in _variants(bench, case, sides) if _missing(rows, case, m, v, s)]
            if not todo:
                continue
            if time.monotonic() > deadline:
                print(f"gpu: the budget of {budget_s:.0f} s is spent with {len(rows.rows)} rows", flush=True)
                return 0
            print(f"gpu: {case.name}", flush=True)
            refuse = _refuser(rows, bench, case, todo)
            with _watched(lambda text, refuse=refuse: (refuse(text), leave(AGAIN))):  # type: ignore[misc]
                try:
                    _case(rows, bench, case, todo)
                except Exception as error:  # every fault is a row, and the grid goes on
                    refuse(_line(error))
                    if spoilt(error):
                        return AGAIN
            if bench.device.type == "cuda":
                torch.cuda.empty_cache()
    return 0


def _variants(bench: Bench, case: Case, sides: Sequence[Provider]) -> Iterator[tuple[str, list[Provider]]]:
    yield EAGER, list(sides)
    if bench.graphs and not case.packed:  # lengths on the host cannot be captured
        yield GRAPH, [NN, bench.ours, *(side for side in sides if side is TRITON)]


def _missing(rows: Rows, case: Case, mode: str, variant: str, sides: Sequence[Provider]) -> bool:
    return any((case.name, mode, variant, side.name) not in rows.keys for side in sides)


def _case(rows: Rows, bench: Bench, case: Case, todo: Sequence[tuple[str, str, list[Provider]]]) -> None:
    sides = {side.name: side for _, _, sides in todo for side in sides}
    wrong = gates(sides.values(), case, bench.device)
    layer = twin(case).to(bench.device)
    data = _inputs(case, bench.device)
    calls: dict[str, Call] = {}
    for name, side in sides.items():
        if wrong[name] is None:
            calls[name] = Call(side, side.build(case, copy.deepcopy(layer)).to(bench.device), data)
    for mode, variant, wanted in todo:
        able: dict[str, Call] = {}
        for side in wanted:
            reason = wrong[side.name] or unexpected(side, *ran(calls[side.name], mode))
            if reason is None:
                able[side.name] = calls[side.name]
            else:
                _add(rows, row(bench, case, mode, variant, side.name, error=reason))
        if NN.name in able:
            _measure(rows, bench, case, mode, variant, able)


def _measure(rows: Rows, bench: Bench, case: Case, mode: str, variant: str, calls: Mapping[str, Call]) -> None:
    memory = (
        {n: _memory(call, bench.device) for n, call in calls.items()} if (mode, variant) == ("train", EAGER) else {}
    )
    timed = {name: getattr(call, mode) for name, call in calls.items()}
    if variant == GRAPH:
        timed = _captured(rows, bench, case, mode, timed)
        if NN.name not in timed:
            return
    samples = alternate(timed, SAMPLE_BUDGET_S, min_rounds=5, max_rounds=60, clock=bench.clock)
    for name in timed:
        backend, regime = ran(calls[name], mode)
        us_p20, us, us_p80 = fifths([1e6 * s / case.T for s in samples[name]])
        low, middle, high = fifths(ratios(samples[NN.name], samples[name]))
        numbers = {"us": us, "us_p20": us_p20, "us_p80": us_p80, "n": len(samples[name])}
        numbers |= {"ratio": middle, "ratio_p20": low, "ratio_p80": high}
        who = {"backend": backend, "regime": regime}
        _add(rows, row(bench, case, mode, variant, name, **who, **numbers, **memory.get(name, {})))


def _captured(
    rows: Rows, bench: Bench, case: Case, mode: str, calls: Mapping[str, Callable[[], object]]
) -> dict[str, Callable[[], object]]:
    """Replays of those calls that can be captured; a row says why another cannot."""
    able = {}
    for name, call in calls.items():
        try:
            able[name] = captured(call)
        except Exception as error:  # what it raises is its row
            if spoilt(error):
                raise
            _add(rows, row(bench, case, mode, GRAPH, name, error=_line(error)))
    return able


def gates(sides: Any, case: Case, device: torch.device) -> dict[str, str | None]:
    """As `measure.gates`, on the device: why outputs or gradients are wrong, by provider; None if they are right."""
    short = replace(case, T=min(case.T, GATE_STEPS))
    layer, data = twin(short).to(device), host_inputs(short).to(device)
    truth = Call(NN, copy.deepcopy(layer).double(), data.to(torch.float64)).results()
    baseline = Call(NN, layer, data).results()
    reasons: dict[str, str | None] = {}
    for side in sides:
        if side is NN:
            reasons[side.name] = None
            continue
        try:
            result = Call(side, side.build(short, copy.deepcopy(layer)).to(device), data).results()
        except Exception as error:  # what it raises is its reason
            if spoilt(error):
                raise
            reasons[side.name] = _line(error)
        else:
            reasons[side.name] = compare(result, baseline, truth)
    return reasons


def ran(call: Call, mode: str) -> tuple[str, str]:
    """Backend and regime of a call."""
    if not hasattr(call.layer, "backend"):
        return NN.name, ""
    with torch.set_grad_enabled(mode == "train"):
        told = fused_module().explain(call.layer, call.x_grad if mode == "train" else call.x, lengths=call.lengths)
    return str(told.chosen), str(getattr(told, "regime", None) or "")


def unexpected(side: Provider, backend: str, regime: str) -> str | None:
    """Why a row is not the provider's own; the name of ours is `fusedrnn-` and the backend asked for."""
    family, _, asked = side.name.partition("-")
    if family != "fusedrnn" or not asked:
        return None
    name, _, wanted = asked.partition(":")
    chosen, _, chosen_regime = backend.partition(":")
    told = chosen_regime or regime
    if chosen != name or (wanted and not told.startswith(wanted)):
        return f"{asked} was asked for, {':'.join(filter(None, (chosen, told)))} ran"
    return None


def captured(call: Callable[[], object]) -> Callable[[], object]:
    """The call as a CUDA graph's replay."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    replay: Callable[[], object] = graph.replay
    return replay


def _memory(call: Call, device: torch.device) -> dict[str, int]:
    call.train()
    call.clear()
    found = {"kept_bytes": kept_bytes(call)}
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call.train()
        torch.cuda.synchronize()
        found["peak_bytes"] = torch.cuda.max_memory_allocated() - before
    return found


def _inputs(case: Case, device: torch.device) -> Inputs:
    """Made on the device, where they are many; packed ones are made as every benchmark makes them."""
    if case.packed:
        return host_inputs(case).to(device)
    made = {"device": device, "dtype": DTYPES[case.dtype], "generator": torch.Generator(device).manual_seed(0)}
    x = torch.randn(case.T, case.B, case.I, **made)
    return Inputs(x, torch.randn(case.T, case.B, case.D * case.width, **made), None)


def row(bench: Bench, case: Case, mode: str, variant: str, provider: str, **rest: Any) -> GpuRow:
    sizes = {name: getattr(case, name) for name in ("cell", "T", "B", "I", "H", "L", "D", "dtype", "packed")}
    return GpuRow(case.name, **sizes, mode=mode, variant=variant, provider=provider, device=bench.name, **rest)


def _refuser(rows: Rows, bench: Bench, case: Case, todo: Sequence[tuple[str, str, list[Provider]]]) -> Any:
    def refuse(text: str) -> None:
        for mode, variant, sides in todo:
            for side in sides:
                _add(rows, row(bench, case, mode, variant, side.name, error=text))

    return refuse


def _add(rows: Rows, new: GpuRow) -> None:
    """What a file holds already is not measured twice."""
    if new.key not in rows.keys:
        rows.add(new)
        if new.error:
            print(f"gpu: {' '.join(new.key)}: {new.error}", flush=True)


@contextmanager
def _watched(late: Callable[[str], object]) -> Iterator[None]:
    timer = threading.Timer(ANSWER_S, late, [f"no answer in {ANSWER_S:.0f} s"])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def spoilt(error: BaseException) -> bool:
    """Whether the device answers nothing more to this process."""
    if isinstance(error, torch.OutOfMemoryError):
        return False
    return any(word in str(error) for word in ("CUDA error", "CUDNN_STATUS_EXECUTION_FAILED", "cudaErrorIllegal"))


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300]
