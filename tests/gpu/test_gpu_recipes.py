"""The recipes on a GPU, by its kernels: each makes its tensors on the default device, and asserts what it says."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch
from problems import DEVICE, REHEARSAL, products

import fusedrnn

RECIPES = sorted((Path(__file__).parents[2] / "docs" / "recipes").glob("*.py"))
pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its comparisons are of float32, so no product is to be taken in TF32."""
    if REHEARSAL and recipe.stem != "gradient_penalty":
        pytest.skip("one is enough for a rehearsal: over the stand-in some take a minute")
    torch.use_deterministic_algorithms(False)  # in which torch has no CTC loss on a GPU
    with torch.device(DEVICE), fusedrnn.use_backend("cuda"), products("ieee"):
        runpy.run_path(str(recipe), run_name="__main__")
    assert capsys.readouterr().out
