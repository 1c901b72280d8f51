"""The CUDA kernels with one fault at a time, on the stand-in; their check has to see every one of them.

Faults are made wherever the sources call for one, so a new line is covered by itself:
- a call of the device API that synchronises is left out, or asked for one thing more or less (parity, bytes, arrivals,
  the number of a barrier);
- a load or store that asks whether it is valid no longer asks, or is never valid;
- a double buffer (`& 1`) becomes a single one;
- a function that answers yes or no (is the row real, is it cut off, ...) always says yes, or always no;
- a comparison is off by one.

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
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
MOST_SECONDS = 20  # of one run, which hangs if it takes longer
EACH, MOST_RUNS, AGAIN = 4, 70, 10  # runs of a fault: of one kernel, of all, and those that are tried with every seed
SEEDS = (1, 2, 3)  # of the stand-in: the order of warps and of late stores

LEFT, RIGHT = re.compile(r"[\w.()\[\]]+$"), re.compile(r"[(~-]*[\w.:]+")
CONSTANT = re.compile(r"\bk[A-Z]\w*$")
KERNELS = [("bf16", 0), ("bf16", 1), ("bf16", 2), ("tf32", 0), ("fp32", 1)]  # of the table: precision and cell

API = ("device_api.h", "device_math.h", "device_memory.h")  # what kernels are written with, not kernels
LEFT_OUT = [
    "cta_sync",
    "warp_sync",
    "named_sync",
    "cluster_sync",
    "mbar_init",
    "mbar_init_fence",
    "mbar_arrive_expect",
    "mbar_wait",
]
LEFT_OUT += ["st_release", "st_async4", "st_async8", "st_async16"]
CHANGED = {  # by one argument: its number, and what becomes of it
    "mbar_wait": [(1, "({}) ^ {}", "the other parity")],
    "mbar_arrive_expect": [(1, "({}) + 16 * {}", "16 bytes more"), (1, "({}) - 16 * {}", "16 bytes less")],
    "mbar_init": [(1, "({}) + {}", "an arrival more")],
    "named_sync": [(0, "{1} ? 1 : ({0})", "always barrier 1")],
}
CONDITIONAL = ["ld4_if", "ld8_if", "ld16_if", "st4_if", "st8_if", "st16_if"]  # their last argument is the condition
PREDICATE = re.compile(r"\bFR_DEV (?:static )?bool (\w+)\(")
COMPARISON = re.compile(r" (<|<=|>|>=|==|!=) (?!nullptr|Exchange::|Pass::|Precision::)")

HARMLESS: dict[tuple[str, str], str] = {
    ("no cta_sync", "cta_sync(); cluster_sync();"): "a barrier of all threads of the cluster follows",
    ("no mbar_init_fence", ""): "seen by no stand-in: PTX asks for it before others use the barrier",
    ("no warp_sync", "exchange_grid.h"): "seen by no stand-in: it makes the lanes meet for mma after a loop",
    ("no cluster_sync", "exchange.h: FR_DEV void end()"): "a CTA has waited for the last bytes that are sent to it",
    ("no cluster_sync", "scatter.h: cluster_sync(); if (finisher)"): "as in exchange.h",
    ("no cluster_sync", "split.h: cluster_sync(); }"): "as in exchange.h",
    ("off by one: (thread_id() == 0", "if (thread_id() == 0)"): "thread 1 does it instead of thread 0",
    ("finisher: always yes", "scatter.h"): "it is yes where k_split is 1 or 2, as in every small kernel",
    ("finisher: always yes", "split.h"): "it is yes where k_split is 1 or 2, as in every small kernel",
    ("vote_any: always yes", "const bool multiplies ="): "the product is taken, of zeros, and nobody reads it",
    ("vote_any: always yes", "if (vote_any(last))"): "what follows asks every row again",
    ("vote_any: always yes", "L::kMasked ? vote_any(last)"): "what follows asks every row again",
    ("off by one: length < 0", "return length < 0"): "0 becomes 0",
    ("off by one: length < T", "return length < 0"): "T becomes T",
    ("off by one: (t >= p.T", "row_length("): "no row is longer than T: the other half of the line sees it",
    ("0 for sums[k & 1]", "mma<"): "both chains of sums are one; they are added anyway",
    (
        "off by one: kept[k < kRegisters",
        "product.h",
    ): "the inner one is asked where the outer one holds, for the compiler only",
    (
        "off by one: kept[x < kRegisters",
        "scatter.h",
    ): "the inner one is asked where the outer one holds, for the compiler only",
    ("off by one: z < Z", "kept[z] = z < Z ?"): "Z is 0 or 4, z below 4: only z = 0 of Z = 0 changes, without an array",
    ("off by one: given.tile_rows < f.problem.B", ""): "where they are equal, both sides are the same number",
    ("off by one: (i < columns", ""): "columns of rows that do not exist; nobody reads them",
    ("off by one: kRowStep < tile.rows", ""): "sums of rows that do not exist; nobody reads them",
    (
        "off by one: 1 < rows.steps",
        "scatter.h: if (finisher",
    ): "the step behind the last one is no row's: nothing is loaded",
}
"""Faults that no run can see, by what is done and to which line, and the proof."""


class Fault(NamedTuple):
    """What is done to which line of which file."""

    file: str
    line: int
    text: str
    after: str  # the line below
    what: str

    def proof(self) -> str:
        """Why no run can see it; "" if one has to."""
        found = (proof for (what, text), proof in HARMLESS.items() if self.named(what, text))
        return next(found, "")

    def named(self, what: str, text: str) -> bool:
        """Whether an entry of HARMLESS means it."""
        return what == self.what and text in f"{self.file}: {self.text} {self.after}"

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.what}: {self.text}"


@dataclass
class Source:
    """A file whose text changes from rule to rule, but not its lines."""

    file: str
    text: str
    original: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.original = self.text.splitlines()

    def fault(self, position: int, what: str) -> Fault:
        """A fault at a place of the text as it is now."""
        line = self.text.count("\n", 0, position)
        after = "".join(self.original[line + 1 : line + 2]).strip()
        return Fault(self.file, line + 1, self.original[line].strip(), after, what)


class Mutator:
    """Puts faults into sources, each behind its number."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []

    def chosen(self, fault: Fault) -> str:
        """What is true (1) where the fault is made."""
        self.faults.append(fault)
        return f"fusedrnn_mutant({len(self.faults) - 1})"

    def leave_out(self, source: Source, name: str) -> None:
        for start, _, end in reversed(list(calls(source.text, rf"\b{name}"))):
            call = source.text[start:end]
            new = f"({self.chosen(source.fault(start, f'no {name}'))} ? void() : {call})"
            source.text = source.text[:start] + new + source.text[end:]

    def change(self, source: Source, name: str, number: int, form: str, what: str) -> None:
        for start, opened, end in reversed(list(calls(source.text, rf"\b{name}"))):
            arguments = split(source.text[opened + 1 : end - 1])
            if arguments[number].strip() in ("true", "false"):
                continue
            chosen = self.chosen(source.fault(start, f"{name}: {what}"))
            arguments[number] = form.format(arguments[number].strip(), chosen)
            source.text = f"{source.text[: opened + 1]}{', '.join(arguments)}{source.text[end - 1 :]}"

    def answer(self, source: Source, name: str) -> None:
        for start, _, end in reversed(list(calls(source.text, rf"(?:\w+(?:<\w+>)?(?:\.|->|::))*\b{name}"))):
            call = source.text[start:end]
            if source.text[end] == ";" and re.search(r"(?:[;{})]|\belse)$", source.text[:start].rstrip()):
                continue  # a statement: another function of the same name, which answers nothing
            yes, no = (self.chosen(source.fault(start, f"{name}: always {word}")) for word in ("yes", "no"))
            source.text = f"{source.text[:start]}((int({call}) | {yes}) & !{no}){source.text[end:]}"

    def single_buffer(self, source: Source) -> None:
        for found in reversed(list(matches(source.text, re.compile(r"& 1\b")))):
            around = re.search(r"[\w.\[]+ $", source.text[: found.start()])
            what = f"0 for {around[0] if around else ''}{source.text[found.start() : found.end() + 1].strip()}"
            chosen = self.chosen(source.fault(found.start(), what))
            source.text = f"{source.text[: found.start()]}& (1 ^ {chosen}){source.text[found.end() :]}"

    def off_by_one(self, source: Source) -> None:
        for found in reversed(list(matches(source.text, COMPARISON))):
            if CONSTANT.search(source.text[: found.start()]) and source.text[found.end()].isdigit():
                continue
            left, right = LEFT.search(source.text[: found.start()]), RIGHT.match(source.text[found.end() :])
            what = f"off by one: {left[0] if left else ''} {found[1]} {right[0] if right else ''}"
            chosen = self.chosen(source.fault(found.start() + 1, what))
            source.text = f"{source.text[: found.start()]} - {chosen}{source.text[found.start() :]}"


