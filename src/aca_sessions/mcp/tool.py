"""Make MCP tools from functions: signatures become schemas, arguments are validated, and errors become results that a model can read.

This replaces FastMCP of mcp 1.30 and MCPServer of mcp 2.3, which give every field a title (tokens for each model), ignore unknown
arguments, repeat invalid values in their errors, and make no output schema of a dataclass with slots.
"""

import inspect
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

from mcp import types
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, create_model
from pydantic.json_schema import GenerateJsonSchema

from ..errors import ACASessionsError, ServiceError
from ..guest_text import for_model, shown_name
from ..models import Event
from ..network.denials import Answer, Denial
from .clients import Client
from .sdk import Exchange

if TYPE_CHECKING:
    from .questions import Asking
    from .tasks import Task

Function = Callable[..., Awaitable[object]]
Kind = Literal["reads", "changes", "destroys"]

ANSWER_KEY = "aca-sessions/result"  # in the `_meta` of a result
_LOGGER = "aca_sessions.cell"
_LONGEST_NOTE = 4000
_MOST_NOTES = 64_000  # characters of one call; its result has the head and the tail of the output
_ANSWER = {"type": "object", "properties": {"answer": {"type": "string", "title": "Answer"}}, "required": ["answer"]}
_CHOICES = {"refuse": "Refuse", "once": "Allow once", "always": "Allow from now on"}
_DECISION = {
    "type": "object",
    "properties": {"decision": {"type": "string", "title": "Decision", "enum": [*_CHOICES], "enumNames": [*_CHOICES.values()]}},
    "required": ["decision"],
}
_LONGEST_PROMPT = 2000

SessionName = Annotated[str | None, Field(description="The session to use, by default the active one.", max_length=256)]


# Clients validate each answer against its schema, and validate the schema each time too. With draft 7 that takes a tenth of the time.
_DIALECT = {"$schema": "http://json-schema.org/draft-07/schema#"}


class _Untitled(GenerateJsonSchema):
    """Generates JSON schemas whose fields have no titles: a title that repeats the field's name costs a model tokens and adds nothing."""

    def field_title_should_be_set(self, schema: object) -> bool:
        del schema
        return False


def _to_list(value: object) -> object:
    """Convert an argument to a list, if a model sent text instead: parse a JSON list, and make other text the only item of a list.

    Return values that are not text unchanged.
    """
    if not isinstance(value, str):
        return value
    try:
        listed = json.loads(value)
    except ValueError:
        return [value]
    return listed if isinstance(listed, list) else [value]


# What the schemas and descriptions of tools say about sessions, and what they say to clients without a connection.
_WITH_HANDLES = {
    "The session to use, by default the active one.": "The session to use, as create_session returned it, by default 'default'.",
    "1 to 64 letters, digits, '_', '-' and '.'. By default a new name.": (
        "How the session_id that is returned begins: 1 to 64 letters, digits, '_', '-' and '.'."
    ),
    "The session's name.": "The session, as create_session returned it.",
    "List your sessions and those that other clients share, and which one is active.": (
        "List your sessions, as far as this server has used them, and those that other clients share."
    ),
    "switch_session makes it the active one.": "Give the session_id that it returns to other tools.",
}
Words = Annotated[list[str], BeforeValidator(_to_list), Field(max_length=1000)]


