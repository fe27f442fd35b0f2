"""The routes of files, in the format of each api-version. Contents are streamed in both directions."""

import errno
import logging
import re
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from anyio import CancelScope, to_thread
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from ..contract import nested
from ..contract.records import ProblemError, split_path
from ..errors import ServiceError
from ..hosting import Hosting
from ..models import RemoteFile
from ..sandbox.sandbox import Sandbox
from ..sandbox.session.files import Files, OpenFile
from .routing import (
    Routes,
    check_identifier,
    check_if_match,
    check_route,
    is_range_outdated,
    read_address,
    read_range,
    set_audit_event,
    to_problem,
    too_large_file_problem,
)
from .sessions import Sessions

_BINARY = "application/octet-stream"
_FORM_MARGIN = 1 << 16
_BOUNDARY = re.compile(rb"--([^\r\n]{1,200})\r\n")
_FIRST_LINE = 204  # bytes: the longest match of _BOUNDARY
_CHUNK = 1 << 18
_MAX_PART_IN_MEMORY = 8 << 20  # bytes; this package's client asks for parts of that size
_MAX_PARTS_IN_MEMORY = 8  # responses at the same time that are read completely before they begin, each of up to 8 MB
_logger = logging.getLogger("aca_sessions")


class FileRoutes:
    """The handlers of requests about files, for the sessions of one server. The settings in `hosting` limit the size of uploads."""

    def __init__(self, sessions: Sessions, hosting: Hosting) -> None:
        self._sessions = sessions
        self._hosting = hosting
        self._downloads = DownloadReader()

    def routes(self) -> Routes:
        """Return the routes of files. All of them are part of Azure's API."""
        return [
            ("files", "GET", self.list_files),
            ("files", "POST", self.upload_file),
            ("files/upload", "POST", self.upload_file),
            ("files/{name:path}", "GET", self.get_file),
            ("files/{name:path}", "DELETE", self.delete_file),
            ("python/uploadFile", "POST", self.legacy_upload),
            ("python/files", "GET", self.legacy_list_files),
            ("python/downloadFile", "GET", self.legacy_download),
        ]

    async def list_files(self, request: Request) -> Response:
        """Return the files in a folder of a session. If the query has `recursive=true`, include the files in its subfolders."""
        version, _ = read_address(request, plain=self._hosting.plain)
        recursive = request.query_params.get("recursive", "").lower() == "true"
        return JSONResponse(version.dialect.encode_files(await self._listing(request, recursive=recursive)))

    async def upload_file(self, request: Request) -> Response:
        """Write the uploaded file of a form to a session, and return the file's description."""
        version, _ = read_address(request, plain=self._hosting.plain)
        check_route(request, version.dialect.UPLOAD_PATH)
        return JSONResponse(version.dialect.encode_upload(await self._store_upload(request)))

    async def get_file(self, request: Request) -> Response:
        """Return a file's content or its description, depending on the path.

        Both have one route, because older api-versions serve contents at `files/content/NAME` and later ones at `files/NAME/content`.
        """
        version, _ = read_address(request, plain=self._hosting.plain)
        path = request.path_params["name"]
        content = version.dialect.parse_content_path(path)
        if content is not None:
            return await self._download(request, content)
        async with self._locate_file(request, path) as (files, folder, name):
            file = await to_thread.run_sync(files.describe, name, folder)
        return JSONResponse(version.dialect.encode_file(file))

    async def delete_file(self, request: Request) -> Response:
        """Delete a file of a session."""
        version, _ = read_address(request, plain=self._hosting.plain)
        async with self._locate_file(request, request.path_params["name"]) as (files, folder, name):
            await to_thread.run_sync(files.delete, name, folder)
        request.state.session.saves.note_change()
        set_audit_event(request, "delete")
        deleted = version.dialect.DELETED
        return Response(status_code=204) if deleted is None else JSONResponse(deleted)

    async def legacy_upload(self, request: Request) -> Response:
        """Write the uploaded file of a form to a session, and return its description, in the format of Azure's private preview."""
        return JSONResponse(nested.encode_legacy_files([await self._store_upload(request)]))

    async def legacy_list_files(self, request: Request) -> Response:
        """Return the files in a folder of a session, in the format of Azure's private preview."""
        return JSONResponse(nested.encode_legacy_files(await self._listing(request)))

    async def legacy_download(self, request: Request) -> Response:
        """Return the content of the file that the query's `filename` names. The route is that of Azure's private preview."""
        return await self._download(request, request.query_params.get("filename", ""))

    async def _download(self, request: Request, path: str) -> Response:
        """Return a file's content, or the part that the request's Range header names.

        A server without extensions (`plain`) ignores Range, If-Range and If-Match.
        """
        plain = self._hosting.plain
        start, length = (0, None) if plain else read_range(request)
        is_part = (start, length) != (0, None)
        async with AsyncExitStack() as resources:
            files, folder, name = await resources.enter_async_context(self._locate_file(request, path))
            reading = await to_thread.run_sync(files.open, name, folder)
            resources.push_async_callback(close_file, reading)
            exact = is_part or (not plain and "if-match" in request.headers)
            download = await self._downloads.prepare(reading, start, length, exact=exact, resources=resources)
            if not plain:
                check_if_match(request, download.version)
            if is_part and is_range_outdated(request, download.version):
                start, length = 0, None
                download = await self._downloads.prepare(reading, start, length, exact=False, resources=resources)
            set_audit_event(request, "download", bytes=download.length)
            status, headers = _status_and_headers(start, length, download, reading.size)
            if not plain:
                headers["etag"] = download.version
            return OwningResponse(download.chunks, status, headers, media_type=_BINARY, resources=resources.pop_all())

    async def _listing(self, request: Request, *, recursive: bool = False) -> list[RemoteFile]:
        """Return the files in the folder that the request's query names. Raise ProblemError if the session has no such folder."""
        async with self._open_files(request) as (files, folder):
            try:
                return await to_thread.run_sync(lambda: files.listing(folder, recursive=recursive))
            except (FileNotFoundError, NotADirectoryError) as error:
                message = f"{folder!r:.80}: the session has no folder at this path: list the folder above it to see what it has"
                raise ProblemError(404, "FileNotFound", message) from error

    async def _store_upload(self, request: Request) -> RemoteFile:
        async with open_upload(request, self._hosting.max_upload) as (name, chunks), self._open_sandbox(request) as (sandbox, folder):
            request.state.session.has_state = True
            file = await sandbox.write(name, chunks, folder)
        request.state.session.saves.note_change()
        set_audit_event(request, "upload", bytes=file.size)
        return file

    @asynccontextmanager
    async def _open_files(self, request: Request) -> AsyncIterator[tuple[Files, str]]:
        """Open the files of the request's session for an `async with` block, and mark the session as in use meanwhile.

        Yield the files, and the folder that the request's query names.
        """
        async with self._open_sandbox(request) as (sandbox, folder):
            yield sandbox.files, folder

    @asynccontextmanager
    async def _open_sandbox(self, request: Request) -> AsyncIterator[tuple[Sandbox, str]]:
        identifier = check_identifier(request.query_params.get("identifier", ""))
        session = request.state.session = self._sessions.get(identifier)
        with session.keep_in_use():
            yield await session.sandbox(), request.query_params.get("path", "")

    @asynccontextmanager
    async def _locate_file(self, request: Request, path: str) -> AsyncIterator[tuple[Files, str, str]]:
        """Open the files of the request's session for an `async with` block, to access the file `path` among them.

        Yield the files, and the folder and the name of that file. `path` is relative to the folder that the request's query names. If the
        block raises an OSError about the file, raise a ProblemError with its path instead.
        """
        async with self._open_files(request) as (files, folder):
            try:
                below, name = split_path(path)
            except ValueError as error:
                raise ProblemError(400, "FilePathInvalid", str(error)) from error
            within = "/".join(filter(None, (folder, below)))
            try:
                yield files, within, name
            except OSError as error:
                problem = to_problem(error)
                if problem.status == 500:
                    raise  # not about this file
                whole = "/".join(filter(None, (within, name)))
                raise ProblemError(problem.status, problem.code, f"{whole!r:.80}: {problem.message}") from error


