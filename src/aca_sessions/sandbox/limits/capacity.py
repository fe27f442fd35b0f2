"""Estimate how many sessions fit on this machine, and keep a spare file descriptor for when this process has no other left.

Without a free file descriptor, a request that needs one fails. With the spare one, the host can still count the memory of sessions and end
their processes.
"""

import contextlib
import errno
import functools
import os
import re
import resource
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ...errors import ACASessionsError, GuestDiedError
from ..policy import Policy

_PROCESSES = 2  # of an idle session: its first process and its interpreter
# Files with the limit and the use of the container that this process may be in, with version 2 and version 1 of control groups.
_MEMORY = (
    ("memory.max", "memory.current", "memory.stat"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
)
_PIDS = (("pids.max", "pids.current"), ("pids/pids.max", "pids/pids.current"))
_GROUPS = "sys/fs/cgroup"
_MACHINES_PIDS = ("proc/sys/kernel/pid_max", "proc/sys/kernel/threads-max")


@dataclass(frozen=True, slots=True)
class Capacity:
    """How many more sessions fit on this machine, and how many each resource alone would allow, as text for an operator."""

    sessions: int
    reasons: str

    def __str__(self) -> str:
        return f"{self.sessions}: {self.reasons}"


def capacity(policy: Policy, idle: int, system: Path = Path("/")) -> Capacity:
    """Return how many more sessions fit on this machine.

    `idle` is the memory of an idle session in bytes. `system` is the folder that has /proc and /sys in it.
    """
    has, free = _memory(system)
    share = min(int(has * policy.together.memory_share), free)
    most = max(min([policy.together.processes, *_own_processes(system), *_all_processes(system)]), 0)
    descriptors, memory, processes = max(room_for_sessions(), 0), share // max(idle, 1), most // _PROCESSES
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Capacity(
        min(descriptors, memory, processes),
        f"descriptors for {descriptors} ({DESCRIPTORS} each, `ulimit -n` is {soft}), "
        f"memory for {memory} that are idle ({_megabytes(idle)} each of {_megabytes(share)}) "
        f"or {share // policy.limits.memory} that use all of theirs, processes for {processes} ({_PROCESSES} each of {most})",
    )


def memory_for_sessions(policy: Policy) -> int:
    """Return how many bytes of memory all sessions may use together: a share of what this machine or container has."""
    return int(_memory(Path("/"))[0] * policy.together.memory_share)


def _memory(system: Path) -> tuple[int, int]:
    """Return the total and the free memory in bytes that this process can use. The limit of its container, if any, counts too."""
    machine = dict(re.findall(r"^(\w+):\s+(\d+) kB", _text(system / "proc/meminfo"), re.MULTILINE))
    has, free = [int(machine["MemTotal"]) << 10], [int(machine["MemAvailable"]) << 10]
    for limit, used, details in _MEMORY:
        if (most := _number(system / _GROUPS / limit)) is not None:
            # The kernel drops cached files when programs need their memory.
            cached = re.findall(r"^(?:total_)?inactive_file (\d+)", _text(system / _GROUPS / details), re.MULTILINE)
            has.append(most)
            free.append(most - (_number(system / _GROUPS / used) or 0) + max(map(int, cached), default=0))
    return min(has), max(min(free), 0)


def _all_processes(system: Path) -> list[int]:
    """Return how many more processes and threads can start: one number for each limit of this machine and of this process's container."""
    running = int(_text(system / "proc/loadavg").split()[3].partition("/")[2])  # threads as well, as in the limits: proc(5)
    pairs = [(_number(system / limit), running) for limit in _MACHINES_PIDS]
    pairs += [(_number(system / _GROUPS / limit), _number(system / _GROUPS / used) or 0) for limit, used in _PIDS]
    return [most - used for most, used in pairs if most is not None]


def _own_processes(system: Path) -> list[int]:
    """Return how many more processes and threads RLIMIT_NPROC allows this user: a list of one number, or [] if there is no limit."""
    # The kernel does not apply this limit to root: getrlimit(2). It counts threads.
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if not os.geteuid() or soft == resource.RLIM_INFINITY:
        return []
    running = 0
    for process in (system / "proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or is hidden
            running += len(os.listdir(process / "task")) if process.stat().st_uid == os.geteuid() else 0
    return [soft - running]


def _number(file: Path) -> int | None:
    """Return the number in a file, or None if the file cannot be read or has no number, such as the text `max`."""
    text = _text(file).strip()
    return int(text) if text.isdecimal() else None


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


def _megabytes(size: int) -> str:
    return f"{size / (1 << 20):.0f} MB"


Result = TypeVar("Result")
# Of one session: its /mnt/data, its link, its first process and the reports of that, its interpreter, three pipes, and without
# control groups the session's /proc and its list of sockets. At its start it has two more for a moment.
DESCRIPTORS = 10
_OPEN = "/proc/self/fd"
_SHARE, _MOST_SPARED = 4, 4096  # a quarter of all descriptors, at most 4096, is kept for connections and files
_NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)


def is_shortage(error: OSError) -> bool:
    """Return whether `error` means that no file descriptor is left (EMFILE or ENFILE), so that the file to open is not the cause."""
    return error.errno in _NO_DESCRIPTOR


def shortage_error(what: str, kind: type[ACASessionsError] = GuestDiedError) -> ACASessionsError:
    """Build an exception of class `kind`, whose message explains that no file descriptor is left for `what`, and what to do about it."""
    return kind(f"this process has no descriptor left for {what}: end some sessions, or raise `ulimit -n`, and try again")


@contextmanager
def explained_shortage(what: str, kind: type[ACASessionsError] = GuestDiedError) -> Iterator[None]:
    """If the `with` block fails because no file descriptor is left, raise `shortage_error(what, kind)` in place of its OSError."""
    try:
        yield
    except OSError as error:
        if not is_shortage(error):
            raise
        raise shortage_error(what, kind) from error


@functools.cache
def raise_descriptor_limit() -> None:
    """Set this process's soft limit of file descriptors (RLIMIT_NOFILE) to its hard limit, if possible. Later calls do nothing."""
    # A session takes several; shells give 1,024 to all.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def descriptor_limit() -> int:
    """Return how many descriptors this process may have open."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def open_descriptors() -> int:
    """Return how many file descriptors this process has open."""
    # From Linux 6.2 on, the folder's size is their number.
    return os.stat(_OPEN).st_size or len(with_reserve(lambda: os.listdir(_OPEN)))


def room_for_sessions() -> int:
    """Return how many more sessions can start before this process runs out of file descriptors.

    Some of the file descriptors are left for connections, files and other requests.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (soft - min(soft // _SHARE, _MOST_SPARED) - open_descriptors()) // DESCRIPTORS


class _Reserve:
    """A spare file descriptor. If no other one is free, it is closed so that the host can count memory or end processes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._descriptor: int | None = None

    def open(self) -> None:
        with self._lock:
            self._open()

    @contextmanager
    def closed_for_block(self) -> Iterator[None]:
        """Close the spare file descriptor so that the `with` block can open another one. After the block, open a new spare one.

        If another thread takes the free descriptor first, the block fails.
        """
        with self._lock:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None
            try:
                yield
            finally:
                self._open()

    def _open(self) -> None:
        if self._descriptor is None:
            with contextlib.suppress(OSError):
                self._descriptor = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)


reserve = _Reserve()


def with_reserve(act: Callable[[], Result]) -> Result:
    """Call `act` and return its result. If it fails because no file descriptor is free, close the spare one and call `act` again."""
    try:
        return act()
    except OSError as error:
        if not is_shortage(error):
            raise
    with reserve.closed_for_block():
        return act()
