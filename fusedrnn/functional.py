"""Recurrent layers as functions of input, states and weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from . import backends, checks
from .spec import GRU, LSTM, RNN_RELU, RNN_TANH, CellSpec, norm_names
from .stack import recurrent
from .standin import REGULARISERS

__all__ = ["gru", "lstm", "recurrent", "rnn"]


def gru(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    *,
    bias: bool = True,
    num_layers: int = 1,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    recompute: bool = False,
    return_states: bool = False,
    reset_state: Any = None,
    zoneout: float = 0.0,
    recurrent_dropout: float = 0.0,
    weight_dropout: float = 0.0,
    bptt: int | None = None,
    layer_norm: bool = False,
    backend: str = backends.AUTO,
) -> Any:
    """A GRU's layers.

    r, z = sigmoid(W_i x + b_i + W_h h + b_h), n = tanh(W_in x + b_in + r (W_hn h + b_hn)), h' = (1 - z) n + z h.

    Args:
        input: [T,B,I], [B,T,I] with `batch_first`; any strides, any dtype of the backend's.
        hx: h_0 [L*D,B,H], zeros if None.
        weights: per layer, per direction weight_ih [3*H, I or D*H], weight_hh [3*H,H] and, with `bias`, bias_ih and
            bias_hh [3*H]; rows r, z, n. With `layer_norm`, behind them weight_ln_ih and weight_ln_hh [3*H]. The
            parameters of torch.nn.GRU, and of the layers here, stand in this order.
        bias: whether there are biases.
        num_layers: L.
        dropout: probability with which an output of every layer but the last is zeroed.
        training: whether that is done; and so with recurrent_dropout, weight_dropout and zoneout.
        bidirectional: whether D is 2.
        batch_first: whether input, reset and output have the batch before time.
        lengths: [B] integers on any device, never read by the host: how many steps of each row are real. Outputs
            beyond are 0; h_n is the state after the last real step (h_0 if there is none); the reverse direction starts
            there.
        reset: [T,B] bool, [B,T] with `batch_first`: True at t separates step t-1 from step t, in both directions. The
            state is zeroed and no gradient crosses, so that the result is that of the segments run one by one.
        recompute: keep states only for backward, and rebuild the gates there.
        return_states: also return every state of every step.
        reset_state: [L*D,H]: what the state goes back to at a reset, in place of zeros; gradients reach it.
        zoneout: probability with which a unit keeps its state of the step before; not in training, the mean of both.
        recurrent_dropout: probability with which W_hh does not see a unit of the state, in a whole sequence.
        weight_dropout: probability with which a number of W_hh is dropped, in a whole call.
        bptt: k: no gradient crosses from step k to step k-1, 2k to 2k-1, ..., in either direction; the states do.
        layer_norm: whether the products with W_ih and W_hh are normalised, each by itself (docs/maths.md).
        backend: "auto", or a name, which then takes the call or says why it cannot.

    Returns:
        (output, h_n), with `return_states` (output, h_n, states): output [T,B,D*H], h_n [L*D,B,H], and states a list
        over layers of (h,), each [T,B,D,H].

    Raises:
        ValueError: a dtype, a number of weights, a mask or a probability does not fit; there is no such backend.
        RuntimeError: a size or a device does not fit, or T is 0.
        UnsupportedProblem: the backend asked for cannot take this call, or bptt is given beside zoneout or
            recurrent_dropout.
        BackendUnavailable: the backend asked for does not exist on this machine.

    Numerics: bfloat16 is accumulated and carried in float32; the same call gives the same bits.

    Source: Cho et al. 2014, with the reset after the product as in torch.nn.GRU and cuDNN.
    """
    return _public(
        GRU,
        input,
        None if hx is None else [hx],
        weights,
        batch_first,
        bias=bias,
        num_layers=num_layers,
        dropout=dropout,
        training=training,
        bidirectional=bidirectional,
        lengths=lengths,
        reset=reset,
        recompute=recompute,
        return_states=return_states,
        reset_state=reset_state,
        zoneout=zoneout,
        recurrent_dropout=recurrent_dropout,
        weight_dropout=weight_dropout,
        bptt=bptt,
        layer_norm=layer_norm,
        backend=backend,
    )


def lstm(
    input: Tensor,
    hx: Sequence[Tensor] | None,
    weights: Sequence[Tensor],
    *,
    bias: bool = True,
    num_layers: int = 1,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    proj_size: int = 0,
    batch_first: bool = False,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    recompute: bool = False,
    return_states: bool = False,
    reset_state: Any = None,
    zoneout: float | Sequence[float] = 0.0,
    recurrent_dropout: float = 0.0,
    weight_dropout: float = 0.0,
    bptt: int | None = None,
    layer_norm: bool = False,
    backend: str = backends.AUTO,
) -> Any:
    """An LSTM's layers.

    i, f, o = sigmoid(W_i x + b_i + W_h h + b_h), g = tanh(likewise), c' = f c + i g, h' = o tanh(c').

    Args, Raises and numerics as `gru`, but:
        hx: (h_0 [L*D,B,H], c_0 [L*D,B,H]).
        weights: 4*H rows in the order i, f, g, o; with `proj_size`, also weight_hr [P,H], behind the biases. With
            `layer_norm`, at the end of each direction weight_ln_ih and weight_ln_hh [4*H], weight_ln_c and, with
            `bias`, bias_ln_c [H].
        proj_size: P: h' = W_hr (o tanh(c')), so that h_0, h_n and the outputs have P numbers where they had H.
        zoneout: one probability for h and c, or a pair.

    Returns:
        (output, (h_n, c_n)), with `return_states` (output, (h_n, c_n), states), states a list over layers of (h, c).

    Source: Hochreiter and Schmidhuber 1997, with forget gates, without peepholes; projection: Sak et al. 2014.
    """
    return _public(
        LSTM,
        input,
        None if hx is None else checks.state_list(hx, 2),
        weights,
        batch_first,
        bias=bias,
        num_layers=num_layers,
        dropout=dropout,
        training=training,
        bidirectional=bidirectional,
        proj_size=proj_size,
        lengths=lengths,
        reset=reset,
        recompute=recompute,
        return_states=return_states,
        reset_state=reset_state,
        zoneout=zoneout,
        recurrent_dropout=recurrent_dropout,
        weight_dropout=weight_dropout,
        bptt=bptt,
        layer_norm=layer_norm,
        backend=backend,
    )


def rnn(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    nonlinearity: str = "tanh",
    *,
    bias: bool = True,
    num_layers: int = 1,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    recompute: bool = False,
    return_states: bool = False,
    reset_state: Any = None,
    zoneout: float = 0.0,
    recurrent_dropout: float = 0.0,
    weight_dropout: float = 0.0,
    bptt: int | None = None,
    layer_norm: bool = False,
    backend: str = backends.AUTO,
) -> Any:
    """An Elman RNN's layers: h' = tanh(W_i x + b_i + W_h h + b_h), or relu.

    Args, Returns, Raises and numerics as `gru`, with H rows of weights, and:
        nonlinearity: "tanh" or "relu".
    """
    if nonlinearity not in ("tanh", "relu"):
        raise ValueError(f"Unknown nonlinearity {nonlinearity!r}. Select from 'tanh' or 'relu'.")
    return _public(
        RNN_TANH if nonlinearity == "tanh" else RNN_RELU,
        input,
        None if hx is None else [hx],
        weights,
        batch_first,
        bias=bias,
        num_layers=num_layers,
        dropout=dropout,
        training=training,
        bidirectional=bidirectional,
        lengths=lengths,
        reset=reset,
        recompute=recompute,
        return_states=return_states,
        reset_state=reset_state,
        zoneout=zoneout,
        recurrent_dropout=recurrent_dropout,
        weight_dropout=weight_dropout,
        bptt=bptt,
        layer_norm=layer_norm,
        backend=backend,
    )


def _public(
    spec: CellSpec,
    input: Tensor,
    hx: list[Tensor] | None,
    weights: Sequence[Tensor],
    batch_first: bool,
    *,
    lengths: Tensor | None,
    reset: Tensor | None,
    return_states: bool,
    reset_state: Any,
    **options: Any,
) -> Any:
    name = spec.mode
    if input.dim() != 3:
        raise ValueError(f"{name}: Expected input to be 3D, got {input.dim()}D instead")
    if batch_first:
        input = input.transpose(0, 1)
    layers, directions = options["num_layers"], 2 if options["bidirectional"] else 1
    checks.layer_norm(options["layer_norm"])
    norms = norm_names(spec, options["bias"]) if options["layer_norm"] else ()
    hidden_size, proj_size = _check_weights(
        spec, weights, layers, directions, options["bias"], options.get("proj_size", 0), norms
    )
    edge = (layers * directions, input.shape[1])
    sizes = [(*edge, proj_size or hidden_size), (*edge, hidden_size)][: len(spec.states)]
    checks.contents(name, input, weights[0].shape[1], hx or (), sizes[: len(hx or ())], weights[0])
    lengths, reset = checks.masks(lengths, reset, input.shape[0], input.shape[1], 3, batch_first)
    if reset_state is not None:
        shapes = [(size[0], size[2]) for size in sizes]
        reset_state = checks.reset_state(reset_state, reset, shapes, weights[0])
    for which in REGULARISERS:
        checks.probability(which, options[which], len(spec.states) if which == "zoneout" else 1)
    checks.bptt(options["bptt"], options["zoneout"], options["recurrent_dropout"])
    if input.shape[0] == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    masks = {"lengths": lengths, "reset": reset, "reset_state": reset_state, "return_states": return_states}
    y, last, states = recurrent(spec, input, hx, weights, **masks, **options)
    y = y.transpose(0, 1) if batch_first else y
    state = last if len(last) == 2 else last[0]
    return (y, state, states) if return_states else (y, state)


def _check_weights(
    spec: CellSpec,
    weights: Sequence[Tensor],
    layers: int,
    directions: int,
    bias: bool,
    proj_size: int,
    norms: Sequence[str],
) -> tuple[int, int]:
    """Numbers, shapes, one dtype and device. Returns (H, P)."""
    names = ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if bias else []), *(["weight_hr"] if proj_size else [])]
    names += norms
    expected = layers * directions * len(names)
    if len(weights) != expected:
        raise ValueError(
            f"weights: Expected {expected} tensors, {', '.join(names)} for each of {layers} layer(s) and {directions} "
            f"direction(s), got {len(weights)}"
        )
    gates, hidden_size = weights[0].shape[0], weights[0].shape[0] // len(spec.gates)
    out = proj_size or hidden_size
    for i, weight in enumerate(weights):
        name, layer = names[i % len(names)], i // (len(names) * directions)
        inputs = weights[0].shape[1] if layer == 0 else directions * out
        size: dict[str, tuple[int, ...]]
        size = {"weight_ih": (gates, inputs), "weight_hh": (gates, out), "weight_hr": (proj_size, hidden_size)}
        size |= dict.fromkeys(("weight_ln_c", "bias_ln_c"), (hidden_size,))
        if weight.shape != size.get(name, (gates,)):
            raise RuntimeError(
                f"{name} of layer {layer}: Expected size {size.get(name, (gates,))}, got {list(weight.shape)}"
            )
        if weight.dtype != weights[0].dtype or weight.device != weights[0].device:
            raise ValueError(
                f"{name} of layer {layer}: Expected {weights[0].dtype} on {weights[0].device} as the first weight, got "
                f"{weight.dtype} on {weight.device}"
            )
    return hidden_size, proj_size
