"""What differs between the versions 1 and 2 of the MCP SDK: how a server is made, and how it talks to a client during a request.

Version 1 speaks the revisions of MCP that begin a connection with a handshake. Version 2 also speaks 2026-07-28, in which each request
stands alone (here: a stateless request). Everything else is written once: the types of both versions take the same names of fields as
arguments, those of the protocol.
"""

import importlib.util
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio
from mcp import types
from mcp.server.lowlevel import NotificationOptions, Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.shared.message import ServerMessageMetadata
from pydantic import AnyUrl

from ..hosting import ACCEPTED_KEY

HAS_STATELESS = importlib.util.find_spec("mcp_types") is not None  # a part of version 2
if HAS_STATELESS:
    from mcp.server.caching import CacheHint  # type: ignore[import-not-found]
    from mcp.server.connection import allowed_log_levels  # type: ignore[import-not-found]
    from mcp.server.subscriptions import (  # type: ignore[import-not-found]
        InMemorySubscriptionBus,
        ListenHandler,
        ResourcesListChanged,
        ResourceUpdated,
    )
    from mcp.shared.exceptions import MCPError as ProtocolError  # type: ignore[attr-defined]
    from mcp_types.version import MODERN_PROTOCOL_VERSIONS  # type: ignore[import-not-found]
else:
    from mcp.shared.exceptions import McpError as ProtocolError

Handler = Callable[["Exchange", Any], Awaitable[Any]]
_ABOVE_INFO = ("warning", "error", "critical", "alert", "emergency")
_LISTED_MILLISECONDS = 60_000  # how long a client may keep the list of tools, which changes only with the server
_QUESTION = "question"
_MOST_STREAMS = 100  # of one client, to listen to changes
_CREATED_TASK = "aca-sessions/task"
TASKS_EXTENSION = "io.modelcontextprotocol/tasks"


def refusal(message: str, *, code: int = types.INVALID_PARAMS, **data: object) -> Exception:
    """Return the error that refuses a request, by default because of its parameters."""
    details: Any = types.ErrorData(code=code, message=message, data=data or None)
    refused: Exception = ProtocolError(details.code, message, details.data) if HAS_STATELESS else ProtocolError(details)
    return refused


def to_uri(text: str) -> AnyUrl:
    """Return a URI in the type that the SDK's models take: version 2 takes text."""
    return text if HAS_STATELESS else AnyUrl(text)  # type: ignore[return-value]


