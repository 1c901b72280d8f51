"""`make gpu`: all that needs an NVIDIA GPU, in stages, each with its seconds; no network, no virtual environment.

build     compiles the package in place, for the GPU that is there
micro     the constants of the planner's cost model
parity    the tests marked gpu, but for
triton    those of the Triton kernels, most of whose time is compiling
sanitize  compute-sanitizer's memcheck, racecheck and synccheck on a few calls
grid      fused kernels against cuDNN, the most telling cases first
recurrence, flatten_parameters, checkpointing, cells, text
          each study's rows on a GPU

The folder that --out names receives at most eight files. Each row is on disk before the next is made: what a cut-off
leaves is taken up by the next call with the same folder. Later stages run whatever earlier ones came to; the exit
status is 1 unless build and parity, where they were asked for, are through and right, and 2 where there is no GPU to
ask. `--dry-run` needs none: it prints what would run, and checks that all of it exists.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import functools
import importlib.util
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from gpu_environment import digest, environment, torch_facts

ROOT = Path(__file__).resolve().parents[1]
STUDIES = {"recurrence": 12, "flatten_parameters": 8, "checkpointing": 12, "cells": 18, "text": 20}
"""Seconds of each."""
SECONDS = {"build": 120, "micro": 20, "parity": 100, "triton": 55, "sanitize": 55, "grid": 120, **STUDIES}
MUST = ("build", "parity")
LOG, ENVIRONMENT, TABLE = "log.txt", "env.json", "table.json"
FILES = (LOG, ENVIRONMENT, "micro.csv", "parity.csv", "sanitize.txt", "grid.csv", TABLE, "studies.csv")
AGAIN = 75
"""Exit status of a child that wants to be called once more: a fault had spoilt the device for its process."""
SANITIZERS = ("memcheck", "racecheck", "synccheck")
REFUSALS = ("Device not supported", "not supported on this", "Failed to initialize", "Unable to find")
TRITON_TESTS = "tests/gpu/test_gpu_triton.py"
MICRO = "benchmarks/gpu/micro.cu"
OK, FAILED, CUT = "ok", "failed", "cut off"


@dataclass(frozen=True)
class Step:
    """One command of a stage.

    Attributes:
        command: what runs, in the checkout.
        into: the file of the folder that takes its output, beside the log.
        needs: a program that the machine may lack.
        env: what its environment has beside ours.
        share: of the stage's seconds that are left.
        rehearsal: what a dry run executes in its place; None: nothing.
        verdict: what an exit status and the output come to.
    """

    command: Sequence[str]
    into: str | None = None
    needs: str | None = None
    env: dict[str, str] = field(default_factory=dict)
    share: float = 1.0
    rehearsal: Sequence[str] | None = None
    verdict: Callable[[int, str], str] = lambda status, output: OK if status == 0 else f"{FAILED}: status {status}"


@dataclass(frozen=True)
class Machine:
    """The interpreter that has torch with CUDA, the folder, and the GPU's architecture."""

    python: str
    out: Path
    arch: str = "90a"


def steps(stage: str, machine: Machine, seconds: float) -> list[Step]:
    """What a stage runs."""
    python, out = machine.python, machine.out
    if stage == "build":
        jobs = str(min(16, os.cpu_count() or 1))
        build = [python, "setup.py", "build_ext", "--inplace"]
        check = (
            "import sys; from fusedrnn import ops; why = ops.missing or ops.cuda_missing; "
            "print(why or 'compiled'); sys.exit(why is not None)"
        )
        return [
            Step(build, env={"FUSEDRNN_CUDA": "1", "MAX_JOBS": jobs}, rehearsal=[python, "setup.py", "--version"]),
            Step([python, "-c", check]),
        ]
    if stage == "micro":
        if finished(out / "micro.csv"):
            return []
        program = str(ROOT / "build" / "micro")
        compile_ = ["nvcc", "-std=c++20", "-O3", f"-arch=sm_{machine.arch}", MICRO]
        rehearsal = ["nvcc", "-std=c++20", "-O3", "-arch=sm_90a", "-cubin", MICRO, "-o", os.devnull]
        return [
            Step([*compile_, "-o", program], needs="nvcc", rehearsal=rehearsal),
            Step([program], into="micro.csv", needs=program),
        ]
    if stage in ("parity", "triton"):
        which = [TRITON_TESTS] if stage == "triton" else ["tests/gpu", "--ignore", TRITON_TESTS]
        command = [python, "-m", "pytest", *which, "-q", "-p", "no:cacheprovider"]
        return [
            Step(
                command,
                env={"FUSEDRNN_GPU_RECORD": str(out / "parity.csv"), "CUBLAS_WORKSPACE_CONFIG": ":4096:8"},
                rehearsal=[*command, "--collect-only"],
                verdict=functools.partial(_tested, out / "parity.csv", stage),
            )
        ]
    if stage == "sanitize":
        script = [python, "tests/gpu/sanitize.py"]
        return [
            Step(
                ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *script],
                into="sanitize.txt",
                needs="compute-sanitizer",
                share=1 / (len(SANITIZERS) - i),
                rehearsal=[*script, "--dry-run"],
                verdict=_sanitized,
            )
            for i, tool in enumerate(SANITIZERS)
        ]
    if stage == "grid":
        command = [python, "-m", "benchmarks", "gpu", "--out", str(out / "grid.csv")]
        table = [python, "-m", "benchmarks", "gpu-table", str(out / "grid.csv"), "--file", str(out / TABLE)]
        return [
            Step([*command, "--budget", str(max(1, seconds - 15))], rehearsal=[*command, "--list"]),
            Step(table, rehearsal=[python, "-m", "benchmarks", "gpu-table", "--help"]),
        ]
    study = [python, "-m", "benchmarks", "study", stage, "--device", "cuda", "--rows", str(out / "studies.csv")]
    return [Step([*study, "--budget", str(max(1.0, seconds - 5))], rehearsal=[*study, "--help"])]


