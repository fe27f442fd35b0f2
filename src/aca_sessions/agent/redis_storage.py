"""The same records in Redis: one hash for each kind, so that a write is one command."""

import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any, TypeVar, cast

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import AuthenticationError, ExecAbortError, LockError, NoPermissionError, OutOfMemoryError, ReadOnlyError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from ..errors import StorageError
from .storage import Kind, checked_name

_LOCK_SECONDS = 10.0  # a holder that was killed keeps others out for so long
_PATIENCE_SECONDS = 15.0
_ANSWER_SECONDS = 10.0
_ATTEMPTS = 6  # with the pauses between them about two seconds: a server that restarts is back by then
_LOST = (RedisConnectionError, RedisTimeoutError)
Result = TypeVar("Result")


class RedisStorage:
    """Records under a prefix; many processes may use them at once."""

    def __init__(self, url: str, prefix: str = "aca-sessions") -> None:
        """Connects when it is used; a connection that breaks is made anew."""
        retry = Retry(ExponentialBackoff(cap=1.0, base=0.05), _ATTEMPTS)
        limits: dict[str, Any] = {"socket_connect_timeout": 5, "socket_timeout": _ANSWER_SECONDS}
        self._redis: Redis = Redis.from_url(url, retry=retry, retry_on_error=[*_LOST], **limits)
        self._prefix = prefix

    async def read(self, kind: Kind, name: str) -> bytes | None:
        """A record; None where there is none."""
        return cast(bytes | None, await _asked(self._redis.hget(self._key(kind), checked_name(name))))

    async def write(self, kind: Kind, name: str, data: bytes) -> None:
        """Replaces a record, and its kind has another stamp."""
        async with self._redis.pipeline(transaction=True) as both:
            both.hset(self._key(kind), checked_name(name), data)
            both.set(f"{self._key(kind)}:stamp", uuid.uuid4().hex)
            await _asked(both.execute())

    async def delete(self, kind: Kind, name: str) -> bool:
        """Whether there was one to delete. A Redis that is full deletes as well, and takes no new stamp."""
        stamp = f"{self._key(kind)}:stamp"
        async with self._redis.pipeline(transaction=False) as each:  # a full Redis takes no command into a transaction
            each.delete(stamp)
            each.hdel(self._key(kind), checked_name(name))
            each.set(stamp, uuid.uuid4().hex)
            _, deleted, _ = await _asked(each.execute(raise_on_error=False))
        if isinstance(deleted, RedisError):
            raise _storage_error(deleted)
        return bool(deleted)

    async def names(self, kind: Kind) -> list[str]:
        """The names of all records of a kind, sorted."""
        return sorted(name.decode() for name in await _asked(self._redis.hkeys(self._key(kind))) if isinstance(name, bytes))

    async def stamp(self, kind: Kind) -> str | None:
        """What the last change drew by chance; None where it could not be kept."""
        drawn = await _asked(self._redis.get(f"{self._key(kind)}:stamp"))
        return drawn.decode() if isinstance(drawn, bytes) else None

    @asynccontextmanager
    async def locked(self, kind: Kind) -> AsyncIterator[None]:
        """Holds a lock that ends by itself, whatever became of its holder."""
        lock = self._redis.lock(f"{self._key(kind)}:lock", timeout=_LOCK_SECONDS, blocking_timeout=_PATIENCE_SECONDS)
        if not await _asked(lock.acquire()):
            raise StorageError(f"{kind} of the storage are locked by another process for {_PATIENCE_SECONDS:g} s: end that process")
        try:
            yield
        finally:
            with contextlib.suppress(LockError, RedisError):
                await lock.release()

    def path(self, kind: Kind, name: str) -> str:
        """The key and the field."""
        return f"{self._key(kind)}/{name}"

    async def close(self) -> None:
        """Ends the connections."""
        await self._redis.aclose()

    def _key(self, kind: Kind) -> str:
        return f"{self._prefix}:{kind}"


async def _asked(answer: "Awaitable[Result]") -> Result:
    try:
        return await answer
    except RedisError as error:
        raise _storage_error(error) from None


def _storage_error(error: RedisError) -> StorageError:
    advice = "look whether the server runs, and at the URL"
    if isinstance(error, OutOfMemoryError | ExecAbortError):
        advice = "it is full: raise its maxmemory, or delete what is not needed"
    elif isinstance(error, AuthenticationError | NoPermissionError):
        advice = "look at the user and the password in the URL, and at what the user may do"
    elif isinstance(error, ReadOnlyError):
        advice = "it is a copy that takes no writes: name the one that it follows"
    return StorageError(f"Redis did not do it ({type(error).__name__}): {advice}")
