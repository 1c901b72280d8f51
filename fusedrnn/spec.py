"""What a cell is, and what one call asks for, as data. A leaf."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch


@dataclass(frozen=True, eq=False)
class CellSpec:
    """A recurrent cell. There is one object a cell, also after a copy or a pickle.

    Attributes:
        name: "gru", "lstm", "rnn_tanh" or "rnn_relu"; also the name of torch's own op.
        code: the cell's number in the compiled ops.
        mode: torch.nn.RNNBase's name of the cell.
        gates: blocks of H rows in weight_ih and weight_hh, in torch's order.
        states: what a step hands to the next one.
        kept: blocks of H numbers a step that the adjoint reads, where the output alone does not do. The GRU's q is
            W_hn h + b_hn.
    """

    name: str
    code: int
    mode: str
    gates: tuple[str, ...]
    states: tuple[str, ...]
    kept: tuple[str, ...]

    def __reduce__(self) -> tuple[object, ...]:
        return by_mode, (self.mode,)


GRU = CellSpec("gru", 0, "GRU", ("r", "z", "n"), ("h",), ("r", "z", "n", "q"))
LSTM = CellSpec("lstm", 1, "LSTM", ("i", "f", "g", "o"), ("h", "c"), ("i", "f", "g", "o"))
RNN_TANH = CellSpec("rnn_tanh", 2, "RNN_TANH", ("h",), ("h",), ())
RNN_RELU = CellSpec("rnn_relu", 3, "RNN_RELU", ("h",), ("h",), ())

CELLS = (GRU, LSTM, RNN_TANH, RNN_RELU)
"""Every cell, at the index of its code."""

_BY_MODE = {cell.mode: cell for cell in CELLS}


def by_mode(mode: str) -> CellSpec:
    """The cell that torch.nn.RNNBase calls `mode`.

    Raises:
        ValueError: `mode` names no cell.
    """
    try:
        return _BY_MODE[mode]
    except KeyError:
        raise ValueError(f"Unrecognized RNN mode: {mode}; expected one of {', '.join(_BY_MODE)}") from None


NOISE = ("zoneout", "recurrent_dropout")
"""What is random inside the loop, by the names of `Problem`."""

OF_THE_LOOP = (*NOISE, "layer_norm", "reset_state")
"""What a step of torch's layers has not, likewise."""


def rates(cell: CellSpec, zoneout: float | Sequence[float] = 0.0, recurrent_dropout: float = 0.0) -> tuple[float, ...]:
    """The ops' `rates`: of zoneout of h, zoneout of c, recurrent dropout; () if all are 0."""
    h, c = zoneout if isinstance(zoneout, Sequence) else (zoneout, zoneout)
    if not (h or c or recurrent_dropout):
        return ()
    return float(h), float(c) if cell is LSTM else 0.0, float(recurrent_dropout)


def norm_names(cell: CellSpec, bias: bool) -> tuple[str, ...]:
    """What layer normalisation adds to each direction's weights, in this order, behind them; without their `_l0`."""
    gains = ("weight_ln_ih", "weight_ln_hh")
    return (*gains, "weight_ln_c", *(("bias_ln_c",) if bias else ())) if cell is LSTM else gains


class Problem(NamedTuple):
    """One call, as far as the choice of a backend depends on it.

    A tuple, because eager mode makes one a call and looks it up: a frozen dataclass costs ten times as much.

    Attributes:
        cell: the cell.
        T: time steps.
        B: batch rows.
        I: input size of the first layer.
        H: hidden size.
        L: layers.
        D: directions.
        proj_size: size of the LSTM's projected output, 0 for none.
        dtype: what is computed in; under autocast, autocast's.
        device: what the input lies on, as torch.device.type.
        bias: whether the layers have biases.
        dropout: probability between layers, 0 where it is not active.
        grad: whether a gradient is wanted.
        lengths: whether rows have lengths.
        reset: whether states are reset inside the sequence.
        return_states: whether every state of every step is asked for.
        recompute: whether states only shall be kept for backward.
        traced: whether torch.compile, torch.export, torch.func or forward-mode differentiation stands around the call.
            T and B may be symbolic then, and shall not be compared.
        threads: torch.get_num_threads().
        packed: whether the input is a PackedSequence.
        bptt: whether gradients end after so many steps.
        zoneout: whether units keep their state with some probability.
        recurrent_dropout: whether the recurrent product sees a dropped state; False where it is not active.
        drawn: whether zoneout is drawn; else states are mixed by its probability.
        layer_norm: whether the products are normalised.
        reset_state: whether a reset goes back to a state that is given.
    """

    cell: CellSpec
    T: int
    B: int
    I: int
    H: int
    L: int = 1
    D: int = 1
    proj_size: int = 0
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    bias: bool = True
    dropout: float = 0.0
    grad: bool = False
    lengths: bool = False
    reset: bool = False
    return_states: bool = False
    recompute: bool = False
    traced: bool = False
    threads: int = 1
    packed: bool = False
    bptt: bool = False
    zoneout: bool = False
    recurrent_dropout: bool = False
    drawn: bool = False
    layer_norm: bool = False
    reset_state: bool = False