def finished(constants: Path) -> bool:
    """Whether an earlier call has measured all of them."""
    return constants.exists() and "\ndone," in constants.read_text()


def _tested(record: Path, stage: str, status: int, output: str) -> str:
    """By what the record holds of these sources, from earlier calls too: pytest's status tells of this one alone."""
    rows = csv.DictReader(record.open()) if record.exists() else ()
    sources = digest()
    own = [row for row in rows if row["sources"] == sources and ((TRITON_TESTS in row["test"]) == (stage == "triton"))]
    outcomes = [row["outcome"] for row in own]
    if bad := sum(outcome not in ("passed", "skipped") for outcome in outcomes):
        return f"{FAILED}: {bad} of {len(outcomes)} tests"
    right = status in (0, 5) and "passed" in outcomes
    return OK if right else f"{FAILED}: status {status}, {outcomes.count('passed')} tests passed"


def _sanitized(status: int, output: str) -> str:
    refusal = next((line.strip() for line in output.splitlines() if any(text in line for text in REFUSALS)), None)
    return OK if status == 0 else f"refused: {refusal}" if refusal else f"{FAILED}: status {status}"


def run_stage(stage: str, todo: Sequence[Step], out: Path, seconds: float) -> str:
    """Runs a stage's commands until its seconds are spent; what it came to."""
    if not todo:
        return "skipped: there is nothing to do"
    end, results = time.monotonic() + seconds, []
    for step in todo:
        name = Path(step.needs or "").name
        if step.needs and not shutil.which(step.needs):
            result = f"skipped: {name} is not here"
        else:
            result = run_step(step, out, step.share * (end - time.monotonic()))
        results.append(result)
        if step.into and not result.startswith(OK):  # beside the output that ends here
            with (out / step.into).open("a") as file:
                file.write(f"# {' '.join(map(_short, step.command))}: {result}\n")
        if result.startswith(FAILED) and stage in ("build", "micro"):
            break  # what follows rests on it
    return next((result for result in results if result != OK), OK)


def run_step(step: Step, out: Path, seconds: float) -> str:
    """Runs a command, its output shown, logged and kept; ended with all its children when its seconds are over."""
    end = time.monotonic() + seconds
    while True:
        if end - time.monotonic() < 1:
            return CUT
        status, output = execute(step, out, end - time.monotonic())
        if status is None:
            return CUT
        if status != AGAIN:
            return step.verdict(status, output)


