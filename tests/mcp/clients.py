"""The SDK's own client, over both transports. It begins each connection with a handshake, with version 1 of the SDK and with version 2."""

import asyncio
import os
import subprocess
import sys
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, NamedTuple

import anyio
from mcp import ClientSession, StdioServerParameters, types
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.message import SessionMessage
from mcp.types import CallToolResult

from aca_sessions.mcp.sdk import HAS_STATELESS
from aca_sessions.mcp.sdk import ProtocolError as ProtocolError
from aca_sessions.mcp.tool import ANSWER_KEY

from ..conftest import COMMAND, LIGHT

if HAS_STATELESS:
    import httpx2 as httpx
    from pydantic import BaseModel

    # Version 2 renames the fields of all results: `isError` is `is_error`. Tests use the names of the protocol with both.
    for model in [one for one in vars(types).values() if isinstance(one, type) and issubclass(one, BaseModel)]:
        for name, field in model.model_fields.items():
            if field.alias and field.alias != name:
                setattr(model, field.alias, property(lambda self, name=name: getattr(self, name)))

    class Client(ClientSession):
        """The client of version 2, which also takes a URI that is not text."""

        async def read_resource(self, uri: object, **options: Any) -> Any:
            return await super().read_resource(str(uri), **options)

        # It warns that these three are not in 2026-07-28.
        async def subscribe_resource(self, uri: object, **options: Any) -> Any:
            return await _without_warning(super().subscribe_resource, str(uri), **options)

        async def unsubscribe_resource(self, uri: object, **options: Any) -> Any:
            return await _without_warning(super().unsubscribe_resource, str(uri), **options)

        async def set_logging_level(self, level: Any, **options: Any) -> Any:
            return await _without_warning(super().set_logging_level, level, **options)

    def _without_warning(method: Callable[..., Awaitable[Any]], *arguments: Any, **options: Any) -> Awaitable[Any]:
        with warnings.catch_warnings(action="ignore"):
            return method(*arguments, **options)
else:
    import httpx

    class Client(ClientSession):
        """The client of version 1, which can also declare extensions of MCP."""

        def __init__(self, *streams: Any, extensions: dict[str, Any] | None = None, **callbacks: Any) -> None:
            super().__init__(*streams, **callbacks)
            self._extensions = extensions

        async def send_request(self, request: Any, *arguments: Any, **options: Any) -> Any:
            if self._extensions is not None and isinstance(request.root, types.InitializeRequest):
                params = request.root.params
                params.capabilities = params.capabilities.model_copy(update={"extensions": self._extensions})
            return await super().send_request(request, *arguments, **options)


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
        Client(reading, writing, **callbacks) as client,
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
        streamable_http_client(server.address, http_client=http, terminate_on_close=leaves) as (reading, writing, *_),
        Client(reading, writing, **callbacks) as client,
    ):
        await client.initialize()
        yield client


async def start(client: ClientSession, code: str, **arguments: Any) -> "int | asyncio.Task[CallToolResult]":
    """Send a cell without waiting for its answer, and return what `cancel` needs once the cell runs."""
    started = anyio.Event()
    given = {"code": f"print('begun')\n{code}", **arguments}

    async def on_log(_message: types.LoggingMessageNotificationParams) -> None:
        started.set()

    client._logging_callback = on_log
    if HAS_STATELESS:
        waiting = asyncio.create_task(client.call_tool("run_python_code", given))
        waiting.add_done_callback(lambda done: done.cancelled() or done.exception())
        with anyio.fail_after(120):
            await started.wait()
        return waiting
    id = client._request_id
    params = types.CallToolRequestParams(name="run_python_code", arguments=given).model_dump(mode="json", exclude_none=True)
    client._request_id += 1
    request = types.JSONRPCRequest(jsonrpc="2.0", id=id, method="tools/call", params=params)
    await client._write_stream.send(SessionMessage(types.JSONRPCMessage(request)))
    with anyio.fail_after(120):
        await started.wait()
    return id


async def cancel(client: ClientSession, request: "int | asyncio.Task[CallToolResult]") -> None:
    """Cancel a request."""
    if not isinstance(request, int):
        request.cancel()
        return
    params = types.CancelledNotificationParams(requestId=request)
    await client.send_notification(types.ClientNotification(types.CancelledNotification(params=params)))
