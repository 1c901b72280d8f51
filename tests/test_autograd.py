"""Derivatives of the layers and the recurrence: every order, every way in, and what a call keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bare import B, Bare, Count, H, I, T, gradients, initial, label, scan_arguments
from close import assert_same
from pairs import needs_kernel, rand
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import functional_call, jvp
from torch.utils._python_dispatch import TorchDispatchMode

from fusedrnn import autograd, ops, reference
from fusedrnn.spec import CELLS, GRU, LSTM, RNN_RELU, RNN_TANH, CellSpec

pytestmark = needs_kernel
DOUBLE = torch.double
MASKS = torch.tensor([6, 0, 3]), torch.tensor([[0, 0, 1], [0, 1, 0], [1, 0, 1], [0, 0, 1], [1, 0, 0], [0, 0, 0]]).bool()


def truth(layer: Bare, *args: Any) -> tuple[Tensor, ...]:
    """What `layer` returns, by autograd through the reference."""
    twin = Bare(layer.spec, layer.input_size, layer.hidden_size, **options(layer), backend="reference")
    return functional_call(twin, dict(layer.named_parameters()), args)


def options(layer: Bare) -> dict[str, Any]:
    return {name: getattr(layer, name) for name in ("num_layers", "bias", "bidirectional")}


@pytest.mark.parametrize(
    ("spec", "how"),
    [
        (GRU, {}),
        (GRU, {"bidirectional": True, "bias": False}),
        (GRU, {"recompute": True, "bidirectional": True}),
        (LSTM, {"bidirectional": True}),
        (LSTM, {"bias": False, "recompute": True}),
        (LSTM, {"num_layers": 2}),
        (RNN_TANH, {"bidirectional": True}),
        (RNN_TANH, {"recompute": True, "bias": False}),
        (RNN_RELU, {"bidirectional": True}),
    ],
    ids=label,
)
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_equal_autograd_through_the_reference(spec: CellSpec, how: dict[str, Any], masked: bool) -> None:
    layer = Bare(spec, **how, backend="cpu").double()
    x = torch.randn(T, B, I, dtype=DOUBLE, requires_grad=True)
    hx = initial(layer, requires_grad=True)
    for given in (hx, None):
        args = (x, *(MASKS if masked else (None, None)), given)
        leaves = [x, *(given or ()), *layer.parameters()]
        found, want = layer(*args), truth(layer, *args)
        assert_same(found, want)
        assert_same(gradients(found, leaves), gradients(want, leaves))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "how"),
    [
        (GRU, {}),
        (GRU, {"bidirectional": True, "recompute": True}),
        (LSTM, {"bidirectional": True}),
        (LSTM, {"recompute": True}),
        (RNN_TANH, {"bidirectional": True}),
        (RNN_RELU, {"bias": False}),
    ],
    ids=label,
)
@pytest.mark.usefixtures("one_thread")
def test_gradcheck_of_every_order_and_mode(spec: CellSpec, how: dict[str, Any]) -> None:
    """Reverse, reverse over reverse, forward mode and is_grads_batched, with respect to x, states and weights."""
    layer = Bare(spec, 2, 2, **how, backend="cpu").double()
    names, weights = zip(*layer.named_parameters(), strict=True)
    masks = torch.tensor([4, 2]), torch.tensor([[False, True], [False, True], [True, False], [False, True]])
    hx = initial(layer, 2, requires_grad=True)

    def f(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        given, w = rest[: len(hx)], rest[len(hx) :]
        return functional_call(layer, dict(zip(names, w, strict=True)), (x, *masks, given))

    args = (torch.randn(4, 2, 2, dtype=DOUBLE, requires_grad=True), *hx, *weights)
    assert gradcheck(f, args, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(f, args)


@pytest.mark.usefixtures("one_thread")
def test_gradgradcheck_without_masks_and_states() -> None:
    layer = Bare(GRU, 2, 2, backend="cpu").double()
    assert gradgradcheck(layer, (torch.randn(3, 2, 2, dtype=DOUBLE, requires_grad=True),))


@pytest.mark.parametrize("spec", [GRU, LSTM, RNN_TANH], ids=lambda spec: spec.name)
def test_third_derivative(spec: CellSpec) -> None:
    layer, found = Bare(spec, 2, 2, backend="cpu").double(), []
    x = torch.randn(3, 1, 2, dtype=DOUBLE, requires_grad=True)
    for f in (layer, layer.twin()):
        g = f(x)[0].pow(2).sum()
        for _ in range(3):
            (g,) = torch.autograd.grad(g.sin().sum(), x, create_graph=True)
        found.append(g)
    assert_same(found[:1], found[1:])


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("spec", CELLS, ids=lambda spec: spec.name)
def test_derivative_of_the_adjoint(spec: CellSpec, directions: int) -> None:
    """Against autograd through the reference's adjoint, with respect to all that it takes; rows of no steps too."""
    steps, rows, streams, units = 5, 4, 2 * directions, 3
    sequence, edge, lstm, kept = (steps, rows, streams, units), (streams, rows, units), spec is LSTM, len(spec.kept)
    lengths = torch.tensor([0, 2, steps, steps + 1]).expand(streams, -1)
    real = torch.arange(steps).view(-1, 1, 1, 1) < lengths.mT.unsqueeze(-1)
    reset = torch.rand(steps, rows, streams) < 0.4
    reset[0, 2], reset[2, 2] = True, True
    dy, dhn, y, h0, w = (
        rand(*sequence),
        rand(*edge),
        rand(*sequence),
        rand(*edge),
        rand(streams, len(spec.gates) * units, units) / 4,
    )
    gates, dgates = (rand(*sequence[:3], kept * units).sigmoid() if kept else None for _ in range(2))
    of_c = (rand(*sequence), rand(*edge), rand(*sequence), rand(*edge)) if lstm else (None,) * 4  # dcs, dcn, cs, c0
    for masks in ((None, None), (lengths, None), (None, reset), (lengths, reset)):
        found = []
        given = [dy, dhn, dgates, of_c[0], of_c[1], gates, y, h0, of_c[2], of_c[3], w]
        if masks[0] is not None:  # as forward writes them
            given = [torch.where(real, t, 0.0) if i in (5, 6, 8) and t is not None else t for i, t in enumerate(given)]
        for run in (ops.scan_backward, lambda *a: reference.scan_backward(*a[:13], spec, directions)):
            leaves = [None if t is None else t.clone().requires_grad_() for t in given]
            args = [t if t is not None or i != 5 else dy.new_empty(0) for i, t in enumerate(leaves)]
            out = [t for t in run(*args, *masks, spec.code, directions) if t.numel()]
            wanted = [t for t in leaves if t is not None]
            above = [t.detach().cos() for t in out]
            found.append(torch.autograd.grad(out, wanted, above, materialize_grads=True))
        assert_same(*found)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("spec", [GRU, LSTM, RNN_TANH], ids=lambda spec: spec.name)
