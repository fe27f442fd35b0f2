"""The ASGI application: routes in, contract shapes out. What a request starts does not end with it."""

import logging
import re
import traceback
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from anyio import to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from ..contract import extensions, flat, legacy, management, values
from ..contract.records import IDENTIFIER, ExecutionCall, ProblemError, encode_problem, split_path
from ..contract.versions import VERSIONS, Version, version_named
from ..hosting import Hosting
from ..models import RemoteFile
from ..sandbox.files import Files
from .executions import RunningExecution
from .guard import Guard
from .problems import problem_of
from .sessions import Sessions
from .uploads import limited, uploaded

Handler = Callable[[Request], Awaitable[Response]]

SUPPORTED = {"api-supported-versions": ", ".join(VERSIONS)}
_AZURE_BASE = "/subscriptions/{subscription}/resourceGroups/{group}/sessionPools/{pool}"
_BINARY = "application/octet-stream"
_OPERATION_ID = re.compile(r"[\w.-]{1,128}", re.ASCII)
_RANGE = re.compile(r"bytes=(\d{1,18})-(\d{0,18})", re.ASCII)
_SKIP = re.compile(r"\d{1,9}", re.ASCII)
_logger = logging.getLogger("aca_sessions")


class Service:
    """The handlers of one server, over its sessions. Which api-version a request speaks is the contract's to know."""

    def __init__(self, sessions: Sessions, hosting: Hosting) -> None:
        """Serves the sessions that it is given, which stay their owner's; every route stands at the root and below Azure's base path."""
        self._sessions = sessions
        self._hosting = hosting
        self._headers = SUPPORTED if hosting.plain else SUPPORTED | extensions.OFFER
        routes = [self._route(*route) for route in self._table()]
        problems: Any = {HTTPException: self._answer_http_problem}
        app = Starlette(routes=[*routes, Mount(_AZURE_BASE, routes=routes)], exception_handlers=problems)
        guarded = hosting.api_key or hosting.allowed_hosts
        guard = Guard(app, api_key=hosting.api_key or "", allowed_hosts=hosting.allowed_hosts, headers=self._headers)
        self._app: ASGIApp = guard if guarded else app

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
        return JSONResponse(extensions.encode_health(len(self._sessions), self._sessions.most, healthy=healthy), 200 if healthy else 503)

    async def execute(self, request: Request) -> Response:
        """Runs a cell and waits for it, or not, as the caller wants."""
        version, identifier = self._addressed(request)
        _check_route(request, version.dialect.EXECUTE_PATH)
        call = version.dialect.decode_call(await self._json(request), lenient=self._hosting.lenient)
        id = request.headers.get(flat.OPERATION_HEADER) or str(uuid.uuid4())
        if not _OPERATION_ID.fullmatch(id):
            raise ProblemError(400, "SessionRequestValidationFailed", "'operation-id' is not up to 128 letters, digits, '.', '_' or '-'")
        return self._execution(request, version, await self._executed(request, identifier, id, call))

    async def execution(self, request: Request) -> Response:
        """What became of an execution so far."""
        version, identifier = self._addressed(request)
        _check_route(request, version.dialect.EXECUTE_PATH, whole=False)
        return self._execution(request, version, self._sessions.find(identifier).executions.find(request.path_params["id"]))

    async def interrupt(self, request: Request) -> Response:
        """Interrupts an execution; its result says what that did."""
        _, identifier = self._addressed(request)
        self._sessions.interrupt(identifier, request.path_params["id"])
        return JSONResponse({}, 202)

    async def list_files(self, request: Request) -> Response:
        """The files of a session."""
        version, _ = self._addressed(request)
        recursive = request.query_params.get("recursive", "").lower() == "true"
        async with self._files(request) as (files, folder):
            found = await to_thread.run_sync(lambda: files.listing(folder, recursive=recursive))
        return JSONResponse(version.dialect.encode_files(found))

    async def upload_file(self, request: Request) -> Response:
        """Takes a file into a session."""
        version, _ = self._addressed(request)
        _check_route(request, version.dialect.UPLOAD_PATH)
        return JSONResponse(version.dialect.encode_upload(await self._uploaded(request)))

    async def file(self, request: Request) -> Response:
        """A file's content or what is known of it: the generations' paths for the two look like each other's."""
        version, _ = self._addressed(request)
        name = version.dialect.content_named(request.path_params["name"])
        if name is not None:
            request.path_params["name"] = name
            return await self.download_file(request)
        async with self._file(request) as (files, folder, name):
            file = await to_thread.run_sync(files.describe, name, folder)
        return JSONResponse(version.dialect.encode_file(file))

    async def download_file(self, request: Request) -> Response:
        """A file's content, or the range asked for."""
        start, length = (0, None) if self._hosting.plain else _range(request)
        async with self._file(request) as (files, folder, name):
            data, size = await to_thread.run_sync(lambda: files.read(name, folder, start=start, length=length))
        if size == 0 or (length is None and start == 0):
            return Response(data, media_type=_BINARY)
        shown = f"bytes {start}-{start + len(data) - 1}/{size}" if data else f"bytes */{size}"
        return Response(data, 206 if data else 416, media_type=_BINARY, headers={"content-range": shown})

    async def delete_file(self, request: Request) -> Response:
        """Deletes a file of a session."""
        version, _ = self._addressed(request)
        async with self._file(request) as (files, folder, name):
            await to_thread.run_sync(files.delete, name, folder)
        said = version.dialect.DELETED
        return Response(status_code=204) if said is None else JSONResponse(said)

    async def session(self, request: Request) -> Response:
        """What is known of a session; asking does not prolong it."""
        session = self._sessions.find(self._addressed_session(request))
        return JSONResponse(flat.encode_session(self._sessions.info(session)), headers={"x-ms-session-etag": session.etag})

    async def delete_session(self, request: Request) -> Response:
        """Ends a session."""
        await self._sessions.delete(self._addressed_session(request))
        return Response(status_code=204)

    async def list_sessions(self, request: Request) -> Response:
        """The sessions of this server, a page at a time."""
        _with_sessions(request)
        return JSONResponse({"sessions": [flat.encode_session(info) for info in self._sessions.infos(_skip(request))]})

    async def metadata(self, request: Request) -> Response:
        """What a session finds installed."""
        _with_sessions(request)
        return JSONResponse(flat.encode_metadata(*await to_thread.run_sync(self._sessions.environment)))

    async def managed_session(self, request: Request) -> Response:
        """The same as `session`, in the words of the platform."""
        session = self._sessions.find(self._addressed(request)[1])
        return JSONResponse(management.encode_session(self._sessions.info(session)))

    async def managed_sessions(self, request: Request) -> Response:
        """The same as `listSessions`, in the words of the platform."""
        _version(request)
        skip = _skip(request)
        infos, total = self._sessions.infos(skip), len(self._sessions)
        return JSONResponse(management.encode_sessions(infos, total, skip, str(request.url.replace(query=""))))

    async def stop_session(self, request: Request) -> Response:
        """Sessions of containers are stopped this way; those of interpreters are deleted."""
        self._addressed(request)
        raise ProblemError(400, "SessionRequestNotSupported", "a code interpreter's session is ended by DELETE session")

    async def legacy_execute(self, request: Request) -> Response:
        """Runs a cell in the words of the private preview."""
        call, named = legacy.decode_call(await self._json(request))
        identifier = request.query_params.get("identifier") or named or ""
        execution = await self._executed(request, _checked_identifier(identifier, IDENTIFIER), str(uuid.uuid4()), call)
        return JSONResponse(legacy.encode_execution(execution.snapshot(), call.output_limit))

    async def legacy_upload(self, request: Request) -> Response:
        """Takes a file in the words of the private preview."""
        return JSONResponse(legacy.encode_files([await self._uploaded(request)]))

    async def legacy_files(self, request: Request) -> Response:
        """Lists files in the words of the private preview."""
        async with self._files(request) as (files, folder):
            return JSONResponse(legacy.encode_files(await to_thread.run_sync(files.listing, folder)))

    async def legacy_download(self, request: Request) -> Response:
        """A file's content in the words of the private preview."""
        request.path_params["name"] = request.query_params.get("filename", "")
        return await self.download_file(request)

    def _table(self) -> list[tuple[str, str, Handler]]:
        azure = [
            ("executions", "POST", self.execute),
            ("code/execute", "POST", self.execute),
            ("executions/{id}", "GET", self.execution),
            ("files", "GET", self.list_files),
            ("files", "POST", self.upload_file),
            ("files/upload", "POST", self.upload_file),
            ("files/{name:path}", "GET", self.file),
            ("files/{name:path}", "DELETE", self.delete_file),
            ("session", "GET", self.session),
            ("session", "DELETE", self.delete_session),
            ("listSessions", "GET", self.list_sessions),
            ("metadata", "GET", self.metadata),
            (".management/getSession", "POST", self.managed_session),
            (".management/listSessions", "POST", self.managed_sessions),
            (".management/stopSession", "POST", self.stop_session),
            ("python/execute", "POST", self.legacy_execute),
            ("python/uploadFile", "POST", self.legacy_upload),
            ("python/files", "GET", self.legacy_files),
            ("python/downloadFile", "GET", self.legacy_download),
        ]
        ours = [] if self._hosting.plain else [(extensions.INTERRUPT_PATH, "POST", self.interrupt)]
        return [(extensions.HEALTH_PATH, "GET", self.health), *ours, *azure]

    def _route(self, path: str, method: str, handler: Handler) -> Route:
        async def answer(request: Request) -> Response:
            try:
                response = await handler(request)
            except ClientDisconnect:
                response = Response(status_code=400)  # nobody reads it
            except Exception as error:
                response = _problem(error)
            response.headers.update(self._headers)
            if (session := getattr(request.state, "session", None)) is not None:
                response.headers.update(session.take_headers())
            return response

        return Route(f"/{path}", answer, methods=[method])

    async def _answer_http_problem(self, _request: Request, error: HTTPException) -> Response:
        response = _problem(error)
        response.headers.update(self._headers)
        return response

    def _addressed(self, request: Request) -> tuple[Version, str]:
        """The api-version and the session that a request names."""
        version = _version(request)
        allowed = version.identifier if self._hosting.plain else IDENTIFIER
        return version, _checked_identifier(request.query_params.get("identifier", ""), allowed)

    def _addressed_session(self, request: Request) -> str:
        _with_sessions(request)
        return self._addressed(request)[1]

    async def _json(self, request: Request) -> object:
        most = self._hosting.max_request
        return values.parse(await limited(request, most, most).body())

    async def _executed(self, request: Request, identifier: str, id: str, call: ExecutionCall) -> RunningExecution:
        execution = self._sessions.execute(identifier, id, call)
        request.state.session = self._sessions.get(identifier)
        if not call.asynchronous:
            await execution.done.wait()
        return execution

    def _execution(self, request: Request, version: Version, execution: RunningExecution) -> Response:
        rich = not self._hosting.plain and request.headers.get(extensions.RICH_REQUEST_HEADER) == "1"
        body = version.dialect.encode_execution(execution.snapshot(), execution.call.output_limit, rich=rich)
        response = JSONResponse(body, headers={flat.OPERATION_HEADER: execution.id})
        if execution.call.asynchronous:
            base = str(request.url).partition("/executions")[0]
            response.headers["operation-location"] = f"{base}/executions/{execution.id}?{request.url.query}"
        return response

    async def _uploaded(self, request: Request) -> RemoteFile:
        async with uploaded(request, self._hosting.max_upload) as (name, chunks), self._files(request) as (files, folder):
            return await to_thread.run_sync(files.write, name, chunks, folder)

    @asynccontextmanager
    async def _files(self, request: Request) -> AsyncIterator[tuple[Files, str]]:
        """The files of the request's session, and the folder that it names."""
        identifier = request.query_params.get("identifier", "")
        session = request.state.session = self._sessions.get(_checked_identifier(identifier, IDENTIFIER))
        with session.used():
            yield (await session.sandbox()).files, request.query_params.get("path", "")

    @asynccontextmanager
    async def _file(self, request: Request) -> AsyncIterator[tuple[Files, str, str]]:
        """The same, and the file that the path names."""
        async with self._files(request) as (files, folder):
            below, name = split_path(request.path_params["name"])
            yield files, "/".join((folder, below)), name


