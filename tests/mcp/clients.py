"""The SDK's own client, over both transports."""

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, NamedTuple

import anyio
import httpx
from mcp import ClientSession, StdioServerParameters, types
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.message import SessionMessage
from mcp.types import CallToolResult

from aca_sessions.mcp.tool import ANSWER_KEY

from ..conftest import COMMAND, LIGHT


@asynccontextmanager
async def stdio_client_session(
    *arguments: str, environment: dict[str, str] | None = None, **callbacks: Any
) -> AsyncIterator[ClientSession]:
    """Start a server process, and yield a client that is connected to it."""
    inherited = {name: os.environ[name] for name in ("XDG_CACHE_HOME", "PYTHONPATH") if name in os.environ}
    own = {**LIGHT, **inherited, **(environment or {})}
    parameters = StdioServerParameters(command=COMMAND[0], args=[*COMMAND[1:], "mcp", *arguments], env=own)
    async with (
        stdio_client(parameters, errlog=sys.__stderr__) as (reading, writing),
        ClientSession(reading, writing, **callbacks) as client,
    ):
        await client.initialize()
        yield client


async def run(client: ClientSession, code: str, **arguments: Any) -> CallToolResult:
    """Run a cell and return its result."""
    return await client.call_tool("run_python_code", {"code": code, **arguments})


def text_of(result: CallToolResult) -> str:
    """Return what a model reads of a result."""
    return "\n".join(block.text for block in result.content if block.type == "text")


def answer_of(result: CallToolResult) -> dict[str, Any]:
    """Return what a program reads of the result of a tool that shows content."""
    assert result.structuredContent is None
    return result.meta[ANSWER_KEY]


class Running(NamedTuple):
    """A server over HTTP."""

    address: str
    key: str
    pid: int


@contextmanager
def http_server(*arguments: str, **environment: str) -> Iterator[Running]:
    """Start a server process on a free port. It stops by itself when it is asked to."""
    command = [*COMMAND, "mcp", "--http", "--port", "0", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment})
    try:
        address, key = (process.stdout.readline().split(": ")[1].strip() for _ in range(2))
        yield Running(address, key, process.pid)
    finally:
        process.terminate()
        assert process.wait(120) == 0
        process.stdout.close()


@asynccontextmanager
async def http_client_session(server: Running, *, leaves: bool = True, **callbacks: Any) -> AsyncIterator[ClientSession]:
    """Yield a client that is connected to a server and disconnects properly at the end."""
    async with (
        httpx.AsyncClient(headers={"Authorization": f"Bearer {server.key}"}, timeout=60) as http,
        streamable_http_client(server.address, http_client=http, terminate_on_close=leaves) as (reading, writing, _),
        ClientSession(reading, writing, **callbacks) as client,
    ):
        await client.initialize()
        yield client


async def start(client: ClientSession, code: str, **arguments: Any) -> int:
    """Send a cell without waiting for its answer, and return the number of the request once the cell runs."""
    started, id = anyio.Event(), client._request_id
    given = {"code": f"print('begun')\n{code}", **arguments}
    params = types.CallToolRequestParams(name="run_python_code", arguments=given).model_dump(mode="json", exclude_none=True)

    async def on_log(_message: types.LoggingMessageNotificationParams) -> None:
        started.set()

    client._logging_callback = on_log
    client._request_id += 1
    request = types.JSONRPCRequest(jsonrpc="2.0", id=id, method="tools/call", params=params)
    await client._write_stream.send(SessionMessage(types.JSONRPCMessage(request)))
    with anyio.fail_after(120):
        await started.wait()
    return id


async def cancel(client: ClientSession, request: int) -> None:
    """Cancel a request."""
    params = types.CancelledNotificationParams(requestId=request)
    await client.send_notification(types.ClientNotification(types.CancelledNotification(params=params)))