def test_second_derivatives_are_batched(spec: CellSpec, bidirectional: bool) -> None:
    """By vmap over the gradient of a gradient, and by is_grads_batched."""
    layer = Bare(spec, bidirectional=bidirectional, backend="cpu").double()

    def penalty(x: Tensor) -> Tensor:
        return torch.func.grad(lambda x: layer(x)[0].square().sum())(x).square().sum()

    x = torch.randn(2, T, B, I, dtype=DOUBLE)
    mapped = torch.func.vmap(torch.func.grad(penalty))(x)
    assert_same([mapped], [torch.stack([torch.func.grad(penalty)(one) for one in x])])
    leaf = x[0].clone().requires_grad_()
    (g,) = torch.autograd.grad(layer(leaf)[0].square().sum(), leaf, create_graph=True)
    (found,) = torch.autograd.grad(g, leaf, x, is_grads_batched=True, retain_graph=True)
    want = [torch.autograd.grad(g, leaf, one, retain_graph=True)[0] for one in x]
    assert_same([found], [torch.stack(want)])


@pytest.mark.parametrize("recompute", [False, True])
def test_gradient_penalty_reaches_the_weights(recompute: bool) -> None:
    layer = Bare(LSTM, num_layers=2, bidirectional=True, recompute=recompute, backend="cpu").double()
    x, found = torch.randn(T, B, I, dtype=DOUBLE, requires_grad=True), []
    for f in (layer, layer.twin()):
        (g,) = torch.autograd.grad(f(x)[0].pow(2).sum(), x, create_graph=True)
        found.append(torch.autograd.grad(g.pow(2).sum(), list(layer.parameters())))
    assert_same(*found)


