"""The number of sessions that fit on this machine at the same time, and the resources that bound it."""

import os
import resource
from collections.abc import Iterable
from pathlib import Path

from .policy import Policy
from .shortage import DESCRIPTORS, room_for_sessions

_PROCESSES = 2  # of an idle session: its first process and its interpreter
# Limits of the container that this process may be in, with version 2 and version 1 of control groups; and the machine's own.
_MEMORY = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_PIDS = ("/sys/fs/cgroup/pids.max", "/sys/fs/cgroup/pids/pids.max", "/proc/sys/kernel/pid_max", "/proc/sys/kernel/threads-max")


def capacity(policy: Policy, idle: int) -> str:
    """Return a line for `doctor`: how many further sessions fit, and for how many of them each resource suffices.

    Args:
        policy: The limits of one session and of all sessions together.
        idle: Bytes of memory that an idle session has.
    """
    share = int(min([os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), *_numbers(_MEMORY)]) * policy.together.memory_share)
    most = min([policy.together.processes, *_own_processes(), *_numbers(_PIDS)])
    descriptors, memory, processes = max(room_for_sessions(), 0), share // max(idle, 1), most // _PROCESSES
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (
        f"{min(descriptors, memory, processes)}: descriptors for {descriptors} ({DESCRIPTORS} each, `ulimit -n` is {soft}), "
        f"memory for {memory} that are idle ({_megabytes(idle)} each of {_megabytes(share)}) "
        f"or {share // policy.limits.memory} that use all of theirs, processes for {processes} ({_PROCESSES} each of {most})"
    )


def _own_processes() -> list[int]:
    """Return this user's limit of processes, or an empty list if there is none."""
    # The kernel does not apply this limit to root: getrlimit(2).
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    return [soft] if os.geteuid() and soft != resource.RLIM_INFINITY else []


def _numbers(files: Iterable[str]) -> list[int]:
    """Return the limits that the files set. Missing files, unreadable files and the word `max` set none."""
    said = [Path(file).read_text().strip() for file in files if os.access(file, os.R_OK)]
    return [int(text) for text in said if text.isdecimal()]


def _megabytes(size: int) -> str:
    return f"{size / (1 << 20):.0f} MB"
