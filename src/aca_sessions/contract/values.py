"""Azure's way of writing values, errors, times and requests down, the same in every version. Both directions of each side by side."""

import json
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime

from ..models import NO_REPLY, CodeError, CodeExecutionResult, Display, Scalar, State
from .records import ProblemError

Body = Mapping[str, object]

_TIMED_OUT = "Request timed out waiting for code execution to complete"
_ABORTED = "Execution aborted"
_LAST_LINE = re.compile(r"^(?:[\w.]+\.)?(\w+)(?:: (.*))?$", re.DOTALL)


def encode_value(result: CodeExecutionResult) -> object:
    """A picture stands for the whole value, as in Azure; text without quotes, numbers as numbers."""
    images = [data for display in result.displays if isinstance(data := display.data.get("image/png"), str)]
    if images:
        return {"type": "image", "format": "png", "base64_data": images[0]}
    if result.text is None:
        return ""
    if isinstance(result.value, float) and not math.isfinite(result.value):
        return str(result.value)
    return result.value


def decode_value(value: object) -> tuple[Scalar, str | None, tuple[Display, ...]]:
    """The value, its text and what it displays."""
    match value:
        case None | "":
            return None, None, ()
        case {"type": "image", "format": str(kind), "base64_data": str(data)}:
            return None, None, (Display({f"image/{kind}": data}),)
        case str() | bool() | int() | float():
            return value, str(value), ()
    return str(value), str(value), ()


def encode_stderr(result: CodeExecutionResult) -> str:
    """What Azure writes there: the traceback, or its own words for what ended without one."""
    if result.error is None:
        return result.stderr
    match result.error.name, result.state.kind:
        case "TimeoutError", _ if not result.error.traceback:
            return _TIMED_OUT
        case "InterpreterDied", _:
            return _ABORTED
    return result.stderr


def decode_error(stderr: str) -> CodeError:
    """The exception that a traceback ends with."""
    last = stderr.strip().rpartition("\n")[2]
    parts = _LAST_LINE.match(last)
    return CodeError(parts[1], parts[2] or "", stderr) if parts else CodeError("ExecutionFailed", last, stderr)


def guess_state(stderr: str) -> State:
    """What the texts that Azure is known to send say of the variables."""
    if stderr.startswith(_TIMED_OUT):
        return NO_REPLY
    if stderr.startswith(_ABORTED) or "Kernel restarted" in stderr:
        return State(variables="lost", processes="ended", reason="crash")
    return State()


def encode_time(moment: datetime) -> str:
    """As .NET writes it, with seven digits after the second."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f0Z")


def decode_time(text: str) -> datetime:
    """.NET writes seven digits after the second, Python reads six."""
    return datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text))


def parse(content: bytes) -> object:
    """The JSON of a request."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        raise invalid("the body is not JSON") from None


def checked_code(body: Body, name: str = "code") -> str:
    """The source text in a request."""
    code = body.get(name)
    if not isinstance(code, str) or not code.strip():
        raise invalid(f"'{name}' is missing, empty or not a string")
    if not is_well_formed(code):
        raise invalid(f"'{name}' is not well-formed Unicode: it holds a lone surrogate")
    return code


def is_well_formed(text: object) -> bool:
    """Whether it is text that can be written down."""
    try:
        return isinstance(text, str) and text.encode() is not None
    except UnicodeEncodeError:
        return False


def choice(body: Body, name: str, choices: tuple[str, ...]) -> str:
    """One of some words, in any case; the first where it is absent."""
    value = body.get(name, choices[0])
    if not isinstance(value, str) or value.lower() not in choices:
        raise invalid(f"'{name}' is none of {', '.join(choices)}")
    return value.lower()


def number(body: Body, name: str, most: float) -> float | None:
    """A number above 0, or None where it is absent."""
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:
        raise invalid(f"'{name}' is not a number above 0 and up to {most:g}")
    return value


def invalid(message: str) -> ProblemError:
    """A request that is not one of the API's."""
    return ProblemError(400, "SessionRequestValidationFailed", message)
