"""Operations in a session's workspace: look up, list, link and remove entries; copy, compare and rewrite the content of files.

All calls block. Functions that look up a path must be called within `as_guest`.

All functions use descriptors and never follow links. A process of the session may change the workspace at any moment, and put a link to
files of the host's user in place of a folder. So once something is opened, it is used by its descriptor alone, also to set modes and times.
"""

import errno
import itertools
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from ...errors import SnapshotError
from .. import syscalls
from ..limits.memory import Allocate
from ..syscalls import Resolve
from .files import HIDDEN

BLOCK = 512  # bytes, the unit of st_blocks in stat(2)
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK  # a pipe that took the place of a file must not hang the host
WRITE = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK
CHANGING = "the session's files change while they are copied, or are more than 131,072: end its processes, or delete files, and try again"
_PLACE = os.O_PATH | os.O_NOFOLLOW
_RULES = Resolve.BENEATH | Resolve.NO_LINKS | Resolve.NO_MAGIC_LINKS | Resolve.NO_OTHER_MOUNT
_MOST_ENTRIES = 1 << 17  # some kernels keep listing a folder as long as a process makes files in it
_DEPTH = 16  # how many folders may be open at a time


def walk(top: int, may_skip: Callable[[str], bool] = lambda folder: False) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the path and status of the top folder of a workspace (the path is ''), and of each file, folder and link below it.

    A folder comes before its entries. Raise SnapshotError for more than 131,072 entries. If a folder cannot be read, call `may_skip` with
    its path. If that returns True, skip the folder's entries, else raise OSError.
    """
    yield "", os.fstat(top)
    pending, count = [""], 0
    while pending:
        folder = pending.pop()
        try:
            entries = _list_folder(top, folder)
        except OSError:
            if not may_skip(folder):
                raise
            continue
        count += len(entries)
        if count > _MOST_ENTRIES:
            raise SnapshotError(CHANGING)
        for path, status in entries:
            yield path, status
            if stat.S_ISDIR(status.st_mode):
                pending.append(path)


@contextmanager
def open_below(top: int, path: str, flags: int) -> Iterator[int]:
    """Open a path below the folder `top`, without following links. Give the descriptor to the `with` block, and close it afterwards."""
    descriptor = syscalls.openat2(top, path or ".", flags, 0, _RULES)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def parent_of(top: int, path: str) -> Iterator[tuple[int, str]]:
    """Open the folder that a path is in. Give the folder's descriptor and the last component of the path to the `with` block."""
    with open_below(top, folder_of(path), FOLDER) as descriptor:
        yield descriptor, path.rpartition("/")[2]


def folder_of(path: str) -> str:
    """Return the path of the folder that a path is in. If that is the top folder, return ''."""
    return path.rpartition("/")[0]


def link(top: int, path: str, folder: int, name: str) -> None:
    """Make a hard link called `name` in `folder` (a descriptor) to the file `path` below `top`."""
    with parent_of(top, path) as (parent, old):
        os.link(old, name, src_dir_fd=parent, dst_dir_fd=folder, follow_symlinks=False)


def read_link(top: int, path: str) -> str:
    """Return the target of the symbolic link `path` below `top`."""
    with parent_of(top, path) as (folder, name):
        return os.readlink(name, dir_fd=folder)


