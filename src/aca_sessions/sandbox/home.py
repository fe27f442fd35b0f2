"""Where the interpreters of one session live: an init and what it tells of deaths, memory that is counted, one /mnt/data at a time."""

import asyncio
import contextlib
import os
import signal
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from anyio import to_thread

from ..errors import GuestDiedError, IsolationError
from .ends import Spawned, descendants, host_pid, kill, readable
from .memory import Memory
from .proxy import Serving
from .remedy import remedy_for

_REPORT = struct.Struct("<ii")  # number in the session, wait status
_REPORTS_AT_ONCE = 512
_END_SECONDS = 1.0
_ROUNDS = 50  # a process that is killed may have forked before


@dataclass(frozen=True, slots=True)
class Member:
    """An interpreter as its home knows it: its pidfd, its tree, and how it is told of its death, with its status where that is known."""

    process: int
    tree: int
    told: Callable[[int | None], None]


class Home:
    """Ends with the last of its interpreters; all that they left running ends with it."""

    def __init__(self, spawned: Spawned, tree: int, memory: Memory, show: Callable[[int, int], None]) -> None:
        """Takes over an init. `show` has a tree take the place of /mnt/data for all that live here."""
        self.init = spawned.init
        self.has_namespaces = spawned.namespaces
        self.memory = memory
        self.killed_for: str | None = None
        self.serving: Serving | None = None
        self._report = spawned.report
        self._ending = spawned.ending
        self._show = show
        self._shown = tree
        self._turn = asyncio.Lock()
        self._members: dict[int, Member] = {}
        self._counted: int | None = None
        self._watched = False
        self._closed = False

    async def count_memory(self, interpreter: int) -> None:
        """From here on the memory of all that live here is counted."""
        try:
            self._counted = host_pid(self.init)
            await self.memory.begin(self._counted, interpreter, lambda: self.kill("memory"))
        except OSError as error:
            raise IsolationError("control group", str(error.strerror), remedy_for("control group", error.errno or 0)) from None

    def take_in(self, number: int, member: "Member") -> None:
        """An interpreter, by its number here."""
        self._members[number] = member
        if not self._watched and not self._closed:
            asyncio.get_running_loop().add_reader(self._report, self._on_report)
            self._watched = True

    def has(self, number: int) -> bool:
        """Whether a process is one of the interpreters."""
        return number in self._members

    def is_alone(self, number: int) -> bool:
        """Whether nobody else lives here."""
        return not self._members.keys() - {number}

    @asynccontextmanager
    async def turn(self, tree: int) -> AsyncIterator[None]:
        """One cell at a time, on its own tree."""
        async with self._turn:
            if self._shown != tree:
                await to_thread.run_sync(self._show, self.init, tree)
                self._shown = tree
            yield

    def kill(self, reason: str) -> None:
        """Ends all that live here."""
        self.killed_for = self.killed_for or reason
        if not self._closed:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.init, self._ending)

    def kill_with_children(self, number: int, process: int) -> None:
        """Ends one interpreter, named by its pidfd as well, and the processes that it started."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(process, signal.SIGSTOP)  # while it is looked at, it starts no other
        with contextlib.suppress(GuestDiedError):
            others = self._others(number)
            for started in descendants(host_pid(process)):
                if started not in others:
                    kill(started)
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(process, signal.SIGKILL)

    def end_strays(self, number: int) -> None:
        """Ends what an interpreter left running and nobody else started. With branches alive, orphans might be theirs."""
        if self._closed or len({member.tree for member in self._members.values()}) != 1:
            return
        seen: set[int] = set()
        for _ in range(_ROUNDS):
            strays = {*self._strays(number)} - seen
            for stray in strays:
                kill(stray)
            if not strays:
                return
            seen |= strays

    async def leave(self, number: int) -> None:
        """The interpreter is dead; the last one ends the rest."""
        self._members.pop(number, None)
        if self._members or self._closed:
            return
        self.kill("killed")
        try:
            await self._last_one_gone()
            if self._counted is not None:
                await self.memory.end(self._counted)
            if self.serving is not None:
                await self.serving.close()
        finally:
            self._let_go()

    def _on_report(self) -> None:
        reports = os.read(self._report, _REPORT.size * _REPORTS_AT_ONCE)
        for number, status in _REPORT.iter_unpack(reports[: len(reports) - len(reports) % _REPORT.size]):
            if (member := self._members.get(number)) is not None:
                member.told(status)
        if not reports:
            self._unwatch()
            for member in [*self._members.values()]:
                member.told(None)

    def _strays(self, number: int) -> list[int]:
        with contextlib.suppress(GuestDiedError):
            others = self._others(number)
            return [pid for pid in descendants(host_pid(self.init)) if pid not in others]
        return []

    def _others(self, number: int) -> set[int]:
        """The interpreters besides one, and what they started."""
        found: set[int] = set()
        for other in self._members.keys() - {number}:
            with contextlib.suppress(GuestDiedError):
                process = host_pid(self._members[other].process)
                found |= {process, *descendants(process)}
        return found

    async def _last_one_gone(self) -> None:
        """The first process of a pid namespace outlives all others: when its pidfd is readable, there is none left."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_END_SECONDS):
                await readable(self.init)

    def _unwatch(self) -> None:
        if self._watched:
            asyncio.get_running_loop().remove_reader(self._report)
            self._watched = False

    def abandon(self, number: int) -> None:
        """The same at once, where nobody can wait."""
        self._members.pop(number, None)
        if not self._members:
            self.kill("killed")
            self._let_go()

    def _let_go(self) -> None:
        if not self._closed:
            self._closed = True
            self._unwatch()
            os.close(self._report)
            os.close(self.init)
