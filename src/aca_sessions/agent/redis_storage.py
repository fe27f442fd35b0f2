"""The same records in Redis: one hash for each kind, so that a write is one command."""

import contextlib
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import TypeVar, cast

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import LockError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from ..errors import StorageError
from .storage import Kind, checked_name

_LOCK_SECONDS = 30.0
_ATTEMPTS = 6  # with the pauses between them about two seconds: a server that restarts is back by then
_LOST = (RedisConnectionError, RedisTimeoutError)
Result = TypeVar("Result")


class RedisStorage:
    """Records under a prefix; many processes may use them at once."""

    def __init__(self, url: str, prefix: str = "aca-sessions") -> None:
        """Connects when it is used; a connection that breaks is made anew."""
        retry = Retry(ExponentialBackoff(cap=1.0, base=0.05), _ATTEMPTS)
        self._redis: Redis = Redis.from_url(url, retry=retry, retry_on_error=[*_LOST], socket_connect_timeout=5)
        self._prefix = prefix

    async def read(self, kind: Kind, name: str) -> bytes | None:
        """A record; None where there is none."""
        return cast(bytes | None, await _asked(self._redis.hget(self._key(kind), checked_name(name))))

    async def write(self, kind: Kind, name: str, data: bytes) -> None:
        """Replaces a record, and counts that."""
        async with self._redis.pipeline(transaction=True) as both:
            both.hset(self._key(kind), checked_name(name), data)
            both.incr(f"{self._key(kind)}:stamp")
            await _asked(both.execute())

    async def delete(self, kind: Kind, name: str) -> bool:
        """Whether there was one to delete."""
        async with self._redis.pipeline(transaction=True) as both:
            both.hdel(self._key(kind), checked_name(name))
            both.incr(f"{self._key(kind)}:stamp")
            return bool((await _asked(both.execute()))[0])

    async def names(self, kind: Kind) -> list[str]:
        """The names of all records of a kind, sorted."""
        return sorted(name.decode() for name in await _asked(self._redis.hkeys(self._key(kind))) if isinstance(name, bytes))

    async def stamp(self, kind: Kind) -> str | None:
        """How often something was written or deleted."""
        return str(await _asked(self._redis.get(f"{self._key(kind)}:stamp")))

    @asynccontextmanager
    async def locked(self, kind: Kind) -> AsyncIterator[None]:
        """Holds a lock that ends by itself after half a minute."""
        lock = self._redis.lock(f"{self._key(kind)}:lock", timeout=_LOCK_SECONDS, blocking_timeout=_LOCK_SECONDS)
        if not await _asked(lock.acquire()):
            raise StorageError(f"{kind} of the storage are locked by another process for {_LOCK_SECONDS:g} s: end that process")
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
        raise StorageError(f"Redis did not do it ({type(error).__name__}): look whether the server runs, and at the URL") from None
