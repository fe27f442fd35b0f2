"""Import modules from a session's workspace and from the packages that the host mounted in /.packages. Reload changed ones.

Changed modules of the workspace are reloaded before each cell, as by IPython's `%autoreload 2`. That extension itself is not used: it
checks every module before every cell, it compares only times, which a rollback sets back, and if a changed module fails, a later `import`
returns the old one. Only its `superreload` is used, which updates in place the functions and classes that other code imported from a
module.
"""

from __future__ import annotations

import errno
import hashlib
import importlib
import linecache
import os
import site
import sys
import time
from collections.abc import Callable, Sequence
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
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from IPython.extensions.autoreload import superreload

from ...wire import Extend, Finished, Message, Started
from ..folders import session_folders
from ..isolation import root
from ..link import interrupts
from . import changes

_OWN_CODE = str(Path(__file__).parents[4])
CHILDREN = f"{_OWN_CODE}/{root.CHILDREN}"
_INSTALLED = ("/.packages", "/site-packages", "/dist-packages")
_SAME_MOMENT = 100_000_000  # nanoseconds; two changes within a tick of the kernel's clock have the same time (inode(7))

Stamp = tuple[int, int, int, int]


@dataclass
class _LoadedModule:
    path: str
    stamp: Stamp
    digest: bytes
    module: ModuleType | None = None  # set if the module could not be imported again
    is_recent: bool = True
    is_outdated: bool = False  # the file has changed, and the module was not reloaded since

    def has_changed(self) -> bool:
        """Return whether the content of the module's file differs from what was imported."""
        # The content is read only if the stamp differs, or is so recent that a second change could have the same stamp. In a branch only
        # the stamps differ, because the files are copies.
        try:
            stamp = _stamp(self.path)
            if stamp == self.stamp and not self.is_recent:
                return self.is_outdated
            with open(self.path, "rb") as file:
                self.is_outdated = _digest(file.read()) != self.digest
            self.stamp, self.is_recent = stamp, _is_recent(stamp)  # last: an interrupt before this must not hide the change
            return self.is_outdated
        except OSError:
            return False  # deleted, for example: the imported module stays


_loaded_modules: dict[str, _LoadedModule] = {}
_finders: dict[str, FileFinder] = {}  # of the session's own folders
_package_folders: list[str] = []  # the folders of packages on the import path


class _Loader(SourceFileLoader):
    """Loads modules without .pyc files. With these, Python would miss an edit within the same second that keeps the file's size."""

    # Only these two low-level methods are overridden: Python removes the frames of its import machinery from a traceback only if no other
    # frame is among them.
    def path_stats(self, path: str) -> NoReturn:
        raise OSError(errno.ENOTSUP, "no .pyc file is used")

    def get_data(self, path: str) -> bytes:
        stamp = _stamp(path)
        data = super().get_data(path)
        if sys._getframe(2).f_code.co_name == "exec_module":  # otherwise the source is read, for example by inspect, and not imported
            _record_import(self.name, _LoadedModule(path, stamp, _digest(data), is_recent=_is_recent(stamp)))
            linecache.cache.pop(path, None)
        return data


def set_import_path() -> None:
    """Put the workspace first on the import path. Put its folder `.packages`, where a session may install packages, last."""
    sys.path_hooks.insert(0, _finder)
    sys.path.insert(0, session_folders.data)
    sys.path.append(f"{session_folders.data}/.packages")


def clear_listings() -> None:
    """Clear the cached listings of folders in the workspace, so that a module that was just written is found."""
    for finder in [*_finders.values()]:
        finder.invalidate_caches()


def import_changed(show_error: Callable[[BaseException], None]) -> None:
    """Reload the imported modules whose files have changed.

    If one fails, keep what it defined earlier, pass the error to `show_error`, and make the next `import` of the module fail as well.
    After an interrupt, the next call reloads the modules that are left.
    """
    for name in [name for name, loaded in _loaded_modules.items() if loaded.has_changed()]:
        module = sys.modules.get(name) or _loaded_modules[name].module
        if module is None:  # the user removed it from sys.modules
            del _loaded_modules[name]
            continue
        try:
            sys.modules[name] = module
            _reimport(name, module)
            _loaded_modules[name].module = None
        except KeyboardInterrupt:
            # The module keeps what it defined earlier, but its new content may have been recorded: let the next cell reload it.
            _loaded_modules[name].digest, _loaded_modules[name].is_recent = b"", True
            raise
        except BaseException as error:
            sys.modules.pop(name, None)  # so that the next `import` fails as well instead of returning the old module
            _loaded_modules[name].module = module
            show_error(error)
            file = os.path.relpath(_loaded_modules[name].path, session_folders.data)
            print(f"{file} has changed and cannot be imported, so what it defined earlier stays: correct the file", file=sys.stderr)
        _loaded_modules[name].is_outdated = False


