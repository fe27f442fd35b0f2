"""What is in one file of a session: copy, compare and rewrite it, and keep its holes. Blocking."""

import errno
import itertools
import os
import stat
from collections.abc import Iterator

from ..errors import SnapshotError
from . import syscalls
from .memory import Allocate
from .trees import CHANGING, set_attributes

_AT_ONCE = 1 << 16  # malloc gets larger buffers from the kernel, page by page: comparing takes three times as long
_SENT_AT_ONCE = 1 << 20


class Copy:
    """A new file that becomes the same as an open one: made here, then given its memory, then filled."""

    def __init__(self, source: int, folder: int, name: str, most: int) -> None:
        """Make it, and decide which parts of the other it gets: at most so many bytes."""
        self._source = source
        self._status = os.fstat(source)
        if not stat.S_ISREG(self._status.st_mode):
            raise SnapshotError(CHANGING)
        self._size = min(self._status.st_size, most)  # a process of the session may go on writing
        self._data = [*_data(source, self._size)]
        self._target = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)
        self.inode = os.fstat(self._target).st_ino
        self.parts = [(self._target, start, end - start) for start, end in self._data]

    def fill(self) -> None:
        """Write what it gets, and leave the holes."""
        for start, end in self._data:
            os.lseek(self._target, start, os.SEEK_SET)
            while start < end and (sent := os.sendfile(self._target, self._source, start, min(end - start, _SENT_AT_ONCE))):
                start += sent
        os.ftruncate(self._target, self._size)
        set_attributes(self._target, self._status)

    def close(self) -> None:
        """Let go of the new file."""
        os.close(self._target)


def equal(source: int, target: int) -> bool:
    """Return whether two open files have the same content."""
    size = os.fstat(source).st_size
    if size != os.fstat(target).st_size:
        return False
    return all(os.pread(source, _AT_ONCE, start) == os.pread(target, _AT_ONCE, start) for start in range(0, size, _AT_ONCE))


def reserve(source: int, target: int, size: int, allocate: Allocate) -> list[tuple[int, int]]:
    """Take the space that a file needs to become the same as another. Return the holes that it had, for `release`."""
    holes = _holes(target, os.fstat(target).st_size)
    parts = [(target, start, end - start) for start, end in _data(source, size)]
    allocate(parts)
    for part in parts:
        syscalls.reserve(*part)  # all of it, even where no session is charged
    return holes


def release(target: int, holes: list[tuple[int, int]], status: os.stat_result) -> None:
    """Give back what was reserved."""
    for start, end in holes:
        syscalls.punch_hole(target, start, end - start)
    os.ftruncate(target, status.st_size)  # what was reserved behind the end goes as well
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def trim(source: int, target: int, size: int) -> None:
    """Give a file the size and the holes of another."""
    os.ftruncate(target, size)
    for start, end in _holes(source, size):
        syscalls.punch_hole(target, start, end - start)


def write(source: int, target: int, size: int) -> None:
    """Write the data of a file into another of the same size, but for what is equal already."""
    for first, end in _data(source, size):
        for start in range(first, end, _AT_ONCE):
            data = os.pread(source, min(_AT_ONCE, end - start), start)
            if data != os.pread(target, len(data), start):
                _write_all(target, data, start)


def _write_all(target: int, data: bytes, start: int) -> None:
    while data:
        written = os.pwrite(target, data, start)
        data, start = data[written:], start + written


def _data(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield where a file has data, as start and end; between them are holes."""
    end = 0
    while end < size:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # there is no more data: lseek(2)
                return
            raise
        end = min(os.lseek(descriptor, start, os.SEEK_HOLE), size)
        if start < end:
            yield start, end


def _holes(descriptor: int, size: int) -> list[tuple[int, int]]:
    edges = [0, *itertools.chain.from_iterable(_data(descriptor, size)), size]
    return [(start, end) for start, end in zip(edges[::2], edges[1::2], strict=True) if start < end]
