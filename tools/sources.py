"""Which file of csrc/ belongs to which library. setup.py builds from this; CMakeLists.txt has the same rules, and
tests/test_build.py compares what the two compile.
"""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def _glob(pattern: str) -> list[str]:
    return sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob(pattern))


def kernels() -> list[str]:
    """Compiled once per instruction set, into _C."""
    return _glob("csrc/cpu/kernel*.cpp")


def ops() -> list[str]:
    """The rest of _C."""
    own = {*_plan_module(), *kernels()}
    return [name for name in _glob("csrc/*.cpp") + _glob("csrc/cpu/*.cpp") if name not in own]


def _plan_module() -> list[str]:
    return _glob("csrc/plan_*.cpp")


def plan() -> list[str]:
    """_plan: the pybind11 module and every pure host planner."""
    return [*_plan_module(), *_glob("csrc/*/plan.cpp")] if _plan_module() else []


def cuda() -> list[str]:
    """_cuda."""
    return _glob("csrc/cuda/**/*.cpp") + _glob("csrc/cuda/**/*.cu")


def instruction_sets() -> dict[str, list[str]]:
    """The rows of csrc/isa.txt for this machine, each with all its flags."""
    machine = {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
    lines = (ROOT / "csrc" / "isa.txt").read_text().splitlines()
    rows = [line.split() for line in lines if line.strip() and not line.startswith("#")]
    flags = {name: flags for name, where, *flags in rows if where in ("any", machine)}
    common = flags.pop("common", [])
    return {name: common + own for name, own in flags.items()}


def unknown(compiler: str, flags: list[str]) -> bool:
    """Whether a compiler is too old for an instruction set's flags."""
    nothing = [*shlex.split(compiler), *flags, "-x", "c++", "-fsyntax-only", os.devnull]
    return subprocess.run(nothing, capture_output=True, check=False).returncode != 0
