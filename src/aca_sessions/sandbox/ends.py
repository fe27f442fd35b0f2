"""What the host holds of a session: descriptors that name its folder, its link and its processes."""

import contextlib
import os
import signal
import socket
from dataclasses import dataclass

from ..errors import GuestDiedError
from ..models import RunningProcess
from .watchdog import family

_MOST_TOLD = 100


@dataclass(frozen=True, slots=True)
class Tree:
    """A session's /mnt/data: its number, a descriptor of it, and the uid that owns it as the host sees it (None: our own)."""

    number: int
    directory: int
    owner: int | None


@dataclass(frozen=True, slots=True)
class Spawned:
    """A new session's ends: its socket, its init's report of deaths, its init's pidfd, and whether a namespace ends with its init."""

    link: socket.socket
    report: int
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
        os.close(self.report)
        os.close(self.init)


def host_pid(pidfd: int) -> int:
    """The number that this host knows a process by; its own namespace has another. GuestDiedError where it has ended."""
    with open(f"/proc/self/fdinfo/{pidfd}") as lines:
        pid = next(int(line.split()[1]) for line in lines if line.startswith("Pid:"))
    if pid <= 0:
        raise GuestDiedError("the interpreter has ended; the next cell gets a fresh one")
    return pid


def running_below(init: int, *, besides: int) -> tuple[RunningProcess, ...]:
    """The processes of a session that has no pid namespace, but the two that the descriptors name; none once its init has ended."""
    try:
        own = (host_pid(init), host_pid(besides))
    except GuestDiedError:
        return ()
    pids = [pid for pid in family(own[0]) if pid not in own]
    return tuple(RunningProcess(pid, name) for pid in sorted(pids)[:_MOST_TOLD] if (name := _name(pid)))


def _name(pid: int) -> str:
    """Empty for the dead that nobody collected."""
    try:
        with open(f"/proc/{pid}/stat", errors="backslashreplace") as file:
            text = file.read()
    except OSError:
        return ""
    end = text.rindex(")")
    return "" if text[end + 2] in "ZX" else text[text.index("(") + 1 : end]
