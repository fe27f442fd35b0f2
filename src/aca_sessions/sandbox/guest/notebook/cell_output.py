"""Collect the value, displays and error of one cell as text, and shorten what is too long."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import json
import os
import stat
import sys
import termios
import threading
from collections import deque
from collections.abc import Callable
from time import monotonic, sleep
from typing import Any

from ...wire import Cleared, FileRow, Finished, Message, ProcessRow, Scalar, Shown, VariableRow

_MAX_TEXT = 1 << 20
_MAX_DISPLAYED = 24 << 20  # characters in one cell; below the limit of a frame (wire.MAX_FROM_GUEST), so that the frame is accepted
_MAX_DISPLAYS = 900  # in one cell; below the host's limit as well
_MAX_TYPES = 50  # of one display
_MAX_LATE = 1 << 20  # characters of a display that comes when no cell runs
_MAX_NAME = 200  # characters of the name of a display, of a type of its content, and of a class of errors
_MAX_INTEGER_BITS = 4096
_DEBUGGER_ENDED = "the debugger was left, or had nothing to read: print what you want to see instead"

LateDisplays = deque[dict[str, str]]


def new_late_displays() -> LateDisplays:
    """Return an empty queue for displays that threads or tasks make when no cell runs. The queue keeps the last 100."""
    return deque(maxlen=100)


class CellOutput:
    """Collects the output of one cell. It sends displays to the host immediately, and keeps the value and error for the cell's result.

    A thread or task of an earlier cell may display something when no cell runs. Such a display is added to the displays of the next cell.
    """

    def __init__(self, execution: str, send: Callable[[Message], None], late: LateDisplays) -> None:
        self.execution = execution
        self.value: Scalar = None
        self.text: str | None = None
        self.value_is_none = False
        self.error: tuple[str, str, str] | None = None
        self.code_has_run = False
        self._send = send
        self._late = late
        self._pid = os.getpid()
        self._turn = threading.RLock()  # reentrant: a finalizer may show something in the middle of a send
        self._is_finished = False
        self._clear_first = False
        self._sizes: list[int] = []
        self._display_positions: dict[str, int] = {}  # of the latest display of each name
        self._images: set[bytes] = set()

    def store_value(self, result: Any, formats: dict[str, Any]) -> None:
        """Store the value of the cell's last expression. If `formats` has more than plain text, send the value as a display as well.

        Args:
            result: IPython's result of the cell, whose attribute `result` is the value.
            formats: A dict from MIME type to the value in this format.
        """
        self.text = clip(str(formats.get("text/plain", "")))
        value = _scalar(getattr(result, "result", None))
        self.value = self.text if value is None else value
        if formats.keys() - {"text/plain"}:
            self.add_display(formats, is_value=True)

    def add_display(self, data: dict[str, Any], name: str | None = None, *, update: bool = False, is_value: bool = False) -> None:
        """Send a display to the host, or keep it for the next cell if this cell has ended.

        Do nothing in a forked process, or for a figure that matplotlib shows again at the cell's end.

        Args:
            data: A dict from MIME type to the content in this format.
            name: The name of the display, with which a later display can replace it.
            update: Whether to replace the latest display of the same name.
            is_value: Whether it shows the value of the cell's last expression.
        """
        if os.getpid() != self._pid:
            return  # a fork that a cell made has no link to the host
        sendable = {str(mime): _encode_form(content) for mime, content in data.items()}
        with self._turn:
            if self._is_finished:
                self._late.append(_limit_late_display(sendable))
            elif not self._is_shown_again(sendable):
                self._send_display(sendable, name and name[:_MAX_NAME], update=update, is_value=is_value)

    def show_late(self) -> None:
        """Send the displays that were made between cells, for example by a thread, as displays of this cell."""
        while self._late:
            self.add_display(self._late.popleft())

    def clear(self, wait: bool) -> None:
        """Remove the displays of this cell: immediately, or if `wait` is true, when the cell prints or displays something.

        Do nothing after the cell has finished, or in a forked process.
        """
        if os.getpid() != self._pid or self._is_finished:
            return
        with self._turn:
            self._clear_first = wait
            if not wait:
                self._forget_displays()
            self._send(Cleared(self.execution, wait))

    def store_error(self, error: BaseException, traceback: str) -> None:
        """Store the error with which the cell ended, and its formatted traceback. Shorten long texts by `clip`."""
        try:
            message = str(error)
        except Exception as broken:
            message = f"<{type(broken).__name__} while reading the message>"
        if type(error).__name__ == "BdbQuit" and not message:
            message, traceback = _DEBUGGER_ENDED, f"BdbQuit: {_DEBUGGER_ENDED}"
        self.error = (clip(type(error).__name__, _MAX_NAME), clip(message), clip(traceback))

    def finish(self, files: list[FileRow], processes: list[ProcessRow], variables: list[VariableRow], count: int) -> Finished:
        """Stop collecting, and return the cell's result. Displays that are made after this call are kept for the next cell.

        `count` is the cell's number in IPython, or 0 if it has none.
        """
        with self._turn:
            self._is_finished = True
        name, message, traceback = self.error or (None, "", "")
        rows = (files, processes, variables)
        return Finished(self.execution, self.value, self.text, name, message, traceback, *rows, self.value_is_none, count)

    def _is_shown_again(self, data: dict[str, str]) -> bool:
        """Return whether a display is a figure that matplotlib shows again after the cell's code has ended.

        `data` maps MIME types to the content in each format. When a figure is shown for the first time, its PNG image is stored, so that
        this method can recognize the figure.
        """
        # At the end of a cell matplotlib's backend shows all open figures, including those that the cell's code has displayed itself.
        if "image/png" not in data:
            return False
        image = hashlib.blake2b(data["image/png"].encode(), digest_size=16).digest()
        if self.code_has_run and image in self._images:
            return True
        self._images.add(image)
        return False

    def _send_display(self, data: dict[str, str], name: str | None, *, update: bool, is_value: bool) -> None:
        if self._clear_first:
            self._clear_first = False
            self._forget_displays()
        position = self._display_positions.get(name) if name and update else None
        if position is None and len(self._sizes) >= _MAX_DISPLAYS:
            return
        data = self._limit_display(data, position)
        if position is None:
            position = len(self._sizes)
            self._sizes.append(0)
        self._sizes[position] = sum(map(len, data.values()))
        if name:
            self._display_positions[name] = position
        self._send(Shown(self.execution, data, name, update, is_value))

    def _limit_display(self, data: dict[str, str], position: int | None) -> dict[str, str]:
        if position is None and len(self._sizes) == _MAX_DISPLAYS - 1:
            return {"text/plain": f"[further displays were dropped: a cell may show {_MAX_DISPLAYS}]"}
        room = _MAX_DISPLAYED - sum(self._sizes) + (self._sizes[position] if position is not None else 0)
        lighter = _drop_large_forms(data, room)
        if not lighter or len(data) > _MAX_TYPES or max(map(len, data), default=0) > _MAX_NAME:
            size = sum(map(len, data.values()))
            return {"text/plain": f"[a display of {size} characters was dropped: a cell may show {_MAX_DISPLAYED} in all]"}
        return lighter

    def _forget_displays(self) -> None:
        self._sizes.clear()
        self._display_positions.clear()
        self._images.clear()


def sent_in_order(send: Callable[[Message], None]) -> Callable[[Message], None]:
    """Return a function that sends a message once the host has read all printed text, so that the host gets both in the order of the cell.

    A process that prints without a pause can make this impossible. The function then waits for 1 s once, and after that for 0.02 s.
    """
    patience = 1.0

    def send_in_order(message: Message) -> None:
        nonlocal patience
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):  # a stream of the user's, perhaps a closed one
                stream.flush()
        until = monotonic() + patience
        while is_unread(1) or is_unread(2):
            if monotonic() > until:
                patience = 0.02
                break
            sleep(0.0002)
        send(message)

    return send_in_order


def is_unread(descriptor: int) -> bool:
    """Return whether a pipe holds bytes that its reader has not read yet. Return False if the descriptor is no pipe any more."""
    try:
        return stat.S_ISFIFO(os.fstat(descriptor).st_mode) and any(fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)))
    except OSError:
        return False


def clip(text: str, limit: int = _MAX_TEXT) -> str:
    """Shorten a text of over `limit` characters: replace its middle by a note that says how many characters were removed."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half} characters cut …]\n{text[-half:]}"


