"""Cells of ours: what plain code gives in any session, Azure's included. They answer by a line of JSON and leave the user's names alone."""

import json
from functools import cache
from importlib.resources import files

from ..errors import ServiceError
from ..models import CodeExecutionResult

_CELL = "(lambda scope: (exec({source!r}, scope), scope['main'](globals(), *{arguments!r}))[1])({{}})"


def own_cell(name: str, *arguments: str | int) -> str:
    """The source of a cell of ours: one expression, whose value is None."""
    return _CELL.format(source=_source(name), arguments=arguments)


def answer(result: CodeExecutionResult) -> object:
    """What a cell of ours answered; ExecutionError where it could not."""
    result.raise_for_error()
    try:
        return json.loads(result.stdout.rpartition("\n")[0].rpartition("\n")[2])
    except ValueError:
        raise ServiceError(200, "Unreadable", "the session's code is in the way of our own: reset it, or use another session") from None


@cache
def _source(name: str) -> str:
    return files("aca_sessions.client.cells").joinpath(f"{name}.py").read_text()
