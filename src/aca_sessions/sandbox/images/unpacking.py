"""Unpack the tar of a root file system into a folder.

The tar is not trusted. So no file is written outside the folder, devices are skipped, and set-user-id and set-group-id bits are dropped.
"""

import contextlib
import os
import shutil
import stat
import tarfile
from collections.abc import Iterator
from typing import IO, Any

from .. import syscalls
from ..syscalls import Resolve

_BENEATH = Resolve.BENEATH | Resolve.NO_LINKS | Resolve.NO_MAGIC_LINKS
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_RIGHTS = 0o777  # neither set-user-id nor set-group-id nor sticky
# Files at the top of an archive that `docker save` made, and of OCI archives.
_LAYERS = frozenset(("manifest.json", "oci-layout"))


_MOST_HEADER = 1 << 20  # bytes of headers of one member: its name, of at most 4,096, and its attributes
_MOST_ENTRIES = 2_000_000  # files, links and folders; Debian with a desktop has 300,000
_MOST_BYTES = 64 << 30
_FREE_SHARE = 2  # an image may take half of the free disk


class UnpackingError(Exception):
    """Raised for an archive that is not a root file system, that is too large, or that would write outside its folder."""


class _Allowance:
    """The number of bytes and entries that may still be unpacked. Without a limit, a tar of a few kilobytes could fill the disk."""

    def __init__(self, folder: int, most_entries: int) -> None:
        free = os.fstatvfs(folder)
        self._bytes = self._most_bytes = min(_MOST_BYTES, free.f_bavail * free.f_frsize // _FREE_SHARE)
        self._entries = self._most_entries = most_entries

    def count(self, size: int) -> None:
        """Subtract an entry of `size` bytes, before it is created. Raise UnpackingError if a limit is exceeded."""
        self._entries -= 1
        self._bytes -= size
        if self._bytes < 0:
            raise UnpackingError(
                f"it is larger than {self._most_bytes:,} bytes (64 GB, or half of the free disk): name a smaller one, or free some disk"
            )
        if self._entries < 0:
            raise UnpackingError(f"it holds more than {self._most_entries:,} files and folders: name a smaller one")


class _Headers:
    """A wrapper of a tar's stream that limits the headers of one entry to 1 MB, because tarfile reads them into memory as a whole."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._left = _MOST_HEADER

    def read(self, size: int) -> bytes:
        self._left -= size
        if self._left < 0:
            raise UnpackingError("the name or attributes of a file in it are larger than 1 MB: export a container of the image again")
        data: bytes = self._stream.read(size)
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Member(tarfile.TarInfo):
    """An entry of a tar. Reading its headers raises UnpackingError if they are larger than 1 MB (see `_Headers`)."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> "_Member":
        stream = tarfile.fileobj
        tarfile.fileobj = _Headers(stream)
        try:
            return super().fromtarfile(tarfile)
        finally:
            tarfile.fileobj = stream


def unpack(archive: IO[bytes], folder: str, *, most_entries: int = _MOST_ENTRIES) -> None:
    """Unpack a tar, which may be compressed, into an empty folder. Skip devices, and make this process's user own all files.

    Raise UnpackingError if the archive cannot be read, has more than `most_entries` files, links and folders, is larger than half of the
    free disk or 64 GB, or would write outside the folder. After an error, what was unpacked before stays.
    """
    root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        allowance = _Allowance(root, most_entries)
        with tarfile.open(fileobj=archive, mode="r|*", tarinfo=_Member) as members:
            while (member := members.next()) is not None:
                members.members.clear()  # type: ignore[attr-defined]  # tarfile would keep every member
                allowance.count(member.size if member.isreg() else 0)
                _MemberTarget(root, member.name, allowance).create(members, member)
    except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError) as error:
        raise UnpackingError(
            f"cannot read it as a tar: {error}. Name the tar of a root folder, as podman export or docker export writes it"
        ) from error
    finally:
        os.close(root)


