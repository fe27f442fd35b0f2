"""What a session reports of a cell that runs in a thread of it. Guest code can forge any of it, so it is validated here."""

import json
import re
from dataclasses import dataclass
from typing import Any, Literal

from ..client.session import Session
from ..errors import ServiceError
from ..models import CodeError, Display, Scalar

_FILE = re.compile(r"\.call-[0-9a-f]{32}")
_MOST_TOLD = 64 << 20  # bytes of one report
_MOST_TEXT = 2 << 20
_MOST_CALL = 1 << 20
_MOST_CALLS = 64  # that wait at a time
_MOST_DISPLAYS = 1000
_LARGEST_NUMBER = 10**12
Stage = Literal["runs", "over", "unknown", "no module"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The result of a cell as the session reports it."""

    stdout: str
    stderr: str
    value: Scalar
    text: str | None
    error: CodeError | None
    displays: tuple[Display, ...]


@dataclass(frozen=True, slots=True)
class Told:
    """The progress of a cell: `runs` with calls that wait for answers, or `over` with its outcome."""

    stage: Stage
    calls: tuple[tuple[int, str], ...] = ()
    waited: float = 0.0  # seconds in the session until the calls came
    computed: float | None = None  # processor seconds since the cell began, without those of the meetings
    outcome: Outcome | None = None


def split(stdout: str, marker: str) -> tuple[str, str | None]:
    """Return the other output, and the line behind the marker. The line is None if the marker is missing."""
    before, found, rest = stdout.rpartition(f"\n{marker}")
    if not found:
        return stdout, None
    line, _, after = rest.partition("\n")
    return before + after, line


async def read(session: Session, line: str) -> Told:
    """Parse the line, or the file that it names. Raise ServiceError if neither is a report."""
    try:
        said = json.loads(line)
        match said:
            case {"file": str(name)} if _FILE.fullmatch(name):
                said = json.loads(await _content(session, name))
    except (ValueError, RecursionError):
        raise _unreadable() from None
    return _told(said)


async def _content(session: Session, name: str) -> str:
    sizes = {file.name: file.size for file in await session.list_files()}
    if sizes.get(name, 0) > _MOST_TOLD:
        raise _unreadable()
    data = await session.download_file(name)
    await session.delete_file(name)
    return data.decode("utf-8", "replace")


def _told(said: object) -> Told:
    match said:
        case {"cell": "runs", "calls": [*calls], "waited": float(waited), "computed": float(computed)}:
            return Told("runs", tuple(_call(one) for one in calls[:_MOST_CALLS]), waited, computed)
        case {"cell": "over", "result": dict(result)}:
            return Told("over", outcome=_outcome(result))
        case {"cell": "unknown" | "no module" as stage}:
            return Told(stage)
    raise _unreadable()


def _call(one: object) -> tuple[int, str]:
    match one:
        case [int(number), str(text)] if type(number) is int and 0 < number < _LARGEST_NUMBER and len(text) <= _MOST_CALL:
            return number, text
    raise _unreadable()


def _outcome(result: dict[str, Any]) -> Outcome:
    match result:
        case {"stdout": str(stdout), "stderr": str(stderr), "value": value, "text": text, "error": error, "displays": [*displays]}:
            return Outcome(
                stdout=_text(stdout),
                stderr=_text(stderr),
                value=_value(value),
                text=None if text is None else _text(text),
                error=None if error is None else _error(error),
                displays=tuple(_display(one) for one in displays[:_MOST_DISPLAYS]),
            )
    raise _unreadable()


def _value(value: object) -> Scalar:
    match value:
        case None | bool() | int() | float():
            return value
    return _text(value)


def _error(error: object) -> CodeError:
    match error:
        case [name, message, traceback]:
            return CodeError(_text(name), _text(message), _text(traceback))
    raise _unreadable()


def _display(one: object) -> Display:
    match one:
        case [dict(data), None | str() as name] if all(isinstance(form, str) for form in data.values()):
            return Display({_clean(mime): _clean(form) for mime, form in data.items()}, name)
    raise _unreadable()


def _text(text: object) -> str:
    if not isinstance(text, str) or len(text) > _MOST_TEXT:
        raise _unreadable()
    return _clean(text)


def _clean(text: str) -> str:
    """Return text that can be encoded as UTF-8: JSON may hold lone surrogates."""
    return text.encode("utf-8", "backslashreplace").decode()


def _unreadable() -> ServiceError:
    return ServiceError(200, "Unreadable", "the session's code is in the way of our own: reset it, or use another session")
