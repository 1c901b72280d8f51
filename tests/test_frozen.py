"""`frozen`: the same bits with less work, training refused, everything as before afterwards."""

from __future__ import annotations

import copy
import pickle
import threading
from typing import Any

import pytest
import torch
from pairs import LAYERS, B, H, I, T, initial, needs_kernel, pair, rand, tensors
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_sequence

import fusedrnn
from fusedrnn import checks, modules
from fusedrnn.frozen import _Pack

each_layer = pytest.mark.parametrize("name", LAYERS)


def same(found: Any, want: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(tensors(found), tensors(want), strict=True))


def count(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[None]:
    """Grows by one for each call of `owner.name`."""
    calls: list[None] = []
    real = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *a, **k: (calls.append(None), real(*a, **k))[1])
    return calls


@each_layer
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False}], ids=str)
@pytest.mark.parametrize("batch_first", [False, True])
def test_the_same_bits(name: str, options: dict[str, Any], batch_first: bool) -> None:
    """Each call three times, so that it is remembered: with states and without, batched and not, packed, masked."""
    layer = pair(name, **options, batch_first=batch_first)[1].eval()
    x, hx, one = rand(B, B, I), initial(layer), initial(layer, None)
    rows, lengths = pack_sequence([rand(4, I), rand(2, I), rand(1, I)]), torch.tensor([2, 0, 3])
    calls = [(x,), (x, hx), (x[0], one), (x[:1, :1],), (x, hx, lengths), (rows, hx), (x, None, None, None, True)]
    with torch.no_grad():
        want = [layer(*call) for call in calls]
        with fusedrnn.frozen(layer) as same_layer:
            assert same_layer is layer
            for _ in range(3):
                assert all(same(layer(*call), out) for call, out in zip(calls, want, strict=True))
    assert "_pack" not in vars(layer)


