"""The server, client and pool that programs are played on, and the network between them."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx

from aca_sessions import Policy, SessionPool, open_server
from aca_sessions.client.http import SessionsHttpClient
from aca_sessions.client.interpreter import CodeInterpreter
from aca_sessions.hosting import Hosting
from aca_sessions.sandbox.policy import Limits, Together

from ..conftest import descendants
from .reference import CHECKPOINTS

# A share of processes unlike that of other pools gives it a fork server of its own.
POLICY = Policy(preload=(), spares=0, together=Together(processes=29_000), limits=Limits(checkpoints=CHECKPOINTS))
MOST_SESSIONS, MOST_HANDLES, MOST_PLACES = 6, 5, 3
MOST_WORLDS = 100
FLOOD = 55


class LieError(AssertionError):
    """The product reported something untrue."""


class Network(httpx.AsyncBaseTransport):
    """Lose or spoil the answer to the next request to a path."""

    def __init__(self, app: object) -> None:
        self._inner = httpx.ASGITransport(app)  # type: ignore[arg-type]
        self.fault: str | None = None
        self.path = ""
        self.silent = False
        self.first: httpx.Request | None = None  # the first of those that may be sent once more

    async def send_first_again(self) -> None:
        assert self.first is not None
        await self._inner.handle_async_request(again(self.first))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        fault, path = None, request.url.path
        if self.fault is not None and request.method == "POST" and path.endswith(self.path):
            fault, self.fault = self.fault, None
            self.silent = fault == "silent"
        elif self.silent and request.method == "GET" and "/executions/" in path:
            fault = "before"
        if fault == "before":
            raise httpx.ReadError("lost on the way")
        if request.method == "POST" and path.endswith("executions"):
            await request.aread()
            self.first = self.first or request
        answer = await self._inner.handle_async_request(request)
        if fault == "twice":
            answer = await self._inner.handle_async_request(again(request))
        if fault in ("after", "silent"):
            raise httpx.ReadError("lost on the way back")
        return httpx.Response(504) if fault == "504" else answer


def again(request: httpx.Request) -> httpx.Request:
    return httpx.Request(request.method, request.url, headers=request.headers, content=request.content)


class Machine:
    """A server, a client and a pool for many programs."""

    def __init__(self, app: Any, network: Network, interpreter: CodeInterpreter, pool: SessionPool) -> None:
        self.app = app
        self.network = network
        self.interpreter = interpreter
        self.pool = pool
        self.usual: dict[str, int] | None = None  # the counts between two programs

    @classmethod
    @asynccontextmanager
    async def open(cls) -> AsyncIterator["Machine"]:
        async with open_server(policy=POLICY, hosting=Hosting(max_sessions=MOST_SESSIONS, cooldown=None)) as app:
            network = Network(app)
            http = SessionsHttpClient(httpx.AsyncClient(transport=network, base_url="http://model"), patience=0.02)
            async with CodeInterpreter(http) as interpreter, SessionPool(interpreter, max_concurrent_sessions=20) as pool:
                async with pool.session():
                    pass  # from now on the pool checks for idle sessions
                yield cls(app, network, interpreter, pool)

    async def check_nothing_left(self, before: "set[asyncio.Task[Any]]") -> None:
        """Wait until all tasks, sessions, descriptors and processes of the program have ended."""

        def left() -> dict[str, int]:
            found = {"tasks": len(asyncio.all_tasks() - before), "sessions": len(self.app._sessions)}
            return found | {"descriptors": len(os.listdir("/proc/self/fd")), "processes": len(descendants(os.getpid()))}

        def is_clean() -> bool:
            now = left()
            self.usual = self.usual or (now if not now["tasks"] + now["sessions"] else None)
            return self.usual is not None and all(now[what] <= self.usual[what] for what in now)

        try:
            async with asyncio.timeout(120):
                await until(is_clean)
        except TimeoutError:
            raise LieError(f"left behind: {left()}, and usual is {self.usual}") from None

    def hosted(self, name: str) -> Any:
        return self.app._sessions._sessions.get(name)

    def live(self, name: str) -> Any:
        """Return the interpreter of a session, or None."""
        session = self.hosted(name)
        return session._opening.result().running if session is not None and session._opening.done() else None

    def checkpoints(self, name: str) -> list[Any]:
        """Return the checkpoints of a session that the host believes to be alive."""
        session = self.hosted(name)
        return session._opening.result()._checkpoints.usable if session is not None and session._opening.done() else []

    def is_settled(self, name: str) -> bool:
        session = self.hosted(name)
        if session is None:
            return True
        opened = session._opening.done()
        return opened and not len(session.executions._tasks) + len(session._opening.result()._tasks)

    def unfinished(self, name: str) -> int:
        session = self.hosted(name)
        return session.executions.unfinished_count if session is not None else 0


async def until(check: Callable[[], bool]) -> None:
    await until_true(lambda: asyncio.sleep(0, check()))


async def until_true(check: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(120):
        while not await check():
            await asyncio.sleep(0.002)
