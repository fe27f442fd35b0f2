"""Report that this process has no descriptor left. Only the request that needs one fails, with advice."""

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
# Of a session: its /mnt/data, its link, its first process and that one's reports, its interpreter, three pipes, and what counts its memory
# (root: the group's file of events; others: the session's /proc and its list of sockets). One that starts has two more for a moment.
DESCRIPTORS = 10
_OPEN = "/proc/self/fd"
_SHARE, _MOST_KEPT = 4, 4096  # a quarter of all descriptors, at most 4096, is kept for connections and files
_NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)


def is_shortage(error: OSError) -> bool:
    """Return whether an error says that no descriptor is left, and nothing of what was to be opened."""
    return error.errno in _NO_DESCRIPTOR


def no_descriptor(what: str, kind: type[ACASessionsError] = GuestDiedError) -> ACASessionsError:
    """Return the error for something that was not made because no descriptor is left."""
    return kind(f"this process has no descriptor left for {what}: end some sessions, or raise `ulimit -n`, and try again")


@contextmanager
def told_of(what: str, kind: type[ACASessionsError] = GuestDiedError) -> Iterator[None]:
    """Raise `kind`, with what to do, in the place of an OSError that says that no descriptor is left."""
    try:
        yield
    except OSError as error:
        if not is_shortage(error):
            raise
        raise no_descriptor(what, kind) from error


@functools.cache
def allow_many() -> None:
    """Raise this process's limit of descriptors to the most that it may have, once. A session takes several; shells give 1,024 to all."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def open_descriptors() -> int:
    """Return how many descriptors this process has open. Linux says so as the size of their folder from 6.2 on."""
    return os.stat(_OPEN).st_size or len(with_reserve(lambda: os.listdir(_OPEN)))


def room_for_sessions() -> int:
    """Return for how many more sessions there are descriptors, beside those that are kept for connections, files and other requests."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (soft - min(soft // _SHARE, _MOST_KEPT) - open_descriptors()) // DESCRIPTORS


class _Reserve:
    """A descriptor that is kept for what has to work without a free one: counting a session's memory, and ending its processes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: int | None = None

    def hold(self) -> None:
        """Take it, if it is not held."""
        with self._lock:
            self._take()

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Free it for the block. Another thread may be quicker to use it."""
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
    """Return what `act` returns; if it finds no free descriptor, once more with the one that is kept."""
    try:
        return act()
    except OSError as error:
        if not is_shortage(error):
            raise
    with reserve.lent():
        return act()
