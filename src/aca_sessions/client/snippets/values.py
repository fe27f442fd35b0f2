"""Snippets that pass variables between a session and a notebook. The notebook's side uses the same functions."""

import base64
import importlib
import json
import math
import os
import re
import sys
from datetime import date, datetime, timedelta, timezone, tzinfo
from datetime import time as clock
from importlib.util import find_spec
from typing import Any

from .files import workspace

MOST_BYTES = 64 << 20  # of a passed variable
MOST_VALUES = 8 << 20  # in JSON: each takes up to eighty bytes as an object
DEEPEST_VALUE = 50
MOST_KEYS = 10_000  # in a dict or set, other than texts: numbers can be chosen so that looking them up takes quadratic time
_ZONE = re.compile(r"(?!dateutil)[\w+:-]{1,40}(?:/[\w+-]{1,40}){0,3}")  # not the time zones of dateutil: they may be the path of a file
_DTYPES = re.compile(
    r"bool|boolean|u?int(?:8|16|32|64)|U?Int(?:8|16|32|64)|float(?:16|32|64)|Float(?:32|64)|object|str|string|category"
    r"|timedelta64\[(?:s|ms|us|ns)\]|datetime64\[(?:s|ms|us|ns)(?:, " + _ZONE.pattern + r")?\]"
)
_ARRAYS = re.compile(r"bool|u?int(?:8|16|32|64)|float(?:16|32|64)|(?:timedelta|datetime)64\[(?:s|ms|us|ns)\]")
_TIMES = {
    "date": (date, "year month day"),
    "time": (clock, "hour minute second microsecond tzinfo"),
    "datetime": (datetime, "year month day hour minute second microsecond tzinfo"),
    "timedelta": (timedelta, "days seconds microseconds"),
}


def export_variable(user: dict, name: str, file: str, arrow: int) -> None:
    """Write a variable to `file` in /mnt/data, which the client then downloads. `arrow` is 1 if the client can read Arrow, otherwise 0."""
    if name not in user:
        raise NameError(f"the session has no variable {name}")
    data = encode_variable(user[name], bool(arrow) and find_spec("pyarrow") is not None)
    with open(os.path.join(workspace(), file), "wb") as out:
        out.write(data)


def import_variable(user: dict, name: str, file: str) -> None:
    """Set a variable to what `encode_variable` encoded in `file` in /mnt/data, which the client has uploaded, and delete the file."""
    path = os.path.join(workspace(), file)
    with open(path, "rb") as sent:
        header, _, content = sent.read().partition(b"\n")
    os.remove(path)
    encoding, _, form = header.decode().partition(" ")
    if form != "value" and find_spec("pandas") is None:
        raise ImportError("the session has no pandas: install it there with %session_install pandas")
    if encoding == "arrow":
        import pyarrow

        user[name] = from_frame(pyarrow.ipc.open_stream(content).read_pandas(), form)
    else:
        user[name] = decode_json(content, form)


def encode_variable(value: Any, arrow: bool) -> bytes:
    """Encode a variable as bytes: a line with the encoding (`json` or `arrow`) and the form, then the content.

    The form is `value` for what `encode_plain` encodes. It is `frame` for a DataFrame of pandas. A Series or an array is sent as a
    DataFrame with one column, in the form `series`, `unnamed series` or `array`, a space and its shape.
    Raise TypeError for other values, and ValueError if the content is too large.
    """
    frame, form = as_frame(value)
    stream = _as_arrow(frame) if arrow and frame is not None else None
    content = stream or json.dumps(encode_plain(value) if frame is None else _as_json(frame)).encode()
    if len(content) > MOST_BYTES:
        raise ValueError(f"it must have at most {MOST_BYTES} bytes, got {len(content)}: write it to a file")
    if stream is None:
        _check_values(content)
    return f"{'arrow' if stream else 'json'} {form}\n".encode() + content


def _check_values(content: bytes) -> None:
    if sum(map(content.count, (b",", b"[", b"{"))) > MOST_VALUES:
        raise ValueError(f"it must have at most {MOST_VALUES} texts and other values: install pyarrow on both sides, or write it to a file")


