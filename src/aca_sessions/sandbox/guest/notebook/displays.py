"""Show values in a session: the value of a cell's last expression as the cell's value, everything else as displays.

A value is shown in several formats ("forms"), one for each MIME type. This module adds these to the formats of IPython:

- Charts of plotly and altair, as JSON and as one HTML document. plotly's document contains its script (5 MB). altair's does if vl-convert
  is installed; otherwise it loads Vega from a public address, so the reader needs a network. Neither is drawn as an image here.
- Tables of pandas and polars, as `application/vnd.dataresource+json` (Frictionless Data's tabular data resource, which notebooks know): a
  sample of the rows, each column's `dtype`, and the number of all rows and columns. The keys of a row are the columns' names. If columns
  have equal names, a number is appended to the later ones, and `title` holds the real name. No code of the user runs, so a value that is
  not of a plain type is shown as the name of its type.
"""

from __future__ import annotations

import datetime
import decimal
import itertools
import json
import math
import sys
from types import ModuleType
from typing import Any, ClassVar

from IPython.core.displayhook import DisplayHook
from IPython.core.displaypub import DisplayPublisher
from IPython.core.formatters import DisplayFormatter, PlainTextFormatter

PLAIN_TYPES = (int, float, bool, str)
PLOTLY = "application/vnd.plotly.v1+json"
_MOST_NAMED = 8
TABLE = "application/vnd.dataresource+json"
_ROWS = 20
_COLUMNS = 50
_CELL = 200  # characters
_BUDGET = 256 << 10  # characters of JSON
_TYPES = {"b": "boolean", "i": "integer", "u": "integer", "f": "number", "M": "datetime", "m": "duration"}
_PANDAS_TIMES = ("Timestamp", "Timedelta", "Period")
_TIMES = (datetime.datetime, datetime.date, datetime.time, datetime.timedelta)

Bundle = tuple[dict[str, Any], dict[str, Any]]


class ValueHook(DisplayHook):
    """IPython's display hook, which stores a cell's last value for the result instead of printing it."""

    def start_displayhook(self) -> None: ...
    def write_output_prompt(self) -> None: ...
    def finish_displayhook(self) -> None: ...

    stock_printers: ClassVar[dict[type, Any]] = {}  # the printers of plain types in an unchanged shell

    def __call__(self, result: Any = None) -> None:
        # A notebook shows nothing for None, but Azure distinguishes `x` from `print(x)` and `x = None`.
        if result is None:
            self.shell.collected.value_is_none = not (self.shell.ends_with_call or self.quiet())
        super().__call__(result)

    def quiet(self) -> bool:
        """Return whether the cell ends with a semicolon, which hides its value."""
        parsed = self.shell.history_manager.input_hist_parsed
        return bool(parsed) and ";" in parsed[-1] and bool(super().quiet())

    def compute_format_data(self, result: Any) -> Bundle:
        """Format a value: return a dict from MIME type to the value in this format, and a dict of metadata.

        A number, bool or text is formatted as its repr only, unless the user changed how its type is shown.
        """
        kind = type(result)
        if kind not in PLAIN_TYPES or self._is_shown_in_another_way(kind):
            return super().compute_format_data(result)  # type: ignore[no-any-return]
        return {"text/plain": repr(result)}, {}

    def _is_shown_in_another_way(self, kind: type) -> bool:
        display = self.shell.display_formatter
        plain = display.formatters["text/plain"]
        taught = any(kind in one.type_printers or object in one.type_printers for one in display.formatters.values() if one is not plain)
        own_way = plain.type_printers.get(kind) is not self.stock_printers.get(kind) or plain.float_format != "%r" or not plain.pprint
        return bool(taught or own_way or display.ipython_display_formatter.type_printers)

    def write_format_data(self, format_dict: dict[str, Any], md_dict: dict[str, Any] | None = None) -> None:
        self.shell.collected.store_value(self.shell.displayhook.exec_result, format_dict)

    def cull_cache(self) -> None:
        """Remove the oldest values from `Out`, to make room for another. IPython's own method would print a warning."""
        values = self.shell.user_ns["_oh"]
        for number in list(values)[: len(values) - self.cache_size + 1]:
            del values[number]
            self.shell.user_ns.pop(f"_{number}", None)


class Publisher(DisplayPublisher):
    """IPython's display publisher, which collects the displays of a cell and sends them to the host."""

    def publish(self, data: dict[str, Any], metadata: object = None, **options: Any) -> None:
        name = (options.get("transient") or {}).get("display_id")
        bundle = complete_chart(data)
        self.shell.collected.add_display(bundle, None if name is None else str(name), update=bool(options.get("update")))

    def clear_output(self, wait: bool = False) -> None:
        self.shell.collected.clear(wait)


