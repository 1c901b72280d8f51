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


def compile_kernels(source: Path, archs: list[str], nvcc: str) -> list[Kernel]:
    """The kernels of a source file, which is compiled whole: nvcc's host half refuses what a cubin would not show.

    Raises:
        RuntimeError: nvcc fails.
    """
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    with tempfile.TemporaryDirectory() as folder:
        command = [nvcc, "-std=c++20", "-O3", "-I", str(ROOT / "csrc"), *targets, "-c", "-Xptxas", "-v"]
        done = subprocess.run(
            [*command, str(source), "-o", str(Path(folder) / "kernels.o")], capture_output=True, text=True
        )
    if done.returncode:
        said = (done.stdout + done.stderr)[:4000]
        raise RuntimeError(f"nvcc failed on {source.relative_to(ROOT)} for {' '.join(archs)}:\n{said}")
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
    fields = re.search(r"<((?:\(int\))?\d+(?:, (?:\(int\))?\d+){11})>", name)
    if not fields:
        return title
    cell, precision, backward, exchange, masked, *layout = (int(n) for n in re.findall(r"\d+", fields.group(1)))
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
        results = pool.map(lambda source: compile_kernels(source, archs, nvcc), sources)
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
