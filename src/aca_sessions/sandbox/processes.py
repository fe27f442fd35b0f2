"""Processes of a session as its host knows them: by descriptors, which name nobody else after their end."""

import os
import signal

from . import wire


def reason_of(status: int | None) -> str:
    """Why a process ended, in the words of `State.reason`."""
    if status is None:
        return "killed"
    if os.WIFEXITED(status):
        return "crash" if os.WEXITSTATUS(status) == wire.BROKEN_EXIT else "exit"
    return "killed" if os.WTERMSIG(status) == signal.SIGKILL else "crash"


def host_pid(pidfd: int) -> int:
    """The number that this host knows a process by; its own namespace has another."""
    with open(f"/proc/self/fdinfo/{pidfd}") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("Pid:"))
