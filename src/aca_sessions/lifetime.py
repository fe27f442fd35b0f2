"""Helpers for what must be ended properly: background tasks and work in threads, which run to their end even if the caller is cancelled.

Also errors for objects that are used in a forked process, and warnings that name the line where an object was made but never closed.
"""

import asyncio
import contextlib
import logging
import os
import secrets
import sys
import threading
import traceback
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Never, TypeVar

from anyio import CapacityLimiter, to_thread

from .errors import ForkedProcessError

_logger = logging.getLogger("aca_sessions")
Result = TypeVar("Result")


class OwnerProcess:
    """The process that created an object. If a forked process uses the object, `check` raises an error.

    A forked process gets copies of its parent's descriptors, but none of its threads. If it used the object, it would wait forever, take
    responses that belong to its parent, or end its parent's sessions.
    """

    __slots__ = ("_process", "_what")

    def __init__(self, what: str = "this") -> None:
        """Record the current process. `what` is the name of the object in errors."""
        self._what = what
        self._process = os.getpid()

    @property
    def is_current(self) -> bool:
        """Return whether this process is the recorded one. If it is not, closing the object must do nothing."""
        return os.getpid() == self._process

    def check(self) -> None:
        """Raise ForkedProcessError if this process was forked from the recorded one."""
        if os.getpid() != self._process:
            raise ForkedProcessError(
                f"{self._what} belongs to process {self._process}, from which this process was forked: open another one here, "
                "or start processes with multiprocessing's 'spawn'"
            )


_SKIPPED = (f"{Path(__file__).parent}{os.sep}", contextlib.__file__)


@dataclass(frozen=True, slots=True)
class SourceLine:
    """The line in the user's program that created an object, for warnings."""

    file: str
    number: int

    def warn_unclosed(self, what: str, remedy: str, source: object = None) -> None:
        """Issue a ResourceWarning that names this line, because an object created here was never closed.

        Args:
            what: The name of the object in the warning.
            remedy: The statement that would close it, such as a `with` statement.
            source: The object itself, for tracemalloc.
        """
        message = f"{what} made at {self.file}:{self.number} was never closed: use '{remedy}'"
        # `warnings.warn` with a stack level cannot name the line: it left the stack long before.
        warnings.warn_explicit(message, ResourceWarning, self.file, self.number, source=source)


def find_calling_line() -> SourceLine:
    """Return the line of the user's program that called this package, to name it in warnings.

    It is the innermost line of the call stack that is neither in this package nor in contextlib.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_SKIPPED):
        frame = frame.f_back
    return SourceLine(frame.f_code.co_filename, frame.f_lineno)


class AsyncBlock:
    """The base of objects that only `async with` may use. Every other use raises an error that shows how to use the object."""

    def __init__(self, what: str, remedy: str) -> None:
        """Use `what`, the call that made the object, and `remedy`, the right statement, in errors."""
        self._what, self._remedy = what, remedy

    if not TYPE_CHECKING:  # or a type checker would accept every attribute, and `await`

        def __getattr__(self, name: str) -> Never:
            raise AttributeError(f"{self._what} has no attribute {name!r} until it is opened: {self._remedy}")

        def __await__(self) -> Never:
            raise TypeError(f"{self._what} cannot be awaited: {self._remedy}")

        def __enter__(self) -> Never:
            raise TypeError(f"{self._what} cannot be opened by 'with': {self._remedy}")

        def __exit__(self, *_: object) -> None:
            """Do nothing: Python calls `__enter__` only if this exists."""


class Tasks:
    """A set of background tasks. It is not an asyncio.TaskGroup, because that must be closed by the task that opened it."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, work: Coroutine[Any, Any, Result]) -> "asyncio.Task[Result]":
        """Start a coroutine in the background. If it fails, log the failure."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(_log_failure)
        return task

    async def run_shielded(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run a coroutine to its end, even if the caller is cancelled. Return its result.

        Use this to open or close something: a coroutine that is cancelled in the middle could leave it half opened or half closed.
        """
        task = self.start_awaited(work)
        task.add_done_callback(_mark_retrieved)
        return await asyncio.shield(task)

    async def finish(self) -> None:
        """Wait until no task runs any more, including those that are started meanwhile."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def cancel(self) -> None:
        """Cancel the tasks that still run, and wait for them."""
        for task in self._tasks:
            task.cancel()
        await self.finish()

    def start_awaited(self, work: Coroutine[Any, Any, Result]) -> "asyncio.Task[Result]":
        """Start a coroutine in the background. The caller must await the returned task, because a failure is not logged."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def run_in_thread(work: Callable[..., Result], *arguments: object) -> Result:
    """Run a function in a worker thread. Return or raise only when the function has ended, even if the caller is cancelled.

    anyio's `run_sync` does not wait: it returns at once if asyncio cancels the task, while the thread continues. The task could then close
    a descriptor that the thread still uses, and the next file that is opened could get the same number.
    """
    running = asyncio.ensure_future(to_thread.run_sync(work, *arguments))
    running.add_done_callback(_mark_retrieved)
    cancelled: asyncio.CancelledError | None = None
    while not running.done():
        try:
            await asyncio.wait({running})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    return running.result()


