"""Transfer files between this machine and the sessions of an endpoint."""

import asyncio
import contextlib
import os
import secrets
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, BinaryIO
from urllib.parse import quote

from .. import telemetry
from ..contract.versions import Version
from ..errors import ServiceError
from ..models import RemoteFile
from .arguments import checked_data, checked_folder, checked_path
from .executions import DEFAULT_WAIT
from .history import RecordingFile, UploadStep, upload_step
from .http import Response, SessionsHttpClient, decode_response


@contextmanager
def replace_file(path: Path, *, mode: int = 0o666) -> Iterator[BinaryIO]:
    """Open a temporary file that replaces the file at `path` at the end of the `with` block. A new file has this mode, less the umask.

    If the block raises an exception, the file at `path` stays as it was. A new file has the permissions of the one that it replaces. If
    `path` is a device or a pipe, open it directly: nothing undoes what a failed block wrote.
    """
    target = Path(os.path.realpath(path))  # a link stays a link: the file that it names is replaced
    earlier = _status(target)
    if earlier is not None and not stat.S_ISREG(earlier.st_mode):
        with target.open("wb") as file:
            yield file
        return
    # In the same folder: rename(2) replaces a file atomically only within one file system.
    temporary = target.with_name(f".{secrets.token_hex(8)}.part")
    descriptor = _create(temporary, path, mode if earlier is None else 0o600)
    try:
        with open(descriptor, "wb") as file:
            yield file
            if earlier is not None:
                _give_rights(descriptor, earlier)
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise


def _create(temporary: Path, path: Path, mode: int) -> int:
    try:
        return os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error  # the caller does not know the temporary name


def _give_rights(descriptor: int, earlier: os.stat_result) -> None:
    if not hasattr(os, "fchown"):  # Windows
        return
    with contextlib.suppress(PermissionError):  # only root may change the owner of a file, chown(2)
        os.fchown(descriptor, earlier.st_uid, earlier.st_gid)
    os.fchmod(descriptor, earlier.st_mode & 0o777)


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


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
    """The file changed during the download: a part is of another version than the earlier parts, or no longer exists."""


async def read_parts(read: Read, *, ranged: bool, restartable: bool = True) -> AsyncIterator[tuple[int, bytes]]:
    """Download a file in parts: yield each part with its offset in bytes.

    If the file changes meanwhile, begin again at offset 0: the caller must then drop all earlier parts. Raise ServiceError (412,
    `FileChanged`) after five attempts, or after the first if `restartable` is false.

    Args:
        read: Called with an offset and a version (an entity tag), and returns a part of the file. An offset of None means the whole file,
            and a version of None any version.
        ranged: Whether the endpoint supports range requests. If not, the whole file is one part, which is held in memory.
        restartable: Whether the caller can drop earlier parts.
    """
    for pause in (*(_PAUSES if restartable else ()), None):
        try:
            async for offset, data in _read_one_version(read, ranged):
                yield offset, data
        except _ChangedError as error:
            if pause is not None:
                await asyncio.sleep(pause)
                continue
            raise ServiceError(
                412, "FileChanged", "the file kept changing during the download: copy it in the session and download the copy"
            ) from error
        return


async def _read_one_version(read: Read, ranged: bool) -> AsyncIterator[tuple[int, bytes]]:
    """Yield the parts of one version of the file, each with its offset. Raise `_ChangedError` if the file changes meanwhile."""
    first = await _read_unless_changed(read, 0 if ranged else None, None)
    yield 0, first.data
    done = len(first.data)
    if done < first.size and first.version is None:
        yield 0, (await _read_unless_changed(read, None, None)).data  # nothing would show that the next part is of another version
        return
    while done < first.size:
        part = await _next(read, done, first)
        yield done, part.data
        done += len(part.data)


async def _next(read: Read, offset: int, first: Part) -> Part:
    if first.version is None or first.version.startswith("W/"):
        raise _ChangedError  # a weak tag: code was at work on it, and no later part can match it
    part = await _read_unless_changed(read, offset, first.version)
    if not part.data or (part.version, part.size) != (first.version, first.size):
        raise _ChangedError
    return part


async def _read_unless_changed(read: Read, offset: int | None, version: str | None) -> Part:
    """Read a part of a file by calling `read`.

    Raise `_ChangedError` if the endpoint responds that this version is gone (412), or that the file is shorter than `offset` now (416).
    """
    try:
        # In process, a server that breaks off an answer raises here.
        return await read(offset, version)
    except ServiceError as error:
        if error.status_code in _CHANGED:
            raise _ChangedError from error
        raise


