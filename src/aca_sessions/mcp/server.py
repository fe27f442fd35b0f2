"""The MCP server: it handles each kind of request, and listens on standard input and output, or on a port that requires a key."""

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
from mcp import types
from mcp.server.lowlevel import NotificationOptions, Server
from mcp.server.models import InitializationOptions
from mcp.server.stdio import stdio_server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from .. import __version__
from ..cli import logs, serving
from ..cli.keys import given_or_new
from ..cli.streams import standard_input, write_error
from ..connect import open_pool
from ..contract.records import ProblemError
from ..errors import ConfigurationError
from ..hints import access_sentences, install_sentence, mounts_sentence
from ..hosting import Hosting, log_event
from ..models import Access
from ..settings import Settings
from . import code_tools, file_tools, resources, session_tools, state_tools
from .clients import MB, Client, Options, SharedState
from .tool import Call, Tool, failure

PATH = "/mcp"
_LARGEST_REQUEST = 16 * MB
_INSTRUCTIONS = (
    "Isolated Python sessions. Each keeps its variables between calls; other clients cannot use yours. "
    "run_python_code uses the active session; create_session and switch_session give you more. "
    "Give a session_id to use another session than the active one. "
    "Files below outputs/ and scripts from save_script are shared among your sessions; all else belongs to one session."
)


class SessionServer(Server[Client, Any]):
    """An MCP server that gives each connection its own sessions."""

    def __init__(self, state: SharedState) -> None:
        """Create a server for the clients of `state`, whose options choose the tools."""
        instructions = f"{_INSTRUCTIONS} {mounts_sentence(state.pool.access)}".rstrip()
        super().__init__("aca-sessions", __version__, instructions, lifespan=self._connection)
        self._state = state
        self._tools = _tools(state.options.tools, state.pool.access)
        self._register(types.ListToolsRequest, self._list_tools)
        self._register(types.CallToolRequest, self._call)
        self._register(types.ListResourcesRequest, self._list_resources)
        self._register(types.ListResourceTemplatesRequest, self._list_templates)
        self._register(types.ReadResourceRequest, self._read_resource)
        self._register(types.SubscribeRequest, self._subscribe)
        self._register(types.UnsubscribeRequest, self._unsubscribe)
        self._register(types.SetLevelRequest, self._set_level)

    def create_initialization_options(
        self,
        notification_options: NotificationOptions | None = None,
        experimental_capabilities: dict[str, dict[str, Any]] | None = None,
    ) -> InitializationOptions:
        """Return the server's capabilities, which each client receives when it connects.

        They announce that the list of resources may change, and that clients can subscribe to resources.
        """
        del notification_options
        options = super().create_initialization_options(NotificationOptions(resources_changed=True), experimental_capabilities)
        if options.capabilities.resources is not None:
            options.capabilities.resources.subscribe = True
        return options

    def _register(self, kind: type, handler: Any) -> None:
        async def handle(request: Any) -> types.ServerResult:
            return types.ServerResult(await handler(request))

        self.request_handlers[kind] = handle

    @asynccontextmanager
    async def _connection(self, _server: Server[Client, Any]) -> AsyncIterator[Client]:
        client = Client(self._state)
        try:
            yield client
        finally:
            with anyio.CancelScope(shield=True):
                await client.close()

    async def _list_tools(self, _request: types.ListToolsRequest) -> types.ListToolsResult:
        return types.ListToolsResult(tools=[tool.listed for tool in self._tools.values()])

    async def _call(self, request: types.CallToolRequest) -> types.CallToolResult:
        tool = self._tools.get(request.params.name)
        if tool is None:
            return failure(f"there is no tool {request.params.name!r:.80}: the tools are {', '.join(self._tools)}")
        context = self.request_context
        return await tool(Call(context.lifespan_context, context), request.params.arguments or {})

    async def _list_resources(self, _request: types.ListResourcesRequest) -> types.ListResourcesResult:
        return types.ListResourcesResult(resources=await resources.listed(self._client))

    async def _list_templates(self, _request: types.ListResourceTemplatesRequest) -> types.ListResourceTemplatesResult:
        return types.ListResourceTemplatesResult(resourceTemplates=resources.TEMPLATES)

    async def _read_resource(self, request: types.ReadResourceRequest) -> types.ReadResourceResult:
        return await resources.read(self._client, request.params.uri)

    async def _subscribe(self, request: types.SubscribeRequest) -> types.EmptyResult:
        self._client.watch(str(request.params.uri))
        return types.EmptyResult()

    async def _unsubscribe(self, request: types.UnsubscribeRequest) -> types.EmptyResult:
        self._client.subscribed.discard(str(request.params.uri))
        return types.EmptyResult()

    async def _set_level(self, request: types.SetLevelRequest) -> types.EmptyResult:
        self._client.log_level = request.params.level
        return types.EmptyResult()

    @property
    def _client(self) -> Client:
        return self.request_context.lifespan_context