class Formatter(DisplayFormatter):
    """IPython's formatter, extended by charts and tables. If a value cannot be converted to one format, the error is printed on stderr."""

    def format(self, obj: Any, include: object = None, exclude: object = None) -> Bundle:
        with self.parent.redirect_errors():
            if (chart := self._chart(obj)) is not None:
                return chart, {}
            data, metadata = super().format(obj, include, exclude)
            if data and include is None:
                data |= table_forms(obj)
            if "image/png" in data and "image/jpeg" in data:
                del data["image/jpeg"]  # the same picture, with losses
        return data, metadata

    def _chart(self, obj: Any) -> dict[str, Any] | None:
        try:
            return chart_forms(obj)
        except Exception:
            self.parent.showtraceback()
            return None


class PlainText(PlainTextFormatter):
    """IPython's formatter for plain text. It shows a numpy number as a plain number, and describes a matplotlib figure in words.

    The description of figures is not registered as a printer of IPython, because matplotlib's inline backend would remove it.
    """

    def __call__(self, value: Any) -> str | None:
        if type(value) not in self.type_printers:
            if type(value).__module__ == "numpy" and isinstance(value, (sys.modules["numpy"].number, sys.modules["numpy"].bool_)):
                return str(value)
            if type(value).__module__ == "matplotlib.figure" and hasattr(value, "get_axes"):
                return _describe_figure(value)
        with self.parent.parent.redirect_errors(False):  # fail the cell: without its text a value has nothing to show
            return super().__call__(value)  # type: ignore[no-any-return]


def _describe_figure(figure: Any) -> str:
    """Describe a matplotlib figure in words, for readers who cannot see it."""
    parts = [figure.get_suptitle()] if hasattr(figure, "get_suptitle") else []
    for axes in figure.get_axes()[:4]:
        labels = " by ".join(label for label in (axes.get_ylabel(), axes.get_xlabel()) if label)
        legend = axes.get_legend()
        lines = ", ".join(text.get_text() for text in legend.get_texts()[:8]) if legend else ""
        parts.append(" ".join(part for part in (axes.get_title(), f"({labels})" if labels else "", f"[{lines}]" if lines else "") if part))
    described = "; ".join(part for part in parts if part)
    return f"Figure {described}" if described else f"Figure with {len(figure.get_axes())} axes"


def chart_forms(value: Any) -> dict[str, Any] | None:
    """Return a chart of plotly or altair in several formats: a dict from MIME type to content. Return None for any other value."""
    if _is_instance(value, "plotly.basedatatypes", "BaseFigure"):
        return complete_chart({PLOTLY: json.loads(value.to_json())})
    if _is_instance(value, "altair", "TopLevelMixin"):
        return _altair_forms(value)
    return None


def complete_chart(data: dict[str, Any]) -> dict[str, Any]:
    """Add text and HTML to a plotly chart that lacks them because `figure.show()` published it. Return other displays unchanged."""
    if PLOTLY not in data or "text/html" in data or "plotly" not in sys.modules:
        return data
    figure = data[PLOTLY]
    try:
        plain = {key: part for key, part in figure.items() if key != "config"}
        html = sys.modules["plotly"].io.to_html(plain, config=figure.get("config"), include_plotlyjs=True, validate=False)
        return {"text/plain": _describe_plotly(figure)} | data | {"text/html": html}
    except Exception as error:
        print(f"cannot convert a plotly chart to HTML ({type(error).__name__}): it has the form {PLOTLY} only", file=sys.stderr)
        return data


def _altair_forms(chart: Any) -> dict[str, Any]:
    altair = sys.modules["altair"]
    spec = chart.to_dict()
    version = str(altair.SCHEMA_VERSION).partition(".")[0]
    data = {"text/plain": _describe_altair(spec), f"application/vnd.vegalite.{version}+json": spec}
    try:
        return data | {"text/html": chart.to_html(inline=True)}
    except ImportError:
        return data | {"text/html": chart.to_html()}


def _is_instance(value: Any, module: str, name: str) -> bool:
    known = vars(sys.modules[module]).get(name) if module in sys.modules else None
    return isinstance(known, type) and issubclass(type(value), known)


