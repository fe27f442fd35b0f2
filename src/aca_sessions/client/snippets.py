"""Snippets: Python that the client sends to a session as a cell, for features that work without extensions of the endpoint.

A snippet is a function of this module that takes the user's variables first. It runs in a session, also at Azure, and never on the host.
`source_of` returns its text with the imports, constants and functions that it uses. The text needs only Python 3.9 and its standard
library. A snippet prints its output as one line of JSON, which `snippet_results` decodes. It changes none of the user's variables, unless
that is its purpose.
"""

import ast
import base64
import builtins
import contextlib
import importlib
import json
import math
import os
import platform
import re
import reprlib
import subprocess
import sys
import sysconfig
import threading
import time
import warnings
import zlib
from datetime import date, datetime, timedelta, timezone, tzinfo
from datetime import time as clock
from functools import cache
from http.client import HTTPException
from importlib import metadata
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.request import Request, urlopen

CELL = "(lambda scope: (exec({source!r}, scope), scope[{name!r}](globals(), *{arguments!r}))[1])({{}})"
CELL_PREFIX = CELL.partition("{")[0]  # begins each cell that a client sent for itself


def snippet(name: str, *arguments: "str | int") -> str:
    """Return the source of a cell that calls a snippet.

    The cell is one expression whose value is None, so it shows nothing and sets no name.
    """
    return CELL.format(source=source_of(name), name=name, arguments=arguments)


