"""All layers of one call, on the backend that is chosen for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import _VF, Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from . import autograd, backends, cudnn, formula, modes, normed, philox, reference, truncated
from .spec import CELLS, GRU, LSTM, CellSpec, Problem, norm_names
from .spec import rates as noise_rates

States = tuple[Tensor, ...]

_TORCH_OPS: dict[str, Any] = {spec.name: getattr(_VF, spec.name) for spec in CELLS}


def recurrent(
    spec: CellSpec,
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
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    recompute: bool = False,
    return_states: bool = False,
    reset_state: Sequence[Tensor] | None = None,
    zoneout: float | Sequence[float] = 0.0,
    recurrent_dropout: float = 0.0,
    weight_dropout: float = 0.0,
    bptt: int | None = None,
    layer_norm: bool = False,
    backend: str = backends.AUTO,
) -> tuple[Tensor, States, list[States]]:
    """Runs all layers, and checks nothing.

    Args:
        spec: the cell.
        input: [T,B,I], any strides.
        hx: the initial states, (h_0,) or (h_0, c_0), [L*D,B,P or H] and [L*D,B,H]; zeros if None or empty.
        weights: in torch's order: per layer, per direction weight_ih, weight_hh[, bias_ih, bias_hh][, weight_hr],
            with `layer_norm` also what `spec.norm_names` names.
        bias: whether there are biases.
        num_layers: L.
        dropout: probability with which an output of every layer but the last is zeroed.
        training: whether that is done.
        bidirectional: whether D is 2.
        proj_size: P, for the LSTM.
        lengths: [B] integers: how many steps of each row are real.
        reset: [T,B] bool: where the state does not pass from step t-1 to step t, in either direction.
        recompute: keep states only for backward, and rebuild the gates there.
        return_states: also return every state of every step.
        reset_state: where a reset goes back to, (h,) or (h, c), [L*D,P or H] and [L*D,H]; zeros if None.
        zoneout: probability with which a unit keeps its state of the step before; for the LSTM, of h and of c.
        recurrent_dropout: probability with which W_hh does not see a unit, in a whole sequence.
        weight_dropout: probability with which a number of W_hh is zeroed, in a whole call.
        bptt: steps after which gradients end, None for none.
        layer_norm: whether the products with W_ih and W_hh, and the LSTM's c for its output, are normalised.
        backend: the backend's name.

    Returns:
        y [T,B,D*(P or H)], the last states [L*D,B,...] as a tuple, and a list over layers, empty unless
        `return_states`: (h,) or (h, c), each [T,B,D,...].

    Raises:
        ValueError: there is no backend called `backend`.
        UnsupportedProblem: the backend asked for cannot take this call.
        BackendUnavailable: the backend asked for does not exist on this machine.
    """
    low = modes.autocast_dtype(input)
    if low is not None:
        options: dict[str, Any] = {
            "bias": bias,
            "num_layers": num_layers,
            "dropout": dropout,
            "training": training,
            "bptt": bptt,
            "layer_norm": layer_norm,
        }
        options |= {"bidirectional": bidirectional, "proj_size": proj_size, "lengths": lengths, "reset": reset}
        options |= {"recompute": recompute, "return_states": return_states, "backend": backend}
        options |= {
            "zoneout": zoneout,
            "recurrent_dropout": recurrent_dropout,
            "weight_dropout": weight_dropout,
            "reset_state": reset_state,
        }
        return _autocast(spec, input, hx or (), weights, low, options)
    if lengths is not None:
        lengths = lengths.to(input.device, torch.int64)
    if reset is not None:
        reset = reset.to(input.device)
    directions, traced = 2 if bidirectional else 1, modes.traced()
    if weight_dropout and training:
        weights = with_weight_dropout(weights, num_layers * directions, weight_dropout)
    rates = noise_rates(spec, zoneout, recurrent_dropout if training else 0.0)
    active = dropout if training else 0.0
    steps, rows, features = input.shape
    grad = torch.is_grad_enabled() and autograd.any_requires_grad(input, *(hx or ()), *weights, *(reset_state or ()))
    cut = bptt if truncates(bptt, steps, grad, traced) else None
    problem = Problem(
        spec,
        steps,
        rows,
        features,
        weights[1].shape[0] // len(spec.gates),
        num_layers,
        directions,
        proj_size,
        input.dtype,
        input.device.type,
        bias,
        active,
        grad,
        lengths is not None,
        reset is not None,
        return_states,
        recompute,
        traced,
        1 if traced else torch.get_num_threads(),
        bptt=cut is not None,
        layer_norm=layer_norm,
        reset_state=bool(reset_state),
    )
    if rates:
        problem = problem._replace(zoneout=any(rates[:2]), recurrent_dropout=bool(rates[2]), drawn=training)
    chosen = backends.choose(backend, problem)
    if chosen == "aten":
        return _stock(problem, input, hx, weights, training)
    fused: Callable[..., Any] = normed.layer if layer_norm or reset_state else autograd.layer
    run: Callable[..., Any] = fused if chosen == "cpu" else _reference_layer
    if backends.has_route(chosen):
        run = partial(fused, route=backends.route(chosen, input.dtype))
    by_one_op = chosen == "cpu" and fused is autograd.layer and not traced and not rates
    if not by_one_op:  # which never reads what is not real
        input = formula.without_padding(input, lengths)
    keys = philox.new_keys(num_layers, input.device) if rates and training else None
    norms: Sequence[Tensor] = ()
    if layer_norm:
        weights, norms = _norms_apart(weights, num_layers * directions, len(norm_names(spec, bias)))
    each, x, last, states = len(weights) // num_layers, input, [], []
    for k in range(num_layers):
        h0, c0 = _initial(problem, hx, k)
        own = weights[k * each : (k + 1) * each]
        noise: dict[str, Any] = {"mask_key": None if keys is None else keys[k], "rates": rates} if rates else {}
        one = run
        if layer_norm:
            one = partial(run, norms=norms[k * len(norms) // num_layers : (k + 1) * len(norms) // num_layers])
        if reset_state:
            resets = [t[k * directions : (k + 1) * directions] for t in reset_state]
            noise = {**noise, "resets": resets}
        if cut is not None:
            one = partial(truncated.layer, one, cut, ragged=traced or steps % cut != 0)
        y, hn, cs, cn = one(
            x, h0, c0, own, lengths, reset, spec, directions, recompute=recompute, states=return_states, **noise
        )
        last.append((hn,) if cn is None else (hn, cn))
        if return_states:
            states.append(tuple(_by_direction(s, directions) for s in ((y,) if cn is None else (y, cs))))
        x = F.dropout(y, active) if active and k + 1 < num_layers else y
    return y, last[0] if num_layers == 1 else tuple(map(torch.cat, zip(*last, strict=True))), states


def with_weight_dropout(weights: Sequence[Tensor], streams: int, probability: float) -> list[Tensor]:
    """The weights with torch's dropout over every W_hh."""
    each = len(weights) // streams
    return [F.dropout(w, probability) if i % each == 1 else w for i, w in enumerate(weights)]


