"""The sessions of a server: identifier → sandbox. One is opened at its first use and ends after a cool-down; their number is limited.

Unlike the client's pool, a server knows no leases: it knows only when a session was used last. Decisions contain no `await`. What they ask
to open or close runs in the background.
"""

import asyncio
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Self, TypeVar
from weakref import WeakSet

from .. import telemetry
from ..contract.flat import GUID_HEADER
from ..contract.records import DRAINING, NO_SESSION, TOO_MANY_STARTING, ExecutionCall, ProblemError
from ..errors import GuestDiedError
from ..hosting import Hosting
from ..ledger import Ledger
from ..models import SessionInfo
from ..sandbox.memory import Memory
from ..sandbox.probe import IsolationReport, examine
from ..sandbox.sandbox import Sandbox
from ..sandbox.sandboxes import Sandboxes
from ..sandbox.shortage import open_descriptors, room_for_sessions
from ..tasks import Tasks
from .executions import Executions, RunningExecution, no_execution
from .journal import Journal

_FULL = "SessionsCountExceedsLimit"
_REMEMBERED = 10_000  # ledgers of sessions that ended, and cancellations that came before their cells
_REAP_EVERY = 5.0  # seconds
Key = TypeVar("Key")
Value = TypeVar("Value")


class HostedSession:
    """A session of this server: its sandbox, its ledger and its executions."""

    def __init__(
        self,
        identifier: str,
        ledger: Ledger,
        opening: "asyncio.Future[Sandbox]",
        default_timeout: float,
        *,
        journal: Journal,
        open_again: Callable[[], "asyncio.Future[Sandbox]"] | None = None,
    ) -> None:
        """Take a sandbox that is still being opened.

        Args:
            identifier: The name of the session, which is a secret.
            ledger: The ledger of all sessions that had this identifier.
            opening: The sandbox, once it is open.
            default_timeout: The time limit of cells that have none of their own, in seconds.
            journal: Counts and logs what happens.
            open_again: Opens another sandbox if this one dies before anything could be lost. None if that is not possible.
        """
        self.identifier = identifier
        self.ledger = ledger
        self.has_state = False  # whether anything would be lost with it
        self.ended = False
        self.executions = Executions(self, default_timeout, journal=journal)
        self.created = self.last_used = datetime.now(UTC)
        self.etag = uuid.uuid4().hex
        self._new = True
        self._users = 0
        self._opening = opening
        self._open_again = open_again

    async def sandbox(self) -> Sandbox:
        """Return the sandbox when it is open. Raise if it could not be opened."""
        # A caller that is cancelled must not cancel the opening for all.
        return await asyncio.shield(self._opening)

    async def renew(self) -> bool:
        """Open another sandbox if this one died before anything could be lost. Return whether that was so."""
        if self.has_state or self._open_again is None:
            return False
        sandbox = await self.sandbox()
        # Both are checked again after the await: a cell or an end may have come meanwhile.
        if await sandbox.fork_server_answers() or self.has_state or self.ended:
            return False
        self._opening = self._open_again()
        await sandbox.close()
        return True

    @property
    def in_use(self) -> bool:
        """Return whether a cell or a request uses it now."""
        return self._users > 0 or self.executions.unfinished > 0

    @property
    def usable(self) -> bool:
        """Return whether it can run cells: its sandbox is open or being opened, and the fork server is alive."""
        if not self._opening.done():
            return True
        return not self._opening.cancelled() and self._opening.exception() is None and self._opening.result().usable

    @property
    def is_starting(self) -> bool:
        """Return whether a request waits for its sandbox or its first interpreter."""
        if not self._opening.done():
            return True
        return self.usable and self.in_use and self._opening.result().running is None

    @property
    def memory(self) -> Memory | None:
        """Return the counter of its memory, or None until its sandbox is open."""
        there = self._opening.done() and not self._opening.cancelled() and self._opening.exception() is None
        return self._opening.result().memory if there else None

    @contextmanager
    def used(self) -> Iterator[None]:
        """Mark it as in use during the block, so that it is not ended to make room."""
        self._users += 1
        self.touch()
        try:
            yield
        finally:
            self._users -= 1
            self.touch()

    def take_headers(self) -> dict[str, str]:
        """Return the headers that Azure sends about a session with each response. Only the first response marks it as new."""
        new, self._new = self._new, False
        return {GUID_HEADER: self.etag, "x-ms-new-allocation": str(new).lower()}

    def touch(self) -> None:
        """Restart its cool-down."""
        self.last_used = datetime.now(UTC)

    def note_lost(self) -> None:
        """Record in the ledger that its fork server died, if anything was lost with it. Do nothing if that is recorded already."""
        if self.has_state and self.memory is not None:
            self._opening.result().note_lost_workspace()

    async def close(self, cause: str = "killed") -> None:
        """End it and the cell that runs. All its executions get results. `cause` is the reason in those results."""
        try:
            sandbox = await self._opening
        except Exception:
            return  # there is nothing to end
        await sandbox.close(cause)
        await self.executions.finish()


