"""Layer normalisation: against a naive loop; derivatives, compilers, masks, precision, and a layer's life."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from close import assert_same
from noisy_loop import STACK, each_layer, make, seeded
from pairs import B, H, I, T, gradients, initial, rand, tensors
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fusedrnn
from fusedrnn import backends, ops
from fusedrnn.errors import UnsupportedProblem
from fusedrnn.spec import GRU, Problem

Weights = dict[str, Tensor]


def shaken(layer: Any) -> Any:
    """With gains that are not 1 and shifts that are not 0."""
    with torch.no_grad():
        for name, p in layer.named_parameters():
            if "_ln_" in name:
                p.add_(torch.randn_like(p) / 4)
    return layer


WIDE = (I, 16)
"""Over few units a variance is now and then tiny, and what is divided by it shows every rounding."""


def step(mode: str, w: Weights, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """One row, one step; eps is nn.LayerNorm's."""
    n, a, u = c.shape[-1], w["weight_ih"] @ x, w["weight_hh"] @ h
    gain_x, gain_h = w["weight_ln_ih"], w["weight_ln_hh"]
    b_x, b_h = (w.get(name, torch.zeros_like(a)) for name in ("bias_ih", "bias_hh"))
    if mode == "GRU":
        both, last = slice(0, 2 * n), slice(2 * n, 3 * n)
        rz = F.layer_norm(a[both], (2 * n,), gain_x[both], b_x[both])
        r, z = torch.sigmoid(rz + F.layer_norm(u[both], (2 * n,), gain_h[both], b_h[both])).chunk(2)
        q = F.layer_norm(u[last], (n,), gain_h[last], b_h[last])
        new = torch.tanh(F.layer_norm(a[last], (n,), gain_x[last], b_x[last]) + r * q)
        return (1 - z) * new + z * h, c
    total = F.layer_norm(a, a.shape, gain_x, b_x) + F.layer_norm(u, u.shape, gain_h, b_h)
    if mode != "LSTM":
        return torch.tanh(total) if mode == "RNN_TANH" else torch.relu(total), c
    i, f, g, o = total.chunk(4)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(F.layer_norm(c, (n,), w["weight_ln_c"], w.get("bias_ln_c")))
    return (w["weight_hr"] @ h if "weight_hr" in w else h), c


def loop(
    layer: Any, x: Tensor, hx: list[Tensor], lengths: Tensor | None = None, reset: Tensor | None = None
) -> list[Tensor]:
    """The layer on x [T,B,I], row by row."""
    ends = [len(x)] * x.shape[1] if lengths is None else lengths.tolist()
    last: list[list[Tensor]] = [[] for _ in hx]
    for k in range(layer.num_layers):
        outputs = []
        for s in range(2 if layer.bidirectional else 1):
            suffix = f"_l{k}" + ("_reverse" if s else "")
            own = {n.removesuffix(suffix): p for n, p in layer.named_parameters() if n.endswith(suffix)}
            index, rows, finals = len(last[0]), [], []
            for b, end in enumerate(ends):
                h, c = hx[0][index, b], hx[-1][index, b]
                y = [torch.zeros_like(h)] * len(x)
                for t in range(end)[:: -1 if s else 1]:
                    if reset is not None and t + s < end and reset[t + s, b]:
                        h, c = torch.zeros_like(h), torch.zeros_like(c)
                    h, c = step(layer.mode, own, x[t, b], h, c)
                    y[t] = h
                rows.append(torch.stack(y))
                finals.append((h, c))
            outputs.append(torch.stack(rows, 1))
            for kept, state in zip(last, zip(*finals, strict=True), strict=False):
                kept.append(torch.stack(state))
        x = torch.cat(outputs, -1)
    return [x, *(torch.stack(states) for states in last)]


def compared(layer: Any, **masks: Tensor) -> None:
    """Values and gradients, of everything."""
    x, hx = rand(T, B, I).requires_grad_(), [h.requires_grad_() for h in tensors([initial(layer)])]
    leaves = [x, *hx, *layer.parameters()]
    found, expected = tensors(layer(x, state(hx), **masks)), loop(layer, x, hx, **masks)
    assert_same(found + gradients(found, leaves), expected + gradients(expected, leaves))


def state(hx: Any) -> Any:
    return tuple(hx) if len(hx) == 2 else hx[0]


@each_layer
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_equals_a_naive_loop(name: str, bias: bool, backend: str) -> None:
    layer = shaken(make(name, *WIDE, **STACK, bias=bias, layer_norm=True, backend=backend))
    compared(layer)
    compared(layer, lengths=torch.tensor([2, T, 0]))
    compared(layer, lengths=torch.tensor([4, T, 1]), reset=torch.rand(T, B) < 0.4)


def test_relu_and_projections() -> None:
    compared(shaken(make("RNN", *WIDE, nonlinearity="relu", layer_norm=True)))
    for bias in (True, False):
        layer = shaken(make("LSTM", *WIDE, proj_size=8, **STACK, bias=bias, layer_norm=True))
        compared(layer, lengths=torch.tensor([2, T, 0]))


