"""Tools of the host that cells can call. `@tool` turns a function into a tool.

The effect of a tool is `read`, `write` or `irreversible`. It decides which calls need approval.
"""

import asyncio
import inspect
import re
import types
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, Protocol, Union, get_args, get_origin, get_type_hints, overload

from ...errors import ConfigurationError

Effect = Literal["read", "write", "irreversible"]
EFFECTS = ("read", "write", "irreversible")
DEFAULT_SECONDS = 60.0
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}(\.[A-Za-z][A-Za-z0-9_-]{0,63}){0,2}")
_SHORT = 40  # characters of a value in an error message
_RESERVED = {"list", "search", "batch", "describe", "call"}
_JSON_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}
_TYPE_NAMES = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null", list: "array", dict: "object"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The most that one agent session can use of a tool in total: calls, seconds, and bytes of results. None means no limit.

    If `seconds` is set, each running call reserves as many seconds as its time limit, and a call waits until enough are free. If `size` is
    set, calls run one after another, and the result of the last one may exceed the limit.
    """

    calls: int | None = None
    seconds: float | None = None
    size: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """A parameter of a tool. `schema` is its JSON schema.

    If the parameter is not required, the tool's signature shows `default`.
    """

    name: str
    schema: Mapping[str, Any] = field(default_factory=dict)
    required: bool = True
    default: object = None
    description: str = ""

    def to_dict(self) -> dict[str, object]:
        """Return the parameter as a dict to send to the session. Of its schema, only `type` and `enum` are included."""
        told = {"name": self.name, "schema": {key: self.schema[key] for key in ("type", "enum") if key in self.schema}}
        return told | {"required": self.required, "default": self.default, "description": self.description}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A function of the host that cells can call.

    `act` does the work: it is called with a dict of the arguments. `seconds` is the time limit of a call. `function` is the Python function
    from which `@tool` made the tool, or None.
    """

    name: str
    act: Callable[[dict[str, Any]], Awaitable[object]]
    description: str = ""
    parameters: tuple[Parameter, ...] = ()
    effect: Effect = "write"
    budget: Budget = Budget()
    tags: tuple[str, ...] = ()
    seconds: float = DEFAULT_SECONDS
    function: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        """Validate the name and the effect. Raise ConfigurationError if the name is invalid or reserved, or if the effect is unknown."""
        if not _NAME.fullmatch(self.name) or self.name.partition(".")[0] in _RESERVED:
            reserved = ", ".join(sorted(_RESERVED))
            form = f"up to 64 letters, digits, '_' and '-', begin with a letter, and be none of {reserved}"
            advice = "Up to three such names may be joined by '.', and @tool(name='...') sets another name"
            raise ConfigurationError(f"a tool's name must have {form}, got {self.name!r:.80}. {advice}")
        if self.effect not in EFFECTS:
            raise ConfigurationError(f"the effect of {self.name} must be one of {', '.join(EFFECTS)}, got {self.effect!r:.40}")

    @property
    def signature(self) -> str:
        """Return the name of the tool and its parameters with types and defaults, in one line."""
        return f"{self.name}({', '.join(map(_format_parameter, self.parameters))})"

    def check(self, arguments: Mapping[str, object]) -> None:
        """Raise TypeError if the arguments of a call do not match the parameters of the tool."""
        known = {parameter.name: parameter for parameter in self.parameters}
        if unknown := arguments.keys() - known.keys():
            raise TypeError(f"{self.name} takes no argument {', '.join(sorted(unknown))[:200]}: call it as {self.signature}")
        for name, parameter in known.items():
            if name in arguments:
                check_value(arguments[name], parameter.schema, name)
            elif parameter.required:
                raise TypeError(f"{self.name} needs {name}: call it as {self.signature}")

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Call the Python function that the tool was made from and return its result.

        Raise TypeError if the tool was not made from a function.
        """
        if self.function is None:
            raise TypeError(f"{self.name} was not made from a function: only code in a session can call it")
        return self.function(*arguments, **named)


@overload
def tool(function: Callable[..., Any], /) -> Tool: ...
@overload
def tool(
    *, name: str | None = None, effect: Effect = "write", budget: Budget = ..., tags: Sequence[str] = (), seconds: float = ...
) -> Callable[[Callable[..., Any]], Tool]: ...
def tool(function: Callable[..., Any] | None = None, /, **options: Any) -> Tool | Callable[[Callable[..., Any]], Tool]:
    """Turn a function, sync or async, into a tool: `@tool` or `@tool(effect="read")`.

    Calling the tool in the host's code calls the function. The function's docstring becomes the description, and its annotations become the
    parameters.

    Args:
        function: The function, if the decorator has no arguments.
        options: `name` (by default the function's), `effect` (`read`, `write` or `irreversible`, by default `write`), `budget`, `tags`, and
            `seconds`, the time limit of a call.
    """
    if function is not None:
        return _build_tool(function, options)
    return lambda decorated: _build_tool(decorated, options)


class ToolSource(Protocol):
    """The interface of an object that has tools once it is open, such as a connection to an MCP server."""

    async def open(self) -> Sequence[Tool]:
        """Open the source and return its tools."""
        ...

    async def close(self) -> None:
        """Close the source. Its tools cannot be called after that."""
        ...


def check_value(value: object, schema: Mapping[str, Any], where: str) -> None:
    """Raise TypeError if a value does not match `anyOf`, `type`, `enum` and `items` of a JSON schema. Ignore all else in the schema.

    `where` is what the error message calls the value, such as `limit` or `names[2]`.
    """
    if options := schema.get("anyOf"):
        if not any(_matches(value, option, where) for option in options):
            raise TypeError(f"{where} must be {' or '.join(map(_format_schema, options))}, got {_format_value(value)}")
        return
    kinds = _type_names(schema)
    if (kinds and not any(_has_type(value, kind) for kind in kinds)) or ("enum" in schema and value not in schema["enum"]):
        raise TypeError(f"{where} must be {_format_schema(schema)}, got {_format_value(value)}")
    if isinstance(value, list) and isinstance(schema.get("items"), Mapping):
        for place, item in enumerate(value):
            check_value(item, schema["items"], f"{where}[{place}]")


def parameters_of_schema(schema: Mapping[str, Any]) -> tuple[Parameter, ...]:
    """Return a parameter for each property in the JSON schema of an object."""
    required = set(schema.get("required", ()))
    return tuple(
        Parameter(name=name, schema=one, required=name in required, default=one.get("default"), description=str(one.get("description", "")))
        for name, one in schema.get("properties", {}).items()
        if isinstance(one, Mapping)
    )


def _type_names(schema: Mapping[str, Any]) -> tuple[str, ...]:
    kinds = schema.get("type", ())
    return (kinds,) if isinstance(kinds, str) else tuple(kinds)


def _format_schema(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return f"one of {', '.join(map(repr, schema['enum']))}"
    return f"of type {' or '.join(_type_names(schema))}" if _type_names(schema) else "another value"


def _format_value(value: object) -> str:
    """Return the text for a value in an error message: the repr of a short text or number, the type of any other value."""
    is_short = len(value) <= _SHORT if isinstance(value, str) else isinstance(value, int | float) and abs(value) < 10**_SHORT
    return repr(value) if is_short else f"a {type(value).__name__}"


def _matches(value: object, schema: Mapping[str, Any], where: str) -> bool:
    try:
        check_value(value, schema, where)
    except TypeError:
        return False
    return True


def _has_type(value: object, kind: str) -> bool:
    if isinstance(value, bool) and kind in ("integer", "number"):
        return False
    return isinstance(value, _JSON_TYPES.get(kind, (object,)))


def _format_parameter(parameter: Parameter) -> str:
    kind = parameter.schema.get("type")
    text = f"{parameter.name}: {kind}" if isinstance(kind, str) else parameter.name
    return text if parameter.required else f"{text} = {parameter.default!r}"


def _build_tool(function: Callable[..., Any], options: Mapping[str, Any]) -> Tool:
    name = str(options.get("name") or getattr(function, "__name__", ""))
    made = Tool(
        name=name,
        act=lambda arguments: _call_function(function, arguments),
        description=inspect.getdoc(function) or "",
        parameters=tuple(_read_parameters(function)),
        function=function,
    )
    changed = {key: value for key, value in options.items() if key != "name"}
    return replace(made, **{**changed, **({"tags": tuple(changed["tags"])} if "tags" in changed else {})})


async def _call_function(function: Callable[..., Any], arguments: Mapping[str, object]) -> object:
    """Call the function of a tool and return its result. A function that is not async runs in a thread, because it may block."""
    if inspect.iscoroutinefunction(function):
        return await function(**arguments)
    answer = await asyncio.to_thread(_call_in_thread, function, arguments)
    return await answer if inspect.isawaitable(answer) else answer


def _call_in_thread(function: Callable[..., Any], arguments: Mapping[str, object]) -> object:
    try:
        return function(**arguments)
    except StopIteration as error:  # a future refuses StopIteration, so the caller would wait forever
        raise RuntimeError("the tool raised StopIteration: give next() a default, or raise another exception") from error


def _read_parameters(function: Callable[..., Any]) -> list[Parameter]:
    hints, found = get_type_hints(function, include_extras=True), []
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            told = f"the parameter {name} of the tool {function.__name__} must be one that callers can give by name"
            raise ConfigurationError(f"{told}, got a {parameter.kind.description} one: declare it without '*', '**' and '/'")
        schema, description = _schema_of(hints.get(name, Any))
        required = parameter.default is parameter.empty
        default = None if required else parameter.default
        found.append(Parameter(name=name, schema=schema, required=required, default=default, description=description))
    return found


def _schema_of(annotation: Any) -> tuple[dict[str, Any], str]:
    """Return the JSON schema of an annotation, and its description: the text in `Annotated[..., "text"]`, or "" if there is none."""
    arguments = get_args(annotation)
    match get_origin(annotation):
        case origin if origin is Annotated:
            texts = [part for part in arguments[1:] if isinstance(part, str)]
            return _schema_of(arguments[0])[0], texts[0] if texts else ""
        case origin if origin is Literal:
            return {"enum": list(arguments)}, ""
        case origin if origin in (Union, types.UnionType):
            return {"anyOf": [_schema_of(part)[0] for part in arguments]}, ""
        case origin if origin in (list, Sequence) and arguments:
            return {"type": "array", "items": _schema_of(arguments[0])[0]}, ""
        case origin if origin in (dict, Mapping):
            return {"type": "object"}, ""
    return ({"type": _TYPE_NAMES[annotation]} if annotation in _TYPE_NAMES else {}), ""
