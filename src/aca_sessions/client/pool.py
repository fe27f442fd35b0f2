"""Lease sessions to callers and end idle ones.

`Leases` decides which caller gets a lease and which session ends, without an await. `SessionPool` sends the requests that follow from these
decisions. The pool is part of the client; the server's own map from identifiers to processes is in `server/sessions.py`.
"""

import asyncio
import contextlib
import time
import uuid
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from .. import telemetry
from ..errors import ACASessionsError, InvalidArgumentError, PoolClosedError, PoolError, PoolTimeoutError, ServiceError
from ..lifetime import AsyncBlock, OwnerProcess, Tasks, find_calling_line
from ..models import Access, SavedSession, SessionInfo
from ..network.denials import OnDenied
from ..network.rules import Network
from .arguments import check_trust, checked_session_id
from .history import read_notebook
from .interpreter import CodeInterpreter
from .session import Session

_LOOK_FOR_IDLE_EVERY = 15.0
_NAMED_IN_A_MESSAGE = 5
_now = partial(datetime.now, UTC)
_OTHER_LOOP = "the pool belongs to another event loop: open one in each loop that uses sessions"
# These defaults are defined here only: an embedded server gets room for the sessions that a pool with them promises.
DEFAULT_SESSIONS, DEFAULT_SESSION_SECONDS, DEFAULT_ACQUIRE_SECONDS = 10, 1800.0, 60.0


@dataclass(slots=True)
class _PooledSession:
    named: bool
    created: datetime
    last_used: datetime
    leases: int = 0
    leased_since: datetime | None = None


@dataclass(frozen=True, slots=True)
class Lease:
    """The right of a caller to use a session now. When the session ends, its leases end too.

    A session that starts later under the same name needs a new lease.
    """

    session_id: str
    pooled: _PooledSession | None = field(default=None, compare=False, repr=False)


@dataclass(eq=False, slots=True)
class Waiter:
    """A caller that waits in the queue for a lease. `wake` is called with the lease, or with None if the pool is closed first."""

    session_id: str | None
    wake: Callable[[Lease | None], None]
    granted: Lease | None = field(default=None)


