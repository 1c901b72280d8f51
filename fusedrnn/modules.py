"""GRU, LSTM and RNN with torch.nn's arguments, parameters, state_dict, outputs and errors.

They derive from nn.RNNBase, not from nn.GRU, nn.LSTM and nn.RNN: dynamo refuses to trace any instance of those three.
Base methods are called by name where `super()` would reach nn.LSTM's, in `class Mine(fusedrnn.LSTM, nn.LSTM)`.

Over 400 lines: three layers with their signatures in full, which editors and type checkers read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from . import checks, functional, jagged, onnx, packed
from .errors import UnsupportedProblem
from .spec import by_mode, norm_names
from .standin import REGULARISERS, StandIn, onnx_exports, regularisers, torchscript_traces

BESIDE = ("bptt", "zoneout", "recurrent_dropout")
"""Options of a layer that do not all go together."""


class States(NamedTuple):
    """Every state of every step.

    Attributes:
        h: [L*D, T, B, P or H], without B for unbatched input. `h[:, t]` is the state that step t leaves behind, in
            either direction, laid out as h_n (so whatever `batch_first` says); 0 where a row has ended.
        c: likewise the LSTM's cell states [L*D, T, B, H]; None for GRU and RNN.
    """

    h: Tensor
    c: Tensor | None = None


class _Layer(StandIn, nn.RNNBase):
    """All that the three layers share: everything but the cell."""

    recompute: bool
    # of the class, for layers that `convert` took over
    zoneout: float | Sequence[float] = 0.0
    recurrent_dropout: float = 0.0
    weight_dropout: float = 0.0
    bptt: int | None = None
    _pack: Any = None  # what `frozen` keeps for this layer

    def __init__(
        self,
        mode: str,
        *args: Any,
        backend: str = "auto",
        recompute: bool = False,
        zoneout: float | Sequence[float] = 0.0,
        recurrent_dropout: float = 0.0,
        weight_dropout: float = 0.0,
        bptt: int | None = None,
        layer_norm: bool = False,
        **kwargs: Any,
    ) -> None:
        checks.layer_norm(layer_norm)
        nn.RNNBase.__init__(self, mode, *args, **kwargs)
        if layer_norm:
            self._add_norms()
        self.backend = backend
        self.recompute = recompute
        self.bptt = bptt
        self.zoneout = zoneout
        self.recurrent_dropout = recurrent_dropout
        self.weight_dropout = weight_dropout

    def __setattr__(self, name: str, value: Any) -> None:
        if name in REGULARISERS:
            checks.probability(name, value, 2 if name == "zoneout" and self.mode == "LSTM" else 1)
        if name in BESIDE:
            given = {other: getattr(self, other) for other in BESIDE} | {name: value}
            checks.bptt(given["bptt"], given["zoneout"], given["recurrent_dropout"])
        super().__setattr__(name, value)

    @property
    def layer_norm(self) -> bool:
        """Whether there is layer normalisation, with Parameters of its own: said when a layer is made."""
        return "weight_ln_ih_l0" in self._flat_weights_names

    def _add_norms(self) -> None:
        """Puts the Parameters of layer normalisation behind each direction's others."""
        (like,), spec = self._read(("weight_ih_l0",)), by_mode(self.mode)
        for names in self._all_weights:
            for name in norm_names(spec, self.bias):
                names.append(name + names[0].removeprefix("weight_ih"))
                rows, fill = self.hidden_size if name.endswith("_c") else len(like), name.startswith("weight")
                setattr(self, names[-1], nn.Parameter(like.new_full((rows,), float(fill))))
        self._flat_weights_names = [name for names in self._all_weights for name in names]
        for name in self._flat_weights_names:  # parameters() are in the order of fusedrnn.functional
            self._parameters[name] = self._parameters.pop(name)
        self._init_flat_weights()

    def reset_parameters(self) -> None:
        """Draws as torch's layers do, with or without layer normalisation; its gains become 1, the shift of c 0."""
        bound = 1 / math.sqrt(self.hidden_size)
        for name, p in self.named_parameters():
            if "_ln_" in name:
                nn.init.constant_(p, float("weight_ln_" in name))
            else:
                nn.init.uniform_(p, -bound, bound)

    def extra_repr(self) -> str:
        """What torch's layers say, and what they have not."""
        unlike = {"layer_norm": False, "bptt": None, "recompute": False, "backend": "auto"}
        names = [*regularisers(self), *(name for name, usual in unlike.items() if getattr(self, name) != usual)]
        return nn.RNNBase.extra_repr(self) + "".join(f", {name}={getattr(self, name)!r}" for name in names)

    def __prepare_scriptable__(self) -> nn.Module:
        """What torch.jit.script compiles in our place."""
        if type(self).forward is not _Layer.forward:
            raise UnsupportedProblem(
                f"{type(self).__name__} has a forward of its own, which torch.jit.script would leave out, because it "
                "compiles torch's layer in this one's place; use torch.export"
            )
        self._refuse_torchscript()
        return super().__prepare_scriptable__()

    def _refuse_torchscript(self) -> None:
        names = [name for name in regularisers(self) if self.training or name == "zoneout"]
        names += ["layer_norm"] if self.layer_norm else []
        if names:
            raise UnsupportedProblem(f"{', '.join(names)} has no TorchScript form; use torch.export")

    def flatten_parameters(self) -> None:
        """Does nothing and need not be called: weights are read where they lie, there is no flat buffer."""

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Any = None,
        lengths: Tensor | None = None,
        reset: Tensor | None = None,
        return_states: bool = False,
        reset_state: Any = None,
    ) -> Any:
        """Runs every layer over every time step.

        Args:
            input: [T, B, I], [B, T, I] with `batch_first`, [T, I] unbatched, a PackedSequence or, with `batch_first`, a
                jagged nested tensor [B, j, I]. Any strides; the weights' dtype, or any under autocast.
            hx: the initial state, zeros if None: h_0 [L*D, B, H], for the LSTM (h_0 [L*D, B, P or H], c_0 [L*D, B, H]);
                without B for unbatched input. Any strides.
            lengths: [B] integers, on any device, in any order, never read by the host: row b has `lengths[b]` steps
                (more than T mean T), the rest is padding. There, outputs are 0; h_n is the state after the last real
                step (h_0 if there is none); the reverse direction starts at the last real step. Not with a
                PackedSequence or a nested tensor, which carry their own.
            reset: [T, B] bool, [B, T] with `batch_first`, [T] unbatched. True at t separates step t-1 from step t of
                that row: forward, step t starts from zero (at t = 0, hx is dropped); reverse, step t-1 does. No
                gradient crosses. The result equals that of the segments run one by one.
            return_states: also return every state of every step.
            reset_state: with `reset`, what the state goes back to in place of zeros: h [L*D, H], for the LSTM (h [L*D,
                P or H], c [L*D, H]), an nn.Parameter, say. Gradients reach it; segments then begin with it as their hx.

        Returns:
            (output, h_n), for the LSTM (output, (h_n, c_n)); with `return_states` also `States`. output is laid out as
            input, with D*H (D*P) features; h_n and c_n as hx.

        Raises:
            ValueError: input is not 2-D or 3-D; its dtype or hx's is not the weights'; lengths or reset do not fit it;
                it is nested, and not jagged in its second axis alone; there is a reset_state and no reset.
            TypeError: lengths, reset or reset_state is no tensor, or the LSTM's hx or reset_state no pair of them.
            RuntimeError: a size or a device does not fit, or T is 0. Types and texts are torch's.
            UnsupportedProblem: the backend asked for by name cannot take this call; the text says why.
        """
        if self._pack is not None:
            known = self._pack.run(self, input, hx, lengths, reset, return_states, reset_state)
            if known is not None:
                return known
        if torchscript_traces():
            if lengths is not None or reset is not None or reset_state is not None or return_states:
                raise UnsupportedProblem(
                    "lengths, reset, reset_state and return_states have no TorchScript form; use torch.export"
                )
            self._refuse_torchscript()
            return self._stock.forward(self, input, hx)
        if isinstance(input, PackedSequence):
            if lengths is not None or reset is not None or reset_state is not None:
                raise ValueError(
                    "a PackedSequence carries its lengths and takes no reset or reset_state: leave lengths= out, or "
                    "pad it (torch.nn.utils.rnn.pad_packed_sequence) and pass lengths=, reset=, reset_state="
                )
            return self._forward_packed(input, hx, return_states)
        rank, x, given = input.dim(), input, self._given(hx)
        if input.is_nested:
            masked = not (lengths is None and reset is None and reset_state is None)
            return self._forward_jagged(input, hx, masked, return_states)
        if rank != 3:
            checks.input_rank(self._stock.__name__, rank)
        if given:
            checks.state_ranks(given, rank)
        if rank == 2:
            x, given = x.unsqueeze(1), [h.unsqueeze(1) for h in given]
        elif self.batch_first:
            x = x.transpose(0, 1)
        weights = self._weights(x, given)
        self._check(x, x.size(1), given, weights[0])
        if x.size(0) == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        if lengths is not None or reset is not None:
            lengths, reset = checks.masks(lengths, reset, x.size(0), x.size(1), rank, self.batch_first)

        run: Any = onnx.recurrent if onnx_exports() else functional.recurrent
        masks: dict[str, Any] = {"lengths": lengths, "reset": reset, "return_states": return_states}
        if reset_state is not None:
            sizes = [(size[0], size[2]) for size in self._edges(1)]
            masks["reset_state"] = checks.reset_state(reset_state, reset, sizes, weights[0])
        y, last, kept = run(by_mode(self.mode), x, given, weights, **masks, **self._options())
        if rank == 2:
            y, last = y.squeeze(1), tuple(h.squeeze(1) for h in last)
        elif self.batch_first:
            y = y.transpose(0, 1)
        out = y, last if len(last) == 2 else last[0]
        if not return_states:
            return out
        return *out, States(*(s.squeeze(2) if rank == 2 else s for s in _stacked(kept)))

    def _forward_packed(self, input: PackedSequence, hx: Any, return_states: bool) -> Any:
        """As torch.nn does it: rows run in packed order, states are permuted on the way in and out."""
        data, batch_sizes, order, back = input
        given = self._given(hx)
        weights = self._weights(data, given, composite=True)
        checks.packed_ranks(data, given)
        self._check(data, int(batch_sizes[0]), given, weights[0])
        if order is not None:
            given = [h.index_select(1, order) for h in given]
        spec, options = by_mode(self.mode), self._options()
        y, last, kept = packed.recurrent(
            spec, data, batch_sizes, given, weights, return_states=return_states, **options
        )
        if back is not None:
            last = tuple(h.index_select(1, back) for h in last)
        out = PackedSequence(y, batch_sizes, order, back), last if len(last) == 2 else last[0]
        if not return_states:
            return out
        return *out, States(*(s if back is None else s.index_select(2, back) for s in _stacked(kept)))

    def _forward_jagged(self, input: Tensor, hx: Any, masked: bool, return_states: bool) -> Any:
        jagged.check(self._stock.__name__, input, self.batch_first, masked)
        given, rows = self._given(hx), jagged.Rows(input)
        checks.state_ranks(given, 3)
        weights = self._weights(rows.values, given)
        self._check(rows.values, input.size(0), given, weights[0])
        run: Any = onnx.recurrent if onnx_exports() else functional.recurrent
        masks = {"lengths": rows.lengths, "reset": None, "return_states": return_states}
        y, last, kept = run(by_mode(self.mode), rows.padded(), given, weights, **masks, **self._options())
        out = rows.jagged(y), last if len(last) == 2 else last[0]
        return (*out, States(*_stacked(kept))) if return_states else out

    def _given(self, hx: Any) -> list[Tensor]:
        """The initial states, none if they are zeros."""
        return [] if hx is None else checks.state_list(hx, 2 if self.mode == "LSTM" else 1)

    def _weights(self, x: Tensor, given: list[Tensor], composite: bool = False) -> list[Tensor]:
        if self._pack is None or torch.compiler.is_compiling():
            return self._read(self._flat_weights_names)
        return self._pack.weights_for(self, x, given, composite)  # type: ignore[no-any-return]

    def _check(self, x: Tensor, batch: int, given: list[Tensor], weight: Tensor) -> None:
        sizes = self._edges(batch) if given else []
        checks.contents(self._stock.__name__, x, self.input_size, given, sizes, weight)

    def _edges(self, batch: int) -> list[tuple[int, int, int]]:
        """The sizes of h and, of the LSTM, c."""
        edge = (self.num_layers * (2 if self.bidirectional else 1), batch)
        both = [(*edge, self.proj_size or self.hidden_size), (*edge, self.hidden_size)]
        return both[: len(by_mode(self.mode).states)]

    def _options(self) -> dict[str, Any]:
        return {
            "bias": self.bias,
            "num_layers": self.num_layers,
            "dropout": self.dropout,
            "training": self.training,
            "bidirectional": self.bidirectional,
            "proj_size": self.proj_size,
            "recompute": self.recompute,
            "zoneout": self.zoneout,
            "recurrent_dropout": self.recurrent_dropout,
            "weight_dropout": self.weight_dropout,
            "bptt": self.bptt,
            "layer_norm": self.layer_norm,
            "backend": self.backend,
        }


