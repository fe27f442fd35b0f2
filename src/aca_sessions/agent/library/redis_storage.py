"""A storage in Redis. The records of a kind, such as skills, are the fields of one Redis hash, so one command writes a whole record."""

import asyncio
import contextlib
import inspect
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

from ...errors import ConfigurationError, StorageError, imports_of
from ...lifetime import create_in_thread
from .storage import Kind, check_name

with imports_of("redis"):
    from redis import Redis as BlockingRedis
    from redis.asyncio import ConnectionPool, Redis
    from redis.asyncio.retry import Retry
    from redis.backoff import ExponentialBackoff
    from redis.exceptions import (
        AuthenticationError,
        ExecAbortError,
        LockError,
        NoPermissionError,
        OutOfMemoryError,
        ReadOnlyError,
        RedisError,
    )
    from redis.exceptions import ConnectionError as RedisConnectionError
    from redis.exceptions import TimeoutError as RedisTimeoutError

if TYPE_CHECKING:
    from .search import Embed
    from .skills import SkillLibrary


_LOCK_SECONDS = 10.0  # a lock ends after this time, so that a holder that was killed does not keep others out for longer
_PATIENCE_SECONDS = 15.0  # how long to wait for a lock
_ANSWER_SECONDS = 10.0
_ATTEMPTS = 6  # about two seconds with the pauses between them, in which a server can restart
_LOST = (RedisConnectionError, RedisTimeoutError)


