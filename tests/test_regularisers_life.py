"""Zoneout and dropouts through a layer's life: modes, packed rows, copies, bad input, other forms, backends."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from bare import Count
from close import assert_same
from noisy_loop import STACK, each_backend, each_layer, each_noise, make, seeded
from pairs import B, H, I, T, needs_kernel, rand, tensors
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fusedrnn
from fusedrnn import backends, ops, reference
from fusedrnn.errors import UnsupportedProblem
from fusedrnn.spec import CELLS, GRU, LSTM, RNN_RELU, Problem


@each_layer
def test_off_costs_and_draws_nothing(name: str) -> None:
    """The same op as ever, and torch's generator stays where it was; neither does eval draw."""
    for layer in (make(name), make(name, zoneout=0.5, recurrent_dropout=0.5, weight_dropout=0.5).eval()):
        x, before = rand(T, B, I), torch.get_rng_state()
        with torch.no_grad(), Count() as count:
            layer(x)
        assert torch.equal(torch.get_rng_state(), before)
        assert not count.seen or count.seen == [f"{'scan' if layer.zoneout else 'layer'} False"]


@each_backend
@each_layer
def test_train_and_eval(name: str, backend: str) -> None:
    layer, x = make(name, zoneout=0.5, recurrent_dropout=0.5, weight_dropout=0.5, backend=backend), rand(T, B, I)
    with torch.no_grad():
        assert torch.equal(seeded(layer, x)[0], seeded(layer, x)[0])
        assert not torch.equal(layer(x)[0], layer(x)[0])
        layer.eval()
        assert torch.equal(layer(x)[0], layer(x)[0])
        dropouts = make(name, recurrent_dropout=0.5, weight_dropout=0.5, backend=backend).eval()
        assert torch.equal(dropouts(x)[0], make(name, backend=backend)(x)[0])


@each_layer
@each_backend
@each_noise
def test_packed_rows_are_padded_rows(name: str, backend: str, noise: dict[str, float]) -> None:
    layer, x = make(name, **noise, **STACK, backend=backend), rand(T, B, I)
    lengths = torch.tensor([T, 4, 2])
    y, state = seeded_packed(layer, x, lengths)
    expected = seeded(layer, x, None, lengths)
    assert_same([y, *state], expected)
    layer.eval()
    with torch.no_grad():
        assert_same([seeded_packed(layer, x, lengths)[0]], seeded(layer, x, None, lengths)[:1])


def seeded_packed(layer: Any, x: Tensor, lengths: Tensor) -> tuple[Tensor, list[Tensor]]:
    torch.manual_seed(5)
    y, state = layer(pack_padded_sequence(x, lengths))
    return pad_packed_sequence(y, total_length=T)[0], tensors([state])


@each_backend
def test_return_states_are_those_after_zoneout(backend: str) -> None:
    layer, x = make("LSTM", zoneout=(0.5, 0.4), **STACK, backend=backend), rand(T, B, I)
    torch.manual_seed(5)
    y, (hn, cn), states = layer(x, return_states=True)
    assert torch.equal(torch.cat([states.h[2], states.h[3]], -1), y)
    for kept, last in ((states.h, hn), (states.c, cn)):
        assert torch.equal(kept[0::2, -1], last[0::2])
        assert torch.equal(kept[1::2, 0], last[1::2])


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_in_lower_precision_the_masks_are_the_same(cell: Any, dtype: torch.dtype) -> None:
    """A held unit has its old state to the last bit; others differ from float64's by rounding."""
    name = {"GRU": "GRU", "LSTM": "LSTM"}.get(cell.mode, "RNN")
    layer = make(name, I, 40, zoneout=0.5, recurrent_dropout=0.3, backend="cpu").to(dtype)
    exact = copy.deepcopy(layer).double()
    x = torch.randn(20, B, I, dtype=dtype)
    found, truth = seeded(layer, x)[0], seeded(exact, x.double())[0]
    held = found[1:] == found[:-1]
    assert 0.45 < float(held.double().mean()) < 0.6
    assert torch.equal(held, truth[1:] == truth[:-1]) or dtype == torch.bfloat16
    assert float((found.double() - truth).detach().norm() / truth.detach().norm()) < 60 * torch.finfo(dtype).eps
    x = torch.randn(T, B, I)
    with torch.autocast("cpu", torch.bfloat16):
        noisy, plain = (make(name, zoneout=rate, backend="cpu").float()(x)[0] for rate in (0.5, 0.0))
    assert noisy.dtype == plain.dtype


