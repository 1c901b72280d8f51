"""torch.compile, torch.export, compiled autograd, FakeTensor and opcheck: the recurrence as one op of a graph."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from bare import B, Bare, H, I, T, initial, label, scan_arguments
from pairs import needs_kernel
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call, grad, jvp, stack_module_state, vmap
from torch.testing import assert_close
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from fusedrnn import autograd, backends, ops
from fusedrnn.spec import GRU, LSTM, RNN_TANH, CellSpec

pytestmark = [pytest.mark.usefixtures("fresh_graphs"), needs_kernel]
SHAPES = ((6, 3), (9, 4), (17, 2), (30, 8), (5, 16))


def masks(steps: int = T, rows: int = B) -> tuple[Tensor, Tensor]:
    return torch.randint(0, steps + 1, (rows,)), torch.rand(steps, rows) < 0.2


def calls(graph: torch.fx.Graph) -> list[bool]:
    """`save` of every call of the recurrence in a graph."""
    return [node.args[14] for node in graph.nodes if node.target is ops.scan]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "how", "masked", "compiler"),
    [
        (GRU, {}, False, "inductor"),
        (GRU, {"bidirectional": True}, True, "aot_eager"),
        (LSTM, {"num_layers": 2, "bidirectional": True}, True, "aot_eager"),
        (LSTM, {"recompute": True}, True, "aot_eager"),
        (RNN_TANH, {"bias": False}, False, "aot_eager"),
    ],
    ids=label,
)
def test_compile_of_training_for_all_shapes(spec: CellSpec, how: dict[str, Any], masked: bool, compiler: str) -> None:
    layer, counter = Bare(spec, **how), CompileCounterWithBackend(compiler)

    def loss(x: Tensor, lengths: Tensor | None, reset: Tensor | None, hx: Any) -> Tensor:
        return sum(o.sin().sum() for o in layer(x, lengths, reset, hx))

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend=counter)
    frames = 0
    for steps, rows in SHAPES:
        x = torch.randn(steps, rows, I, requires_grad=True)
        args = (x, *(masks(steps, rows) if masked else (None, None)), initial(layer, rows))
        leaves = [x, *layer.parameters()]
        found, want = (torch.autograd.grad(f(*args), leaves) for f in (compiled, loss))
        assert_close(found, want, atol=1e-5, rtol=1e-4)
        frames = frames or counter.frame_count
    assert counter.frame_count == frames, "a new shape compiled anew"


def test_compile_of_inference_keeps_nothing() -> None:
    layer, seen = Bare(GRU).eval(), []

    def compiler(graph: torch.fx.GraphModule, _: Any) -> Any:
        seen.append(graph)
        return graph.forward

    x = torch.randn(T, B, I)
    with torch.no_grad():
        assert_close(torch.compile(layer, fullgraph=True, backend=compiler)(x), layer(x))
    assert calls(seen[0].graph) == [False]


def transformed(kind: str) -> tuple[Any, Any, Tensor]:
    layers = [Bare(GRU) for _ in range(3)]
    layer, x = layers[0], torch.randn(3, T, B, I)
    p = {name: t.detach() for name, t in layer.named_parameters()}

    def run(p: Any, x: Tensor) -> Tensor:
        return functional_call(layer, p, (x,))[0]

    def loss(p: Any, x: Tensor) -> Tensor:
        return run(p, x).pow(2).sum()

    ensemble, _ = stack_module_state(layers)
    return {
        "per_sample": (lambda p, x: vmap(grad(loss), (None, 0))(p, x), p, x),
        "grad": (lambda p, x: grad(loss)(p, x), p, x[0]),
        "vmap": (lambda p, x: vmap(run, (None, 0))(p, x), p, x),
        "ensemble": (lambda p, x: vmap(grad(loss), (0, None))(p, x), ensemble, x[0]),
        "jvp": (lambda p, x: jvp(lambda x: run(p, x), (x,), (x,))[1], p, x[0]),
    }[kind]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["per_sample", "grad", "vmap", "ensemble", "jvp"])
def test_compile_of_transforms(kind: str) -> None:
    f, p, x = transformed(kind)
    assert_close(torch.compile(f, fullgraph=True, backend="aot_eager")(p, x), f(p, x))


@pytest.mark.slow
def test_compile_of_training_through_vmap() -> None:
    layers = [Bare(GRU) for _ in range(3)]
    params, _ = stack_module_state(layers)

    def f(x: Tensor) -> Tensor:
        return vmap(lambda p, x: functional_call(layers[0], p, (x,))[0], (0, None))(params, x).pow(2).sum()

    x, leaves = torch.randn(T, B, I), list(params.values())
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    assert_close(torch.autograd.grad(compiled(x), leaves), torch.autograd.grad(f(x), leaves))


@pytest.mark.xfail(raises=RuntimeError, reason="AOTAutograd has no double backward for any op; eager has")
def test_compile_of_double_backward() -> None:
    layer, x = Bare(GRU), torch.randn(T, B, I, requires_grad=True)
    y = torch.compile(layer, backend="aot_eager")(x)[0]
    (g,) = torch.autograd.grad(y.pow(2).sum(), x, create_graph=True)
    g.sum().backward()


@pytest.mark.slow
@pytest.mark.parametrize("recompute", [False, True])
def test_compiled_autograd(recompute: bool) -> None:
    layer, x = Bare(LSTM, recompute=recompute), torch.randn(T, B, I, requires_grad=True)
    with torch._dynamo.compiled_autograd._enable(torch.compile(fullgraph=True, backend="aot_eager")):
        layer(x)[0].pow(2).sum().backward()
    assert_close(x.grad, torch.autograd.grad(layer(x)[0].pow(2).sum(), x)[0])


@pytest.mark.parametrize("how", ["hooks", "selective"])
def test_compile_of_checkpoint(how: str) -> None:
    layer, x = Bare(LSTM, bidirectional=True), torch.randn(T, B, I, requires_grad=True)

    def policy(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        return CheckpointPolicy.MUST_SAVE if op is ops.scan else CheckpointPolicy.PREFER_RECOMPUTE

    def contexts() -> Any:
        return create_selective_checkpoint_contexts(policy)

    extra = {"context_fn": contexts} if how == "selective" else {}

    def loss(x: Tensor) -> Tensor:
        return checkpoint(lambda x: layer(x)[0], x, use_reentrant=False, **extra).pow(2).sum()

    leaves = [x, *layer.parameters()]
    found = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(x), leaves)
    assert_close(found, torch.autograd.grad(layer(x)[0].pow(2).sum(), leaves))


@pytest.mark.slow
@pytest.mark.parametrize(("strict", "grad_mode"), [(False, True), (True, False)])
def test_export_for_any_time_and_batch(strict: bool, grad_mode: bool) -> None:
    layer = Bare(LSTM, num_layers=2, bidirectional=True).eval()
    dims = {0: torch.export.Dim("t", min=1, max=4096), 1: torch.export.Dim("b", min=1, max=4096)}
    with torch.set_grad_enabled(grad_mode):
        program = torch.export.export(layer, (torch.randn(7, 3, I),), dynamic_shapes=(dims,), strict=strict)
    assert calls(program.graph) == [False, False], "a program computes no gates where it only infers"
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    for run in (program, torch.export.load(buffer), program.run_decompositions()):
        for steps, rows in ((1, 1), (11, 5), (300, 2)):
            x = torch.randn(steps, rows, I)
            assert_close(run.module()(x), layer(x))


def test_exported_program_takes_masks_and_trains() -> None:
    layer, dim = Bare(GRU), torch.export.Dim
    t, b = dim("t", min=1, max=4096), dim("b", min=1, max=4096)
    dynamic = ({0: t, 1: b}, {0: b}, {0: t, 1: b})
    program = torch.export.export(layer, (torch.randn(7, 3, I), *masks(7, 3)), dynamic_shapes=dynamic)
    args = (torch.randn(20, 5, I, requires_grad=True), torch.tensor([20, 0, 3, 5, 7]), torch.rand(20, 5) < 0.3)
    found, want = program.module()(*args)[0], layer(*args)[0]
    assert_close(found, want)
    assert_close(*(torch.autograd.grad(y.sin().sum(), args[0]) for y in (found, want)))


def test_exported_program_under_vmap() -> None:
    layer, x = Bare(GRU), torch.randn(4, T, B, I)
    with torch.no_grad():
        program = torch.export.export(layer, (x[0],)).module()
        assert_close(vmap(lambda x: program(x)[0])(x), torch.stack([layer(v)[0] for v in x]))


@pytest.mark.xfail(
    raises=RuntimeError, reason="torch.func.grad refuses what register_autograd makes; layers go by Scan"
)
def test_func_grad_of_the_bare_op() -> None:
    args = scan_arguments(GRU, dtype=torch.float32)
    rest = (*args[1:], *[None] * 6, [], GRU.code, 2, True)
    grad(lambda gates_x: ops.scan(gates_x, *rest)[0].sum())(args[0])


@pytest.mark.slow
@pytest.mark.parametrize(("spec", "masked"), [(GRU, False), (LSTM, True), (RNN_TANH, True)], ids=label)
def test_opcheck(spec: CellSpec, masked: bool) -> None:
    lengths, reset = (torch.tensor([[6, 2, 0]] * 2), torch.rand(T, B, 2) < 0.3) if masked else (None, None)
    rest = (lengths, reset, None, None, None, None, [], spec.code, 2)
    for wanted, save in ((False, False), (False, True), (True, True)):
        args = scan_arguments(spec, dtype=torch.float32, requires_grad=wanted)
        torch.library.opcheck(ops.scan, (*args, *rest, save))
    args = [None if t is None else t.detach() for t in args]
    y, hn, gates, cs, cn = (t.detach() for t in ops.scan(*args, *rest, True))
    lstm = spec is LSTM
    upstream = (torch.randn_like(y), torch.randn_like(hn), None, None, torch.randn_like(cn) if lstm else None)
    saved = (gates, y, args[1], cs if lstm else None, args[2], args[3])
    torch.library.opcheck(ops.scan_backward, (*upstream, *saved, lengths, reset, spec.code, 2))


@pytest.mark.parametrize("spec", [GRU, LSTM, RNN_TANH], ids=label)
def test_fakes_have_the_shapes_of_the_ops(spec: CellSpec) -> None:
    """Of `layer` and its adjoint, whose kept values are opaque; the other two are opcheck's."""
    weights = [p.detach() for p in Bare(spec, bidirectional=True).parameters()]
    x, h0 = torch.randn(T, B, I), torch.randn(2, B, H)
    lstm = spec is LSTM
    for save, states in ((False, False), (False, True), (True, False)):
        args = (x, h0, h0 if lstm else None, weights, None, None, spec.code, True, save, states)
        real = ops.layer(*args)
        with FakeTensorMode(allow_non_fake_inputs=True):
            fake = ops.layer(*args)
        assert [(t.shape, t.dtype) for t in real[:4]] == [(t.shape, t.dtype) for t in fake[:4]]
    y, hn, cs, _, kept = real
    for wanted in (7, 1, 2, 4):
        args = (torch.randn_like(y), hn, None, None, x, h0, h0 if lstm else None, weights, y, cs, kept, None, None)
        real = ops.layer_backward(*args, spec.code, True, wanted)
        with FakeTensorMode(allow_non_fake_inputs=True):
            fake = ops.layer_backward(*args, spec.code, True, wanted)
        assert [(t.shape, t.dtype) for t in real] == [(t.shape, t.dtype) for t in fake]