@asynccontextmanager
async def open_upload(request: Request, max_bytes: int) -> AsyncIterator[tuple[str, Iterator[bytes]]]:
    """Parse a request's form. Yield the uploaded file's name, and an iterator of its content for use within the `with` block.

    Raise ProblemError if the form has no file (400) or the file is larger than `max_bytes` (413).
    """
    labelled = await _with_form_type(_with_body_limit(request, max_bytes + _FORM_MARGIN, max_bytes))
    async with _parse_form(labelled) as form:
        upload = form.get("file")
        if not isinstance(upload, UploadFile):
            got = "one without a file name" if upload is not None else "no such part"
            said = f"the form must have a part 'file' with a file name, got {got}: send the file as multipart/form-data"
            raise ProblemError(400, "SessionRequestValidationFailed", said)
        if (upload.size or 0) > max_bytes:
            raise too_large_file_problem(max_bytes)
        yield (upload.filename or "").removeprefix("/mnt/data/"), iter(lambda: upload.file.read(1 << 20), b"")


@asynccontextmanager
async def _parse_form(request: Request) -> AsyncIterator[FormData]:
    """Parse a request's form and yield it for an `async with` block. starlette keeps a large file in the host's temporary folder.

    Raise ProblemError if it cannot be written there: 507 if the host's disk is full, otherwise 500. The message says that the host is at
    fault, and not the session's /mnt/data.
    """
    try:
        form = await request.form(max_files=1, max_fields=8)
    except OSError as error:
        _logger.error(
            "cannot keep an upload in this host's folder for temporary files (%s): free some disk there, or set TMPDIR to another folder",
            error.strerror,
        )
        raise _host_disk_problem(error) from error
    try:
        yield form
    finally:
        await form.close()


