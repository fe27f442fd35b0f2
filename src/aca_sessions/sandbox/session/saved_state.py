"""Receive the state that an interpreter writes, and send it to another one. The host reads only the headers of its records."""

import asyncio
import contextlib
import fcntl
import json
import os
import select
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from ...durable.chunks import Data
from ...durable.records import SavedVariables, StateReader
from ...errors import SnapshotError
from ...lifetime import Tasks, run_in_thread
from .interpreter import Interpreter

__all__ = ["SavedVariables", "StateReader", "restore", "save"]
Result = TypeVar("Result")
_PIECE = 1 << 20
_SET_PIPE_SIZE = 1031  # F_SETPIPE_SZ
_MOMENT = 20  # milliseconds
_LONGEST_NAME, _LONGEST_WHY = 1000, 300
_LOOK_SECONDS = 0.01


class PipeReader(StateReader):
    """Reads a state from a pipe."""

    def __init__(self, descriptor: int) -> None:
        """Read from `descriptor`, which the caller closes."""
        super().__init__()
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor

    async def _read_part(self, size: int) -> bytearray:
        """Read a part in a thread, into the memory of that part."""
        data = bytearray(size)
        done = min(size, len(self._buffer))
        data[:done] = self._buffer[:done]
        del self._buffer[:done]
        with memoryview(data) as view:
            while done < size:
                await self._wait_for_data()
                count = await run_in_thread(_read_into, self._descriptor, view[done:])
                if not count:
                    raise self._cut_off()
                done += count
        return data

    async def _receive(self) -> bytes:
        while True:
            try:
                return os.read(self._descriptor, _PIECE)
            except BlockingIOError:
                await self._wait_for_data()

    async def _wait_for_data(self) -> None:
        loop = asyncio.get_running_loop()
        await _wait(self._descriptor, loop.add_reader, loop.remove_reader)


async def save(
    interpreter: Interpreter,
    receive: "Callable[[StateReader], Awaitable[Result]]",
    *,
    timeout: float,
    tasks: Tasks,
    on_forked: Callable[[], None] | None = None,
    most_memory: int = sys.maxsize,
) -> "Result":
    """Let a fork of an interpreter write its state, and return what `receive` makes of it.

    Raise SnapshotError if the state is not complete within `timeout` seconds, or if the interpreter cannot be forked.

    Args:
        interpreter: The interpreter, which runs no cell.
        receive: Reads the state.
        timeout: How many seconds the fork may take.
        tasks: Where the fork is made: if the caller is cancelled meanwhile, the guest must still be heard.
        on_forked: Called when cells may run again, right before `receive`. If None, the caller ensures that none runs until the end.
        most_memory: End the fork if the session uses more bytes. So a cell that runs meanwhile is not killed for what the fork uses.
    """
    read_end, write_end = _make_pipe()
    number, is_cancelled = 0, False
    guarding: asyncio.Future[None] | None = None

    async def fork() -> None:
        nonlocal number
        try:
            number = await interpreter.begin_saving(write_end, background=on_forked is not None, is_cancelled=lambda: is_cancelled)
        finally:
            os.close(write_end)
        interpreter.runtime.add_saving_fork(number, interpreter.workspace)
        if is_cancelled:
            interpreter.runtime.kill_saving_fork(number)

    try:
        await tasks.run_shielded(fork())
        if on_forked is not None:
            on_forked()
            guarding = asyncio.ensure_future(_end_at_limit(interpreter, number, most_memory))
        async with asyncio.timeout(timeout):
            return await receive(PipeReader(read_end))
    except BaseException as error:
        is_cancelled = True
        interpreter.runtime.kill_saving_fork(number)
        if isinstance(error, TimeoutError):
            raise SnapshotError(f"the session could not be saved within {timeout:g} s: save less, or allow more time") from error
        raise
    finally:
        os.close(read_end)
        if guarding is not None:
            guarding.cancel()


async def _end_at_limit(interpreter: Interpreter, number: int, most_memory: int) -> None:
    while interpreter.runtime.memory.used() <= most_memory:  # noqa: ASYNC110 - a number that the kernel counts
        await asyncio.sleep(_LOOK_SECONDS)
    interpreter.runtime.kill_saving_fork(number)


async def restore(interpreter: Interpreter, chunks: AsyncIterator[Data], *, timeout: float) -> dict[str, str]:
    """Restore a saved state in a new interpreter. Return the names of what could not be restored, with the reasons.

    Raise SnapshotError if that fails. The interpreter may have a part of the state then: end it.
    """
    read_end, write_end = _make_pipe()
    sending = asyncio.ensure_future(_write_state(write_end, chunks))  # closes its end, so that the guest notices a state that is cut off
    try:
        report = await interpreter.restore(read_end, timeout=timeout)
    except SnapshotError:
        if sending.done() and not sending.cancelled() and (failure := sending.exception()):
            raise failure from None  # the guest could not read the state because the store failed
        raise
    finally:
        os.close(read_end)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
    return _read_report(report)


def _read_report(report: str) -> dict[str, str]:
    try:
        match json.loads(report):
            case {"missing": {**missing}, "more": int(more)}:
                named = {str(name)[:_LONGEST_NAME]: str(why)[:_LONGEST_WHY] for name, why in missing.items()}
                return named | ({f"{more} more": "the list of what is missing is cut off"} if more else {})
    except (ValueError, RecursionError):
        pass
    raise SnapshotError("the session's code has changed how a state is restored: start it without the saved state")


async def _write_state(descriptor: int, chunks: AsyncIterator[Data]) -> None:
    """Write a saved state into the pipe of an interpreter that restores it, and close it. Return early if it is not read any more."""
    try:
        await _write_chunks(descriptor, chunks)
    finally:
        os.close(descriptor)


async def _write_chunks(descriptor: int, chunks: AsyncIterator[Data]) -> None:
    os.set_blocking(descriptor, False)
    loop = asyncio.get_running_loop()
    with contextlib.suppress(BrokenPipeError):
        async for chunk in chunks:
            view = memoryview(chunk)
            while view:
                try:
                    view = view[os.write(descriptor, view) :]
                except BlockingIOError:
                    await _wait(descriptor, loop.add_writer, loop.remove_writer)


def _make_pipe() -> tuple[int, int]:
    """Return the read end and the write end of a pipe that takes 1 MB at once, if the kernel permits that."""
    read_end, write_end = os.pipe()
    with contextlib.suppress(OSError):
        fcntl.fcntl(write_end, _SET_PIPE_SIZE, _PIECE)
    return read_end, write_end


async def _wait(descriptor: int, add: Callable[..., None], remove: Callable[[int], bool]) -> None:
    ready = asyncio.Event()
    add(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        remove(descriptor)


def _read_into(descriptor: int, view: memoryview) -> int:
    """Read from a pipe that has data until `view` is full or the pipe is empty for a moment. Return the count, which is 0 at its end."""
    done = 0
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    while done < len(view):
        try:
            count = os.readv(descriptor, [view[done:]])
        except BlockingIOError:
            if not poll.poll(_MOMENT):  # the caller may be cancelled, and waits for this thread
                return done
            continue
        if not count:
            return done
        done += count
    return done
