"""The CUDA kernels with one fault at a time, on the stand-in; their check has to see every one of them.

Faults are made wherever the sources call for one (`cuda_faults`), so a new line is covered by itself.
All faults are compiled at once, and a variable of the library chooses one of them or none; with none the copy must be
right. That run also notes which runs of the check come past which fault: the others need not be tried.

Exit status: 0 if every fault was seen or is proven harmless in HARMLESS, 1 if one was not, if HARMLESS names one that
was seen or that does not exist, or if the copy is wrong without any, 2 if nothing was tried.
"""

from __future__ import annotations

import argparse
import ctypes
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import sample
from cuda_faults import HARMLESS, Fault, mutate

ROOT = Path(__file__).resolve().parents[1]
MOST_SECONDS = 20  # of one run, which hangs if it takes longer
EACH, MOST_RUNS, AGAIN = 5, 90, 10  # runs of a fault: of one kernel, of all, and those that are tried with every seed
SEEDS = (1, 2, 3)  # of the stand-in: the order of warps and of late stores

KERNELS = ["gru_bf16", "lstm_bf16", "rnn_tanh_bf16", "gru_tf32", "lstm_fp32"]  # of the table, the only ones compiled


def build(copy: Path, compiler: str) -> tuple[Path, list[Fault]]:
    """The library with every fault to choose from."""
    for name in ("csrc", "tests/cpp"):
        shutil.copytree(ROOT / name, copy / name)
    faults = mutate(copy)
    library = copy / "cuda_library.so"
    flags = ["-std=c++20", "-O1", "-fPIC", "-DFUSEDRNN_HOST_DEVICE", "-w", f"-I{copy / 'csrc'}", "-x", "c++"]
    cuda = copy / "csrc/cuda"
    kernels = ("plan.cpp", "run.cpp", "step.cu", "norm_step.cu")
    sources = [copy / "tests/cpp/cuda_library.cpp", *(cuda / name for name in kernels)]
    instances = sorted((cuda / "instances").glob("*.cu"))
    for instance in instances:
        if "instantiate.h" in instance.read_text() and not instance.stem.startswith(tuple(KERNELS)):
            leave_empty(instance)
    sources += instances
    objects = [str(copy / f"{number}.o") for number in range(len(sources))]
    commands = [[compiler, *flags, "-c", str(s), "-o", o] for s, o in zip(sources, objects, strict=True)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compiled, commands))
    compiled([compiler, "-shared", *objects, "-o", str(library)])
    return library, faults


def leave_empty(instance: Path) -> None:
    """No kernels, in a file of instances/: the check does not run them, and they take most of the compiler's time."""
    text = (
        instance.read_text()
        .replace("cuda/instantiate.h", "cuda/kernels.h")
        .replace("template const", "template <> const")
    )
    instance.write_text(text.replace("();", "() {\n  static const KernelTable none{};\n  return none;\n}"))


