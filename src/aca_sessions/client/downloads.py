"""Downloads of a session's file in parts of one version. Code in the session may rewrite the file meanwhile."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from ..errors import ServiceError

_PAUSES = (0.02, 0.05, 0.1, 0.2)  # seconds between attempts to read one version of a file that code keeps writing to
_CHANGED = (412, 416)  # the file has another version, or is shorter than the part's offset by now


@dataclass(frozen=True, slots=True)
class Part:
    """Some bytes of a file, the file's total size, and the HTTP entity tag of its version if the endpoint sent one."""

    data: bytes
    size: int
    version: str | None = None


Read = Callable[[int | None, str | None], Awaitable[Part]]


class _ChangedError(Exception):
    """The file has another version now."""


async def in_parts(read: Read, *, ranged: bool, restartable: bool = True) -> AsyncIterator[tuple[int, bytes]]:
    """Yield the parts of a file with their offsets. An offset of 0 starts the file again: the caller must drop what came before.

    If the file keeps changing, ServiceError (412, `FileChanged`) is raised after five attempts, or after one if not `restartable`.

    Args:
        read: Returns the part at an offset, of the given version if there is one. An offset of None reads the whole file.
        ranged: Whether the endpoint supports range requests. In process an answer is held in memory whole.
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
    """Yield the parts of one version of the file. Raise `_ChangedError` if a part belongs to another version."""
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
    """Read a part. Raise `_ChangedError` if the endpoint answers that the version is gone (412) or the file too short (416)."""
    try:
        # In process, a server that breaks off an answer raises here.
        return await read(offset, version)
    except ServiceError as error:
        if error.status_code in _CHANGED:
            raise _ChangedError from None
        raise
