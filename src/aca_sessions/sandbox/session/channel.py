"""The host's side of the connection to an interpreter: a socket to send frames (messages), and pipes for the guest's frames and output."""

import asyncio
import contextlib
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from .. import wire
from .cell import Output

_READ_AT_ONCE, _STREAM_READ_AT_ONCE = 1 << 18, 1 << 20
_UNIT = 1 << 14  # bytes. To read so many costs about as much as an empty frame, 10 µs: that is one unit of work
_A_TURN = 64  # units before other sessions get the event loop: about 1 ms
_BURST = 8192  # units that a guest may use at once; all displays of an honest cell take 2,500
_A_SECOND = 5000  # units per second after that: about a twentieth of the event loop
_LAST, _LAST_READS = 1024, 4  # units for each read, and reads, after a guest has died
_MOST_UNFINISHED = 256 << 20  # bytes of all sessions together
_THROTTLED_SECONDS = 0.02
_SMALL = 1 << 18  # a smaller unfinished frame is not counted: as much may wait in its pipe


class UnfinishedFrames:
    """The counter and limit of unfinished frames: the bytes of all frames that guests have begun to send but not completed.

    All guests of this process share one limit, even on different event loops. If the limit is exceeded, the frame that was begun first is
    refused, because an honest guest writes a frame without a pause.
    """

    def __init__(self, most: int = _MOST_UNFINISHED) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._held: dict[Inbox, int] = {}  # in the order in which their frames were begun

    @property
    def size(self) -> int:
        """Return how many bytes of unfinished frames are counted now."""
        with self._lock:
            return sum(self._held.values())

    def record(self, inbox: "Inbox", size: int, *, is_new_frame: bool) -> None:
        """Record that `inbox` holds the first `size` bytes of a frame. If the total exceeds the limit, refuse the oldest frames.

        A frame is not counted before 256 KiB of it have arrived. `is_new_frame` must be True if the last call for this inbox was about an
        earlier frame. The new frame then counts as the youngest of all unfinished frames.
        """
        with self._lock:
            if is_new_frame or size < _SMALL:
                self._held.pop(inbox, None)
            if size < _SMALL:
                return
            self._held[inbox] = size
            excess = sum(self._held.values()) - self._most
            while excess > 0:
                oldest = next(iter(self._held))
                excess -= self._held.pop(oldest)
                oldest.refuse_soon()


_unfinished_frames = UnfinishedFrames()