def decode_json(content: bytes, form: str) -> Any:
    """Return the variable that `encode_variable` encoded as JSON. Raise an exception if the content is anything else."""
    _check_values(content)
    read = json.loads(content)
    return decode_plain(read) if form == "value" else from_frame(decode_frame(read), form)


def as_frame(value: Any) -> "tuple[Any, str]":
    """Return a DataFrame that holds the value, and the form: None and `value` if it is not a DataFrame, Series or array of numbers."""
    pandas, numpy = sys.modules.get("pandas"), sys.modules.get("numpy")  # if they are not imported, the value has none of their types
    if pandas is not None and isinstance(value, pandas.DataFrame):
        return value, "frame"
    if pandas is not None and isinstance(value, pandas.Series):
        return (value.to_frame(0), "unnamed series") if value.name is None else (value.to_frame(), "series")
    if numpy is not None and type(value) is numpy.ndarray and value.ndim and find_spec("pandas") is not None:
        flat = value.ravel().astype(value.dtype.newbyteorder("="))
        if _ARRAYS.fullmatch(str(flat.dtype)):
            return importlib.import_module("pandas").DataFrame({"array": flat}), "array " + ",".join(map(str, value.shape))
    return None, "value"


def from_frame(frame: Any, form: str) -> Any:
    """Return the DataFrame, Series or array that a DataFrame holds. Raise ValueError if the DataFrame does not have this form."""
    if form == "frame":
        return frame
    (column,) = range(frame.shape[1])
    series = frame.iloc[:, column]
    if form in ("series", "unnamed series"):
        return series if form == "series" else series.rename(None)
    kind, _, shape = form.partition(" ")
    sides = [int(side) for side in shape.split(",")]
    # An empty array may have sides of any length, and a sum of it would be as large as these.
    if kind != "array" or min(sides) < 0 or math.prod(side or 1 for side in sides) > MOST_BYTES or not _ARRAYS.fullmatch(str(series.dtype)):
        raise ValueError("an array must have a known type and a shape that fits its values")
    return series.to_numpy(copy=True).reshape(sides)


def encode_plain(value: Any, depth: int = 0) -> Any:
    """Return a value that JSON can hold, with the numbers of numpy converted to Python's. Raise TypeError for a type that is not supported.

    A value that JSON does not have, such as a tuple or a date, becomes a dict with one item: the name of its type, and a list of arguments.
    """
    kind = type(value)
    if depth > DEEPEST_VALUE:
        raise TypeError(f"lists and dicts must not be nested more than {DEEPEST_VALUE} deep")
    if kind.__module__ == "numpy" and getattr(value, "shape", None) == () and value.dtype.kind in "biufUmM":
        item = value.item()  # an int or None if Python's datetime has no such value
        if value.dtype.kind not in "mM" or type(item) in (date, datetime, timedelta):
            return encode_plain(item, depth)
    if value is None or kind in (bool, int, float, str):
        return value
    if kind is list:
        return [encode_plain(item, depth + 1) for item in value]
    if kind in (tuple, set):
        _check_keys(value if kind is set else ())
        return {kind.__name__: [encode_plain(item, depth + 1) for item in value]}
    if kind is dict:
        _check_keys(value)
        return {"dict": [[encode_plain(key, depth + 1), encode_plain(item, depth + 1)] for key, item in value.items()]}
    encoded = _encode_time(value)
    if encoded is None and isinstance(getattr(value, "tzinfo", value), tzinfo):
        raise TypeError("its time zone cannot be copied: use zoneinfo.ZoneInfo")
    if encoded is None:
        raise TypeError(f"a value of the type {kind.__name__} cannot be copied")
    return {"fold": [encoded]} if kind in (clock, datetime) and value.fold else encoded


def _check_keys(keys: Any) -> None:
    if len(keys) > MOST_KEYS and not all(type(key) is str for key in keys):
        raise ValueError(f"a dict or set of more than {MOST_KEYS} items must have texts as keys: use a list or a DataFrame")


