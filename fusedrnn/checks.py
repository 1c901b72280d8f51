"""torch.nn's checks of what a layer is called with, in its order and words; clear words where torch crashes or mumbles.

A leaf. Layers check here before any backend is asked, so that a fault reads the same whichever runs.
"""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .errors import UnsupportedProblem


def input_rank(name: str, rank: int) -> None:
    """A layer's input is [T, B, I] or [T, I]."""
    if rank not in (2, 3):
        noun = " tensor" if name == "RNN" else ""  # nn.RNN alone says so
        raise ValueError(f"{name}: Expected input to be 2D or 3D, got {rank}D{noun} instead")


def state_list(hx: object, states: int) -> list[Tensor]:
    """`hx` as a list: of itself, or of the LSTM's two states."""
    if states == 1:
        return [hx]  # type: ignore[list-item]
    if not isinstance(hx, (tuple, list)):
        raise TypeError(f"LSTM: Expected hx to be a tuple (h_0, c_0), got {type(hx).__name__}")
    if len(hx) != states:
        raise RuntimeError("lstm expects two hidden states")
    return list(hx)


def state_ranks(given: Sequence[Tensor], rank: int) -> None:
    """States have as many dimensions as the input."""
    found = [h.dim() for h in given]
    if found.count(rank) == len(found):
        return
    kind = "batched 3-D" if rank == 3 else "unbatched 2-D"
    if len(found) == 1:
        raise RuntimeError(f"For {kind} input, hx should also be {rank}-D but got {found[0]}-D tensor")
    raise RuntimeError(
        f"For {kind} input, hx and cx should also be {rank}-D but got ({found[0]}-D, {found[1]}-D) tensors"
    )


def packed_ranks(data: Tensor, given: Sequence[Tensor]) -> None:
    """Packed rows are 2-D. An LSTM's states of another rank than 3 crash torch; a single one it refuses by its size."""
    if data.dim() != 2:
        raise RuntimeError(f"input must have 2 dimensions, got {data.dim()}")
    if len(given) == 2 and any(h.dim() != 3 for h in given):
        found = " and ".join(f"{h.dim()}-D" for h in given)
        raise ValueError(f"LSTM: Expected hx and cx to be 3-D [L*D, B, ...] for packed input, got {found}")


def contents(
    name: str, x: Tensor, input_size: int, given: Sequence[Tensor], sizes: Sequence[tuple[int, ...]], weight: Tensor
) -> None:
    """Dtypes, sizes and devices.

    Args:
        name: the layer's.
        x: [..., I].
        input_size: what I should be.
        given: the states.
        sizes: what theirs should be.
        weight: any of the layer's.
    """
    _input_dtype(x, weight)
    if x.size(-1) != input_size:
        raise RuntimeError(f"input.size(-1) must be equal to input_size. Expected {input_size}, got {x.size(-1)}")
    for k, (h, size) in enumerate(zip(given, sizes, strict=True)):
        if h.shape != size:
            which = "hidden" if len(given) == 1 else f"hidden[{k}]"
            raise RuntimeError(f"Expected {which} size {size}, got {list(h.shape)}")
    _devices(x, given, weight)
    _state_dtype(name, x, given)


def _input_dtype(x: Tensor, weight: Tensor) -> None:
    if x.dtype != weight.dtype and not torch._C._is_any_autocast_enabled():
        raise ValueError(
            f"RNN input dtype ({x.dtype}) does not match weight dtype ({weight.dtype}). "
            f"Convert input: input.to({weight.dtype}), or convert model: model.to({x.dtype})"
        )


def _devices(x: Tensor, given: Sequence[Tensor], weight: Tensor) -> None:
    for h in given:
        _same_device(x, "hidden", h)
    _same_device(x, "parameter", weight)


def _same_device(x: Tensor, kind: str, other: Tensor) -> None:
    if x.device != other.device:
        raise RuntimeError(
            f"Input and {kind} tensors are not at the same device, "
            f"found input tensor at {x.device} and {kind} tensor at {other.device}"
        )


def _state_dtype(name: str, x: Tensor, given: Sequence[Tensor]) -> None:
    for h in given:
        if h.dtype != x.dtype and not torch._C._is_any_autocast_enabled():
            raise ValueError(
                f"{name}: Expected hx of the input's dtype {x.dtype}, got {h.dtype}. Convert it: hx.to({x.dtype})"
            )


def masks(
    lengths: Tensor | None, reset: Tensor | None, steps: int, batch: int, rank: int = 3, batch_first: bool = False
) -> tuple[Tensor | None, Tensor | None]:
    """Lengths [B] and resets [T, B] from those of an input of `rank` dimensions; neither is read."""
    if lengths is not None:
        _tensor("lengths", lengths)
        if rank == 2:
            lengths = lengths.reshape(-1)
        if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
            raise ValueError(f"lengths: Expected integers, got {lengths.dtype}. Convert it: lengths.long()")
        if lengths.shape != (batch,):
            raise ValueError(f"lengths: Expected size {(batch,)}, one a row, got {list(lengths.shape)}")
    if reset is not None:
        _tensor("reset", reset)
        if reset.dtype != torch.bool:
            raise ValueError(f"reset: Expected torch.bool, got {reset.dtype}. Convert it: reset.bool()")
        expected = (steps,) if rank == 2 else (batch, steps) if batch_first else (steps, batch)
        if reset.shape != expected:
            raise ValueError(f"reset: Expected size {expected}, laid out as input, got {list(reset.shape)}")
        reset = reset.unsqueeze(1) if rank == 2 else reset.t() if batch_first else reset
    return lengths, reset


