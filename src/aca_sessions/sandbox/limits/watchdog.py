"""Count and limit a session's memory on hosts without control groups: read /proc every 0.2 s while a cell runs, else every 2 s.

Memory that is shared with the fork server is not counted. Memory that several processes of one session share is counted once.
"""

import asyncio
import contextlib
import logging
import os
import re
import socket
import struct
import sys
from collections.abc import Callable, Iterator, Sequence

from ...lifetime import Tasks, run_in_thread
from ..hosts import NO_CGROUPS
from ..policy import Limits, Together
from .capacity import is_shortage, with_reserve

_logger = logging.getLogger("aca_sessions")
_BY_FAMILY, _ERROR, _DONE = 20, 2, 3  # types of messages: netlink(7)
_REQUEST_DUMP = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_ALL_STATES = 0xFFFF_FFFF
_MEMORY = struct.Struct("=8I")  # SK_MEMINFO_*: received, its limit, sent, its limit, reserved, queued, options, backlog
# Of a family: its request, the length of the fixed part of an answer, and the attribute that holds the above. 0x20 is UDIAG_SHOW_MEMINFO,
# and 5 UNIX_DIAG_MEMINFO.
_UNIX = (struct.pack("=BBHIIIII", socket.AF_UNIX, 0, 0, _ALL_STATES, 0, 0x20, 0, 0), 16, 5)
_ITSELF = 2048  # about what a socket takes without any buffer
_SECONDS = 5.0


def _internet_request(family: int, protocol: int) -> tuple[bytes, int, int]:
    return struct.pack("=BBBBI48x", family, protocol, 1 << 6, 0, _ALL_STATES), 72, 7


_KINDS = {
    "Unix": (_UNIX,),
    "TCP": (_internet_request(socket.AF_INET, socket.IPPROTO_TCP), _internet_request(socket.AF_INET6, socket.IPPROTO_TCP)),
    "UDP": (_internet_request(socket.AF_INET, socket.IPPROTO_UDP), _internet_request(socket.AF_INET6, socket.IPPROTO_UDP)),
}


class SocketMemory:
    """A counter of the memory that a session's sockets use. Calls block, and must come from one thread at a time."""

    def __init__(self, descriptor: int) -> None:
        """Take over `descriptor`, a netlink socket (sock_diag(7)) in the session's network namespace."""
        self._socket = socket.socket(fileno=descriptor)
        self._socket.settimeout(_SECONDS)
        self._sequence = 0
        self._last = 0
        self._is_failing = False

    def used(self, unlisted: Sequence[str] = ()) -> int:
        """Return how many bytes the session's sockets use, including their buffers. Skip the kinds in `unlisted`, such as "UDP".

        `missing` returns the kinds to skip, because this kernel cannot list them. If listing fails for another reason, log a warning and
        return the latest known number.
        """
        try:
            self._last = sum(self._used(kind) for kind in _KINDS if kind not in unlisted)
            self._is_failing = False
        except OSError as error:  # what was seen last still counts
            if not self._is_failing:  # once, and not at each look while a cell runs
                _logger.warning(
                    "cannot list the sockets of a session (%s): its memory limit counts their last known size until that works again",
                    error.strerror,
                )
            self._is_failing = True
        return self._last

    def missing(self) -> list[str]:
        """Return the kinds of sockets that this kernel cannot list, for example because it was built without CONFIG_UNIX_DIAG."""
        return [kind for kind in _KINDS if not self._lists(kind)]

    def close(self) -> None:
        """Close the socket, which otherwise keeps the session's network namespace alive."""
        self._socket.close()

    def _lists(self, kind: str) -> bool:
        try:
            self._used(kind)
        except OSError:
            return False
        return True

    def _used(self, kind: str) -> int:
        return sum(_socket_bytes(answer, fixed, attribute) for request, fixed, attribute in _KINDS[kind] for answer in self._dump(request))

    def _dump(self, request: bytes) -> Iterator[bytes]:
        self._sequence += 1
        self._socket.send(_HEADER.pack(_HEADER.size + len(request), _BY_FAMILY, _REQUEST_DUMP, self._sequence, 0) + request)
        while True:
            for kind, sequence, payload in _messages(self._socket.recv(1 << 17)):
                if sequence != self._sequence:
                    continue  # an answer to a listing that was given up
                if kind in (_ERROR, _DONE):
                    (error,) = struct.unpack_from("=i", payload) if payload else (0,)
                    if error:
                        raise OSError(-error, os.strerror(-error))
                    return
                yield payload


def _messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    start = 0
    while start + _HEADER.size <= len(data):
        length, kind, _, sequence, _ = _HEADER.unpack_from(data, start)
        if length < _HEADER.size:
            return
        yield kind, sequence, data[start + _HEADER.size : start + length]
        start += (length + 3) & ~3


