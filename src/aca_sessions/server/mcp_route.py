"""The pool's MCP endpoint: one POST, answered at once. An environment is a session of this server."""

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
    """Azure's three tools, over the sessions of one server."""

    def __init__(self, sessions: Sessions, hosting: Hosting) -> None:
        """Its callers know the server's key, as everyone else does."""
        self._sessions = sessions
        self._most = hosting.max_request

    def table(self) -> Routes:
        """The one path."""
        return [(mcp.PATH, "POST", self.answer)]

    async def answer(self, request: Request) -> Response:
        """Answers one message; what wants no answer gets none."""
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
                raise  # a proxy passes it on to the server whose environment it is
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
        """Only in an environment that there is: a model is to learn that the one it knew has ended."""
        identifier = checked_identifier(str(arguments.get("environmentId", "")))
        self._sessions.find(identifier)
        execution = self._sessions.execute(identifier, str(uuid.uuid4()), call)
        await execution.done.wait()
        return mcp.encode_ran(execution.result, command=call.command is not None)
