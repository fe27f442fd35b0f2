"""A store in a folder. Each key is a file. No symbolic link below the folder is followed."""

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import os
import random
import secrets
import stat
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import BinaryIO, TypeVar
from urllib.parse import unquote, urlsplit

from ..errors import ConfigurationError, RecordNotFoundError, StorageError
from ..lifetime import create_in_thread, run_in_thread
from .chunks import Data, closing
from .store import LEFTOVER_SECONDS, PIECE, SMALL, ClosingStore, check_folder, check_key, check_swap, is_key, lost_content, missing_record

Result = TypeVar("Result")
_NEW, _LOCKS = ".new", ".locks"  # no part of a key begins with a dot
_READ = PIECE
_WRITTEN_AT_ONCE = 4 * PIECE  # bytes; one call in a thread for most contents
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # O_NONBLOCK: opening a pipe must not block
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_LOCK_SECONDS = 30.0
_CLEAN_SECONDS = 600.0
_ATTEMPTS = 20  # to publish a file while others delete its folder, because it is empty


class FolderStore(ClosingStore):
    """A store in a folder of this host, or in a network folder that all servers mount. Folders have mode 0700, files 0600."""

    def __init__(self, url: str) -> None:
        """Check a URL such as `file:///var/lib/sessions`. The first write creates the folder."""
        parts = urlsplit(url)
        self._base = unquote(parts.path)
        if parts.netloc or not os.path.isabs(self._base) or parts.query or parts.fragment or "\0" in self._base:
            raise ConfigurationError("the URL of a folder must be file:///absolute/path: write three slashes, and no '?' or '#'")
        self._cleaned = float("-inf")

    async def write(self, key: str, chunks: AsyncIterable[Data]) -> None:
        """Write a file: first a temporary one, which is renamed when it is whole and on the disk."""
        parts = check_key(key).split("/")
        new: _NewFile | None = None
        async with closing(chunks):
            try:
                waiting, size = list[Data](), 0
                async for chunk in chunks:
                    waiting.append(chunk)
                    size += len(chunk)
                    if size > _WRITTEN_AT_ONCE:
                        if new is None:
                            new = await _create(self._create, _NewFile.discard)
                        await _run(new.append, waiting)
                        waiting, size = [], 0
                if new is None:
                    await _run(self._replace, parts, waiting)
                else:
                    await _run(new.append, waiting)
                    await _run(self._publish, new, parts)
            finally:
                if new is not None:
                    await _run(new.discard)

    async def read(self, key: str) -> AsyncIterator[bytes]:
        """Yield the content of a file."""
        parts = check_key(key).split("/")
        descriptor, chunk = await _create(lambda: self._begin_reading(parts), lambda begun: os.close(begun[0]))  # one call for most files
        try:
            while chunk:
                yield chunk
                chunk = await _run(_read_whole, descriptor) if len(chunk) == _READ else b""
        finally:
            os.close(descriptor)

    async def size(self, key: str) -> int | None:
        """Return the length of a file, or None."""
        return await _run(self._size, check_key(key).split("/"))

    async def keys(self, folder: str = "") -> list[str]:
        """Return the keys of the files below a folder, sorted."""
        return await _run(self._keys, check_folder(folder))

    async def delete(self, key: str) -> None:
        """Delete a file, and its folders if they are empty."""
        await _run(self._delete, check_key(key).split("/"))

    async def swap(self, key: str, old: bytes | None, new: bytes | None) -> bool:
        """Replace a small file if its content is `old`. A lock file keeps others out meanwhile, also other processes."""
        parts = check_swap(key, old, new).split("/")
        deadline = time.monotonic() + _LOCK_SECONDS
        while (swapped := await _run(self._try_to_swap, parts, old, new)) is None:
            if time.monotonic() > deadline:
                raise StorageError(
                    f"cannot lock the store of saved sessions within {_LOCK_SECONDS:g} s, because another process holds the lock: "
                    "continue or end the process that is stopped"
                )
            await asyncio.sleep(random.uniform(0.001, 0.005))  # noqa: S311  not in the thread, which others need
        return swapped

    def _create(self) -> "_NewFile":
        with self._folder([_NEW], create=True) as folder:
            self._delete_leftovers(folder)
            return _NewFile(folder)

    def _publish(self, new: "_NewFile", parts: list[str]) -> None:
        new.finish()
        for attempt in range(_ATTEMPTS):
            with self._folder(parts[:-1], create=True) as folder:
                try:
                    new.move(folder, parts[-1])
                    break
                except FileNotFoundError:  # `delete` removed the folder just now, or the temporary file was taken for a leftover
                    if attempt == _ATTEMPTS - 1:
                        raise lost_content() from None

    def _open(self, parts: list[str]) -> int:
        with contextlib.ExitStack() as stack:
            try:
                folder = stack.enter_context(self._folder(parts[:-1]))
                descriptor = os.open(parts[-1], _FILE, dir_fd=folder)
            except FileNotFoundError:
                raise missing_record() from None
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise StorageError("the store has something that is not a file in the place of a record: delete it")
        return descriptor

    def _begin_reading(self, parts: list[str]) -> tuple[int, bytes]:
        descriptor = self._open(parts)
        try:
            return descriptor, _read_whole(descriptor)
        except OSError:
            os.close(descriptor)
            raise

    def _size(self, parts: list[str]) -> int | None:
        try:
            descriptor = self._open(parts)
        except RecordNotFoundError:
            return None
        try:
            return os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)

    def _keys(self, under: str) -> list[str]:
        found: list[str] = []
        waiting = [under]
        while waiting:
            parent = waiting.pop()
            with contextlib.suppress(FileNotFoundError):
                for name, is_folder in self._entries(parent):
                    key = f"{parent}/{name}" if parent else name
                    if is_key(key):  # others, such as `.new`, are not for callers
                        (waiting if is_folder else found).append(key)
        return sorted(found)

    def _entries(self, parent: str) -> list[tuple[str, bool]]:
        """Return the names of the files and folders in a folder, and whether each is a folder."""
        with self._folder(parent.split("/") if parent else []) as folder, os.scandir(folder) as entries:
            regular = [entry for entry in entries if entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False)]
            return [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in regular]

    def _delete(self, parts: list[str]) -> None:
        with contextlib.suppress(FileNotFoundError), self._folder(parts[:-1]) as folder:
            os.unlink(parts[-1], dir_fd=folder)  # without fsync, which costs milliseconds: after a power cut, the next commit deletes it
        for depth in range(len(parts) - 1, 1, -1):  # the folders `heads`, `blobs` and so on stay
            with contextlib.suppress(FileNotFoundError), self._folder(parts[: depth - 1]) as folder:
                try:
                    os.rmdir(parts[depth - 1], dir_fd=folder)
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                        raise

    def _try_to_swap(self, parts: list[str], old: bytes | None, new: bytes | None) -> bool | None:
        """Swap a value and return whether it was `old`. Return None if another process or task holds the lock."""
        with self._open_lock("/".join(parts)) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # closing the file releases it, as does the end of the process
            except BlockingIOError:
                return None
            if self._read_small(parts) != old:
                return False
            if new is not None:
                self._replace(parts, [new])
            elif old is not None:
                self._delete(parts)
                with contextlib.suppress(FileNotFoundError), self._folder(parts[:-1]) as folder:
                    os.fsync(folder)
        return True

    def _replace(self, parts: list[str], chunks: Iterable[Data]) -> None:
        file = self._create()
        try:
            file.append(chunks)
            self._publish(file, parts)
        finally:
            file.discard()

    def _read_small(self, parts: list[str]) -> bytes | None:
        try:
            descriptor = self._open(parts)
        except RecordNotFoundError:
            return None
        with open(descriptor, "rb") as file:
            return file.read(SMALL + 1)

    @contextmanager
    def _folder(self, parts: list[str], *, create: bool = False) -> Iterator[int]:
        """Open a folder below the base, part by part, so that no part can be a symbolic link. Yield its descriptor."""
        if create:
            os.makedirs(self._base, 0o700, exist_ok=True)
        folder = os.open(self._base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)  # the base itself may be a symbolic link
        try:
            for part in parts:
                inner = _open_or_create(folder, part) if create else os.open(part, _DIRECTORY, dir_fd=folder)
                os.close(folder)
                folder = inner
            yield folder
        finally:
            os.close(folder)

    def _open_lock(self, key: str) -> BinaryIO:
        """Open one of 256 lock files, which a hash of the key selects, so that there is not one for each key."""
        name = hashlib.sha256(key.encode()).hexdigest()[:2]
        with self._folder([_LOCKS], create=True) as folder:
            return open(os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder), "rb")

    def _delete_leftovers(self, folder: int) -> None:
        """Delete temporary files that nothing was written to for an hour. Look at most every ten minutes."""
        if time.monotonic() - self._cleaned < _CLEAN_SECONDS:
            return
        self._cleaned = time.monotonic()
        oldest = time.time() - LEFTOVER_SECONDS
        with os.scandir(folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # another server deletes it too
                    if entry.stat(follow_symlinks=False).st_mtime < oldest:
                        os.unlink(entry.name, dir_fd=folder)


class _NewFile:
    """A temporary file that becomes the file of a key when it is whole."""

    def __init__(self, folder: int) -> None:
        self._name = secrets.token_hex(16)
        self._file = os.open(self._name, _CREATE, 0o600, dir_fd=folder)
        try:
            self._folder = os.dup(folder)
        except OSError:
            os.close(self._file)
            raise
        self._moved = False

    def append(self, chunks: Iterable[Data]) -> None:
        for chunk in chunks:
            left = memoryview(chunk)
            while left:
                left = left[os.write(self._file, left) :]

    def finish(self) -> None:
        os.fsync(self._file)  # before the rename, or a power cut could leave the new name with an empty file

    def move(self, folder: int, name: str) -> None:
        os.rename(self._name, name, src_dir_fd=self._folder, dst_dir_fd=folder)
        self._moved = True
        os.fsync(folder)

    def discard(self) -> None:
        """Close the file. Delete it if it was not moved."""
        try:
            if not self._moved:
                with contextlib.suppress(OSError):  # then it is deleted as a leftover
                    os.unlink(self._name, dir_fd=self._folder)
        finally:
            os.close(self._folder)
            os.close(self._file)


def _read_whole(descriptor: int) -> bytes:
    """Return `_READ` bytes of a file, or less at its end."""
    data = os.read(descriptor, _READ)
    while len(data) < _READ and (more := os.read(descriptor, _READ - len(data))):
        data += more
    return data


def _open_or_create(folder: int, name: str) -> int:
    """Open a folder, or create it with mode 0700. Return its descriptor."""
    for _ in range(_ATTEMPTS):
        with contextlib.suppress(FileNotFoundError):
            return os.open(name, _DIRECTORY, dir_fd=folder)
        with contextlib.suppress(FileExistsError):  # another process created it just now
            os.mkdir(name, 0o700, dir_fd=folder)
            os.fsync(folder)
    raise lost_content()


async def _run(work: Callable[..., Result], *arguments: object) -> Result:
    try:
        return await run_in_thread(work, *arguments)
    except OSError as error:
        raise _storage_error(error) from None  # the cause has the name of the file, which is a part of the key


async def _create(make: Callable[[], Result], discard: Callable[[Result], None]) -> Result:
    try:
        return await create_in_thread(make, discard)
    except OSError as error:
        raise _storage_error(error) from None


def _storage_error(error: OSError) -> StorageError:
    reason = "a symbolic link or a file is in the place of a folder" if error.errno in (errno.ELOOP, errno.ENOTDIR) else error.strerror
    return StorageError(f"the store of saved sessions failed: {reason}. Check the owner, mode and free space of its folder")
