"""`make check`: ruff, mypy, clang-format, clang-tidy and the architecture test; no other tests.

A tool that is missing is named and the rest runs; under CI a missing tool is a failure. `--missing` only lists the
missing ones, one a line, and exits 1 if there are any.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ("ruff", "mypy", "clang-format", "clang-tidy", "cmake")
CXX = [path for folder in ("csrc", "tests/cpp") for path in (ROOT / folder).rglob("*")]


def find(tool: str) -> str | None:
    """The tool beside this Python or any site-packages it sees, else on the path; if pinned, in that version."""
    beside = [os.path.dirname(sys.executable)]
    beside += [str(Path(entry).parents[2] / "bin") for entry in sys.path if Path(entry).name == "site-packages"]
    pin = re.search(rf'"{tool}==([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    for path in (os.pathsep.join(beside), None):
        command = shutil.which(tool, path=path)
        if command and (pin is None or pin[1] in run([command, "--version"])[1]):
            return command
    return None


def run(command: list[str]) -> tuple[bool, str]:
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return done.returncode == 0, done.stdout


def tidy(clang_tidy: str, cmake: str) -> tuple[bool, str]:
    """clang-tidy on every source once: the kernel's other instruction sets are the same text."""
    build, database = ROOT / "build" / "cmake", ROOT / "build" / "tidy"
    ok, output = run([cmake, "-S", ".", "-B", str(build), f"-DPython3_EXECUTABLE={sys.executable}"])
    if not ok:
        return ok, output
    entries = json.loads((build / "compile_commands.json").read_text())
    once = {entry["file"]: entry for entry in entries if not re.search(r"FUSEDRNN_ISA=(?!generic)", entry["command"])}
    database.mkdir(parents=True, exist_ok=True)
    (database / "compile_commands.json").write_text(json.dumps(list(once.values())))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(lambda file: run([clang_tidy, "-quiet", "-p", str(database), file]), once))
    return all(ok for ok, _ in results), "".join(output for ok, output in results if not ok)


def main() -> int:
    found = {tool: find(tool) for tool in TOOLS}
    missing = [tool for tool, command in found.items() if command is None]
    if "--missing" in sys.argv:
        print("\n".join(missing))
        return bool(missing)
    ruff, clang_format = str(found["ruff"]), str(found["clang-format"])
    sources = [str(path) for path in CXX if path.suffix in (".h", ".cpp", ".cu", ".cuh")]
    checks = {
        "ruff check": (["ruff"], lambda: run([ruff, "check", "."])),
        "ruff format": (["ruff"], lambda: run([ruff, "format", "--check", "."])),
        "mypy": (["mypy"], lambda: run([sys.executable, "-m", "mypy"])),
        "clang-format": (["clang-format"], lambda: run([clang_format, "--dry-run", "--Werror", *sources])),
        "clang-tidy": (["clang-tidy", "cmake"], lambda: tidy(str(found["clang-tidy"]), str(found["cmake"]))),
        "architecture": ([], lambda: run([sys.executable, "-m", "pytest", "-q", "tests/test_architecture.py"])),
    }
    failed = []
    for name, (needs, check) in checks.items():
        lacking = [tool for tool in needs if tool in missing]
        if lacking:
            print(f"{name}: not run, {' and '.join(lacking)} missing", flush=True)
            continue
        start = time.monotonic()
        ok, output = check()
        print(f"{name}: {'ok' if ok else 'FAILED'} ({time.monotonic() - start:.1f} s)", flush=True)
        if not ok:
            print(output, flush=True)
            failed.append(name)
    if missing:
        print(f'missing: {", ".join(missing)}; `{sys.executable} -m pip install -e ".[dev]"` brings them')
    if failed:
        print(f"failed: {', '.join(failed)}")
    return bool(failed or (missing and os.environ.get("CI")))


if __name__ == "__main__":
    sys.exit(main())
