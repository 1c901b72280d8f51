"""Compiles the CUDA kernels and reads what ptxas says of them: no GPU and no torch needed.

python tools/kernels_check.py [architecture ...]    default: 80 90a

Prints registers, static and spilled bytes of every kernel; fails if one spills or needs a stack.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for '(?P<arch>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers",
    re.DOTALL,
)
CELLS = ("gru", "lstm", "rnn_tanh", "rnn_relu")
PRECISIONS = ("bf16", "fp16", "tf32", "fp32", "fp64")
EXCHANGES = ("cta", "cluster", "scatter", "grid", "split")


@dataclass(frozen=True)
class Kernel:
    """What ptxas reports of one kernel."""

    name: str
    arch: str
    registers: int
    stack: int
    spilled: int


def compile_kernels(source: Path, arch: str, nvcc: str) -> list[Kernel]:
    """The kernels of a source file.

    Raises:
        RuntimeError: nvcc fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [nvcc, "-std=c++20", "-O3", "-I", str(ROOT / "csrc"), f"-arch=sm_{arch}", "-cubin", "-Xptxas", "-v"]
        done = subprocess.run(
            [*command, str(source), "-o", str(Path(folder) / "kernels.cubin")], capture_output=True, text=True
        )
    if done.returncode:
        raise RuntimeError(f"nvcc failed for sm_{arch} on {source.relative_to(ROOT)}:\n{done.stdout}{done.stderr}")
    found = [match.groupdict() for match in ENTRY.finditer(done.stderr + done.stdout)]
    return [
        Kernel(k["name"], k["arch"], int(k["registers"]), int(k["stack"]), int(k["stores"]) + int(k["loads"]))
        for k in found
    ]


def readable(names: list[str]) -> dict[str, str]:
    """Short names of mangled ones: the instance as text where there is one."""
    tool = shutil.which("cu++filt") or shutil.which("c++filt")
    if not tool or not names:
        return {name: name for name in names}
    done = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True, check=True)
    return {name: _shortened(line) for name, line in zip(names, done.stdout.splitlines(), strict=True)}


def _shortened(name: str) -> str:
    kernel = re.match(r"(?:void )?(?:[\w:]*::)?(\w+)", name)
    title = kernel.group(1) if kernel else name
    if "Instance{" not in name:
        return title
    values = re.sub(r"\([\w:]+\)", "", name.split("Instance{", 1)[1].split("}", 1)[0]).split(",")
    cell, precision, backward, exchange, masked, *layout = [
        {"true": 1, "false": 0}.get(v.strip(), 0) if not v.strip().lstrip("-").isdigit() else int(v) for v in values
    ]
    shape = "H {} units {} rows {} chains {} k_split {} k_registers {} cluster {}".format(*layout)
    of = f"{CELLS[cell]} {PRECISIONS[precision]} {'backward' if backward else 'forward'} {EXCHANGES[exchange]}"
    return f"{title} {of} {'masked' if masked else 'plain'} {shape}"


def main(arguments: list[str]) -> int:
    """The command; returns its exit status."""
    nvcc = shutil.which("nvcc")
    if not nvcc:
        print("kernels-check: nvcc is missing, nothing was compiled")
        return 0
    archs = [a for a in arguments if a[0].isdigit()] or ["80", "90a"]
    wanted = [a for a in arguments if not a[0].isdigit()]
    sources = sorted((ROOT / "csrc" / "cuda").rglob("*.cu"))
    sources = [s for s in sources if not wanted or any(w in s.name for w in wanted)]
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))) as pool:
        results = pool.map(lambda job: compile_kernels(job[0], job[1], nvcc), product(sources, archs))
        kernels = [kernel for found in results for kernel in found]
    names = readable(sorted({k.name for k in kernels}))
    spilling = [k for k in kernels if k.spilled or k.stack]
    for k in sorted(kernels, key=lambda k: (k.arch, names[k.name])):
        mark = "  SPILLS" if k in spilling else ""
        print(f"{k.arch:8s} {k.registers:4d} registers {k.spilled:5d} bytes spilled  {names[k.name]}{mark}")
    print(f"{len(kernels)} instances, {len(spilling)} spills")
    return 1 if spilling or not kernels else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
