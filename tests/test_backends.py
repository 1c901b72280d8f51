"""The choice of a backend: who can, who is passed over and why, what a name promises, and how it is explained."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from bare import B, Bare, Count, H, I, T, label
from pairs import needs_kernel
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import fusedrnn
from fusedrnn import backends, measured, ops, products, triton_plan
from fusedrnn.errors import BackendUnavailable, UnsupportedProblem
from fusedrnn.measured import Point
from fusedrnn.spec import CELLS, GRU, LSTM, Problem, by_mode

PLAIN = Problem(GRU, T, B, I, H)
NOT_HERE = "on NVIDIA GPUs, the input is on cpu"


@pytest.fixture
def fresh_choices() -> Iterator[None]:
    """No remembered choice, before and after."""
    backends._remembered.cache_clear()
    yield
    backends._remembered.cache_clear()


@needs_kernel
@pytest.mark.usefixtures("fresh_choices")
@pytest.mark.parametrize(
    ("changes", "chosen", "reasons"),
    [
        ({}, "cpu", (NOT_HERE, NOT_HERE, None, None, None)),
        (
            {"dtype": torch.float64, "lengths": True},
            "cpu",
            (NOT_HERE, NOT_HERE, None, "has no lengths", None),
        ),
        (
            {"dtype": torch.bfloat16, "reset": True, "recompute": True},
            "cpu",
            (NOT_HERE, NOT_HERE, None, "has no reset, recompute", None),
        ),
        ({"return_states": True}, "cpu", (NOT_HERE, NOT_HERE, None, "has no return_states", None)),
        ({"dtype": torch.float16}, "aten", (NOT_HERE, NOT_HERE, "not in float16", None, None)),
        (
            {"dtype": torch.float16, "reset": True},
            "reference",
            (NOT_HERE, NOT_HERE, "not in float16", "has no reset", None),
        ),
        ({"cell": LSTM, "proj_size": 2}, "aten", (NOT_HERE, NOT_HERE, "no projection", None, None)),
        (
            {"cell": LSTM, "proj_size": 2, "lengths": True},
            "reference",
            (NOT_HERE, NOT_HERE, "no projection", "has no lengths", None),
        ),
        (
            {"cell": LSTM, "proj_size": 2, "traced": True},
            "reference",
            (NOT_HERE, NOT_HERE, "no projection", None, None),
        ),
        ({"device": "cuda"}, "aten", ("CUDA", "Triton", "the input is on cuda", None, None)),
        (
            {"device": "meta", "lengths": True},
            "reference",
            ("the input is on meta", "the input is on meta", "the input is on meta", "has no lengths", None),
        ),
        ({"traced": True}, "cpu", (NOT_HERE, NOT_HERE, None, None, None)),
    ],
    ids=label,
)
def test_auto_takes_the_first_that_can(
    changes: dict[str, Any], chosen: str, reasons: tuple[str | None, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ops, "cuda_missing", "this torch has no CUDA")
    monkeypatch.setattr(triton_plan, "missing", lambda: "Triton is not installed")
    problem = PLAIN._replace(**changes)
    assert backends.choose("auto", problem) == chosen
    for backend, expected in zip(backends.BACKENDS, reasons, strict=True):
        reason = backend.why_not(problem)
        assert (reason is None) == (expected is None), reason
        assert expected is None or expected in reason
        if expected is None:
            assert backends.choose(backend.name, problem) == backend.name
        else:
            # what this machine has none of is not there, whatever the call
            missing = backend.name in ("cuda", "triton")
            text = (
                f"backend '{backend.name}'"
                if missing
                else f"backend '{backend.name}' cannot take this call: .*{expected}"
            )
            with pytest.raises(BackendUnavailable if missing else UnsupportedProblem, match=text):
                backends.choose(backend.name, problem)


@needs_kernel
@pytest.mark.usefixtures("fresh_choices")
def test_auto_passes_over_what_is_measured_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "instruction_set", "generic")
    large = PLAIN._replace(B=16, H=128)
    for problem, chosen in (
        (large, "aten"),
        (large._replace(B=15), "cpu"),
        (large._replace(H=127), "cpu"),
        (large._replace(lengths=True), "cpu"),
        (large._replace(traced=True), "cpu"),
    ):
        assert backends.choose("auto", problem) == chosen, problem
        assert backends.choose("cpu", problem) == "cpu"
    monkeypatch.setattr(ops, "instruction_set", "avx2")
    backends._remembered.cache_clear()
    assert backends.choose("auto", large) == "cpu"


@pytest.mark.usefixtures("fresh_choices")
def test_auto_takes_a_gpus_kernels_only_where_they_were_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "cuda_missing", None)
    table: list[Point] = []
    monkeypatch.setattr(measured, "points", lambda name: tuple(table))
    small = PLAIN._replace(device="cuda", H=128, B=16, T=100, dtype=torch.bfloat16)
    ragged, graph = small._replace(lengths=True), small._replace(traced=True)
    assert [backends.choose("auto", p) for p in (small, ragged, graph)] == ["aten", "reference", "reference"]
    assert "nothing is measured on" in str(backends.BACKENDS[0].slower(small))
    assert backends.choose("cuda", small) == "cuda"
    for ratio, chosen in ((1.5, "cuda"), (0.5, "aten")):
        table[:] = [Point("gru", "bf16", 1, 1, False, 128, 16, ratio)]
        backends._remembered.cache_clear()
        assert [backends.choose("auto", p) for p in (small, ragged, graph)] == [chosen, "cuda", "cuda"]
    both = [Point("gru", "bf16", 1, 1, False, 128, 16, ratio, name) for name, ratio in (("cuda", 1.5), ("triton", 2.0))]
    for table[:], has_cuda, has_triton, chosen in (
        (both, True, True, ["triton", "triton", "cuda"]),
        (both, True, False, ["cuda", "cuda", "cuda"]),
        (both, False, True, ["triton", "triton", "triton"]),
        (both[:1], True, True, ["cuda", "cuda", "cuda"]),
        (both[:1], False, True, ["aten", "triton", "triton"]),
    ):
        monkeypatch.setattr(ops, "cuda_missing", None if has_cuda else "no nvcc")
        monkeypatch.setattr(triton_plan, "missing", lambda there=has_triton: None if there else "no Triton")
        backends._remembered.cache_clear()
        assert [backends.choose("auto", p) for p in (small, ragged, graph)] == chosen
    monkeypatch.setattr(ops, "cuda_missing", None)
    backends._remembered.cache_clear()
    # nothing near: the planner's model decides, here for an H200
    for problem, chosen in ((small._replace(H=32, B=1), "cuda"), (small._replace(H=2048, B=512), "aten")):
        assert backends.choose("auto", problem) == chosen


@pytest.mark.usefixtures("fresh_choices")
def test_a_remembered_choice_is_that_of_the_gpu_and_of_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "cuda_missing", None)
    monkeypatch.setattr(backends, "_measured_gpu", lambda: "a GPU")
    monkeypatch.setattr(measured, "faster", lambda p, name, among, tf32: "aten" if tf32 else "cuda")
    problem, chosen = PLAIN._replace(device="cuda"), []
    for tf32 in (True, False, True):
        monkeypatch.setattr(products, "layers_allow_tf32", lambda allowed=tf32: allowed)
        chosen.append(backends.choose("auto", problem))
    assert chosen == ["aten", "cuda", "aten"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    states = []
    for index in (0, 1):
        monkeypatch.setattr(torch.cuda, "current_device", lambda index=index: index)
        states.append(backends._gpu_state())
    assert states[0] != states[1]


@pytest.mark.usefixtures("fresh_choices")
def test_without_compiled_code_everything_but_the_kernel_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "missing", "it is not compiled; run `make`")
    assert backends.choose("auto", PLAIN) == "aten"
    assert backends.choose("auto", PLAIN._replace(lengths=True)) == "reference"
    with pytest.raises(BackendUnavailable, match="backend 'cpu': it is not compiled; run `make`"):
        backends.choose("cpu", PLAIN)
    layer, x = Bare(GRU), torch.randn(T, B, I)
    torch.testing.assert_close(layer(x), layer.twin()(x), rtol=0, atol=0)
    assert "no: it is not compiled" in str(fusedrnn.explain(layer, x))


@pytest.mark.slow
def test_imports_and_runs_where_the_library_is_missing(tmp_path: Path) -> None:
    """In a process that finds no compiled code: the schemas are defined in Python, and the layers run on torch."""
    script = """
