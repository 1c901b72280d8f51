""".ci/run with targets that take a moment: what fails is named, and what a target says stays together."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="no make")
MAKEFILE = """
setup test check mutations:
	@echo $@ OMP $$OMP_WAIT_POLICY; case " $$FAILING " in *" $@ "*) exit 1;; esac
test: wait
wait:
	@while ! test -e compiling; do sleep 0.01; done; echo tested; touch tested
kernels-check:
	@echo first kernel; touch compiling; while ! test -e tested; do sleep 0.01; done; echo last kernel
	@case " $$FAILING " in *" $@ "*) exit 1;; esac
"""


@pytest.mark.parametrize("failing", ["", "setup", "test", "kernels-check", "check", "mutations", "test kernels-check"])
def test_a_failure_is_named(tmp_path: Path, failing: str) -> None:
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci")
    (tmp_path / "Makefile").write_text(MAKEFILE)
    for name in ("c++", "nm", "chromium", "python"):  # it would install what is missing
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "OMP_"))} | {
        "FAILING": failing,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHON": str(tmp_path / "python"),
    }
    command = [str(tmp_path / ".ci" / "run")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == bool(failing), done.stderr
    assert done.stderr.endswith(f".ci/run: failed: {failing}\n") or not failing
    setup, *others = done.stdout.splitlines()
    assert setup.startswith("setup")
    if failing != "setup":
        together = ["tested", "test OMP passive", "first kernel", "last kernel"]
        assert [line for line in others if line in together] == together
        assert [line.split()[0] for line in others if line not in together and "OMP" in line] == ["check", "mutations"]
