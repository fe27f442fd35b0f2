"""The protocol's server: one handler for each kind of request. A connection's client begins and ends with it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

import anyio
from mcp import types
from mcp.server.lowlevel import NotificationOptions, Server
from mcp.server.models import InitializationOptions

from . import cell_tools, file_tools, health_tools, package_tools, resources, session_tools, state_tools
from .calls import Call
from .clients import Client, House
from .tool import Tool, failure

_INSTRUCTIONS = (
    "Isolated Python sessions. Each keeps its variables between calls; yours are out of reach of other clients. "
    "run_python_code uses the active session; create_session and switch_session give you more, and every tool takes a session_id. "
    "Files below outputs/ are shared among your sessions; all other files and all variables are one session's own."
)


class SessionServer(Server[Client, Any]):
    """An MCP server that gives each connection sessions of its own."""

    def __init__(self, house: House) -> None:
        """Serve sessions of a pool, with the tools that the options name."""
        super().__init__("aca-sessions", version("aca-sessions"), _INSTRUCTIONS, lifespan=self._connection)
        self._house = house
        self._tools = _tools(house.options.tools)
        self._answer(types.ListToolsRequest, self._list_tools)
        self._answer(types.CallToolRequest, self._call)
        self._answer(types.ListResourcesRequest, self._list_resources)
        self._answer(types.ListResourceTemplatesRequest, self._list_templates)
        self._answer(types.ReadResourceRequest, self._read_resource)
        self._answer(types.SubscribeRequest, self._subscribe)
        self._answer(types.UnsubscribeRequest, self._unsubscribe)
        self._answer(types.SetLevelRequest, self._set_level)

    def create_initialization_options(
        self,
        notification_options: NotificationOptions | None = None,
        experimental_capabilities: dict[str, dict[str, Any]] | None = None,
    ) -> InitializationOptions:
        """Return the server's capabilities: resources change, and clients can subscribe to them."""
        del notification_options
        options = super().create_initialization_options(NotificationOptions(resources_changed=True), experimental_capabilities)
        if options.capabilities.resources is not None:
            options.capabilities.resources.subscribe = True
        return options

    def _answer(self, request: type, handler: Any) -> None:
        async def answer(asked: Any) -> types.ServerResult:
            return types.ServerResult(await handler(asked))

        self.request_handlers[request] = answer

    @asynccontextmanager
    async def _connection(self, _server: Server[Client, Any]) -> AsyncIterator[Client]:
        client = Client(self._house)
        try:
            yield client
        finally:
            with anyio.CancelScope(shield=True):
                await client.close()

    async def _list_tools(self, _asked: types.ListToolsRequest) -> types.ListToolsResult:
        return types.ListToolsResult(tools=[tool.listed for tool in self._tools.values()])

    async def _call(self, asked: types.CallToolRequest) -> types.CallToolResult:
        tool = self._tools.get(asked.params.name)
        if tool is None:
            return failure(f"there is no tool of that name; there are {', '.join(self._tools)}")
        context = self.request_context
        return await tool(Call(context.lifespan_context, context), asked.params.arguments or {})

    async def _list_resources(self, _asked: types.ListResourcesRequest) -> types.ListResourcesResult:
        return types.ListResourcesResult(resources=await resources.listed(self._client))

    async def _list_templates(self, _asked: types.ListResourceTemplatesRequest) -> types.ListResourceTemplatesResult:
        return types.ListResourceTemplatesResult(resourceTemplates=resources.TEMPLATES)

    async def _read_resource(self, asked: types.ReadResourceRequest) -> types.ReadResourceResult:
        return await resources.read(self._client, asked.params.uri)

    async def _subscribe(self, asked: types.SubscribeRequest) -> types.EmptyResult:
        self._client.watch(str(asked.params.uri))
        return types.EmptyResult()

    async def _unsubscribe(self, asked: types.UnsubscribeRequest) -> types.EmptyResult:
        self._client.subscribed.discard(str(asked.params.uri))
        return types.EmptyResult()

    async def _set_level(self, asked: types.SetLevelRequest) -> types.EmptyResult:
        self._client.log_level = asked.params.level
        return types.EmptyResult()

    @property
    def _client(self) -> Client:
        return self.request_context.lifespan_context


def _tools(kind: str) -> dict[str, Tool]:
    """Return the tools of docs/mcp.md's first table, or with "all" those of both tables."""
    chosen = [*session_tools.TOOLS, *cell_tools.TOOLS, *package_tools.TOOLS, *health_tools.TOOLS]
    if kind == "all":
        chosen += [*file_tools.TOOLS, *state_tools.TOOLS]
    return {tool.listed.name: tool for tool in chosen}