import sys, types, warnings
build = types.ModuleType("fusedrnn._build")
build.status = lambda: "not compiled"
build.mend = lambda: "make"
sys.modules["fusedrnn._build"] = build
import torch, fusedrnn
from fusedrnn import backends, measured, ops, products
assert ops.missing == "not compiled" and ops.instruction_set is None
assert str(ops.scan._schema) == "fusedrnn::" + ops.SCHEMAS[0]
layer, x = fusedrnn.GRU(3, 4), torch.randn(5, 2, 3, requires_grad=True)
lengths = torch.tensor([5, 2])
layer(x, lengths=lengths)[0].sum().backward()
assert fusedrnn.explain(layer, x).chosen == "aten"
assert fusedrnn.explain(layer, x, lengths=lengths).chosen == "reference"
print("ran")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == "ran\n", done.stderr


@needs_kernel
def test_schemas_are_those_of_the_library() -> None:
    for schema in ops.SCHEMAS:
        name = schema.split("(")[0]
        assert str(getattr(ops, name)._schema) == f"fusedrnn::{schema}"


@needs_kernel
@pytest.mark.parametrize("name", ["reset_h", "reset_c", "offsets"])
def test_reserved_arguments_are_refused_by_name(name: str) -> None:
    values: dict[str, Any] = dict.fromkeys(("reset_h", "reset_c", "offsets", "mask_key")) | {"rates": []}
    values[name] = torch.zeros(1, B, H)
    gates_x, weight = torch.zeros(T, B, 1, 3 * H), torch.zeros(1, 3 * H, H)
    with pytest.raises(RuntimeError, match=name):
        ops.scan(gates_x, None, None, weight, None, None, None, *values.values(), GRU.code, 1, False)


