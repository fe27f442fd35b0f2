"""Hosts sessions: identifier → sandbox, born on first use, gone after a cool-down, at most so many at once.

Not the client's pool, which leases: here nobody holds a session, and what is known of one is when it was last used. Decisions await
nothing; what they ask to open or close is awaited afterwards.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import islice

from ..contract.records import ProblemError
from ..models import SessionInfo, State
from ..sandbox.sandbox import Sandbox
from .tasks import Tasks

_REMEMBERED = 10_000
_REAP_EVERY = 5.0


class HostedSession:
    """A session of this server: its sandbox, and one cell at a time."""

    def __init__(self, identifier: str, sandbox: "asyncio.Task[Sandbox]", *, expired: bool) -> None:
        """Starts idle; `expired` says that the identifier had another life before, whose end its owner has not been told of."""
        self.identifier = identifier
        self._loss = State("lost", "expired") if expired else None
        self.created = self.last_used = datetime.now(UTC)
        self.turn = asyncio.Lock()
        self.users = 0
        self._sandbox = sandbox

    async def sandbox(self) -> Sandbox:
        """The sandbox, once it is open."""
        return await asyncio.shield(self._sandbox)

    def take_loss(self) -> State | None:
        """A loss that is still to be told, once."""
        loss, self._loss = self._loss, None
        return loss

    def enter(self) -> None:
        """Somebody uses it: it is not the next to go."""
        self.users += 1
        self.last_used = datetime.now(UTC)

    def leave(self) -> None:
        """The counterpart of `enter`."""
        self.users -= 1
        self.last_used = datetime.now(UTC)

    async def close(self) -> None:
        """Ends it; one that never opened has nothing to end."""
        try:
            sandbox = await self._sandbox
        except Exception:
            return
        await sandbox.close()


class Sessions:
    """All sessions of a server."""

    def __init__(self, open_sandbox: Callable[[], Awaitable[Sandbox]], *, most: int, cooldown: float) -> None:
        """Opens sandboxes by the given function."""
        self._open_sandbox = open_sandbox
        self.most = most
        self._cooldown = timedelta(seconds=cooldown)
        self._sessions: OrderedDict[str, HostedSession] = OrderedDict()
        self._expired: OrderedDict[str, None] = OrderedDict()
        self._tasks = Tasks()

    def __len__(self) -> int:
        return len(self._sessions)

    def start(self) -> None:
        """Begins to end sessions that nobody used for the cool-down."""
        self._tasks.start(self._reap())

    @asynccontextmanager
    async def using(self, identifier: str) -> AsyncIterator[HostedSession]:
        """The session of an identifier, for as long as the block takes."""
        session = await self.enter(identifier)
        try:
            yield session
        finally:
            session.leave()

    async def enter(self, identifier: str) -> HostedSession:
        """The session of an identifier, the one there is or a new one, entered: the caller leaves it."""
        session, evicted = self._find_or_add(identifier)
        session.enter()
        try:
            if evicted is not None:
                await evicted.close()
            await session.sandbox()
        except BaseException as error:
            session.leave()
            if not isinstance(error, asyncio.CancelledError) and self._sessions.get(identifier) is session:
                del self._sessions[identifier]
            raise
        return session

    def find(self, identifier: str) -> HostedSession:
        """The session of an identifier, if there is one; asking makes none."""
        session = self._sessions.get(identifier)
        if session is None:
            raise ProblemError(400, "SessionWithIdentifierNotFound", "there is no session with this identifier")
        return session

    async def delete(self, identifier: str) -> None:
        """Ends a session on its owner's word."""
        session = self.find(identifier)
        del self._sessions[identifier]
        await session.close()

    def infos(self, skip: int = 0, count: int = 300) -> list[SessionInfo]:
        """What is known of the sessions, the longest unused first."""
        return [self.info(session) for session in islice(self._sessions.values(), skip, skip + count)]

    def info(self, session: HostedSession) -> SessionInfo:
        """What is known of a session."""
        return SessionInfo(
            session_id=session.identifier,
            created=session.created,
            last_used=session.last_used,
            expires=session.last_used + self._cooldown,
            is_active=session.users > 0,
        )

    async def close(self) -> None:
        """Ends all of them."""
        await self._tasks.close()
        sessions = [*self._sessions.values()]
        self._sessions.clear()
        await asyncio.gather(*(session.close() for session in sessions))

    def _find_or_add(self, identifier: str) -> tuple[HostedSession, HostedSession | None]:
        session = self._sessions.get(identifier)
        if session is not None:
            self._sessions.move_to_end(identifier)
            return session, None
        evicted = self._make_room() if len(self._sessions) >= self.most else None
        opening = asyncio.ensure_future(self._open_sandbox())
        session = HostedSession(identifier, opening, expired=identifier in self._expired)
        self._expired.pop(identifier, None)
        self._sessions[identifier] = session
        return session, evicted

    def _make_room(self) -> HostedSession:
        """The least recently used session that runs nothing goes; its owner is told when the identifier is used again."""
        idle = next((session for session in self._sessions.values() if session.users == 0), None)
        if idle is None:
            busy = len(self._sessions)
            there_are = f"There are already '{busy}' active sessions and the maximum active sessions count is '{self.most}'."
            raise ProblemError(429, "SessionsCountExceedsLimit", f"The request sessions count is '1'. {there_are}")
        return self._expire(idle)

    def _expire(self, session: HostedSession) -> HostedSession:
        del self._sessions[session.identifier]
        self._expired[session.identifier] = None
        while len(self._expired) > _REMEMBERED:
            self._expired.popitem(last=False)
        return session

    async def _reap(self) -> None:
        while True:
            await asyncio.sleep(min(_REAP_EVERY, self._cooldown.total_seconds()))
            before = datetime.now(UTC) - self._cooldown
            for session in [session for session in self._sessions.values() if session.users == 0 and session.last_used < before]:
                await self._expire(session).close()
