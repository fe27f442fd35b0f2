"""Background work that belongs to no single call. It is owned, finished together, and its failures are logged."""

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from anyio import CapacityLimiter, to_thread

_logger = logging.getLogger("aca_sessions")
Result = TypeVar("Result")


class Tasks:
    """A set of tasks that were started here. It is not a task group, because another task may close it than the one that opened it."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, work: Coroutine[Any, Any, Result]) -> "asyncio.Task[Result]":
        """Start work in the background and log its failure."""
        task = self.own(work)
        task.add_done_callback(_log_failure)
        return task

    async def to_its_end(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run work that continues if the caller is cancelled, and return its result.

        Use it for what must not stop halfway: something half opened or half closed would leak.
        """
        task = self.own(work)
        task.add_done_callback(_look_at)
        return await asyncio.shield(task)

    async def finish(self) -> None:
        """Wait for all tasks, also for those that are started meanwhile."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def cancel(self) -> None:
        """Cancel the tasks that still run, and wait for them."""
        for task in self._tasks:
            task.cancel()
        await self.finish()

    def own(self, work: Coroutine[Any, Any, Result]) -> "asyncio.Task[Result]":
        """Start work in the background. The caller must handle its result or failure."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def in_thread(work: Callable[..., Result], *arguments: object) -> Result:
    """Run a function in a worker thread. Return or raise only when it has ended, even if the caller is cancelled.

    If asyncio cancels a task that waits for anyio's `run_sync`, the task continues at once and so does the thread. What both use must not
    be closed then: the number of a closed descriptor would be given to the next file that is opened.
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
    """Make something in a worker thread and return it. The thread continues if the caller is cancelled, and then undoes what it made.

    Args:
        make: Makes the thing, in the thread.
        undo: Undoes it, if the caller was cancelled and does not get it.
        limiter: Limits how many threads run at the same time.
    """
    handover = _Handover(make, undo)
    try:
        await to_thread.run_sync(handover.make, limiter=limiter)
        return handover.take()
    except BaseException:
        handover.abandon()
        raise


class _Handover(Generic[Result]):
    """A thing that passes from the thread that makes it to the task that wants it. If the task does not take it, it is undone."""

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
    """Retrieve the exception of a task, so that asyncio does not log it. A caller that still waits gets it anyway."""
    if not task.cancelled():
        task.exception()


def _log_failure(task: "asyncio.Task[Any]") -> None:
    """Log the failure of a task by its type alone: the message may hold what a user sent."""
    if not task.cancelled() and (error := task.exception()) is not None:
        _logger.error("work in the background failed: %s", type(error).__name__)
