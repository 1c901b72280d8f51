"""convert and revert: the same objects, another class."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from close import assert_same
from pairs import LAYERS, B, H, I, T, initial, rand, tensors
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import fusedrnn
from fusedrnn.standin import OWN_ATTRIBUTES

each_layer = pytest.mark.parametrize("name", LAYERS)
FUSED = {getattr(nn, n): getattr(fusedrnn, n) for n in (*LAYERS, "GRUCell", "LSTMCell", "RNNCell")}


class Model(nn.Module):
    """Layers of every class: nested, in containers, shared, and one in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(I, I)
        self.layers = nn.ModuleList([nn.GRU(I, H, num_layers=2, dropout=0.3), nn.LSTM(H, H, proj_size=2)])
        self.inner = nn.Sequential(nn.Sequential(nn.RNN(2, H, nonlinearity="relu")))
        self.cells = nn.ModuleDict({"g": nn.GRUCell(H, H), "l": nn.LSTMCell(H, H), "r": nn.RNNCell(H, H)})
        self.again = self.layers[0]
        self.layers[1].eval()
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.layers[1](self.again(self.embed(x))[0])
        h = self.inner(y)[0][-1]
        return self.cells["r"](self.cells["l"](self.cells["g"](h))[0])


def classes(model: nn.Module) -> list[type]:
    return [type(m) for m in model.modules()]


def test_a_model_there_and_back() -> None:
    model = Model()
    x, modules, parameters = rand(T, B, I), list(model.modules()), list(model.parameters())
    before, modes, attributes = classes(model), [m.training for m in modules], [vars(m).copy() for m in modules]
    torch.manual_seed(1)
    expected = model(x)
    assert fusedrnn.convert(model) is model
    assert classes(model) == [FUSED.get(c, c) for c in before]
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert [m.training for m in model.modules()] == modes
    torch.manual_seed(1)
    assert_same([model(x)], [expected])
    assert fusedrnn.revert(model) is model
    assert classes(model) == before
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert [vars(m).keys() for m in modules] == [a.keys() for a in attributes]
    torch.manual_seed(1)
    assert torch.equal(model(x), expected)


def test_an_optimizer_goes_on() -> None:
    """Momentum and all, across convert and revert, as if nothing had been."""
    models = [Model().eval()]
    models.append(copy.deepcopy(models[0]))
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.01, momentum=0.9) for m in models]
    x = rand(T, B, I)
    for change in (None, fusedrnn.convert, None, fusedrnn.revert, None):
        if change is not None:
            change(models[1])
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            model(x).pow(2).sum().backward()
            optimizer.step()
    assert_same(list(models[1].parameters()), list(models[0].parameters()))


@pytest.mark.parametrize("name", [c.__name__ for c in FUSED])
def test_a_layer_by_itself(name: str) -> None:
    layer = getattr(nn, name)(I, H, dtype=torch.double)
    same_layer = fusedrnn.convert(layer, backend="reference")
    assert same_layer is layer
    assert type(layer) is getattr(fusedrnn, name)
    assert layer.backend == "reference"
    assert repr(layer) == f"{name}({I}, {H}, backend='reference')"
    assert fusedrnn.revert(layer) is layer
    assert type(layer) is getattr(nn, name)
    assert not vars(layer).keys() & set(OWN_ATTRIBUTES)


def test_converting_again_changes_nothing_but_the_backend_of_what_is_new() -> None:
    model = nn.Sequential(fusedrnn.GRU(I, H, backend="aten", recompute=True), nn.GRU(I, H))
    fusedrnn.convert(model, backend="reference")
    assert [(type(m), m.backend, m.recompute) for m in model] == [
        (fusedrnn.GRU, "aten", True),
        (fusedrnn.GRU, "reference", False),
    ]


@each_layer
def test_hooks_and_references_stay(name: str) -> None:
    layer, calls = getattr(nn, name)(I, H, dtype=torch.double), []
    handle = layer.register_forward_hook(lambda m, args, out: calls.append(type(m)))
    alias = layer.forward
    fusedrnn.convert(layer)
    layer(rand(T, B, I))
    handle.remove()
    layer(rand(T, B, I))
    assert calls == [getattr(fusedrnn, name)]
    assert alias.__self__ is layer