@dataclass(slots=True)
class Call:
    """One call of an MCP tool.

    `client` made the call, with `context` the server sends it notifications and questions, `content` is the result's content so far, and
    `meta` what its `_meta` has beside the answer. `asking` asks the client's user, if the request stands alone or the call is a task.
    `task` is that task. `undo_delivery` counts the cell's result as not received.
    """

    client: Client
    context: Exchange
    content: list[types.ContentBlock] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)
    asking: "Asking | Task | None" = None
    task: "Task | None" = None
    undo_delivery: Callable[[], None] | None = None
    _steps: int = 0
    _noted: int = 0

    def show(self, *blocks: types.ContentBlock) -> None:
        """Add content, such as text or an image, to the result of a tool that shows content."""
        self.content += blocks

    def show_text(self, text: str) -> None:
        """Add a block of text to the result of a tool that shows content."""
        self.show(types.TextContent(type="text", text=text))

    @property
    def mounts(self) -> tuple[tuple[str, str], ...]:
        """Return the folders of the host that code in sessions sees: the path in the session, and `read-only` or `writable`."""
        return self.client.server.pool.access.mounts

    @property
    def can_ask(self) -> bool:
        """Return whether the client can ask its user a question (MCP elicitation)."""
        return self.asking is not None or (self.context.can_ask and not self.context.is_stateless)

    async def report(self, event: Event) -> None:
        """Send an event of a running cell to the client as a log message, and as progress if the client asked for progress.

        At most 64,000 characters are sent for each tool call. None are sent for a task, whose status has the latest ones.
        """
        text = for_model(event.text) if event.kind in ("stdout", "stderr", "input") else _described(event)
        if text and self.task is not None:
            self.task.note(text)
            if self.task.is_known:
                return
        if not text or self._noted > _MOST_NOTES:
            return
        self._noted += len(text)
        note = text[:_LONGEST_NOTE] if self._noted <= _MOST_NOTES else "[more output is not shown while the cell runs: see its result]"
        self._steps += 1
        await self.context.report_progress(self._steps, note)
        await self.context.log({"kind": event.kind, "text": note}, _LOGGER, self.client.log_level)

    async def ask(self, prompt: str) -> str | None:
        """Ask the client's user for the line that `input()` returns in the cell.

        Return None if the user gives none or the client cannot ask. The cell's `input()` then raises EOFError.
        """
        message = f"The code asks: {for_model(prompt[:_LONGEST_PROMPT])}" if prompt.strip() else "The code waits for a line of input."
        asker = self.asking or self.context
        text = (await asker.ask(message, _ANSWER)).get("answer")
        return text if isinstance(text, str) else None

    async def decide(self, denial: Denial) -> Answer:
        """Ask the client's user whether to allow a request that the rules of the session's network refuse."""
        decision = (await (self.asking or self.context).ask(denial.described(), _DECISION)).get("decision")
        return "always" if decision == "always" else decision == "once"

    async def resources_changed(self, uris: list[str]) -> None:
        """Notify the client that its list of resources changed.

        If it has subscribed to some of the resources in `uris`, also notify it that these changed.
        """
        if self.context.is_stateless:
            await self.client.listeners.resources_changed(uris)
        else:
            await self.context.resources_changed([uri for uri in uris if uri in self.client.subscribed])


def _described(event: Event) -> str:
    match event.kind:
        case "display" if event.display is not None:
            return f"[displayed: {', '.join(map(shown_name, sorted(map(str, event.display.data))))}]"
        case "skipped":
            return "[some output is not shown while the cell runs: see its result]"
    return ""


@dataclass(frozen=True, slots=True)
class Tool:
    """An MCP tool made from a function: the description for clients, the function, and types that check its arguments and its answer."""

    listed: types.Tool
    _function: Function
    _arguments: type[BaseModel]
    _answer: TypeAdapter[Any]
    _shows: bool

    def saying(self, sentence: str) -> "Tool":
        """Return a copy of the tool that has `sentence` at the end of its description, which models read."""
        return self._with(description=f"{self.listed.description} {sentence}".rstrip())

    def as_task(self) -> "Tool":
        """Return a copy of the tool that clients can run as a task."""
        return self._with(execution={"taskSupport": "optional"})

    def with_default_timeout(self, seconds: float | None) -> "Tool":
        """Return a copy of the tool whose argument `timeout` has its default in its description. Do nothing if that is not known."""
        if seconds is None:
            return self
        schema = deepcopy(self.input_schema)
        schema["properties"]["timeout"]["description"] += f" By default {seconds:g}."
        return self._with(inputSchema=schema)

    @property
    def input_schema(self) -> dict[str, Any]:
        """Return the JSON schema of the tool's arguments."""
        schema: dict[str, Any] = self._described["inputSchema"]
        return schema

    def with_handles(self) -> "Tool":
        """Return a copy of the tool for clients without a connection, whose description does not speak of an active session."""
        schema = deepcopy(self.input_schema)
        for name in ("session_id", "new_session_id"):
            if (known := schema["properties"].get(name)) is not None and known["description"] in _WITH_HANDLES:
                known["description"] = _WITH_HANDLES[known["description"]]
        return self._with(inputSchema=schema).rephrased(_WITH_HANDLES)

    def rephrased(self, texts: Mapping[str, str]) -> "Tool":
        """Return a copy of the tool in whose description each key of `texts` is replaced by its value."""
        described = self._described["description"]
        for text, other in texts.items():
            described = described.replace(text, other)
        return self._with(description=described)

    def _with(self, **described: Any) -> "Tool":
        return replace(self, listed=types.Tool(**(self._described | described)))

    @property
    def _described(self) -> dict[str, Any]:
        return self.listed.model_dump(by_alias=True)

    async def __call__(self, call: Call, arguments: dict[str, Any]) -> types.CallToolResult:
        """Validate the arguments, call the function, and return its answer as JSON, without the fields that have their default values.

        The answer of a tool that shows content is in the result's `_meta`, for programs. It is structured content of other tools.
        If arguments are invalid, or the function raises an ACASessionsError, return a failed result with a message for the model.
        """
        try:
            checked = self._arguments.model_validate(arguments)
            answer = await self._function(call, **{name: value for name, value in checked if value is not None})
        except ValidationError as error:
            return failure(_explain(error, self._arguments.model_fields))
        except ServiceError as error:
            return failure(error.message)
        except ACASessionsError as error:
            return failure(str(error))
        structured = _rounded(self._answer.dump_python(answer, mode="json", exclude_defaults=True))
        if self._shows:
            return types.CallToolResult(content=call.content, _meta={ANSWER_KEY: structured, **call.meta})
        content = types.TextContent(type="text", text=json.dumps(structured, ensure_ascii=False))
        return types.CallToolResult(content=[content], structuredContent=structured)


