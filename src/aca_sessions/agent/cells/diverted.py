"""The output and displays of a cell in a thread, collected for its result. The main thread's executions continue beside it."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from typing import Any, ClassVar

from ...sandbox.guest.collected import Collected

_HALF = 1 << 19  # characters of a stream's head, and of its tail


class Kept:
    """The text of a stream, within a limit: head and tail are kept, and the text has a note where it was cut."""

    def __init__(self) -> None:
        self._head: list[str] = []
        self._tail = ""
        self._room = _HALF
        self._dropped = 0
        self._turn = threading.Lock()

    def write(self, text: str) -> int:
        """Keep a text and return its length. Raise TypeError for other values, like any text stream."""
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        with self._turn:
            if self._room > 0:
                self._head.append(text[: self._room])
            rest = text[max(self._room, 0) :]
            self._room -= len(text)
            self._tail += rest
            if len(self._tail) > 4 * _HALF:
                self._cut()
        return len(text)

    def text(self) -> str:
        """Return all that is kept."""
        with self._turn:
            self._cut()
            cut = f"\n[… {self._dropped} characters cut …]\n" if self._dropped else ""
            return "".join(self._head) + cut + self._tail

    def _cut(self) -> None:
        excess = max(len(self._tail) - _HALF, 0)
        self._dropped += excess
        self._tail = self._tail[excess:]


class Diverted:
    """The streams, displays and events of a shell, while a cell runs in a thread of it.

    Only the `write` methods of streams are replaced, not the streams: other code holds references to them, and some sessions put their own
    streams back.
    """

    current: ClassVar[Diverted | None] = None

    def __init__(self, shell: Any, collected: Collected) -> None:
        self.stdout, self.stderr = Kept(), Kept()
        self._shell = shell
        self._collected = collected
        self.own_stdout = sys.stdout
        self._streams = [(sys.stdout, self.stdout), (sys.stderr, self.stderr)]

    def begin(self) -> None:
        """Divert from now on. A previous cell that could not be ended is not collected any more."""
        if Diverted.current is not None:
            Diverted.current.put_back()
        Diverted.current = self
        for stream, kept in self._streams:
            with contextlib.suppress(AttributeError):  # guest code may have replaced the stream by anything
                stream.write = kept.write  # type: ignore[method-assign]
        self._shell.display_pub.publish = self._publish
        self._shell.display_pub.clear_output = self._collected.clear
        self._shell.display_trap.hook = self._show
        self._shell.ask_exit = _end_the_cell  # `exit` must not end the session
        # At the end of each execution figures are shown and closed. Meetings are executions, but not the end of the cell.
        self._shell.events.trigger = _nothing

    def end(self) -> None:
        """Stop diverting, after showing what waits for the end of a cell, such as open figures."""
        if Diverted.current is not self:
            return
        events = self._shell.events
        try:
            type(events).trigger(events, "post_execute")  # only for this thread: the main thread may be at the end of an execution, too
        finally:
            self.put_back()

    def put_back(self) -> None:
        """Restore the streams, displays and events of the shell."""
        Diverted.current = None
        self._shell.display_trap.hook = self._shell.displayhook
        self._shell.__dict__.pop("ask_exit", None)
        self._shell.events.__dict__.pop("trigger", None)
        for name in ("publish", "clear_output"):
            self._shell.display_pub.__dict__.pop(name, None)
        for stream, _ in self._streams:
            getattr(stream, "__dict__", {}).pop("write", None)

    def _show(self, value: object) -> None:
        """Show a value. In the main thread it is that of an execution.

        In the cell's thread it is that of a doctest, and is written to the stdout that the doctest has redirected.
        """
        hook = self._shell.displayhook if threading.current_thread() is threading.main_thread() else sys.__displayhook__
        hook(value)

    def _publish(self, data: dict[str, Any], *_: object, **options: Any) -> None:
        name = (options.get("transient") or {}).get("display_id")
        self._collected.take_display(data, None if name is None else str(name), update=bool(options.get("update")))


def write_past(text: str) -> None:
    """Write to the session's own stdout, even if stdout is diverted, redirected or closed."""
    streams: list[Any] = [sys.stdout, sys.__stdout__]
    if Diverted.current is not None:
        streams.insert(0, Diverted.current.own_stdout)
    for stream in streams:
        with contextlib.suppress(Exception):
            type(stream).write(stream, text)
            stream.flush()
            return


def _end_the_cell() -> None:
    raise SystemExit


def _put_back_in_child() -> None:
    """Restore the streams in a forked process: nothing there would read what is kept, so its output goes to the real streams."""
    if Diverted.current is not None:
        Diverted.current.put_back()


os.register_at_fork(after_in_child=_put_back_in_child)


def _nothing(*_: object, **__: object) -> None: ...
