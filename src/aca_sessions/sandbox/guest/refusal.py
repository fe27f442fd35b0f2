"""Errors that name the part of the isolation that a host refuses."""

from collections.abc import Iterator
from contextlib import contextmanager

from ..wire import Refused


class RefusalError(Exception):
    """A part of the isolation that this host does not provide. `told` is the frame that reports it to the host."""

    def __init__(self, part: str, error: OSError) -> None:
        super().__init__(part)
        self.told = Refused(part, error.errno or 0, str(error.strerror or error))


@contextmanager
def part(name: str) -> Iterator[None]:
    """Raise RefusalError with the name of this part if the block raises OSError."""
    try:
        yield
    except OSError as error:
        raise RefusalError(name, error) from error
