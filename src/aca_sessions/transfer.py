"""Pass variables between a notebook and a session: plain values, times, and DataFrames, Series and arrays of numbers.

Nothing is pickled. A plain value is JSON, or Python source on its way in. A DataFrame travels in a file: as an Arrow stream if both sides
have pyarrow, otherwise as JSON. A Series or an array travels as a DataFrame.
The code that runs in the session is in `client.snippets`. What comes from a session may be hostile:

- JSON is limited in size and in its number of values, and only known types are made from it.
- An Arrow stream may use only types whose values take space in the file, and no compression. So it cannot become much larger in memory
  than the file is. Releases of pyarrow before 14.0.1 could run code from a file (CVE-2023-47248) and are not used.
"""

import math
import re
import struct
from importlib import metadata
from keyword import iskeyword
from typing import Any
from uuid import uuid4

from .client.history import VariableStep
from .client.session import Session
from .client.snippet_results import decode_names, parse_printed_json
from .client.snippets.values import MOST_BYTES, as_frame, decode_json, encode_plain, encode_variable, from_frame, has_safe_types
from .errors import InvalidArgumentError
from .guest_text import shown_caption
from .models import CodeExecutionResult

_LONGEST_VALUE = 1 << 20  # characters; of a longer text the session sends only the beginning and the end
_LONGEST_LITERAL = 100_000  # characters of a cell that sets a variable
_SAFE_PYARROW = (14, 0, 1)
_OTHERS = "use numbers, texts, dates, lists, dicts, or a DataFrame, Series or array of numbers, or write it to a file"
_UNSUPPORTED = re.compile(r"a value of the type (.{1,50}) cannot be copied")
_HINTS = {
    **dict.fromkeys(("frozenset", "range", "map", "filter", "zip", "generator", "dict_keys", "dict_values", "dict_items"), "use list(…)"),
    **dict.fromkeys(("OrderedDict", "defaultdict", "Counter"), "use dict(…)"),
    **dict.fromkeys(("LazyFrame", "Table", "ChunkedArray"), "use a DataFrame of pandas"),
    **dict.fromkeys(("DataFrame", "Series"), "it must be one of pandas (.to_pandas()), and a variable of its own"),
    **dict.fromkeys(("function", "type", "module", "builtin_function_or_method"), "define or import it on the other side too"),
    **dict.fromkeys(("Figure", "Axes", "Image"), "save it to a file"),
    **dict.fromkeys(("PosixPath", "UUID"), "use str(…)"),
    **dict.fromkeys(("Index", "DatetimeIndex"), "use .to_series()"),
    "ndarray": "use .tolist(), or an array of numbers as a variable of its own",
    "Decimal": "use float(…) or str(…)",
    "Period": "use .to_timestamp()",
    "datetime64": "use pandas.Timestamp(…)",
    "timedelta64": "use pandas.Timedelta(…)",
    "bytes": "write it to a file, or use .hex()",
}
_DICTIONARY, _BATCH = 2, 3  # types of Arrow's messages that can be compressed


async def pass_in(session: Session, name: str, value: object) -> CodeExecutionResult | None:
    """Set a variable of a session to a value of the notebook. Raise InvalidArgumentError if the value cannot be passed.

    A plain value, such as a number, a tuple or a date, is set by a cell. The session's history records that cell, so an exported notebook
    has it. Return the cell's result. A DataFrame, a Series, an array or a long plain value is sent as a file. The history records only the
    name of the variable: return None.
    """
    checked_name(name)
    try:
        frame, _ = as_frame(value)
        if frame is None and len(code := f"{name} = {_literal(encode_plain(value))}") <= _LONGEST_LITERAL:
            return await session.run(code, sanitize=False)
        arrow = _has_safe_pyarrow() and not decode_names(parse_printed_json(await session._run_snippet("print_missing", "pyarrow")))
        data = encode_variable(value, arrow)
    except (TypeError, ValueError, OverflowError, NotImplementedError) as error:
        if isinstance(error, InvalidArgumentError):
            raise
        raise InvalidArgumentError(f"{name} cannot be passed to the session: {_with_hint(str(error))}") from error
    file = _new_file()
    await session._interpreter._upload(session.session_id, file, data)  # not by the session's method, which adds it to the history
    _succeeded(f"{name} cannot be passed to the session", await session._run_snippet("import_variable", name, file))
    session.history.add(VariableStep(name))
    return None


