"""`make mutations`: the CPU kernel with one fault at a time; the kernel's check has to see every one of them.

Each wait for other threads is left out in turn (they are found in the sources, so a new one is covered by itself), and
each line of MUTATIONS is made. A fault that nobody sees means that the wait is not needed or that the check is weak.

A race that is possible seldom happens. So a copy of the checkout is compiled in which threads come late on purpose:
behind every wait, left out or not, either the last thread or all the others sleep for longer than a phase of the work
takes. What they have still to write is then read too early, what they have still to read is overwritten. All mutations
are compiled at once, for this machine's best instruction set, and a variable of the library chooses one of them or
none; with none the copy must be right. What no delay can show on every processor is the order of memory accesses: a
barrier with relaxed atomics would pass here on x86.

Exit status: 0 if every fault was seen, 1 if one was not or if the copy is wrong without any, 2 if nothing was tried.
"""

from __future__ import annotations

import ctypes
import itertools
import multiprocessing
import os
import re
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
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
LATE_US, MOST_SECONDS = 250, 120  # of a thread that comes late; of one run, which hangs if it takes longer
SPLITS, THREADS = ("columns", "batch"), (2, 3, 4)  # on four: two directions at once, each on a team of two
LOOPS = FORWARD, BACKWARD, BFLOAT = tuple(f"csrc/cpu/{name}.h" for name in ("forward", "backward", "bfloat"))
BARRIER, LAYOUT, NOISE, NORM = (f"csrc/cpu/{name}.h" for name in ("barrier", "layout", "noise", "norm"))
NORM_FORWARD, NORM_BACKWARD = (f"csrc/cpu/norm_{name}.h" for name in ("forward", "backward"))
SOURCES = (*LOOPS, BARRIER, LAYOUT, NOISE, NORM, NORM_FORWARD, NORM_BACKWARD)
WAIT = re.compile(r"\b(all|team)\.wait\(\)(?=;)")


class Mutation(NamedTuple):
    """In `place`, found once in the file, the first `old` becomes `new`; without `old` the whole place disappears."""

    what: str
    file: str
    place: str
    old: str = ""
    new: str = ""