def compiled(command: list[str]) -> None:
    """Runs a compiler.

    Raises:
        OSError: it found an error.
    """
    done = subprocess.run(command, text=True, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        errors = [line for line in done.stdout.splitlines() if " error: " in line]
        raise OSError("\n".join(["compiling failed:", *(errors or done.stdout.splitlines())[:5]]))


class Check:
    """The runs of tests/cuda_calls.py, prepared once, with the library that has the faults."""

    def __init__(self, library: Path, faults: int) -> None:
        import cuda_calls  # type: ignore[import-not-found]

        self.check: Any = cuda_calls
        self.library = cuda_calls.load(library)
        steps = ((cuda_calls.STEP, cuda_calls.step_cases()), (cuda_calls.NORM_STEP, cuda_calls.norm_cases()))
        self.runs = [(row, case, run) for row, cases in steps for case in cases for run in cuda_calls.prepare(case)]
        self.instances = cuda_calls.instances(self.library)
        for instance in self.instances:
            precision = list(cuda_calls.PRECISIONS)[instance.precision]
            if f"{cuda_calls.CELLS[instance.cell].name}_{precision}" in KERNELS:
                for case in cuda_calls.kernel_cases(instance):
                    self.runs.append((instance.row, case, cuda_calls.prepare(case)[instance.backward]))
        self.chosen = ctypes.c_int.in_dll(self.library, "fusedrnn_chosen")
        self.passed = (ctypes.c_char * faults).in_dll(self.library, "fusedrnn_passed")

    def fault(self, run: int, seed: int) -> str:
        row, case, one = self.runs[run]
        found = self.check.fault(self.library, case, one, seed, row)
        where = "step" if row < 0 else str(self.instances[row])
        return f"{where}, {case}, {'backward' if one.backward else 'forward'}, seed {seed}: {found}" if found else ""

    def survey(self) -> tuple[list[list[int]], list[str]]:
        """Without any fault: by fault the runs that come past it, the telling and quick first; and what is wrong."""
        past: list[list[tuple[int, float, int]]] = [[] for _ in self.passed]
        wrong: list[str] = []
        for run in range(len(self.runs)):
            ctypes.memset(self.passed, 0, len(self.passed))
            begun = time.monotonic()
            wrong += filter(None, [self.fault(run, SEEDS[0])])
            seconds, case = time.monotonic() - begun, self.runs[run][1]
            plain = (not case.reset) + (not case.lengths)  # what ends or is cut shows more
            for number, passed in enumerate(self.passed.raw):
                if passed:
                    past[number].append((plain, seconds, run))
        return [self.few([run for *_, run in sorted(runs)]) for runs in past], wrong

    def few(self, runs: list[int]) -> list[int]:
        """The first runs of each kernel, and of the time-step kernel in each precision."""
        tried: dict[tuple[int, str], int] = {}
        rounds: list[list[int]] = [[] for _ in range(EACH)]
        for run in runs:
            row, case, one = self.runs[run]
            kernel = (row, f"{case.precision} {one.backward}" if row < 0 else "")
            tried[kernel] = tried.get(kernel, -1) + 1
            if tried[kernel] < EACH:
                rounds[tried[kernel]].append(run)
        return list(chain.from_iterable(rounds))[:MOST_RUNS]

    def tell(self, number: int, runs: list[int], said: Connection) -> None:
        """In a process of its own: what the first run that sees the fault says, "" if none does."""
        self.chosen.value = number
        for seed in SEEDS:
            for run in runs if seed == SEEDS[0] else runs[:AGAIN]:
                signal.alarm(MOST_SECONDS)  # its default is to end the process
                if found := self.fault(run, seed):
                    said.send(found)
                    return
        said.send("")

    def try_all(self, numbers: list[int], past: list[list[int]]) -> Iterator[tuple[int, str]]:
        """Faults, and how each was seen; "" if it was not. As many at once as there are cores."""
        fork, left, tried = multiprocessing.get_context("fork"), list(reversed(numbers)), list[Trial]()
        while left or tried:
            while left and len(tried) < (os.cpu_count() or 1):
                said, says = fork.Pipe(duplex=False)
                number = left.pop()
                process = fork.Process(target=self.tell, args=(number, past[number], says))
                process.start()
                says.close()
                tried.append(Trial(number, process, said))
            wait([trial.said for trial in tried])
            for trial in list(tried):
                if not trial.said.poll():
                    continue
                tried.remove(trial)
                yield trial.number, trial.answer()


class Trial(NamedTuple):
    """A fault that a process is about to look for."""

    number: int
    process: BaseProcess
    said: Connection

    def answer(self) -> str:
        """What the process said, or what became of it."""
        try:
            found = str(self.said.recv())
        except EOFError:
            self.process.join()
            code = self.process.exitcode
            found = "it hangs" if code == -signal.SIGALRM else f"it dies (exit code {code})"
        self.process.kill()
        self.process.join()
        return found


def main() -> int:
    """Compiles and tries every fault; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sample.add_arguments(parser)
    options = parser.parse_args()
    begun = time.monotonic()
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if not compiler:
        print("mutations: not tried: there is no C++ compiler", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="fusedrnn_mutations_") as folder:
        try:
            library, faults = build(Path(folder), compiler)
        except (OSError, ValueError) as error:
            print(f"mutations: not tried: {error}", file=sys.stderr)
            return 2
        sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
        import torch

        torch.set_num_threads(1)  # a process with threads must not fork
        print(f"mutations: {len(faults)} compiled after {time.monotonic() - begun:.0f} s", flush=True)
        check = Check(library, len(faults))
        past, wrong = check.survey()
        if wrong:
            print("\n".join(["mutations: the copy is wrong without any:", *wrong]))
            return 1
        print(f"mutations: right without any after {time.monotonic() - begun:.0f} s", flush=True)
        numbers = sample.chosen([str(fault) for fault in faults], options.only, options.one_in)
        bad = 0
        for number, found in check.try_all(numbers, past):
            fault = faults[number]
            proof = fault.proof()
            verdict = f"caught: {found}" if found else "NOT CAUGHT" if past[number] else "NOT REACHED"
            if proof:
                verdict = f"CAUGHT, but said to be harmless: {found}" if found else f"harmless: {proof}"
            bad += bool(found) == bool(proof)
            print(f"{fault}: {verdict}", flush=True)
        for what, text in HARMLESS:
            if not any(fault.named(what, text) for fault in faults):
                print(f"HARMLESS names a fault that is not there: {what}: {text}")
                bad += 1
    print(f"mutations: {len(numbers)} tried, {bad} to mend, {time.monotonic() - begun:.0f} s")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
