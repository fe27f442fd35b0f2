"""The session's connection to the host. It receives cells through a socket, and sends frames (encoded messages) and output through pipes.

Python, C code and child processes write to the same two pipes, for stdout and stderr, so the order within each is kept. Between the two,
only the order of what Python code writes is kept. A SIGINT becomes a KeyboardInterrupt only while a cell runs, and never in the middle of
a frame.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import itertools
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic, sleep
from types import FrameType

from .. import syscalls
from ..wire import Answer, Asked, Command, Extend, Fork, Frames, Message, Ping, Restore, Run, Save, WarmUp, decode, frame
from .notebook.cell_output import is_unread
from .notebook.loop import Loop, cancel_cell

_MAX_FROM_HOST = 1 << 30
_MAX_DESCRIPTORS = 4  # descriptors with one message
_PIPE_SIZE = 1 << 20
_SET_PIPE_SIZE = 1031  # F_SETPIPE_SZ
_MOST_WAITING = 1.0  # seconds that writes may wait in a row for the host to read the other stream
_WAITING_SHARE = 0.2  # of the time that passes; writes may wait so long in the long run


class AnswerError(Exception):
    """The host did not answer a cell's question, such as an `input()` or a tool call. The message gives the reason."""


class Link:
    """The session's connection to the host. It sends frames through a pipe, and receives cells and answers through a socket.

    Any thread may send. A forked process loses the connection. If it is a checkpoint or branch, `reconnect` gives it another.
    """

    def __init__(self, connection: socket.socket, frame_pipe: int) -> None:
        """Receive cells and answers from the socket `connection`. Write frames to `frame_pipe`, the write end of a pipe."""
        connection.set_inheritable(False)
        self._connection = connection
        self._said = frame_pipe
        self._sending = threading.Lock()
        self._frames = Frames(_MAX_FROM_HOST)
        self._inbox: list[Message] = []
        self._descriptors: list[int] = []
        self._arrived = threading.Condition()
        self._being_read = self._ended = False
        self._numbers = itertools.count(1)
        self._awaited: set[int] = set()
        self._wake_loop: Callable[[], None] = lambda: None
        self._incoming = select.poll()
        self._incoming.register(connection, select.POLLIN)
        os.register_at_fork(after_in_child=self._disconnect)  # a fork that a cell makes must not act as a second interpreter

    def send(self, message: Message) -> None:
        """Send a message to the host as one frame. Do nothing in a process that a cell forked, because it has no connection."""
        data = memoryview(frame(message))
        with interrupts.delayed(), self._sending:
            while data and self._said >= 0:
                data = data[os.write(self._said, data) :]

    def _disconnect(self) -> None:
        with contextlib.suppress(OSError):  # a cell may have closed the descriptors
            self._connection.close()
            os.close(self._said)
        self._said = -1
        self._ended = True
        self._sending, self._arrived = threading.Lock(), threading.Condition()  # another thread of the parent may have held them

    def reconnect(self, connection: socket.socket, frame_pipe: int) -> None:
        """Use a new socket and a new pipe. This is called in a forked process that runs its own cells (a checkpoint or branch)."""
        connection.set_inheritable(False)
        os.set_inheritable(frame_pipe, False)
        self._connection, self._said = connection, frame_pipe
        self._frames, self._inbox, self._ended = Frames(_MAX_FROM_HOST), [], False
        self._incoming = select.poll()
        self._incoming.register(connection, select.POLLIN)

    def take_descriptors(self) -> list[int]:
        """Return the file descriptors that the host sent with its messages since the last call of this method."""
        received, self._descriptors = self._descriptors, []
        return received

    def cells(self, loop: Loop) -> Iterator[Run | Command | WarmUp | Ping | Extend | Fork | Save | Restore]:
        """Yield each message of the host that is not an answer, such as a cell to run. Stop when the host closes the connection.

        Between messages, run the asyncio tasks that cells left unfinished.
        """
        self._wake_loop = loop.wake
        while True:
            loop.forget_wakes()  # before the look at the inbox: a thread that reads during a cell calls `wake`, too
            is_idle = not self._ended and all(isinstance(message, Answer) for message in self._inbox[:])
            has_run = is_idle and loop.run_until_readable(self._connection.fileno())
            cell = self._next(lambda message: not isinstance(message, Answer), waits=not has_run)
            if cell is not None:
                yield cell  # type: ignore[misc]
            elif self._ended:
                return

    def ask(self, execution: str, about: str, text: str) -> str:
        """Send a cell's question, such as an `input()`, to the host and return the answer. May be called from any thread.

        Args:
            execution: The id of the execution whose cell asks.
            about: The kind of the question: `input`, `password` or `call`.
            text: The prompt, or the JSON of a tool call.

        Raises:
            AnswerError: The host declines to answer, or the session ends.
        """
        number = next(self._numbers)
        self._awaited.add(number)
        try:
            self.send(Asked(execution, number, about, text))
            answer = self._next(lambda message: isinstance(message, Answer) and message.number == number)
        finally:
            self._awaited.discard(number)
        if not isinstance(answer, Answer) or not answer.given:
            raise AnswerError(answer.text if isinstance(answer, Answer) else "the session is being ended, so this question gets no answer")
        return answer.text

    def _next(self, wanted: Callable[[Message], bool], *, waits: bool = True) -> Message | None:
        """Wait for a message for which `wanted` is true, and return it. Return None when the host has closed the link.

        If `waits` is false, also return None if no such message has arrived.
        """
        with self._arrived:
            while True:
                for message in self._inbox:
                    if wanted(message):
                        self._inbox.remove(message)
                        return message
                if self._ended:
                    return None
                if self._being_read and waits:
                    self._arrived.wait()
                elif self._being_read or not self._read(waits):  # for all threads that wait
                    return None

    def _read(self, waits: bool) -> bool:
        """Read data from the host and put the messages in it into the inbox. The caller must hold the lock `_arrived`.

        Wait for data if `waits` is true. Otherwise return False if there is none.
        """
        # The lock is released meanwhile, so that other threads can take messages out. An interrupt may end the wait, but loses no message.
        with interrupts.delayed():
            self._being_read = True
            self._arrived.release()
            try:
                with interrupts.not_delayed():
                    is_readable = self._incoming.poll(None if waits else 0)
                if not is_readable:
                    return False
                data, received, _, _ = socket.recv_fds(self._connection, 1 << 16, _MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
                self._descriptors += received
                self._inbox += filter(self._is_wanted, map(_decode, self._frames.feed(data)))
                self._ended = not data
                if threading.current_thread() is not threading.main_thread():
                    self._wake_loop()
                return True
            finally:
                self._arrived.acquire()
                self._being_read = False
                self._arrived.notify_all()

    def _is_wanted(self, message: Message) -> bool:
        """Return False if a message is an answer for which no thread waits any longer, because it was interrupted. Else return True."""
        return not isinstance(message, Answer) or message.number in self._awaited


def _decode(payload: bytes) -> Message:
    message: Message = decode(payload, Run, Command, WarmUp, Ping, Extend, Fork, Save, Restore, Answer)
    return message


class _Allowed:
    """Lets a SIGINT raise KeyboardInterrupt during a `with` block."""

    # Not a generator: an interrupt at the end of the block would leave it unfinished, and its `finally` would run during a later cell.
    def __init__(self, interrupts: _Interrupts) -> None:
        self._interrupts = interrupts

    def __enter__(self) -> None:
        self._interrupts.allow()

    def __exit__(self, *_: object) -> None:
        self._interrupts.forbid()


class _Interrupts:
    """The handler of SIGINT. It decides when a SIGINT raises KeyboardInterrupt, always in the main thread."""

    def __init__(self) -> None:
        self._is_allowed = False
        self._is_delayed = False
        self._is_pending = False
        self._is_installed = False

    def install_handler(self) -> None:
        self._is_installed = True
        signal.signal(signal.SIGINT, self._handle)

    def allowed(self) -> _Allowed:
        """Let a SIGINT raise KeyboardInterrupt during the `with` block, in which a cell runs. SIGINTs outside of it are ignored."""
        return _Allowed(self)

    def allow(self) -> None:
        self.forbid()
        self._is_allowed = True

    def forbid(self) -> None:
        """Ignore each SIGINT from now on. Install the handler again if it was installed before, because a cell may have replaced it."""
        self._is_allowed = self._is_delayed = self._is_pending = False
        if self._is_installed:  # the zygote also runs cells, and keeps its own handler
            self.install_handler()

    @contextmanager
    def delayed(self) -> Iterator[None]:
        """If a SIGINT comes during the `with` block, raise KeyboardInterrupt at the end of the block.

        Do nothing outside of the main thread, because only the main thread is interrupted.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        outer, self._is_delayed = self._is_delayed, True
        try:
            yield
        finally:
            self._is_delayed = outer
        if self._is_pending and not outer:
            self._is_pending = False
            raise KeyboardInterrupt

    @contextmanager
    def not_delayed(self) -> Iterator[None]:
        """Let a SIGINT raise KeyboardInterrupt at once in this `with` block, although a `delayed` block surrounds it.

        If a SIGINT came before this block, raise KeyboardInterrupt now.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        outer, self._is_delayed = self._is_delayed, False
        try:
            if self._is_pending:
                self._is_pending = False
                raise KeyboardInterrupt
            yield
        finally:
            self._is_delayed = outer

    def _handle(self, _signal: int, frame: FrameType | None) -> None:
        if not self._is_allowed:
            return
        if self._is_delayed:
            self._is_pending = True
            return
        if not cancel_cell(frame):
            raise KeyboardInterrupt


interrupts = _Interrupts()


class _Waiting:
    """Waits until the host has read a pipe, but not for long: code that writes to both streams in turn must not become slow."""

    def __init__(self) -> None:
        self._allowed, self._since = _MOST_WAITING, monotonic()

    def until_read(self, descriptor: int) -> None:
        """Wait until the host has read the pipe `descriptor`, but at most _MOST_WAITING, and a share of the time in the long run."""
        now = monotonic()
        until = now + min(_MOST_WAITING, self._allowed + (now - self._since) * _WAITING_SHARE)
        while is_unread(descriptor) and now < until:
            sleep(0.0002)
            now = monotonic()
        self._allowed, self._since = until - now, now


class _Stream:
    """The session's stdout or stderr. If Python code wrote to the other stream last, a write waits until the host has read that.

    Each stream is a pipe, and two pipes have no common order. Only the stream that was not written to last has methods `write` in its
    `__dict__`, so a loop that prints to one stream costs nothing.
    """

    def __init__(self, descriptor: int, waiting: _Waiting) -> None:
        self._descriptor = descriptor
        self._waiting = waiting
        self.other = self  # the caller sets it
        self.open()

    def open(self) -> None:
        self.file = open(self._descriptor, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
        self._raw: io.FileIO = self.file.buffer.raw  # type: ignore[attr-defined]

    def is_captured(self) -> bool:
        """Return whether `write` of the file was replaced because a cell runs on in a thread (bridge/threaded_guest.py)."""
        return vars(self.file).get("write") not in (None, self._write)

    def watch(self) -> None:
        """Make the next write wait for the other stream."""
        # `write` of the raw file too: tqdm and others keep the method `write` of the text file from before.
        vars(self.file).setdefault("write", self._write)
        vars(self._raw)["write"] = self._write_raw

    def _write(self, text: str) -> int:
        with contextlib.suppress(Exception):  # a cell may have closed the other stream
            self.other.file.flush()
        self._take_turn()
        return io.TextIOWrapper.write(self.file, text)

    def _write_raw(self, data: bytes) -> int | None:
        # Without a flush of the other stream: two threads would wait for the locks of each other's buffers.
        self._take_turn()
        return io.FileIO.write(self._raw, data)

    def _take_turn(self) -> None:
        self._waiting.until_read(self.other._descriptor)
        vars(self._raw).pop("write", None)
        if not self.is_captured():
            vars(self.file).pop("write", None)
        self.other.watch()


_own_streams: dict[str, _Stream] = {}


def replace_streams() -> tuple[int, int]:
    """Replace descriptors 1 and 2 by new pipes, and descriptor 0 by /dev/null. Return the read ends for stdout and stderr."""
    # The pipes are made here, after the change of user: a pipe of another user could not be opened again through /dev/stdout.
    nothing = os.open("/dev/null", os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    read_ends = (_pipe_at(1), _pipe_at(2))
    restore_streams()
    syscalls.set_line_buffered()
    return read_ends


def flush_streams() -> None:
    """Write out what Python and C code have buffered for stdout and stderr. Ignore errors, because a cell may have closed a stream."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    syscalls.flush_c_streams()


def restore_streams() -> None:
    """Set sys.stdout and sys.stderr to the session's own streams, in case a cell replaced or closed them."""
    if not _own_streams:
        waiting = _Waiting()
        stdout, stderr = _Stream(1, waiting), _Stream(2, waiting)
        stdout.other, stderr.other = stderr, stdout
        _own_streams.update(stdout=stdout, stderr=stderr)
        stderr.watch()
    for name, stream in _own_streams.items():
        if stream.is_captured():
            continue
        if stream.file.closed:
            stream.open()
            stream.watch()
        setattr(sys, name, stream.file)
        setattr(sys, f"__{name}__", stream.file)


def _pipe_at(descriptor: int) -> int:
    read_end, write_end = os.pipe()
    with contextlib.suppress(OSError):  # the kernel limits the memory of a user's pipes (pipe(7), pipe-user-pages-soft)
        fcntl.fcntl(write_end, _SET_PIPE_SIZE, _PIPE_SIZE)
    os.dup2(write_end, descriptor)
    os.close(write_end)
    return read_end
