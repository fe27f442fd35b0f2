"""The content of one file of a session: copy, compare and rewrite it, and keep its holes. All calls block."""

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
    """A new file that becomes a copy of an open one. It is made first, then its caller allocates memory for `parts`, then it is filled."""

    def __init__(self, source: int, folder: int, name: str, most: int) -> None:
        """Make the empty file, and decide which parts of the source it gets. Raise SnapshotError if the source is not a regular file.

        Args:
            source: A descriptor of the file to copy.
            folder: A descriptor of the folder for the new file.
            name: The new file's name.
            most: Copy at most so many bytes.
        """
        self._source = source
        self._status = os.fstat(source)
        if not stat.S_ISREG(self._status.st_mode):
            raise SnapshotError(CHANGING)
        self._size = min(self._status.st_size, most)  # a process of the session may still append to it
        self._data = [*_data(source, self._size)]
        self._target = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)
        self.inode = os.fstat(self._target).st_ino
        self.parts = [(self._target, start, end - start) for start, end in self._data]

    def fill(self) -> None:
        """Copy the data, the size, the times and the mode, and leave the holes."""
        for start, end in self._data:
            os.lseek(self._target, start, os.SEEK_SET)
            while start < end and (sent := os.sendfile(self._target, self._source, start, min(end - start, _SENT_AT_ONCE))):
                start += sent
        os.ftruncate(self._target, self._size)
        set_attributes(self._target, self._status)

    def close(self) -> None:
        """Close the new file. The source stays open."""
        os.close(self._target)


def equal(source: int, target: int) -> bool:
    """Return whether two open files have the same content."""
    size = os.fstat(source).st_size
    if size != os.fstat(target).st_size:
        return False
    return all(os.pread(source, _AT_ONCE, start) == os.pread(target, _AT_ONCE, start) for start in range(0, size, _AT_ONCE))


def holes(descriptor: int, size: int) -> list[tuple[int, int]]:
    """Return the start and end of each part of a file that has no data."""
    edges = [0, *itertools.chain.from_iterable(_data(descriptor, size)), size]
    return [(start, end) for start, end in zip(edges[::2], edges[1::2], strict=True) if start < end]


def reserve(source: int, target: int, size: int, allocate: Allocate) -> None:
    """Allocate the space that a file needs to become the same as another. If that fails, some may be allocated: call `release`.

    Args:
        source: A descriptor of the file with the new content.
        target: A descriptor of the file that will be written.
        size: The size of the source in bytes.
        allocate: Charges the session for the space.
    """
    parts = [(target, start, end - start) for start, end in _data(source, size)]
    allocate(parts)
    for part in parts:
        syscalls.reserve(*part)  # `allocate` does nothing if no session is charged


def release(target: int, holes: list[tuple[int, int]], status: os.stat_result) -> None:
    """Undo `reserve`: free the space, and set the size and times that the file had.

    Args:
        target: A descriptor of the file.
        holes: The holes that the file had.
        status: The status that the file had.
    """
    for start, end in holes:
        syscalls.punch_hole(target, start, end - start)
    os.ftruncate(target, status.st_size)  # also frees what was reserved beyond the end
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def trim(source: int, target: int, size: int) -> None:
    """Give a file the size and the holes of another."""
    os.ftruncate(target, size)
    for start, end in holes(source, size):
        syscalls.punch_hole(target, start, end - start)


def write(source: int, target: int, size: int) -> None:
    """Write the data of a file into another of the same size. Blocks that are already equal are not written."""
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
    """Yield the start and end of each part of a file that has data. Between these parts are holes."""
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
