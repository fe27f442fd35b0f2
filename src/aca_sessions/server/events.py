"""What an execution did so far, for readers who come and go. Bounded: the oldest output goes first, and who missed it is told so."""

import asyncio
import contextlib
from collections import deque
from dataclasses import replace

from ..contract.events import QUESTIONS
from ..models import Event

_MOST_KEPT = 4 << 20  # characters, besides displays: those are bounded for each cell already
_MOST_MERGED = 64 << 10
_EACH = 64


class Events:
    """An execution's events: written by it alone, read by anybody, from any number on."""

    def __init__(self) -> None:
        """Starts with none."""
        self._events: deque[Event] = deque()
        self._first = 1
        self._read_to = 0
        self._size = 0
        self._skipped = 0
        self._unheard: list[Event] = []
        self._news = asyncio.Event()
        self.closed = False

    @property
    def size(self) -> int:
        """About how many characters it keeps."""
        return self._size

    def add(self, event: Event) -> None:
        """Keeps an event; a stream's next piece joins its last one while nobody has read that."""
        last = self._events[-1] if self._events else None
        if last is not None and self._joins(last, event):
            self._events[-1] = replace(last, text=last.text + event.text)
            self._size += len(event.text)
        else:
            self._events.append(event)
            self._size += len(event.text) + _EACH
        while self._size > _MOST_KEPT and len(self._events) > 1:
            self._drop_oldest()
        self._news.set()

    def close(self) -> None:
        """There will be no more."""
        self.closed = True
        self._news.set()

    async def after(self, number: int, *, within: float) -> tuple[list[Event], int]:
        """The events behind a number, as soon as there are any, and the number of the last."""
        await asyncio.sleep(0)  # in process, whoever reads again and again would leave nobody else a turn
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
        if number + 1 < self._first and self._skipped:
            found.insert(0, Event(kind="skipped", text=f"{self._skipped} characters of output were dropped before they were read"))
        return found, max(number, self._last)

    @property
    def _last(self) -> int:
        return self._first + len(self._events) - 1

    def _joins(self, last: Event, event: Event) -> bool:
        same_stream = last.kind == event.kind and event.kind in ("stdout", "stderr")
        return same_stream and self._last > self._read_to and len(last.text) < _MOST_MERGED

    def _drop_oldest(self) -> None:
        oldest = self._events.popleft()
        self._first += 1
        self._size -= len(oldest.text) + _EACH
        if oldest.kind in QUESTIONS and self._first - 1 > self._read_to:
            self._unheard.append(oldest)  # whoever asked would wait in vain; the sandbox bounds how many may
        else:
            self._skipped += len(oldest.text)
