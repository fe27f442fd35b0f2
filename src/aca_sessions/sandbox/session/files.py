"""Access by the host to the files in a session's workspace: list, read, write and delete them, always below /mnt/data.

No call reaches a file outside /mnt/data, follows the guest's links, or opens a pipe or device. The kernel enforces this: each path is
looked up by openat2(2) below the descriptor of one folder. Each operation acts as the guest's user, so the guest's rights and limits hold
for the host as well. All calls block: make them in a worker thread.
"""

import contextlib
import errno
import mimetypes
import os
import secrets
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice

from ...models import RemoteFile
from .. import syscalls
from ..limits.memory import Allocate
from ..syscalls import Resolve
from .descriptors import Workspace

_RULES = Resolve.BENEATH | Resolve.NO_LINKS | Resolve.NO_MAGIC_LINKS | Resolve.NO_OTHER_MOUNT
_MAX_NAME = 255  # bytes
_MAX_LISTED = 10_000  # entries, after which no further folder is listed
_MAX_ENTRIES = 1 << 17  # in one folder: with some kernels a listing does not end while a guest makes files
HIDDEN = ".upload-"
_COARSE = 5  # CLOCK_REALTIME_COARSE of clock_gettime(2); Python has no name for it
_SET_BACK = 10**9  # nanoseconds; a change that is further ahead is not of this tick: the host's clock was set back
_LATEST = datetime(2999, 1, 1, tzinfo=UTC).timestamp()


class UnusableNameError(ValueError):
    """Raised if no file of a session can have the given name or folder."""