def test_unknown_names() -> None:
    text = (
        "Unknown backend 'cuda0'; expected one of 'auto', 'cuda', 'triton', 'cpu', 'aten', 'reference', 'cuda:step', "
    )
    for call in (lambda: backends.check_name("cuda0"), lambda: backends.choose("cuda0", PLAIN)):
        with pytest.raises(ValueError, match=text):
            call()
    with pytest.raises(ValueError, match="Unknown backend 'x'"), backends.use_backend("x"):
        pass
    for name in ("auto", "cuda", "triton", "cpu", "aten", "reference", "cuda:step", "cuda:cta", "triton:grid", "cudnn"):
        backends.check_name(name)


def test_cudnn_is_aten_on_a_gpu() -> None:
    assert backends.choose("cudnn", PLAIN._replace(device="cuda")) == "aten"
    with pytest.raises(UnsupportedProblem, match="cuDNN runs on a GPU, the input is on cpu"):
        backends.choose("cudnn", PLAIN)
    with pytest.raises(UnsupportedProblem, match="has no reset"):
        backends.choose("cudnn", PLAIN._replace(device="cuda", reset=True))


@needs_kernel
def test_use_backend_overrides_nests_and_ends() -> None:
    chosen: list[str] = []

    def note(name: str = "cpu") -> None:
        chosen.append(backends.choose(name, PLAIN))

    with backends.use_backend("reference"):
        note()
        with backends.use_backend("auto"):
            note("aten")
        other = threading.Thread(target=note)
        other.start()
        other.join()
        note()
    note()
    with pytest.raises(ZeroDivisionError), backends.use_backend("aten"):
        note(1 / 0)
    note()
    assert chosen == ["reference", "cpu", "cpu", "reference", "cpu", "cpu"]


def test_use_backend_reaches_layers() -> None:
    layer, x = Bare(LSTM, num_layers=2), torch.randn(T, B, I)
    want = layer.twin()(x)
    with backends.use_backend("aten"):
        torch.testing.assert_close(layer(x), want, rtol=0, atol=0)
        with pytest.raises(UnsupportedProblem, match="has no lengths"):
            layer(x, torch.tensor([1, 2, 3]))


@needs_kernel
def test_explain() -> None:
    layer, x = nn.LSTM(I, H, proj_size=2, num_layers=2, batch_first=True), torch.randn(B, T, I)
    told = fusedrnn.explain(layer, x, lengths=torch.tensor([1, 2, 3]))
    assert told.problem == Problem(LSTM, T, B, I, H, 2, 1, 2, grad=True, lengths=True, threads=torch.get_num_threads())
    assert (told.asked, told.chosen, told.refusal) == ("auto", "reference", None)
    assert str(told) == (
        "LSTM T=6 B=3 I=5 H=4 L=2 D=1 proj_size=2 float32 cpu grad lengths\n"
        "  cuda       fused CUDA kernel                       no: it runs on NVIDIA GPUs, the input is on cpu\n"
        "  triton     fused Triton kernel                     no: it runs on NVIDIA GPUs, the input is on cpu\n"
        "  cpu        fused C++ kernel                        no: it has no projection (proj_size)\n"
        "  aten       torch's own op                          no: torch's own op has no lengths\n"
        "> reference  loop of PyTorch ops, the specification  yes"
    )


def test_explain_says_why_nothing_runs() -> None:
    layer = nn.GRU(I, H)
    layer.backend = "aten"
    told = fusedrnn.explain(layer, torch.randn(T, B, I), reset=torch.zeros(T, B).bool())
    assert told.chosen is None
    assert ">" not in str(told)
    assert str(told).endswith(
        "backend 'aten' cannot take this call: torch's own op has no reset; backend='auto' finds one that can"
    )


