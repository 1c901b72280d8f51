"""Compiles the Triton kernels for GPUs that are not here, and reads what the machine code needs: no GPU, no driver.

Prints registers, shared memory, local memory and the time loop's loads of W_hh of every kernel that `config.plan` can
choose, in bf16, fp32 and fp64, for padded rows; of the widest also with zoneout and recurrent dropout. Fails if one
does not fit the shared memory or spills, or if one that is said to hold W_hh loads it again. Spills of tiles in float64
are printed and counted: Triton 3.6 has no way without.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from fusedrnn import triton_plan
from fusedrnn.triton_kernels import config
from fusedrnn.triton_kernels.config import GATES, GRU, KEPT, LSTM, RELU, TANH, Device, Plan

CELLS = ("gru", "lstm", "rnn_tanh", "rnn_relu")
DEVICES = {80: Device(80, 108, 166912), 89: Device(89, 128, 101376), 90: Device(90, 132, 232448)}
KINDS = (("bf16", "ieee"), ("fp32", "tf32"), ("fp32", "tf32x3"), ("fp64", "ieee"))
INTEGERS = {*"TBSD", "blocks", "len_s", "len_b", "rst_t", "rst_b", "rst_s", "q0", "q1", "i0", "i1", "tile"}
RATES = {"zone_h", "zone_c"}
WIDTHS = (32, 64, 128, *config.WIDTHS)
HOLDS = ("resident", "grid")
NOISE = ("drawn", "mean")  # zoneout and recurrent dropout; zoneout's expectation
DEFAULT = (80, 90)


@dataclass(frozen=True)
class Job:
    """A kernel to compile: one pass of a plan, for hidden size H, with lengths and resets or without."""

    sm: int
    cell: int
    dtype: str
    H: int
    backward: bool
    masked: bool
    how: Plan
    variant: str = ""  # packed: rows by offsets; states: upstream gradients of gates and c too; drawn, mean: noise

    def __str__(self) -> str:
        passes = "backward" if self.backward else "forward"
        masks = (" lengths reset" if self.masked else "") + (f" {self.variant}" if self.variant else "")
        sizes = f"H{self.H} {self.how.units}x{self.how.rows} w{self.how.warps}"
        kind = f"{CELLS[self.cell]} {self.dtype} {self.how.precision}"
        return f"sm_{self.sm} {self.how.regime} {passes} {kind} {sizes}{masks}"


@dataclass(frozen=True)
class Report:
    """What the machine code needs. `local`: spills, in instructions; `weight_loads`: of W_hh, in the time loop."""

    registers: int
    shared: int
    local: int
    weight_loads: int


def jobs(sm: int, noise: bool = False) -> list[Job]:
    """Every kernel that a plan for this architecture can name; of equal ones, the widest.

    With lengths and resets, and with these for an H that 16 does not divide (layers fill up to a multiple of 8); where
    W_hh is held also without.

    Args:
        sm: the architecture.
        noise: with zoneout and, where there is such a kernel, recurrent dropout, drawn.
    """
    found: dict[tuple[Any, ...], Job] = {}
    device = DEVICES[sm]
    passes = product((GRU, LSTM, TANH), KINDS, WIDTHS, config.REGIMES[1:], (False, True))
    for cell, (dtype, precision), width, regime, backward in passes:
        if regime == "grid" and width not in config.WIDTHS:
            continue
        for masked, H in ((False, width), (True, width), (True, width - 8)):
            if regime not in HOLDS and not masked:
                continue
            try:
                drawn = {"zoneout": noise, "dropout": noise and regime != "grid"}
                how = config.plan(cell, 512, 16, 1, H, dtype, precision, backward, device, regime, masked, **drawn)
            except ValueError:
                continue
            kernel = (
                cell,
                dtype,
                precision,
                regime,
                width if regime == "grid" else how.units,
                backward,
                masked,
                H % 16,
            )
            found[kernel] = Job(sm, cell, dtype, H, backward, masked, how, "drawn" if noise else "")
    return list(found.values())


def widest(every: list[Job]) -> list[Job]:
    """Of each cell, kind of product, regime and pass the widest kernel, with lengths and resets."""
    return list({(j.cell, j.dtype, j.how.precision, j.how.regime, j.backward): j for j in every}.values())


def default(sm: int) -> list[Job]:
    """What is compiled without --variants: every kernel, and the widest with noise."""
    return jobs(sm) + widest(jobs(sm, noise=True))


def variants(sm: int) -> list[Job]:
    """Of the widest kernels: float16, ReLU, packed rows, gradients of all states, zoneout's expectation."""
    noisy = widest(jobs(sm, noise=True))
    found = [replace(job, variant="mean") for job in noisy if KEPT[job.cell] or not job.backward]
    for job in widest(jobs(sm)):
        found += [replace(job, dtype="fp16")] if job.dtype == "bf16" else []
        found += [replace(job, cell=RELU)] if job.cell == TANH else []
        found += [replace(job, variant="packed")] if job.masked else []
        found += [replace(job, variant="states")] if job.backward and KEPT[job.cell] else []
    return found