def _host_disk_problem(error: OSError) -> ProblemError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ProblemError(
            507, "HostStorageFull", "the disk of the server's host is full, not the session's: its operator must free space"
        )
    said = "the server cannot write to its host's folder for temporary files: its operator must set TMPDIR to a folder that it may write"
    return ProblemError(500, "HostStorageUnavailable", said)


async def _with_form_type(request: Request) -> Request:
    """Return the request with a corrected Content-Type header.

    Keep the header of a form (multipart/form-data). Do not trust any other: if the body begins like a form, replace it by the header of a
    form, otherwise remove it. For example, Semantic Kernel's tool labels its forms as application/json once it has run a cell.
    """
    if request.headers.get("content-type", "").startswith("multipart/form-data;"):
        return request
    messages, start, more = deque[Message](), b"", True
    while more and b"\n" not in start and len(start) < _FIRST_LINE:
        messages.append(await request.receive())
        start += messages[-1].get("body", b"")
        more = messages[-1].get("more_body", False)
    boundary = _BOUNDARY.match(start)
    headers = [(name, value) for name, value in Headers(scope=request.scope).raw if name != b"content-type"]
    if boundary:
        headers.append((b"content-type", b"multipart/form-data; boundary=" + boundary[1]))

    async def receive() -> Message:
        return messages.popleft() if messages else await request.receive()

    return Request({**request.scope, "headers": headers}, receive)