def reset_state(given: Any, reset: Tensor | None, sizes: Sequence[tuple[int, int]], weight: Tensor) -> list[Tensor]:
    """The states that a reset goes back to: h and, of the LSTM, c, of these sizes, in the weights' dtype."""
    several = len(sizes) > 1
    states = list(given) if several and isinstance(given, (tuple, list)) else [given]
    if len(states) != len(sizes) or not all(isinstance(t, Tensor) for t in states):
        wanted = "a tuple of two tensors, h and c" if several else "a tensor"
        got = type(given).__name__
        if several and isinstance(given, (tuple, list)):
            got = f"({', '.join(type(t).__name__ for t in given)})"
        raise TypeError(f"reset_state: Expected {wanted}, got {got}")
    reset_there(reset)
    for which, t, size in zip("hc", states, sizes, strict=False):
        name = f"reset_state's {which}" if several else "reset_state"
        if t.shape != size:
            raise RuntimeError(
                f"{name}: Expected size {size}, layers times directions and units, with no axis of rows: one state for "
                f"all; got {list(t.shape)}"
            )
        if t.device != weight.device:
            raise RuntimeError(f"{name}: Expected a tensor on {weight.device}, as the weights, got one on {t.device}")
        if t.dtype != weight.dtype and not torch._C._is_any_autocast_enabled():
            raise ValueError(
                f"{name}: Expected {weight.dtype}, as the weights, got {t.dtype}. Convert it: .to({weight.dtype})"
            )
    return states


def reset_there(reset: object) -> None:
    """A state to go back to needs something that goes back."""
    if reset is None:
        raise ValueError("reset_state: there is no reset that would go back to it; pass reset= too, or leave it out")


def probability(name: str, value: Any, states: int = 1) -> None:
    """A number from 0 to 1 or, with more than one state, as many of them."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if states > 1 and isinstance(value, (tuple, list)):
        if len(value) != states:
            raise ValueError(f"{name} should be a number or {states} of them (for h, c), got {value!r}")
        for each in value:
            probability(name, each)
    elif not number or not 0 <= value <= 1:
        pair = ", or a pair of them (for h, c)" if states > 1 else ""
        raise ValueError(f"{name} should be a number in range [0, 1]{pair}, got {value!r}")


def layer_norm(value: object) -> None:
    """Whether there is one; not which."""
    if not isinstance(value, bool):
        raise TypeError(f"layer_norm: Expected True or False, got {type(value).__name__}")


def bptt(steps: object, zoneout: Any, recurrent_dropout: Any) -> None:
    """A number of steps, or None; and no noise in the loop beside it."""
    if steps is not None and (not isinstance(steps, int) or isinstance(steps, bool)):
        raise TypeError(f"bptt: Expected a number of steps, or None, got {type(steps).__name__}")
    if steps is not None and steps < 1:
        raise ValueError(f"bptt: Expected at least 1 step, or None for gradients through all of them, got {steps}")
    held = any(zoneout) if isinstance(zoneout, (tuple, list)) else zoneout
    if steps is not None and (held or recurrent_dropout):
        raise UnsupportedProblem(
            "bptt goes with neither zoneout nor recurrent_dropout: its segments run side by side, and would be drawn "
            "others. Call the layer window by window, each from the detached states of the one before"
        )


def _tensor(name: str, mask: object) -> None:
    if not isinstance(mask, Tensor):
        raise TypeError(f"{name}: Expected a Tensor, got {type(mask).__name__}")


def cell_states(hx: object) -> list[Tensor]:
    """An LSTMCell's `hx` as a list."""
    if not isinstance(hx, (tuple, list)):
        raise TypeError(f"LSTMCell: Expected hx to be a tuple (h, c), got {type(hx).__name__}")
    if len(hx) != 2:
        raise RuntimeError("lstm_cell expects two hidden states")
    return list(hx)


def cell_ranks(name: str, x: Tensor, given: Sequence[Tensor]) -> None:
    """A cell's input and states are all 2-D or all 1-D; torch reads beyond a tensor's shape where they differ."""
    rank = x.dim()
    if rank not in (1, 2):
        raise ValueError(f"{name}: Expected input to be 1D or 2D, got {rank}D instead")
    for k, h in enumerate(given):
        if h.dim() != rank:
            label = "hidden" if len(given) == 1 else f"hx[{k}]"
            expected = f"{rank}D as the input is" if h.dim() in (1, 2) else "1D or 2D"
            raise ValueError(f"{name}: Expected {label} to be {expected}, got {h.dim()}D instead")


def cell_contents(
    name: str, x: Tensor, input_size: int, given: Sequence[Tensor], hidden_size: int, weight: Tensor
) -> None:
    """As `contents`, in the words of torch's cells; x [B, I] or [I], states [B, H] or [H]."""
    if x.size(-1) != input_size:
        raise RuntimeError(f"input has inconsistent input_size: got {x.size(-1)} expected {input_size}")
    for k, h in enumerate(given):
        if x.dim() == 2 and h.size(0) != x.size(0):
            raise RuntimeError(f"Input batch size {x.size(0)} doesn't match hidden{k} batch size {h.size(0)}")
        if h.size(-1) != hidden_size:
            raise RuntimeError(f"hidden{k} has inconsistent hidden_size: got {h.size(-1)}, expected {hidden_size}")
    _input_dtype(x, weight)
    _devices(x, given, weight)
    _state_dtype(name, x, given)
