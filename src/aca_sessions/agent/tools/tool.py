"""A tool: a name, parameters, its effect, and a coroutine function that does the work."""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from ...errors import ConfigurationError

Effect = Literal["read", "write", "irreversible"]
EFFECTS = ("read", "write", "irreversible")
DEFAULT_SECONDS = 60.0
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}(\.[A-Za-z][A-Za-z0-9_-]{0,63}){0,2}")
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Limit what one agent session can use of a tool in total: calls, seconds, and bytes of results. None means no limit.

    Calls at the same time wait for each other if they could exceed the limit together. With a limit of seconds, as many run as fit into it.
    With a limit of bytes, they run one after another; the answer that reaches the limit may exceed it.
    """

    calls: int | None = None
    seconds: float | None = None
    size: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """A parameter of a tool, with its JSON schema."""

    name: str
    schema: Mapping[str, Any] = field(default_factory=dict)
    required: bool = True
    default: object = None
    description: str = ""

    def described(self) -> dict[str, object]:
        """Return the parameter as it is described to the session."""
        told = {"name": self.name, "schema": {key: self.schema[key] for key in ("type", "enum") if key in self.schema}}
        return told | {"required": self.required, "default": self.default, "description": self.description}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A function of the host that code in a session can call.

    A tool without an `effect` counts as one that writes. `seconds` is the time limit of a call.
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
        """Raise ConfigurationError if code could not call the tool by its name, or if the effect is unknown."""
        if not _NAME.fullmatch(self.name) or self.name.partition(".")[0] in _RESERVED:
            reserved = ", ".join(sorted(_RESERVED))
            raise ConfigurationError(f"{self.name!r} is no name for a tool: letters, digits and '_', and none of {reserved}")
        if self.effect not in EFFECTS:
            raise ConfigurationError(f"the effect of {self.name} is one of {', '.join(EFFECTS)}")

    @property
    def signature(self) -> str:
        """Return how the tool is called, in one line."""
        return f"{self.name}({', '.join(map(_shown, self.parameters))})"

    def check(self, arguments: Mapping[str, object]) -> None:
        """Raise TypeError if the arguments are not what the tool takes."""
        known = {parameter.name: parameter for parameter in self.parameters}
        if unknown := arguments.keys() - known.keys():
            raise TypeError(f"{self.name} takes no {', '.join(sorted(unknown))}: {self.signature}")
        for name, parameter in known.items():
            if name in arguments:
                check(arguments[name], parameter.schema, name)
            elif parameter.required:
                raise TypeError(f"{self.name} needs {name}: {self.signature}")

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Call the Python function that this tool was made from. Raise TypeError if it was not made from one."""
        if self.function is None:
            raise TypeError(f"{self.name} is called by code in a session")
        return self.function(*arguments, **named)


class ToolSource(Protocol):
    """A source of tools that must be opened first, such as an MCP server."""

    async def open(self) -> Sequence[Tool]:
        """Open the source and return its tools."""
        ...

    async def close(self) -> None:
        """Close what `open` opened."""
        ...


class ToolFailedError(Exception):
    """A tool failed. Code in the session gets the message, and nothing else of the exception."""


def message_of(error: Exception) -> str:
    """Return the message of an exception, or the name of its type if it has none or `str()` fails."""
    name = type(error).__name__
    try:
        return str(error) or name
    except Exception:
        return name


def check(value: object, schema: Mapping[str, Any], where: str) -> None:
    """Raise TypeError if a value does not match a JSON schema. Keywords other than `anyOf`, `type`, `enum` and `items` are ignored."""
    if options := schema.get("anyOf"):
        if not any(_fits(value, option, where) for option in options):
            raise TypeError(f"{where} is none of what it may be")
        return
    kinds = schema.get("type", ())
    kinds = (kinds,) if isinstance(kinds, str) else tuple(kinds)
    if kinds and not any(_is_of(value, kind) for kind in kinds):
        raise TypeError(f"{where} is of type {' or '.join(kinds)}, not {type(value).__name__}")
    if "enum" in schema and value not in schema["enum"]:
        raise TypeError(f"{where} is one of {', '.join(map(repr, schema['enum']))}")
    if isinstance(value, list) and isinstance(schema.get("items"), Mapping):
        for place, item in enumerate(value):
            check(item, schema["items"], f"{where}[{place}]")


def parameters_of(schema: Mapping[str, Any]) -> tuple[Parameter, ...]:
    """Return the parameters that the JSON schema of an object describes."""
    required = set(schema.get("required", ()))
    return tuple(
        Parameter(name=name, schema=one, required=name in required, default=one.get("default"), description=str(one.get("description", "")))
        for name, one in schema.get("properties", {}).items()
        if isinstance(one, Mapping)
    )


def _fits(value: object, schema: Mapping[str, Any], where: str) -> bool:
    try:
        check(value, schema, where)
    except TypeError:
        return False
    return True


def _is_of(value: object, kind: str) -> bool:
    if isinstance(value, bool) and kind in ("integer", "number"):
        return False
    return isinstance(value, _JSON_TYPES.get(kind, (object,)))


def _shown(parameter: Parameter) -> str:
    kind = parameter.schema.get("type")
    text = f"{parameter.name}: {kind}" if isinstance(kind, str) else parameter.name
    return text if parameter.required else f"{text} = {parameter.default!r}"
