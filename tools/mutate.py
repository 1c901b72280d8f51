"""`make mutations`: the CPU kernel with one fault at a time; the kernel's check has to see every one of them.

Each wait for other threads is left out in turn (they are found in the sources, so a new one is covered by itself), and
each line of `cpu_faults.MUTATIONS` is made. A fault that nobody sees means that the wait is not needed or that the
check is weak.

A race that is possible seldom happens. So a copy of the checkout is compiled in which threads come late on purpose:
behind every wait, left out or not, either the last thread or all the others sleep for longer than a phase of the work
takes. What they have still to write is then read too early, what they have still to read is overwritten. All mutations
are compiled at once, for this machine's best instruction set, and a variable of the library chooses one of them or
none; with none the copy must be right. What no delay can show on every processor is the order of memory accesses: a
barrier with relaxed atomics would pass here on x86.

Exit status: 0 if every fault was seen, 1 if one was not or if the copy is wrong without any, 2 if nothing was tried.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace

import sample
from cpu_faults import LATENESS, mutated, read

ROOT = Path(__file__).resolve().parents[1]
MOST_SECONDS = 300  # of one run, which hangs if it takes longer: a busy machine takes its time
SPLITS, THREADS = ("columns", "batch"), (2, 3, 4)  # on four: two directions at once, each on a team of two


def build(copy: Path, flags: Iterable[str]) -> list[str]:
    """A copy of the checkout, mutated and compiled by its own setup.py; what each mutation does."""
    for name in ("csrc", "fusedrnn", "tools"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("*.so", "_build.json", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    texts, names = mutated(read())
    for file, text in texts.items():
        (copy / file).write_text(text)
    (copy / "csrc/cpu/lateness.h").write_text(LATENESS)
    (copy / "csrc/isa.txt").write_text(f"generic any {' '.join(flags)}\n")  # one kernel, under the name that must exist
    for path in copy.glob("csrc/plan_*.cpp"):
        path.unlink()
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run(command, cwd=copy, env={**os.environ, "FUSEDRNN_CUDA": "0"}, text=True, check=False, **pipes)
    if done.returncode or not (copy / "fusedrnn/_C.so").exists():
        lines = done.stdout.splitlines()
        causes = [line for line in lines if " error: " in line][:3] or lines[-20:]
        raise OSError("\n".join(["compiling failed:", *causes]))
    return names


def check(copy: Path, mutant: int, split: str, said: Connection) -> None:
    """In a process of its own: tests/kernel_check.py on several threads; says what was found wrong, "" for nothing."""
    os.environ.update(FUSEDRNN_SPLIT=split, FUSEDRNN_POISON="1")
    import kernel_cases
    import kernel_check
    import torch

    def on_threads(op: Callable[..., object], *arguments: object) -> object:
        """The op on several threads; the reference runs on one, as its many small ops would wait for cores."""
        torch.set_num_threads(threads)
        try:
            return op(*arguments)
        finally:
            torch.set_num_threads(1)

    library = ctypes.CDLL(str(copy / "fusedrnn/_C.so"))
    ctypes.c_int.in_dll(library, "fusedrnn_mutant").value = mutant
    last_is_late = ctypes.c_int.in_dll(library, "fusedrnn_last_is_late")
    names = ("layer", "layer_backward", "scan", "scan_backward", "norm_scan", "norm_scan_backward")
    kernel_check.ops = SimpleNamespace(**{name: partial(on_threads, getattr(kernel_check.ops, name)) for name in names})
    kernel_check.normed.ops = kernel_check.ops
    for threads, last in itertools.product(THREADS, (1, 0)):
        last_is_late.value = last
        try:
            kernel_check.check_all(kernel_cases.SHARED)
        except AssertionError as error:
            said.send(f"split {split}, {threads} threads, {error}")
            return
    said.send("")


def seen(copy: Path, mutant: int) -> str:
    """How the check saw the mutation; "" if it did not."""
    for split in SPLITS:
        said, says = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context("fork").Process(target=check, args=(copy, mutant, split, says))
        process.start()
        says.close()
        try:
            found = said.recv() if said.poll(MOST_SECONDS) else f"split {split}: it hangs"
        except EOFError:
            process.join()
            found = f"split {split}: it dies (exit code {process.exitcode})"
        process.kill()
        process.join()
        if found:
            return found
    return ""


def main() -> int:
    """Compiles and tries every mutation; the exit status."""
    import sources

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sample.add_arguments(parser)
    options = parser.parse_args()
    begun = time.monotonic()
    facts = "from fusedrnn import _build, ops; print(_build.compiler() is not None, ops.instruction_set)"
    told = subprocess.run(
        [sys.executable, "-c", facts], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False
    ).stdout
    compiler, instruction_set = told.split()[-2:] or ("", "None")
    if compiler == "False" or instruction_set == "None":
        reason = "there is no C++ compiler" if compiler == "False" else "the kernels are not compiled: `make setup`"
        print(f"mutations: not tried: {reason}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="fusedrnn_mutations_") as folder:
        copy = Path(folder)
        try:
            names = build(copy, sources.instruction_sets()[instruction_set])
        except (OSError, ValueError) as error:
            print(f"mutations: not tried: {error}", file=sys.stderr)
            return 2
        sys.path[:0] = [str(copy), str(ROOT / "tests")]
        os.environ["OMP_WAIT_POLICY"] = "passive"  # threads between two calls would take the others' cores
        import torch

        torch.set_num_threads(1)  # a process with threads must not fork
        import kernel_cases

        kernel_cases.prepare(kernel_cases.SHARED)
        print(f"mutations: compiled for {instruction_set} after {time.monotonic() - begun:.0f} s", flush=True)
        wrong = seen(copy, -1)
        if wrong:
            print(f"mutations: with late threads the kernel is wrong as it is: {wrong}")
            return 1
        print(f"mutations: right without any after {time.monotonic() - begun:.0f} s", flush=True)
        missed = 0
        here = [i for i, name in enumerate(names) if not name.startswith("bfloat") or instruction_set == "amx"]
        if len(here) < len(names):
            print(f"mutations: {len(names) - len(here)} of the bfloat16 loop are not tried: it needs AMX", flush=True)
        here = [here[i] for i in sample.chosen([names[i] for i in here], options.only, options.one_in)]
        for mutant in here:
            name, found = names[mutant], seen(copy, mutant)
            missed += not found
            print(f"{name}: {f'caught: {found}' if found else 'NOT CAUGHT'}", flush=True)
    print(f"mutations: {len(here) - missed} of {len(here)} caught, {time.monotonic() - begun:.0f} s")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