@pytest.mark.parametrize("recompute", [False, True])
def test_backward_in_an_autocast_region_of_a_layer_outside_it(recompute: bool) -> None:
    """The formula computes in the dtypes of what forward saved, also where autocast would have others."""
    layer = Bare(LSTM, recompute=recompute, backend="cpu")
    x, found = torch.randn(T, B, I), []
    for region in (False, True):
        y = layer(x)[0]
        with torch.autocast("cpu", torch.bfloat16, enabled=region):
            (g,) = torch.autograd.grad(y, layer.weight_hh_l0, torch.ones_like(y), create_graph=True)
        found.append((g, *torch.autograd.grad(g.pow(2).sum(), layer.weight_hh_l0)))
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_second_derivative_of_the_adjoint_in_an_autocast_region() -> None:
    gates_x, h0, _, weight, bias = scan_arguments(GRU, dtype=torch.float32)
    y, hn, gates, *_ = ops.scan(gates_x, h0, None, weight, bias, *[None] * 6, [], GRU.code, 2, True)
    leaves = [t.requires_grad_() for t in (gates, y, weight)]
    saved, found = (gates, y, h0, None, None, weight, None, None), []
    out = ops.scan_backward(y, hn, None, None, None, *saved, GRU.code, 2)[0]
    for region in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=region):
            found.append(torch.autograd.grad(out.sum(), leaves, retain_graph=True))
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_some_upstream_gradients_absent_and_some_expanded() -> None:
    layer = Bare(LSTM, bidirectional=True, backend="cpu").double()
    x = torch.randn(T, B, I, dtype=DOUBLE, requires_grad=True)
    leaves = [x, *layer.parameters()]
    for pick in (lambda y, h, c: y.sum(), lambda y, h, c: h.sum(), lambda y, h, c: c.sum(), lambda y, h, c: h[0].sum()):
        found, want = (torch.autograd.grad(pick(*f(x)), leaves) for f in (layer, layer.twin()))
        assert_same(found, want)


def test_inputs_of_any_stride() -> None:
    layer = Bare(LSTM, bidirectional=True, backend="cpu").double()
    x = torch.randn(B, I, T, dtype=DOUBLE).permute(2, 0, 1).requires_grad_()
    hx = tuple(torch.randn(H, B, 2, dtype=DOUBLE).permute(2, 1, 0).requires_grad_() for _ in range(2))
    lengths, reset = torch.tensor([[6, 9], [0, 9], [3, 9]])[:, 0], torch.rand(B, 2 * T).lt(0.3)[:, ::2].T
    leaves = [x, *hx, *layer.parameters()]
    out, want = layer(x, lengths, reset, hx), truth(layer, x, lengths, reset, hx)
    assert_same(out, want)
    assert_same(gradients(out, leaves), gradients(want, leaves))


def test_frozen_inputs_get_and_cost_no_gradient() -> None:
    for recompute in (False, True):
        layer = Bare(GRU, recompute=recompute, backend="cpu")
        x = torch.randn(T, B, I, requires_grad=True)
        layer.requires_grad_(False)
        layer(x)[0].sum().backward()
        assert x.grad is not None
        assert all(p.grad is None for p in layer.parameters())
        layer.bias_hh_l0.requires_grad_()
        (found,) = torch.autograd.grad(layer(x)[0].sum(), layer.bias_hh_l0)
        (want,) = torch.autograd.grad(layer.twin()(x)[0].sum(), layer.bias_hh_l0)
        torch.testing.assert_close(found, want)


