"""pandas and polars frames as data: their columns and a sample of their rows.

The format is `application/vnd.dataresource+json`, which notebooks know (Frictionless Data's tabular data resource), with each column's
own `dtype` and the number of all rows and columns. Rows are objects by field name, which readers of the format expect. So a field whose
name is taken gets a number, and its own name as `title`. No code of the user runs: an object of another than a plain type is shown by its
type.
"""

import datetime
import decimal
import itertools
import json
import math
import sys
from types import ModuleType
from typing import Any

MIME = "application/vnd.dataresource+json"
_ROWS = 20
_COLUMNS = 50
_CELL = 200  # characters
_BUDGET = 256 << 10  # characters of JSON
_TYPES = {"b": "boolean", "i": "integer", "u": "integer", "f": "number", "M": "datetime", "m": "duration"}
_PANDAS_TIMES = ("Timestamp", "Timedelta", "Period")
_TIMES = (datetime.datetime, datetime.date, datetime.time, datetime.timedelta)


def forms(value: Any) -> dict[str, Any]:
    """Return the forms to add to those of a frame or series. Return an empty dict for any other value."""
    kind = type(value)
    try:
        if kind is _class("pandas", "DataFrame"):
            return _within_budget(_of_pandas(value))
        if kind is _class("pandas", "Series"):
            frame = value.to_frame()
            return {"text/html": frame._repr_html_()} | _within_budget(_of_pandas(frame))
        if kind is _class("polars", "DataFrame"):
            return _within_budget(_of_polars(value))
        if kind is _class("polars", "Series"):
            return _within_budget(_of_polars(value.to_frame()))
    except Exception as error:
        print(f"{MIME} could not be made: {type(error).__name__}", file=sys.stderr)
    return {}


def _class(module: str, name: str) -> object:
    loaded = sys.modules.get(module)
    return vars(loaded).get(name, forms) if type(loaded) is ModuleType else forms


def _of_pandas(frame: Any) -> dict[str, Any]:
    sample = frame.iloc[:_ROWS, :_COLUMNS]
    columns = [(_label(name), dtype) for name, dtype in zip(sample.columns, sample.dtypes)]
    fields = [{"name": name, "type": _TYPES.get(getattr(dtype, "kind", ""), "string"), "dtype": str(dtype)} for name, dtype in columns]
    values = [sample.iloc[:, place].tolist() for place in range(sample.shape[1])]
    index = {"name": "index", "type": _TYPES.get(getattr(frame.index.dtype, "kind", ""), "string"), "dtype": str(frame.index.dtype)}
    *fields, index = _named_apart([*fields, index])  # the index is last to take a name: a column may be called `index`
    return _resource([index, *fields], [sample.index.tolist(), *values], frame.shape)


def _of_polars(frame: Any) -> dict[str, Any]:
    sample = frame[:_ROWS, :_COLUMNS]
    fields = [{"name": _label(name), "type": _type_of_polars(dtype), "dtype": str(dtype)} for name, dtype in sample.schema.items()]
    values = [sample.to_series(place).to_list() for place in range(sample.shape[1])]
    return _resource(_named_apart(fields), values, frame.shape)  # long names are cut, so they may be equal


def _type_of_polars(dtype: Any) -> str:
    if dtype.is_integer() or dtype.is_float():
        return "integer" if dtype.is_integer() else "number"
    return {"Boolean": "boolean", "Date": "date", "Time": "time", "Duration": "duration"}.get(
        str(dtype), "datetime" if str(dtype).startswith("Datetime") else "string"
    )


def _named_apart(fields: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return the fields with a name of its own for each."""
    taken = {field["name"] for field in fields}
    named: dict[str, dict[str, str]] = {}
    for field in fields:
        name = title = field["name"]
        if name in named:
            name = next(free for number in itertools.count(1) if (free := f"{title}.{number}") not in taken)
            field = {**field, "name": name, "title": title}
            taken.add(name)
        named[name] = field
    return [*named.values()]


def _resource(fields: list[dict[str, str]], columns: list[list[Any]], shape: tuple[int, int]) -> dict[str, Any]:
    names = [field["name"] for field in fields]
    rows = [dict(zip(names, map(_plain, row))) for row in zip(*columns)]
    told = {"profile": "tabular-data-resource", "schema": {"fields": fields}, "data": rows}
    return told | {"rowCount": int(shape[0]), "columnCount": int(shape[1])}


def _within_budget(resource: dict[str, Any]) -> dict[str, str]:
    """Return the resource as JSON text, with fewer rows if it is too long.

    Without any row the columns are still shown. Return an empty dict if they alone are too long.
    """
    while len(text := json.dumps(resource, ensure_ascii=False)) > _BUDGET and resource["data"]:
        resource["data"] = resource["data"][: len(resource["data"]) // 2]
    return {MIME: text} if len(text) <= _BUDGET else {}


def _label(name: Any) -> str:
    return str(_plain(name))


def _plain(value: Any) -> Any:
    """Return a value as JSON allows it. `str` and `repr` are called only on Python's and pandas' own types."""
    kind = type(value)
    if kind in (bool, type(None)) or (kind is int and value.bit_length() < 64):
        return value
    if kind is float:
        return value if math.isfinite(value) else None
    if kind is str:
        return value if len(value) <= _CELL else f"{value[:_CELL]}…"
    if value is _class("pandas", "NaT"):
        return None
    if kind in _TIMES or kind is decimal.Decimal or any(kind is _class("pandas", name) for name in _PANDAS_TIMES):
        return str(value)
    if kind is tuple:
        return ", ".join(str(_plain(part)) for part in value[:10])
    return f"<{kind.__name__}>"
