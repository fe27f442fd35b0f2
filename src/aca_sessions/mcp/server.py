"""The MCP server: it handles each kind of request, and listens on standard input and output, or on a port that requires a key."""

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any
from urllib.parse import unquote, urlsplit

import anyio
from mcp import types
from mcp.server.stdio import stdio_server
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
from . import apps, code_tools, file_tools, resources, sdk, session_tools, state_tools, tasks
from .clients import MB, Client, Options, SharedState
from .questions import Asking, AskingCalls
from .tool import Call, Tool, failure

PATH = "/mcp"
_LARGEST_REQUEST = 16 * MB
_INSTRUCTIONS = (
    "Isolated Python sessions. Each keeps its variables between calls; other clients cannot use yours. "
    "run_python_code uses the active session; create_session and switch_session give you more. "
    "Give a session_id to use another session than the active one. "
    "Files below outputs/ and scripts from save_script are shared among your sessions; all else belongs to one session."
)
# At the revision 2026-07-28, clients should use one process for all their conversations.
_PROCESS_INSTRUCTIONS = (
    f"{_INSTRUCTIONS} All conversations of the program that started this server share the active session: "
    "if there may be several, create a session for yours and give its session_id to each call."
)
_HANDLE_INSTRUCTIONS = (
    "Isolated Python sessions. Each keeps its variables between calls; other clients cannot use yours. "
    "create_session returns a session_id: give it to every call that should use that session. "
    "Without a session_id, calls use the session 'default', which all your conversations share."
)
# What descriptions say about files that sessions share, and what they say if other servers have the same sessions.
_NOT_SHARED = {
    " Files below outputs/ are copied to your other sessions.": "",
    "scripts/NAME.py in your sessions": "scripts/NAME.py in a session",
}