def _stacked(kept: list[tuple[Tensor, ...]]) -> list[Tensor]:
    """[T,B,D,H] of each layer to [L*D,T,B,H], for each state."""
    by_state = [[s.permute(2, 0, 1, 3) for s in layers] for layers in zip(*kept, strict=True)]
    return [layers[0] if len(layers) == 1 else torch.cat(layers) for layers in by_state]


def _without_proj_size(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """GRU's and RNN's arguments as nn.RNNBase counts them: it has `proj_size` before `device`, at position 7."""
    if "proj_size" in kwargs or (len(args) > 7 and isinstance(args[7], int)):
        raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
    return (*args[:7], 0, *args[7:]) if len(args) > 7 else args


class GRU(_Layer):
    r"""Gated recurrent units, in place of torch.nn.GRU: same arguments, Parameters, state_dict, outputs and errors.

        r_t = σ(W_ir x_t + b_ir + W_hr h_{t-1} + b_hr)
        z_t = σ(W_iz x_t + b_iz + W_hz h_{t-1} + b_hz)
        n_t = tanh(W_in x_t + b_in + r_t ∘ (W_hn h_{t-1} + b_hn))
        h_t = (1 - z_t) ∘ n_t + z_t ∘ h_{t-1}

    Args:
        input_size: I, features of the input.
        hidden_size: H, features of the state.
        num_layers: L; layer k > 0 reads the outputs of layer k-1, both directions side by side.
        bias: whether there are b_ih and b_hh.
        batch_first: input and output are [B, T, ...]; states are not touched by it.
        dropout: probability, between layers, in training. On the CPU bit for bit torch's under the same seed.
        bidirectional: D = 2: a second set of weights runs from the last step to the first.
        device, dtype: of the Parameters. Kernels compute in float32, float64 and bfloat16 (accumulated in float32).
        backend: "auto", or the one backend to use, which never hands a call on: "cpu", "aten" (torch's own op; also
            called "cudnn" on a GPU) or "reference". `layer.backend = ...` changes it, `use_backend` overrides it,
            `explain` tells what it comes to.
        recompute: keep only the states for backward and rebuild the gates there: less memory, about a third more work.
        zoneout: probability with which a unit keeps its state of the step before, at each step anew; in eval the mean,
            zoneout * old + (1 - zoneout) * new (Krueger et al. 2016, arXiv:1606.01305).
        recurrent_dropout: probability, in training, with which W_hh does not see a unit of the state, in a whole
            sequence; what it sees is scaled by 1 / (1 - p). All gates share the mask, and what reaches the next state
            past the product, z_t ∘ h_{t-1}, has none (Gal and Ghahramani 2016, arXiv:1512.05287).
        weight_dropout: probability, in training, with which a number of W_hh is dropped in a whole call, as by
            F.dropout (DropConnect, as Merity et al. 2017, arXiv:1708.02182). docs/maths.md has all three.
        bptt: k, to truncate backpropagation through time: no gradient crosses from step k to step k-1, 2k to 2k-1, ...;
            the states do, so outputs stay what they are. Equals segments of k steps with detached states between them;
            likewise in the reverse direction, which hands its states over at the same steps. None: gradients through
            all steps.
        layer_norm: normalise W_ih x_t and W_hh h_{t-1} over the units of r and z together and of n, with gains of their
            own and before the biases are added (Ba, Kiros and Hinton 2016, arXiv:1607.06450; docs/maths.md tells it
            from other variants). `explain` says who runs it.

    Attributes:
        weight_ih_l{k}, weight_ih_l{k}_reverse: [3*H, I], [3*H, D*H] for k > 0, rows in the order r, z, n.
        weight_hh_l{k}, ...: [3*H, H].
        bias_ih_l{k}, bias_hh_l{k}, ...: [3*H].
        All from U(-1/sqrt(H), 1/sqrt(H)).
        weight_ln_ih_l{k}, weight_ln_hh_l{k}, ...: gains [3*H], with `layer_norm`. All 1.

    Raises:
        TypeError, ValueError: as torch.nn.GRU; also ValueError for an unknown backend, for no probability, or for bptt
            beside zoneout or recurrent_dropout, TypeError where layer_norm is no bool.

    Source: Cho et al. 2014, arXiv:1406.1078v1, with the reset gate after the product, as cuDNN and torch have it.
    """

    _stock = nn.GRU

    @overload
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        backend: str = "auto",
        recompute: bool = False,
        zoneout: float = 0.0,
        recurrent_dropout: float = 0.0,
        weight_dropout: float = 0.0,
        bptt: int | None = None,
        layer_norm: bool = False,
    ) -> None: ...

    @overload
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        _Layer.__init__(self, "GRU", *_without_proj_size(args, kwargs), **kwargs)


