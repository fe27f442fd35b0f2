"""Pass variables between a notebook and a session: plain values and pandas DataFrames, and into a session also Series and arrays.

Nothing is pickled. A plain value is JSON, or Python source on its way in. A DataFrame travels in a file: as an Arrow stream if both sides
have pyarrow, otherwise as JSON. A Series or an array travels as a DataFrame.
The code that runs in the session is in `client.snippets`. What comes from a session may be hostile:

- JSON is limited in size, and only known types are made from it.
- An Arrow stream may use only types whose values take space in the file, and no compression. So it cannot become much larger in memory
  than the file is. Releases of pyarrow before 14.0.1 could run code from a file (CVE-2023-47248) and are not used.
"""

import contextlib
import json
import math
import struct
import sys
from datetime import date, datetime, time, timedelta
from importlib import metadata
from keyword import iskeyword
from typing import Any
from uuid import uuid4

from .client.history import VariableStep
from .client.session import Session
from .client.snippet_results import decode_names, parse_printed_json
from .client.snippets import (
    DEEPEST_VALUE,
    MOST_ARROW,
    MOST_JSON,
    decode_frame,
    encode_variable,
    has_safe_types,
    is_frame,
    plain_value,
)
from .errors import InvalidArgumentError
from .guest_text import shown_caption
from .models import CodeExecutionResult

_LONGEST_LITERAL = 500_000  # characters of a cell that sets a variable
_SAFE_PYARROW = (14, 0, 1)
_DICTIONARY, _BATCH = 2, 3  # types of Arrow's messages that can be compressed


async def pass_in(session: Session, name: str, value: object) -> CodeExecutionResult | None:
    """Set a variable of a session to a value of the notebook. Raise InvalidArgumentError if the value cannot be passed.

    A plain value, such as a number, a tuple or a date, is set by a cell. The session's history records that cell, so an exported notebook
    has it. Return the cell's result. A DataFrame or Series of pandas, or an array of numbers with one or two dimensions, is sent as a file.
    The history records only the name of the variable: return None.
    """
    checked_name(name)
    try:
        frame, form = _as_frame(value)
        if frame is None:
            return await session.run(f"{name} = {_short_literal(value)}", sanitize=False)
        arrow = _has_safe_pyarrow() and not decode_names(parse_printed_json(await session._run_snippet("print_missing", "pyarrow")))
        data = encode_variable(frame, arrow)
    except (TypeError, ValueError, OverflowError, NotImplementedError) as error:
        if isinstance(error, InvalidArgumentError):
            raise
        raise InvalidArgumentError(f"{name} cannot be passed to the session: {error}") from error
    file = _new_file()
    await session._interpreter._upload(session.session_id, file, data)  # not by the session's method, which adds it to the history
    _succeeded(name, await session._run_snippet("import_variable", name, file, form))
    session.history.add(VariableStep(name))
    return None


async def pass_out(session: Session, name: str) -> object:
    """Return a copy of the value of a session's variable: a plain value, such as a number or a list, or a pandas DataFrame.

    Raise InvalidArgumentError for any other value, or if the session has no such variable.
    """
    checked_name(name)
    file = _new_file()
    _succeeded(name, await session._run_snippet("export_variable", name, file, int(_has_safe_pyarrow())))
    data = await _download_and_delete(session, name, file)
    try:
        return _unpacked(data)
    except ImportError as error:
        raise InvalidArgumentError(f"{name} is a DataFrame, and this notebook has no pandas: pip install pandas") from error
    except Exception as error:  # from any of the libraries, and with what the session wrote: so it is not chained
        raise InvalidArgumentError(f"{name} cannot be passed from the session: its data is malformed ({type(error).__name__})") from None


def checked_name(name: str) -> str:
    """Return a variable's name unchanged. Raise InvalidArgumentError if it is not an identifier, or is a keyword."""
    if not name.isidentifier() or iskeyword(name):
        raise InvalidArgumentError(f"the name of a variable must be an identifier, got {name!r}")
    return name


def _new_file() -> str:
    return f".variable-{uuid4().hex}"


def _succeeded(name: str, result: CodeExecutionResult) -> None:
    if result.error is not None:
        raise InvalidArgumentError(f"{name} cannot be passed: {shown_caption(result.error.message)}")


def _as_frame(value: Any) -> tuple[Any, str]:
    """Return a DataFrame that holds the value, and the form that the session must make of it. Return None and '' for other values."""
    if is_frame(value):
        return value, "frame"
    with contextlib.suppress(ImportError):
        if "numpy" in sys.modules and type(value) is sys.modules["numpy"].ndarray and value.dtype.kind in "biuf" and value.ndim in (1, 2):
            import pandas

            return pandas.DataFrame(value), f"{value.ndim}-d array"
    if "pandas" in sys.modules and isinstance(value, sys.modules["pandas"].Series):
        return (value.to_frame(0), "unnamed series") if value.name is None else (value.to_frame(), "series")
    return None, ""


