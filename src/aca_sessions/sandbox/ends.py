"""What the host holds of a session: descriptors that name its folder, its link and its processes."""

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..errors import GuestDiedError
from ..models import RunningProcess
from . import syscalls
from .shortage import with_reserve
from .watchdog import family

MOST_TOLD = 100
_LOOKS = 3
_EXIT_CODE = 49  # of what stands behind the name in /proc/PID/stat
_TIMES, _ENDED_TIMES, _BEGAN = slice(11, 13), slice(13, 15), 19  # the same, in ticks: its own, of children it waited for, its start
_TICKS = os.sysconf("SC_CLK_TCK")
_PROCESS_CLOCK = 2  # CPUCLOCK_SCHED of the kernel: with a process's number it is the clock that clock_getcpuclockid(3) returns


@dataclass(frozen=True, slots=True)
class Tree:
    """A session's /mnt/data: its number, a descriptor of it, and the uid that owns it as the host sees it (None: our own); `user` is the
    number of the session that the uid was given to first.
    """

    number: int
    directory: int
    owner: int | None
    user: int


@dataclass(frozen=True, slots=True)
class Spawned:
    """A new session's ends: its socket, that of its init, its init's pidfd, and whether a namespace ends with its init."""

    link: socket.socket
    report: socket.socket
    init: int
    namespaces: bool = True

    @property
    def ending(self) -> signal.Signals:
        """What ends all of it: where no namespace does, its init has to be asked."""
        return signal.SIGKILL if self.namespaces else signal.SIGTERM

    def close(self) -> None:
        """Ends a session that nobody takes over."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.init, self.ending)
        self.link.close()
        self.report.close()
        os.close(self.init)


def host_pid(pidfd: int) -> int:
    """The number that this host knows a process by; its own namespace has another. GuestDiedError where it has ended."""
    with open(f"/proc/self/fdinfo/{pidfd}") as lines:
        pid = next(int(line.split()[1]) for line in lines if line.startswith("Pid:"))
    if pid <= 0:
        raise GuestDiedError("the interpreter has ended; the next cell gets a fresh one")
    return pid


def number_of(pidfd: int) -> int:
    """The number that a process has in its own pid namespace. GuestDiedError where it has ended."""
    with open(f"/proc/self/fdinfo/{pidfd}") as lines:
        told = [line for line in lines if line.startswith("NSpid:")]
    number = int(told[0].split()[-1]) if told else -1
    if number <= 0:
        raise GuestDiedError("the interpreter has ended; the next cell gets a fresh one")
    return number


def gives_way(process: int, nice: int | None) -> bool:
    """Have an interpreter and what it starts give way to the host's own processes where both want the processors. Return whether they do.

    Linux shares processors out between autogroups (sched(7)): setsid(2) makes one, so each interpreter has one, a new fork in a moment. It
    takes ten weights a second from all ordinary users together, and refuses others. After False, ask again.
    """
    if nice is None:
        return True
    try:
        pid = host_pid(process)
        autogroup = Path(f"/proc/{pid}/autogroup")
        if os.getsid(pid) != pid:
            return False
        if autogroup.read_text().split()[-1:] == [str(nice)]:
            return True
        autogroup.write_text(str(nice))
    except FileNotFoundError:
        return True  # this kernel has none
    except (OSError, GuestDiedError):
        pass
    return False


def open_member(init: int, number: int) -> int:
    """Return a pidfd of a process below an init, by its number there, which the guest reported: it can name none but its own."""
    for _ in range(_LOOKS):  # one look may miss it, where processes beside it come and go
        for pid in descendants(host_pid(init)):
            with contextlib.suppress(ProcessLookupError, GuestDiedError), contextlib.ExitStack() as unless_found:
                process = os.pidfd_open(pid)
                unless_found.callback(os.close, process)
                if number_of(process) == number and pid in descendants(host_pid(init)):
                    unless_found.pop_all()
                    return process
    raise GuestDiedError("the session's code is in the way: reset the session")


def exit_status(pidfd: int) -> int | None:
    """How a process ended that nobody collected yet."""
    try:
        fields = _fields(host_pid(pidfd))
    except (OSError, GuestDiedError):
        return None
    return int(fields[_EXIT_CODE]) if fields[0] == "Z" else None


def processor_time(init: int, interpreter: int, since: float) -> float:
    """Return the seconds that an interpreter computed, with its children that ended, and that later processes of its session did.

    A process that ends without its parent waiting for it takes its time with it.

    Args:
        init: The pidfd of the session's first process, below which orphans are found.
        interpreter: The pidfd of the interpreter.
        since: Earlier processes do not count: when they began, by CLOCK_BOOTTIME.
    """
    own = host_pid(interpreter)
    computed = time.clock_gettime((~own << 3) | _PROCESS_CLOCK)
    for pid in descendants(host_pid(init)):
        with contextlib.suppress(OSError):
            fields = _fields(pid)
            if pid == own:
                computed += _seconds(fields[_ENDED_TIMES])
            elif int(fields[_BEGAN]) >= int(since * _TICKS):
                computed += _seconds(fields[_TIMES]) + _seconds(fields[_ENDED_TIMES])
    return computed


def _fields(pid: int) -> list[str]:
    """Return what stands behind the name in /proc/PID/stat."""
    with open(f"/proc/{pid}/stat", errors="backslashreplace") as file:
        return file.read().rpartition(")")[2].split()


def _seconds(ticks: Sequence[str]) -> float:
    return sum(map(int, ticks)) / _TICKS


def descendants(pid: int) -> list[int]:
    """All processes below one, as this host numbers them."""
    return family(pid)[1:]


def kill(pid: int) -> None:
    """Ends a process that was seen below one of ours a moment ago; by a descriptor, so that no other of its number is hit later."""
    with contextlib.suppress(OSError):
        with_reserve(lambda: _kill(pid))


def _kill(pid: int) -> None:
    process = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(process, signal.SIGKILL)
    finally:
        os.close(process)


class ForkEnds:
    """What a fork of an interpreter is reached by: made here, and half of it given to the guest, who never gives us any."""

    def __init__(self, owner: int | None) -> None:
        """Pipes belong to the guest's user: code in the session may open them again, by /dev/stdout."""
        with contextlib.ExitStack() as on_failure, _as_user(owner):
            self.link, self._theirs_link = (on_failure.enter_context(end) for end in socket.socketpair())
            (self.said, said), (stdout, stdout_end), (stderr, stderr_end) = (_pipe(on_failure) for _ in range(3))
            on_failure.pop_all()
        self.streams = (stdout, stderr)
        self._theirs = [said, stdout_end, stderr_end]

    @property
    def theirs(self) -> list[int]:
        """The guest's half."""
        return [self._theirs_link.fileno(), *self._theirs]

    def close_theirs(self) -> None:
        """It has been sent."""
        self._theirs_link.close()
        while self._theirs:
            os.close(self._theirs.pop())

    def close(self) -> None:
        """Lets go of both halves."""
        self.close_theirs()
        self.link.close()
        for descriptor in (self.said, *self.streams):
            os.close(descriptor)


def _pipe(on_failure: contextlib.ExitStack) -> tuple[int, int]:
    ends = os.pipe()
    for end in ends:
        on_failure.callback(os.close, end)
    return ends


@contextmanager
def _as_user(owner: int | None) -> Iterator[None]:
    if owner is None:
        yield
        return
    syscalls.set_filesystem_ids(owner, owner)
    try:
        yield
    finally:
        syscalls.set_filesystem_ids(0, 0)


def running_below(init: int, *, besides: int) -> tuple[RunningProcess, ...]:
    """The processes of a session that has no pid namespace, but the two that the descriptors name; none once its init has ended."""
    try:
        own = (host_pid(init), host_pid(besides))
    except GuestDiedError:
        return ()
    pids = [pid for pid in family(own[0]) if pid not in own]
    return tuple(RunningProcess(pid, name) for pid in sorted(pids)[:MOST_TOLD] if (name := _name(pid)))


def _name(pid: int) -> str:
    """Empty for the dead that nobody collected."""
    try:
        with open(f"/proc/{pid}/stat", errors="backslashreplace") as file:
            text = file.read()
    except OSError:
        return ""
    end = text.rindex(")")
    return "" if text[end + 2] in "ZX" else text[text.index("(") + 1 : end]
