"""The routes of cells: execute, get an execution, interrupt, reset. An execution does not end with the request that started it."""

import re
import uuid
from dataclasses import replace

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..contract import events, extensions, flat, legacy, shell, timeline, values
from ..contract.records import ExecutionCall, ProblemError
from ..contract.versions import Version
from ..hosting import Hosting
from .executions import RunningExecution
from .requests import addressed, check_route, checked_identifier
from .sessions import Sessions
from .table import Routes
from .uploads import limited

_OPERATION_ID = re.compile(r"[\w.-]{1,128}", re.ASCII)


class CellRoutes:
    """The handlers of cells, for the sessions of one server."""

    def __init__(self, sessions: Sessions, hosting: Hosting) -> None:
        self._sessions = sessions
        self._hosting = hosting

    def table(self) -> Routes:
        """Return the routes: Azure's, and the extensions if they are offered."""
        ours: Routes = [
            (extensions.INTERRUPT_PATH, "POST", self.interrupt),
            (extensions.INTERRUPT_SESSION_PATH, "POST", self.interrupt_session),
            (extensions.RESET_PATH, "POST", self.reset),
        ]
        return [
            ("executions", "POST", self.execute),
            ("code/execute", "POST", self.execute),
            ("executions/{id}", "GET", self.execution),
            ("python/execute", "POST", self.legacy_execute),
            *([] if self._hosting.plain else ours),
        ]

    async def execute(self, request: Request) -> Response:
        """Run a cell, and wait for it unless the call is asynchronous."""
        version, identifier = addressed(request, plain=self._hosting.plain)
        check_route(request, version.dialect.EXECUTE_PATH)
        call = self._decoded(version, await self._json(request))
        if not self._hosting.plain:
            answered = events.decode_answered(request.headers.get(events.ANSWERED_HEADER, ""))
            call = replace(call, answered=answered, transactional=request.headers.get(timeline.TRANSACTIONAL_HEADER) == "1")
        id = request.headers.get(flat.OPERATION_HEADER) or str(uuid.uuid4())
        if not _OPERATION_ID.fullmatch(id):
            raise ProblemError(400, "SessionRequestValidationFailed", "'operation-id' is not up to 128 letters, digits, '.', '_' or '-'")
        return self._answer(request, version, await self._executed(request, identifier, id, call))

    async def execution(self, request: Request) -> Response:
        """Return what is known of an execution now."""
        version, identifier = addressed(request, plain=self._hosting.plain)
        check_route(request, version.dialect.EXECUTE_PATH, whole=False)
        return self._answer(request, version, self._sessions.execution(identifier, request.path_params["id"]))

    async def interrupt(self, request: Request) -> Response:
        """Interrupt an execution. Its result shows what that did."""
        _, identifier = addressed(request, plain=False)
        self._sessions.interrupt(identifier, request.path_params["id"])
        return JSONResponse({}, 202)

    async def interrupt_session(self, request: Request) -> Response:
        """Interrupt the execution that runs in a session, if there is one."""
        _, identifier = addressed(request, plain=False)
        self._sessions.find(identifier).executions.interrupt_running()
        return JSONResponse({}, 202)

    async def reset(self, request: Request) -> Response:
        """End a session's interpreter, processes and checkpoints. Its files stay, and its next cell gets a fresh interpreter."""
        _, identifier = addressed(request, plain=False)
        session = request.state.session = self._sessions.get(identifier)
        with session.used():
            position = await (await session.sandbox()).reset()
        return JSONResponse(extensions.encode_position(session.ledger.id, position))

    async def legacy_execute(self, request: Request) -> Response:
        """Run a cell in the dialect of the private preview."""
        if self._hosting.shell:
            raise ProblemError(404, "NotFound", "a pool of shells has no python/execute")
        call, named = legacy.decode_call(await self._json(request))
        identifier = checked_identifier(request.query_params.get("identifier") or named or "")
        execution = await self._executed(request, identifier, str(uuid.uuid4()), call)
        execution.note_fetched()
        return JSONResponse(legacy.encode_execution(execution.snapshot(), call.output_limit))

    async def _json(self, request: Request) -> object:
        most = self._hosting.max_request
        return values.parse(await limited(request, most, most).body())

    async def _executed(self, request: Request, identifier: str, id: str, call: ExecutionCall) -> RunningExecution:
        execution = self._sessions.execute(identifier, id, call)
        request.state.session = self._sessions.get(identifier)
        if not call.asynchronous:
            await execution.done.wait()
        return execution

    def _decoded(self, version: Version, body: object) -> ExecutionCall:
        if self._hosting.shell:
            return shell.decode_call(body, version=version.name, supported=version.has_sessions)
        return version.dialect.decode_call(body, lenient=self._hosting.lenient)

    def _answer(self, request: Request, version: Version, execution: RunningExecution) -> Response:
        rich = not self._hosting.plain and request.headers.get(extensions.RICH_REQUEST_HEADER) == "1"
        body = encoded(version, execution, rich=rich, since=request.headers.get(extensions.SINCE_HEADER))
        response = JSONResponse(body, headers={flat.OPERATION_HEADER: execution.id})
        if execution.call.asynchronous:
            base = str(request.url).partition("/executions")[0]
            response.headers["operation-location"] = f"{base}/executions/{execution.id}?{request.url.query}"
        return response


def encoded(version: Version, execution: RunningExecution, *, rich: bool, since: str | None) -> dict[str, object]:
    """Return an execution in the dialect of an api-version, or of a pool of shells. Count its result as fetched.

    Args:
        version: The api-version of the request.
        execution: The execution.
        rich: Whether the caller asked for the extensions.
        since: The caller's position in the session's ledger, or None if it named none.
    """
    limit = execution.call.output_limit
    snapshot = execution.snapshot(since)
    execution.note_fetched()
    if execution.call.command is not None:
        return shell.encode_execution(snapshot, limit)
    return version.dialect.encode_execution(snapshot, limit, rich=rich)