def _socket_bytes(answer: bytes, fixed: int, attribute: int) -> int:
    start = fixed
    while start + _ATTRIBUTE.size <= len(answer):
        length, kind = _ATTRIBUTE.unpack_from(answer, start)
        if length < _ATTRIBUTE.size:
            break
        if kind == attribute and length >= _ATTRIBUTE.size + _MEMORY.size:
            received, _, sent, _, reserved, queued, options, backlog = _MEMORY.unpack_from(answer, start + _ATTRIBUTE.size)
            return int(_ITSELF + received + max(sent, queued) + reserved + options + backlog)
        start += (length + 3) & ~3
    return _ITSELF


_WHILE_BUSY, _WHILE_IDLE = 0.2, 2.0  # seconds between two looks
_KB = 1024
_SUMMED = {
    "status": re.compile(r"^(?:RssAnon|RssShmem|VmSwap):\s+(\d+) kB", re.MULTILINE),
    "smaps_rollup": re.compile(r"^(?:Pss_Anon|Pss_Shmem|SwapPss):\s+(\d+) kB", re.MULTILINE),
}
_PRIVATE = re.compile(r"^Private_(?:Dirty|Clean):\s+(\d+) kB", re.MULTILINE)
_NEVER_COUNTED = "buffers of pipes, and what the kernel itself needs for files, processes and watches"
_used: "dict[Watchdog, int]" = {}  # bytes in use, by sessions that are watched
_bytes_of_ended: "dict[Watchdog, int]" = {}  # bytes of files, by sessions that have no process


class Watchdog:
    """The counter and limit of one session's memory without control groups. It implements `MemoryLimit`.

    It kills the session if the session's processes and sockets exceed its limit. It also kills it if all sessions together exceed their
    common limit and this one uses the most. Files count towards the common limit only, because the folders that hold them have fixed sizes.
    """

    def __init__(self, limits: Limits, together: Together, *, files: Callable[[], int] | None = None, lists_sockets: bool = False) -> None:
        """Set the limits of this session (`limits`) and of all sessions together. Nothing is measured before `start`.

        `files` returns the bytes in all workspaces of the session. It is None if the session's files are not kept in memory.
        `lists_sockets` tells whether `start` gets a socket that lists the session's sockets.
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
        """Return a description for users: what is counted, how it is counted, and what is not counted."""
        counted = "processes" if self._unlisted == ["all"] else "processes and sockets"
        sockets = [f"buffers of {', '.join(self._unlisted)} sockets"] if self._unlisted else []
        files = f"; its files, at most {self._limits.folders >> 20} MB, by the sizes of their folders" if self._files else ""
        return (
            f"{self._limit >> 20} MB of its {counted}, looked at every {_WHILE_BUSY:g} s while a cell runs (without a control group: "
            f"{NO_CGROUPS.row}){files}; not counted: {', '.join([*sockets, _NEVER_COUNTED])}"
        )

    async def add_first_process(self, init: int) -> None:
        """Do nothing yet. `start` measures the memory that is shared with the fork server, once the interpreter is ready."""

    async def start(self, init: int, kill: Callable[[], None], sockets: int | None = None) -> None:
        """Start to measure the session's memory in the background. Call `kill` once when a limit is exceeded.

        `init` is the first process's pid on this host. `sockets` is a netlink socket that lists the session's sockets, or None. This object
        closes it.
        """
        memory = SocketMemory(sockets) if sockets is not None else None
        try:
            self._shared = await run_in_thread(_estimate_memory, init)
            self._unlisted = await run_in_thread(memory.missing) if memory is not None else ["all"]
        except BaseException:
            if memory is not None:
                memory.close()
            raise
        self._watches[init] = self._tasks.start(self._watch(init, kill, memory))
        if memory is not None:
            self._watches[init].add_done_callback(lambda _: memory.close())

    def set_cell_running(self, running: bool) -> None:
        """Record whether a cell runs now (`running`). While one runs, memory is measured more often."""
        (self._busy.set if running else self._busy.clear)()

    def used(self) -> int:
        """Return how many bytes files use now, plus what processes and sockets used when last measured. A mapped file counts twice."""
        return self._held + self._bytes_of_files(next(iter(self._watches), None))

    def free_file_bytes(self) -> int:
        """Return sys.maxsize, because the folders that hold the files have fixed sizes."""
        return sys.maxsize

    def was_exceeded(self) -> bool:
        """Return False, because the kernel enforces no limit here. When this object kills a session, it reports the reason itself."""
        return False

    async def stop(self, init: int) -> None:
        """Stop measuring a first process (pid `init`) and its descendants, which have ended, and wait until no measurement runs.

        The session's remaining files still count towards the common limit of all sessions.
        """
        watch = self._watches.get(init)
        self.stop_without_waiting(init)
        if watch is not None:
            await asyncio.wait({watch})
        if self._files is not None and not self._watches:
            _bytes_of_ended[self] = self._bytes_of_files(None)

    def stop_without_waiting(self, init: int) -> None:
        """Stop measuring a first process (pid `init`) and its descendants, without waiting. Do nothing if they are not measured."""
        watch = self._watches.pop(init, None)
        if watch is not None:
            watch.cancel()  # the descriptor that lists the sockets is closed after the last look

    def remove(self) -> None:
        """Stop counting the session's files towards the common limit of all sessions."""
        _bytes_of_ended.pop(self, None)

    async def _watch(self, init: int, kill: Callable[[], None], sockets: "SocketMemory | None") -> None:
        try:
            while not await run_in_thread(self._measure_and_check, init, sockets):
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

    def _measure_and_check(self, init: int, sockets: "SocketMemory | None") -> bool:
        """Measure the session's memory, and return whether a limit is exceeded.

        If no file descriptor is free to measure it, return False, because the watchdog soon measures again.
        """
        try:
            return self._exceeds_limit(init, sockets)
        except OSError as error:
            if not is_shortage(error):
                raise
            return False

    def _exceeds_limit(self, init: int, sockets: "SocketMemory | None") -> bool:
        """Return whether the session exceeds its limit, or all sessions together exceed their common limit and this one uses the most."""
        # The first look is cheap, and counts shared memory once for each process. Only if that is too much, a second look is exact.
        held = sockets.used(self._unlisted) if sockets is not None else 0
        used = _estimate_memory(init) - self._shared + held
        if used > self._limit:
            used = _sum_memory(init, "smaps_rollup") + held
        over, self._held = used > self._limit, used
        used += self._bytes_of_files(init)
        _used[self] = used
        everyones = [*_used.values()]
        return over or (sum(everyones) + sum([*_bytes_of_ended.values()]) > self._share and used == max(everyones))

    def _bytes_of_files(self, init: int | None) -> int:
        """Return how many bytes of memory the files in the session's workspaces use.

        If `init` is given, add the files in /tmp and /dev/shm of this first process and its descendants.
        """
        if self._files is None:
            return 0
        own = ("tmp", "dev/shm") if init is not None else ()
        return self._files() + sum(_bytes_in_folder(f"/proc/{init}/root/{name}", self._limits.temporary) for name in own)


