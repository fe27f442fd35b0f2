"""The ASGI application: routes in, contract shapes out. What a request starts does not end with it."""

import logging
import re
import traceback
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from anyio import to_thread
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..contract import extensions, flat
from ..contract.extensions import EVERY_ANSWER
from ..contract.records import API_VERSION, IDENTIFIER, ProblemError, encode_problem, split_path
from ..hosting import Hosting
from ..sandbox.files import Files
from .executions import RunningExecution
from .guard import Guard
from .problems import problem_of
from .sessions import Sessions

Handler = Callable[[Request], Awaitable[Response]]

_AZURE_BASE = "/subscriptions/{subscription}/resourceGroups/{group}/sessionPools/{pool}"
_OPERATION_ID = re.compile(r"[\w.-]{1,128}", re.ASCII)
_RANGE = re.compile(r"bytes=(\d{1,18})-(\d{0,18})", re.ASCII)
_SKIP = re.compile(r"\d{1,9}", re.ASCII)
_FORM_MARGIN = 1 << 16
_logger = logging.getLogger("aca_sessions")


class Service:
    """The handlers of one server, over its sessions."""

    def __init__(self, sessions: Sessions, hosting: Hosting) -> None:
        """Serves the sessions that it is given, which stay their owner's; every route stands at the root and below Azure's base path."""
        self._sessions = sessions
        self._max_upload = hosting.max_upload
        self._max_request = hosting.max_request
        routes = self._routes()
        app = Starlette(routes=[*routes, Mount(_AZURE_BASE, routes=routes)], exception_handlers={HTTPException: _answer_http_problem})
        guarded = hosting.api_key or hosting.allowed_hosts
        self._app: ASGIApp = Guard(app, api_key=hosting.api_key or "", allowed_hosts=hosting.allowed_hosts) if guarded else app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Is an ASGI application."""
        await self._app(scope, receive, send)

    async def drain(self, within: float) -> None:
        """Lets running cells end, but waits no longer than so many seconds; then their sessions end, and their callers are told."""
        await self._sessions.finish(within)
        await self._sessions.close()

    async def health(self, _request: Request) -> Response:
        """Says whether the server can give sessions, and how full it is."""
        healthy = self._sessions.healthy
        return _json(extensions.encode_health(len(self._sessions), self._sessions.most, healthy=healthy), 200 if healthy else 503)

    async def execute(self, request: Request) -> Response:
        """Runs a cell and waits for it, or not, as the caller wants."""
        identifier = _identifier(request)
        call = flat.decode_call(flat.parse(await _limited(request, self._max_request, self._max_request).body()))
        id = request.headers.get(flat.OPERATION_HEADER) or str(uuid.uuid4())
        if not _OPERATION_ID.fullmatch(id):
            raise ProblemError(400, "SessionRequestValidationFailed", "'operation-id' is not up to 128 letters, digits, '.', '_' or '-'")
        execution = self._sessions.execute(identifier, id, call)
        if not call.asynchronous:
            await execution.done.wait()
        return _execution(request, execution)

    async def execution(self, request: Request) -> Response:
        """What became of an execution so far."""
        return _execution(request, self._sessions.find(_identifier(request)).executions.find(request.path_params["id"]))

    async def interrupt(self, request: Request) -> Response:
        """Interrupts an execution; its result says what that did."""
        self._sessions.interrupt(_identifier(request), request.path_params["id"])
        return _json({}, 202)

    async def list_files(self, request: Request) -> Response:
        """The files of a session."""
        recursive = request.query_params.get("recursive", "").lower() == "true"
        async with self._files(request) as (files, folder):
            found = await to_thread.run_sync(lambda: files.listing(folder, recursive=recursive))
        return _json(flat.encode_files(found))

    async def upload_file(self, request: Request) -> Response:
        """Takes a file into a session."""
        async with _limited(request, self._max_upload + _FORM_MARGIN, self._max_upload).form(max_files=1, max_fields=8) as form:
            upload = form.get("file")
            if not isinstance(upload, UploadFile):
                raise ProblemError(400, "SessionRequestValidationFailed", "the form has no part 'file' with a file name")
            if (upload.size or 0) > self._max_upload:
                raise _too_large(self._max_upload)
            name = (upload.filename or "").removeprefix("/mnt/data/")
            chunks = iter(lambda: upload.file.read(1 << 20), b"")
            async with self._files(request) as (files, folder):
                written = await to_thread.run_sync(files.write, name, chunks, folder)
        return _json(flat.encode_file(written))

    async def describe_file(self, request: Request) -> Response:
        """One file of a session."""
        async with self._file(request) as (files, folder, name):
            file = await to_thread.run_sync(files.describe, name, folder)
        return _json(flat.encode_file(file))

    async def download_file(self, request: Request) -> Response:
        """A file's content, or the range asked for."""
        start, length = _range(request)
        async with self._file(request) as (files, folder, name):
            data, size = await to_thread.run_sync(lambda: files.read(name, folder, start=start, length=length))
        if size == 0 or (length is None and start == 0):
            return Response(data, media_type="application/octet-stream", headers=EVERY_ANSWER | {"accept-ranges": "bytes"})
        shown = f"bytes {start}-{start + len(data) - 1}/{size}" if data else f"bytes */{size}"
        return Response(data, 206 if data else 416, media_type="application/octet-stream", headers=EVERY_ANSWER | {"content-range": shown})

    async def delete_file(self, request: Request) -> Response:
        """Deletes a file of a session."""
        async with self._file(request) as (files, folder, name):
            await to_thread.run_sync(files.delete, name, folder)
        return Response(status_code=204, headers=EVERY_ANSWER)

    async def session(self, request: Request) -> Response:
        """What is known of a session; asking does not prolong it."""
        session = self._sessions.find(_identifier(request))
        return _json(flat.encode_session(self._sessions.info(session)))

    async def delete_session(self, request: Request) -> Response:
        """Ends a session."""
        await self._sessions.delete(_identifier(request))
        return Response(status_code=204, headers=EVERY_ANSWER)

    async def list_sessions(self, request: Request) -> Response:
        """The sessions of this server, a page at a time."""
        _checked_version(request)
        skip = request.query_params.get("skip", "0")
        if not _SKIP.fullmatch(skip):
            raise ProblemError(400, "SessionRequestValidationFailed", "'skip' is not a number")
        return _json({"sessions": [flat.encode_session(info) for info in self._sessions.infos(int(skip))]})

    def _routes(self) -> list[Route]:
        return [
            _route(extensions.HEALTH_PATH, "GET", self.health),
            _route("executions", "POST", self.execute),
            _route("executions/{id}", "GET", self.execution),
            _route(extensions.INTERRUPT_PATH, "POST", self.interrupt),
            _route("files", "GET", self.list_files),
            _route("files", "POST", self.upload_file),
            _route("files/{name:path}/content", "GET", self.download_file),
            _route("files/{name:path}", "GET", self.describe_file),
            _route("files/{name:path}", "DELETE", self.delete_file),
            _route("session", "GET", self.session),
            _route("session", "DELETE", self.delete_session),
            _route("listSessions", "GET", self.list_sessions),
        ]

    @asynccontextmanager
    async def _files(self, request: Request) -> AsyncIterator[tuple[Files, str]]:
        """The files of the request's session, and the folder that it names."""
        session = self._sessions.get(_identifier(request))
        with session.used():
            yield (await session.sandbox()).files, request.query_params.get("path", "")

    @asynccontextmanager
    async def _file(self, request: Request) -> AsyncIterator[tuple[Files, str, str]]:
        """The same, and the file that the path names."""
        async with self._files(request) as (files, folder):
            below, name = split_path(request.path_params["name"])
            yield files, "/".join((folder, below)), name


