"""A session's files, once more: copied from tree to tree as the guest's user, and never through its links. Blocking."""

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import SnapshotError
from . import syscalls
from .files import Files
from .syscalls import Resolve

_RULES = Resolve.BENEATH | Resolve.NO_LINKS | Resolve.NO_MAGIC_LINKS | Resolve.NO_OTHER_MOUNT
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_AT_ONCE = 1 << 20


@dataclass(frozen=True, slots=True)
class Copied:
    """How much was copied, and how many pipes, sockets and the like were not."""

    size: int
    left_out: int


def copy(source: Files, target: Files, *, most: int) -> Copied:
    """Makes an empty tree the same as another; SnapshotError where that has more bytes than may be copied."""
    try:
        with source.as_guest() as here, target.as_guest() as there:
            return _copied(here, there, most)
    except OSError as error:
        raise SnapshotError(f"the session's files cannot be copied: {error.strerror}") from None


def _copied(here: int, there: int, most: int) -> Copied:
    size = sum(status.st_size for _, status in _all(here) if stat.S_ISREG(status.st_mode))
    if size > most:
        raise SnapshotError(f"the files have {size >> 20} MB and a checkpoint keeps {most >> 20} MB: delete some, or raise the limit")
    left_out = 0
    for path, status in _all(here):
        left_out += not _copy_one(here, there, path, status)
    _restore_times(here, there)
    return Copied(size, left_out)


def clear(files: Files) -> None:
    """Takes away everything, however deep: a folder in a folder is first moved to the top."""
    with files.as_guest() as top:
        while entries := _listed(top):
            for name, status in entries:
                if not stat.S_ISDIR(status.st_mode):
                    os.unlink(name, dir_fd=top)
                    continue
                os.chmod(name, 0o700, dir_fd=top)
                with _parent(top, name) as folder:
                    for below, its_status in _listed(folder):
                        if stat.S_ISDIR(its_status.st_mode):
                            os.chmod(below, 0o700, dir_fd=folder)  # a folder that may not be written to cannot be moved
                            os.rename(below, f".{secrets.token_hex(16)}", src_dir_fd=folder, dst_dir_fd=top)
                        else:
                            os.unlink(below, dir_fd=folder)
                os.rmdir(name, dir_fd=top)


def _listed(folder: int) -> list[tuple[str, os.stat_result]]:
    with os.scandir(folder) as entries:
        return [(entry.name, entry.stat(follow_symlinks=False)) for entry in entries]


def _all(top: int) -> Iterator[tuple[str, os.stat_result]]:
    """Everything in a tree, each folder before what is in it."""
    pending = [""]
    while pending:
        folder = pending.pop()
        descriptor = _opened(top, folder or ".", _FOLDER)
        try:
            found = [(f"{folder}/{name}".lstrip("/"), status) for name, status in _listed(descriptor)]
        finally:
            os.close(descriptor)
        yield from found
        pending += [path for path, status in found if stat.S_ISDIR(status.st_mode)]


def _copy_one(here: int, there: int, path: str, status: os.stat_result) -> bool:
    parent, _, name = path.rpartition("/")
    with _parent(there, parent) as folder:
        if stat.S_ISDIR(status.st_mode):
            os.mkdir(name, 0o700, dir_fd=folder)
        elif stat.S_ISREG(status.st_mode):
            _copy_file(here, path, folder, name, status)
        elif stat.S_ISLNK(status.st_mode):
            with _parent(here, parent) as origin:
                os.symlink(os.readlink(name, dir_fd=origin), name, dir_fd=folder)
        else:
            return False
    return True


def _copy_file(here: int, path: str, folder: int, name: str, status: os.stat_result) -> None:
    source = _opened(here, path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(source).st_mode):
            raise SnapshotError("the session's files change while they are copied: end its processes first")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        target = os.open(name, flags, stat.S_IMODE(status.st_mode), dir_fd=folder)
        try:
            _pour(source, target, status.st_size)
            os.fchmod(target, stat.S_IMODE(status.st_mode) & 0o777)
            os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
        finally:
            os.close(target)
    finally:
        os.close(source)


def _pour(source: int, target: int, size: int) -> None:
    """No more than there was: a process of the session may go on writing."""
    while size > 0 and (sent := os.sendfile(target, source, None, min(size, _AT_ONCE))):
        size -= sent


def _restore_times(here: int, there: int) -> None:
    """Of folders, at the end: making what is in them has changed them."""
    for path, status in reversed([*_all(here)]):
        if stat.S_ISDIR(status.st_mode):
            parent, _, name = path.rpartition("/")
            with _parent(there, parent) as folder:
                os.chmod(name, stat.S_IMODE(status.st_mode) & 0o777 | stat.S_IRWXU, dir_fd=folder)
                os.utime(name, ns=(status.st_atime_ns, status.st_mtime_ns), dir_fd=folder)


@contextlib.contextmanager
def _parent(top: int, folder: str) -> Iterator[int]:
    descriptor = _opened(top, folder or ".", _FOLDER)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _opened(top: int, path: str, flags: int) -> int:
    return syscalls.openat2(top, path, flags, 0, _RULES)