@each_layer
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "bias": False, "batch_first": True}])
def test_built_as_ours_reverts_to_torchs(name: str, options: dict[str, Any]) -> None:
    ours = getattr(fusedrnn, name)(I, H, **options, dtype=torch.double)
    stock = fusedrnn.revert(copy.deepcopy(ours))
    assert type(stock) is getattr(nn, name)
    x, hx = rand(B, T, I), initial(stock, B if options else T)
    assert_same(tensors(ours(x, hx)), tensors(stock(x, hx)))
    assert all(w is getattr(stock, n) for w, n in zip(stock._flat_weights, stock._flat_weights_names, strict=True))


@each_layer
def test_parametrized_layers_keep_their_parametrization(name: str) -> None:
    layer = getattr(nn, name)(I, H, dtype=torch.double)
    parametrizations.weight_norm(layer, "weight_hh_l0")
    parametrizations.orthogonal(layer, "weight_ih_l0")
    x, before = rand(T, B, I), list(layer.parameters())
    expected = tensors(layer(x))
    fusedrnn.convert(layer)
    assert isinstance(layer, getattr(fusedrnn, name))
    assert type(layer).__name__ == f"Parametrized{name}"
    assert all(a is b for a, b in zip(layer.parameters(), before, strict=True))
    assert_same(tensors(layer(x)), expected)
    with torch.no_grad():
        layer.parametrizations.weight_hh_l0.original0.mul_(2.0)
    changed = tensors(layer(x))
    assert not torch.allclose(changed[0], expected[0])
    fusedrnn.revert(layer)
    assert isinstance(layer, getattr(nn, name))
    assert_same(tensors(layer(x)), changed)
    fusedrnn.convert(layer)
    for weight in ("weight_hh_l0", "weight_ih_l0"):
        parametrize.remove_parametrizations(layer, weight)
    assert type(layer) is getattr(fusedrnn, name)
    assert_same(tensors(layer(x)), changed)


@each_layer
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_old_weight_norm_stays(name: str) -> None:
    layer = nn.utils.weight_norm(getattr(nn, name)(I, H, dtype=torch.double), "weight_hh_l0")
    x = rand(T, B, I)
    fusedrnn.convert(layer)
    with torch.no_grad():
        layer.weight_hh_l0_g.mul_(2.0)
    found = tensors(layer(x))
    assert_same(found, tensors(fusedrnn.revert(layer)(x)))
    layer(x)[0].sum().backward()
    assert layer.weight_hh_l0_g.grad is not None


@each_layer
def test_classes_derived_from_torchs_are_left_alone(name: str) -> None:
    """Their code may count on what it derives from; and one that derives from both is ours already."""
    mine = type("Mine", (getattr(nn, name),), {})
    both = type("Both", (getattr(fusedrnn, name), getattr(nn, name)), {})
    model = nn.ModuleList([mine(I, H), both(I, H)])
    for change in (fusedrnn.convert, fusedrnn.revert):
        change(model)
        assert [type(m) for m in model] == [mine, both]


class Mine(nn.GRU):
    """A user's own."""


def test_reports_what_was_replaced_and_what_was_left_and_why() -> None:
    model = nn.Sequential(
        nn.Linear(I, I), nn.Sequential(nn.LSTM(I, I)), Mine(I, I), fusedrnn.RNN(I, I), nn.GRUCell(I, I),
        parametrizations.weight_norm(nn.GRU(I, I), "weight_hh_l0"), torch.jit.script(nn.GRU(I, I)),
    )  # fmt: skip
    reports: list[Any] = []
    assert fusedrnn.convert(model, report=reports.append) is model
    (told,) = reports
    assert [(one.name, one.before, one.after) for one in told.replaced] == [
        ("1.0", "torch.nn.LSTM", "fusedrnn.LSTM"),
        ("4", "torch.nn.GRUCell", "fusedrnn.GRUCell"),
        ("5", "torch.nn.GRU", "fusedrnn.GRU"),
    ]
    assert [(one.name, one.why.split(":")[0]) for one in told.left] == [
        ("2", "its class derives from torch's, and its code may rely on what that does"),
        ("3", "it is this package's already"),
        ("6", "it is an nn.GRU that TorchScript has compiled"),
    ]
    assert str(told).splitlines()[:3] == [
        "convert: 3 replaced, 3 left",
        "  1.0: torch.nn.LSTM -> fusedrnn.LSTM",
        f"  2: {__name__}.Mine left: its class derives from torch's, and its code may rely on what that does: "
        "derive it from fusedrnn's",
    ]
    fusedrnn.convert(nn.GRU(I, I), report=reports.append)
    assert str(reports[1]) == "convert: 1 replaced, 0 left\n  (the model): torch.nn.GRU -> fusedrnn.GRU"