def _short_literal(value: object) -> str:
    text = _literal(value)
    if len(text) > _LONGEST_LITERAL:
        raise ValueError(
            f"as text it must have at most {_LONGEST_LITERAL} characters, got {len(text)}: pass a DataFrame, or a file by %session_put"
        )
    return text


def _literal(value: Any, depth: int = 0) -> str:
    """Return an expression that creates a plain value. Besides those of `plain_value`, these are tuples, dates, times and durations."""
    kind = type(value)
    if kind in (list, tuple) and depth <= DEEPEST_VALUE:
        items = ", ".join(_literal(item, depth + 1) for item in value)
        return f"[{items}]" if kind is list else f"({items},)" if len(value) == 1 else f"({items})"
    if kind is dict and depth <= DEEPEST_VALUE:
        plain_value(dict.fromkeys(value))  # raises TypeError if a key is not text
        return "{" + ", ".join(f"{key!r}: {_literal(item, depth + 1)}" for key, item in value.items()) + "}"
    if kind in (date, timedelta) or (kind in (datetime, time) and value.tzinfo is None):
        return f"__import__('datetime').{repr(value).removeprefix('datetime.')}"
    plain = plain_value(value, depth)
    return f"float({str(plain)!r})" if type(plain) is float and not math.isfinite(plain) else repr(plain)


async def _download_and_delete(session: Session, name: str, file: str) -> bytes:
    """Download a file that the session wrote for this transfer, and delete it there. Return its content.

    `name` is the variable, for errors.
    """
    size = next((one.size for one in await session.list_files() if one.name == file), 0)
    if size > MOST_ARROW:
        await session._interpreter.delete_file(session.session_id, file)
        raise InvalidArgumentError(f"{name} cannot be passed from the session: it must have at most {MOST_ARROW} bytes, got {size}")
    data = await session.download_file(file)
    await session._interpreter.delete_file(session.session_id, file)
    return data


def _unpacked(data: bytes) -> object:
    form, _, content = data.partition(b"\n")
    if form == b"arrow" and len(content) <= MOST_ARROW and _has_safe_pyarrow():
        return _frame_from_arrow(content)
    if form != b"json" or len(content) > MOST_JSON:
        raise ValueError
    read = json.loads(content)
    return decode_frame(read["frame"]) if "frame" in read else read["value"]


def _has_safe_pyarrow() -> bool:
    try:
        version = metadata.version("pyarrow")
        return tuple(int(part) for part in version.split(".")[:3]) >= _SAFE_PYARROW
    except (metadata.PackageNotFoundError, ValueError):
        return False


def _frame_from_arrow(data: bytes) -> object:
    """Return the DataFrame in an Arrow stream. Raise an exception if the stream is malformed.

    Also raise one if the DataFrame could take much more memory than the stream.
    """
    import pyarrow

    messages = pyarrow.ipc.MessageReader.open_stream(data)
    if any(_is_compressed(message.metadata.to_pybytes()) for message in messages):
        raise ValueError
    with pyarrow.ipc.open_stream(data) as stream:
        if not has_safe_types(stream.schema):
            raise TypeError
        table = stream.read_all()
    if table.nbytes > 2 * len(data):  # columns may name the same bytes, and each gets a copy in pandas
        raise OverflowError
    table.validate(full=True)
    return table.to_pandas()


def _is_compressed(message: bytes) -> bool:
    """Return whether an Arrow message (a FlatBuffer) has a compressed body. pyarrow itself reports that only after decompressing."""
    header = _field(message, _target(message, 0), 2)
    kind = message[_field(message, _target(message, 0), 1)]
    if kind not in (_DICTIONARY, _BATCH):
        return False
    batch = _target(message, header)
    if kind == _DICTIONARY:
        batch = _target(message, _field(message, batch, 1))
    return _field(message, batch, 3) != 0


def _field(message: bytes, table: int, number: int) -> int:
    """Return the position in `message` of a FlatBuffer table's field, or 0 if the table does not have it.

    `table` is the position of the table, and `number` is the number of the field.
    """
    entries = table - int(struct.unpack_from("<i", message, table)[0])
    place = 4 + 2 * number
    offset = int(struct.unpack_from("<H", message, entries + place)[0]) if place < struct.unpack_from("<H", message, entries)[0] else 0
    return table + offset if offset else 0


def _target(message: bytes, reference: int) -> int:
    return reference + int(struct.unpack_from("<I", message, reference)[0])