class Watch(TorchDispatchMode):
    """The arguments of the adjoints that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (ops.layer_backward, ops.scan_backward):
            self.calls.append(args)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("leaves", "wanted"), [("x", 1), ("h", 2), ("w", 4), ("xw", 5), ("xhw", 7)])
def test_only_wanted_gradients_are_asked_of_the_op(leaves: str, wanted: int) -> None:
    layer = Bare(GRU, backend="cpu").requires_grad_("w" in leaves)
    x, h0 = torch.randn(T, B, I, requires_grad="x" in leaves), torch.randn(1, B, H, requires_grad="h" in leaves)
    with Watch() as watch:
        layer(x, hx=(h0,))[0].sum().backward()
    assert [args[-1] for args in watch.calls] == [wanted]


@pytest.mark.parametrize("recompute", [False, True])
def test_absent_upstream_gradients_are_not_made(recompute: bool) -> None:
    layer = Bare(LSTM, backend="cpu", recompute=recompute)
    for k in range(3):
        with Watch() as watch:
            layer(torch.randn(T, B, I))[k].sum().backward()
        (args,) = watch.calls
        assert [g is not None for g in args[:4]] == [k == 0, k == 1, False, k == 2]


@pytest.mark.parametrize("recompute", [False, True])
def test_each_weight_alone_in_first_and_second_order(recompute: bool) -> None:
    """Gradients of one weight, the others frozen."""
    layer = Bare(LSTM, bidirectional=True, backend="cpu", recompute=recompute).double()
    x = torch.randn(T, B, I, dtype=DOUBLE)
    for weight in layer.parameters():
        layer.requires_grad_(False)
        weight.requires_grad_()
        found = []
        for call in (layer, layer.twin()):
            (g,) = torch.autograd.grad(call(x)[0].pow(2).sum(), weight, create_graph=True)
            found.append([g, *torch.autograd.grad(g.pow(2).sum(), weight)])
        assert_same(*found)


def test_what_runs_and_what_is_kept() -> None:
    layer, x = Bare(LSTM, backend="cpu"), torch.randn(T, B, I)
    for context in (torch.no_grad, torch.inference_mode):
        with context(), Count() as count:
            assert not layer(x)[0].requires_grad
        assert count.seen == ["layer False"]
    with Count() as count:
        layer(x)[0].sum().backward()
    assert count.seen == ["layer True", "layer_backward"]
    with Count() as count:
        torch.autograd.grad(layer(x)[0].sum(), layer.weight_hh_l0, create_graph=True)
    assert count.seen == ["layer True", "scan_backward"], "create_graph must not leave the fused adjoint"
    with Count() as count:
        layer(x, recompute=True)[0].sum().backward()
    assert count.seen == ["layer False", "layer True", "layer_backward"]
    with torch.no_grad(), Count() as count:
        layer(x, recompute=True)
    assert count.seen == ["layer False"]
    with Count() as count:
        layer.requires_grad_(False)(x)
    assert count.seen == ["layer False"]


@pytest.mark.parametrize("spec", [GRU, LSTM, RNN_TANH], ids=lambda spec: spec.name)
def test_recompute_keeps_states_only(spec: CellSpec) -> None:
    layer, x = Bare(spec, 64, 64, backend="cpu"), torch.randn(100, 8, 64, requires_grad=True)
    own = {t.untyped_storage().data_ptr() for t in (x, *layer.parameters())}
    seen: dict[int, int] = {}

    def note(t: Tensor) -> Tensor:
        seen[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        layer(x, recompute=True)
    kept = sum(size for pointer, size in seen.items() if pointer not in own)
    assert round(kept / x.untyped_storage().nbytes(), 1) == len(spec.states)


def test_saved_tensors_go_through_hooks_and_version_checks() -> None:
    for recompute in (False, True):
        layer = Bare(GRU, recompute=recompute, backend="cpu")
        x = torch.randn(T, B, I, requires_grad=True)
        y = layer(x)[0]
        with torch.no_grad():
            layer.weight_hh_l0.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t.numpy(force=True), torch.from_numpy):
            y = layer(x)[0]
        torch.testing.assert_close(gradients((y,), [x]), gradients((layer(x)[0],), [x]))


def test_gradients_accumulate_and_a_layer_may_run_twice_in_a_graph() -> None:
    layer = Bare(GRU, I, I, backend="cpu").double()
    x = torch.randn(T, B, I, dtype=DOUBLE, requires_grad=True)
    leaves = [x, *layer.parameters()]
    assert_same(*(gradients(f(f(x)[0]), leaves) for f in (layer, layer.twin())))
    layer(x)[0].sum().backward()
    once = [t.grad.clone() for t in leaves]
    layer(x)[0].sum().backward()
    assert_same([t.grad for t in leaves], [2 * g for g in once])


def test_returned_states_have_gradients() -> None:
    """Of the LSTM's cell state at one inner step, in both ways of running it."""
    for recompute in (False, True):
        weights = Bare(LSTM, bidirectional=True).double()._flat_weights
        x = torch.randn(T, B, I, dtype=DOUBLE, requires_grad=True)
        args = (x, None, None, weights, *MASKS, LSTM, 2)
        found = autograd.layer(*args, recompute=recompute, states=True)[2]
        want = reference.layer(*args)[2]
        assert_same([found], [want])
        assert_same(gradients((found[2],), [x, *weights]), gradients((want[2],), [x, *weights]))


