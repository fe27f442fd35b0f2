"""The bodies of 2024-02-02-preview and 2024-08-02-preview, which have everything in `properties` envelopes, and of the private preview.

The client's half comes first, then the server's.
"""

import math
from collections.abc import Mapping
from typing import cast
from urllib.parse import quote

from ..models import CodeExecutionResult, RemoteFile
from .extensions import RICH_MEMBER, decode_rich, encode_rich
from .flat import checked_object, choice, decode_code, decode_result, decode_time, encode_stderr, encode_time, encode_value, number
from .records import MAX_SYNCHRONOUS_SECONDS, PROPERTIES_MISSING, Body, Execution, ExecutionCall, ProblemError, type_name

EXECUTE_PATH = "code/execute"
UPLOAD_PATH = "files/upload"
HAS_EXECUTIONS = False
DELETED: dict[str, object] | None = {"message": "file deleted successfully"}


def content_path(name: str) -> str:
    """Return the path at which these versions serve a file's content: `files/content/NAME`."""
    return f"files/content/{quote(name, safe='')}"


def content_named(path: str) -> str | None:
    """Return NAME if `path`, relative to `files/`, is the content path `content/NAME`; otherwise None."""
    return path.removeprefix("content/") if path.startswith("content/") else None


# --- the client's half ---


def encode_call(call: ExecutionCall) -> dict[str, object]:
    """Return the body of a request to run a cell, without `asynchronous` and `output_limit`, which these versions do not have."""
    properties: dict[str, object] = {"codeInputType": "inline", "executionType": "synchronous", "code": call.code}
    if call.timeout is not None:
        properties["timeoutInSeconds"] = math.ceil(call.timeout) if call.timeout >= 1 else call.timeout
    return {"properties": properties}


def decode_execution(body: Body, *, id: str = "", identifier: str = "") -> Execution:
    """Return the finished execution of a response. The body has no ids, so the execution gets the caller's `id` and `identifier`."""
    properties = cast(Body, body["properties"])
    success = properties["status"] == "Success"
    if rich := body.get(RICH_MEMBER):
        result = decode_rich(cast(Body, rich), identifier)
    else:
        result = decode_result(properties, properties.get("result"), identifier, success=success)
    return Execution(id=id, identifier=identifier, status="Succeeded" if success else "Failed", result=result)


def decode_upload(body: Body) -> RemoteFile:
    """Return the uploaded file. In these api-versions the response is a listing of that one file."""
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
    """Return the execution that a client requests. Raise ProblemError with what is wrong with the body. `lenient` has no effect here."""
    del lenient
    properties = _properties(body, "'code'")
    choice(properties, "executionType", ("synchronous",))
    return ExecutionCall(code=decode_code(properties), timeout=number(properties, "timeoutInSeconds", MAX_SYNCHRONOUS_SECONDS))


def _properties(body: object, least: str) -> Body:
    """Return the object `properties` of a request to run a cell. If it is missing, the error names its required members, `least`."""
    properties = checked_object(body, f"an object 'properties' with {least}").get("properties")
    if not isinstance(properties, Mapping):
        got = "nothing" if properties is None else type_name(properties)
        raise ProblemError(400, PROPERTIES_MISSING, f"'properties' must be an object with {least}, got {got}")
    return properties


def encode_execution(execution: Execution, output_limit: int, *, rich: bool) -> dict[str, object]:
    """Return a finished execution in Azure's form, with streams cut at `output_limit` characters. `rich` sends the whole result instead."""
    result = execution.result or CodeExecutionResult()
    if rich:
        return {"$id": "1", "properties": {"$id": "2", "status": _status(result)}, RICH_MEMBER: encode_rich(result)}
    return {"$id": "1", "properties": {"$id": "2", **_encode_properties(result, output_limit)}}


def _encode_properties(result: CodeExecutionResult, output_limit: int) -> dict[str, object]:
    """Return the members of a result that are the same in these versions and in the private preview."""
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
    """Return the response to an upload: a listing of that one file."""
    return encode_files([file])


def encode_file(file: RemoteFile) -> dict[str, object]:
    """Return the description of a file: in these versions, a listing of that one file."""
    return encode_files([file])


def encode_files(files: list[RemoteFile]) -> dict[str, object]:
    """Return a listing of files in `value`, with a `properties` envelope for each file."""
    shown = [{"filename": file.name, "size": file.size, "lastModifiedTime": encode_time(file.modified)} for file in files]
    entries = [{"$id": str(2 * n + 2), "properties": {"$id": str(2 * n + 3), **properties}} for n, properties in enumerate(shown)]
    return {"$id": "1", "value": entries}


# --- the routes `python/*` of the private preview, which some clients still send. Only the server uses them ---


def decode_legacy_call(body: object) -> tuple[ExecutionCall, str | None]:
    """Return the requested execution, and the session identifier if the body names one. Raise ProblemError for an invalid body."""
    properties = _properties(body, "'pythonCode'")
    identifier = properties.get("identifier")
    timeout = number(properties, "timeoutInSeconds", MAX_SYNCHRONOUS_SECONDS)
    call = ExecutionCall(code=decode_code(properties, "pythonCode"), timeout=timeout)
    return call, identifier if isinstance(identifier, str) else None


def encode_legacy_execution(execution: Execution, output_limit: int) -> dict[str, object]:
    """Return a finished execution as the private preview has it: the members of the result without an envelope."""
    return {"$id": "1", **_encode_properties(execution.result or CodeExecutionResult(), output_limit)}


def encode_legacy_files(files: list[RemoteFile]) -> dict[str, object]:
    """Return a listing of files as the private preview has it: in `$values`, with `last_modified_time` and no `properties`."""
    shown = [{"filename": file.name, "size": file.size, "last_modified_time": encode_time(file.modified)} for file in files]
    return {"$values": [{"$id": str(n + 1), **file} for n, file in enumerate(shown)]}
