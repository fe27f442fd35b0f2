"""Encode and decode the bodies of api-versions 2024-02-02-preview and 2024-08-02-preview, and of the private preview.

The bodies of the two api-versions are nested: their members are inside an object `properties`, called an envelope here. Functions of the
client come first, then those of the server.
"""

import math
from collections.abc import Mapping
from typing import cast
from urllib.parse import quote

from ..models import CodeExecutionResult, RemoteFile
from .extensions import RICH_MEMBER, decode_full_result, encode_full_result
from .flat import (
    decode_choice,
    decode_code,
    decode_number,
    decode_result,
    decode_time,
    encode_stderr,
    encode_time,
    encode_value,
    require_object,
)
from .records import MAX_SYNCHRONOUS_SECONDS, PROPERTIES_MISSING, Body, ExecutionRequest, ExecutionResponse, ProblemError, type_name

EXECUTE_PATH = "code/execute"
UPLOAD_PATH = "files/upload"
HAS_EXECUTIONS = False
DELETED: dict[str, object] | None = {"message": "file deleted successfully"}


def content_path(name: str) -> str:
    """Return the path of a file's content in the api-versions before 2024-10-02-preview: `files/content/NAME`."""
    return f"files/content/{quote(name, safe='')}"


def parse_content_path(path: str) -> str | None:
    """Return NAME if `path` is `content/NAME`, the URL path of a file's content, or None for any other path.

    `path` is the part of the request's URL path after `files/`. See `content_path` for the client's half.
    """
    return path.removeprefix("content/") if path.startswith("content/") else None


# --- the client's half ---


def encode_request(call: ExecutionRequest) -> dict[str, object]:
    """Encode a request to run a cell.

    Ignore `call.asynchronous` and `call.output_limit`, because the api-versions before 2024-10-02-preview have no such options.
    """
    properties: dict[str, object] = {"codeInputType": "inline", "executionType": "synchronous", "code": call.code}
    if call.timeout is not None:
        properties["timeoutInSeconds"] = math.ceil(call.timeout) if call.timeout >= 1 else call.timeout
    return {"properties": properties}


def decode_execution(body: Body, *, id: str = "", identifier: str = "") -> ExecutionResponse:
    """Decode a finished execution. `id` and `identifier` become those of the execution, because the body has no ids."""
    properties = cast(Body, body["properties"])
    success = properties["status"] == "Success"
    if full := body.get(RICH_MEMBER):
        result = decode_full_result(cast(Body, full), identifier)
    else:
        result = decode_result(properties, properties.get("result"), identifier, success=success)
    return ExecutionResponse(id=id, identifier=identifier, status="Succeeded" if success else "Failed", result=result)


def decode_upload(body: Body) -> RemoteFile:
    """Decode the response to an upload. In the api-versions before 2024-10-02-preview, it is a listing of the uploaded file alone."""
    return decode_files(body)[0]


def decode_files(body: Body) -> list[RemoteFile]:
    """Decode a listing: return the files in it."""
    return [_decode_file(cast(Body, file["properties"])) for file in cast(list[Body], body["value"])]


def _decode_file(properties: Body) -> RemoteFile:
    return RemoteFile(
        name=str(properties["filename"]).rpartition("/")[2],  # the service first named files by their full path
        size=cast(int, properties.get("size") or 0),
        modified=decode_time(str(properties["lastModifiedTime"])),
    )


# --- the server's half ---


def decode_request(body: object, *, lenient: bool = False) -> ExecutionRequest:
    """Parse a request to run a cell. Raise ProblemError if the body is invalid.

    `lenient` has no effect. In `flat.decode_request` it allows the `properties` envelope, which is always required here.
    """
    del lenient
    properties = _require_properties(body, "'code'")
    decode_choice(properties, "executionType", ("synchronous",))
    return ExecutionRequest(code=decode_code(properties), timeout=decode_number(properties, "timeoutInSeconds", MAX_SYNCHRONOUS_SECONDS))


def _require_properties(body: object, members: str) -> Body:
    """Return the object `properties` in a request's body.

    Raise ProblemError if there is no such object. `members` names what the object must have, for the error's message.
    """
    properties = require_object(body, f"an object 'properties' with {members}").get("properties")
    if not isinstance(properties, Mapping):
        got = "nothing" if properties is None else type_name(properties)
        raise ProblemError(400, PROPERTIES_MISSING, f"'properties' must be an object with {members}, got {got}")
    return properties


def encode_execution(execution: ExecutionResponse, output_limit: int, *, full: bool) -> dict[str, object]:
    """Encode a finished execution in Azure's form. Truncate stdout and stderr to `output_limit` characters each.

    If `full` is true, encode its result with `encode_full_result` instead, which truncates nothing.
    """
    result = execution.result or CodeExecutionResult()
    if full:
        return {"$id": "1", "properties": {"$id": "2", "status": _status(result)}, RICH_MEMBER: encode_full_result(result)}
    return {"$id": "1", "properties": {"$id": "2", **_encode_properties(result, output_limit)}}


def _encode_properties(result: CodeExecutionResult, output_limit: int) -> dict[str, object]:
    """Encode a result's status, stdout, stderr, value and duration.

    Azure's private preview and the two api-versions after it have the same names for these members.
    """
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
    """Encode the response to an upload: a listing of the uploaded file alone."""
    return encode_files([file])


def encode_file(file: RemoteFile) -> dict[str, object]:
    """Encode the description of a file: in the api-versions before 2024-10-02-preview, a listing of that file alone."""
    return encode_files([file])


def encode_files(files: list[RemoteFile]) -> dict[str, object]:
    """Encode a listing of files: the member `value` is a list with a `properties` envelope for each file."""
    shown = [{"filename": file.name, "size": file.size, "lastModifiedTime": encode_time(file.modified)} for file in files]
    entries = [{"$id": str(2 * n + 2), "properties": {"$id": str(2 * n + 3), **properties}} for n, properties in enumerate(shown)]
    return {"$id": "1", "value": entries}


# --- the routes `python/*` of the private preview, which some clients still send. Only the server uses them ---


def decode_legacy_request(body: object) -> tuple[ExecutionRequest, str | None]:
    """Parse a request to run a cell, in the format of Azure's private preview. Raise ProblemError if the body is invalid.

    Return the request, and the identifier of the session if the body has one.
    """
    properties = _require_properties(body, "'pythonCode'")
    identifier = properties.get("identifier")
    timeout = decode_number(properties, "timeoutInSeconds", MAX_SYNCHRONOUS_SECONDS)
    call = ExecutionRequest(code=decode_code(properties, "pythonCode"), timeout=timeout)
    return call, identifier if isinstance(identifier, str) else None


def encode_legacy_execution(execution: ExecutionResponse, output_limit: int) -> dict[str, object]:
    """Encode a finished execution as Azure's private preview does: the members of the result without an envelope."""
    return {"$id": "1", **_encode_properties(execution.result or CodeExecutionResult(), output_limit)}


def encode_legacy_files(files: list[RemoteFile]) -> dict[str, object]:
    """Encode a listing of files as Azure's private preview does.

    The list is in `$values`. Each file has `last_modified_time` and no `properties` envelope.
    """
    shown = [{"filename": file.name, "size": file.size, "last_modified_time": encode_time(file.modified)} for file in files]
    return {"$values": [{"$id": str(n + 1), **file} for n, file in enumerate(shown)]}
