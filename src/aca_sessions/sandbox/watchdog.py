"""The watch over a session's memory on hosts without control groups. It looks often while a cell runs, and now and then otherwise.

What a process shares with the fork server counts for no session. What processes of one session share is counted once.
"""

import asyncio
import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator

from ..tasks import Tasks, in_thread
from .hosts import NO_CGROUPS
from .policy import Limits, Together
from .shortage import is_shortage, with_reserve
from .socket_memory import SocketMemory

_WHILE_BUSY, _WHILE_IDLE = 0.2, 2.0  # seconds between two looks
_KB = 1024
_SUMMED = {
    "status": re.compile(r"^(?:RssAnon|RssShmem|VmSwap):\s+(\d+) kB", re.MULTILINE),
    "smaps_rollup": re.compile(r"^(?:Pss_Anon|Pss_Shmem|SwapPss):\s+(\d+) kB", re.MULTILINE),
}
_PRIVATE = re.compile(r"^Private_(?:Dirty|Clean):\s+(\d+) kB", re.MULTILINE)
_NEVER_COUNTED = "buffers of pipes, and what the kernel itself needs for files, processes and watches"
_used: "dict[Watchdog, int]" = {}  # bytes in use, by sessions that are watched
_kept: "dict[Watchdog, int]" = {}  # bytes of files, by sessions that have no process


class Watchdog:
    """The watch over one session.

    It ends the session if that exceeds its memory, or if all sessions together exceed theirs and it is the largest.

    The limit is for processes and sockets. Files have limits of their own, the sizes of their folders. They count towards what all sessions
    have together.
    """

    def __init__(self, limits: Limits, together: Together, *, files: Callable[[], int] | None = None, lists_sockets: bool = False) -> None:
        """Prepare without looking at anything.

        Args:
            limits: what the session may use.
            together: what all sessions of this process may use together.
            files: returns the bytes in all workspaces of the session; None if its files are not kept in memory.
            lists_sockets: whether `begin` gets a descriptor that lists the session's sockets.
        """
        self.lists_sockets = lists_sockets
        self.freezes = False
        self.is_charged = False
        self._limit = limits.memory
        self._limits = limits
        self._files = files
        self._share = int(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * together.memory_share)
        self.limits_cpu = False
        self.nice = together.nice
        self._tasks = Tasks()
        self._watches: dict[int, asyncio.Task[None]] = {}
        self._busy = asyncio.Event()
        self._shared = self._held = 0
        self._unlisted = [] if lists_sockets else ["all"]

    @property
    def how(self) -> str:
        """Return a text about what is counted and how, and what is not."""
        counted = "processes" if self._unlisted == ["all"] else "processes and sockets"
        sockets = [f"buffers of {', '.join(self._unlisted)} sockets"] if self._unlisted else []
        files = f"; its files, at most {self._limits.folders >> 20} MB, by the sizes of their folders" if self._files else ""
        return (
            f"{self._limit >> 20} MB of its {counted}, looked at every {_WHILE_BUSY:g} s while a cell runs (without a control group: "
            f"{NO_CGROUPS.row}){files}; not counted: {', '.join([*sockets, _NEVER_COUNTED])}"
        )

    async def take_in(self, init: int) -> None:
        """Ignore the session's first process: what it shares with the fork server is measured in `begin`, once its interpreter is ready."""

    async def begin(self, init: int, kill: Callable[[], None], sockets: int | None = None) -> None:
        """Watch a session's processes, and call `kill` when they exceed their memory. Take over `sockets`, which lists their sockets."""
        memory = SocketMemory(sockets) if sockets is not None else None
        try:
            self._shared = await in_thread(_at_most, init)
            self._unlisted = await in_thread(memory.missing) if memory is not None else ["all"]
        except BaseException:
            if memory is not None:
                memory.close()
            raise
        self._watches[init] = self._tasks.start(self._watch(init, kill, memory))
        if memory is not None:
            self._watches[init].add_done_callback(lambda _: memory.close())

    def cell_runs(self, running: bool) -> None:
        """Set whether a cell runs: the watch looks more often then."""
        (self._busy.set if running else self._busy.clear)()

    def used(self) -> int:
        """Return the bytes of files now, and of processes and sockets at the last look. A file that is mapped counts twice."""
        return self._held + self._bytes_of_files(next(iter(self._watches), None))

    def room(self) -> int:
        """Return the largest number: files have limits of their own."""
        return sys.maxsize

    def was_exceeded(self) -> bool:
        """Return False: the watch reports an exceeded limit itself when it kills."""
        return False

    async def end(self, init: int) -> None:
        """End the watch over processes that have ended. Files of the session may still be there, and count on."""
        watch = self._watches.get(init)
        self.let_go(init)
        if watch is not None:
            await asyncio.wait({watch})
        if self._files is not None and not self._watches:
            _kept[self] = self._bytes_of_files(None)

    def let_go(self, init: int) -> None:
        """End the watch at once, if there is one."""
        watch = self._watches.pop(init, None)
        if watch is not None:
            watch.cancel()  # the descriptor that lists the sockets is closed after the last look

    def remove(self) -> None:
        """Forget the session."""
        _kept.pop(self, None)

    async def _watch(self, init: int, kill: Callable[[], None], sockets: "SocketMemory | None") -> None:
        try:
            while not await in_thread(self._looked_over, init, sockets):
                await self._pause()
            kill()
        finally:
            _used.pop(self, None)
            self._held = 0

    async def _pause(self) -> None:
        if self._busy.is_set():
            await asyncio.sleep(_WHILE_BUSY)
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_WHILE_IDLE):
                await self._busy.wait()

    def _looked_over(self, init: int, sockets: "SocketMemory | None") -> bool:
        """Return whether a limit is exceeded. Return False if even the reserve of descriptors is used up: the next look is soon."""
        try:
            return self._is_over(init, sockets)
        except OSError as error:
            if not is_shortage(error):
                raise
            return False

    def _is_over(self, init: int, sockets: "SocketMemory | None") -> bool:
        """Return whether the session exceeds its memory, or is the largest while all sessions together exceed theirs."""
        # The first look is cheap, and counts shared memory once for each process. Only if that is too much, a second look is exact.
        held = sockets.used(self._unlisted) if sockets is not None else 0
        used = _at_most(init) - self._shared + held
        if used > self._limit:
            used = _sum(init, "smaps_rollup") + held
        over, self._held = used > self._limit, used
        used += self._bytes_of_files(init)
        _used[self] = used
        everyones = [*_used.values()]
        return over or (sum(everyones) + sum([*_kept.values()]) > self._share and used == max(everyones))

    def _bytes_of_files(self, init: int | None) -> int:
        """Return the bytes in /mnt/data and, as long as the session's first process lives, in the session's own /tmp and /dev/shm."""
        if self._files is None:
            return 0
        own = ("tmp", "dev/shm") if init is not None else ()
        return self._files() + sum(_in_folder(f"/proc/{init}/root/{name}", self._limits.temporary) for name in own)


