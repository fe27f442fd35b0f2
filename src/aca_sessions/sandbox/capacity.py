"""The number of further sessions that fit on this machine, and the resources that bound it."""

import contextlib
import os
import re
import resource
from pathlib import Path

from .policy import Policy
from .shortage import DESCRIPTORS, room_for_sessions

_PROCESSES = 2  # of an idle session: its first process and its interpreter
# Files with the limit and the use of the container that this process may be in, with version 2 and version 1 of control groups.
_MEMORY = (
    ("memory.max", "memory.current", "memory.stat"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
)
_PIDS = (("pids.max", "pids.current"), ("pids/pids.max", "pids/pids.current"))
_GROUPS = "sys/fs/cgroup"
_MACHINES_PIDS = ("proc/sys/kernel/pid_max", "proc/sys/kernel/threads-max")


def capacity(policy: Policy, idle: int, system: Path = Path("/")) -> str:
    """Return a line for `doctor`: how many further sessions fit, and for how many of them each resource suffices.

    Args:
        policy: The limits of one session and of all sessions together.
        idle: Bytes of memory that an idle session has.
        system: The folder with /proc and /sys.
    """
    has, free = _memory(system)
    share = min(int(has * policy.together.memory_share), free)
    most = max(min([policy.together.processes, *_own_processes(system), *_all_processes(system)]), 0)
    descriptors, memory, processes = max(room_for_sessions(), 0), share // max(idle, 1), most // _PROCESSES
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (
        f"{min(descriptors, memory, processes)}: descriptors for {descriptors} ({DESCRIPTORS} each, `ulimit -n` is {soft}), "
        f"memory for {memory} that are idle ({_megabytes(idle)} each of {_megabytes(share)}) "
        f"or {share // policy.limits.memory} that use all of theirs, processes for {processes} ({_PROCESSES} each of {most})"
    )


def _memory(system: Path) -> tuple[int, int]:
    """Return how many bytes of memory this machine or container has, and how many of them are free."""
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
    """Return how many more processes the machine and the container allow."""
    running = int(_text(system / "proc/loadavg").split()[3].partition("/")[2])  # threads as well, as in the limits: proc(5)
    pairs = [(_number(system / limit), running) for limit in _MACHINES_PIDS]
    pairs += [(_number(system / _GROUPS / limit), _number(system / _GROUPS / used) or 0) for limit, used in _PIDS]
    return [most - used for most, used in pairs if most is not None]


def _own_processes(system: Path) -> list[int]:
    """Return how many more processes this user may have, or an empty list if the number is unlimited."""
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
    """Return the number in a file. Missing and unreadable files and the word `max` have none."""
    text = _text(file).strip()
    return int(text) if text.isdecimal() else None


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


def _megabytes(size: int) -> str:
    return f"{size / (1 << 20):.0f} MB"
