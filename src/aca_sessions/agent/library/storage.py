"""Storages of skills, artifacts and dependencies. A reader never gets a half-written record. Names are checked: AI models choose them."""

import asyncio
import contextlib
import os
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

from ...errors import InvalidArgumentError, StorageError
from ...lifetime import create_in_thread

if TYPE_CHECKING:
    from .search import Embed
    from .skills import SkillLibrary

Kind = Literal["skills", "uses", "artifacts", "content", "deps"]
Result = TypeVar("Result")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_. -]{0,126}[A-Za-z0-9_-]|[A-Za-z0-9_]")
_LOCK_SECONDS = 30.0
_SETTLED_NANOSECONDS = 50_000_000  # times have the grain of the kernel's clock: a younger folder can change again and keep its time


class Storage(Protocol):
    """The interface of a storage of records, such as a folder or Redis. Each record has a name, and a kind such as skills or artifacts."""

    async def read(self, kind: Kind, name: str) -> bytes | None:
        """Return the data of a record, or None if there is no such record."""
        ...

    async def write(self, kind: Kind, name: str, data: bytes) -> None:
        """Write a record, replacing an earlier one of the same name. A concurrent reader gets the whole old or the whole new data."""
        ...

    async def delete(self, kind: Kind, name: str) -> bool:
        """Delete a record. Return whether it existed."""
        ...

    async def names(self, kind: Kind) -> list[str]:
        """Return the names of all records of a kind, sorted."""
        ...

    async def stamp(self, kind: Kind) -> str | None:
        """Return a text that changes when a record of the kind is written or deleted.

        Return None if changes cannot be detected now; the caller must then read all records again.
        """
        ...

    def locked(self, kind: Kind) -> contextlib.AbstractAsyncContextManager[None]:
        """Lock the records of a kind during a `with` block. Others that lock the same kind wait, also in other processes.

        Use this to read a record and then change it.
        """
        ...

    def path(self, kind: Kind, name: str) -> str:
        """Return where a record is kept, for example the path of its file, to show to people."""
        ...


def check_name(name: object) -> str:
    """Validate a record's name and return it. Raise InvalidArgumentError if it is invalid."""
    if not isinstance(name, str) or not _NAME.fullmatch(name) or ".." in name:
        allowed = "letters, digits, '_', '-', single '.' and spaces, begin with a letter, digit or '_', and not end with '.' or a space"
        raise InvalidArgumentError(f"a name must have up to 128 {allowed}, got {str(name)[:80]!r}")
    return name


class FileStorage:
    """A storage in a folder, with a readable file for each record. Many processes can use it at the same time.

    Without fcntl, as on Windows, only one process may write at a time, because nothing is locked.

    Attributes:
        base_path: The folder.
    """

    def __init__(self, base_path: Path | str) -> None:
        """Store the path of the folder. The first write creates the folder."""
        self.base_path = Path(base_path)

    async def read(self, kind: Kind, name: str) -> bytes | None:
        """Return the content of a record's file, or None if there is no such file."""
        return await _run_in_thread("read", lambda: self._read(kind, check_name(name)))

    async def write(self, kind: Kind, name: str, data: bytes) -> None:
        """Write a record's file. A concurrent reader gets the whole old or the whole new content.

        The data is written to a temporary file in the same folder, which is then renamed to the record's file.

        Args:
            kind: The kind of the record.
            name: The name of the record.
            data: The content.
        """
        await _run_in_thread("written", lambda: self._write(kind, check_name(name), data))

    async def delete(self, kind: Kind, name: str) -> bool:
        """Delete the file of a record. Return whether it existed."""
        return await _run_in_thread("deleted", lambda: self._delete(kind, check_name(name)))

    async def names(self, kind: Kind) -> list[str]:
        """Return the names of all records of a kind, sorted."""
        return await _run_in_thread("listed", lambda: self._names(kind))

    async def stamp(self, kind: Kind) -> str | None:
        """Return the time when a record of a kind was last added, replaced or deleted, as text. Return "none" if the kind has no folder.

        Return None in the first 50 ms after a change, because a second change could get the same time.
        """
        return await _run_in_thread("read", lambda: self._stamp(kind))

    @asynccontextmanager
    async def locked(self, kind: Kind) -> AsyncIterator[None]:
        """Lock the records of a kind during a `with` block, by a lock file. Raise StorageError if the lock is not free within 30 s.

        The kernel releases the lock if the process that holds it ends. Without fcntl, as on Windows, nothing is locked.
        """
        deadline = time.monotonic() + _LOCK_SECONDS
        while (lock := await _lock_in_thread(lambda: self._lock(kind))) is None:
            if time.monotonic() > deadline:
                raise StorageError(
                    f"cannot lock the storage of {kind} within {_LOCK_SECONDS:g} s, because another process uses it: try again or end it"
                )
            await asyncio.sleep(0.01)
        try:
            yield
        finally:
            os.close(lock)

    def path(self, kind: Kind, name: str) -> str:
        """Return the path of the record's file, whether it exists or not."""
        return str(self._file(kind, name))

    def get_skill_library(self, embed: "Embed | None" = None) -> "SkillLibrary":
        """Return an object to list, search, add and remove the skills in this storage without `await`.

        `embed` is a function that returns a vector for each text, so that searches compare meanings. By default searches compare words.
        """
        from .skills import SkillLibrary

        return SkillLibrary(lambda: nullcontext(self), embed)

    def _file(self, kind: Kind, name: str) -> Path:
        return self.base_path / kind / (f"{name}.py" if kind == "skills" else name)

    def _read(self, kind: Kind, name: str) -> bytes | None:
        try:
            return self._file(kind, name).read_bytes()
        except FileNotFoundError:
            return None

    def _write(self, kind: Kind, name: str, data: bytes) -> None:
        file = self._file(kind, name)
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=".new-", dir=file.parent)
        try:
            with os.fdopen(descriptor, "wb") as written:
                written.write(data)
                written.flush()
                os.fsync(descriptor)
            os.replace(temporary, file)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise

    def _delete(self, kind: Kind, name: str) -> bool:
        try:
            self._file(kind, name).unlink()
        except FileNotFoundError:
            return False
        return True

    def _names(self, kind: Kind) -> list[str]:
        try:
            found = [entry.name for entry in os.scandir(self.base_path / kind) if entry.is_file()]
        except FileNotFoundError:
            return []
        if kind == "skills":
            found = [name.removesuffix(".py") for name in found if name.endswith(".py")]
        return sorted(name for name in found if _NAME.fullmatch(name))

    def _stamp(self, kind: Kind) -> str | None:
        try:
            changed = os.stat(self.base_path / kind).st_mtime_ns
        except FileNotFoundError:
            return "none"
        return str(changed) if time.time_ns() - changed > _SETTLED_NANOSECONDS else None

    def _lock(self, kind: Kind) -> int | None:
        """Try to lock the lock file for records of one kind, such as skills, without waiting.

        Return the file's descriptor, or None if another process or task holds the lock.
        """
        self.base_path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.base_path / f".{kind}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        locked = False
        try:
            locked = _try_to_lock(descriptor)
        finally:
            if not locked:
                os.close(descriptor)
        return descriptor if locked else None


