"""The bodies of 2024-10-02-preview and later: executions, files and sessions as bare objects.

They include the routes `.management/*`, the platform's own view of sessions. The client's half comes first, then the server's.
"""

import math
from collections.abc import Mapping
from datetime import datetime
from typing import cast
from urllib.parse import quote

from ..models import RemoteFile, SessionInfo
from .extensions import RICH_MEMBER, decode_live, decode_rich, encode_rich
from .records import PROPERTIES_MISSING, Execution, ExecutionCall, ProblemError, Status
from .values import Body, checked_object, decode_code, decode_limits, decode_result, decode_time, encode_stderr, encode_time, encode_value

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
    status, id, identifier = cast(Status, body["status"]), str(body["id"]), str(body["identifier"])
    result = None
    if rich := body.get(RICH_MEMBER):
        result = decode_rich(cast(Body, rich), identifier)
    elif status in ("Succeeded", "Failed", "Canceled"):
        content = cast(Body, body.get("result") or {})
        result = decode_result(content, content.get("executionResult"), identifier, success=status == "Succeeded")
    return Execution(id=id, identifier=identifier, status=status, asynchronous=body.get("executionType") == "Asynchronous", result=result)


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
    asynchronous, timeout, output_limit = decode_limits(body)
    return ExecutionCall(code=decode_code(body), asynchronous=asynchronous, timeout=timeout, output_limit=output_limit)


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


_PAGE = 300  # sessions on a page, as in Azure


def encode_managed_session(session: SessionInfo) -> dict[str, object]:
    """Return the description of one session for the routes `.management/*`, in which `expireAt` is called `expiresAt`."""
    body = encode_session(session)
    body["expiresAt"] = body.pop("expireAt")
    return body


def encode_managed_sessions(sessions: list[SessionInfo], total: int, skip: int, url: str) -> dict[str, object]:
    """Return a page of sessions for the routes `.management/*`, with the link to the next page if there is one.

    Args:
        sessions: The sessions of this page, at most 300.
        total: The number of all sessions.
        skip: How many sessions the pages before held.
        url: The address of the listing, without a query.
    """
    body: dict[str, object] = {"value": [encode_managed_session(session) for session in sessions], "count": len(sessions)}
    return body | {"nextLink": f"{url}?skip={skip + _PAGE}"} if total > skip + _PAGE else body
