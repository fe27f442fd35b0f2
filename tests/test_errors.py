"""Test that docs/reference/errors.md has all errors that the code has, and no others."""

import ast
import re
from collections.abc import Iterator
from importlib import import_module

import pytest

from aca_sessions import errors
from aca_sessions.contract.records import decode_problem, encode_problem
from aca_sessions.server.routing import _BY_ERRNO, to_problem

from .conftest import ROOT

PAGE = (ROOT / "docs" / "reference" / "errors.md").read_text()
PACKAGE = ROOT / "src" / "aca_sessions"
SAYS_NOTHING = {"status", "problem.status", "error.status_code", "error.name"}  # passed on from where the code was made


def rows(title: str) -> list[list[str]]:
    """Return the cells of the table below a heading, without its two lines of heads."""
    section = PAGE.partition(f"## {title}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def names(cell: str) -> list[str]:
    return re.findall(r"`(\w+)`", cell)


def calls(folders: tuple[str, ...], *functions: str) -> Iterator[tuple[object, list[object]]]:
    """Yield the first two arguments of each call of the functions: constants as their values, other expressions as source text."""
    for folder in folders:
        for path in sorted((PACKAGE / folder).rglob("*.py")):
            module = ".".join(("aca_sessions", *path.relative_to(PACKAGE).with_suffix("").parts))
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in functions and node.args:
                    yield module, [value_of(argument, module) for argument in node.args[:2]]


def value_of(argument: ast.expr, module: str) -> object:
    match argument:
        case ast.Constant():
            return argument.value
        case ast.Name(id=name) if name.isupper():
            return getattr(import_module(module), name)
    return ast.unparse(argument)


def served_codes() -> set[tuple[int, str]]:
    found = {(given[0], given[1]) for _, given in calls(("server", "contract"), "ProblemError", "ServiceError") if len(given) == 2}
    found = {(status, code) for status, code in found if isinstance(status, int)}
    found |= {(status, code) for status, code, _ in _BY_ERRNO.values()}
    malformed = encode_problem_status_of_a_malformed_body()
    return found | {malformed, (400, "RequestInvalid")}


def encode_problem_status_of_a_malformed_body() -> tuple[int, str]:
    from aca_sessions.contract.records import MalformedBodyError

    error = MalformedBodyError("$", "it is no JSON")
    assert encode_problem(error)["status"] == error.status
    return error.status, error.code


def exceptions() -> dict[str, type[Exception]]:
    return {name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)}


def test_the_page_has_every_exception_and_no_other() -> None:
    shown = [name for row in rows("Exceptions") for name in names(row[0])]
    assert sorted(shown) == sorted(exceptions())
    assert set(re.findall(r"[├└]── (\w+)", errors.__doc__ or "")) == {*exceptions()} - {"ACASessionsError"}


def test_the_page_has_every_code_of_the_server_and_no_other() -> None:
    shown = [(int(status), *names(code)) for status, code, *_ in rows("What a server answers")]
    assert sorted(shown) == sorted(served_codes())


@pytest.mark.parametrize("row", rows("What a server answers"), ids=lambda row: row[1].strip("`"))
def test_a_code_is_raised_as_the_page_says(row: list[str]) -> None:
    status, (code,), (raised,) = int(row[0]), names(row[1]), names(row[2])
    error = decode_problem(status, {"error": {"code": code, "message": "what to do"}}, {})
    assert type(error) is exceptions()[raised]
    listed = {kind: statuses for kind, statuses, *_ in rows("Exceptions")}[f"`{raised}`"]
    assert str(status) in listed or listed == "all others from 400"


def test_errors_of_the_sandbox_have_the_status_on_the_page() -> None:
    shown = {tuple(names(code)): int(status) for status, code, *_ in rows("What a server answers")}
    for error in (errors.SnapshotError("x"), errors.GuestDiedError("x"), errors.IsolationError("a", "b", "c"), RuntimeError("x")):
        problem = to_problem(error)
        assert shown[(problem.code,)] == problem.status


def test_the_page_has_every_error_that_the_host_puts_into_a_result() -> None:
    folders = ("client", "contract", "server", "sandbox/session")
    set_by_host = {given[0] for _, given in calls(folders, "CodeError") if isinstance(given[0], str) and given[0].isidentifier()}
    assert {name for row in rows("Errors of a result") for name in names(row[0])} == set_by_host


def test_every_public_exception_is_in_the_module_of_errors() -> None:
    assert {kind.__module__ for kind in exceptions().values()} == {"aca_sessions.errors"}
