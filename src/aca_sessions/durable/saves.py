"""The saves of sessions. An owner is a session, named by a hash. The two newest saves of each owner are kept, and those that are pinned.

A store has `heads/OWNER` (see `heads`), `saves/OWNER/ID` for each save, which has its manifest and the list of its blobs, and
`blobs/OWNER/ID` for their contents. An id begins with the fence of the lease under which it was written. The rest is random: a hash of the
content would show what a session has to everyone who can list the store. Equal contents of the kept saves are still stored once, because
saves record the hashes.
"""

import asyncio
import contextlib
import hashlib
import json
import logging
import time
from base64 import b64decode, b64encode
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Self

from ..errors import FencedError, InvalidArgumentError, RecordNotFoundError, SaveCorruptedError, SaveTooLargeError, StorageError
from ..lifetime import log_failure
from .chunks import Data, compute, join, stream
from .heads import Head, Heads, check_id, check_owner, fence_of, make_id
from .sealing import Sealer
from .store import Store

_logger = logging.getLogger("aca_sessions")
_KEPT = 2
_FENCE_STEP = 1 << 20  # about a millisecond: positions in ledgers are made of fences, and need room between two of them
_MANIFEST_BYTES = 4 * 1024 * 1024
_RECORD_BYTES = 4 * _MANIFEST_BYTES
_SERVER_LENGTH = 256
_ADDED_AT_ONCE = 3  # contents of one save that are hashed and written at the same time
_READ_AHEAD = 2
_AT_ONCE = 8  # records that are read at the same time to list all owners


@dataclass(frozen=True, slots=True)
class Blob:
    """A content of a save. `sha256` and `size` are those of the plain content. A small one has no id: the save itself has its `data`."""

    sha256: str
    size: int
    id: str = ""
    data: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class Save:
    """A whole save of a session.

    Attributes:
        owner: The owner.
        id: The id of this version.
        created: When it was committed.
        manifest: What the caller gave to `commit`.
        blobs: The contents, by their names.
    """

    owner: str
    id: str
    created: datetime
    manifest: dict[str, Any]
    blobs: Mapping[str, Blob]

    @property
    def size(self) -> int:
        """The number of bytes of all contents."""
        return sum(blob.size for blob in self.blobs.values())


@dataclass(frozen=True, slots=True)
class Lease:
    """The right of one server to save a session. `fence` is larger than that of each earlier lease.

    `has_pinned` tells whether there may be pinned saves.
    """

    owner: str
    server: str
    fence: int
    expires: float
    has_pinned: bool = False


@dataclass(frozen=True, slots=True)
class _Base:
    """What a writer builds on: the head when it began, and those of its saves that can be read."""

    head: Head
    saves: tuple[Save, ...]
    pinned: tuple[Save, ...]


