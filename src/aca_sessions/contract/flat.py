"""Encode and decode the bodies of api-version 2024-10-02-preview and later: executions, files and sessions.

These bodies are flat: unlike those in `nested`, they have no object `properties` around their members. The bodies of the routes
`.management/*`, through which Azure's platform manages sessions, are here too. Values, errors and times are written in the same way in all
versions. Functions of the client come first, then those of the server, then those that all versions share.
"""

import base64
import json
import math
import re
import reprlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import cast
from urllib.parse import quote

from ..models import NO_REPLY, CodeError, CodeExecutionResult, Display, RemoteFile, Scalar, SessionInfo, State
from .extensions import RICH_MEMBER, decode_activity, decode_full_result, encode_full_result
from .records import (
    MAX_ASYNCHRONOUS_SECONDS,
    MAX_SYNCHRONOUS_SECONDS,
    PROPERTIES_MISSING,
    Body,
    ExecutionRequest,
    ExecutionResponse,
    MalformedBodyError,
    ProblemError,
    Status,
    invalid,
    type_name,
)

EXECUTE_PATH = "executions"
UPLOAD_PATH = "files"
HAS_EXECUTIONS = True
DELETED: dict[str, object] | None = None
SESSION_PATH = "session"
SESSIONS_PATH = "listSessions"
OPERATION_HEADER = "operation-id"
GUID_HEADER = "x-ms-session-guid"  # a new one each time that a session begins under an identifier
_TIMED_OUT = "Request timed out waiting for code execution to complete"
_ABORTED = "Execution aborted"
_TRACEBACK = re.compile(r"^(?:-{20,}\n\S.* Traceback \(most recent call last\)$| +Cell In\[\d+\], line \d+$)", re.MULTILINE)
_HEAD = re.compile(r"^(\w+) +Traceback \(most recent call last\)$", re.MULTILINE)
_LAST_LINE = re.compile(r"^(?:[\w.]+\.)?(\w+)(?::(?: (.*))?)?$", re.DOTALL)


def content_path(name: str) -> str:
    """Return the path of a file's content in api-version 2024-10-02-preview and later: `files/NAME/content`."""
    return f"files/{quote(name, safe='')}/content"


def parse_content_path(path: str) -> str | None:
    """Parse a content path, `NAME/content` relative to `files/`, and return NAME. Return None for other paths."""
    return path.removesuffix("/content") if path.endswith("/content") else None


# --- the client's half ---


def encode_request(call: ExecutionRequest) -> dict[str, object]:
    """Convert a request to run a cell into the JSON object of 2024-10-02-preview and later."""
    body: dict[str, object] = {
        "codeInputType": "Inline",
        "executionType": "Asynchronous" if call.asynchronous else "Synchronous",
        "code": call.code,
        "outputStreamsMaxLength": call.output_limit,
    }
    if call.timeout is not None:
        body["timeoutInSeconds"] = math.ceil(call.timeout) if call.timeout >= 1 else call.timeout
    return body


def decode_execution(body: Body, *, id: str = "", identifier: str = "") -> ExecutionResponse:
    """Return the execution that a response describes, with its result if it has finished.

    `id` and `identifier` are ignored, because the body has both. They are arguments only because `nested.decode_execution` needs them.
    """
    status, id, identifier = cast(Status, body["status"]), str(body["id"]), str(body["identifier"])
    result = None
    if full := body.get(RICH_MEMBER):
        result = decode_full_result(cast(Body, full), identifier)
    elif status in ("Succeeded", "Failed", "Canceled"):
        content = cast(Body, body.get("result") or {})
        result = decode_result(content, content.get("executionResult"), identifier, success=status == "Succeeded")
    return ExecutionResponse(
        id=id, identifier=identifier, status=status, asynchronous=body.get("executionType") == "Asynchronous", result=result
    )


def decode_file(body: Body) -> RemoteFile:
    """Decode the description of a file or folder."""
    directory = str(body.get("directory") or "")
    return RemoteFile(
        name=str(body["name"]),
        size=cast(int, body.get("sizeInBytes") or 0),
        modified=decode_time(str(body["lastModifiedAt"])),
        directory="" if directory == "." else directory,
        is_directory=str(body.get("type", "file")).lower() == "directory",
        content_type=str(body.get("contentType") or "application/octet-stream").partition(";")[0],
    )


def decode_upload(body: Body) -> RemoteFile:
    """Decode the response to an upload. In api-version 2024-10-02-preview and later, it is the description of the file."""
    return decode_file(body)


def decode_files(body: Body) -> list[RemoteFile]:
    """Decode a listing: return the files and folders in it."""
    return [decode_file(file) for file in cast(list[Body], body["value"])]


