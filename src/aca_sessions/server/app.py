"""The ASGI application: routes in, contract shapes out. What a request starts does not end with it."""

import re
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from anyio import to_thread
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import Message

from ..contract import extensions, flat
from ..contract.records import API_VERSION, ProblemError, encode_problem
from ..errors import GuestDiedError, IsolationError
from ..sandbox.files import Files
from .executions import Executions, RunningExecution
from .problems import problem_of
from .sessions import Sessions

Handler = Callable[[Request], Awaitable[Response]]

_AZURE_BASE = "/subscriptions/{subscription}/resourceGroups/{group}/sessionPools/{pool}"
_IDENTIFIER = re.compile(r"[\w|}{\[\]:\";'<>?/.,@#$%^&*()\-+=!~` ]{1,256}", re.ASCII)
_OPERATION_ID = re.compile(r"[\w.-]{1,128}", re.ASCII)
_FORM_MARGIN = 1 << 16
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


class Service:
    """The handlers of one server, over its sessions and executions."""

    def __init__(self, sessions: Sessions, executions: Executions, *, max_upload: int, max_request: int) -> None:
        """Serves what it is given; whoever made it ends it."""
        self._sessions = sessions
        self._executions = executions
        self._max_upload = max_upload
        self._max_request = max_request

    def app(self) -> Starlette:
        """The application, with every route at the root and below Azure's base path."""
        routes = self._routes()
        kinds = (ProblemError, OSError, ValueError, GuestDiedError, IsolationError, HTTPException)
        handlers = dict.fromkeys(kinds, _answer_problem)
        return Starlette(routes=[*routes, Mount(_AZURE_BASE, routes=routes)], exception_handlers=handlers)

    async def health(self, _request: Request) -> Response:
        """Says that the server answers, and how full it is."""
        return _json(extensions.encode_health(len(self._sessions), self._sessions.most))

    async def execute(self, request: Request) -> Response:
        """Runs a cell and waits for it, or not, as the caller wants."""
        identifier = _identifier(request)
        call = flat.decode_call(flat.parse(await _limited(request, self._max_request).body()))
        id = request.headers.get(flat.OPERATION_HEADER) or str(uuid.uuid4())
        if not _OPERATION_ID.fullmatch(id):
            raise ProblemError(400, "SessionRequestValidationFailed", "'operation-id' is not up to 128 letters, digits, '.', '_' or '-'")
        execution = self._executions.start(id, await self._sessions.enter(identifier), call)
        if not call.asynchronous:
            await execution.done.wait()
        return self._execution(request, execution)

    async def execution(self, request: Request) -> Response:
        """What became of an execution so far."""
        return self._execution(request, self._executions.find(_identifier(request), request.path_params["id"]))

    async def interrupt(self, request: Request) -> Response:
        """Interrupts an execution; its result says what that did."""
        execution = self._executions.find(_identifier(request), request.path_params["id"])
        self._executions.interrupt(execution)
        return self._execution(request, execution, status=202)

    async def list_files(self, request: Request) -> Response:
        """The files of a session."""
        recursive = request.query_params.get("recursive", "").lower() == "true"
        async with self._sessions.using(_identifier(request)) as session:
            files = (await session.sandbox()).files
            found = await to_thread.run_sync(lambda: files.listing(_folder(request), recursive=recursive))
        return _json(flat.encode_files(found))

    async def upload_file(self, request: Request) -> Response:
        """Takes a file into a session."""
        identifier = _identifier(request)
        async with _limited(request, self._max_upload + _FORM_MARGIN).form(max_files=1, max_fields=8) as form:
            upload = form.get("file")
            if not isinstance(upload, UploadFile):
                raise ProblemError(400, "SessionRequestValidationFailed", "the form has no part 'file' with a file name")
            if (upload.size or 0) > self._max_upload:
                raise _too_large(self._max_upload)
            name = (upload.filename or "").removeprefix("/mnt/data/")
            chunks = iter(lambda: upload.file.read(1 << 20), b"")
            async with self._sessions.using(identifier) as session:
                files = (await session.sandbox()).files
                written = await to_thread.run_sync(files.write, name, chunks, _folder(request))
        return _json(flat.encode_file(written))

    async def describe_file(self, request: Request) -> Response:
        """One file of a session."""
        return _json(flat.encode_file(await self._with_file(request, lambda files, name, folder: files.describe(name, folder))))

    async def download_file(self, request: Request) -> Response:
        """A file's content, or the range asked for."""
        start, length = _range(request)
        read = await self._with_file(request, lambda files, name, folder: files.read(name, folder, start=start, length=length))
        data, size = read
        if size == 0 or (length is None and start == 0):
            return Response(data, media_type="application/octet-stream", headers=_HEADERS | {"accept-ranges": "bytes"})
        shown = f"bytes {start}-{start + len(data) - 1}/{size}" if data else f"bytes */{size}"
        return Response(data, 206 if data else 416, media_type="application/octet-stream", headers=_HEADERS | {"content-range": shown})

    async def delete_file(self, request: Request) -> Response:
        """Deletes a file of a session."""
        await self._with_file(request, lambda files, name, folder: files.delete(name, folder))
        return Response(status_code=204, headers=_HEADERS)

    async def session(self, request: Request) -> Response:
        """What is known of a session; asking does not prolong it."""
        session = self._sessions.find(_identifier(request))
        return _json(flat.encode_session(self._sessions.info(session)))

    async def delete_session(self, request: Request) -> Response:
        """Ends a session."""
        await self._sessions.delete(_identifier(request))
        return Response(status_code=204, headers=_HEADERS)

    async def list_sessions(self, request: Request) -> Response:
        """The sessions of this server, a page at a time."""
        _checked_version(request)
        skip = request.query_params.get("skip", "0")
        if not skip.isdecimal():
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

    async def _with_file(self, request: Request, act: Callable[[Files, str, str], Any]) -> Any:
        folder, _, name = f"{_folder(request)}/{request.path_params['name']}".rpartition("/")
        async with self._sessions.using(_identifier(request)) as session:
            files = (await session.sandbox()).files
            return await to_thread.run_sync(act, files, name, folder)

    def _execution(self, request: Request, execution: RunningExecution, status: int = 200) -> Response:
        rich = request.headers.get(extensions.RICH_REQUEST_HEADER) == "1"
        response = _json(flat.encode_execution(execution.snapshot(), execution.call.output_limit, rich=rich), status)
        response.headers[flat.OPERATION_HEADER] = execution.id
        if execution.call.asynchronous:
            query = request.url.query
            response.headers["operation-location"] = f"{str(request.url).partition('/executions')[0]}/executions/{execution.id}?{query}"
        return response