def fixed(text: str) -> list[tuple[int, int]]:
    """Where nothing may be changed: comments, preprocessor lines, loop heads and what the compiler works out."""
    spans = [m.span() for m in re.finditer(r"//[^\n]*|^#[^\n]*|\bfor \([^\n]*?\)[^\n]*?[;{]?$", text, re.M)]
    for m in re.finditer(r"\bif constexpr \(", text):
        spans.append((m.start(), closing(text, m.end() - 1)))
    # a constant up to its semicolon, a constexpr function to the end of its body
    for m in re.finditer(r"\b(?<!if )(?:constexpr|static_assert|using|template|requires)\b[^;{]*", text):
        end = m.end()
        spans.append((m.start(), closing(text, end) if text[end : end + 1] == "{" and "constexpr" in m[0] else end))
    return spans


def matches(text: str, pattern: re.Pattern[str]) -> Iterator[re.Match[str]]:
    """What matches where something may be changed."""
    spans = fixed(text)
    for found in pattern.finditer(text):
        if not any(first <= found.start() < last for first, last in spans):
            yield found


def calls(text: str, name: str) -> Iterator[tuple[int, int, int]]:
    """Calls of a function: where they start, their opening bracket, and where they end."""
    for found in matches(text, re.compile(name + r"\(")):
        before = text[: found.start()].rstrip()
        if not re.search(r"\b(?:bool|void)$", before):  # not its declaration
            yield found.start(), found.end() - 1, closing(text, found.end() - 1)