class RedisStorage:
    """A storage of records, such as skills, in Redis. All keys begin with a common prefix. Many processes can use it at the same time."""

    def __init__(self, url: str | None = None, prefix: str = "aca-sessions", *, redis: "Redis | BlockingRedis | None" = None) -> None:
        """Store the URL of a server, or a client. The first command opens a connection.

        Raise ConfigurationError if neither or both of `url` and `redis` are given, or if the client decodes responses.

        Args:
            url: The server, as in `redis://localhost:6379`. Commands are sent again for about two seconds if the connection breaks.
            prefix: The beginning of all keys.
            redis: A client instead of the URL, from `redis` or `redis.asyncio`. `close` leaves it open.
        """
        if (url is None) == (redis is None):
            got = "neither" if url is None else "both"
            forms = "RedisStorage('redis://localhost:6379') or RedisStorage(redis=client)"
            raise ConfigurationError(f"RedisStorage must have either a URL or a client, got {got}: write {forms}")
        if redis is not None and redis.get_connection_kwargs().get("decode_responses"):
            raise ConfigurationError("the Redis client must return bytes: make it without decode_responses=True")
        self._redis: Any = redis if url is None else _create_client(url)
        self._is_own = redis is None
        self._prefix = prefix

    async def read(self, kind: Kind, name: str) -> bytes | None:
        """Return the data of a record, or None if there is no such record."""
        field = check_name(name)
        return cast(bytes | None, await self._run_command(lambda redis: redis.hget(self._key(kind), field)))

    async def write(self, kind: Kind, name: str, data: bytes) -> None:
        """Write a record, replacing an earlier one of the same name.

        Also replace the stamp of its kind, a random text, so that callers that cache records notice the change.

        Args:
            kind: The kind of the record.
            name: The name of the record.
            data: The content.
        """
        field = check_name(name)

        def both(redis: Any) -> Any:
            commands = redis.pipeline(transaction=True)
            commands.hset(self._key(kind), field, data)
            commands.set(f"{self._key(kind)}:stamp", uuid.uuid4().hex)
            return commands.execute()

        await self._run_command(both)

    async def delete(self, kind: Kind, name: str) -> bool:
        """Delete a record. Return whether it existed.

        Also replace the stamp of its kind, a random text, so that callers that cache records notice the change. If Redis is too full for a
        new stamp, only remove the old one.
        """
        field, stamp = check_name(name), f"{self._key(kind)}:stamp"

        def each(redis: Any) -> Any:
            commands = redis.pipeline(transaction=False)  # a full Redis refuses to queue any command of a transaction
            commands.delete(stamp)
            commands.hdel(self._key(kind), field)
            commands.set(stamp, uuid.uuid4().hex)
            return commands.execute(raise_on_error=False)

        _, deleted, _ = await self._run_command(each)
        if isinstance(deleted, RedisError):
            raise _storage_error(deleted)
        return bool(deleted)

    async def names(self, kind: Kind) -> list[str]:
        """Return the names of all records of a kind, sorted."""
        return sorted(
            name.decode() for name in await self._run_command(lambda redis: redis.hkeys(self._key(kind))) if isinstance(name, bytes)
        )

    async def stamp(self, kind: Kind) -> str | None:
        """Return the stamp of a kind: a random text that is replaced whenever a record of the kind is written or deleted.

        Return None before the first change, or if Redis was too full to store a new stamp.
        """
        drawn = await self._run_command(lambda redis: redis.get(f"{self._key(kind)}:stamp"))
        return drawn.decode() if isinstance(drawn, bytes) else None

    @asynccontextmanager
    async def locked(self, kind: Kind) -> AsyncIterator[None]:
        """Lock the records of a kind during a `with` block. Raise StorageError if the lock is not free within 15 s.

        The lock expires after 10 s even if the block still runs, so that a process that was killed does not keep it.
        """
        options: dict[str, Any] = {"timeout": _LOCK_SECONDS, "blocking_timeout": _PATIENCE_SECONDS, "thread_local": False}
        lock = self._redis.lock(f"{self._key(kind)}:lock", **options)
        if not await self._try_acquire(lock):
            raise StorageError(
                f"cannot lock the storage of {kind} within {_PATIENCE_SECONDS:g} s, because another process uses it: try again or end it"
            )
        try:
            yield
        finally:
            with contextlib.suppress(LockError, StorageError):
                await self._run_command(lambda _: lock.release())

    def path(self, kind: Kind, name: str) -> str:
        """Return where Redis keeps a record, as `key/field`, to show to people."""
        return f"{self._key(kind)}/{name}"

    def get_skill_library(self, embed: "Embed | None" = None) -> "SkillLibrary":
        """Return an object to list, search, add and remove the skills in this storage without `await`.

        `embed` is a function that returns a vector for each text, so that searches compare meanings. By default searches compare words.
        """
        from .skills import SkillLibrary

        return SkillLibrary(self._open_for_this_loop, embed)

    async def close(self) -> None:
        """Close the connections if this object was created with a URL. If it was created with a client, leave the client open."""
        if self._is_own:
            await self._redis.aclose()

    @asynccontextmanager
    async def _open_for_this_loop(self) -> AsyncIterator["RedisStorage"]:
        """Yield a storage of the same records that can be used in the current event loop.

        Connections of `redis.asyncio` work only in the event loop that opened them, so the yielded storage opens new ones. If the client is
        a blocking one, which works in any event loop, yield this object itself.
        """
        if isinstance(self._redis, BlockingRedis):
            yield self
            return
        pool = self._redis.connection_pool
        async with Redis.from_pool(ConnectionPool(pool.connection_class, **pool.connection_kwargs)) as client:
            yield RedisStorage(redis=client, prefix=self._prefix)

    def _key(self, kind: Kind) -> str:
        return f"{self._prefix}:{kind}"

    async def _try_acquire(self, lock: Any) -> bool:
        if not isinstance(self._redis, BlockingRedis):
            return bool(await self._run_command(lambda _: lock.acquire()))
        with _convert_errors():  # a lock that the thread acquires after the caller was cancelled is released
            return bool(await create_in_thread(lock.acquire, lambda taken: lock.release() if taken else None))

    async def _run_command(self, command: Callable[[Any], Any]) -> Any:
        """Call `command` with the Redis client and return what Redis replies. If the client is a blocking one, call it in a thread.

        Raise StorageError if Redis fails.
        """
        with _convert_errors():
            if isinstance(self._redis, BlockingRedis):
                return await asyncio.to_thread(command, self._redis)
            answer = command(self._redis)
            return await answer if inspect.isawaitable(answer) else answer


def _create_client(url: str) -> Redis:
    retry = Retry(ExponentialBackoff(cap=1.0, base=0.05), _ATTEMPTS)
    limits: dict[str, Any] = {"socket_connect_timeout": 5, "socket_timeout": _ANSWER_SECONDS}
    return Redis.from_url(url, retry=retry, retry_on_error=[*_LOST], **limits)


@contextlib.contextmanager
def _convert_errors() -> Iterator[None]:
    try:
        yield
    except RedisError as error:
        raise _storage_error(error) from error


def _storage_error(error: RedisError) -> StorageError:
    advice = "check that the server runs and that the URL is right"
    if isinstance(error, OutOfMemoryError | ExecAbortError):
        advice = "it is full: raise its maxmemory, or delete what is not needed"
    elif isinstance(error, AuthenticationError | NoPermissionError):
        advice = "check the user and the password in the URL, and what the user may do"
    elif isinstance(error, ReadOnlyError):
        advice = "it is a replica, which refuses writes: use the URL of its primary"
    return StorageError(f"Redis failed ({type(error).__name__}): {advice}")
