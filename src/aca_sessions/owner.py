"""The process that opened something, so that a forked process gets an error.

A forked process gets copies of its parent's descriptors, but none of its threads. With them it would wait forever, take answers that belong
to its parent, or end its parent's sessions.
"""

import os

from .errors import ForkedProcessError


class Owner:
    """The process that created this object."""

    __slots__ = ("_process", "_what")

    def __init__(self, what: str = "this") -> None:
        """Remember the current process. `what` is the name, in errors, of the thing that it opened."""
        self._what = what
        self._process = os.getpid()

    @property
    def is_here(self) -> bool:
        """Return whether this is still the same process. In a forked process, closing must do nothing."""
        return os.getpid() == self._process

    def check(self) -> None:
        """Raise ForkedProcessError if this process was forked from the owner."""
        if not self.is_here:
            raise ForkedProcessError(
                f"{self._what} belongs to process {self._process}, from which this process was forked: open another one here, "
                "or start processes with multiprocessing's 'spawn'"
            )
