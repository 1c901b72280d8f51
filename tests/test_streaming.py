"""One step, or a few, at a time with the state carried on: the run over all steps, to rounding.

Not bit for bit, on no backend: how many rows a matrix product has decides the order in which it adds.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from close import assert_same
from pairs import LAYERS, B, I, initial, needs_kernel, pair, rand, tensors

import fusedrnn

each_backend = pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=needs_kernel)])
STEPS = 48


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
