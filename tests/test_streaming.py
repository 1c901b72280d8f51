"""One step, or a few, at a time with the state carried on: the run over all steps.

Bit for bit by the CPU kernel in float64. Elsewhere to rounding: there, how many rows a matrix product has decides the
order in which it adds.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from close import assert_same
from pairs import LAYERS, B, I, initial, needs_kernel, pair, rand, tensors
from test_kernel import python, supported

import fusedrnn

each_backend = pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=needs_kernel)])
STEPS = 48
SIZES = ((1, 3), (3, 1), (17, 5), (64, 33), (128, 300), (200, 64), (300, 7))  # H, I


@pytest.mark.parametrize("name", LAYERS)
@each_backend
@pytest.mark.parametrize("steps", [1, 8])
@pytest.mark.parametrize("frozen", [False, True])
def test_steps_equal_the_whole(name: str, backend: str, steps: int, frozen: bool) -> None:
    layer = pair(name, I, 65, num_layers=2, backend=backend)[1].eval()
    x, state = rand(STEPS, B, I), initial(layer)

    def stream(state: Any) -> list[torch.Tensor]:
        outputs = []
        for part in x.split(steps):
            y, state = layer(part, state)
            outputs.append(y)
        return [torch.cat(outputs), *tensors([state])]

    with torch.no_grad():
        want = tensors(layer(x, state))
        if frozen:
            with fusedrnn.frozen(layer):
                found, again = stream(state), stream(state)
        else:
            found, again = stream(state), stream(state)
    assert_same(found, want)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


@needs_kernel
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_bits_do_not_depend_on_what_else_a_call_computes(name: str, bias: bool) -> None:
    """Steps, rows, threads, gradients: whatever is beside it, an output of the CPU kernel in float64 stays the same."""
    for H, features in SIZES:
        layer = pair(name, features, H, num_layers=2, bias=bias, backend="cpu")[1]
        for rows in (1, 3, 8, 40):
            x, state = rand(12, rows, features), initial(layer, rows)
            whole = tensors(layer(x, state))
            with torch.no_grad():
                for steps, threads in ((1, 1), (1, 2), (5, 1), (5, 2), (12, 4)):
                    assert _equal(_stream(layer, x, state, steps, threads), whole), (H, features, rows, steps, threads)
                alone = torch.cat([layer(part, _rows(state, i))[0] for i, part in enumerate(x.split(1, 1))], 1)
            assert torch.equal(alone, whole[0]), (H, features, rows)


@needs_kernel
@pytest.mark.parametrize("name", LAYERS)
def test_bits_of_both_directions_do_not_depend_on_the_batch(name: str) -> None:
    layer = pair(name, 33, 65, bidirectional=True, backend="cpu")[1]
    x, lengths = rand(12, 9, 33), torch.arange(4, 13)
    with torch.no_grad():
        whole = layer(x, lengths=lengths)[0]
        for row, length in enumerate(lengths.tolist()):
            alone = layer(x[:length, row : row + 1].contiguous())[0]
            assert torch.equal(alone, whole[:length, row : row + 1]), row


@pytest.mark.slow
@needs_kernel
@pytest.mark.parametrize("split", ["batch", "columns"])
def test_bits_by_every_instruction_set_and_split(split: str) -> None:
    again = f"import sys, pytest; sys.exit(pytest.main(['-q', '-k', 'bits and not every', {__file__!r}]))"
    for isa in supported():
        assert "9 passed" in python(again, FUSEDRNN_ISA=isa, FUSEDRNN_SPLIT=split)


def _stream(layer: Any, x: torch.Tensor, state: Any, steps: int, threads: int) -> list[torch.Tensor]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        outputs = []
        for part in x.split(steps):
            y, state = layer(part, state)
            outputs.append(y)
    finally:
        torch.set_num_threads(before)
    return [torch.cat(outputs), *tensors([state])]


def _rows(state: Any, row: int) -> Any:
    if isinstance(state, tuple):
        return tuple(_rows(t, row) for t in state)
    return state[:, row : row + 1].contiguous()


def _equal(found: list[torch.Tensor], want: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, want, strict=True))