def _norms_apart(weights: Sequence[Tensor], streams: int, norms: int) -> tuple[list[Tensor], list[Tensor]]:
    """The weights, and what layer normalisation adds: the last `norms` of each stream's."""
    each = len(weights) // streams
    own: tuple[list[Tensor], list[Tensor]] = [], []
    for i, w in enumerate(weights):
        own[i % each >= each - norms].append(w)
    return own


def _autocast(
    spec: CellSpec, x: Tensor, hx: Sequence[Tensor], weights: Sequence[Tensor], low: torch.dtype, options: Any
) -> tuple[Tensor, States, list[States]]:
    """`recurrent` where autocast asks for `low`: cast, and run without it."""
    projects = options["proj_size"] > 0
    dtype = low if x.dtype == torch.float64 else compute_dtype(spec, x, hx, projects)
    if options["reset_state"]:
        options["reset_state"] = _cast_all(options["reset_state"], dtype)
    with modes.without_autocast(x):
        y, last, states = recurrent(spec, _cast(x, dtype), _cast_all(hx, dtype), _cast_all(weights, dtype), **options)
    if projects and dtype != low and y.dtype != torch.float64:
        y, last = projected_low(y, last, low)
    return y, last, states


def projected_low(y: Tensor, last: States, low: torch.dtype) -> tuple[Tensor, States]:
    """Output and last states of an LSTM with projection as torch has them under autocast: c alone stays as it is."""
    return y.to(low), (last[0].to(low), last[1])


