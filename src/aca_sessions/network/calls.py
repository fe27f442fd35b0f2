"""Call functions that return secrets: once for concurrent callers, or in a thread. asyncio does not log their results."""

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")


class CallCancelledError(Exception):
    """Raised when a shared call was cancelled, but its caller was not."""


class Hidden(Generic[Result]):
    """A value that `repr` does not show. In debug mode, asyncio logs the results of tasks and futures by their `repr`."""

    __slots__ = ("value",)  # and not a dataclass, whose fields pydantic and `asdict` dump

    def __init__(self, value: Result) -> None:
        self.value = value

    def __deepcopy__(self, _: object) -> "Hidden[Result]":
        return self

    def __reduce__(self) -> Any:
        raise TypeError("a secret cannot be pickled")


class SharedCalls:
    """Calls that several callers share: at most one runs at a time for each key and event loop.

    If the call fails, all its callers get the exception. The next caller starts a new call.
    """

    def __init__(self) -> None:
        self._running: dict[tuple[asyncio.AbstractEventLoop, Hashable], asyncio.Task[Hidden[Any]]] = {}

    async def call(self, key: Hashable, work: Callable[[], Awaitable[Result]], *, within: float | None = None) -> Result:
        """Wait for the running call of `key`, or start one, and return its result.

        A caller that is cancelled does not cancel the call, because others may wait for it. Raise TimeoutError after `within` seconds; the
        call continues. Raise CallCancelledError if the call itself was cancelled.
        """
        loop = asyncio.get_running_loop()
        running = self._running.get((loop, key))
        if running is None or running.done():  # a done callback removes the entry, one turn of the loop later
            running = self._running[loop, key] = loop.create_task(_hide(work))
            running.add_done_callback(lambda task: self._forget((loop, key), task))
        await asyncio.wait({running}, timeout=within)
        if not running.done():
            raise TimeoutError
        if running.cancelled():
            raise CallCancelledError
        result: Result = running.result().value
        return result

    async def cancel(self) -> None:
        """Cancel the running calls, and wait for those of this event loop."""
        current, own = asyncio.get_running_loop(), set[asyncio.Task[Hidden[Any]]]()
        for (loop, _), task in [*self._running.items()]:
            if loop is current:
                task.cancel()
                own.add(task)
            elif not loop.is_closed():
                loop.call_soon_threadsafe(task.cancel)
        if own:
            await asyncio.wait(own)

    def _forget(self, key: tuple[asyncio.AbstractEventLoop, Hashable], task: "asyncio.Task[Hidden[Any]]") -> None:
        if self._running.get(key) is task:
            del self._running[key]
        if not task.cancelled():
            task.exception()  # retrieved, so that asyncio does not log it


async def _hide(work: Callable[[], Awaitable[Result]]) -> Hidden[Result]:
    return Hidden(await work())


async def call_in_thread(function: Callable[[], Result]) -> Result:
    """Call a blocking function in a thread of its own, and return its result. If the caller is cancelled, the thread continues.

    The thread is a daemon: a function that waits for D-Bus, or for a person, must not keep the program from ending.
    """
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[Hidden[tuple[Result | None, BaseException | None]]] = loop.create_future()

    def work() -> None:
        made: Hidden[tuple[Result | None, BaseException | None]]
        try:
            made = Hidden((function(), None))
        except BaseException as error:
            made = Hidden((None, error))
        with contextlib.suppress(RuntimeError):  # the event loop is closed
            loop.call_soon_threadsafe(_set_unless_done, outcome, made)

    threading.Thread(target=contextvars.copy_context().run, args=(work,), name="aca-sessions secret", daemon=True).start()
    result, error = (await outcome).value
    if error is not None:
        raise error
    return result  # type: ignore[return-value]


def _set_unless_done(outcome: "asyncio.Future[Result]", made: Result) -> None:
    if not outcome.done():
        outcome.set_result(made)
