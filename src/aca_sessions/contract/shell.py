"""Shell pools, 2025-02-02-preview and later: requests are commands, results have exit codes. Only the server uses them."""

from collections.abc import Mapping
from typing import cast

from ..models import CodeExecutionResult
from .records import MAX_ASYNCHRONOUS_SECONDS, MAX_SYNCHRONOUS_SECONDS, Command, Execution, ExecutionCall, ProblemError
from .values import checked_object, checked_output_limit, choice, encode_stderr, invalid, is_well_formed, number

_SHELL = "/bin/bash"
_NO_EXIT_CODE = "-1"  # Azure's status of a command that timed out


def decode_call(body: object, *, version: str, supported: bool) -> ExecutionCall:
    """Return the execution that a client requests. Raise ProblemError with what is wrong with the body.

    Args:
        body: The parsed JSON of the request.
        version: The api-version, for the error message.
        supported: Whether this api-version has shell pools.
    """
    if not supported:
        raise ProblemError(400, "SessionRequestNotSupported", f"Shell execution is not supported in API version {version}")
    body = checked_object(body)
    asynchronous = choice(body, "executionType", ("synchronous", "asynchronous")) == "asynchronous"
    return ExecutionCall(
        code="",
        command=decode_command(body),
        asynchronous=asynchronous,
        timeout=number(body, "timeoutInSeconds", MAX_ASYNCHRONOUS_SECONDS if asynchronous else MAX_SYNCHRONOUS_SECONDS),
        output_limit=checked_output_limit(body),
    )


def decode_command(body: Mapping[str, object]) -> Command:
    """Return the command of a body: either a line for the shell, or a program with its arguments. Raise ProblemError for any other body."""
    line, words, stdin = body.get("shellCommand"), body.get("execCommandAndArgs"), body.get("stdin")
    if (line is None) == (words is None):
        raise invalid("exactly one of 'shellCommand' and 'execCommandAndArgs' is needed")
    arguments = [_SHELL, "-c", line] if words is None else words
    if not isinstance(arguments, list) or not arguments or not all(_is_argument(argument) for argument in arguments):
        raise invalid("the command is empty, or holds something else than text without null characters")
    if stdin is not None and not is_well_formed(stdin):
        raise invalid("'stdin' is not text")
    return Command(tuple(cast(list[str], arguments)), cast(str | None, stdin) or "")


def exit_code(result: CodeExecutionResult) -> str:
    """Return the exit code as text, or "-1" for a command that did not end by itself."""
    return _NO_EXIT_CODE if result.error is not None else str(result.value)


def encode_execution(execution: Execution, output_limit: int) -> dict[str, object]:
    """Return a command in Azure's form: its status is its exit code."""
    body: dict[str, object] = {"id": execution.id, "identifier": execution.identifier}
    result = execution.result
    if result is None:
        return body | {"status": execution.status, "result": None}
    told = {
        "stdout": result.stdout[:output_limit],
        "stderr": encode_stderr(result)[:output_limit],
        "executionTimeInMilliseconds": round(result.duration * 1000),
    }
    return body | {"status": exit_code(result), "result": told}


def _is_argument(value: object) -> bool:
    return is_well_formed(value) and bool(value) and "\0" not in cast(str, value)