def compute_dtype(spec: CellSpec, x: Tensor, hx: Sequence[Tensor] | None, composite: bool = False) -> torch.dtype:
    """What a layer computes in: autocast's dtype where it is on (double stays), else the input's.

    But under autocast on a CPU, as torch has it, what consists of single ops there multiplies in autocast's dtype and
    carries the state in the state's own: the GRU, and if `composite`, that is packed or projected, the LSTM. The state
    is of the input's dtype where none is given. The wider of the two is then taken for all.
    """
    low = modes.autocast_dtype(x)
    if low is None or x.dtype == torch.float64:
        return x.dtype
    carried = (hx[-1] if hx else x).dtype
    wide = x.is_cpu and (spec is GRU or (composite and spec is LSTM)) and carried != torch.float64
    return torch.promote_types(carried, low) if wide else low


def truncates(bptt: int | None, steps: int, grad: bool, traced: bool) -> bool:
    """Whether there are gradients to end: a traced T is not compared, nor does a traced tensor say what it requires."""
    if bptt is None:
        return False
    return (torch.is_grad_enabled() or modes.forward_mode()) if traced else grad and bptt < steps


def _initial(problem: Problem, hx: Sequence[Tensor] | None, layer: int) -> tuple[Tensor | None, Tensor | None]:
    """h0 and c0 of one layer."""
    if not hx:
        return None, None
    if problem.L > 1:
        hx = [h[layer * problem.D : (layer + 1) * problem.D] for h in hx]
    return hx[0], hx[1] if problem.cell is LSTM else None


def _by_direction(t: Tensor, directions: int) -> Tensor:
    """[T,B,D*N] to [T,B,D,N]."""
    return t.view(*t.shape[:-1], directions, t.shape[-1] // directions)


def _stock(
    problem: Problem,
    input: Tensor,
    hx: Sequence[Tensor] | None,
    weights: Sequence[Tensor],
    training: bool,
) -> tuple[Tensor, States, list[States]]:
    """The whole stack on torch's own op."""
    cell = problem.cell
    if not hx:
        rows = (problem.L * problem.D, problem.B)
        zeros = input.new_zeros(*rows, problem.H)
        hx = [input.new_zeros(*rows, problem.proj_size) if problem.proj_size else zeros, zeros]
    if input.is_cuda and not problem.traced:
        weights = cudnn.one_chunk(weights, problem)
    y, *last = _TORCH_OPS[cell.name](
        input,
        hx if cell is LSTM else hx[0],
        weights,
        problem.bias,
        problem.L,
        problem.dropout,
        training,
        problem.D == 2,
        False,
    )
    return y, tuple(last), []


def _reference_layer(*args: Any, recompute: bool, states: bool, **noise: Any) -> Any:
    # under torch.func saved tensors cannot be packed away: there recompute, which changes no result, is not to be had
    if recompute and torch.is_grad_enabled() and not modes.traced():
        return checkpoint(reference.layer, *args, use_reentrant=False, preserve_rng_state=False, **noise)
    return reference.layer(*args, **noise)


def _cast_all(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    return [_cast(t, dtype) for t in tensors]


def _cast(t: Tensor, dtype: torch.dtype) -> Tensor:
    """As autocast does: double stays."""
    return t if t.dtype == torch.float64 else t.to(dtype)
