"""The descriptors by which the host reaches a session: its workspace, its link and its processes."""

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
# Positions among the fields behind the name in /proc/PID/stat (proc(5)). The times are in clock ticks: the process's own, those of children
# that it waited for, and its start.
_EXIT_CODE = 49
_TIMES, _ENDED_TIMES, _BEGAN = slice(11, 13), slice(13, 15), 19
_TICKS = os.sysconf("SC_CLK_TCK")
_PROCESS_CLOCK = 2  # the kernel's CPUCLOCK_SCHED: combined with a pid, it is the clock that clock_getcpuclockid(3) returns


@dataclass(frozen=True, slots=True)
class Tree:
    """A workspace: the files that a session, a branch or a checkpoint has as /mnt/data.

    Attributes:
        number: Names the workspace in requests to the fork server.
        directory: A descriptor of its folder.
        owner: The uid that owns it, as the host sees it. None is the uid of this process.
        user: The number of its user: that of the session's first workspace. Branches and checkpoints belong to the same user.
    """

    number: int
    directory: int
    owner: int | None
    user: int


@dataclass(frozen=True, slots=True)
class Spawned:
    """The host's ends of a session that was just started.

    Attributes:
        link: The socket of the interpreter.
        report: The socket on which the session's first process (its init) reports deaths.
        init: The pidfd of that process.
        namespaces: Whether a pid namespace ends with that process.
    """

    link: socket.socket
    report: socket.socket
    init: int
    namespaces: bool = True

    @property
    def ending(self) -> signal.Signals:
        """Return the signal to the first process that ends all of the session."""
        # Without a pid namespace the first process must survive the signal, because it has to end the others.
        return signal.SIGKILL if self.namespaces else signal.SIGTERM

    def close(self) -> None:
        """End a session that no caller has taken over, and close its ends."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.init, self.ending)
        self.link.close()
        self.report.close()
        os.close(self.init)


def host_pid(pidfd: int) -> int:
    """Return the pid of a process on this host; in its own namespace it has another. Raise GuestDiedError if the process has ended."""
    with open(f"/proc/self/fdinfo/{pidfd}") as lines:
        pid = next(int(line.split()[1]) for line in lines if line.startswith("Pid:"))
    if pid <= 0:
        raise GuestDiedError("the interpreter has ended; the next cell gets a fresh one")
    return pid


def number_of(pidfd: int) -> int:
    """Return the pid of a process in its own pid namespace. Raise GuestDiedError if the process has ended."""
    with open(f"/proc/self/fdinfo/{pidfd}") as lines:
        told = [line for line in lines if line.startswith("NSpid:")]
    number = int(told[0].split()[-1]) if told else -1
    if number <= 0:
        raise GuestDiedError("the interpreter has ended; the next cell gets a fresh one")
    return number


def gives_way(process: int, nice: int | None) -> bool:
    """Lower the weight of an interpreter and of what it starts, so that the host's own processes come first on a busy machine.

    Return whether the weight is set. After False, the caller must try again later.

    Args:
        process: The interpreter's pidfd.
        nice: The nice value to set. None sets nothing, since a control group has the weight.
    """
    # Linux divides the processors between autogroups (sched(7)). setsid(2) makes an autogroup, so each interpreter has its own. The kernel
    # accepts ten weights a second from all ordinary users together, and refuses more.
    if nice is None:
        return True
    try:
        pid = host_pid(process)
        autogroup = Path(f"/proc/{pid}/autogroup")
        if os.getsid(pid) != pid:  # a new fork, which calls setsid in a moment
            return False
        if autogroup.read_text().split()[-1:] == [str(nice)]:
            return True
        autogroup.write_text(str(nice))
    except FileNotFoundError:
        return True  # this kernel has no autogroups
    except (OSError, GuestDiedError):
        pass
    return False


def open_member(init: int, number: int) -> int:
    """Return a pidfd of a process below a session's first process. Raise GuestDiedError if it is not found.

    The number comes from the guest, which may lie. It can name a process of its own session only, because no other is searched.

    Args:
        init: The pidfd of the session's first process.
        number: The pid of the wanted process in the session's pid namespace.
    """
    for _ in range(_LOOKS):  # one look may miss it while other processes of the session start and end
        for pid in descendants(host_pid(init)):
            with contextlib.suppress(ProcessLookupError, GuestDiedError), contextlib.ExitStack() as unless_found:
                process = os.pidfd_open(pid)
                unless_found.callback(os.close, process)
                # Looked up once more: the pid may have been given to another process before it was opened.
                if number_of(process) == number and pid in descendants(host_pid(init)):
                    unless_found.pop_all()
                    return process
    raise GuestDiedError("the session's code is in the way: reset the session")


def exit_status(pidfd: int) -> int | None:
    """Return the wait status of a process that has ended and that its parent has not collected. Return None for any other process."""
    try:
        fields = _fields(host_pid(pidfd))
    except (OSError, GuestDiedError):
        return None
    return int(fields[_EXIT_CODE]) if fields[0] == "Z" else None


def processor_time(init: int, interpreter: int, since: float) -> float:
    """Return the processor time in seconds of an interpreter, of its children that ended, and of later processes of its session.

    The time of a process is lost if it ends and its parent does not wait for it.

    Args:
        init: The pidfd of the session's first process, below which orphans are found.
        interpreter: The pidfd of the interpreter.
        since: A time of CLOCK_BOOTTIME. Other processes count if they started at that time or later.
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


