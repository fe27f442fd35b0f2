"""The clients of an MCP server and their sessions. Each connection is one client, which chooses the names of its own sessions.

A client can use a session of another client only if that session was created with `shared=True`.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal
from weakref import WeakValueDictionary

import anyio

from ..client.pool import PoolEvent, SessionPool
from ..client.session import CallerPositions, Session
from ..errors import ACASessionsError, InvalidArgumentError
from ..settings import McpSettings
from .named_session import NamedSession
from .outputs import Outputs

MB = 1 << 20
DEFAULT = "default"
_NAME = re.compile(r"[A-Za-z0-9_][\w.-]{0,63}", re.ASCII)
_LONGEST_DESCRIPTION = 1000
_MOST_WATCHED = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of an MCP server: its limits, its tools, and whether shared sessions stay when their creator disconnects."""

    sessions_per_client: int
    clients: int
    idle_seconds: float
    keep_shared: bool
    outputs_size: int  # bytes of outputs/ kept in this process; 0 keeps the sessions of a client apart
    tools: Literal["session", "all"] = "session"
    max_output: int = 10_000  # about how many characters of a result a model reads
    lookup_seconds: float = 30.0  # how long a tool that only reads variables may take

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
    """State that all clients of one MCP server share: the pool, the options, and the sessions that were created with `shared=True`."""

    pool: SessionPool
    options: Options
    shared: dict[str, NamedSession] = field(default_factory=dict)
    known: WeakValueDictionary[str, NamedSession] = field(default_factory=WeakValueDictionary)

    def on_pool_event(self, event: PoolEvent) -> None:
        """If the pool ended a started session because it was idle, set its `is_started` to False and its `is_expired` to True.

        When the session is used again, a new and empty one is started under its name.
        """
        if event.kind == "expired" and event.session_id in self.known:
            named = self.known[event.session_id]
            named.is_started, named.is_expired = False, named.is_started or named.is_expired


class Client:
    """One MCP client, which is one connection. It has sessions, of which one is active: the one for tool calls that name no session."""

    def __init__(self, server: SharedState) -> None:
        """Create a client with one session, `default`, which is started at its first use."""
        self.server = server
        self.options = server.options
        self.outputs = Outputs(server.options.outputs_size)
        self.subscribed: set[str] = set()
        self.log_level = "info"
        self.active = DEFAULT
        self._own: dict[str, NamedSession] = {}
        self._positions = CallerPositions()  # what this client knows of each session
        self._made_to_share: list[NamedSession] = []
        self._add(NamedSession(name=DEFAULT))

    def sessions(self) -> dict[str, NamedSession]:
        """Return all sessions that this client can use, keyed by name: its own, and those that all clients share."""
        return {**self.server.shared, **self._own}

    def find(self, name: str | None) -> NamedSession:
        """Return the session with a name, or the active session if `name` is None. Raise InvalidArgumentError for an unknown name."""
        sessions = self.sessions()
        if name is None and self.active not in sessions:
            self.active = DEFAULT  # the active session was shared by another client, which has ended it
        named = sessions.get(self.active if name is None else name)
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

    def create(self, name: str | None, description: str = "", *, shared: bool = False) -> NamedSession:
        """Add a session, which starts at its first use. If `name` is None, choose an unused name.

        Raise InvalidArgumentError if the name is taken or invalid, or if the client has too many sessions.
        """
        named = NamedSession(name=self._free_name(name), description=description[:_LONGEST_DESCRIPTION], shared=shared)
        return self._add(named)

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
        self._free_name(name)
        one = None
        try:
            async with self.lease(named) as session:
                (one,) = await session.branch()
            async with self.server.pool.session(one.session_id):
                pass  # from its first lease on the pool ends it
            free = self._free_name(name)  # another call may have taken it meanwhile
            made = NamedSession(name=free, description=f"branched from {named.name}", id=one.session_id, is_started=named.is_started)
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
        """Make a session the active one. Return the name of the session that was active before."""
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
        await self.server.pool.terminate(named.id)
        return was_active

    @asynccontextmanager
    async def lease(self, named: NamedSession) -> AsyncIterator[Session]:
        """Lease a session from the pool for a `with` block. Its results report what was lost since this client's last result."""
        async with self.server.pool.session(named.id) as session:
            self._positions.continue_in(session)
            yield session

    async def close(self) -> None:
        """End the sessions of a client that has disconnected. Ignore failures.

        With the option `keep_shared`, do not end sessions that this client created with `shared=True`.
        """
        ending = [*self._own.values()]
        if not self.options.keep_shared:
            ending += [one for one in self._made_to_share if self.server.shared.get(one.name) is one]
        for named in ending:
            if named.shared:
                del self.server.shared[named.name]
        with contextlib.suppress(ACASessionsError):
            await asyncio.gather(*(self.server.pool.terminate(named.id) for named in ending))
