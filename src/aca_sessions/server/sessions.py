"""Keep the sessions of a server, by identifier. A session is opened at its first use and ended after a cool-down.

Unlike the client's pool, a server has no leases: it only records when each session was used last. The number of sessions is limited. The
methods decide without `await` which sessions are opened and ended, so that no other request can change them meanwhile. Sandboxes open and
close in the background.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, ExitStack
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Self
from weakref import WeakSet

from starlette.datastructures import Headers

from .. import telemetry
from ..contract import extensions
from ..contract.records import DRAINING, ELSEWHERE, NETWORK_MISSING, NO_SESSION, TOO_MANY_STARTING, ExecutionRequest, ProblemError
from ..errors import ACASessionsError, GuestDiedError
from ..hosting import SESSIONS_PER_LEASE, Hosting, log_event
from ..ledger import Ledger
from ..lifetime import Tasks, log_failure
from ..models import SavedSession, SessionInfo
from ..sandbox.limits.capacity import descriptor_limit, memory_for_sessions, open_descriptors, room_for_sessions
from ..sandbox.probe import IsolationReport, examine
from ..sandbox.sandbox import Sandbox
from ..sandbox.sandboxes import Sandboxes
from .executions import RunningExecution, unknown_execution
from .guard import Throttle, store_bounded
from .hosted_session import GivenNetwork, HostedNetwork, HostedSession
from .journal import Journal, current_request
from .saved_sessions import SAID_ELSEWHERE, SavedSessions

_FULL = "SessionsCountExceedsLimit"
_MAX_REMEMBERED = 10_000  # ledgers of sessions that ended, and cancellations that came before their cells
_REAP_EVERY = 5.0  # seconds
_FORK_SERVER_ADVICE = (
    "the variables and files of these sessions are lost, as their next results say; the next new session starts another fork server. With "
    "exit_code -9 something killed it: look for the out-of-memory killer in the kernel's log"
)
_CLOSE_ADVICE = "they go on from their latest saves: raise ACASessions:Durable:CloseSeconds, or end sessions before the server stops"
_LOGGED_EVICTIONS = 1, 60.0  # lines, and the seconds in which there may be so many
_logger = logging.getLogger("aca_sessions")
_Saving = Coroutine[None, None, None]


class Sessions:
    """The sessions of one server. This class decides which sessions are opened, evicted and ended."""

    def __init__(self, sandboxes: Sandboxes, hosting: Hosting, *, default_timeout: float, saved: SavedSessions | None = None) -> None:
        """Initialize a server without sessions.

        Args:
            sandboxes: Opens the sandboxes of the sessions.
            hosting: How many sessions there may be, and for how long.
            default_timeout: The time limit in seconds of cells that have none of their own.
            saved: Saves sessions in a store and restores them.
        """
        self._sandboxes = sandboxes
        sandboxes.on_fork_server_death = self._handle_fork_server_death
        self.most = hosting.max_sessions
        self._max_starting = hosting.max_starting
        self._plain = hosting.plain
        self.saved = saved  # None without a store
        self._leaving: dict[str, asyncio.Task[None]] = {}  # sessions that have ended and are being saved
        self._saving: set[HostedSession] = set()  # those of them whose last save is not written yet
        self._evicts = hosting.evicts and not hosting.plain  # Azure never ends one session to make room for another
        self._is_pool = not hosting.evicts and not hosting.plain  # the embedded server of a pool
        self._cooldown = timedelta(seconds=hosting.cooldown) if hosting.cooldown is not None else None
        self._default_timeout = default_timeout
        self.journal = Journal(hosting)
        self._sessions: OrderedDict[str, HostedSession] = OrderedDict()
        self._starting: WeakSet[HostedSession] = WeakSet()  # pruned before it is counted: some have started meanwhile
        self._ledgers: OrderedDict[str, Ledger] = OrderedDict()  # of sessions that ended
        self._cancelled_early: OrderedDict[tuple[str, str], None] = OrderedDict()  # executions that were cancelled before they arrived
        self._started = datetime.now(UTC)
        self.draining = False  # if set, new sessions are refused and existing ones are served
        self._evictions = Throttle(*_LOGGED_EVICTIONS)
        self._tasks = Tasks()
        self._isolation: asyncio.Task[IsolationReport] | None = None
        self._reaper: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def healthy(self) -> bool:
        """Return whether the server can open a new session now."""
        return self._sandboxes.alive

    async def environment(self) -> tuple[str, list[tuple[str, str]], datetime]:
        """Return the Python version of sessions, the names and versions of their packages, and the time at which the server started."""
        return (*await self._sandboxes.environment(), self._started)

    async def isolation(self) -> IsolationReport:
        """Return the report on how sessions are isolated from this host.

        The first call checks the host, and later calls return the same report. If the check failed, the next call repeats it.
        """
        if self._isolation is None or (self._isolation.done() and self._isolation.exception() is not None):
            self._isolation = self._tasks.start_awaited(examine(self._sandboxes))
        return await asyncio.shield(self._isolation)

    def get(self, identifier: str, given: GivenNetwork | None = None) -> HostedSession:
        """Return the session with the given identifier. Open one if there is none, or if its sandbox failed to open or died.

        A new session has the network `given`, or else the policy's. Raise ProblemError if a new session is refused: 429 if the server is
        full, 503 if it drains or too many sessions are starting. Raise ProblemError (428) if the request that is handled names a network
        that its client gave to the session, but the session does not have it, for example because it is new.
        """
        session = self._sessions.get(identifier)
        if session is not None and not session.usable:
            session.record_loss()
            self._remove(session, "crash", cause=None)
            self._tasks.start(self._close_unsaved(session))
            session = None
        if session is not None and self.saved is not None and self.saved.is_fenced(identifier):
            # The other server has gone on with the session from its save. Two that go on would contradict each other's states.
            if session.in_use:
                raise ProblemError(503, ELSEWHERE, SAID_ELSEWHERE)
            self._end(session, "expired", cause="expired", saved=False)
            session = None
        if session is None:
            self._check_not_draining()
            self._check_network(None)
            session = self._create_session(identifier, given)
        self._check_network(session)
        self._sessions.move_to_end(identifier)
        session.last_used = datetime.now(UTC)
        return session

    def _check_network(self, session: HostedSession | None) -> None:
        """Raise ProblemError (428) if the request names another network than the session has. `session` is None if it does not exist."""
        named = None if self._plain else _named_network()
        if named is not None and (session is None or session.network.version != named):
            said = "the session does not have the network that this request names, so nothing was begun: send it, then repeat the request"
            raise ProblemError(428, NETWORK_MISSING, said)

    async def set_network(self, identifier: str, given: GivenNetwork) -> HostedSession:
        """Give a network to a session, and return the session. If it does not exist, start it with this network.

        Raise ProblemError (409) if the session cannot have this network any more.
        """
        await self.prepare(identifier, given)
        session = self.get(identifier, given)
        with session.keep_in_use():
            await session.set_network(given)
        return session

    async def prepare(self, identifier: str, given: GivenNetwork | None = None) -> None:
        """With a store, wait until the session is restored from its save. Raise ProblemError (503) if that is not possible now.

        Another server may have the session: so a request must be refused before its cell is accepted, and a proxy can repeat it there.
        """
        while self.saved is not None:
            session = self.get(identifier, given)
            try:
                with session.keep_in_use():  # else it could be evicted before its first cell
                    await session.sandbox()
            except ProblemError:
                if self._sessions.get(identifier) is session:  # it is at another server, and must not count as a session of this one
                    self._remove(session, "closed", cause=None)
                    self._tasks.start(self._close_unsaved(session))
                raise
            if self._sessions.get(identifier) is session:  # it was not ended meanwhile
                return

    def find(self, identifier: str) -> HostedSession:
        """Return the session with the given identifier. Raise ProblemError if there is none: 503 if the server drains, otherwise 400."""
        session = self._sessions.get(identifier)
        if session is None:
            self._check_not_draining()
            said = "there is no session with this identifier: check the identifier, or run a cell or upload a file to begin one"
            raise ProblemError(400, NO_SESSION, said)
        return session

    def execute(self, identifier: str, id: str, call: ExecutionRequest) -> RunningExecution:
        """Accept a cell for a session, and return its execution. `id` is the id of the execution.

        If `interrupt` was called with this id already, the cell never starts.
        """
        session = self.get(identifier)  # if the session is refused, the caller may send the cell again, and it stays cancelled
        cancelled_early = (identifier, id) in self._cancelled_early
        if cancelled_early:
            del self._cancelled_early[identifier, id]
        return session.executions.start(id, call, cancelled=cancelled_early)

    def find_execution(self, identifier: str, id: str) -> RunningExecution:
        """Return an execution of a session by its id. Raise ProblemError: 410 if its result was dropped, 404 if the id is unknown.

        If the session is unknown and the server drains, the status is 503, because another server may have the session.
        """
        session = self._sessions.get(identifier)
        if session is None:
            self._check_not_draining()
            raise unknown_execution(id)
        return session.executions.find(id)

    def interrupt(self, identifier: str, id: str, *, gentle: bool = False) -> None:
        """Interrupt the execution `id` of a session.

        If no execution has this id yet, because its request has not arrived, remember the id. The cell is then cancelled when the request
        arrives. A `gentle` interrupt never kills the interpreter.
        """
        session = self._sessions.get(identifier)
        try:
            if session is not None:
                session.executions.interrupt(session.executions.find(id), gentle=gentle)
                return
        except ProblemError:
            pass
        store_bounded(self._cancelled_early, (identifier, id), None, most=_MAX_REMEMBERED)

    @property
    def has_host_network(self) -> bool:
        """Return whether sessions reach everything that this host reaches, unless a client gives them another network."""
        return self._sandboxes.policy.network.kind == "host"

    @property
    def has_namespaces(self) -> bool:
        """Return whether sessions have namespaces, which networks with rules need."""
        return self._sandboxes.policy.isolation == "full"

    @property
    def network(self) -> tuple[str, ...]:
        """Return what sessions can reach on the network: `none`, `host`, or the allowed domains."""
        return self._sandboxes.policy.network.described

    async def branch(self, sandbox: Sandbox, identifiers: list[str], network: HostedNetwork, *, reseed: bool) -> list[HostedSession]:
        """Create sessions that continue from the state of `sandbox`, one for each identifier. Either all are created, or none.

        They share `network` with the session that they branch from, because they share its proxy.

        If `reseed` is true, each new session gets its own random seeds. Raise ProblemError: 409 if an identifier is in use, 429 if the
        server is full. The identifiers are reserved before the first await, so that no other request takes them.
        """
        with ExitStack() as in_use:
            reserved = self._reserve(identifiers, in_use, network)
            try:
                for session, opened in reserved:
                    if self.saved is not None:
                        await self.saved.claim(session.identifier)
                    branch = await sandbox.branch(reseed=reseed)
                    branch.ledger = session.ledger
                    branch.ledger.checkpoint_numbers = sandbox.ledger.checkpoint_numbers
                    opened.set_result(branch)
            except BaseException:
                await self._cancel_branches(reserved)
                raise
        for session, _ in reserved:
            session.saves.note_change()
        return [session for session, _ in reserved]

    def _reserve(
        self, identifiers: list[str], in_use: ExitStack, network: HostedNetwork | None = None
    ) -> "list[tuple[HostedSession, asyncio.Future[Sandbox]]]":
        if taken := [
            number for number, identifier in enumerate(identifiers, 1) if identifier in self._sessions or identifier in self._leaving
        ]:
            # The number and not the identifier, which is a secret.
            said = f"identifier {taken[0]} of {len(identifiers)} is in use by a session already: choose another one"
            raise ProblemError(409, "SessionExists", said)
        reserved = []
        try:
            for identifier in identifiers:
                self._make_room()
                opened: asyncio.Future[Sandbox] = asyncio.get_running_loop().create_future()
                options = {"journal": self.journal, "network": network, "saved": self.saved}
                session = HostedSession(identifier, Ledger(), opened, self._default_timeout, **options)  # type: ignore[arg-type]
                session.has_state = True
                session.ledger.append("branched")
                reserved.append((self._register(session), opened))
                in_use.enter_context(session.keep_in_use())
        except ProblemError:
            for session, opened in reserved:
                opened.cancel()
                self._remove(session, "deleted", cause=None)
            raise
        return reserved

    async def _cancel_branches(self, reserved: "list[tuple[HostedSession, asyncio.Future[Sandbox]]]") -> None:
        for session, opened in reserved:
            if not opened.done():
                opened.set_exception(GuestDiedError("this session was not made, because its import or another branch failed: repeat it"))
                opened.exception()  # retrieved, so that asyncio does not log it if no cell waits for it
            if not session.ended:
                self._remove(session, "deleted", cause=None)
            await self._tasks.run_shielded(self._close_unsaved(session))

    async def end_branches(self, branches: Sequence[HostedSession]) -> None:
        """End branches that were created for a cancelled request. Its caller does not know them, so it cannot end them.

        Skip branches that have ended already.
        """
        await asyncio.gather(*(self.delete(one.identifier) for one in branches if self._sessions.get(one.identifier) is one))

    async def delete(self, identifier: str, cause: str = "terminated", *, saved: bool = False) -> None:
        """End a session at the request of its owner. Raise ProblemError (400) if there is no such session.

        With a store, save the session first if `saved` is true, otherwise delete its saves.

        If a caller uses the identifier again, the state of its next result reports `cause`. But `terminated` is reported only to callers
        that send their position in the session's ledger (the list of what happened to it). A caller without a position may never have used
        the old session.
        """
        session = self.find(identifier)
        ending = self._end(session, "deleted", cause=cause, saved=saved, forget=not saved)
        if cause == "terminated":  # an end on purpose is not reported to clients that come later
            session.ledger.fetched = session.ledger.position
        await asyncio.shield(ending)

    def describe_page(self, skip: int = 0, count: int = 300) -> list[SessionInfo]:
        """Return the descriptions of at most `count` sessions, the least recently used first. Leave out the first `skip` of them."""
        return [self.describe(session) for session in islice(self._sessions.values(), skip, skip + count)]

    def describe(self, session: HostedSession) -> SessionInfo:
        """Return the description of a session, such as its times, whether it is in use, its memory in bytes and its running execution."""
        return SessionInfo(
            session_id=session.identifier,
            created=session.created,
            last_used=session.last_used,
            expires=session.last_used + self._cooldown if self._cooldown is not None else None,
            is_active=session.in_use,
            memory=session.memory.used() if session.memory is not None else None,
            running=running.id if (running := session.executions.running) is not None else None,
            name=session.name,
            cells=session.executions.accepted_count,
        )

    def session_usage(self) -> telemetry.Usage:
        """Return how many sessions there are, and how many there may be."""
        return telemetry.Usage(len(self), self.most)

    def starting_usage(self) -> telemetry.Usage:
        """Return how many sessions are starting now (wait for their first interpreter), and how many may do so at the same time."""
        return telemetry.Usage(sum(session.is_starting for session in [*self._starting]), self._max_starting)

    def memory_usage(self) -> telemetry.Usage:
        """Return how many bytes of memory all sessions and their files use now, and how many they may use together.

        Branches that share one memory counter are counted once.
        """
        counters = {session.memory for session in [*self._sessions.values()]}
        used = sum(memory.used() for memory in counters if memory is not None)
        return telemetry.Usage(used, memory_for_sessions(self._sandboxes.policy))

    def descriptor_usage(self) -> telemetry.Usage:
        """Return how many file descriptors this process has open, and how many it may have."""
        return telemetry.Usage(open_descriptors(), descriptor_limit())

    async def finish(self, within: float) -> None:
        """Wait until all executions of all sessions have results, at most `within` seconds."""
        finishing = [session.executions.finish() for session in self._sessions.values()]
        await asyncio.wait({asyncio.ensure_future(asyncio.gather(*finishing))}, timeout=within)

    async def close(self) -> None:
        """End all sessions and close the journal. A cell that still runs is stopped, and its result gives the reason."""
        if self._reaper is not None:
            self._reaper.cancel()
        self._sandboxes.retire()
        ending = [self._end(session, "closed", cause="killed") for session in [*self._sessions.values()]]
        if self.saved is not None and self._leaving:
            await asyncio.wait({*self._leaving.values()}, timeout=self.saved.close_seconds)
            if self._saving:
                log_event("sessions_not_saved", logging.WARNING, sessions=len(self._saving), advice=_CLOSE_ADVICE)
            for session in self._saving:
                session.saves.stop()
        await asyncio.gather(*ending)
        if self.saved is not None:
            await self.saved.close()
        await self._tasks.finish()
        self.journal.close()

    def _create_session(self, identifier: str, given: GivenNetwork | None) -> HostedSession:
        self._check_starting_limit()
        self._check_descriptors()
        self._make_room()
        ledger = self._ledgers.pop(identifier, None) or Ledger()

        # Looked up now: if this session ends while it is opened, it is in `_leaving` itself, and would wait for its own end.
        leaving = self._leaving.get(identifier)

        def open_sandbox() -> "asyncio.Task[Sandbox]":
            return self._tasks.start_awaited(self._open_sandbox(lambda: session, leaving))

        network = HostedNetwork(self.journal.network_recorder(identifier), given)
        options = {"journal": self.journal, "network": network, "saved": self.saved, "reopen": open_sandbox}
        session = HostedSession(identifier, ledger, open_sandbox(), self._default_timeout, **options)  # type: ignore[arg-type]
        self._starting.add(session)
        return self._register(session)

    async def _open_sandbox(self, opened_for: Callable[[], HostedSession], leaving: "asyncio.Task[None] | None") -> Sandbox:
        """Open a sandbox for a session, and restore its save. First wait for `leaving`, the end of an earlier session of this name."""
        started = time.perf_counter()
        session = opened_for()
        if leaving is not None:
            await asyncio.wait({leaving})
        has_lease = self.saved is not None and await self.saved.take_for(session)
        sandbox = await session.network.open_sandbox(self._sandboxes)
        sandbox.ledger = session.ledger
        if has_lease:
            sandbox = await self._restore(session, sandbox)
        if sandbox.running is not None:
            telemetry.record_interpreter_start("warm", time.perf_counter() - started)
        return sandbox

    async def _restore(self, session: HostedSession, sandbox: Sandbox) -> Sandbox:
        """Restore a session from its save, if it has one, and return its sandbox. If that fails, it is another one without the state."""
        assert self.saved is not None  # noqa: S101
        try:
            await self.saved.restore(session, sandbox)
            return sandbox
        except ProblemError:
            await sandbox.close()
            raise
        except (ACASessionsError, OSError) as error:
            log_failure("a saved session was not restored. It is kept, and nothing else of this session is saved but on request", error)
            await sandbox.close()
        again = await session.network.open_sandbox(self._sandboxes)
        again.ledger = session.ledger
        self.saved.record_failed_restore(session)
        return again

    async def list_saved(self) -> list[SavedSession]:
        """Return the saved sessions, the oldest first."""
        return await self.saved.list() if self.saved is not None else []

    async def forget(self, identifier: str) -> None:
        """Delete the saves of a session. Raise ProblemError (404) if it has none."""
        async with AsyncExitStack() as stack:
            if (session := self._sessions.get(identifier)) is not None:
                await stack.enter_async_context(session.saves.paused())
            if self.saved is None or not await self.saved.forget(identifier):
                raise ProblemError(404, "SaveNotFound", "this session has no save: list the saved sessions to see those that have")
            if identifier in self._sessions:
                await self.saved.take(identifier)  # it can be saved again

    def _end(self, session: HostedSession, reason: str, *, cause: str, saved: bool = True, forget: bool = False) -> "asyncio.Task[None]":
        """Remove a session at once, and return a task that saves it, if there is a store, and closes it. `forget` deletes its saves."""
        position = session.ledger.position
        self._remove(session, reason, cause=cause)
        end = session.ledger.position
        session.saves.end() if saved else session.saves.stop()
        saving = session.saves.save_at_end(position, end, cause) if saved and session.has_state else None
        ending = self._tasks.start(self._save_and_close(session, saving, cause, forget=forget))
        if self.saved is not None:
            self._leaving[session.identifier] = ending
            ending.add_done_callback(lambda done: self._forget_leaving(session.identifier, done))
        return ending

    def _forget_leaving(self, identifier: str, ending: "asyncio.Task[None]") -> None:
        if self._leaving.get(identifier) is ending:
            del self._leaving[identifier]

    async def _save_and_close(self, session: HostedSession, saving: "_Saving | None", cause: str, *, forget: bool) -> None:
        try:
            if saving is not None:
                self._saving.add(session)
                await saving
        except Exception as error:  # whatever it is, the session must be closed
            log_failure("a session was not saved when it ended", error)
        self._saving.discard(session)
        try:
            await session.close(cause)
            if forget and self.saved is not None:
                # Before the lease is released and another session of this name is restored, here or elsewhere.
                await self.saved.forget(session.identifier)
        finally:
            if self.saved is not None:
                await self.saved.release(session.identifier)

    def _register(self, session: HostedSession) -> HostedSession:
        self._sessions[session.identifier] = session
        self.journal.record_session_start(session.identifier)
        return session

    def _remove(self, session: HostedSession, reason: str, *, cause: str | None) -> None:
        """Remove a session from the server, but keep its ledger, the list of what happened to it. The caller must close the session.

        Args:
            session: The session.
            reason: Why the session ended, for metrics and audit log.
            cause: Why the session ended, for the state of the next result of each caller. If None, the ledger gets no entry.
        """
        del self._sessions[session.identifier]
        if cause is not None and session.has_state and not session.ended:
            session.ledger.append("ended", cause=cause, variables="lost", files="lost", processes="ended")
        store_bounded(self._ledgers, session.identifier, session.ledger, most=_MAX_REMEMBERED)
        self._record_end(session, reason)

    def _record_end(self, session: HostedSession, reason: str) -> None:
        """Record the end of a session in the metrics and the audit log, if it was not recorded before."""
        if not session.ended:
            session.ended = True
            self.journal.record_session_end(session.identifier, reason, (datetime.now(UTC) - session.created).total_seconds())

    def _handle_fork_server_death(self, exit_code: int | None) -> None:
        """Log that a fork server died, and record the loss of its sessions."""
        # A session in use without variables and files is left out: it continues in another sandbox (`replace_dead_sandbox`).
        died = [one for one in self._sessions.values() if one.memory is not None and not one.usable and (one.has_state or not one.in_use)]
        telemetry.count_fork_server_death()
        log_event("fork_server_died", logging.ERROR, sessions=len(died), exit_code=exit_code, advice=_FORK_SERVER_ADVICE)
        for session in died:
            session.record_loss()
            self._tasks.start(self._end_crashed(session))

    async def _end_crashed(self, session: HostedSession) -> None:
        """End a session whose fork server died, after the cells that ran or waited have their results.

        Keep the session for its callers as long as one of its results was not fetched, until its next use or its cool-down.
        """
        await session.executions.finish()
        if not session.ended and session.executions.all_fetched:
            self._remove(session, "crash", cause=None)
            await self._close_unsaved(session)
        self._record_end(session, "crash")

    async def _close_unsaved(self, session: HostedSession) -> None:
        await session.close()
        if self.saved is not None and session.identifier not in self._sessions:  # else the next session of this name has the lease
            await self.saved.release(session.identifier)

    def _check_not_draining(self) -> None:
        """Raise ProblemError (503) if this server is about to stop.

        The status 503 lets a proxy repeat the request at another server, which may have the session.
        """
        if self.draining:
            raise ProblemError(
                503, DRAINING, "this server is about to stop and accepts no new sessions: repeat the request, or use another server"
            )

    def _check_starting_limit(self) -> None:
        """Raise ProblemError (503) if too many sessions are starting. A limit is needed, because a fork server starts one at a time."""
        self._starting = WeakSet(session for session in self._starting if session.is_starting)
        if len(self._starting) >= self._max_starting:
            said = f"{len(self._starting)} new sessions wait for their start, which is this server's limit: try again in a second"
            raise ProblemError(503, TOO_MANY_STARTING, said)
        if len(self._leaving) >= self.most:  # their sandboxes still use memory
            said = f"{len(self._leaving)} sessions are being saved, as many as this server has at most: try again in a second"
            raise ProblemError(503, TOO_MANY_STARTING, said)

    def _check_descriptors(self) -> None:
        """Raise ProblemError (429) if opening a session could use up file descriptors that existing sessions need."""
        if room_for_sessions() <= len(self._starting):
            full = f"{open_descriptors()} file descriptors are open on the server, and the rest is reserved for connections and files"
            raise ProblemError(429, _FULL, f"{full}: end some of its {len(self)} sessions, or raise `ulimit -n` and restart it")

    def _make_room(self) -> None:
        if len(self._sessions) >= self.most:
            session = self._least_recently_used()
            if (left_out := self._evictions.admit()) is not None:
                _logger.warning(
                    "this server has its maximum of %d sessions: it ended the one that was idle for longest (%.0f s) for a new one, and %d "
                    "others since the last such line. Raise --max-sessions, or add a server",
                    self.most,
                    (datetime.now(UTC) - session.last_used).total_seconds(),
                    left_out,
                )
            self._expire(session, "evicted")

    def _least_recently_used(self) -> HostedSession:
        """Return the session that may be evicted: the idle one whose last use is longest ago.

        Raise ProblemError (429) if there is none, or if the server does not evict sessions.
        """
        unused = (session for session in self._sessions.values() if self._evicts and not session.in_use)
        idle = min(unused, key=lambda session: session.last_used, default=None)
        if idle is None:
            if self._is_pool:
                most = f"this pool has as many sessions as it keeps: {self.most}, {SESSIONS_PER_LEASE} times its MaxConcurrentSessions"
                advice = "End those that are not needed, or raise ACASessions:SessionPool:MaxConcurrentSessions"
                raise ProblemError(429, _FULL, f"{most}. {advice}")
            there_are = f"There are already '{len(self)}' active sessions and the maximum active sessions count is '{self.most}'."
            raise ProblemError(429, _FULL, f"The request sessions count is '1'. {there_are}")
        return idle

    def _expire(self, session: HostedSession, reason: str) -> None:
        # Callers get `expired` for both reasons: what they lose and what they can do is the same.
        self._end(session, reason, cause="expired")

    async def __aenter__(self) -> Self:
        telemetry.observe_server(self)
        if self.saved is not None:
            self.saved.start(self._sandboxes)
        if self._cooldown is not None:
            self._reaper = self._tasks.start(self._expire_idle_sessions(self._cooldown))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _expire_idle_sessions(self, cooldown: timedelta) -> None:
        while True:
            await asyncio.sleep(min(_REAP_EVERY, cooldown.total_seconds()))
            before = datetime.now(UTC) - cooldown
            for session in [session for session in self._sessions.values() if not session.in_use and session.last_used < before]:
                self._expire(session, "expired")


def _named_network() -> str | None:
    """Return the version of the network that the current request names, or None."""
    scope = current_request.get()
    return Headers(scope=scope).get(extensions.NETWORK_HEADER) if scope else None
