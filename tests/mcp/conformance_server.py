"""Serve MCP over HTTP without a key, because the conformance suite of MCP sends none. Print the address.

This is the server of `aca-sessions mcp --http`, with some of the tools and resources that scenarios of the suite ask for by their names.
All requests count as sent with one key, because over HTTP the key says which client sent a request that stands alone.
"""

import asyncio
import base64
import json
from dataclasses import replace
from functools import partial
from typing import Any

import uvicorn
from mcp import types
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from aca_sessions import Settings, open_pool
from aca_sessions.cli.serving import listen_on_port
from aca_sessions.contract.records import ProblemError
from aca_sessions.hosting import ACCEPTED_KEY, Hosting
from aca_sessions.mcp import sdk, server, tasks
from aca_sessions.mcp.clients import Client, Options, SharedState
from aca_sessions.mcp.questions import Asking, AskingCalls
from aca_sessions.mcp.tool import Call
from aca_sessions.server.guard import Guard

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()
WAV = base64.b64encode(b"RIFF\x24\x00\x00\x00WAVEfmt ").decode()
OPEN = {"type": "object", "properties": {}}
SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {"address": {"type": "object", "properties": {"street": {"type": "string"}, "city": {"type": "string"}}}},
    "properties": {"name": {"type": "string"}, "address": {"$ref": "#/$defs/address"}},
    "additionalProperties": False,
}
USER = {"type": "object", "properties": {"username": {"type": "string"}, "email": {"type": "string"}}, "required": ["username", "email"]}
DEFAULTS = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "default": "John Doe"},
        "age": {"type": "integer", "default": 30},
        "score": {"type": "number", "default": 95.5},
        "status": {"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"},
        "verified": {"type": "boolean", "default": True},
    },
}
CHOICES = [{"const": f"value{number}", "title": f"Choice {number}"} for number in (1, 2, 3)]
ENUMS = {
    "type": "object",
    "properties": {
        "untitledSingle": {"type": "string", "enum": ["option1", "option2", "option3"]},
        "titledSingle": {"type": "string", "oneOf": CHOICES},
        "legacyEnum": {"type": "string", "enum": ["opt1", "opt2", "opt3"], "enumNames": ["One", "Two", "Three"]},
        "untitledMulti": {"type": "array", "items": {"type": "string", "enum": ["option1", "option2", "option3"]}},
        "titledMulti": {"type": "array", "items": {"anyOf": CHOICES}},
    },
}
# Tools that ask, each with its questions, at the revision 2026-07-28.
ASKING = {f"test_input_required_result_{name}": ["name"] for name in ("elicitation", "request_state", "tampered_state")}
ASKING |= {"test_input_required_result_multi_round": ["name", "color"]}
TEXT = types.TextContent(type="text", text="This is a simple text response for testing.")
IMAGE = types.ImageContent(type="image", data=PNG, mimeType="image/png")
CONTENT: dict[str, list[Any]] = {
    "test_simple_text": [TEXT],
    "test_image_content": [IMAGE],
    "test_audio_content": [types.AudioContent(type="audio", data=WAV, mimeType="audio/wav")],
}
FORMS = {"test_elicitation": USER, "test_elicitation_sep1034_defaults": DEFAULTS, "test_elicitation_sep1330_enums": ENUMS}
# Tools that become tasks of the extension: what each takes longer than a call that is not a task, and its questions.
tasks._SHORT_SECONDS = 0.1
AS_TASKS = {"slow_compute": [], "failing_job": [], "protocol_error_job": [], "confirm_delete": ["confirm"], "greet": []}
STEPS = ("test_tool_with_logging", "test_tool_with_progress")
RESOURCES = {
    "test://static-text": types.TextResourceContents(uri=sdk.to_uri("test://static-text"), mimeType="text/plain", text="static"),
    "test://static-binary": types.BlobResourceContents(uri=sdk.to_uri("test://static-binary"), mimeType="image/png", blob=PNG),
    "test://template/123/data": types.TextResourceContents(
        uri=sdk.to_uri("test://template/123/data"),
        mimeType="application/json",
        text=json.dumps({"id": "123", "templateTest": True, "data": "Data for ID: 123"}),
    ),
}
EMBEDDED = types.EmbeddedResource(type="resource", resource=RESOURCES["test://static-text"])
CONTENT |= {"test_embedded_resource": [EMBEDDED], "test_multiple_content_types": [TEXT, IMAGE, EMBEDDED]}