@each_layer
def test_at_the_start_products_are_standardised(name: str) -> None:
    """Gains of 1: the scale of the weights and of the input is nothing to the layer, but for eps."""
    layer, x = make(name, layer_norm=True), rand(T, B, I)
    large = copy.deepcopy(layer)
    with torch.no_grad():
        large.weight_ih_l0.mul_(1e6)
        large.weight_hh_l0.mul_(1e6)
        larger = copy.deepcopy(large)
        larger.weight_ih_l0.mul_(8)
        larger.weight_hh_l0.mul_(8)
    torch.testing.assert_close(large(x)[0], larger(x)[0], rtol=0, atol=1e-9)
    assert not torch.allclose(make(name)(x)[0], layer(x)[0])


# Derivatives, transforms, compilers.


@each_layer
def test_gradcheck_and_gradgradcheck(name: str, one_thread: None) -> None:
    layer = shaken(make(name, 2, 3, layer_norm=True))
    x = rand(2, 2, 2).requires_grad_()
    hx = [h.requires_grad_() for h in tensors([initial(layer, 2)])]
    run = as_function(layer, len(hx))
    inputs = (x, *hx, *layer.parameters())
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)
    assert torch.autograd.gradcheck(run, inputs, check_forward_ad=True, check_backward_ad=False)


def as_function(layer: Any, states: int) -> Callable[..., tuple[Tensor, ...]]:
    names = [n for n, _ in layer.named_parameters()]

    def run(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        weights = dict(zip(names, rest[states:], strict=True))
        return tuple(tensors(torch.func.functional_call(layer, weights, (x, state(rest[:states])))))

    return run


@each_layer
def test_transforms(name: str) -> None:
    layer, x = shaken(make(name, layer_norm=True)), rand(2, T, B, I)
    weights = {n: torch.stack([p, 2 * p]).detach() for n, p in layer.named_parameters()}

    def loss(weights: Weights, x: Tensor) -> Tensor:
        return torch.func.functional_call(layer, weights, (x,))[0].square().sum()

    found = torch.func.vmap(torch.func.grad(loss))(weights, x)
    for i in range(2):
        own = {n: w[i].clone().requires_grad_() for n, w in weights.items()}
        want = torch.autograd.grad(loss(own, x[i]), list(own.values()))
        assert_same([found[n][i] for n in own], want)


@each_layer
def test_compiles_whole(name: str, fresh_graphs: None) -> None:
    layer, x = shaken(make(name, layer_norm=True)), rand(T, B, I).requires_grad_()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    leaves, lengths = [x, *layer.parameters()], torch.tensor([2, T, 0])
    found, want = (tensors(f(x, lengths=lengths)) for f in (compiled, layer))
    assert_same(found + gradients(found, leaves), want + gradients(want, leaves))


def test_exports() -> None:
    layer, x = shaken(make("LSTM", layer_norm=True)), rand(T, B, I)
    assert_same(tensors(torch.export.export(layer, (x,)).module()(x)), tensors(layer(x)))


# With the layers' other options and inputs.


@each_layer
def test_recompute_and_bptt(name: str) -> None:
    layer, x = shaken(make(name, **STACK, layer_norm=True)), rand(T, B, I).requires_grad_()
    leaves, found = [x, *layer.parameters()], []
    for recompute in (False, True):
        layer.recompute = recompute
        out = tensors(layer(x))
        found.append(out + gradients(out, leaves))
    assert_same(*found)

    layer = shaken(make(name, layer_norm=True))
    y, last, parts = None, None, []
    for part in x.split(2):
        y, last = layer(part, None if last is None else state([h.detach() for h in tensors([last])]))
        parts.append(y)
    want = [torch.cat(parts), *tensors([last])]
    layer.bptt = 2
    found = tensors(layer(x))
    leaves = [x, *layer.parameters()]
    assert_same(found + gradients(found, leaves), want + gradients(want, leaves))


@each_layer
def test_zoneout_and_dropouts(name: str) -> None:
    """Held states are held, and h is that of the c before zoneout; weight dropout is torch's."""
    layer, x = shaken(make(name, zoneout=0.3, layer_norm=True)).eval(), rand(1, B, I)
    hx = tensors([initial(layer)])
    plain = copy.deepcopy(layer)
    plain.zoneout = 0.0
    found, new = tensors(layer(x, state(hx))), tensors(plain(x, state(hx)))
    want = [0.3 * old + 0.7 * now for old, now in zip(hx, new[1:], strict=True)]
    assert_same(found, [want[0], *want])

    layer = shaken(make(name, **STACK, recurrent_dropout=0.3, weight_dropout=0.4, layer_norm=True))
    x = rand(T, B, I)
    assert torch.equal(seeded(layer, x)[0], seeded(layer, x)[0])
    assert not torch.equal(layer(x)[0], layer(x)[0])
    layer.recurrent_dropout = 0.0
    found, twin = seeded(layer, x), copy.deepcopy(layer)
    twin.weight_dropout = 0.0
    torch.manual_seed(5)
    with torch.no_grad():
        for n in (n for n in twin._flat_weights_names if n.startswith("weight_hh")):
            getattr(twin, n).copy_(F.dropout(getattr(twin, n), 0.4))
    assert_same(found, tensors(twin(x)))


@each_layer
def test_packed_and_jagged_rows_and_states(name: str) -> None:
    lengths, x = torch.tensor([T, 4, 2]), rand(T, B, I)
    layer = shaken(make(name, **STACK, dropout=0.5, layer_norm=True, batch_first=True))
    for dropout in (0.0, 0.5):  # between layers, packed rows go layer by layer
        layer.dropout = dropout
        torch.manual_seed(5)
        y, last = layer(pack_padded_sequence(x, lengths))
        packed = [pad_packed_sequence(y, batch_first=True)[0], *tensors([last])]
        if not dropout:
            want = tensors(layer(x.transpose(0, 1), lengths=lengths))
            assert_same(packed, want)
    layer.dropout = 0.0
    rows = torch.nested.nested_tensor([x[:n, b] for b, n in enumerate(lengths)], layout=torch.jagged)
    y, last = layer(rows)
    assert_same([y.to_padded_tensor(0.0), *tensors([last])], want)
    *_, states = layer(x.transpose(0, 1), return_states=True)
    assert_same([torch.cat([states.h[2], states.h[3]], -1).transpose(0, 1)], tensors(layer(x.transpose(0, 1)))[:1])


@each_layer
def test_lower_precision_and_autocast(name: str) -> None:
    exact, x = shaken(make(name, 16, 16, **STACK, layer_norm=True)), rand(T, B, 16)
    want = exact(x)[0]
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        found = copy.deepcopy(exact).to(dtype)(x.to(dtype))[0]
        assert found.dtype == dtype
        assert float((found.double() - want).norm() / want.norm()) < 30 * torch.finfo(dtype).eps
    layer, plain = exact.float(), make(name, 16, 16, **STACK).float()
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x.float())
        assert [t.dtype for t in tensors(found)] == [t.dtype for t in tensors(plain(x.float()))]
    assert float((found[0].double() - want).norm() / want.norm()) < 30 * torch.finfo(torch.bfloat16).eps
    found[0].sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in layer.parameters())