def decode_sessions(body: Body) -> list[SessionInfo]:
    """Decode a page of the list of sessions (`listSessions`)."""
    return [decode_session(session) for session in cast(list[Body], body["sessions"])]


def decode_session(body: Body) -> SessionInfo:
    """Decode the description of a session, with what the session does now if the server sent that (see `encode_activity`)."""
    expires, live = body.get("expireAt"), body.get(RICH_MEMBER)
    session = SessionInfo(
        session_id=str(body["identifier"]),
        created=decode_time(str(body["createdAt"])),
        last_used=decode_time(str(body["lastAccessedAt"])),
        expires=decode_time(str(expires)) if expires else None,
    )
    return decode_activity(cast(Body, live), session) if live else session


# --- the server's half ---


def decode_request(body: object, *, lenient: bool = False) -> ExecutionRequest:
    """Parse a request to run a cell. Raise ProblemError if the body is invalid.

    If `lenient` is true, also accept a body whose members are inside an object `properties`, as in older api-versions. az CLI and some
    samples still send such bodies.
    """
    body = require_object(body)
    if lenient and isinstance(body.get("properties"), Mapping):
        body = require_object(body["properties"])
    if "properties" in body:
        said = "in this api-version 'code' and the other properties must be in the body itself, got 'properties' around them: leave it out"
        raise ProblemError(400, PROPERTIES_MISSING, said)
    asynchronous, timeout, output_limit = decode_limits(body)
    return ExecutionRequest(code=decode_code(body), asynchronous=asynchronous, timeout=timeout, output_limit=output_limit)


def encode_execution(execution: ExecutionResponse, output_limit: int, *, full: bool) -> dict[str, object]:
    """Encode an execution in Azure's form. Truncate stdout and stderr to `output_limit` characters each.

    If `full` is true, encode its result with `encode_full_result` instead, which truncates nothing.
    """
    body: dict[str, object] = {
        "$id": "1",
        "id": execution.id,
        "identifier": execution.identifier,
        "executionType": "Asynchronous" if execution.asynchronous else "Synchronous",
        "status": execution.status,
    }
    result = execution.result
    if result is None:
        return body | {"result": None}
    if full:
        return body | {RICH_MEMBER: encode_full_result(result)}
    body["result"] = {
        "$id": "2",
        "stdout": result.stdout[:output_limit],
        "stderr": encode_stderr(result)[:output_limit],
        "executionResult": encode_value(result),
        "executionTimeInMilliseconds": round(result.duration * 1000),
    }
    return body


def encode_file(file: RemoteFile) -> dict[str, object]:
    """Encode the description of a file or folder in Azure's form."""
    return {
        "name": file.name,
        "type": "directory" if file.is_directory else "file",
        "contentType": file.content_type,
        "sizeInBytes": file.size,
        "lastModifiedAt": encode_time(file.modified),
        "directory": file.directory,
    }


def encode_upload(file: RemoteFile) -> dict[str, object]:
    """Encode the response to an upload: the description of the file."""
    return encode_file(file)


def encode_files(files: list[RemoteFile]) -> dict[str, object]:
    """Encode a listing of files: their descriptions in `value`."""
    return {"value": [encode_file(file) for file in files]}


def encode_metadata(python: str, packages: list[tuple[str, str]], since: datetime) -> dict[str, object]:
    """Encode the response to a request for `metadata`: the Python version and the packages that every session has.

    `since` is sent as both `createdAt` and `lastUpdatedAt`.
    """
    return {
        "runtimes": [{"name": "python", "version": python}],
        "preInstalledPackages": [{"name": name, "version": version} for name, version in packages],
        "createdAt": encode_time(since),
        "lastUpdatedAt": encode_time(since),
        "jupyterKernel": {"name": "python3", "version": python, "projectUrl": "https://ipython.org", "description": "IPython"},
    }


def encode_session(session: SessionInfo) -> dict[str, object]:
    """Encode the description of a session in Azure's form. If the session never expires, `expireAt` is the time of its last use."""
    return {
        "identifier": session.session_id,
        "createdAt": encode_time(session.created),
        "expireAt": encode_time(session.expires or session.last_used),
        "lastAccessedAt": encode_time(session.last_used),
        "etag": f"{session.created.timestamp():.0f}",
    }


_PAGE = 300  # sessions on a page, as in Azure


def encode_managed_session(session: SessionInfo) -> dict[str, object]:
    """Encode the description of a session for the routes `.management/*`, in which the member `expireAt` is named `expiresAt`."""
    body = encode_session(session)
    body["expiresAt"] = body.pop("expireAt")
    return body


