"""`make check`: every static check, and no test but the architecture's.

A tool that is not installed is named and the rest runs; under CI=true its absence is a failure, as is any finding.
`python tools/check.py --missing` only lists what is not installed, with exit status 1 if anything is.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMPILE_COMMANDS = ROOT / "build" / "tidy"
SUFFIXES = {".h", ".cpp", ".cu", ".cuh"}


def tool(name: str) -> str | None:
    """Where the tool is: beside this Python, else on the path."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)


def sources(*folders: str, suffixes: set[str] = SUFFIXES) -> list[str]:
    """Every C++ file below the folders."""
    found = (path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in suffixes)
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


def run(*command: str) -> bool:
    """Runs a command in the checkout, its output shown; whether it succeeded."""
    print("check:", " ".join(Path(part).name if part.startswith("/") else part for part in command[:4]), flush=True)
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(command, cwd=ROOT, env=env, check=False).returncode == 0


def ruff(path: str) -> bool:
    """Rules and layout of the Python."""
    return run(path, "check", ".") & run(path, "format", "--check", ".")


def mypy(path: str) -> bool:
    """Types of the library, strictly."""
    return run(path)


def clang_format(path: str) -> bool:
    """Layout of the C++."""
    return run(path, "--dry-run", "--Werror", *sources("csrc", "tests/cpp"))


def clang_tidy(path: str) -> bool:
    """Faults of the C++, by the compile commands that CMake writes."""
    cmake = tool("cmake")
    if cmake is None:
        print("check: clang-tidy needs cmake, which is not installed")
        return not in_ci()
    if not run(cmake, "-S", ".", "-B", str(COMPILE_COMMANDS), f"-DPython3_EXECUTABLE={sys.executable}"):
        return False
    # kernel.cpp is compiled once per instruction set; one look at it is enough
    files = [name for name in sources("csrc", suffixes={".cpp"}) if name != "csrc/plan_module.cpp"]
    return run(path, "--quiet", "-p", str(COMPILE_COMMANDS), *files)


def architecture(path: str) -> bool:
    """Who imports whom, how long files are, what none may name."""
    return run(path, "-q", "tests/test_architecture.py")


CHECKS = {"ruff": ruff, "mypy": mypy, "clang-format": clang_format, "clang-tidy": clang_tidy, "pytest": architecture}


def in_ci() -> bool:
    """Whether nothing may be left out."""
    return os.environ.get("CI", "").lower() in ("1", "true")


def main() -> int:
    """Runs the checks; 1 if one failed."""
    missing = [name for name in CHECKS if tool(name) is None]
    if "--missing" in sys.argv[1:]:
        print(*missing)
        return int(bool(missing))
    failed = [name for name, check in CHECKS.items() if name not in missing and not check(str(tool(name)))]
    for name in missing:
        print(f"check: {name} is not installed, its check was left out; `pip install -e .[dev]` brings it")
    if failed:
        print("check: failed:", *failed)
    return int(bool(failed) or (bool(missing) and in_ci()))


if __name__ == "__main__":
    sys.exit(main())