def test_explain_takes_every_form_of_input() -> None:
    rows = torch.randn(T, I)
    for options, x, sizes in (
        ({}, torch.randn(T, I), (T, 1)),
        ({"batch_first": True}, torch.randn(T, I), (T, 1)),
        ({}, pack_sequence([torch.randn(4, I), torch.randn(2, I)]), (4, 2)),
        ({}, torch.randn(T, B, I, device="meta"), (T, B)),
        ({"batch_first": True}, torch.nested.nested_tensor([rows[:2], rows], layout=torch.jagged), (T, 2)),
    ):
        problem = fusedrnn.explain(nn.RNN(I, H, **options).train(False), x).problem
        assert sizes == (problem.T, problem.B)
        assert problem.cell is by_mode("RNN_TANH")
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        problem = fusedrnn.explain(nn.LSTM(I, H), torch.randn(T, B, I)).problem
        assert fusedrnn.explain(nn.GRU(I, H), torch.randn(T, B, I)).problem.dtype == torch.float32
    assert (problem.dtype, problem.grad) == (torch.bfloat16, False)


@needs_kernel
def test_explain_tells_what_a_layer_then_does() -> None:
    """The chosen backend is the one whose op runs."""
    for name, ran in (("auto", True), ("cpu", True), ("aten", False), ("reference", False)):
        layer, x = Bare(GRU, backend=name), torch.randn(T, B, I)
        with Count() as count:
            layer(x)
        assert bool(count.seen) == ran == (fusedrnn.explain(layer, x).chosen == "cpu")


def test_cells_by_mode() -> None:
    assert [by_mode(cell.mode) for cell in CELLS] == list(CELLS) == [CELLS[cell.code] for cell in CELLS]
    with pytest.raises(ValueError, match="Unrecognized RNN mode: MINGRU"):
        by_mode("MINGRU")


def test_a_cell_is_one_object_after_copies() -> None:
    for cell in CELLS:
        assert copy.deepcopy(cell) is cell is pickle.loads(pickle.dumps(cell))


@needs_kernel
@pytest.mark.usefixtures("fresh_choices")
@pytest.mark.parametrize("native", [True, False])
def test_auto_passes_over_dtypes_that_torch_is_faster_in(monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    monkeypatch.setattr(backends, "multiplies_bf16", lambda: native)
    monkeypatch.setattr(ops, "instruction_set", "avx512")
    wide, one = PLAIN._replace(T=30, B=64, H=256), PLAIN._replace(T=1, B=1, H=512)
    faster_in_bf16 = "aten" if native else "cpu"
    for problem, chosen in (
        (wide._replace(dtype=torch.bfloat16), faster_in_bf16),
        (PLAIN._replace(dtype=torch.bfloat16, cell=LSTM), faster_in_bf16),
        (PLAIN._replace(dtype=torch.bfloat16), "cpu"),
        (wide, "cpu"),
        (one, "cpu"),
        (one._replace(dtype=torch.float64), "aten"),
        (wide._replace(dtype=torch.float64), "cpu"),
        (one._replace(H=1024, grad=True), "aten"),
        (one._replace(H=1024), "cpu"),
    ):
        assert backends.choose("auto", problem) == chosen, problem


@needs_kernel
@pytest.mark.usefixtures("fresh_choices")
def test_auto_takes_bfloat16_by_amx_in_inference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "multiplies_bf16", lambda: True)
    monkeypatch.setattr(ops, "instruction_set", "amx")
    wide = PLAIN._replace(T=30, B=64, H=256, dtype=torch.bfloat16)
    one = PLAIN._replace(T=1, B=1, H=512, dtype=torch.bfloat16)
    for problem, chosen in (
        (wide, "cpu"),
        (wide._replace(cell=LSTM), "cpu"),
        (wide._replace(grad=True), "aten"),
        (wide._replace(cell=LSTM, grad=True), "aten"),
        (one, "cpu"),
        (one._replace(grad=True), "aten"),
        (one._replace(H=1024, B=4), "cpu"),
        (one._replace(H=1024, B=5), "aten"),
        (one._replace(H=1024, B=5, T=3), "cpu"),
        (one._replace(H=1024, B=5, cell=LSTM), "cpu"),
    ):
        assert backends.choose("auto", problem) == chosen, problem
    monkeypatch.setattr(ops, "instruction_set", "avx512")
    backends._remembered.cache_clear()
    assert backends.choose("auto", wide) == "aten"


def test_explain_refuses_what_is_no_layer() -> None:
    with pytest.raises(TypeError, match="Expected a GRU, LSTM or RNN layer, got GRUCell"):
        fusedrnn.explain(nn.GRUCell(3, 4), torch.ones(2, 3))