class OpenFile:
    """An open file of a session, with the version of the file when it was opened.

    `version` is an HTTP entity tag. A weak tag means that the file may have been changed while it was read, so its parts may be of two
    versions. Changes through a memory mapping are not noticed, because they do not change the file's times.
    """

    def __init__(self, files: "Files", descriptor: int) -> None:
        self._files = files
        self._descriptor = descriptor
        self._turn = threading.Lock()
        now, status = time.clock_gettime_ns(_COARSE), os.fstat(descriptor)
        self.size = status.st_size
        self._entity_tag = _entity_tag(status)
        # The kernel takes the times of files from that coarse clock. A further change in the same tick would leave the same time.
        self.is_settled = not 0 <= status.st_ctime_ns - now < _SET_BACK

    @property
    def version(self) -> str:
        """Return the entity tag of the file as it was opened.

        The tag is weak if `chunk` has noticed that the file was changed since. It is also weak if the file was changed just before it was
        opened, because another change in the same tick of the kernel's clock would leave the file's times as they are.
        """
        return self._entity_tag if self.is_settled else f"W/{self._entity_tag}"

    def chunk(self, start: int, length: int) -> bytes:
        """Return up to `length` bytes from the offset `start`. Raise FileNotFoundError after the session or this file was closed."""
        with self._files.keep_open(), self._turn:
            if self._descriptor < 0:
                raise FileNotFoundError(errno.ENOENT, "the file was closed: open it again")
            data = _read(self._descriptor, start, length)
            self.is_settled = self.is_settled and _entity_tag(os.fstat(self._descriptor)) == self._entity_tag
            return data

    def close(self) -> None:
        """Close the file."""
        self._files.close_file(self)

    def close_now(self) -> None:
        """Close the descriptor if it is open. Only `Files` may call this. Other callers use `close`."""
        with self._turn:
            descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class Files:
    """The files of one workspace, which the host lists, reads, writes and deletes."""

    def __init__(self, workspace: Workspace, room: Callable[[], int] = lambda: sys.maxsize) -> None:
        """Give access to a workspace. Close this object before `workspace.directory`. `room` returns how many more bytes may be written."""
        self._workspace = workspace
        self.room = room
        self._change = threading.Condition()
        self._at_work = 0
        self._closed = False
        self._open_files: set[OpenFile] = set()
        # If this workspace is a copy: for each of its inodes, the one it was copied from. A restore finds renamed files by these.
        self.origins: dict[int, int] = {}

    def listing(self, folder: str = "", *, recursive: bool = False) -> list[RemoteFile]:
        """List the regular files and folders in a folder, sorted by folder and name. After 10,000 entries, no further folder is read.

        `folder` is relative to /mnt/data, or an absolute path below it.
        """
        with self.as_guest():
            return sorted(self._walk(validate_folder(folder), recursive), key=lambda file: (file.directory, file.name))

    def describe(self, name: str, folder: str = "") -> RemoteFile:
        """Return the description of a regular file. Raise FileNotFoundError if the path is something else."""
        with self.as_guest():
            descriptor = self._open(_join(name, folder), os.O_RDONLY)
            try:
                return _describe(validate_name(name), validate_folder(folder), os.fstat(descriptor))
            finally:
                os.close(descriptor)

    def open(self, name: str, folder: str = "") -> OpenFile:
        """Open a regular file for reading. The caller must close it."""
        with self.as_guest():
            descriptor = self._open(_join(name, folder), os.O_RDONLY)
            file = OpenFile(self, descriptor)
            with self._change:
                self._open_files.add(file)
            return file

    def close_file(self, file: OpenFile) -> None:
        """Close an open file, and stop tracking it."""
        with self._change:
            self._open_files.discard(file)
        file.close_now()

    def write(self, name: str, chunks: Iterable[bytes], folder: str, allocate: Allocate) -> RemoteFile:
        """Write `chunks` to a file, completely or not at all. The old file remains until the new one is complete. Make missing folders.

        Raise OSError (EDQUOT) if the session has too little memory left for the file. `allocate` is called before each write, so that the
        kernel charges the session for the memory.
        """
        validate_name(name)
        with self.as_guest():
            parent = self._make_folder(validate_folder(folder))
            try:
                return self._replace(parent, name, chunks, validate_folder(folder), allocate)
            finally:
                os.close(parent)

    def delete(self, name: str, folder: str = "") -> None:
        """Delete a file, a link or an empty folder."""
        validate_name(name)
        with self.as_guest():
            parent = self._open_folder(validate_folder(folder))
            try:
                if stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                    os.rmdir(name, dir_fd=parent)
                else:
                    os.unlink(name, dir_fd=parent)
            finally:
                os.close(parent)

    def close(self) -> None:
        """Refuse further calls, wait for calls that are running, and close the files that are open for reading."""
        with self._change:
            self._closed = True
            # The caller closes the workspace's descriptor next. Its number may then name something of another session.
            self._change.wait_for(lambda: self._at_work == 0)
            # An open file would keep the memory of a session that is gone.
            while self._open_files:
                self._open_files.pop().close_now()

    def capacity(self) -> int:
        """Return the total size of the workspace in bytes, used and free together."""
        status = os.fstatvfs(self._workspace.directory)
        return status.f_blocks * status.f_frsize

    @contextmanager
    def as_guest(self) -> Iterator[int]:
        """During the `with` block, let this thread act as the guest's user on files. Give the block a descriptor of the workspace."""
        # As root it could create nothing here, since this tmpfs does not map uid 0 (EOVERFLOW). It would also ignore the guest's rights.
        with self.keep_open():
            if self._workspace.owner is None:
                yield self._workspace.directory
                return
            syscalls.set_filesystem_ids(self._workspace.owner, self._workspace.owner)
            try:
                yield self._workspace.directory
            finally:
                syscalls.set_filesystem_ids(0, 0)

    @contextmanager
    def keep_open(self) -> Iterator[None]:
        """Make `close` wait until the `with` block has ended. Raise FileNotFoundError if `close` was called already."""
        with self._change:
            if self._closed:
                raise FileNotFoundError(errno.ENOENT, "the session was ended")
            self._at_work += 1
        try:
            yield
        finally:
            with self._change:
                self._at_work -= 1
                self._change.notify_all()

    def _open(self, path: str, flags: int) -> int:
        # A pipe could hang the host, and a device could do anything.
        descriptor = syscalls.openat2(self._workspace.directory, path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW, 0, _RULES)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise FileNotFoundError(errno.ENOENT, "the path is not that of a regular file")
        return descriptor

    def _open_folder(self, folder: str) -> int:
        return syscalls.openat2(self._workspace.directory, folder or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, 0, _RULES)

    def _make_folder(self, folder: str) -> int:
        """Open a folder and return its descriptor. Make the folder, and folders above it, if they are missing."""
        descriptor, made = self._open_folder(""), ""
        for part in filter(None, folder.split("/")):
            try:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o755, dir_fd=descriptor)
            finally:
                os.close(descriptor)
            made = f"{made}/{part}".lstrip("/")
            descriptor = self._open_folder(made)
        return descriptor

    def _walk(self, folder: str, recursive: bool) -> Iterator[RemoteFile]:
        listed, pending = 0, [folder]
        while pending and listed < _MAX_LISTED:
            current = pending.pop()
            for name, status in self._entries(current, top=current == folder):
                listed += 1
                yield _describe(name, current, status)
                if recursive and stat.S_ISDIR(status.st_mode):
                    pending.append(f"{current}/{name}".lstrip("/"))

    def _entries(self, folder: str, *, top: bool) -> list[tuple[str, os.stat_result]]:
        try:
            descriptor = self._open_folder(folder)
        except OSError:
            if top:
                raise
            return []  # the guest removed it, or took away the right to read it, meanwhile
        try:
            with os.scandir(descriptor) as entries:
                some = islice(entries, _MAX_ENTRIES)
                found = [(entry.name, _status(entry)) for entry in some if not entry.name.startswith(HIDDEN)]
        finally:
            os.close(descriptor)
        return [(name, status) for name, status in found if status and stat.S_IFMT(status.st_mode) in (stat.S_IFREG, stat.S_IFDIR)]

    def _replace(self, parent: int, name: str, chunks: Iterable[bytes], folder: str, allocate: Allocate) -> RemoteFile:
        temporary = f"{HIDDEN}{secrets.token_hex(8)}"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644, dir_fd=parent)
        room, size = self.room(), 0
        try:
            for chunk in chunks:
                if size + len(chunk) > room:
                    raise OSError(
                        errno.EDQUOT,
                        "the session, its branches and its checkpoints have used up their room: delete files, or remove checkpoints",
                    )
                if chunk:
                    allocate([(descriptor, size, len(chunk))])
                _write(descriptor, chunk)
                size += len(chunk)
            status = os.fstat(descriptor)
            os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
        except BaseException:
            with contextlib.suppress(OSError):  # the guest may have deleted it, or changed the rights of its folder
                os.unlink(temporary, dir_fd=parent)
            raise
        finally:
            os.close(descriptor)
        return _describe(name, folder, status)


