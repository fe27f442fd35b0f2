"""The MCP endpoint of a pool: each POST request holds one JSON-RPC message and gets one JSON response.

The tools of this endpoint use Azure's word `environment` for a session.
"""

import uuid
from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..contract import flat, mcp, shell
from ..contract.records import DRAINING, ExecutionRequest, ProblemError, type_name
from ..hosting import Hosting
from ..models import CodeExecutionResult
from .routing import Routes, check_identifier, read_json
from .sessions import Sessions

_TOOLS = (*mcp.LAUNCH, mcp.RUN_PYTHON, mcp.RUN_COMMAND)


class McpRoute:
    """The handler of the MCP endpoint and of its three tools, which are Azure's, for the sessions of one server.

    The handler does not check the server's key, because `Guard` has checked it before.
    """

    def __init__(self, sessions: Sessions, hosting: Hosting) -> None:
        self._sessions = sessions
        self._max_request = hosting.max_request

    def routes(self) -> Routes:
        """Return the only route of the MCP endpoint, which is a POST."""
        return [(mcp.PATH, "POST", self.handle)]

    async def handle(self, request: Request) -> Response:
        """Respond to one JSON-RPC message. A notification, which has no id, gets an empty response with 202."""
        message = await read_json(request, self._max_request)
        if not isinstance(message, Mapping) or not isinstance(message.get("method"), str):
            got = f"an object with {type_name(message.get('method'))} there" if isinstance(message, Mapping) else type_name(message)
            said = f"the body must be a JSON-RPC request, an object with text in 'method', got {got}"
            return JSONResponse(mcp.encode_error(None, mcp.INVALID_REQUEST, said), 400)
        if "id" not in message:
            return Response(status_code=202)
        return JSONResponse(await self._respond(message))

    async def _respond(self, message: Mapping[str, object]) -> dict[str, object]:
        id = message["id"]
        match message["method"]:
            case "initialize":
                return mcp.encode_response(id, mcp.INITIALIZED)
            case "ping":
                return mcp.encode_response(id, {})
            case "tools/list":
                return mcp.encode_response(id, {"tools": mcp.TOOLS})
            case "tools/call":
                return await self._call_tool(id, message.get("params"))
        said = f"'method' must be initialize, ping, tools/list or tools/call, got {message['method']!r:.80}"
        return mcp.encode_error(id, mcp.UNKNOWN_METHOD, said)

    async def _call_tool(self, id: object, params: object) -> dict[str, object]:
        name = params.get("name") if isinstance(params, Mapping) else None
        arguments = params.get("arguments") or {} if isinstance(params, Mapping) else None
        if name not in _TOOLS or not isinstance(arguments, Mapping):
            got = f"the name {name!r:.80} and {type_name(arguments)} as arguments" if isinstance(params, Mapping) else type_name(params)
            said = f"'params' must be an object with a 'name' of {', '.join(_TOOLS)}, and with an object 'arguments', got {got}"
            return mcp.encode_error(id, mcp.INVALID_ARGUMENTS, said)
        try:
            return mcp.encode_response(id, await self._run_tool(str(name), arguments))
        except ProblemError as problem:
            if problem.code == DRAINING:
                raise  # a proxy passes the request on to the server that has the environment
            return mcp.encode_response(id, mcp.encode_tool_error(problem.message))

    async def _run_tool(self, tool: str, arguments: Mapping[str, object]) -> dict[str, object]:
        match tool:
            case mcp.RUN_PYTHON:
                return await self._run_cell(arguments, ExecutionRequest(code=flat.decode_code(arguments, "pythonCode")))
            case mcp.RUN_COMMAND:
                return await self._run_cell(arguments, ExecutionRequest(code="", command=shell.decode_command(arguments)))
        return await self._launch_environment()

    async def _launch_environment(self) -> dict[str, object]:
        session = self._sessions.get(str(uuid.uuid4()))
        with session.keep_in_use():
            await session.sandbox()
        return mcp.encode_launch_result(session.identifier)

    async def _run_cell(self, arguments: Mapping[str, object], call: ExecutionRequest) -> dict[str, object]:
        """Run a cell or command in the existing session that `arguments` name, and return its result for MCP.

        Raise ProblemError if there is no such session. Do not start one in its place: the model would not notice that its session has
        ended.
        """
        identifier = check_identifier(str(arguments.get("environmentId", "")), name="environmentId")
        self._sessions.find(identifier)
        execution = self._sessions.execute(identifier, str(uuid.uuid4()), call)
        await execution.done.wait()
        return mcp.encode_tool_result(execution.fetch().result or CodeExecutionResult(), command=call.command is not None)
