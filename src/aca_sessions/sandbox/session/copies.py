"""Copy the files of a session to another workspace, and restore a session's files from a checkpoint. All calls block.

All functions act as the guest's user, use descriptors, and never follow the guest's links.

A restore reuses the inodes of files that still exist, even if they were renamed since the checkpoint. So if the checkpoint's interpreter
has a file open, such as a log or a database, it still writes to that file after the rollback. A restore first compares all files and
reserves space. If that fails, no file is changed. Only then does it change files, and at that point nothing should fail.
"""

import errno
import itertools
import os
import secrets
import stat
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass

from ...errors import PartlyRestoredError, SnapshotError
from ...guest_text import shown_name
from ..limits.capacity import explained_shortage
from ..limits.memory import Allocate
from . import trees
from .files import HIDDEN, Files
from .trees import (
    BLOCK,
    FOLDER,
    READ,
    WRITE,
    FileCopy,
    add_rights,
    folder_of,
    link,
    open_below,
    parent_of,
    read_link,
    remove,
    set_attributes,
    set_mode,
    walk,
)

_AT_ONCE = 16  # files, each of which has two descriptors open


@dataclass(frozen=True, slots=True)
class CopyResult:
    """The result of `copy`: how many bytes were copied, and how many pipes, sockets and devices were left out."""

    size: int
    left_out: int


def copy(source: Files, target: Files, *, most: int, allocate: Allocate) -> CopyResult:
    """Copy all files of `source` into `target`, an empty workspace. Keep hard links, and holes (unallocated parts of sparse files).

    Raise SnapshotError if the files have more than `most` bytes, if the session has too little memory left for them, or if they cannot
    be copied. `allocate` is called before content is written, so that the kernel charges the session for the memory.
    """
    try:
        with explained_shortage("a copy of the files", SnapshotError), source.as_guest() as here, target.as_guest() as there:
            return _CopyJob(here, there, target.origins, allocate).copy_all(most, target.room())
    except OSError as error:
        raise SnapshotError(
            f"cannot copy the session's files for a checkpoint or branch: {error.strerror}"
        ) from None  # unchained: the cause would name files of the guest


class _CopyJob:
    def __init__(self, here: int, there: int, origins: dict[int, int], allocate: Allocate) -> None:
        self._here = here
        self._there = there
        self._origins = origins
        self._allocate = allocate
        self._made: list[FileCopy] = []  # files that are made but not filled yet
        self._open = ExitStack()  # closes both descriptors of each of them
        self._linked: dict[int, str] = {}  # of each inode with several names: the path of the first copied one

    def copy_all(self, most: int, room: int) -> CopyResult:
        entries = [*walk(self._here)]
        files = {status.st_ino: status for _, status in entries if stat.S_ISREG(status.st_mode)}.values()
        size, space = sum(status.st_size for status in files), sum(status.st_blocks * BLOCK for status in files)
        if size > most:
            raise SnapshotError(
                f"the files have {size >> 20} MB, a checkpoint keeps at most {most >> 20} MB: delete some, or raise "
                "ACASessions:Sandbox:Limits:CheckpointMegabytes"
            )
        if space > room:
            raise SnapshotError(
                f"the files take {space >> 20} MB, and there is room for {max(room, 0) >> 20} MB more in a session, its branches and its "
                "checkpoints together: delete files or variables, close branches, or remove checkpoints"
            )
        left_out = sum(self._copy(entries[start : start + _AT_ONCE]) for start in range(1, len(entries), _AT_ONCE))
        for path, status in reversed(entries):  # last: making entries changes a folder's times, and its mode may forbid making them
            if stat.S_ISDIR(status.st_mode):
                with open_below(self._there, path, FOLDER) as folder:
                    set_attributes(folder, status)
        return CopyResult(size, left_out)

    def _copy(self, entries: Sequence[tuple[str, os.stat_result]]) -> int:
        """Copy some entries into the target. Return how many of them were left out because they are pipes, sockets or devices."""
        with self._open:
            left_out = sum(not self._make(path, status) for path, status in entries)
            # Memory is allocated for all of them at once: one by one would take twice the time.
            self._allocate([part for copy in self._made for part in copy.parts])
            for copy in self._made:
                copy.fill()
            self._made.clear()
        return left_out

    def _make(self, path: str, status: os.stat_result) -> bool:
        """Make a copy of the file, folder or link at `path`, and return True. For a pipe, socket or device, make nothing and return False.

        The copy of a file stays empty until `_copy` fills it.
        """
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
                source = self._open.enter_context(open_below(self._here, path, READ))
                copy = self._open.enter_context(closing(FileCopy(source, folder, name, status.st_size)))
                self._origins[copy.inode] = os.fstat(source).st_ino
                self._made.append(copy)
            if status.st_nlink > 1 and kind != stat.S_IFDIR:
                self._linked[status.st_ino] = path
        return True


