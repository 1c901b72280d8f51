"""`python -m fusedrnn tune`: measures fused kernels against torch's own op on this GPU, for the choice of "auto".

About a minute; the table goes into the user's cache, where `measured` finds it. Of every pair outputs, and gradients
where they are timed, are compared first: what is wrong is never said to be fast.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import measured, ops, triton_plan
from .convert import convert
from .errors import BackendUnavailable, UnsupportedProblem
from .measured import Point
from .spec import GRU, LSTM, CellSpec, by_mode

BUDGET_S = 60.0
T = 256
ROUNDS = 7
APART = 0.05
"""Largest difference of outputs and gradients, over the largest value: rounding in bf16 differs by less."""
DTYPES = {text: dtype for dtype, text in measured.DTYPES.items()}


class WrongResult(ValueError):
    """Fused kernels and torch's own op differ by more than rounding."""


Clock = Callable[[Callable[[], object]], float]
"""Seconds that a call takes on the device."""


def grid() -> Iterator[Point]:
    """What is measured, as points without a ratio, the most telling first: a budget cuts the end."""
    cells = (GRU.name, LSTM.name)
    coarse, fine = (128, 256, 512, 1024), (64, 192, 768, 2048)
    for sizes, rows, dtypes, directions in (
        (coarse, (16, 64), ("bf16", "fp32"), 1),
        (coarse, (1, 256), ("bf16", "fp32"), 1),
        (coarse, (16, 64), ("fp16",), 1),
        (coarse, (16,), ("bf16", "fp32"), 2),
        (fine, (16,), ("bf16", "fp32", "fp16"), 1),
        (coarse, (1, 256), ("fp16",), 1),
    ):
        for H, B, dtype, cell, grad in product(sizes, rows, dtypes, cells, (False, True)):
            yield Point(cell, dtype, 1, directions, grad, H, B, 0.0)


def run(
    budget_s: float, clock: Clock, device: torch.device, backend: str = "cuda", show: Callable[[str], None] = print
) -> list[Point]:
    """Measures as many points of the grid as the budget allows.

    What the fused kernels or the memory cannot take is left out. Where the kernels fail in another way (they do not
    compile, say), their ratio is 0, so that "auto" does not take them there for the sake of a neighbour.

    Raises:
        WrongResult: as of `measure`.
    """
    deadline, found = time.perf_counter() + budget_s, list[Point]()
    for point in grid():
        point = replace(point, backend=backend)
        if time.perf_counter() > deadline:
            show(f"the budget of {budget_s:.0f} s is spent; {len(found)} points")
            break
        try:
            ratio = measure(point, clock, device)
        except (UnsupportedProblem, torch.OutOfMemoryError) as error:
            show(f"{_name(point)}: left out, {_line(error)}")
            continue
        except (WrongResult, BackendUnavailable):
            raise
        except Exception as error:  # of any compiler or driver: it must not cost the other points
            show(f"{_name(point)}: failed, {_line(error)}")
            ratio = 0.0
        found.append(replace(point, ratio=round(ratio, 3)))
        show(f"{_name(point)}: {ratio:.2f}")
    return found


def measure(point: Point, clock: Clock, device: torch.device) -> float:
    """torch's time over ours: the median of pairs, in alternating order.

    Raises:
        WrongResult: the results differ by more than rounding.
        UnsupportedProblem, BackendUnavailable: the backend cannot take the call.
    """
    spec, dtype = _cell(point.cell), DTYPES[point.dtype]
    torch.manual_seed(0)
    stock = getattr(nn, spec.mode)(point.H, point.H, bidirectional=point.D == 2, device=device, dtype=dtype)
    ours = convert(_twin(stock), backend=point.backend)
    x = torch.randn(T, point.B, point.H, device=device, dtype=dtype, requires_grad=point.grad)
    dy = torch.randn(T, point.B, point.D * point.H, device=device, dtype=dtype)
    _compare(point, stock, ours, x, dy)
    calls = [_call(layer, x, dy) for layer in (stock, ours)]
    for call in calls * 2:
        call()
    ratios = []
    for turn in range(ROUNDS):
        times = [0.0, 0.0]
        for i in (0, 1) if turn % 2 else (1, 0):
            times[i] = clock(calls[i])
        ratios.append(times[0] / times[1])
    return statistics.median(ratios)


