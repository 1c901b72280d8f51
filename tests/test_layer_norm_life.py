"""Layer normalisation through a layer's life: Parameters, copies, other forms, backends."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from close import assert_same
from noisy_loop import STACK, each_layer, make
from normed_loop import shaken
from pairs import B, H, I, T, needs_kernel, rand, tensors
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import fusedrnn
from fusedrnn import backends
from fusedrnn.errors import UnsupportedProblem
from fusedrnn.spec import GRU, Problem


@each_layer
def test_parameters(name: str) -> None:
    kind = getattr(fusedrnn, name)
    torch.manual_seed(3)
    plain, states = kind(I, H, **STACK), torch.get_rng_state()
    torch.manual_seed(3)
    layer = kind(I, H, **STACK, layer_norm=True)
    assert torch.equal(torch.get_rng_state(), states)
    more = {n: p for n, p in layer.state_dict().items() if n not in plain.state_dict()}
    assert list(layer.state_dict()) == [n for group in layer._all_weights for n in group]
    assert all(torch.equal(layer.state_dict()[n], p) for n, p in plain.state_dict().items())
    kinds = ["weight_ln_ih", "weight_ln_hh", *(["weight_ln_c", "bias_ln_c"] if name == "LSTM" else [])]
    assert {n.rpartition("_l")[0] for n in more if "_l0" in n} <= {*kinds}
    assert len(more) == 4 * len(kinds)
    assert more["weight_ln_hh_l1_reverse"].shape == layer.weight_hh_l1.shape[:1]
    assert all(torch.equal(p, torch.full_like(p, float(n.startswith("weight")))) for n, p in more.items())
    before = copy.deepcopy(layer.state_dict())
    shaken(layer)
    torch.manual_seed(3)
    layer.reset_parameters()
    assert all(torch.equal(layer.state_dict()[n], p) for n, p in before.items())
    without = kind(I, H, bias=False, layer_norm=True).state_dict()
    assert not [n for n in without if n.startswith("bias")]
    assert kind(I, H, layer_norm=True, device="meta", dtype=torch.half).weight_ln_ih_l0.dtype == torch.half


@each_layer
def test_copies_and_words(name: str) -> None:
    layer, x = shaken(make(name, **STACK, layer_norm=True)), rand(T, B, I)
    want = tensors(layer(x))
    fresh = make(name, **STACK, layer_norm=True, seed=1)
    fresh.load_state_dict(layer.state_dict())
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), fresh):
        assert twin.layer_norm
        assert_same(tensors(twin(x)), want)
    assert repr(layer) == f"{name}({I}, {H}, num_layers=2, bidirectional=True, layer_norm=True)"
    plain = make(name, **STACK)
    assert not plain.layer_norm
    assert "layer_norm" not in repr(plain)
    with pytest.raises(RuntimeError, match=r"Missing key.*weight_ln_ih_l0"):
        layer.load_state_dict(plain.state_dict())
    missing, unexpected = layer.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert all("_ln_" in n for n in missing)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*weight_ln_ih_l0"):
        plain.load_state_dict(layer.state_dict())
    with pytest.raises(AttributeError, match="layer_norm"):
        plain.layer_norm = True
    with pytest.raises(TypeError, match="layer_norm: Expected True or False, got LayerNorm"):
        make(name, layer_norm=nn.LayerNorm(H))


def test_it_trains_under_weight_norm_and_frozen() -> None:
    layer, x = make("LSTM", layer_norm=True), rand(T, B, I)
    nn.utils.parametrizations.weight_norm(layer, "weight_hh_l0")
    optimiser = torch.optim.Adam(layer.parameters(), 0.05)
    losses = []
    for _ in range(8):
        optimiser.zero_grad()
        losses.append(layer(x)[0].sub(0.3).square().mean())
        losses[-1].backward()
        optimiser.step()
    assert losses[-1] < losses[0] / 2
    assert all(p.grad.ne(0).any() for p in layer.parameters())
    with torch.no_grad():
        want = tensors(layer.eval()(x))
        with fusedrnn.frozen(layer):
            for _ in range(3):
                assert_same(tensors(layer(x)), want)


def test_convert_and_revert() -> None:
    inner = fusedrnn.GRU(I, H, layer_norm=True)
    model = nn.Sequential(nn.GRU(I, H), inner)
    fusedrnn.convert(model)
    assert model[1] is inner
    assert inner.layer_norm
    assert not model[0].layer_norm
    with pytest.raises(ValueError, match="revert: GRU '1' has layer_norm, which torch's layers have not"):
        fusedrnn.revert(model)
    assert [type(layer) for layer in model] == [fusedrnn.GRU] * 2


def test_other_forms_refuse_it() -> None:
    layer, x = fusedrnn.GRU(I, H, layer_norm=True).eval(), torch.zeros(T, B, I)
    for form in (torch.jit.script, lambda layer: torch.jit.trace(layer, x)):
        with pytest.raises(UnsupportedProblem, match="layer_norm has no TorchScript form"):
            form(layer)
    with pytest.raises(UnsupportedProblem, match="ONNX has no recurrent operator with layer_norm"):
        fusedrnn.onnx.recurrent(
            GRU, x, None, list(layer.parameters()), bias=True, num_layers=1, bidirectional=False, proj_size=0,
            lengths=None, reset=None, return_states=False, layer_norm=True
        )  # fmt: skip


def test_backends_refuse_it_by_name() -> None:
    asked = Problem(GRU, 5, 3, 4, 8, layer_norm=True)
    verdicts = {b.name: b.why_not(asked) for b in backends.BACKENDS}
    assert "has no layer_norm" in verdicts["aten"]
    assert verdicts["reference"] is None
    layer, x = fusedrnn.GRU(I, H, layer_norm=True), torch.zeros(T, B, I)
    found = fusedrnn.explain(layer, x)
    assert found.chosen == ("reference" if verdicts["cpu"] else "cpu")
    assert str(found).splitlines()[0].endswith("grad layer_norm")
    layer.backend = "aten"
    for given in (x, pack_padded_sequence(x, torch.tensor([T, 2, 1]))):
        with pytest.raises(UnsupportedProblem, match="backend 'aten' cannot take this call: .* no layer_norm"):
            layer(given)


@needs_kernel
def test_the_kernel_refuses_projections() -> None:
    projected = fusedrnn.LSTM(I, H, proj_size=2, layer_norm=True, backend="cpu")
    with pytest.raises(UnsupportedProblem, match="it has no projection"):
        projected(torch.zeros(T, B, I))


def test_triton_kernels_refuse_it_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fusedrnn.triton_plan.missing", lambda: None)
    asked = Problem(GRU, 5, 3, 4, 8, device="cuda", layer_norm=True)
    assert backends._BY_NAME["triton"].why_not(asked) == "its kernels have no layer_norm"
