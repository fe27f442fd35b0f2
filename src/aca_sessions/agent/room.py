"""A limit on bytes in use: a caller that needs more than is free waits."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Room:
    """A number of bytes that callers share, in the order of their requests."""

    def __init__(self, most: int) -> None:
        self._most = self._free = most
        self._turn = asyncio.Lock()
        self._freed = asyncio.Event()

    @asynccontextmanager
    async def of(self, size: int) -> AsyncIterator[None]:
        """Reserve `size` bytes for the block, or all of them if there are fewer."""
        size = min(size, self._most)
        async with self._turn:
            while self._free < size:
                self._freed.clear()
                await self._freed.wait()
            self._free -= size
        try:
            yield
        finally:
            self._free += size
            self._freed.set()
