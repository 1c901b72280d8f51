"""Tests for a GPU: left out, with the reason, where there is none; nothing may hang; each outcome is on disk at once.

`FUSEDRNN_GPU_RECORD=file.csv`, which `make gpu` sets, takes a row a test. What it holds of the same sources is not run
again. A test that hangs or spoils the device ends the process with status `AGAIN`: call once more for the rest.

`FUSEDRNN_GPU_REHEARSAL=1`, which tests/test_gpu_rehearsal.py sets, runs small ones of them without a GPU, over the
CPU's stand-in. Streams are then nothing, and what needs graphs is left out.
"""

from __future__ import annotations

import csv
import importlib.util
import os
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else deterministic mode refuses products on a GPU

import pytest
import torch
from problems import REHEARSAL, Case

from fusedrnn import backends

AGAIN = 75
ANSWER_S = 60.0
HERE = Path(__file__).parent
FIELDS = ("sources", "test", "outcome", "seconds", "message")
RECORD = os.environ.get("FUSEDRNN_GPU_RECORD")
SPOILT = ("CUDA error", "CUDNN_STATUS_EXECUTION_FAILED")


def sources() -> str:
    spec = importlib.util.spec_from_file_location("gpu_environment", HERE.parents[1] / "tools" / "gpu_environment.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return str(module.digest())


SOURCES = sources() if RECORD else ""


def record(test: str, outcome: str, seconds: float, message: str) -> None:
    if not RECORD:
        return
    new = not os.path.exists(RECORD)
    with open(RECORD, "a", newline="") as file:
        write = csv.writer(file, lineterminator="\n").writerow
        if new:
            write(FIELDS)
        write((SOURCES, test, outcome, f"{seconds:.2f}", " ".join(message.split())[:1000]))


def recorded() -> set[str]:
    """Tests that these sources went through already."""
    if not RECORD or not os.path.exists(RECORD):
        return set()
    with open(RECORD, newline="") as file:
        return {row["test"] for row in csv.DictReader(file) if row["sources"] == SOURCES}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    own = [item for item in items if HERE in item.path.parents]
    for item in own:
        item.add_marker(pytest.mark.gpu)
        if REHEARSAL:
            case = getattr(item, "callspec", None) and item.callspec.params.get("case")
            if isinstance(case, Case) and (case.B > 12 or case.H > 100 or case.H in (8, 63)):
                item.add_marker(pytest.mark.skip(reason="not in a rehearsal, which is to be short"))
        elif not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason=f"needs an NVIDIA GPU: torch {torch.__version__} sees none"))
    done = [item for item in own if item.nodeid in recorded()] if RECORD else []
    if done:
        items[:] = [item for item in items if item not in done]
        config.hook.pytest_deselected(items=done)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if HERE.name not in report.nodeid or (report.when != "call" and report.outcome == "passed"):
        return
    told = ""
    if report.outcome == "failed":  # of the exception; longrepr is text where a fixture or the process failed
        told = getattr(getattr(report.longrepr, "reprcrash", None), "message", report.longreprtext)
    elif report.outcome == "skipped":
        told = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
    record(report.nodeid, report.outcome, report.duration, told)
    if report.outcome == "failed" and any(text in report.longreprtext for text in SPOILT):
        pytest.exit(f"the device answers nothing more to this process, after {report.nodeid}", returncode=AGAIN)


@pytest.fixture(autouse=True)
def _watched(request: pytest.FixtureRequest) -> Iterator[None]:
    def late() -> None:
        record(request.node.nodeid, "hung", ANSWER_S, f"no answer in {ANSWER_S:.0f} s")
        os._exit(AGAIN)

    timer = threading.Timer(ANSWER_S, late)
    timer.daemon = True
    if REHEARSAL or torch.cuda.is_available():  # else it is only collected
        timer.start()
    yield
    timer.cancel()


@pytest.fixture(autouse=True)
def _freed() -> Iterator[None]:
    yield
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class _NoStream:
    """On a CPU everything has been waited for."""

    def wait_stream(self, other: _NoStream) -> None:
        pass

    def synchronize(self) -> None:
        pass


if REHEARSAL:
    from stand_in import stand_in

    @pytest.fixture(autouse=True)
    def _rehearsed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        for name, value in {
            "Stream": _NoStream,
            "current_stream": _NoStream,
            "stream": nullcontext,
            "synchronize": lambda: None,
            "_sleep": lambda cycles: None,
            "set_sync_debug_mode": lambda mode: None,
            "reset_peak_memory_stats": lambda: None,
            "memory_allocated": lambda: 0,
            "max_memory_allocated": lambda: 0,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(backends, "_cudnn_why_not", lambda problem: None)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        with stand_in():
            yield
        torch.set_num_threads(threads)
