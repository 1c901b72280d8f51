"""Is the compiled code there, is it that of ``csrc/``, and does torch load it?

``pip`` builds a package before it installs what the package needs, so a checkout installed into an environment that had
no torch yet has no compiled code: it is compiled once, at the first import, by the same ``setup.py``.

Nothing here raises: what is wrong is a reason with the command that mends it, and ``import fusedrnn`` works without the
compiled code. ``setup.py`` imports this file by itself, so it must not need torch or the package.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
LIBRARY, CUDA_LIBRARY = HERE / "_C.so", HERE / "_cuda.so"
RECORD = HERE / "_build.json"
SOURCES = {".h", ".cuh", ".cpp", ".cu", ".txt"}


@functools.cache
def status() -> str | None:
    """Loads the compiled ops into torch, on the first call.

    Returns:
        None when the ops of ``_C.so`` are registered; else why they are not and the command that mends it, which is
        also given as one RuntimeWarning.
    """
    reason = _missing() or _load(LIBRARY)
    if reason:
        warnings.warn(f"fusedrnn: no compiled kernels, torch's own run instead: {reason}", RuntimeWarning, stacklevel=2)
    return reason


@functools.cache
def cuda_status() -> str | None:
    """Loads the CUDA kernels into torch, on the first call.

    Returns:
        None when they are registered; else why they are not.
    """
    import torch

    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA"
    if not CUDA_LIBRARY.exists():
        reason = read_record().get("no_cuda", "they were not compiled")
        return f"{reason}; with a CUDA toolkit (nvcc) at hand run `{mend()}`"
    return _load(CUDA_LIBRARY)


def mend() -> str:
    """The command that builds the compiled code anew."""
    if _is_checkout():
        return f"{shlex.quote(sys.executable)} -m pip install -e {shlex.quote(str(ROOT))}"
    return f"{shlex.quote(sys.executable)} -m pip install --no-deps --force-reinstall <checkout of fusedrnn>"


def compiler() -> str | None:
    """The C++ compiler that a build would use, $CXX or c++; None if it is not found."""
    try:
        command = shlex.split(os.environ.get("CXX", "")) or ["c++"]
    except ValueError:  # a quotation that is not closed
        return None
    return shutil.which(command[0])


def sources_digest() -> str | None:
    """A digest of the sources in ``csrc/``; None where there is no checkout around the package."""
    if not _is_checkout():
        return None
    files = sorted(path for path in (ROOT / "csrc").rglob("*") if path.suffix in SOURCES)
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def read_record() -> dict[str, Any]:
    """What the last build wrote: sources, torch, cuda, libraries, or error; empty if there was none."""
    try:
        record = json.loads(RECORD.read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def write_record(path: Path, **facts: object) -> None:
    """Writes a build's record in one step, as the last act of the build: whoever finds it finds the libraries whole."""
    fresh = path.with_suffix(f".{os.getpid()}")
    fresh.write_text(json.dumps({"sources": sources_digest(), **facts}))
    os.replace(fresh, path)


def _is_checkout() -> bool:
    return (ROOT / "setup.py").exists() and (ROOT / "csrc").is_dir()


def _missing() -> str | None:
    """None when the compiled code is there and current, compiling it if it has never been."""
    record, current = read_record(), sources_digest()
    if record and current is not None and record.get("sources") != current:
        return f"csrc/ has changed since it was compiled; run `{mend()}`"
    if "error" in record:
        return str(record["error"])
    if record and LIBRARY.exists():
        return None
    if current is None:
        return f"this installation has none, it was made where torch was not yet installed; run `{mend()}`"
    if compiler() is None:
        name = os.environ.get("CXX", "c++")
        return f"not compiled yet, and no C++ compiler ({name}) is found; install g++ or clang++, then run `{mend()}`"
    return _compile()


def _compile() -> str | None:
    """Compiles in the checkout, one process at a time; the lock dies with its holder."""
    try:
        import fcntl
    except ImportError:
        return "the kernels are for Linux and macOS"
    try:
        (ROOT / "build").mkdir(exist_ok=True)
        with (ROOT / "build" / "first_import.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _say("compiling once, a minute or two: there is no compiled code yet")
            except BlockingIOError:
                _say("waiting for another process that compiles")
                fcntl.flock(lock, fcntl.LOCK_EX)
            if not (LIBRARY.exists() and read_record()):
                _run_setup()
    except OSError as error:
        return f"not compiled yet, and it cannot be done here ({error}); run `{mend()}` as a user who can write there"
    reason = read_record().get("error")
    return str(reason) if reason else None


def _run_setup() -> None:
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode or not LIBRARY.exists():
        # kept, so that the next import does not spend the same minutes on the same failure
        log = ROOT / "build" / "first_import.log"
        log.write_text(done.stdout)
        write_record(RECORD, error=f"compiling failed, see {log}; to try again run `{mend()}`")


def _load(library: Path) -> str | None:
    import torch

    try:
        torch.ops.load_library(library)  # type: ignore[no-untyped-call]
    except OSError as error:
        cause = str(error).splitlines()[0]
        return f"torch {torch.__version__} does not load them (2.11 or newer is needed): {cause}; run `{mend()}`"
    return None


def _say(text: str) -> None:
    sys.stderr.write(f"fusedrnn: {text}\n")
    sys.stderr.flush()
