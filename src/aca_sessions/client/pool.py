"""Leases sessions: who may use one now, and when an idle one ends.

Not the server's hosting: that maps identifiers to processes. Decisions are made in `leases`, without an await in between; here they
are carried out.
"""

import asyncio
import contextlib
import warnings
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Self

from ..errors import ACASessionsError, PoolClosedError, PoolTimeoutError
from ..models import SessionInfo
from .interpreter import CodeInterpreter
from .leases import Granted, Leases, Waiter
from .session import Session

_LOOK_FOR_IDLE_EVERY = 15.0


class SessionPool:
    """Hands out sessions of one endpoint, at most so many at the same moment."""

    def __init__(
        self,
        interpreter: CodeInterpreter,
        *,
        max_concurrent_sessions: int = 10,
        session_timeout: float = 1800.0,
        acquire_timeout: float = 60.0,
    ) -> None:
        """Runs sessions through the given interpreter, which stays its owner's. Times are in seconds."""
        self._interpreter = interpreter
        self._leases = Leases(max_concurrent_sessions, timedelta(seconds=session_timeout))
        self._look_every = min(_LOOK_FOR_IDLE_EVERY, session_timeout)
        self._acquire_timeout = acquire_timeout
        self._endings: set[asyncio.Task[None]] = set()
        self._expiring: asyncio.Task[None] | None = None
        self._closed = False

    @asynccontextmanager
    async def session(self, session_id: str | None = None) -> AsyncIterator[Session]:
        """Holds a session for the block: a named one is the same next time, an anonymous one ends with the block."""
        session = await self.get_or_create(session_id)
        try:
            yield session
        finally:
            await self.release(session.session_id)

    async def get_or_create(self, session_id: str | None = None) -> Session:
        """Holds a session until it is released; waits where as many as allowed are held."""
        if self._closed:
            raise PoolClosedError("the pool is closed: open a new one")
        self._start_expiring()
        self._end(self._leases.expire())
        granted = await self._acquire(session_id)
        return Session(self._interpreter, granted.session_id, expired=granted.expired)

    async def release(self, session_id: str) -> None:
        """Gives a session back. An anonymous one ends, and its state with it."""
        await self._finish(self._end(self._leases.release(session_id)))

    async def terminate(self, session_id: str) -> None:
        """Ends a session at once, whoever holds it."""
        await self._finish(self._end(self._leases.terminate(session_id)))

    def active(self) -> list[SessionInfo]:
        """All sessions that the pool keeps alive; those with `is_active` are held now."""
        self._end(self._leases.expire())
        return self._leases.infos()

    async def close(self) -> None:
        """Ends every session of the pool."""
        self._closed = True
        if self._expiring is not None:
            self._expiring.cancel()
            await asyncio.wait({self._expiring})
        self._end(self._leases.end_all())
        await self._finish(self._endings)

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{self._leases.leased} of {self._leases.limit} leased, {self._leases.waiting} waiting"
        return f"<SessionPool {state}>"

    def __del__(self) -> None:
        if self._expiring is not None and not self._closed:
            warnings.warn(f"{self!r} was never closed: use 'async with'", ResourceWarning, source=self, stacklevel=2)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _acquire(self, session_id: str | None) -> Granted:
        turn: asyncio.Future[Granted] = asyncio.get_running_loop().create_future()
        answer = self._leases.acquire(session_id, lambda granted: None if turn.done() else turn.set_result(granted))
        if isinstance(answer, Granted):
            return answer
        try:
            async with asyncio.timeout(self._acquire_timeout):
                return await turn
        except BaseException as error:
            self._give_up(answer)
            if isinstance(error, TimeoutError):
                raise PoolTimeoutError(self._who_holds_what()) from None
            raise

    def _give_up(self, waiter: Waiter) -> None:
        self._end(self._leases.give_up(waiter))

    def _who_holds_what(self) -> str:
        kinds = Counter("active" if info.is_active else "idle" for info in self._leases.infos())
        return (
            f"no session became free within {self._acquire_timeout:g} s: {kinds['active']} of {self._leases.limit} are held; "
            "release sessions sooner, or raise ACASessions:SessionPool:MaxConcurrentSessions"
        )

    def _end(self, session_ids: Iterable[str]) -> list["asyncio.Task[None]"]:
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(self._delete(session_id)) for session_id in session_ids]
        for task in tasks:
            self._endings.add(task)
            task.add_done_callback(self._endings.discard)
        return tasks

    async def _finish(self, endings: Iterable["asyncio.Task[None]"]) -> None:
        """Waits for endings, which go on if the caller is cancelled meanwhile."""
        pending = [*endings]
        if pending:
            await asyncio.wait(pending)

    async def _delete(self, session_id: str) -> None:
        """A session that was never used does not exist at the service, and one that it cannot end expires there by itself."""
        with contextlib.suppress(ACASessionsError):
            await self._interpreter.delete_session(session_id)

    def _start_expiring(self) -> None:
        if self._expiring is None:
            self._expiring = asyncio.get_running_loop().create_task(self._expire())

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(self._look_every)
            self._end(self._leases.expire())