def _version(request: Request) -> Version:
    return version_named(request.query_params.get("api-version"))


def _with_sessions(request: Request) -> None:
    version = _version(request)
    if not version.has_sessions:
        raise ProblemError(404, "NotFound", f"{version.name} has no sessions to ask for: they came with 2025-02-02-preview")


def _check_route(request: Request, path: str, *, whole: bool = True) -> None:
    """Each generation has its own routes; the others' are not there."""
    found = request.url.path.rstrip("/")
    if not (found.endswith(f"/{path}") if whole else f"/{path}/" in found):
        raise ProblemError(404, "NotFound", f"this api-version has this under another path: {path}")


def _checked_identifier(identifier: str, allowed: re.Pattern[str]) -> str:
    if not allowed.fullmatch(identifier):
        raise ProblemError(
            400, "SessionRequestValidationFailed", "the identifier is missing, or not of the characters and length allowed here"
        )
    return identifier


def _skip(request: Request) -> int:
    skip = request.query_params.get("skip", "0")
    if not _SKIP.fullmatch(skip):
        raise ProblemError(400, "SessionRequestValidationFailed", "'skip' is not a number")
    return int(skip)


def _range(request: Request) -> tuple[int, int | None]:
    wanted = _RANGE.fullmatch(request.headers.get("range", ""))
    if not wanted:
        return 0, None
    start, end = int(wanted[1]), wanted[2]
    return start, max(0, int(end) - start + 1) if end else None


def _problem(error: Exception) -> Response:
    problem = problem_of(error)
    if problem.status == 500:
        where = traceback.extract_tb(error.__traceback__)[-1]
        _logger.error("a request failed: %s at %s:%s", type(error).__name__, where.filename, where.lineno)
    return JSONResponse(encode_problem(problem), problem.status, headers={"x-ms-error-code": problem.code})
