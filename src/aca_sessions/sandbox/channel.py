"""The host's ends of an interpreter: a socket for cells, a pipe for the guest's frames, and a pipe each for stdout and stderr."""

import asyncio
import socket
from collections.abc import Callable, Sequence
from functools import partial

from . import wire
from .inbox import Inbox
from .outbox import Outbox
from .output import Output

_READ_AT_ONCE = 1 << 20
_THROTTLED_SECONDS = 0.02


class Channel:
    """The connection to one interpreter. It reads frames and streams as they arrive, on the event loop that calls `listen`."""

    def __init__(self, link: socket.socket, said: int, streams: tuple[int, int], *, limit: int) -> None:
        """Take over the ends.

        Args:
            link: The socket for frames to the guest.
            said: The read end of the pipe with the guest's frames.
            streams: The read ends of stdout and stderr.
            limit: How many bytes of each stream are kept.
        """
        self._link = link
        self.streams = (Output(streams[0], limit), Output(streams[1], limit))
        self._inbox = Inbox(said)
        self._outbox = Outbox(link)
        self._watched: set[int] = set()
        self._open = True

    @property
    def unread(self) -> tuple[int, int]:
        """Return how many frames, and how many bytes of them, wait for the guest to read. Those in the socket's buffer are not counted."""
        return len(self._outbox), self._outbox.size

    def listen(
        self, take: Callable[[bytes], None], *, most: Callable[[], int], forged: Callable[[], None], silent: Callable[[], None]
    ) -> None:
        """Start reading frames and streams. See `Inbox.listen` for the arguments."""
        self._inbox.listen(take, most=most, forged=forged, silent=silent)
        for stream in self.streams:
            self._listen_again(stream)

    def send(self, message: wire.Message, descriptors: Sequence[int] = ()) -> asyncio.Future[None]:
        """Send a frame and optional descriptors. The returned future is done when the frame is written, or when the guest is gone.

        Cancelling the future drops the frame, unless a part of it is already written: then the rest is written as well.
        """
        return self._outbox.put(wire.frame(message), descriptors)

    def drain(self) -> None:
        """Read what the guest has written to its streams so far."""
        for stream in self.streams:
            before = stream.read
            stream.drain()
            self._inbox.charge(stream.read - before)

    def stop(self) -> None:
        """Take the frames that were written so far, then stop reading and writing."""
        self._open = False
        self._inbox.finish()
        self._outbox.close()
        for descriptor in [*self._watched]:
            self._unwatch(descriptor)

    def close(self) -> None:
        """Close all ends."""
        self.stop()
        for stream in self.streams:
            stream.close()
        self._inbox.close()
        self._link.close()

    def _on_output(self, stream: Output) -> None:
        """Read a stream. After a flood, pause for 0.02 s, so that other sessions get their turn."""
        # What is not read stays in the pipe. A full pipe holds up its writer alone.
        if not stream.drain(_READ_AT_ONCE):
            self._unwatch(stream.descriptor)
        elif stream.flooded:
            self._unwatch(stream.descriptor)
            asyncio.get_running_loop().call_later(_THROTTLED_SECONDS, self._listen_again, stream)

    def _listen_again(self, stream: Output) -> None:
        if self._open:
            self._watch(stream.descriptor, partial(self._on_output, stream))

    def _watch(self, descriptor: int, callback: Callable[[], None]) -> None:
        asyncio.get_running_loop().add_reader(descriptor, callback)
        self._watched.add(descriptor)

    def _unwatch(self, descriptor: int) -> None:
        if descriptor in self._watched:
            asyncio.get_running_loop().remove_reader(descriptor)
            self._watched.remove(descriptor)
