"""2025-10-02-preview: executions, files and sessions as bare objects. The client's half first, then the server's."""

import json
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import cast

from ..models import CodeError, CodeExecutionResult, Display, RemoteFile, Scalar, SessionInfo, State
from .extensions import RICH_MEMBER, decode_rich, encode_rich
from .records import MAX_ASYNCHRONOUS_SECONDS, MAX_SYNCHRONOUS_SECONDS, Execution, ExecutionCall, ProblemError, Status

Body = Mapping[str, object]

EXECUTIONS_PATH = "executions"
FILES_PATH = "files"
SESSION_PATH = "session"
SESSIONS_PATH = "listSessions"
OPERATION_HEADER = "operation-id"

_TIMED_OUT = "Request timed out waiting for code execution to complete"
_ABORTED = "Execution aborted"
_LAST_LINE = re.compile(r"^(?:[\w.]+\.)?(\w+)(?:: (.*))?$", re.DOTALL)


# --- the client's half ---


def encode_call(call: ExecutionCall) -> dict[str, object]:
    """The body that starts an execution."""
    body: dict[str, object] = {
        "codeInputType": "Inline",
        "executionType": "Asynchronous" if call.asynchronous else "Synchronous",
        "code": call.code,
        "outputStreamsMaxLength": call.output_limit,
    }
    if call.timeout is not None:
        body["timeoutInSeconds"] = math.ceil(call.timeout) if call.timeout >= 1 else call.timeout
    return body


def decode_execution(body: Body) -> Execution:
    """An execution, with its result once it has one."""
    status = cast(Status, body["status"])
    finished = status in ("Succeeded", "Failed", "Canceled")
    return Execution(
        id=str(body["id"]),
        identifier=str(body["identifier"]),
        status=status,
        asynchronous=body.get("executionType") == "Asynchronous",
        result=_decode_result(body, status) if finished else None,
    )


def decode_file(body: Body) -> RemoteFile:
    """A file or folder."""
    directory = str(body.get("directory") or "")
    return RemoteFile(
        name=str(body["name"]),
        size=cast(int, body.get("sizeInBytes") or 0),
        modified=_decode_time(str(body["lastModifiedAt"])),
        directory="" if directory == "." else directory,
        is_directory=str(body.get("type", "file")).lower() == "directory",
        content_type=str(body.get("contentType") or "application/octet-stream").partition(";")[0],
    )


def decode_files(body: Body) -> list[RemoteFile]:
    """A listing."""
    return [decode_file(file) for file in cast(list[Body], body["value"])]


def decode_sessions(body: Body) -> list[SessionInfo]:
    """A page of sessions."""
    return [decode_session(session) for session in cast(list[Body], body["sessions"])]


def decode_session(body: Body) -> SessionInfo:
    """A session that the server keeps."""
    expires = body.get("expireAt")
    return SessionInfo(
        session_id=str(body["identifier"]),
        created=_decode_time(str(body["createdAt"])),
        last_used=_decode_time(str(body["lastAccessedAt"])),
        expires=_decode_time(str(expires)) if expires else None,
    )


def _decode_result(body: Body, status: Status) -> CodeExecutionResult:
    said = cast(Body, body.get("result") or {})
    stdout, stderr = str(said.get("stdout") or ""), str(said.get("stderr") or "")
    value, text, displays = _decode_value(said.get("executionResult"))
    plain = CodeExecutionResult(
        session_id=str(body["identifier"]),
        stdout=stdout,
        stderr=stderr,
        value=value,
        text=text,
        displays=displays,
        error=None if status == "Succeeded" else _decode_error(stderr),
        state=State() if status == "Succeeded" else _guess_state(stderr),
        duration=cast(float, said.get("executionTimeInMilliseconds") or 0) / 1000,
    )
    rich = body.get(RICH_MEMBER)
    return decode_rich(cast(Body, rich), plain) if rich else plain


def _decode_value(value: object) -> tuple[Scalar, str | None, tuple[Display, ...]]:
    match value:
        case None | "":
            return None, None, ()
        case {"type": "image", "format": str(kind), "base64_data": str(data)}:
            return None, None, (Display({f"image/{kind}": data}),)
        case str() | bool() | int() | float():
            return value, str(value), ()
    return str(value), str(value), ()


def _decode_error(stderr: str) -> CodeError:
    last = stderr.strip().rpartition("\n")[2]
    parts = _LAST_LINE.match(last)
    return CodeError(parts[1], parts[2] or "", stderr) if parts else CodeError("ExecutionFailed", last, stderr)


