"""What a cell in a thread writes and displays, kept for its result: the main thread's own executions go on beside it."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from typing import Any, ClassVar

from ...sandbox.guest.collected import Collected

_HALF = 1 << 19  # characters of a stream's head, and of its tail


class Kept:
    """A stream's text, within a limit: the head and the tail are kept, the cut is told."""

    def __init__(self) -> None:
        """Nothing was written yet."""
        self._head: list[str] = []
        self._tail = ""
        self._room = _HALF
        self._dropped = 0
        self._turn = threading.Lock()

    def write(self, text: str) -> int:
        """Keeps it; whoever writes something else is told as by any stream."""
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
        """All that is kept."""
        with self._turn:
            self._cut()
            cut = f"\n[… {self._dropped} characters cut …]\n" if self._dropped else ""
            return "".join(self._head) + cut + self._tail

    def _cut(self) -> None:
        excess = max(len(self._tail) - _HALF, 0)
        self._dropped += excess
        self._tail = self._tail[excess:]


class Diverted:
    """The streams, the displays and the events of a shell while a cell runs in a thread of it.

    Not the streams are replaced, but what they do with text: others hold on to them, and some sessions put their own back.
    """

    current: ClassVar[Diverted | None] = None

    def __init__(self, shell: Any, collected: Collected) -> None:
        """Diverts nothing yet."""
        self.stdout, self.stderr = Kept(), Kept()
        self._shell = shell
        self._collected = collected
        self.own_stdout = sys.stdout
        self._streams = [(sys.stdout, self.stdout), (sys.stderr, self.stderr)]

    def begin(self) -> None:
        """From here on; a cell that could not be ended has no part in it any more."""
        if Diverted.current is not None:
            Diverted.current.put_back()
        Diverted.current = self
        for stream, kept in self._streams:
            with contextlib.suppress(AttributeError):  # the user may have put anything in its place
                stream.write = kept.write  # type: ignore[method-assign]
        self._shell.display_pub.publish = self._publish
        self._shell.display_pub.clear_output = self._collected.clear
        self._shell.display_trap.hook = self._show
        self._shell.ask_exit = _end_the_cell  # `exit` is no end of the session
        self._shell.events.trigger = _nothing  # at the end of each execution figures are shown and closed: ours are no cells of the user's

    def end(self) -> None:
        """No more; what waited for the end of the cell comes now, such as figures that are open."""
        if Diverted.current is not self:
            return
        events = self._shell.events
        try:
            type(events).trigger(events, "post_execute")  # here alone: the main thread may be at the end of an execution as well
        finally:
            self.put_back()

    def put_back(self) -> None:
        """Everything goes again where it went."""
        Diverted.current = None
        self._shell.display_trap.hook = self._shell.displayhook
        self._shell.__dict__.pop("ask_exit", None)
        self._shell.events.__dict__.pop("trigger", None)
        for name in ("publish", "clear_output"):
            self._shell.display_pub.__dict__.pop(name, None)
        for stream, _ in self._streams:
            getattr(stream, "__dict__", {}).pop("write", None)

    def _show(self, value: object) -> None:
        """A value of an execution in the main thread; a doctest's, in the cell, is written where the doctest redirected stdout to."""
        hook = self._shell.displayhook if threading.current_thread() is threading.main_thread() else sys.__displayhook__
        hook(value)

    def _publish(self, data: dict[str, Any], *_: object, **options: Any) -> None:
        name = (options.get("transient") or {}).get("display_id")
        self._collected.take_display(data, None if name is None else str(name), update=bool(options.get("update")))


def write_past(text: str) -> None:
    """Writes to the session's own stdout, whatever is diverted, redirected or closed."""
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
    """A fork has nobody who would read what is kept: what it writes goes where a program's output goes."""
    if Diverted.current is not None:
        Diverted.current.put_back()


os.register_at_fork(after_in_child=_put_back_in_child)


def _nothing(*_: object, **__: object) -> None: ...
