"""Cells of the client: features built from plain code, for any endpoint including Azure.

Each prints its answer as one line of JSON and changes none of the user's names.
"""

import json
from functools import cache
from importlib.resources import files
from typing import Any

from ..errors import ServiceError
from ..models import CodeExecutionResult, CommandResult, Completions, Variable

_CELL = "(lambda scope: (exec({source!r}, scope), scope['main'](globals(), *{arguments!r}))[1])({{}})"


def own_cell(name: str, *arguments: str | int) -> str:
    """Return the source of a cell of the client. It is one expression whose value is None, so it shows nothing and sets no name."""
    return _CELL.format(source=_source(name), arguments=arguments)


def answer(result: CodeExecutionResult) -> object:
    """Return the answer that a cell of the client printed. Raise ExecutionError if the cell failed.

    Code in the session can forge any answer. So it is data only, and every decoder below checks its types.
    """
    result.raise_for_error()
    try:
        return json.loads(result.stdout.rpartition("\n")[0].rpartition("\n")[2])
    except (ValueError, RecursionError):
        raise _unreadable() from None


def variables_of(told: object) -> list[Variable]:
    """Decode the variables of an answer. Raise ServiceError if it has another shape."""
    if not isinstance(told, list):
        raise _unreadable()
    return [_variable(one) for one in told]


def names_of(told: object) -> list[str]:
    """Decode a list of texts. Raise ServiceError if the answer is anything else."""
    if not isinstance(told, list) or not all(isinstance(one, str) for one in told):
        raise _unreadable()
    return told


def health_of(told: object) -> dict[str, Any]:
    """Decode an answer about an interpreter, as keyword arguments of SessionHealth. Raise ServiceError if it has another shape."""
    match told:
        case {"python": str(python), "memory": int(memory), "uptime": float(uptime), "threads": int(threads), "cpu": float(cpu)}:
            return {"python": python, "memory": memory, "uptime": uptime, "threads": threads, "cpu": cpu}
    raise _unreadable()


def completions_of(told: object) -> Completions:
    """Decode completions. Raise ServiceError if the answer has another shape."""
    match told:
        case {"matches": [*matches], "start": int(start), "end": int(end)} if all(isinstance(one, str) for one in matches):
            return Completions(matches=tuple(matches), start=start, end=end)
    raise _unreadable()


def inspection_of(told: object) -> str | None:
    """Decode the text that describes an object, or None if there is none. Raise ServiceError if the answer has another shape."""
    match told:
        case {"text": None | str() as text}:
            return text
    raise _unreadable()


def command_result_of(result: CodeExecutionResult) -> CommandResult:
    """Return a command's output and exit code. If its cell failed, the exit code is 1 and `stderr` has the reason."""
    output, _, line = result.stdout.removesuffix("\n").rpartition("\n")
    if result.error is not None:
        return CommandResult(exit_code=1, stdout=result.stdout, stderr=result.stderr)
    try:
        return CommandResult(exit_code=int(line), stdout=output, stderr=result.stderr)
    except ValueError:
        raise _unreadable() from None


def _variable(told: object) -> Variable:
    match told:
        case {"name": str(name), "type": str(kind), "shape": None, "size": int(size), "text": str(text)}:
            return Variable(name=name, type=kind, size=size, text=text)
        case {"name": str(name), "type": str(kind), "shape": [*sides], "size": int(size), "text": str(text)} if _all_integers(sides):
            return Variable(name=name, type=kind, shape=tuple(sides), size=size, text=text)
    raise _unreadable()


def _all_integers(values: list[Any]) -> bool:
    return all(isinstance(value, int) for value in values)


def _unreadable() -> ServiceError:
    return ServiceError(200, "Unreadable", "the session's code is in the way of our own: reset it, or use another session")


@cache
def _source(name: str) -> str:
    return files("aca_sessions.client.cells").joinpath(f"{name}.py").read_text()
