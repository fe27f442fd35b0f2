"""The session's end of the wire, and when a SIGINT may become a KeyboardInterrupt: while a cell runs, never in the middle of a frame."""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ..wire import Command, Frames, Message, Run, WarmUp, decode, frame

_MAX_FROM_HOST = 1 << 30


class Link:
    """Frames to the host from any thread, by a pipe; cells from the host, by a socket."""

    def __init__(self, connection: socket.socket, said: int) -> None:
        """Takes over a connected socket and the end of a pipe. A fork of the interpreter is no second one: it loses the link."""
        connection.set_inheritable(False)
        self._connection = connection
        self._said = said
        self._sending = threading.Lock()
        os.register_at_fork(after_in_child=self._lose)

    def send(self, message: Message) -> None:
        """Sends one whole frame."""
        data = memoryview(frame(message))
        with interrupts.held(), self._sending:
            while data and self._said >= 0:
                data = data[os.write(self._said, data) :]

    def _lose(self) -> None:
        with contextlib.suppress(OSError):  # a cell may have closed them
            self._connection.close()
            os.close(self._said)
        self._said = -1
        self._sending = threading.Lock()  # another thread of the parent may have held it

    def cells(self) -> Iterator[Run | Command | WarmUp]:
        """The cells to run, until the host closes the link."""
        frames = Frames(_MAX_FROM_HOST)
        while data := self._connection.recv(1 << 16):
            for payload in frames.feed(data):
                cell: Run | Command | WarmUp = decode(payload, Run, Command, WarmUp)  # type: ignore[assignment]
                yield cell


class _Interrupts:
    def __init__(self) -> None:
        self._allowed = False
        self._held = False
        self._pending = False

    def listen(self) -> None:
        """Takes over SIGINT."""
        signal.signal(signal.SIGINT, self._handle)

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """A cell runs: it may be interrupted."""
        self._allowed = True
        try:
            yield
        finally:
            self._allowed = self._pending = False

    @contextmanager
    def held(self) -> Iterator[None]:
        """An interrupt waits until this is done."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        outer, self._held = self._held, True
        try:
            yield
        finally:
            self._held = outer
        if self._pending and not outer:
            self._pending = False
            raise KeyboardInterrupt

    def _handle(self, _signal: int, _frame: FrameType | None) -> None:
        if not self._allowed:
            return
        if self._held:
            self._pending = True
            return
        raise KeyboardInterrupt


interrupts = _Interrupts()
