"""The house rules that a reader relies on: who imports whom, how long a file may be, what no file may name."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MOST_LINES = 400

# From the top: a module imports modules of lower layers only. A new module is placed here.
LAYERS = (
    {"__main__"},
    {"tune"},
    {"__init__"},
    {"frozen"},
    {"convert", "explanation"},
    {"conversion"},
    {"modules"},
    {"jagged"},
    {"cells", "packed", "onnx"},
    {"functional", "packed_scan"},
    {"stack"},
    {"normed"},
    {"autograd", "standin"},
    {"formula", "pieces"},
    {"adjoint", "backends", "triton_ops"},
    {"triton_plan"},
    {"batching", "cudnn", "gpu_plan", "measured", "products", "reference", "second", "units"},
    {"checks", "ops"},
    {"_build", "_plan", "errors", "modes", "philox", "spec", "triton_kernels", "truncated"},
)
# Inside triton_kernels, likewise.
KERNEL_LAYERS = ({"launch"}, {"grid"}, {"backward", "forward"}, {"walk"}, {"cells", "config", "noise"}, {"__init__"})
MAY_USE = {name: set() for name in LAYERS[-1]} | {"reference": {"philox", "spec"}}
LAYER = {name: height for height, names in enumerate(reversed(LAYERS)) for name in names}


def python_files() -> list[Path]:
    return sorted((ROOT / "fusedrnn").rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """(top package, module) of every import, those inside functions included; ("fusedrnn", "ops") for one of ours."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            dotted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:  # one dot is the file's own folder
                folders = path.relative_to(ROOT).parts[:-1]
                base = ".".join([*folders[: len(folders) - node.level + 1], *([base] if base else [])])
            dotted = [f"{base}.{alias.name}" if base == "fusedrnn" else base for alias in node.names]
        else:
            continue
        for name in dotted:
            top, *rest = name.split(".")
            yield top, rest[0] if rest else "__init__"


def own_imports(path: Path) -> set[str]:
    return {module for top, module in imports(path) if top == "fusedrnn"}


def included(path: Path, seen: set[Path] | None = None) -> set[str]:
    """Every header that a C++ file includes, through its own headers as well."""
    seen = set() if seen is None else seen
    seen.add(path)
    names = set(re.findall(r'^\s*#\s*include\s*[<"]([^">]+)[">]', path.read_text(), re.MULTILINE))
    for name in list(names):
        header = ROOT / "csrc" / name
        if header.exists() and header not in seen:
            names |= included(header, seen)
    return names


def texts() -> Iterator[Path]:
    """Every file a person wrote or a benchmark recorded."""
    for folder in ("csrc", "fusedrnn", "benchmarks", "tests", "docs", "tools", ".ci"):
        yield from (path for path in (ROOT / folder).rglob("*") if path.is_file() and not is_built(path))
    yield from (path for path in ROOT.iterdir() if path.is_file() and path.name != ".git")  # a file in a worktree


def is_built(path: Path) -> bool:
    return "__pycache__" in path.parts or path.suffix in {".so", ".png", ".pyc"} or path.name == "_build.json"


@pytest.mark.parametrize("path", python_files(), ids=lambda path: path.name)
def test_modules_import_downwards(path: Path) -> None:
    name = path.relative_to(ROOT / "fusedrnn").parts[0].removesuffix(".py")
    assert name in LAYER, f"{name}: place it in LAYERS"
    used = own_imports(path) - {name}
    assert not used - LAYER.keys(), f"{name} imports what LAYERS does not know: {used - LAYER.keys()}"
    upwards = {module for module in used if LAYER[module] >= LAYER[name]}
    assert not upwards, f"{name} imports {upwards}, which stands no lower"
    assert used <= MAY_USE.get(name, used), f"{name} may import {MAY_USE[name] or 'nothing'} of the package, got {used}"


def test_triton_kernels_import_downwards() -> None:
    layer = {name: height for height, names in enumerate(reversed(KERNEL_LAYERS)) for name in names}
    for path in (ROOT / "fusedrnn" / "triton_kernels").glob("*.py"):
        tree = ast.walk(ast.parse(path.read_text()))
        siblings = {
            name
            for node in tree
            if isinstance(node, ast.ImportFrom) and node.level == 1
            for name in ([node.module] if node.module else [alias.name for alias in node.names])
        }
        assert all(layer[name] < layer[path.stem] for name in siblings), f"{path.name} imports {siblings}"


@pytest.mark.parametrize("path", python_files(), ids=lambda path: path.name)
def test_library_needs_torch_only(path: Path) -> None:
    allowed = {*sys.stdlib_module_names, "torch", "fusedrnn"} | (
        {"triton"} if "triton_kernels" in path.parts else set()
    )
    assert {top for top, _ in imports(path)} <= allowed


def test_cells_know_nothing_but_themselves() -> None:
    for path in (ROOT / "csrc" / "cells").iterdir():
        others = {name for name in included(path) if not name.startswith("cells/")}
        assert others <= {"math.h", "stdint.h", "stddef.h"}, path


def test_kernels_and_planners_know_no_torch() -> None:
    plain = [*ROOT.glob("csrc/cpu/kernel*.cpp"), *ROOT.glob("csrc/*/plan.cpp"), *ROOT.glob("csrc/cuda/**/*.cu")]
    assert len(plain) >= 2
    for path in plain:
        assert not [name for name in included(path) if name.startswith(("torch/", "ATen/", "c10/", "pybind11/"))], path


def test_only_the_planner_module_knows_python() -> None:
    knowing = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "csrc").rglob("*")
        if path.suffix in {".h", ".cpp", ".cu"} and re.search(r"#include [<\"](pybind11|Python\.h)", path.read_text())
    }
    assert knowing == {"csrc/plan_module.cpp", "csrc/plan_module.h", "csrc/plan_cuda.cpp"}


def test_files_are_short() -> None:
    """A longer file says why near its head: `Over 400 lines: ...`."""
    for path in texts():
        if path.suffix in {".py", ".pyi", ".h", ".cpp", ".cu", ".cuh"}:
            lines = path.read_text().splitlines()
            reason = any(f"Over {MOST_LINES} lines: " in line for line in lines[:30])
            assert len(lines) <= MOST_LINES or reason, f"{path.relative_to(ROOT)}: {len(lines)} lines, no reason given"


def test_no_file_names_a_machine_or_leaves_work_undone() -> None:
    # in two pieces each, or this file would be the first to be found
    places = ["/wo" + "rk/", "/tmp" + "/w", "/ro" + "ot/", "/ho" + r"me/\w", "/opt/wh" + "eels", "py" + r"pi\.org"]
    undone = ["TO" + "DO", "FIX" + "ME", "XX" + "X"]
    pattern = re.compile(rf"{'|'.join(places)}|\b({'|'.join(undone)})\b")
    for path in texts():
        found = pattern.search(path.read_text(errors="replace"))
        assert found is None, f"{path.relative_to(ROOT)}: {found[0]}"
