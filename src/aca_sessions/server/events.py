"""The events of an execution, kept within bounds for readers that come and go.

The oldest output is dropped first, and readers learn how much was dropped.
"""

import asyncio
import contextlib
from collections import deque
from dataclasses import replace

from ..contract.events import QUESTIONS
from ..models import Display, Event

_MOST_KEPT = 4 << 20  # characters of text
_MOST_SHOWN = 32 << 20  # characters of displays: as much as may be part of one cell's result
_MOST_MERGED = 64 << 10
_EACH = 64


class Events:
    """The events of one execution. Only the execution adds events. Any reader can read them, from any number on."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque()
        self._first = 1
        self._read_to = 0
        self._written = self._shown = 0
        self._skipped = self._skipped_displays = 0
        self._unheard: list[Event] = []
        self._named: dict[str, int] = {}  # the number of the latest display of each name
        self._news = asyncio.Event()
        self.closed = False

    @property
    def size(self) -> int:
        """Return about how many characters are kept."""
        return self._written + self._shown

    def add(self, event: Event) -> None:
        """Add an event, and drop the oldest ones if there is too much.

        An event takes the place of an unread one that it continues or replaces.
        """
        place = self._place_of(event)
        if place is None:
            self._events.append(event)
            place = len(self._events) - 1
        else:
            self._count(self._events[place], -1)
            event = replace(event, text=self._events[place].text + event.text)
            self._events[place] = event
        self._count(event, 1)
        if event.kind == "clear":
            self._named.clear()
        if name := _name_of(event):
            self._named[name] = self._first + place
        while (self._written > _MOST_KEPT or self._shown > _MOST_SHOWN) and len(self._events) > 1:
            self._drop_oldest()
        self._news.set()

    def close(self) -> None:
        """Note that no more events will come."""
        self.closed = True
        self._news.set()

    async def after(self, number: int, *, within: float) -> tuple[list[Event], int]:
        """Wait at most `within` seconds for events after a number. Return them and the number of the last."""
        await asyncio.sleep(0)  # in process, a caller that reads in a loop would not yield to other tasks
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within):
                while self._last <= number and not self.closed:
                    self._news.clear()
                    await self._news.wait()
        start = max(0, number + 1 - self._first)
        found = [*self._events][start:]
        self._read_to = max(self._read_to, self._last)
        unheard, self._unheard = self._unheard, []
        found = unheard + found
        if number + 1 < self._first and (dropped := self._dropped()):
            found.insert(0, Event(kind="skipped", text=dropped))
        return found, max(number, self._last)

    @property
    def _last(self) -> int:
        return self._first + len(self._events) - 1

    def _place_of(self, event: Event) -> int | None:
        """Return the position of the unread event that a new one continues or replaces, or None."""
        number = self._named.get(_name_of(event) or "")
        if number is None and self._events and _continues(self._events[-1], event):
            number = self._last
        return None if number is None or number <= self._read_to else number - self._first

    def _count(self, event: Event, sign: int) -> None:
        self._written += sign * (len(event.text) + _EACH)
        self._shown += sign * _size_of(event.display)

    def _drop_oldest(self) -> None:
        oldest = self._events.popleft()
        self._first += 1
        self._count(oldest, -1)
        if oldest.kind in QUESTIONS and self._first - 1 > self._read_to:
            self._unheard.append(oldest)  # the cell waits for its reply; the sandbox limits how many can be open
        else:
            self._skipped += len(oldest.text)
            self._skipped_displays += oldest.display is not None
            if self._named.get(_name_of(oldest) or "") == self._first - 1:
                del self._named[_name_of(oldest) or ""]

    def _dropped(self) -> str:
        """Return in words what was dropped, or ""."""
        parts = [f"{self._skipped} characters of output"] * bool(self._skipped)
        parts += [f"{self._skipped_displays} displays (the result has those that the cell ended with)"] * bool(self._skipped_displays)
        return f"{' and '.join(parts)} were dropped before they were read" if parts else ""


def _continues(earlier: Event, event: Event) -> bool:
    """Return whether an event can be merged into an earlier one: pieces of a stream, or one more clear."""
    if earlier.kind != event.kind:
        return False
    return event.kind == "clear" or (event.kind in ("stdout", "stderr") and len(earlier.text) < _MOST_MERGED)


def _name_of(event: Event) -> str | None:
    return event.display.name if event.display is not None else None


def _size_of(display: Display | None) -> int:
    if display is None:
        return 0
    return sum(len(kind) + len(form) for kind, form in display.data.items() if isinstance(form, str))