class Sessions:
    """The sessions of one server, and the decisions about them: open, find, evict, end."""

    def __init__(self, sandboxes: Sandboxes, hosting: Hosting, *, default_timeout: float) -> None:
        """Prepare a server without sessions.

        Args:
            sandboxes: Where sandboxes are opened.
            hosting: How many sessions it hosts, and for how long.
            default_timeout: The time limit of cells that have none of their own, in seconds.
        """
        self._sandboxes = sandboxes
        self.most = hosting.max_sessions
        self._most_starting = hosting.max_starting
        self._plain = hosting.plain
        self._evicts = hosting.evicts and not hosting.plain  # Azure never ends one session to make room for another
        self._cooldown = timedelta(seconds=hosting.cooldown) if hosting.cooldown is not None else None
        self._default_timeout = default_timeout
        self.journal = Journal(hosting)
        self._sessions: OrderedDict[str, HostedSession] = OrderedDict()
        self._starting: WeakSet[HostedSession] = WeakSet()  # pruned before it is counted: some have started meanwhile
        self._ledgers: OrderedDict[str, Ledger] = OrderedDict()  # of sessions that ended
        self._forestalled: OrderedDict[tuple[str, str], None] = OrderedDict()  # executions that were cancelled before they arrived
        self._since = datetime.now(UTC)
        self.draining = False  # if set, new sessions are refused and existing ones are served
        self._tasks = Tasks()
        self._isolation: asyncio.Task[IsolationReport] | None = None
        self._reaper: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def healthy(self) -> bool:
        """Return whether new sessions can be opened at once."""
        return self._sandboxes.alive

    async def environment(self) -> tuple[str, list[tuple[str, str]], datetime]:
        """Return the guests' Python, its packages, and since when the server has run."""
        return (*await self._sandboxes.environment(), self._since)

    async def isolation(self) -> IsolationReport:
        """Return what separates sessions from this host. It is found by trying, at the first call; a failure is tried again."""
        if self._isolation is None or (self._isolation.done() and self._isolation.exception() is not None):
            self._isolation = self._tasks.own(examine(self._sandboxes))
        return await asyncio.shield(self._isolation)

    def get(self, identifier: str) -> HostedSession:
        """Return the session of an identifier, or open one. A session whose sandbox died is replaced.

        Raise ProblemError if a new session is refused: 429 if the server is full, 503 if it drains or too many sessions start.
        """
        session = self._sessions.get(identifier)
        if session is not None and not session.usable:
            session.note_lost()
            self._drop(session, "crash", cause=None)
            self._tasks.start(session.close())
            session = None
        if session is None:
            session = self._add(identifier)
        self._sessions.move_to_end(identifier)
        session.touch()
        return session

    def find(self, identifier: str) -> HostedSession:
        """Return the session of an identifier. Raise ProblemError (400) if there is none, or 503 if the server drains."""
        session = self._sessions.get(identifier)
        if session is None:
            self._check_is_ours()
            raise ProblemError(400, NO_SESSION, "there is no session with this identifier")
        return session

    def execute(self, identifier: str, id: str, call: ExecutionCall) -> RunningExecution:
        """Accept a cell and return its execution. It never starts if it was interrupted before it arrived."""
        # Values are None, so the default `self` means that there was no entry.
        forestalled = self._forestalled.pop((identifier, id), self) is None
        return self.get(identifier).executions.start(id, call, cancelled=forestalled)

    def execution(self, identifier: str, id: str) -> RunningExecution:
        """Return an execution of a session. Raise ProblemError (404) if the session does not have it, whether or not the session exists."""
        session = self._sessions.get(identifier)
        if session is None:
            self._check_is_ours()
            raise no_execution()
        return session.executions.find(id)

    def interrupt(self, identifier: str, id: str) -> None:
        """Interrupt an execution. If it has not arrived yet, keep it from starting: its caller was cancelled before its request came."""
        session = self._sessions.get(identifier)
        try:
            if session is not None:
                session.executions.interrupt(session.executions.find(id))
                return
        except ProblemError:
            pass
        _remember(self._forestalled, (identifier, id), None)

    async def branch(self, sandbox: Sandbox, identifiers: list[str], *, reseed: bool) -> list[HostedSession]:
        """Create sessions that continue from the state of a sandbox: all of them, or none.

        Raise ProblemError (409) if an identifier is in use. Identifiers are reserved before the first await, so that no other session takes
        one meanwhile.
        """
        with ExitStack() as in_use:
            reserved = self._reserve(identifiers, in_use)
            try:
                for session, opened in reserved:
                    branch = await sandbox.branch(reseed=reseed)
                    branch.ledger = session.ledger
                    branch.ledger.checkpoint_numbers = sandbox.ledger.checkpoint_numbers
                    opened.set_result(branch)
            except BaseException:
                await self._give_back(reserved)
                raise
        return [session for session, _ in reserved]

    def _reserve(self, identifiers: list[str], in_use: ExitStack) -> "list[tuple[HostedSession, asyncio.Future[Sandbox]]]":
        if any(identifier in self._sessions for identifier in identifiers):
            raise ProblemError(409, "SessionExists", "there is a session with this identifier already: give the branch another one")
        reserved = []
        try:
            for identifier in identifiers:
                self._make_room()
                opened: asyncio.Future[Sandbox] = asyncio.get_running_loop().create_future()
                session = HostedSession(identifier, Ledger(), opened, self._default_timeout, journal=self.journal)
                session.has_state = True
                session.ledger.append("branched")
                reserved.append((self._keep(session), opened))
                in_use.enter_context(session.used())
        except ProblemError:
            for session, opened in reserved:
                opened.cancel()
                self._drop(session, "deleted", cause=None)
            raise
        return reserved

    async def _give_back(self, reserved: "list[tuple[HostedSession, asyncio.Future[Sandbox]]]") -> None:
        for session, opened in reserved:
            if not opened.done():
                opened.set_exception(GuestDiedError("the branch could not be made: make another one"))
                opened.exception()  # retrieved, so that asyncio does not log it if no cell waits for it
            if not session.ended:
                self._drop(session, "deleted", cause=None)
            await self._tasks.to_its_end(session.close())

    async def take_back(self, branches: Sequence[HostedSession]) -> None:
        """End branches whose caller was cancelled and does not know them."""
        await asyncio.gather(*(self.delete(one.identifier) for one in branches if self._sessions.get(one.identifier) is one))

    async def delete(self, identifier: str, cause: str = "terminated") -> None:
        """End a session at its owner's request. `cause` is the reason that callers which still use it will read."""
        session = self.find(identifier)
        self._drop(session, "deleted", cause=cause)
        if cause == "terminated":  # an end on purpose is not reported to clients that come later
            session.ledger.fetched = session.ledger.position
        await self._tasks.to_its_end(session.close(cause))

    def infos(self, skip: int = 0, count: int = 300) -> list[SessionInfo]:
        """Return what is known of `count` sessions after the first `skip`, the least recently used first."""
        return [self.info(session) for session in islice(self._sessions.values(), skip, skip + count)]

    def info(self, session: HostedSession) -> SessionInfo:
        """Return what is known of a session."""
        return SessionInfo(
            session_id=session.identifier,
            created=session.created,
            last_used=session.last_used,
            expires=session.last_used + self._cooldown if self._cooldown is not None else None,
            is_active=session.in_use,
            memory=session.memory.used() if session.memory is not None else None,
            running=session.executions.running,
        )

    def memory_used(self) -> int:
        """Return the bytes that all sessions and their files use now. A branch shares its session's count, which is added once."""
        return sum(memory.used() for memory in {session.memory for session in [*self._sessions.values()]} if memory is not None)

    async def finish(self, within: float) -> None:
        """Wait for the cells that run, at most `within` seconds."""
        finishing = [session.executions.finish() for session in self._sessions.values()]
        await asyncio.wait({asyncio.ensure_future(asyncio.gather(*finishing))}, timeout=within)

    async def close(self) -> None:
        """End all sessions. Cells that still run get results that report it."""
        if self._reaper is not None:
            self._reaper.cancel()
        self._sandboxes.retire()
        sessions = [*self._sessions.values()]
        for session in sessions:
            self._drop(session, "closed", cause="killed")
        await asyncio.gather(*(session.close() for session in sessions))
        await self._tasks.finish()
        self.journal.close()

    def _add(self, identifier: str) -> HostedSession:
        self._check_is_ours()
        self._check_not_too_many_start()
        self._check_descriptors()
        self._make_room()
        ledger = self._ledgers.pop(identifier, None) or Ledger()

        def open_sandbox() -> "asyncio.Task[Sandbox]":
            return self._tasks.own(self._open(ledger))

        session = HostedSession(identifier, ledger, open_sandbox(), self._default_timeout, journal=self.journal, open_again=open_sandbox)
        self._starting.add(session)
        return self._keep(session)

    async def _open(self, ledger: Ledger) -> Sandbox:
        started = time.perf_counter()
        sandbox = await self._sandboxes.open()
        sandbox.ledger = ledger
        if sandbox.running is not None:
            telemetry.interpreter_started("warm", time.perf_counter() - started)
        return sandbox

    def _keep(self, session: HostedSession) -> HostedSession:
        self._sessions[session.identifier] = session
        self.journal.session_began(session.identifier)
        return session

    def _drop(self, session: HostedSession, reason: str, *, cause: str | None) -> None:
        """Take a session out of the table and remember its ledger. Add an entry with the cause of the end if anything was lost."""
        session.ended = True
        del self._sessions[session.identifier]
        if cause is not None and session.has_state:
            session.ledger.append("ended", cause=cause, variables="lost", files="lost", processes="ended")
        _remember(self._ledgers, session.identifier, session.ledger)
        self.journal.session_ended(session.identifier, reason, (datetime.now(UTC) - session.created).total_seconds())

    def _check_is_ours(self) -> None:
        """Raise ProblemError (503) if this server drains. Behind a proxy, a session that it does not have is another server's by now."""
        if self.draining:
            raise ProblemError(503, DRAINING, "this server is about to stop and takes no new sessions: ask again, or another one")

    def _check_not_too_many_start(self) -> None:
        """Raise ProblemError (503) if a new session would only wait, because fork servers start sessions one after the other."""
        self._starting = WeakSet(session for session in self._starting if session.is_starting)
        if len(self._starting) >= self._most_starting:
            waiting = f"{len(self._starting)} new sessions wait to be started, as many as this server lets wait"
            raise ProblemError(503, TOO_MANY_STARTING, f"{waiting}: try again in a second")

    def _check_descriptors(self) -> None:
        """Raise ProblemError (429) before descriptors run out, so that the sessions that exist never meet a shortage."""
        if room_for_sessions() <= len(self._starting):
            full = f"{open_descriptors()} descriptors are open on the server, and the rest is kept for connections and files"
            raise ProblemError(429, _FULL, f"{full}: end some of its {len(self)} sessions, or raise `ulimit -n` and start it again")

    def _make_room(self) -> None:
        if len(self._sessions) >= self.most:
            self._expire(self._least_recently_used(), "expired")

    def _least_recently_used(self) -> HostedSession:
        """Return the session to end for another. Its next caller reads that it expired. Raise ProblemError (429) if none can be ended."""
        idle = next((session for session in self._sessions.values() if self._evicts and not session.in_use), None)
        if idle is None:
            there_are = f"There are already '{len(self)}' active sessions and the maximum active sessions count is '{self.most}'."
            advice = (
                ""
                if self._evicts or self._plain
                else " End those that are not needed, or raise ACASessions:SessionPool:MaxConcurrentSessions."
            )
            raise ProblemError(429, _FULL, f"The request sessions count is '1'. {there_are}{advice}")
        return idle

    def _expire(self, session: HostedSession, cause: str) -> None:
        self._drop(session, cause, cause=cause)
        self._tasks.start(session.close(cause))

    async def __aenter__(self) -> Self:
        telemetry.serving(self)
        if self._cooldown is not None:
            self._reaper = self._tasks.start(self._reap(self._cooldown))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _reap(self, cooldown: timedelta) -> None:
        """End sessions that were not used for the cool-down, until it is cancelled."""
        while True:
            await asyncio.sleep(min(_REAP_EVERY, cooldown.total_seconds()))
            before = datetime.now(UTC) - cooldown
            for session in [session for session in self._sessions.values() if not session.in_use and session.last_used < before]:
                self._expire(session, "expired")


def _remember(memory: "OrderedDict[Key, Value]", key: Key, value: Value) -> None:
    memory[key] = value
    while len(memory) > _REMEMBERED:
        memory.popitem(last=False)