_MAX_PATH = 4096  # bytes, with the NUL at the end
_MOST_NAMED = 20  # files in `deleted_open_files`; the others are counted


def restore(checkpoint: Files, live: Files, allocate: Allocate) -> None:
    """Make the session's files (`live`) the same as the checkpoint's. No process of the session may run meanwhile.

    Raise SnapshotError if that is impossible. Then no live file is changed. Raise PartlyRestoredError if only some files were restored,
    which can happen only if a process writes at the same time. `allocate` is called before content is written, so that the kernel charges
    the session for the memory.
    """
    try:
        with checkpoint.as_guest() as source, live.as_guest() as target:
            restoration = _Restoration(source, target, checkpoint.origins, allocate)
            restoration.prepare()
            restoration.commit()
    except OSError as error:
        raise SnapshotError(
            f"cannot restore the files, which are unchanged: {_reason(error)}"
        ) from None  # unchained: the cause would name files of the guest


def deleted_open_files(pid: int, live: Files) -> tuple[str, ...] | None:
    """Return the former paths of deleted files that a process still has open, relative to /mnt/data and sorted.

    `pid` is the pid on this host. If there are more than 20 paths, the last entry is a text such as "and 5 more".
    Return None if this host may not read which files the process has open.
    """
    try:
        with live.as_guest() as top:
            device = os.fstat(top).st_dev
        # Root with CAP_SYS_PTRACE may look, and so may an ordinary user, who owns the user namespace that all sessions are in. Root that
        # acts as the guest may not: the /proc entries of a process that is not dumpable belong to root.
        found = {name for entry in os.listdir(f"/proc/{pid}/fd") if (name := _deleted_name(f"/proc/{pid}/fd/{entry}", device))}
    except OSError:
        return None
    more = len(found) - _MOST_NAMED
    return (*sorted(found)[:_MOST_NAMED], *([f"and {more} more"] if more > 0 else []))


def _deleted_name(entry: str, device: int) -> str | None:
    try:
        status = os.stat(entry)
        path = os.readlink(entry)
    except FileNotFoundError:
        return None  # it was closed meanwhile
    if status.st_dev != device or status.st_nlink:
        return None
    name = path.removesuffix(" (deleted)").removeprefix("/mnt/data").lstrip("/")
    return shown_name(name)