async def pass_out(session: Session, name: str) -> object:
    """Return a copy of the value of a session's variable: a plain value, such as a number or a list, a DataFrame, a Series or an array.

    Raise InvalidArgumentError for any other value, or if the session has no such variable.
    """
    checked_name(name)
    file = _new_file()
    exported = await session._run_snippet("export_variable", name, file, int(_has_safe_pyarrow()))
    _succeeded(f"{name} cannot be passed from the session", exported)
    data = await _download_and_delete(session, name, file)
    try:
        return _unpacked(data)
    except ImportError as error:
        raise InvalidArgumentError(f"{name} cannot be passed from the session: this notebook has no pandas: pip install pandas") from error
    except Exception as error:  # from any of the libraries, and with what the session wrote: so it is not chained
        raise InvalidArgumentError(f"{name} cannot be passed from the session: its data is malformed ({type(error).__name__})") from None


def checked_name(name: str) -> str:
    """Return a variable's name unchanged. Raise InvalidArgumentError if it is not an identifier, or is a keyword."""
    if not name.isidentifier() or iskeyword(name):
        raise InvalidArgumentError(f"the name of a variable must be an identifier, got {name!r}")
    return name


def _new_file() -> str:
    return f".variable-{uuid4().hex}"


def _succeeded(failure: str, result: CodeExecutionResult) -> None:
    if result.error is not None and "[Errno 28]" in result.error.message:  # ENOSPC: the value is copied by a file
        raise InvalidArgumentError(f"{failure}: the session's /mnt/data is full: delete files there first")
    if result.error is not None:
        raise InvalidArgumentError(f"{failure}: {_with_hint(shown_caption(result.error.message))}")


def _with_hint(message: str) -> str:
    """Return the message of `encode_plain` for a type that is not supported, and what to do. Return other messages unchanged."""
    found = _UNSUPPORTED.search(message)
    return f"{message}: {_HINTS.get(found[1], _OTHERS)}" if found else message


def _literal(content: Any) -> str:
    """Return an expression that creates the value that `encode_plain` encoded as `content`."""
    if isinstance(content, list):
        return f"[{', '.join(map(_literal, content))}]"
    if not isinstance(content, dict):
        return f"float({str(content)!r})" if isinstance(content, float) and not math.isfinite(content) else repr(content)
    ((name, arguments),) = content.items()
    texts = [_literal(argument) for argument in arguments] if name != "dict" else []
    match name:
        case "dict":
            return "{" + ", ".join(f"{_literal(key)}: {_literal(value)}" for key, value in arguments) + "}"
        case "tuple":
            return f"({texts[0]},)" if len(texts) == 1 else f"({', '.join(texts)})"
        case "set":
            return f"{{{', '.join(texts)}}}" if texts else "set()"
        case "fold":
            return f"{texts[0]}.replace(fold=1)"
        case "NaT" | "NA":
            return f"__import__('pandas').{name}"
        case "Timestamp" | "Timedelta":
            given = ", ".join(f"{key}={text}" for key, text in zip(("unit", "tz"), texts[1:], strict=False))
            return f"__import__('pandas').{name}({texts[0]}, {given})"
    return f"__import__('{'zoneinfo' if name == 'ZoneInfo' else 'datetime'}').{name}({', '.join(texts)})"


async def _download_and_delete(session: Session, name: str, file: str) -> bytes:
    """Download a file that the session wrote for this transfer, and delete it there. Return its content.

    `name` is the variable, for errors.
    """
    size = next((one.size for one in await session.list_files() if one.name == file), 0)
    if size > MOST_BYTES:
        await session._interpreter.delete_file(session.session_id, file)
        raise InvalidArgumentError(f"{name} cannot be passed from the session: it must have at most {MOST_BYTES} bytes, got {size}")
    data = await session.download_file(file)
    await session._interpreter.delete_file(session.session_id, file)
    return data


def _unpacked(data: bytes) -> object:
    header, _, content = data.partition(b"\n")
    encoding, _, form = header.decode().partition(" ")
    if len(content) > MOST_BYTES:
        raise ValueError
    if encoding == "arrow" and _has_safe_pyarrow():
        return from_frame(_frame_from_arrow(content), form)
    if encoding != "json":
        raise ValueError
    return decode_json(content, form)


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


def is_plain(result: CodeExecutionResult) -> bool:
    """Return whether `result.value` is the value of the last expression: a number, a bool or text.

    Otherwise it is None, the `repr` of another object, or text so long that the session may have shortened it.
    """
    value = result.value
    return value is not None and not (isinstance(value, str) and (value == result.text or len(value) >= _LONGEST_VALUE))
