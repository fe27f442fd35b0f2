"""Packages that the host mounted in /.packages for this session: made importable here and in programs that the session starts."""

from __future__ import annotations

import importlib
import os
import site
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ..wire import Extend, Finished, Message, Started
from . import processes, root
from .link import interrupts

_OWN_CODE = str(Path(__file__).parents[3])
CHILDREN = f"{_OWN_CODE}/{root.CHILDREN}"
_shown: list[str] = []


def extend(extend: Extend, send: Callable[[Message], None]) -> Finished:
    """Make exactly these packages importable and return the result.

    Nothing changes if a module is already loaded in another version, or if the session may not enter the folder of packages.
    """
    loaded = [name for name in extend.replaced if name in sys.modules]
    if loaded:
        names = ", ".join(loaded)
        message = f"{names} is loaded in another version: reset the session, then install it before it is imported"
        return _finished(extend, "PackageConflictError", message)
    if not all(os.access(path, os.R_OK | os.X_OK) for path in extend.paths):
        message = (
            "sessions cannot go into the folder of packages: name one in ACASessions:Packages:CacheFolder that everybody may go through"
        )
        return _finished(extend, "PackageCacheError", message)
    try:
        with interrupts.allowed():
            send(Started(extend.execution))
            _find(extend.paths)
    except BaseException as error:
        return _finished(extend, type(error).__name__, f"the session could not take the packages: {error}")
    return _finished(extend, None, "")


def _find(paths: Sequence[str]) -> None:
    """Replace the folders of packages on the import path."""
    own = [path for path in sys.path if path == _OWN_CODE]  # stays last: its shims stand in for missing modules
    sys.path[:] = [path for path in sys.path if path not in own and not (path in _shown and path not in paths)]
    for path in paths:
        if path not in _shown:
            site.addsitedir(path)  # runs code of .pth files, which must happen inside the session and never on the host
    sys.path.extend(own)
    importlib.invalidate_caches()
    _show_to_programs(paths)
    _shown[:] = paths


def _show_to_programs(paths: Sequence[str]) -> None:
    earlier = {f"{path}/bin" for path in _shown}
    kept = [path for path in os.environ.get("PATH", "").split(os.pathsep) if path not in earlier]
    os.environ["PATH"] = os.pathsep.join([*kept, *(f"{path}/bin" for path in paths)])
    others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path != CHILDREN]
    os.environ["PYTHONPATH"] = os.pathsep.join([*others, CHILDREN])
    os.environ["ACA_SESSIONS_PACKAGES"] = os.pathsep.join(paths)


def _finished(extend: Extend, name: str | None, message: str) -> Finished:
    return Finished(extend.execution, None, None, name, message, "", [], processes.others())