class Leases:
    """The leases, sessions and queue of a pool. No method awaits, so two callers cannot both get the last free place.

    Several leases of one name share one session, and the limit counts leased sessions. A caller that would exceed the limit waits in the
    queue. Methods that remove sessions return their names, and the caller must end those sessions.
    """

    def __init__(self, limit: int, idle_timeout: timedelta, clock: Callable[[], datetime] = _now) -> None:
        self.limit = limit
        self.leased = 0  # the number of leased sessions
        self._idle_timeout = idle_timeout
        self._clock = clock
        self._sessions: dict[str, _PooledSession] = {}
        self._waiting: deque[Waiter] = deque()

    @property
    def waiting(self) -> int:
        """Return the number of callers in the queue."""
        return len(self._waiting)

    def leases_of(self, session_id: str) -> int:
        """Return how many leases the session of this name has now."""
        pooled = self._sessions.get(session_id)
        return pooled.leases if pooled else 0

    def has_session(self, session_id: str) -> bool:
        """Return whether the pool keeps a session of this name, leased or idle."""
        return session_id in self._sessions

    def acquire(self, session_id: str | None, wake: Callable[[Lease | None], None]) -> Lease | Waiter:
        """Return a lease, or add the caller to the queue and return a Waiter.

        Callers are served in order. A caller that names a leased session gets a further lease at once, because the limit counts sessions.

        Args:
            session_id: The session's name, or None for a new anonymous session.
            wake: Called with the lease when a caller in the queue gets it, or with None if the pool is closed.
        """
        pooled = self._sessions.get(session_id) if session_id is not None else None
        # A further lease of a leased session takes no room of the pool, so it need not wait behind others.
        if (pooled is not None and pooled.leases) or (self.leased < self.limit and not self._waiting):
            return self._grant(session_id)
        waiter = Waiter(session_id, wake)
        self._waiting.append(waiter)
        return waiter

    def leave_queue(self, waiter: Waiter) -> list[str]:
        """Remove a caller from the queue. If the caller has a lease already, release the lease.

        Return the names of the sessions that must be ended now.
        """
        if waiter.granted is not None:
            return self.release(waiter.granted) or []
        if waiter in self._waiting:
            self._waiting.remove(waiter)
        return []

    def release(self, lease: Lease | str) -> list[str] | None:
        """Release a lease, or one lease of the session with the given name.

        Return the names of the sessions that must be ended now, or None if the lease has ended already. An anonymous session, one that the
        caller did not name, ends with its lease, so its state reaches no other caller.
        """
        session_id = lease if isinstance(lease, str) else lease.session_id
        pooled = self._sessions.get(session_id)
        if pooled is None or pooled.leases == 0 or (isinstance(lease, Lease) and pooled is not lease.pooled):
            return None
        pooled.leases -= 1
        pooled.last_used = self._clock()
        ended = []
        if pooled.leases == 0:
            pooled.leased_since = None
            self.leased -= 1
            if not pooled.named:
                del self._sessions[session_id]
                ended = [session_id]
        if self._waiting:
            self._serve_queue()
        return ended

    def terminate(self, session_id: str) -> list[str]:
        """Remove a session with all its leases.

        Return the sessions that the caller must end now: `[session_id]`, or [] if the pool does not keep that session.
        """
        pooled = self._sessions.pop(session_id, None)
        if pooled is None:
            return []
        self.leased -= pooled.leases > 0
        self._serve_queue()
        return [session_id]

    def expire(self) -> list[str]:
        """Remove the sessions that have had no lease for longer than the idle time-out.

        Return their names, because the caller must end these sessions now.
        """
        before = self._clock() - self._idle_timeout
        idle = []
        for name, pooled in self._sessions.items():
            if pooled.leases == 0 and pooled.last_used <= before:
                idle.append(name)
        for name in idle:
            del self._sessions[name]
        return idle

    def forget(self, session_id: str) -> None:
        """Stop keeping a session without ending it, if it has no lease: another program uses it, too."""
        pooled = self._sessions.get(session_id)
        if pooled is not None and pooled.leases == 0:
            del self._sessions[session_id]

    def end_all(self) -> tuple[dict[str, bool], list[Waiter]]:
        """Remove all sessions and empty the queue.

        Return the names of the sessions that must be ended now, each with whether a caller chose it, and the callers that waited in the
        queue, which must be woken.
        """
        names, waiters = {name: pooled.named for name, pooled in self._sessions.items()}, [*self._waiting]
        self._sessions.clear()
        self._waiting.clear()
        self.leased = 0
        return names, waiters

    def infos(self) -> list[SessionInfo]:
        """Return a description of every session that the pool keeps, leased or idle."""
        return [
            SessionInfo(
                session_id=name,
                created=pooled.created,
                last_used=pooled.last_used,
                expires=None if pooled.leases else pooled.last_used + self._idle_timeout,
                is_active=pooled.leases > 0,
                leased_since=pooled.leased_since,
            )
            for name, pooled in self._sessions.items()
        ]

    def _grant(self, session_id: str | None) -> Lease:
        name = session_id or str(uuid.uuid4())
        now = self._clock()
        pooled = self._sessions.setdefault(name, _PooledSession(session_id is not None, now, now))
        self.leased += pooled.leases == 0
        pooled.leases += 1
        pooled.last_used = now
        pooled.leased_since = pooled.leased_since or now
        return Lease(name, pooled)

    def _serve_queue(self) -> None:
        for waiter in [*self._waiting]:
            if self.leased < self.limit or (waiter.session_id is not None and self.leases_of(waiter.session_id)):
                self._waiting.remove(waiter)
                waiter.granted = self._grant(waiter.session_id)
                waiter.wake(waiter.granted)


