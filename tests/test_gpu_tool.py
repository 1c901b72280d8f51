"""tools/gpu.py, `make gpu`: its stages, limits, exit status and files, with commands that need no GPU."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))
try:
    import gpu
    from gpu import Machine, Step
finally:
    sys.path.pop(0)

from benchmarks.studies import STUDIES  # noqa: E402

PY = sys.executable
SHORT = dict.fromkeys(gpu.SECONDS, 20.0)


def script(text: str, **options: Any) -> Step:
    """A command that runs Python text."""
    return Step([PY, "-c", text], **options)


@pytest.fixture(autouse=True)
def _no_machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Asks no driver, and leaves no handler behind."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(gpu, "torch_facts", lambda python: {"capability": [9, 0]})
    monkeypatch.setattr(gpu, "environment", lambda facts: {"torch": facts, "nvidia_smi": None})
    yield
    signal.signal(signal.SIGTERM, before)


def run(out: Path, stages: dict[str, list[Step]], seconds: dict[str, float] | None = None) -> int:
    """Exit status of stages whose commands are given."""
    return gpu.run_all(list(stages), SHORT | (seconds or {}), Machine(PY, out), lambda stage, *_: stages[stage])


def results(out: Path) -> dict[str, str]:
    """What the stages of the last call came to."""
    stages = json.loads((out / gpu.ENVIRONMENT).read_text())["runs"][-1]["stages"]
    return {stage: told["result"] for stage, told in stages.items()}


def until(holds: Callable[[], bool], seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.02)
    return holds()


def gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has waited for yet has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_the_budgets_fit_nine_minutes() -> None:
    assert list(gpu.SECONDS) == ["build", "micro", "parity", "triton", "sanitize", "grid", *gpu.STUDIES]
    assert sum(gpu.SECONDS.values()) <= 540
    assert gpu.parse([]).budgets == gpu.SECONDS


def test_stages_and_seconds_are_chosen() -> None:
    options = gpu.parse(["--stage", "parity,grid", "--seconds", "grid=90"])
    assert options.stages == ["parity", "grid"]
    assert options.budgets == gpu.SECONDS | {"grid": 90}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--stage", "build,warp"], "unknown stage warp"),
        (["--seconds", "warp=3"], "unknown stage warp"),
        (["--seconds", "grid"], "expected stage=seconds"),
        (["--seconds", "grid=x"], "expected stage=seconds"),
    ],
)
def test_what_is_no_stage_is_refused(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        gpu.parse(arguments)
    assert stop.value.code == 2
    assert told in capsys.readouterr().err


def test_every_stage_has_commands_and_they_write_the_named_files(tmp_path: Path) -> None:
    machine = Machine(PY, tmp_path)
    todo = {stage: gpu.steps(stage, machine, seconds) for stage, seconds in gpu.SECONDS.items()}
    assert all(todo.values())
    every = [step for steps in todo.values() for step in steps]
    written = {step.into for step in every if step.into}
    for step in every:
        words = [*step.command, *step.env.values()]
        written |= {Path(word).name for word in words if Path(word).parent == tmp_path}
    assert len(gpu.FILES) <= 8
    assert written | {gpu.LOG, gpu.ENVIRONMENT, "studies.csv"} == set(gpu.FILES)


def test_every_study_that_runs_on_a_gpu_and_is_asked_for_has_a_stage_of_its_own() -> None:
    on_gpus = {name for name, study in STUDIES.items() if "cuda" in study.devices}
    assert set(gpu.STUDIES) == on_gpus - {"providers"}  # the grid measures these and more


def test_the_grid_and_the_studies_end_before_their_stage(tmp_path: Path) -> None:
    for stage, seconds in gpu.SECONDS.items():
        for step in gpu.steps(stage, Machine(PY, tmp_path), seconds):
            if "--budget" in step.command:
                assert 0 < float(step.command[list(step.command).index("--budget") + 1]) < seconds


def test_the_sanitizers_share_their_time(tmp_path: Path) -> None:
    left, given = 75.0, []
    for step in gpu.steps("sanitize", Machine(PY, tmp_path), left):
        given.append(step.share * left)
        left -= given[-1]
    assert given == pytest.approx([25, 25, 25])
    assert left == pytest.approx(0)


@pytest.mark.parametrize(
    ("status", "output", "result"),
    [
        (0, "", gpu.OK),
        (9, "ERROR SUMMARY: 1 error", "failed: status 9"),
        (1, "start\nError: Device not supported. x", "refused: Error: Device not supported. x"),
    ],
)
def test_a_sanitizer_that_the_machine_refuses_is_told_from_a_fault(status: int, output: str, result: str) -> None:
    assert gpu._sanitized(status, output) == result


def test_stages_run_one_after_the_other_and_are_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    say = lambda word: [script(f"print({word!r})", into="micro.csv")]  # noqa: E731
    assert run(tmp_path, {"micro": say("first"), "grid": say("second"), "text": []}) == 0
    assert (tmp_path / "micro.csv").read_text() == "first\nsecond\n"
    assert results(tmp_path) == {"micro": "ok", "grid": "ok", "text": "skipped: there is nothing to do"}
    assert "gpu: grid: ok" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} <= set(gpu.FILES)


def test_seconds_that_are_over_end_a_command_with_its_children(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    child = "import time; time.sleep(60)"
    hangs = script(
        "import os, subprocess, sys\nprint('row,1')\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}])\n"
        f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\nchild.wait()",
        into="micro.csv",
    )
    begin = time.monotonic()
    assert run(tmp_path, {"grid": [hangs], "text": [script("print('later')")]}, {"grid": 2.5}) == 0
    assert time.monotonic() - begin < 15
    assert results(tmp_path) == {"grid": gpu.CUT, "text": gpu.OK}
    assert all(until(lambda pid=pid: gone(int(pid))) for pid in pids.read_text().split())
    rows = (tmp_path / "micro.csv").read_text().splitlines()
    assert rows[0] == "row,1"  # what a cut-off leaves is kept, and says so
    assert rows[-1].endswith(gpu.CUT)
    assert "later" in (tmp_path / gpu.LOG).read_text()


def test_what_follows_in_a_stage_that_is_cut_off_is_not_begun(tmp_path: Path) -> None:
    todo = [script("import time; time.sleep(60)"), script("print('begun')")]
    assert gpu.run_stage("grid", todo, tmp_path, 1.3) == gpu.CUT
    assert "begun\n" not in (tmp_path / gpu.LOG).read_text()


@pytest.mark.parametrize(
    ("stage", "text", "status"),
    [
        ("build", "raise SystemExit(3)", 1),
        ("parity", "raise SystemExit(3)", 1),
        ("parity", "import time; time.sleep(60)", 1),
        ("grid", "raise SystemExit(3)", 0),
        ("sanitize", "raise SystemExit(9)", 0),
        ("build", "", 0),
    ],
)
def test_build_and_parity_decide_the_exit_status(tmp_path: Path, stage: str, text: str, status: int) -> None:
    todo = {stage: [script(text)], "text": [script("print('later')")]}
    assert run(tmp_path, todo, {stage: 1.5 if "sleep" in text else 20.0}) == status
    assert results(tmp_path)["text"] == gpu.OK


def test_nothing_rests_on_a_build_that_failed(tmp_path: Path) -> None:
    assert gpu.run_stage("build", [script("raise SystemExit(1)"), script("print('x')")], tmp_path, 20) != gpu.OK
    assert "x\n" not in (tmp_path / gpu.LOG).read_text()
    fault, right = script("raise SystemExit(1)"), script("print('grid')")
    assert gpu.run_stage("grid", [fault, right], tmp_path, 20) == "failed: status 1"
    assert "grid\n" in (tmp_path / gpu.LOG).read_text()


def test_a_program_that_is_not_here_is_left_out(tmp_path: Path) -> None:
    todo = [Step(["no-such-program"], needs="no-such-program", into="sanitize.txt")]
    assert gpu.run_stage("sanitize", todo, tmp_path, 20) == "skipped: no-such-program is not here"
    assert "skipped: no-such-program is not here" in (tmp_path / "sanitize.txt").read_text()


def test_commands_find_the_package_of_the_checkout(tmp_path: Path) -> None:
    text = "import fusedrnn; print(fusedrnn.__file__)"
    assert gpu.run_stage("grid", [script(text, into="micro.csv")], tmp_path, 60) == gpu.OK
    assert Path((tmp_path / "micro.csv").read_text().splitlines()[-1]).parents[1] == ROOT


def test_a_child_that_asks_for_it_is_called_again(tmp_path: Path) -> None:
    count = tmp_path / "count"
    text = (
        f"import sys; open({str(count)!r}, 'a').write('x')\n"
        f"sys.exit({gpu.AGAIN} if open({str(count)!r}).read() != 'xxx' else 0)"
    )
    assert gpu.run_stage("grid", [script(text)], tmp_path, 20) == gpu.OK
    assert count.read_text() == "xxx"


def test_a_child_that_asks_forever_is_cut_off(tmp_path: Path) -> None:
    assert gpu.run_stage("grid", [script(f"raise SystemExit({gpu.AGAIN})")], tmp_path, 1.5) == gpu.CUT


def test_the_next_call_goes_on_in_the_same_folder(tmp_path: Path) -> None:
    assert run(tmp_path, {"build": [script("raise SystemExit(1)")]}) == 1
    assert run(tmp_path, {"build": [script("")], "grid": [script("print('grid')")]}) == 0
    runs = json.loads((tmp_path / gpu.ENVIRONMENT).read_text())["runs"]
    assert [list(run["stages"]) for run in runs] == [["build"], ["build", "grid"]]
    assert runs[0]["stages"]["build"]["result"] == "failed: status 1"
    assert {path.name for path in tmp_path.iterdir()} == {gpu.LOG, gpu.ENVIRONMENT}


def test_constants_that_are_complete_are_not_measured_again(tmp_path: Path) -> None:
    constants = tmp_path / "micro.csv"
    machine = Machine(PY, tmp_path)
    assert gpu.steps("micro", machine, 20)
    constants.write_text("name,value,unit\nlatency,1,ns\n")
    assert gpu.steps("micro", machine, 20)
    constants.write_text("name,value,unit\nlatency,1,ns\ndone,1,\n")
    assert gpu.steps("micro", machine, 20) == []


def recorded(path: Path, *rows: tuple[str, str]) -> Path:
    with path.open("w", newline="") as file:
        write = csv.writer(file).writerow
        write(("sources", "test", "outcome", "seconds", "message"))
        for i, (sources, outcome) in enumerate(rows):
            write((sources, f"test_{i}", outcome, "0.1", ""))
    return path


def test_parity_counts_what_these_sources_went_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "digest", lambda: "new")
    path = tmp_path / "parity.csv"

    def told(*rows: tuple[str, str], status: int = 0) -> str:
        return gpu._tested(recorded(path, *rows), "parity", status, "")

    assert gpu._tested(tmp_path / "none.csv", "parity", 0, "") == "failed: status 0, 0 tests passed"
    assert told(("new", "passed"), ("new", "skipped")) == gpu.OK
    assert told(("new", "passed"), status=5) == gpu.OK  # all of it was right in earlier calls
    assert told(("old", "failed"), ("old", "hung"), ("new", "passed")) == gpu.OK
    assert told(("old", "passed")) == "failed: status 0, 0 tests passed"
    assert told(("new", "skipped")) == "failed: status 0, 0 tests passed"
    assert told(("new", "passed"), ("new", "failed"), ("new", "hung")) == "failed: 2 of 3 tests"
    assert told(("new", "passed"), status=2) == "failed: status 2, 1 tests passed"
    assert gpu._tested(path, "triton", 0, "") == "failed: status 0, 0 tests passed"  # these were others
    recorded(path, ("new", "passed"))
    path.write_text(path.read_text().replace("test_", f"{gpu.TRITON_TESTS}::test_"))
    assert gpu._tested(path, "triton", 0, "") == gpu.OK


def test_a_signal_ends_the_command_and_the_record_says_so(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    hangs = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); print('row,1'); time.sleep(60)"
    driver = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'tools')!r}); import gpu; from pathlib import Path\n"
        "gpu.torch_facts = lambda python: None; gpu.environment = lambda facts: {'nvidia_smi': None}\n"
        f"step = gpu.Step([sys.executable, '-c', {hangs!r}], into='micro.csv')\n"
        f"sys.exit(gpu.run_all(['micro'], {{'micro': 50}}, gpu.Machine(sys.executable, Path({str(tmp_path)!r})),"
        " lambda *_: [step]))"
    )
    (tmp_path / gpu.ENVIRONMENT).write_text('{"runs": [{"stages": {}}]}')  # of an earlier call
    tool = subprocess.Popen([PY, "-c", driver], stdout=subprocess.DEVNULL)
    rows = tmp_path / "micro.csv"
    assert until(lambda: rows.exists() and rows.read_text() == "row,1\n" and pid.exists())
    tool.send_signal(signal.SIGTERM)
    assert tool.wait(15) == 143
    assert until(lambda: gone(int(pid.read_text())))
    assert results(tmp_path) == {"micro": gpu.CUT}
    assert len(json.loads((tmp_path / gpu.ENVIRONMENT).read_text())["runs"]) == 2


def test_a_rehearsal_names_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    todo = {
        "build": [Step([PY, "tools/none.py"]), Step([PY, "-m", "no_such_module"])],
        "grid": [script("raise SystemExit(7)", rehearsal=[PY, "-c", "raise SystemExit('torn')"])],
        "parity": [script("", needs="no-such-program")],
    }
    arguments = ["--dry-run", "--stage", ",".join(todo), "--out", str(tmp_path / "out")]
    assert gpu.main(arguments, lambda stage, *_: todo[stage]) == 1
    told = capsys.readouterr().out
    assert "fault: build: tools/none.py is not here" in told
    assert "fault: build: no_such_module is not here" in told
    assert "grid: " in told
    assert told.rstrip().endswith("torn")
    assert "(no-such-program is not here)" in told
    assert not (tmp_path / "out").exists()
    assert gpu.main(arguments, lambda *_: [script("raise SystemExit(1)")]) == 0
    assert "everything that runs is here" in capsys.readouterr().out


def test_without_a_gpu_the_command_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "torch_facts", lambda python: None)
    assert gpu.main(["--out", str(tmp_path / "out")]) == 2
    assert "needs an NVIDIA GPU" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_first_python_whose_torch_has_cuda_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    own = tmp_path / ".venv" / "bin" / "python"
    own.parent.mkdir(parents=True)
    own.symlink_to(PY)
    assert gpu.interpreter(lambda path: path) == PY
    assert gpu.interpreter(lambda path: path if path == str(own) else None) == str(own)
    assert gpu.interpreter(lambda path: None) is None


@pytest.mark.parametrize(("capability", "arch"), [((9, 0), "90a"), ((8, 0), "80"), ((10, 0), "100a"), ((12, 0), "120")])
def test_the_architecture_as_nvcc_calls_it(capability: tuple[int, int], arch: str) -> None:
    assert gpu._arch({"capability": capability}) == arch


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_rehearsal_of_everything_needs_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    command = [PY, "tools/gpu.py", "--dry-run", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "everything that runs is here" in done.stdout
    assert not (tmp_path / "out").exists()