def _reimport(name: str, module: ModuleType) -> None:
    before = dict(vars(module))
    try:
        superreload(module, importlib.reload, {})  # type: ignore[no-untyped-call]
    except BaseException:
        vars(module).update(before)
        raise
    # `import` binds a submodule to its package only when it loads it.
    for submodule in [one for one in sys.modules if one.rpartition(".")[0] == name]:
        vars(module).setdefault(submodule.rpartition(".")[2], sys.modules[submodule])


def _record_import(name: str, loaded: _LoadedModule) -> None:
    """Add a module that is being imported to `_loaded_modules`, before the modules that import it, so that it is reloaded before them."""
    waiting = [one for one in _loaded_modules if one != name and _is_being_imported(one)]
    if name in _loaded_modules:
        loaded.module = _loaded_modules[name].module
    if name in _loaded_modules or not waiting:
        _loaded_modules[name] = loaded
        return
    first = [*_loaded_modules].index(waiting[0])
    later = [*_loaded_modules.items()][first:]
    for one, _ in later:
        del _loaded_modules[one]
    _loaded_modules.update({name: loaded, **dict(later)})


def _is_being_imported(name: str) -> bool:
    return bool(getattr(getattr(sys.modules.get(name), "__spec__", None), "_initializing", False))


def _finder(path: str) -> FileFinder:
    if not _is_own(path):
        raise ImportError
    loaders = (ExtensionFileLoader, EXTENSION_SUFFIXES), (_Loader, SOURCE_SUFFIXES), (SourcelessFileLoader, BYTECODE_SUFFIXES)
    _finders[path] = FileFinder(path, *loaders)
    return _finders[path]


def _is_own(path: str) -> bool:
    return (path == session_folders.data or path.startswith(f"{session_folders.data}/")) and not any(part in path for part in _INSTALLED)


def _stamp(path: str) -> Stamp:
    status = os.stat(path)
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _is_recent(stamp: Stamp) -> bool:
    return time.time_ns() - stamp[-1] < _SAME_MOMENT


def _digest(source: bytes) -> bytes:
    return hashlib.blake2b(source, digest_size=16).digest()


def use_packages(request: Extend, send: Callable[[Message], None]) -> Finished:
    """Make the packages in the folders `request.paths` importable, in place of those of earlier requests. Return the result of the request.

    If a module named in `request.replaced` is already imported, or a folder cannot be read, the result has an error and nothing changes.
    `send` sends the message `Started` to the host.
    """
    loaded = [name for name in request.replaced if name in sys.modules]
    if loaded:
        names = ", ".join(loaded)
        message = f"{names} is loaded in another version: reset the session, then install it before it is imported"
        return _make_result(request, "PackageConflictError", message)
    if not all(os.access(path, os.R_OK | os.X_OK) for path in request.paths):
        message = "sessions cannot read the folder of packages: name one in ACASessions:Packages:CacheFolder that every user may enter"
        return _make_result(request, "PackageCacheError", message)
    try:
        with interrupts.allowed():
            send(Started(request.execution))
            _set_package_folders(request.paths)
    except BaseException as error:
        return _make_result(request, type(error).__name__, f"cannot add the packages to the session: {error}")
    return _make_result(request, None, "")


def _set_package_folders(paths: Sequence[str]) -> None:
    """Let this interpreter, and programs that cells start, import from the folders `paths`. Remove the folders of earlier calls."""
    own = [path for path in sys.path if path == _OWN_CODE]  # stays last: its shims stand in for missing modules
    sys.path[:] = [path for path in sys.path if path not in own and not (path in _package_folders and path not in paths)]
    for path in paths:
        if path not in _package_folders:
            site.addsitedir(path)  # runs code of .pth files, which must happen inside the session and never on the host
    sys.path.extend(own)
    importlib.invalidate_caches()
    _set_program_paths(paths)
    _package_folders[:] = paths


def _set_program_paths(paths: Sequence[str]) -> None:
    earlier = {f"{path}/bin" for path in _package_folders}
    kept = [path for path in os.environ.get("PATH", "").split(os.pathsep) if path not in earlier]
    os.environ["PATH"] = os.pathsep.join([*kept, *(f"{path}/bin" for path in paths)])
    others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path != CHILDREN]
    os.environ["PYTHONPATH"] = os.pathsep.join([*others, CHILDREN])
    os.environ["ACA_SESSIONS_PACKAGES"] = os.pathsep.join(paths)  # children/sitecustomize.py reads it


def _make_result(request: Extend, name: str | None, message: str) -> Finished:
    return Finished(request.execution, None, None, name, message, "", [], changes.list_processes())
