"""The waits between attempts: they grow, vary at random and keep within a budget. Which requests are repeated is decided in `http`."""

import random
import time
from collections.abc import Callable

_FIRST, _LONGEST = 0.1, 5.0


class Patience:
    """The waits of one call."""

    def __init__(self, budget: float, *, clock: Callable[[], float] = time.monotonic, draw: Callable[[], float] = random.random) -> None:
        """Start the budget, which is in seconds from now. `clock` returns monotonic seconds, and `draw` a number from 0 to 1."""
        self._ends = clock() + budget
        self._clock = clock
        self._draw = draw
        self._next = _FIRST

    def wait(self, wished: float | None) -> float | None:
        """Return the seconds to wait before the next attempt, or None if the budget does not allow it.

        The wait is what the service asked for, or else a random one around 0.1, 0.2, 0.4 … 5 seconds.
        """
        # Random, so that clients which failed together do not come back together.
        wait = wished if wished is not None else self._next * (0.5 + self._draw())
        self._next = min(self._next * 2, _LONGEST)
        return wait if self._clock() + wait <= self._ends else None
