"""Ways to answer a request: torch's layers, fused ones, 8-bit weights, ONNX Runtime, a stream step by step."""

from __future__ import annotations

import copy
import importlib.util
import itertools
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import ort
from .cases import Case
from .measure import compare, errors
from .providers import FUSED, NN, OUTPUTS, fused_module, inputs, twin

EAGER, QUIET, STREAM = "eager", "no_grad", "stream"
INT8 = "int8"
INT8_ERROR = 0.05
"""Relative L2 error of the output that 8 bits may cost."""
Answer = tuple[Tensor, ...]
"""Output, and final states."""


@dataclass(frozen=True)
class Way:
    """One way to answer: the call that is timed, and the answer to all of the request (a stream's call is one step)."""

    provider: str
    mode: str
    call: Callable[[], Answer]
    whole: Callable[[], Answer]


def export(layer: nn.Module, x: Tensor, path: Path) -> None:
    """Writes the layer as an ONNX file for any T and B, without the exporter's remarks.

    Raises:
        Exception: of many kinds, the exporter's own.
    """
    anything = torch.export.Dim.DYNAMIC
    shapes = ({0: anything, 1: anything},)
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            options = {"dynamo": True, "verbose": False, "external_data": False}
            torch.onnx.export(layer, (x,), path, dynamic_shapes=shapes, **options)
    finally:
        logging.disable(before)


def export_missing() -> str | None:
    """What has to be installed to write an ONNX file and to run it, or None."""
    needs_script = "torch.onnx.export needs onnxscript, not installed here: pip install -e .[onnx]"
    return ort.missing() or (None if importlib.util.find_spec("onnxscript") else needs_script)


def int8_missing() -> str | None:
    """Why there is no dynamic quantization, or None."""
    there = hasattr(getattr(torch.ao, "quantization", None), "quantize_dynamic")
    return None if there else f"torch {torch.__version__} has no dynamic quantization any more"


def quantized(layer: nn.RNNBase) -> nn.Module:
    """Weights in 8 bits, activations quantized as they come, by torch's own recipe for torch's own layers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # announced as deprecated; there is no other in torch itself
        recipe = torch.ao.quantization.quantize_dynamic
        return recipe(nn.Sequential(fused_module().revert(copy.deepcopy(layer))), {nn.LSTM, nn.GRU}, dtype=torch.qint8)


def ways(case: Case, file: Path | None) -> list[Way]:
    """Every way there is here; ONNX Runtime's where there is a file."""
    layers = {NN.name: twin(case), FUSED.name: FUSED.build(case, twin(case))}
    x = inputs(case).x
    found = []
    for name, layer in layers.items():
        layer.eval()
        found += [_plain(name, EAGER, layer, x), _plain(name, QUIET, layer, x)]
        if case.D == 1:
            found.append(_stream(name, layer, x))
    if not int8_missing():
        found.append(_plain(INT8, QUIET, quantized(layers[FUSED.name]), x))
    if file is not None:
        found.append(_onnxruntime(file, x))
    return found


def _flat(y: Tensor, states: Any) -> Answer:
    return (y, *states) if isinstance(states, tuple) else (y, states)


def _plain(name: str, mode: str, layer: nn.Module, x: Tensor) -> Way:
    def call() -> Answer:
        with torch.set_grad_enabled(mode == EAGER):
            return _flat(*layer(x))

    return Way(name, mode, call, call)


def _stream(name: str, layer: nn.Module, x: Tensor) -> Way:
    """A step a call; the request begins anew where it ends."""
    steps, at, states = x.split(1), itertools.count(), None

    def call() -> Answer:
        nonlocal states
        number = next(at) % len(steps)
        with torch.no_grad():
            y, states = layer(steps[number], states if number else None)
        return _flat(y, states)

    def whole() -> Answer:
        answers = [call() for _ in steps]
        return torch.cat([answer[0] for answer in answers]), *answers[-1][1:]

    return Way(name, STREAM, call, whole)


def _onnxruntime(file: Path, x: Tensor) -> Way:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: x.numpy()}

    def call() -> Answer:
        return tuple(torch.from_numpy(value) for value in session.run(None, feed))

    return Way("onnxruntime", QUIET, call, call)


def wrong(way: Way, case: Case) -> str | None:
    """Why an answer is not the right one, or None: by the gate's rule, int8's output by `INT8_ERROR`."""
    x = inputs(case).x

    def named(answer: Answer) -> dict[str, Tensor]:
        return {name: value.detach() for name, value in zip(OUTPUTS, answer, strict=False)}

    with torch.no_grad():
        truth = named(_flat(*twin(case).double()(x.double())))
        baseline = named(_flat(*twin(case)(x)))
    found = named(way.whole())
    if way.provider != INT8:
        return compare(found, baseline, truth)
    error, _ = errors(found["y"], truth["y"])
    return None if error <= INT8_ERROR else f"y: L2 error {error:.1e}, allowed {INT8_ERROR:g}"
