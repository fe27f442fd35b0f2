"""Operations in a session's workspace: look up, list, link and remove. They block, and must be called within `as_guest`.

They work by descriptors and never follow links. A process of the session may change the workspace at any moment. So what was opened is
referred to by its descriptor from then on, and modes and times are set through it. A path could lead to files of the host's user, if a
folder in it has become a link.
"""

import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from ..errors import SnapshotError
from . import syscalls
from .files import HIDDEN
from .syscalls import Resolve

BLOCK = 512  # bytes, the unit of st_blocks in stat(2)
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK  # a pipe that took the place of a file must not hang the host
WRITE = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK
CHANGING = "the session's files change while they are copied: end its processes first"
_PLACE = os.O_PATH | os.O_NOFOLLOW
_RULES = Resolve.BENEATH | Resolve.NO_LINKS | Resolve.NO_MAGIC_LINKS | Resolve.NO_OTHER_MOUNT
_MOST_ENTRIES = 1 << 17  # some kernels keep listing a folder as long as a process makes files in it
_DEPTH = 16  # how many folders may be open at a time


def walk(top: int, may_pass_over: Callable[[str], bool] = lambda folder: False) -> Iterator[tuple[str, os.stat_result]]:
    """Yield everything in a workspace with its status, each folder before what is in it and before it is read. The top is ''.

    Raise OSError if a folder cannot be read, unless `may_pass_over` returns True for it. Raise SnapshotError if there are more than 131,072
    entries.
    """
    yield "", os.fstat(top)
    pending, count = [""], 0
    while pending:
        folder = pending.pop()
        try:
            entries = _listed(top, folder)
        except OSError:
            if not may_pass_over(folder):
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
def opened(top: int, path: str, flags: int) -> Iterator[int]:
    """Open a path below a folder, and close it again."""
    descriptor = syscalls.openat2(top, path or ".", flags, 0, _RULES)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def parent_of(top: int, path: str) -> Iterator[tuple[int, str]]:
    """Open the folder that a path is in. Yield its descriptor, and the last name of the path."""
    with opened(top, folder_of(path), FOLDER) as descriptor:
        yield descriptor, path.rpartition("/")[2]


def folder_of(path: str) -> str:
    """Return the path of the folder that a path is in."""
    return path.rpartition("/")[0]


def link(top: int, path: str, folder: int, name: str) -> None:
    """Give the file at a path another name, in an open folder."""
    with parent_of(top, path) as (parent, old):
        os.link(old, name, src_dir_fd=parent, dst_dir_fd=folder, follow_symlinks=False)


def read_link(top: int, path: str) -> str:
    """Return the target of a symbolic link."""
    with parent_of(top, path) as (folder, name):
        return os.readlink(name, dir_fd=folder)


def set_attributes(descriptor: int, status: os.stat_result) -> None:
    """Give a file or folder the times and the mode of another."""
    os.utime(descriptor, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.fchmod(descriptor, stat.S_IMODE(status.st_mode) & 0o777)


def add_rights(top: int, path: str, rights: int) -> int:
    """Give the owner of what is at a path more rights. Return the mode that it had."""
    with _marked(top, path) as place:
        mode = stat.S_IMODE(os.fstat(place).st_mode)
        if mode & rights != rights:
            _chmod(place, mode | rights)
        return mode


def set_mode(top: int, path: str, mode: int) -> None:
    """Change the mode of what is at a path, whether or not it can be opened."""
    with _marked(top, path) as place:
        _chmod(place, mode)


def remove(top: int, path: str) -> None:
    """Remove a file, or a folder with all that is in it, however deep."""
    deep: list[str] = []
    with parent_of(top, path) as (folder, name):
        _remove(top, folder, name, deep)
    while deep:
        _remove(top, top, deep.pop(), deep)


def _remove(top: int, folder: int, name: str, deep: list[str], depth: int = 0) -> None:
    """Remove an entry. Move folders that lie too deep to the top instead, and add their new names to `deep`, to be removed from there."""
    with suppress(IsADirectoryError):
        os.unlink(name, dir_fd=folder)
        return
    add_rights(folder, name, stat.S_IRWXU)  # without them it can be neither emptied nor moved
    if depth == _DEPTH:
        deep.append(f"{HIDDEN}{secrets.token_hex(16)}")
        os.rename(name, deep[-1], src_dir_fd=folder, dst_dir_fd=top)
        return
    with opened(folder, name, FOLDER) as inside:
        for entry in os.listdir(inside):
            _remove(top, inside, entry, deep, depth + 1)
    os.rmdir(name, dir_fd=folder)


@contextmanager
def _marked(top: int, path: str) -> Iterator[int]:
    """Open a path only to refer to it (O_PATH), for which no rights are needed."""
    if not path:  # a top without rights would not even be looked up as "."
        yield top
        return
    with opened(top, path, _PLACE) as place:
        yield place


def _chmod(place: int, mode: int) -> None:
    """Set the mode of what an O_PATH descriptor refers to, except of a link. fchmod(2) refuses such a descriptor."""
    if not stat.S_ISLNK(os.fstat(place).st_mode):
        os.chmod(f"/proc/self/fd/{place}", mode)  # leads to what was opened, whatever its name is by now


def _listed(top: int, folder: str) -> list[tuple[str, os.stat_result]]:
    found = []
    with opened(top, folder, FOLDER) as descriptor, os.scandir(descriptor) as entries:
        for entry in entries:
            found.append((f"{folder}/{entry.name}".lstrip("/"), entry.stat(follow_symlinks=False)))
            if len(found) > _MOST_ENTRIES:
                raise SnapshotError(CHANGING)
    return found