def encode_managed_sessions(sessions: list[SessionInfo], total: int, skip: int, url: str) -> dict[str, object]:
    """Encode a page of the list of sessions for the routes `.management/*`, with a link to the next page if there is one.

    Args:
        sessions: The sessions on this page, at most 300.
        total: The number of all sessions.
        skip: How many sessions come before this page.
        url: The URL of the list without a query.
    """
    body: dict[str, object] = {"value": [encode_managed_session(session) for session in sessions], "count": len(sessions)}
    return body | {"nextLink": f"{url}?skip={skip + _PAGE}"} if total > skip + _PAGE else body


# --- the notation that all versions share ---


def encode_value(result: CodeExecutionResult) -> object:
    """Encode the value of a cell as Azure does: the first PNG image that the cell displayed, or else the value of its last expression.

    Finite numbers and booleans stay as they are, and None becomes null. Other values become the text that IPython shows, a string without
    its quotes. "" means that the cell has no value, as after an assignment or a call of `print()`.
    """
    images = [data for display in result.displays if isinstance(data := display.data.get("image/png"), str)]
    if images:
        return {"type": "image", "format": "png", "base64_data": images[0]}
    if result.text is None:
        return None if result.value_is_none else ""
    if isinstance(result.value, float) and not math.isfinite(result.value):
        return str(result.value)
    return result.value


def decode_value(value: object) -> tuple[Scalar, str | None, tuple[Display, ...]]:
    """Decode the value of a cell that Azure sent. Return the value, its text, and the displays.

    A number, a boolean or text is returned as the value and as its text, without displays. An image is returned as a display: then value
    and text are None. For null and "", which mean that there is no value, return (None, None, ()).
    """
    match value:
        case None | "":
            return None, None, ()
        case {"type": "image", "format": str(kind), "base64_data": str(data)}:
            return None, None, (Display({f"image/{kind}": data}),)
        case str() | bool() | int() | float():
            return value, str(value), ()
    return str(value), str(value), ()


def encode_stderr(result: CodeExecutionResult) -> str:
    """Return the stderr that Azure would send for a result.

    If the interpreter died, or if the cell ran too long and left no traceback, return the fixed message that Azure sends in this case.
    Otherwise return what the cell wrote.
    """
    if result.error is None:
        return result.stderr
    match result.error.name, result.state.kind:
        case "TimeoutError", _ if not result.error.traceback:
            return _TIMED_OUT
        case "InterpreterDied", _:
            return _ABORTED
    return result.stderr


def decode_error(stderr: str) -> CodeError:
    """Parse the exception at the end of a failed cell's stderr. If there is none, return an error named `ExecutionFailed`."""
    if stderr.startswith(_TIMED_OUT):
        return CodeError("TimeoutError", stderr.strip(), stderr)
    if _is_death(stderr):
        return CodeError("InterpreterDied", stderr.strip(), stderr)
    *_, start = (0, *(found.start() for found in _TRACEBACK.finditer(stderr)))
    traceback = stderr[start:]  # before it is what the cell wrote itself
    if heads := _HEAD.findall(traceback):  # of several exceptions the last one ended the cell; its message may have several lines
        _, found, message = traceback.rpartition(f"\n{heads[-1]}: ")
        if found:
            return CodeError(heads[-1], message.strip("\n"), traceback)
    last = traceback.strip().rpartition("\n")[2]
    parts = _LAST_LINE.match(last)
    return CodeError(parts[1], parts[2] or "", traceback) if parts else CodeError("ExecutionFailed", last, traceback)


def _is_death(stderr: str) -> bool:
    return stderr.startswith(_ABORTED) or "Kernel restarted" in stderr


def guess_state(stderr: str) -> State:
    """Guess from the stderr of a failed cell what happened to the session's variables.

    Azure's message for a timeout gives the state `unknown: no reply`, and its message for a crash the state `lost`. Any other stderr means
    that the variables were kept.
    """
    if stderr.startswith(_TIMED_OUT):
        return NO_REPLY
    if _is_death(stderr):
        return State(variables="lost", processes="ended", reason="crash")
    return State()


def decode_result(content: Body, value: object, identifier: str, *, success: bool) -> CodeExecutionResult:
    """Decode a result from Azure's form.

    Args:
        content: The JSON object that holds stdout, stderr and the duration.
        value: The encoded value of the cell. The caller reads it, because its member has different names in different api-versions.
        identifier: The identifier of the session.
        success: Whether the cell succeeded. If not, the error is parsed from stderr.
    """
    stdout, stderr = str(content.get("stdout") or ""), str(content.get("stderr") or "")
    plain, text, displays = decode_value(value)
    return CodeExecutionResult(
        session_id=identifier,
        stdout=stdout,
        stderr=stderr,
        value=plain,
        text=text,
        displays=displays,
        error=None if success else decode_error(stderr),
        state=State() if success else guess_state(stderr),
        duration=cast(float, content.get("executionTimeInMilliseconds") or 0) / 1000,
    )


