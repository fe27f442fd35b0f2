"""Copy a session's files from tree to tree, as the guest's user and never through its links. Blocking."""

import os
import stat
from dataclasses import dataclass

from ..errors import SnapshotError
from . import contents
from .files import Files
from .shortage import told_of
from .trees import FOLDER, READ, link, opened, parent_of, read_link, set_attributes, walk


@dataclass(frozen=True, slots=True)
class Copied:
    """Hold how many bytes were copied, and how many pipes, sockets and devices were not."""

    size: int
    left_out: int


def copy(source: Files, target: Files, *, most: int) -> Copied:
    """Make an empty tree the same as another, hard links and holes included. Raise SnapshotError if that has more than `most` bytes."""
    try:
        with told_of("a copy of the files", SnapshotError), source.as_guest() as here, target.as_guest() as there:
            return _Copying(here, there, target.origins).copy_all(most)
    except OSError as error:
        raise SnapshotError(f"the session's files cannot be copied: {error.strerror}") from None


class _Copying:
    """Copy one tree into another."""

    def __init__(self, here: int, there: int, origins: dict[int, int]) -> None:
        self._here = here
        self._there = there
        self._origins = origins
        self._linked: dict[int, str] = {}  # where the first name of an inode with several has been copied to

    def copy_all(self, most: int) -> Copied:
        entries = [*walk(self._here)]
        size = sum({status.st_ino: status.st_size for _, status in entries if stat.S_ISREG(status.st_mode)}.values())
        if size > most:
            raise SnapshotError(
                f"the files have {size >> 20} MB, a checkpoint keeps at most {most >> 20} MB: delete some, or raise CheckpointMegabytes"
            )
        left_out = sum(not self._copy_one(path, status) for path, status in entries[1:])
        for path, status in reversed(entries):  # making what is in a folder has changed its times; its mode may forbid it
            if stat.S_ISDIR(status.st_mode):
                with opened(self._there, path, FOLDER) as folder:
                    set_attributes(folder, status)
        return Copied(size, left_out)

    def _copy_one(self, path: str, status: os.stat_result) -> bool:
        kind = stat.S_IFMT(status.st_mode)
        if kind not in (stat.S_IFDIR, stat.S_IFREG, stat.S_IFLNK):
            return False
        with parent_of(self._there, path) as (folder, name):
            if status.st_ino in self._linked:
                link(self._there, self._linked[status.st_ino], folder, name)
                return True
            if kind == stat.S_IFDIR:
                os.mkdir(name, 0o700, dir_fd=folder)
                self._origins[os.stat(name, dir_fd=folder, follow_symlinks=False).st_ino] = status.st_ino
            elif kind == stat.S_IFLNK:
                os.symlink(read_link(self._here, path), name, dir_fd=folder)
            else:
                with opened(self._here, path, READ) as source:
                    self._origins[contents.copy(source, folder, name, status.st_size)] = os.fstat(source).st_ino
            if status.st_nlink > 1 and kind != stat.S_IFDIR:
                self._linked[status.st_ino] = path
        return True