def test_weight_dropout_is_torchs_dropout_on_every_backend(backend: str) -> None:
    layer, x = make("GRU", weight_dropout=0.4, backend=backend), rand(T, B, I)
    torch.manual_seed(5)
    dropped = F.dropout(layer.weight_hh_l0, 0.4)
    twin = copy.deepcopy(layer)
    twin.weight_dropout = 0.0
    with torch.no_grad():
        twin.weight_hh_l0.copy_(dropped)
    assert_same(seeded(layer, x), tensors(twin(x)))


def test_copies_and_words() -> None:
    layer = fusedrnn.LSTM(I, H, zoneout=(0.1, 0.2), recurrent_dropout=0.3, weight_dropout=0.4)
    assert repr(layer) == "LSTM(5, 4, zoneout=(0.1, 0.2), recurrent_dropout=0.3, weight_dropout=0.4)"
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    for twin in (
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(buffer, weights_only=False),
    ):
        assert (twin.zoneout, twin.recurrent_dropout, twin.weight_dropout) == ((0.1, 0.2), 0.3, 0.4)
    assert layer.state_dict().keys() == nn.LSTM(I, H).state_dict().keys()
    assert fusedrnn.convert(nn.GRU(I, H)).zoneout == 0.0


@each_layer
def test_bad_probabilities(name: str) -> None:
    made, functional = getattr(fusedrnn, name), getattr(fusedrnn.functional, name.lower())
    layer = made(I, H)
    weights, x = list(layer.parameters()), torch.zeros(T, B, I)
    for which in ("zoneout", "recurrent_dropout", "weight_dropout"):
        for bad in (-0.1, 1.1, float("nan"), True, "0.5", None, (0.1, 0.2, 0.3), (0.1, 2.0)):
            for call in (
                lambda bad=bad, which=which: made(I, H, **{which: bad}),
                lambda bad=bad, which=which: setattr(layer, which, bad),
                lambda bad=bad, which=which: functional(x, None, weights, **{which: bad}),
            ):
                with pytest.raises(ValueError, match=f"{which} should be a number"):
                    call()
    if name != "LSTM":
        with pytest.raises(ValueError, match="zoneout should be a number in range"):
            made(I, H, zoneout=(0.1, 0.1))


@each_layer
def test_functional_is_the_module(name: str) -> None:
    noise = {"zoneout": 0.3, "recurrent_dropout": 0.2, "weight_dropout": 0.1}
    layer, x = make(name, **noise), rand(T, B, I)
    function = getattr(fusedrnn.functional, name.lower())
    found = seeded(lambda: function(x, None, list(layer.parameters()), training=True, **noise))
    assert_same(found, seeded(layer, x))


def test_revert_refuses_and_changes_nothing() -> None:
    model = nn.Sequential(fusedrnn.GRU(I, H), fusedrnn.GRU(I, H, zoneout=0.1, weight_dropout=0.2))
    with pytest.raises(ValueError, match="revert: GRU '1' has zoneout, weight_dropout, which torch's layers have not"):
        fusedrnn.revert(model)
    assert [type(layer) for layer in model] == [fusedrnn.GRU] * 2
    model[1].zoneout = model[1].weight_dropout = 0.0
    assert [type(layer) for layer in fusedrnn.revert(model)] == [nn.GRU] * 2
    assert not vars(model[1]).keys() & {"zoneout", "recurrent_dropout", "weight_dropout"}


