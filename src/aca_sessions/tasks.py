"""Work that belongs to nobody's call: owned, finished together, and never silently failed."""

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from anyio import CapacityLimiter, to_thread

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


async def in_thread(work: Callable[..., Result], *arguments: object) -> Result:
    """Run a function in a worker thread, and return or raise once it has ended, even if the caller is cancelled.

    If asyncio cancels a task that waits for anyio's `run_sync`, the task goes on at once and so does the thread. What both use must not be
    closed then: the number of a descriptor would be the next one's.
    """
    running = asyncio.ensure_future(to_thread.run_sync(work, *arguments))
    running.add_done_callback(_look_at)
    cancelled: asyncio.CancelledError | None = None
    while not running.done():
        try:
            await asyncio.wait({running})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    return running.result()


async def made_in_thread(make: Callable[[], Result], undo: Callable[[Result], None], limiter: CapacityLimiter | None = None) -> Result:
    """What a worker thread makes; it goes on where its caller is cancelled, and what it makes for nobody is undone."""
    handover = _Handover(make, undo)
    try:
        await to_thread.run_sync(handover.make, limiter=limiter)
        return handover.take()
    except BaseException:
        handover.abandon()
        raise


class _Handover(Generic[Result]):
    """A thing between the thread that makes it and the task that wants it: one of them has it, or it is undone."""

    def __init__(self, make: Callable[[], Result], undo: Callable[[Result], None]) -> None:
        self._make = make
        self._undo = undo
        self._made: list[Result] = []
        self._lock = threading.Lock()
        self._abandoned = False

    def make(self) -> None:
        made = self._make()
        with self._lock:
            if not self._abandoned:
                self._made.append(made)
                return
        self._undo(made)

    def take(self) -> Result:
        with self._lock:
            return self._made.pop()

    def abandon(self) -> None:
        with self._lock:
            self._abandoned = True
            made, self._made = self._made, []
        for one in made:
            self._undo(one)


def _look_at(task: "asyncio.Task[Any]") -> None:
    """Whoever waited and is still there is told anyway; if nobody is, it is no news."""
    if not task.cancelled():
        task.exception()


def _log_failure(task: "asyncio.Task[Any]") -> None:
    """By its type alone: what an exception says may hold what a user sent."""
    if not task.cancelled() and (error := task.exception()) is not None:
        _logger.error("work in the background failed: %s", type(error).__name__)
