"""Pickle the variables of a session in groups, and load them again. Variables that share objects are in one group.

Each group is pickled and loaded on its own, so a variable that cannot be saved costs no other. cloudpickle pickles what cells define, such
as classes, by value. Functions are pickled here: they get the variables of the session that loads them as their globals, not a copy.
"""

from __future__ import annotations

import datetime
import decimal
import enum
import fractions
import functools
import importlib.util
import io
import marshal
import pathlib
import pickle
import re
import signal
import sys
import types
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import cloudpickle

_MODULE = "aca_sessions_state"  # the name of this module in pickles
_NAMES = "names"  # stands in a pickle for the dict of the session's variables
_SMALL = 1 << 16  # bytes; a smaller buffer is a part of the pickle
_SECONDS = 30  # to pickle one variable
_MOST_WHY = 300  # characters of a reason
_ATOMS = frozenset((int, float, complex, str, bytes, bool, type(None), type, tuple, frozenset, types.BuiltinFunctionType, types.CodeType))
_IMMUTABLE = (
    *(enum.Enum, datetime.date, datetime.time, datetime.timedelta, datetime.tzinfo, decimal.Decimal, fractions.Fraction),
    *(uuid.UUID, pathlib.PurePath, re.Pattern, range, slice, types.ModuleType, type),
)
# cloudpickle would restore something else in their place: a StringIO, bytes.
_REFUSED = {io.TextIOWrapper: "an open file", memoryview: "a memoryview"}
_CACHED: Any = type(functools.lru_cache(maxsize=1)(len))


@dataclass
class Group:
    """Variables that were pickled together.

    Attributes:
        names: The names of the variables.
        pickle: Their pickle.
        buffers: The large buffers that the pickle refers to, such as the data of arrays.
    """

    names: list[str]
    pickle: bytes
    buffers: list[memoryview] = field(default_factory=list)


def pickle_variables(variables: Mapping[str, object], names: dict[str, Any], lost: dict[str, str]) -> Iterator[Group]:
    """Yield the pickled groups of `variables`. Put the names of those that cannot be pickled into `lost`, with the reason.

    `names` is the dict of all variables of the session, which is the globals of functions that cells defined.
    """
    kept: dict[str, tuple[Group, dict[int, object]]] = {}
    owners: dict[int, str] = {}  # a variable that has the object with this address
    leaders: dict[str, str] = {}  # of each variable, another one of its group; a leader has itself

    def leader(name: str) -> str:
        while leaders[name] != name:
            leaders[name] = leaders[leaders[name]]
            name = leaders[name]
        return name

    for name, value in variables.items():
        try:
            kept[name] = _pickle({name: value}, names)
        except BaseException as error:  # whatever the code of the user raises
            lost[name] = describe(error)
            continue
        leaders[name] = name
        for address in kept[name][1]:
            leaders[leader(owners.setdefault(address, name))] = leader(name)
    groups: dict[str, list[str]] = {}
    for name in kept:
        groups.setdefault(leader(name), []).append(name)
    for members in groups.values():
        if len(members) == 1:
            yield kept.pop(members[0])[0]
            continue
        try:
            yield _pickle({name: variables[name] for name in members}, names)[0]
        except BaseException as error:
            lost.update(dict.fromkeys(members, f"it shares objects with others, and they cannot be saved together: {describe(error)}"))


def load_group(group: Group, names: dict[str, Any]) -> dict[str, object]:
    """Return the variables of a group. This runs code that the group names. `names` becomes the globals of its functions."""
    loader = _Unpickler(io.BytesIO(group.pickle), buffers=group.buffers)
    loader.names = names
    loaded = loader.load()
    if type(loaded) is not dict:
        raise pickle.UnpicklingError(f"expected a dict of variables, got {type(loaded).__name__}")
    return loaded


def describe(error: BaseException) -> str:
    """Return the type of an error and the beginning of its message."""
    try:
        return f"{type(error).__name__}: {error}"[:_MOST_WHY]
    except BaseException:
        return "its error cannot be shown"


