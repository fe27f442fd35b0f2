"""Decoders of what snippets print. Code in the session can forge any answer, so each decoder checks its types."""

import json
from typing import Any

from ..errors import ServiceError
from ..models import CodeExecutionResult, CommandResult, Completions, Variable


def answer(result: CodeExecutionResult) -> object:
    """Return the JSON value in the last line that a snippet printed. Raise ExecutionError if it failed, ServiceError for other text."""
    result.raise_for_error()
    try:
        return json.loads(result.stdout.rpartition("\n")[0].rpartition("\n")[2])
    except (ValueError, RecursionError):
        raise _unreadable() from None


def variables_of(content: object) -> list[Variable]:
    """Decode the answer of `variables`. Raise ServiceError if the answer has another shape."""
    if not isinstance(content, list):
        raise _unreadable()
    return [_variable(one) for one in content]


def names_of(content: object) -> list[str]:
    """Return an answer that is a list of texts. Raise ServiceError if it is anything else."""
    if not isinstance(content, list) or not all(isinstance(one, str) for one in content):
        raise _unreadable()
    return content


def health_of(content: object) -> dict[str, Any]:
    """Decode the answer of `health` as keyword arguments of SessionHealth. Raise ServiceError if the answer has another shape."""
    match content:
        case {"python": str(python), "memory": int(memory), "uptime": float(uptime), "threads": int(threads), "cpu": float(cpu)}:
            return {"python": python, "memory": memory, "uptime": uptime, "threads": threads, "cpu": cpu}
    raise _unreadable()


def completions_of(content: object) -> Completions:
    """Decode the answer of `complete`. Raise ServiceError if the answer has another shape."""
    match content:
        case {"matches": [*matches], "start": int(start), "end": int(end)} if all(isinstance(one, str) for one in matches):
            return Completions(matches=tuple(matches), start=start, end=end)
    raise _unreadable()


def inspection_of(content: object) -> str | None:
    """Return the text in the answer of `inspect`, or None if the name is unknown. Raise ServiceError if the answer has another shape."""
    match content:
        case {"text": None | str() as text}:
            return text
    raise _unreadable()


def command_result_of(result: CodeExecutionResult) -> CommandResult:
    """Return a command's result. Its exit code is the last line that its cell printed, or 1 if the cell failed."""
    output, _, line = result.stdout.removesuffix("\n").rpartition("\n")
    if result.error is not None:
        return CommandResult(exit_code=1, stdout=result.stdout, stderr=result.stderr)
    try:
        return CommandResult(exit_code=int(line), stdout=output, stderr=result.stderr)
    except ValueError:
        raise _unreadable() from None


def _variable(content: object) -> Variable:
    match content:
        case {"name": str(name), "type": str(kind), "shape": None, "size": int(size), "text": str(text)}:
            return Variable(name=name, type=kind, size=size, text=text)
        case {"name": str(name), "type": str(kind), "shape": [*sides], "size": int(size), "text": str(text)} if _all_integers(sides):
            return Variable(name=name, type=kind, shape=tuple(sides), size=size, text=text)
    raise _unreadable()


def _all_integers(values: list[Any]) -> bool:
    return all(isinstance(value, int) for value in values)


def _unreadable() -> ServiceError:
    return ServiceError(
        200,
        "Unreadable",
        "cannot read what the client's own cell printed, because code in the session changed print() or a module: reset the session, "
        "or use another one",
    )
