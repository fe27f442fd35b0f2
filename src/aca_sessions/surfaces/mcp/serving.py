"""Transports of the MCP server: standard input and output, or a port behind a key."""

import argparse
import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from mcp.server.stdio import stdio_server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from ...connect import open_pool
from ...settings import Settings
from ..keys import api_key
from ..serving import Server, address, allowed_hosts, listen_on_port
from ..standard_streams import standard_input
from .clients import House
from .guard import Guard
from .options import MB, Options
from .server import SessionServer

PATH = "/mcp"
_LARGEST_REQUEST = 16 * MB


async def serve_stdio(options: argparse.Namespace) -> int:
    """Serve one client until it closes our standard input."""
    standard_input()
    async with _house(options) as house, stdio_server() as (reading, writing):
        server = SessionServer(house)
        await server.run(reading, writing, server.create_initialization_options())
    return 0


async def serve_http(options: argparse.Namespace) -> int:
    """Serve many clients until a signal ends the server."""
    given = api_key(options)
    listener = listen_on_port(options.host, options.port)
    key = given or secrets.token_urlsafe(24)
    greeting = f"Endpoint: http://{address(listener)}{PATH}\nApiKey: {'(as given)' if given else key}"
    try:
        async with _house(options) as house, _Connections(house) as connections:
            app = Guard(connections.app, api_key=key, allowed_hosts=allowed_hosts(options))
            await Server(app, connections.end, partial(print, greeting, flush=True)).serve(sockets=[listener])
    finally:
        listener.close()
    return 0


class _Connections:
    """The connections over HTTP. Leaving the block ends them."""

    def __init__(self, house: House) -> None:
        self._manager = StreamableHTTPSessionManager(
            SessionServer(house),
            session_idle_timeout=house.options.idle_seconds,
            max_sessions=house.options.clients,
            max_request_body_size=_LARGEST_REQUEST,
        )
        self._started, self._stopping = asyncio.Event(), asyncio.Event()
        self.app: ASGIApp = self._respond

    async def __aenter__(self) -> "_Connections":
        self._task = asyncio.create_task(self._run())
        await self._started.wait()
        if self._task.done():
            await self._task  # raises why the manager did not start
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.end(0)

    async def end(self, _grace: float) -> None:
        """End every connection with its cells and sessions. A stream that stays open would keep the server from ending."""
        self._stopping.set()
        await self._task

    async def _run(self) -> None:
        """Run the manager until `end` is called: its task group must be entered and left in the same task."""
        try:
            async with self._manager.run():
                self._started.set()
                await self._stopping.wait()
        finally:
            self._started.set()

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] != PATH:
            await PlainTextResponse(f"the server is at {PATH}", 404)(scope, receive, send)
        elif self._stopping.is_set():
            await PlainTextResponse("the server ends", 503)(scope, receive, send)
        else:
            await self._manager.handle_request(scope, receive, send)


@asynccontextmanager
async def _house(options: argparse.Namespace) -> AsyncIterator[House]:
    settings = Settings()
    async with open_pool(settings, on_event=lambda event: house.heard(event)) as pool:
        house = House(pool, Options.of(settings.Mcp, options.tools))
        yield house