def queued_time(process: int) -> float:
    """Return for how many seconds the main thread of a process was ready to run and had no processor. Return 0 if that is not known."""
    # The second number of /proc/PID/schedstat, in nanoseconds: sched-stats.rst of the kernel's documentation.
    try:
        return int(Path(f"/proc/{host_pid(process)}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, GuestDiedError):
        return 0.0


def _fields(pid: int) -> list[str]:
    """Return the fields behind the name in /proc/PID/stat. The first is the state."""
    # The name is in parentheses, and may itself hold blanks and parentheses.
    with open(f"/proc/{pid}/stat", errors="backslashreplace") as file:
        return file.read().rpartition(")")[2].split()


def _seconds(ticks: Sequence[str]) -> float:
    return sum(map(int, ticks)) / _TICKS


def descendants(pid: int) -> list[int]:
    """Return the pids on this host of all processes below one."""
    return family(pid)[1:]


def kill(pid: int) -> None:
    """Kill a process that was seen below one of this host's a moment ago. Do nothing if it has ended."""
    # By a pidfd: it still names the same process if the pid is reused before the signal is sent.
    with contextlib.suppress(OSError):
        with_reserve(lambda: _kill(pid))


def _kill(pid: int) -> None:
    process = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(process, signal.SIGKILL)
    finally:
        os.close(process)


class ForkEnds:
    """The ends of a fork of an interpreter. The host makes all of them and sends half of them to the guest."""

    # The host takes no descriptors from code of a session: it would have to close them, and a close can be made to last (SO_LINGER).

    def __init__(self, owner: int | None) -> None:
        """Make the ends.

        Args:
            owner: The uid of the session's user, as the host sees it. None is the uid of this process.
        """
        # The pipes must belong to the session's user: code in the session may open them again, by /dev/stdout.
        with contextlib.ExitStack() as on_failure, _as_user(owner):
            self.link, self._theirs_link = (on_failure.enter_context(end) for end in socket.socketpair())
            (self.said, said), (stdout, stdout_end), (stderr, stderr_end) = (_pipe(on_failure) for _ in range(3))
            on_failure.pop_all()
        self.streams = (stdout, stderr)
        self._theirs = [said, stdout_end, stderr_end]

    @property
    def theirs(self) -> list[int]:
        """Return the guest's half: its socket, and the write ends of its frames, stdout and stderr."""
        return [self._theirs_link.fileno(), *self._theirs]

    def close_theirs(self) -> None:
        """Close the guest's half, once it has been sent."""
        self._theirs_link.close()
        while self._theirs:
            os.close(self._theirs.pop())

    def close(self) -> None:
        """Close both halves."""
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
    """Make this thread own what it creates in the block as another user. None changes nothing."""
    if owner is None:
        yield
        return
    syscalls.set_filesystem_ids(owner, owner)
    try:
        yield
    finally:
        syscalls.set_filesystem_ids(0, 0)


def running_below(init: int, *, besides: int) -> tuple[RunningProcess, ...]:
    """Return the processes of a session that has no pid namespace, at most 100. Return none once its first process has ended.

    Args:
        init: The pidfd of the session's first process, which is left out.
        besides: The pidfd of another process that is left out.
    """
    try:
        own = (host_pid(init), host_pid(besides))
    except GuestDiedError:
        return ()
    pids = [pid for pid in family(own[0]) if pid not in own]
    return tuple(RunningProcess(pid, name) for pid in sorted(pids)[:MOST_TOLD] if (name := _name(pid)))


def _name(pid: int) -> str:
    """Return the name of a process, or "" if it has ended, whether or not its parent has collected it."""
    try:
        with open(f"/proc/{pid}/stat", errors="backslashreplace") as file:
            text = file.read()
    except OSError:
        return ""
    end = text.rindex(")")
    return "" if text[end + 2] in "ZX" else text[text.index("(") + 1 : end]
