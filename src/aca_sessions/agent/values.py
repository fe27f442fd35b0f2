"""Values between host and session: JSON, with bytes, long texts and tables in files beside it. Nothing is ever unpickled."""

import importlib
import io
import json
import math
import re
import sys
import uuid
from collections.abc import Mapping
from typing import Any

from .tools.tool import ToolFailedError

MOST_ATTACHED = 64 << 20
_LONG = 64 << 10
_MOST_TEXT = 8 << 20
_FILE = re.compile(r"\.call-[0-9a-f]{32}")


def encode(value: object) -> tuple[str, dict[str, bytes]]:
    """The value as JSON, and the files that it names."""
    files: dict[str, bytes] = {}
    try:
        text = json.dumps(_packed(value, files), default=_refuse)
    except RecursionError:
        raise ToolFailedError("the value is nested too deeply, or holds itself") from None
    if len(text) + sum(map(len, files.values())) > MOST_ATTACHED or len(text) > _MOST_TEXT:
        most = f"{_MOST_TEXT >> 20} MB of JSON, {MOST_ATTACHED >> 20} MB of bytes"
        raise ToolFailedError(f"the value is larger than a call may answer: {most}")
    return text, files


def files_named(value: object) -> list[str]:
    """The files that a value from a session names: only those that a call of ours can have made."""
    match value:
        case list():
            return [name for item in value for name in files_named(item)]
        case {"$": "bytes" | "text" | "table", "file": str(name)} if _FILE.fullmatch(name):
            return [name]
        case dict():
            return [name for item in value.values() for name in files_named(item)]
    return []


def decode(value: object, files: Mapping[str, bytes]) -> Any:
    """A value from a session, with the content of its files in place of their names."""
    match value:
        case list():
            return [decode(item, files) for item in value]
        case {"$": "dict", "content": dict(content)}:
            return {key: decode(item, files) for key, item in content.items()}
        case {"$": "bytes" | "text" | "table" as kind, "file": str(name)} if name in files:
            return _content(kind, files[name])
        case dict():
            return {key: decode(item, files) for key, item in value.items()}
    return value


def table(data: bytes) -> Any:
    """A DataFrame of what `table_bytes` made of one; read by a parser of JSON, whoever wrote it."""
    pandas = importlib.import_module("pandas")
    return pandas.read_json(io.BytesIO(data), orient="table")


def table_bytes(frame: Any) -> bytes:
    """A DataFrame as JSON with its types."""
    return str(frame.to_json(orient="table")).encode()


def is_table(value: object) -> bool:
    """Whether it is a DataFrame."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(value, pandas.DataFrame)


def _content(kind: str, data: bytes) -> Any:
    if kind == "table":
        return table(data)
    return data if kind == "bytes" else data.decode("utf-8", "replace")


def _packed(value: Any, files: dict[str, bytes]) -> Any:
    match value:
        case str() if len(value) > _LONG:
            return {"$": "text", "file": _attached(value.encode("utf-8", "backslashreplace"), files)}
        case float() if not math.isfinite(value):
            return value
        case None | bool() | int() | float() | str():
            return value
        case bytes() | bytearray() | memoryview():
            return {"$": "bytes", "file": _attached(bytes(value), files)}
        case list() | tuple():
            return [_packed(item, files) for item in value]
        case Mapping():
            return _packed_mapping(value, files)
    if is_table(value):
        return {"$": "table", "file": _attached(table_bytes(value), files)}
    return value


def _packed_mapping(value: Mapping[Any, Any], files: dict[str, bytes]) -> dict[str, Any]:
    if not all(isinstance(key, str) for key in value):
        raise ToolFailedError("the value has a dict with keys that are no text")
    packed = {key: _packed(item, files) for key, item in value.items()}
    return {"$": "dict", "content": packed} if "$" in value else packed


def _attached(data: bytes, files: dict[str, bytes]) -> str:
    name = f".call-{uuid.uuid4().hex}"
    files[name] = data
    return name


def _refuse(value: object) -> object:
    raise ToolFailedError(f"a {type(value).__name__} cannot be sent into a session: numbers, texts, bytes, lists, dicts and DataFrames can")
