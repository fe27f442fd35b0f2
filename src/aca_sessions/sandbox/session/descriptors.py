"""File descriptors by which the host reaches a session: its workspace, its sockets and pipes, and its processes (pidfds)."""

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ...errors import GuestDiedError
from ...models import RunningProcess
from .. import syscalls
from ..limits.capacity import with_reserve
from ..limits.watchdog import process_tree

MOST_REPORTED = 100
_LOOKS = 3
# Positions among the fields behind the name in /proc/PID/stat (proc(5)). The times are in clock ticks: the process's own, those of children
# that it waited for; then its number of threads, and its start.
_EXIT_CODE = 49
_TIMES, _ENDED_TIMES, _THREADS, _BEGAN = slice(11, 13), slice(13, 15), 17, 19
_TICKS = os.sysconf("SC_CLK_TCK")
_PROCESS_CLOCK = 2  # the kernel's CPUCLOCK_SCHED: combined with a pid, it is the clock that clock_getcpuclockid(3) returns


@dataclass(frozen=True, slots=True)
class Workspace:
    """The files that a session, a branch or a checkpoint has at /mnt/data.

    Attributes:
        number: The number that names the workspace in requests to the fork server.
        directory: A descriptor of its folder.
        owner: The uid that owns the files, as the host sees it. None stands for the uid of this process.
        user: The number of the session's first workspace. It identifies the user that the session, its branches and its checkpoints run as.
    """

    number: int
    directory: int
    owner: int | None
    user: int


@dataclass(frozen=True, slots=True)
class SpawnedSession:
    """A session that was just started: the host's sockets to it, and the pidfd of its first process.

    Attributes:
        link: The socket to the interpreter.
        report: The socket to the session's first process (its init), which reports deaths of interpreters.
        init: The pidfd of the first process.
        namespaces: Whether the session has a pid namespace. If so, the kernel ends all processes when the first one ends.
    """

    link: socket.socket
    report: socket.socket
    init: int
    namespaces: bool = True

    @property
    def ending_signal(self) -> signal.Signals:
        """Return the signal that ends the first process and all others with it: SIGKILL with namespaces, SIGTERM without."""
        # Without a pid namespace the first process must survive the signal, because it has to end the others.
        return signal.SIGKILL if self.namespaces else signal.SIGTERM

    def close(self) -> None:
        """End the session and close the host's descriptors of it. Do not call this after another object has taken over the descriptors."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.init, self.ending_signal)
        self.link.close()
        self.report.close()
        os.close(self.init)


def host_pid(pidfd: int) -> int:
    """Return the pid that the process of a pidfd has on this host. Raise GuestDiedError if the process has ended."""
    with open(f"/proc/self/fdinfo/{pidfd}") as lines:
        pid = next(int(line.split()[1]) for line in lines if line.startswith("Pid:"))
    if pid <= 0:
        raise GuestDiedError("the interpreter has ended, and the next cell starts a new one")
    return pid


def has_ended(pidfd: int) -> bool:
    """Return whether a process has ended, whether or not its parent has collected it."""
    try:
        host_pid(pidfd)
    except GuestDiedError:
        return True
    return False


def pid_in_session(pidfd: int) -> int:
    """Return the pid that the process of a pidfd has in the session's pid namespace. Raise GuestDiedError if the process has ended."""
    with open(f"/proc/self/fdinfo/{pidfd}") as lines:
        found = [line for line in lines if line.startswith("NSpid:")]
    number = int(found[0].split()[-1]) if found else -1
    if number <= 0:
        raise GuestDiedError("the interpreter has ended, and the next cell starts a new one")
    return number


def set_autogroup_nice(process: int, nice: int | None) -> bool:
    """Set the nice value of an interpreter's autogroup, so that the host's own processes come first on a busy machine.

    The kernel divides the processors between autogroups (sched(7)). Return False if the value could not be set now and the caller must try
    again later, else True. If this kernel has no autogroups, do nothing and return True.

    Args:
        process: The pidfd of the interpreter.
        nice: The nice value. None means that a control group sets the weight of sessions, so nothing is set.
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


def open_process_of_session(init: int, number: int) -> int:
    """Open a pidfd of a process by its pid in the session (`number`). Raise GuestDiedError if the process is not found.

    The guest reports this pid, and may lie. It cannot name a process of another session, because only descendants of the session's first
    process (the pidfd `init`) are searched.
    """
    for _ in range(_LOOKS):  # one look may miss it while other processes of the session start and end
        for pid in descendants(host_pid(init)):
            with contextlib.suppress(ProcessLookupError, GuestDiedError), contextlib.ExitStack() as unless_found:
                process = os.pidfd_open(pid)
                unless_found.callback(os.close, process)
                # Looked up once more: the pid may have been given to another process before it was opened.
                if pid_in_session(process) == number and pid in descendants(host_pid(init)):
                    unless_found.pop_all()
                    return process
    raise GuestDiedError("cannot find the forked interpreter among the session's processes: reset the session")


def exit_status(pidfd: int) -> int | None:
    """Return the wait status of a zombie, a process that has ended but that its parent has not waited for. Otherwise return None."""
    try:
        fields = _fields(host_pid(pidfd))
    except (OSError, GuestDiedError):
        return None
    return int(fields[_EXIT_CODE]) if fields[0] == "Z" else None


def processor_time(init: int, interpreter: int, since: float) -> float:
    """Return how many seconds of processor time an interpreter has used, together with the processes that were started since `since`.

    The time of a process that has ended counts only if its parent has waited for it.

    Args:
        init: The pidfd of the session's first process. All its descendants are searched.
        interpreter: The pidfd of the interpreter.
        since: A time of CLOCK_BOOTTIME. Processes other than the interpreter count only if they were started then or later.
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


