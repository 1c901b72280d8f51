"""Out of eager Python: torch.export, TorchScript (torch's own layer in our place), ONNX (real recurrent nodes)."""

from __future__ import annotations

import importlib.util
import io
from typing import Any

import pytest
import torch
from close import assert_same
from pairs import LAYERS, B, H, I, T, gradients, initial, needs_kernel, pair, rand, tensors
from torch import Tensor, nn

import fusedrnn
from fusedrnn.errors import UnsupportedProblem

pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch.jit:DeprecationWarning", "ignore:.isinstance.treespec:FutureWarning"
)
each_layer = pytest.mark.parametrize("name", LAYERS)
STACK = {"num_layers": 2, "bidirectional": True, "batch_first": True}


def reloaded(module: Any, save: Any, load: Any) -> Any:
    buffer = io.BytesIO()
    save(module, buffer)
    buffer.seek(0)
    return load(buffer)


@needs_kernel
@each_layer
@pytest.mark.parametrize("masks", [False, True])
def test_torch_export_with_dynamic_time_and_batch(name: str, masks: bool) -> None:
    """Time can be dynamic, which it cannot with torch's layers; the program trains."""
    layer = pair(name, **STACK)[1].eval()
    rows, steps = torch.export.Dim("rows", min=1, max=4096), torch.export.Dim("steps", min=1, max=4096)
    args: tuple[Any, ...] = (rand(B, T, I),)
    shapes: tuple[Any, ...] = ({0: rows, 1: steps},)
    if masks:
        args += (None, torch.tensor([T, 0, 2]), torch.rand(B, T) < 0.3)
        shapes += (None, {0: rows}, {0: rows, 1: steps})
    program = reloaded(
        torch.export.export(layer, args, dynamic_shapes=shapes, strict=False), torch.export.save, torch.export.load
    ).module()
    for b, t in ((1, 1), (4, 11)):
        args = (rand(b, t, I).requires_grad_(),)
        if masks:
            args += (None, torch.randint(0, t + 1, (b,)), torch.rand(b, t) < 0.3)
        found, expected = tensors(program(*args)), tensors(layer(*args))
        assert_same(found + gradients(found, [args[0]]), expected + gradients(expected, [args[0]]))


class Model(nn.Module):
    """A layer inside a model, as scripts have them."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.layer(x)
        return y


class Own(fusedrnn.LSTM):
    """With a forward that torch's layer has not."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return x * 0


def test_script_refuses_a_forward_that_it_would_leave_out() -> None:
    with pytest.raises(UnsupportedProblem, match="Own has a forward of its own"):
        torch.jit.script(nn.Sequential(Own(I, H)))


@each_layer
def test_script(name: str) -> None:
    layer = pair(name, **STACK)[1].eval()
    model = Model(layer)
    scripted = reloaded(torch.jit.script(model), torch.jit.save, torch.jit.load)
    for b, t in ((3, 6), (1, 9)):
        x = rand(b, t, I)
        assert_same([scripted(x)], [model(x)])
    assert type(layer) is getattr(fusedrnn, name), "scripting makes a twin, it does not change the layer"


@each_layer
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_trace(name: str) -> None:
    """One op of torch's own, for any T and B."""
    layer = pair(name, **STACK)[1].eval()
    with torch.no_grad():
        traced = reloaded(torch.jit.trace(Model(layer), rand(B, T, I)), torch.jit.save, torch.jit.load)
        assert f"torch.{'rnn_tanh' if name == 'RNN' else name.lower()}(" in traced.layer.code
        for b, t in ((3, 6), (1, 9)):
            x = rand(b, t, I)
            assert_same([traced(x)], [layer(x)[0]])