def _call(layer: nn.Module, x: Tensor, dy: Tensor) -> Callable[[], object]:
    leaves = [x, *layer.parameters()]

    def forward() -> object:
        with torch.no_grad():
            return layer(x)

    return (lambda: torch.autograd.grad(layer(x)[0], leaves, dy)) if x.requires_grad else forward


def _compare(point: Point, stock: nn.Module, ours: nn.Module, x: Tensor, dy: Tensor) -> None:
    theirs, own = (_results(layer, x, dy) for layer in (stock, ours))
    for a, b in zip(theirs, own, strict=True):
        difference = float((a - b).abs().max() / a.abs().max().clamp(min=1e-6))
        if not difference <= APART:  # NaN is wrong too
            raise WrongResult(
                f"{_name(point)}: the fused kernel differs from torch's own op by {difference:.2g} of its largest"
            )


def _results(layer: nn.Module, x: Tensor, dy: Tensor) -> list[Tensor]:
    if not x.requires_grad:
        with torch.no_grad():
            return [layer(x)[0]]
    y = layer(x)[0]
    return [y.detach(), *torch.autograd.grad(y, [x, *layer.parameters()], dy)]


def _twin(layer: nn.Module) -> nn.Module:
    twin = type(layer)(layer.input_size, layer.hidden_size, bidirectional=layer.bidirectional)
    twin.to(next(layer.parameters()))
    twin.load_state_dict(layer.state_dict())
    return twin


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _cell(name: str) -> CellSpec:
    return by_mode(name.upper())


def _name(point: Point) -> str:
    kind = "training" if point.grad else "inference"
    return f"{point.backend} {point.cell} H{point.H} B{point.B} {point.dtype}{' bidirectional' * (point.D == 2)} {kind}"


def device_seconds(call: Callable[[], object]) -> float:
    """Of one call on the current stream, by events; gaps between launches count."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begin.record()
    call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fusedrnn tune", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--device", type=int, default=0, help="index of the GPU (%(default)s)")
    parser.add_argument("--budget", type=float, default=BUDGET_S, metavar="S", help="seconds (%(default)s)")
    parser.add_argument("--out", type=Path, help="the file, instead of the one in the user's cache")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("tune: torch sees no GPU here, there is nothing to measure", file=sys.stderr)
        return 1
    there = [name for name, reason in (("cuda", ops.cuda_missing), ("triton", triton_plan.missing())) if reason is None]
    if not there:
        print(f"tune: no fused kernels: {ops.cuda_missing}; {triton_plan.missing()}", file=sys.stderr)
        return 1
    with torch.cuda.device(options.device):
        name, gpu = torch.cuda.get_device_name(), torch.device("cuda", options.device)
        found, refused = list[Point](), list[str]()
        for backend in there:
            try:
                found += run(options.budget / len(there), device_seconds, gpu, backend)
            except (WrongResult, BackendUnavailable) as error:
                refused.append(backend)
                print(f"tune: {error}; nothing that was measured of {backend} is kept", file=sys.stderr)
    if not found:
        print("tune: nothing was measured, no table is written", file=sys.stderr)
        return 1
    path = options.out or measured.own_path(name)
    measured.write(path, name, found, facts())
    ahead = sum(point.ratio >= 1 for point in found)
    print(f"fused kernels faster at {ahead} of {len(found)} points; table: {path}")
    return 1 if refused else 0


def facts() -> dict[str, Any]:
    """What a table was made with."""
    return {
        "torch": torch.__version__,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "date": time.strftime("%Y-%m-%d"),
    }
