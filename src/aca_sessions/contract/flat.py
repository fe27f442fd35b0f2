"""The bodies of 2024-10-02-preview and later: executions, files and sessions as bare objects.

The client's half comes first, then the server's.
"""

import math
from collections.abc import Mapping
from datetime import datetime
from typing import cast
from urllib.parse import quote

from ..models import CodeExecutionResult, RemoteFile, SessionInfo, State
from .extensions import RICH_MEMBER, decode_live, decode_rich, encode_rich
from .records import MAX_ASYNCHRONOUS_SECONDS, MAX_SYNCHRONOUS_SECONDS, PROPERTIES_MISSING, Execution, ExecutionCall, ProblemError, Status
from .values import (
    Body,
    checked_code,
    checked_object,
    checked_output_limit,
    choice,
    decode_error,
    decode_time,
    decode_value,
    encode_stderr,
    encode_time,
    encode_value,
    guess_state,
    number,
)

EXECUTE_PATH = "executions"
UPLOAD_PATH = "files"
HAS_EXECUTIONS = True
DELETED: dict[str, object] | None = None
SESSION_PATH = "session"
SESSIONS_PATH = "listSessions"
OPERATION_HEADER = "operation-id"
GUID_HEADER = "x-ms-session-guid"  # a new one each time that a session begins under an identifier


def content_path(name: str) -> str:
    """Return the path of a file's content."""
    return f"files/{quote(name, safe='')}/content"


def content_named(path: str) -> str | None:
    """Return the name of the file whose content a path below `files/` requests, or None if it requests no content."""
    return path.removesuffix("/content") if path.endswith("/content") else None


# --- the client's half ---


def encode_call(call: ExecutionCall) -> dict[str, object]:
    """Return the request that starts an execution."""
    body: dict[str, object] = {
        "codeInputType": "Inline",
        "executionType": "Asynchronous" if call.asynchronous else "Synchronous",
        "code": call.code,
        "outputStreamsMaxLength": call.output_limit,
    }
    if call.timeout is not None:
        body["timeoutInSeconds"] = math.ceil(call.timeout) if call.timeout >= 1 else call.timeout
    return body


def decode_execution(body: Body, *, id: str = "", identifier: str = "") -> Execution:
    """Return an execution, with its result if it has finished.

    `id` and `identifier` are ignored: the body holds them, unlike in older versions.
    """
    del id, identifier
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
    """Return the description of a file or folder."""
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
    """Return the description of an uploaded file."""
    return decode_file(body)


def decode_files(body: Body) -> list[RemoteFile]:
    """Return the files of a listing."""
    return [decode_file(file) for file in cast(list[Body], body["value"])]


def decode_sessions(body: Body) -> list[SessionInfo]:
    """Return the sessions of a page."""
    return [decode_session(session) for session in cast(list[Body], body["sessions"])]


def decode_session(body: Body) -> SessionInfo:
    """Return the description of a session that the server keeps."""
    expires, live = body.get("expireAt"), body.get(RICH_MEMBER)
    session = SessionInfo(
        session_id=str(body["identifier"]),
        created=decode_time(str(body["createdAt"])),
        last_used=decode_time(str(body["lastAccessedAt"])),
        expires=decode_time(str(expires)) if expires else None,
    )
    return decode_live(cast(Body, live), session) if live else session


def _decode_result(body: Body, status: Status) -> CodeExecutionResult:
    identifier = str(body["identifier"])
    if rich := body.get(RICH_MEMBER):
        return decode_rich(cast(Body, rich), identifier)
    said = cast(Body, body.get("result") or {})
    stdout, stderr = str(said.get("stdout") or ""), str(said.get("stderr") or "")
    value, text, displays = decode_value(said.get("executionResult"))
    return CodeExecutionResult(
        session_id=identifier,
        stdout=stdout,
        stderr=stderr,
        value=value,
        text=text,
        displays=displays,
        error=None if status == "Succeeded" else decode_error(stderr),
        state=State() if status == "Succeeded" else guess_state(stderr),
        duration=cast(float, said.get("executionTimeInMilliseconds") or 0) / 1000,
    )


# --- the server's half ---


def decode_call(body: object, *, lenient: bool = False) -> ExecutionCall:
    """Return the execution that a client requests. Raise ProblemError with what is wrong with the body.

    Args:
        body: The parsed JSON of the request.
        lenient: Also accept the `properties` wrapper of older versions, which az CLI and some samples still send.
    """
    body = checked_object(body)
    if lenient and isinstance(body.get("properties"), Mapping):
        body = checked_object(body["properties"])
    if "properties" in body:
        raise ProblemError(400, PROPERTIES_MISSING, "this api-version takes the properties without a 'properties' wrapper")
    asynchronous = choice(body, "executionType", ("synchronous", "asynchronous")) == "asynchronous"
    return ExecutionCall(
        code=checked_code(body),
        asynchronous=asynchronous,
        timeout=number(body, "timeoutInSeconds", MAX_ASYNCHRONOUS_SECONDS if asynchronous else MAX_SYNCHRONOUS_SECONDS),
        output_limit=checked_output_limit(body),
    )


def encode_execution(execution: Execution, output_limit: int, *, rich: bool) -> dict[str, object]:
    """Return an execution in Azure's form.

    Args:
        execution: The execution.
        output_limit: Characters at which each stream is cut, as Azure does.
        rich: Return the whole result in place of the one in Azure's form, for clients that ask for it.
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
    if rich:
        return body | {RICH_MEMBER: encode_rich(result)}
    body["result"] = {
        "$id": "2",
        "stdout": result.stdout[:output_limit],
        "stderr": encode_stderr(result)[:output_limit],
        "executionResult": encode_value(result),
        "executionTimeInMilliseconds": round(result.duration * 1000),
    }
    return body


def encode_file(file: RemoteFile) -> dict[str, object]:
    """Return the description of a file or folder in Azure's form."""
    return {
        "name": file.name,
        "type": "directory" if file.is_directory else "file",
        "contentType": file.content_type,
        "sizeInBytes": file.size,
        "lastModifiedAt": encode_time(file.modified),
        "directory": file.directory,
    }


def encode_upload(file: RemoteFile) -> dict[str, object]:
    """Return the response to an upload: the one file."""
    return encode_file(file)


def encode_files(files: list[RemoteFile]) -> dict[str, object]:
    """Return a listing of files."""
    return {"value": [encode_file(file) for file in files]}


def encode_metadata(python: str, packages: list[tuple[str, str]], since: datetime) -> dict[str, object]:
    """Return the runtime and the packages of sessions.

    Args:
        python: The version of Python.
        packages: Names and versions of the installed packages.
        since: Since when they are as they are.
    """
    return {
        "runtimes": [{"name": "python", "version": python}],
        "preInstalledPackages": [{"name": name, "version": version} for name, version in packages],
        "createdAt": encode_time(since),
        "lastUpdatedAt": encode_time(since),
        "jupyterKernel": {"name": "python3", "version": python, "projectUrl": "https://ipython.org", "description": "IPython"},
    }


def encode_session(session: SessionInfo) -> dict[str, object]:
    """Return the description of a session that the server keeps."""
    return {
        "identifier": session.session_id,
        "createdAt": encode_time(session.created),
        "expireAt": encode_time(session.expires or session.last_used),
        "lastAccessedAt": encode_time(session.last_used),
        "etag": f"{session.created.timestamp():.0f}",
    }
