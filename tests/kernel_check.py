"""The CPU kernel's ops against the reference, masks and all: run by test_kernel.py, here or under another setting.

`python tests/kernel_check.py [FILE]` runs the checks in a process of its own, where FUSEDRNN_ISA chooses the
instruction set, FUSEDRNN_SPLIT how threads share the work, and FUSEDRNN_POISON fills the kernel's scratch memory with
NaN. FILE: what is true of the cases, by `kernel_cases.save`, since to work it out takes longer than the checks.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

import torch
from close import error
from kernel_cases import FULL, NAMES, NORMED, THREADS, Case, More, load, of_threads, with_noise
from torch import Tensor

from fusedrnn import normed, ops
from fusedrnn.spec import LSTM

BOUND = {torch.float64: 2e-14, torch.float32: 1e-6, torch.bfloat16: 5e-3}
"""Largest relative L2 error against float64; tests/test_functional.py holds the kernel to torch's own error."""

LUCK = 4
"""By so much the errors of one case may exceed torch's in float32: where a variance is near 0, both are chance. On the
mean of all cases they may by half."""


def check_layer(case: Case) -> None:
    """`layer` and `layer_backward`: outputs and every gradient; and inference gives the bits of training."""
    want, expected = case.layer_truth
    lstm = case.cell is LSTM

    for dtype in FULL:
        x, *rest = (t.to(dtype) for t in (case.x, *case.states, *case.weights))
        h0, c0_, weights = rest[0], rest[1] if lstm else None, rest[len(case.states) :]
        masks = (case.lengths, case.reset)
        y, hn, cs, cn, kept = ops.layer(x, h0, c0_, weights, *masks, case.cell.code, True, True, True)
        plain = ops.layer(x, h0, c0_, weights, *masks, case.cell.code, True, False, True)
        for trained, inferred in zip((y, hn, cs, cn), plain, strict=False):
            assert torch.equal(trained, inferred), "inference and training differ"
        dy, dhn, dcs, dcn = (case.upstream[name].to(dtype) if name in want else None for name in NAMES)
        dx, dh0, dc0, *dweights = ops.layer_backward(
            dy, dhn, dcs, dcn, x, h0, c0_, weights, y, cs, kept, *masks, case.cell.code, True, 7
        )
        found = [y, hn, *([cs, cn] if lstm else []), dx, dh0, *([dc0] if lstm else []), *dweights]
        _compare(found, [*want.values(), *expected], dtype)


def check_scan(case: Case) -> None:
    """`scan` and `scan_backward`, the gradients that reach the kept gates included."""
    inputs, masks, reaching, want = case.scan_truth
    code, D, noise = case.cell.code, case.directions, (case.mask_key, case.rates)
    for dtype in FULL:
        given = [None if t is None else t.to(dtype) for t in inputs]
        found = ops.scan(*given, *masks, None, None, None, *noise, code, D, True)
        given = [None if t is None else t.to(dtype) for t in reaching]
        back = ops.scan_backward(*given, *masks, code, D, 0, None, *noise)
        _compare([*found, *back], [*want], dtype)


def check_norm(case: Case) -> float:
    """The loop with layer normalisation; its errors in float32 over those of torch's ops."""
    return _check_more(case, case.norm_truth)


def check_start(case: Case) -> float:
    """The loop with states that resets go back to; likewise."""
    return _check_more(case, case.start_truth)


