"""The routes `python/*` of the private preview, which some clients still send. Only the server uses them."""

from collections.abc import Mapping

from ..models import CodeExecutionResult, RemoteFile
from .nested import encode_properties
from .records import MAX_SYNCHRONOUS_SECONDS, PROPERTIES_MISSING, Execution, ExecutionCall, ProblemError
from .values import checked_code, checked_object, encode_time, number


def decode_call(body: object) -> tuple[ExecutionCall, str | None]:
    """Return the execution that a client requests, and the session identifier if the body names one.

    Raise ProblemError for an invalid body.
    """
    properties = checked_object(body).get("properties")
    if not isinstance(properties, Mapping):
        raise ProblemError(400, PROPERTIES_MISSING, "python/execute takes the properties of a cell as an object 'properties'")
    call = ExecutionCall(
        code=checked_code(properties, "pythonCode"), timeout=number(properties, "timeoutInSeconds", MAX_SYNCHRONOUS_SECONDS)
    )
    identifier = properties.get("identifier")
    return call, identifier if isinstance(identifier, str) else None


def encode_execution(execution: Execution, output_limit: int) -> dict[str, object]:
    """Return a finished execution without an envelope."""
    return {"$id": "1", **encode_properties(execution.result or CodeExecutionResult(), output_limit)}


def encode_files(files: list[RemoteFile]) -> dict[str, object]:
    """Return a listing of files."""
    shown = [{"filename": file.name, "size": file.size, "last_modified_time": encode_time(file.modified)} for file in files]
    return {"$values": [{"$id": str(n + 1), **file} for n, file in enumerate(shown)]}
