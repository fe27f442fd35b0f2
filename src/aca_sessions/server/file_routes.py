"""The routes of files, in the dialect of each api-version. Contents are streamed in both directions."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..contract import legacy
from ..contract.records import ProblemError, split_path
from ..hosting import Hosting
from ..models import RemoteFile
from ..sandbox.files import Files
from ..sandbox.sandbox import Sandbox
from .downloads import Download, Downloads, Sending, close
from .requests import addressed, check_route, check_version, checked_identifier, range_of, wants_whole
from .sessions import Sessions
from .table import Routes, note
from .uploads import uploaded

_BINARY = "application/octet-stream"


class FileRoutes:
    """The handlers of files, for the sessions of one server. The hosting limits the size of uploads."""

    def __init__(self, sessions: Sessions, hosting: Hosting) -> None:
        self._sessions = sessions
        self._hosting = hosting
        self._downloads = Downloads()

    def table(self) -> Routes:
        """Return the routes, which are all Azure's."""
        return [
            ("files", "GET", self.list_files),
            ("files", "POST", self.upload_file),
            ("files/upload", "POST", self.upload_file),
            ("files/{name:path}", "GET", self.file),
            ("files/{name:path}", "DELETE", self.delete_file),
            ("python/uploadFile", "POST", self.legacy_upload),
            ("python/files", "GET", self.legacy_files),
            ("python/downloadFile", "GET", self.legacy_download),
        ]

    async def list_files(self, request: Request) -> Response:
        """List the files of a session."""
        version, _ = addressed(request, plain=self._hosting.plain)
        recursive = request.query_params.get("recursive", "").lower() == "true"
        async with self._files(request) as (files, folder):
            found = await to_thread.run_sync(lambda: files.listing(folder, recursive=recursive))
        return JSONResponse(version.dialect.encode_files(found))

    async def upload_file(self, request: Request) -> Response:
        """Write a file of a form to a session."""
        version, _ = addressed(request, plain=self._hosting.plain)
        check_route(request, version.dialect.UPLOAD_PATH)
        return JSONResponse(version.dialect.encode_upload(await self._uploaded(request)))

    async def file(self, request: Request) -> Response:
        """Return a file's content or its description.

        One handler has both routes, because the content path of one API generation matches the description path of the other.
        """
        version, _ = addressed(request, plain=self._hosting.plain)
        name = version.dialect.content_named(request.path_params["name"])
        if name is not None:
            request.path_params["name"] = name
            return await self._download(request)
        async with self._file(request) as (files, folder, name):
            file = await to_thread.run_sync(files.describe, name, folder)
        return JSONResponse(version.dialect.encode_file(file))

    async def delete_file(self, request: Request) -> Response:
        """Delete a file of a session."""
        version, _ = addressed(request, plain=self._hosting.plain)
        async with self._file(request) as (files, folder, name):
            await to_thread.run_sync(files.delete, name, folder)
        note(request, "delete")
        said = version.dialect.DELETED
        return Response(status_code=204) if said is None else JSONResponse(said)

    async def legacy_upload(self, request: Request) -> Response:
        """Write a file to a session, in the dialect of the private preview."""
        return JSONResponse(legacy.encode_files([await self._uploaded(request)]))

    async def legacy_files(self, request: Request) -> Response:
        """List files, in the dialect of the private preview."""
        async with self._files(request) as (files, folder):
            return JSONResponse(legacy.encode_files(await to_thread.run_sync(files.listing, folder)))

    async def legacy_download(self, request: Request) -> Response:
        """Return a file's content, in the dialect of the private preview."""
        request.path_params["name"] = request.query_params.get("filename", "")
        return await self._download(request)

    async def _download(self, request: Request) -> Response:
        """Return a file's content, or the requested range of it. If a version was requested, check that the file still has it."""
        plain = self._hosting.plain
        start, length = (0, None) if plain else range_of(request)
        is_part = (start, length) != (0, None)
        async with AsyncExitStack() as held:
            files, folder, name = await held.enter_async_context(self._file(request))
            reading = await to_thread.run_sync(files.open, name, folder)
            held.push_async_callback(close, reading)
            exact = is_part or (not plain and "if-match" in request.headers)
            download = await self._downloads.begin(reading, start, length, exact=exact, held=held)
            if not plain:
                check_version(request, download.version)
            if is_part and wants_whole(request, download.version):
                start, length = 0, None
                download = await self._downloads.begin(reading, start, length, exact=False, held=held)
            note(request, "download", bytes=download.length)
            status, headers = _described(start, length, download, reading.size)
            if not plain:
                headers["etag"] = download.version
            return Sending(download.chunks, status, headers, media_type=_BINARY, held=held.pop_all())

    async def _uploaded(self, request: Request) -> RemoteFile:
        async with uploaded(request, self._hosting.max_upload) as (name, chunks), self._sandbox(request) as (sandbox, folder):
            request.state.session.has_state = True
            file = await sandbox.write(name, chunks, folder)
        note(request, "upload", bytes=file.size)
        return file

    @asynccontextmanager
    async def _files(self, request: Request) -> AsyncIterator[tuple[Files, str]]:
        """Open the session of a request for the block. Yield its files and the folder that the request names."""
        async with self._sandbox(request) as (sandbox, folder):
            yield sandbox.files, folder

    @asynccontextmanager
    async def _sandbox(self, request: Request) -> AsyncIterator[tuple[Sandbox, str]]:
        identifier = checked_identifier(request.query_params.get("identifier", ""))
        session = request.state.session = self._sessions.get(identifier)
        with session.used():
            yield await session.sandbox(), request.query_params.get("path", "")

    @asynccontextmanager
    async def _file(self, request: Request) -> AsyncIterator[tuple[Files, str, str]]:
        """Open the session of a request for the block. Yield its files, the folder and the file name in the path."""
        async with self._files(request) as (files, folder):
            try:
                below, name = split_path(request.path_params["name"])
            except ValueError as error:
                raise ProblemError(400, "FilePathInvalid", str(error)) from None
            yield files, "/".join(filter(None, (folder, below))), name


def _described(start: int, length: int | None, download: Download, size: int) -> tuple[int, dict[str, str]]:
    """Return the status and the headers that describe which part of a file the response holds."""
    headers = {"content-length": str(download.length)}
    if size == 0 or (length is None and start == 0):
        return 200, headers
    if not download.length:
        return 416, headers | {"content-range": f"bytes */{size}"}
    return 206, headers | {"content-range": f"bytes {start}-{start + download.length - 1}/{size}"}
