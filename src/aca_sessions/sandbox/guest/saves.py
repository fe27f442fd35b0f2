"""Write the state of the interpreter to the host, and restore it in another interpreter.

The state is a list of records. A record has a header in JSON and a payload, which the host stores without reading it: only code of a
session unpickles it, in its own sandbox. A fork of the interpreter writes the state. So code of the user that runs while objects are
pickled can change nothing in the session, and the host can end it.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pickle
import platform
import random
import re
import signal
import stat
import struct
import sys
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

from ..wire import RECORD, Finished, Restore, Save
from .folders import DATA, session_folders

if TYPE_CHECKING:
    from .link import Link
    from .notebook.shell import Shell
    from .pickling import Group

_OF_IPYTHON = re.compile(r"_i+|_i\d+|_\d+|_[iod]h|In|Out|_exit_code")
# Python and IPython set these. Others with two underscores, such as `__version__`, are variables of the user.
_OF_PYTHON = frozenset(("__name__", "__doc__", "__package__", "__loader__", "__spec__", "__builtin__", "__builtins__")) | frozenset(
    ("__annotations__", "__annotate__", "__conditional_annotations__", "__warningregistry__")
)
_OUT = re.compile(r"Out\[(\d+)\]")
_MOST_NAMES = 10_000  # in one header; a header of the host's limit has room for them
_MOST_NAMED = 1000  # in a report
_BUFFER = 1 << 16
_LONGEST_NAME = 1000  # characters; a longer name would not fit in a header
_writing: list[int] = []  # the pids of forks that write a state
_MISSING = "cloudpickle is not installed in this session's Python: install it there, or choose another image"


def save(request: Save, link: Link, shell: Shell) -> Finished:
    """Fork the interpreter, and let the fork write the session's state to the pipe that the host sent. Return the pid of the fork."""
    ends = link.take_descriptors()
    drawn = random.getstate()  # a fork gets other random numbers
    try:
        if len(ends) != 1:
            return _finished(request, error="the session has no descriptor left to save its state: close some files")
        pid = os.fork()
        if pid == 0:
            random.setstate(drawn)
            _write_and_exit(ends[0], shell)
    except OSError as error:
        return _finished(request, error=f"the session cannot be forked to save its state: {error.strerror}")
    finally:
        for end in ends:
            os.close(end)
    _writing.append(pid)
    return _finished(request, pid)


def wait_for_forks() -> None:
    """Wait until the forks that wrote states have ended, so that they are not listed as processes of the next cell.

    The host has read what they wrote, or has killed them.
    """
    while _writing:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(_writing.pop(), 0)


def restore(request: Restore, link: Link, shell: Shell) -> Finished:
    """Read a state from the pipe that the host sent, and define its variables here. Return what could not be restored, as JSON."""
    ends = link.take_descriptors()
    if len(ends) != 1:
        return _finished(request, error="the session has no descriptor left to restore its state")
    missing: dict[str, str] = {}
    restored = 0
    folders: list[tuple[str, int, float]] = []
    with open(ends[0], "rb") as pipe:
        try:
            from . import pickling

            for header, payload in read_records(pipe):
                if header["kind"] == "settings":
                    _restore_settings(bytes(payload), shell, missing)
                elif header["kind"] == "file":
                    _restore_file(header, payload, missing, folders)
                elif header["kind"] == "group":
                    buffers = [memoryview(buffer) for _, buffer in zip(range(header["buffers"]), _payloads(pipe))]
                    group = pickling.Group(header["names"], bytes(payload), buffers)
                    restored += _restore_group(group, shell, missing)
        except ImportError:
            return _finished(request, error=_MISSING)
        except (ValueError, KeyError, TypeError, EOFError, struct.error):
            return _finished(request, error="the saved state cannot be read: it is damaged")
    for path, mode, modified in reversed(folders):  # only now: files had to be made in them, which changed their times
        with contextlib.suppress(OSError):
            os.chmod(path, stat.S_IMODE(mode))
            os.utime(path, (modified, modified))
    shell.forget_changes()
    named = dict(list(missing.items())[:_MOST_NAMED])
    return _finished(request, restored, json.dumps({"missing": named, "more": len(missing) - len(named)}))


def read_records(pipe: BinaryIO) -> Iterator[tuple[dict[str, Any], bytearray]]:
    """Yield the header and the payload of each record up to the last one, `end`. Raise EOFError if the state ends before it."""
    while True:
        header_size, size = RECORD.unpack(_read(pipe, RECORD.size))
        header = json.loads(_read(pipe, header_size))
        yield header, _read(pipe, size)
        if header["kind"] == "end":
            return


def _payloads(pipe: BinaryIO) -> Iterator[bytearray]:
    return (payload for _, payload in read_records(pipe))


