"""The routes of cells: run a cell, read its events, reply to its questions, interrupt it, and reset its session.

A cell continues if the connection of the request that started it is closed.
"""

import math
import re
import uuid
from dataclasses import replace

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..contract import extensions, flat, nested, shell
from ..contract.records import ProblemError, invalid
from ..contract.versions import Version
from ..hosting import Hosting
from .executions import RunningExecution
from .routing import Routes, check_identifier, check_route, read_address, read_after_number, read_json
from .sessions import Sessions

_OPERATION_ID = re.compile(r"[\w.-]{1,128}", re.ASCII)
_MAX_REPLY = 64 << 20


class CellRoutes:
    """The handlers of requests about cells, for the sessions of one server."""

    def __init__(self, sessions: Sessions, hosting: Hosting) -> None:
        self._sessions = sessions
        self._hosting = hosting

    def routes(self) -> Routes:
        """Return the routes of cells: those of Azure's API, and the extensions if the server offers them."""
        routes: Routes = [
            ("executions", "POST", self.execute),
            ("code/execute", "POST", self.execute),
            ("executions/{id}", "GET", self.get_execution),
            ("python/execute", "POST", self.legacy_execute),
        ]
        if not self._hosting.plain:
            routes += [
                (extensions.INTERRUPT_PATH, "POST", self.interrupt),
                (extensions.INTERRUPT_SESSION_PATH, "POST", self.interrupt_session),
                (extensions.RESET_PATH, "POST", self.reset),
                (extensions.EVENTS_PATH, "GET", self.get_events),
                (extensions.REPLIES_PATH, "POST", self.reply),
            ]
        return routes

    async def execute(self, request: Request) -> Response:
        """Run a cell and return its execution. Wait until the cell has ended, unless the request is `Asynchronous`.

        If the cell asks a question that its caller answers, return the running execution, so that the caller can follow it.
        """
        version, identifier = read_address(request, plain=self._hosting.plain)
        check_route(request, version.dialect.EXECUTE_PATH)
        body = await read_json(request, self._hosting.max_request)
        if self._hosting.shell:
            call = shell.decode_request(body, version=version.name, supported=version.has_sessions)
        else:
            call = version.dialect.decode_request(body, lenient=self._hosting.lenient)
        if not self._hosting.plain:
            if kinds := request.headers.get(extensions.ANSWERED_HEADER):
                call = replace(call, answered=extensions.decode_answered_kinds(kinds))
            if request.headers.get(extensions.TRANSACTIONAL_HEADER) == "1":
                call = replace(call, transactional=True)
            call = replace(
                call,
                after_success=request.headers.get(extensions.AFTER_SUCCESS_HEADER) == "1",
                gentle=request.headers.get(extensions.GENTLE_HEADER) == "1",
            )
        id = request.headers.get(flat.OPERATION_HEADER) or str(uuid.uuid4())
        if not _OPERATION_ID.fullmatch(id):
            raise invalid(f"the header operation-id must be 1 to 128 letters, digits, '.', '_' or '-', got {id!r:.80}")
        await self._sessions.prepare(identifier)
        execution = self._sessions.execute(identifier, id, call)
        request.state.session = execution.session
        if not call.asynchronous:
            await execution.has_response.wait()
        return self._respond(request, version, execution)

    async def get_execution(self, request: Request) -> Response:
        """Return an execution as it is now, with its result if it has ended."""
        version, identifier = read_address(request, plain=self._hosting.plain)
        check_route(request, version.dialect.EXECUTE_PATH, whole=False)
        return self._respond(request, version, self._sessions.find_execution(identifier, request.path_params["id"]))

    async def interrupt(self, request: Request) -> Response:
        """Interrupt the cell of an execution. If the cell has not started yet, keep it from starting.

        Respond at once. The execution's result, which comes later, shows whether the interrupt stopped the cell. If it did not, the
        interpreter is killed, unless the cell or this request was sent with the header `x-aca-sessions-gentle: 1`.
        """
        _, identifier = read_address(request, plain=False)
        gentle = request.headers.get(extensions.GENTLE_HEADER) == "1"
        self._sessions.interrupt(identifier, request.path_params["id"], gentle=gentle)
        return JSONResponse({}, 202)

    async def interrupt_session(self, request: Request) -> Response:
        """Interrupt the cell that runs in a session, if there is one. Cells that wait for their turn are not affected."""
        _, identifier = read_address(request, plain=False)
        executions = self._sessions.find(identifier).executions
        if executions.running is not None:  # those that wait for their turn are left alone
            executions.interrupt(executions.running)
        return JSONResponse({}, 202)

    async def reset(self, request: Request) -> Response:
        """Reset a session: end its interpreter and other processes, remove its checkpoints that are not durable, and keep its files.

        Return the position of the entry for this reset in the session's ledger, the list of what happened to it.
        """
        _, identifier = read_address(request, plain=False)
        session = request.state.session = self._sessions.get(identifier)
        with session.keep_in_use():
            position = await (await session.sandbox()).reset()
            session.saves.note_change()
        return JSONResponse(extensions.encode_position(session.ledger.id, position))

    async def legacy_execute(self, request: Request) -> Response:
        """Run a cell and return its result, in the format of Azure's private preview."""
        if self._hosting.shell:
            raise ProblemError(404, "NotFound", "a pool of shells has no path python/execute: send commands to executions")
        call, named = nested.decode_legacy_request(await read_json(request, self._hosting.max_request))
        identifier = check_identifier(request.query_params.get("identifier") or named or "")
        await self._sessions.prepare(identifier)
        execution = self._sessions.execute(identifier, str(uuid.uuid4()), call)
        request.state.session = execution.session
        await execution.done.wait()
        return JSONResponse(nested.encode_legacy_execution(execution.fetch(), call.output_limit))

    async def get_events(self, request: Request) -> Response:
        """Return a cell's events after the event whose number is the query's `after`, and the cell's result if it has ended.

        If there is no such event yet, wait for one, at most the query's `wait` seconds.
        """
        version, identifier = read_address(request, plain=False)
        execution = self._find_execution(identifier, request.path_params["id"])
        return await self._events_response(request, version, execution, read_after_number(request))

    async def reply(self, request: Request) -> Response:
        """Send the caller's reply to a question of a cell: `input()`, a call of one of the caller's tools, or a request that was refused.

        If the query has `after`, respond as `get_events` does. Otherwise respond with an empty object.
        """
        version, identifier = read_address(request, plain=False)
        execution = self._find_execution(identifier, request.path_params["id"])
        number, text, is_end = extensions.decode_reply(await read_json(request, _MAX_REPLY))
        await execution.session.executions.send_reply(execution, number, text, is_end=is_end)
        has_after = "after" in request.query_params
        return await self._events_response(request, version, execution, read_after_number(request)) if has_after else JSONResponse({})

    def _find_execution(self, identifier: str, id: str) -> RunningExecution:
        session = self._sessions.find(identifier)
        session.touch()
        return session.executions.find(id)

    async def _events_response(self, request: Request, version: Version, execution: RunningExecution, after: int) -> Response:
        found, last = await execution.events.read_after(after, within=_parse_wait(request.query_params.get("wait", "")))
        body = extensions.encode_events(found, last) | {extensions.ELAPSED_MEMBER: execution.elapsed}
        body[extensions.INTERRUPTED_MEMBER] = execution.cancelled.is_set()
        if execution.events.closed:
            body[extensions.EXECUTION_MEMBER] = self._encode_execution(request, version, execution)
        return JSONResponse(body)

    def _respond(self, request: Request, version: Version, execution: RunningExecution) -> Response:
        number = {} if self._hosting.plain else {extensions.NUMBER_HEADER: str(execution.number)}
        headers = {flat.OPERATION_HEADER: execution.id, **number}
        response = JSONResponse(self._encode_execution(request, version, execution), headers=headers)
        if execution.call.asynchronous:
            base = str(request.url).partition("/executions")[0]
            response.headers["operation-location"] = f"{base}/executions/{execution.id}?{request.url.query}"
        return response

    def _encode_execution(self, request: Request, version: Version, execution: RunningExecution) -> dict[str, object]:
        """Encode an execution as the body of a response, in the format of the given api-version, or of shell pools if it ran a command.

        If it has a result, mark the result as fetched. When results have to be dropped, fetched ones are dropped first.
        """
        fetched, limit = execution.fetch(request.headers.get(extensions.SINCE_HEADER)), execution.call.output_limit
        if execution.call.command is not None:
            return shell.encode_execution(fetched, limit)
        full = not self._hosting.plain and request.headers.get(extensions.RICH_REQUEST_HEADER) == "1"
        return version.dialect.encode_execution(fetched, limit, full=full)


def _parse_wait(text: str) -> float:
    try:
        seconds = float(text or extensions.LONGEST_POLL)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= 3600:
        raise invalid(f"'wait' must be a number of seconds from 0 to 3600, got {text!r:.80}")
    return min(seconds, extensions.LONGEST_POLL)