def _drop_large_forms(data: dict[str, str], room: int) -> dict[str, str]:
    """Remove formats from a display, the largest first, until it has at most `room` characters. `data` maps MIME types to content.

    Return {} if only plain text would be left.
    """
    if sum(map(len, data.values())) <= room:
        return data
    kept = dict(sorted(data.items(), key=lambda form: len(form[1])))
    while kept and sum(map(len, kept.values())) > room:
        kept.popitem()
    return {} if kept.keys() <= {"text/plain"} else kept


def _limit_late_display(data: dict[str, str]) -> dict[str, str]:
    size = sum(map(len, data.values()))
    return data if size <= _MAX_LATE else {"text/plain": f"[a display of {size} characters was dropped: no cell ran when it came]"}


def _scalar(value: Any) -> Scalar:
    """Convert a bool, number or text (also of numpy) to a value that JSON can hold. Return None for any other value."""
    if type(value).__module__ == "numpy" and hasattr(value, "item") and not getattr(value, "shape", (1,)):
        value = value.item()
    if type(value) in (bool, float):
        return value  # type: ignore[no-any-return]
    if type(value) is int and value.bit_length() <= _MAX_INTEGER_BITS:
        return value
    return clip(value) if type(value) is str else None


def _encode_form(content: Any) -> str:
    """Convert a display's content in one format to text: bytes to base64, other objects to JSON or, if that fails, by `str`."""
    if isinstance(content, str):
        return content
    if isinstance(content, bytes):
        return base64.b64encode(content).decode()
    try:
        return json.dumps(content)
    except (TypeError, ValueError, RecursionError):
        return clip(str(content))