@each_layer
def test_functional_is_the_module(name: str) -> None:
    layer, x = shaken(make(name, **STACK, layer_norm=True)), rand(T, B, I)
    function, weights = getattr(fusedrnn.functional, name.lower()), list(layer.parameters())
    options = {"num_layers": 2, "bidirectional": True, "layer_norm": True}
    assert_same(tensors(function(x, None, weights, **options)), tensors(layer(x)))
    with pytest.raises(ValueError, match=r"weights: Expected \d+ tensors, weight_ih, .*weight_ln_hh"):
        function(x, None, weights[:-1], **options)
    with pytest.raises(RuntimeError, match="ln_.* of layer 1: Expected size"):
        function(x, None, [*weights[:-1], weights[-1][:-1]], **options)
    with pytest.raises(TypeError, match="layer_norm: Expected True or False, got str"):
        function(x, None, weights, **options | {"layer_norm": "yes"})


# A layer's life.


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
    with pytest.raises(RuntimeError, match="Missing key.*weight_ln_ih_l0"):
        layer.load_state_dict(plain.state_dict())
    missing, unexpected = layer.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert all("_ln_" in n for n in missing)
    with pytest.raises(RuntimeError, match="Unexpected key.*weight_ln_ih_l0"):
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
    with pytest.raises(ValueError, match="a GRU has layer_norm, which torch's layers have not"):
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
    assert ops.missing is not None or verdicts["cpu"] == "its kernel has no layer_norm"
    assert verdicts["reference"] is None
    layer, x = fusedrnn.GRU(I, H, layer_norm=True), torch.zeros(T, B, I)
    found = fusedrnn.explain(layer, x)
    assert found.chosen == "reference"
    assert str(found).splitlines()[0].endswith("grad layer_norm")
    for name in ("aten", *(["cpu"] if ops.missing is None else [])):
        layer.backend = name
        for given in (x, pack_padded_sequence(x, torch.tensor([T, 2, 1]))):
            with pytest.raises(UnsupportedProblem, match=f"backend '{name}' cannot take this call: .* no layer_norm"):
                layer(given)


@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_gpu_kernels_refuse_it_by_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends.ops, "cuda_missing", None)
    monkeypatch.setattr("fusedrnn.triton_plan.missing", lambda: None)
    asked = Problem(GRU, 5, 3, 4, 8, device="cuda", layer_norm=True)
    assert backends._BY_NAME[name].why_not(asked) == "its kernels have no layer_norm"
