"""Layers as ONNX GRU, LSTM and RNN nodes, for torch.onnx.export(..., dynamo=True).

T and B stay dynamic, lengths become sequence_lens.

Source: the operators of those names, https://onnx.ai/onnx/operators.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .errors import UnsupportedProblem
from .spec import GRU, LSTM, RNN_RELU, RNN_TANH, CellSpec, rates

_VERSION = 14

# Where ONNX's gates stand among torch's: GRU z r h among r z n, LSTM i o f c among i f g o.
_GATES = {GRU: (1, 0, 2), LSTM: (0, 3, 1, 2), RNN_TANH: (0,), RNN_RELU: (0,)}


def recurrent(
    spec: CellSpec,
    input: Tensor,
    hx: Sequence[Tensor] | None,
    weights: Sequence[Tensor],
    *,
    bias: bool,
    num_layers: int,
    bidirectional: bool,
    proj_size: int,
    lengths: Tensor | None,
    reset: Tensor | None,
    return_states: bool,
    reset_state: Sequence[Tensor] | None = None,
    zoneout: float | Sequence[float] = 0.0,
    layer_norm: bool = False,
    **rest: Any,
) -> tuple[Tensor, tuple[Tensor, ...], list[tuple[Tensor, ...]]]:
    """As `functional.recurrent`, into the graph being exported: one node a layer, dropouts (of training) left out.

    Raises:
        UnsupportedProblem: reset, proj_size, return_states, zoneout or layer_norm, which ONNX's operators have not.
    """
    for wanted, what in (
        (reset is not None or reset_state, "reset"),
        (proj_size, "proj_size"),
        (return_states, "return_states"),
        (rates(spec, zoneout), "zoneout"),
        (layer_norm, "layer_norm"),
    ):
        if wanted:
            raise UnsupportedProblem(
                f"ONNX has no recurrent operator with {what}: export without it, or by torch.export"
            )
    D, per = 2 if bidirectional else 1, 4 if bias else 2
    H, states = weights[1].shape[1], len(spec.states)
    name, _, activation = spec.mode.partition("_")
    attributes: dict[str, Any] = {"hidden_size": H, "direction": "bidirectional" if bidirectional else "forward"}
    if spec is GRU:
        attributes["linear_before_reset"] = 1
    if activation:
        attributes["activations"] = [activation.capitalize()] * D
    T, B, _ = input.shape
    x, last = input, list[list[Tensor]]()
    sequence_lens = None if lengths is None else lengths.to(torch.int32)
    for layer in range(num_layers):
        streams = slice(layer * D, (layer + 1) * D)
        own = [_gates_reordered(spec, w) for w in weights[layer * D * per : (layer + 1) * D * per]]
        w_ih, w_hh, *biases = (torch.stack(own[k::per]) for k in range(per))
        start = [h[streams] for h in hx] if hx else [None] * states
        y, *state = torch.onnx.ops.symbolic_multi_out(
            name,
            [x, w_ih, w_hh, torch.cat(biases, 1) if biases else None, sequence_lens, *start],
            attributes,
            dtypes=[x.dtype] * (1 + states),
            shapes=[(T, D, B, H)] + [(D, B, H)] * states,
            version=_VERSION,
        )
        x = y.transpose(1, 2).flatten(2)
        last.append(state)
    return x, tuple(torch.cat(h) for h in zip(*last, strict=True)), []


def _gates_reordered(spec: CellSpec, rows: Tensor) -> Tensor:
    blocks = rows.chunk(len(spec.gates))
    return torch.cat([blocks[k] for k in _GATES[spec]])
