"""The tools of an MCP server, called through the mcp SDK. The server is a program (stdio) or a URL (streamable HTTP).

Versions 1 and 2 of the SDK name the fields of their models differently, so this module reads them as the protocol's JSON.
"""

import asyncio
import base64
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from pydantic import BaseModel

from ...bridge.host import ToolFailedError
from ...errors import ConfigurationError, imports_of
from .tool import DEFAULT_SECONDS, Effect, Tool, parameters_of_schema

with imports_of("mcp"):
    import mcp
    from mcp import ClientSession, StdioServerParameters
    from mcp.client.stdio import stdio_client
    from mcp.client.streamable_http import streamable_http_client

_OPENING_SECONDS = 30.0
_RemoteError: Any = getattr(mcp, "MCPError", None) or mcp.McpError  # in version 2 of the SDK, and in version 1


class McpServer:
    """The tools of an MCP server, named `name.tool`.

    If `effect` is given, all tools have it. Otherwise a tool has the effect that its annotations claim, or `write` without annotations.
    """

    def __init__(
        self,
        name: str,
        *,
        command: Sequence[str] | None = None,
        url: str | None = None,
        environment: Mapping[str, str] | None = None,
        effect: Effect | None = None,
        tags: Sequence[str] = (),
        seconds: float = DEFAULT_SECONDS,
    ) -> None:
        """Store how to start or reach a server. `open` connects to it.

        Raise ConfigurationError if neither or both of `command` and `url` are given.

        Args:
            name: The first part of the tools' names.
            command: The program and its arguments.
            url: The URL of the server.
            environment: Environment variables of the program.
            effect: The effect of all tools, instead of what their annotations claim.
            tags: The tags of all tools.
            seconds: The time limit of a call.
        """
        if (command is None) == (url is None):
            got = "neither" if command is None else "both"
            raise ConfigurationError(f"the MCP server {name} must have either a command or a url, got {got}: give one of them")
        self._name, self._effect, self._tags, self._seconds = name, effect, tuple(tags), seconds
        self._command, self._url, self._environment = list(command or ()), url, dict(environment or {})
        self._closing = asyncio.Event()
        self._serving: asyncio.Task[None] | None = None

    async def open(self) -> list[Tool]:
        """Start the server or connect to it, and return its tools. Raise ConfigurationError if this fails or takes longer than 30 s."""
        ready: asyncio.Future[tuple[ClientSession, list[dict[str, Any]]]] = asyncio.get_running_loop().create_future()
        # The task that entered the SDK's contexts must leave them (anyio's cancel scopes), so they have a task of their own.
        self._closing = asyncio.Event()
        self._serving = asyncio.create_task(self._serve(ready))
        try:
            session, tools = await asyncio.wait_for(asyncio.shield(ready), _OPENING_SECONDS)
        except Exception as error:
            advice = "check that its command starts an MCP server" if self._url is None else "check its url and that the server runs"
            raise ConfigurationError(f"the MCP server {self._name} could not be opened ({type(error).__name__}): {advice}") from error
        return [self._build_tool(session, listed) for listed in tools]

    async def close(self) -> None:
        """Close the connection, and end the server's program if `open` started one. Wait at most 30 s.

        Do nothing if the server is not open.
        """
        self._closing.set()
        if self._serving is not None:
            serving, self._serving = self._serving, None
            await asyncio.wait({serving}, timeout=_OPENING_SECONDS)
            serving.cancel()

    async def _serve(self, ready: "asyncio.Future[Any]") -> None:
        try:
            async with self._connect() as session:
                await session.initialize()
                ready.set_result((session, _to_json(await session.list_tools())["tools"]))
                await self._closing.wait()
        except BaseException as error:
            if ready.done():
                return
            ready.set_exception(error if isinstance(error, Exception) else ConnectionError("cancelled"))

    @asynccontextmanager
    async def _connect(self) -> AsyncIterator[ClientSession]:
        async with AsyncExitStack() as stack:
            if self._url is not None:
                read, write, *_ = await stack.enter_async_context(streamable_http_client(self._url))
            else:
                program = StdioServerParameters(command=self._command[0], args=self._command[1:], env=self._environment or None)
                read, write = await stack.enter_async_context(stdio_client(program))
            yield await stack.enter_async_context(ClientSession(read, write))

    def _build_tool(self, session: ClientSession, listed: dict[str, Any]) -> Tool:
        return Tool(
            name=f"{self._name}.{listed['name']}",
            act=lambda arguments: self._call(session, listed["name"], arguments),
            description=listed.get("description", ""),
            parameters=parameters_of_schema(listed["inputSchema"]),
            effect=self._effect or _claimed_effect(listed.get("annotations")),
            tags=self._tags,
            seconds=self._seconds,
        )

    async def _call(self, session: ClientSession, name: str, arguments: dict[str, Any]) -> object:
        try:
            result = _to_json(await session.call_tool(name, arguments))
        except _RemoteError as error:
            raise ToolFailedError(error.error.message) from error
        parts = [_decode_content(content) for content in result["content"]]
        if result.get("isError"):
            raise ToolFailedError(
                "\n".join(part for part in parts if isinstance(part, str))
                or f"{name} failed without a reason: see the log of the MCP server {self._name}"
            )
        inner: dict[str, Any] | None = result.get("structuredContent")
        if inner is not None:
            return inner["result"] if inner.keys() == {"result"} else inner
        return parts[0] if len(parts) == 1 else parts


def _claimed_effect(hints: Mapping[str, Any] | None) -> Effect:
    """Return the effect that a tool's annotations claim, or `write` without annotations. The claim may be false."""
    if hints is not None and hints.get("readOnlyHint"):
        return "read"
    return "irreversible" if hints is not None and hints.get("destructiveHint") else "write"


def _decode_content(content: dict[str, Any]) -> object:
    match content:
        case {"type": "text", "text": text}:
            return text
        case {"type": "image" | "audio", "data": data}:
            return base64.b64decode(data)
    return content


def _to_json(model: BaseModel) -> dict[str, Any]:
    return model.model_dump(mode="json", by_alias=True, exclude_none=True)
