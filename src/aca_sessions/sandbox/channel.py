"""The ends of an interpreter that the host holds: cells into it by a socket, frames out of it by a pipe, its two streams by two more."""

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
    """Reads what comes as it comes, on the event loop of whoever opened it."""

    def __init__(self, link: socket.socket, said: int, streams: tuple[int, int], *, limit: int) -> None:
        """Takes over the socket and the read ends of the pipes; of each stream so many bytes are kept."""
        self._link = link
        self.streams = (Output(streams[0], limit), Output(streams[1], limit))
        self._inbox = Inbox(said)
        self._outbox = Outbox(link)
        self._watched: set[int] = set()
        self._open = True

    @property
    def unread(self) -> tuple[int, int]:
        """Return how many frames the guest has not read, and of how many bytes; those in the socket's buffer are not counted."""
        return len(self._outbox), self._outbox.size

    def listen(
        self, take: Callable[[bytes], None], *, most: Callable[[], int], forged: Callable[[], None], silent: Callable[[], None]
    ) -> None:
        """Read frames and streams from now on. See `Inbox.listen`."""
        self._inbox.listen(take, most=most, forged=forged, silent=silent)
        for stream in self.streams:
            self._listen_again(stream)

    def send(self, message: wire.Message, descriptors: Sequence[int] = ()) -> asyncio.Future[None]:
        """Send a frame, with descriptors if need be. The future is done when it is written, or when the guest is gone.

        Cancelling it drops a frame that was not begun; one that was begun is written to its end.
        """
        return self._outbox.put(wire.frame(message), descriptors)

    def drain(self) -> None:
        """Reads what was written so far."""
        for stream in self.streams:
            before = stream.read
            stream.drain()
            self._inbox.charge(stream.read - before)

    def stop(self) -> None:
        """Takes the frames that were written so far, and reads and writes nothing more."""
        self._open = False
        self._inbox.finish()
        self._outbox.close()
        for descriptor in [*self._watched]:
            self._unwatch(descriptor)

    def close(self) -> None:
        """Lets go of all ends."""
        self.stop()
        for stream in self.streams:
            stream.close()
        self._inbox.close()
        self._link.close()

    def _on_output(self, stream: Output) -> None:
        """A flood is read in turns, with others in between: what is not read yet holds the writer up, and nobody else."""
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