def test_reports_quantized_layers(recwarn: pytest.WarningsRecorder) -> None:
    model = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.LSTM(I, H)), {nn.LSTM})
    reports: list[Any] = []
    fusedrnn.convert(model, report=reports.append)
    fusedrnn.convert(torch.ao.nn.quantizable.LSTM(I, H), report=reports.append)
    assert all({one.why for one in told} == {"its weights are quantized, or about to be"} for told in reports)
    other = nn.Linear(I, I)
    other.original_name = "GRU"
    fusedrnn.convert(other, report=reports.append)
    assert not reports[2]


def test_errors() -> None:
    model = nn.Sequential(nn.GRU(I, H))
    with pytest.raises(TypeError, match="report: expected a function, such as print, got bool"):
        fusedrnn.convert(model, report=True)
    assert type(model[0]) is nn.GRU
    for change in (fusedrnn.convert, fusedrnn.revert):
        with pytest.raises(TypeError, match=r"expected a torch.nn.Module, got type"):
            change(nn.GRU)
    model = nn.Sequential(nn.GRU(I, H))
    with pytest.raises(ValueError, match="Unknown backend 'warp'"):
        fusedrnn.convert(model, backend="warp")
    assert classes(model) == [nn.Sequential, nn.GRU], "nothing is half done"


@each_layer
def test_spectral_norm_takes_one_step_a_call(name: str) -> None:
    """Of its power iteration, in training; torch's layer reads its weights four times a call, and takes four."""
    layer = parametrizations.spectral_norm(getattr(nn, name)(I, H, dtype=torch.double), "weight_hh_l0")
    norm, x = layer.parametrizations.weight_hh_l0[0], rand(T, B, I)
    alone = copy.deepcopy(norm)
    fusedrnn.convert(layer)
    for _ in range(3):
        weight = alone(layer.parametrizations.weight_hh_l0.original)
        out = layer(x)[0]
        assert torch.equal(norm._u, alone._u)
    layer.eval()
    assert_same(tensors(layer(x)), tensors(fusedrnn.revert(copy.deepcopy(layer))(x)))
    (found,) = torch.autograd.grad(out.sum(), layer.parametrizations.weight_hh_l0.original)
    plain = fusedrnn.convert(getattr(nn, name)(I, H, dtype=torch.double))
    state = {n: getattr(layer, n).detach() for n in layer._flat_weights_names} | {"weight_hh_l0": weight}
    want = torch.func.functional_call(plain, state, (x,))[0]
    assert_same([found], list(torch.autograd.grad(want.sum(), layer.parametrizations.weight_hh_l0.original)))


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated", "ignore:.*is deprecated:UserWarning")
@pytest.mark.parametrize("name", ["GRU", "LSTM"])
def test_reverted_models_quantize(name: str) -> None:
    """torch's tool looks for torch's classes: it leaves ours as they are, and takes what `revert` makes of them."""
    torch.backends.quantized.engine = "fbgemm"
    layer = getattr(fusedrnn, name)(I, 8 * H).eval()
    tool: Any = torch.ao.quantization.quantize_dynamic
    kinds, x = {getattr(nn, name)}, torch.randn(T, B, I)
    unchanged = tool(nn.Sequential(copy.deepcopy(layer)), kinds, dtype=torch.qint8)
    assert type(unchanged[0]) is getattr(fusedrnn, name)
    quantized = tool(nn.Sequential(fusedrnn.revert(copy.deepcopy(layer))), kinds, dtype=torch.qint8)
    assert type(quantized[0]).__module__.startswith("torch.ao.nn.quantized.dynamic")
    difference = (quantized(x)[0] - layer(x)[0]).abs().max()
    assert 0 < difference < 0.05, "eight bits"
