"""Tools made of functions: the signature makes the schemas, the arguments are checked, and failures are answers."""

import inspect
import json
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from mcp import types
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, create_model
from pydantic.json_schema import GenerateJsonSchema

from ...errors import ACASessionsError
from .calls import Call, as_json

Function = Callable[..., Awaitable[object]]
Kind = Literal["reads", "changes", "destroys"]

SessionName = Annotated[str | None, Field(description="The session to use. Without it the active one is used.", max_length=256)]


# Clients validate each answer against its schema, and validate the schema each time too. With draft 7 that takes a tenth of the time.
_DIALECT = {"$schema": "http://json-schema.org/draft-07/schema#"}


class _Untitled(GenerateJsonSchema):
    """A generator of schemas without titles: a title that repeats the field's name costs a model tokens and adds nothing."""

    def field_title_should_be_set(self, schema: object) -> bool:
        """Return False for every field."""
        del schema
        return False


def _words(value: object) -> object:
    """Return a list: some clients send one as its JSON text, or send a single word."""
    if not isinstance(value, str):
        return value
    try:
        listed = json.loads(value)
    except ValueError:
        return [value]
    return listed if isinstance(listed, list) else [value]


Words = Annotated[list[str], BeforeValidator(_words), Field(max_length=1000)]


@dataclass(frozen=True, slots=True)
class Tool:
    """A function with its schemas."""

    listed: types.Tool
    _function: Function
    _arguments: type[BaseModel]
    _answer: TypeAdapter[Any]

    async def __call__(self, call: Call, arguments: dict[str, Any]) -> types.CallToolResult:
        """Call the function and return its answer. Wrong arguments and the package's own errors become answers that the model can read."""
        try:
            checked = self._arguments.model_validate(arguments)
            answer = await self._function(call, **{name: getattr(checked, name) for name in self._arguments.model_fields})
        except ValidationError as error:
            return failure(_told(error, self._arguments.model_fields))
        except ACASessionsError as error:
            return failure(str(error))
        structured = self._answer.dump_python(answer, mode="json")
        content = call.content or [types.TextContent(type="text", text=as_json(structured))]
        return types.CallToolResult(content=content, structuredContent=structured)


def tool(function: Function, title: str, kind: Kind, *, repeatable: bool = False, outside: bool = False) -> Tool:
    """Return a tool that calls a function. Models read the function's docstring as the tool's description.

    Args:
        function: The function. Its first parameter is the call; the others make the schema of the arguments.
        title: The name that users see.
        kind: Whether the tool only reads, changes something, or may destroy something.
        repeatable: Whether calling it twice has the same effect as once.
        outside: Whether it may reach anything outside of the session.
    """
    signature = inspect.signature(function, eval_str=True)
    parameters = [*signature.parameters.values()][1:]
    fields: dict[str, Any] = {one.name: (one.annotation, ... if one.default is one.empty else one.default) for one in parameters}
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
        outputSchema=_DIALECT | answer.json_schema(mode="serialization", schema_generator=_Untitled),
        annotations=hints,
    )
    return Tool(listed, function, arguments, answer)


def failure(message: str) -> types.CallToolResult:
    """Return the answer of a call that failed."""
    return types.CallToolResult(content=[types.TextContent(type="text", text=message)], isError=True)


def _told(error: ValidationError, known: Iterable[str]) -> str:
    """Return what is wrong with which argument. Its value is not repeated, since it may be long or secret."""
    problems = error.errors(include_input=False, include_url=False, include_context=False)
    told = [f"{'.'.join(str(part)[:50] for part in one['loc'])}: {one['msg']}" for one in problems[:5]]
    return f"the arguments do not fit: {'; '.join(told)}. There are: {', '.join(known)}"
