"""The shortage of descriptors in this process: its error with advice, the room for sessions, and a reserve.

Only the request that needs a descriptor fails.
"""

import contextlib
import errno
import functools
import os
import resource
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from ..errors import ACASessionsError, GuestDiedError

Result = TypeVar("Result")
# Of one session: its /mnt/data, its link, its first process and the reports of that, its interpreter, three pipes, and without
# control groups the session's /proc and its list of sockets. At its start it has two more for a moment.
DESCRIPTORS = 10
_OPEN = "/proc/self/fd"
_SHARE, _MOST_KEPT = 4, 4096  # a quarter of all descriptors, at most 4096, is kept for connections and files
_NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)


def is_shortage(error: OSError) -> bool:
    """Return whether an error means that no descriptor is left. It is then not about the file that was to be opened."""
    return error.errno in _NO_DESCRIPTOR


def no_descriptor(what: str, kind: type[ACASessionsError] = GuestDiedError) -> ACASessionsError:
    """Return the error for something that was not made because no descriptor is left."""
    return kind(f"this process has no descriptor left for {what}: end some sessions, or raise `ulimit -n`, and try again")


@contextmanager
def told_of(what: str, kind: type[ACASessionsError] = GuestDiedError) -> Iterator[None]:
    """Raise `kind`, with advice, in the place of an OSError which means that no descriptor is left."""
    try:
        yield
    except OSError as error:
        if not is_shortage(error):
            raise
        raise no_descriptor(what, kind) from error


@functools.cache
def allow_many() -> None:
    """Raise this process's limit of descriptors to the most that it may have, once."""
    # A session takes several; shells give 1,024 to all.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def open_descriptors() -> int:
    """Return how many descriptors this process has open."""
    # From Linux 6.2 on, the folder's size is their number.
    return os.stat(_OPEN).st_size or len(with_reserve(lambda: os.listdir(_OPEN)))


def room_for_sessions() -> int:
    """Return for how many more sessions there are descriptors, beside those that are kept for connections, files and other requests."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (soft - min(soft // _SHARE, _MOST_KEPT) - open_descriptors()) // DESCRIPTORS


class _Reserve:
    """A descriptor that is kept for what must work without a free one: counting a session's memory, and ending its processes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: int | None = None

    def hold(self) -> None:
        """Open it, if it is not open."""
        with self._lock:
            self._take()

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Close it for the block, and open it again afterwards. Another thread may use the free descriptor first."""
        with self._lock:
            if self._held is not None:
                os.close(self._held)
                self._held = None
            try:
                yield
            finally:
                self._take()

    def _take(self) -> None:
        if self._held is None:
            with contextlib.suppress(OSError):
                self._held = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)


reserve = _Reserve()


def with_reserve(act: Callable[[], Result]) -> Result:
    """Return what `act` returns. If it finds no free descriptor, call it once more with the reserve freed."""
    try:
        return act()
    except OSError as error:
        if not is_shortage(error):
            raise
    with reserve.lent():
        return act()