class Examples:
    """The handlers of a server, with the tools and resources of the suite in front."""

    def __init__(self, service: sdk.Service, client: Client) -> None:
        """Wrap the handlers of `service`."""
        self._own = service.handlers
        about = {method: partial(client.tasks.respond, method) for method in tasks.METHODS}
        self._asking, self._client = AskingCalls(), client
        handlers = {**service.handlers, **about, "tools/list": self._list_tools, "tools/call": self._call, "resources/read": self._read}
        schemas = {**service.input_schemas, "json_schema_2020_12_tool": SCHEMA}
        self.service = replace(service, handlers=handlers, input_schemas=schemas)

    async def _list_tools(self, exchange: sdk.Exchange, params: object) -> types.ListToolsResult:
        names = [*CONTENT, *FORMS, *STEPS, *ASKING, *AS_TASKS, "test_error_handling"]
        tools = [types.Tool(name=name, description=name, inputSchema=OPEN) for name in names]
        described = types.Tool(name="json_schema_2020_12_tool", description="JSON Schema 2020-12", inputSchema=SCHEMA)
        own = (await self._own["tools/list"](exchange, params)).tools
        return types.ListToolsResult(tools=[*own, *tools, described])

    async def _call(self, exchange: sdk.Exchange, params: types.CallToolRequestParams) -> types.CallToolResult:
        name, arguments = params.name, params.arguments or {}
        if name in CONTENT:
            return types.CallToolResult(content=CONTENT[name])
        if name in FORMS:
            answer = await exchange.ask(arguments.get("message", "Fill in the form"), FORMS[name])
            text = f"Elicitation completed: action={'accept' if answer else 'decline'}, content={json.dumps(answer)}"
            return types.CallToolResult(content=[types.TextContent(type="text", text=text)])
        if name in STEPS:
            for step in (0, 50, 100):
                await exchange.report_progress(step, "working")
                await exchange.log({"text": f"Tool at {step}"}, "example", "info")
                await asyncio.sleep(0.05)
            return types.CallToolResult(content=[TEXT])
        if name in AS_TASKS:
            call = Call(self._client, exchange)
            work = partial(self._run_task, call, name, arguments)
            return await (self._client.tasks.run(call, work) if self._client.tasks.take(call, params, allowed=True) else work())
        if name in ASKING and exchange.is_stateless and exchange.can_ask:
            call = Call(self._client, exchange)
            if params.request_state is not None:
                return await self._asking.resume(call, name, params.request_state)
            return await self._asking.run(Asking(call, self._asking, name), self._ask(call, ASKING[name]))
        return await self._own["tools/call"](exchange, params)

    async def _run_task(self, call: Call, name: str, arguments: dict[str, Any]) -> types.CallToolResult:
        if name != "greet":
            await asyncio.sleep(arguments.get("seconds", 0.5))
        if name == "protocol_error_job":
            raise sdk.refusal("this job fails")
        result = await self._ask(call, AS_TASKS[name])
        if name == "greet":
            result.content[0].text = f"Hello, {arguments['name']}!"
        return result.model_copy(update={"is_error": name == "failing_job"})

    async def _ask(self, call: Call, questions: list[str]) -> types.CallToolResult:
        text = "state-ok"
        for one in questions:
            form = {"type": "object", "properties": {one: {"type": "string"}}, "required": [one]}
            text += f" {await call.asking.ask(f'What is your {one}?', form)}"
        return types.CallToolResult(content=[types.TextContent(type="text", text=text)])

    async def _read(self, exchange: sdk.Exchange, params: types.ReadResourceRequestParams) -> types.ReadResourceResult:
        known = RESOURCES.get(str(params.uri))
        return types.ReadResourceResult(contents=[known]) if known else await self._own["resources/read"](exchange, params)


def refuse(problem: ProblemError, _scope: Scope) -> JSONResponse:
    return JSONResponse({"error": problem.message}, problem.status)


async def main() -> None:
    listener = listen_on_port("127.0.0.1", 0)
    async with open_pool() as pool:
        state = SharedState(pool, Options.of(Settings().Mcp, "all"))
        connections = server._Connections(state)
        built = Examples(server.SessionServer(state).service, Client(state)).service.build()
        connections._manager = sdk.open_manager(built, idle_seconds=60, connections=100, largest=1 << 20)

        async def with_key(scope: Scope, receive: Receive, send: Send) -> None:
            scope.setdefault("state", {})[ACCEPTED_KEY] = "the key of the suite"
            await connections.app(scope, receive, send)

        async with connections:
            app = Guard(with_key, Hosting(allowed_hosts=frozenset({"127.0.0.1", "localhost"})), refuse=refuse)
            print(f"http://localhost:{listener.getsockname()[1]}{server.PATH}", flush=True)
            await uvicorn.Server(uvicorn.Config(app, log_level="warning")).serve([listener])


if __name__ == "__main__":
    asyncio.run(main())
