"""Reading a guest's frames in turns and within bounds, so that other sessions get their time and memory."""

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator

from . import wire

_READ_AT_ONCE = 1 << 18
_UNIT = 1 << 14  # bytes. To read so many costs about as much as an empty frame, 10 µs: that is one unit of work
_A_TURN = 64  # units before other sessions get the event loop: about 1 ms
_BURST = 8192  # units that a guest may use at once; all displays of an honest cell take 2,500
_A_SECOND = 5000  # units per second after that: about a twentieth of the event loop
_LAST, _LAST_READS = 1024, 4  # units for each read, and reads, after a guest has died
_MOST_UNFINISHED = 256 << 20  # bytes of all sessions together
_SMALL = 1 << 18  # a smaller unfinished frame is not counted: as much may wait in its pipe


class Unfinished:
    """The bytes of frames that guests have begun and not finished, bounded for all event loops of this process together.

    Beyond the limit, the frame that was begun first is refused: an honest guest writes a frame at once.
    """

    def __init__(self, most: int = _MOST_UNFINISHED) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._held: dict[Inbox, int] = {}  # in the order in which their frames were begun

    @property
    def size(self) -> int:
        """Return the number of bytes that are counted now."""
        with self._lock:
            return sum(self._held.values())

    def note(self, inbox: "Inbox", size: int, *, anew: bool) -> None:
        """Count the unfinished bytes of an inbox, and refuse the oldest frames if all of them exceed the limit.

        Args:
            inbox: Holds the frame.
            size: How many bytes of the frame it holds now.
            anew: Whether it is another frame than at the last call.
        """
        with self._lock:
            if anew or size < _SMALL:
                self._held.pop(inbox, None)
            if size < _SMALL:
                return
            self._held[inbox] = size
            excess = sum(self._held.values()) - self._most
            while excess > 0:
                oldest = next(iter(self._held))
                excess -= self._held.pop(oldest)
                oldest.give_up_soon()


_unfinished = Unfinished()


class _Pace:
    """The work that a guest may cause: a burst, then a fixed amount per second."""

    def __init__(self) -> None:
        self._left = float(_BURST)
        self._since = time.monotonic()

    def spend(self, units: float) -> float:
        """Record work. Return how many seconds the guest has to wait before it may cause more."""
        now = time.monotonic()
        self._left = min(_BURST, self._left + (now - self._since) * _A_SECOND) - units
        self._since = now
        return max(0.0, -self._left / _A_SECOND)


class Inbox:
    """The frames from the pipe of one guest, read on the event loop that calls `listen`."""

    def __init__(self, pipe: int, *, unfinished: Unfinished = _unfinished) -> None:
        """Take over the read end of a pipe.

        Args:
            pipe: The read end.
            unfinished: Bounds the bytes of unfinished frames, together with other inboxes.
        """
        os.set_blocking(pipe, False)
        self._pipe = pipe
        self._unfinished = unfinished
        self._frames = wire.Frames(wire.MAX_FROM_GUEST)
        self._complete: Iterator[bytes] = iter(())
        self._pace = _Pace()
        self._units = 0.0
        self._open = self._watched = False

    def listen(
        self, take: Callable[[bytes], None], *, most: Callable[[], int], forged: Callable[[], None], silent: Callable[[], None]
    ) -> None:
        """Start reading, and pass each frame to `take`. Stop after a refused frame, and at the end of the pipe.

        Args:
            take: Called with each payload. It raises WireError to refuse it.
            most: Returns the size of the largest payload that may come now. A larger one is refused.
            forged: Called after a refused frame.
            silent: Called at the end of the pipe.
        """
        self._take, self._most, self._forged, self._silent = take, most, forged, silent
        self._loop = asyncio.get_running_loop()
        self._open = True
        self._watch(True)

    def charge(self, size: int) -> None:
        """Count other work of the guest, in bytes that were read."""
        self._units += size / _UNIT

    def finish(self) -> None:
        """Take what the guest wrote so far, within a bound, then stop. For a guest that is dead or about to be killed."""
        if self._open:
            self._watch(False)
            with contextlib.suppress(wire.WireError, BlockingIOError):
                for _ in range(_LAST_READS):
                    _, all_taken = self._take_some(_LAST)
                    if not (all_taken and (data := os.read(self._pipe, _READ_AT_ONCE))):
                        break
                    self._complete = self._frames.feed(data)
        self.stop()

    def stop(self) -> None:
        """Stop reading, and drop what was not taken."""
        self._open = False
        self._watch(False)
        self._complete, self._frames = iter(()), wire.Frames(0)
        self._unfinished.note(self, 0, anew=True)

    def give_up_soon(self) -> None:
        """Refuse the unfinished frame soon, on the inbox's own event loop. This may be called from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed, so nothing is read there
            self._loop.call_soon_threadsafe(self._refuse)

    def close(self) -> None:
        """Close the pipe."""
        self.stop()
        os.close(self._pipe)

    def _read(self) -> None:
        try:
            data = os.read(self._pipe, _READ_AT_ONCE)
        except BlockingIOError:
            return
        if not data:
            self.stop()
            self._silent()
            return
        self._complete = self._frames.feed(data)
        self._go_on()

    def _go_on(self) -> None:
        """Take complete frames, at most 64 units of them in each turn of the event loop. Read more when all are taken."""
        try:
            taken, all_taken = self._take_some(_A_TURN)
        except wire.WireError:
            self._refuse()
            return
        if not self._open:
            return
        wait = self._pace.spend(self._units)
        self._unfinished.note(self, len(self._frames.rest), anew=taken > 0)
        if all_taken and not wait:
            self._watch(True)
        else:
            self._watch(False)
            self._loop.call_later(wait, self._resume)

    def _resume(self) -> None:
        if self._open:
            self._go_on()

    def _take_some(self, most: float) -> tuple[int, bool]:
        """Take frames until they cost `most` units. Return how many were taken, and whether none is left."""
        self._units, taken = 0.0, 0
        while self._units < most and self._open:
            self._frames.limit = self._most()
            payload = next(self._complete, None)
            if payload is None:
                return taken, True
            self._take(payload)
            taken += 1
            self._units += 1 + len(payload) / _UNIT
        return taken, False

    def _refuse(self) -> None:
        if self._open:
            self.stop()
            self._forged()

    def _watch(self, wanted: bool) -> None:
        if wanted is not self._watched:
            self._watched = wanted
            self._loop.add_reader(self._pipe, self._read) if wanted else self._loop.remove_reader(self._pipe)
