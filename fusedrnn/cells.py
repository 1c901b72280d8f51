"""GRUCell, LSTMCell and RNNCell: one step, with torch.nn's arguments, parameters, outputs and errors."""

from __future__ import annotations

from typing import Any

from torch import _VF, Tensor, nn

from . import backends, checks, functional, modes
from .spec import CELLS, GRU, LSTM, RNN_RELU, RNN_TANH, CellSpec
from .stack import compute_dtype
from .standin import StandIn, onnx_exports, torchscript_traces

_NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
_TORCH_OPS: dict[str, Any] = {spec.name: getattr(_VF, f"{spec.name}_cell") for spec in CELLS}


class _Cell(StandIn, nn.RNNCellBase):
    """All that the three cells share."""

    def extra_repr(self) -> str:
        """What torch's cells say, and a backend that was asked for."""
        said: str = nn.RNNCellBase.extra_repr(self)
        return said if self.backend == backends.AUTO else f"{said}, backend={self.backend!r}"

    def _run(self, spec: CellSpec, x: Tensor, hx: Any, given: list[Tensor]) -> Any:
        """The next states, as torch's forward returns them; `given` are the states in hx."""
        by_torch = self._by_torch()
        if not by_torch and (torchscript_traces() or onnx_exports()):
            return self._stock.forward(self, x, hx)
        checks.cell_ranks(self._stock.__name__, x, given)
        weights, one = self._read(_NAMES if self.bias else _NAMES[:2]), x.dim() == 1
        rows = [t.unsqueeze(0) for t in (x, *given)] if one else [x, *given]
        if by_torch:
            try:
                last = _torch_step(spec, rows, weights, self.hidden_size)
            except RuntimeError:
                self._check(x, given)
                raise
        else:
            self._check(x, given)
            dtype = compute_dtype(spec, x, given, composite=True)
            first, *starts = (t.unsqueeze(0) for t in rows)
            if modes.autocast_dtype(x) is not None:
                first, *starts = (t.to(dtype) for t in (first, *starts))
                weights = [w.to(dtype) for w in weights]
            with modes.without_autocast(x):
                _, last, _ = functional.recurrent(spec, first, starts, weights, bias=self.bias, backend=self.backend)
            last = tuple(h.squeeze(0) for h in last)
        states = tuple(h.squeeze(0) for h in last) if one else last
        return states if len(states) == 2 else states[0]

    def _by_torch(self) -> bool:
        """Whether torch's own op runs: in plain eager mode what "auto" takes, since one step is no loop to fuse."""
        return (
            (backends.override() or self.backend) in (backends.AUTO, "aten")
            and not torchscript_traces()
            and not modes.traced()
        )

    def _check(self, x: Tensor, given: list[Tensor]) -> None:
        checks.cell_contents(self._stock.__name__, x, self.input_size, given, self.hidden_size, self.weight_ih)


def _torch_step(spec: CellSpec, rows: list[Tensor], weights: list[Tensor], hidden_size: int) -> tuple[Tensor, ...]:
    """torch's op of one step on x [B,I] and states [B,H], if there are any."""
    x, *given = rows
    if not given:
        given = [x.new_zeros(x.size(0), hidden_size)] * len(spec.states)
    biases = weights[2:] or (None, None)
    op = _TORCH_OPS[spec.name]
    if len(given) == 2:
        h, c = op(x, given, *weights[:2], *biases)
        return h, c
    return (op(x, given[0], *weights[:2], *biases),)


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
        out: Tensor = self._run(GRU, input, hx, [] if hx is None else [hx])
        return out


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
        out: tuple[Tensor, Tensor] = self._run(LSTM, input, hx, [] if hx is None else checks.cell_states(hx))
        return out


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
        if self.nonlinearity not in ("tanh", "relu"):
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")
        spec = RNN_TANH if self.nonlinearity == "tanh" else RNN_RELU
        out: Tensor = self._run(spec, input, hx, [] if hx is None else [hx])
        return out
