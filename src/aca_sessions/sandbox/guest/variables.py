"""Which of the user's variables a cell added, changed or deleted. It is found out without running code of the user.

A number or a short text has changed if its value differs. Any other object has changed if another object has taken its place (it lies
elsewhere in memory), or if its length or shape differs. A change in place that keeps the shape is not detected.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from itertools import compress
from operator import ne
from types import ModuleType
from typing import Any

_MOST = 3000  # variables that are compared after each cell, including `_i7` and `_7` of each remembered cell
_MOST_TOLD = 200
_MOST_COLUMNS = 1000
_LONGEST_NAME = 100
_SHORT = 4096  # characters of a text that is compared by value
_PLAIN = frozenset(map(id, (int, float, bool, complex, type(None))))
_SIZED = (bytes, bytearray, list, tuple, dict, set, frozenset, range)
_FOREIGN = (("numpy", "ndarray"), ("pandas", "DataFrame"), ("pandas", "Series"), ("polars", "DataFrame"), ("polars", "Series"))
_ABSENT, _OTHER = object(), object()
# `kind.__name__` could run code of the user's metaclass. The name can be of a subclass of `str` with methods of the user's.
_name_of_type = type.__dict__["__name__"].__get__

Measures = dict[int, Callable[[Any], Any]]


class Variables:
    """The variables as they were after the last cell.

    Numbers and short texts are kept alive: as long as they live, no other object gets their address.
    """

    def __init__(self) -> None:
        self._names: dict[Any, Any] = {}
        self._hidden: Mapping[Any, Any] = {}
        self._keys: list[str] = []
        self._ids: list[int] = []
        self._knows = False
        self._visible: dict[str, object] = {}
        self._sizes = _Sizes()

    def of(self, names: dict[Any, Any], hidden: Mapping[Any, Any]) -> None:
        """Watch a namespace. A name that is in `hidden` with the same value belongs to IPython."""
        self._names, self._hidden = names, hidden

    def changes(self) -> list[str]:
        """Return `kind size shape type name` for each variable that differs since the last call.

        Return an empty list at the first call, and if there are too many variables to compare after every cell.
        """
        now = self._names.copy()  # threads of the user may add variables meanwhile
        if len(now) > _MOST:
            self._knows, self._keys, self._ids, self._visible, self._sizes = False, [], [], {}, _Sizes()
            return []
        if list(map(id, map(type, now))).count(id(str)) != len(now):
            now = {name: value for name, value in now.items() if type(name) is str}
        measures = _measures()
        changed = self._reconsider([*dict.fromkeys([*self._rebound(now), *self._sizes.different(now)])], now, measures)
        knew, self._knows = self._knows, True
        return [_told(kind, name, now.get(name), measures) for kind, name in changed[:_MOST_TOLD]] if knew else []

    def _rebound(self, now: dict[str, Any]) -> list[str]:
        """Return the names whose value is another object, or that are new or deleted."""
        keys, ids = list(now), list(map(id, now.values()))
        old_keys, old_ids = self._keys, self._ids
        self._keys, self._ids = keys, ids
        # A dict keeps its order: if no name was deleted, new names come last and all are compared at once.
        if keys[: len(old_keys)] == old_keys:
            return [*compress(keys, map(ne, ids, old_ids)), *keys[len(old_keys) :]]
        before = dict(zip(old_keys, old_ids))
        moved = [name for name, number in zip(keys, ids) if before.get(name) != number]
        return moved + [name for name in self._visible if name not in now]

    def _reconsider(self, names: list[str], now: dict[str, Any], measures: Measures) -> list[tuple[str, str]]:
        """Return which of these names were added, changed or deleted, with the kind of change. The other names did not change."""
        found: dict[str, list[tuple[str, str]]] = {"added": [], "changed": [], "deleted": []}
        for name in names:
            value = now.get(name, _ABSENT)
            was, look = self._visible.pop(name, _ABSENT), self._look(name, value)
            self._sizes.forget(name)
            if look is not _ABSENT:
                self._visible[name] = look
                self._sizes.know(name, value, measures)
            kind = "added" if was is _ABSENT else "deleted" if look is _ABSENT else "changed"
            if look is _OTHER or was != look:
                found[kind].append((kind, name))
        return [*found["added"], *found["changed"], *found["deleted"]]

    def _look(self, name: str, value: Any) -> object:
        """Return what a variable is compared by: its type and value if it is plain, `_ABSENT` if it is not a variable of
        the user, else `_OTHER`.
        """
        kind = type(value)
        if value is _ABSENT or name[:1] == "_" or kind is ModuleType or self._hidden.get(name, _ABSENT) is value:
            return _ABSENT
        if id(kind) in _PLAIN or (kind is str and len(value) <= _SHORT):
            return id(kind), value
        return _OTHER


def _told(change: str, name: str, value: Any, measures: Measures) -> str:
    if change == "deleted":
        return f"{change} 0 - - {name}"
    kind = type(value)
    measure = len if kind is str else measures.get(id(kind))
    sides = measure(value) if measure else ()
    shape = "x".join(map(str, sides if isinstance(sides, tuple) else (sides,))) or "-"
    named = "_".join(str.split(_name_of_type(kind)))[:_LONGEST_NAME] or "-"
    return f"{change} {_size(value)} {shape} {named} {name}"


class _Sizes:
    """The lengths and shapes of objects that can change in place. A type is known by its address: its `==` could be code of the user."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[int, Callable[[Any], Any], Any]] = {}
        self._plain: tuple[list[str], list[int], list[int]] | None = None
        self._shaped: list[str] = []

    def know(self, name: str, value: Any, measures: Measures) -> None:
        measure = measures.get(id(type(value)))
        if measure is not None:
            self._known[name] = id(type(value)), measure, measure(value)
            self._plain = None

    def forget(self, name: str) -> None:
        if self._known.pop(name, None) is not None:
            self._plain = None

    def different(self, now: dict[str, Any]) -> list[str]:
        """Return the names whose size differs. All that have only a length are compared at once."""
        if self._plain is None:
            plain = [(name, kind, size) for name, (kind, measure, size) in self._known.items() if measure is len]
            self._plain = [name for name, _, _ in plain], [kind for _, kind, _ in plain], [size for _, _, size in plain]
            self._shaped = [name for name, (_, measure, _) in self._known.items() if measure is not len]
        names, kinds, sizes = self._plain
        values: list[Any] = list(map(now.get, names))
        if list(map(id, map(type, values))) == kinds and list(map(len, values)) == sizes:
            return [name for name in self._shaped if self._is_different(name, now)]
        return [name for name in self._known if self._is_different(name, now)]

    def _is_different(self, name: str, now: dict[str, Any]) -> bool:
        kind, measure, size = self._known[name]
        value = now.get(name)
        return id(type(value)) != kind or bool(measure(value) != size)


def _measures() -> Measures:
    """Return the functions that measure a length or shape, for types that do it without code of the user."""
    measures: Measures = {id(kind): len for kind in _SIZED}
    for module, name in _FOREIGN:
        loaded = sys.modules.get(module)
        kind = vars(loaded).get(name) if type(loaded) is ModuleType else None
        if type(kind) is type:
            measures[id(kind)] = _shape
    return measures


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(map(int, value.shape))


def _size(value: Any) -> int:
    """Return the bytes that a value has in memory, without the contents of a container."""
    kind = type(value)
    measure = _measures().get(id(kind))
    if id(kind) in _PLAIN or kind is str or measure is len:
        return sys.getsizeof(value)
    if measure is None:
        return object.__sizeof__(value)
    try:
        if kind.__name__ == "DataFrame":
            return _size_of_frame(value)
        return int(value.nbytes if hasattr(value, "nbytes") else value.estimated_size())
    except Exception:
        return 0


def _size_of_frame(frame: Any) -> int:
    if frame.shape[1] > _MOST_COLUMNS:
        return 0
    return int(frame.memory_usage().sum() if hasattr(frame, "memory_usage") else frame.estimated_size())
