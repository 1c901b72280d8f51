"""Zoneout and recurrent dropout of whole layers on the Triton backend, its kernels interpreted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from close import assert_same
from noisy_loop import each_layer, each_noise, make, seeded
from pairs import LAYERS, B, H, I, T, gradients, initial, rand, tensors
from torch.nn.utils.rnn import pack_padded_sequence

import fusedrnn
from fusedrnn.errors import UnsupportedProblem

pytestmark = pytest.mark.usefixtures("one_thread")


def equals_the_reference(layer: Any, grad: bool = True, **masks: Any) -> None:
    """Values and gradients, of everything, on both backends from the same seed: one mask bit for bit."""
    x, found = rand(T, B, I).requires_grad_(), []
    hx = [h.requires_grad_() for h in tensors([initial(layer)])]
    leaves = [x, *hx, *layer.parameters()]
    for backend in ("triton", "reference"):
        layer.backend = backend
        with torch.set_grad_enabled(grad):
            out = seeded(layer, x, tuple(hx) if len(hx) == 2 else hx[0], **masks)
        found.append(out + gradients(out, leaves) if grad else out)
    assert_same(*found)


@each_layer
@each_noise
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_equals_the_reference(name: str, noise: dict[str, float], training: bool) -> None:
    layer = make(name, **noise, bidirectional=True).train(training)
    grad = training or name != "RNN" or "zoneout" not in noise  # of an RNN's mean there is no gradient
    equals_the_reference(layer, grad)
    equals_the_reference(layer, grad, lengths=torch.tensor([4, T, 1]), reset=torch.rand(T, B) < 0.4)


@pytest.mark.parametrize("zoneout", [(0.4, 0.0), (0.0, 0.4), (0.2, 0.7), (1.0, 1.0)])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_h_and_c_have_rates_of_their_own(zoneout: tuple[float, float], training: bool) -> None:
    equals_the_reference(make("LSTM", zoneout=zoneout).train(training))


@each_layer
@pytest.mark.parametrize("regime", ["resident", "streamed", "step"])
def test_recompute_relu_and_regimes_by_name(name: str, regime: str) -> None:
    own = {"nonlinearity": "relu"} if name == "RNN" else {}
    layer = make(name, zoneout=0.3, recurrent_dropout=0.4, recompute=True, **own).float()
    x, found = rand(T, B, I).float().requires_grad_(), []
    for backend in (f"triton:{regime}", "reference"):
        layer.backend = backend
        y = seeded(layer, x)
        found.append(y + gradients(y, [x, *layer.parameters()]))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


@each_layer
def test_packed_rows(name: str) -> None:
    """They are drawn for in the order in which they run."""
    layer, x, found = (
        make(name, zoneout=0.3, recurrent_dropout=0.4, bidirectional=True),
        rand(T, B, I).requires_grad_(),
        [],
    )
    for backend in ("triton", "reference"):
        layer.backend = backend
        torch.manual_seed(5)
        y, last = layer(pack_padded_sequence(x, torch.tensor([2, T, 4]), enforce_sorted=False))
        out = [y.data, *tensors([last])]
        found.append(out + gradients(out, [x, *layer.parameters()]))
    assert_same(*found)


@pytest.mark.parametrize("name", LAYERS)
def test_compiles_whole_and_gradcheck(name: str) -> None:
    layer, x = make(name, 2, 3, zoneout=0.3, recurrent_dropout=0.3, backend="triton"), rand(3, 2, 2).requires_grad_()
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    leaves = [x, *layer.parameters()]
    found, want = (seeded(f, x) for f in (compiled, layer))
    assert_same(found + gradients(found, leaves), want + gradients(want, leaves))

    def run(x: torch.Tensor) -> torch.Tensor:
        return seeded(layer, x)[0]

    assert torch.autograd.gradcheck(run, (x,), fast_mode=True)
    assert torch.autograd.gradgradcheck(run, (x,), fast_mode=True)


def test_what_it_cannot_is_refused_by_name() -> None:
    layer, x = make("RNN", zoneout=0.3, backend="triton").eval(), rand(T, B, I)
    with pytest.raises(UnsupportedProblem, match="in eval it has no gradients of an RNN with zoneout"):
        layer(x.requires_grad_())
    layer = fusedrnn.GRU(I, H, recurrent_dropout=0.3, backend="triton:grid")
    with pytest.raises(UnsupportedProblem, match="grid: it has no recurrent_dropout; take triton:streamed"):
        layer(x.detach().float())
    layer = fusedrnn.LSTM(I, 128, zoneout=0.3, backend="triton:resident").bfloat16()
    with pytest.raises(UnsupportedProblem, match="got 128 hidden units"):
        layer(x.detach().bfloat16())
    layer.backend = "triton"
    layer(x.detach().bfloat16())
