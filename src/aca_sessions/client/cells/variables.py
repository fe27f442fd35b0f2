"""Describe each variable without running the user's code."""

import json
import reprlib
import sys
import types
from typing import Any

SIZED = (str, bytes, list, tuple, dict, set, frozenset, range)
PLAIN = (bool, int, float, complex, type(None), *SIZED)
TOLD = 500


def main(user: dict) -> None:
    """Print at most 500 variables, by name, as one line of JSON.

    Modules, names with an underscore in front and IPython's own are left out.
    """
    hidden = user["get_ipython"]().user_ns_hidden if "get_ipython" in user else {}
    names = [name for name in user if not name.startswith("_") and not (name in hidden and hidden[name] is user[name])]
    told = [describe(name, user[name]) for name in sorted(names) if not isinstance(user[name], types.ModuleType)]
    print(json.dumps(told[:TOLD]))


def describe(name: str, value: Any) -> dict:
    """Return type, shape, bytes and, for plain values, a short text."""
    kind = type(value)
    foreign = kind.__module__.partition(".")[0] in ("numpy", "pandas", "polars")
    shape = [int(side) for side in value.shape] if foreign and hasattr(value, "shape") else None
    if kind in SIZED:
        shape = [len(value)]
    text = short.repr(value) if kind in PLAIN else ""
    return {"name": name, "type": kind.__name__, "shape": shape, "size": size(value, foreign), "text": text}


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
    return sys.getsizeof(value) if type(value) in PLAIN else object.__sizeof__(value)


class Short(reprlib.Repr):
    """A `repr` of plain values. Of other objects inside a container it shows the type only."""

    def repr_instance(self, x: object, level: int) -> str:
        """Return the type's name. The object's own `__repr__` is not called."""
        return "<" + type(x).__name__ + ">"


short = Short()
short.maxstring = short.maxother = 80
