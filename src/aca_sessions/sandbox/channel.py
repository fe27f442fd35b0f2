"""The ends of an interpreter that the host holds: cells into it by a socket, frames out of it by a pipe, its two streams by two more."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Sequence
from functools import partial

from . import wire
from .output import Output

_READ_AT_ONCE = 1 << 20
_THROTTLED_SECONDS = 0.02


class Channel:
    """Reads what comes as it comes, on the event loop of whoever opened it."""

    def __init__(self, link: socket.socket, said: int, streams: tuple[int, int], *, limit: int) -> None:
        """Takes over the socket and the read ends of the pipes; of each stream so many bytes are kept."""
        link.setblocking(False)
        os.set_blocking(said, False)
        self._link = link
        self._said = said
        self.streams = (Output(streams[0], limit), Output(streams[1], limit))
        self._frames = wire.Frames(wire.MAX_FROM_GUEST)
        self._watched: set[int] = set()
        self._open = True

    def listen(self, take: Callable[[bytes], None], *, forged: Callable[[], None], silent: Callable[[], None]) -> None:
        """Gives each frame to `take`; after one that it does not let through, or none any more, nothing further is read there."""
        self._watch(self._said, partial(self._on_frames, take, forged, silent))
        for stream in self.streams:
            self._listen_again(stream)

    async def send(self, message: wire.Message, descriptors: Sequence[int] = ()) -> None:
        """Sends a frame, with descriptors if need be; that nobody is there to read it is told elsewhere."""
        data = wire.frame(message)
        with contextlib.suppress(OSError):
            if descriptors:
                data = data[socket.send_fds(self._link, [data], descriptors) :]
            await asyncio.get_running_loop().sock_sendall(self._link, data)

    def drain(self) -> None:
        """Reads what was written so far."""
        for stream in self.streams:
            stream.drain()

    def stop(self) -> None:
        """Reads nothing more."""
        self._open = False
        for descriptor in [*self._watched]:
            self._unwatch(descriptor)

    def close(self) -> None:
        """Lets go of all ends."""
        self.stop()
        for stream in self.streams:
            stream.close()
        os.close(self._said)
        self._link.close()

    def _on_frames(self, take: Callable[[bytes], None], forged: Callable[[], None], silent: Callable[[], None]) -> None:
        try:
            data = os.read(self._said, 1 << 18)
        except BlockingIOError:
            return
        if not data:
            self._unwatch(self._said)
            silent()
            return
        try:
            for payload in self._frames.feed(data):
                take(payload)
        except wire.WireError:
            self._unwatch(self._said)  # nothing that it says after this counts
            forged()

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