def bytes_in(folder: int | str) -> int:
    """Return how many bytes are used in the file system of a folder."""
    status = os.statvfs(folder)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


def _in_folder(path: str, most: int) -> int:
    try:
        return bytes_in(path)
    except PermissionError:  # root without CAP_SYS_PTRACE, as in containers: too much is better than nothing
        return most
    except OSError:
        return 0  # the session has ended


def private_memory(init: int) -> int:
    """Return the bytes that each of a session's processes shares with no other. Return 0 if this process may not look."""
    told = [_told(f"/proc/{pid}/smaps_rollup", _PRIVATE) for pid in family(init)]
    return sum(map(sum, told)) * _KB


def _at_most(init: int) -> int:
    return _sum(init, "status")


def _sum(init: int, file: str) -> int:
    return with_reserve(lambda: _summed(init, file))


def _summed(init: int, file: str) -> int:
    return sum(_kilobytes(pid, file) for pid in family(init)) * _KB


def family(init: int) -> list[int]:
    """Return the numbers of a session's first process and of all that descends from it: orphans become its children."""
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
    """Return the kB of memory of a process."""
    told = _told(f"/proc/{pid}/{file}", _SUMMED[file])
    # A process whose first thread has ended shows no memory, although others run on. Their entries do.
    if not told:
        told = next(filter(None, (_told(f"/proc/{pid}/task/{thread}/{file}", _SUMMED[file]) for thread in _threads(pid))), told)
    if not told and file != "status":
        # Root without CAP_SYS_PTRACE, as in containers, may not look closer: too much is better than nothing.
        return _kilobytes(pid, "status")
    return sum(told)


def _told(path: str, numbers: "re.Pattern[str]") -> list[int]:
    with _if_there(), open(path) as text:
        return [int(number) for number in numbers.findall(text.read())]
    return []


@contextlib.contextmanager
def _if_there() -> Iterator[None]:
    """Ignore processes that ended meanwhile or may not be looked at.

    Raise OSError if no descriptor is left: that is not about a process.
    """
    try:
        yield
    except OSError as error:
        if is_shortage(error):
            raise
