"""Values, errors, times and requests in Azure's notation, which is the same in every version."""

import base64
import json
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime

from ..models import NO_REPLY, CodeError, CodeExecutionResult, Display, Scalar, State
from .records import PROPERTIES_MISSING, MalformedBodyError, ProblemError

Body = Mapping[str, object]

_TIMED_OUT = "Request timed out waiting for code execution to complete"
_ABORTED = "Execution aborted"
_LAST_LINE = re.compile(r"^(?:[\w.]+\.)?(\w+)(?:: (.*))?$", re.DOTALL)


def encode_value(result: CodeExecutionResult) -> object:
    """Return the last value in Azure's notation: text without quotes, numbers as numbers. A picture replaces the whole value."""
    images = [data for display in result.displays if isinstance(data := display.data.get("image/png"), str)]
    if images:
        return {"type": "image", "format": "png", "base64_data": images[0]}
    if result.text is None:
        return None if result.value_is_none else ""
    if isinstance(result.value, float) and not math.isfinite(result.value):
        return str(result.value)
    return result.value


def decode_value(value: object) -> tuple[Scalar, str | None, tuple[Display, ...]]:
    """Return the value, its text, and what it displays."""
    match value:
        case None | "":
            return None, None, ()
        case {"type": "image", "format": str(kind), "base64_data": str(data)}:
            return None, None, (Display({f"image/{kind}": data}),)
        case str() | bool() | int() | float():
            return value, str(value), ()
    return str(value), str(value), ()


def encode_stderr(result: CodeExecutionResult) -> str:
    """Return stderr in Azure's form: with the traceback, or Azure's own message if the cell ended without one."""
    if result.error is None:
        return result.stderr
    match result.error.name, result.state.kind:
        case "TimeoutError", _ if not result.error.traceback:
            return _TIMED_OUT
        case "InterpreterDied", _:
            return _ABORTED
    return result.stderr


def decode_error(stderr: str) -> CodeError:
    """Return the exception that a traceback ends with."""
    last = stderr.strip().rpartition("\n")[2]
    parts = _LAST_LINE.match(last)
    return CodeError(parts[1], parts[2] or "", stderr) if parts else CodeError("ExecutionFailed", last, stderr)


def guess_state(stderr: str) -> State:
    """Return what happened to the variables, as far as the texts that Azure is known to send show it."""
    if stderr.startswith(_TIMED_OUT):
        return NO_REPLY
    if stderr.startswith(_ABORTED) or "Kernel restarted" in stderr:
        return State(variables="lost", processes="ended", reason="crash")
    return State()


def encode_time(moment: datetime) -> str:
    """Return a time as .NET writes it, with seven digits after the second."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f0Z")


def decode_time(text: str) -> datetime:
    """Return a time that .NET wrote. It writes seven digits after the second, and Python reads six."""
    return datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text))


def parse(content: bytes) -> object:
    """Return the JSON of a request. Raise MalformedBodyError with the place of the mistake, counted from 0 as .NET does."""
    if not content:
        raise MalformedBodyError("", "A non-empty request body is required.")
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        before = error.doc[: error.pos].rpartition("\n")[2].encode("utf-8", "replace")
        place = f"Path: $ | LineNumber: {error.lineno - 1} | BytePositionInLine: {len(before)}."
        raise MalformedBodyError("$", f"The body is not JSON: {error.msg}. {place}") from None
    except (ValueError, RecursionError):
        raise MalformedBodyError("$", "The body is not JSON in UTF-8, or is nested too deeply.") from None


def checked_object(body: object) -> Body:
    """Return the object of a request. Raise MalformedBodyError for another type, and ProblemError for an object without properties."""
    if not isinstance(body, Mapping):
        raise MalformedBodyError("$", "The body must be a JSON object.")
    if not body:
        raise ProblemError(400, PROPERTIES_MISSING, "the body has no properties: it needs at least the code to run")
    return body


def checked_code(body: Body, name: str = "code") -> str:
    """Return the source text of a request, which may be in base64. Raise ProblemError if it is missing or not valid.

    An empty text is a cell that does nothing: AutoGen's executor sends "\\n\\n" after a restart.
    """
    kind = choice(body, "codeInputType", ("inline", "inlinetext", "inlinebase64"))
    code = body.get(name)
    if kind == "inlinebase64" and isinstance(code, str):
        code = _from_base64(code, name)
    if not isinstance(code, str):
        raise invalid(f"'{name}' is missing or not a string")
    if not is_well_formed(code):
        raise invalid(f"'{name}' is not well-formed Unicode: it holds a lone surrogate")
    return code


def _from_base64(code: str, name: str) -> str:
    try:
        return base64.b64decode("".join(code.split()), validate=True).decode()
    except ValueError:
        raise invalid(f"'{name}' is not UTF-8 text in base64, which its codeInputType InlineBase64 says") from None


def is_well_formed(text: object) -> bool:
    """Return whether it is text that can be encoded: without lone surrogates."""
    try:
        return isinstance(text, str) and text.encode() is not None
    except UnicodeEncodeError:
        return False


def choice(body: Body, name: str, choices: tuple[str, ...]) -> str:
    """Return a member that must be one of some words, in lower case. Upper case is accepted.

    Return the first word if it is absent. Raise ProblemError for any other value.
    """
    value = body.get(name)
    if value is None:
        return choices[0]
    if not isinstance(value, str) or value.lower() not in choices:
        raise invalid(f"'{name}' is none of {', '.join(choices)}")
    return value.lower()


def number(body: Body, name: str, most: float) -> float | None:
    """Return a number above 0 and up to `most`, or None if it is absent. Raise ProblemError for any other value."""
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:
        raise invalid(f"'{name}' is not a number above 0 and up to {most:g}")
    return value


def checked_output_limit(body: Body) -> int:
    """Return at how many characters each stream is cut. Raise ProblemError if the request has no whole number for it."""
    value = number(body, "outputStreamsMaxLength", 1 << 30)
    if value is None:
        return 4096
    if value != int(value):
        raise invalid(f"'outputStreamsMaxLength' must be a whole number, got {value:g}")
    return int(value)


def invalid(message: str) -> ProblemError:
    """Return the error for a request that does not fit the API."""
    return ProblemError(400, "SessionRequestValidationFailed", message)
