"""Decode what snippets print. A snippet is a cell that the client sends for one of its own features.

Code in the session can forge any output, so each decoder checks the types.
"""

import json
from typing import Any

from ..errors import ServiceError
from ..models import CodeExecutionResult, CommandResult, Completions, Variable


def parse_printed_json(result: CodeExecutionResult) -> object:
    """Return the value that a snippet printed as JSON in its last line.

    Raise ExecutionError if the cell failed, and ServiceError if the line is not JSON.
    """
    result.raise_for_error()
    try:
        return json.loads(result.stdout.rpartition("\n")[0].rpartition("\n")[2])
    except (ValueError, RecursionError):
        raise unreadable() from None


def decode_variables(content: object) -> list[Variable]:
    """Decode the JSON value that the cell of `Session.variables` printed. Raise ServiceError if its shape is wrong."""
    if not isinstance(content, list):
        raise unreadable()
    return [_variable(one) for one in content]


def decode_names(content: object) -> list[str]:
    """Return `content`, the JSON value that a snippet printed, if it is a list of strings. Otherwise raise ServiceError."""
    if not isinstance(content, list) or not all(isinstance(one, str) for one in content):
        raise unreadable()
    return content


def decode_health(content: object) -> dict[str, Any]:
    """Convert what the cell of `Session.health` printed to keyword arguments of SessionHealth. Raise ServiceError if its shape is wrong."""
    match content:
        case {"python": str(python), "memory": int(memory), "uptime": float(uptime), "threads": int(threads), "cpu": float(cpu)}:
            return {"python": python, "memory": memory, "uptime": uptime, "threads": threads, "cpu": cpu}
    raise unreadable()


def decode_completions(content: object) -> Completions:
    """Decode the JSON value that the cell of `Session.complete` printed. Raise ServiceError if its shape is wrong."""
    match content:
        case {"matches": [*matches], "start": int(start), "end": int(end)} if all(isinstance(one, str) for one in matches):
            return Completions(matches=tuple(matches), start=start, end=end)
    raise unreadable()


def decode_inspection(content: object) -> str | None:
    """Return the description of a variable from `content`, the JSON that the cell of `Session.inspect` printed.

    Return None if the session has no variable of that name. Raise ServiceError if `content` has another form.
    """
    match content:
        case {"text": None | str() as text}:
            return text
    raise unreadable()


def decode_command_result(result: CodeExecutionResult) -> CommandResult:
    """Convert the result of the snippet `run_script` to a CommandResult.

    The last line that the cell printed is the exit code. If the cell failed, the exit code is 1. Raise ServiceError if the line is not a
    number.
    """
    output, _, line = result.stdout.removesuffix("\n").rpartition("\n")
    if result.error is not None:
        return CommandResult(exit_code=1, stdout=result.stdout, stderr=result.stderr)
    try:
        return CommandResult(exit_code=int(line), stdout=output, stderr=result.stderr)
    except ValueError:
        raise unreadable() from None


def _variable(content: object) -> Variable:
    match content:
        case {"name": str(name), "type": str(kind), "shape": None, "size": int(size), "text": str(text)}:
            return Variable(name=name, type=kind, size=size, text=text)
        case {"name": str(name), "type": str(kind), "shape": [*sides], "size": int(size), "text": str(text)} if _all_integers(sides):
            return Variable(name=name, type=kind, shape=tuple(sides), size=size, text=text)
    raise unreadable()


def _all_integers(values: list[Any]) -> bool:
    return all(isinstance(value, int) for value in values)


def unreadable() -> ServiceError:
    """Return the error for a printed value that no snippet prints."""
    return ServiceError(
        200,
        "Unreadable",
        "cannot read what the client's own cell printed, because code in the session changed print() or a module: reset the session, "
        "or use another one",
    )
