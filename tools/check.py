"""`make check`: every static check, and no test but the architecture's.

A tool that is not installed is named and the rest runs; under CI=true its absence is a failure, as is any finding.
`python tools/check.py --missing` only lists what is not installed, with exit status 1 if anything is.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMPILE_COMMANDS = ROOT / "build" / "tidy"
OF_THIS_PYTHON = {"mypy", "pytest"}
SUFFIXES = {".h", ".cpp", ".cu", ".cuh"}


def tool(name: str) -> list[str] | None:
    """How the tool is called, None if it is missing. What imports our code must run in this very Python."""
    if name in OF_THIS_PYTHON:
        return [sys.executable, "-m", name] if importlib.util.find_spec(name) else None
    beside = [Path(sys.executable).parent]  # and beside every site-packages that it borrows from
    beside += [Path(entry).parents[2] / "bin" for entry in sys.path if Path(entry).name == "site-packages"]
    path = shutil.which(name, path=os.pathsep.join(map(str, beside))) or shutil.which(name)
    return None if path is None else [path]


def sources(*folders: str, suffixes: set[str] = SUFFIXES) -> list[str]:
    """Every C++ file below the folders."""
    found = (path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in suffixes)
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


def run(*command: str) -> bool:
    """Runs a command in the checkout, its output shown; whether it succeeded."""
    print("check:", " ".join(Path(part).name if part.startswith("/") else part for part in command[:5]), flush=True)
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(command, cwd=ROOT, env=env, check=False).returncode == 0


def ruff(call: list[str]) -> bool:
    """Rules and layout of the Python."""
    return run(*call, "check", ".") & run(*call, "format", "--check", ".")


def mypy(call: list[str]) -> bool:
    """Types of the library, strictly."""
    return run(*call)


def clang_format(call: list[str]) -> bool:
    """Layout of the C++."""
    return run(*call, "--dry-run", "--Werror", *sources("csrc", "tests/cpp"))


def clang_tidy(call: list[str]) -> bool:
    """Faults of the C++, by the compile commands that CMake writes."""
    cmake = tool("cmake")
    if cmake is None:
        print("check: clang-tidy needs cmake, which is not installed")
        return not in_ci()
    if not run(*cmake, "-S", ".", "-B", str(COMPILE_COMMANDS), f"-DPython3_EXECUTABLE={sys.executable}"):
        return False
    # kernel.cpp is compiled once per instruction set, and plan.cpp into two libraries: one look at each is enough
    database = COMPILE_COMMANDS / "compile_commands.json"
    entries = {entry["file"]: entry for entry in json.loads(database.read_text())}
    once = COMPILE_COMMANDS / "once"
    once.mkdir(exist_ok=True)
    (once / database.name).write_text(json.dumps(list(entries.values())))
    files = [name for name in sources("csrc", suffixes={".cpp"}) if not name.startswith("csrc/plan_")]
    return run(*call, "--quiet", "-p", str(once), *files)


def architecture(call: list[str]) -> bool:
    """Who imports whom, how long files are, what none may name."""
    return run(*call, "-q", "tests/test_architecture.py")


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
    failed = [name for name, check in CHECKS.items() if name not in missing and not check(tool(name) or [])]
    for name in missing:
        print(f"check: {name} is not installed, its check was left out; `pip install -e .[dev]` brings it")
    if failed:
        print("check: failed:", *failed)
    return int(bool(failed) or (bool(missing) and in_ci()))


if __name__ == "__main__":
    sys.exit(main())