@dataclass(frozen=True, slots=True)
class PoolEvent:
    """A report that the pool has leased, released, expired or terminated a session."""

    kind: Literal["leased", "released", "expired", "terminated"]
    session_id: str


class SessionPool:
    """A pool of sessions at one endpoint, with a limit on the number of sessions that are leased at the same time.

    A pool belongs to one event loop and one process. In a forked process its methods raise ForkedProcessError, except `release` and
    `close`, which do nothing there.

    Attributes:
        access: What the sessions can reach and install, as far as it is known.
    """

    def __init__(
        self,
        interpreter: CodeInterpreter,
        *,
        max_concurrent_sessions: int = DEFAULT_SESSIONS,
        session_timeout: float = DEFAULT_SESSION_SECONDS,
        acquire_timeout: float = DEFAULT_ACQUIRE_SECONDS,
        on_event: Callable[[PoolEvent], None] | None = None,
        on_denied: OnDenied | None = None,
        access: Access | None = None,
    ) -> None:
        """Create a pool whose sessions are used through `interpreter`. Closing the pool does not close `interpreter`.

        Args:
            interpreter: The client of the endpoint.
            max_concurrent_sessions: How many sessions may be leased at the same time.
            session_timeout: Seconds without a lease after which a session ends, if the caller named it. Other sessions end with their
                lease.
            acquire_timeout: Seconds that a caller waits for a lease before PoolTimeoutError is raised.
            on_event: Called with each PoolEvent.
            on_denied: Decides about requests of cells that the rules of their session's network refuse.
            access: What the sessions can reach and install, if that is known. The descriptions of tools for models include it.
        """
        self.access = access or Access()
        self._expiring: asyncio.Task[None] | None = None
        self._closed = False
        self._owner = OwnerProcess("the pool")
        self._created_at = find_calling_line()
        self._interpreter = interpreter
        self._leases = Leases(max_concurrent_sessions, timedelta(seconds=session_timeout))
        self._look_every = min(_LOOK_FOR_IDLE_EVERY, session_timeout)
        self._acquire_timeout = acquire_timeout
        self._on_event = on_event
        self._on_denied = on_denied
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks = Tasks()
        self._ending: dict[str, asyncio.Task[None]] = {}
        self._notebooks: dict[str, dict[str, Any]] = {}  # of imported sessions that were not leased yet

    def session(
        self, session_id: str | None = None, *, network: Network | None = None, on_denied: OnDenied | None = None
    ) -> AbstractAsyncContextManager[Session]:
        """Lease a session for an `async with` block. Wait while the pool is full, and raise PoolTimeoutError after `acquire_timeout`.

        Without `session_id`, the session is new and ends with the block. With `session_id`, the session continues the next time that it is
        leased, unless it was idle for too long.

        Args:
            session_id: The name of the session.
            network: What this session can reach, instead of the pool's network: see `Session.set_network`. It lasts as long as the pool
                keeps the session, also in later leases without this argument.
            on_denied: Decides about requests of the session's cells that the rules of its network refuse, by default the pool's function.
        """
        return _Leasing(self._leased(session_id, network, on_denied))

    @asynccontextmanager
    async def _leased(self, session_id: str | None, network: Network | None, on_denied: OnDenied | None) -> AsyncIterator[Session]:
        lease = await self._lease(session_id)
        try:
            yield await self._begin(lease, network, on_denied)
        finally:
            await self._release(lease)

    async def get_or_create(
        self, session_id: str | None = None, *, network: Network | None = None, on_denied: OnDenied | None = None
    ) -> Session:
        """Lease a session and return it. Wait while the pool is full, and raise PoolTimeoutError after `acquire_timeout`.

        The lease lasts until `release` is called, or until the session is terminated.

        Args:
            session_id: The name of the session.
            network: What this session can reach, as for `session`.
            on_denied: Decides about refused requests, as for `session`.
        """
        lease = await self._lease(session_id)
        try:
            return await self._begin(lease, network, on_denied)
        except BaseException:
            await self._release(lease)
            raise

    async def _begin(self, lease: Lease, network: Network | None, on_denied: OnDenied | None) -> Session:
        session = self._session_of(lease, on_denied)
        if network is not None:
            await session.set_network(network)
        return session

    def _access_of(self, session_id: str) -> Access:
        """Return what a session can reach: the network that was given to it, or else that of `access`."""
        given = self._interpreter._network_of(session_id)
        return self.access if given is None else replace(self.access, network=given.network.described)

    def _session_of(self, lease: Lease, on_denied: OnDenied | None) -> Session:
        session = Session(self._interpreter, lease.session_id, on_denied=on_denied or self._on_denied)
        if (notebook := self._notebooks.pop(lease.session_id, None)) is not None:
            with contextlib.suppress(InvalidArgumentError):  # it is not needed to use the session
                for step, _ in read_notebook(notebook):
                    session.history.add(step)
        return session

    async def _lease(self, session_id: str | None) -> Lease:
        self._owner.check()
        if self._closed:
            raise PoolClosedError("the pool is closed: open a new one")
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
            self._expiring = loop.create_task(_expire_idle_sessions(weakref.ref(self), self._look_every))
        elif self._loop is not loop:
            raise PoolError(_OTHER_LOOP)
        if session_id is not None:
            checked_session_id(session_id)
        if expired := self._leases.expire():
            self._end_expired(expired)
        started = time.perf_counter()
        with telemetry.span("acquire", session_id):
            turn: asyncio.Future[Lease | None] = loop.create_future()
            answer = self._leases.acquire(session_id, partial(_wake, turn))
            granted = answer if isinstance(answer, Lease) else await self._wait_for_turn(answer, turn)
        telemetry.acquire_seconds.record(time.perf_counter() - started)
        # Wait until an earlier session of this name has ended: deleting it by name would delete the new one.
        if granted.session_id in self._ending:
            try:
                await asyncio.wait({self._ending[granted.session_id]})
            except BaseException:
                self._end(self._leases.release(granted) or [])
                raise
        telemetry.leases.add(1)
        if self._on_event is not None:
            self._on_event(PoolEvent("leased", granted.session_id))
        return granted

    async def release(self, session_id: str) -> None:
        """Release one lease of a session. Do nothing if the session has no lease, or in a forked process.

        If the session is anonymous, one that the caller did not name, end it. This deletes its variables and files.
        """
        await self._release(session_id)

    async def _release(self, lease: Lease | str) -> None:
        if not self._owner.is_current:
            return
        session_id = lease if isinstance(lease, str) else lease.session_id
        ended = self._leases.release(lease)
        if ended is not None:
            telemetry.leases.add(-1)
            if self._on_event is not None:
                self._on_event(PoolEvent("released", session_id))
        # The session was terminated meanwhile, and the holder of the lease may have started another one under the name. End that one,
        # unless it belongs to another caller by now.
        elif isinstance(lease, Lease) and not self._closed and not self._leases.has_session(session_id):
            ended = [session_id]
        if ended:
            await self._finish(self._end(ended))

    async def terminate(self, session_id: str) -> None:
        """End a session and all its leases at once. The pool can then lease another session in its place.

        A caller that still uses the session starts a new one of the same name by its next cell, whose result reports `lost: terminated`.
        The pool does not count this new session, and ends it with the caller's `async with` block. Raise PoolError if another event loop
        uses the pool.
        """
        self._owner.check()
        if self._loop not in (None, asyncio.get_running_loop()):
            raise PoolError(_OTHER_LOOP)
        leases = self._leases.leases_of(session_id)
        for name in self._leases.terminate(session_id):
            telemetry.leases.add(-leases)
            self._tell("terminated", name)
        # Also if the pool does not know the name: a caller whose lease was terminated may have started the session again.
        await self._finish(self._end([session_id]))

    async def saved(self) -> list[SavedSession]:
        """Return the saved sessions of the store in the settings (`ACASessions:Durable:Store`), the oldest first.

        Raise NotSupportedError if the endpoint has no store.
        """
        self._owner.check()
        return await self._interpreter.saved()

    async def forget(self, session_id: str) -> None:
        """Delete the saves of a session. The session itself goes on, if there is one. Raise NotFoundError if it has no save."""
        self._owner.check()
        await self._interpreter.forget(session_id)

    async def import_(self, path: str | Path, session_id: str, *, trust: bool = False) -> SavedSession:
        """Begin a session from a file that `Session.export` wrote, and return what was restored. The rest is named in `lost`.

        The first result of the session has the state `restored: import`. Its history has the cells in the file. If the import fails, no
        session is left. Raise SaveCorruptedError if the file was changed or cut off, and ServiceError (`SessionExists`) if a session of
        this name is live or saved.

        Args:
            path: The file.
            session_id: The name of the new session.
            trust: Whether you trust where the file is from. Restoring runs its code, in the sandbox of the new session.
        """
        check_trust(trust)
        if self._leases.has_session(checked_session_id(session_id)):
            raise ServiceError(409, "SessionExists", "this pool has a session of this name: choose another name, or terminate that session")
        lease = await self._lease(session_id)
        try:
            saved, notebook = await self._interpreter._exports.import_(session_id, Path(path))
        except BaseException:
            # The endpoint has ended what it began. Another program may have a session of this name, which must not be ended.
            if self._leases.leases_of(session_id) == 1:
                self._leases.terminate(session_id)
                telemetry.leases.add(-1)
                self._tell("released", session_id)
            else:
                await self._release(lease)
            raise
        if notebook is not None:
            self._notebooks[session_id] = notebook
        await self._release(lease)
        return saved

    def active(self) -> list[SessionInfo]:
        """Return descriptions of the sessions that the pool keeps. Those with `is_active` are leased now, the others are idle.

        Sessions that were idle for too long are ended first.
        """
        self._owner.check()
        self._end_expired(self._leases.expire())
        return self._leases.infos()

    async def close(self) -> None:
        """End every session of the pool and refuse new leases. Callers that wait for a lease get PoolClosedError.

        Do nothing in a forked process, because the sessions belong to its parent.
        """
        if not self._owner.is_current:
            return
        self._closed = True
        if self._expiring is not None:
            self._expiring.cancel()
            await asyncio.wait({self._expiring})
        names, waiters = self._leases.end_all()
        for waiter in waiters:
            waiter.wake(None)
        self._end([name for name, is_named in names.items() if not is_named])
        self._end([name for name, is_named in names.items() if is_named], saved=True)
        await self._tasks.finish()

    def _abandon(self) -> None:
        """Mark the pool as closed, without ending its sessions: its event loop is closed, so it can send no requests.

        An embedded server, one that runs in this process, ends its sessions itself. Sessions at other endpoints expire.
        """
        self._closed = True

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{self._leases.leased} of {self._leases.limit} leased, {self._leases.waiting} waiting"
        return f"<SessionPool {self._interpreter._shown_endpoint}, {state}>"

    def __del__(self) -> None:
        if self._expiring is not None and not self._closed and self._owner.is_current:
            self._created_at.warn_unclosed(repr(self), "async with", source=self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _wait_for_turn(self, waiter: Waiter, turn: "asyncio.Future[Lease | None]") -> Lease:
        try:
            async with asyncio.timeout(self._acquire_timeout):
                granted = await turn
        except BaseException as error:
            # The lease may have been granted in the same turn of the event loop: then it is released.
            self._end(self._leases.leave_queue(waiter))
            if isinstance(error, TimeoutError):
                raise PoolTimeoutError(self._timeout_message()) from error
            raise
        if granted is None:
            raise PoolClosedError("the pool was closed while this call waited for a session: open a new one")
        return granted

    def _timeout_message(self) -> str:
        """Return the message of a PoolTimeoutError. It lists the sessions with the oldest leases, by hashes of their secret names."""
        now = datetime.now(UTC)
        leased = [(info.session_id, now - info.leased_since) for info in self._leases.infos() if info.leased_since]
        leased.sort(key=lambda one: one[1], reverse=True)
        longest = ", ".join(
            f"{telemetry.hash_name(name)} for {since.total_seconds():.1f} s" for name, since in leased[:_NAMED_IN_A_MESSAGE]
        )
        count = f"{len(leased)} of {self._leases.limit}"
        return (
            f"no session became free within {self._acquire_timeout:g} s: {count} are leased, longest {longest}; "
            "release sessions sooner, or raise ACASessions:SessionPool:MaxConcurrentSessions"
        )

    def _tell(self, kind: Literal["leased", "released", "expired", "terminated"], session_id: str) -> None:
        if self._on_event is not None:
            self._on_event(PoolEvent(kind, session_id))

    def _end(self, session_ids: Collection[str], *, expired: bool = False, saved: bool = False) -> list["asyncio.Task[None]"]:
        for session_id in session_ids:
            self._notebooks.pop(session_id, None)
            self._ending[session_id] = task = self._tasks.start(_delete(self._interpreter, session_id, expired=expired, saved=saved))
            task.add_done_callback(lambda done, name=session_id: self._ended(name, done))  # type: ignore[misc]
        return [self._ending[session_id] for session_id in session_ids]

    def _ended(self, session_id: str, task: "asyncio.Task[None]") -> None:
        if self._ending.get(session_id) is task:
            del self._ending[session_id]

    async def _finish(self, endings: list["asyncio.Task[None]"]) -> None:
        """Wait for the tasks in `endings`, which end sessions. They continue if the caller is cancelled."""
        if endings:
            await asyncio.wait(endings)

    def _end_expired(self, session_ids: list[str]) -> None:
        for session_id in session_ids:
            self._tell("expired", session_id)
        self._end(session_ids, expired=True)


class _Leasing(AsyncBlock, AbstractAsyncContextManager[Session]):
    """The block that `SessionPool.session` returns."""

    def __init__(self, block: AbstractAsyncContextManager[Session]) -> None:
        super().__init__("pool.session()", "use `async with pool.session() as session:`, which leases a session for the block")
        self._block = block

    async def __aenter__(self) -> Session:
        return await self._block.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return await self._block.__aexit__(kind, error, traceback)


def _wake(turn: "asyncio.Future[Lease | None]", granted: Lease | None) -> None:
    if not turn.done():
        turn.set_result(granted)


async def _delete(interpreter: CodeInterpreter, session_id: str, *, expired: bool, saved: bool) -> None:
    """End a session at the endpoint and ignore errors. An endpoint with a store saves it if `expired` or `saved` is true.

    An error is harmless: either the session does not exist there, because no cell was run in it, or it expires by itself later.
    """
    # A function and not a method: a suppressed error's traceback may keep this frame until the next garbage collection, and a forgotten
    # pool must not wait for that before it warns.
    with contextlib.suppress(ACASessionsError):
        await interpreter.delete_session(session_id, expired=expired, saved=saved)


async def _expire_idle_sessions(pool: "weakref.ref[SessionPool]", every: float) -> None:
    """End a pool's idle sessions every `every` seconds, until the pool is garbage-collected.

    The weak reference lets a pool be collected that was never closed. The pool's finalizer then warns.
    """
    while True:
        await asyncio.sleep(every)
        alive = pool()
        if alive is None:
            return
        alive._end_expired(alive._leases.expire())
        del alive
