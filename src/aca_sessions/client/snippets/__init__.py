"""Snippets: Python that the client sends to a session as a cell, for features that work without extensions of the endpoint.

A snippet is a function in a module of this folder that takes the user's variables first. It runs in a session, also at Azure, and never on
the host. `source_of` returns its text with the imports, constants and functions that it uses. The text needs only Python 3.9 and its
standard library. A snippet prints its output as one line of JSON, which `snippet_results` decodes. It changes none of the user's variables,
unless that is its purpose.
"""

import ast
import zlib
from functools import cache
from pathlib import Path

from . import files, interpreter, values

_MODULES = (files, interpreter, values)  # their top-level names differ

CELL_PREFIX = "(lambda scope: (exec("  # begins each cell that a client sent for itself
CELL = CELL_PREFIX + "{source!r}, scope), scope[{name!r}](globals(), *{arguments!r}))[1])({{}})"
# The same, for one that is sent often: what `exec` defines is kept, because compiling takes longer than most snippets run.
_KEPT = "__import__('builtins').__dict__.setdefault('_aca_sessions_snippets', {{}}).setdefault({key!r}, {{}})"
_KEPT_CELL = CELL_PREFIX + "'' if '_' in scope else {source!r}, scope), scope[{name!r}](globals(), *{arguments!r}))[1])(" + _KEPT + ")"


def snippet(name: str, *arguments: "str | int") -> str:
    """Return the source of a cell that calls a snippet.

    The cell is one expression whose value is None, so it shows nothing and sets no name.
    """
    source = f"{source_of(name)}\n_ = 0"  # set when all of it is defined: the cell may be interrupted before
    return _KEPT_CELL.format(source=source, name=name, arguments=arguments, key=_key_of(name))


@cache
def _key_of(name: str) -> str:
    return f"{name} {zlib.crc32(source_of(name).encode()):x}"  # another version of this package may use the session, too


@cache
def source_of(name: str) -> str:
    """Return the source text of a snippet and of everything at the top level of the modules that it uses, in their order."""
    statements: list[tuple[str, ast.stmt]] = []
    binding: dict[str, tuple[str, ast.stmt]] = {}
    for module in _MODULES:
        text = Path(module.__file__ or "").read_text(encoding="utf-8")
        for statement in ast.parse(text).body:
            if isinstance(statement, ast.ImportFrom) and statement.level:
                continue  # it binds what another of these modules has
            statements.append((text, statement))
            binding = dict.fromkeys(_names_bound(statement), statements[-1]) | binding  # of equal imports, the first
    used, found = set(), [binding[name]]
    while found:
        used.add(one := found.pop())
        names = {node.id for node in ast.walk(one[1]) if isinstance(node, ast.Name)}
        found += {binding[name] for name in names & binding.keys()} - used
    return "\n".join(ast.get_source_segment(*one) or "" for one in statements if one in used)


def _names_bound(statement: ast.stmt) -> list[str]:
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return [statement.name]
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return [alias.asname or alias.name for alias in statement.names]
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]
