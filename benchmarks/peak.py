"""Peak memory of a training step as the system sees it: a fresh process's highest resident size over its baseline.

torch's allocator is not asked: kernels keep scratch and pooled memory outside it. Linux only.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

import torch

from .cases import Case
from .providers import PROVIDERS, Call, Provider, inputs, twin

STEPS = 2
ROOT = Path(__file__).resolve().parent.parent


def peak_bytes(providers: list[Provider], case: Case, timeout_s: float = 60) -> dict[str, int | str]:
    """Bytes by provider, or why there are none, on as many threads as torch has here.

    The processes run side by side and have `timeout_s` together.
    """
    deadline = time.monotonic() + timeout_s
    argument = json.dumps(dataclasses.asdict(case))
    started = {}
    for provider in providers:
        command = (sys.executable, "-m", "benchmarks.peak", provider.name, argument, str(torch.get_num_threads()))
        started[provider.name] = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    results: dict[str, int | str] = {}
    for name, process in started.items():
        try:
            out, complaint = process.communicate(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            out, complaint = "", f"took more than {timeout_s:.0f} s"
        lines = complaint.strip().splitlines() or ["no answer"]
        results[name] = int(out) if out.strip().isdecimal() else lines[-1]
    return results


def device_peak_bytes(call: Call) -> int:
    """On a GPU, in this process: torch's allocator over what it held before, whose memory a training step all takes."""
    call.train()
    call.clear()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    for _ in range(STEPS):
        call.train()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _status(field: str) -> int:
    """Bytes of a field of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"this system does not tell {field}")


def child(provider: Provider, case: Case) -> int:
    """Measures in this process, which has done nothing else yet."""
    layer = provider.build(case, twin(case))
    short = dataclasses.replace(case, T=2)
    Call(provider, layer, inputs(short)).train()  # threads, code and tables of the libraries, and packed weights
    call = Call(provider, layer, inputs(case))
    call.clear()
    ctypes.CDLL(None).malloc_trim(0)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # starts the high-water mark anew
    for _ in range(STEPS):
        call.train()
    return max(0, _status("VmHWM") - before)


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[3]))
    print(child(PROVIDERS[sys.argv[1]], Case(**json.loads(sys.argv[2]))))
