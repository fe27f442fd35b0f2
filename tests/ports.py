"""Run a server of this process on a port, as `aca-sessions serve` does."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aca_sessions import Policy, open_server
from aca_sessions.cli.connections import CONNECTION_LIMITS, ConnectionLimits
from aca_sessions.cli.serving import Server, listen_on_port
from aca_sessions.hosting import Hosting

KEY = {"authorization": "Bearer the-key"}
QUERY = {"api-version": "2025-10-02-preview", "identifier": "a"}
TARGET = "?api-version=2025-10-02-preview&identifier=a HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer the-key\r\n"


@asynccontextmanager
async def serving(
    limits: ConnectionLimits = CONNECTION_LIMITS, *, tls: tuple[Path, Path] | None = None
) -> AsyncIterator[tuple[Server, int]]:
    """Yield the server and its port on loopback."""
    started = asyncio.Event()
    hosting = Hosting(api_key="the-key", page=True)
    async with open_server(policy=Policy(preload=(), spares=0), hosting=hosting) as app:
        with listen_on_port("127.0.0.1", 0) as listener:
            server = Server(app, app.drain, started.set, limits=limits, tls=tls)
            running = asyncio.create_task(server.serve(sockets=[listener]))
            await started.wait()
            try:
                yield server, listener.getsockname()[1]
            finally:
                server.should_exit = True
                await running


def cell(code: str) -> dict[str, str]:
    """Return the body of a request to run a cell."""
    return {"codeInputType": "inline", "executionType": "synchronous", "code": code}