def _guess_state(stderr: str) -> State:
    """What the texts that Azure is known to send say of the variables."""
    if stderr.startswith(_TIMED_OUT):
        return State("unknown", "no reply")
    if stderr.startswith(_ABORTED) or "Kernel restarted" in stderr:
        return State("lost", "crash")
    return State()


def _decode_time(text: str) -> datetime:
    """.NET writes seven digits after the second, Python reads six."""
    return datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text))


# --- the server's half ---


def parse(content: bytes) -> object:
    """The JSON of a request."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        raise _invalid("the body is not JSON") from None


def decode_call(body: object) -> ExecutionCall:
    """What a client asks to run; ProblemError names what is wrong with it."""
    if not isinstance(body, Mapping):
        raise _invalid("the body is not a JSON object")
    if "properties" in body:
        raise ProblemError(400, "SessionPropertiesMissing", "this api-version takes the properties without a 'properties' wrapper")
    code = body.get("code")
    if not isinstance(code, str) or not code.strip():
        raise _invalid("'code' is missing, empty or not a string")
    try:
        code.encode()
    except UnicodeEncodeError:
        raise _invalid("'code' is not well-formed Unicode: it holds a lone surrogate") from None
    asynchronous = _choice(body, "executionType", ("synchronous", "asynchronous")) == "asynchronous"
    return ExecutionCall(
        code=code,
        asynchronous=asynchronous,
        timeout=_number(body, "timeoutInSeconds", MAX_ASYNCHRONOUS_SECONDS if asynchronous else MAX_SYNCHRONOUS_SECONDS),
        output_limit=int(_number(body, "outputStreamsMaxLength", 1 << 30) or 4096),
    )


def encode_execution(execution: Execution, output_limit: int, *, rich: bool) -> dict[str, object]:
    """An execution as Azure shows it, and with all of its result to a client that asked for that."""
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
    body["result"] = {
        "$id": "2",
        "stdout": result.stdout[:output_limit],
        "stderr": _encode_stderr(result)[:output_limit],
        "executionResult": _encode_value(result),
        "executionTimeInMilliseconds": round(result.duration * 1000),
    }
    return body | {RICH_MEMBER: encode_rich(result)} if rich else body


def encode_file(file: RemoteFile) -> dict[str, object]:
    """A file or folder."""
    return {
        "name": file.name,
        "type": "directory" if file.is_directory else "file",
        "contentType": file.content_type,
        "sizeInBytes": file.size,
        "lastModifiedAt": _encode_time(file.modified),
        "directory": file.directory,
    }


def encode_files(files: list[RemoteFile]) -> dict[str, object]:
    """A listing."""
    return {"value": [encode_file(file) for file in files]}


def encode_session(session: SessionInfo) -> dict[str, object]:
    """A session that the server keeps."""
    return {
        "identifier": session.session_id,
        "createdAt": _encode_time(session.created),
        "expireAt": _encode_time(session.expires or session.last_used),
        "lastAccessedAt": _encode_time(session.last_used),
        "etag": f"{session.created.timestamp():.0f}",
    }


def _encode_value(result: CodeExecutionResult) -> object:
    """A picture stands for the whole value, as in Azure; text without quotes, numbers as numbers."""
    images = [data for display in result.displays if isinstance(data := display.data.get("image/png"), str)]
    if images:
        return {"type": "image", "format": "png", "base64_data": images[0]}
    if result.text is None:
        return ""
    if isinstance(result.value, float) and not math.isfinite(result.value):
        return str(result.value)
    return result.value


def _encode_stderr(result: CodeExecutionResult) -> str:
    if result.error is None:
        return result.stderr
    match result.error.name, result.state.kind:
        case "TimeoutError", _ if not result.error.traceback:
            return _TIMED_OUT
        case "InterpreterDied", _:
            return _ABORTED
    return result.stderr


def _encode_time(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f0Z")


def _choice(body: Body, name: str, choices: tuple[str, ...]) -> str:
    value = body.get(name, choices[0])
    if not isinstance(value, str) or value.lower() not in choices:
        raise _invalid(f"'{name}' is none of {', '.join(choices)}")
    return value.lower()


def _number(body: Body, name: str, most: float) -> float | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:
        raise _invalid(f"'{name}' is not a number above 0 and up to {most:g}")
    return value


def _invalid(message: str) -> ProblemError:
    return ProblemError(400, "SessionRequestValidationFailed", message)
