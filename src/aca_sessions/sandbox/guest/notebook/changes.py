"""Find what a cell changed in its session: files, processes and variables.

Changes of variables are found without running code of the user. A variable with a number or a short text has changed if its value differs.
Any other variable has changed if its value is another object (at another address), or if the object's length or shape differs. A change
inside an object is not found if length and shape stay the same.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Mapping
from itertools import compress
from operator import ne
from types import ModuleType
from typing import Any

from ...wire import (
    MOST_FILES,
    MOST_PROCESSES,
    MOST_VARIABLES,
    FileChangeKind,
    FileRow,
    ProcessRow,
    VariableChangeKind,
    VariableRow,
)
from .. import saves
from ..folders import session_folders

_MOST_LISTED = 2000  # files that are listed before and after each cell
_HIDDEN = (".upload-", ".call-", "__pycache__")
_INIT = 1
_STATE_AFTER_NAME = 2  # characters: the bracket that ends the name, and a blank
_MOST_COMPARED = 3000  # variables that are compared after each cell, including `_i7` and `_7` of each remembered cell
_MOST_COLUMNS = 1000
_LONGEST_NAME, _LONGEST_TYPE = 1000, 100
_SHORT = 4096  # characters of a text that is compared by value
_PLAIN = frozenset(map(id, (int, float, bool, complex, type(None))))
_SIZED = (bytes, bytearray, list, tuple, dict, set, frozenset)
_LIBRARY_TYPES = (("numpy", "ndarray"), ("pandas", "DataFrame"), ("pandas", "Series"), ("polars", "DataFrame"), ("polars", "Series"))
_ABSENT, _OTHER = object(), object()
# `kind.__name__` could run code of the user's metaclass. The name can be of a subclass of `str` with methods of the user's.
_name_of_type = type.__dict__["__name__"].__get__

Listing = dict[str, tuple[int, int, int]]
Measures = dict[int, Callable[[Any], Any]]


def list_files() -> Listing | None:
    """Return a dict from the path of each file in /mnt/data to its inode, size and mtime.

    Leave out `__pycache__` and temporary files of this package. Return None if there are over 2,000 files.
    """
    found: Listing = {}
    pending = [""]
    while pending:
        folder = pending.pop()
        for name, status in _entries(folder):
            path = f"{folder}{name}"
            if stat.S_ISDIR(status.st_mode):
                pending.append(f"{path}/")
            elif stat.S_ISREG(status.st_mode):
                found[path] = (status.st_ino, status.st_size, status.st_mtime_ns)
            if len(found) + len(pending) > _MOST_LISTED:
                return None
    return found


def file_changes(before: Listing | None, after: Listing | None) -> list[FileRow]:
    """Return which files differ between two results of `list_files`, sorted by path, at most 1,000. Return [] if either result is None."""
    if before is None or after is None:
        return []
    changes: list[tuple[str, FileChangeKind, int]] = []
    for path, now in after.items():
        if path not in before:
            changes.append((path, "created", now[1]))
        elif before[path] != now:
            changes.append((path, "changed", now[1]))
    changes += [(path, "deleted", 0) for path in before.keys() - after.keys()]
    return [(kind, size, path) for path, kind, size in sorted(changes)[:MOST_FILES]]


def _entries(folder: str) -> list[tuple[str, os.stat_result]]:
    try:
        with os.scandir(f"{session_folders.data}/{folder}") as entries:
            return [(entry.name, entry.stat(follow_symlinks=False)) for entry in entries if not entry.name.startswith(_HIDDEN)]
    except OSError:
        return []


def list_processes() -> list[ProcessRow]:
    """Return pid and name of the session's processes, sorted by pid. Leave out zombies and processes that no cell started.

    Return [] without namespaces, because /proc cannot be read then.
    """
    try:
        pids = [int(name) for name in os.listdir("/proc") if name.isdecimal()]
    except PermissionError:  # without namespaces /proc cannot be read here: the host looks instead
        return []
    if len(pids) <= 2:
        return []
    own = {_INIT, os.getpid(), *saves.writing}
    found = [row for pid in sorted(pids) if pid not in own and (row := _process(pid))]
    return found[:MOST_PROCESSES]  # the host removes those of branches, and then shortens the list


def _process(pid: int) -> ProcessRow | None:
    try:
        with open(f"/proc/{pid}/stat", errors="backslashreplace") as file:
            text = file.read()
    except OSError:
        return None
    name, end = text[text.index("(") + 1 : text.rindex(")")], text.rindex(")") + _STATE_AFTER_NAME
    return None if text[end] in "ZX" else (pid, name)


class VariableTracker:
    """Finds which variables of a session changed since the last call of `changes`.

    It keeps references to old numbers and short texts. Otherwise a new value could get the memory address of an old one, and the change
    would be missed.
    """

    def __init__(self) -> None:
        self._names: dict[Any, Any] = {}
        self._hidden: Mapping[Any, Any] = {}
        self._keys: list[str] = []
        self._ids: list[int] = []
        self._is_compared = False
        self._visible: dict[str, object] = {}
        self._sizes = _Sizes()

    def watch(self, names: dict[Any, Any], hidden: Mapping[Any, Any]) -> None:
        """Set the dict of variables that `changes` compares.

        Args:
            names: The session's variables: the dict in which cells run.
            hidden: Variables that IPython has defined. They are ignored until the user assigns another value.
        """
        self._names, self._hidden = names, hidden

    def changes(self) -> list[VariableRow]:
        """Return the variables that changed since the last call. Return [] at the first call, or if there are over 3,000 variables."""
        names = self._names.copy()  # threads of the user may add variables meanwhile
        if len(names) > _MOST_COMPARED:
            self._is_compared, self._keys, self._ids, self._visible, self._sizes = False, [], [], {}, _Sizes()
            return []
        # Names that begin with "_" are not the user's. IPython keeps two for each cell: without them this is three times as fast.
        now = {name: value for name, value in names.items() if type(name) is str and name[:1] != "_"}
        measures = _find_measures()
        changed = self._classify([*dict.fromkeys([*self._find_rebound(now), *self._sizes.find_changed(now)])], now, measures)
        knew, self._is_compared = self._is_compared, True
        # A longer name comes from code alone, and some of these would not fit into a frame.
        changed = [(kind, name) for kind, name in changed if len(name) <= _LONGEST_NAME]
        return [_describe_change(kind, name, now.get(name), measures) for kind, name in changed[:MOST_VARIABLES]] if knew else []

    def _find_rebound(self, now: dict[str, Any]) -> list[str]:
        """Return the names of variables that are new or deleted, or whose value is another object than at the last call.

        Store the names and addresses of the present values for the next call.
        """
        keys, ids = list(now), list(map(id, now.values()))
        old_keys, old_ids = self._keys, self._ids
        self._keys, self._ids = keys, ids
        # A dict keeps its order: if no name was deleted, new names come last and all are compared at once.
        if keys[: len(old_keys)] == old_keys:
            return [*compress(keys, map(ne, ids, old_ids)), *keys[len(old_keys) :]]
        before = dict(zip(old_keys, old_ids))
        moved = [name for name, number in zip(keys, ids) if before.get(name) != number]
        return moved + [name for name in self._visible if name not in now]

    def _classify(self, names: list[str], now: dict[str, Any], measures: Measures) -> list[tuple[VariableChangeKind, str]]:
        """Return the variables that have changed, each with its kind of change. Store the present state of all `names`.

        Args:
            names: The names of variables that may have changed.
            now: The present variables by name.
            measures: The result of `_find_measures`.
        """
        found: dict[VariableChangeKind, list[tuple[VariableChangeKind, str]]] = {"added": [], "changed": [], "deleted": []}
        for name in names:
            value = now.get(name, _ABSENT)
            was, look = self._visible.pop(name, _ABSENT), self._comparable(name, value)
            self._sizes.forget(name)
            if look is not _ABSENT:
                self._visible[name] = look
                self._sizes.store(name, value, measures)
            kind: VariableChangeKind = "added" if was is _ABSENT else "deleted" if look is _ABSENT else "changed"
            if look is _OTHER or was != look:
                found[kind].append((kind, name))
        return [*found["added"], *found["changed"], *found["deleted"]]

    def _comparable(self, name: str, value: Any) -> object:
        """Return what to compare later: the type and value of a number or short text, or `_OTHER` for any other value.

        Return `_ABSENT` if the variable does not exist, is a module, or has the value that IPython gave it.
        """
        kind = type(value)
        if value is _ABSENT or kind is ModuleType or self._hidden.get(name, _ABSENT) is value:
            return _ABSENT
        if id(kind) in _PLAIN or (kind is str and len(value) <= _SHORT):
            return id(kind), value
        return _OTHER


def _describe_change(change: VariableChangeKind, name: str, value: Any, measures: Measures) -> VariableRow:
    if change == "deleted":
        return change, 0, [], "", name
    kind = type(value)
    measure = len if kind is str else measures.get(id(kind))
    sides = measure(value) if measure else ()
    named = "_".join(str.split(_name_of_type(kind)))[:_LONGEST_TYPE]
    return change, _size(value), [*sides] if isinstance(sides, tuple) else [sides], named, name


class _Sizes:
    """Stores the length or shape of variables that can change in place, such as lists. `find_changed` finds differences later.

    Types are compared by their addresses, because `==` on a type could run code of the user.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[int, Callable[[Any], Any], Any]] = {}
        self._plain: tuple[list[str], list[int], list[int]] | None = None
        self._shaped: list[str] = []

    def store(self, name: str, value: Any, measures: Measures) -> None:
        measure = measures.get(id(type(value)))
        if measure is not None:
            self._known[name] = id(type(value)), measure, measure(value)
            self._plain = None

    def forget(self, name: str) -> None:
        if self._known.pop(name, None) is not None:
            self._plain = None

    def find_changed(self, now: dict[str, Any]) -> list[str]:
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


def _find_measures() -> Measures:
    """Return the functions that measure values: a dict from the address of a type to a function that returns a value's length or shape.

    The types are those of Python, numpy, pandas and polars that have a length or shape, such as list. Subclasses are not in the dict,
    because the user could have defined their methods.
    """
    measures: Measures = {id(range): _length_of_range, **{id(kind): len for kind in _SIZED}}
    for module, name in _LIBRARY_TYPES:
        loaded = sys.modules.get(module)
        kind = vars(loaded).get(name) if type(loaded) is ModuleType else None
        if type(kind) is type:
            measures[id(kind)] = _shape
    return measures


def _length_of_range(value: range) -> int:
    try:
        return len(value)
    except OverflowError:  # a range may be longer than any container
        return sys.maxsize


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(map(int, value.shape))


def _size(value: Any) -> int:
    """Return how many bytes of memory a value takes, without the items of a list or dict. Return 0 if this cannot be measured."""
    kind = type(value)
    measure = _find_measures().get(id(kind))
    if id(kind) in _PLAIN or kind is str or kind is range or measure is len:
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
