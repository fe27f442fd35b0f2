"""Send a file of a session while it is read: a few chunks of it are in memory, however slowly a client takes it."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass

from anyio import CancelScope, to_thread
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from ..errors import ServiceError
from ..sandbox.files import Reading

_CHUNK = 1 << 18
_AHEAD = 8 << 20  # our client asks for parts of that size
_MOST_AHEAD = 8  # answers at a time that were read before they began, each of up to 8 MB


@dataclass(frozen=True, slots=True)
class Download:
    """A part of a file that is about to be sent, and the tag of its version."""

    chunks: AsyncIterator[bytes]
    length: int
    version: str


class Downloads:
    """Read a part ahead if it is small, so that its tag says whether it changed meanwhile; and a larger one while it is sent."""

    def __init__(self) -> None:
        self._ahead = 0

    async def begin(self, reading: Reading, start: int, length: int | None, *, exact: bool, held: AsyncExitStack) -> Download:
        """Return what to send.

        Args:
            reading: The open file.
            start: The first byte.
            length: How many bytes, or None for all that follow.
            exact: Whether the client may join it with other parts of the same version. If the file changes while it is sent, the answer is
                broken off. Otherwise the client gets what the file holds when it is read, with a weak tag.
            held: What is given back when all is sent.
        """
        left = max(0, reading.size - start)
        length = left if length is None else min(length, left)
        if length > _CHUNK and (length > _AHEAD or self._ahead >= _MOST_AHEAD):
            reading.is_settled = reading.is_settled and exact
            return Download(_chunks(reading, start, length), length, reading.version)
        if length > _CHUNK:
            self._ahead += 1
            held.callback(self._give_back)
        data = await to_thread.run_sync(reading.chunk, start, length)
        return Download(_sliced(data), len(data), reading.version)

    def _give_back(self) -> None:
        self._ahead -= 1


class Sending(StreamingResponse):
    """An answer that gives back what it holds when it is sent, or when its client has gone."""

    def __init__(
        self, chunks: AsyncIterator[bytes], status: int, headers: Mapping[str, str], *, media_type: str, held: AsyncExitStack
    ) -> None:
        super().__init__(chunks, status, headers, media_type)
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        async with self._held:
            await super().__call__(scope, receive, send)


async def close(reading: Reading) -> None:
    """Close a file in a thread: the last descriptor of a deleted file frees all its memory."""
    with CancelScope(shield=True):
        await to_thread.run_sync(reading.close)


async def _chunks(reading: Reading, start: int, length: int) -> AsyncIterator[bytes]:
    promised = reading.is_settled
    end = start + length
    while start < end:
        try:
            data = await to_thread.run_sync(reading.chunk, start, min(_CHUNK, end - start))
        except OSError as error:
            raise ServiceError(404, "FileNotFound", "the session was ended while its file was sent") from error
        if not data or (promised and not reading.is_settled):
            raise ServiceError(412, "FileChanged", "the file changed while it was sent: read it again from its beginning")
        yield data
        start += len(data)


async def _sliced(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), _CHUNK):
        yield data[start : start + _CHUNK]
