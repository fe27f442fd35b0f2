"""A store in Redis. A content is cut into pieces. A small entry, which points to the pieces, is published when all of them are there.

A server that evicts keys without a time to live, such as with `maxmemory-policy allkeys-lru`, would lose saves: use `noeviction`.
"""

import contextlib
import secrets
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import AuthenticationError, NoPermissionError, OutOfMemoryError, ReadOnlyError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from ..errors import ConfigurationError, StorageError
from .chunks import Data, closing, split
from .store import LEFTOVER_SECONDS, PIECE, ClosingStore, check_folder, check_key, check_swap, lost_content, missing_record

_PREFIX = "{aca-sessions-durable}"  # the braces make a cluster keep all keys in one slot, as scripts need it
_INDEX = f"{_PREFIX}:index"  # a sorted set of all keys: SCAN would go through all keys of the server
_PIECES = f"{_PREFIX}:piece:"
_RESPONSE_SECONDS = 30.0
_ATTEMPTS = 6  # about two seconds with the pauses between them, in which a server can restart

# An entry is `v` and a small value, or `p` and the id, number and total length of the pieces of a content.
_DROP = """
local function each_piece(entry, action)
  local id, count = string.match(entry, '^p(%x+):(%d+):')
  for number = 0, (tonumber(count) or 0) - 1 do
    if redis.call(action, ARGV[1] .. id .. ':' .. number) == 0 and action == 'EXISTS' then return false end
  end
  return true
end
local current = redis.call('GET', KEYS[1])
local function drop() if current and string.sub(current, 1, 1) == 'p' then each_piece(current, 'UNLINK') end end
"""
# The client sends a command again if the connection broke, so the entry may be published already: then its pieces must stay.
_PUBLISH = f"""{_DROP}
if current == ARGV[3] then return 1 end
if not each_piece(ARGV[3], 'EXISTS') then return 0 end
redis.call('SET', KEYS[1], ARGV[3])
redis.call('ZADD', KEYS[2], 0, ARGV[2])
each_piece(ARGV[3], 'PERSIST')
drop()
return 1
"""
_DELETE = f"""{_DROP}
redis.call('DEL', KEYS[1])
redis.call('ZREM', KEYS[2], ARGV[2])
drop()
return 1
"""
_SWAP = """
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[2] then return 0 end
if ARGV[3] == '' then
  redis.call('DEL', KEYS[1])
  redis.call('ZREM', KEYS[2], ARGV[1])
else
  redis.call('SET', KEYS[1], ARGV[3])
  redis.call('ZADD', KEYS[2], 0, ARGV[1])
end
return 1
"""


class RedisStore(ClosingStore):
    """A store in Redis. The server needs the memory for all contents."""

    def __init__(self, url: str) -> None:
        """Check a URL such as `redis://localhost:6379`. The first command opens a connection."""
        retry = Retry(ExponentialBackoff(cap=1.0, base=0.05), _ATTEMPTS)
        limits: dict[str, Any] = {"socket_connect_timeout": 5, "socket_timeout": _RESPONSE_SECONDS}
        try:
            self._redis = Redis.from_url(url, retry=retry, retry_on_error=[RedisConnectionError, RedisTimeoutError], **limits)
        except ValueError:  # its message may have the password
            raise ConfigurationError("the URL of a Redis store must be redis://[user:password@]host[:port][/number]") from None

    async def write(self, key: str, chunks: AsyncIterable[Data]) -> None:
        """Write the pieces of a content, then publish the entry that points to them. Unpublished pieces expire after an hour."""
        keys = [_entry(check_key(key)), _INDEX]
        id, count, size = secrets.token_hex(16), 0, 0
        try:
            async with closing(split(chunks, PIECE)) as pieces:
                async for piece in pieces:
                    await self._send("SET", _piece(id, count), piece, "EX", LEFTOVER_SECONDS)
                    count, size = count + 1, size + len(piece)
        except BaseException:
            with contextlib.suppress(StorageError):  # then they expire
                await self._delete_pieces(id, count)
            raise
        # If only the response to this is lost, the entry is published. So an error here must not delete the pieces.
        if not await self._evaluate(_PUBLISH, keys, _PIECES, key, f"p{id}:{count}:{size}"):
            raise lost_content()

    async def read(self, key: str) -> AsyncIterator[bytes]:
        """Yield the content of a key, one piece at a time."""
        entry = await self._send("GET", _entry(check_key(key)))
        if entry is None:
            raise missing_record()
        if entry[:1] == b"v":
            yield entry[1:]
            return
        id, count, _ = entry[1:].decode().split(":")
        for number in range(int(count)):
            piece = await self._send("GET", _piece(id, number))
            if piece is None:
                raise lost_content()
            yield piece

    async def size(self, key: str) -> int | None:
        """Return the length of a content, or None."""
        entry = await self._send("GET", _entry(check_key(key)))
        if entry is None:
            return None
        return len(entry) - 1 if entry[:1] == b"v" else int(entry.rpartition(b":")[2])

    async def keys(self, folder: str = "") -> list[str]:
        """Return the keys below a folder, sorted."""
        # "0" is the character after "/".
        first, last = (f"[{folder}/", f"({folder}0") if check_folder(folder) else ("-", "+")
        return [key.decode() for key in await self._send("ZRANGEBYLEX", _INDEX, first, last)]

    async def delete(self, key: str) -> None:
        """Delete a key and the pieces of its content."""
        await self._evaluate(_DELETE, [_entry(check_key(key)), _INDEX], _PIECES, key)

    async def swap(self, key: str, old: bytes | None, new: bytes | None) -> bool:
        """Replace a small value by a script, which Redis runs without any command of others in between."""
        values = [b"" if value is None else b"v" + value for value in (old, new)]
        return bool(await self._evaluate(_SWAP, [_entry(check_swap(key, old, new)), _INDEX], key, *values))

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()

    async def _delete_pieces(self, id: str, count: int) -> None:
        names = [_piece(id, number) for number in range(count + 1)]  # the last one may have been sent
        await self._send("UNLINK", *names)

    async def _evaluate(self, script: str, keys: list[str], *arguments: str | bytes) -> Any:
        return await self._send("EVAL", script, len(keys), *keys, *arguments)

    async def _send(self, *command: str | bytes | int) -> Any:
        execute: Callable[..., Awaitable[Any]] = self._redis.execute_command
        try:
            return await execute(*command)
        except RedisError as error:
            raise _storage_error(error) from None  # the cause can have parts of the command


def _entry(key: str) -> str:
    return f"{_PREFIX}:entry:{key}"


def _piece(id: str, number: int) -> str:
    return f"{_PIECES}{id}:{number}"


def _storage_error(error: RedisError) -> StorageError:
    advice = "check that the server runs and that the URL is right"
    if isinstance(error, OutOfMemoryError) or "OOM" in str(error)[:80]:
        advice = "it is full: raise its maxmemory, or delete saves"
    elif isinstance(error, AuthenticationError | NoPermissionError):
        advice = "check the user and the password in the URL, and what the user may do"
    elif isinstance(error, ReadOnlyError):
        advice = "it is a replica, which refuses writes: use the URL of its primary"
    return StorageError(f"Redis, the store of saved sessions, failed ({type(error).__name__}): {advice}")