class Exchange:
    """One request of a client, and what the server can send to this client until it responds."""

    def __init__(self, context: Any) -> None:
        """Wrap the SDK's context of the request."""
        self._context = context

    @property
    def is_stateless(self) -> bool:
        """Return whether the request stands alone (2026-07-28): the SDK keeps nothing for its connection."""
        return HAS_STATELESS and self._context.protocol_version in MODERN_PROTOCOL_VERSIONS

    @property
    def api_key(self) -> str | None:
        """Return the API key that the request was accepted with, or None on standard input and output."""
        request = self._context.request
        return request.scope.get("state", {}).get(ACCEPTED_KEY) if request is not None else None

    def is_routed_by(self, name: str) -> bool:
        """Return whether the header by which proxies route a stateless request over HTTP has this name, or is left out."""
        request = self._context.request
        return request is None or request.headers.get("mcp-name", name) == name

    def connected(self, make: Callable[[], Any]) -> Any:
        """Return the client of this connection. If it has none yet, `make` it, and close it when the connection ends."""
        if not HAS_STATELESS:
            return self._context.lifespan_context
        connection = self._context.session._connection  # the SDK has no public way to a connection's state and end
        if "client" not in connection.state:
            connection.state["client"] = client = make()
            connection.exit_stack.push_async_callback(client.close)
        return connection.state["client"]

    @property
    def can_ask(self) -> bool:
        """Return whether the client can ask its user a question (MCP elicitation)."""
        return getattr(self._capabilities, "elicitation", None) is not None

    def extension(self, name: str) -> dict[str, Any] | None:
        """Return the settings of an extension of MCP that the client declared, or None if it did not declare the extension."""
        extensions = getattr(self._capabilities, "extensions", None)  # which version 1 takes as it comes
        settings = extensions.get(name) if isinstance(extensions, dict) else None
        return settings if isinstance(settings, dict) else None

    @property
    def _capabilities(self) -> Any:
        session = self._context.session
        return session.client_capabilities if HAS_STATELESS else session.client_params and session.client_params.capabilities

    @property
    def answer(self) -> dict[str, Any] | None:
        """Return the user's answer to the question of `question_response`, as `answer_to` does."""
        return self.answer_to(_QUESTION)

    def answer_to(self, key: str) -> dict[str, Any] | None:
        """Return the user's answer to a question, {} if the user declined, or None if it is not in the request."""
        answers = self._context.params.get("inputResponses")
        found = answers.get(key) if isinstance(answers, dict) else None
        if not isinstance(found, dict):
            return None
        return (found.get("content") or {}) if found.get("action") == "accept" else {}

    async def ask(self, message: str, schema: dict[str, Any], meta: dict[str, Any] | None = None) -> dict[str, Any]:
        """Ask the client's user to fill in a form. Return {} if the user declines or the client cannot ask. `meta` is sent, too."""
        fields: Any = {"message": message, "requestedSchema": schema, "_meta": meta}
        form: Any = types.ElicitRequestFormParams(**fields)
        request: Any = types.ElicitRequest(method="elicitation/create", params=form)
        wrapped = request if HAS_STATELESS else types.ServerRequest(request)
        about = ServerMessageMetadata(related_request_id=self._context.request_id)
        try:
            answered = await self._context.session.send_request(wrapped, types.ElicitResult, metadata=about)
        except ProtocolError:
            return {}
        return (answered.content or {}) if answered.action == "accept" else {}

    async def report_progress(self, step: int, message: str) -> None:
        """Send a progress notification, if the client asked for progress of this request."""
        session, meta = self._context.session, self._context.meta
        if HAS_STATELESS:
            await session.report_progress(step, message=message)
        elif meta is not None and meta.progressToken is not None:
            number = str(self._context.request_id)
            await session.send_progress_notification(meta.progressToken, step, message=message, related_request_id=number)

    async def log(self, data: dict[str, str], logger: str, wanted: str) -> None:
        """Send a log notification of the level `info`, unless the client wants only more severe ones.

        Args:
            data: What is logged.
            logger: The name of the logger.
            wanted: The level that the client has set for its connection. A stateless request has its own level, by default none.
        """
        context = self._context
        if wanted in _ABOVE_INFO or (HAS_STATELESS and "info" not in allowed_log_levels(context.protocol_version, context.meta)):
            return
        params = types.LoggingMessageNotificationParams(level="info", data=data, logger=logger)
        # Not `send_log_message`: version 2 warns that logging is deprecated each time.
        notification: Any = types.LoggingMessageNotification(method="notifications/message", params=params)
        wrapped = notification if HAS_STATELESS else types.ServerNotification(notification)
        await context.session.send_notification(wrapped, related_request_id=context.request_id)

    async def resources_changed(self, uris: list[str]) -> None:
        """Notify the client on its connection that its list of resources changed, and each resource in `uris`."""
        await self._context.session.send_resource_list_changed()
        for uri in uris:
            await self._context.session.send_resource_updated(AnyUrl(uri))


def question_response(message: str, schema: dict[str, Any], state: str) -> Any:
    """Return the response to a stateless request that has a question for the client's user. The client repeats the request with `state`."""
    form: Any = types.ElicitRequestFormParams(message=message, requestedSchema=schema)
    make: Any = vars(types)["InputRequiredResult"]
    return make(inputRequests={_QUESTION: types.ElicitRequest(method="elicitation/create", params=form)}, requestState=state)