MUTATIONS = (
    Mutation("barrier does not wait for the first thread", BARRIER, "for (int i = 0", "0", "1"),
    Mutation("barrier does not wait for the last thread", BARRIER, "i < threads; i++", "threads", "threads - 1"),
    Mutation("barrier lets pass who is a wait behind", BARRIER, "__ATOMIC_ACQUIRE) < now", "now", "now - 1"),
    Mutation("forward: teams share a barrier", FORWARD, "+ 8 * (thread - me.column),", "(thread - me.column)", "0"),
    Mutation("backward: teams share a barrier", BACKWARD, "+ 8 * (thread - me.column),", "(thread - me.column)", "0"),
    Mutation("backward: a team's barrier is that of all", BACKWARD, "f.epochs + 1", "1", "0"),
    Mutation("one state buffer instead of two", FORWARD, "at.h + (2 * s + (step & 1))", "(step & 1)", "0"),
    Mutation("forward: zeros are not written", FORWARD, "zeros[j] = 0"),
    Mutation("a state to go back to is another stream's", FORWARD, "f.reset_h + s * l.H", "s * l.H", "0"),
    Mutation("c goes back to zeros", FORWARD, "anew ? start_c(s)", "start_c(s)", "zeros"),
    Mutation(
        "W_hh sees all of a state gone back to", FORWARD, "V::load(start_h(s) + v * W) * factor", "factor", "V(T(1))"
    ),
    Mutation("forward: a reset does not cut h", FORWARD, "h_rows[i] = anew", "anew", "false"),
    Mutation("forward: a reset does not cut c", FORWARD, "c_rows[i] = anew", "anew", "false"),
    Mutation("a late row's state is in one buffer only", FORWARD, "h.store(state(s, 1) + to)"),
    Mutation("an ended row's state is in one buffer only", FORWARD, "if (ended_just_now)", "ended_just_now", "false"),
    Mutation("padded rows of y are not zeroed", FORWARD, "none.store(f.y.at(t, b, s) + j, n)"),
    Mutation("padded rows of cs are not zeroed", FORWARD, "none.store(f.cs.at(t, b, s) + j, n)"),
    Mutation(
        "padded rows of the kept gates are not zeroed",
        FORWARD,
        "none.store(f.kept.at(t, b, s) + v * f.kept.vector + z * f.kept.value, n)",
    ),
    Mutation(
        "a reset cuts a backward stream a step early", LAYOUT, "return backwards(s) ? t + 1 < T", "backwards(s)", "0"
    ),
    Mutation(
        "a reset behind a row's end cuts", LAYOUT, "rows.real(t + 1, b, s) && rows.cut", "rows.real(t + 1, b, s)", "1"
    ),
    Mutation(
        "a backward row starts at T only", LAYOUT, "|| !rows.real(t + 1, b, s)", "!rows.real(t + 1, b, s)", "false"
    ),
    Mutation("backward: zeros are not written", BACKWARD, "zeros[j] = 0"),
    Mutation(
        "backward: a reset does not cut the direct half of dh", BACKWARD, "(cut ? V(T(0)) : rest)", "cut", "false"
    ),
    Mutation("backward: h starts from zeros at a reset", BACKWARD, "(l.goes_back ? f.reset_h", "l.goes_back", "false"),
    Mutation("backward: c starts from zeros at a reset", BACKWARD, "(l.goes_back ? f.reset_c", "l.goes_back", "false"),
    Mutation("what a state gone back to gets is not cleared", BACKWARD, "V(T(0)).store(f.dreset_h + from, n)"),
    Mutation(
        "a row hands back its last reset alone",
        BACKWARD,
        "(V::load(sum + v * W, n) + V::load(from))",
        "V::load(sum + v * W, n)",
        "V(T(0))",
    ),
    Mutation("what went back at a reset goes on", BACKWARD, "V(T(0)).store(from)"),
    Mutation("backward: a reset does not cut dc", BACKWARD, "(cut ? V(T(0)) : dcell)", "cut", "false"),
    Mutation(
        "backward: a reset does not cut W_hh's half of dh",
        BACKWARD,
        "if (l.goes_back || !l.cut(f.rows, t, batch[i], s))",
        "!l.cut(f.rows, t, batch[i], s)",
        "true",
    ),
    Mutation(
        "padded rows of dgates are not zeroed",
        BACKWARD,
        "none.store(f.dgates_x.at(t, b, s) + g * l.H + v * W, l.H - v * W)",
    ),
    Mutation("padded rows of dq are not zeroed", BACKWARD, "none.store(f.dq.at(t, b, s) + v * W, l.H - v * W)"),
    Mutation("padded rows of dx are not zeroed", BACKWARD, "f.dx[i / l.B * f.dx_t + i % l.B * f.dx_b + j] = 0"),
    Mutation("padded rows of the second dx are not zeroed", BACKWARD, "dx_second[i * l.I + j] = 0"),
    Mutation("the second direction's dx replaces the first's", BACKWARD, "add = s > 0", "s > 0", "false"),
    Mutation("dW begins from what was in memory", BACKWARD, "begins ? nullptr", "begins", "false"),
    Mutation("dW forgets the chunks before", BACKWARD, "nullptr : c_p", "c_p", "nullptr"),
    Mutation("db begins from what was in memory", BACKWARD, "mine[at.db + i] = 0"),
    Mutation("dW is that of the first rows only", BACKWARD, "part < plan.batches", "plan.batches", "1"),
    Mutation("db is that of the first thread only", BACKWARD, "t < plan.threads(); t++", "plan.threads()", "1"),
    Mutation("a round of Philox too few", NOISE, "round < 10", "10", "9"),
    Mutation("a unit gets the word of the next one", NOISE, "(unit + i) % 4", "unit + i", "unit + i + 1"),
    Mutation("all rows draw alike", NOISE, "word[1][i] = uint32_t(b)", "uint32_t(b)", "0u"),
    Mutation("all streams draw alike", NOISE, "uint32_t(4 * s)", "4 * s", "0"),
    Mutation("dropout does not scale", NOISE, "T(1 / (1 - noise.dropout))", "1 / (1 - noise.dropout)", "1"),
    Mutation("forward: zoneout is drawn by the order of steps", FORWARD, "kZoneoutH, t, b, s, j", " t", " step"),
    Mutation("forward: zoneout of h keeps nothing", FORWARD, "portion(of_h, h_old)", "of_h", "V(T(0))"),
    Mutation("forward: c is zoned out as h is", FORWARD, "old_share<T>(f.noise, kZoneoutC", "kZoneoutC", "kZoneoutH"),
    Mutation(
        "forward: W_hh sees all units",
        FORWARD,
        "(h * V::load(mask(s) + b * l.ldh + j))",
        "h * V::load(mask(s) + b * l.ldh + j)",
        "h",
    ),
    Mutation(
        "one buffer instead of two of what W_hh sees", FORWARD, "at.seen + (2 * s + (step & 1))", "(step & 1)", "0"
    ),
    Mutation("what W_hh sees of a late row is in one buffer only", FORWARD, "(h * factor).store(seen(s, 1) + to)"),
    Mutation("forward: a reset does not cut what W_hh sees", FORWARD, "seen_rows[i] = anew", "anew", "false"),
    Mutation("backward: zoneout is drawn by the order of steps", BACKWARD, "kZoneoutH, t, b, s, j", " t", " step"),
    Mutation("backward: nothing reaches an h that stayed", BACKWARD, "rest + h_stays", "h_stays", "V(T(0))"),
    Mutation("backward: nothing reaches a c that stayed", BACKWARD, "dcell + c_stays", "c_stays", "V(T(0))"),
    Mutation(
        "backward: c after zoneout for the cell's own",
        BACKWARD,
        "(f.noise.zoneout_c > 0)",
        "f.noise.zoneout_c > 0",
        "false",
    ),
    Mutation("backward: gradients reach what W_hh did not see", BACKWARD, "if (l.dropout) more", "l.dropout", "false"),
    Mutation("padding counts in a variance", NORM, "first_lanes(load(j, g) - mean[Parts::of(g)], H - j)", "H - j", "W"),
    Mutation("a variance without eps", NORM, "T(kNormEps)", "kNormEps", "0"),
    Mutation("a mean over one gate of several", NORM, "T(Parts::gates(p) * H)", "Parts::gates(p)", "1"),
    Mutation("gradients of a mean do not come off", NORM, "upward(j, g) - even[p]", "even[p]", "V(T(0))"),
    Mutation("gradients of a variance do not come off", NORM, "* along[p]", "along[p]", "V(T(0))"),
    Mutation("padded rows of products are not zeroed", FORWARD, "none.store(f.products.at(t, b, s) + g * l.H + j, n)"),
    Mutation("a stream has the gains of the first", NORM_FORWARD, "f.norms.hh + (s * G + g)", "s * G", "0"),
    Mutation("h sees the gain of the first stream's c", NORM_FORWARD, "f.norms, s * l.H + j", "s * l.H", "0 * l.H"),
    Mutation("all rows have the product of the first", NORM_FORWARD, "products + i * l.ldp", "i * l.ldp", "0"),
    Mutation(
        "padded rows of dproducts are not zeroed",
        BACKWARD,
        "none.store(f.dproducts.at(t, b, s) + g * l.H + v * W, l.H - v * W)",
    ),
    Mutation(
        "backward: h saw c after zoneout", NORM_BACKWARD, "f.noise.zoneout_c > 0", "f.noise.zoneout_c > 0", "false"
    ),
    Mutation("all of dh reaches c, zoneout or not", NORM_BACKWARD, "* kept[3] * subtract", "kept[3]", "V(T(1))"),
    Mutation("the product gets the gradients of what follows it", NORM_BACKWARD, "d.store(gates + g * l.Hp + j)"),
    Mutation(
        "what c's normalisation hands on is left out",
        BACKWARD,
        "dcell + V::load(of_c + l.Hp)",
        "V::load(of_c + l.Hp)",
        "V(T(0))",
    ),
    Mutation("bfloat: teams share a barrier", BFLOAT, "+ 8 * (thread - me.column),", "(thread - me.column)", "0"),
    Mutation("bfloat: one buffer of h's tiles instead of two", BFLOAT, "(2 * s + (step & 1))", "(step & 1)", "0"),
    Mutation("bfloat: zeros are not written", BFLOAT, "zeros[j] = 0"),
    Mutation("bfloat: a reset does not cut the direct half of h", BFLOAT, "anew ? zeros : h,", "anew", "false"),
    Mutation("bfloat: a reset does not cut c", BFLOAT, "anew ? zeros : c,", "anew", "false"),
    Mutation("bfloat: a reset does not cut h's tiles", BFLOAT, "lives ? __mmask16(0xffff)", "lives", "true"),
    Mutation("bfloat: a reset does not cut h0's tiles", BFLOAT, "rounded(anew ? V(0.f) : h)", "anew", "false"),
    Mutation(
        "bfloat: a late row's h is in one buffer only",
        BFLOAT,
        "_mm256_store_si256((__m256i*)h_place(s, 1, b, v), rounded(h))",
    ),
    Mutation(
        "bfloat: half a tile of h is not zeroed",
        BFLOAT,
        "_mm256_store_si256((__m256i*)h_place(s, parity, b, l.hv), _mm256_setzero_si256())",
    ),
    Mutation("bfloat: a block begins with the rows of the one before", BFLOAT, "% (2 * at.tile_rows)", "2", "1"),
    Mutation(
        "bfloat: padded rows of y are not zeroed",
        BFLOAT,
        "store(_mm256_setzero_si256(), f.y.at(t, b, s) + v * W, l.H - v * W)",
    ),
    Mutation(
        "bfloat: padded rows of cs are not zeroed",
        BFLOAT,
        "store(_mm256_setzero_si256(), f.cs.at(t, b, s) + v * W, l.H - v * W)",
    ),
)