_HEADERS = {extensions.OFFER_HEADER: ", ".join(extensions.OFFERED), "api-supported-versions": API_VERSION}


def _route(path: str, method: str, handler: Handler) -> Route:
    return Route(f"/{path}", handler, methods=[method])


def _json(content: object, status: int = 200) -> JSONResponse:
    return JSONResponse(content, status, headers=_HEADERS)


def _checked_version(request: Request) -> None:
    if request.query_params.get("api-version") != API_VERSION:
        raise ProblemError(400, "InvalidApiVersion", f"the query names no api-version that is served here; use api-version={API_VERSION}")


def _identifier(request: Request) -> str:
    _checked_version(request)
    identifier = request.query_params.get("identifier", "")
    if not _IDENTIFIER.fullmatch(identifier):
        raise ProblemError(400, "SessionRequestValidationFailed", "the query has no usable identifier (1 to 256 letters, digits or signs)")
    return identifier


def _folder(request: Request) -> str:
    return request.query_params.get("path", "")


def _range(request: Request) -> tuple[int, int | None]:
    wanted = _RANGE.fullmatch(request.headers.get("range", ""))
    if not wanted:
        return 0, None
    start, end = int(wanted[1]), wanted[2]
    return start, max(0, int(end) - start + 1) if end else None


def _limited(request: Request, most: int) -> Request:
    """The request, which fails once more than so many bytes have come: a length that was announced is only a promise."""
    if int(request.headers.get("content-length") or 0) > most:
        raise _too_large(most)
    received = 0

    async def receive() -> Message:
        nonlocal received
        message = await request.receive()
        received += len(message.get("body", b""))
        if received > most:
            raise _too_large(most)
        return message

    return Request(request.scope, receive)


def _too_large(most: int) -> ProblemError:
    return ProblemError(413, "RequestTooLarge", f"this may have at most {most} bytes")


async def _answer_problem(_request: Request, error: Exception) -> Response:
    problem = problem_of(error)
    response = _json(encode_problem(problem), problem.status)
    response.headers["x-ms-error-code"] = problem.code
    return response
