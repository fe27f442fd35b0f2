"""Describe each variable without running code of the user's classes."""

import contextlib
import json
import reprlib
import sys
from itertools import islice
from types import ModuleType
from typing import Any

# A type is known by its address: its `==` could be code of the user's metaclass.
SIZED = frozenset(map(id, (str, bytes, list, tuple, dict, set, frozenset, range)))
PLAIN = SIZED | frozenset(map(id, (bool, int, float, complex, type(None))))
ORDERED = frozenset(map(id, (int, float, str, bytes)))
FOREIGN = ("numpy", "pandas", "polars")
TOLD = 500
module_of = type.__dict__["__module__"].__get__  # `kind.__module__` could run code of the user's metaclass


def main(user: dict) -> None:
    """Print at most 500 variables, by name, as one line of JSON.

    Modules, names with an underscore in front and IPython's own are left out.
    """
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    hidden = shell.user_ns_hidden if shell is not None else {}
    user = user.copy()  # threads of the user may add variables meanwhile
    names = [name for name in user if type(name) is str and not name.startswith("_")]
    names = [name for name in names if not (name in hidden and hidden[name] is user[name])]
    told = [describe(name, user[name]) for name in sorted(names) if not issubclass(type(user[name]), ModuleType)]
    print(json.dumps(told[:TOLD]))


def describe(name: str, value: Any) -> dict:
    """Return type, shape, bytes and, for plain values, a short text."""
    kind = type(value)
    foreign = is_foreign(kind)
    shape = [int(side) for side in value.shape] if foreign and hasattr(value, "shape") else None
    if id(kind) in SIZED:
        shape = [len(value)]
    text = short.repr(value) if id(kind) in PLAIN else ""
    return {"name": name, "type": name_of(kind), "shape": shape, "size": size(value, foreign), "text": text}


def name_of(kind: type) -> str:
    """Return the name of a type. It is copied, since it can be of a subclass of `str` with methods of the user's."""
    return "".join([type.__dict__["__name__"].__get__(kind)])


def is_foreign(kind: type) -> bool:
    """Return whether a type belongs to a library whose objects can be measured. A class of the user's can only claim that it does."""
    named = module_of(kind)
    if type(named) is not str or named.partition(".")[0] not in FOREIGN:
        return False
    module = sys.modules.get(named)
    return type(module) is ModuleType and vars(module).get(name_of(kind)) is kind


def size(value: Any, foreign: bool) -> int:
    """Return the bytes in memory, without what a container holds. Return 0 if a library's object cannot be measured."""
    try:
        if foreign and hasattr(value, "memory_usage"):
            used = value.memory_usage()
            return int(used.sum() if hasattr(used, "sum") else used)
        if foreign and hasattr(value, "nbytes"):
            return int(value.nbytes)
    except Exception:
        return 0
    return sys.getsizeof(value) if id(type(value)) in PLAIN else object.__sizeof__(value)


class Short(reprlib.Repr):
    """A `repr` of plain values. Of other objects inside a container it shows the type only."""

    repr_bytes = reprlib.Repr.repr_str  # it cuts before it makes the text

    def repr1(self, x: object, level: int) -> str:
        """Return the text of a plain value, else the name of the type. The object's own `__repr__` is not called."""
        if id(type(x)) in PLAIN:
            with contextlib.suppress(ValueError):  # an int with more digits than Python writes
                return super().repr1(x, level)
        return f"<{name_of(type(x))}>"

    def repr_set(self, x: Any, level: int) -> str:
        """Sort a set only if no code of the user's compares its members."""
        members = list(x)
        kinds = {*map(id, map(type, members))}
        if len(kinds) == 1 and kinds <= ORDERED:
            members.sort()
        return f"{{{self.repr_list(members, level)[1:-1]}}}" if x else "set()"

    def repr_frozenset(self, x: Any, level: int) -> str:
        """Return the text of a frozenset."""
        return f"frozenset({self.repr_set(x, level)})" if x else "frozenset()"

    def repr_dict(self, x: dict, level: int) -> str:
        """Return the first items of a dict. They are not looked up by their keys, whose `==` could be code of the user's."""
        if x and level <= 0:
            return "{...}"
        items = [f"{self.repr1(key, level - 1)}: {self.repr1(value, level - 1)}" for key, value in islice(x.items(), self.maxdict)]
        return f"{{{', '.join(items + ['...'] * (len(x) > self.maxdict))}}}"


short = Short()
short.maxstring = short.maxother = 80
