"""The storage of skills, artifacts and dependencies, which outlive a session. A record is written whole or not at all, and read whole.

Names come from models, so they are checked here, for every caller.
"""

import asyncio
import contextlib
import os
import re
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

from ..errors import InvalidArgumentError, StorageError
from ..tasks import made_in_thread

if TYPE_CHECKING:
    from .search import Embed
    from .skill_library import SkillLibrary

Kind = Literal["skills", "uses", "artifacts", "content", "deps"]
Result = TypeVar("Result")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_. -]{0,126}[A-Za-z0-9_-]|[A-Za-z0-9_]")
_LOCK_SECONDS = 30.0
_SETTLED_NANOSECONDS = 50_000_000  # times have the grain of the kernel's clock: a younger folder can change again and keep its time


class Storage(Protocol):
    """A storage of records by kind and name."""

    async def read(self, kind: Kind, name: str) -> bytes | None:
        """Return a record, or None if there is none."""
        ...

    async def write(self, kind: Kind, name: str, data: bytes) -> None:
        """Replace a record. A concurrent reader gets the old one or the new one, whole."""
        ...

    async def delete(self, kind: Kind, name: str) -> bool:
        """Delete a record and return whether there was one."""
        ...

    async def names(self, kind: Kind) -> list[str]:
        """Return the names of all records of a kind, sorted."""
        ...

    async def stamp(self, kind: Kind) -> str | None:
        """Return a text that changes when a record of the kind is written or deleted. Return None if changes cannot be detected now."""
        ...

    def locked(self, kind: Kind) -> contextlib.AbstractAsyncContextManager[None]:
        """Lock a kind for the block, against all other callers in any process, so that a record can be read and written back."""
        ...

    def path(self, kind: Kind, name: str) -> str:
        """Return where a person finds the record."""
        ...


def checked_name(name: object) -> str:
    """Return the name. Raise InvalidArgumentError if it cannot be that of a record."""
    if not isinstance(name, str) or not _NAME.fullmatch(name) or ".." in name:
        allowed = "letters, digits, '_', '-', single '.' and spaces"
        raise InvalidArgumentError(f"a name is up to 128 {allowed}, and begins with a letter or digit")
    return name


class FileStorage:
    """A folder with a readable file for each record. Many processes can use it at the same time."""

    def __init__(self, base_path: Path | str) -> None:
        """Take the path of the folder. It is created at the first write."""
        self.base_path = Path(base_path)

    async def read(self, kind: Kind, name: str) -> bytes | None:
        """Return a record, or None if there is none."""
        return await _in_thread("read", lambda: self._read(kind, checked_name(name)))

    async def write(self, kind: Kind, name: str, data: bytes) -> None:
        """Write a record to a temporary file beside it, then rename that file to its place."""
        await _in_thread("written", lambda: self._write(kind, checked_name(name), data))

    async def delete(self, kind: Kind, name: str) -> bool:
        """Delete a record and return whether there was one."""
        return await _in_thread("deleted", lambda: self._delete(kind, checked_name(name)))

    async def names(self, kind: Kind) -> list[str]:
        """Return the names of all records of a kind, sorted."""
        return await _in_thread("listed", lambda: self._names(kind))

    async def stamp(self, kind: Kind) -> str | None:
        """Return when a file was last added to the folder or removed. Return None for 50 ms after that."""
        return await _in_thread("read", lambda: self._stamp(kind))

    @asynccontextmanager
    async def locked(self, kind: Kind) -> AsyncIterator[None]:
        """Lock a file for the block. The kernel releases the lock when the process ends. Raise StorageError after 30 s without the lock."""
        deadline = time.monotonic() + _LOCK_SECONDS
        while (lock := await _locked_in_thread(lambda: self._lock(kind))) is None:
            if time.monotonic() > deadline:
                raise StorageError(f"{kind} of the storage are locked by another process for {_LOCK_SECONDS:g} s: end that process")
            await asyncio.sleep(0.01)
        try:
            yield
        finally:
            os.close(lock)

    def path(self, kind: Kind, name: str) -> str:
        """Return the path of the file."""
        return str(self._file(kind, name))

    def get_skill_library(self, embed: "Embed | None" = None) -> "SkillLibrary":
        """Return the skills that are kept here, for code without `await`; `embed` makes vectors of texts, for a search by meaning."""
        from .skill_library import SkillLibrary

        return SkillLibrary(lambda: contextlib.nullcontext(self), embed)

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
        """Return an open file that is locked, or None if another process holds the lock."""
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


async def _locked_in_thread(lock: Callable[[], int | None]) -> int | None:
    """Lock in a thread. A lock that is acquired after the caller was cancelled is released."""
    try:
        return await made_in_thread(lock, lambda taken: None if taken is None else os.close(taken))
    except OSError as error:
        raise _storage_error("locked", error) from None


async def _in_thread(done: str, act: Callable[[], Result]) -> Result:
    try:
        return await asyncio.to_thread(act)
    except OSError as error:
        raise _storage_error(done, error) from None


def _storage_error(done: str, error: OSError) -> StorageError:
    return StorageError(f"the storage cannot be {done}: {error.strerror}; look at its folder's owner, mode and free space")
