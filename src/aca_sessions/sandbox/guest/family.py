"""Processes of a session without a pid namespace, which would end them together."""

from __future__ import annotations

import contextlib
import os
import signal

_LOOKS = 3  # consecutive scans that must find nothing
_AFTER_NAME = 2  # characters: the bracket that ends the name, and a blank (proc_pid_stat(5))


def end_all_below(ancestor: int, spared: frozenset[int] = frozenset()) -> None:
    """Kill every descendant of a process.

    Args:
        ancestor: The process whose descendants are killed.
        spared: Children of the ancestor that live on, with their own descendants.
    """
    # One scan may miss a process whose parent ends meanwhile. Several in a row do not.
    quiet = 0
    while quiet < _LOOKS:
        quiet = 0 if _end_those_seen(ancestor, spared) else quiet + 1


def _end_those_seen(ancestor: int, spared: frozenset[int]) -> bool:
    """Stop the descendants, then kill them. Return whether there were any."""
    stopped: set[int] = set()  # a stopped process cannot fork, so the loop ends
    while new := _below(ancestor, spared) - stopped:
        _signal_all(new, signal.SIGSTOP)
        stopped |= new
    _signal_all(stopped, signal.SIGKILL)
    return bool(stopped)


def threads_of(uid: int) -> int:
    """Return the number of threads that a user has on this host. The kernel counts all of them against the user's RLIMIT_NPROC."""
    return sum(_threads(pid) for pid in _pids() if _owner(pid) == uid)


def others_of(uid: int) -> bool:
    """Return whether a user has a living process other than this one."""
    return any(_is_alive(pid, uid) for pid in _pids() if pid != os.getpid())


def _is_alive(pid: int, uid: int) -> bool:
    """Return whether a process lives and belongs to a user."""
    # The owner of /proc/PID does not help here: the folder of a process that is not dumpable belongs to root.
    try:
        with open(f"/proc/{pid}/status", errors="replace") as file:
            lines = dict(line.split(":", 1) for line in file if line.startswith(("State:", "Uid:")))
    except OSError:
        return False
    return "Uid" in lines and int(lines["Uid"].split()[0]) == uid and lines["State"].split()[0] not in "ZX"


def _below(ancestor: int, spared: frozenset[int]) -> set[int]:
    children: dict[int, list[int]] = {}
    for pid in _pids():
        parent = _parent(pid)
        if parent is not None:
            children.setdefault(parent, []).append(pid)
    found: set[int] = set()
    pending = [pid for pid in children.get(ancestor, []) if pid not in spared]
    while pending:
        pid = pending.pop()
        found.add(pid)
        pending += children.get(pid, [])
    return found


def _parent(pid: int) -> int | None:
    """Return the parent of a process, or None if the process has ended."""
    try:
        with open(f"/proc/{pid}/stat", errors="replace") as file:
            text = file.read()
    except OSError:
        return None
    state, parent = text[text.rindex(")") + _AFTER_NAME :].split()[:2]
    return None if state in "ZX" else int(parent)


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _owner(pid: int) -> int | None:
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None


def _threads(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/task"))
    except OSError:
        return 0


def _signal_all(pids: set[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
