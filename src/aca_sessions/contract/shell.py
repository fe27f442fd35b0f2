"""Encode and decode the bodies of shell pools (2025-02-02-preview and later), which run commands. Only the server uses this."""

from collections.abc import Mapping
from typing import cast

from ..models import CodeExecutionResult
from .flat import decode_limits, encode_stderr, require_object
from .records import Command, ExecutionRequest, ExecutionResponse, ProblemError, invalid, is_well_formed, type_name

_SHELL = "/bin/bash"
_NO_EXIT_CODE = "-1"  # Azure's status of a command that timed out


def decode_request(body: object, *, version: str, supported: bool) -> ExecutionRequest:
    """Parse a request to run a command.

    Raise ProblemError if the body is invalid, or if `supported` is false because the api-version `version` has no shell pools.
    """
    if not supported:
        raise ProblemError(400, "SessionRequestNotSupported", f"Shell execution is not supported in API version {version}")
    body = require_object(body, "'shellCommand' or 'execCommandAndArgs'")
    asynchronous, timeout, output_limit = decode_limits(body)
    command = decode_command(body)
    return ExecutionRequest(code="", command=command, asynchronous=asynchronous, timeout=timeout, output_limit=output_limit)


def decode_command(body: Mapping[str, object]) -> Command:
    """Return the command of a request's body: a line for the shell, or a program with its arguments.

    Raise ProblemError if the body has none or both of them, or if one is invalid.
    """
    line, words, stdin = body.get("shellCommand"), body.get("execCommandAndArgs"), body.get("stdin")
    if (line is None) == (words is None):
        got = "none of them" if line is None else "both"
        raise invalid(f"expected exactly one of 'shellCommand' and 'execCommandAndArgs', got {got}")
    arguments = [_SHELL, "-c", line] if words is None else words
    if not isinstance(arguments, list) or not arguments or not all(_is_argument(argument) for argument in arguments):
        text = "text that is not empty and has no null characters and lone surrogates"
        raise invalid(f"'shellCommand' must be {text}" if words is None else f"'execCommandAndArgs' must be a list of at least one {text}")
    if stdin is not None and not is_well_formed(stdin):
        raise invalid(
            f"'stdin' must be text without lone surrogates, got {'text with one' if isinstance(stdin, str) else type_name(stdin)}"
        )
    return Command(tuple(cast(list[str], arguments)), cast(str | None, stdin) or "")


def exit_code(result: CodeExecutionResult) -> str:
    """Return a command's exit code as text, or "-1" if the result has an error instead, as after a timeout."""
    return _NO_EXIT_CODE if result.error is not None else str(result.value)


def encode_execution(execution: ExecutionResponse, output_limit: int) -> dict[str, object]:
    """Encode the execution of a command in Azure's form. Once the command has ended, `status` is its exit code."""
    body: dict[str, object] = {"id": execution.id, "identifier": execution.identifier}
    result = execution.result
    if result is None:
        return body | {"status": execution.status, "result": None}
    shown = {
        "stdout": result.stdout[:output_limit],
        "stderr": encode_stderr(result)[:output_limit],
        "executionTimeInMilliseconds": round(result.duration * 1000),
    }
    return body | {"status": exit_code(result), "result": shown}


def _is_argument(value: object) -> bool:
    return is_well_formed(value) and bool(value) and "\0" not in cast(str, value)
