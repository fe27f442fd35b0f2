"""Which files of its folder a cell created, changed or deleted."""

from __future__ import annotations

import os
import stat

from .place import place

_MOST = 2000
_MOST_TOLD = 1000
_HIDDEN = (".upload-", ".call-", "__pycache__")

Listing = dict[str, tuple[int, int, int]]


def listing() -> Listing | None:
    """Return each file with its inode, size and time of change, or None if there are too many files to list after every cell."""
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
            if len(found) + len(pending) > _MOST:
                return None
    return found


def between(before: Listing | None, after: Listing | None) -> list[str]:
    """Return `kind size path` of each change, at most 1,000. Return an empty list if either listing is missing."""
    if before is None or after is None:
        return []
    changes: list[tuple[str, str, int]] = []
    for path, now in after.items():
        if path not in before:
            changes.append((path, "created", now[1]))
        elif before[path] != now:
            changes.append((path, "changed", now[1]))
    changes += [(path, "deleted", 0) for path in before.keys() - after.keys()]
    return [f"{kind} {size} {path}" for path, kind, size in sorted(changes)[:_MOST_TOLD]]


def _entries(folder: str) -> list[tuple[str, os.stat_result]]:
    try:
        with os.scandir(f"{place.data}/{folder}") as entries:
            return [(entry.name, entry.stat(follow_symlinks=False)) for entry in entries if not entry.name.startswith(_HIDDEN)]
    except OSError:
        return []
