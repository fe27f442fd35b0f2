"""The line of the user's program that made an object, for the warning that it was never closed."""

import contextlib
import os
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

_SKIPPED = (f"{Path(__file__).parents[1]}{os.sep}", contextlib.__file__)


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
