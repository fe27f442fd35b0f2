"""Download a file of a session in parts of one version: code in the session may rewrite the file meanwhile."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from ..errors import ServiceError

_PAUSES = (0.02, 0.05, 0.1, 0.2)  # seconds; a file that code goes on writing to is given up after as many more attempts
_CHANGED = (412, 416)  # it is another version, or too short by now


@dataclass(frozen=True, slots=True)
class Part:
    """Hold some bytes of a file, the size of all of it, and the HTTP entity tag of its version, if the endpoint sent one."""

    data: bytes
    size: int
    version: str | None = None


Read = Callable[[int | None, str | None], Awaitable[Part]]


class _ChangedError(Exception):
    """The file has another version now."""


async def in_parts(read: Read, *, ranged: bool, restartable: bool = True) -> AsyncIterator[tuple[int, bytes]]:
    """Yield the parts of a file with their offsets. One at 0 begins the file anew: drop what came before.

    Args:
        read: Returns the part at an offset, of a version if one is given; for None all of the file.
        ranged: Whether the endpoint answers with parts. In process an answer is held in memory whole.
        restartable: Whether the caller can drop what came before.
    """
    for pause in (*(_PAUSES if restartable else ()), None):
        try:
            async for offset, data in _one_version(read, ranged):
                yield offset, data
        except _ChangedError:
            if pause is not None:
                await asyncio.sleep(pause)
                continue
            raise ServiceError(412, "FileChanged", "the file kept changing during the download: download a copy of it") from None
        return


async def _one_version(read: Read, ranged: bool) -> AsyncIterator[tuple[int, bytes]]:
    first = await _unless_changed(read, 0 if ranged else None, None)
    yield 0, first.data
    done = len(first.data)
    if done < first.size and first.version is None:
        yield 0, (await _unless_changed(read, None, None)).data  # nothing would show that the next part is of another version
        return
    while done < first.size:
        part = await _next(read, done, first)
        yield done, part.data
        done += len(part.data)


async def _next(read: Read, offset: int, first: Part) -> Part:
    if first.version is None or first.version.startswith("W/"):
        raise _ChangedError  # a weak tag: code was at work on it, and no later part can match it
    part = await _unless_changed(read, offset, first.version)
    if not part.data or (part.version, part.size) != (first.version, first.size):
        raise _ChangedError
    return part


async def _unless_changed(read: Read, offset: int | None, version: str | None) -> Part:
    """Read a part. In process a server that breaks an answer off raises here."""
    try:
        return await read(offset, version)
    except ServiceError as error:
        if error.status_code in _CHANGED:
            raise _ChangedError from None
        raise