def _read(pipe: BinaryIO, size: int) -> bytearray:
    data = bytearray(size)  # writable: arrays are made on it
    view, done = memoryview(data), 0
    while done < size:
        count = pipe.readinto(view[done:])  # type: ignore[attr-defined]
        if not count:
            raise EOFError
        done += count
    return data


def _write_and_exit(pipe: int, shell: Shell) -> None:
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        nothing = os.open("/dev/null", os.O_RDWR)
        for descriptor in (0, 1, 2):  # code that runs while objects are pickled prints into no result
            os.dup2(nothing, descriptor)
        with open(pipe, "wb", _BUFFER, closefd=False) as file:  # so that small records are read at once
            for header, payload in _records(shell):
                _write(file, header, payload)
        status = 0
    finally:
        os._exit(status)


def _write(file: BinaryIO, header: dict[str, object], payload: Any) -> None:
    encoded = json.dumps(header).encode()
    file.write(RECORD.pack(len(encoded), len(payload)) + encoded)
    file.write(payload)


def _records(shell: Shell) -> Iterator[tuple[dict[str, object], Any]]:
    """Yield the records of the session's state: the settings first, then each group of variables, then what is not in it."""
    yield {"kind": "start", "python": platform.python_version()}, b""
    lost: dict[str, str] = {}
    yield from _files(lost)
    settings: dict[str, bytes] = {}
    for name, value in _settings(shell).items():
        try:
            settings[name] = pickle.dumps(value, protocol=5)
        except BaseException as error:
            lost[name] = f"{type(error).__name__}"
    yield {"kind": "settings"}, pickle.dumps(settings, protocol=5)
    try:
        from . import pickling
    except ImportError:
        yield {"kind": "failed", "why": _MISSING}, b""
        return
    saved = 0
    variables = _variables(shell)
    for name in [name for name in variables if len(name) > _LONGEST_NAME]:
        lost[name[:_LONGEST_NAME]] = "its name is too long"
        del variables[name]
    for group in pickling.pickle_variables(variables, shell.user_ns, lost):
        saved += sum(_OUT.fullmatch(name) is None for name in group.names)
        yield {"kind": "group", "names": group.names[:_MOST_NAMES], "buffers": len(group.buffers)}, group.pickle
        for buffer in group.buffers:
            yield {"kind": "buffer"}, buffer
    for name, why in lost.items():
        yield {"kind": "lost", "names": [name[:_LONGEST_NAME]], "why": why}, b""
    yield {"kind": "end", "saved": saved}, b""


def _files(lost: dict[str, str]) -> Iterator[tuple[dict[str, object], Any]]:
    """Yield a record for each folder, file and link in the workspace, a folder before what is in it."""

    def note(error: OSError) -> None:
        relative = os.path.relpath(error.filename, session_folders.data)
        lost[f"files in {relative}"] = error.strerror or type(error).__name__

    for folder, folders, files in os.walk(session_folders.data, onerror=note):
        folders[:] = [name for name in folders if name != "__pycache__"]
        for name in sorted([*folders, *files]):
            path = os.path.join(folder, name)
            relative = os.path.relpath(path, session_folders.data)
            try:
                status = os.lstat(path)
                header = {"kind": "file", "path": os.fsencode(relative).hex(), "mode": status.st_mode, "modified": status.st_mtime}
                if stat.S_ISREG(status.st_mode):
                    with open(path, "rb") as file:
                        content = file.read()
                    yield header, content
                elif stat.S_ISDIR(status.st_mode):
                    yield header, b""
                elif stat.S_ISLNK(status.st_mode):
                    yield header, os.fsencode(os.readlink(path))
                else:
                    lost[f"file {relative}"] = "pipes, sockets and devices cannot be saved"
            except MemoryError:
                lost[f"file {relative}"] = "it does not fit in the session's memory"
            except OSError as error:
                lost[f"file {relative}"] = error.strerror or type(error).__name__


def _restore_file(header: dict[str, Any], content: bytearray, missing: dict[str, str], folders: list[tuple[str, int, float]]) -> None:
    relative = os.fsdecode(bytes.fromhex(header["path"]))
    path, mode, modified = os.path.join(session_folders.data, relative), header["mode"], header["modified"]
    try:
        if stat.S_ISDIR(mode):
            os.makedirs(path, exist_ok=True)
            folders.append((path, mode, modified))
            return
        if stat.S_ISLNK(mode):
            os.symlink(os.fsdecode(bytes(content)), path)
            return
        with open(path, "wb") as file:
            file.write(content)
        os.chmod(path, stat.S_IMODE(mode))
        os.utime(path, (modified, modified))
    except OSError as error:
        missing[f"file {relative}"] = error.strerror or type(error).__name__


