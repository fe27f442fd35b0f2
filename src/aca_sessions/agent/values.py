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
    """A DataFrame as the content of its file, parquet or JSON, which has not been parsed yet."""


def encode(value: object) -> tuple[str, dict[str, bytes]]:
    """Encode a value as JSON, with long contents in files. Return the JSON text, and the contents of the files by name.

    Raise ToolFailedError if the value is too large, nested too deeply, or of a type that cannot be sent.
    """
    files: dict[str, bytes] = {}
    try:
        text = json.dumps(_packed(value, files), default=_refuse)
    except RecursionError:
        raise ToolFailedError("the value is nested too deeply, or holds itself") from None
    if len(text) + sum(map(len, files.values())) > MOST_ATTACHED or len(text) > _MOST_TEXT:
        raise ToolFailedError(_TOO_LARGE)
    return text, files


def files_named(value: object) -> list[str]:
    """Return the files that a value from a session names. Only names of the form that the bridge gives to its files count."""
    match value:
        case list():
            return [name for item in value for name in files_named(item)]
        case {"$": "bytes" | "text" | "table", "file": str(name)} if _FILE.fullmatch(name):
            return [name]
        case dict():
            return [name for item in value.values() for name in files_named(item)]
    return []


def decode(value: object, files: Mapping[str, bytes]) -> Any:
    """Return a value from a session, with the contents of its files in place of their names."""
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
    """Parse the file of a DataFrame. Raise ConfigurationError if no installed library can read parquet.

    Both formats hold only data, so parsing runs no code, even if a session wrote the file.
    """
    pandas, parquet = importlib.import_module("pandas"), data.startswith(_PARQUET)
    if parquet:
        _check_parquet_library()
    try:
        with _without_deprecations():
            return pandas.read_parquet(io.BytesIO(data)) if parquet else pandas.read_json(io.BytesIO(data), orient="table")
    except ImportError:
        raise ConfigurationError("this table is parquet: pip install pyarrow or fastparquet, or load it in a session") from None
    except Exception as error:  # from any of the libraries: a session may have written anything
        raise StorageError(f"this table cannot be read ({type(error).__name__}): save it again") from None


def table_bytes(frame: Any) -> bytes:
    """Return a DataFrame as JSON with its types. Raise ToolFailedError if a column's name is not text."""
    if not all(isinstance(name, str) for name in frame.columns):
        raise ToolFailedError("a DataFrame goes with columns that are named by text: frame.columns = frame.columns.map(str)")
    return str(frame.to_json(orient="table", double_precision=15)).encode()


def kept_table(frame: Any) -> Table:
    """Return a DataFrame for storing: as parquet if a library is installed and supports the frame, else as JSON.

    JSON keeps 15 digits of a float, parquet all of them.
    """
    try:
        with _without_deprecations():
            return Table(frame.to_parquet())
    except (ImportError, ValueError, TypeError, NotImplementedError):
        return Table(table_bytes(frame))


@contextlib.contextmanager
def _without_deprecations() -> Iterator[None]:
    """Ignore DeprecationWarning during the block.

    fastparquet uses what pandas 4 and a later numpy will remove. In a program that turns warnings into errors, no table could be read. Only
    one thread runs the block at a time, because the filters belong to the process.
    """
    with _filtering, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def is_table(value: object) -> bool:
    """Return whether a value is a DataFrame. pandas is not imported for that."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(value, pandas.DataFrame)


def _content(kind: str, data: bytes) -> Any:
    if kind == "table":  # parquet is parsed only when a caller loads it by name, never on its way
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
        case list() | tuple() | Mapping() if len(value) > _MOST_TEXT // 2:  # an item takes at least two characters of JSON
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
    """Raise ConfigurationError for pyarrow before 14.0.1, which unpickled what a file could name (CVE-2023-47248)."""
    try:
        version = tuple(int(part) for part in metadata.version("pyarrow").split(".")[:3])
    except (metadata.PackageNotFoundError, ValueError):
        return
    if version < _SAFE_PYARROW:
        raise ConfigurationError("this pyarrow runs code that a parquet file names: pip install 'pyarrow>=14.0.1'")


def _refuse(value: object) -> object:
    raise ToolFailedError(f"a {type(value).__name__} cannot be sent into a session: numbers, texts, bytes, lists, dicts and DataFrames can")
