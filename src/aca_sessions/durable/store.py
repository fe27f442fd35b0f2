"""The interface of a store of byte streams and small values, and `open_store`, which opens one by its URL."""

import re
from collections.abc import AsyncIterable, AsyncIterator
from typing import Protocol, Self
from urllib.parse import urlsplit

from ..errors import ConfigurationError, InvalidArgumentError, RecordNotFoundError, StorageError, imports_of
from .chunks import Data

PIECE = 4 * 1024 * 1024  # bytes that a store sends at once, and so about what it holds in memory
LEFTOVER_SECONDS = 3600  # what a killed writer left is deleted after this time
SMALL = 64 * 1024  # bytes of a value that `swap` can change
_KEY = re.compile(r"[a-z0-9][a-z0-9-]{0,127}(/[a-z0-9][a-z0-9-]{0,127}){0,4}")
_FORMS = "file:///absolute/path, redis://host:6379, rediss://host:6379 or azure-blob://account/container/prefix"


class Store(Protocol):
    """The interface of a store. It maps keys to contents. Many processes and hosts can use it at the same time.

    A key is either written by `write` or changed by `swap`, never both. No key may be the folder of another key: `a` and `a/b` exclude
    each other.
    """

    async def write(self, key: str, chunks: AsyncIterable[Data]) -> None:
        """Write a whole content, replacing an earlier one. If it fails at any point, the key is as before.

        An error that `chunks` raises is raised here. The stream is closed in any case.
        """
        ...

    def read(self, key: str) -> AsyncIterator[bytes]:
        """Yield the content of a key in chunks. Raise RecordNotFoundError at the first one if the key is missing."""
        ...

    async def size(self, key: str) -> int | None:
        """Return the length of a content in bytes, or None if the key is missing."""
        ...

    async def keys(self, folder: str = "") -> list[str]:
        """Return the keys below a folder, such as `blobs/ab12`, sorted. Return all keys if `folder` is empty."""
        ...

    async def delete(self, key: str) -> None:
        """Delete a key. Do nothing if it is missing."""
        ...

    async def swap(self, key: str, old: bytes | None, new: bytes | None) -> bool:
        """Replace a small value by `new` if it equals `old`. Return whether it did. None is a missing key.

        If StorageError is raised, or if the connection broke meanwhile, the value may be replaced or not: read it again.
        """
        ...

    async def close(self) -> None:
        """Close the connections."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *_: object) -> None: ...


class ClosingStore:
    """The base of stores: `async with` closes them."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close nothing. A store that has connections overrides this."""


def open_store(url: str) -> Store:
    """Return the store of a URL. The first operation opens a connection, or creates the folder.

    Raise ConfigurationError if the URL is invalid, and MissingExtraError if a library is missing. No message contains the URL, because it
    may have a password.
    """
    try:
        scheme = urlsplit(url).scheme
    except ValueError:  # its message may have a part of the URL
        raise ConfigurationError(f"the URL of a store must be {_FORMS}") from None
    match scheme:
        case "file":
            from .folder_store import FolderStore

            return FolderStore(url)
        case "redis" | "rediss":
            return _open_redis(url)
        case "azure-blob":
            return _open_azure(url)
    raise ConfigurationError(f"the URL of a store must be {_FORMS}, got one that begins with {scheme[:20]!r}")


def _open_redis(url: str) -> Store:
    with imports_of("redis"):
        from .redis_store import RedisStore
    return RedisStore(url)


def _open_azure(url: str) -> Store:
    with imports_of("azure-blob"):
        from .azure_store import AzureStore
    return AzureStore(url)


def is_key(key: str) -> bool:
    """Return whether a text can be a key."""
    return _KEY.fullmatch(key) is not None


def check_key(key: str) -> str:
    """Validate a key and return it. Raise InvalidArgumentError, without the key, if it is invalid."""
    if not is_key(key):
        raise InvalidArgumentError("a key of a store must have one to five parts of the letters a-z, digits and '-', with '/' between them")
    return key


def check_folder(folder: str) -> str:
    """Validate the folder of keys, which can be empty, and return it."""
    return check_key(folder) if folder else ""


def check_swap(key: str, *values: bytes | None) -> str:
    """Validate the arguments of `swap` and return the key."""
    if any(value is not None and len(value) > SMALL for value in values):
        raise InvalidArgumentError(f"a value to swap must be at most {SMALL} bytes")
    return check_key(key)


def missing_record() -> RecordNotFoundError:
    """Return the error for a key that is not there."""
    return RecordNotFoundError("the store has no such record: it was deleted, or a newer save has replaced it")


def lost_content() -> StorageError:
    """Return the error for a content that was deleted while it was written or read."""
    return StorageError("a record was deleted while it was written or read: try again")