def validate_name(name: str) -> str:
    """Return `name` if it is a valid file name: one path component of 1 to 255 bytes. Raise UnusableNameError otherwise."""
    if not name or name in (".", "..") or "/" in name or "\0" in name or _encoded_length(name) > _MAX_NAME:
        raise UnusableNameError(
            f"a file name must be one path component of 1 to 255 bytes, without '/' and NUL, and not '.' or '..', got {name!r:.80}"
        )
    return name


def validate_folder(folder: str) -> str:
    """Return `folder` as a path relative to /mnt/data, without empty components and '.' components.

    Raise UnusableNameError for '..', for an unusable name, and for an absolute path outside /mnt/data.
    """
    parts = [part for part in folder.split("/") if part not in ("", ".")]
    if folder.startswith("/") and parts:
        if parts[:2] != ["mnt", "data"]:
            raise UnusableNameError(f"a path must be relative to /mnt/data, or begin with /mnt/data/, got {folder!r:.80}")
        del parts[:2]
    if any(part == ".." or "\0" in part or _encoded_length(part) > _MAX_NAME for part in parts):
        raise UnusableNameError(f"each part of a path must be a name of 1 to 255 bytes without NUL, and not '..', got {folder!r:.80}")
    return "/".join(parts)


def _status(entry: "os.DirEntry[str]") -> os.stat_result | None:
    try:
        return entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None  # the guest removed it meanwhile


def _encoded_length(name: str) -> int:
    try:
        return len(name.encode())
    except UnicodeEncodeError as error:
        raise UnusableNameError(f"a file name must be text without lone surrogates, got {name!r:.80}") from error


def _join(name: str, folder: str) -> str:
    return "/".join(part for part in (validate_folder(folder), validate_name(name)) if part)


def _describe(name: str, folder: str, status: os.stat_result) -> RemoteFile:
    return RemoteFile(
        name=name.encode("utf-8", "backslashreplace").decode(),
        size=status.st_size,
        modified=datetime.fromtimestamp(min(max(status.st_mtime, 0), _LATEST), UTC),  # a guest may claim any time
        directory=folder.encode("utf-8", "backslashreplace").decode(),
        is_directory=stat.S_ISDIR(status.st_mode),
        content_type=mimetypes.guess_type(name)[0] or "application/octet-stream",
    )


def _entity_tag(status: os.stat_result) -> str:
    return f'"{status.st_ino:x}-{status.st_size:x}-{status.st_mtime_ns:x}-{status.st_ctime_ns:x}"'


def _read(descriptor: int, start: int, length: int) -> bytes:
    parts = []
    while length > 0 and (data := os.pread(descriptor, min(length, 1 << 20), start)):
        parts.append(data)
        start += len(data)
        length -= len(data)
    return b"".join(parts)


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