def _tools(kind: str, access: Access) -> dict[str, Tool]:
    """Return the MCP tools by name. If `kind` is "session", leave out the tools for files, variables and checkpoints.

    Add to the descriptions what depends on `access`: which network and folders sessions can reach, and the default timeout of cells.
    """
    chosen = [*session_tools.TOOLS, *code_tools.TOOLS]
    if kind == "all":
        chosen += [*file_tools.TOOLS, *state_tools.TOOLS]
    sentences = dict.fromkeys(code_tools.RUN_CODE, access_sentences(access)) | {code_tools.INSTALL: install_sentence(access)}
    tools = {tool.listed.name: tool.saying(sentences.get(tool.listed.name, "")) for tool in chosen}
    seconds = access.limits.cell_timeout if access.limits else None
    return tools | {name: tools[name].with_default_timeout(seconds) for name in code_tools.RUN_CODE}


async def serve_stdio(options: argparse.Namespace) -> int:
    """Serve one MCP client on standard input and output, until it closes its end. Return the command's exit code.

    Raise ConfigurationError if an option has no effect, because it is for serving over HTTP.
    """
    for name in ("host", "port", "allowed_host", "api_key_file"):
        if getattr(options, name) not in (None, []):
            option = f"--{name.replace('_', '-')}"
            raise ConfigurationError(f"{option} has no effect without --http: add --http, or leave it out")
    if sys.stdin.isatty():
        write_error("aca-sessions: waiting for an MCP client on standard input: a client starts this command by itself. Ctrl-C ends it")
    standard_input()
    logs.shorten_mcp_log()
    async with _shared_state(options) as state, stdio_server() as (reading, writing):
        server = SessionServer(state)
        try:
            await server.run(reading, writing, server.create_initialization_options())
        except* anyio.ClosedResourceError:
            pass  # the client has closed its end while the SDK reported a line that is not a message
    return 0


async def serve_http(options: argparse.Namespace) -> int:
    """Serve many MCP clients over HTTP until a signal ends the server. Print its URL and key. Return the command's exit code."""
    from ..server.guard import (
        Guard,
        RefusalLog,
        client_address,
    )  # not at the top: on Windows nothing of the server may be imported for `aca-sessions mcp`

    logs.configure(options.log_format)
    accepted, key = given_or_new(options)
    options.host = options.host or "127.0.0.1"
    listener = serving.listen_on_port(options.host, 8000 if options.port is None else options.port)
    endpoint = f"http://{serving.address(listener)}{PATH}"
    serving.warn_if_exposed(listener)

    def greet() -> None:
        print(f"Endpoint: {endpoint}\nApiKey: {key}", flush=True)
        bound = serving.bound_address(listener)
        log_event("started", version=__version__, endpoint=endpoint, address=bound, clients=state.options.clients)

    refusals = RefusalLog()

    def refuse(problem: ProblemError, scope: Scope) -> Response:
        refusals.write(problem, "any", client_address(scope))
        headers = {"www-authenticate": "Bearer"} if problem.status == 401 else {}
        return JSONResponse({"error": problem.message}, problem.status, headers=headers)

    try:
        async with _shared_state(options) as state, _Connections(state) as connections:
            hosting = Hosting(api_keys=accepted, allowed_hosts=serving.allowed_hosts(options))
            app = Guard(connections.app, hosting, refuse=refuse)
            await serving.Server(app, connections.end, greet, keys=accepted).serve(sockets=[listener])
    finally:
        listener.close()
        refusals.close()
    log_event("stopped")
    return 0


class _Connections:
    """All HTTP connections to the MCP server. Used as an async context manager, it ends the connections at the end of the block."""

    def __init__(self, state: SharedState) -> None:
        self._manager = StreamableHTTPSessionManager(
            SessionServer(state),
            session_idle_timeout=state.options.idle_seconds,
            max_sessions=state.options.clients,
            max_request_body_size=_LARGEST_REQUEST,
        )
        self._started, self._stopping = asyncio.Event(), asyncio.Event()
        self.app: ASGIApp = self._respond

    async def __aenter__(self) -> "_Connections":
        self._task = asyncio.create_task(self._run())
        await self._started.wait()
        if self._task.done():
            await self._task  # raises why the manager did not start
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.end(0)

    async def end(self, _grace: float) -> None:
        """End all connections, with their cells and sessions, at once. Otherwise an open stream would keep the server from ending."""
        self._stopping.set()
        await self._task

    async def _run(self) -> None:
        """Run the session manager of the MCP SDK until `end` is called.

        This needs a task of its own: the manager has a task group, which must be entered and left by the same task.
        """
        try:
            async with self._manager.run():
                self._started.set()
                await self._stopping.wait()
        finally:
            self._started.set()

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] != PATH:
            await PlainTextResponse(f"not found: the MCP endpoint is {PATH}", 404)(scope, receive, send)
        elif self._stopping.is_set():
            await PlainTextResponse("the server is shutting down: connect again once it is back, or to another one", 503)(
                scope, receive, send
            )
        else:
            await self._manager.handle_request(scope, receive, send)


@asynccontextmanager
async def _shared_state(options: argparse.Namespace) -> AsyncIterator[SharedState]:
    settings = Settings()
    async with open_pool(settings, on_event=lambda event: state.on_pool_event(event)) as pool:
        state = SharedState(pool, Options.of(settings.Mcp, options.tools))
        yield state
