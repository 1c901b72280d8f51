"""The build: which sources go where, every instruction set of one binary, and what is said where something lacks."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from fusedrnn import _build

ROOT = Path(__file__).parents[1]

MINIATURE_OPS = """
#include <string>
#include <torch/csrc/stable/library.h>
std::string isa() { return "miniature"; }
STABLE_TORCH_LIBRARY(fusedrnn, m) { m.def("isa() -> str"); }
STABLE_TORCH_LIBRARY_IMPL(fusedrnn, CompositeExplicitAutograd, m) { m.impl("isa", TORCH_BOX(&isa)); }
"""
STATUS = "from fusedrnn import _build; print(_build.status())"
STATUS_AND_ISA = "import torch; from fusedrnn import _build; print(_build.status(), torch.ops.fusedrnn.isa())"


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


sources = tool("sources")


def lacking(reason: str) -> None:
    """Skips where a tool is missing, but never in CI."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


def start(code: str, folder: Path, **env: str) -> subprocess.Popen[str]:
    """`python -c code` with the package that lies in `folder`."""
    environment = os.environ | {"PYTHONPATH": str(folder)} | env
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", code], cwd=folder, env=environment, text=True, **pipes)


def python(code: str, folder: Path, **env: str) -> tuple[str, str]:
    process = start(code, folder, **env)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out, err


