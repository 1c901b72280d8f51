"""What torch cannot do says so, in the words of docs/beyond.md, and the way round given there is one."""

from __future__ import annotations

import pytest
import torch
from bare import Bare, scan_arguments
from close import assert_same
from pairs import B, I, T, needs_kernel, pair, rand

import fusedrnn
from fusedrnn import ops
from fusedrnn.spec import GRU

pytestmark = needs_kernel


def test_a_second_derivative_through_compile(fresh_graphs: None) -> None:
    layer, x = pair("GRU")[1], rand(T, B, I).requires_grad_()
    for run in (torch.compile(layer, backend="aot_eager"), layer):
        (slope,) = torch.autograd.grad(run(x)[0].square().sum(), x, create_graph=True)
        if run is not layer:
            with pytest.raises(RuntimeError, match=r"torch.compile with aot_autograd does not currently support do"):
                slope.sum().backward()
    slope.sum().backward()
    assert layer.weight_hh_l0.grad is not None


def test_grad_of_the_bare_op() -> None:
    args = scan_arguments(GRU, dtype=torch.float32)
    rest = (*args[1:], *[None] * 6, [], GRU.code, 2, True)
    with pytest.raises(RuntimeError, match="setup_context"):
        torch.func.grad(lambda gates_x: ops.scan(gates_x, *rest)[0].sum())(args[0])
    layer, x = Bare(GRU).double(), rand(T, B, I)
    leaf = x.clone().requires_grad_()
    want = torch.autograd.grad(layer(leaf)[0].sum(), leaf)
    assert_same([torch.func.grad(lambda x: layer(x)[0].sum())(x)], list(want))


class Resets(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = fusedrnn.GRU(I, 4)

    def forward(self, x: torch.Tensor, reset: torch.Tensor) -> torch.Tensor:
        return self.gru(x, reset=reset)[0]


@pytest.mark.slow
def test_reset_in_onnx() -> None:
    pytest.importorskip("onnxscript", reason="torch.onnx.export needs onnxscript")
    model, given = Resets().eval(), (torch.randn(T, B, I), torch.rand(T, B) < 0.3)
    with pytest.raises(
        Exception, match=r"ONNX has no recurrent operator with reset: export without it, or by torch.ex"
    ):
        torch.onnx.export(model, given, dynamo=True)
    torch.testing.assert_close(torch.export.export(model, given).module()(*given), model(*given))
