"""The session's connection to the host, and its interrupts.

A SIGINT becomes a KeyboardInterrupt only while a cell runs, and never in the middle of a frame.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from ..wire import Answer, Asked, Command, Extend, Fork, Frames, Message, Ping, Run, WarmUp, decode, frame
from .loop import Loop

_MAX_FROM_HOST = 1 << 30
_MOST_BROUGHT = 4  # descriptors with one message


class AnswerError(Exception):
    """A question to the host got no answer. The message gives the reason."""


class Link:
    """The session's end of the wire: any thread sends frames to the host through a pipe; cells come from the host through a socket."""

    def __init__(self, connection: socket.socket, said: int) -> None:
        """Take over a connected socket and the write end of a pipe."""
        connection.set_inheritable(False)
        self._connection = connection
        self._said = said
        self._sending = threading.Lock()
        self._frames = Frames(_MAX_FROM_HOST)
        self._inbox: list[Message] = []
        self._brought: list[int] = []
        self._arrived = threading.Condition()
        self._being_read = self._ended = False
        self._numbers = itertools.count(1)
        self._awaited: set[int] = set()
        self._woken: Callable[[], None] = lambda: None
        self._incoming = select.poll()
        self._incoming.register(connection, select.POLLIN)
        os.register_at_fork(after_in_child=self._lose)  # a fork that a cell makes must not act as a second interpreter

    def send(self, message: Message) -> None:
        """Send one whole frame. Ignore the message if this process lost the link."""
        data = memoryview(frame(message))
        with interrupts.held(), self._sending:
            while data and self._said >= 0:
                data = data[os.write(self._said, data) :]

    def _lose(self) -> None:
        with contextlib.suppress(OSError):  # a cell may have closed the descriptors
            self._connection.close()
            os.close(self._said)
        self._said = -1
        self._ended = True
        self._sending, self._arrived = threading.Lock(), threading.Condition()  # another thread of the parent may have held them

    def take_over(self, connection: socket.socket, said: int) -> None:
        """Continue with other descriptors, in a fork that is an interpreter of its own."""
        connection.set_inheritable(False)
        os.set_inheritable(said, False)
        self._connection, self._said = connection, said
        self._frames, self._inbox, self._ended = Frames(_MAX_FROM_HOST), [], False
        self._incoming = select.poll()
        self._incoming.register(connection, select.POLLIN)

    def take_brought(self) -> list[int]:
        """Return the descriptors that came with the frames read so far, and forget them."""
        brought, self._brought = self._brought, []
        return brought

    def cells(self, loop: Loop) -> Iterator[Run | Command | WarmUp | Ping | Extend | Fork]:
        """Yield the cells to run until the host closes the link. Tasks that cells left in the loop run between them."""
        self._woken = loop.wake
        while True:
            if not self._inbox and not self._ended:
                loop.go_on_until(self._connection.fileno())
            cell = self._next(lambda message: not isinstance(message, Answer))
            if cell is None:
                return
            yield cell  # type: ignore[misc]

    def ask(self, execution: str, about: str, text: str) -> str:
        """Ask the host a question and return its answer. May be called from any thread.

        Args:
            execution: The execution that asks.
            about: The kind of question: `input` or `call`.
            text: The question.

        Raises:
            AnswerError: The host declined to answer, or the session ends.
        """
        number = next(self._numbers)
        self._awaited.add(number)
        try:
            self.send(Asked(execution, number, about, text))
            answer = self._next(lambda message: isinstance(message, Answer) and message.number == number)
        finally:
            self._awaited.discard(number)
        if not isinstance(answer, Answer) or not answer.given:
            raise AnswerError(answer.text if isinstance(answer, Answer) else "the session ends")
        return answer.text

    def _next(self, wanted: Callable[[Message], bool]) -> Message | None:
        """Return the next message that is wanted, or None at the end of the link.

        Of the threads that wait, one reads for all of them.
        """
        with self._arrived:
            while True:
                for message in self._inbox:
                    if wanted(message):
                        self._inbox.remove(message)
                        return message
                if self._ended:
                    return None
                if self._being_read:
                    self._arrived.wait()
                else:
                    self._read()

    def _read(self) -> None:
        """Read once. Other threads may look at the inbox meanwhile. An interrupt may end the wait, but loses no message."""
        with interrupts.held():
            self._being_read = True
            self._arrived.release()
            try:
                with interrupts.let_through():
                    self._incoming.poll()
                data, brought, _, _ = socket.recv_fds(self._connection, 1 << 16, _MOST_BROUGHT, socket.MSG_CMSG_CLOEXEC)
                self._brought += brought
                self._inbox += filter(self._is_wanted, map(_decoded, self._frames.feed(data)))
                self._ended = not data
                if threading.current_thread() is not threading.main_thread():
                    self._woken()
            finally:
                self._arrived.acquire()
                self._being_read = False
                self._arrived.notify_all()

    def _is_wanted(self, message: Message) -> bool:
        """Return whether a thread waits for this message: one that was interrupted needs its answer no more."""
        return not isinstance(message, Answer) or message.number in self._awaited


def _decoded(payload: bytes) -> Message:
    message: Message = decode(payload, Run, Command, WarmUp, Ping, Extend, Fork, Answer)
    return message


class _Interrupts:
    """Decides when a SIGINT becomes a KeyboardInterrupt. Only the main thread gets one."""

    def __init__(self) -> None:
        self._allowed = False
        self._held = False
        self._pending = False

    def listen(self) -> None:
        """Install the handler of SIGINT."""
        signal.signal(signal.SIGINT, self._handle)

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """Allow interrupts in the block, because a cell runs. Drop those that come outside."""
        self._allowed = True
        try:
            yield
        finally:
            self._allowed = self._pending = False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold back an interrupt until the block has ended, then raise it."""
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

    @contextmanager
    def let_through(self) -> Iterator[None]:
        """Allow interrupts in the block although an outer `held` holds them back."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        outer, self._held = self._held, False
        try:
            if self._pending:
                self._pending = False
                raise KeyboardInterrupt
            yield
        finally:
            self._held = outer

    def _handle(self, _signal: int, _frame: FrameType | None) -> None:
        if not self._allowed:
            return
        if self._held:
            self._pending = True
            return
        raise KeyboardInterrupt


interrupts = _Interrupts()
