"""Test that each snippet can be sent alone, to sessions with plain Python."""

import ast
import builtins
import dis
import inspect
from types import CodeType, FunctionType

import pytest

from aca_sessions.client import snippets
from aca_sessions.client.snippets import files, interpreter, values

NAMES = sorted(
    name
    for module in (files, interpreter, values)
    for name, function in vars(module).items()
    if isinstance(function, FunctionType) and next(iter(inspect.signature(function).parameters), "") == "user"
)


def globals_of(code: CodeType) -> set[str]:
    """Return the global names that a function and the functions inside it read."""
    found = {step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return found.union(*(globals_of(inner) for inner in code.co_consts if isinstance(inner, CodeType)))


def test_all_snippets_are_known() -> None:
    assert len(NAMES) == 29


@pytest.mark.parametrize("name", NAMES)
def test_a_snippet_carries_all_that_it_uses(name: str) -> None:
    source, scope = snippets.source_of(name), {}
    exec(source, scope)
    assert callable(scope[name])
    assert globals_of(compile(source, "", "exec")) <= scope.keys() | vars(builtins).keys() | {"__module__", "__qualname__"}


@pytest.mark.parametrize("name", NAMES)
def test_a_snippet_is_python_3_9(name: str) -> None:
    ast.parse(snippets.source_of(name), feature_version=(3, 9))


@pytest.mark.parametrize("name", NAMES)
def test_a_snippet_carries_nothing_of_the_host(name: str) -> None:
    assert "source_of" not in snippets.source_of(name)
