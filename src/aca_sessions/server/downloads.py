"""Downloads of files that are read while they are sent. Only a few chunks are in memory, however slowly a client reads."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass

from anyio import CancelScope, to_thread
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from ..errors import ServiceError
from ..sandbox.files import Reading

_CHUNK = 1 << 18
_AHEAD = 8 << 20  # bytes; this package's client asks for parts of that size
_MOST_AHEAD = 8  # responses at the same time that are read completely before they begin, each of up to 8 MB


@dataclass(frozen=True, slots=True)
class Download:
    """A part of a file that is about to be sent, and the tag of its version."""

    chunks: AsyncIterator[bytes]
    length: int
    version: str


class Downloads:
    """The downloads of a server.

    A small part of a file is read completely before it is sent, so that its tag shows whether it changed meanwhile. A larger part is read
    while it is sent.
    """

    def __init__(self) -> None:
        self._ahead = 0

    async def begin(self, reading: Reading, start: int, length: int | None, *, exact: bool, held: AsyncExitStack) -> Download:
        """Return the download of a part of a file.

        Args:
            reading: The open file.
            start: The first byte.
            length: How many bytes, or None for all that follow.
            exact: Whether the client may join the part with others of the same version. If the file then changes while it is sent, the
                response is broken off. Otherwise the client gets what the file holds when it is read, with a weak tag.
            held: The stack that is closed when everything is sent.
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
    """A streaming response that closes the stack that it holds when it is sent, or when its client has gone."""

    def __init__(
        self, chunks: AsyncIterator[bytes], status: int, headers: Mapping[str, str], *, media_type: str, held: AsyncExitStack
    ) -> None:
        super().__init__(chunks, status, headers, media_type)
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response, then close the stack."""
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
