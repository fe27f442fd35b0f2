"""The clients of an MCP server and their sessions.

A client with a connection chooses the names of its sessions, which end with the connection. On standard input and output that is the
process, also if each request stands alone. Over HTTP, a client whose requests stand alone has no connection: it is known by its API key,
and names its sessions by handles. A client can use a session of another client only if that session was created with `shared=True`.
"""

import asyncio
import contextlib
import re
import secrets
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal
from weakref import WeakValueDictionary

import anyio

from ..client.pool import PoolEvent, SessionPool
from ..client.session import CallerPositions, Session
from ..errors import ACASessionsError, InvalidArgumentError, NotFoundError, NotSupportedError
from ..settings import McpSettings
from .handles import DEFAULT, Identity, identity_of
from .named_session import NamedSession
from .outputs import FOLDERS, CollectedFiles, Outputs
from .sdk import Exchange, Listeners
from .tasks import Tasks

MB = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9_][\w.-]{0,63}", re.ASCII)
_LONGEST_DESCRIPTION = 1000
_MOST_WATCHED = 1000
_MOST_KNOWN = 1000  # sessions of a client without a connection


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of an MCP server: its limits, its tools, and whether shared sessions stay when their creator disconnects.

    `shares_sessions` is True if other servers may have the same sessions: with an endpoint (then `at_endpoint` is True, too) or a store.
    """

    sessions_per_client: int
    clients: int
    idle_seconds: float
    keep_shared: bool
    outputs_size: int  # bytes of outputs/ kept in this process; 0 keeps the sessions of a client apart
    tools: Literal["session", "all"] = "session"
    max_output: int = 10_000  # about how many characters of a result a model reads
    lookup_seconds: float = 30.0  # how long a tool that only reads variables may take
    task_seconds: float = 600.0  # how long the result of a task is kept
    shares_sessions: bool = False
    at_endpoint: bool = False

    @classmethod
    def of(cls, settings: McpSettings, tools: Literal["session", "all"] = "session") -> "Options":
        """Convert the configured MCP settings to options. Minutes become seconds, and megabytes become bytes."""
        return cls(
            sessions_per_client=settings.SessionsPerClient,
            clients=settings.Clients,
            idle_seconds=60 * settings.ClientIdleMinutes,
            keep_shared=settings.KeepShared,
            outputs_size=settings.OutputsMegabytes * MB,
            tools=tools,
        )


@dataclass(frozen=True, slots=True)
class SharedState:
    """State that all clients of one MCP server share: the pool, the options, and the sessions that were created with `shared=True`.

    `stateless` has the clients whose requests stand alone, by their API key, those that were used last at the end. On standard input and
    output that is one client, by None.
    """

    pool: SessionPool
    options: Options
    shared: dict[str, NamedSession] = field(default_factory=dict)
    known: WeakValueDictionary[str, NamedSession] = field(default_factory=WeakValueDictionary)
    stateless: OrderedDict[str | None, "Client"] = field(default_factory=OrderedDict)

    def client_of(self, exchange: Exchange) -> "Client":
        """Return the client that sent a request: that of its connection or process, or that of its API key if it has no connection."""
        if not exchange.is_stateless:
            client: Client = exchange.connected(lambda: Client(self))
            return client
        key = exchange.api_key
        if key not in self.stateless:
            self.stateless[key] = Client(self, None if key is None else identity_of(key))
            if len(self.stateless) > self.options.clients:  # keys that are not accepted any more
                self.stateless.popitem(last=False)[1].tasks.cancel()
        self.stateless.move_to_end(key)
        return self.stateless[key]

    def on_pool_event(self, event: PoolEvent) -> None:
        """If the pool ended a started session because it was idle, set its `is_started` to False and its `is_expired` to True.

        When the session is used again, a new and empty one is started under its name.
        """
        if event.kind == "expired" and event.session_id in self.known:
            named = self.known[event.session_id]
            named.is_started, named.is_expired = False, named.is_started or named.is_expired


class Client:
    """One MCP client: a connection, a process, or an API key.

    It has sessions, of which one is active: the one for tool calls that name no session.

    With an `identity` the client has no connection. Its active session is always `default`, and its other sessions have handles. What is
    kept here about them can be dropped at any time: another server knows the sessions from their handles alone.
    """

    def __init__(self, server: SharedState, identity: Identity | None = None) -> None:
        """Create a client with one session, `default`, which is started at its first use."""
        self.server = server
        self.options = server.options
        self.identity = identity
        self.shares_sessions = identity is not None and server.options.shares_sessions
        # Not among sessions that other servers use, too: this server would replace their newer files by older ones.
        self.outputs = Outputs(0 if self.shares_sessions else server.options.outputs_size)
        self._uncollected: NamedSession | None = None
        self.listeners = Listeners()
        self.tasks = Tasks(server.options.task_seconds)
        self.subscribed: set[str] = set()
        self.log_level = "info"
        self.active = DEFAULT
        self._own: dict[str, NamedSession] = {}
        self._positions = CallerPositions()  # what this client knows of each session
        self._made_to_share: list[NamedSession] = []
        self._add(NamedSession(name=DEFAULT) if identity is None else self._named(DEFAULT, identity.default_id))

    def _named(self, name: str, id: str, description: str = "", *, is_started: bool = False) -> NamedSession:
        """Return a session of a client without a connection.

        If other servers use it, too, its displays have numbers that those do not use, so that a URI leads to its display alone.
        """
        displayed = secrets.randbelow(1 << 20) << 10 if self.shares_sessions else 0
        return NamedSession(name=name, id=id, description=description, is_started=is_started, displayed=displayed)

    async def admit(self, handle: str) -> None:
        """Prepare `find` for the handle of a session that this server does not know yet, or that another server may have ended.

        Do nothing if the client did not make the handle. `find` then refuses it, as it refuses that of a session that has ended.
        """
        if self.identity is None or not self.identity.accepts(handle):
            return
        known = self._own.get(handle)
        if known is not None and not known.is_expired and not self.shares_sessions:
            return
        exists = await self._exists(id := self.identity.session_id(handle))
        known = self._own.get(handle)
        if known is not None and (known.is_expired or not exists):
            del self._own[handle]
        if exists and handle not in self._own:
            idle = [name for name, one in self._own.items() if name != DEFAULT and not one.executing]
            if len(self._own) > _MOST_KNOWN and idle:
                del self._own[idle[0]]
            self._add(self._named(handle, id, is_started=True))

    async def _exists(self, id: str) -> bool:
        """Return whether a session is live at the endpoint, or saved in its store. Return True if the endpoint cannot tell."""
        interpreter = self.server.pool._interpreter
        try:
            await interpreter.get_session(id)
        except NotFoundError:
            try:
                return any(one.session_id == id for one in await interpreter.saved())
            except NotSupportedError:
                return False
        except NotSupportedError:
            return True
        return True

    def sessions(self) -> dict[str, NamedSession]:
        """Return all sessions that this client can use, keyed by name: its own, and those that all clients share."""
        return {**self.server.shared, **self._own}

    def find(self, name: str | None) -> NamedSession:
        """Return the session with a name, or the active session if `name` is None. Raise InvalidArgumentError for an unknown name."""
        sessions = self.sessions()
        if name is None and self.active not in sessions:
            self.active = DEFAULT  # the active session was shared by another client, which has ended it
        named = sessions.get(self.active if name is None else name)
        if named is None and self.identity is not None:  # the same for all reasons: it must not say which sessions others have
            raise InvalidArgumentError(
                "session_id must be one that create_session returned to you, of a session that has not ended: create one with "
                "create_session, or leave session_id out to use your session 'default'"
            )
        if named is None:
            raise InvalidArgumentError(
                "you have no session of that name: use one that list_sessions shows, or create it with create_session"
            )
        return named

    def find_unexpired(self, name: str | None) -> NamedSession:
        """Return the same session as `find`, for a call that only reads. Raise InvalidArgumentError if the session has expired."""
        named = self.find(name)
        if named.is_expired:
            raise InvalidArgumentError(
                "the session has expired, because it was not used for a long time: its variables and files are gone. Run code in it to "
                "begin with an empty one"
            )
        return named

    def find_started(self, name: str | None) -> NamedSession:
        """Return the same session as `find_unexpired`, for a call that needs what a session has only once code or a file was sent to it.

        Raise InvalidArgumentError if the session is not started, because a call that only reads must not start it.
        """
        named = self.find_unexpired(name)
        if not named.is_started:
            raise InvalidArgumentError("the session has no variables and no files yet: run code in it, or write a file, to start it")
        return named

    async def create(self, name: str | None, description: str = "", *, shared: bool = False) -> NamedSession:
        """Add a session, which starts at its first use. If `name` is None, choose an unused name.

        For a client without a connection, the session gets a handle that begins with `name`, and starts at once, so that every server can
        see whether it still exists. Raise InvalidArgumentError if the name is taken or invalid, or if the client has too many sessions.
        """
        description = description[:_LONGEST_DESCRIPTION]
        if shared and self.shares_sessions:
            raise InvalidArgumentError(
                "shared must be false, because several servers may have this session, and only the one that created it would know that it "
                "is shared: create a session of your own"
            )
        if self.identity is None or shared:
            return self._add(NamedSession(name=self._free_name(name), description=description, shared=shared))
        handle = self.identity.mint(self._free_name(name or "session"))
        named = self._add(self._named(handle, self.identity.session_id(handle), description))
        try:
            async with self.lease(named) as session:
                await self.copy_in(session, named)
        except BaseException:
            self._own.pop(handle, None)
            with anyio.CancelScope(shield=True):
                await self.server.pool.terminate(named.id)
            raise
        return named

    def _free_name(self, name: str | None) -> str:
        """Validate the name of a new session and return it. If `name` is None, choose an unused name.

        Raise InvalidArgumentError if the name is invalid or taken, or if the client has too many sessions.
        """
        if name is None:
            name = next(free for number in range(1, 1_000_000) if (free := f"session_{number}") not in self.sessions())
        if not _NAME.fullmatch(name):
            raise InvalidArgumentError(
                "session_id must be 1 to 64 letters, digits, '_', '-' and '.', and must not begin with '-' or '.': choose such a name"
            )
        if name in self.sessions():
            raise InvalidArgumentError(
                "session_id must be a new name, got that of another session: choose another, or use that session with switch_session"
            )
        if self.identity is not None:
            self._own = {name: one for name, one in self._own.items() if name == DEFAULT or not one.is_expired}
        self._made_to_share = [one for one in self._made_to_share if self.server.shared.get(one.name) is one]
        if len(self._own) + len(self._made_to_share) >= self.options.sessions_per_client:
            raise InvalidArgumentError(
                f"a client can have at most {self.options.sessions_per_client} sessions: end one with delete_session"
            )
        return name

    def _add(self, named: NamedSession) -> NamedSession:
        if named.shared:
            self.server.shared[named.name] = named
            self._made_to_share.append(named)
        else:
            self._own[named.name] = named
        self.server.known[named.id] = named
        return named

    async def branch(self, named: NamedSession, name: str | None) -> NamedSession:
        """Create a session that starts with copies of the variables and files of `named`. Other clients cannot use it.

        If `name` is None, choose an unused name. Raise InvalidArgumentError if the name is taken or invalid, or if the client has too many
        sessions.
        """
        if self.identity is not None:
            name = name or "branch"
            if named.shared:
                raise InvalidArgumentError("a session that others share cannot be branched: only they know it by its name")
        self._free_name(name)
        one = None
        try:
            async with self.lease(named) as session:
                (one,) = await session.branch()
            async with self._leased(one.session_id):
                pass  # from its first lease on the pool ends it, unless other servers use it, too
            free = self._free_name(name)  # another call may have taken it meanwhile
            description = f"branched from {named.name}"
            if self.identity is None:
                made = NamedSession(name=free, description=description, id=one.session_id, is_started=named.is_started)
            else:
                handle = self.identity.mint_branch(free, named.name, one.session_id)
                made = self._named(handle, one.session_id, description, is_started=named.is_started)
            made.has_scripts = named.has_scripts
            self._positions.continue_in(one)
            return self._add(made)
        except BaseException:
            if one is not None:  # for example: the pool had no place for it
                with anyio.CancelScope(shield=True):
                    await self.server.pool.terminate(one.session_id)
            raise

    def watch(self, uri: str) -> None:
        """Subscribe the client to changes of a resource. Raise InvalidArgumentError if it has too many subscriptions."""
        if len(self.subscribed) >= _MOST_WATCHED:
            raise InvalidArgumentError(f"a client can watch at most {_MOST_WATCHED} resources: unsubscribe from some")
        self.subscribed.add(uri)

    def switch(self, name: str) -> str:
        """Make a session the active one. Return the name of the session that was active before.

        Raise InvalidArgumentError if the client has no connection: calls that name no session may be those of another conversation.
        """
        if self.identity is not None:
            raise InvalidArgumentError("only clients with a connection have an active session: give session_id to each call instead")
        previous, self.active = self.find(None).name, self.find(name).name
        return previous

    async def delete(self, name: str) -> bool:
        """End a session, even while it runs a cell. If it was active, make `default` active and return True, otherwise return False.

        Raise InvalidArgumentError for `default`, and if there is no such session.
        """
        if name == DEFAULT:
            raise InvalidArgumentError(
                "the session 'default' cannot be deleted: to begin without its variables, use restart_kernel, which keeps its files"
            )
        named = self.find(name)
        was_active = self.find(None) is named
        self._own.pop(name, None) if self._own.get(name) is named else self.server.shared.pop(name, None)
        if was_active:
            self.active = DEFAULT
        self.outputs.forget(named)
        named.is_deleted = True
        await self.server.pool.terminate(named.id)
        return was_active

    async def copy_in(self, session: Session, named: NamedSession) -> None:
        """Copy the files that the client's other sessions share into a session. Call this before its next cell."""
        first = self._uncollected
        if first is not None and first is not named:
            if first.is_started:
                async with self.lease(first) as leased:
                    await self.outputs.collect(leased, first)
            self._uncollected = None
        await self.outputs.copy_in(session, named)

    async def collect(self, session: Session, named: NamedSession, changed: Iterable[str]) -> CollectedFiles:
        """Share the files that a cell or a tool wrote below outputs/ with the client's other sessions. Return their paths.

        For a client with one session, look for them only if `changed`, the paths of files that are known to have changed, has such files.
        Others, such as those of background processes, are found when the client uses a second session.
        """
        if len(self._own) == 1:
            self._uncollected = named
            is_quiet = not any(path.startswith(FOLDERS) for path in changed)
            if is_quiet and await session._interpreter.supports("rich"):  # other endpoints do not report changed files
                return CollectedFiles()
        return await self.outputs.collect(session, named)

    @asynccontextmanager
    async def lease(self, named: NamedSession) -> AsyncIterator[Session]:
        """Lease a session from the pool for a `with` block. Its results report what was lost since this client's last result."""
        try:
            async with self._leased(named.id) as session:
                self._positions.continue_in(session)
                yield session
        finally:
            if named.is_deleted:  # the block may have started it again
                with anyio.CancelScope(shield=True):
                    await self.server.pool.terminate(named.id)

    @asynccontextmanager
    async def _leased(self, id: str) -> AsyncIterator[Session]:
        try:
            async with self.server.pool.session(id) as session:
                yield session
        finally:
            if self.identity is not None and self.options.at_endpoint:  # other servers use it, too: its end is up to the endpoint
                self.server.pool._leases.forget(id)

    async def close(self) -> None:
        """End the sessions of a client that has disconnected. Ignore failures.

        With the option `keep_shared`, do not end sessions that this client created with `shared=True`.
        """
        self.tasks.cancel()
        ending = [*self._own.values()]
        if not self.options.keep_shared:
            ending += [one for one in self._made_to_share if self.server.shared.get(one.name) is one]
        for named in ending:
            if named.shared:
                del self.server.shared[named.name]
        with contextlib.suppress(ACASessionsError):
            await asyncio.gather(*(self.server.pool.terminate(named.id) for named in ending))
        await self.tasks.close()
