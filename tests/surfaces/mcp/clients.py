"""The SDK's own client, over both transports."""

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx
from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp.types import CallToolResult

from ...conftest import COMMAND


@asynccontextmanager
async def stdio_client_session(
    *arguments: str, environment: dict[str, str] | None = None, **callbacks: Any
) -> AsyncIterator[ClientSession]:
    """A server process, and a client that is connected to it."""
    own = {"XDG_CACHE_HOME": os.environ["XDG_CACHE_HOME"], **(environment or {})}
    parameters = StdioServerParameters(command=COMMAND[0], args=[*COMMAND[1:], "mcp", *arguments], env=own)
    async with (
        stdio_client(parameters, errlog=sys.__stderr__) as (reading, writing),
        ClientSession(reading, writing, **callbacks) as client,
    ):
        await client.initialize()
        yield client


async def run(client: ClientSession, code: str, **arguments: Any) -> CallToolResult:
    """What became of a cell."""
    return await client.call_tool("run_python_code", {"code": code, **arguments})


def text_of(result: CallToolResult) -> str:
    """What a model reads of it."""
    return "\n".join(block.text for block in result.content if block.type == "text")


@contextmanager
def http_server(*arguments: str) -> Iterator[tuple[str, str]]:
    """A server process on a free port: its address and its key."""
    process = subprocess.Popen([*COMMAND, "mcp", "--http", "--port", "0", *arguments], stdout=subprocess.PIPE, text=True)
    try:
        address, key = (process.stdout.readline().split(": ")[1].strip() for _ in range(2))
        yield address, key
    finally:
        process.terminate()
        assert process.wait(15) == 0
        process.stdout.close()


@asynccontextmanager
async def http_client_session(server: tuple[str, str], **callbacks: Any) -> AsyncIterator[ClientSession]:
    """A client that is connected to a server."""
    address, key = server
    async with (
        httpx.AsyncClient(headers={"Authorization": f"Bearer {key}"}, timeout=60) as http,
        streamable_http_client(address, http_client=http) as (reading, writing, _),
        ClientSession(reading, writing, **callbacks) as client,
    ):
        await client.initialize()
        yield client