def _rounded(answer: Any) -> Any:
    """Return an answer with its numbers rounded to three decimals, because each digit costs a model tokens."""
    match answer:
        case dict():
            return {name: _rounded(value) for name, value in answer.items()}
        case list():
            return [_rounded(value) for value in answer]
    return round(answer, 3) if isinstance(answer, float) else answer


def tool(function: Function, title: str, kind: Kind, *, repeatable: bool = False, outside: bool = False, shows: bool = False) -> Tool:
    """Make an MCP tool from a function. The function's docstring becomes the description, which models read.

    Args:
        function: An async function. Its first parameter is the `Call`; the others become the schema of the tool's arguments.
        title: The name that users see.
        kind: `reads` for a tool that changes nothing, `changes` for one that only adds things, `destroys` for one that may delete or
            replace things.
        repeatable: Whether a second call with the same arguments changes nothing more.
        outside: Whether the tool may reach anything outside of the session, such as the network.
        shows: Whether the result is what the function passes to `Call.show`, and not structured content. Some clients give a model only
            the structured content, without images, and some give it both. So text for reading would be lost, or read twice.
    """
    signature = inspect.signature(function, eval_str=True)
    parameters = [*signature.parameters.values()][1:]
    fields: dict[str, Any] = {
        one.name: (one.annotation, ...) if one.default is one.empty else (_or_null(one.annotation), one.default) for one in parameters
    }
    arguments = create_model(f"{function.__name__}_arguments", __config__=ConfigDict(extra="forbid"), **fields)
    answer: TypeAdapter[Any] = TypeAdapter(signature.return_annotation)
    hints = types.ToolAnnotations(
        title=title,
        readOnlyHint=kind == "reads",
        destructiveHint=kind == "destroys",
        idempotentHint=repeatable or kind == "reads",
        openWorldHint=outside,
    )
    listed = types.Tool(
        name=function.__name__,
        title=title,
        description=inspect.getdoc(function),
        inputSchema=arguments.model_json_schema(schema_generator=_Untitled),
        outputSchema=None if shows else _output_schema(answer),
        annotations=hints,
    )
    return Tool(listed, function, arguments, answer, shows)


def _or_null(annotation: Any) -> Any:
    """Return the type of an optional argument, extended by None. Many clients and models send null for what they leave out."""
    if get_origin(annotation) is not Annotated:
        return annotation | None
    kind, *metadata = get_args(annotation)
    return Annotated[kind | None, *metadata]


def _output_schema(answer: TypeAdapter[Any]) -> dict[str, Any]:
    """Return the schema of a tool's answer.

    The fields are one level below the root, in `allOf`. FastMCP's client makes a class from the fields at the root, and then
    `result.data["sessions"]` fails. Without such fields `data` is a dict. Validators treat both forms alike.
    """
    schema = answer.json_schema(mode="serialization", schema_generator=_Untitled)
    shared = {"$defs": schema.pop("$defs")} if "$defs" in schema else {}
    return _DIALECT | {"type": "object", "allOf": [schema]} | shared


def failure(message: str) -> types.CallToolResult:
    """Return the result of a failed tool call, with a message that the model reads."""
    return types.CallToolResult(content=[types.TextContent(type="text", text=message)], isError=True)


def _explain(error: ValidationError, known: Iterable[str]) -> str:
    """Return a message that says which arguments are wrong and why, and lists `known`, the names of all arguments of the tool.

    The message has no values, because they may be long or secret.
    """
    problems = error.errors(include_input=False, include_url=False, include_context=False)
    lines = [f"{'.'.join(str(part)[:50] for part in one['loc'])}: {one['msg']}" for one in problems[:5]]
    return f"the arguments are invalid: {'; '.join(lines)}. The tool's arguments are: {', '.join(known)}"
