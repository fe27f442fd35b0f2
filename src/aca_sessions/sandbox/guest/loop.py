"""The event loop in which a session's cells await."""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
import traceback
from collections.abc import Coroutine
from typing import Any

_NEEDED = re.compile(r"\b(create_task|ensure_future|get_running_loop)\(")
_BROUGHT = re.compile(r"\basyncio\.run\(|\b(run_until_complete|run_forever|Runner)\(")


def is_needed(code: str) -> bool:
    """Whether code without `await` wants a running loop, and does not run one of its own."""
    return bool(_NEEDED.search(code)) and not _BROUGHT.search(code)


class Loop:
    """The session's one event loop: tasks that a cell started go on while a later one awaits."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._abandoned: list[asyncio.AbstractEventLoop | None] = []
        self._woken = threading.Event()
        self._is_between_cells = False

    def __call__(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Runs a cell's awaiting code; an interrupt ends that code, not only the wait for it."""
        if self._loop is None or self._loop.is_closed():
            self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)
        task = self._loop.create_task(coroutine)
        try:
            return self._loop.run_until_complete(task)
        except KeyboardInterrupt:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                self._loop.run_until_complete(task)
            raise

    def go_on_until(self, descriptor: int) -> None:
        """Lets what cells left in the loop go on until there is something to read, or somebody else has read it."""
        if self._loop is None or self._loop.is_closed():
            return
        self._is_between_cells = True
        try:
            self._loop.add_reader(descriptor, self.wake)
            while not self._woken.is_set():
                self._loop.run_forever()
        except BaseException:  # a task may raise SystemExit: it ends the task, not the session
            traceback.print_exc()
        finally:
            self._is_between_cells = False
            self._woken.clear()
            with contextlib.suppress(Exception):
                self._loop.remove_reader(descriptor)

    def wake(self) -> None:
        """Something was read: there may be a cell. From any thread; where a cell runs already, it goes on."""
        self._woken.set()
        loop = self._loop
        with contextlib.suppress(RuntimeError):
            if loop is not None:
                loop.call_soon_threadsafe(lambda: loop.stop() if self._is_between_cells else None)

    def abandon(self) -> None:
        """For a fork: closed or collected, the loop would take the parent's descriptors out of the epoll that both share."""
        self._abandoned.append(self._loop)
        self._loop = None
        asyncio.set_event_loop(None)

    @property
    def sockets(self) -> int:
        """How many it has open for itself."""
        return 0 if self._loop is None or self._loop.is_closed() else 2

    def unfinished(self) -> int:
        """How many tasks go on when a cell awaits, and between cells."""
        return 0 if self._loop is None or self._loop.is_closed() else len(asyncio.all_tasks(self._loop))

    def forget(self) -> None:
        """A fork must not share its parent's loop: both would wait on one epoll descriptor."""
        if self._loop is not None:
            self._loop.close()
        self._loop = None
        asyncio.set_event_loop(None)
