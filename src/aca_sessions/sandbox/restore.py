"""The restoring of a session's files from a checkpoint. It blocks.

It acts as the guest's user, by descriptors, and never follows its links.

Files keep their inodes, even those that were renamed since the checkpoint. So a file that the checkpoint's interpreter has open (a log, a
database) is still the file of that name. First everything is prepared: this may fail and changes nothing. Then it is committed, which has
no reason to fail.
"""

import errno
import itertools
import os
import secrets
import stat
from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing, suppress

from ..errors import PartlyRestoredError, SnapshotError
from ..guest_text import shown_name
from . import contents
from .contents import Copy
from .files import HIDDEN, Files
from .memory import Allocate
from .trees import (
    BLOCK,
    FOLDER,
    READ,
    WRITE,
    add_rights,
    folder_of,
    link,
    opened,
    parent_of,
    read_link,
    remove,
    set_attributes,
    set_mode,
    walk,
)

_MAX_PATH = 4096  # bytes, with the NUL at the end
_MOST_NAMED = 20  # files in `cut_off`; the others are counted


def restore(checkpoint: Files, live: Files, allocate: Allocate) -> None:
    """Make the live files the same as the checkpoint's. No process of the session may run meanwhile.

    Raise SnapshotError if that is impossible: the live files are then as they were, each with its inode. Raise PartlyRestoredError if it
    failed half-way, which takes a process that writes at the same time.

    Args:
        checkpoint: the files to copy from.
        live: the files to change.
        allocate: allocates memory for new content, charged to the session.
    """
    try:
        with checkpoint.as_guest() as source, live.as_guest() as target:
            restoration = _Restoration(source, target, checkpoint.origins, allocate)
            restoration.prepare()
            restoration.commit()
    except OSError as error:
        raise SnapshotError(f"the files cannot be put back, and are unchanged: {_reason(error)}") from None


def cut_off(pid: int, live: Files) -> tuple[str, ...] | None:
    """Return the last paths of files that a process has open and that are deleted from this workspace.

    At most 20 paths are returned, with the number of further ones. Return None if this host may not look.
    """
    try:
        with live.as_guest() as top:
            tree = os.fstat(top).st_dev
        # Root with CAP_SYS_PTRACE may look, and so may an ordinary user, who owns the user namespace that all sessions are in. Root that
        # acts as the guest may not: the /proc entries of a process that is not dumpable belong to root.
        found = {name for entry in os.listdir(f"/proc/{pid}/fd") if (name := _deleted_name(f"/proc/{pid}/fd/{entry}", tree))}
    except OSError:
        return None
    more = len(found) - _MOST_NAMED
    return (*sorted(found)[:_MOST_NAMED], *([f"and {more} more"] if more > 0 else []))


def _deleted_name(entry: str, tree: int) -> str | None:
    try:
        status = os.stat(entry)
        path = os.readlink(entry)
    except FileNotFoundError:
        return None  # it was closed meanwhile
    if status.st_dev != tree or status.st_nlink:
        return None
    name = path.removesuffix(" (deleted)").removeprefix("/mnt/data").lstrip("/")
    return shown_name(name)