class Saves:
    """The saves of all owners in a store."""

    def __init__(self, store: Store, sealer: Sealer, *, max_bytes: int, inline_bytes: int = 48 * 1024) -> None:
        """Use a store. The caller closes it.

        Args:
            store: The store.
            sealer: Seals all that is stored.
            max_bytes: The largest size of one save: its contents and its manifest.
            inline_bytes: How many bytes of contents are in the record of a save. So a small session has no blobs, and is written at once.
        """
        self._store = store
        self._sealer = sealer
        self._heads = Heads(store, sealer)
        self._max_bytes = max_bytes
        self._inline_bytes = inline_bytes

    async def take(self, owner: str, server: str, seconds: float) -> Lease | None:
        """Take the lease of an owner for some seconds. Return None if another server has it and it has not expired.

        A server that has the lease already gets a new one, and its earlier one is fenced. Leases end by the clocks of the servers, which
        should agree within seconds. If they do not, a server may take a lease too early. Then the other server cannot save any more, but no
        save is mixed.

        Args:
            owner: The owner.
            server: The id of this server.
            seconds: How long the lease lasts.
        """
        check_owner(owner)
        if not 1 <= len(server) <= _SERVER_LENGTH:
            raise InvalidArgumentError(f"the id of a server must have 1 to {_SERVER_LENGTH} characters, got {len(server)}")
        expires = time.time() + seconds

        def compute_head(head: Head) -> Head:
            if head.server not in (None, server) and head.expires > time.time():
                return head
            # Not only `fence + 1`: `forget` deletes the head, and a number must not come back.
            return replace(head, fence=max(head.fence + _FENCE_STEP, time.time_ns()), server=server, expires=expires)

        head = await self._heads.change(owner, compute_head)
        is_taken = (head.server, head.expires) == (server, expires)
        return Lease(owner, server, head.fence, expires, bool(head.pinned)) if is_taken else None

    async def renew(self, lease: Lease, seconds: float) -> Lease:
        """Make a lease last for some seconds from now. Raise FencedError if another server has taken the session, or if it was released."""
        expires = time.time() + seconds

        def compute_head(head: Head) -> Head:
            _check_fence(head, lease.fence)
            if head.server is None:  # released meanwhile, which must not be undone
                raise FencedError("the lease of this session was released: connect again")
            return replace(head, server=lease.server, expires=expires)

        await self._heads.change(lease.owner, compute_head)
        return replace(lease, expires=expires)

    async def release(self, lease: Lease) -> None:
        """Give a lease up. Do nothing if another server has taken the session."""

        def compute_head(head: Head) -> Head | None:
            if head.fence != lease.fence:
                return head
            return replace(head, server=None, expires=0.0) if head.saves else None

        await self._heads.change(lease.owner, compute_head)

    async def begin(self, owner: str, fence: int) -> "Writer":
        """Start to save a session under the lease with this fence. Only one writer of an owner can commit at a time.

        Raise FencedError if another server has taken the session.
        """
        head = await self._heads.read(check_owner(owner)) or Head()
        _check_fence(head, fence)
        ids = {*head.saves, *head.pinned}
        found = {save.id: save for save in await asyncio.gather(*(self._read_if_whole(owner, id) for id in ids)) if save is not None}
        saves, pinned = (tuple(found[id] for id in listed if id in found) for listed in (head.saves, head.pinned))
        return Writer(self, owner, fence, _Base(head, saves, pinned))

    async def pinned(self, owner: str) -> list[Save]:
        """Return the pinned saves of an owner, the oldest first. Leave out those that cannot be read, and log how many."""
        head = await self._heads.read(check_owner(owner)) or Head()
        found = await asyncio.gather(*(self._read_if_whole(owner, id) for id in head.pinned))
        if unreadable := found.count(None):
            _logger.warning("%d durable checkpoints are left out, because they cannot be read", unreadable)
        return [save for save in found if save is not None]

    async def unpin(self, owner: str, fence: int, id: str) -> None:
        """Keep a pinned save no longer, and delete it unless it is one of the two newest. Do nothing if it is not pinned.

        No other save of the owner may be written at the same time. Raise FencedError if another server has taken the session.
        """
        base = (await self.begin(owner, fence)).base

        def compute_head(head: Head) -> Head:
            _check_fence(head, fence)
            return replace(head, pinned=tuple(one for one in head.pinned if one != id))

        head = await self._heads.change(owner, compute_head)
        kept = _ids_of(save for save in (*base.saves, *base.pinned) if save.id in (*head.saves, *head.pinned))
        for dropped in base.pinned:  # after a crash here, the next commit deletes the rest
            if dropped.id == id and id not in kept:
                await self._store.delete(_save_key(owner, id))
                for blob in {blob.id for blob in dropped.blobs.values()} - {*kept, ""}:
                    await self._store.delete(_blob_key(owner, blob))

    async def newest(self, owner: str) -> Save | None:
        """Return the newest save of an owner, or None. Raise SaveCorruptedError if it was changed in the store."""
        return await self._read_version(owner, 0)

    async def older(self, owner: str) -> Save | None:
        """Return the save before the newest one of an owner, or None."""
        return await self._read_version(owner, 1)

    async def read(self, owner: str, blob: Blob) -> Data:
        """Return the verified content of a blob. Raise SaveCorruptedError if it was changed, RecordNotFoundError if it is gone."""
        key = _blob_key(check_owner(owner), blob.id)
        if not blob.id:
            return blob.data
        sealed = await join(self._store.read(key), self._sealer.sealed_length(blob.size))
        content = await compute(self._sealer.open, sealed or b"", key.encode())
        if len(content) != blob.size:
            raise SaveCorruptedError("a saved content has another length than its save says: delete the saves of this session")
        return content

    async def read_all(self, save: Save) -> AsyncIterator[Data]:
        """Yield the contents that `add_all` wrote, in their order. Read some ahead. Raise errors as `read` does."""
        reading: deque[asyncio.Task[Data]] = deque()
        try:
            for number in range(len(save.blobs) + _READ_AHEAD):
                if number < len(save.blobs):
                    reading.append(asyncio.create_task(self.read(save.owner, save.blobs[str(number)])))
                if number >= _READ_AHEAD and reading:
                    yield await reading.popleft()
        finally:
            await _cancel(reading)

    async def forget(self, owner: str) -> bool:
        """Delete all saves and the lease of an owner. Return whether there were any.

        A server that uses the session must take the lease again before it can save it. After a crash, another call deletes the rest.
        """
        found = await self._find_ids(check_owner(owner))
        head = await self._heads.delete(owner)
        newest = max([head.fence if head else 0, *(fence_of(id) for id in found.values())])
        # What a later lease writes meanwhile has a larger fence, and stays.
        await self._delete_ids(owner, kept=set(), newest=newest)
        return bool(found) or head is not None

    async def list(self) -> Sequence[Save]:
        """Return the newest save of each owner that has one. Leave out those that cannot be read, and log how many."""
        owners = await self._heads.owners()
        found: list[Save | BaseException | None] = []
        for start in range(0, len(owners), _AT_ONCE):
            batch = owners[start : start + _AT_ONCE]
            found += await asyncio.gather(*(self.newest(owner) for owner in batch), return_exceptions=True)
        if unreadable := sum(isinstance(one, SaveCorruptedError | RecordNotFoundError) for one in found):
            _logger.warning("%d saved sessions are left out of the list, because they cannot be read", unreadable)
        for one in found:
            if isinstance(one, BaseException) and not isinstance(one, SaveCorruptedError | RecordNotFoundError):
                raise one
        return [one for one in found if isinstance(one, Save)]

    async def _is_stored(self, owner: str, blob: Blob) -> bool:
        """Return whether the store has a blob in its full length. A lost one is written again."""
        return await self._store.size(_blob_key(owner, blob.id)) == self._sealer.sealed_length(blob.size)

    async def _read_version(self, owner: str, number: int) -> Save | None:
        check_owner(owner)
        while True:
            head = await self._heads.read(owner)
            if head is None or len(head.saves) <= number:
                return None
            try:
                return await self._read_save(owner, head.saves[number])
            except RecordNotFoundError:
                if await self._heads.read(owner) == head:
                    raise SaveCorruptedError("a part of a saved session is missing: use an older save, or delete its saves") from None
                # Newer saves have replaced it between the two reads.

    async def _read_if_whole(self, owner: str, id: str) -> Save | None:
        """Return a save, or None if it is damaged: the next save then replaces it. Errors of the store and of the key are raised."""
        try:
            return await self._read_save(owner, id)
        except (SaveCorruptedError, RecordNotFoundError):
            return None

    async def _read_save(self, owner: str, id: str) -> Save:
        key = _save_key(owner, id)
        sealed = await join(self._store.read(key), _RECORD_BYTES)
        try:
            fields = json.loads(bytes(self._sealer.open(sealed or b"", key.encode())))
            blobs = {name: _decode_blob(*blob) for name, blob in fields["blobs"].items()}
            return Save(owner, id, datetime.fromisoformat(fields["created"]), dict(fields["manifest"]), blobs)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise SaveCorruptedError("a saved session cannot be parsed: use an older save, or delete its saves") from None

    async def _write_save(self, save: Save) -> None:
        key = _save_key(save.owner, save.id)
        await self._store.write(key, stream(*self._sealer.seal(_encode_save(save), key.encode())))

    async def _find_ids(self, owner: str) -> dict[str, str]:
        """Return the ids in all keys of an owner's saves and blobs, by key."""
        saves, blobs = await asyncio.gather(*(self._store.keys(f"{kind}/{owner}") for kind in ("saves", "blobs")))
        return {key: key.rpartition("/")[2] for key in (*saves, *blobs)}

    async def _delete_ids(self, owner: str, *, kept: set[str], newest: int) -> None:
        """Delete an owner's saves and blobs except those in `kept`, and except those that were written under a lease after `newest`."""
        for key, id in (await self._find_ids(owner)).items():
            if id not in kept and fence_of(id) <= newest:
                await self._store.delete(key)