def compile_job(job: Job) -> Report:
    """Compiles one; in a process of its own, which Triton's compiler may end."""
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from fusedrnn.triton_kernels import backward, forward, grid

    how, cell = job.how, job.cell
    kind = how.regime if how.regime in HOLDS else "tiled"
    name = f"{'backward' if job.backward else 'forward'}_{kind}"
    function = getattr(grid if kind == "grid" else backward if job.backward else forward, name)
    constants: dict[str, Any] = {
        "CELL": cell,
        "BLOCK": math.gcd(job.H, 16),
        "G": GATES[cell],
        "Z": KEPT[cell],
        "AT": tl.float64 if job.dtype == "fp64" else tl.float32,
        "PRECISION": how.precision,
        "UNITS": how.units,
        "ROWS": how.rows,
        "STAGES": how.stages,
        "INNER": how.inner,
        "K_SPLIT": how.k_split,
        "CHUNKS": -(-job.H // (how.inner * how.k_split)),
        "STREAMED": how.regime == "streamed",
        "LAST": True,
    }
    absent = set() if job.masked else {"lengths", "reset"}
    absent |= set() if job.variant == "packed" else {"offsets"}
    absent |= set() if job.variant == "states" else {"dgates", "dcs"}
    absent |= set() if cell == LSTM else {"c0", "cs", "cn", "dc0", "dcn", "dcs", "carry_c", "zone_c"}
    absent |= (set() if cell == GRU else {"dq"}) | (set() if KEPT[cell] else {"carry"})
    absent |= set() if job.variant == "drawn" else {"key", "dropout"}
    absent |= set() if job.variant in NOISE else RATES
    absent |= set() if job.variant in NOISE or cell == GRU else {"carry_h"}
    absent |= set() if KEPT[cell] else {"gates"}
    constants |= dict.fromkeys(absent)
    constants = {key: value for key, value in constants.items() if key in function.arg_names}
    special = {
        "lengths": "*i64",
        "offsets": "*i64",
        "reset": "*i64" if job.dtype == "fp64" else "*u8",
        "key": "*i64",
        "barrier": "*i32",
        **dict.fromkeys(("carry", "carry_h", "carry_c", "dropout"), "*fp64" if job.dtype == "fp64" else "*fp32"),
        **dict.fromkeys(RATES, "i64"),
    }
    signature: dict[str, str] = {}
    aligned = {}
    for i, argument in enumerate(function.arg_names):
        pointer = special.get(argument, f"*{job.dtype}")
        signature[argument] = "constexpr" if argument in constants else "i32" if argument in INTEGERS else pointer
        if signature[argument].startswith("*"):
            aligned[(i,)] = [["tt.divisibility", 16]]
    fixed = {(function.arg_names.index(key),): value for key, value in constants.items()}
    source = ASTSource(fn=function, signature=signature, constexprs=fixed, attrs=aligned)
    options = {"num_warps": how.warps, "num_stages": how.stages, "maxnreg": how.registers, "enable_fp_fusion": True}
    kernel = triton.compile(source, target=GPUTarget("cuda", job.sm, 32), options=options)
    return _read(kernel, Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump")


def _read(kernel: Any, cuobjdump: Path) -> Report:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(kernel.asm["cubin"])

        def told(flag: str) -> str:
            return subprocess.run([cuobjdump, flag, path], capture_output=True, text=True, check=True).stdout

        usage = told("-res-usage")
        found = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", usage)
        assert found is not None, usage
        registers, *frame = map(int, found.groups())
        # printing the machine code takes a third of all the time, and none without a frame reads local memory
        local = len(re.findall(r"\b(?:LDL|STL)\b", told("-sass"))) if any(frame) else 0
    return Report(registers, kernel.metadata.shared, local, weight_loads(kernel.asm["ttgir"]))


def weight_loads(ttgir: str) -> int:
    """Loads through pointers made from `w`, in the loops that hold products: what reads W_hh at every step."""
    lines, weights = ttgir.splitlines(), {"%w"}
    for line in lines:
        if "!tt.ptr" in line:  # pointers come from pointers alone
            for name, start in re.findall(r"(%\w+) = (%\w+)", line):  # what a loop carries
                weights |= {name} if start in weights else set()
            made = re.match(r"\s*(%\w+) = (?!tt\.load)[\w.]+ (.*)", line)
            if made and weights & set(re.findall(r"%\w+", made[2])):
                weights.add(made[1])
    most = 0
    for i, line in enumerate(lines):
        if " scf.for " in line:
            indent = len(line) - len(line.lstrip())
            end = next(j for j in range(i + 1, len(lines)) if lines[j].startswith(" " * indent + "}"))
            body = "\n".join(lines[i:end])
            if "dot" in body:
                read = re.findall(r"(?:tt\.load|async_copy_global_to_local) (%\w+)", body)
                most = max(most, sum(pointer in weights for pointer in read))
    return most


def fault(job: Job, report: Report) -> str | None:
    """What is wrong with a kernel, None if nothing is."""
    device, how = DEVICES[job.sm], job.how
    if report.shared > device.smem_bytes:
        return f"{report.shared} bytes of shared memory, sm_{job.sm} has {device.smem_bytes}"
    holds = how.regime in HOLDS
    if report.local and (holds or job.dtype != "fp64"):
        return f"{report.local} accesses to local memory"
    return f"{report.weight_loads} loads of W_hh in the time loop" if holds and report.weight_loads else None


def run(todo: list[Job], workers: int) -> Iterator[tuple[Job, Report | str]]:
    """Compiles all; the text of an error in place of a report. A job that ends its process is tried alone."""
    lost = []
    fresh = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    with ProcessPoolExecutor(workers, mp_context=fresh) as pool:
        waiting = [(job, pool.submit(compile_job, job)) for job in todo]
        for job, answer in waiting:
            try:
                yield job, answer.result()
            except BrokenProcessPool:
                lost.append(job)
            except Exception as error:  # whatever the compiler says is this kernel's result
                yield job, f"{type(error).__name__}: {str(error).strip().splitlines()[-1][:200]}"
    for job in lost:
        with ProcessPoolExecutor(1, mp_context=fresh) as alone:
            try:
                yield job, alone.submit(compile_job, job).result()
            except BrokenProcessPool:
                yield job, "Triton's compiler ended its process"
            except Exception as error:
                yield job, f"{type(error).__name__}: {str(error).strip().splitlines()[-1][:200]}"


def _architecture(text: str) -> int:
    if not text.isdecimal() or int(text) not in DEVICES:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(map(str, DEVICES))}, got {text!r}")
    return int(text)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    told = f"of {', '.join(map(str, DEVICES))} (default: {' '.join(map(str, DEFAULT))})"
    parser.add_argument("architectures", nargs="*", type=_architecture, metavar="ARCHITECTURE", help=told)
    parser.add_argument("--only", type=re.compile, default=re.compile(""), metavar="REGEX", help="of printed names")
    parser.add_argument(
        "--variants", action="store_true", help="of the widest: float16, ReLU, packed, all gradients, zoneout's mean"
    )
    options = parser.parse_args(arguments)
    if reason := triton_plan.missing():
        print(f"triton_check: nothing is compiled: {reason}", file=sys.stderr)
        return 1 if os.environ.get("CI") else 0
    if triton_plan.interpreting():
        parser.error("TRITON_INTERPRET is set: the interpreter compiles nothing; unset it")
    import triton

    kernels = variants if options.variants else default
    todo = [job for sm in options.architectures or DEFAULT for job in kernels(sm) if options.only.search(str(job))]
    print(f"Triton {triton.__version__}, {len(todo)} kernels", flush=True)
    faults, spills = 0, 0
    for job, report in run(todo, os.cpu_count() or 1):
        if isinstance(report, str):
            told, wrong = "", report
        else:
            told = f"{report.registers:4} registers {report.shared:7} smem {report.local:4} local"
            told += f"{report.weight_loads:4} loads of W_hh"
            wrong = fault(job, report)
            spills += report.local > 0
        faults += wrong is not None
        print(f"{job!s:<78} {told}{f'  FAULT: {wrong}' if wrong else ''}", flush=True)
    print(f"{len(todo)} instances, {spills} spills" + (f", {faults} faults" if faults else ""))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