def _encode_time(value: Any) -> "dict | None":
    """Encode a time, a duration or a time zone, of Python or of pandas, but without `fold`. Return None for other values."""
    kind, name = type(value), type(value).__name__
    if kind is timezone:
        return {name: [encode_plain(argument) for argument in value.__getinitargs__()]}
    if name in _TIMES and kind is _TIMES[name][0]:
        return {name: [encode_plain(getattr(value, field)) for field in _TIMES[name][1].split()]}
    zoneinfo, pandas = sys.modules.get("zoneinfo"), sys.modules.get("pandas")
    if zoneinfo is not None and type(value) is zoneinfo.ZoneInfo and _ZONE.fullmatch(value.key or ""):
        return {"ZoneInfo": [value.key]}
    if pandas is not None and (value is pandas.NaT or value is pandas.NA):
        return {"NaT" if value is pandas.NaT else "NA": []}
    if pandas is not None and type(value) in (pandas.Timestamp, pandas.Timedelta):
        zone = getattr(value, "tz", None)
        if zone is None or _ZONE.fullmatch(str(zone)):
            unit = str(value.asm8.dtype).partition("[")[2][:-1]
            return {type(value).__name__: [int(value.asm8.view("int64")), unit, *([] if zone is None else [str(zone)])]}
    return None


def decode_plain(content: Any) -> Any:
    """Return the value that `encode_plain` encoded. Raise an exception if the content is anything else."""
    if type(content) is list:
        return [decode_plain(item) for item in content]
    if type(content) is not dict:
        return content
    ((name, arguments),) = content.items()
    arguments = decode_plain(arguments)
    if type(arguments) is not list:
        raise ValueError("arguments must be a list")
    if name in ("dict", "set", "tuple"):
        _check_keys([key for key, _ in arguments] if name == "dict" else arguments if name == "set" else ())
        return {"dict": dict, "set": set, "tuple": tuple}[name](arguments)
    return _decode_time(name, arguments)


def _decode_time(name: str, arguments: list) -> Any:
    if name in _TIMES:
        kind: Any = _TIMES[name][0]
        for field, argument in zip(_TIMES[name][1].split(), arguments):
            if not (isinstance(argument, (tzinfo, type(None))) if field == "tzinfo" else type(argument) is int):
                raise ValueError("a time must have numbers")  # a text could be a pickled state
        return kind(*arguments)
    if name in ("timezone", "fold"):
        return timezone(*arguments) if name == "timezone" else arguments[0].replace(fold=1)
    if name == "ZoneInfo" and _ZONE.fullmatch(*arguments):
        from zoneinfo import ZoneInfo

        return ZoneInfo(*arguments)
    return _decode_pandas(name, *arguments)


def _decode_pandas(name: str, number: int = 0, unit: Any = "ns", zone: "str | None" = None) -> Any:
    import pandas

    if name in ("NaT", "NA"):
        return getattr(pandas, name)
    is_known = name in ("Timestamp", "Timedelta") and type(number) is int and unit in ("s", "ms", "us", "ns")
    if not is_known or (zone is not None and not _ZONE.fullmatch(zone)):
        raise ValueError("a value must have a known type, and a time must be a number, a unit and the name of a time zone")
    value: Any = pandas.Timedelta(number, unit) if name == "Timedelta" else pandas.Timestamp(number, unit=unit, tz=zone)
    return value.as_unit(unit) if hasattr(value, "as_unit") else value


def _as_json(frame: Any) -> dict:
    """Convert a DataFrame to values that JSON can hold. Numbers and times become bytes in base64."""
    index = frame.index
    counted = type(index).__name__ == "RangeIndex" and (index.start, index.step, index.name) == (0, 1, None)
    levels = [] if counted else [(index.names[level], index.get_level_values(level).to_series()) for level in range(index.nlevels)]
    columns = [(label, frame.iloc[:, place]) for place, label in enumerate(frame.columns)]
    return {
        "rows": len(frame),
        "names": encode_plain(list(frame.columns.names)),
        "index": [[encode_plain(label), *_encode_column(label, series)] for label, series in levels],
        "columns": [[encode_plain(label), *_encode_column(label, series)] for label, series in columns],
    }