async def stream_from(work: Callable[[Callable[[Result], Awaitable[None]]], Coroutine[Any, Any, object]]) -> AsyncIterator[Result]:
    """Run `work` in a task, and yield what it passes to its argument, a function that waits while the reader is behind.

    An error of `work` is raised after what it passed before. Closing the iterator cancels `work` and waits for its end.
    """
    queue: asyncio.Queue[Result] = asyncio.Queue(1)
    running = asyncio.ensure_future(work(queue.put))
    getting = asyncio.ensure_future(queue.get())
    try:
        while not running.done() or not queue.empty() or getting.done():
            await asyncio.wait({getting} if running.done() else {getting, running}, return_when=asyncio.FIRST_COMPLETED)
            if getting.done():
                item, getting = getting.result(), asyncio.ensure_future(queue.get())
                yield item
        await running
    finally:
        getting.cancel()
        running.cancel()
        await asyncio.wait({running, getting})
        if not running.cancelled():
            running.exception()  # retrieved, so that asyncio does not log it


async def create_in_thread(make: Callable[[], Result], discard: Callable[[Result], None], limiter: CapacityLimiter | None = None) -> Result:
    """Call `make` in a worker thread and return the object that it makes.

    If the caller is cancelled meanwhile, the thread finishes `make` and passes the object to `discard`.
    """
    handover = _Handover(make, discard)
    try:
        await to_thread.run_sync(handover.make, limiter=limiter)
        return handover.take()
    except BaseException:
        handover.abandon()
        raise


class _Handover(Generic[Result]):
    """The transfer of an object from the thread that makes it to the task that needs it, or to `discard` if the task was cancelled."""

    def __init__(self, make: Callable[[], Result], discard: Callable[[Result], None]) -> None:
        self._make = make
        self._discard = discard
        self._made: list[Result] = []
        self._lock = threading.Lock()
        self._abandoned = False

    def make(self) -> None:
        made = self._make()
        with self._lock:
            if not self._abandoned:
                self._made.append(made)
                return
        self._discard(made)

    def take(self) -> Result:
        with self._lock:
            return self._made.pop()

    def abandon(self) -> None:
        with self._lock:
            self._abandoned = True
            made, self._made = self._made, []
        for one in made:
            self._discard(one)


def _mark_retrieved(task: "asyncio.Task[Any]") -> None:
    """Mark a task's exception as retrieved, so that asyncio does not log it. A caller that awaits the task still gets the exception."""
    if not task.cancelled():
        task.exception()


def _log_failure(task: "asyncio.Task[Any]") -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log_failure("a background task failed", error)


def log_failure(what: str, error: BaseException) -> str:
    """Log a failure in one line without the error's message, which may contain user data. Log the traceback at DEBUG.

    `what` describes what failed. Return a random id, by which a user can find both log entries.
    """
    id = secrets.token_hex(4)
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    _logger.error("%s (%s): %s%s: log aca_sessions at DEBUG for the traceback", what, id, type(error).__name__, place)
    _logger.debug("%s (%s)", what, id, exc_info=error)
    return id