class _Restoration:
    """One restore of a workspace. `_wanted` is what the checkpoint has, and `_found` what is there now, each by path."""

    def __init__(self, source: int, target: int, origins: dict[int, int], allocate: Allocate) -> None:
        self._source = source
        self._target = target
        self._origins = origins
        self._allocate = allocate
        self._wanted: dict[str, os.stat_result] = {}
        self._found: dict[str, os.stat_result] = {}
        self._inodes: dict[int, int] = {}  # by wanted inode: the found inode that becomes it
        self._at: dict[int, str] = {}  # by wanted inode: a path that leads to its file by now
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
        """Decide what to do, and take the space for it. On failure undo that, and raise OSError or SnapshotError."""
        with self._undo:
            self._look()
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
        """Apply everything that was decided, even if some of it fails. Raise PartlyRestoredError at the end if something did."""
        doomed = [path for path in self._found if path not in self._kept and folder_of(path) in self._kept]
        if self._is_tight:
            self._drop_contents()
        self._each(self._take_aside, self._moved)
        self._each(self._discard, doomed)
        if self._is_tight:
            self._each(self._trim, self._files())
            self._each(self._make, self._new())
        self._each(self._place, self._wanted)
        self._each(self._rewrite, self._changed)
        self._each(self._settle, [path for path, status in self._wanted.items() if stat.S_ISDIR(status.st_mode)][::-1])
        self._each(self._discard, [*self._made.values()])
        if self._failures:
            raise PartlyRestoredError(f"the files are neither as they were nor as at the checkpoint: {_reason(self._failures[0])}")

    def _each(self, do: Callable[[str], None], paths: Iterable[str]) -> None:
        """Call `do` with each path, and remember what fails."""
        for path in paths:
            try:
                do(path)
            except (OSError, SnapshotError) as error:
                self._failures.append(error)

    def _look(self) -> None:
        for path, status in walk(self._source):
            self._wanted[path] = status
            if stat.S_IFMT(status.st_mode) not in (stat.S_IFDIR, stat.S_IFREG, stat.S_IFLNK):
                raise SnapshotError("the checkpoint is damaged, and the files are unchanged: go back to another one")
        top = os.fstat(self._target)
        self._undo.callback(os.utime, self._target, ns=(top.st_atime_ns, top.st_mtime_ns))
        for path, status in walk(self._target, lambda folder: not self._wants_folder(folder)):
            self._found[path] = status
            if stat.S_ISDIR(status.st_mode) and self._wants_folder(path):
                self._open_up(path, stat.S_IRWXU)

    def _wants_folder(self, path: str) -> bool:
        return path in self._wanted and stat.S_ISDIR(self._wanted[path].st_mode)

    def _match(self) -> None:
        """Decide which found inode becomes which wanted one: the one that it was copied from, or else the one at its path."""
        # With paths alone, a log that was open at the checkpoint and was rotated since would become the file that it was renamed to.
        places = self._places()
        for path, status in self._wanted.items():
            place = places.get(self._origins.get(status.st_ino, -1))
            if place is not None and self._is_alike(path, place):
                self._inodes[status.st_ino] = self._found[place].st_ino
        taken = {*self._inodes.values()}
        for path, status in self._wanted.items():
            if status.st_ino not in self._inodes and self._is_alike(path, path) and self._found[path].st_ino not in taken:
                self._inodes[status.st_ino] = self._found[path].st_ino
                taken.add(self._found[path].st_ino)

    def _places(self) -> dict[int, str]:
        """Return the path of each found inode, without those that were moved too deep for a path."""
        return {status.st_ino: path for path, status in self._found.items() if len(os.fsencode(path)) < _MAX_PATH}

    def _is_alike(self, path: str, place: str) -> bool:
        wanted, found = self._wanted[path], self._found.get(place)
        if found is None or stat.S_IFMT(wanted.st_mode) != stat.S_IFMT(found.st_mode):
            return False
        return not stat.S_ISLNK(wanted.st_mode) or read_link(self._source, path) == read_link(self._target, place)

    def _locate(self) -> None:
        """Decide which paths keep their inode, and which get it from another path."""
        for path, status in self._wanted.items():
            stays = path in self._found and self._found[path].st_ino == self._inodes.get(status.st_ino)
            if stays and folder_of(path) in self._kept:
                self._kept.add(path)
                self._at.setdefault(status.st_ino, path)
        places = self._places()
        for path, status in self._wanted.items():
            if status.st_ino in self._inodes and status.st_ino not in self._at and not stat.S_ISDIR(status.st_mode):
                self._moved.append(path)
                self._at[status.st_ino] = place = places[self._inodes[status.st_ino]]
                self._open_up(folder_of(place), stat.S_IRWXU)

    def _new(self) -> list[str]:
        others = {*self._kept, *self._moved}
        return [path for path in self._wanted if path not in others]

    def _files(self) -> list[str]:
        """Return the first path of each wanted file that has an inode already."""
        return [path for inode, path in self._firsts().items() if inode in self._inodes]

    def _firsts(self) -> dict[int, str]:
        return {status.st_ino: path for path, status in reversed(self._wanted.items()) if stat.S_ISREG(status.st_mode)}

    def _compare(self) -> None:
        for inode, path in self._firsts().items():
            with opened(self._source, path, READ) as source:  # raises before anything is changed if one cannot be read
                if inode in self._inodes:
                    self._compare_file(path, source)

    def _compare_file(self, path: str, source: int) -> None:
        wanted = self._wanted[path]
        place = self._at[wanted.st_ino]
        self._open_up(place, stat.S_IRUSR)
        with opened(self._target, place, READ) as target:
            found = os.fstat(target)
            if not contents.equal(source, target):
                self._changed[path] = True
            elif (found.st_mode, found.st_mtime_ns) != (wanted.st_mode, wanted.st_mtime_ns):
                self._changed[path] = False

    def _open_up(self, path: str, rights: int) -> None:
        """Give the owner more rights. Commit or undo takes them away again."""
        if path not in self._found or self._found[path].st_mode & rights != rights:
            before = add_rights(self._target, path, rights)
            self._undo.callback(set_mode, self._target, path, before)

    def _make_all(self) -> None:
        """Make new entries under hidden names, and take the space for all that will be written: all of it or nothing."""
        with ExitStack() as undo:
            for path, differs in self._changed.items():
                if differs:
                    self._reserve(path, undo)
            for path in self._new():
                self._make(path)
                undo.callback(self._unmake, path)
            undo.pop_all()

    def _reserve(self, path: str, undo: ExitStack) -> None:
        place = self._at[self._wanted[path].st_ino]
        self._open_up(place, stat.S_IRUSR | stat.S_IWUSR)
        with opened(self._source, path, READ) as source, opened(self._target, place, WRITE) as target:
            status = os.fstat(target)
            undo.callback(self._release, place, contents.holes(target, status.st_size), status)
            contents.reserve(source, target, self._wanted[path].st_size, self._allocate)

    def _release(self, place: str, holes: list[tuple[int, int]], status: os.stat_result) -> None:
        with opened(self._target, place, WRITE) as target:
            contents.release(target, holes, status)

    def _make(self, path: str) -> None:
        wanted, hidden = self._wanted[path], self._hide(path)
        try:
            if stat.S_ISDIR(wanted.st_mode):
                os.mkdir(hidden, 0o700, dir_fd=self._target)
                add_rights(self._target, hidden, stat.S_IRWXU)  # an ACL inherited from the top folder may have removed some
            elif wanted.st_ino in self._at:
                link(self._target, self._at[wanted.st_ino], self._target, hidden)
            elif stat.S_ISLNK(wanted.st_mode):
                os.symlink(read_link(self._source, path), hidden, dir_fd=self._target)
            else:
                with opened(self._source, path, READ) as source, closing(Copy(source, self._target, hidden, wanted.st_size)) as copy:
                    self._allocate(copy.parts)
                    copy.fill()
        except BaseException:
            self._unmake(path)
            raise
        self._at.setdefault(wanted.st_ino, hidden)

    def _hide(self, path: str) -> str:
        self._made[path] = f"{self._hidden}{next(self._numbers)}"
        return self._made[path]

    def _unmake(self, path: str) -> None:
        hidden = self._made.pop(path)
        if self._at.get(self._wanted[path].st_ino) == hidden:
            del self._at[self._wanted[path].st_ino]
        self._discard(hidden)

    def _discard(self, path: str) -> None:
        with suppress(FileNotFoundError):  # it was taken aside, or never made
            remove(self._target, path)

    def _fits(self) -> bool:
        """Return whether the wanted files fit into the limits once others are removed."""
        space = os.fstatvfs(self._target)
        blocks = _blocks(self._wanted) - _blocks(self._found)
        # A tmpfs counts every name as an inode.
        return blocks * BLOCK <= space.f_bfree * space.f_frsize and len(self._wanted) - len(self._found) <= space.f_ffree

    def _drop_contents(self) -> None:
        """Truncate the files that will be removed."""
        # Otherwise those that another checkpoint's interpreter has open would keep their space.
        staying = {*self._inodes.values()}
        for path, status in self._found.items():
            if stat.S_ISREG(status.st_mode) and status.st_ino not in staying:
                with suppress(OSError):
                    add_rights(self._target, path, stat.S_IRUSR | stat.S_IWUSR)
                    with opened(self._target, path, WRITE) as target:
                        os.ftruncate(target, 0)

    def _take_aside(self, path: str) -> None:
        inode = self._wanted[path].st_ino
        with parent_of(self._target, self._at[inode]) as (folder, name):
            os.rename(name, self._hide(path), src_dir_fd=folder, dst_dir_fd=self._target)
        self._at[inode] = self._made[path]

    def _trim(self, path: str) -> None:
        """Remove unwanted content from a file, so that wanted content can have its space."""
        wanted = self._wanted[path]
        place = self._at[wanted.st_ino]
        add_rights(self._target, place, stat.S_IRUSR | stat.S_IWUSR)
        self._changed.setdefault(path, False)
        with opened(self._source, path, READ) as source, opened(self._target, place, WRITE) as target:
            contents.trim(source, target, wanted.st_size)

    def _place(self, path: str) -> None:
        if path in self._made:
            with parent_of(self._target, path) as (folder, name):
                os.rename(self._made[path], name, src_dir_fd=self._target, dst_dir_fd=folder)
            del self._made[path]

    def _rewrite(self, path: str) -> None:
        wanted, differs = self._wanted[path], self._changed[path]
        with opened(self._source, path, READ) as source, opened(self._target, path, WRITE if differs else READ) as target:
            if differs:
                contents.trim(source, target, wanted.st_size)
                contents.write(source, target, wanted.st_size)
            set_attributes(target, wanted)

    def _settle(self, path: str) -> None:
        with opened(self._target, path, FOLDER) as folder:
            set_attributes(folder, self._wanted[path])


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "they need more space, or more files, than the session's limits allow"
    return str(error.strerror if isinstance(error, OSError) else error).removeprefix("openat2: ")


def _blocks(tree: dict[str, os.stat_result]) -> int:
    return sum({status.st_ino: status.st_blocks for status in tree.values()}.values())
