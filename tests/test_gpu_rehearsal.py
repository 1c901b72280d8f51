"""The tests for a GPU, without one: small ones of them over the CPU's stand-in, and how they keep their record."""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pairs import needs_kernel

from fusedrnn import _build

ROOT = Path(__file__).parents[1]
pytestmark = [
    pytest.mark.slow,
    needs_kernel,
    pytest.mark.skipif(_build.compiler() is None and not os.environ.get("CI"), reason="there is no C++ compiler"),
]
TESTS = """
import time

def test_right():
    pass

def test_wrong():
    assert 1 == 2, "what is wrong"

def test_spoilt():
    raise RuntimeError("CUDA error: an illegal memory access")

def test_hangs():
    time.sleep(60)

def test_last():
    pass
"""


def rehearse(folder: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """pytest over the tests for a GPU that are in the folder."""
    command = [sys.executable, "-m", "pytest", "tests/gpu", "-q", "-p", "no:cacheprovider", "--tb=short", *arguments]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path, "FUSEDRNN_GPU_REHEARSAL": "1", **env}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


def test_small_ones_pass_over_the_stand_in() -> None:
    done = rehearse(ROOT)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= 297


def test_the_record_goes_on_behind_what_hangs_or_spoils_the_device(tmp_path: Path) -> None:
    tests, record = tmp_path / "tests" / "gpu", tmp_path / "parity.csv"
    tests.mkdir(parents=True)
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools" / "gpu_environment.py", tmp_path / "tools")
    shutil.copy(ROOT / "tests" / "gpu" / "problems.py", tests)
    conftest = (ROOT / "tests" / "gpu" / "conftest.py").read_text()
    assert "ANSWER_S = 60.0" in conftest
    (tests / "conftest.py").write_text(conftest.replace("ANSWER_S = 60.0", "ANSWER_S = 1.0"))
    (tests / "test_five.py").write_text(TESTS)

    def outcomes() -> dict[str, tuple[str, str]]:
        with record.open(newline="") as file:
            return {row["test"].split("::")[1]: (row["outcome"], row["message"]) for row in csv.DictReader(file)}

    def run() -> int:
        return rehearse(tmp_path, "--rootdir", ".", FUSEDRNN_GPU_RECORD=str(record)).returncode

    assert run() == 75
    found = outcomes()
    assert {name: outcome for name, (outcome, _) in found.items()} == {
        "test_right": "passed",
        "test_wrong": "failed",
        "test_spoilt": "failed",
    }
    assert found["test_wrong"][1].startswith("AssertionError: what is wrong")
    assert "illegal memory access" in found["test_spoilt"][1]
    assert run() == 75
    assert outcomes()["test_hangs"] == ("hung", "no answer in 1 s")
    assert run() == 0
    assert outcomes()["test_last"] == ("passed", "")
    assert run() == 5  # nothing is left to do
    assert len(record.read_text().splitlines()) == 1 + 5