class _MemberTarget:
    """The place where one entry of a tar is unpacked. No symbolic link is followed on the way to it."""

    def __init__(self, root: int, path: str, allowance: _Allowance) -> None:
        self._root = root
        self._path = _validated_path(path)
        self._allowance = allowance

    def create(self, members: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        """Create the file, folder or link that a tar's entry describes. Replace an earlier file or link of that name.

        Skip devices and pipes. Raise UnpackingError if the tar was made by `docker save`, or if it uses one name for a folder and for
        something else.
        """
        if self._path in _LAYERS:
            raise UnpackingError("it holds an image's layers (docker save): export a container of it instead (docker export)")
        if not self._path or not (member.isdir() or member.isreg() or member.issym() or member.islnk()):
            return
        with self._parent() as (parent, name):
            if not member.isdir():
                _remove_entry(parent, name)
            if member.isdir():
                _make_folder(parent, name, member.mode)
            elif member.issym():
                os.symlink(member.linkname, name, dir_fd=parent)
            elif member.islnk():
                self._link(member.linkname, parent, name)
            else:
                _write(members, member, parent, name)

    @contextlib.contextmanager
    def _parent(self) -> Iterator[tuple[int, str]]:
        folder, _, name = self._path.rpartition("/")
        descriptor = _open_folder(self._root, folder, self._allowance)
        try:
            yield descriptor, name
        finally:
            os.close(descriptor)

    def _link(self, target: str, parent: int, name: str) -> None:
        """Make this entry a hard link to `target`, a file that was unpacked before. Raise UnpackingError if there is no such file."""
        folder, _, file = _validated_path(target).rpartition("/")
        source = _open_folder(self._root, folder, self._allowance)
        try:
            os.link(file, name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError as error:
            raise UnpackingError(f"its hard link {self._path!r:.200} has no target in it: export a container of the image again") from error
        finally:
            os.close(source)


def _validated_path(path: str) -> str:
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in path:
        raise UnpackingError(f"its file {path!r:.200} must not lead outside its root: remove it from the tar")
    return "/".join(parts)


def _open_folder(root: int, path: str, allowance: _Allowance) -> int:
    """Open the folder `path` below the folder `root`, and return its descriptor. Create it and its parents if they do not exist yet."""
    try:
        return syscalls.openat2(root, path or ".", _FOLDER, 0, _BENEATH)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise UnpackingError(
            f"its folder {path!r:.200} must not be reached through a link: export a container of the image again"
        ) from error
    outer, _, name = path.rpartition("/")
    parent = _open_folder(root, outer, allowance)
    allowance.count(0)
    try:
        _make_folder(parent, name, 0o755)
    finally:
        os.close(parent)
    return _open_folder(root, path, allowance)


def _remove_entry(parent: int, name: str) -> None:
    """Remove the entry `name` of a folder, if it exists. Raise UnpackingError if that entry is a folder."""
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            raise _conflict_error(name)
        os.unlink(name, dir_fd=parent)


def _make_folder(parent: int, name: str, mode: int) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, dir_fd=parent)
    try:
        folder = os.open(name, _FOLDER | os.O_CLOEXEC, dir_fd=parent)
    except OSError as error:
        raise _conflict_error(name) from error
    try:
        # The owner gets all rights: otherwise an ordinary user could neither put anything into it nor remove it.
        os.fchmod(folder, mode & _RIGHTS | 0o700)
    finally:
        os.close(folder)


def _conflict_error(name: str) -> UnpackingError:
    return UnpackingError(f"its name {name!r:.200} is that of a folder and of something else: export a container of the image again")


def _write(members: tarfile.TarFile, member: tarfile.TarInfo, parent: int, name: str) -> None:
    content = members.extractfile(member)
    if content is None:
        raise UnpackingError(f"its file {member.name!r:.200} has no content: export a container of the image again")
    target = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=parent)
    with open(target, "wb") as file:
        shutil.copyfileobj(content, file, 1 << 20)
        os.fchmod(file.fileno(), member.mode & _RIGHTS | 0o400)
        file.flush()
        os.utime(file.fileno(), (member.mtime, member.mtime))  # compiled modules record the time of their sources
