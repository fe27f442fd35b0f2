"""Work that belongs to nobody's call: owned, finished together, and never silently failed."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

_logger = logging.getLogger("aca_sessions")
Result = TypeVar("Result")


class Tasks:
    """Starts tasks and keeps them; not a task group, since another task may close it than opened it."""

    def __init__(self) -> None:
        """Starts with none."""
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, work: Coroutine[Any, Any, Result]) -> "asyncio.Task[Result]":
        """Runs in the background; a failure is logged."""
        task = self.own(work)
        task.add_done_callback(_log_failure)
        return task

    async def to_its_end(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Waits for work that goes on even if its caller is cancelled: what it opened or closed halfway would be lost."""
        task = self.own(work)
        task.add_done_callback(_look_at)
        return await asyncio.shield(task)

    async def finish(self) -> None:
        """Waits for all of them."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def cancel(self) -> None:
        """Cancels what still runs, and waits for it."""
        for task in self._tasks:
            task.cancel()
        await self.finish()

    def own(self, work: Coroutine[Any, Any, Result]) -> "asyncio.Task[Result]":
        """Runs in the background; whoever keeps the task looks at what became of it."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _look_at(task: "asyncio.Task[Any]") -> None:
    """Whoever waited and is still there is told anyway; if nobody is, it is no news."""
    if not task.cancelled():
        task.exception()


def _log_failure(task: "asyncio.Task[Any]") -> None:
    """By its type alone: what an exception says may hold what a user sent."""
    if not task.cancelled() and (error := task.exception()) is not None:
        _logger.error("work in the background failed: %s", type(error).__name__)
