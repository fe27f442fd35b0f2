"""The asyncio event loop of a session's cells."""

from __future__ import annotations

import _weakrefset
import asyncio
import contextlib
import re
import selectors
import threading
import traceback
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any

_OF_LOOP = (f"{asyncio.__path__[0]}/", selectors.__file__, _weakrefset.__file__)  # code that a loop runs between the steps of tasks
_STARTS_TASKS = re.compile(r"\b(create_task|ensure_future|get_running_loop)\(")
_MOST_CANCELS = 2  # of a cell, by an interrupt each; the next interrupt abandons a coroutine that does not end
_RUNS_OWN_LOOP = re.compile(r"\basyncio\.run\(|\b(run_until_complete|run_forever|Runner)\(")  # would fail inside a running loop


def needs_loop(code: str) -> bool:
    """Return whether a cell must run inside the event loop even without `await`, because it starts tasks and runs no loop of its own."""
    return bool(_STARTS_TASKS.search(code)) and not _RUNS_OWN_LOOP.search(code)


def cancel_cell(frame: FrameType | None) -> bool:
    """Cancel the cell that runs in a session's loop, if `frame` is code of the loop itself. Return whether the cell was cancelled.

    A KeyboardInterrupt in code of the loop could drop a step of a task between its queue and its start. That task would wait for ever.
    """
    is_of_loop = is_waking = False
    while frame is not None and frame.f_code.co_filename.startswith(_OF_LOOP):
        is_of_loop, name = True, frame.f_code.co_name
        is_waking = name == "call_soon" or (is_waking and name != "create_task")  # a cell may create tasks for long without an `await`
        frame = frame.f_back
    while is_waking and frame is not None and frame.f_code is not Loop.__call__.__code__:
        frame = frame.f_back  # code of a task or callback, which wakes another task
    if frame is None or not is_of_loop or frame.f_code is not Loop.__call__.__code__:
        return False
    return bool(frame.f_locals["self"]._cancel(frame.f_locals["coroutine"]))


class Loop:
    """The event loop of a session. Tasks that a cell leaves unfinished run on between cells, and while a later cell awaits something."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._abandoned: list[asyncio.AbstractEventLoop | None] = []
        self._woken = threading.Event()
        self._is_between_cells = False
        self._cancels = 0

    def __call__(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a cell's coroutine until it ends. On an interrupt, cancel the coroutine and wait for it, then raise KeyboardInterrupt."""
        self._cancels = 0
        if self._loop is None or self._loop.is_closed():
            self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)
        try:
            task = self._loop.create_task(coroutine)
            if self._cancels:  # before there was a task
                raise KeyboardInterrupt
            result = self._loop.run_until_complete(task)
        except KeyboardInterrupt:
            # If another interrupt comes while the coroutine ends, what is left of the coroutine would run during the next cell.
            while self._cancels < _MOST_CANCELS and (own := self._tasks_of(coroutine)):
                self._cancels += 1
                own[0].cancel()
                with contextlib.suppress(asyncio.CancelledError, KeyboardInterrupt):
                    self._loop.run_until_complete(own[0])
            raise
        except asyncio.CancelledError:
            if not self._cancels:
                raise
        if self._cancels:
            raise KeyboardInterrupt
        return result

    def _cancel(self, coroutine: Coroutine[Any, Any, Any]) -> bool:
        """Cancel a cell's coroutine, so that `__call__` raises KeyboardInterrupt at its end. Return False if that was done too often."""
        if self._cancels == _MOST_CANCELS:
            return False
        self._cancels += 1
        if self._loop is not None and not self._loop.is_closed():
            for task in self._tasks_of(coroutine):
                task.cancel()
            self._loop.call_soon_threadsafe(lambda: None)  # ends the wait for events
        return True

    def _tasks_of(self, coroutine: Coroutine[Any, Any, Any]) -> list[asyncio.Task[Any]]:
        """Return the unfinished task that runs a coroutine, as a list of one item. Return an empty list if there is none."""
        return [task for task in asyncio.all_tasks(self._loop) if task.get_coro() is coroutine]

    def run_until_readable(self, descriptor: int) -> bool:
        """Run unfinished tasks of cells until the descriptor is readable, or a task raises SystemExit.

        Also return after `wake`, even if it was called before this method: call `forget_wakes` first. Return False if the loop cannot run.
        """
        if self._loop is None or self._loop.is_closed():
            return False
        self._is_between_cells = True
        try:
            self._loop.add_reader(descriptor, self.wake)
            while not self._woken.is_set():
                self._loop.run_forever()
        except BaseException as error:  # a task may raise SystemExit, which must end the task and not the session
            traceback.print_exc()
            return not isinstance(error, Exception)
        finally:
            self._is_between_cells = False
            with contextlib.suppress(Exception):
                self._loop.remove_reader(descriptor)
        return True

    def wake(self) -> None:
        """Make `run_until_readable` return, because the host has sent a message. Any thread may call this. Running cells continue."""
        self._woken.set()
        loop = self._loop
        with contextlib.suppress(RuntimeError):
            if loop is not None:
                loop.call_soon_threadsafe(lambda: loop.stop() if self._is_between_cells else None)

    def forget_wakes(self) -> None:
        """Ignore earlier calls of `wake`. The caller then looks for messages of the host, before it calls `run_until_readable`."""
        self._woken.clear()

    def abandon(self) -> None:
        """Give the next cell a new loop. Call this in a new fork: the parent process still uses the present loop, so it is not closed."""
        # Parent and fork share one epoll instance (epoll(7)). A close, also by the garbage collector, would remove the parent's descriptors
        # from it, so the loop is kept.
        self._abandoned.append(self._loop)
        self._loop = None
        asyncio.set_event_loop(None)

    @property
    def sockets(self) -> int:
        """Return how many sockets the loop uses internally: 2, or 0 if there is no loop."""
        return 0 if self._loop is None or self._loop.is_closed() else 2

    def workers(self) -> set[threading.Thread]:
        """Return the worker threads that `asyncio.to_thread` has started in this loop, whether busy or idle."""
        return set() if self._executor is None else set(self._executor._threads)

    def drop_workers(self) -> None:
        """Let the worker threads end when their present calls return. The next `asyncio.to_thread` starts others."""
        executor = self._executor
        if self._loop is not None and executor is not None:
            self._loop._default_executor = None  # type: ignore[attr-defined]
            executor.shutdown(wait=False)

    @property
    def _executor(self) -> ThreadPoolExecutor | None:
        """Return the thread pool that the loop created for `asyncio.to_thread`. Return None if there is none, or if a cell set its own."""
        executor = getattr(self._loop, "_default_executor", None)
        return executor if isinstance(executor, ThreadPoolExecutor) and executor._thread_name_prefix == "asyncio" else None

    def unfinished(self) -> int:
        """Return how many tasks of the loop are unfinished."""
        return 0 if self._loop is None or self._loop.is_closed() else len(asyncio.all_tasks(self._loop))

    def close(self) -> None:
        """Close the loop. The zygote calls this before it forks sessions, which would otherwise all share the loop's epoll descriptor."""
        if self._loop is not None:
            self._loop.close()
        self._loop = None
        asyncio.set_event_loop(None)
