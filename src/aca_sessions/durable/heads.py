"""Heads: the small records that name the lease and the saves of each owner. One compare-and-swap changes both at once.

Lease and saves are in one record on purpose. With two, a server that lost its lease between the check of the lease and the change of the
saves could still replace the saves.
"""

import asyncio
import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import InvalidArgumentError, RecordNotFoundError, SaveCorruptedError, StorageError
from .chunks import join
from .sealing import Sealer
from .store import SMALL, Store

_ATTEMPTS = 100
_OWNER = re.compile(r"[0-9a-f]{16,128}")
_ID = re.compile(r"[0-9a-f]{16}-[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class Head:
    """The lease and the saves of one owner.

    Attributes:
        fence: A number that grows whenever a server takes the lease. It is never used again for this owner.
        server: The id of the server that has the lease, or None.
        expires: When the lease ends, in seconds since 1970.
        saves: The ids of the saves, the newest first.
        pinned: The ids of the saves that are kept until they are unpinned, the oldest first. The newest can be in `saves`, too.
    """

    fence: int = 0
    server: str | None = None
    expires: float = 0.0
    saves: tuple[str, ...] = ()
    pinned: tuple[str, ...] = ()


class Heads:
    """Reads and changes the heads in a store."""

    def __init__(self, store: Store, sealer: Sealer) -> None:
        self._store = store
        self._sealer = sealer

    async def read(self, owner: str) -> Head | None:
        """Return the head of an owner, or None."""
        return self._decode(owner, await self.read_raw(owner))

    async def read_raw(self, owner: str) -> bytes | None:
        """Return the stored form of a head, or None."""
        try:
            data = await join(self._store.read(_key(owner)), SMALL)
        except RecordNotFoundError:
            return None
        if data is None:
            raise SaveCorruptedError("the head of a saved session is too long: delete the saves of this session")
        return data

    async def change(self, owner: str, compute: Callable[[Head], Head | None]) -> Head:
        """Replace a head by what `compute` returns for it, and return that. None deletes it.

        Call `compute` again with the new head if another server changes it at the same time. Return the head unchanged if it stays equal.

        Args:
            owner: The owner.
            compute: A function of the current head. It gets an empty one if there is none.
        """
        for attempt in range(_ATTEMPTS):
            raw = await self.read_raw(owner)
            old = self._decode(owner, raw) or Head()
            new = compute(old)
            if new == old:
                return old
            if await self._store.swap(_key(owner), raw, None if new is None else self._encode(owner, new)):
                return new or Head()
            await asyncio.sleep(random.uniform(0, 0.002 * min(attempt, 20)))  # noqa: S311  so that servers do not collide again
        raise StorageError("a saved session is changed by too many servers at the same time: try again")

    async def delete(self, owner: str) -> Head | None:
        """Delete a head, even a damaged one. Return it if it could be read."""
        while (raw := await self.read_raw_or_damaged(owner)) is not None:
            if await self._store.swap(_key(owner), raw, None):
                try:
                    return self._decode(owner, raw)
                except StorageError:
                    return None
        return None

    async def read_raw_or_damaged(self, owner: str) -> bytes | None:
        """Return the stored form of a head. Delete it and return None if it is too long to be one."""
        try:
            return await self.read_raw(owner)
        except SaveCorruptedError:
            await self._store.delete(_key(owner))
            return None

    async def owners(self) -> list[str]:
        """Return all owners that have a head."""
        return [key.removeprefix("heads/") for key in await self._store.keys("heads")]

    def _encode(self, owner: str, head: Head) -> bytes:
        fields = {"fence": head.fence, "server": head.server, "expires": head.expires, "saves": head.saves, "pinned": head.pinned}
        return b"".join(self._sealer.seal(json.dumps(fields).encode(), _key(owner).encode()))

    def _decode(self, owner: str, raw: bytes | None) -> Head | None:
        if raw is None:
            return None
        try:
            fields = json.loads(bytes(self._sealer.open(raw, _key(owner).encode())))
            saves, pinned = (tuple(map(check_id, fields.get(name, ()))) for name in ("saves", "pinned"))
            head = Head(int(fields["fence"]), fields["server"], float(fields["expires"]), saves, pinned)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
            raise SaveCorruptedError("the head of a saved session cannot be parsed: delete the saves of this session") from None
        if head.server is not None and not isinstance(head.server, str):
            raise SaveCorruptedError("the head of a saved session has a wrong server: delete the saves of this session")
        return head


def check_owner(owner: str) -> str:
    """Validate an owner, a hash as hex digits, and return it. Raise InvalidArgumentError, without it, if it is invalid."""
    if not _OWNER.fullmatch(owner):
        raise InvalidArgumentError("an owner of saves must be 16 to 128 hex digits in lower case")
    return owner


def check_id(id: object) -> str:
    """Validate the id of a save or a blob and return it. Raise ValueError if it is invalid."""
    if not isinstance(id, str) or not _ID.fullmatch(id):
        raise ValueError("the id of a save or a blob must be two groups of 16 hex digits")
    return id


def make_id(fence: int) -> str:
    """Return a new id for a save or a blob that is written under a lease."""
    return f"{fence:016x}-{random.SystemRandom().getrandbits(64):016x}"


def fence_of(id: str) -> int:
    """Return the fence of the lease under which a save or a blob was written. Return 0 if the id is invalid."""
    return int(id[:16], 16) if _ID.fullmatch(id) else 0


def _key(owner: str) -> str:
    return f"heads/{owner}"