def execute(step: Step, out: Path, seconds: float) -> tuple[int | None, str]:
    """Exit status (None: it was ended) and output."""
    lines: list[str] = []
    with (out / LOG).open("a") as log, (out / (step.into or LOG)).open("a") as own:
        log.write(f"$ {' '.join(map(_short, step.command))}\n")
        child = subprocess.Popen(
            step.command,
            cwd=ROOT,
            env={**surroundings(), **step.env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # so that what it starts ends with it
        )
        files = [sys.stdout, log, *([own] if step.into else [])]
        reader = threading.Thread(target=_tee, args=(child.stdout, files, lines), daemon=True)
        reader.start()
        try:
            status: int | None = child.wait(seconds)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            _end(child)
            reader.join(5)
    return status, "".join(lines)


def surroundings() -> dict[str, str]:
    """The environment of every command: the package is taken from the checkout, where it was built."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": path}


def _tee(source: IO[str], files: Sequence[IO[str]], lines: list[str]) -> None:
    for line in source:
        lines.append(line)
        for file in files:
            file.write(line)
            file.flush()


def _end(child: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def rehearse(stage: str, todo: Sequence[Step]) -> list[str]:
    """Prints a stage's commands, and what of them is missing: ours are faults, the machine's programs are not."""
    faults = []
    for step in todo:
        print("  " + " ".join(map(_short, step.command)))
        if step.needs and not os.path.isabs(step.needs) and not shutil.which(step.needs):
            print(f"  ({step.needs} is not here)")
        faults += [f"{stage}: {name} is not here" for name in absent(step.command)]
        program = (step.rehearsal or [""])[0]
        if program and shutil.which(program) and step.rehearsal:
            done = subprocess.run(
                step.rehearsal, cwd=ROOT, env=surroundings(), capture_output=True, text=True, check=False
            )
            if done.returncode != 0:
                told = (done.stdout + done.stderr).strip().splitlines()[-3:]
                faults.append(f"{stage}: {' '.join(map(_short, step.rehearsal))}: {' / '.join(told)}")
    return faults


def absent(command: Sequence[str]) -> list[str]:
    """Modules and files of the checkout that a command names and that are not there."""
    modules = [b for a, b in itertools.pairwise(command) if a == "-m"]
    missing = [name for name in modules if not (ROOT / name).is_dir() and not importlib.util.find_spec(name)]
    named = [word for word in command[1:] if word.endswith((".py", ".cu")) or word.startswith("tests/")]
    return missing + [word for word in named if not (ROOT / word).exists()]


def interpreter(probe: Callable[[str], str | None]) -> str | None:
    """The first Python whose torch has CUDA: the one that runs this, then the checkout's."""
    candidates = [sys.executable, str(ROOT / ".venv" / "bin" / "python")]
    return next((path for path in candidates if shutil.which(path) and probe(path)), None)


def _short(word: str) -> str:
    return Path(word).name if os.path.isabs(word) else word


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make gpu", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--stage", default=",".join(SECONDS), help="stages, separated by commas (default: all)")
    parser.add_argument("--out", type=Path, default=Path("gpu-out"), help="the folder (default: %(default)s)")
    parser.add_argument("--seconds", default="", metavar="grid=90,...", help="other budgets than a stage's own")
    parser.add_argument("--dry-run", action="store_true", help="run nothing, check everything; needs no GPU")
    options = parser.parse_args(arguments)
    options.stages = [name for name in options.stage.split(",") if name]
    try:
        pairs = [part.split("=") for part in options.seconds.split(",") if part]
        options.budgets = SECONDS | {name: float(seconds) for name, seconds in pairs}
    except ValueError:
        parser.error(f"--seconds: expected stage=seconds,..., got {options.seconds}")
    if unknown := [name for name in [*options.stages, *options.budgets] if name not in SECONDS]:
        parser.error(f"unknown stage {', '.join(unknown)}; there are {', '.join(SECONDS)}")
    return options


def main(arguments: Sequence[str] | None = None, plan: Callable[..., list[Step]] = steps) -> int:
    options = parse(arguments)
    out = options.out.resolve()
    if options.dry_run:
        faults = []
        for stage in options.stages:
            print(f"{stage}: {options.budgets[stage]:g} s")
            faults += rehearse(stage, plan(stage, Machine(sys.executable, out), options.budgets[stage]))
        total = sum(options.budgets[stage] for stage in options.stages)
        print(f"{total:g} s in all, at most {len(FILES)} files in {out.name}")
        print("\n".join([f"fault: {fault}" for fault in faults] or ["everything that runs is here"]))
        return 1 if faults else 0
    python = interpreter(torch_facts)
    if python is None:
        print(
            "make gpu: needs an NVIDIA GPU and a Python whose torch has CUDA (PYTHON=); neither this one nor .venv is",
            file=sys.stderr,
        )
        return 2
    return run_all(options.stages, options.budgets, Machine(python, out, _arch(torch_facts(python))), plan)


def _arch(facts: dict[str, Any] | None) -> str:
    major, minor = facts["capability"] if facts else (9, 0)
    return f"{major}{minor}{'a' if (major, minor) in ((9, 0), (10, 0)) else ''}"


def run_all(
    stages: Sequence[str], budgets: dict[str, float], machine: Machine, plan: Callable[..., list[Step]] = steps
) -> int:
    """Runs stages one after the other; env.json tells what each came to, also where a signal ends it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that children are ended
    machine.out.mkdir(parents=True, exist_ok=True)
    (ROOT / "build").mkdir(exist_ok=True)
    record = machine.out / ENVIRONMENT
    runs = json.loads(record.read_text())["runs"] if record.exists() else []
    run = environment(torch_facts(machine.python)) | {"stages": {}}
    came_to: dict[str, str] = {}
    for stage in stages:
        print(f"gpu: {stage}, {budgets[stage]:g} s", flush=True)
        start = time.monotonic()
        run["stages"][stage] = {"result": CUT, "seconds": budgets[stage]}
        _write(record, {"runs": [*runs, run]})
        came_to[stage] = run_stage(stage, plan(stage, machine, budgets[stage]), machine.out, budgets[stage])
        run["stages"][stage] = {"result": came_to[stage], "seconds": round(time.monotonic() - start, 1)}
        run["after"] = environment(None)["nvidia_smi"]
        _write(record, {"runs": [*runs, run]})
    for stage, result in came_to.items():
        print(f"gpu: {stage}: {result} ({run['stages'][stage]['seconds']} s)")
    return 1 if any(came_to.get(stage, OK) != OK for stage in MUST) else 0


def _write(path: Path, value: Any) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(part, path)


if __name__ == "__main__":
    sys.exit(main())