@cache
def source_of(name: str) -> str:
    """Return the source text of a snippet and of everything at the top level of this module that it uses, in the order of this module."""
    text = Path(__file__).read_text(encoding="utf-8")
    statements = ast.parse(text).body
    binding: dict[str, ast.stmt] = {}
    for statement in statements:
        if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
            binding[statement.name] = statement
        elif isinstance(statement, (ast.Import, ast.ImportFrom)):
            binding.update((alias.asname or alias.name, statement) for alias in statement.names)
        elif isinstance(statement, ast.Assign):
            binding.update((target.id, statement) for target in statement.targets if isinstance(target, ast.Name))
    used, found = set(), [binding[name]]
    while found:
        statement = found.pop()
        used.add(statement)
        names = {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
        found += {binding[one] for one in names & binding.keys()} - used
    return "\n".join(ast.get_source_segment(text, statement) or "" for statement in statements if statement in used)


def variables(user: dict, classes: bool = True) -> None:
    """Print at most 500 of the user's variables as JSON, sorted by name, without running code of the user's classes.

    Leave out variables that are modules, and those that are classes if `classes` is false.
    """
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    hidden = shell.user_ns_hidden if shell is not None else {}
    user = user.copy()  # threads of the user may add variables meanwhile
    names = [name for name in user if type(name) is str and not name.startswith("_")]
    names = [name for name in names if not (name in hidden and hidden[name] is user[name])]
    left_out = (ModuleType,) if classes else (ModuleType, type)
    described = [_describe(name, user[name]) for name in sorted(names) if not issubclass(type(user[name]), left_out)]
    print(json.dumps(described[:500]))


# A type is known by its address: its `==` could be code of the user's metaclass.
_SIZED = frozenset(map(id, (str, bytes, list, tuple, dict, set, frozenset, range)))
_PLAIN = _SIZED | frozenset(map(id, (bool, int, float, complex, type(None))))
_ORDERED = frozenset(map(id, (int, float, str, bytes)))
_FOREIGN = ("numpy", "pandas", "polars")
_module_of = type.__dict__["__module__"].__get__  # `kind.__module__` could run code of the user's metaclass


def _describe(name: str, value: Any) -> dict:
    kind = type(value)
    of_library = _is_library_type(kind)
    shape = [int(side) for side in value.shape] if of_library and hasattr(value, "shape") else None
    if id(kind) in _SIZED:
        shape = [len(value)]
    text = _short.repr(value) if id(kind) in _PLAIN else ""
    return {"name": name, "type": _name_of(kind), "shape": shape, "size": _size(value, of_library), "text": text}


def _name_of(kind: type) -> str:
    """Return a type's name as a plain `str`, so that no method of a user's own `str` subclass can run."""
    return "".join([type.__dict__["__name__"].__get__(kind)])


def _is_library_type(kind: type) -> bool:
    """Return whether a type is of numpy, pandas or polars.

    The `__module__` of a class can be forged, so the type must also be found in the module that it names.
    """
    named = _module_of(kind)
    if type(named) is not str or named.partition(".")[0] not in _FOREIGN:
        return False
    module = sys.modules.get(named)
    return type(module) is ModuleType and vars(module).get(_name_of(kind)) is kind


def _size(value: Any, of_library: bool) -> int:
    """Return a value's size in bytes, without the items of a container.

    Return 0 if measuring an object of numpy, pandas or polars fails.
    """
    try:
        if of_library and hasattr(value, "memory_usage"):
            used = value.memory_usage()
            return int(used.sum() if hasattr(used, "sum") else used)
        if of_library and hasattr(value, "nbytes"):
            return int(value.nbytes)
    except Exception:
        return 0
    return sys.getsizeof(value) if id(type(value)) in _PLAIN else object.__sizeof__(value)


class _SafeRepr(reprlib.Repr):
    """A `repr` that shows plain values (numbers, texts, lists and such), shortened if they are long, and only the type of other objects."""

    repr_bytes = reprlib.Repr.repr_str  # it cuts before it makes the text

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 80

    def repr1(self, x: object, level: int) -> str:
        """Return the text of a plain value, else the name of the type. The object's own `__repr__` is not called."""
        if id(type(x)) in _PLAIN:
            with contextlib.suppress(ValueError):  # an int with more digits than Python writes
                return super().repr1(x, level)
        return f"<{_name_of(type(x))}>"

    def repr_set(self, x: Any, level: int) -> str:
        """Return the text of a set, sorted if its members have one built-in type. Comparing other members could run the user's code."""
        members = list(x)
        kinds = {*map(id, map(type, members))}
        if len(kinds) == 1 and kinds <= _ORDERED:
            members.sort()
        return f"{{{self.repr_list(members, level)[1:-1]}}}" if x else "set()"

    def repr_frozenset(self, x: Any, level: int) -> str:
        """Return the text of a frozenset."""
        return f"frozenset({self.repr_set(x, level)})" if x else "frozenset()"

    def repr_dict(self, x: dict, level: int) -> str:
        """Return the text of a dict's first items without looking up keys, because their `==` could be the user's code."""
        if x and level <= 0:
            return "{...}"
        items = [f"{self.repr1(key, level - 1)}: {self.repr1(value, level - 1)}" for key, value in islice(x.items(), self.maxdict)]
        return f"{{{', '.join(items + ['...'] * (len(x) > self.maxdict))}}}"


_short = _SafeRepr()


def complete(user: dict, code: str, cursor: int) -> None:
    """Print the completions that IPython offers for `code` at `cursor`, as JSON: at most 200, each of at most 500 characters."""
    cursor = max(0, min(cursor, len(code)))
    found, shell = [], user.get("get_ipython", lambda: None)()
    if shell is not None:
        shell.Completer.use_jedi = False  # it reads the sources of libraries, which takes it 3 s for a DataFrame; IPython asks the objects
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # IPython calls its own completions provisional
            found = list(shell.Completer.completions(code, cursor))
    start, end = (found[0].start, found[0].end) if found else (cursor, cursor)
    texts = [one.text for one in found if (one.start, one.end) == (start, end)]
    dot = code[start:end].startswith(".") and all(text.startswith(".") for text in texts)  # IPython 9 completes `.app` of `list.app`
    print(json.dumps({"matches": [text[dot : dot + 500] for text in texts[:200]], "start": start + dot, "end": end}))


def inspect(user: dict, code: str, cursor: int, detail: int) -> None:
    """Print what IPython shows about the name at `cursor` as JSON, without colours: up to 20,000 characters, null for an unknown name."""
    from IPython.utils.tokenutil import token_at_cursor

    name, shown = token_at_cursor(code, max(0, min(cursor, len(code)))), None
    with contextlib.suppress(KeyError):
        shown = user["get_ipython"]().object_inspect_mime(name, detail_level=detail)["text/plain"]
    print(json.dumps({"text": re.sub(r"\x1b\[[0-9;]*m", "", shown[:20_000]) if shown else None}))


def reset(user: dict, mark: str = "") -> None:
    """Clear the user's variables, close figures and return to /mnt/data. Files, loaded modules and background threads stay.

    If `mark` is given, store it in the session. The client reads it later to check that the service has not replaced the session.
    """
    shell = user.get("get_ipython", lambda: None)()
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
    if shell is not None:
        shell.reset(new_session=True)
    os.chdir("/mnt/data")
    if mark:  # the next position in the client's ledger
        builtins.__dict__["_aca_sessions_mark"] = mark


def health(user: dict) -> None:
    """Print, as JSON, the Python version of the session's interpreter, its memory, uptime, number of threads and processor time.

    Memory and uptime are 0 if /proc cannot be read: in some sessions, a process may not read its own entry there.
    """
    memory, uptime = 0, 0.0
    with contextlib.suppress(PermissionError), open("/proc/self/statm") as statm, open("/proc/self/stat") as stat:
        # The second field is the resident set size in pages (proc_pid_statm(5)).
        used = int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        # Field 22 of proc_pid_stat(5), the start in clock ticks after boot. The second field, a name in parentheses, may hold spaces.
        started = int(stat.read().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        memory, uptime = used, max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started)
    measured = {"python": platform.python_version(), "memory": memory, "uptime": uptime}
    print(json.dumps({**measured, "threads": threading.active_count(), "cpu": time.process_time()}))


def command(user: dict, command: str) -> None:
    """Run a shell command, whose output becomes the cell's output, then print its exit code."""
    sys.stdout.flush()  # otherwise what the session wrote before would come after the command's output
    code = subprocess.run(["/bin/sh", "-c", command], stdin=subprocess.DEVNULL, check=False).returncode
    print("\n" + json.dumps(code))


def run_script(user: dict, path: str, *arguments: str) -> None:
    """Run a Python file in a process of its own, and print its exit code after its output. `path` is relative to /mnt/data."""
    sys.stdout.flush()  # otherwise what the session wrote before would come after the script's output
    # Without -u, what it has printed would be lost if it is interrupted.
    code = subprocess.run([sys.executable, "-u", path, *arguments], stdin=subprocess.DEVNULL, check=False, cwd=_workspace()).returncode
    print("\n" + json.dumps(code))


def add_import_folder(user: dict, folder: str) -> None:
    """Add a folder of /mnt/data to the end of the import path, unless it is there."""
    sys.path.extend({os.path.join(_workspace(), folder)}.difference(sys.path))


def install(user: dict, *requirements: str) -> None:
    """Install packages with the session's own pip and print its output. Raise RuntimeError if pip fails.

    The packages go into the session's environment if that is writable, otherwise into /mnt/data/.packages.
    """
    beside = "/mnt/data/.packages"
    target = [] if os.access(sysconfig.get_path("purelib"), os.W_OK) else ["--target", beside]
    pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--quiet", *target, *requirements]
    done = subprocess.run(pip, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if target and beside not in sys.path:
        sys.path.append(beside)
    importlib.invalidate_caches()
    print(done.stdout, end="")
    if done.returncode:
        raise RuntimeError("pip could not install " + ", ".join(requirements) + ": see its output")


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


def export_variable(user: dict, name: str, file: str, arrow: int) -> None:
    """Write a variable to `file` in /mnt/data, which the client then downloads. `arrow` is 1 if the client can read Arrow, otherwise 0."""
    if name not in user:
        raise NameError(f"the session has no variable {name}")
    data = encode_variable(user[name], bool(arrow) and find_spec("pyarrow") is not None)
    with open(os.path.join(_workspace(), file), "wb") as out:
        out.write(data)


def import_variable(user: dict, name: str, file: str) -> None:
    """Set a variable to what `encode_variable` encoded in `file` in /mnt/data, which the client has uploaded, and delete the file."""
    path = os.path.join(_workspace(), file)
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


def _workspace() -> str:
    return "/mnt/data" if os.path.isdir("/mnt/data") else os.path.expanduser("~")  # sessions without namespaces have no /mnt/data


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
    """Return a DataFrame that holds the value, and the form. Return None and `value` if it is no DataFrame, Series or array of numbers."""
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


_TIMES = {
    "date": (date, "year month day"),
    "time": (clock, "hour minute second microsecond tzinfo"),
    "datetime": (datetime, "year month day hour minute second microsecond tzinfo"),
    "timedelta": (timedelta, "days seconds microseconds"),
}


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


def print_missing(user: dict, *requirements: str) -> None:
    """Print, as a JSON list, those of the requirements that the installed packages do not meet."""
    print(json.dumps([requirement for requirement in requirements if not _is_met(requirement)]))


def _is_met(requirement: str) -> bool:
    """Return whether an installed package meets a requirement. Return False if it has extras: it is not known which packages they need."""
    try:
        from packaging.requirements import Requirement

        wanted = Requirement(requirement)
        version = metadata.version(wanted.name)
        return not wanted.extras and wanted.specifier.contains(version, prereleases=True)
    except (ImportError, ValueError):
        return False


def plotly_script(user: dict) -> None:
    """Display the script that draws charts of plotly, as text."""
    script = importlib.import_module("plotly.offline").get_plotlyjs()
    importlib.import_module("IPython.display").display({"text/plain": script}, raw=True)


def check_index(user: dict, url: str) -> None:
    """Print true if pip is installed and the package index answers, so that packages can be downloaded. Print false otherwise."""
    url = os.environ.get("PIP_INDEX_URL", url)
    try:
        urlopen(Request(url, method="HEAD"), timeout=5).close()  # noqa: S310
        reached = find_spec("pip") is not None
    except (OSError, ValueError, HTTPException):  # malformed, or no HTTP server answers there
        reached = False
    print(json.dumps(reached))


def show_workdir_as(user: dict, name: str) -> None:
    """Make `%pwd` and shells print `name` in place of the folder to which this symbolic link leads. Do nothing if `name` is not a link to a
    folder.

    `ls -l` with the link lists the folder's files, not the link itself. `os.getcwd()` still returns the real path (getcwd(3)).
    """
    folder = os.path.realpath(name)
    if folder == name or not os.path.isdir(folder):
        return
    if folder == os.getcwd():
        os.environ["PWD"] = name  # a shell keeps a name that leads to its directory (POSIX, "sh")
    os.environ["BASH_FUNC_ls%%"] = '() { command ls -H "$@"; }'  # noqa: SIM112 - ls -l shows a link and not its files

    def pwd(line: str = "") -> str:
        """Return the working directory."""
        current = os.getcwd()
        return name + current[len(folder) :] if f"{current}/".startswith(f"{folder}/") else current

    user["get_ipython"]().register_magic_function(pwd, "line", "pwd")


def create_modules(user: dict, package: str, packed: str) -> None:
    """Create modules in the package named `package`, from `packed`: their names and sources as JSON, compressed and in base64.

    A module must come after those that it imports. Print null as JSON when all are created. If the session lacks something that they need,
    create none and print what is missing: "python", "ipython" or "threads".
    """
    lack = _find_lack()
    if lack is None:
        for name, source in json.loads(zlib.decompress(base64.b64decode(packed))):
            _create_module(package, name, source)
    print(json.dumps(lack))


def _find_lack() -> "str | None":
    """Return what the session lacks to run the modules of `create_modules`: "python" (3.9 or later), "ipython", "threads", or None."""
    if sys.version_info < (3, 9):  # noqa: UP036 - the session's Python, not this one
        return "python"
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is None:
        return "ipython"
    try:
        thread = threading.Thread(target=str, daemon=True)
        thread.start()
        thread.join()
    except RuntimeError:
        return "threads"
    return None


def _create_module(package: str, name: str, source: str) -> None:
    """Create a module and its parent packages in `sys.modules`. If its code raises, remove the module again and re-raise."""
    full = package + "." + name
    above = _ensure_package(full.rpartition(".")[0])
    module = ModuleType(full)
    module.__package__ = above.__name__
    module.__file__ = "<" + package + ">/" + name.rpartition(".")[2] + ".py"
    sys.modules[full] = module
    try:
        exec(compile(source, module.__file__, "exec", dont_inherit=True), module.__dict__)  # noqa: S102
    except BaseException:
        del sys.modules[full]
        raise
    setattr(above, name.rpartition(".")[2], module)


def _ensure_package(name: str) -> ModuleType:
    if name not in sys.modules:
        sys.modules[name] = made = ModuleType(name)
        made.__path__ = []
        if "." in name:
            setattr(_ensure_package(name.rpartition(".")[0]), name.rpartition(".")[2], made)
    return sys.modules[name]


def pass_message(user: dict, module: str, marker: str, message: str) -> None:
    """Pass a message to a cell that runs in a thread, by calling the function `answer_poll` of `module`, which `create_modules` created.

    That function prints a report about the cell: one line with `marker` and JSON. If there is no such module, print a line that says so.
    """
    found = sys.modules.get(module)
    if found is None:
        print("\n" + marker + '{"cell": "no module"}')
    else:
        found.answer_poll(marker, message)