def test_layers_without_data() -> None:
    with FakeTensorMode():
        layer = Bare(LSTM, backend="cpu")
        layer(torch.randn(T, B, I))[0].sum().backward()
        assert layer.weight_hh_l0.grad.shape == (4 * H, H)
    for given in ((), masks()):
        layer = Bare(GRU, device="meta")
        x = torch.empty(T, B, I, device="meta", requires_grad=True)
        layer(x, *(mask.to("meta") for mask in given))[0].sum().backward()
        assert layer.weight_hh_l0.grad.is_meta


@pytest.mark.slow
def test_one_formula_serves_a_kernel_in_python() -> None:
    """What a kernel in another language will be: the same schema, with the fake and the formula that are there."""
    schema = ops.SCHEMAS[0].replace("scan(", "scan_in_python(", 1)
    library = torch.library.Library("fusedrnn", "FRAGMENT")
    library.define(schema)
    library.impl("scan_in_python", lambda *args: tuple(t.clone() for t in ops.scan(*args)), "CPU")
    torch.library.register_fake("fusedrnn::scan_in_python", ops._scan_fake, lib=library)
    torch.library.register_autograd(
        "fusedrnn::scan_in_python", autograd._backward, setup_context=autograd._setup, lib=library
    )
    gates_x, h0, _, weight, bias = scan_arguments(GRU, dtype=torch.float32, requires_grad=True)

    def loss(op: Any) -> Any:
        return lambda *args: op(*args, *[None] * 6, [], GRU.code, 2, True)[0].sin().sum()

    args = (gates_x, h0, None, weight, bias)
    leaves = [gates_x, h0, weight, bias]
    want = torch.autograd.grad(loss(ops.scan)(*args), leaves)
    f = loss(torch.ops.fusedrnn.scan_in_python.default)
    for run in (f, torch.compile(f, fullgraph=True, dynamic=True, backend="aot_eager")):
        assert_close(torch.autograd.grad(run(*args), leaves), want)


@pytest.mark.parametrize("spec", [GRU, LSTM], ids=label)
def test_compile_under_autocast(spec: CellSpec) -> None:
    layer, x = Bare(spec), torch.randn(T, B, I, requires_grad=True)

    def run(x: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast("cpu", torch.bfloat16):
            return layer(x)

    found, want = torch.compile(run, fullgraph=True, backend="aot_eager")(x), run(x)
    assert {o.dtype for o in found} == {torch.float32 if spec is GRU else torch.bfloat16}
    assert_close(found, want, atol=0.02, rtol=0.02)
    (g,) = torch.autograd.grad(found[0].float().sum(), layer.weight_hh_l0)
    assert g.dtype == torch.float32


def test_compiled_layer_keeps_the_backend_it_was_traced_with() -> None:
    layer, x = Bare(GRU), torch.randn(2, B, I)
    with torch.no_grad():
        with backends.use_backend("reference"):
            seen: list[Any] = []
            run = torch.compile(layer, fullgraph=True, backend=lambda g, _: (seen.append(g), g.forward)[1])
            assert_close(run(x), layer(x))
        assert calls(seen[0].graph) == []
        assert_close(run(x), layer(x))
