"""SECURITY.md and the tests say the same."""

import ast
import re
from pathlib import Path

from ..conftest import ROOT

_ROW = re.compile(r"^\| (.+?) \| .+? \| `(tests/hostile/[\w.]+::\w+)` \|$", re.MULTILINE)
_OWN = Path(__file__).name


def test_each_claim_has_its_test_and_each_test_its_claim() -> None:
    rows = {test: claim for claim, test in _ROW.findall((ROOT / "SECURITY.md").read_text())}
    tests = {}
    for file in sorted(path for path in (ROOT / "tests" / "hostile").glob("test_*.py") if path.name != _OWN):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                tests[f"tests/hostile/{file.name}::{node.name}"] = " ".join((ast.get_docstring(node) or "").split())
    assert rows == tests
    assert len(rows) > 30
