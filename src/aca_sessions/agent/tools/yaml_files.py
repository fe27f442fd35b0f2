"""Tools from YAML files: programs, HTTP endpoints and MCP servers. A tool can do only what its file describes."""

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from ...errors import ConfigurationError, imports_of
from .command import Option, Program, Recipe
from .tool import DEFAULT_SECONDS, EFFECTS, Effect, Parameter, Tool, ToolSource

with imports_of("agents"):
    import yaml

_KEYS = {
    "program": {"name", "description", "command", "timeout", "tags", "schema", "recipes", "effect"},
    "mcp": {"name", "description", "type", "transport", "command", "args", "env", "url", "tags", "effect", "timeout"},
    "http": {"name", "description", "type", "base_url", "headers", "endpoints", "tags", "timeout"},
}


def read_tools_folder(folder: Path) -> list[Tool | ToolSource]:
    """Return the tools of all YAML files in a folder, sorted by file name. Return an empty list if the folder does not exist."""
    if not folder.is_dir():
        return []
    return [tool for file in sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")]) for tool in read_tools_file(file)]


def read_tools_file(file: Path) -> list[Tool | ToolSource]:
    """Return the tools of a YAML file. Raise ConfigurationError if the file is invalid. The message names the file and what is wrong."""
    try:
        described = yaml.safe_load(file.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:  # not chained: the cause quotes the file, which may hold a token
        mark = getattr(error, "problem_mark", None)
        where = type(error).__name__ if mark is None else f"{type(error).__name__} in line {mark.line + 1}"
        raise ConfigurationError(f"{file.name} cannot be read as YAML ({where}): correct or remove it") from None
    kind = described.get("type", "program") if isinstance(described, dict) else None
    kind = "program" if kind == "cli" else kind
    if kind not in _KEYS or "name" not in described:
        got = type(described).__name__ if kind is None else f"type {kind!r:.40}" if kind not in _KEYS else "no name"
        raise ConfigurationError(f"{file.name} must describe a tool by a name and a command, type: mcp or type: http, got {got}")
    if unknown := described.keys() - _KEYS[kind] - {"type"}:
        expected = ", ".join(sorted(_KEYS[kind] | {"type"}))
        raise ConfigurationError(f"{file.name} has unknown keys: {', '.join(sorted(map(str, unknown)))}. Expected only {expected}")
    try:
        return _build_tools(kind, described)
    except ConfigurationError as error:
        raise ConfigurationError(f"{file.name}: {error}") from error
    except KeyError as error:
        raise ConfigurationError(f"{file.name} must have the key {error}: add it") from error
    except (TypeError, AttributeError, ValueError) as error:
        raise ConfigurationError(f"{file.name} has a value of a wrong type or form: {error}") from error


def _build_tools(kind: str, described: Mapping[str, Any]) -> list[Tool | ToolSource]:
    common: dict[str, Any] = {"tags": tuple(described.get("tags") or ()), "seconds": float(described.get("timeout", DEFAULT_SECONDS))}
    if kind == "program":
        return [*_parse_program(described, common).tools()]
    if kind == "http":
        from .http import Endpoint, HttpApi

        endpoints = [
            Endpoint(**{**common, **one, "effect": _parse_effect(one, "read" if one.get("method", "GET") == "GET" else "write")})
            for one in described["endpoints"]
        ]
        return [HttpApi(described["name"], described["base_url"], endpoints, headers=_expand_variables(described.get("headers", {})))]
    from .mcp import McpServer

    command = [described["command"], *described.get("args", ())] if "command" in described else None
    url, environment, effect = described.get("url"), _expand_variables(described.get("env", {})), described.get("effect")
    return [McpServer(described["name"], command=command, url=url, environment=environment, effect=effect, **common)]


def _parse_program(described: Mapping[str, Any], common: Mapping[str, Any]) -> Program:
    schema, command = described.get("schema") or {}, described["command"]
    return Program(
        name=described["name"],
        command=shlex.split(command) if isinstance(command, str) else [str(word) for word in command],
        description=described.get("description", ""),
        options=tuple(_parse_option(name, one or {}) for name, one in (schema.get("options") or {}).items()),
        positional=tuple(_parse_positional(one) for one in schema.get("positional") or ()),
        recipes=tuple(_parse_recipe(name, one or {}) for name, one in (described.get("recipes") or {}).items()),
        effect=_parse_effect(described, "write"),
        **common,
    )


def _parse_option(name: str, fields: Mapping[str, Any]) -> Option:
    short = str(fields.get("short", ""))
    return Option(name=name, type=fields.get("type", "string"), short=short, description=fields.get("description", ""))


def _parse_positional(fields: Mapping[str, Any]) -> Parameter:
    return Parameter(
        name=fields["name"],
        schema={"type": fields.get("type", "string")},
        required=bool(fields.get("required", False)),
        description=fields.get("description", ""),
    )


def _parse_recipe(name: str, fields: Mapping[str, Any]) -> Recipe:
    parameters = fields.get("params")
    preset = fields.get("preset") or {}
    return Recipe(
        name=name, description=fields.get("description", ""), preset=preset, parameters=None if parameters is None else tuple(parameters)
    )


def _parse_effect(fields: Mapping[str, Any], default: Effect) -> Effect:
    effect = fields.get("effect", default)
    if effect not in EFFECTS:
        raise ConfigurationError(f"effect must be one of {', '.join(EFFECTS)}, got {effect!r:.40}")
    return cast(Effect, effect)


def _expand_variables(values: Mapping[str, str]) -> dict[str, str]:
    """Return a copy of a dict in which environment variables replace `${NAME}` in the values, so that the YAML file needs no secrets."""
    return {name: os.path.expandvars(value) for name, value in values.items()}
