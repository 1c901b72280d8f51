"""The CPU kernel by itself: right in every setting, from every kind of caller, at every address."""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import kernel_cases
import kernel_check
import pytest
import torch
from torch import Tensor, nn

import fusedrnn
from fusedrnn import ops
from fusedrnn.spec import CellSpec

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(ops.missing is not None, reason=f"needs the compiled ops: {ops.missing}")
MASKS = {"plain": (False, False), "lengths": (True, False), "reset": (False, True), "both": (True, True)}


def python(code: str, *arguments: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, *([] if code.endswith(".py") else ["-c"]), code, *arguments],
        cwd=ROOT,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


_NAMES = [line.split()[0] for line in (ROOT / "csrc" / "isa.txt").read_text().splitlines() if line[:1].isalpha()]
INSTRUCTION_SETS = [name for name in _NAMES if name != "common"]


@functools.cache
def runs(name: str) -> bool:
    """Whether it was built and this processor has the instructions."""
    return python("from fusedrnn import ops; print(ops.instruction_set)", FUSEDRNN_ISA=name).strip() == name


def supported() -> list[str]:
    """The instruction sets that this processor runs."""
    return [name for name in INSTRUCTION_SETS if runs(name)]


@pytest.mark.parametrize("masks", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("directions", [1, 2])
def test_agrees_with_the_reference(cell: CellSpec, directions: int, masks: tuple[bool, bool]) -> None:
    for size in kernel_cases.SIZES:
        case = kernel_cases.make(cell, directions, size, *masks)
        kernel_check.check_layer(case)
        for given in (case, *(kernel_cases.noisy(case, noise) for noise in kernel_cases.NOISES)):
            kernel_check.check_scan(given)
            if size in kernel_cases.NORMED:
                kernel_check.check_norm(given)
                if given.reset is not None:
                    kernel_check.check_start(given)


@pytest.fixture(scope="module")
def truths(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The cases of the check and what is true of them."""
    path = tmp_path_factory.mktemp("kernel_check") / "truths.pt"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # of the reference's many small ops
    kernel_cases.save(path)
    torch.set_num_threads(threads)
    yield path
    path.unlink()


@pytest.mark.slow
@pytest.mark.xdist_group("truths")
@pytest.mark.parametrize("split", ["batch", "columns"])
@pytest.mark.parametrize("name", INSTRUCTION_SETS)
def test_every_instruction_set_and_split(name: str, split: str, truths: Path) -> None:
    """With scratch memory full of NaN: what is read has been written. One to four threads."""
    if not runs(name):
        pytest.skip(f"this processor, or this build, has no {name}")
    told = python("tests/kernel_check.py", str(truths), FUSEDRNN_ISA=name, FUSEDRNN_SPLIT=split, FUSEDRNN_POISON="1")
    assert told.count(f"{name} ") == told.count("cases right") == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("function", ["sigmoid", "tanh"])
def test_gates_are_as_accurate_as_torchs(function: str, dtype: torch.dtype) -> None:
    ramp = torch.linspace(-30, 30, 400_001, dtype=torch.float64)
    tiny = torch.logspace(-30, 0, 100_001, dtype=torch.float64)
    x = torch.cat([ramp, tiny, -tiny, torch.tensor([0.0, -0.0, 1e30, -1e30])]).to(dtype)
    found = torch.ops.fusedrnn.pointwise(x, function == "tanh").double()
    if dtype == torch.float64:
        truth, allowed = getattr(torch, function)(x), 8 * torch.finfo(dtype).eps
    else:
        truth = getattr(torch, function)(x.double())
        own = getattr(torch, function)(x).double()
        allowed = 2 * float(((own - truth).abs() / truth.abs().clamp_min(1e-37))[truth.abs() > 1e-36].max()) + 1.2e-7
    far = truth.abs() > torch.finfo(dtype).tiny * 1e2
    assert float(((found - truth).abs() / truth.abs())[far].max()) <= allowed
    assert float(found[~far].abs().max()) <= torch.finfo(dtype).tiny * 1e3
    odd = torch.tensor([float("nan"), float("inf"), float("-inf")], dtype=dtype)
    torch.testing.assert_close(
        torch.ops.fusedrnn.pointwise(odd, function == "tanh"), getattr(torch, function)(odd), equal_nan=True
    )


def test_same_call_gives_the_same_bits(cell: CellSpec) -> None:
    case = kernel_cases.make(cell, 2, (7, 13, 3, 33), True, True)
    weights, lstm = [w.float() for w in case.weights], len(case.states) == 2
    x, h0 = case.x.float(), case.states[0].float()
    c0 = case.states[1].float() if lstm else None

    def run() -> list[Tensor]:
        out = ops.layer(x, h0, c0, weights, case.lengths, case.reset, cell.code, True, True, True)
        y, hn, cs, _, kept = out
        upstream = (torch.ones_like(y), torch.ones_like(hn), None, None)
        masks = (case.lengths, case.reset)
        return [*out[:4], *ops.layer_backward(*upstream, x, h0, c0, weights, y, cs, kept, *masks, cell.code, True, 7)]

    for once, again in zip(run(), run(), strict=True):
        assert torch.equal(once, again)


def test_nan_stays_in_its_row(cell: CellSpec) -> None:
    layer = _layer(cell, 3, 5)
    x = torch.randn(6, 4, 3)
    clean = layer(x)[0]
    x[2, 1] = float("nan")
    y = layer(x)[0]
    assert y[2:, 1].isnan().all()
    assert torch.equal(y[:, [0, 2, 3]], clean[:, [0, 2, 3]])
    assert torch.equal(y[:2], clean[:2])


@pytest.mark.parametrize("H", [16, 17])
def test_an_infinite_input_spoils_no_more_gradients_than_in_torch(cell: CellSpec, H: int) -> None:
    """Padded lanes hold 0 * inf in forward; they must not reach dh."""
    ours = _layer(cell, 3, H)
    theirs = getattr(nn, cell.mode.split("_")[0])(
        3, H, **({"nonlinearity": ours.nonlinearity} if hasattr(ours, "nonlinearity") else {})
    )
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(4, 2, 3)
    x[2, 1, 0] = float("-inf")
    found = []
    for layer in (ours, theirs):
        leaf = x.clone().requires_grad_()
        layer(leaf)[0].sum().backward()
        found.append([leaf.grad.isnan(), *(p.grad.isnan() for p in layer.parameters())])
    for mine, torchs in zip(*found, strict=True):
        assert not (mine & ~torchs).any()


def test_an_infinite_bias_gradient_stays_infinite() -> None:
    layer = fusedrnn.RNN(1, 1, nonlinearity="relu", backend="cpu")
    for p in layer.parameters():
        p.data.fill_(1.0)
    layer(torch.ones(3, 1, 1))[0].backward(torch.tensor([1.0, float("inf"), 1.0]).view(3, 1, 1))
    assert layer.bias_ih_l0.grad.isinf().all()


def test_a_closed_gate_lets_nothing_through() -> None:
    layer = fusedrnn.LSTM(3, 16, backend="cpu")
    layer.bias_ih_l0.data[16] = -200.0
    c0 = torch.zeros(1, 1, 16)
    c0[0, 0, 0] = 1e38
    with torch.no_grad():
        assert abs(float(layer(torch.zeros(1, 1, 3), (torch.zeros(1, 1, 16), c0))[1][1][0, 0, 0])) < 1


def test_layer_backward_refuses_kept_values_that_lie_apart() -> None:
    w, x = [torch.randn(12, 5), torch.randn(12, 4)], torch.randn(3, 2, 5)
    y, _, cs, _, kept = ops.layer(x, None, None, w, None, None, 0, False, True, True)
    apart = torch.zeros(2 * kept.numel())[::2]
    apart.copy_(kept)
    given = (torch.ones_like(y), None, None, None, x, None, None, w, y, cs)
    with pytest.raises(RuntimeError, match="expected what layer"):
        ops.layer_backward(*given, apart, None, None, 0, False, 7)


def _layer(cell: CellSpec, *sizes: int, **options: object) -> nn.Module:
    kind = getattr(fusedrnn, cell.mode.split("_")[0])
    own = {"nonlinearity": cell.mode[4:].lower()} if cell.mode.startswith("RNN") else {}
    return kind(*sizes, backend="cpu", **own, **options)


# Callers: a team of threads that wait for each other must be as large as planned, whoever calls.

TRAIN = """
import torch, fusedrnn
torch.manual_seed(0)
layer, x = fusedrnn.GRU(8, 64, bidirectional=True, backend="cpu"), torch.randn(9, 3, 8)
def train():
    layer.zero_grad()
    y, _ = layer(x)
    y.square().sum().backward()
    return float(y.sum()), float(layer.weight_hh_l0.grad.sum())
"""


@pytest.mark.slow
@pytest.mark.parametrize("limit", ["1", "2", "3"])
@pytest.mark.parametrize("split", ["batch", "columns"])
def test_smaller_team_than_asked_for(limit: str, split: str) -> None:
    """OMP_THREAD_LIMIT gives fewer threads than torch.get_num_threads() promises."""
    code = f"{TRAIN}\ntorch.set_num_threads(4)\nprint(train())"
    expected = python(f"{TRAIN}\ntorch.set_num_threads(1)\nprint(train())")
    found = python(code, OMP_THREAD_LIMIT=limit, FUSEDRNN_SPLIT=split)
    assert eval(found) == pytest.approx(eval(expected), rel=1e-4)


def test_called_inside_a_parallel_region() -> None:
    """From two threads of an OpenMP team at once, as a C++ caller's own loop would."""
    library = next(Path(torch.__file__).parent.glob("lib/libgomp*"), None)
    if library is None:
        pytest.skip("this torch brings no libgomp")
    layer, x, sums = nn.Sequential(fusedrnn.GRU(8, 64, backend="cpu")), torch.randn(9, 3, 8), []
    expected = float(layer(x)[0].detach().double().sum())

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    def body(_: object) -> None:
        sums.append(float(layer(x)[0].detach().double().sum()))

    ctypes.CDLL(str(library)).GOMP_parallel(body, None, 2, 0)
    assert len(sums) >= 1
    assert sums == pytest.approx([expected] * len(sums), rel=1e-5)


def test_called_from_several_threads_at_once() -> None:
    layer, x = fusedrnn.LSTM(8, 64, backend="cpu"), torch.randn(30, 3, 8)
    with torch.no_grad():
        expected = layer(x)[0]
    found: list[Tensor] = []

    def call() -> None:
        with torch.no_grad():
            found.extend(layer(x)[0] for _ in range(10))

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 40
    for y in found:
        torch.testing.assert_close(y, expected)


@pytest.mark.slow
def test_called_in_a_forked_process() -> None:
    """One thread, as torch's DataLoader workers set it: the parent's OpenMP threads do not come along."""
    python(
        f"""{TRAIN}
import os
expected = train()
child = os.fork()
if not child:
    torch.set_num_threads(1)
    os._exit(abs(train()[0] - expected[0]) > 1e-3)
assert os.waitpid(child, 0)[1] == 0
"""
    )


# Addresses and lengths.


def test_strides_beyond_32_bits() -> None:
    """Rows that lie further apart than 2**31 elements; only the pages that are touched take memory."""
    torch.use_deterministic_algorithms(False)  # which would fill all of it
    apart = 2**31 + 64
    x, dy = (torch.empty(apart + 64, dtype=torch.float32).as_strided((2, 3, 4), (apart, 8, 1)) for _ in range(2))
    x.copy_(torch.randn(2, 3, 4))
    dy.copy_(torch.randn(2, 3, 4))
    results = []
    for given, upstream in ((x, dy), (x.contiguous(), dy.contiguous())):
        torch.manual_seed(0)
        layer = fusedrnn.GRU(4, 4, backend="cpu")
        y, _ = layer(given)
        y.backward(upstream)
        results.append([y, layer.weight_ih_l0.grad, layer.weight_hh_l0.grad])
    for strided, dense in zip(*results, strict=True):
        assert torch.equal(strided, dense)


@pytest.mark.slow
def test_more_than_two_to_the_31_outputs() -> None:
    T, B, H = 2048, 2**16 + 3, 16
    need = 1.5 * 4 * T * B * H
    if os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") < need:
        pytest.skip(f"needs {need / 2**30:.0f} GiB of free memory")
    torch.use_deterministic_algorithms(False)
    layer, x = fusedrnn.RNN(1, H, backend="cpu"), torch.randn(T, 1, 1)
    with torch.no_grad():
        y = layer(x.expand(T, B, 1))[0]
        assert y.numel() > 2**31
        expected = layer(x)[0]
        for row in (0, B // 2, B - 1):
            torch.testing.assert_close(y[:, row], expected[:, 0])


def test_more_steps_than_65535(cell: CellSpec) -> None:
    T = 70_000
    layer = _layer(cell, 1, 3)
    x = torch.randn(T, 1, 1)
    y, _ = layer(x)
    y[-1].sum().backward()
    half = layer(x[:35_000])
    torch.testing.assert_close(layer(x[35_000:], half[1])[0], y[35_000:])
    assert layer.weight_hh_l0.grad.isfinite().all()