@each_layer
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_what_torchscript_cannot_say(name: str) -> None:
    class Masked(Model):
        def forward(self, x: Tensor, lengths: Tensor) -> Any:
            return self.layer(x, None, lengths)

    with pytest.raises(UnsupportedProblem, match=r"no TorchScript form; use torch\.export"):
        torch.jit.trace(Masked(pair(name)[1]), (rand(T, B, I), torch.tensor([1, 2, 3])))


@pytest.mark.parametrize("name", ["GRUCell", "LSTMCell", "RNNCell"])
def test_cells(name: str) -> None:
    cell, x = getattr(fusedrnn, name)(I, H, dtype=torch.double), rand(B, I)
    expected = tensors(cell(x))
    rows = torch.export.Dim("rows", min=1, max=4096)
    program = torch.export.export(cell, (x,), dynamic_shapes=({0: rows},), strict=False).module()
    for run in (torch.jit.script(cell), torch.jit.trace(cell, x), program):
        assert_same(tensors(run(x)), expected)
    assert_same(tensors(program(x[:2])), [t[:2] for t in expected])


needs_onnx = pytest.mark.skipif(
    not all(importlib.util.find_spec(n) for n in ("onnx", "onnxscript", "onnxruntime")),
    reason="needs onnx, onnxscript and onnxruntime",
)


def to_onnx(model: nn.Module, args: tuple[Any, ...], axes: tuple[Any, ...]) -> tuple[list[str], Any]:
    """The recurrent nodes' kinds, and a function that runs the program in onnxruntime."""
    import onnxruntime

    model.eval().requires_grad_(False)
    program = torch.onnx.export(model, args, dynamic_shapes=axes, dynamo=True, verbose=False)
    kinds = [node.op_type for node in program.model.graph if node.op_type in LAYERS]
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])

    def run(*inputs: Tensor) -> list[Tensor]:
        names = [i.name for i in session.get_inputs()]
        return [
            torch.from_numpy(a) for a in session.run(None, dict(zip(names, (t.numpy() for t in inputs), strict=True)))
        ]

    return kinds, run


@needs_onnx
@each_layer
@pytest.mark.parametrize("bias", [True, False])
def test_onnx_nodes(name: str, bias: bool) -> None:
    """One node a layer; time and batch dynamic; hx and lengths are inputs."""
    layer = pair(name, **STACK, bias=bias, dtype=torch.float)[1]
    any_size = torch.export.Dim.DYNAMIC
    kinds, run = to_onnx(
        layer,
        (rand(B, T, I).float(), initial(layer), torch.tensor([T, 2, 3])),
        ({0: any_size, 1: any_size}, ({1: any_size},) * 2 if name == "LSTM" else {1: any_size}, {0: any_size}),
    )
    assert kinds == [name, name]
    for b, t in ((3, 6), (5, 9)):
        x, hx, lengths = rand(b, t, I).float(), initial(layer, b), torch.randint(1, t + 1, (b,))
        torch.testing.assert_close(run(x, *tensors(hx), lengths), tensors(layer(x, hx, lengths)))


@needs_onnx
@pytest.mark.parametrize("layer", [fusedrnn.GRU(I, H), fusedrnn.RNN(I, H, nonlinearity="relu")], ids=repr)
def test_onnx_of_a_plain_layer(layer: nn.Module) -> None:
    kinds, run = to_onnx(layer, (rand(T, B, I).float(),), ({0: torch.export.Dim.DYNAMIC},))
    assert len(kinds) == 1
    x = rand(9, B, I).float()
    torch.testing.assert_close(run(x), tensors(layer(x)))


@needs_onnx
def test_what_onnx_cannot_say() -> None:
    class Masked(Model):
        def forward(self, x: Tensor, reset: Tensor) -> Any:
            return self.layer(x, reset=reset)[0]

    args = (rand(T, B, I), torch.zeros(T, B, dtype=torch.bool))
    with pytest.raises(Exception, match="no recurrent operator with reset"):
        torch.onnx.export(Masked(pair("GRU")[1]).eval(), args, dynamo=True, verbose=False)