class Writer:
    """Writes one save. Nothing of it is visible before `commit`. Use `async with`, or call `abandon` if it is not committed."""

    def __init__(self, saves: Saves, owner: str, fence: int, base: _Base) -> None:
        self._saves = saves
        self._owner = owner
        self._fence = fence
        self.base = base
        self._id = make_id(fence)
        self._left = saves._max_bytes
        self._inline = saves._inline_bytes
        self._known = {blob.sha256: blob for save in (*base.pinned, *reversed(base.saves)) for blob in save.blobs.values() if blob.id}
        self._names: set[str] = set()
        self._blobs: dict[str, Blob] = {}
        self._written: set[str] = set()  # keys, to delete if the save is abandoned
        self._save: Save | None = None
        self._may_be_committed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.abandon()

    async def add(self, name: str, data: Data) -> None:
        """Write a content. If a kept save has the same content, refer to that and store nothing. Some can be added at the same time.

        Raise SaveTooLargeError if this save gets larger than it may be.
        """
        if name in self._names or self._save is not None:
            raise InvalidArgumentError("a save cannot have two contents of the same name, or more contents after `commit`")
        self._names.add(name)
        self._left -= len(data)
        if self._left < 0:
            raise self._too_large()
        sha256 = await compute(_sha256, data)
        blob = self._known.get(sha256.hex())
        if blob is None or not await self._saves._is_stored(self._owner, blob):
            blob = await self._write(sha256, data)
        if blob.id:
            self._known[blob.sha256] = blob
        self._blobs[name] = blob

    async def add_all(self, contents: AsyncIterable[Data]) -> None:
        """Add contents, named by their numbers, some at the same time. Nothing is added any more when this returns or raises."""
        adding: deque[asyncio.Task[None]] = deque()
        number = 0
        try:
            async for data in contents:
                if len(adding) == _ADDED_AT_ONCE:
                    await adding.popleft()
                adding.append(asyncio.create_task(self.add(str(number), data)))
                number += 1
            while adding:
                await adding.popleft()
        finally:
            await _cancel(adding)

    async def commit(self, manifest: dict[str, Any], *, most_pinned: int = 0) -> Save:
        """Make this the newest save, by one swap of the head. Then delete what no kept save refers to.

        Raise FencedError if another server has taken the session. After another StorageError, the save may be committed or not: call this
        again.

        Args:
            manifest: What the save says about itself.
            most_pinned: If this is not 0, pin the save, and unpin the oldest ones if there are more than so many.
        """
        save = self._save or await self._write_save(manifest)
        kept = [save, *self.base.saves[: _KEPT - 1]]
        pinned = [*self.base.pinned, save][-most_pinned:] if most_pinned else [*self.base.pinned]
        await self._swap_head(tuple(one.id for one in kept), tuple(one.id for one in pinned))
        await self._delete_unreferenced([*kept, *pinned])
        return save

    async def abandon(self) -> None:
        """Delete what was written. Do nothing if the save is committed, or if it may be: then the next commit deletes it."""
        if self._may_be_committed:
            return
        for key in sorted(self._written):
            with contextlib.suppress(StorageError):  # the next commit deletes it
                await self._saves._store.delete(key)
        self._written.clear()

    async def _write_save(self, manifest: dict[str, Any]) -> Save:
        save = Save(self._owner, self._id, datetime.now(UTC), manifest, dict(self._blobs))
        size = len(_encode_save(save))
        if size > _MANIFEST_BYTES:
            raise InvalidArgumentError(f"the manifest of a save must be at most {_MANIFEST_BYTES} bytes as JSON, got {size}")
        if size > self._left:
            raise self._too_large()
        self._written.add(_save_key(self._owner, self._id))
        await self._saves._write_save(save)
        self._save = save
        return save

    async def _write(self, sha256: bytes, data: Data) -> Blob:
        if len(data) <= self._inline:
            self._inline -= len(data)
            return Blob(sha256.hex(), len(data), data=bytes(data))
        id = make_id(self._fence)
        key = _blob_key(self._owner, id)
        self._written.add(key)
        sealed = await compute(self._saves._sealer.seal, data, key.encode(), sha256)
        await self._saves._store.write(key, stream(*sealed))
        return Blob(sha256.hex(), len(data), id)

    async def _swap_head(self, ids: tuple[str, ...], pinned: tuple[str, ...]) -> None:
        def compute_head(head: Head) -> Head:
            if self._id in head.saves:  # an earlier attempt, whose response was lost
                return head
            _check_fence(head, self._fence)
            if (head.saves, head.pinned) != (self.base.head.saves, self.base.head.pinned):
                raise StorageError("another save of this session was committed since this one began: save again")
            self._may_be_committed = True
            return replace(head, saves=ids, pinned=pinned)

        await self._saves._heads.change(self._owner, compute_head)

    async def _delete_unreferenced(self, kept: Sequence[Save]) -> None:
        try:
            await self._saves._delete_ids(self._owner, kept=_ids_of(kept), newest=self._fence)
        except StorageError as error:  # the save is committed. The next commit deletes the rest
            log_failure("deleting what saves do not need any more failed", error)

    def _too_large(self) -> SaveTooLargeError:
        megabytes = self._saves._max_bytes / 1_000_000
        return SaveTooLargeError(
            f"the session is larger than a save may be ({megabytes:g} MB): delete variables or files, "
            "or raise ACASessions:Durable:MaxMegabytes"
        )