def set_attributes(descriptor: int, status: os.stat_result) -> None:
    """Set the times and the mode of an open file or folder to those in `status`, without the set-uid, set-gid and sticky bits."""
    os.utime(descriptor, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.fchmod(descriptor, stat.S_IMODE(status.st_mode) & 0o777)


def add_rights(top: int, path: str, rights: int) -> int:
    """Add rights for the owner (bits of `stat.S_IRWXU`) to the mode of a file or folder. Return the former mode."""
    with _open_path_only(top, path) as place:
        mode = stat.S_IMODE(os.fstat(place).st_mode)
        if mode & rights != rights:
            _chmod(place, mode | rights)
        return mode


def set_mode(top: int, path: str, mode: int) -> None:
    """Change the mode of a file or folder, even if its present mode forbids opening it. Do nothing for a symbolic link."""
    with _open_path_only(top, path) as place:
        _chmod(place, mode)


def remove(top: int, path: str) -> None:
    """Remove a file, or a folder with everything in it, at any depth."""
    deep: list[str] = []
    with parent_of(top, path) as (folder, name):
        _remove(top, folder, name, deep)
    while deep:
        _remove(top, top, deep.pop(), deep)


def _remove(top: int, folder: int, name: str, deep: list[str], depth: int = 0) -> None:
    """Remove a file, or a folder with its entries. Move folders more than 16 levels deep to `top`, and add their new names to `deep`."""
    with suppress(IsADirectoryError):
        os.unlink(name, dir_fd=folder)
        return
    add_rights(folder, name, stat.S_IRWXU)  # without them it can be neither emptied nor moved
    if depth == _DEPTH:
        deep.append(f"{HIDDEN}{secrets.token_hex(16)}")
        os.rename(name, deep[-1], src_dir_fd=folder, dst_dir_fd=top)
        return
    with open_below(folder, name, FOLDER) as inside:
        for entry in os.listdir(inside):
            _remove(top, inside, entry, deep, depth + 1)
    os.rmdir(name, dir_fd=folder)


@contextmanager
def _open_path_only(top: int, path: str) -> Iterator[int]:
    """Open a path with O_PATH, which needs no rights on the entry itself. Give the descriptor to the `with` block.

    If the path is empty, give `top` to the block.
    """
    if not path:  # a top without rights would not even be looked up as "."
        yield top
        return
    with open_below(top, path, _PLACE) as place:
        yield place


def _chmod(place: int, mode: int) -> None:
    """Set the mode of a file or folder opened with O_PATH. Use /proc, because fchmod(2) refuses such descriptors. Skip symbolic links."""
    if not stat.S_ISLNK(os.fstat(place).st_mode):
        os.chmod(f"/proc/self/fd/{place}", mode)  # leads to what was opened, whatever its name is by now


def _list_folder(top: int, folder: str) -> list[tuple[str, os.stat_result]]:
    found = []
    with open_below(top, folder, FOLDER) as descriptor, os.scandir(descriptor) as entries:
        for entry in entries:
            found.append((f"{folder}/{entry.name}".lstrip("/"), entry.stat(follow_symlinks=False)))
            if len(found) > _MOST_ENTRIES:
                raise SnapshotError(CHANGING)
    return found


_AT_ONCE = 1 << 16  # malloc gets larger buffers from the kernel, page by page: comparing takes three times as long
_SENT_AT_ONCE = 1 << 20


class FileCopy:
    """A new file that becomes a copy of another one.

    The constructor makes it empty. The caller must allocate the memory for its `parts` before it calls `fill` to copy the content.
    """

    def __init__(self, source: int, folder: int, name: str, most: int) -> None:
        """Make the empty file `name` in `folder`. Later `fill` copies the content of `source` into it, but at most `most` bytes.

        Raise SnapshotError if the source is not a regular file.
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
        """Copy the content, times and mode of the source. Keep its holes (unallocated parts)."""
        for start, end in self._data:
            os.lseek(self._target, start, os.SEEK_SET)
            while start < end and (sent := os.sendfile(self._target, self._source, start, min(end - start, _SENT_AT_ONCE))):
                start += sent
        os.ftruncate(self._target, self._size)
        set_attributes(self._target, self._status)

    def close(self) -> None:
        """Close the new file. The source stays open."""
        os.close(self._target)


def have_equal_content(source: int, target: int) -> bool:
    """Return whether two open files have the same content."""
    size = os.fstat(source).st_size
    if size != os.fstat(target).st_size:
        return False
    return all(os.pread(source, _AT_ONCE, start) == os.pread(target, _AT_ONCE, start) for start in range(0, size, _AT_ONCE))


def holes(descriptor: int, size: int) -> list[tuple[int, int]]:
    """Return the holes of a file (unallocated parts, which read as zeros) as pairs of start and end."""
    edges = [0, *itertools.chain.from_iterable(_data(descriptor, size)), size]
    return [(start, end) for start, end in zip(edges[::2], edges[1::2], strict=True) if start < end]


def reserve(source: int, target: int, size: int, allocate: Allocate) -> None:
    """Allocate the space that the file `target` needs for the first `size` bytes of `source`.

    `allocate` charges the session for the space. On failure a part of the space may stay allocated: call `undo_reserve` to free it.
    """
    parts = [(target, start, end - start) for start, end in _data(source, size)]
    allocate(parts)
    for part in parts:
        syscalls.reserve(*part)  # `allocate` does nothing if no session is charged


def undo_reserve(target: int, holes: list[tuple[int, int]], status: os.stat_result) -> None:
    """Undo `reserve`: free the space in `holes`, the parts of the file `target` that were not allocated before.

    Also set the file's size and times to those in `status`, which were read before `reserve`.
    """
    for start, end in holes:
        syscalls.punch_hole(target, start, end - start)
    os.ftruncate(target, status.st_size)  # also frees what was reserved beyond the end
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def trim(source: int, target: int, size: int) -> None:
    """Set the size of the file `target`, and make holes in it where `source` has holes. Leave its other content as it is."""
    os.ftruncate(target, size)
    for start, end in holes(source, size):
        syscalls.punch_hole(target, start, end - start)


def write_differences(source: int, target: int, size: int) -> None:
    """Write the data of `source` into `target`, which already has the same size. Skip blocks that are equal already."""
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
    """Yield the start and end of each allocated part of a file. The other parts are holes."""
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
