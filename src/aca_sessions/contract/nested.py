"""2024-02-02-preview and 2024-08-02-preview: everything in `properties` envelopes. The client's half first, then the server's."""

import math
from collections.abc import Mapping
from typing import cast
from urllib.parse import quote

from ..models import CodeExecutionResult, RemoteFile, State
from .extensions import RICH_MEMBER, decode_rich, encode_rich
from .records import MAX_SYNCHRONOUS_SECONDS, PROPERTIES_MISSING, Execution, ExecutionCall, ProblemError
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
    """Where a file's content is."""
    return f"files/content/{quote(name, safe='')}"


def content_named(path: str) -> str | None:
    """The file whose content a path below `files/` asks for, if it asks for content."""
    return path.removeprefix("content/") if path.startswith("content/") else None


# --- the client's half ---


def encode_call(call: ExecutionCall) -> dict[str, object]:
    """The body that runs a cell; here a caller always waits for it."""
    properties: dict[str, object] = {"codeInputType": "inline", "executionType": "synchronous", "code": call.code}
    if call.timeout is not None:
        properties["timeoutInSeconds"] = math.ceil(call.timeout) if call.timeout >= 1 else call.timeout
    return {"properties": properties}


def decode_execution(body: Body, *, id: str = "", identifier: str = "") -> Execution:
    """An execution that is over; the answer does not name it, so the caller's own names are its names."""
    said = cast(Body, body["properties"])
    success = said["status"] == "Success"
    stdout, stderr = str(said.get("stdout") or ""), str(said.get("stderr") or "")
    value, text, displays = decode_value(said.get("result"))
    plain = CodeExecutionResult(
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
    rich = body.get(RICH_MEMBER)
    result = decode_rich(cast(Body, rich), plain) if rich else plain
    return Execution(id=id, identifier=identifier, status="Succeeded" if success else "Failed", result=result)


def decode_upload(body: Body) -> RemoteFile:
    """What an upload is answered with: a listing of the one file."""
    return decode_files(body)[0]


def decode_files(body: Body) -> list[RemoteFile]:
    """A listing. The service of the first days named files by their full path."""
    return [_decode_file(cast(Body, file["properties"])) for file in cast(list[Body], body["value"])]


def _decode_file(properties: Body) -> RemoteFile:
    return RemoteFile(
        name=str(properties["filename"]).rpartition("/")[2],
        size=cast(int, properties.get("size") or 0),
        modified=decode_time(str(properties["lastModifiedTime"])),
    )


# --- the server's half ---


def decode_call(body: object, *, lenient: bool = False) -> ExecutionCall:
    """What a client asks to run; ProblemError names what is wrong with it."""
    del lenient
    properties = checked_object(body).get("properties")
    if not isinstance(properties, Mapping):
        raise ProblemError(400, PROPERTIES_MISSING, "this api-version takes the properties of a cell as an object 'properties'")
    choice(properties, "executionType", ("synchronous",))
    return ExecutionCall(code=checked_code(properties), timeout=number(properties, "timeoutInSeconds", MAX_SYNCHRONOUS_SECONDS))


def encode_execution(execution: Execution, output_limit: int, *, rich: bool) -> dict[str, object]:
    """A finished execution."""
    result = execution.result or CodeExecutionResult()
    body: dict[str, object] = {"$id": "1", "properties": {"$id": "2", **encode_properties(result, output_limit)}}
    return body | {RICH_MEMBER: encode_rich(result)} if rich else body


def encode_properties(result: CodeExecutionResult, output_limit: int) -> dict[str, object]:
    """What both older generations say of a result."""
    return {
        "status": "Success" if result.success else "Failure",
        "stdout": result.stdout[:output_limit],
        "stderr": encode_stderr(result)[:output_limit],
        "result": encode_value(result),
        "executionTimeInMilliseconds": round(result.duration * 1000),
    }


def encode_upload(file: RemoteFile) -> dict[str, object]:
    """What an upload is answered with: a listing of the one file."""
    return encode_files([file])


def encode_file(file: RemoteFile) -> dict[str, object]:
    """What is known of one file."""
    return encode_files([file])


def encode_files(files: list[RemoteFile]) -> dict[str, object]:
    """A listing."""
    shown = [{"filename": file.name, "size": file.size, "lastModifiedTime": encode_time(file.modified)} for file in files]
    entries = [{"$id": str(2 * n + 2), "properties": {"$id": str(2 * n + 3), **properties}} for n, properties in enumerate(shown)]
    return {"$id": "1", "value": entries}
