"""What a stream of a session wrote, within a limit: the head and the tail are kept, the cut is told."""

import codecs
import os
from collections.abc import Callable

_MOST_READS = 512  # a pipe holds 256 writes, if its writer keeps them apart (O_DIRECT in pipe(2)): a byte each, it may be


class Output:
    """Reads a non-blocking pipe as fast as the guest writes, so that a flood neither blocks nor ends a cell."""

    def __init__(self, descriptor: int, limit: int) -> None:
        """Takes over the read end of a pipe."""
        os.set_blocking(descriptor, False)
        self.descriptor = descriptor
        self._half = limit // 2
        self._head = bytearray()
        self._tail = bytearray()
        self._dropped = 0
        self._tell: Callable[[str], None] | None = None
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.flooded = False
        self.read = 0  # bytes so far

    def follow(self, tell: Callable[[str], None] | None) -> None:
        """Tells the text as it comes, and first what is there already; None ends it."""
        self._tell = tell
        self._decoder.reset()
        self._pass_on(bytes(self._head + self._tail))

    def drain(self, most: int = 1 << 22) -> bool:
        """Reads what is there now, at most so many bytes and not byte by byte; False at the end of the pipe."""
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
        """The text since the last call."""
        cut = f"\n[… {self._dropped} bytes cut …]\n".encode() if self._dropped else b""
        text = bytes(self._head + cut + self._tail).decode("utf-8", "replace")
        self._head, self._tail, self._dropped = bytearray(), bytearray(), 0
        return text

    def close(self) -> None:
        """Lets go of the pipe."""
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
