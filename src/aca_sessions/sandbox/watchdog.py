"""Where no control group counts a session's memory, this looks at it: often while a cell runs, now and then while none does.

What a process shares with the fork server is nobody's; what processes of one session share is counted once.
"""

import asyncio
import contextlib
import os
import re
from collections.abc import Callable, Iterator

from anyio import to_thread

from ..tasks import Tasks
from .hosts import NO_CGROUPS
from .policy import Limits, Together
from .shortage import is_shortage, with_reserve

_WHILE_BUSY, _WHILE_IDLE = 0.2, 2.0
_KB = 1024
_SUMMED = {
    "status": re.compile(r"^(?:RssAnon|RssShmem):\s+(\d+) kB", re.MULTILINE),
    "smaps_rollup": re.compile(r"^(?:Pss_Anon|Pss_Shmem):\s+(\d+) kB", re.MULTILINE),
}
_used: "dict[Watchdog, int]" = {}


class Watchdog:
    """Ends a session that is over its memory, or is the largest of all that are over theirs together."""

    def __init__(self, limits: Limits, together: Together) -> None:
        """Looks at nothing yet."""
        self.how = (
            f"{limits.memory >> 20} MB, looked at every {_WHILE_BUSY:g} s while a cell runs (without a control group: {NO_CGROUPS.row})"
        )
        self._limit = limits.memory
        self._share = int(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * together.memory_share)
        self._tasks = Tasks()
        self._watches: dict[int, asyncio.Task[None]] = {}
        self._busy = asyncio.Event()
        self._shared = 0

    async def take_in(self, init: int) -> None:
        """Do nothing: what a process shares with the fork server is known once its interpreter is ready."""

    async def begin(self, init: int, kill: Callable[[], None]) -> None:
        """Watch a session's processes; `kill` ends them for their memory."""
        self._shared = await to_thread.run_sync(_at_most, init)
        self._watches[init] = self._tasks.start(self._watch(init, kill))

    def cell_runs(self, running: bool) -> None:
        """From now on, or no more."""
        (self._busy.set if running else self._busy.clear)()

    def used(self) -> int:
        """In bytes, when it was last looked at."""
        return _used.get(self, 0)

    def was_exceeded(self) -> bool:
        """It says so itself when it kills."""
        return False

    async def end(self, init: int) -> None:
        """The processes of an init have ended."""
        watch = self._watches.pop(init, None)
        if watch is not None:
            watch.cancel()
            await asyncio.wait({watch})

    def remove(self) -> None:
        """Leaves nothing behind anyway."""

    async def _watch(self, init: int, kill: Callable[[], None]) -> None:
        try:
            while not await to_thread.run_sync(self._looked_over, init):
                await self._pause()
            kill()
        finally:
            _used.pop(self, None)

    async def _pause(self) -> None:
        if self._busy.is_set():
            await asyncio.sleep(_WHILE_BUSY)
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_WHILE_IDLE):
                await self._busy.wait()

    def _looked_over(self, init: int) -> bool:
        """Return whether it is over. A look needs a descriptor; if even the reserve is gone, the next look is soon."""
        try:
            return self._is_over(init)
        except OSError as error:
            if not is_shortage(error):
                raise
            return False

    def _is_over(self, init: int) -> bool:
        """A first look is cheap, and counts shared memory again and again; only if that is too much, the second is exact."""
        used = _at_most(init) - self._shared
        if used > self._limit:
            used = _sum(init, "smaps_rollup")
        _used[self] = used
        everyones = [*_used.values()]
        return used > self._limit or (sum(everyones) > self._share and used == max(everyones))


def _at_most(init: int) -> int:
    return _sum(init, "status")


def _sum(init: int, file: str) -> int:
    return with_reserve(lambda: _summed(init, file))


def _summed(init: int, file: str) -> int:
    return sum(_kilobytes(pid, file) for pid in family(init)) * _KB


def family(init: int) -> list[int]:
    """A session's first process and all that descends from it: orphans become its children."""
    return with_reserve(lambda: _family(init))


def _family(init: int) -> list[int]:
    found, pending = [], [init]
    while pending:
        pid = pending.pop()
        found.append(pid)
        for task in _threads(pid):
            with _if_there(), open(f"/proc/{pid}/task/{task}/children") as children:
                pending += map(int, children.read().split())
    return found


def _threads(pid: int) -> list[str]:
    with _if_there():
        return os.listdir(f"/proc/{pid}/task")
    return []


def _kilobytes(pid: int, file: str) -> int:
    """A process whose first thread has ended tells nothing of its memory, though it goes on: then its other threads do."""
    told = _told(f"/proc/{pid}/{file}", file)
    if not told:
        told = next(filter(None, (_told(f"/proc/{pid}/task/{thread}/{file}", file) for thread in _threads(pid))), told)
    if not told and file != "status":
        return _kilobytes(
            pid, "status"
        )  # a root without CAP_SYS_PTRACE, as in containers, may not look closer: rather too much than nothing
    return sum(told)


def _told(path: str, file: str) -> list[int]:
    with _if_there(), open(path) as text:
        return [int(number) for number in _SUMMED[file].findall(text.read())]
    return []


@contextlib.contextmanager
def _if_there() -> Iterator[None]:
    """Pass over what ended meanwhile or may not be looked at. That no descriptor is left says nothing of a process."""
    try:
        yield
    except OSError as error:
        if is_shortage(error):
            raise
