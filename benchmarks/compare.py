"""`python -m benchmarks compare`: fused against torch's layer at one's own shape, as a table."""

from __future__ import annotations

import copy
import time

import torch

from .cases import MODES, Case
from .measure import alternate, ceilings, gate, kept_bytes, quartiles, ratios
from .peak import peak_bytes
from .progress import Progress
from .providers import FUSED, NN, REFERENCE, Call, chosen_backend, inputs, twin

REFERENCE_SECONDS = 1.0
"""The reference loop takes part where one training step of it is estimated below this."""


def run(case: Case, *, budget_s: float, reference: bool | None = None, peak: bool = True) -> str:
    """Gates, measures, and lays out the table; a provider that fails its gate gets its reason instead of a time."""
    progress = Progress(budget_s)
    start = time.monotonic()
    progress.show(f"gate {case.name}")
    candidates = [FUSED, REFERENCE] if _wants_reference(case, reference) else [FUSED]
    refused = {provider.name: reason for provider in candidates if (reason := gate(provider, case))}
    providers = [NN, *(provider for provider in candidates if provider.name not in refused)]
    layer, data = twin(case), inputs(case)
    calls = {provider.name: Call(provider, provider.build(case, copy.deepcopy(layer)), data) for provider in providers}
    threads = torch.get_num_threads()
    flops_per_s, bytes_per_s = ceilings(threads)
    samples = {}
    for mode, share in zip(MODES, (0.3, 0.9), strict=True):
        progress.show(f"{mode} {case.name}")
        left = budget_s - (time.monotonic() - start)
        samples[mode] = alternate(
            {name: getattr(call, mode) for name, call in calls.items()}, max(0.0, left * share), min_rounds=3
        )
    kept = {name: kept_bytes(call) for name, call in calls.items()}
    progress.show("peak memory")
    peaks = peak_bytes([p for p in providers if p is not REFERENCE], case) if peak else {}
    progress.close()
    lines = [("provider", "infer, ms", "nn / it", "train, ms", "nn / it", "kept, MiB", "peak, MiB")]
    for name in calls:
        cells = [name]
        for mode in MODES:
            p25, p50, p75 = quartiles(ratios(samples[mode][NN.name], samples[mode][name]))
            cells += [
                f"{1e3 * quartiles(samples[mode][name])[1]:.3f}",
                "1" if name == NN.name else f"{p50:.2f} ({p25:.2f}-{p75:.2f})",
            ]
        lines.append((*cells, f"{kept[name] / 2**20:.2f}", _mib(peaks.get(name))))
    if case.dtype == "fp32":
        floor = [f"{1e3 * case.floor_s(mode, flops_per_s, bytes_per_s):.3f}" for mode in MODES]
        lines.append(("floor", floor[0], "", floor[1], "", "", ""))
    for name, reason in refused.items():
        lines.append((name, f"refused by the gate: {reason}", "", "", "", "", ""))
    pairs = len(samples["train"][NN.name])
    backend = chosen_backend(calls[FUSED.name].layer, data.x) if FUSED.name in calls else ""
    title = f"{case.name}, {threads} threads, {pairs} pairs of training steps" + (
        f"; backend: {backend}" if backend else ""
    )
    return f"{title}\n{_aligned(lines)}"


def _wants_reference(case: Case, wanted: bool | None) -> bool:
    """About 60 us a step, layer and direction, and 10 GFLOP/s: enough to tell seconds from minutes."""
    estimate = 3 * case.T * case.L * case.D * 60e-6 + case.flop("train") / 10e9
    return estimate < REFERENCE_SECONDS if wanted is None else wanted


def _mib(peak: int | str | None) -> str:
    return f"{peak / 2**20:.1f}" if isinstance(peak, int) else "-"


def _aligned(lines: list[tuple[str, ...]]) -> str:
    widths = [
        max(len(line[column]) for line in lines if not line[1].startswith("refused") or column == 0)
        for column in range(len(lines[0]))
    ]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