def time_at_rest(init: int, interpreter: int) -> int | None:
    """Return the processor time of an interpreter in nanoseconds, or None if it runs, has threads, or is not alone in its session.

    While this stays the same, nothing in the session can change, because changes need a processor.
    """
    try:
        own = host_pid(interpreter)
        state = _fields(own)
        if (
            state[0] != "S"
            or int(state[_THREADS]) > 1
            or any(_fields(pid)[0] not in "ZX" for pid in descendants(host_pid(init)) if pid != own)
        ):
            return None
        return time.clock_gettime_ns((~own << 3) | _PROCESS_CLOCK)
    except (OSError, GuestDiedError):
        return None


def queued_time(process: int) -> float:
    """Return for how many seconds in total a process's main thread was ready to run but had no processor. If unknown, return 0."""
    # The second number of /proc/PID/schedstat, in nanoseconds: sched-stats.rst of the kernel's documentation.
    try:
        return int(Path(f"/proc/{host_pid(process)}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, GuestDiedError):
        return 0.0


def _fields(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat that follow the process's name. The first of them is the process's state."""
    # The name is in parentheses, and may itself hold blanks and parentheses.
    with open(f"/proc/{pid}/stat", errors="backslashreplace") as file:
        return file.read().rpartition(")")[2].split()


def _seconds(ticks: Sequence[str]) -> float:
    return sum(map(int, ticks)) / _TICKS


def descendants(pid: int) -> list[int]:
    """Return the pids on this host of all descendants of a process."""
    return process_tree(pid)[1:]


def kill(pid: int) -> None:
    """Kill a process by its pid on this host. Do nothing if it has ended. Look up `pid` just before the call, because pids are reused."""
    # By a pidfd: it still names the same process if the pid is reused before the signal is sent.
    with contextlib.suppress(OSError):
        with_reserve(lambda: _kill_once(pid))


def _kill_once(pid: int) -> None:
    process = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(process, signal.SIGKILL)
    finally:
        os.close(process)


class ForkDescriptors:
    """The socket pair and the pipes of a new fork of an interpreter. The host makes them, and sends `guest_ends` to the guest."""

    # The host takes no descriptors from code of a session: it would have to close them, and a close can be made to last (SO_LINGER).

    def __init__(self, owner: int | None) -> None:
        """Make the descriptors. `owner` is the uid of the session's user, as the host sees it. None stands for the uid of this process."""
        # The pipes must belong to the session's user: code in the session may open them again, by /dev/stdout.
        with contextlib.ExitStack() as on_failure, _as_user(owner):
            self.link, self._theirs_link = (on_failure.enter_context(end) for end in socket.socketpair())
            (self.said, said), (stdout, stdout_end), (stderr, stderr_end) = (_pipe(on_failure) for _ in range(3))
            on_failure.pop_all()
        self.streams = (stdout, stderr)
        self._theirs = [said, stdout_end, stderr_end]

    @property
    def guest_ends(self) -> list[int]:
        """Return the guest's descriptors: its socket, and the write ends of the pipes for its frames, stdout and stderr."""
        return [self._theirs_link.fileno(), *self._theirs]

    def close_guest_ends(self) -> None:
        """Close the guest's descriptors in this process. Call this after they have been sent to the guest."""
        self._theirs_link.close()
        while self._theirs:
            os.close(self._theirs.pop())

    def close(self) -> None:
        """Close all descriptors in this process, both the host's and the guest's."""
        self.close_guest_ends()
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
    """Within the `with` block, make the uid `owner` own the files, pipes and sockets that this thread creates. None changes nothing."""
    if owner is None:
        yield
        return
    syscalls.set_filesystem_ids(owner, owner)
    try:
        yield
    finally:
        syscalls.set_filesystem_ids(0, 0)


def list_processes(init: int, *, besides: int) -> tuple[RunningProcess, ...]:
    """Return at most 100 processes of a session without a pid namespace, sorted by pid.

    Leave out the session's first process (the pidfd `init`) and the interpreter (the pidfd `besides`). If either has ended, return ().
    """
    try:
        own = (host_pid(init), host_pid(besides))
    except GuestDiedError:
        return ()
    pids = [pid for pid in process_tree(own[0]) if pid not in own]
    return tuple(RunningProcess(pid, name) for pid in sorted(pids)[:MOST_REPORTED] if (name := _name(pid)))


def _name(pid: int) -> str:
    """Return the name of a process, or "" if it has ended, even if it is still a zombie."""
    try:
        with open(f"/proc/{pid}/stat", errors="backslashreplace") as file:
            text = file.read()
    except OSError:
        return ""
    end = text.rindex(")")
    return "" if text[end + 2] in "ZX" else text[text.index("(") + 1 : end]
