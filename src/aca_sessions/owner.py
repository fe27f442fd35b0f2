"""Remembers which process opened something. A process that is forked from it gets copies of its descriptors and none of its threads: with
them it would wait forever, take answers that belong to its parent, or end its parent's sessions.
"""

import os

from .errors import ForkedProcessError


class Owner:
    """The process that made this object."""

    __slots__ = ("_process", "_what")

    def __init__(self, what: str = "this") -> None:
        """Remember the current process; errors name `what` it opened."""
        self._what = what
        self._process = os.getpid()

    @property
    def is_here(self) -> bool:
        """Return whether this is still the same process. In a forked one, closing must do nothing."""
        return os.getpid() == self._process

    def check(self) -> None:
        """Raise ForkedProcessError in a process that was forked from it."""
        if not self.is_here:
            raise ForkedProcessError(
                f"{self._what} belongs to process {self._process}, from which this process was forked: open another one here, "
                "or start processes with multiprocessing's 'spawn'"
            )
