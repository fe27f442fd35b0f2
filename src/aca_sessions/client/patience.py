"""When to ask again, and how long to wait: jittered, growing, within a budget. What may be asked again is decided where it is asked."""

import random
import time
from collections.abc import Callable

_FIRST, _LONGEST = 0.1, 5.0


class Patience:
    """The waits of one call."""

    def __init__(self, budget: float, *, clock: Callable[[], float] = time.monotonic, draw: Callable[[], float] = random.random) -> None:
        """Waits no longer than the budget in all."""
        self._ends = clock() + budget
        self._clock = clock
        self._draw = draw
        self._next = _FIRST

    def wait(self, wished: float | None) -> float | None:
        """The next wait: what the service wished for, or a drawn one; None where the budget does not allow it."""
        wait = wished if wished is not None else self._next * (0.5 + self._draw())
        self._next = min(self._next * 2, _LONGEST)
        return wait if self._clock() + wait <= self._ends else None