LATENESS = """#pragma once
#include <unistd.h>
extern "C" {
__attribute__((visibility("default"))) inline int fusedrnn_mutant = -1, fusedrnn_last_is_late = 1;
}
inline thread_local bool fusedrnn_late = false;
inline void fusedrnn_lag() {
  if (fusedrnn_late) usleep(LATE_US);
}
inline void fusedrnn_start(int thread, int threads) {
  fusedrnn_late = threads > 1 && (thread == threads - 1) == bool(fusedrnn_last_is_late);
  fusedrnn_lag();
}
"""


def replaced(text: str, place: str, new: str, file: str) -> str:
    """The text with its one `place` changed."""
    if text.count(place) != 1:
        raise ValueError(f"{file}: `{place}` is there {text.count(place)} times, expected once: mend tools/mutate.py")
    return text.replace(place, new)


def mutated(texts: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """The sources with every mutation to choose from, threads that come late and outputs that begin as NaN.

    Returns:
        The sources, and what each mutation does.

    Raises:
        ValueError: a mutation's place is not found exactly once, or no wait is found at all.
    """
    texts, names = dict(texts), []

    def choice(new: str, old: str) -> str:
        return f"(fusedrnn_mutant == {len(names) - 1} ? ({new}) : ({old}))"

    for file in LOOPS:
        whole = texts[file]

        def leave_out(wait: re.Match[str], file: str = file, whole: str = whole) -> str:
            line = whole.count("\n", 0, wait.start()) + 1
            names.append(f"{Path(file).name}:{line}: no {wait[0]}")
            return f"({choice('void()', wait[0])}, {wait[1]}.threads > 1 ? fusedrnn_lag() : void())"

        texts[file], found = WAIT.subn(leave_out, whole)
        if not found:
            raise ValueError(f"{file}: no wait is found: mend tools/mutate.py")
        start = "void run() {"
        texts[file] = replaced(texts[file], start, f"{start} fusedrnn_start(all.me, all.threads);", file)
    for what, file, place, old, new in MUTATIONS:
        names.append(what)
        change = place.replace(old, choice(new, old), 1) if old else choice("void()", f"void({place})")
        texts[file] = replaced(texts[file], place, change, file)
    for file in SOURCES:
        texts[file] = replaced(texts[file], "#pragma once\n", '#pragma once\n#include "cpu/lateness.h"\n', file)
    return texts, names


def read() -> dict[str, str]:
    """The sources that are changed."""
    return {file: (ROOT / file).read_text() for file in SOURCES}


def build(copy: Path, flags: Iterable[str]) -> list[str]:
    """A copy of the checkout, mutated and compiled by its own setup.py; what each mutation does."""
    for name in ("csrc", "fusedrnn", "tools"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("*.so", "_build.json", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    texts, names = mutated(read())
    for file, text in texts.items():
        (copy / file).write_text(text)
    (copy / "csrc/cpu/lateness.h").write_text(LATENESS.replace("LATE_US", str(LATE_US)))
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
        for mutant in here:
            name, found = names[mutant], seen(copy, mutant)
            missed += not found
            print(f"{name}: {f'caught: {found}' if found else 'NOT CAUGHT'}", flush=True)
    print(f"mutations: {len(here) - missed} of {len(here)} caught, {time.monotonic() - begun:.0f} s")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