def _variables(shell: Shell) -> dict[str, object]:
    """Return the user's variables, and the values of cells as `Out[3]`."""
    hidden = shell.user_ns_hidden
    names = {
        name: value
        for name, value in shell.user_ns.copy().items()
        if type(name) is str
        and name not in _OF_PYTHON
        and not _OF_IPYTHON.fullmatch(name)
        and not (name in hidden and hidden[name] is value)
    }
    return names | {f"Out[{number}]": value for number, value in shell.user_ns.get("_oh", {}).items() if type(number) is int}


def _settings(shell: Shell) -> dict[str, object]:
    """Return what cells can set beside variables: the folder, the import path, the environment, random numbers, warnings, options."""
    settings: dict[str, object] = {
        "inputs": [str(text) for text in _history(shell).input_hist_raw],
        "execution_count": shell.execution_count,
        "path": [_moved(entry, session_folders.data, DATA) for entry in sys.path if type(entry) is str],
        "environment": dict(os.environ),
        "random": random.getstate(),
        "warnings": warnings.filters[:],
    }
    with contextlib.suppress(OSError):  # it was deleted
        settings["folder"] = _moved(os.getcwd(), session_folders.data, DATA)
    if "numpy" in sys.modules:
        settings["numpy.random"] = sys.modules["numpy"].random.get_state()
    if "matplotlib" in sys.modules:
        settings["matplotlib.rcParams"] = dict(sys.modules["matplotlib"].rcParams)
    return settings


def _moved(path: str, before: str, after: str) -> str:
    """Return a path below the folder `before` as one below `after`, and any other path unchanged. The workspace can have another path."""
    return after + path[len(before) :] if f"{path}/".startswith(f"{before}/") else path


def _restore_settings(pickled: bytes, shell: Shell, missing: dict[str, str]) -> None:
    for name, value in pickle.loads(pickled).items():  # noqa: S301 - in the session itself, whose code wrote it
        try:
            _SETTERS[name](pickle.loads(value), shell)  # noqa: S301
        except Exception as error:
            missing[name] = type(error).__name__


def _history(shell: Shell) -> Any:
    return shell.history_manager


def _set_inputs(inputs: list[str], shell: Shell) -> None:
    for known in (_history(shell).input_hist_raw, _history(shell).input_hist_parsed):
        known[:] = inputs


def _set_count(count: int, shell: Shell) -> None:
    shell.execution_count = count


def _set_path(path: list[str], _shell: Shell) -> None:
    own = (_moved(entry, DATA, session_folders.data) for entry in path)
    sys.path.extend(entry for entry in own if entry not in sys.path)


def _set_environment(environment: dict[str, str], _shell: Shell) -> None:
    own = _OWN_VARIABLES & os.environ.keys()
    kept = {name: os.environ[name] for name in own}
    os.environ.clear()
    os.environ.update({name: value for name, value in environment.items() if name not in _OWN_VARIABLES} | kept)


def _set_warnings(filters: list[Any], _shell: Shell) -> None:
    warnings.filters[:] = filters  # type: ignore[index]
    warnings._filters_mutated()  # type: ignore[attr-defined]


def _set_options(options: dict[str, Any], _shell: Shell) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        vars(dict)["update"](
            importlib.import_module("matplotlib").rcParams, options
        )  # as they were, without the checks of what people write


# These depend on the sandbox, not on what cells did.
_OWN_VARIABLES = frozenset(("PATH", "HOME", "TMPDIR", "PYTHONPATH", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"))
_SETTERS: dict[str, Any] = {
    "inputs": _set_inputs,
    "execution_count": _set_count,
    "path": _set_path,
    "environment": _set_environment,
    "random": lambda state, _: random.setstate(state),
    "warnings": _set_warnings,
    "folder": lambda folder, _: os.chdir(_moved(folder, DATA, session_folders.data)),
    "numpy.random": lambda state, _: importlib.import_module("numpy").random.set_state(state),
    "matplotlib.rcParams": _set_options,
}


def _restore_group(group: Group, shell: Shell, missing: dict[str, str]) -> int:
    """Define the variables of a group. If that fails, add their names to `missing`. Return how many were defined."""
    from . import pickling

    try:
        loaded = pickling.load_group(group, shell.user_ns)
    except BaseException as error:  # whatever the code of the user raises
        missing.update(dict.fromkeys(group.names, pickling.describe(error)))
        return 0
    for name, value in loaded.items():
        if out := _OUT.fullmatch(name):
            shell.user_ns["_oh"][int(out.group(1))] = shell.user_ns[f"_{out.group(1)}"] = value
        else:
            shell.user_ns[name] = value
    return len(loaded)


def _finished(request: Save | Restore, value: int | None = None, text: str = "", *, error: str = "") -> Finished:
    return Finished(request.execution, value, text, "SnapshotError" if error else None, error, "", [], [])