def setup_says(folder: Path, *arguments: str, **env: str) -> tuple[int, str]:
    command = [sys.executable, "setup.py", "-q", *arguments]
    done = subprocess.run(command, cwd=folder, env=os.environ | env, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


@pytest.fixture
def compiler() -> None:
    if _build.compiler() is None:
        lacking("there is no C++ compiler")


@pytest.fixture
def compiled() -> None:
    if _build.status() is not None:
        lacking(str(_build.status()))


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with the real build files and sources that compile in a few seconds; nothing is built yet."""
    for name in ("setup.py", "pyproject.toml", "LICENSE", "tools/sources.py", "tools/build_backend.py", "csrc/isa.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "README.md").write_text("fusedrnn\n")
    for folder in ("fusedrnn", "csrc/cpu"):
        (tmp_path / folder).mkdir()
    (tmp_path / "fusedrnn" / "__init__.py").touch()
    shutil.copy(ROOT / "fusedrnn" / "_build.py", tmp_path / "fusedrnn")
    (tmp_path / "csrc" / "ops.cpp").write_text(MINIATURE_OPS)
    (tmp_path / "csrc" / "cpu" / "kernel.cpp").write_text(
        "namespace fusedrnn::cpu::FUSEDRNN_ISA { int lanes() { return 1; } }\n"
    )
    return tmp_path


def test_every_source_belongs_to_a_library() -> None:
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*") if path.suffix in {".cpp", ".cu"}}
    assert files == {*sources.ops(), *sources.kernels(), *sources.plan(), *sources.cuda()}
    assert not {*sources.ops()} & {*sources.kernels()}
    assert len(sources.instruction_sets()) == (4 if platform.machine() in ("x86_64", "AMD64") else 1)


def test_a_compiler_too_old_for_an_instruction_set_is_seen(tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.write_text('#!/bin/sh\ncase "$*" in *-mamx-tile*) exit 1;; esac\nexec c++ "$@"\n')
    old.chmod(0o755)
    if _build.compiler() is None:
        lacking("no C++ compiler")
    known = [name for name, flags in sources.instruction_sets().items() if not sources.unknown(str(old), flags)]
    assert known == [name for name in sources.instruction_sets() if name != "amx"]


@pytest.fixture(scope="module")
def cmake(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """(cmake, a configured build folder)"""
    call = tool("check").tool("cmake")
    if call is None:
        lacking("cmake is missing: the C++ tests and the comparison of the two builds do not run")
    (command,) = call
    if _build.compiler() is None:
        lacking("no C++ compiler: the C++ tests do not run")
    folder = tmp_path_factory.mktemp("cmake")
    configure = [command, "-S", ROOT, "-B", folder, f"-DPython3_EXECUTABLE={sys.executable}"]
    done = subprocess.run(configure, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return command, folder


@pytest.mark.slow
@pytest.mark.xdist_group("cmake")
def test_setup_and_cmake_compile_the_same_sources(cmake: tuple[str, Path]) -> None:
    built: dict[str, list[str]] = {}
    commands: dict[str, str] = {}
    for entry in json.loads((cmake[1] / "compile_commands.json").read_text()):
        target = re.search(r"CMakeFiles/(\w+)\.dir/", entry["command"])
        assert target is not None, entry
        built.setdefault(target[1], []).append(Path(entry["file"]).relative_to(ROOT).as_posix())
        commands[target[1]] = entry["command"]
    isas = sources.instruction_sets()
    expected = {"_C": sources.ops(), "_plan": sources.plan()}
    expected |= {path.stem: [f"tests/cpp/{path.name}"] for path in (ROOT / "tests" / "cpp").glob("test_*.cpp")}
    expected |= {f"kernel_{isa}": sources.kernels() for isa in isas}
    expected["host_device"] = [name for name in sources.cuda() if name.endswith(".cpp")]
    assert {name: sorted(files) for name, files in built.items()} == {
        name: sorted(files) for name, files in expected.items()
    }
    for isa, flags in isas.items():
        assert {*flags, f"-DFUSEDRNN_ISA={isa}"} <= {*commands[f"kernel_{isa}"].split()}
        assert (f"-DFUSEDRNN_HAVE_{isa}=1" in commands["_C"]) == (isa != "generic")


@pytest.mark.slow
@pytest.mark.xdist_group("cmake")
def test_cpp(cmake: tuple[str, Path]) -> None:
    """CTest: what tests/cpp holds."""
    command, folder = cmake
    build = [command, "--build", folder, "--target", "cpp_tests"]
    ctest = [str(Path(command).with_name("ctest")), "--test-dir", folder, "--output-on-failure", "--no-tests=error"]
    for step in (build, ctest):
        done = subprocess.run(step, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_every_instruction_set_of_this_processor_can_be_chosen(compiled: None) -> None:
    width = {"AVX512": 3, "AVX2": 2}.get(torch.backends.cpu.get_cpu_capability(), 1)
    width += width == 3 and torch.cpu._is_amx_tile_supported() and torch.cpu._init_amx()
    names = list(sources.instruction_sets())[:width]  # the rows stand from the plainest to the widest
    code = (
        "import torch; from fusedrnn import _build; assert _build.status() is None; x = torch.linspace(-4, 4, 97);"
        "print(torch.ops.fusedrnn.isa(), float((torch.ops.fusedrnn.pointwise(x, True) - x.tanh()).abs().max()))"
    )
    running = {name: start(code, ROOT, FUSEDRNN_ISA=name) for name in names}
    running["default"] = start(code, ROOT, FUSEDRNN_ISA="")
    for name, process in running.items():
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        chosen, error = out.split()
        assert chosen == (names[-1] if name == "default" else name)
        assert float(error) < 3e-7


def test_wide_kernels_share_no_inline_function(compiled: None) -> None:
    """An inline function compiled for AVX-512 and kept by the linker for all would crash older processors."""
    if shutil.which("nm") is None:
        lacking("nm is missing: the kernels' symbols are not looked at")
    key = f"{sys.implementation.cache_tag}-torch{torch.__version__}-{platform.machine()}"
    for isa in sources.instruction_sets():
        objects = list((ROOT / "build" / key / "fusedrnn._C" / isa).rglob("kernel*.o"))
        if not objects:
            lacking("built elsewhere: the kernels' object files are not here")
        for path in objects:
            rows = subprocess.run(["nm", "-C", path], capture_output=True, text=True, check=True).stdout.splitlines()
            assert len(rows) > 10
            shared = [row for row in rows if re.search(r" [WVu] ", row) and f"fusedrnn::cpu::{isa}::" not in row]
            assert not shared, path


def test_planner_returns_typed_values(compiled: None) -> None:
    from fusedrnn import _plan

    shape = _plan.Shape(cell=_plan.Cell.gru, T=30, B=64, H=128, I=50)
    machine = _plan.Machine(threads=2, l2_bytes=2 << 20, vector_bytes=64, registers=32)
    plan = _plan.plan_forward(shape, machine, element_bytes=4)
    assert (shape.cell, shape.S, machine.split) == (_plan.Cell.gru, 1, _plan.Split.automatic)
    assert plan.threads == plan.streams * plan.batches * plan.columns == 2
    assert 1 <= plan.chunk <= 30
    assert not _plan.plan_forward(shape, machine, element_bytes=2).in_place
    assert _plan.plan_forward(_plan.Shape(cell=_plan.Cell.gru, T=1, B=4, H=128), machine, element_bytes=2).in_place
    with pytest.raises(ValueError, match="threads: expected at least 1, got 0"):
        _plan.Machine(threads=0, l2_bytes=2 << 20, vector_bytes=64, registers=32)
    with pytest.raises(TypeError):
        _plan.plan_forward(shape, machine, element_bytes="4")
    with pytest.raises(ValueError, match="element_bytes: expected 2"):
        _plan.plan_forward(shape, machine, element_bytes=3)


def test_changed_sources_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_build, "RECORD", tmp_path / "_build.json")
    _build.write_record(_build.RECORD, torch=torch.__version__)
    record = _build.read_record()
    assert record["sources"] == _build.sources_digest()
    _build.RECORD.write_text(json.dumps(record | {"sources": "other"}))
    reason = _build._missing()
    assert reason is not None
    assert reason.startswith("csrc/ has changed since it was compiled")
    assert reason.endswith(f"run `{_build.mend()}`")


def test_library_that_torch_cannot_load_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_build, "LIBRARY", tmp_path / "_C.so")
    (tmp_path / "_C.so").write_bytes(b"not a library")
    reason = _build._load(_build.LIBRARY)
    assert reason is not None
    assert f"torch {torch.__version__} does not load them" in reason
    assert _build.mend() in reason


def test_import_without_compiler_says_what_to_install(checkout: Path) -> None:
    out, err = python(STATUS, checkout, CXX="no-such-compiler")
    assert "no C++ compiler (no-such-compiler) is found; install g++ or clang++" in out
    assert err.count("RuntimeWarning: fusedrnn: no compiled kernels, torch's own run instead: not compiled yet") == 1


def test_import_of_installation_without_sources(checkout: Path) -> None:
    (checkout / "setup.py").unlink()
    assert "made where torch was not yet installed; run `" in python(STATUS, checkout)[0]


def test_import_where_nothing_can_be_written(compiler: None, checkout: Path) -> None:
    (checkout / "build").write_text("a file where the folder should be")
    assert "it cannot be done here (" in python(STATUS, checkout)[0]


@pytest.mark.slow
def test_setup_installs_what_it_can(checkout: Path) -> None:
    code, said = setup_says(checkout, "build_ext", "--inplace", CXX="no-such-compiler")
    assert (code, "no C++ compiler (no-such-compiler): installing without kernels" in said) == (0, True), said
    (checkout / "without").mkdir()
    (checkout / "without" / "torch.py").write_text("raise ImportError('no torch here')")
    code, said = setup_says(checkout, "build_ext", "--inplace", PYTHONPATH=str(checkout / "without"))
    assert (code, "no torch in the target environment yet" in said) == (0, True), said
    assert not list((checkout / "fusedrnn").glob("*.so"))


@pytest.mark.slow
@pytest.mark.skipif(torch.version.cuda is not None, reason="torch has CUDA: nothing stands in the way of _cuda")
def test_cuda_is_refused_by_name_where_torch_has_none(compiler: None, checkout: Path) -> None:
    _, said = setup_says(checkout, "--version", FUSEDRNN_CUDA="1")
    assert "CUDA" not in said, "with no sources in csrc/cuda nothing is said"
    (checkout / "csrc" / "cuda").mkdir()
    (checkout / "csrc" / "cuda" / "ops.cpp").touch()
    code, said = setup_says(checkout, "--version", FUSEDRNN_CUDA="1")
    assert (code, f"FUSEDRNN_CUDA=1, but torch {torch.__version__} is a build without CUDA" in said) == (1, True), said
    code, said = setup_says(checkout, "--version", FUSEDRNN_CUDA="auto")
    assert (code, "building without the CUDA kernels: torch" in said) == (0, True), said


@pytest.mark.slow
def test_two_first_imports_compile_once(compiler: None, checkout: Path) -> None:
    (checkout / "build").mkdir()
    (checkout / "build" / "first_import.lock").touch()  # as a killed build leaves it
    both = [start(STATUS_AND_ISA, checkout), start(STATUS_AND_ISA, checkout)]
    results = [process.communicate(timeout=300) for process in both]
    assert [out for out, _ in results] == ["None miniature\n"] * 2, results
    said = "".join(err for _, err in results)
    assert (said.count("compiling once"), said.count("waiting for another process")) == (1, 1), said
    assert python(STATUS_AND_ISA, checkout) == ("None miniature\n", "")

    (checkout / "csrc" / "ops.cpp").write_text(MINIATURE_OPS + "// edited\n")
    assert "csrc/ has changed since it was compiled" in python(STATUS, checkout)[0]


@pytest.mark.slow
def test_compilation_that_failed_is_not_repeated_at_every_import(compiler: None, checkout: Path) -> None:
    (checkout / "csrc" / "ops.cpp").write_text("#error this cannot be compiled\n")
    out, err = python(STATUS, checkout)
    assert "compiling failed, see " in out
    assert "compiling once" in err
    assert "this cannot be compiled" in (checkout / "build" / "first_import.log").read_text()
    again, err = python(STATUS, checkout)
    assert again == out
    assert "compiling once" not in err


def test_a_quotation_in_cxx_that_is_not_closed_is_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", '"unclosed')
    assert _build.compiler() is None