class LSTM(_Layer):
    r"""Long short-term memory, in place of torch.nn.LSTM: same arguments, Parameters, state_dict, outputs and errors.

        i_t = σ(W_ii x_t + b_ii + W_hi h_{t-1} + b_hi)
        f_t = σ(W_if x_t + b_if + W_hf h_{t-1} + b_hf)
        g_t = tanh(W_ig x_t + b_ig + W_hg h_{t-1} + b_hg)
        o_t = σ(W_io x_t + b_io + W_ho h_{t-1} + b_ho)
        c_t = f_t ∘ c_{t-1} + i_t ∘ g_t
        h_t = o_t ∘ tanh(c_t), with `proj_size` P: h_t = W_hr (o_t ∘ tanh(c_t))

    Args, numerics and errors as `GRU`, and:
        proj_size: P, features of h where it is projected; 0 for no projection. c keeps H features.
        zoneout: one probability for h and c, or a pair; h_t is that of the c_t before zoneout, as published.
        layer_norm: over all four gates; and h_t = o_t ∘ tanh(LN(c_t)), while c_t itself is what the next step takes.

    Attributes: as `GRU` with 4*H rows in the order i, f, g, o and P columns of W_hh where h is projected, and
        weight_hr_l{k}, ...: [P, H], with `proj_size`.
        weight_ln_c_l{k}, bias_ln_c_l{k}, ...: gain and shift of c [H], 1 and 0, with `layer_norm`; without `bias` no
            shift.

    Source: Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000 and no peepholes; the projection
        is that of Sak et al. 2014, arXiv:1402.1128.
    """

    _stock = nn.LSTM
    # What nn.LSTM adds to nn.RNNBase, for who calls it and for torch's own forward when it is traced.
    get_expected_cell_size = nn.LSTM.get_expected_cell_size
    check_forward_args = nn.LSTM.check_forward_args  # type: ignore[assignment]
    permute_hidden = nn.LSTM.permute_hidden  # type: ignore[assignment]

    @overload
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: Any = None,
        *,
        backend: str = "auto",
        recompute: bool = False,
        zoneout: float | Sequence[float] = 0.0,
        recurrent_dropout: float = 0.0,
        weight_dropout: float = 0.0,
        bptt: int | None = None,
        layer_norm: bool = False,
    ) -> None: ...

    @overload
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        _Layer.__init__(self, "LSTM", *args, **kwargs)


class RNN(_Layer):
    r"""Elman's network, in place of torch.nn.RNN: same arguments, Parameters, state_dict, outputs and errors.

        h_t = tanh(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh), or relu of it

    Args, numerics and errors as `GRU`, and:
        nonlinearity: "tanh" or "relu"; by position it comes fourth, after num_layers.
        layer_norm: over all units.

    Attributes: as `GRU` with H rows.

    Source: Elman 1990, with torch's two biases.
    """

    _stock = nn.RNN
    nonlinearity: str

    @overload
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        backend: str = "auto",
        recompute: bool = False,
        zoneout: float = 0.0,
        recurrent_dropout: float = 0.0,
        weight_dropout: float = 0.0,
        bptt: int | None = None,
        layer_norm: bool = False,
    ) -> None: ...

    @overload
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if len(args) > 3:
            nonlinearity, args = args[3], args[:3] + args[4:]
        else:
            nonlinearity = kwargs.pop("nonlinearity", "tanh")
        args = _without_proj_size(args, kwargs)
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
        _Layer.__init__(self, f"RNN_{nonlinearity.upper()}", *args, **kwargs)
        self.nonlinearity = nonlinearity
