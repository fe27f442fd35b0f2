"""An event loop that wakes tasks in a seeded order. The same seed gives the same order for the same events."""

import asyncio
import random
from collections import deque
from typing import Any

_POSTPONED = 0.2


class ReadyTasks(deque):  # type: ignore[type-arg]
    """The loop's queue of callbacks. Steps of tasks change places with each other and may come later; everything else stays in order.

    A callback never comes later than a step that was behind it, so the order that futures and transports promise for their callbacks is
    kept. To the loop's user it looks as if a task had been woken by a slower event.
    """

    def __init__(self) -> None:
        super().__init__()
        self.random = random.Random(0)
        self.shuffled = False

    def popleft(self) -> Any:
        if not self.shuffled or not _is_step(self[0]):
            return super().popleft()
        if len(self) > 1 and self.random.random() < _POSTPONED:
            self.append(super().popleft())
        steps = next((place for place, handle in enumerate(tuple(self)) if not _is_step(handle)), len(self))
        place = self.random.randrange(steps) if steps else 0
        chosen = self[place]
        del self[place]
        return chosen


class ShuffledLoop(asyncio.SelectorEventLoop):
    """An event loop whose order starts again with each call of `shuffle`."""

    def __init__(self) -> None:
        super().__init__()
        self._ready = ReadyTasks()

    def shuffle(self, seed: int | None) -> None:
        """Wake tasks in the order of a seed from now on, or in asyncio's own for None."""
        self._ready.shuffled = seed is not None
        self._ready.random = random.Random(seed)


def _is_step(handle: Any) -> bool:
    return isinstance(getattr(handle._callback, "__self__", None), asyncio.Task)
