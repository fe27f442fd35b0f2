"""Test that SECURITY.md and the tests agree."""

import ast
import re
from pathlib import Path

import pytest

from ..conftest import ROOT

_ROW = re.compile(r"^\| (.+?) \| .+? \| `(tests/hostile/[\w.]+::\w+)` \|$", re.MULTILINE)
_OWN = Path(__file__).name


def rows() -> dict[str, str]:
    return {test: claim for claim, test in _ROW.findall((ROOT / "SECURITY.md").read_text())}


def test_each_claim_has_its_test_and_each_test_its_claim() -> None:
    tests = {}
    for file in sorted(path for path in (ROOT / "tests" / "hostile").glob("test_*.py") if path.name != _OWN):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                tests[f"tests/hostile/{file.name}::{node.name}"] = " ".join((ast.get_docstring(node) or "").split())
    assert rows() == tests
    assert len(tests) > 30


def test_every_claim_is_tested_by_make_test(request: pytest.FixtureRequest) -> None:
    collected = {item.nodeid.partition("[")[0] for item in request.session.items}
    if not {test.partition("::")[0] for test in rows()} <= {name.partition("::")[0] for name in collected}:
        pytest.skip("only a run of all of tests/hostile shows which of its tests are run")
    assert rows().keys() <= collected
