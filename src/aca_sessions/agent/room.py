"""Share a number of bytes: a caller that needs more than is left waits."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Room:
    """A number of bytes that users share, in the order in which they came."""

    def __init__(self, most: int) -> None:
        """Start with all of it free."""
        self._most = self._free = most
        self._turn = asyncio.Lock()
        self._freed = asyncio.Event()

    @asynccontextmanager
    async def of(self, size: int) -> AsyncIterator[None]:
        """Hold so many bytes for the block, or all of them if there are not so many."""
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
