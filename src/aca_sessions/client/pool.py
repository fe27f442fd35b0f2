"""The pool of sessions: which caller may use one now, and when an idle one ends.

This is not the server's hosting, which maps identifiers to processes. `leases` decides, with no await in between; this module acts.
"""

import asyncio
import contextlib
import weakref
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal, Self

from .. import telemetry
from ..errors import ACASessionsError, PoolClosedError, PoolError, PoolTimeoutError
from ..models import SessionInfo
from ..owner import Owner
from ..tasks import Tasks
from .arguments import checked_session_id
from .interpreter import CodeInterpreter
from .leases import Granted, Leases, Waiter
from .made_at import caller
from .session import Session

_LOOK_FOR_IDLE_EVERY = 15.0
_NAMED_IN_A_MESSAGE = 5
# These defaults are defined here only: an embedded server gets room for the sessions that a pool with them promises.
DEFAULT_SESSIONS, DEFAULT_SESSION_SECONDS, DEFAULT_ACQUIRE_SECONDS = 10, 1800.0, 60.0


@dataclass(frozen=True, slots=True)
class PoolEvent:
    """Something that the pool did with a session."""

    kind: Literal["leased", "released", "expired", "terminated"]
    session_id: str


class SessionPool:
    """A pool that leases sessions of one endpoint, at most so many at the same time.

    A pool belongs to one event loop and one process. In a forked process its methods raise ForkedProcessError, and closing it does nothing.
    """

    def __init__(
        self,
        interpreter: CodeInterpreter,
        *,
        max_concurrent_sessions: int = DEFAULT_SESSIONS,
        session_timeout: float = DEFAULT_SESSION_SECONDS,
        acquire_timeout: float = DEFAULT_ACQUIRE_SECONDS,
        on_event: Callable[[PoolEvent], None] | None = None,
    ) -> None:
        """Use the given interpreter, which the pool does not close.

        Args:
            interpreter: The client of the endpoint.
            max_concurrent_sessions: How many sessions may be leased at the same time.
            session_timeout: Seconds after which a named session without a lease ends.
            acquire_timeout: Seconds that a caller waits for a lease before PoolTimeoutError is raised.
            on_event: Called with each event.
        """
        self._expiring: asyncio.Task[None] | None = None
        self._closed = False
        self._owner = Owner("the pool")
        self._made_at = caller()
        self._interpreter = interpreter
        self._leases = Leases(max_concurrent_sessions, timedelta(seconds=session_timeout))
        self._look_every = min(_LOOK_FOR_IDLE_EVERY, session_timeout)
        self._acquire_timeout = acquire_timeout
        self._on_event = on_event
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks = Tasks()
        self._ending: dict[str, asyncio.Task[None]] = {}

    @asynccontextmanager
    async def session(self, session_id: str | None = None) -> AsyncIterator[Session]:
        """Lease a session for the block. A name refers to the same session next time; an anonymous session ends with the block."""
        lease = await self._lease(session_id)
        try:
            yield Session(self._interpreter, lease.session_id)
        finally:
            await self._give_back(lease)

    async def get_or_create(self, session_id: str | None = None) -> Session:
        """Lease a session until it is released, and return it. Wait if as many sessions as allowed are leased."""
        return Session(self._interpreter, (await self._lease(session_id)).session_id)

    async def _lease(self, session_id: str | None) -> Granted:
        self._check_usable()
        if session_id is not None:
            checked_session_id(session_id)
        self._expire_idle()
        with telemetry.acquiring(session_id):
            granted = await self._acquire(session_id)
        try:
            await self._wait_for_earlier_life(granted.session_id)
        except BaseException:
            self._end(self._leases.release(granted))
            raise
        self._tell("leased", granted.session_id)
        return granted

    async def release(self, session_id: str) -> None:
        """Release a lease of a session. An anonymous session ends then, and its state with it. In a forked process do nothing."""
        if not self._owner.is_here:
            return
        if self._leases.is_held(session_id):
            telemetry.released()
            self._tell("released", session_id)
        await self._finish(self._end(self._leases.release(session_id)))

    async def _give_back(self, lease: Granted) -> None:
        """Release a lease at the end of its block.

        If its session was terminated meanwhile, the holder may have started another one under the name. End that, unless it belongs to
        another caller by now.
        """
        if not self._owner.is_here or not self._leases.has_ended(lease):
            await self.release(lease.session_id)
        elif not self._closed and not self._leases.knows(lease.session_id):
            await self._finish(self._end([lease.session_id]))

    async def terminate(self, session_id: str) -> None:
        """End a session at once and free its place, even if it is leased.

        A caller that still uses it gets `lost: terminated` in its next result. It then has a new session, which the pool does not count and
        which ends with the caller's block.
        """
        self._check_loop()
        leases = self._leases.leases_of(session_id)
        for name in self._leases.terminate(session_id):
            telemetry.released(leases)
            self._tell("terminated", name)
        # Also if the pool does not know the name: a caller whose lease was terminated may have started the session again.
        await self._finish(self._end([session_id]))

    def active(self) -> list[SessionInfo]:
        """Return all sessions that the pool keeps alive. Those with `is_active` are leased now."""
        self._owner.check()
        self._expire_idle()
        return self._leases.infos()

    async def close(self) -> None:
        """End every session of the pool.

        Callers that wait for one get PoolClosedError. In a forked process do nothing: the sessions are its parent's.
        """
        if not self._owner.is_here:
            return
        self._closed = True
        if self._expiring is not None:
            self._expiring.cancel()
            await asyncio.wait({self._expiring})
        names, waiters = self._leases.end_all()
        for waiter in waiters:
            waiter.wake(None)
        self._end(names)
        await self._tasks.finish()

    def abandon(self) -> None:
        """Mark the pool as closed because its event loop is. Nothing can be awaited then; the embedded server ends its sessions itself."""
        self._closed = True

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{self._leases.leased} of {self._leases.limit} leased, {self._leases.waiting} waiting"
        return f"<SessionPool {state}>"

    def __del__(self) -> None:
        if self._expiring is not None and not self._closed and self._owner.is_here:
            self._made_at.warn_unclosed(repr(self), "async with", source=self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _acquire(self, session_id: str | None) -> Granted:
        turn: asyncio.Future[Granted | None] = asyncio.get_running_loop().create_future()
        answer = self._leases.acquire(session_id, lambda granted: None if turn.done() else turn.set_result(granted))
        if isinstance(answer, Granted):
            return answer
        try:
            async with asyncio.timeout(self._acquire_timeout):
                granted = await turn
        except BaseException as error:
            # The lease may have been granted in the same turn of the event loop: then it is released.
            self._give_up(answer)
            if isinstance(error, TimeoutError):
                raise PoolTimeoutError(self._who_holds_what()) from None
            raise
        if granted is None:
            raise PoolClosedError("the pool was closed while this call waited for a session")
        return granted

    def _give_up(self, waiter: Waiter) -> None:
        self._end(self._leases.give_up(waiter))

    def _who_holds_what(self) -> str:
        """Return the message of a time-out, with the sessions that are leased for longest. Names are secrets, so it has their hashes."""
        now = datetime.now(UTC)
        held = [(info.session_id, now - info.leased_since) for info in self._leases.infos() if info.leased_since]
        held.sort(key=lambda one: one[1], reverse=True)
        longest = ", ".join(f"{telemetry.hashed(name)} for {time.total_seconds():.1f} s" for name, time in held[:_NAMED_IN_A_MESSAGE])
        return (
            f"no session became free within {self._acquire_timeout:g} s: {len(held)} of {self._leases.limit} are held, longest {longest}; "
            "release sessions sooner, or raise ACASessions:SessionPool:MaxConcurrentSessions"
        )

    def _tell(self, kind: Literal["leased", "released", "expired", "terminated"], session_id: str) -> None:
        if self._on_event is not None:
            self._on_event(PoolEvent(kind, session_id))

    def _end(self, session_ids: Collection[str], *, expired: bool = False) -> list["asyncio.Task[None]"]:
        for session_id in session_ids:
            self._ending[session_id] = task = self._tasks.start(_delete(self._interpreter, session_id, expired=expired))
            task.add_done_callback(lambda done, name=session_id: self._ended(name, done))  # type: ignore[misc]
        return [self._ending[session_id] for session_id in session_ids]

    def _ended(self, session_id: str, task: "asyncio.Task[None]") -> None:
        if self._ending.get(session_id) is task:
            del self._ending[session_id]

    async def _wait_for_earlier_life(self, session_id: str) -> None:
        """Wait until an earlier session of this name has ended: deleting it by name would delete the new one."""
        if session_id in self._ending:
            await asyncio.wait({self._ending[session_id]})

    async def _finish(self, endings: list["asyncio.Task[None]"]) -> None:
        """Wait for endings. They continue if the caller is cancelled meanwhile."""
        if endings:
            await asyncio.wait(endings)

    def _check_usable(self) -> None:
        self._owner.check()
        if self._closed:
            raise PoolClosedError("the pool is closed: open a new one")
        self._check_loop()
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._expiring = self._loop.create_task(_expire_idle_sessions(weakref.ref(self), self._look_every))

    def _check_loop(self) -> None:
        self._owner.check()
        if self._loop not in (None, asyncio.get_running_loop()):
            raise PoolError("the pool belongs to another event loop: open one in each loop that uses sessions")

    def _expire_idle(self) -> None:
        expired = self._leases.expire()
        for name in expired:
            self._tell("expired", name)
        self._end(expired, expired=True)


async def _delete(interpreter: CodeInterpreter, session_id: str, *, expired: bool) -> None:
    """End a session.

    Errors are ignored: one that was never used does not exist at the service, and one that cannot be ended expires there.
    """
    # A function and not a method: a suppressed error's traceback may keep this frame until the next garbage collection, and a forgotten
    # pool must not wait for that before it warns.
    with contextlib.suppress(ACASessionsError):
        await interpreter.delete_session(session_id, expired=expired)


async def _expire_idle_sessions(pool: "weakref.ref[SessionPool]", every: float) -> None:
    """Expire idle sessions again and again, without keeping the pool alive: a forgotten pool warns when it is collected."""
    while True:
        await asyncio.sleep(every)
        alive = pool()
        if alive is None:
            return
        alive._expire_idle()
        del alive