class Inbox:
    """A reader of the frames that one guest writes to its pipe. It runs on the event loop that calls `listen`.

    It counts how much work the guest's frames and output cause: one unit for each frame, and one for each 16 KiB. If a guest has caused too
    much work in a short time, its frames are not read for a while, so that other sessions get their turn.
    """

    def __init__(self, pipe: int, *, unfinished_frames: UnfinishedFrames = _unfinished_frames) -> None:
        """Take over `pipe`, the read end of a pipe. All inboxes that share `unfinished_frames` share its limit."""
        os.set_blocking(pipe, False)
        self._pipe = pipe
        self._unfinished_frames = unfinished_frames
        self._frames = wire.Frames(wire.MAX_FROM_GUEST)
        self._complete: Iterator[bytes] = iter(())
        self._units = 0.0  # of work that was caused in this turn
        self._credit, self._since = float(_BURST), time.monotonic()  # units that the guest may still cause, and since when
        self._open = self._watched = self._is_counted = False
        self.most = 0  # the size of the largest payload that may come now; a larger one is refused

    def listen(self, on_frame: Callable[[bytes], None], *, most: int, on_refused: Callable[[], None], on_end: Callable[[], None]) -> None:
        """Start reading, and pass each frame to `on_frame`. Stop at the first refused frame, or at the end of the pipe.

        Args:
            on_frame: Called with the payload of each frame. It raises WireError to refuse the frame.
            most: The size in bytes of the largest payload that is accepted. Set the attribute `most` to change it later.
            on_refused: Called after a frame was refused.
            on_end: Called at the end of the pipe.
        """
        self._on_frame, self.most, self._on_refused, self._on_end = on_frame, most, on_refused, on_end
        self._loop = asyncio.get_running_loop()
        self._open = True
        self._watch(True)

    def charge(self, size: int) -> None:
        """Count `size` bytes of stdout or stderr as work that the guest caused (see `Inbox`).

        If the guest has caused too much work, reading its frames pauses.
        """
        self._units += size / _UNIT

    def read_now(self) -> bool:
        """Pass on the frames that are in the pipe now. Return False if some have to wait, because the guest has caused too much work."""
        if self._open and self._watched:
            self._read()
        return self._watched or not self._open

    def finish(self) -> None:
        """Pass on the frames that are already in the pipe, with at most 4 reads, and stop reading.

        Call this when the guest is dead or about to be killed.
        """
        if self._open:
            self._watch(False)
            with contextlib.suppress(wire.WireError, BlockingIOError):
                for _ in range(_LAST_READS):
                    _, all_taken = self._pass_on_some(_LAST)
                    if not (all_taken and (data := os.read(self._pipe, _READ_AT_ONCE))):
                        break
                    self._complete = self._frames.feed(data)
        self.stop()

    def stop(self) -> None:
        """Stop reading. Drop frames that were read but not passed on."""
        self._open = False
        self._watch(False)
        self._complete, self._frames = iter(()), wire.Frames(0)
        self._unfinished_frames.record(self, 0, is_new_frame=True)

    def refuse_soon(self) -> None:
        """Tell the inbox's event loop to refuse the unfinished frame and stop reading, and do not wait for it. Any thread may call this."""
        with contextlib.suppress(RuntimeError):  # the loop is closed, so nothing is read there
            self._loop.call_soon_threadsafe(self._refuse)

    def close(self) -> None:
        """Stop reading, and close the pipe."""
        self.stop()
        os.close(self._pipe)

    def _read(self) -> None:
        try:
            data = os.read(self._pipe, _READ_AT_ONCE)
        except BlockingIOError:
            return
        if not data:
            self.stop()
            self._on_end()
            return
        self._complete = self._frames.feed(data)
        self._pass_on_frames()

    def _pass_on_frames(self) -> None:
        """Pass on complete frames until they have cost 64 units of work (see `Inbox`). Pass on the others in later turns of the event loop.

        If the guest has caused too much work, the next turn is delayed, and its pipe is not read until then.
        """
        try:
            taken, all_taken = self._pass_on_some(_A_TURN)
        except wire.WireError:
            self._refuse()
            return
        if not self._open:
            return
        now = time.monotonic()
        self._credit = min(_BURST, self._credit + (now - self._since) * _A_SECOND) - self._units
        self._since = now
        size = len(self._frames.rest)
        if size >= _SMALL or self._is_counted:
            self._is_counted = size >= _SMALL
            self._unfinished_frames.record(self, size, is_new_frame=taken > 0)
        wanted = all_taken and self._credit >= 0
        if wanted is not self._watched:
            self._watch(wanted)
        if not wanted:
            self._loop.call_later(max(0.0, -self._credit / _A_SECOND), self._resume)

    def _resume(self) -> None:
        if self._open:
            self._pass_on_frames()

    def _pass_on_some(self, most: float) -> tuple[int, bool]:
        """Pass on complete frames until they have cost `most` units of work (see `Inbox`).

        Return how many frames were passed on, and whether no complete frame is left.
        """
        self._units, taken = 0.0, 0
        while self._units < most and self._open:
            self._frames.limit = self.most
            payload = next(self._complete, None)
            if payload is None:
                return taken, True
            self._on_frame(payload)
            taken += 1
            self._units += 1 + len(payload) / _UNIT
        return taken, False

    def _refuse(self) -> None:
        if self._open:
            self.stop()
            self._on_refused()

    def _watch(self, wanted: bool) -> None:
        if wanted is not self._watched:
            self._watched = wanted
            self._loop.add_reader(self._pipe, self._read) if wanted else self._loop.remove_reader(self._pipe)


@dataclass(slots=True)
class _Outgoing:
    """A frame in an `Outbox` that is not completely written to the socket yet."""

    left: memoryview
    descriptors: Sequence[int]
    written: asyncio.Future[None]
    begun: bool = False


