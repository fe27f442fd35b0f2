"""Which processes a cell left running."""

from __future__ import annotations

import os

_INIT = 1
_MOST_TOLD = 4096  # the host leaves out those of branches, and then most of the rest
_STATE_AFTER_NAME = 2  # characters: the bracket that ends the name, and a blank


def others() -> list[str]:
    """`pid name` of every process of the session but the interpreter and its init; the dead that nobody collected are none."""
    try:
        pids = [int(name) for name in os.listdir("/proc") if name.isdecimal()]
    except PermissionError:  # without namespaces no process is in sight: the host looks
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
