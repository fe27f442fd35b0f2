"""What the host holds of a session: descriptors that name its folder, its link and its processes."""

import contextlib
import os
import signal
import socket
from dataclasses import dataclass

from ..errors import GuestDiedError


@dataclass(frozen=True, slots=True)
class Tree:
    """A session's /mnt/data: its number, a descriptor of it, and the uid that owns it as the host sees it (None: our own)."""

    number: int
    directory: int
    owner: int | None


@dataclass(frozen=True, slots=True)
class Spawned:
    """A new session's ends: its socket, its init's report of deaths, its init's pidfd."""

    link: socket.socket
    report: int
    init: int

    def close(self) -> None:
        """Ends a session that nobody takes over."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.init, signal.SIGKILL)
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