class Outbox:
    """A queue of frames that are written to a socket in the order of the calls of `put`.

    All frames to the guest go through this queue, because several tasks send at the same time, and a frame may be larger than the socket's
    buffer. A frame of which a part was written is completed, even if its sender was cancelled. Writing never blocks the event loop, so the
    host can still read from the guest: the guest may not read until the host has read.
    """

    def __init__(self, link: socket.socket) -> None:
        """Prepare to write to `link`, a connected socket. The caller still owns the socket, and closes it."""
        link.setblocking(False)
        self._link = link
        self._waiting: deque[_Outgoing] = deque()
        self._watched = False
        self._open = True
        self.size = 0  # bytes that are not written yet

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, data: bytes, descriptors: Sequence[int] = ()) -> asyncio.Future[None]:
        """Queue a frame, with file descriptors to send with it. Return a future that is done when the frame is written or dropped.

        Cancelling the future drops the frame, if no part of it is written yet.
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
        """Drop all frames that are not written, and stop writing."""
        self._open = False
        self._watch(False)
        while self._waiting:
            self._drop()

    def _write(self) -> None:
        """Write a part of the first frame by one call of send(2). The rest follows in later turns of the event loop."""
        while self._waiting and self._waiting[0].written.cancelled() and not self._waiting[0].begun:
            self._drop()
        if self._waiting:
            frame = self._waiting[0]
            try:
                sent = socket.send_fds(self._link, [frame.left], frame.descriptors) if frame.descriptors else self._link.send(frame.left)
            except BlockingIOError:
                sent = 0
            except OSError:
                self.close()  # the reader is gone; other code notices the interpreter's death
                return
            if sent:
                frame.begun, frame.descriptors, frame.left = True, (), frame.left[sent:]  # descriptors go with the first byte
                self.size -= sent
            if not frame.left:
                self._drop()
        if bool(self._waiting) is not self._watched:
            self._watch(not self._watched)

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


class Channel:
    """The connection to one interpreter. It reads frames, stdout and stderr on the event loop that calls `listen`."""

    def __init__(self, link: socket.socket, frames_pipe: int, streams: tuple[int, int], *, limit: int) -> None:
        """Take over the socket to the guest (`link`), and the pipes of the guest's frames (`frames_pipe`), stdout and stderr (`streams`).

        Keep at most `limit` bytes of each of stdout and stderr (see `Output`).
        """
        self._link = link
        self.streams = (Output(streams[0], limit), Output(streams[1], limit))
        self.inbox = Inbox(frames_pipe)
        self._outbox = Outbox(link)
        self._watched: set[int] = set()
        self._open = True

    @property
    def unread(self) -> tuple[int, int]:
        """Return how many frames and how many bytes are not sent to the guest yet. Bytes in the socket's buffer count as sent."""
        return len(self._outbox), self._outbox.size

    def listen(self, on_frame: Callable[[bytes], None], *, most: int, on_refused: Callable[[], None], on_end: Callable[[], None]) -> None:
        """Start reading frames, stdout and stderr, as `Inbox.listen` describes."""
        self.inbox.listen(on_frame, most=most, on_refused=on_refused, on_end=on_end)
        for stream in self.streams:
            self._listen_again(stream)

    def send(self, message: wire.Message, descriptors: Sequence[int] = ()) -> asyncio.Future[None]:
        """Send a frame, with optional file descriptors. See `Outbox.put` for the returned future."""
        return self._outbox.put(wire.frame(message), descriptors)

    def drain(self) -> None:
        """Read what the guest has written to stdout and stderr so far. The two `Output` objects in `streams` keep it."""
        for stream in self.streams:
            before = stream.read
            stream.drain()
            if stream.read > before:
                self.inbox.charge(stream.read - before)

    def stop(self) -> None:
        """Pass on the frames that the guest wrote so far, then stop reading and writing."""
        self._open = False
        self.inbox.finish()
        self._outbox.close()
        for descriptor in [*self._watched]:
            self._unwatch(descriptor)

    def close(self) -> None:
        """Stop, and close the socket and the pipes."""
        self.stop()
        for stream in self.streams:
            stream.close()
        self.inbox.close()
        self._link.close()

    def _on_output(self, stream: Output) -> None:
        """Read stdout or stderr. If the guest floods it, do not read it again for 0.02 s, so that other sessions get their turn.

        Before each text pass on the guest's frames, because a display is sent only after the text before it was read.
        """
        # What is not read stays in the pipe. A full pipe holds up its writer alone.
        if not stream.drain(_STREAM_READ_AT_ONCE, read_frames=self.inbox.read_now):
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
