"""What the documents tell a reader to run does run: the recipes, and every block of Python in README and beyond.md."""

from __future__ import annotations

import re
import runpy
import warnings
from pathlib import Path

import pytest
from pairs import needs_kernel

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "docs" / "recipes").glob("*.py"))
pytestmark = [needs_kernel, pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_assert_what_they_say(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = recipe.read_text()
    assert len(text.splitlines()) < 60
    assert "\nassert " in text
    runpy.run_path(str(recipe), run_name="__main__")
    assert capsys.readouterr().out


def test_there_is_a_recipe_for_each_promise() -> None:
    names = {path.stem for path in RECIPES}
    assert names >= {"gradient_penalty", "dp_sgd", "rl_rollout", "streaming", "ensemble", "convert_a_model"}


@pytest.mark.parametrize("name", ["README.md", "docs/beyond.md"])
def test_blocks_of_python_run_in_order(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In one namespace, as a reader would paste them; their own asserts are the test."""
    monkeypatch.chdir(tmp_path)
    text = (ROOT / name).read_text()
    blocks = list(re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    assert blocks
    scope: dict[str, object] = {"__name__": "__main__"}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="torch")
        for block in blocks:
            lines = text[: block.start(1)].count("\n")
            exec(compile("\n" * lines + block[1], name, "exec"), scope)
