"""What a GPU's numbers were made on: driver, clocks, versions, sources."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def torch_facts(python: str) -> dict[str, Any] | None:
    """What that Python's torch says of itself and its GPU; None if it has no CUDA."""
    code = (
        "import json, sys, torch; from importlib.metadata import version; c = torch.cuda;"
        "json.dump(dict(python=sys.version.split()[0], torch=torch.__version__, cuda=torch.version.cuda,"
        "cudnn=torch.backends.cudnn.version(), capability=c.get_device_capability(), gpu=c.get_device_name(),"
        "multiprocessors=c.get_device_properties(0).multi_processor_count) if c.is_available() else None, sys.stdout)"
    )
    text = _output(python, "-c", code)
    return json.loads(text.splitlines()[-1]) if text else None


def environment(facts: dict[str, Any] | None) -> dict[str, Any]:
    """What the numbers were made on."""
    wanted = "name driver_version compute_cap memory.total pstate clocks.sm clocks.mem clocks.max.sm clocks.max.mem "
    wanted += "power.draw power.limit temperature.gpu mig.mode.current compute_mode ecc.mode.current"
    values = _output("nvidia-smi", f"--query-gpu={wanted.replace(' ', ',')}", "--format=csv,noheader") or ""
    smi = dict(zip(wanted.split(), map(str.strip, values.splitlines()[0].split(",")), strict=False)) if values else None
    release = [line for line in (_output("nvcc", "--version") or "").splitlines() if "release" in line]
    changes = _output("git", "status", "--porcelain")
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "commit": _output("git", "rev-parse", "HEAD") or None,
        "dirty": None if changes is None else bool(changes),
        "sources": digest(),
        "torch": facts,
        "triton": _version("triton"),
        "nvcc": release[0].strip() if release else None,
        "nvidia_smi": smi,
        "cores": os.cpu_count(),
    }


def digest() -> str:
    """Of the sources and tests: what was found with others says nothing of these."""
    found = hashlib.sha256()
    for folder in ("csrc", "fusedrnn", "tests"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in {".h", ".cpp", ".cu", ".py"}:
                found.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:16]


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
