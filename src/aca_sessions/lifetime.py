"""The process that opened something, so that a forked process gets an error.

A forked process gets copies of its parent's descriptors, but none of its threads. With them it would wait forever, take answers that belong
to its parent, or end its parent's sessions.
"""

import contextlib
import os
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

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
        if os.getpid() != self._process:
            raise ForkedProcessError(
                f"{self._what} belongs to process {self._process}, from which this process was forked: open another one here, "
                "or start processes with multiprocessing's 'spawn'"
            )


_SKIPPED = (f"{Path(__file__).parent}{os.sep}", contextlib.__file__)


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the user's program."""

    file: str
    number: int

    def warn_unclosed(self, what: str, remedy: str, source: object = None) -> None:
        """Warn at this line that an object was never closed.

        Args:
            what: What was made.
            remedy: The statement that closes it.
            source: The object itself, for tracemalloc.
        """
        message = f"{what} made at {self.file}:{self.number} was never closed: use '{remedy}'"
        # `warnings.warn` with a stack level cannot name the line: it left the stack long before.
        warnings.warn_explicit(message, ResourceWarning, self.file, self.number, source=source)


def caller() -> Line:
    """Return the innermost line on the stack that belongs neither to this package nor to contextlib."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_SKIPPED):
        frame = frame.f_back
    return Line(frame.f_code.co_filename, frame.f_lineno)
