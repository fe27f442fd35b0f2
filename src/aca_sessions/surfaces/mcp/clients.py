"""Clients and their sessions. Each connection has names of its own. It reaches a session of another client only if that one is shared."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

import anyio

from ...client.pool import PoolEvent, SessionPool
from ...client.session import Session
from ...errors import ACASessionsError, InvalidArgumentError
from .named_session import NamedSession
from .options import Options
from .outputs import Outputs

DEFAULT = "default"
_NAME = re.compile(r"[A-Za-z0-9_][\w.-]{0,63}", re.ASCII)
_LONGEST_DESCRIPTION = 1000
_MOST_WATCHED = 1000


@dataclass(frozen=True, slots=True)
class House:
    """What all clients of a server have in common: the pool, and the shared sessions."""

    pool: SessionPool
    options: Options
    shared: dict[str, NamedSession] = field(default_factory=dict)
    known: WeakValueDictionary[str, NamedSession] = field(default_factory=WeakValueDictionary)

    def heard(self, event: PoolEvent) -> None:
        """Note that the pool ended an idle session. Its next use starts an empty one."""
        if event.kind == "expired" and event.session_id in self.known:
            self.known[event.session_id].begun = False


class Client:
    """One connection: its sessions, and which of them is active. Tools use the active one if a call names no session."""

    def __init__(self, house: House) -> None:
        """Start with the session `default`, which begins at its first use."""
        self.house = house
        self.options = house.options
        self.outputs = Outputs(house.options.outputs_size)
        self.subscribed: set[str] = set()
        self.log_level = "info"
        self.active = DEFAULT
        self._own: dict[str, NamedSession] = {}
        self._made_to_share: list[NamedSession] = []
        self._add(NamedSession(name=DEFAULT))

    def sessions(self) -> dict[str, NamedSession]:
        """Return all sessions that it reaches, by name."""
        return {**self.house.shared, **self._own}

    def find(self, name: str | None) -> NamedSession:
        """Return the session of a name, or the active one. Raise InvalidArgumentError if the name is unknown."""
        sessions = self.sessions()
        if name is None and self.active not in sessions:
            self.active = DEFAULT  # the active session was shared by another client, which has ended it
        try:
            return sessions[self.active if name is None else name]
        except KeyError:
            raise InvalidArgumentError(
                "you have no session of that name: create_session makes one, list_sessions names those that there are"
            ) from None

    def create(self, name: str | None, description: str = "", *, shared: bool = False) -> NamedSession:
        """Create a session, with a new name if none is given.

        Raise InvalidArgumentError if the name is taken or the client has too many sessions.
        """
        named = NamedSession(name=self._free_name(name), description=description[:_LONGEST_DESCRIPTION], shared=shared)
        return self._add(named)

    def _free_name(self, name: str | None) -> str:
        """Return the name of a new session. Raise InvalidArgumentError if there can be none of that name."""
        if name is None:
            name = next(free for number in range(1, 1_000_000) if (free := f"session_{number}") not in self.sessions())
        if not _NAME.fullmatch(name):
            raise InvalidArgumentError("a session_id is 1 to 64 letters, digits, '_', '-' and '.', with no '-' or '.' in front")
        if name in self.sessions():
            raise InvalidArgumentError("there is a session of that name: choose another, or switch_session to it")
        self._made_to_share = [one for one in self._made_to_share if self.house.shared.get(one.name) is one]
        if len(self._own) + len(self._made_to_share) >= self.options.sessions_per_client:
            raise InvalidArgumentError(
                f"you have {self.options.sessions_per_client} sessions, which is the limit: delete_session ends one that you no longer need"
            )
        return name

    def _add(self, named: NamedSession) -> NamedSession:
        if named.shared:
            self.house.shared[named.name] = named
            self._made_to_share.append(named)
        else:
            self._own[named.name] = named
        self.house.known[named.id] = named
        return named

    async def branch(self, named: NamedSession, name: str | None) -> NamedSession:
        """Create a session that continues from another one. It belongs to this client alone."""
        self._free_name(name)
        one = None
        try:
            async with self.lease(named) as session:
                (one,) = await session.branch()
            async with self.house.pool.session(one.session_id):
                pass  # from its first lease on the pool ends it
            free = self._free_name(name)  # another call may have taken it meanwhile
            return self._add(NamedSession(name=free, description=f"branched from {named.name}", id=one.session_id, begun=named.begun))
        except BaseException:
            if one is not None:  # for example: the pool had no place for it
                with anyio.CancelScope(shield=True):
                    await self.house.pool.terminate(one.session_id)
            raise

    def watch(self, uri: str) -> None:
        """Notify this client when a resource changes. Raise InvalidArgumentError if it watches too many."""
        if len(self.subscribed) >= _MOST_WATCHED:
            raise InvalidArgumentError("too many resources are watched: unsubscribe from some")
        self.subscribed.add(uri)

    def switch(self, name: str) -> str:
        """Make a session the active one. Return the name of the one before."""
        previous, self.active = self.find(None).name, self.find(name).name
        return previous

    async def delete(self, name: str) -> bool:
        """End a session, even in the middle of a cell. Return whether it was the active one."""
        if name == DEFAULT:
            raise InvalidArgumentError("the session 'default' cannot be deleted; restart it if its variables are in the way")
        named = self.find(name)
        was_active = self.find(None) is named
        self._own.pop(name, None) if self._own.get(name) is named else self.house.shared.pop(name, None)
        if was_active:
            self.active = DEFAULT
        self.outputs.forget(named)
        await self.house.pool.terminate(named.id)
        return was_active

    @asynccontextmanager
    async def lease(self, named: NamedSession) -> AsyncIterator[Session]:
        """Lease the session for the block."""
        async with self.house.pool.session(named.id) as session:
            yield session

    async def close(self) -> None:
        """End the client's own sessions. Sessions that it shared stay if the options have `keep_shared`."""
        ending = [*self._own.values()]
        if not self.options.keep_shared:
            ending += [one for one in self._made_to_share if self.house.shared.get(one.name) is one]
        for named in ending:
            if named.shared:
                del self.house.shared[named.name]
        with contextlib.suppress(ACASessionsError):
            await asyncio.gather(*(self.house.pool.terminate(named.id) for named in ending))
