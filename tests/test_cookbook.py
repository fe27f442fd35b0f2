"""Run each recipe of the cookbook, and compare what it prints with the comment at its end."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import ROOT, mostly_long, skip_without_frameworks

pytestmark = pytest.mark.slow

COOKBOOK = ROOT / "samples" / "cookbook"
RECIPES = sorted(path.stem for path in COOKBOOK.glob("*.py") if not path.stem.startswith("_"))
INDEX = (ROOT / "docs" / "cookbook" / "index.md").read_text()


@pytest.mark.parametrize("recipe", mostly_long(RECIPES, "session_per_user"))
def test_a_recipe_prints_what_its_page_shows(recipe: str, tmp_path: Path) -> None:
    program = COOKBOOK / f"{recipe}.py"
    skip_without_frameworks(program.read_text())
    shown = program.read_text().partition("\n# prints:\n")[2]
    done = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, timeout=240, check=False, cwd=tmp_path, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [line.removeprefix("#").removeprefix(" ") for line in shown.splitlines()]
    assert shown


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_short_and_in_the_index(recipe: str) -> None:
    source = (COOKBOOK / f"{recipe}.py").read_text()
    title, empty, *about = (ast.get_docstring(ast.parse(source)) or "").splitlines()
    assert title.endswith(".")
    assert empty == ""
    assert 100 < len(" ".join(about)) < 650
    assert len(source.splitlines()) <= 65
    assert INDEX.count(f"](../../samples/cookbook/{recipe}.py)") == 1
