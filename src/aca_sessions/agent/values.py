"""Values between host and session: JSON, with bytes, long texts and tables in files beside it. Nothing is ever unpickled."""

import contextlib
import importlib
import io
import json
import math
import re
import sys
import threading
import uuid
import warnings
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any

from ..errors import ConfigurationError, StorageError
from .tools.tool import ToolFailedError

MOST_ATTACHED = 64 << 20
_LONG = 64 << 10
_MOST_TEXT = 8 << 20
_TOO_LARGE = f"the value is larger than a call may answer: {_MOST_TEXT >> 20} MB of JSON, {MOST_ATTACHED >> 20} MB of bytes"
_PARQUET = b"PAR1"
_SAFE_PYARROW = (14, 0, 1)
_filtering = threading.Lock()
_FILE = re.compile(r"\.call-[0-9a-f]{32}")


class Table(bytes):
    """A DataFrame as its file has it, parquet or JSON, which nobody has read yet."""


def encode(value: object) -> tuple[str, dict[str, bytes]]:
    """The value as JSON, and the files that it names."""
    files: dict[str, bytes] = {}
    try:
        text = json.dumps(_packed(value, files), default=_refuse)
    except RecursionError:
        raise ToolFailedError("the value is nested too deeply, or holds itself") from None
    if len(text) + sum(map(len, files.values())) > MOST_ATTACHED or len(text) > _MOST_TEXT:
        raise ToolFailedError(_TOO_LARGE)
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
    """A DataFrame of its file. Both forms are data alone, whoever wrote them; ConfigurationError where no library here reads parquet."""
    pandas, parquet = importlib.import_module("pandas"), data.startswith(_PARQUET)
    if parquet:
        _check_parquet_library()
    try:
        with _without_deprecations():
            return pandas.read_parquet(io.BytesIO(data)) if parquet else pandas.read_json(io.BytesIO(data), orient="table")
    except ImportError:
        raise ConfigurationError("this table is parquet: pip install pyarrow or fastparquet, or load it in a session") from None
    except Exception as error:  # of whichever library; a session may have written anything
        raise StorageError(f"this table cannot be read ({type(error).__name__}): save it again") from None


def table_bytes(frame: Any) -> bytes:
    """A DataFrame as JSON with its types."""
    if not all(isinstance(name, str) for name in frame.columns):
        raise ToolFailedError("a DataFrame goes with columns that are named by text: frame.columns = frame.columns.map(str)")
    return str(frame.to_json(orient="table", double_precision=15)).encode()


def kept_table(frame: Any) -> Table:
    """A DataFrame to be kept: as parquet where a library for it is here and takes the frame, else as JSON."""
    try:
        with _without_deprecations():
            return Table(frame.to_parquet())
    except (ImportError, ValueError, TypeError, NotImplementedError):
        return Table(table_bytes(frame))


@contextlib.contextmanager
def _without_deprecations() -> Iterator[None]:
    """Pass over deprecations in the block. fastparquet uses what pandas 4 and a later numpy will not have: where a program turns warnings
    into errors, no table could be read. One thread at a time, since the filters are the process's.
    """
    with _filtering, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def is_table(value: object) -> bool:
    """Whether it is a DataFrame."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(value, pandas.DataFrame)


def _content(kind: str, data: bytes) -> Any:
    if kind == "table":  # parquet is read where somebody asks for it by name, and never on its way
        return Table(data) if data.startswith(_PARQUET) else table(data)
    return data if kind == "bytes" else data.decode("utf-8", "replace")


def _packed(value: Any, files: dict[str, bytes]) -> Any:
    match value:
        case str() if len(value) > _LONG:
            return {"$": "text", "file": _attached(value.encode("utf-8", "backslashreplace"), files)}
        case float() if not math.isfinite(value):
            return value
        case None | bool() | int() | float() | str():
            return value
        case Table():
            return {"$": "table", "file": _attached(bytes(value), files)}
        case bytes() | bytearray() | memoryview():
            return {"$": "bytes", "file": _attached(bytes(value), files)}
        case list() | tuple() | Mapping() if len(value) > _MOST_TEXT // 2:  # as JSON an item has two characters: none is looked at
            raise ToolFailedError(_TOO_LARGE)
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


def _check_parquet_library() -> None:
    """Before 14.0.1 pyarrow unpickled what a file could name (CVE-2023-47248)."""
    try:
        version = tuple(int(part) for part in metadata.version("pyarrow").split(".")[:3])
    except (metadata.PackageNotFoundError, ValueError):
        return
    if version < _SAFE_PYARROW:
        raise ConfigurationError("this pyarrow runs code that a parquet file names: pip install 'pyarrow>=14.0.1'")


def _refuse(value: object) -> object:
    raise ToolFailedError(f"a {type(value).__name__} cannot be sent into a session: numbers, texts, bytes, lists, dicts and DataFrames can")