def _execution(request: Request, execution: RunningExecution) -> Response:
    rich = request.headers.get(extensions.RICH_REQUEST_HEADER) == "1"
    response = _json(flat.encode_execution(execution.snapshot(), execution.call.output_limit, rich=rich))
    response.headers[flat.OPERATION_HEADER] = execution.id
    if execution.call.asynchronous:
        base = str(request.url).partition("/executions")[0]
        response.headers["operation-location"] = f"{base}/executions/{execution.id}?{request.url.query}"
    return response


def _route(path: str, method: str, handler: Handler) -> Route:
    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it
        except Exception as error:
            return _answer_problem(error)

    return Route(f"/{path}", answer, methods=[method])


def _answer_problem(error: Exception) -> Response:
    problem = problem_of(error)
    if problem.status == 500:
        where = traceback.extract_tb(error.__traceback__)[-1]
        _logger.error("a request failed: %s at %s:%s", type(error).__name__, where.filename, where.lineno)
    response = _json(encode_problem(problem), problem.status)
    response.headers["x-ms-error-code"] = problem.code
    return response


async def _answer_http_problem(_request: Request, error: Exception) -> Response:
    return _answer_problem(error)


def _json(content: object, status: int = 200) -> JSONResponse:
    return JSONResponse(content, status, headers=EVERY_ANSWER)


def _checked_version(request: Request) -> None:
    if request.query_params.get("api-version") != API_VERSION:
        raise ProblemError(400, "InvalidApiVersion", f"the query names no api-version that is served here; use api-version={API_VERSION}")


def _identifier(request: Request) -> str:
    _checked_version(request)
    identifier = request.query_params.get("identifier", "")
    if not IDENTIFIER.fullmatch(identifier):
        raise ProblemError(400, "SessionRequestValidationFailed", "the identifier is not 1 to 256 ASCII letters, digits or signs")
    return identifier


def _range(request: Request) -> tuple[int, int | None]:
    wanted = _RANGE.fullmatch(request.headers.get("range", ""))
    if not wanted:
        return 0, None
    start, end = int(wanted[1]), wanted[2]
    return start, max(0, int(end) - start + 1) if end else None


def _limited(request: Request, most: int, told: int) -> Request:
    """The request, which fails once more than so many bytes have come: a length that was announced is only a promise."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > most:
        raise _too_large(told)
    received = 0

    async def receive() -> Message:
        nonlocal received
        message = await request.receive()
        received += len(message.get("body", b""))
        if received > most:
            raise _too_large(told)
        return message

    return Request(request.scope, receive)


def _too_large(most: int) -> ProblemError:
    return ProblemError(413, "RequestTooLarge", f"this may have at most {most} bytes")
