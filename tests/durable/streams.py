"""Streams for tests, and a store that fails at one of its operations."""

from collections.abc import AsyncIterable, AsyncIterator

from aca_sessions.durable.store import ClosingStore, Store
from aca_sessions.errors import StorageError

OWNER = "ab" * 16
OTHER = "cd" * 16


async def of(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def failing(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk
    raise RuntimeError("the guest died")


async def all_of(chunks: AsyncIterable[bytes]) -> bytes:
    return b"".join([chunk async for chunk in chunks])


async def contents(store: Store) -> dict[str, bytes]:
    return {key: await all_of(store.read(key)) for key in await store.keys()}


class FaultyStore(ClosingStore):
    """A real store that fails at one operation, before or after it is done, or when half of a content is written. It counts operations.

    After the fault, all operations fail, as if the process was dead, if `dies` is true.
    """

    def __init__(self, store: Store, *, fail_at: int = 0, when: str = "before", dies: bool = True) -> None:
        self._store, self._fail_at, self._when, self._dies = store, fail_at, when, dies
        self.operations = 0
        self.written: list[str] = []  # keys

    def _fails(self) -> bool:
        self.operations += 1
        return self.operations == self._fail_at or (self._dies and 0 < self._fail_at < self.operations)

    def _check(self, fails: bool, when: str) -> None:
        is_dead = self._dies and self.operations > self._fail_at
        fails_now = when == self._when or (self._when == "half" and when == "before")
        if fails and (is_dead or fails_now):
            raise StorageError("the disk is gone")

    async def write(self, key: str, chunks: AsyncIterable[bytes]) -> None:
        fails = self._fails()
        if fails and self._when == "half" and self.operations == self._fail_at:
            await self._store.write(key, self._half(chunks))
        self._check(fails, "before")
        await self._store.write(key, chunks)
        self.written.append(key)
        self._check(fails, "after")

    async def _half(self, chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
        async for chunk in chunks:
            yield chunk[: len(chunk) // 2]
            raise StorageError("the disk is gone")

    async def read(self, key: str) -> AsyncIterator[bytes]:
        fails = self._fails()
        self._check(fails, "before")
        async for chunk in self._store.read(key):
            yield chunk
        self._check(fails, "after")

    async def size(self, key: str) -> int | None:
        fails = self._fails()
        self._check(fails, "before")
        size = await self._store.size(key)
        self._check(fails, "after")
        return size

    async def keys(self, folder: str = "") -> list[str]:
        fails = self._fails()
        self._check(fails, "before")
        keys = await self._store.keys(folder)
        self._check(fails, "after")
        return keys

    async def delete(self, key: str) -> None:
        fails = self._fails()
        self._check(fails, "before")
        await self._store.delete(key)
        self._check(fails, "after")

    async def swap(self, key: str, old: bytes | None, new: bytes | None) -> bool:
        fails = self._fails()
        self._check(fails, "before")
        swapped = await self._store.swap(key, old, new)
        self._check(fails, "after")
        return swapped