def test_states_are_returned_without_gradients_too(cell: CellSpec) -> None:
    weights = Bare(cell, bidirectional=True).double()._flat_weights
    x = torch.randn(T, B, I, dtype=DOUBLE)
    with torch.no_grad():
        found = autograd.layer(x, None, None, weights, *MASKS, cell, 2, states=True)
        want = reference.layer(x, None, None, weights, *MASKS, cell, 2)
    assert_same([t for t in found if t is not None], [t for t in want if t is not None])


def test_forward_mode_is_not_dropped() -> None:
    """Nor under no_grad, nor where only backward sees a tangent."""
    layer = Bare(GRU, backend="cpu").double()
    x, v = torch.randn(T, B, I, dtype=DOUBLE, requires_grad=True), torch.randn(T, B, I, dtype=DOUBLE)
    want = jvp(lambda x: layer.twin()(x)[0], (x.detach(),), (v,))[1]
    with torch.no_grad(), forward_ad.dual_level():
        found = forward_ad.unpack_dual(layer(forward_ad.make_dual(x, v))[0]).tangent
    assert_same([found], [want])
    y, up = layer(x)[0], torch.randn(T, B, H, dtype=DOUBLE)
    with forward_ad.dual_level():
        (g,) = torch.autograd.grad(y, x, forward_ad.make_dual(torch.ones_like(y), up), retain_graph=True)
        found = forward_ad.unpack_dual(g).tangent
    assert_same([found], torch.autograd.grad(y, x, up))


def test_adjoint_and_scan_agree_with_the_reference(cell: CellSpec) -> None:
    """The raw ops on four streams (two members), with upstream gradients of all that `scan` returns."""
    args = scan_arguments(cell, streams=4)
    lengths, reset = torch.tensor([[6, 3, 0], [5, 6, 1], [2, 6, 6], [4, 4, 4]]), torch.rand(T, B, 4) < 0.3
    found = ops.scan(*args, lengths, reset, None, None, None, None, [], cell.code, 2, True)
    want = reference.scan(*args, lengths, reset, cell, 2)
    assert_same(found, want)
    y, _, gates, cs, _ = want
    upstream = [torch.randn_like(t) if t.dim() > 1 else None for t in want]
    rest = (*upstream, gates, y, args[1], cs if cell is LSTM else None, args[2], args[3], lengths, reset)
    assert_same(ops.scan_backward(*rest, cell.code, 2), reference.scan_backward(*rest, cell, 2))


def test_scan_that_kept_nothing_says_so() -> None:
    gates_x, _, _, weight, bias = scan_arguments(GRU, requires_grad=True)
    y = ops.scan(gates_x, None, None, weight, bias, *[None] * 6, [], GRU.code, 2, False)[0]
    with pytest.raises(RuntimeError, match="pass save=True"):
        y.sum().backward()
