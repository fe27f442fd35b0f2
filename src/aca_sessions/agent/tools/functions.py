"""Python functions as tools: `@tool`. Their annotations become the parameters."""

import asyncio
import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints, overload

from ...errors import ConfigurationError
from .tool import Budget, Effect, Parameter, Tool

_PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null", list: "array", dict: "object"}


@overload
def tool(function: Callable[..., Any], /) -> Tool: ...
@overload
def tool(
    *, name: str | None = None, effect: Effect = "write", budget: Budget = ..., tags: Sequence[str] = (), seconds: float = ...
) -> Callable[[Callable[..., Any]], Tool]: ...
def tool(function: Callable[..., Any] | None = None, /, **options: Any) -> Tool | Callable[[Callable[..., Any]], Tool]:
    """Make a tool of a function, sync or async: `@tool`, or `@tool(effect="read")`. The function can still be called directly.

    Its docstring becomes the description, its annotations become the parameters.

    Args:
        function: The function, if the decorator has no arguments.
        options: `name` (by default the function's), `effect`, `budget`, `tags`, and `seconds`, the time limit of a call.
    """
    if function is not None:
        return _tool_of(function, options)
    return lambda decorated: _tool_of(decorated, options)


def _tool_of(function: Callable[..., Any], options: Mapping[str, Any]) -> Tool:
    name = str(options.get("name") or getattr(function, "__name__", ""))
    made = Tool(
        name=name,
        act=lambda arguments: _called(function, arguments),
        description=inspect.getdoc(function) or "",
        parameters=tuple(_parameters(function)),
        function=function,
    )
    changed = {key: value for key, value in options.items() if key != "name"}
    return replace(made, **{**changed, **({"tags": tuple(changed["tags"])} if "tags" in changed else {})})


async def _called(function: Callable[..., Any], arguments: Mapping[str, object]) -> object:
    """Call a function. A plain function runs in a thread, because it may block."""
    if inspect.iscoroutinefunction(function):
        return await function(**arguments)
    answer = await asyncio.to_thread(_run, function, arguments)
    return await answer if inspect.isawaitable(answer) else answer


def _run(function: Callable[..., Any], arguments: Mapping[str, object]) -> object:
    try:
        return function(**arguments)
    except StopIteration as error:  # a future refuses StopIteration, so the caller would wait forever
        raise RuntimeError("StopIteration") from error


def _parameters(function: Callable[..., Any]) -> list[Parameter]:
    hints, found = get_type_hints(function, include_extras=True), []
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ConfigurationError(f"{name} of the tool {function.__name__} cannot be given by its name: use plain parameters")
        schema, description = _schema(hints.get(name, Any))
        required = parameter.default is parameter.empty
        default = None if required else parameter.default
        found.append(Parameter(name=name, schema=schema, required=required, default=default, description=description))
    return found


def _schema(annotation: Any) -> tuple[dict[str, Any], str]:
    """Return the JSON schema of an annotation, and the text that `Annotated` gives it."""
    arguments = get_args(annotation)
    match get_origin(annotation):
        case origin if origin is Annotated:
            texts = [part for part in arguments[1:] if isinstance(part, str)]
            return _schema(arguments[0])[0], texts[0] if texts else ""
        case origin if origin is Literal:
            return {"enum": list(arguments)}, ""
        case origin if origin in (Union, types.UnionType):
            return {"anyOf": [_schema(part)[0] for part in arguments]}, ""
        case origin if origin in (list, Sequence) and arguments:
            return {"type": "array", "items": _schema(arguments[0])[0]}, ""
        case origin if origin in (dict, Mapping):
            return {"type": "object"}, ""
    return ({"type": _PLAIN[annotation]} if annotation in _PLAIN else {}), ""
