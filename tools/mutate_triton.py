"""The Triton kernels with one fault at a time, in Triton's interpreter; their check has to see every one of them.

The faults are those of triton_faults.py. Each is made in a copy of fusedrnn/triton_kernels, in a process of its own,
and the runs below, of tests/recurrence_check.py, are made until one is wrong: only those of the pass and the regime
that the function belongs to. Launches are watched (tests/interpreted.py), so that a missing barrier and an access
outside a tensor are seen. What no run of this size shows is arithmetic in 32 bits in place of 64, and on a CPU what
Triton's compiler makes of a kernel.

Exit status: 0 if every fault was seen or is proven harmless in HARMLESS, 1 if one was not, if HARMLESS names one that
was seen or that does not exist, or if a run is wrong without any, 2 if nothing was tried.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import sample
from triton_faults import FAULTS, HARMLESS, Fault

ROOT = Path(__file__).resolve().parents[1]
MOST_SECONDS = 120  # of all runs of a fault, which hang if they take longer
SEEDS = range(6)  # of the order in which programs that wait for each other take turns


class Run(NamedTuple):
    """One pass of one case; `seed` of the turns where programs wait for each other."""

    case: Any
    regime: str
    backward: bool
    precision: str = "fp64"
    seed: int = 0

    def __str__(self) -> str:
        seed = f", seed {self.seed}" if self.regime == "grid" else ""
        return f"{self.regime}, {self.precision}, {self.case}, {'backward' if self.backward else 'forward'}{seed}"


def runs() -> list[Run]:
    """What finds the faults, the quick and telling first."""
    from recurrence_check import SECOND_ORDER, Case

    from fusedrnn.spec import GRU, LSTM, RNN_RELU, RNN_TANH

    masks: dict[str, Any] = {"lengths": True, "reset": True, "upstream": SECOND_ORDER}
    bare: dict[str, Any] = {"states": "", "bias": False}
    found = []
    for cell in (GRU, LSTM):
        cases = (
            ("resident", Case(cell, 4, 3, 5, 2, **masks, shared=cell is LSTM)),
            ("streamed", Case(cell, 4, 3, 5, 2, **masks, shared=cell is GRU)),
            ("resident", Case(cell, 3, 4, 5, 2, packed=True, **bare)),
            ("resident", Case(cell, 2, 1, 5, 2, lengths=True)),
            ("resident", Case(cell, 2, 18, 5, **bare)),
            ("streamed", Case(cell, 2, 2, 20, **masks)),
            ("streamed", Case(cell, 2, 2, 5)),
            ("streamed", Case(cell, 2, 4, 5, 2, packed=True, **bare)),
            ("step", Case(cell, 2, 2, 20, lengths=True)),
        )
        found += [Run(case, regime, backward) for regime, case in cases for backward in (False, True)]
    for cell, regime in ((RNN_TANH, "resident"), (RNN_RELU, "resident"), (RNN_TANH, "streamed")):
        found += [Run(Case(cell, 3, 3, 5, 2, **masks), regime, backward) for backward in (False, True)]
    found += [Run(Case(GRU, 3, 2, 5), "resident", backward, "bf16") for backward in (False, True)]
    found += [Run(Case(RNN_TANH, 3, 3, 20), "resident", False, "fp32")]
    noise: dict[str, Any] = {"rates": (0.3, 0.0, 0.4), "key": (7, 11)}
    for cell, regime in ((GRU, "resident"), (LSTM, "resident"), (GRU, "streamed"), (LSTM, "streamed")):
        noise["rates"] = (0.3, 0.6 if cell is LSTM else 0.0, 0.4)
        found += [Run(Case(cell, 3, 3, 5, 2, **masks, **noise), regime, backward) for backward in (False, True)]
    waiting = [
        Case(LSTM, 3, 2, 20, rates=(0.3, 0.6, 0.0), key=(7, 11)),
        *(Case(cell, 3, 3, 20, 2, **masks) for cell in (GRU, LSTM)),
        *(Case(cell, 1, 2, 20) for cell in (GRU, LSTM)),
        *(Case(cell, 2, 1, 20, 2, lengths=True) for cell in (GRU, LSTM)),
        Case(GRU, 2, 40, 5, **bare),
    ]
    found += [Run(case, "grid", backward) for case in waiting for backward in (False, True)]
    found += [Run(Case(GRU, 3, 2, 40), "grid", backward, seed=seed) for seed in SEEDS for backward in (False, True)]
    return found


def telling(fault: Fault, every: list[Run]) -> list[int]:
    """The runs that come past a fault's function, by its name."""
    file, _, function = fault.where.partition(".")
    passes = {"forward": (False,), "backward": (True,)}.get(function.partition("_")[0], (False, True))
    passes = {"forward": (False,), "backward": (True,)}.get(file, passes)
    tiled = ("streamed", "step")
    regimes: tuple[str, ...] = ("resident", *tiled)
    for name, only in (("resident", ("resident",)), ("tiled", tiled), ("grid", ("grid",))):
        if name in fault.where:
            regimes = only
    return [i for i, run in enumerate(every) if run.regime in regimes and run.backward in passes]


