"""The CUDA kernels compiled by the host's compiler, over csrc/host_device in place of a GPU: what the tests load.

The library registers torch.ops.fusedrnn_host.scan, .norm_scan and their adjoints for CPU tensors: the checks, the
planner and the launches of csrc/cuda, word for word, with kernels of small sizes (csrc/host_device). It is compiled
once for a content of csrc/, into build/host_device.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FLAGS = ["-std=c++20", "-O1", "-g0", "-fPIC", "-fvisibility=hidden", "-DFUSEDRNN_HOST_DEVICE"]


def sources(csrc: Path) -> list[Path]:
    """What the library is made of; .cu files are plain C++ here. Those of the shipped sizes are not among them."""
    return [
        *sorted(csrc.glob("cuda/*.cpp")),
        *sorted(csrc.glob("cuda/**/*.cu")),
        *sorted(csrc.glob("host_device/*.cpp")),
    ]


def build(csrc: Path = ROOT / "csrc", out: Path = ROOT / "build" / "host_device") -> Path:
    """The library's path, compiled if there is none of these sources.

    Raises:
        RuntimeError: it does not compile; with what the compiler says.
    """
    import torch

    digest = hashlib.sha256(repr((FLAGS, torch.__version__, os.environ.get("CXX"))).encode())
    for path in sorted(path for path in csrc.rglob("*") if path.suffix in {".h", ".cpp", ".cu"}):
        digest.update(path.relative_to(csrc).as_posix().encode() + b"\0" + path.read_bytes())
    folder = out / digest.hexdigest()[:16]
    library = folder / "fusedrnn_host.so"
    if library.exists():  # perhaps where nothing may be written
        return library
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run in several processes
        if not library.exists():
            for left in folder.glob("*.o"):  # of one that was killed
                left.unlink()
            compile_all(csrc, library)
    return library


def compile_all(csrc: Path, library: Path) -> None:
    """Compiles the library; RuntimeError as in `build`."""
    import torch

    compiler = shlex.split(os.environ.get("CXX", "c++"))
    home = Path(torch.__file__).parent
    include = [f"-I{csrc}", f"-isystem{home / 'include'}", "-DTORCH_TARGET_VERSION=0x020b000000000000"]

    def compile_one(source: Path) -> Path:
        unit = library.with_name(f"{source.parent.name}_{source.stem}.{os.getpid()}.o")
        run([*compiler, *FLAGS, *include, "-x", "c++", "-c", str(source), "-o", str(unit)])
        return unit

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        units = list(pool.map(compile_one, sources(csrc)))
    fresh = library.with_suffix(f".{os.getpid()}")
    linked = ["-Wl,-z,defs", f"-L{home / 'lib'}", "-ltorch_cpu", f"-Wl,-rpath,{home / 'lib'}"]
    run([*compiler, "-shared", *map(str, units), *linked, "-o", str(fresh)])
    for unit in units:
        unit.unlink()
    os.replace(fresh, library)  # whoever finds it finds it whole


def run(command: list[str]) -> None:
    """Runs a compiler; RuntimeError with the end of what it says."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)}\n{done.stderr[-4000:]}")


if __name__ == "__main__":
    print(build(), file=sys.stdout)
