"""Helpers for asynchronous streams of bytes."""

from collections.abc import AsyncIterable, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from ..lifetime import run_in_thread

Data = bytes | bytearray | memoryview
Result = TypeVar("Result")
Chunk = TypeVar("Chunk")
_WORTH_A_THREAD = 64 * 1024  # bytes. A thread costs about 100 µs, hashing 64 KB about as much


@asynccontextmanager
async def closing(chunks: AsyncIterable[Chunk]) -> AsyncIterator[AsyncIterable[Chunk]]:
    """Close a stream at the end of the `with` block, if it can be closed. A generator that is not closed keeps its files open."""
    try:
        yield chunks
    finally:
        if (close := getattr(chunks, "aclose", None)) is not None:
            await close()


async def split(chunks: AsyncIterable[Data], size: int) -> AsyncIterator[bytes]:
    """Yield the same bytes in pieces of `size` bytes. The last piece can be shorter. An empty stream has no piece."""
    waiting = bytearray()
    async with closing(chunks):
        async for chunk in chunks:
            if not waiting and len(chunk) == size:  # as from another `split`: copying it costs as much as encrypting it
                yield bytes(chunk)
                continue
            waiting += chunk
            while len(waiting) >= size:
                piece = bytes(memoryview(waiting)[:size])
                del waiting[:size]
                yield piece
        if waiting:
            yield bytes(waiting)


async def join(chunks: AsyncIterable[Data], limit: int) -> bytes | None:
    """Return all bytes of a stream. Return None if there are more than `limit`."""
    joined = bytearray()
    async with closing(chunks):
        async for chunk in chunks:
            joined += chunk
            if len(joined) > limit:
                return None
    return bytes(joined)


async def stream(*chunks: Data) -> AsyncIterator[Data]:
    """Yield `chunks` as a stream."""
    for chunk in chunks:
        yield chunk


async def compute(work: Callable[..., Result], data: Data, *arguments: object) -> Result:
    """Call `work` with `data` and `arguments`, in a thread if the data is so long that the event loop would be blocked."""
    if len(data) < _WORTH_A_THREAD:
        return work(data, *arguments)
    return await run_in_thread(work, data, *arguments)
