"""The Triton backend without a GPU: its kernels interpreted, in processes of their own, and what holds without them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import fusedrnn
from fusedrnn import triton_plan
from fusedrnn.errors import BackendUnavailable, UnsupportedProblem

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "tests" / "triton").glob("test_*.py"))
needs_triton = pytest.mark.skipif(
    triton_plan.missing() is not None and not os.environ.get("CI"), reason=str(triton_plan.missing())
)


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_interpreted(path: Path) -> None:
    """The interpreter is chosen before Triton is imported, so not in this process."""
    command = [sys.executable, "-m", "pytest", str(path), "-q", "-p", "no:cacheprovider", "--tb=short", "-rN"]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": paths, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= 10


def test_there_are_tests_to_interpret() -> None:
    assert {path.stem for path in FILES} >= {"test_triton_kernels", "test_triton_grid", "test_triton_layers"}


def test_importing_the_package_imports_no_triton() -> None:
    script = (
        "import sys, torch; had = 'triton' in sys.modules; import fusedrnn; "
        "fusedrnn.explain(fusedrnn.GRU(2, 3), torch.ones(1, 1, 2)); assert had or 'triton' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_reason_is_named_where_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = fusedrnn.GRU(2, 3, backend="triton"), torch.ones(1, 1, 2)
    if triton_plan.missing() is None:
        with pytest.raises(UnsupportedProblem, match="it runs on NVIDIA GPUs, the input is on cpu"):
            layer(x)

    monkeypatch.setitem(sys.modules, "triton", None)
    with forgotten(), pytest.raises(BackendUnavailable, match="Triton is not installed"):
        layer(x)


@contextmanager
def forgotten() -> Iterator[None]:
    """What is missing is asked anew inside, and after."""
    triton_plan._triton_missing.cache_clear()
    try:
        yield
    finally:
        triton_plan._triton_missing.cache_clear()


@pytest.mark.parametrize(
    ("installed", "told"), [("3.5.1", "Triton 3.5.1 is installed, it needs 3.6"), ("3.10.0", None), ("3.6.0+git", None)]
)
@pytest.mark.parametrize("name", triton_plan.NAMES)
def test_triton_is_known_by_any_of_its_names(
    name: str, installed: str, told: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(asked: str) -> str:
        if asked != name:
            raise importlib.metadata.PackageNotFoundError(asked)
        return installed

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(triton_plan.shutil, "which", lambda name: name)
    with forgotten():
        reason = triton_plan.missing()
    assert told is None if reason is None else reason.startswith(told or "-")


def test_a_hook_that_forbids_triton_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    def no(name: str) -> object:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib.util, "find_spec", no)
    with forgotten():
        assert "not installed" in str(triton_plan.missing())


def test_explain_says_that_triton_is_missing_wherever_the_input_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with forgotten():
        told = str(fusedrnn.explain(fusedrnn.GRU(3, 4), torch.zeros(2, 1, 3)))
    assert "the input is on cpu; and Triton is not installed (`pip install triton`)" in told


BROKEN = """
import os, sys, torch, fusedrnn
from fusedrnn.errors import BackendUnavailable
{before}
os.environ["TRITON_INTERPRET"] = "1"
layer = fusedrnn.GRU(3, 4, backend="triton")
try:
    layer(torch.zeros(2, 1, 3))
except BackendUnavailable as error:
    print(error)
"""


@needs_triton
@pytest.mark.parametrize(
    ("before", "told"),
    [
        ("import triton, fusedrnn.triton_kernels.launch", "imported before TRITON_INTERPRET=1 was set"),
        ("sys.modules['triton.language'] = None", "installed but cannot be imported: "),
    ],
)
def test_a_triton_that_cannot_be_used_is_told(before: str, told: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", BROKEN.format(before=before)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=120, check=True)
    assert told in done.stdout


@needs_triton
@pytest.mark.skipif(os.name != "posix", reason="elsewhere Triton brings a compiler of its own")
def test_a_c_compiler_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(triton_plan.shutil, "which", lambda name: None)
    with forgotten():
        assert "C compiler" in str(triton_plan.missing())
    monkeypatch.setenv("CC", "cc")
    with forgotten():
        assert triton_plan.missing() is None