def encode_time(moment: datetime) -> str:
    """Format a time as .NET does, with seven digits after the second."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f0Z")


def decode_time(text: str) -> datetime:
    """Parse a time from .NET, which has seven digits after the second. Drop the seventh, because Python reads only six."""
    return datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text))


def parse_json(content: bytes) -> object:
    """Parse the JSON body of a request. Raise MalformedBodyError with the position of the mistake, counted from 0 as .NET does."""
    if not content:
        raise MalformedBodyError("", "A non-empty request body is required.")
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        before = error.doc[: error.pos].rpartition("\n")[2].encode("utf-8", "replace")
        place = f"Path: $ | LineNumber: {error.lineno - 1} | BytePositionInLine: {len(before)}."
        # Not chained, here and below: these errors hold what the client sent.
        raise MalformedBodyError("$", f"The body must be JSON: {error.msg}. {place}") from None
    except (ValueError, RecursionError):
        message = "The body must be JSON in UTF-8, without deep nesting and without numbers of thousands of digits."
        raise MalformedBodyError("$", message) from None


def require_object(body: object, members: str = "'code'") -> Body:
    """Return a request's body unchanged if it is a JSON object with at least one member.

    Raise MalformedBodyError if the body is not an object. Raise ProblemError if it is empty. `members` names what the object must have, for
    the error's message.
    """
    if not isinstance(body, Mapping):
        raise MalformedBodyError("$", f"The body must be a JSON object, got {type_name(body)}.")
    if not body:
        raise ProblemError(400, PROPERTIES_MISSING, f"the body must have properties, got an empty object: send at least {members}")
    return body


def decode_code(body: Body, name: str = "code") -> str:
    """Return the source text in the member `name` of a request's body, decoded if it is in base64.

    Raise ProblemError if it is missing or not valid. Blank text is valid and does nothing: AutoGen's executor sends two line ends after a
    restart.
    """
    kind = decode_choice(body, "codeInputType", ("inline", "inlinetext", "inlinebase64"))
    code = body.get(name)
    if not isinstance(code, str):
        raise invalid(f"'{name}' must be text, got {'nothing' if code is None else type_name(code)}")
    try:
        if kind == "inlinebase64":
            return base64.b64decode("".join(code.split()), validate=True).decode()
        code.encode()  # fails for lone surrogates, which JSON can hold and a source text cannot
    except UnicodeEncodeError:
        raise invalid(f"'{name}' must be well-formed Unicode, got text with a lone surrogate: remove it") from None
    except ValueError:
        raise invalid(
            f"'{name}' must be UTF-8 text in base64, because 'codeInputType' is InlineBase64: encode it, or leave 'codeInputType' out"
        ) from None
    return code


def decode_limits(body: Body) -> tuple[bool, float | None, int]:
    """Return three options of a request to run a cell: whether it is asynchronous, its time limit, and its output limit.

    The time limit is in seconds, or None. The output limit is how many characters of stdout and of stderr to send. Raise ProblemError if an
    option is invalid.
    """
    asynchronous = decode_choice(body, "executionType", ("synchronous", "asynchronous")) == "asynchronous"
    timeout = decode_number(body, "timeoutInSeconds", MAX_ASYNCHRONOUS_SECONDS if asynchronous else MAX_SYNCHRONOUS_SECONDS)
    limit = decode_number(body, "outputStreamsMaxLength", 1 << 30)
    if limit is not None and limit != int(limit):
        raise invalid(f"'outputStreamsMaxLength' must be a whole number, got {limit:g}")
    return asynchronous, timeout, 4096 if limit is None else int(limit)


def decode_choice(body: Body, name: str, choices: tuple[str, ...]) -> str:
    """Return `body[name]` in lower case, or the first of `choices` if the body has no such member.

    Raise ProblemError if the value is not one of `choices`.
    """
    value = body.get(name)
    if value is None:
        return choices[0]
    if not isinstance(value, str) or value.lower() not in choices:
        raise invalid(f"'{name}' must be one of {', '.join(choices)}, got {reprlib.repr(value)}")
    return value.lower()


def decode_number(body: Body, name: str, most: float) -> float | None:
    """Return the number `body[name]`, or None if the body has no such member.

    Raise ProblemError unless the number is above 0 and at most `most`.
    """
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:
        raise invalid(f"'{name}' must be a number above 0 and up to {most:g}, got {reprlib.repr(value)}")
    return value