@needs_kernel
@each_layer
def test_a_shape_seen_before_goes_straight_to_the_kernel(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = pair(name)[1].eval()
    x, hx = rand(1, 1, I), initial(layer, 1)
    checked = count(monkeypatch, checks, "contents")
    with fusedrnn.frozen(layer), torch.inference_mode():
        for _ in range(5):
            _, hx = layer(x, hx)
        assert len(checked) == 1
        layer(rand(2, 1, I), hx)
        assert len(checked) == 2
        with fusedrnn.use_backend("reference"):
            layer(x, hx)
            layer(x, hx)
        assert len(checked) == 4


@needs_kernel
def test_options_that_the_direct_way_does_not_know_keep_it_shut(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = pair("GRU")[1].eval()
    options, ran = layer._options(), count(monkeypatch, _Pack, "_direct")
    with torch.no_grad():
        for more, times in (({}, 1), ({"noise": 0.0}, 1), ({"noise": 0.1}, 0)):
            monkeypatch.setattr(layer, "_options", lambda more=more: {**options, **more})
            pack = _Pack(layer)
            ran.clear()
            for _ in range(2):
                pack.run(layer, rand(1, 1, I), None, None, None, False, None)
            assert len(ran) == times


def test_what_is_wrong_is_said_as_outside() -> None:
    layer = pair("LSTM")[1].eval()
    x, (h, c) = rand(1, 1, I), initial(layer, 1)
    with fusedrnn.frozen(layer), torch.no_grad():
        for _ in range(2):
            layer(x, (h, c))
        for hx, kind, text in (
            (h, TypeError, "Expected hx to be a tuple"),
            ((h,), RuntimeError, "lstm expects two hidden states"),
            ((h, c[..., :1]), RuntimeError, r"Expected hidden\[1\] size"),
            ((h, c.float()), ValueError, "Expected hx of the input's dtype"),
        ):
            with pytest.raises(kind, match=text):
                layer(x, hx)
        with pytest.raises(ValueError, match="RNN input dtype"):
            layer(x.float(), (h, c))


@each_layer
def test_parametrizations_are_evaluated_once(name: str) -> None:
    layer = pair(name)[1].eval()
    parametrizations.weight_norm(layer, "weight_hh_l0")
    parametrizations.spectral_norm(layer, "weight_ih_l0")
    runs: list[None] = []
    layer.parametrizations.weight_hh_l0[0].register_forward_hook(lambda *_: runs.append(None))
    x = rand(1, 1, I)
    with torch.no_grad():
        want = layer(x)
        runs.clear()
        with fusedrnn.frozen(layer):
            assert all(same(layer(x), want) for _ in range(3))
            assert len(runs) == 1
        layer(x)
    assert len(runs) == 2


@each_layer
@pytest.mark.parametrize("packed", [False, True])
def test_autocast_casts_once(name: str, packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = pair(name, dtype=torch.float)[1].eval()
    x: Any = rand(2, 1, I).float()
    x = pack_sequence([x[:, 0]]) if packed else x
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        want = layer(x)
        with fusedrnn.frozen(layer):
            assert same(layer(x), want)
            before = [id(w) for w in layer._weights(x.data if packed else x, [], packed)]
            assert same(layer(x), want)
            assert before == [id(w) for w in layer._weights(x.data if packed else x, [], packed)]


@each_layer
def test_training_is_refused(name: str) -> None:
    layer = pair(name)[1]
    x = rand(T, B, I)
    with fusedrnn.frozen(layer):
        with pytest.raises(RuntimeError, match=rf"{name}: frozen, and in training mode: call model.eval\(\), or leave"):
            layer(x)
        layer.eval()
        with pytest.raises(RuntimeError, match=r"gradients are on and its weights require one: run it under torch.no"):
            layer(x)
        with torch.no_grad():
            layer(x)
    layer.requires_grad_(False)
    leaf = x.clone().requires_grad_()
    (want,) = torch.autograd.grad(layer(leaf)[0].sum(), leaf)
    with fusedrnn.frozen(layer):  # of what is not trained, gradients may be asked
        for _ in range(2):
            assert torch.equal(torch.autograd.grad(layer(leaf)[0].sum(), leaf)[0], want)
    layer.requires_grad_().train()(x)[0].sum().backward()
    assert layer.weight_hh_l0.grad is not None


def test_everything_is_restored() -> None:
    """After an exception too; blocks nest, and threads leave in any order."""
    model = nn.Sequential(fusedrnn.GRU(I, H), fusedrnn.LSTM(H, H)).eval()
    before = [vars(m).copy() for m in model]
    with pytest.raises(KeyError), fusedrnn.frozen(model):
        raise KeyError
    with fusedrnn.frozen(model):
        with fusedrnn.frozen(model[0]):
            pass
        with pytest.raises(RuntimeError, match="frozen"):
            model[0](torch.randn(T, B, I))
    assert [vars(m) for m in model] == before

    first, second = fusedrnn.frozen(model), fusedrnn.frozen(model)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    with pytest.raises(RuntimeError, match="frozen"):
        model[0](torch.randn(T, B, I))
    second.__exit__(None, None, None)
    assert [vars(m) for m in model] == before


def test_threads() -> None:
    layer = pair("GRU")[1].eval()
    x, wrong = rand(3, 1, I), []
    with torch.no_grad():
        want = layer(x)

    def serve() -> None:
        with fusedrnn.frozen(layer), torch.no_grad():
            wrong.extend(i for i in range(200) if not same(layer(x), want))

    threads = [threading.Thread(target=serve) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert "_pack" not in vars(layer)


def test_copies_and_given_weights_are_not_frozen(fresh_graphs: None) -> None:
    layer = pair("GRU")[1].eval()
    other = {name: p.detach() * 2 for name, p in layer.named_parameters()}
    x = rand(T, B, I)
    with torch.no_grad():
        want = torch.func.functional_call(layer, other, (x,))
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        with fusedrnn.frozen(layer):
            for _ in range(3):
                assert same(torch.func.functional_call(layer, other, (x,)), want)
            twins = (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)))
            plain = compiled(x)
        assert same(compiled(x), plain)
    for twin in twins:
        assert twin._pack is None
        twin.train()(x)


@needs_kernel
def test_no_more_shapes_are_remembered_than_there_is_use_for(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = pair("RNN")[1].eval()
    pack = _Pack(layer)
    monkeypatch.setitem(vars(layer), "_pack", pack)
    with torch.no_grad():
        for steps in range(1, 200):
            layer(rand(steps, 1, I))
    assert 0 < len(pack.direct) <= 64


def test_errors() -> None:
    with pytest.raises(TypeError, match=r"expected a torch.nn.Module, got int"), fusedrnn.frozen(3):
        pass
    with pytest.raises(ValueError, match=r"fusedrnn.convert\(model\) makes"), fusedrnn.frozen(nn.GRU(I, H)):
        pass
    assert modules._Layer._pack is None
