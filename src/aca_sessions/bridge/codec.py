"""Encode and decode the values of host calls (calls from a cell to functions of the host).

The form is JSON, with bytes, long texts and tables in separate files. Decoding runs no code and unpickles nothing.
"""

from __future__ import annotations

import re
import sys
import uuid
from collections.abc import Callable, Mapping
from typing import Any

FILE = re.compile(r"\.call-[0-9a-f]{32}")
_KINDS = ("bytes", "text", "table")
_LONG = 64 << 10  # characters; a longer text goes into a file
_MOST_ITEMS = 4 << 20  # of one list or dict: each takes at least two characters of JSON


class Table(bytes):
    """The content of a file that holds a DataFrame as parquet or JSON. It is not parsed."""


def new_file_name() -> str:
    """Return a random name for a file that carries bytes, a long text or a table."""
    return f".call-{uuid.uuid4().hex}"


def pack(value: Any, attach: Callable[[bytes], str]) -> Any:
    """Return a value in a form that JSON can hold. Bytes, long texts and DataFrames become references to files.

    Args:
        value: The value.
        attach: Called with the content of each file. Returns the name that refers to the file.

    Raises:
        TypeError: A value of this type cannot be sent.
        OverflowError: A list or dict has more than four million items.
    """
    if isinstance(value, str):
        return {"$": "text", "file": attach(value.encode("utf-8", "backslashreplace"))} if len(value) > _LONG else value
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, (bytes, bytearray, memoryview)):
        return {"$": "table" if isinstance(value, Table) else "bytes", "file": attach(bytes(value))}
    if isinstance(value, (list, tuple, Mapping)) and len(value) > _MOST_ITEMS:
        raise OverflowError(f"a list or dict must have at most {_MOST_ITEMS} items, got {len(value)}")
    if isinstance(value, (list, tuple)):
        return [pack(item, attach) for item in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        packed = {key: pack(item, attach) for key, item in value.items()}
        return {"$": "dict", "content": packed} if "$" in value else packed
    if is_table(value):
        return {"$": "table", "file": attach(table_as_json(value))}
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, (numpy.generic, numpy.ndarray)):
        return pack(value.tolist(), attach)
    if isinstance(value, Mapping):
        key = next(key for key in value if not isinstance(key, str))
        raise TypeError(f"a {type(value).__name__} cannot be sent with a key of type {type(key).__name__}: convert its keys to text")
    raise TypeError(f"a {type(value).__name__} cannot be sent: convert it to numbers, text, bytes, lists, dicts or a DataFrame")


def unpack(value: Any, read: Callable[[str, str], Any]) -> Any:
    """Return the value that `pack` encoded on the other side, host or guest.

    Args:
        value: The packed value, parsed from JSON.
        read: Called with the kind (`bytes`, `text` or `table`) and the name of each file. Returns the file's value. Only names like those
            of `new_file_name` are passed to it, so no name can lead to another folder.
    """
    if isinstance(value, list):
        return [unpack(item, read) for item in value]
    if not isinstance(value, dict):
        return value
    kind, content, name = value.get("$"), value.get("content"), value.get("file")
    if kind in _KINDS and isinstance(name, str) and FILE.fullmatch(name):
        return read(kind, name)
    if kind == "dict" and isinstance(content, dict):
        value = content
    return {key: unpack(item, read) for key, item in value.items()}


def is_table(value: object) -> bool:
    """Return whether a value is a pandas DataFrame. This imports nothing: if pandas is not loaded, no value can be a DataFrame."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(value, pandas.DataFrame)


def table_as_json(frame: Any) -> bytes:
    """Return a DataFrame with its column types as JSON. Raise TypeError if the name of a column is not text."""
    if not all(isinstance(name, str) for name in frame.columns):
        raise TypeError("the columns of a DataFrame must be named by text: set frame.columns = frame.columns.map(str)")
    return str(frame.to_json(orient="table", double_precision=15)).encode()