def to_error(error: Exception) -> dict[str, Any]:
    """Return the error with which the server responds if a handler raises an exception."""
    if isinstance(error, ProtocolError):
        return dict(error.error.model_dump(mode="json", exclude_none=True))
    return {"code": types.INTERNAL_ERROR, "message": "internal error"}


def to_result(fields: dict[str, Any]) -> Any:
    """Return a result with these fields, for which the SDK has no type."""
    return fields if HAS_STATELESS else types.EmptyResult.model_validate(fields)


def to_created_task(fields: dict[str, Any], *, stateless: bool) -> Any:
    """Return the response to a tool call that has become a task."""
    if stateless:
        return {"resultType": "task", **fields}
    # Version 2 sends no tool call's result but this type, before `_unwrap_created_task`.
    return types.CallToolResult(content=[], _meta={_CREATED_TASK: fields}) if HAS_STATELESS else to_result({"task": fields})


async def _unwrap_created_task(context: Any, call_next: Callable[[Any], Awaitable[Any]]) -> Any:
    result = await call_next(context)
    created = (result.get("_meta") or {}).get(_CREATED_TASK) if isinstance(result, dict) else None
    return result if created is None else {"task": created}


class Listeners:
    """The open `subscriptions/listen` requests of one client, in which it is notified of changes. Version 1 has none."""

    def __init__(self) -> None:
        self._bus = InMemorySubscriptionBus() if HAS_STATELESS else None
        self._handler = ListenHandler(self._bus, max_subscriptions=_MOST_STREAMS) if HAS_STATELESS else None

    async def listen(self, exchange: Exchange, params: Any) -> Any:
        """Send the changes that the client asked for, until it disconnects."""
        assert self._handler is not None  # noqa: S101 - only version 2 has such requests
        return await self._handler(exchange._context, params)

    async def resources_changed(self, uris: list[str]) -> None:
        """Notify the client's open requests that its list of resources changed, and each resource in `uris`."""
        if self._bus is not None:
            await self._bus.publish(ResourcesListChanged())
            for uri in uris:
                await self._bus.publish(ResourceUpdated(uri=uri))


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """What a server of the SDK is made of.

    Attributes:
        name: The name that the server tells its clients.
        version: Its version.
        instructions: What models read about it.
        stateless_instructions: Returns the same for a client whose requests stand alone, given its request.
        handlers: The functions that handle requests, by the method of the request.
        make_client: Makes the client of a new connection.
        input_schemas: The schemas of the arguments of its tools, by name.
        extensions: The settings of the extensions of MCP that the server declares, by name. The SDK declares them from 2026-07-28 on.
        close: Called when no more requests are handled.
    """

    name: str
    version: str
    instructions: str
    stateless_instructions: Callable[[Exchange], str]
    handlers: Mapping[str, Handler]
    make_client: Callable[[], Any]
    input_schemas: Mapping[str, Any]
    extensions: Mapping[str, Any]
    close: Callable[[], Awaitable[None]]

    def build(self) -> Any:
        """Return the SDK's server, which serves every revision of the protocol that the installed version has."""
        return self._build_for_both() if HAS_STATELESS else self._build_for_handshakes()

    def _build_for_handshakes(self) -> "Server[Any, Any]":
        server: Server[Any, Any] = Server(self.name, self.version, self.instructions, lifespan=self._connection)
        for method, handler in self.handlers.items():
            if method in _REQUESTS:
                server.request_handlers[_REQUESTS[method]] = _answer_with(server, handler)
        initial = server.create_initialization_options

        def create_initialization_options(*_: Any, **__: Any) -> Any:
            options = initial(NotificationOptions(resources_changed=True))
            if options.capabilities.resources is not None:
                options.capabilities.resources.subscribe = True
            return _with_tasks(options)

        # Replaced, because the SDK's session manager for HTTP calls it without arguments.
        server.create_initialization_options = create_initialization_options  # type: ignore[method-assign]
        return server

    @asynccontextmanager
    async def _connection(self, _server: object) -> AsyncIterator[Any]:
        client = self.make_client()
        try:
            yield client
        finally:
            with anyio.CancelScope(shield=True):
                await client.close()

    @asynccontextmanager
    async def _process(self, _server: object) -> AsyncIterator[None]:
        try:
            yield
        finally:
            with anyio.CancelScope(shield=True):
                await self.close()

    def _build_for_both(self) -> Any:
        make: Callable[..., Any] = Server
        hints = {method: CacheHint(_LISTED_MILLISECONDS, "public") for method in _CONSTANT} | {m: CacheHint() for m in _PRIVATE}
        hints["tools/list"] = CacheHint(_LISTED_MILLISECONDS)  # private: it depends on the extensions that the client declared
        server: Any = make(self.name, version=self.version, instructions=self.instructions, cache_hints=hints, lifespan=self._process)
        server.get_tool_input_schema = self.input_schemas.get
        server.extensions = dict(self.extensions)
        for method, handler in self.handlers.items():
            server.add_request_handler(method, _params_of(method), _exchange_with(handler))
        initial, discover = server.create_initialization_options, server.get_request_handler("server/discover").handler

        async def discover_stateless(context: Any, params: Any) -> Any:
            instructions = self.stateless_instructions(Exchange(context))
            return (await discover(context, params)).model_copy(update={"instructions": instructions})

        server.add_request_handler("server/discover", types.RequestParams, discover_stateless)
        server.create_initialization_options = lambda: _with_tasks(initial(NotificationOptions(resources_changed=True)))
        server.middleware.append(_unwrap_created_task)
        return server


