"""Processes that a cell left running."""

from __future__ import annotations

import os

_INIT = 1
_MOST_TOLD = 4096  # the host removes those of branches, and then shortens the list
_STATE_AFTER_NAME = 2  # characters: the bracket that ends the name, and a blank


def others() -> list[str]:
    """Return `pid name` of every process of the session, except the interpreter, its init and zombies."""
    try:
        pids = [int(name) for name in os.listdir("/proc") if name.isdecimal()]
    except PermissionError:  # without namespaces /proc cannot be read here: the host looks instead
        return []
    if len(pids) <= 2:
        return []
    own = (_INIT, os.getpid())
    found = [told for pid in sorted(pids) if pid not in own and (told := _told(pid))]
    return found[:_MOST_TOLD]


def _told(pid: int) -> str | None:
    try:
        with open(f"/proc/{pid}/stat", errors="backslashreplace") as file:
            text = file.read()
    except OSError:
        return None
    name, end = text[text.index("(") + 1 : text.rindex(")")], text.rindex(")") + _STATE_AFTER_NAME
    return None if text[end] in "ZX" else f"{pid} {name}"
