"""Write and restore the state of a session at an endpoint without extensions, in a cell, by files in /mnt/data.

The client sends this module as text, with the sources of those that it needs. They are imported under names of their own, and are gone when
the cell has ended. The state is in files with numbers behind one name, because an endpoint limits the size of a file.
"""

from __future__ import annotations

import base64
import contextlib
import glob
import importlib
import json
import os
import random
import signal
import sys
import zlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any

_MODULES = "_aca_sessions_state"
_DATA = "/mnt/data"
_OWN_CELLS = ("(lambda scope: (exec(", "if '_aca_sessions_mark' not in")
_PIECE = 1 << 20
_MOST_NAMED, _LONGEST = 1000, 200


def write(user: dict[str, Any], packed: str, name: str, size: int) -> None:
    """Write the state to the files `name`0, `name`1 and so on, of at most `size` bytes each. Print their number as JSON.

    A fork writes it, so that code which runs while objects are pickled changes nothing in the session.
    """
    with _saves(packed, user) as (saves, shell):
        saves.left_out.append(name)
        read_end, write_end = os.pipe()
        drawn = random.getstate()  # a fork may get other random numbers
        pid = os.fork()
        if pid == 0:
            random.setstate(drawn)
            os.close(read_end)
            sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - a kernel's own would send from here, too
            saves.write_and_exit([write_end], shell)
        os.close(write_end)
        try:
            print(json.dumps(_write_files(read_end, os.path.join(_DATA, name), size)))
        except BaseException:
            remove(user, packed, name)
            raise
        finally:
            os.close(read_end)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def read(user: dict[str, Any], packed: str, name: str, count: int) -> None:
    """Restore the state in the files `name`0 and so on, and delete them. Print the names of what is missing, with the reasons, as JSON."""
    try:
        with _saves(packed, user) as (saves, shell):
            sent = sys.modules["cloudpickle"]
            _, missing = saves.read_state(_Files(os.path.join(_DATA, name), count), shell)
        for key in [key for key, value in user.items() if value is sent]:  # a variable of the user was this module
            with contextlib.suppress(ImportError):
                user[key] = importlib.import_module("cloudpickle")
        found = [(text[:_LONGEST], why[:_LONGEST]) for text, why in missing.items()]
        print("\n" + json.dumps({"missing": dict(found[:_MOST_NAMED]), "more": len(found[_MOST_NAMED:])}))
    finally:
        remove(user, packed, name)


def remove(user: dict[str, Any], packed: str, name: str) -> None:
    """Delete the files of a state. Print null."""
    for path in glob.glob(glob.escape(os.path.join(_DATA, name)) + "*"):
        with contextlib.suppress(OSError):
            os.remove(path)


def _write_files(pipe: int, path: str, size: int) -> int:
    count = 0
    piece = os.read(pipe, _PIECE)
    while piece:
        with open(path + str(count), "wb") as file:
            left = size
            while piece and left:
                file.write(piece[:left])
                left, piece = left - len(piece[:left]), piece[left:] or os.read(pipe, _PIECE)
        count += 1
    return count


class _Files:
    """Files that are read one after the other, each deleted when it was read."""

    def __init__(self, path: str, count: int) -> None:
        self._paths = [path + str(number) for number in range(count)]
        self._file: Any = None

    def readinto(self, view: memoryview) -> int:
        while self._file or self._paths:
            if self._file is None:
                self._file = open(self._paths[0], "rb")  # noqa: SIM115
            count = self._file.readinto(view)
            if count:
                return int(count)
            self._file.close()
            self._file = None
            os.remove(self._paths.pop(0))
        return 0


@contextlib.contextmanager
def _saves(packed: str, user: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Import the sent modules for the `with` block. Yield the one that writes states, and IPython's shell."""
    shell = user.get("get_ipython", lambda: None)()
    if shell is None:
        raise RuntimeError("the session has no IPython, which is needed to move it")
    modules = dict(sys.modules)
    sources = json.loads(zlib.decompress(base64.b64decode(packed)))
    packages = ("cloudpickle", _MODULES, _MODULES + ".guest")
    names = ["cloudpickle.cloudpickle", *(_MODULES + "." + name for name, _ in sources[1:])]
    own = (*packages, *names, "aca_sessions_state")
    try:
        for name in own:
            sys.modules.pop(name, None)
        for name in packages:
            _add_module(name).__path__ = []
        for name, (_, source) in zip(names, sources):
            module = _add_module(name)
            exec(compile(source, "<" + name + ">", "exec", dont_inherit=True), module.__dict__)  # noqa: S102
            if name == "cloudpickle.cloudpickle":
                sys.modules["cloudpickle"].Pickler = module.Pickler  # type: ignore[attr-defined]
        yield _adapt(sys.modules[_MODULES + ".guest.saves"], shell), shell
    finally:
        for name in own:
            sys.modules.pop(name, None)
            if name in modules:
                sys.modules[name] = modules[name]


def _add_module(name: str) -> ModuleType:
    sys.modules[name] = module = ModuleType(name)
    above, _, last = name.rpartition(".")
    module.__package__ = above or name
    if above:
        setattr(sys.modules[above], last, module)
    return module


def _adapt(saves: Any, shell: Any) -> Any:
    """Change what the module that writes states does in a session of another service, and return it."""
    restored = {**saves._SETTERS}

    def get_settings(shell: Any) -> dict[str, object]:
        settings: dict[str, Any] = original(shell)
        settings["inputs"] = ["" if text.startswith(_OWN_CELLS) else text for text in settings["inputs"]]
        settings["path"] = [entry for entry in settings["path"] if (entry + "/").startswith(_DATA + "/")]
        return settings

    def set_count(count: int, shell: Any) -> None:  # IPython's database has no number twice
        restored["execution_count"](max(count, shell.execution_count), shell)

    original, saves._settings = saves._settings, get_settings
    saves._SETTERS["execution_count"] = set_count
    saves.environment.update(os.environ)
    with contextlib.suppress(OSError):  # the variables with which the service has started the process
        with open("/proc/self/environ", "rb") as file:
            started = file.read()
        saves.environment.clear()
        saves.environment.update(os.fsdecode(one).partition("=")[::2] for one in started.split(b"\0") if one)
    return saves