def _check_more(case: Case, truth: More) -> float:
    """`norm_scan`, and every gradient that `norm_scan_backward` leads to; and inference gives the bits of training."""
    masks, code, D, noise = truth.masks, case.cell.code, case.directions, (case.mask_key, case.rates)
    for dtype in FULL:
        args = [None if t is None else t.detach().to(dtype).requires_grad_() for t in truth.given]
        call = (*args[:5], *masks, *args[5:], *noise, code, D)
        y, hn, _, cs, cn, _ = normed.NormScan.apply(*call, True, 0, *[None] * 4)
        out = [y, hn, *((cs, cn) if case.cell is LSTM else ())]
        grads = torch.autograd.grad(out, [t for t in args if t is not None], case.reaching(dtype))
        with torch.no_grad():
            plain = ops.norm_scan(*call, False)
        inferred = [plain[0], plain[1], *(plain[3:5] if case.cell is LSTM else ())]
        assert all(torch.equal(a, b) for a, b in zip(out, inferred, strict=True)), "inference and training differ"
        found = [*out, *grads]
        exact = truth.results[torch.float64]
        if dtype == torch.float64:
            _compare(found, exact, dtype, 2e-12)
        else:
            eps = torch.finfo(dtype).eps
            _compare(found, exact, dtype, 1e-4)
            ours, torchs = (
                [error(t, want).l2 for t, want in zip(ts, exact, strict=True)] for ts in (found, truth.results[dtype])
            )
            times = statistics.geometric_mean((a + eps) / (b + eps) for a, b in zip(ours, torchs, strict=True))
            assert times <= LUCK, f"errors {times:.1f} times torch's: {ours}, torch's {torchs}"
    return times


def check_bfloat(case: Case) -> None:
    """`layer` and `scan` for inference in bfloat16: right, and the same bits again."""
    want, given, masks, want_of_scan = case.bfloat_truth
    x, *rest = (t.bfloat16() for t in (case.x, *case.states, *case.weights))
    h0, c0, weights = rest[0], rest[1] if case.cell is LSTM else None, rest[len(case.states) :]
    code, D = case.cell.code, case.directions
    call = (x, h0, c0, weights, case.lengths, case.reset, code, True, False, True)
    found, again = ops.layer(*call), ops.layer(*call)
    _compare(
        [a for a, b in zip(found, want, strict=False) if b is not None], [b for b in want if b is not None], x.dtype
    )
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True)), "two runs differ"

    found = ops.scan(*given, *masks, None, None, None, None, [], code, D, False)
    kept = [i for i, t in enumerate(found) if t.numel()]
    _compare([found[i] for i in kept], [want_of_scan[i] for i in kept], x.dtype)


def _compare(found: list[Tensor], want: list[Tensor], dtype: torch.dtype, bound: float | None = None) -> None:
    assert len(found) == len(want)
    for i, (a, b) in enumerate(zip(found, (t.detach() for t in want), strict=True)):
        assert a.shape == b.shape, f"#{i}: {tuple(a.shape)}, expected {tuple(b.shape)}"
        assert a.dtype == dtype
        off, allowed = float((a.detach().double() - b).norm()) / (float(b.norm()) or 1.0), bound or BOUND[dtype]
        assert off <= allowed, f"#{i}: relative error {off:.1e}, allowed {allowed:.0e}"  # NaN fails too


def check_all(sizes: tuple[tuple[int, int, int, int], ...]) -> int:
    """Every cell and direction at these sizes, with both masks and with none, without noise and with one kind each.

    Returns:
        The number of cases.
    """
    number, times = 0, []
    for plain, noise in with_noise(sizes):
        checks = [(check_layer, plain), (check_scan, plain), (check_scan, noise), (check_bfloat, plain)]
        if plain.size in NORMED:
            checks += [(check_norm, plain), (check_norm, noise)]
            checks += [(check_start, plain), (check_start, noise)] if plain.reset is not None else []
        for check, case in checks:
            try:
                of_torchs = check(case)
                times += [] if of_torchs is None else [of_torchs]
            except AssertionError as error:
                masks = "no masks" if case.lengths is None else "lengths and reset"
                what = (
                    f"{check.__name__}, {case.cell.name}, {case.directions}-directional, T B I H = {case.size}, {masks}"
                )
                what += f", rates {case.rates}" if case.rates else ""
                raise AssertionError(f"{what}: {error}") from error
        number += 1
    mean = statistics.geometric_mean(times or [1.0])
    assert mean <= 1.5, f"errors {mean:.2f} times torch's over {len(times)} calls"
    return number


if __name__ == "__main__":
    for file in sys.argv[1:]:
        load(Path(file))
    for threads in THREADS:
        torch.set_num_threads(threads)
        print(ops.instruction_set, threads, check_all(of_threads(threads)), "cases right")
