"""Who counts the memory of all processes of a session: a control group (`cgroup.py`), or somebody who looks (`watchdog.py`)."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

Part = tuple[int, int, int]  # of a file: its descriptor, where it starts, and its length
Allocate = Callable[[Sequence[Part]], None]  # has a session charged for what the host is about to write


class Memory(Protocol):
    """One session's, whatever becomes of its interpreters."""

    @property
    def how(self) -> str: ...  # noqa: D102
    @property
    def lists_sockets(self) -> bool: ...  # noqa: D102
    @property
    def freezes(self) -> bool: ...  # noqa: D102
    @property
    def is_charged(self) -> bool: ...  # noqa: D102
    @property
    def nice(self) -> int | None: ...  # noqa: D102
    def room(self) -> int: ...  # noqa: D102
    async def take_in(self, init: int) -> Path | None: ...  # noqa: D102
    async def begin(self, init: int, kill: Callable[[], None], sockets: int | None = None) -> None: ...  # noqa: D102
    def cell_runs(self, running: bool) -> None: ...  # noqa: D102
    def used(self) -> int: ...  # noqa: D102
    def was_exceeded(self) -> bool: ...  # noqa: D102
    def let_go(self, init: int) -> None: ...  # noqa: D102
    async def end(self, init: int) -> None: ...  # noqa: D102
    def remove(self) -> None: ...  # noqa: D102