def _encode_save(save: Save) -> bytes:
    blobs = {name: (blob.sha256, blob.size, blob.id, b64encode(blob.data).decode()) for name, blob in save.blobs.items()}
    fields = {"created": save.created.isoformat(), "manifest": save.manifest, "blobs": blobs}
    try:
        return json.dumps(fields).encode()
    except (TypeError, ValueError, RecursionError):  # its message may have a value
        raise InvalidArgumentError("the manifest of a save must be a dict of values that JSON has") from None


def _decode_blob(sha256: object, size: object, id: object, data: str) -> Blob:
    """Return a blob of a record. Raise ValueError or TypeError if it is malformed."""
    return Blob(str(sha256), int(size), check_id(id) if id else "", b64decode(data, validate=True))  # type: ignore[call-overload]


async def _cancel(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks, and wait until they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _sha256(data: Data) -> bytes:
    return hashlib.sha256(data).digest()


def _check_fence(head: Head, fence: int) -> None:
    if head.fence == 0:
        raise FencedError("the saves of this session were deleted, or it was released: connect again")
    if head.fence != fence:
        raise FencedError("another server has taken this session: connect again")


def _ids_of(saves: Iterable[Save]) -> set[str]:
    """Return the ids of saves and of their blobs."""
    return {id for save in saves for id in (save.id, *(blob.id for blob in save.blobs.values()))}


def _save_key(owner: str, id: str) -> str:
    return f"saves/{owner}/{id}"


def _blob_key(owner: str, id: str) -> str:
    return f"blobs/{owner}/{id}"