def _try_to_lock(descriptor: int) -> bool:
    try:
        import fcntl
    except ImportError:  # without fcntl, as on Windows, only one process at a time may write
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


async def _lock_in_thread(lock: Callable[[], int | None]) -> int | None:
    """Call `lock`, a function that locks a file, in a thread. Return the descriptor that it returns, or None.

    If the caller is cancelled meanwhile, close the descriptor, which releases the lock.
    """
    try:
        return await create_in_thread(lock, lambda taken: None if taken is None else os.close(taken))
    except OSError as error:
        raise _storage_error("locked", error) from error


async def _run_in_thread(participle: str, action: Callable[[], Result]) -> Result:
    try:
        return await asyncio.to_thread(action)
    except OSError as error:
        raise _storage_error(participle, error) from error


def _storage_error(participle: str, error: OSError) -> StorageError:
    return StorageError(f"the storage cannot be {participle}: {error.strerror}. Check the owner, mode and free space of its folder")


class MemoryStorage:
    """A storage in the memory of this process. Its records are lost with this object."""

    def __init__(self) -> None:
        self._records: defaultdict[Kind, dict[str, bytes]] = defaultdict(dict)
        self._locks: defaultdict[Kind, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._changes = 0

    async def read(self, kind: Kind, name: str) -> bytes | None:
        """Return the data of a record, or None if there is no such record."""
        return self._records[kind].get(check_name(name))

    async def write(self, kind: Kind, name: str, data: bytes) -> None:
        """Write a record, replacing an earlier one of the same name."""
        self._records[kind][check_name(name)] = data
        self._changes += 1

    async def delete(self, kind: Kind, name: str) -> bool:
        """Delete a record. Return whether it existed."""
        self._changes += 1
        return self._records[kind].pop(check_name(name), None) is not None

    async def names(self, kind: Kind) -> list[str]:
        """Return the names of all records of a kind, sorted."""
        return sorted(self._records[kind])

    async def stamp(self, kind: Kind) -> str | None:
        """Return the number of writes and deletions so far, of all kinds, as text."""
        return str(self._changes)

    @asynccontextmanager
    async def locked(self, kind: Kind) -> AsyncIterator[None]:
        """Lock the records of a kind during a `with` block. Other tasks of the event loop that lock the same kind wait."""
        async with self._locks[kind]:
            yield

    def path(self, kind: Kind, name: str) -> str:
        """Return a text that identifies the record, to show to people. It is not a path, because the record is only in memory."""
        return f"memory:{kind}/{name}"

    def get_skill_library(self, embed: "Embed | None" = None) -> "SkillLibrary":
        """Return an object to list, search, add and remove the skills in this storage without `await`.

        `embed` is a function that returns a vector for each text, so that searches compare meanings. By default searches compare words.
        """
        from .skills import SkillLibrary

        return SkillLibrary(lambda: nullcontext(self), embed)
