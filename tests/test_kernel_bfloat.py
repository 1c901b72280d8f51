"""The CPU kernel in bfloat16: in float32 inside, and by AMX where there is one and nothing is kept for backward."""

from __future__ import annotations

from collections.abc import Iterator

import kernel_cases
import kernel_check
import pytest
import torch
from bare import Bare
from torch import Tensor

from fusedrnn import ops
from fusedrnn.spec import CellSpec

pytestmark = pytest.mark.skipif(ops.missing is not None, reason=f"needs the compiled ops: {ops.missing}")
needs_amx = pytest.mark.skipif(
    ops.instruction_set != "amx", reason=f"needs AMX for bfloat16; the kernel runs on {ops.instruction_set}"
)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("directions", [1, 2])
def test_agrees_with_the_reference(cell: CellSpec, directions: int, masked: bool) -> None:
    for size in (*kernel_cases.SIZES, *kernel_cases.SHARED):
        kernel_check.check_bfloat(kernel_cases.make(cell, directions, size, masked, masked))


def _in_bfloat16(cell: CellSpec, save: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Results in bfloat16, and those of the same call in float32, rounded."""
    case = kernel_cases.make(cell, 2, (9, 6, 5, 20), True, True)
    x, h0, *rest = (t.bfloat16() for t in (case.x, *case.states, *case.weights))
    c0, weights = (rest[0], rest[1:]) if len(case.states) == 2 else (None, rest)
    low = ops.layer(x, h0, c0, weights, case.lengths, case.reset, cell.code, True, save, True)
    wide = [None if t is None else t.float() for t in (x, h0, c0)]
    full = ops.layer(*wide, [w.float() for w in weights], case.lengths, case.reset, cell.code, True, save, True)
    for found, expected in zip(low[:4], full[:4], strict=True):
        assert found.dtype == torch.bfloat16
        yield found, expected.bfloat16()


@pytest.mark.parametrize("save", [True, False])
def test_bfloat16_is_computed_and_carried_in_float32(cell: CellSpec, save: bool) -> None:
    if ops.instruction_set == "amx" and not save:
        pytest.skip("AMX multiplies bfloat16: the next test")
    assert all(torch.equal(found, expected) for found, expected in _in_bfloat16(cell, save))


@pytest.mark.parametrize("save", [True, False])
@pytest.mark.parametrize("rates", [(1.0, 0.0, 0.0), (0.3, 0.0, 0.0), (0.0, 0.0, 0.5)])
def test_noise_in_bfloat16_is_that_of_float32(cell: CellSpec, rates: tuple[float, ...], save: bool) -> None:
    """With AMX too, whose loop has none: a pass that keeps nothing for backward must not leave it out."""
    torch.manual_seed(0)
    G = len(cell.gates)
    gates_x, h0, w = (torch.randn(size) for size in ((5, 3, 1, G * 20), (1, 3, 20), (1, G * 20, 20)))
    low = [t.bfloat16() for t in (gates_x, h0, w)]
    key = torch.tensor([3, 7])

    def scan(x: Tensor, h: Tensor, weight: Tensor) -> list[Tensor]:
        c = h if len(cell.states) == 2 else None
        return list(ops.scan(x, h, c, weight, *[None] * 6, key, rates, cell.code, 1, save))

    for found, expected in zip(scan(*low), scan(*(t.float() for t in low)), strict=True):
        assert found.dtype == torch.bfloat16
        assert torch.equal(found, expected.bfloat16())


@needs_amx
def test_amx_multiplies_bfloat16_in_inference(cell: CellSpec) -> None:
    """Its product reads a rounded h, which shows in some result of each state."""
    assert all(not torch.equal(found, expected) for found, expected in _in_bfloat16(cell, False) if found.numel())


@needs_amx
@pytest.mark.parametrize("function", ["sigmoid", "tanh"])
def test_gates_of_bfloat16_are_rounded_rightly(function: str) -> None:
    """Every bfloat16: off by half a unit in the last place, and by a 2^-16th of the value that was rounded."""
    x = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16)
    found, truth = torch.ops.fusedrnn.pointwise(x, function == "tanh").double(), getattr(torch, function)(x.double())
    assert torch.equal(found.isnan(), x.isnan())
    normal = truth.abs() > 1e-37
    half = 2.0 ** (truth[normal].abs().log2().floor() - 8)
    assert float(((found - truth)[normal].abs() / (half + truth[normal].abs() * 2**-16)).max()) <= 1
    assert float(found[truth.abs() <= 1e-37].abs().max()) <= 1.1e-37


def test_an_infinite_input_in_bfloat16_spoils_no_other_unit(cell: CellSpec) -> None:
    ours = Bare(cell, 1, 17, backend="cpu").bfloat16()
    x = torch.randn(4, 2, 1)
    x[2, 1, 0] = float("-inf")
    with torch.no_grad():
        found, wide = ours(x.bfloat16())[0], ours.double()(x.double())[0]
    assert torch.equal(found.isnan(), wide.isnan())
    assert not found[:, 0].isnan().any()
