"""ONNX Runtime's recurrent nodes as a provider: inference in float32, from the weights of torch's layer.

The graph is written here node by node: it needs no exporter, and holds nothing beside the layer. The session runs on as
many threads as torch has, with all optimisations, and reads and writes torch's memory without a copy. Its threads stop
spinning when a call returns: on a machine with few cores they would else run into the other side's time.
Source: the operators GRU, LSTM and RNN of opset 14, https://onnx.ai/onnx/operators/.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor, nn

from .cases import Case

# ONNX's gate order, as indices into torch's: GRU r z n to z r h, LSTM i f g o to i o f c
_ORDER = {"GRU": (1, 0, 2), "LSTM": (0, 3, 1, 2), "RNN": (0,)}
_OPSET, _IR_VERSION = 17, 8


def missing() -> str | None:
    """What has to be installed, or None."""
    absent = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    if not absent:
        return None
    return f"provider onnxruntime needs {' and '.join(absent)}, not installed here: pip install -e .[onnx]"


def _why_not(case: Case) -> str | None:
    if case.dtype != "fp32":
        return f"its recurrent nodes are measured in fp32 only, got {case.dtype}"
    if case.proj:
        return "its LSTM has no projection (proj_size)"
    return "it takes no PackedSequence; a ragged case gives it lengths" if case.packed else None


def model(case: Case, source: nn.RNNBase) -> bytes:
    """The layer as an ONNX graph: x, and lengths of a ragged case, to y, h_n and, of an LSTM, c_n."""
    from onnx import TensorProto, helper, numpy_helper

    states = ("h_n", "c_n") if source.mode == "LSTM" else ("h_n",)
    kind = source.mode.partition("_")[0]
    nodes, constants = [], []

    def node(op: str, inputs: list[str], outputs: list[str], **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, outputs, **attributes))
        return outputs[0]

    def constant(name: str, value: Tensor) -> str:
        constants.append(numpy_helper.from_array(value.numpy(), name))
        return name

    width = source.bidirectional + 1
    options: dict[str, Any] = {"hidden_size": case.H, "direction": "bidirectional" if width == 2 else "forward"}
    if kind == "GRU":
        options["linear_before_reset"] = 1
    elif kind == "RNN":
        options["activations"] = [{"RNN_TANH": "Tanh", "RNN_RELU": "Relu"}[source.mode]] * width
    x = node("Transpose", ["x"], ["steps_first"], perm=[1, 0, 2]) if case.batch_first else "x"
    for layer in range(case.L):
        inputs = [x, *(constant(f"{n}{layer}", value) for n, value in _weights(source, kind, layer).items())]
        inputs += [""] * (not case.bias) + ["lengths"] * case.ragged
        ends = [f"{name}{layer}" if case.L > 1 else name for name in states]
        x = node(kind, inputs, [f"by_direction{layer}", *ends], **options)  # [T, D, B, H]
        if width == 2:
            together = node("Transpose", [x], [f"together{layer}"], perm=[0, 2, 1, 3])
            x = node("Reshape", [together, constant(f"shape{layer}", torch.tensor([0, 0, -1]))], [f"y{layer}"])
        elif case.batch_first or layer + 1 < case.L:  # else it lies in memory as torch's does
            x = node("Squeeze", [x, constant(f"axis{layer}", torch.tensor([1]))], [f"y{layer}"])
    if case.batch_first:
        x = node("Transpose", [x], ["y"], perm=[1, 0, 2])
    for name in states:
        if case.L > 1:
            node("Concat", [f"{name}{layer}" for layer in range(case.L)], [name], axis=0)
    floats = TensorProto.FLOAT
    feeds = [helper.make_tensor_value_info("x", floats, [None, None, case.I])]
    feeds += [helper.make_tensor_value_info("lengths", TensorProto.INT32, [None])] * case.ragged
    results = [helper.make_tensor_value_info(name, floats, None) for name in (x, *states)]
    graph = helper.make_graph(nodes, "layer", feeds, results, constants)
    opset = [helper.make_opsetid("", _OPSET)]
    return helper.make_model(graph, opset_imports=opset, ir_version=_IR_VERSION).SerializeToString()


def _weights(source: nn.RNNBase, kind: str, layer: int) -> dict[str, Tensor]:
    """W, R and B of a layer, a row for each direction, the gates in ONNX's order."""
    suffixes = [f"_l{layer}{direction}" for direction in ("", "_reverse")[: source.bidirectional + 1]]

    def of(name: str) -> list[Tensor]:
        values = [getattr(source, name + suffix).detach() for suffix in suffixes]
        return [torch.cat([value.chunk(len(_ORDER[kind]))[gate] for gate in _ORDER[kind]]) for value in values]

    found = {"W": torch.stack(of("weight_ih")), "R": torch.stack(of("weight_hh"))}
    if source.bias:
        found["B"] = torch.cat([torch.stack(of("bias_ih")), torch.stack(of("bias_hh"))], dim=1)
    return found


class Layer(nn.Module):
    """A session bound to the memory of one input; what it returns is written anew by the next call."""

    def __init__(self, case: Case, source: nn.RNNBase) -> None:
        super().__init__()
        if reason := missing() or _why_not(case):
            raise ValueError(reason)
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self._session = onnxruntime.InferenceSession(model(case, source), options, providers=["CPUExecutionProvider"])
        self._case = case
        self._bound: tuple[Tensor, ...] = ()
        self._outputs: list[Tensor] = []
        self._binding: Any = None

    def forward(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Any]:
        if not self._bound or self._bound[0] is not x:
            self._bind(x, lengths)
        self._session.run_with_iobinding(self._binding)
        y, *states = self._outputs
        return y, tuple(states) if len(states) > 1 else states[0]

    def _bind(self, x: Tensor, lengths: Tensor | None) -> None:
        case, session = self._case, self._session
        self._bound = (x, x.contiguous(), *([] if lengths is None else [lengths.to(torch.int32)]))
        self._binding = session.io_binding()
        for feed, value in zip(session.get_inputs(), self._bound[1:], strict=True):
            self._binding.bind_input(feed.name, "cpu", 0, value.numpy().dtype.type, value.shape, value.data_ptr())
        state = (case.L * case.D, case.B, case.H)
        shapes = [(*x.shape[:2], case.D * case.H), *[state] * (len(session.get_outputs()) - 1)]
        self._outputs = [torch.empty(shape) for shape in shapes]
        # one direction, steps first: the node's own [T, 1, B, H] is the same memory
        shapes[0] = (case.T, 1, case.B, case.H) if case.D == 1 and not case.batch_first else shapes[0]
        for result, value, shape in zip(session.get_outputs(), self._outputs, shapes, strict=True):
            self._binding.bind_output(result.name, "cpu", 0, value.numpy().dtype.type, shape, value.data_ptr())