def test_other_forms_refuse_what_they_have_not() -> None:
    x = torch.zeros(T, B, I)
    with pytest.raises(UnsupportedProblem, match="zoneout has no TorchScript form"):
        torch.jit.script(fusedrnn.GRU(I, H, zoneout=0.1).eval())
    with pytest.raises(UnsupportedProblem, match="zoneout has no TorchScript form"):
        torch.jit.trace(fusedrnn.GRU(I, H, zoneout=0.1).eval(), x)
    with pytest.raises(UnsupportedProblem, match="recurrent_dropout has no TorchScript form"):
        torch.jit.script(fusedrnn.GRU(I, H, recurrent_dropout=0.1))
    layer = fusedrnn.GRU(I, H, recurrent_dropout=0.1, weight_dropout=0.1).eval()
    scripted = torch.jit.script(nn.Sequential(copy.deepcopy(layer)))
    torch.testing.assert_close(scripted(x)[0], layer(x)[0])
    with pytest.raises(UnsupportedProblem, match="ONNX has no recurrent operator with zoneout"):
        fusedrnn.onnx.recurrent(
            GRU, x, None, list(layer.parameters()), bias=True, num_layers=1, bidirectional=False, proj_size=0,
            lengths=None, reset=None, return_states=False, zoneout=0.1
        )  # fmt: skip


def test_backends_say_what_they_have_not() -> None:
    plain = Problem(GRU, 5, 3, 4, 8)
    assert backends._BY_NAME["triton"].why_not(plain._replace(device="cuda", layer_norm=True)) is not None
    for problem, name, text in (
        (plain._replace(zoneout=True), "aten", "torch's own op has no zoneout"),
        (plain._replace(recurrent_dropout=True), "aten", "torch's own op has no recurrent_dropout"),
        (plain._replace(cell=RNN_RELU, zoneout=True, grad=True), "cpu", "in eval it has no gradients of an RNN"),
    ):
        if ops.missing is None or name == "aten":
            with pytest.raises(UnsupportedProblem, match=text):
                backends.choose(name, problem)
    layer, x = fusedrnn.GRU(I, H, zoneout=0.1, recurrent_dropout=0.1), torch.zeros(T, B, I)
    said = str(fusedrnn.explain(layer, x))
    assert "torch's own op has no zoneout, recurrent_dropout" in said
    assert said.splitlines()[0].endswith("grad zoneout recurrent_dropout")
    assert fusedrnn.explain(layer.eval(), x).problem.recurrent_dropout is False
    layer.backend = "aten"
    with pytest.raises(UnsupportedProblem, match="no zoneout"):
        layer(x)


def test_the_reference_refuses_what_cannot_be() -> None:
    gates_x, w = torch.zeros(T, B, 1, H), torch.zeros(1, H, H)
    with pytest.raises(ValueError, match="recurrent dropout is drawn by a key"):
        reference.scan(gates_x, None, None, w, None, None, None, RNN_RELU, 1, None, (0.0, 0.0, 0.5))
    absent, none = [None] * 5, torch.zeros(0)
    for cell in CELLS[2:]:
        with pytest.raises(ValueError, match="cannot be had from its output alone"):
            reference.scan_backward(
                *absent, none, gates_x, None, None, None, w, None, None, cell, 1, None, (0.5, 0.0, 0.0)
            )
    assert LSTM.kept


@each_layer
def test_bptt_is_refused_with_noise(name: str) -> None:
    """Its segments run as rows of one call: they would be drawn other masks."""
    text = "bptt goes with neither zoneout nor recurrent_dropout"
    both = (0.0, 0.3) if name == "LSTM" else 0.3
    for noise in ({"zoneout": both}, {"recurrent_dropout": 0.3}):
        with pytest.raises(UnsupportedProblem, match=text):
            make(name, bptt=2, **noise)
    layer = make(name, zoneout=0.3)
    with pytest.raises(UnsupportedProblem, match=text):
        layer.bptt = 2
    assert layer.bptt is None
    function, weights = getattr(fusedrnn.functional, name.lower()), list(layer.parameters())
    with torch.no_grad(), pytest.raises(UnsupportedProblem, match=text):
        function(rand(T, B, I), None, weights, zoneout=0.3, bptt=2)
    layer.zoneout, layer.weight_dropout, layer.bptt = 0.0, 0.3, 2
    layer(rand(T, B, I))


@each_layer
def test_frozen_layers_keep_their_zoneout(name: str) -> None:
    layer, x = make(name, zoneout=0.3, recurrent_dropout=0.2).eval(), rand(T, B, I)
    with torch.no_grad():
        expected = tensors(layer(x))
        with fusedrnn.frozen(layer):
            for _ in range(3):
                assert_same(tensors(layer(x)), expected)