def bytes_in(folder: int | str) -> int:
    """Return how many bytes are used in the whole file system that a folder (a path or a descriptor) is in."""
    status = os.statvfs(folder)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


def _bytes_in_folder(path: str, most: int) -> int:
    try:
        return bytes_in(path)
    except PermissionError:  # root without CAP_SYS_PTRACE, as in containers: too much is better than nothing
        return most
    except OSError:
        return 0  # the session has ended


def private_memory(init: int) -> int:
    """Return how many bytes of memory are private to a single process, summed over all processes of a session.

    Return 0 if this process may not read that.
    """
    values = [_values(f"/proc/{pid}/smaps_rollup", _PRIVATE) for pid in process_tree(init)]
    return sum(map(sum, values)) * _KB


def _estimate_memory(init: int) -> int:
    return _sum_memory(init, "status")


def _sum_memory(init: int, file: str) -> int:
    return with_reserve(lambda: _sum_memory_once(init, file))


def _sum_memory_once(init: int, file: str) -> int:
    return sum(_kilobytes(pid, file) for pid in process_tree(init)) * _KB


def process_tree(init: int) -> list[int]:
    """Return the pids, on this host, of a process and of all its descendants. The process itself comes first.

    For a session's first process, that is the whole session: processes whose parent has ended (orphans) become its children.
    """
    return with_reserve(lambda: _process_tree_once(init))


def _process_tree_once(init: int) -> list[int]:
    found, pending = [], [init]
    while pending:
        pid = pending.pop()
        found.append(pid)
        for task in _threads(pid):
            with _ignore_missing_process(), open(f"/proc/{pid}/task/{task}/children") as children:
                pending += map(int, children.read().split())
    return found


def _threads(pid: int) -> list[str]:
    with _ignore_missing_process():
        return os.listdir(f"/proc/{pid}/task")
    return []


def _kilobytes(pid: int, file: str) -> int:
    """Return how many kB of memory a process uses, as a file in /proc/PID shows it.

    `file` is `status`, which is fast but counts shared memory fully, or `smaps_rollup`, which is exact. If this process may not read
    `smaps_rollup`, use `status`.
    """
    values = _values(f"/proc/{pid}/{file}", _SUMMED[file])
    # A process whose first thread has ended shows no memory, although others run on. Their entries do.
    if not values:
        values = next(filter(None, (_values(f"/proc/{pid}/task/{thread}/{file}", _SUMMED[file]) for thread in _threads(pid))), values)
    if not values and file != "status":
        # Root without CAP_SYS_PTRACE, as in containers, may not look closer: too much is better than nothing.
        return _kilobytes(pid, "status")
    return sum(values)


def _values(path: str, numbers: "re.Pattern[str]") -> list[int]:
    with _ignore_missing_process(), open(path) as text:
        return [int(number) for number in numbers.findall(text.read())]
    return []


@contextlib.contextmanager
def _ignore_missing_process() -> Iterator[None]:
    """Ignore an OSError when the `with` block reads a process in /proc that has ended or that this user may not see.

    Raise the error if it means that no file descriptor is left.
    """
    try:
        yield
    except OSError as error:
        if is_shortage(error):
            raise