def wrong(run: Run) -> str:
    """What is wrong with a run; "" if nothing is."""
    import kernels
    from coop import coop
    from interpreted import watched

    how = kernels.small(run.regime, run.case.H)
    if run.regime == "grid":
        how = kernels.Plan("grid", "ieee", units=16, inner=16, k_split=2, tiles=2)
    try:
        with watched():
            if run.regime == "grid":
                with coop(run.seed, at_memory=True, max_idle=300):
                    kernels.check(run.case, run.precision, how, passes=(run.backward,))
            else:
                kernels.check(run.case, run.precision, how, passes=(run.backward,))
    except Exception as error:
        return f"{run}: {str(error).partition(chr(10))[0]}"
    return ""


def tell(fault: Fault, every: list[Run], said: Connection) -> None:
    """In a process of its own: what the first run that sees the fault says, "" if none does."""
    import kernels

    signal.alarm(MOST_SECONDS)  # its default is to end the process
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # threads that fail say so
    with tempfile.TemporaryDirectory(prefix="fusedrnn_mutation_") as folder:
        copy = Path(folder, "mutant")
        shutil.copytree(ROOT / "fusedrnn/triton_kernels", copy, ignore=shutil.ignore_patterns("__pycache__"))
        path = copy / f"{fault.where.partition('.')[0]}.py"
        path.write_text(fault.made(path.read_text()))
        sys.path.insert(0, folder)
        kernels.launch = importlib.import_module("mutant.launch")
        said.send(next(filter(None, (wrong(every[i]) for i in telling(fault, every))), ""))


class Trial(NamedTuple):
    """A fault that a process is about to look for."""

    fault: Fault
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
        self.process.join()
        return found


def try_all(faults: list[Fault], every: list[Run]) -> Iterator[tuple[Fault, str]]:
    """Faults, and how each was seen; "" if it was not. As many at once as there are cores."""
    fork, left, tried = multiprocessing.get_context("fork"), list(reversed(faults)), list[Trial]()
    while left or tried:
        while left and len(tried) < (os.cpu_count() or 1):
            said, says = fork.Pipe(duplex=False)
            fault = left.pop()
            process = fork.Process(target=tell, args=(fault, every, says))
            process.start()
            says.close()
            tried.append(Trial(fault, process, said))
        wait([trial.said for trial in tried])
        for trial in list(tried):
            if trial.said.poll():
                tried.remove(trial)
                yield trial.fault, trial.answer()


def main() -> int:
    """Tries every fault; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sample.add_arguments(parser)
    options = parser.parse_args()
    begun = time.monotonic()
    os.environ.update(TRITON_INTERPRET="1", FUSEDRNN_POISON="1")  # read when triton and fusedrnn are imported
    sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests/triton")]
    import torch

    from fusedrnn import triton_plan

    names = [f"{fault.where}: {fault.what}" for fault in FAULTS]
    faults = [FAULTS[i] for i in sample.chosen(names, options.only, options.one_in)]
    reason = triton_plan.missing()
    try:
        for fault in FAULTS:
            fault.made((ROOT / f"fusedrnn/triton_kernels/{fault.where.partition('.')[0]}.py").read_text())
    except ValueError as error:
        reason = str(error)
    if reason is not None:
        print(f"mutations: not tried: {reason}", file=sys.stderr)
        return 2
    torch.set_num_threads(1)  # a process with threads must not fork
    torch.use_deterministic_algorithms(True)  # memory that nobody wrote is NaN
    from interpreted import hasten

    hasten()
    every = runs()
    bad = [found for found in map(wrong, every) if found]
    if bad:
        print("\n".join(["mutations: the kernels are wrong as they are:", *bad]))
        return 1
    print(f"mutations: right without any after {time.monotonic() - begun:.0f} s", flush=True)
    missed = 0
    for fault, found in try_all(faults, every):
        proof = dict(HARMLESS).get(f"{fault.where}: {fault.what}")
        verdict = f"caught: {found}" if found else "NOT CAUGHT"
        if proof:
            verdict = f"CAUGHT, but said to be harmless: {found}" if found else f"harmless: {proof}"
        missed += bool(found) == bool(proof)
        print(f"{fault.where}: {fault.what}: {verdict}", flush=True)
    for name, _ in HARMLESS:
        if name not in names:
            print(f"HARMLESS names a fault that is not there: {name}")
            missed += 1
    print(f"mutations: {len(faults)} tried, {missed} to mend, {time.monotonic() - begun:.0f} s")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