class SessionServer:
    """The MCP server: it gives each client its own sessions, and handles requests of every revision that the SDK speaks."""

    def __init__(self, state: SharedState) -> None:
        """Create a server for the clients of `state`, whose options choose the tools."""
        self._state = state
        self._asking = AskingCalls()
        options, access = state.options, state.pool.access
        self._tools = _tools(options.tools, access)
        tools = {name: tool.with_handles() for name, tool in self._tools.items() if name not in session_tools.NEEDS_CONNECTION}
        if options.shares_sessions:
            tools = {name: tool.rephrased(_NOT_SHARED) for name, tool in tools.items()}
        self._tools_with_handles = tools
        self.service = sdk.Service(
            name="aca-sessions",
            version=__version__,
            instructions=f"{_INSTRUCTIONS} {mounts_sentence(access)}".rstrip(),
            stateless_instructions=self._stateless_instructions,
            handlers={
                "tools/list": self._list_tools,
                "tools/call": self._call,
                "resources/list": self._list_resources,
                "resources/templates/list": self._list_templates,
                "resources/read": self._read_resource,
                "resources/subscribe": self._subscribe,
                "resources/unsubscribe": self._unsubscribe,
                "logging/setLevel": self._set_level,
                "subscriptions/listen": self._listen,
                **{method: partial(self._about_tasks, method) for method in tasks.METHODS},
            },
            make_client=partial(Client, state),
            input_schemas={name: tool.input_schema for name, tool in self._tools.items()},
            extensions={apps.EXTENSION: {}, sdk.TASKS_EXTENSION: {}},
            close=self._close,
        )

    def _stateless_instructions(self, exchange: sdk.Exchange) -> str:
        has_names = self._state.client_of(exchange).identity is None
        return f"{_PROCESS_INSTRUCTIONS if has_names else _HANDLE_INSTRUCTIONS} {mounts_sentence(self._state.pool.access)}".rstrip()

    async def _list_tools(self, exchange: sdk.Exchange, _params: Any) -> types.ListToolsResult:
        tools = self._tools if self._state.client_of(exchange).identity is None else self._tools_with_handles
        listed = [tool.listed for tool in tools.values()]
        return types.ListToolsResult(tools=[*map(apps.for_host, listed)] if apps.is_shown_by(exchange) else listed)

    async def _call(self, exchange: sdk.Exchange, params: types.CallToolRequestParams) -> Any:
        tool = self._tools.get(params.name)
        if tool is None:
            return failure(f"unknown tool {params.name!r:.80}: the tools are {', '.join(self._tools)}")
        client, arguments = self._state.client_of(exchange), params.arguments or {}
        if isinstance(handle := arguments.get("session_id"), str):
            await client.admit(handle)
        call = Call(client, exchange)
        if client.tasks.take(call, params, allowed=params.name in code_tools.AS_TASKS):
            return await client.tasks.run(call, partial(tool, call, arguments))
        if not exchange.is_stateless or params.name not in code_tools.RUN_CODE:
            return await tool(call, arguments)
        if (waiting := vars(params).get("request_state")) is not None:
            return await self._asking.resume(call, params.name, waiting)
        if not exchange.can_ask or client.shares_sessions:  # another server would not know which call an answer belongs to
            return await tool(call, arguments)
        return await self._asking.run(Asking(call, self._asking, params.name), tool(call, arguments))

    async def _about_tasks(self, method: str, exchange: sdk.Exchange, params: Any) -> Any:
        return await self._state.client_of(exchange).tasks.respond(method, exchange, params)

    async def _close(self) -> None:
        """End the calls of clients whose requests stand alone, and the sessions of the one on standard input: the pool would save them."""
        await self._asking.close()
        clients = self._state.stateless.values()
        await asyncio.gather(*(client.close() if client.identity is None else client.tasks.close() for client in clients))

    async def _list_resources(self, exchange: sdk.Exchange, _params: Any) -> types.ListResourcesResult:
        client = self._state.client_of(exchange)
        for handle in client.sessions() if client.shares_sessions else ():  # listing the files of one that has ended would start it
            await client.admit(handle)
        return types.ListResourcesResult(resources=await resources.listed(client))

    async def _list_templates(self, _exchange: sdk.Exchange, _params: Any) -> types.ListResourceTemplatesResult:
        return types.ListResourceTemplatesResult(resourceTemplates=resources.TEMPLATES)

    async def _read_resource(self, exchange: sdk.Exchange, params: types.ReadResourceRequestParams) -> types.ReadResourceResult:
        if str(params.uri) == apps.URI:
            return apps.page()
        client = self._state.client_of(exchange)
        await client.admit(unquote(urlsplit(str(params.uri)).netloc))
        return await resources.read(client, params.uri)

    async def _subscribe(self, exchange: sdk.Exchange, params: types.SubscribeRequestParams) -> types.EmptyResult:
        self._state.client_of(exchange).watch(str(params.uri))
        return types.EmptyResult()

    async def _unsubscribe(self, exchange: sdk.Exchange, params: types.UnsubscribeRequestParams) -> types.EmptyResult:
        self._state.client_of(exchange).subscribed.discard(str(params.uri))
        return types.EmptyResult()

    async def _set_level(self, exchange: sdk.Exchange, params: types.SetLevelRequestParams) -> types.EmptyResult:
        self._state.client_of(exchange).log_level = params.level
        return types.EmptyResult()

    async def _listen(self, exchange: sdk.Exchange, params: Any) -> Any:
        return await self._state.client_of(exchange).listeners.listen(exchange, params)


def _tools(kind: str, access: Access) -> dict[str, Tool]:
    """Return the MCP tools by name. If `kind` is "session", leave out the tools for files, variables and checkpoints.

    Add to the descriptions what depends on `access`: which network and folders sessions can reach, and the default timeout of cells.
    """
    chosen = [*session_tools.TOOLS, *code_tools.TOOLS]
    if kind == "all":
        chosen += [*file_tools.TOOLS, *state_tools.TOOLS]
    sentences = dict.fromkeys(code_tools.RUN_CODE, access_sentences(access)) | {code_tools.INSTALL: install_sentence(access)}
    tools = {tool.listed.name: tool.saying(sentences.get(tool.listed.name, "")) for tool in chosen}
    tools |= {name: tools[name].as_task() for name in code_tools.AS_TASKS}
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
        server = SessionServer(state).service.build()
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
        options = state.options
        self._manager = sdk.open_manager(
            SessionServer(state).service.build(), idle_seconds=options.idle_seconds, connections=options.clients, largest=_LARGEST_REQUEST
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
        at_endpoint, has_store = settings.SessionsHttpClient.Endpoint is not None, settings.Durable.Store is not None
        # On standard input and output a client's sessions are known to this process alone.
        chosen = replace(
            Options.of(settings.Mcp, options.tools),
            at_endpoint=options.http and at_endpoint,
            shares_sessions=options.http and (at_endpoint or has_store),
        )
        state = SharedState(pool, chosen)
        yield state
