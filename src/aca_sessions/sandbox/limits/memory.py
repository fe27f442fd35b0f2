"""The interface of objects that count and limit the memory of one session.

`cgroup.py` implements it by control groups, and `watchdog.py` by reading /proc at intervals.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

Part = tuple[int, int, int]  # a part of a file: the file's descriptor, where the part starts, and its length
Allocate = Callable[[Sequence[Part]], None]  # charges a session for what the host is about to write


class MemoryLimit(Protocol):
    """The counter and limit of one session's memory. It stays in use when the session gets a new interpreter.

    In all methods, `init` is the pid on this host of a first process of the session: the ancestor of an interpreter and of all its forks.
    Each interpreter that is started, not forked, has its own first process.
    """

    # Return a description for users: what is counted, and how.
    @property
    def how(self) -> str: ...  # noqa: D102
    # Return whether `start` expects a descriptor that lists the session's sockets.
    @property
    def lists_sockets(self) -> bool: ...  # noqa: D102
    # Return whether the processes of each workspace can be frozen in a control group.
    @property
    def freezes(self) -> bool: ...  # noqa: D102
    # Return whether the kernel charges the session for what its processes allocate. See `SharedRuntime.allocate`.
    @property
    def is_charged(self) -> bool: ...  # noqa: D102
    # Return whether `Limits.cpu` is enforced.
    @property
    def limits_cpu(self) -> bool: ...  # noqa: D102
    # Return the nice value for each interpreter, or None if a control group sets the weight of sessions.
    @property
    def nice(self) -> int | None: ...  # noqa: D102
    # Return how many more bytes the session's files may take.
    def free_file_bytes(self) -> int: ...  # noqa: D102
    # Add a first process before it forks. Return a group in which it and its descendants can be frozen, or None.
    async def add_first_process(self, init: int) -> Path | None: ...  # noqa: D102
    # Start to enforce the limit: call `kill` when it is exceeded. Take over the descriptor that lists the sockets.
    async def start(self, init: int, kill: Callable[[], None], sockets: int | None = None) -> None: ...  # noqa: D102
    # Record that a cell begins (`running`) or ends.
    def set_cell_running(self, running: bool) -> None: ...  # noqa: D102
    # Return how many bytes the session uses now.
    def used(self) -> int: ...  # noqa: D102
    # Return whether the kernel has killed a process for lack of memory since the latest cell began or ended.
    def was_exceeded(self) -> bool: ...  # noqa: D102
    # Stop counting a first process and its descendants, without waiting.
    def stop_without_waiting(self, init: int) -> None: ...  # noqa: D102
    # Stop counting a first process and its descendants, after they have ended.
    async def stop(self, init: int) -> None: ...  # noqa: D102
    # Stop counting the session, after all of its processes have ended.
    def remove(self) -> None: ...  # noqa: D102
