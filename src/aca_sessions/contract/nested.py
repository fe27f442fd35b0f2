"""The bodies of 2024-02-02-preview and 2024-08-02-preview: everything in `properties` envelopes.

The client's half comes first, then the server's.
"""

import math
from collections.abc import Mapping
from typing import cast
from urllib.parse import quote

from ..models import CodeExecutionResult, RemoteFile, State
from .extensions import RICH_MEMBER, decode_rich, encode_rich
from .records import MAX_SYNCHRONOUS_SECONDS, PROPERTIES_MISSING, Execution, ExecutionCall, ProblemError, Status
from .values import (
    Body,
    checked_code,
    checked_object,
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

EXECUTE_PATH = "code/execute"
UPLOAD_PATH = "files/upload"
HAS_EXECUTIONS = False
DELETED: dict[str, object] | None = {"message": "file deleted successfully"}


def content_path(name: str) -> str:
    """Return the path of a file's content."""
    return f"files/content/{quote(name, safe='')}"


def content_named(path: str) -> str | None:
    """Return the name of the file whose content a path below `files/` requests, or None if it requests no content."""
    return path.removeprefix("content/") if path.startswith("content/") else None


# --- the client's half ---


def encode_call(call: ExecutionCall) -> dict[str, object]:
    """Return the request that runs a cell. In these versions the request lasts until the cell has ended."""
    properties: dict[str, object] = {"codeInputType": "inline", "executionType": "synchronous", "code": call.code}
    if call.timeout is not None:
        properties["timeoutInSeconds"] = math.ceil(call.timeout) if call.timeout >= 1 else call.timeout
    return {"properties": properties}


def decode_execution(body: Body, *, id: str = "", identifier: str = "") -> Execution:
    """Return a finished execution. The body does not name it, so it gets the caller's `id` and `identifier`."""
    said = cast(Body, body["properties"])
    success = said["status"] == "Success"
    status: Status = "Succeeded" if success else "Failed"
    if rich := body.get(RICH_MEMBER):
        return Execution(id=id, identifier=identifier, status=status, result=decode_rich(cast(Body, rich), identifier))
    stdout, stderr = str(said.get("stdout") or ""), str(said.get("stderr") or "")
    value, text, displays = decode_value(said.get("result"))
    result = CodeExecutionResult(
        session_id=identifier,
        stdout=stdout,
        stderr=stderr,
        value=value,
        text=text,
        displays=displays,
        error=None if success else decode_error(stderr),
        state=State() if success else guess_state(stderr),
        duration=cast(float, said.get("executionTimeInMilliseconds") or 0) / 1000,
    )
    return Execution(id=id, identifier=identifier, status=status, result=result)


def decode_upload(body: Body) -> RemoteFile:
    """Return the description of an uploaded file. The body is a listing of the one file."""
    return decode_files(body)[0]


def decode_files(body: Body) -> list[RemoteFile]:
    """Return the files of a listing."""
    return [_decode_file(cast(Body, file["properties"])) for file in cast(list[Body], body["value"])]


def _decode_file(properties: Body) -> RemoteFile:
    return RemoteFile(
        name=str(properties["filename"]).rpartition("/")[2],  # the service first named files by their full path
        size=cast(int, properties.get("size") or 0),
        modified=decode_time(str(properties["lastModifiedTime"])),
    )


# --- the server's half ---


def decode_call(body: object, *, lenient: bool = False) -> ExecutionCall:
    """Return the execution that a client requests. Raise ProblemError with what is wrong with the body. `lenient` changes nothing here."""
    del lenient
    properties = checked_object(body).get("properties")
    if not isinstance(properties, Mapping):
        raise ProblemError(400, PROPERTIES_MISSING, "this api-version takes the properties of a cell as an object 'properties'")
    choice(properties, "executionType", ("synchronous",))
    return ExecutionCall(code=checked_code(properties), timeout=number(properties, "timeoutInSeconds", MAX_SYNCHRONOUS_SECONDS))


def encode_execution(execution: Execution, output_limit: int, *, rich: bool) -> dict[str, object]:
    """Return a finished execution in Azure's form.

    Args:
        execution: The execution.
        output_limit: Characters at which each stream is cut, as Azure does.
        rich: Return the whole result in place of the one in Azure's form, for clients that ask for it.
    """
    result = execution.result or CodeExecutionResult()
    if rich:
        return {"$id": "1", "properties": {"$id": "2", "status": _status(result)}, RICH_MEMBER: encode_rich(result)}
    return {"$id": "1", "properties": {"$id": "2", **encode_properties(result, output_limit)}}


def encode_properties(result: CodeExecutionResult, output_limit: int) -> dict[str, object]:
    """Return the members of a result that both older generations have."""
    return {
        "status": _status(result),
        "stdout": result.stdout[:output_limit],
        "stderr": encode_stderr(result)[:output_limit],
        "result": encode_value(result),
        "executionTimeInMilliseconds": round(result.duration * 1000),
    }


def _status(result: CodeExecutionResult) -> str:
    return "Success" if result.success else "Failure"


def encode_upload(file: RemoteFile) -> dict[str, object]:
    """Return the response to an upload: a listing of the one file."""
    return encode_files([file])


def encode_file(file: RemoteFile) -> dict[str, object]:
    """Return the description of one file: a listing of it."""
    return encode_files([file])


def encode_files(files: list[RemoteFile]) -> dict[str, object]:
    """Return a listing of files."""
    shown = [{"filename": file.name, "size": file.size, "lastModifiedTime": encode_time(file.modified)} for file in files]
    entries = [{"$id": str(2 * n + 2), "properties": {"$id": str(2 * n + 3), **properties}} for n, properties in enumerate(shown)]
    return {"$id": "1", "value": entries}
