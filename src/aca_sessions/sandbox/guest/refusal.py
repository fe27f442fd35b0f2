"""Names the part of the isolation that a host refused."""

from collections.abc import Iterator
from contextlib import contextmanager

from ..wire import Refused


class RefusalError(Exception):
    """This host cannot give a part of the isolation."""

    def __init__(self, part: str, error: OSError) -> None:
        """Keeps what the host needs to say what is missing."""
        super().__init__(part)
        self.told = Refused(part, error.errno or 0, str(error.strerror or error))


@contextmanager
def part(name: str) -> Iterator[None]:
    """Whatever fails inside is this part."""
    try:
        yield
    except OSError as error:
        raise RefusalError(name, error) from error