FILES_PATH = "files"
_RANGE = 8 << 20  # bytes of one part: `save` holds no more in memory


class SessionFiles:
    """A client that lists, uploads, downloads and deletes files in the sessions of an endpoint, in one api-version."""

    def __init__(self, http: SessionsHttpClient, version: Version) -> None:
        self._http = http
        self._dialect = version.dialect

    async def upload(self, session_id: str, path: str, data: object) -> tuple[RemoteFile, UploadStep]:
        """Write a file into /mnt/data. Return the file's description, and the step that records the upload in the session's history."""
        folder, name = checked_path(path)
        content = checked_data(data)
        with contextlib.ExitStack() as stack:
            sent = stack.enter_context(RecordingFile(content)) if isinstance(content, Path) else content
            size = os.fstat(sent.fileno()).st_size if isinstance(sent, RecordingFile) else len(sent)
            with telemetry.span("upload", session_id, bytes=size):
                response = await self.send(session_id, folder, name, sent)
        return decode_response(response, self._dialect.decode_upload), upload_step(path, sent)

    async def send(self, session_id: str, folder: str, name: str, content: bytes | IO[bytes]) -> Response:
        """Write a file into a folder of /mnt/data, and return the response."""
        path, query, timeout = self._dialect.UPLOAD_PATH, _path(folder), DEFAULT_WAIT
        await self._http._networks.prepare(session_id)
        return await self._http.request("POST", path, identifier=session_id, query=query, file=(name, content), timeout=timeout)

    async def list(self, session_id: str, folder: str) -> list[RemoteFile]:
        """Return the files and folders directly in /mnt/data, or in a folder of it."""
        response = await self._http.request("GET", FILES_PATH, identifier=session_id, query=_path(checked_folder(folder)))
        return decode_response(response, self._dialect.decode_files)

    async def download(self, session_id: str, name: str) -> bytes:
        """Return a file's content. All of it is from one version of the file, even if the file changes during the download."""
        parts: list[bytes] = []
        async for offset, data in self._parts(session_id, name):
            if offset == 0:
                parts.clear()
            parts.append(data)
        return b"".join(parts)

    async def stream(self, session_id: str, name: str) -> AsyncIterator[bytes]:
        """Yield the chunks of a file in /mnt/data, which must not change meanwhile."""
        path, timeout = self._dialect.content_path(name), DEFAULT_WAIT
        async with self._http.stream("GET", path, identifier=session_id, timeout=timeout) as chunks:
            async for chunk in chunks:
                yield chunk

    async def save(self, session_id: str, name: str, path: Path) -> int:
        """Write a file's content to a path on this machine and return its size in bytes.

        If the download fails, a file that exists at the path stays as it was. If the endpoint supports range requests, at most 8 MB are
        held in memory.
        """
        size = 0
        with replace_file(path) as file:
            async for offset, data in self._parts(session_id, name, restartable=file.seekable()):
                if offset == 0 and size:
                    file.seek(0)
                    file.truncate()
                await asyncio.to_thread(file.write, data)
                size = offset + len(data)
        return size

    async def delete(self, session_id: str, name: str) -> None:
        """Delete a file in /mnt/data."""
        folder, name = checked_path(name)
        await self._http.request("DELETE", f"{FILES_PATH}/{quote(name, safe='')}", identifier=session_id, query=_path(folder))

    async def _parts(self, session_id: str, name: str, *, restartable: bool = True) -> AsyncIterator[tuple[int, bytes]]:
        ranged = await self._http.offers("ranges")
        async for part in read_parts(partial(self._read, session_id, name), ranged=ranged, restartable=restartable):
            yield part

    async def _read(self, session_id: str, name: str, start: int | None, version: str | None) -> Part:
        folder, name = checked_path(name)
        headers = {} if start is None else {"range": f"bytes={start}-{start + _RANGE - 1}"}
        if version is not None:
            headers["if-match"] = version
        path = self._dialect.content_path(name)
        response = await self._http.request("GET", path, identifier=session_id, query=_path(folder), headers=headers, timeout=DEFAULT_WAIT)
        size = response.headers.get("content-range", "").rpartition("/")[2]
        return Part(response.content, int(size) if size.isdecimal() else len(response.content), response.headers.get("etag"))


def _path(folder: str) -> dict[str, str]:
    return {"path": folder} if folder else {}
