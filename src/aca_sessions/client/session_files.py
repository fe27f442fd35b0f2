"""Transfers of files between this machine and the sessions of an endpoint."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from urllib.parse import quote

from .. import telemetry
from ..contract.versions import Version
from ..models import RemoteFile
from .arguments import checked_data, checked_folder, checked_path
from .downloads import Part, in_parts
from .executions import DEFAULT_WAIT
from .host_files import replacing
from .http import SessionsHttpClient, decoded

FILES_PATH = "files"
_RANGE = 8 << 20  # bytes of one part: `save` holds no more in memory


class SessionFiles:
    """The files of all sessions of an endpoint, in one api-version: list, upload, download and delete them."""

    def __init__(self, http: SessionsHttpClient, version: Version) -> None:
        self._http = http
        self._dialect = version.dialect

    async def upload(self, session_id: str, name: str, data: object) -> RemoteFile:
        """Write a file into /mnt/data and return its description. A file on this machine is read while it is sent."""
        folder, name = checked_path(name)
        content = checked_data(data)
        size = content.stat().st_size if isinstance(content, Path) else len(content)
        with telemetry.span("upload", session_id, bytes=size), contextlib.ExitStack() as stack:
            response = await self._http.request(
                "POST",
                self._dialect.UPLOAD_PATH,
                identifier=session_id,
                query=_path(folder),
                file=(name, stack.enter_context(content.open("rb")) if isinstance(content, Path) else content),
                timeout=DEFAULT_WAIT,
            )
        return decoded(response, self._dialect.decode_upload)

    async def list(self, session_id: str, folder: str) -> list[RemoteFile]:
        """Return the files in /mnt/data, or in a folder of it."""
        response = await self._http.request("GET", FILES_PATH, identifier=session_id, query=_path(checked_folder(folder)))
        return decoded(response, self._dialect.decode_files)

    async def download(self, session_id: str, name: str) -> bytes:
        """Return a file's content. All its parts are of one version."""
        parts: list[bytes] = []
        async for offset, data in self._parts(session_id, name):
            if offset == 0:
                parts.clear()
            parts.append(data)
        return b"".join(parts)

    async def save(self, session_id: str, name: str, path: Path) -> int:
        """Write a file's content to a path on this machine and return its size. A file at that path is replaced whole or not at all.

        No more than one part of 8 MB is held in memory, if the endpoint supports range requests.
        """
        size = 0
        with replacing(path) as file:
            async for offset, data in self._parts(session_id, name, restartable=file.seekable()):
                if offset == 0 and size:
                    file.seek(0)
                    file.truncate()
                await asyncio.to_thread(file.write, data)
                size = offset + len(data)
        return size

    async def delete(self, session_id: str, name: str) -> None:
        """Delete a file."""
        folder, name = checked_path(name)
        await self._http.request("DELETE", f"{FILES_PATH}/{quote(name, safe='')}", identifier=session_id, query=_path(folder))

    async def _parts(self, session_id: str, name: str, *, restartable: bool = True) -> AsyncIterator[tuple[int, bytes]]:
        ranged = await self._http.offers("ranges")
        async for part in in_parts(partial(self._read, session_id, name), ranged=ranged, restartable=restartable):
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