_CONSTANT = ("resources/templates/list", "server/discover")
_PRIVATE = ("resources/list", "resources/read")
_REQUESTS: dict[str, type] = {
    "tools/list": types.ListToolsRequest,
    "tools/call": types.CallToolRequest,
    "resources/list": types.ListResourcesRequest,
    "resources/templates/list": types.ListResourceTemplatesRequest,
    "resources/read": types.ReadResourceRequest,
    "resources/subscribe": types.SubscribeRequest,
    "resources/unsubscribe": types.UnsubscribeRequest,
    "logging/setLevel": types.SetLevelRequest,
    "tasks/get": types.GetTaskRequest,
    "tasks/result": types.GetTaskPayloadRequest,
    "tasks/list": types.ListTasksRequest,
    "tasks/cancel": types.CancelTaskRequest,
}


def _with_tasks(options: Any) -> Any:
    """Add to what a handshake says that tool calls can run as tasks, which the SDK leaves out."""
    every: dict[str, Any] = {"list": {}, "cancel": {}, "requests": {"tools": {"call": {}}}}
    options.capabilities.tasks = types.ServerTasksCapability.model_validate(every)
    return options


def _params_of(method: str) -> Any:
    """Return the type of a method's parameters in version 2."""
    if method == "subscriptions/listen":
        return types.SubscriptionsListenRequestParams  # type: ignore[attr-defined]
    if method == "tasks/update":  # has the same identifier; `Exchange.answer_to` reads the rest
        return types.GetTaskRequestParams
    return types.PaginatedRequestParams if method.endswith("/list") else getattr(types, f"{_REQUESTS[method].__name__}Params")


def _answer_with(server: "Server[Any, Any]", handler: Handler) -> Callable[[Any], Awaitable[types.ServerResult]]:
    async def answer(request: Any) -> types.ServerResult:
        return types.ServerResult(await handler(Exchange(server.request_context), request.params))

    return answer


def _exchange_with(handler: Handler) -> Callable[[Any, Any], Awaitable[Any]]:
    async def answer(context: Any, params: Any) -> Any:
        return await handler(Exchange(context), params)

    return answer


def open_manager(server: Any, *, idle_seconds: float, connections: int, largest: int) -> StreamableHTTPSessionManager:
    """Return what serves a server over streamable HTTP."""
    return StreamableHTTPSessionManager(server, session_idle_timeout=idle_seconds, max_sessions=connections, max_request_body_size=largest)
