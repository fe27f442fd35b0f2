"""The pool's MCP endpoint: POST requests that are answered at once. An "environment" of its tools is a session of this server."""

import uuid
from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..contract import mcp, shell, values
from ..contract.records import DRAINING, ExecutionCall, ProblemError
from ..hosting import Hosting
from .requests import checked_identifier
from .sessions import Sessions
from .table import Routes
from .uploads import limited

_TOOLS = (*mcp.LAUNCH, mcp.RUN_PYTHON, mcp.RUN_COMMAND)


class McpRoute:
    """The handler of Azure's three tools, for the sessions of one server. The guard checks the key, as for all routes."""

    def __init__(self, sessions: Sessions, hosting: Hosting) -> None:
        self._sessions = sessions
        self._most = hosting.max_request

    def table(self) -> Routes:
        """Return the one route."""
        return [(mcp.PATH, "POST", self.answer)]

    async def answer(self, request: Request) -> Response:
        """Answer one JSON-RPC message. A notification, which has no id, gets an empty response with 202."""
        message = values.parse(await limited(request, self._most, self._most).body())
        if not isinstance(message, Mapping) or not isinstance(message.get("method"), str):
            return JSONResponse(mcp.encode_error(None, mcp.INVALID_REQUEST, "this is no JSON-RPC request"), 400)
        if "id" not in message:
            return Response(status_code=202)
        return JSONResponse(await self._answered(message))

    async def _answered(self, message: Mapping[str, object]) -> dict[str, object]:
        id = message["id"]
        match message["method"]:
            case "initialize":
                return mcp.encode_answer(id, mcp.INITIALIZED)
            case "ping":
                return mcp.encode_answer(id, {})
            case "tools/list":
                return mcp.encode_answer(id, {"tools": mcp.TOOLS})
            case "tools/call":
                return await self._called(id, message.get("params"))
        return mcp.encode_error(id, mcp.UNKNOWN_METHOD, "there are initialize, ping, tools/list and tools/call")

    async def _called(self, id: object, params: object) -> dict[str, object]:
        name = params.get("name") if isinstance(params, Mapping) else None
        arguments = params.get("arguments") or {} if isinstance(params, Mapping) else None
        if name not in _TOOLS or not isinstance(arguments, Mapping):
            return mcp.encode_error(id, mcp.INVALID_ARGUMENTS, f"'params' has no 'name' of {', '.join(_TOOLS)} with 'arguments'")
        try:
            return mcp.encode_answer(id, await self._use(str(name), arguments))
        except ProblemError as problem:
            if problem.code == DRAINING:
                raise  # a proxy passes the request on to the server that has the environment
            return mcp.encode_answer(id, mcp.encode_refused(problem.message))

    async def _use(self, tool: str, arguments: Mapping[str, object]) -> dict[str, object]:
        match tool:
            case mcp.RUN_PYTHON:
                return await self._run(arguments, ExecutionCall(code=values.checked_code(arguments, "pythonCode")))
            case mcp.RUN_COMMAND:
                return await self._run(arguments, ExecutionCall(code="", command=shell.decode_command(arguments)))
        return await self._launch()

    async def _launch(self) -> dict[str, object]:
        session = self._sessions.get(str(uuid.uuid4()))
        with session.used():
            await session.sandbox()
        return mcp.encode_launched(session.identifier)

    async def _run(self, arguments: Mapping[str, object], call: ExecutionCall) -> dict[str, object]:
        """Run a cell in an existing environment. Raise ProblemError if there is none: a model must learn that its environment has ended."""
        identifier = checked_identifier(str(arguments.get("environmentId", "")))
        self._sessions.find(identifier)
        execution = self._sessions.execute(identifier, str(uuid.uuid4()), call)
        await execution.done.wait()
        execution.note_fetched()
        return mcp.encode_ran(execution.result, command=call.command is not None)