def _with_body_limit(request: Request, max_bytes: int, file_limit: int) -> Request:
    """Return the request with a limit on its body. Raise ProblemError (413) at once if its Content-Length is larger than `max_bytes`.

    Reading more than `max_bytes` from the returned request raises the same error, because a client can send more than its Content-Length,
    or announce no length. The error's message names `file_limit`, the limit for the file alone, without the rest of the form.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > max_bytes:
        raise too_large_file_problem(file_limit)
    received = 0

    async def receive() -> Message:
        nonlocal received
        message = await request.receive()
        received += len(message.get("body", b""))
        if received > max_bytes:
            raise too_large_file_problem(file_limit)
        return message

    return Request(request.scope, receive)


@dataclass(frozen=True, slots=True)
class Download:
    """A part of a file that is about to be sent: its content, its length in bytes, and the entity tag of the file's version."""

    chunks: AsyncIterator[bytes]
    length: int
    version: str


class DownloadReader:
    """A reader of parts of files, shared by all downloads of a server. It limits how many large parts are held in memory.

    A part of up to 8 MiB is read as a whole before the headers are sent, so that the entity tag in the headers fits the content. A larger
    part is read while it is sent, to save memory. So is a part of more than 256 KiB if 8 such parts are in memory already.
    """

    def __init__(self) -> None:
        self._parts_in_memory = 0

    async def prepare(self, reading: OpenFile, start: int, length: int | None, *, exact: bool, resources: AsyncExitStack) -> Download:
        """Prepare to send a part of a file. A small part is read at once.

        Args:
            reading: The open file.
            start: The offset of the part's first byte.
            length: How many bytes, or None for all that follow.
            exact: Whether all bytes must be of one version of the file, because the client may combine them with other parts of this
                version. If true, the response is cut off if the file changes meanwhile. If false, a large part may have bytes of several
                versions, and gets a weak entity tag.
            resources: The stack that is closed when everything is sent.
        """
        left = max(0, reading.size - start)
        length = left if length is None else min(length, left)
        if length > _CHUNK and (length > _MAX_PART_IN_MEMORY or self._parts_in_memory >= _MAX_PARTS_IN_MEMORY):
            reading.is_settled = reading.is_settled and exact
            return Download(_chunks(reading, start, length), length, reading.version)
        if length > _CHUNK:
            self._parts_in_memory += 1
            resources.callback(self._release_part)
        data = await to_thread.run_sync(reading.chunk, start, length)
        return Download(_split(data), len(data), reading.version)

    def _release_part(self) -> None:
        self._parts_in_memory -= 1


def _status_and_headers(start: int, length: int | None, download: Download, size: int) -> tuple[int, dict[str, str]]:
    headers = {"content-length": str(download.length)}
    if size == 0 or (length is None and start == 0):
        return 200, headers
    if not download.length:
        return 416, headers | {"content-range": f"bytes */{size}"}
    return 206, headers | {"content-range": f"bytes {start}-{start + download.length - 1}/{size}"}


class OwningResponse(StreamingResponse):
    """A streaming response that closes a stack of resources, such as the open file, when it is sent or its client has disconnected."""

    def __init__(
        self, chunks: AsyncIterator[bytes], status: int, headers: Mapping[str, str], *, media_type: str, resources: AsyncExitStack
    ) -> None:
        super().__init__(chunks, status, headers, media_type)
        self._resources = resources

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response, then close the stack."""
        async with self._resources:
            await super().__call__(scope, receive, send)


async def close_file(reading: OpenFile) -> None:
    """Close a file in a thread, because closing the last descriptor of a deleted file frees all its memory, which takes time."""
    with CancelScope(shield=True):
        await to_thread.run_sync(reading.close)


async def _chunks(reading: OpenFile, start: int, length: int) -> AsyncIterator[bytes]:
    promised = reading.is_settled
    end = start + length
    while start < end:
        try:
            data = await to_thread.run_sync(reading.chunk, start, min(_CHUNK, end - start))
        except OSError as error:
            raise ServiceError(404, "FileNotFound", "the session was ended while its file was sent") from error
        if not data or (promised and not reading.is_settled):
            raise ServiceError(412, "FileChanged", "the file changed while it was sent: read it again from its beginning")
        yield data
        start += len(data)


async def _split(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), _CHUNK):
        yield data[start : start + _CHUNK]
