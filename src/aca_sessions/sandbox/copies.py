"""Copies of a session's files from one workspace to another, made as the guest's user and never through the guest's links."""

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

_AT_ONCE = 16  # files, each of which has two descriptors open


@dataclass(frozen=True, slots=True)
class Copied:
    """The result of a copy: how many bytes were copied, and how many pipes, sockets and devices were left out."""

    size: int
    left_out: int


def copy(source: Files, target: Files, *, most: int, allocate: Allocate) -> Copied:
    """Copy all files into an empty workspace, hard links and holes included. Blocking.

    Raise SnapshotError if the files have more than `most` bytes, if the session has no room for them, or if they cannot be copied.

    Args:
        source: The files to copy.
        target: The files of the empty workspace.
        most: The most bytes that the files may have.
        allocate: Charges the session for the memory of the copies.
    """
    try:
        with told_of("a copy of the files", SnapshotError), source.as_guest() as here, target.as_guest() as there:
            return _Copying(here, there, target.origins, allocate).copy_all(most, target.room())
    except OSError as error:
        raise SnapshotError(f"the session's files cannot be copied: {error.strerror}") from None


class _Copying:
    def __init__(self, here: int, there: int, origins: dict[int, int], allocate: Allocate) -> None:
        self._here = here
        self._there = there
        self._origins = origins
        self._allocate = allocate
        self._made: list[contents.Copy] = []  # files that are made but not filled yet
        self._open = ExitStack()  # closes both descriptors of each of them
        self._linked: dict[int, str] = {}  # of each inode with several names: the path of the first copied one

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
        for path, status in reversed(entries):  # last: making entries changes a folder's times, and its mode may forbid making them
            if stat.S_ISDIR(status.st_mode):
                with opened(self._there, path, FOLDER) as folder:
                    set_attributes(folder, status)
        return Copied(size, left_out)

    def _copy(self, entries: Sequence[tuple[str, os.stat_result]]) -> int:
        """Copy some entries. Return how many of them were left out."""
        with self._open:
            left_out = sum(not self._make(path, status) for path, status in entries)
            # Memory is allocated for all of them at once: one by one would take twice the time.
            self._allocate([part for copy in self._made for part in copy.parts])
            for copy in self._made:
                copy.fill()
            self._made.clear()
        return left_out

    def _make(self, path: str, status: os.stat_result) -> bool:
        """Make the copy of one entry, which is still empty if it is a file. Return False if it is a pipe, socket or device."""
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
