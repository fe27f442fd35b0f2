"""Copy a session's files from tree to tree, as the guest's user and never through its links. Blocking."""

import os
import stat
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass

from ..errors import SnapshotError
from . import contents
from .files import Files
from .memory import Allocate
from .shortage import told_of
from .trees import BLOCK, FOLDER, READ, link, opened, parent_of, read_link, set_attributes, walk

_AT_ONCE = 16  # files, of which each takes two descriptors


@dataclass(frozen=True, slots=True)
class Copied:
    """Hold how many bytes were copied, and how many pipes, sockets and devices were not."""

    size: int
    left_out: int


def copy(source: Files, target: Files, *, most: int, allocate: Allocate) -> Copied:
    """Make an empty tree the same as another, hard links and holes included. Raise SnapshotError if that has more than `most` bytes."""
    try:
        with told_of("a copy of the files", SnapshotError), source.as_guest() as here, target.as_guest() as there:
            return _Copying(here, there, target.origins, allocate).copy_all(most, target.room())
    except OSError as error:
        raise SnapshotError(f"the session's files cannot be copied: {error.strerror}") from None


class _Copying:
    """Copy one tree into another."""

    def __init__(self, here: int, there: int, origins: dict[int, int], allocate: Allocate) -> None:
        self._here = here
        self._there = there
        self._origins = origins
        self._allocate = allocate
        self._made: list[contents.Copy] = []  # but not filled yet
        self._open = ExitStack()  # both ends of those
        self._linked: dict[int, str] = {}  # where the first name of an inode with several has been copied to

    def copy_all(self, most: int, room: int) -> Copied:
        entries = [*walk(self._here)]
        files = {status.st_ino: status for _, status in entries if stat.S_ISREG(status.st_mode)}.values()
        size, space = sum(status.st_size for status in files), sum(status.st_blocks * BLOCK for status in files)
        if size > most:
            raise SnapshotError(
                f"the files have {size >> 20} MB, a checkpoint keeps at most {most >> 20} MB: delete some, or raise CheckpointMegabytes"
            )
        if space > room:
            raise SnapshotError(
                f"the files take {space >> 20} MB, and there is room for {max(room, 0) >> 20} MB more in a session, its branches and its "
                "checkpoints together: delete files or variables, close branches, or remove checkpoints"
            )
        left_out = sum(self._copy(entries[start : start + _AT_ONCE]) for start in range(1, len(entries), _AT_ONCE))
        for path, status in reversed(entries):  # making what is in a folder has changed its times; its mode may forbid it
            if stat.S_ISDIR(status.st_mode):
                with opened(self._there, path, FOLDER) as folder:
                    set_attributes(folder, status)
        return Copied(size, left_out)

    def _copy(self, entries: Sequence[tuple[str, os.stat_result]]) -> int:
        """Copy some entries, and return how many of them cannot be. To ask for the memory of each file alone would take twice the time."""
        with self._open:
            left_out = sum(not self._make(path, status) for path, status in entries)
            self._allocate([part for copy in self._made for part in copy.parts])
            for copy in self._made:
                copy.fill()
            self._made.clear()
        return left_out

    def _make(self, path: str, status: os.stat_result) -> bool:
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
                source = self._open.enter_context(opened(self._here, path, READ))
                copy = self._open.enter_context(closing(contents.Copy(source, folder, name, status.st_size)))
                self._origins[copy.inode] = os.fstat(source).st_ino
                self._made.append(copy)
            if status.st_nlink > 1 and kind != stat.S_IFDIR:
                self._linked[status.st_ino] = path
        return True
