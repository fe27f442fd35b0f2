"""Reloading of modules in the session's own folder: each cell sees them as their files are now, as with IPython's `%autoreload 2`.

IPython's own extension checks every module before every cell, compares times only (a rollback restores old ones), and keeps the old
module if the new one fails. Its `superreload` is used here: it updates functions and classes that were taken from a module, in place.
"""

from __future__ import annotations

import errno
import hashlib
import importlib
import linecache
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.machinery import (
    BYTECODE_SUFFIXES,
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    SourceFileLoader,
    SourcelessFileLoader,
)
from types import ModuleType
from typing import NoReturn

from IPython.extensions.autoreload import superreload

from .place import place

_INSTALLED = ("/.packages", "/site-packages", "/dist-packages")
_SAME_MOMENT = 100_000_000  # nanoseconds; two changes within a tick of the kernel's clock have the same time (inode(7))

Stamp = tuple[int, int, int, int]


@dataclass
class _Loaded:
    path: str
    stamp: Stamp
    digest: bytes
    module: ModuleType | None = None  # set if the module could not be imported again
    is_recent: bool = True

    def has_changed(self) -> bool:
        """Return whether the file has another content. The copy in a branch differs in its stamp only."""
        try:
            stamp = _stamp(self.path)
            if stamp == self.stamp and not self.is_recent:
                return False
            self.stamp, self.is_recent = stamp, _is_recent(stamp)
            with open(self.path, "rb") as file:
                return _digest(file.read()) != self.digest
        except OSError:
            return False  # deleted, for example: the imported module stays


_loaded: dict[str, _Loaded] = {}


class _Loader(SourceFileLoader):
    """Loads sources and ignores .pyc files, which compare times in seconds and sizes only."""

    # Only these two low-level methods are overridden: Python removes the frames of its import machinery from a traceback only if no other
    # frame is among them.
    def path_stats(self, path: str) -> NoReturn:
        raise OSError(errno.ENOTSUP, "no .pyc file is used")

    def get_data(self, path: str) -> bytes:
        stamp = _stamp(path)
        data = super().get_data(path)
        if sys._getframe(2).f_code.co_name == "exec_module":  # otherwise the source is read, for example by inspect, and not imported
            _note(self.name, _Loaded(path, stamp, _digest(data), is_recent=_is_recent(stamp)))
            linecache.cache.pop(path, None)
        return data


def settle() -> None:
    """Put the session's own folder first on the import path, and the folder of packages that it installs there last."""
    sys.path_hooks.insert(0, _finder)
    sys.path.insert(0, place.data)
    sys.path.append(f"{place.data}/.packages")


def forget_listings() -> None:
    """Clear the cached folder listings, so that a module that was written a moment ago is found."""
    data = place.data
    for path, finder in [*sys.path_importer_cache.items()]:
        if isinstance(finder, FileFinder) and path.startswith(data) and _is_own(path):
            finder.invalidate_caches()


def import_changed(show_error: Callable[[BaseException], None]) -> None:
    """Reload the modules whose files have changed.

    A module that fails is removed from sys.modules, so that the next `import` of it fails as well.
    """
    for name in [name for name, loaded in _loaded.items() if loaded.has_changed()]:
        module = sys.modules.get(name) or _loaded[name].module
        if module is None:  # the user removed it from sys.modules
            del _loaded[name]
            continue
        try:
            sys.modules[name] = module
            _import_again(name, module)
            _loaded[name].module = None
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            sys.modules.pop(name, None)
            _loaded[name].module = module
            show_error(error)
            file = os.path.relpath(_loaded[name].path, place.data)
            print(f"{file} has changed and cannot be imported: what was imported from it earlier is of the old file", file=sys.stderr)


def _import_again(name: str, module: ModuleType) -> None:
    before = dict(vars(module))
    try:
        superreload(module, importlib.reload, {})  # type: ignore[no-untyped-call]
    except BaseException:
        vars(module).update(before)
        raise
    # `import` binds a submodule to its package only when it loads it.
    for submodule in [one for one in sys.modules if one.rpartition(".")[0] == name]:
        vars(module).setdefault(submodule.rpartition(".")[2], sys.modules[submodule])


def _note(name: str, loaded: _Loaded) -> None:
    """Remember what was imported, in an order in which it can be imported again: a module comes before those that import it."""
    waiting = [one for one in _loaded if one != name and _is_being_imported(one)]
    if name in _loaded:
        loaded.module = _loaded[name].module
    if name in _loaded or not waiting:
        _loaded[name] = loaded
        return
    first = [*_loaded].index(waiting[0])
    later = [*_loaded.items()][first:]
    for one, _ in later:
        del _loaded[one]
    _loaded.update({name: loaded, **dict(later)})


def _is_being_imported(name: str) -> bool:
    return bool(getattr(getattr(sys.modules.get(name), "__spec__", None), "_initializing", False))


def _finder(path: str) -> FileFinder:
    if not _is_own(path):
        raise ImportError
    loaders = (ExtensionFileLoader, EXTENSION_SUFFIXES), (_Loader, SOURCE_SUFFIXES), (SourcelessFileLoader, BYTECODE_SUFFIXES)
    return FileFinder(path, *loaders)


def _is_own(path: str) -> bool:
    return (path == place.data or path.startswith(f"{place.data}/")) and not any(part in path for part in _INSTALLED)


def _stamp(path: str) -> Stamp:
    status = os.stat(path)
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _is_recent(stamp: Stamp) -> bool:
    return time.time_ns() - stamp[-1] < _SAME_MOMENT


def _digest(source: bytes) -> bytes:
    return hashlib.blake2b(source, digest_size=16).digest()
