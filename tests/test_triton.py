"""The Triton backend without a GPU: its kernels interpreted, in processes of their own, and what holds without them."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
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

    def none(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", none)
    triton_plan._triton_missing.cache_clear()
    try:
        with pytest.raises(BackendUnavailable, match="Triton is not installed"):
            layer(x)
    finally:
        triton_plan._triton_missing.cache_clear()
