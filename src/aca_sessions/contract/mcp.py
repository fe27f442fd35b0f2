"""Encode the messages of a pool's MCP endpoint in Azure's form: JSON-RPC over plain POST, with three tools. Only the server uses this."""

from collections.abc import Mapping

from ..models import CodeExecutionResult
from .flat import encode_stderr, encode_value
from .shell import exit_code

PATH = "mcp"
KEY_HEADER = "x-ms-apikey"
LAUNCH = ("launchShell", "launchPythonEnvironment")
RUN_PYTHON = "runPythonCodeInRemoteEnvironment"
RUN_COMMAND = "runShellCommandInRemoteEnvironment"

INVALID_REQUEST, UNKNOWN_METHOD, INVALID_ARGUMENTS = -32600, -32601, -32602

_TEXT = {"type": "string"}
_ENVIRONMENT = {"environmentId": {**_TEXT, "description": "the environmentId that launchShell returned"}}
INITIALIZED = {
    "protocolVersion": "2025-03-26",
    "capabilities": {"tools": {"call": True, "list": True}},
    "serverInfo": {"name": "Microsoft Container Apps MCP Server", "version": "1.0.0"},
}
TOOLS = [
    {
        "name": LAUNCH[0],
        "description": "Start an isolated environment and return its environmentId. Variables and files are kept in it.",
        "inputSchema": {"type": "object", "properties": {}},
    },
    {
        "name": RUN_PYTHON,
        "description": "Run Python code in an environment.",
        "inputSchema": {
            "type": "object",
            "properties": {**_ENVIRONMENT, "pythonCode": _TEXT},
            "required": ["environmentId", "pythonCode"],
        },
    },
    {
        "name": RUN_COMMAND,
        "description": "Run a command in an environment: a line for the shell, or a program and its arguments.",
        "inputSchema": {
            "type": "object",
            "properties": {**_ENVIRONMENT, "shellCommand": _TEXT, "execCommandAndArgs": {"type": "array", "items": _TEXT}, "stdin": _TEXT},
            "required": ["environmentId"],
        },
    },
]


def encode_response(id: object, result: Mapping[str, object]) -> dict[str, object]:
    """Encode the JSON-RPC response to a request that succeeded."""
    return {"jsonrpc": "2.0", "id": id, "result": result}


def encode_error(id: object, code: int, message: str) -> dict[str, object]:
    """Encode the JSON-RPC response to an invalid request, with an error code and a message."""
    return {"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": message}}


def encode_launch_result(identifier: str) -> dict[str, object]:
    """Encode the result of the MCP tool that starts a session, with the new session's `identifier`."""
    return _encode_content({"environmentId": identifier}, f"environmentId: {identifier}")


def encode_tool_result(result: CodeExecutionResult, *, command: bool) -> dict[str, object]:
    """Encode the result of an MCP tool that ran Python code, or a shell command if `command` is true."""
    content: dict[str, object] = {"stdout": result.stdout, "stderr": encode_stderr(result)}
    content |= {"exitCode": int(exit_code(result))} if command else {"executionResult": encode_value(result)}
    shown = (result.stdout, content["stderr"], None if command else result.text)
    return _encode_content(content, "\n".join(str(part).rstrip("\n") for part in shown if part)) | {"isError": not result.success}


def encode_tool_error(message: str) -> dict[str, object]:
    """Encode the result of a tool call that was refused. `message` gives the reason, for the model to read."""
    return {"content": [{"type": "text", "text": message}], "isError": True}


def _encode_content(content: dict[str, object], text: str) -> dict[str, object]:
    return {"content": [{"type": "text", "text": text}], "structuredContent": content, "isError": False}
