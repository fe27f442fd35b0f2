"""The client of the SDK's version 2 without a handshake (2026-07-28), over both transports."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

from ..conftest import COMMAND, LIGHT
from .clients import httpx, text_of

REVISION = "2026-07-28"


@asynccontextmanager
async def stdio_client(*arguments: str, environment: dict[str, str] | None = None, **options: Any) -> AsyncIterator[Client]:
    """Start a server process, and yield a client that uses it."""
    inherited = {name: os.environ[name] for name in ("XDG_CACHE_HOME", "PYTHONPATH") if name in os.environ}
    settings = {**LIGHT, **inherited, **(environment or {})}
    program = StdioServerParameters(command=COMMAND[0], args=[*COMMAND[1:], "mcp", *arguments], env=settings)
    async with Client(program, **options) as client:
        assert client.protocol_version == REVISION
        yield client


@asynccontextmanager
async def http_client(address: str, key: str, **options: Any) -> AsyncIterator[Client]:
    """Yield a client that sends its requests to an address with a key."""
    async with (
        httpx.AsyncClient(headers={"Authorization": f"Bearer {key}"}, timeout=60) as http,
        Client(streamable_http_client(address, http_client=http), **options) as client,
    ):
        assert client.protocol_version == REVISION
        yield client


async def text_from(client: Client, code: str, **arguments: Any) -> str:
    """Run a cell and return what a model reads."""
    return text_of(await client.call_tool("run_python_code", {"code": code, **arguments}))


async def create(client: Client, **arguments: Any) -> str:
    """Create a session and return its handle."""
    result = await client.call_tool("create_session", arguments)
    assert not result.isError, text_of(result)
    return result.structuredContent["session_id"]