def _describe_plotly(figure: dict[str, Any]) -> str:
    title = figure.get("layout", {}).get("title", "")
    title = title.get("text", "") if isinstance(title, dict) else title
    traces = [" ".join(filter(None, (trace.get("type", "scatter"), trace.get("name")))) for trace in figure.get("data", [])]
    return f"plotly Figure {title} [{', '.join(traces[:_MOST_NAMED])}]".replace("  ", " ")


def _describe_altair(spec: dict[str, Any]) -> str:
    mark = spec.get("mark", "")
    mark = mark.get("type", "") if isinstance(mark, dict) else mark
    axes = {
        channel: part.get("field") or part.get("aggregate") for channel, part in spec.get("encoding", {}).items() if isinstance(part, dict)
    }
    drawn = ", ".join(f"{channel}: {field}" for channel, field in list(axes.items())[:_MOST_NAMED] if field)
    title = spec.get("title", "")
    return " ".join(filter(None, ("altair Chart", title if isinstance(title, str) else "", mark, f"({drawn})" if drawn else "")))


def table_forms(value: Any) -> dict[str, Any]:
    """Return a DataFrame or Series of pandas or polars as tabular JSON: a dict from MIME type to text. A Series of pandas has HTML as well.

    Return an empty dict for other values, or if the table cannot be converted.
    """
    kind = type(value)
    try:
        if kind is _class("pandas", "DataFrame"):
            return _encode_table(_pandas_table(value))
        if kind is _class("pandas", "Series"):
            frame = value.to_frame()
            return {"text/html": frame._repr_html_()} | _encode_table(_pandas_table(frame))
        if kind is _class("polars", "DataFrame"):
            return _encode_table(_polars_table(value))
        if kind is _class("polars", "Series"):
            return _encode_table(_polars_table(value.to_frame()))
    except Exception as error:
        print(f"cannot convert a table to {TABLE} ({type(error).__name__}): it is shown without that form", file=sys.stderr)
    return {}


def _class(module: str, name: str) -> object:
    loaded = sys.modules.get(module)
    return vars(loaded).get(name, table_forms) if type(loaded) is ModuleType else table_forms


def _pandas_table(frame: Any) -> dict[str, Any]:
    sample = frame.iloc[:_ROWS, :_COLUMNS]
    columns = [(_label(name), dtype) for name, dtype in zip(sample.columns, sample.dtypes)]
    fields = [{"name": name, "type": _TYPES.get(getattr(dtype, "kind", ""), "string"), "dtype": str(dtype)} for name, dtype in columns]
    values = [sample.iloc[:, place].tolist() for place in range(sample.shape[1])]
    index = {"name": "index", "type": _TYPES.get(getattr(frame.index.dtype, "kind", ""), "string"), "dtype": str(frame.index.dtype)}
    *fields, index = _make_names_unique([*fields, index])  # the index is last to take a name: a column may be called `index`
    return _resource([index, *fields], [sample.index.tolist(), *values], frame.shape)


def _polars_table(frame: Any) -> dict[str, Any]:
    sample = frame[:_ROWS, :_COLUMNS]
    fields = [{"name": _label(name), "type": _polars_type(dtype), "dtype": str(dtype)} for name, dtype in sample.schema.items()]
    values = [sample.to_series(place).to_list() for place in range(sample.shape[1])]
    return _resource(_make_names_unique(fields), values, frame.shape)  # long names are cut, so they may be equal


def _polars_type(dtype: Any) -> str:
    if dtype.is_integer() or dtype.is_float():
        return "integer" if dtype.is_integer() else "number"
    return {"Boolean": "boolean", "Date": "date", "Time": "time", "Duration": "duration"}.get(
        str(dtype), "datetime" if str(dtype).startswith("Datetime") else "string"
    )


def _make_names_unique(fields: list[dict[str, str]]) -> list[dict[str, str]]:
    """Give the fields (columns of a table) unique names: append a number to a repeated name, and keep the real name as `title`."""
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


def _encode_table(resource: dict[str, Any]) -> dict[str, str]:
    """Return a table as JSON: a dict from its MIME type to the text. Leave out the last rows if the text would be too long.

    Return {} if the text is too long even without rows.
    """
    while len(text := json.dumps(resource, ensure_ascii=False)) > _BUDGET and resource["data"]:
        resource["data"] = resource["data"][: len(resource["data"]) // 2]
    return {TABLE: text} if len(text) <= _BUDGET else {}


def _label(name: Any) -> str:
    return str(_plain(name))


def _plain(value: Any) -> Any:
    """Convert a value in a table to one that JSON can hold. An object of an unknown type becomes the name of its type.

    `str` is called only on objects whose types belong to Python or pandas, so that no code of the user runs.
    """
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
