"""The output of one stream of a session, within a limit: its head and its tail are kept, and the cut between them is marked."""

import codecs
import os
from collections.abc import Callable

_MOST_READS = 512  # a pipe in packet mode (O_DIRECT in pipe(2)) holds 256 writes, each of perhaps one byte


class Output:
    """A non-blocking reader of a pipe. It reads as fast as the guest writes, so that a flood neither blocks nor ends a cell."""

    def __init__(self, descriptor: int, limit: int) -> None:
        """Take over the read end of a pipe. Between two calls of `take`, keep at most `limit` bytes: one half each for head and tail."""
        os.set_blocking(descriptor, False)
        self.descriptor = descriptor
        self._half = limit // 2
        self._head = bytearray()
        self._tail = bytearray()
        self._dropped = 0
        self._tell: Callable[[str], None] | None = None
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.flooded = False
        self.read = 0  # bytes in all, those that were cut included

    def follow(self, tell: Callable[[str], None] | None) -> None:
        """Call `tell` with the text that is kept so far, then with all text as it comes. None ends the calls."""
        self._tell = tell
        self._decoder.reset()
        self._pass_on(bytes(self._head + self._tail))

    def drain(self, most: int = 1 << 22) -> bool:
        """Read what is in the pipe now. Return False at the end of the pipe.

        It stops once it has read `most` bytes, or after 512 reads: a guest that writes single bytes could keep it busy otherwise. `flooded`
        is True if it stopped for that reason.
        """
        self.flooded, left = False, most
        for _ in range(_MOST_READS):
            try:
                data = os.read(self.descriptor, 1 << 16)
            except BlockingIOError:
                return True
            if not data:
                return False
            self.read += len(data)
            self._keep(data)
            self._pass_on(data)
            left -= len(data)
            if left <= 0:
                break
        self.flooded = True
        return True

    def take(self) -> str:
        """Return the text since the last call, with a line in the place of bytes that were cut."""
        cut = f"\n[… {self._dropped} bytes cut …]\n".encode() if self._dropped else b""
        text = bytes(self._head + cut + self._tail).decode("utf-8", "replace")
        self._head, self._tail, self._dropped = bytearray(), bytearray(), 0
        return text

    def close(self) -> None:
        """Close the pipe."""
        os.close(self.descriptor)

    def _pass_on(self, data: bytes) -> None:
        if self._tell is not None and (text := self._decoder.decode(data)):
            self._tell(text)

    def _keep(self, data: bytes) -> None:
        room = self._half - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        self._tail += data
        excess = len(self._tail) - self._half
        if excess > 0:
            del self._tail[:excess]
            self._dropped += excess