def closing(text: str, opened: int) -> int:
    """Behind the bracket that closes the one at `opened`."""
    depth = 0
    for i in range(opened, len(text)):
        depth += (text[i] in "([{") - (text[i] in ")]}")
        if not depth:
            return i + 1
    raise ValueError("a bracket is not closed")


def split(arguments: str) -> list[str]:
    """Arguments of a call, at the commas outside of brackets."""
    parts, depth = [""], 0
    for letter in arguments:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def mutate(copy: Path) -> list[Fault]:
    """Changes the kernels' sources in a copy of the checkout."""
    folder = copy / "csrc/cuda"
    paths = [p for p in sorted(folder.glob("*.h")) if p.name not in API and "FR_DEV" in p.read_text()]
    sources = [Source(path.name, path.read_text()) for path in paths]
    predicates = sorted({name for source in sources for name in PREDICATE.findall(source.text)})
    mutator = Mutator()
    for source in sources:
        for name in (*predicates, "vote_any"):
            mutator.answer(source, name)
        for name in CONDITIONAL:
            mutator.change(source, name, -1, "({}) || {}", "always valid")
            mutator.change(source, name, -1, "({}) && !{}", "never valid")
        for name, changes in CHANGED.items():
            for number, form, what in changes:
                mutator.change(source, name, number, form, what)
        for name in LEFT_OUT:
            mutator.leave_out(source, name)
        mutator.single_buffer(source)
        mutator.off_by_one(source)
    for path, source in zip(paths, sources, strict=True):
        path.write_text(source.text.replace("#pragma once\n", '#pragma once\n#include "cuda/mutant.h"\n', 1))
    (folder / "mutant.h").write_text(MUTANT.format(count=len(mutator.faults)))
    return mutator.faults


MUTANT = """#pragma once
extern "C" {{
__attribute__((visibility("default"))) inline int fusedrnn_chosen = -1;
__attribute__((visibility("default"))) inline char fusedrnn_passed[{count}] = {{}};
}}
inline int fusedrnn_mutant(int number) {{
  fusedrnn_passed[number] = 1;
  return fusedrnn_chosen == number;
}}
"""


def build(copy: Path, compiler: str) -> tuple[Path, list[Fault]]:
    """The library with every fault to choose from."""
    for name in ("csrc", "tests/cpp"):
        shutil.copytree(ROOT / name, copy / name)
    faults = mutate(copy)
    library = copy / "cuda_library.so"
    flags = ["-std=c++20", "-O1", "-fPIC", "-DFUSEDRNN_HOST_DEVICE", "-w", f"-I{copy / 'csrc'}", "-x", "c++"]
    cuda = copy / "csrc/cuda"
    sources = [copy / "tests/cpp/cuda_library.cpp", *(cuda / name for name in ("plan.cpp", "run.cpp", "step.cu"))]
    small = sorted(
        (copy / "csrc/host_device").glob("*.cpp")
    )  # the kernels of the stand-in's table, where they are apart
    sources += small or sorted((cuda / "instances").glob("*.cu"))
    objects = [str(copy / f"{number}.o") for number in range(len(sources))]
    commands = [[compiler, *flags, "-c", str(s), "-o", o] for s, o in zip(sources, objects, strict=True)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compiled, commands))
    compiled([compiler, "-shared", *objects, "-o", str(library)])
    return library, faults


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
        self.runs = [(-1, case, run) for case in cuda_calls.step_cases() for run in cuda_calls.prepare(case)]
        self.instances = cuda_calls.instances(self.library)
        for instance in self.instances:
            if (list(cuda_calls.PRECISIONS)[instance.precision], instance.cell) in KERNELS:
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
        """Without any fault: by fault the runs that come past it, the quickest first; and what is wrong."""
        past: list[list[tuple[float, int]]] = [[] for _ in self.passed]
        wrong: list[str] = []
        for run in range(len(self.runs)):
            ctypes.memset(self.passed, 0, len(self.passed))
            begun = time.monotonic()
            wrong += filter(None, [self.fault(run, SEEDS[0])])
            seconds = time.monotonic() - begun
            for number, passed in enumerate(self.passed.raw):
                if passed:
                    past[number].append((seconds, run))
        return [self.few([run for _, run in sorted(runs)]) for runs in past], wrong

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
    parser.add_argument("only", nargs="*", help="parts of the faults' names; all of them by default")
    only = parser.parse_args().only
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
        numbers = [i for i, fault in enumerate(faults) if not only or any(part in str(fault) for part in only)]
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