def _encode_column(label: Any, series: Any) -> list:
    dtype = str(series.dtype)
    if not _DTYPES.fullmatch(dtype):
        raise TypeError(f"the column {str(label)[:50]!r} has the type {dtype[:50]}, which cannot be passed: convert it to text or numbers")
    if dtype == "category":
        categories = series.cat.categories.to_series()
        return [dtype, [series.cat.codes.tolist(), _encode_column(label, categories), bool(series.cat.ordered)]]
    if dtype.startswith(("datetime64", "timedelta64")) or (series.dtype.kind in "biuf" and not hasattr(series.dtype, "numpy_dtype")):
        array = (series.dt.tz_convert("UTC").dt.tz_localize(None) if "," in dtype else series).to_numpy()
        return [dtype, base64.b64encode(array.astype(array.dtype.newbyteorder("<")).tobytes()).decode()]
    try:
        if dtype == "object":
            return [dtype, [encode_plain(value) for value in series]]
        return [dtype, [None if gone else encode_plain(value) for gone, value in zip(series.isna(), series)]]
    except TypeError as error:
        raise TypeError(f"in the column {str(label)[:50]!r}, {error}") from None


def decode_frame(content: Any) -> Any:
    """Return the DataFrame that `_as_json` converted. Raise an exception if the content is anything else."""
    import pandas

    columns = [(decode_plain(label), _decode_column(dtype, values)) for label, dtype, values in content["columns"]]
    levels = [(decode_plain(label), _decode_column(dtype, values)) for label, dtype, values in content["index"]]
    labels, names = [label for label, _ in columns], decode_plain(content["names"])
    rows = content["rows"]
    if type(rows) is not int or not 0 <= rows < 1 << 40 or any(len(series) != rows for _, series in columns + levels):
        raise ValueError("the columns of a table must have one length")
    frame = pandas.DataFrame(dict(enumerate(series for _, series in columns)), index=pandas.RangeIndex(rows))
    frame.columns = pandas.Index(labels, tupleize_cols=False) if len(names) == 1 else pandas.MultiIndex.from_tuples(labels)
    frame.columns.names = names
    if len(levels) == 1:
        frame.index = pandas.Index(levels[0][1], name=levels[0][0], tupleize_cols=False)
    elif levels:
        frame.index = pandas.MultiIndex.from_arrays([series for _, series in levels], names=[label for label, _ in levels])
    return frame


def _decode_column(dtype: Any, values: Any) -> Any:
    import numpy
    import pandas

    if type(dtype) is not str or not _DTYPES.fullmatch(dtype) or type(values) not in (str, list):
        raise ValueError("a column must have a known type, and a list of values or the bytes of numbers")
    if dtype == "category":
        codes, (kind, names), ordered = values
        categories = pandas.Index(_decode_column(kind, names))
        return pandas.Series(pandas.Categorical.from_codes(codes, categories=categories, ordered=bool(ordered)))
    if type(values) is list:
        return pandas.Series(decode_plain(values), dtype=dtype)
    unit, _, zone = dtype.rstrip("]").partition(", ")
    kind = f"{unit}]" if "[" in dtype else dtype
    array = numpy.frombuffer(base64.b64decode(values, validate=True), numpy.dtype("uint8" if kind == "bool" else kind).newbyteorder("<"))
    series = pandas.Series(array.astype(kind))
    return series.dt.tz_localize("UTC").dt.tz_convert(zone) if zone else series


def _as_arrow(frame: Any) -> Any:
    """Encode a DataFrame as an Arrow stream. Return None if it has column types that the receiver does not accept."""
    import pyarrow

    try:
        table = pyarrow.Table.from_pandas(frame)
    except (ValueError, TypeError, NotImplementedError):
        return None
    if not has_safe_types(table.schema):
        return None
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return sink.getvalue().to_pybytes()


def has_safe_types(schema: Any) -> bool:
    """Return whether every value of every column takes space in the file, as numbers and texts do.

    With other types, such as Arrow's `null`, a small file could hold a huge table.
    """
    from pyarrow import types

    def is_flat(kind: Any) -> bool:
        if types.is_timestamp(kind):
            return kind.tz is None or bool(_ZONE.fullmatch(kind.tz))
        flat = (types.is_boolean, types.is_integer, types.is_floating, types.is_string, types.is_large_string)
        return any(is_one(kind) for is_one in (*flat, types.is_duration, types.is_date))

    return all(is_flat(kind.value_type if types.is_dictionary(kind) else kind) for kind in schema.types)
