"""What `make mutations` tries: here only that each fault still fits the kernels, and which ones a short run takes."""

from __future__ import annotations

import importlib
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))


def tool(name: str) -> Any:
    return importlib.import_module(name)


def test_no_wait_of_the_cpu_kernel_is_missed() -> None:
    faults_of = tool("cpu_faults")
    sources = faults_of.read()
    waits = sum(text.count(".wait()") for text in sources.values())
    _, names = faults_of.mutated(sources)
    assert len(names) == len(set(names)) == waits + len(faults_of.MUTATIONS)
    with pytest.raises(ValueError, match="mend"):
        faults_of.mutated(sources | {faults_of.BARRIER: "#pragma once\n"})


def test_every_wait_of_the_cuda_kernels_is_left_out_in_turn(tmp_path: Path) -> None:
    """And what is said to be harmless is still there."""
    faults_of = tool("cuda_faults")
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    faults = faults_of.mutate(tmp_path)
    kernels = [p for p in (ROOT / "csrc/cuda").glob("*.h") if p.name not in faults_of.API]
    for name in ("cta_sync", "named_sync", "cluster_sync", "mbar_wait", "mbar_arrive_expect"):
        calls = sum(len(re.findall(rf"\b{name}\(", path.read_text())) for path in kernels)
        assert calls == sum(fault.what == f"no {name}" for fault in faults) > 0, name
    for what, text in faults_of.HARMLESS:
        assert any(fault.named(what, text) for fault in faults), f"{what}: {text}"


def test_every_barrier_of_the_triton_kernels_is_left_out_in_turn() -> None:
    faults_of = tool("triton_faults")
    texts = {path.stem: path.read_text() for path in (ROOT / "fusedrnn/triton_kernels").glob("*.py")}
    names = [f"{fault.where}: {fault.what}" for fault in faults_of.FAULTS]
    assert len(names) == len(set(names)) > 100
    for fault in faults_of.FAULTS:
        text = texts[fault.where.partition(".")[0]]
        assert fault.made(text) != text
    barriers = sum(text.count("tl.debug_barrier()") for text in texts.values())
    assert barriers == sum(fault.old.startswith("tl.debug_barrier()") for fault in faults_of.FAULTS) > 0


def test_a_short_run_takes_other_faults_after_every_change(tmp_path: Path) -> None:
    chosen = tool("sample").chosen
    names = [f"fault {i}" for i in range(93)]
    (tmp_path / "csrc").mkdir()
    (tmp_path / "fusedrnn/triton_kernels").mkdir(parents=True)
    taken = []
    for text in ("int a;", "int b;", "int b;"):
        (tmp_path / "csrc/scan.h").write_text(text)
        taken.append(chosen(names, (), 6, tmp_path))
    assert [len(found) for found in taken] == [16] * 3
    assert taken[0] != taken[1] == taken[2]
    assert chosen(names) == list(range(93))
    assert chosen(names[:2], (), 6) in ([0], [1])
    assert chosen([], (), 6) == []
    assert chosen(names, ["lt 3", "lt 92"]) == [3, *range(30, 40), 92]
    assert len(chosen(names, ["lt 3"], 6)) == 2
    with pytest.raises(ValueError, match="expected at least 1, got 0"):
        chosen(names, (), 0)
