"""`python -m fusedrnn`: what it reports, and that it notices what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fusedrnn import __main__ as doctor
from fusedrnn import _build, backends, ops, stack

ROOT = Path(__file__).parents[1]


def test_sound_machine(capsys: pytest.CaptureFixture[str]) -> None:
    status = doctor.main([])
    told = capsys.readouterr().out
    if _build.status() is None:
        assert (status, "all is well" in told) == (0, True), told
    for backend in backends.BACKENDS:
        assert f"  {backend.name}" in told
    assert f"{torch.__version__}, CUDA" in told


def test_json_holds_a_result_for_every_backend_and_cell(capsys: pytest.CaptureFixture[str]) -> None:
    doctor.main(["--json"])
    facts = json.loads(capsys.readouterr().out)
    names = [b["name"] for b in facts["backends"] if b["missing"] is None]
    tested = {(t["backend"], t["cell"]) for t in facts["self_test"]}
    assert tested == {(name, cell) for name in names for cell in ("GRU", "LSTM", "RNN")}
    assert all(t["error"] <= doctor.LARGEST_ERROR for t in facts["self_test"])
    assert facts["versions"]["torch"].startswith(torch.__version__)


def test_missing_compiled_code_is_mended_by_one_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reason = f"not compiled yet; run `{_build.mend()}`"
    monkeypatch.setattr(_build, "status", lambda: reason)
    monkeypatch.setattr(ops, "missing", reason)
    assert doctor.main([]) == 1
    told = capsys.readouterr().out
    assert f"trouble: the compiled code: {reason}" in told
    assert told.endswith(f"mend it with: {_build.mend()}\n")
    assert "aten        torch's own op\n              cpu: GRU ok, LSTM ok, RNN ok" in told


def test_wrong_results_are_noticed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    right = stack._reference_layer

    def slightly_wrong(*args: object, **options: object) -> object:
        y, *rest = right(*args, **options)
        return (y + 1e-4, *rest)

    monkeypatch.setattr(stack, "_reference_layer", slightly_wrong)
    assert doctor.main([]) == 1
    told = capsys.readouterr().out
    assert "GRU FAILED, LSTM FAILED, RNN FAILED" in told
    assert "trouble: reference on cpu, GRU: differs from torch.nn by" in told


def test_backend_that_raises_is_noticed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(*args: object, **options: object) -> object:
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(stack, "_reference_layer", broken)
    assert doctor.main([]) == 1
    assert "trouble: reference on cpu, RNN: RuntimeError: no such instruction" in capsys.readouterr().out


def test_instruction_set_that_is_not_there_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ops, "instruction_set", "generic")
    monkeypatch.setenv("FUSEDRNN_ISA", "avx1024")
    assert doctor.main([]) == 1
    assert (
        "trouble: FUSEDRNN_ISA=avx1024 was not built or is not for this processor: generic" in capsys.readouterr().out
    )


@pytest.mark.slow
def test_command() -> None:
    done = subprocess.run([sys.executable, "-m", "fusedrnn"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == (0 if _build.status() is None else 1), done.stdout + done.stderr
    assert "backends" in done.stdout
    refused = subprocess.run([sys.executable, "-m", "fusedrnn", "--x"], cwd=ROOT, capture_output=True, check=False)
    assert refused.returncode == 2


def test_without_torch_the_command_that_mends_it_is_named() -> None:
    code = "import sys; sys.modules['torch'] = None; import runpy; runpy.run_module('fusedrnn', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith(f"run `{sys.executable} -m pip install torch`"), done.stderr