class _Restoration:
    """One restore of a workspace: call `prepare`, then `commit`.

    `_wanted` and `_found` map the paths of files, folders and links to their status. `_wanted` has the paths of the checkpoint, and
    `_found` has the paths of the workspace before the restore.
    """

    def __init__(self, source: int, target: int, origins: dict[int, int], allocate: Allocate) -> None:
        self._source = source
        self._target = target
        self._origins = origins
        self._allocate = allocate
        self._wanted: dict[str, os.stat_result] = {}
        self._found: dict[str, os.stat_result] = {}
        self._inodes: dict[int, int] = {}  # by wanted inode: the found inode that becomes it
        self._path_now: dict[int, str] = {}  # by wanted inode: a path that leads to its file by now
        self._kept = {""}  # paths that stay names of the same inodes
        self._moved: list[str] = []  # wanted paths whose inode is at another path now
        self._changed: dict[str, bool] = {}  # files whose attributes differ, and whether their contents differ too
        self._made: dict[str, str] = {}  # hidden names in the top folder, by the paths that they will have
        self._hidden = f"{HIDDEN}{secrets.token_hex(8)}-"
        self._numbers = itertools.count()
        self._is_tight = False  # whether there is only space after other files were removed
        self._undo = ExitStack()
        self._failures: list[Exception] = []

    def prepare(self) -> None:
        """Decide what to change, and reserve the space for it. On failure undo all, and raise OSError or SnapshotError.

        If there is not enough space until other files are removed, reserve nothing. Then `commit` removes those files first.
        """
        with self._undo:
            self._read_trees()
            self._match()
            self._locate()
            self._compare()
            try:
                self._make_all()
            except OSError as error:
                if error.errno != errno.ENOSPC or not self._fits():
                    raise
                self._is_tight = True  # there is no space beside what will be removed, but there is in its place
            self._undo.pop_all()

    def commit(self) -> None:
        """Make all changes that `prepare` decided on. If some fail, still make the others, and then raise PartlyRestoredError."""
        doomed = [path for path in self._found if path not in self._kept and folder_of(path) in self._kept]
        if self._is_tight:
            self._truncate_doomed()
        self._try_each(self._move_aside, self._moved)
        self._try_each(self._discard, doomed)
        if self._is_tight:
            self._try_each(self._trim, self._reused_files())
            self._try_each(self._make, self._new_paths())
        self._try_each(self._move_into_place, self._wanted)
        self._try_each(self._rewrite, self._changed)
        self._try_each(self._set_folder_attributes, [path for path, status in self._wanted.items() if stat.S_ISDIR(status.st_mode)][::-1])
        self._try_each(self._discard, [*self._made.values()])
        if self._failures:
            raise PartlyRestoredError(
                f"only a part of the files was restored: {_reason(self._failures[0])}. Check the files, or roll back again"
            )

    def _try_each(self, do: Callable[[str], None], paths: Iterable[str]) -> None:
        for path in paths:
            try:
                do(path)
            except (OSError, SnapshotError) as error:
                self._failures.append(error)

    def _read_trees(self) -> None:
        for path, status in walk(self._source):
            self._wanted[path] = status
            if stat.S_IFMT(status.st_mode) not in (stat.S_IFDIR, stat.S_IFREG, stat.S_IFLNK):
                raise SnapshotError("the checkpoint holds a pipe, socket or device, so the files are unchanged: roll back to another one")
        top = os.fstat(self._target)
        self._undo.callback(os.utime, self._target, ns=(top.st_atime_ns, top.st_mtime_ns))
        for path, status in walk(self._target, lambda folder: not self._wants_folder(folder)):
            self._found[path] = status
            if stat.S_ISDIR(status.st_mode) and self._wants_folder(path):
                self._add_owner_rights(path, stat.S_IRWXU)

    def _wants_folder(self, path: str) -> bool:
        return path in self._wanted and stat.S_ISDIR(self._wanted[path].st_mode)

    def _match(self) -> None:
        """Choose for each file, folder and link an existing inode to reuse, or none if it must be made anew.

        Prefer the inode from which the checkpoint's copy was made, if it still exists and is of the same kind. The second choice is the
        inode that is at the same path now.
        """
        # With paths alone, a log that was open at the checkpoint and was rotated since would become the file that it was renamed to.
        places = self._found_paths()
        for path, status in self._wanted.items():
            place = places.get(self._origins.get(status.st_ino, -1))
            if place is not None and self._can_keep_inode(path, place):
                self._inodes[status.st_ino] = self._found[place].st_ino
        taken = {*self._inodes.values()}
        for path, status in self._wanted.items():
            if status.st_ino not in self._inodes and self._can_keep_inode(path, path) and self._found[path].st_ino not in taken:
                self._inodes[status.st_ino] = self._found[path].st_ino
                taken.add(self._found[path].st_ino)

    def _found_paths(self) -> dict[int, str]:
        """Return the inodes of the workspace before the restore: a dict from each inode's number to one path that leads to the inode.

        Leave out paths that are too long for the kernel.
        """
        return {status.st_ino: path for path, status in self._found.items() if len(os.fsencode(path)) < _MAX_PATH}

    def _can_keep_inode(self, path: str, place: str) -> bool:
        wanted, found = self._wanted[path], self._found.get(place)
        if found is None or stat.S_IFMT(wanted.st_mode) != stat.S_IFMT(found.st_mode):
            return False
        return not stat.S_ISLNK(wanted.st_mode) or read_link(self._source, path) == read_link(self._target, place)

    def _locate(self) -> None:
        """Add each path whose inode is at that path already to `_kept`, and each path whose inode must be moved there to `_moved`."""
        for path, status in self._wanted.items():
            stays = path in self._found and self._found[path].st_ino == self._inodes.get(status.st_ino)
            if stays and folder_of(path) in self._kept:
                self._kept.add(path)
                self._path_now.setdefault(status.st_ino, path)
        places = self._found_paths()
        for path, status in self._wanted.items():
            if status.st_ino in self._inodes and status.st_ino not in self._path_now and not stat.S_ISDIR(status.st_mode):
                self._moved.append(path)
                self._path_now[status.st_ino] = place = places[self._inodes[status.st_ino]]
                self._add_owner_rights(folder_of(place), stat.S_IRWXU)

    def _new_paths(self) -> list[str]:
        others = {*self._kept, *self._moved}
        return [path for path in self._wanted if path not in others]

    def _reused_files(self) -> list[str]:
        """Return one path of each regular file for which `_match` has chosen an existing inode."""
        return [path for inode, path in self._first_paths().items() if inode in self._inodes]

    def _first_paths(self) -> dict[int, str]:
        return {status.st_ino: path for path, status in reversed(self._wanted.items()) if stat.S_ISREG(status.st_mode)}

    def _compare(self) -> None:
        for inode, path in self._first_paths().items():
            with open_below(self._source, path, READ) as source:  # raises before anything is changed if one cannot be read
                if inode in self._inodes:
                    self._compare_file(path, source)

    def _compare_file(self, path: str, source: int) -> None:
        wanted = self._wanted[path]
        place = self._path_now[wanted.st_ino]
        self._add_owner_rights(place, stat.S_IRUSR)
        with open_below(self._target, place, READ) as target:
            found = os.fstat(target)
            if not trees.have_equal_content(source, target):
                self._changed[path] = True
            elif (found.st_mode, found.st_mtime_ns) != (wanted.st_mode, wanted.st_mtime_ns):
                self._changed[path] = False

    def _add_owner_rights(self, path: str, rights: int) -> None:
        """Add missing rights for the owner to the mode of a file or folder, so that the restore can use it.

        Later `commit` sets the checkpoint's mode, or a failed `prepare` restores the old one.
        """
        if path not in self._found or self._found[path].st_mode & rights != rights:
            before = add_rights(self._target, path, rights)
            self._undo.callback(set_mode, self._target, path, before)

    def _make_all(self) -> None:
        """Make missing files, folders and links under temporary names, and reserve space for changed files. On failure undo all."""
        with ExitStack() as undo:
            for path, differs in self._changed.items():
                if differs:
                    self._reserve(path, undo)
            for path in self._new_paths():
                self._make(path)
                undo.callback(self._remove_made, path)
            undo.pop_all()

    def _reserve(self, path: str, undo: ExitStack) -> None:
        place = self._path_now[self._wanted[path].st_ino]
        self._add_owner_rights(place, stat.S_IRUSR | stat.S_IWUSR)
        with open_below(self._source, path, READ) as source, open_below(self._target, place, WRITE) as target:
            status = os.fstat(target)
            undo.callback(self._undo_reserve, place, trees.holes(target, status.st_size), status)
            trees.reserve(source, target, self._wanted[path].st_size, self._allocate)

    def _undo_reserve(self, place: str, holes: list[tuple[int, int]], status: os.stat_result) -> None:
        with open_below(self._target, place, WRITE) as target:
            trees.undo_reserve(target, holes, status)

    def _make(self, path: str) -> None:
        wanted, hidden = self._wanted[path], self._make_hidden_name(path)
        try:
            if stat.S_ISDIR(wanted.st_mode):
                os.mkdir(hidden, 0o700, dir_fd=self._target)
                add_rights(self._target, hidden, stat.S_IRWXU)  # an ACL inherited from the top folder may have removed some
            elif wanted.st_ino in self._path_now:
                link(self._target, self._path_now[wanted.st_ino], self._target, hidden)
            elif stat.S_ISLNK(wanted.st_mode):
                os.symlink(read_link(self._source, path), hidden, dir_fd=self._target)
            else:
                with (
                    open_below(self._source, path, READ) as source,
                    closing(FileCopy(source, self._target, hidden, wanted.st_size)) as copy,
                ):
                    self._allocate(copy.parts)
                    copy.fill()
        except BaseException:
            self._remove_made(path)
            raise
        self._path_now.setdefault(wanted.st_ino, hidden)

    def _make_hidden_name(self, path: str) -> str:
        self._made[path] = f"{self._hidden}{next(self._numbers)}"
        return self._made[path]

    def _remove_made(self, path: str) -> None:
        hidden = self._made.pop(path)
        if self._path_now.get(self._wanted[path].st_ino) == hidden:
            del self._path_now[self._wanted[path].st_ino]
        self._discard(hidden)

    def _discard(self, path: str) -> None:
        with suppress(FileNotFoundError):  # it was taken aside, or never made
            remove(self._target, path)

    def _fits(self) -> bool:
        """Return whether the checkpoint's files will fit into the workspace once the files that are there now are removed."""
        space = os.fstatvfs(self._target)
        blocks = _blocks(self._wanted) - _blocks(self._found)
        # A tmpfs counts every name as an inode.
        return blocks * BLOCK <= space.f_bfree * space.f_frsize and len(self._wanted) - len(self._found) <= space.f_ffree

    def _truncate_doomed(self) -> None:
        """Truncate the files that will be removed. This frees their space even if a process has them open."""
        # The interpreter of another checkpoint may have them open.
        staying = {*self._inodes.values()}
        for path, status in self._found.items():
            if stat.S_ISREG(status.st_mode) and status.st_ino not in staying:
                with suppress(OSError):
                    add_rights(self._target, path, stat.S_IRUSR | stat.S_IWUSR)
                    with open_below(self._target, path, WRITE) as target:
                        os.ftruncate(target, 0)

    def _move_aside(self, path: str) -> None:
        inode = self._wanted[path].st_ino
        with parent_of(self._target, self._path_now[inode]) as (folder, name):
            os.rename(name, self._make_hidden_name(path), src_dir_fd=folder, dst_dir_fd=self._target)
        self._path_now[inode] = self._made[path]

    def _trim(self, path: str) -> None:
        """Free that part of a file's space which its new content does not need, so that other files can use the space."""
        wanted = self._wanted[path]
        place = self._path_now[wanted.st_ino]
        add_rights(self._target, place, stat.S_IRUSR | stat.S_IWUSR)
        self._changed.setdefault(path, False)
        with open_below(self._source, path, READ) as source, open_below(self._target, place, WRITE) as target:
            trees.trim(source, target, wanted.st_size)

    def _move_into_place(self, path: str) -> None:
        if path in self._made:
            with parent_of(self._target, path) as (folder, name):
                os.rename(self._made[path], name, src_dir_fd=self._target, dst_dir_fd=folder)
            del self._made[path]

    def _rewrite(self, path: str) -> None:
        wanted, differs = self._wanted[path], self._changed[path]
        with open_below(self._source, path, READ) as source, open_below(self._target, path, WRITE if differs else READ) as target:
            if differs:
                trees.trim(source, target, wanted.st_size)
                trees.write_differences(source, target, wanted.st_size)
            set_attributes(target, wanted)

    def _set_folder_attributes(self, path: str) -> None:
        with open_below(self._target, path, FOLDER) as folder:
            set_attributes(folder, self._wanted[path])


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "they need more space, or more files, than the session's limits allow, so delete some that are there now"
    return str(error.strerror if isinstance(error, OSError) else error).removeprefix("openat2: ")


def _blocks(entries: dict[str, os.stat_result]) -> int:
    return sum({status.st_ino: status.st_blocks for status in entries.values()}.values())
