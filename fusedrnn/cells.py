"""GRUCell, LSTMCell and RNNCell: one step, with torch.nn's arguments, parameters, outputs and errors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from . import checks, functional, onnx
from .spec import GRU, LSTM, RNN_RELU, RNN_TANH, CellSpec
from .standin import StandIn

_NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class _Cell(StandIn, nn.RNNCellBase):
    """All that the three cells share."""

    def _step(self, spec: CellSpec, x: Tensor, given: list[Tensor]) -> tuple[Tensor, ...]:
        """[B, I] or [I] to the next states, [B, H] or [H]."""
        name, batched = self._stock.__name__, x.dim() == 2
        weights = self._read(_NAMES if self.bias else _NAMES[:2])
        checks.cell_ranks(name, x, given)
        if not batched:
            x, given = x.unsqueeze(0), [h.unsqueeze(0) for h in given]
        checks.cell_contents(name, x, self.input_size, given, self.hidden_size, weights[0])
        hx = [h.unsqueeze(0) for h in given]
        _, last, _ = functional.recurrent(spec, x.unsqueeze(0), hx, weights, bias=self.bias, backend=self.backend)
        return tuple(h.squeeze(0) if batched else h[0, 0] for h in last)


def _exporting() -> bool:
    """Whether an exporter that has not our ops is looking on: it gets torch's own cell."""
    if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return True
    return torch.compiler.is_exporting() and onnx.exporting()


class GRUCell(_Cell, nn.GRUCell):
    """One step of `GRU`, in place of torch.nn.GRUCell: same arguments, Parameters, state_dict, outputs and errors.

    Args:
        input_size: I.
        hidden_size: H.
        bias: whether there are bias_ih and bias_hh.
        device, dtype: of the Parameters.
        backend: as for `GRU`.

    Attributes:
        weight_ih, weight_hh: [3*H, I] and [3*H, H], rows in the order r, z, n.
        bias_ih, bias_hh: [3*H], or None.
    """

    _stock = nn.GRUCell

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        backend: str = "auto",
    ) -> None:
        super().__init__(input_size, hidden_size, bias, device, dtype)
        self.backend = backend

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """The next state [B, H] ([H]) from input [B, I] ([I]) and the state hx [B, H] ([H]), zeros if None.

        Raises:
            ValueError: a rank or dtype does not fit.
            RuntimeError: a size or device does not fit.
        """
        if _exporting():
            return super().forward(input, hx)
        return self._step(GRU, input, [] if hx is None else [hx])[0]


class LSTMCell(_Cell, nn.LSTMCell):
    """One step of `LSTM`, in place of torch.nn.LSTMCell: same arguments, Parameters, state_dict, outputs and errors.

    Args and Attributes as `GRUCell`, with 4*H rows in the order i, f, g, o.
    """

    _stock = nn.LSTMCell

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        backend: str = "auto",
    ) -> None:
        super().__init__(input_size, hidden_size, bias, device, dtype)
        self.backend = backend

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """The next (h, c), each [B, H] ([H]), from input [B, I] ([I]) and hx = (h, c), or zeros. Raises as GRUCell."""
        if _exporting():
            return super().forward(input, hx)
        h, c = self._step(LSTM, input, [] if hx is None else checks.cell_states(hx))
        return h, c


class RNNCell(_Cell, nn.RNNCell):
    """One step of `RNN`, in place of torch.nn.RNNCell: same arguments, Parameters, state_dict, outputs and errors.

    Args and Attributes as `GRUCell`, with H rows, and:
        nonlinearity: "tanh" or "relu".
    """

    _stock = nn.RNNCell

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: Any = None,
        dtype: Any = None,
        *,
        backend: str = "auto",
    ) -> None:
        super().__init__(input_size, hidden_size, bias, nonlinearity, device, dtype)
        self.backend = backend

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """The next state, as GRUCell. Also RuntimeError for an unknown `nonlinearity`, which torch too sees here."""
        if _exporting():
            return super().forward(input, hx)
        if self.nonlinearity not in ("tanh", "relu"):
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")
        spec = RNN_TANH if self.nonlinearity == "tanh" else RNN_RELU
        return self._step(spec, input, [] if hx is None else [hx])[0]
