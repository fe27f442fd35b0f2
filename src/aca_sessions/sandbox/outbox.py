"""The queue of the host's frames to a guest. It writes one whole frame after another."""

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(slots=True)
class _Outgoing:
    """A frame that is not completely written yet."""

    left: memoryview
    descriptors: Sequence[int]
    written: asyncio.Future[None]
    begun: bool = False


class Outbox:
    """A queue of frames that are written to a socket in the order in which they came.

    Several tasks send at the same time, and a frame may be larger than the socket's buffer. So only this object writes. A frame that was
    begun is written to its end, even if its sender was cancelled meanwhile. Waiting for a guest that does not read blocks no reader: the
    guest may itself wait until the host reads.
    """

    def __init__(self, link: socket.socket) -> None:
        """Write to a connected socket. The caller stays its owner and closes it."""
        link.setblocking(False)
        self._link = link
        self._waiting: deque[_Outgoing] = deque()
        self._watched = False
        self._open = True
        self.size = 0  # bytes that are not written yet

    def __len__(self) -> int:
        """Return how many frames are not written yet."""
        return len(self._waiting)

    def put(self, data: bytes, descriptors: Sequence[int] = ()) -> asyncio.Future[None]:
        """Queue a frame. Return a future that is done when the frame is written, or when it cannot be.

        Cancelling the future drops a frame that was not begun.
        """
        written = asyncio.get_running_loop().create_future()
        if not self._open:
            written.set_result(None)
            return written
        self._waiting.append(_Outgoing(memoryview(data), descriptors, written))
        self.size += len(data)
        if not self._watched:
            self._write()
        return written

    def close(self) -> None:
        """Drop all frames that are not written, and do not write any more."""
        self._open = False
        self._watch(False)
        while self._waiting:
            self._drop()

    def _write(self) -> None:
        """Write as much as one send takes, and no more in this turn of the event loop."""
        while self._waiting and self._waiting[0].written.cancelled() and not self._waiting[0].begun:
            self._drop()
        if self._waiting and not self._has_written(self._waiting[0]):
            self.close()  # the reader is gone; other code notices the interpreter's death
        self._watch(bool(self._waiting))

    def _has_written(self, frame: _Outgoing) -> bool:
        try:
            sent = socket.send_fds(self._link, [frame.left], frame.descriptors) if frame.descriptors else self._link.send(frame.left)
        except BlockingIOError:
            return True
        except OSError:
            return False
        frame.begun, frame.descriptors, frame.left = True, (), frame.left[sent:]  # descriptors go with the first byte
        self.size -= sent
        if not frame.left:
            self._drop()
        return True

    def _drop(self) -> None:
        frame = self._waiting.popleft()
        self.size -= len(frame.left)
        if not frame.written.done():
            frame.written.set_result(None)

    def _watch(self, wanted: bool) -> None:
        if wanted is self._watched:
            return
        self._watched = wanted
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ValueError):  # the socket was closed
            loop.add_writer(self._link, self._write) if wanted else loop.remove_writer(self._link)