def _pickle(variables: dict[str, object], names: dict[str, Any]) -> tuple[Group, dict[int, object]]:
    """Pickle variables together. Return their group, and the objects in it that others could share, by their addresses."""
    file = io.BytesIO()
    group = Group([*variables], b"")

    def keep_buffer(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < _SMALL:
            return True  # as a part of the pickle
        group.buffers.append(raw)
        return False

    pickler = _Pickler(file, names, keep_buffer)
    with _time_limit():
        pickler.dump(variables)
    group.pickle = file.getvalue()
    pickler.seen.pop(id(variables), None)
    return group, pickler.seen


class _time_limit:
    """Raise TimeoutError in the `with` block after some seconds, because code of the user may not end."""

    def __enter__(self) -> None:
        self._earlier = signal.signal(signal.SIGALRM, self._raise)
        signal.setitimer(signal.ITIMER_REAL, _SECONDS)

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self._earlier)

    def _raise(self, *_: object) -> None:
        raise TimeoutError(f"it takes more than {_SECONDS} s to save")


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Pickles functions, code and cells of closures here, and all else as cloudpickle does. `seen` has the objects that were pickled."""

    def __init__(self, file: io.BytesIO, names: dict[str, Any], keep_buffer: Callable[[pickle.PickleBuffer], bool]) -> None:
        super().__init__(file, protocol=5, buffer_callback=keep_buffer)
        self._names = names
        self._unshared = _IMMUTABLE + _library_types()
        self.seen: dict[int, object] = {}  # keeps them alive, too: else another object could get the same address

    def persistent_id(self, value: Any) -> str | None:
        if value is self._names:
            return _NAMES
        kind = type(value)
        if kind is types.FunctionType and value.__globals__ is not self._names:
            return None  # of a library: it is imported again
        if kind not in _ATOMS and not isinstance(value, self._unshared):
            self.seen[id(value)] = value
        return None

    def reducer_override(self, value: Any) -> Any:
        kind = type(value)
        if kind is types.FunctionType and value.__globals__ is self._names:
            return _make_function, (value.__code__, self._names, value.__closure__), _function_state(value), None, None, _set_function
        if kind is types.CodeType:
            return _make_code, (importlib.util.MAGIC_NUMBER, marshal.dumps(value))
        if kind is types.CellType:
            # The content is not an argument: it may refer to the cell, as in a function that calls itself.
            return _make_cell, (), _cell_state(value), None, None, _set_cell
        if kind is _CACHED:
            limits = value.cache_parameters()
            return _make_cached, (value.__wrapped__, limits["maxsize"], limits["typed"])
        for refused, what in _REFUSED.items():
            if isinstance(value, refused):
                raise TypeError(f"cannot save {what}")
        return super().reducer_override(value)


class _Unpickler(pickle.Unpickler):
    names: dict[str, Any]

    def persistent_load(self, id: str) -> object:
        if id != _NAMES:
            raise pickle.UnpicklingError("expected the variables of the session, got another reference")
        return self.names


def _library_types() -> tuple[type, ...]:
    found: list[type] = []
    for module, attributes in (("numpy", ("dtype", "generic")), ("pandas.api.extensions", ("ExtensionDtype",))):
        library = sys.modules.get(module)
        found += [kind for name in attributes if isinstance(kind := getattr(library, name, None), type)]
    return tuple(found)


def _function_state(function: types.FunctionType) -> tuple[dict[str, object], dict[str, object]]:
    slots = ("__name__", "__qualname__", "__module__", "__doc__", "__defaults__", "__kwdefaults__", "__annotations__", "__type_params__")
    return {name: getattr(function, name) for name in slots if hasattr(function, name)}, vars(function)


def _make_function(code: types.CodeType, names: dict[str, Any], closure: tuple[types.CellType, ...] | None) -> types.FunctionType:
    return types.FunctionType(code, names, code.co_name, None, closure)


def _set_function(function: types.FunctionType, state: tuple[dict[str, object], dict[str, object]]) -> None:
    slots, attributes = state
    for name, value in slots.items():
        setattr(function, name, value)
    vars(function).update(attributes)


def _make_code(magic: bytes, code: bytes) -> Any:
    if magic != importlib.util.MAGIC_NUMBER:
        raise ValueError("it was compiled by another version of Python")
    return marshal.loads(code)  # noqa: S302 - in the session itself, whose code wrote it


def _make_cell() -> types.CellType:
    return types.CellType()


def _cell_state(cell: types.CellType) -> tuple[object, ...]:
    try:
        return (cell.cell_contents,)
    except ValueError:  # it is empty
        return ()


def _set_cell(cell: types.CellType, state: tuple[object, ...]) -> None:
    for content in state:
        cell.cell_contents = content


def _make_cached(function: Callable[..., Any], maxsize: int | None, typed: bool) -> Any:
    return functools.lru_cache(maxsize, typed)(function)


for _made in (_make_function, _set_function, _make_code, _make_cell, _set_cell, _make_cached):
    _made.__module__ = _MODULE
sys.modules[_MODULE] = sys.modules[__name__]
