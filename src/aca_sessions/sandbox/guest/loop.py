"""The event loop in which a session's cells await."""

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any


class Loop:
    """The session's one event loop: tasks that a cell started go on while a later one awaits."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

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

    def forget(self) -> None:
        """A fork must not share its parent's loop: both would wait on one epoll descriptor."""
        if self._loop is not None:
            self._loop.close()
        self._loop = None
        asyncio.set_event_loop(None)
