"""The doctor, ``python -m fusedrnn [--json]``: what this machine has, which backends it gives, whether they agree with
torch.nn, and the command that mends what is missing. Exit status 0 if all is well, else 1.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fusedrnn

from . import _build, backends, ops, triton_plan, tune

LARGEST_ERROR = 1e-5
"""Of float32 results, relative to the largest: rounding stays two orders below, a fault lies orders above."""


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["tune"]:
        return tune.main(arguments[1:])
    parser = argparse.ArgumentParser(
        prog="python -m fusedrnn",
        description="Says what fusedrnn finds on this machine. `python -m fusedrnn tune` measures its GPU.",
    )
    parser.add_argument("--json", action="store_true", help="the same facts for programs")
    as_json = parser.parse_args(arguments).json
    facts = examine()
    print(json.dumps(facts, indent=2) if as_json else render(facts))
    return 0 if facts["ok"] else 1


def examine() -> dict[str, Any]:
    """Everything the doctor knows, as JSON values."""
    start = time.perf_counter()
    tests = [result for device in devices() for result in self_test(device)]
    troubles = [f"the compiled code: {reason}" for reason in (_build.status(), _plan_missing()) if reason]
    troubles += [f"{t['backend']} on {t['device']}, {t['cell']}: {t['trouble']}" for t in tests if t["trouble"]]
    wanted = os.environ.get("FUSEDRNN_ISA")
    if wanted and ops.instruction_set not in (None, wanted):
        troubles.append(f"FUSEDRNN_ISA={wanted} was not built or is not for this processor: {ops.instruction_set} runs")
    return {
        "ok": not troubles,
        "versions": versions(),
        "devices": devices(),
        "threads": torch.get_num_threads(),
        "processor": {"offers": torch.backends.cpu.get_cpu_capability(), "runs": ops.instruction_set},
        "backends": [
            {"name": b.name, "what": _what(b), "missing": b.unavailable() or _untried(b.name, tests)}
            for b in backends.BACKENDS
        ],
        "self_test": tests,
        "self_test_seconds": round(time.perf_counter() - start, 2),
        "troubles": troubles,
        "mend": _build.mend() if _build.status() or _plan_missing() else None,
    }


def _what(backend: backends.Backend) -> str:
    interpreted = backend.name == "triton" and triton_plan.interpreting()
    return backend.what + (", in Triton's interpreter (TRITON_INTERPRET)" if interpreted else "")


def _untried(name: str, tests: Sequence[dict[str, Any]]) -> str | None:
    """Why a backend that is there took no test; None if it did."""
    if any(test["backend"] == name for test in tests):
        return None
    return "untried, it runs on NVIDIA GPUs and torch sees none"


def versions() -> dict[str, str | None]:
    """Of everything a build or a run depends on; None for what is not there."""
    compiler, nvcc = _build.compiler(), shutil.which("nvcc")
    return {
        "fusedrnn": f"{fusedrnn.__version__}, {Path(__file__).parent}",
        "python": f"{platform.python_version()}, {sys.executable}",
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda or 'not built in'}",
        "compiled for": _build.read_record().get("torch"),
        "compiler": _version_line(compiler, 0),
        "nvcc": _version_line(nvcc, -2),
        "triton": _installed("triton"),
    }


def devices() -> list[str]:
    return ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def self_test(device: str) -> list[dict[str, Any]]:
    """Forward and backward of a small layer of each cell, on every backend that takes it, against torch.nn."""
    # by torch's default cuDNN's recurrent layers may round to TF32, whose eps of 1e-3 lies above LARGEST_ERROR
    with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False):
        return _self_test(device)


def _self_test(device: str) -> list[dict[str, Any]]:
    results = []
    for cell in ("GRU", "LSTM", "RNN"):
        torch.manual_seed(0)
        theirs: nn.RNNBase = getattr(nn, cell)(13, 29, bidirectional=True).to(device)
        x, dy = torch.randn(7, 3, 13, device=device), torch.randn(7, 3, 58, device=device)
        expected = _outputs_and_gradients(theirs, x, dy)
        for verdict in fusedrnn.explain(theirs, x).verdicts:
            if verdict.why_not is not None:
                continue
            ours = getattr(fusedrnn, cell)(13, 29, bidirectional=True, backend=verdict.name).to(device)
            ours.load_state_dict(theirs.state_dict())
            error, trouble = None, None
            try:
                error = _largest_error(_outputs_and_gradients(ours, x, dy), expected)
                if error is None or error > LARGEST_ERROR:
                    trouble = f"differs from torch.nn by {error} of the largest value (None: there are NaNs)"
            except Exception as fault:  # the doctor reports whatever goes wrong
                trouble = f"{type(fault).__name__}: {fault}"
            results.append(
                {"device": device, "backend": verdict.name, "cell": cell, "error": error, "trouble": trouble}
            )
    return results


def render(facts: dict[str, Any]) -> str:
    lines = [f"{name:<13} {version or 'none'}" for name, version in facts["versions"].items()]
    runs = facts["processor"]["runs"] or "no compiled kernel"
    lines += [f"{'devices':<13} {', '.join(facts['devices'])}; {facts['threads']} threads"]
    lines += [
        f"{'processor':<13} {platform.machine()}, torch sees {facts['processor']['offers']}, fusedrnn runs {runs}"
    ]
    lines += ["", "backends"]
    for backend in facts["backends"]:
        lines.append(f"  {backend['name']:<11} {backend['what']}{_not_here(backend['missing'])}")
        for device in facts["devices"]:
            cells = [t for t in facts["self_test"] if (t["backend"], t["device"]) == (backend["name"], device)]
            told = ", ".join(f"{t['cell']} {'FAILED' if t['trouble'] else 'ok'}" for t in cells)
            lines += [f"  {'':<11} {device}: {told}"] if cells else []
    lines += [f"self-test against torch.nn, forward and backward: {facts['self_test_seconds']} s", ""]
    lines += [f"trouble: {trouble}" for trouble in facts["troubles"]] or ["all is well"]
    lines += [f"mend it with: {facts['mend']}"] if facts["mend"] else []
    return "\n".join(lines)


def _outputs_and_gradients(layer: nn.RNNBase, x: Tensor, dy: Tensor) -> list[Tensor]:
    x = x.detach().requires_grad_()
    y, state = layer(x)
    (y * dy).sum().backward()
    states = state if isinstance(state, tuple) else (state,)
    gradients = [p.grad for p in (x, *layer.parameters())]
    return [y.detach(), *(s.detach() for s in states), *(g for g in gradients if g is not None)]


def _largest_error(got: list[Tensor], expected: list[Tensor]) -> float | None:
    errors = torch.stack([(g - e).abs().max() / e.abs().max() for g, e in zip(got, expected, strict=True)])
    return None if errors.isnan().any() else errors.max().item()


def _plan_missing() -> str | None:
    if _build.status() or importlib.util.find_spec("fusedrnn._plan"):
        return None
    if any(_build.HERE.glob("_plan.*.so")):
        return f"the planner's module _plan was built for another Python than {platform.python_version()}"
    return "the planner's module _plan is missing (was Python.h there when it was built?)"


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _version_line(command: str | None, line: int) -> str | None:
    if command is None:
        return None
    try:
        output = subprocess.run([command, "--version"], capture_output=True, text=True, check=False, timeout=20).stdout
        return output.strip().splitlines()[line]
    except (OSError, IndexError, subprocess.TimeoutExpired) as error:
        return f"{command} does not answer: {error}"


def _not_here(reason: str | None) -> str:
    return f" - not here: {reason}" if reason else ""


if __name__ == "__main__":
    sys.exit(main())
