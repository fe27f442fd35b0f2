"""A storage in memory, for sessions that were given no storage. Its records live as long as the object."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING

from .storage import Kind, checked_name

if TYPE_CHECKING:
    from .search import Embed
    from .skill_library import SkillLibrary


class MemoryStorage:
    """Records in the memory of this process."""

    def __init__(self) -> None:
        self._records: defaultdict[Kind, dict[str, bytes]] = defaultdict(dict)
        self._locks: defaultdict[Kind, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._changes = 0

    async def read(self, kind: Kind, name: str) -> bytes | None:
        """Return a record, or None if there is none."""
        return self._records[kind].get(checked_name(name))

    async def write(self, kind: Kind, name: str, data: bytes) -> None:
        """Replace a record."""
        self._records[kind][checked_name(name)] = data
        self._changes += 1

    async def delete(self, kind: Kind, name: str) -> bool:
        """Delete a record and return whether there was one."""
        self._changes += 1
        return self._records[kind].pop(checked_name(name), None) is not None

    async def names(self, kind: Kind) -> list[str]:
        """Return the names of all records of a kind, sorted."""
        return sorted(self._records[kind])

    async def stamp(self, kind: Kind) -> str | None:
        """Return the number of writes and deletions so far."""
        return str(self._changes)

    @asynccontextmanager
    async def locked(self, kind: Kind) -> AsyncIterator[None]:
        """Lock a kind for the block, against other tasks."""
        async with self._locks[kind]:
            yield

    def path(self, kind: Kind, name: str) -> str:
        """Return a name for the record, which has neither a file nor a key."""
        return f"memory:{kind}/{name}"

    def get_skill_library(self, embed: "Embed | None" = None) -> "SkillLibrary":
        """Return the skills that are kept here, for code without `await`; `embed` makes vectors of texts, for a search by meaning."""
        from .skill_library import SkillLibrary

        return SkillLibrary(lambda: nullcontext(self), embed)
