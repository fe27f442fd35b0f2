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
import select
import signal
import stat
import struct
import sys
import time
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

from ..wire import RECORD, Finished, Restore, Save
from .folders import CERTIFICATE_VARIABLES, DATA, session_folders

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
_READ_AT_ONCE = 64 << 20  # bytes of files that are read before the next cell may run
_FILES_MILLISECONDS = 500  # that the next cell waits for it at most
_MOST_DESCRIPTORS = 4096  # that are looked at if they cannot be listed
_TICK = 0.02  # seconds. The times of a file are as exact as the kernel's tick, at most 10 ms
writing: set[int] = set()  # the pids of forks that write a state
environment: dict[str, str] = {}  # the variables with which the session began
left_out: list[str] = []  # files of the workspace that are not saved begin with one of these
_MISSING = "cloudpickle is not installed in this session's Python: install it there, or choose another image"


def save(request: Save, link: Link, shell: Shell) -> Finished:
    """Fork the interpreter, and let the fork write the session's state to the pipe that the host sent. Return the pid of the fork."""
    ends = link.take_descriptors()
    drawn = random.getstate()  # a fork gets other random numbers
    try:
        if len(ends) != 1:
            return _finished(request, error="the session has no descriptor left to save its state: close some files")
        if request.background:
            ends += os.pipe()
        runs_again = time.time() + _FILES_MILLISECONDS / 1000
        pid = os.fork()
        if pid == 0:
            random.setstate(drawn)
            write_and_exit(ends, shell, runs_again)
        if request.background:
            os.close(ends.pop())
            read = select.poll()
            read.register(ends[1])
            read.poll(_FILES_MILLISECONDS)  # until the fork has read the files, or has ended
    except OSError as error:
        return _finished(request, error=f"the session cannot be forked to save its state: {error.strerror}")
    finally:
        for end in ends:
            os.close(end)
    writing.add(pid)
    return _finished(request, pid)


def reap_forks() -> None:
    """Reap the forks that wrote states and have ended."""
    for pid in [*writing]:
        try:
            is_running = os.waitpid(pid, os.WNOHANG)[0] == 0
        except ChildProcessError:  # reaped by a cell, or this is a fork itself
            is_running = False
        if not is_running:
            writing.discard(pid)


def restore(request: Restore, link: Link, shell: Shell) -> Finished:
    """Read a state from the pipe that the host sent, and define its variables here. Return what could not be restored, as JSON."""
    ends = link.take_descriptors()
    if len(ends) != 1:
        return _finished(request, error="the session has no descriptor left to restore its state")
    with open(ends[0], "rb") as pipe:
        try:
            restored, missing = read_state(pipe, shell)
        except ImportError:
            return _finished(request, error=_MISSING)
        except (ValueError, KeyError, TypeError, EOFError, struct.error):
            return _finished(request, error="the saved state cannot be read: it is damaged")
        except (MemoryError, OverflowError):
            return _finished(request, error="the saved state does not fit in the session's memory")
    shell.forget_changes()
    named = dict(list(missing.items())[:_MOST_NAMED])
    return _finished(request, restored, json.dumps({"missing": named, "more": len(missing) - len(named)}))


def read_state(pipe: BinaryIO, shell: Shell) -> tuple[int, dict[str, str]]:
    """Restore a state. Return the number of variables, and the names of what could not be restored, with the reasons."""
    from . import pickling

    missing: dict[str, str] = {}
    restored = 0
    folders: list[tuple[str, int, float]] = []
    for header, payload in read_records(pipe):
        if header["kind"] == "settings":
            _restore_settings(bytes(payload), shell, missing)
        elif header["kind"] == "file":
            _restore_file(header, payload, missing, folders)
        elif header["kind"] == "group":
            buffers = [memoryview(buffer) for _, buffer in zip(range(header["buffers"]), _payloads(pipe))]
            group = pickling.Group(header["names"], bytes(payload), buffers)
            restored += _restore_group(group, shell, missing)
    for path, mode, modified in reversed(folders):  # only now: files had to be made in them, which changed their times
        with contextlib.suppress(OSError):
            os.chmod(path, stat.S_IMODE(mode))
            os.utime(path, (modified, modified))
    return restored, missing


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


def write_and_exit(ends: list[int], shell: Shell, runs_again: float = 0.0) -> None:
    """Write the state to the first of `ends`. If there are others, read the files first, then close these.

    The next cell may run when these are closed, and from the time `runs_again` on.
    """
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        pipe, *until_read = ends
        nothing = os.open("/dev/null", os.O_RDWR)
        for descriptor in (0, 1, 2):  # code that runs while objects are pickled prints into no result
            os.dup2(nothing, descriptor)
        _close_shared(ends)
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")  # at the memory limit, this process ends and not the interpreter
        lost: dict[str, str] = {}
        files = _Files(lost)
        if until_read:
            os.nice(10)  # the next cell comes first
            files.read(runs_again)
            for end in until_read:
                os.close(end)
        with open(pipe, "wb", _BUFFER, closefd=False) as file:  # so that small records are read at once
            for header, payload in _records(shell, files, lost):
                _write(file, header, payload)
        status = 0
    finally:
        os._exit(status)


def _close_shared(besides: list[int]) -> None:
    """Close the pipes and sockets of the interpreter, because they must not stay open when cells close them."""
    try:
        descriptors = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:  # without namespaces /proc cannot be read
        descriptors = [*range(min(os.sysconf("SC_OPEN_MAX"), _MOST_DESCRIPTORS))]
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            mode = os.fstat(descriptor).st_mode
            if descriptor > 2 and descriptor not in besides and (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
                os.close(descriptor)


def _write(file: BinaryIO, header: dict[str, object], payload: Any) -> None:
    encoded = json.dumps(header).encode()
    file.write(RECORD.pack(len(encoded), len(payload)) + encoded)
    file.write(payload)


def _records(shell: Shell, files: _Files, lost: dict[str, str]) -> Iterator[tuple[dict[str, object], Any]]:
    """Yield the records of the session's state: files and settings first, then each group of variables, then what is not in it."""
    yield {"kind": "start", "python": platform.python_version()}, b""
    yield from files.records()
    if files.changed is not None:
        yield {"kind": "failed", "why": f"{files.changed[:_LONGEST_NAME]} changed while it was saved"}, b""
        return
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


class _Files:
    """The folders, files and links in the workspace, to be saved."""

    def __init__(self, lost: dict[str, str]) -> None:
        """Add to `lost` the names of those that cannot be saved, with the reasons."""
        self._lost = lost
        self._found: list[tuple[str, str, os.stat_result, bytes | None]] | None = None
        self.changed: str | None = None  # a file or folder that changed since the next cell may run

    def read(self, runs_again: float) -> None:
        """Find all, and read files up to a limit, before the next cell may change them. It may run from the time `runs_again` on."""
        left = _READ_AT_ONCE
        found: list[tuple[str, str, os.stat_result, bytes | None]] = []
        newest = 0.0
        for path, relative, status in self._walk():
            content = None
            if stat.S_ISLNK(status.st_mode) or (stat.S_ISREG(status.st_mode) and status.st_size <= left):
                if (content := self._content(path, relative, status)) is None:
                    continue
                left -= len(content)
            elif stat.S_ISREG(status.st_mode):
                newest = max(newest, status.st_ctime)
            found.append((path, relative, status, content))
        if newest > 0 and time.time() - newest < _TICK:
            time.sleep(_TICK)  # a change within the same tick as the one before would not show
        self._found = found
        since = runs_again - _TICK
        if time.time() > since:
            paths = (session_folders.data, *(path for path, *_ in found))
            self.changed = next((os.path.relpath(path, session_folders.data) for path in paths if _changed_at(path) > since), None)

    def records(self) -> Iterator[tuple[dict[str, object], Any]]:
        """Yield a record for each folder, file and link, a folder before what is in it. Stop at a file that changed since `read`."""
        if self.changed is not None:
            return
        found = self._found if self._found is not None else ((*one, None) for one in self._walk())
        for path, relative, status, known in found:
            content = known if known is not None else self._content(path, relative, status)
            if self._found is not None and known is None and stat.S_ISREG(status.st_mode) and not _is_unchanged(path, status):
                self.changed = relative
                return
            if content is not None:
                yield {"kind": "file", "path": os.fsencode(relative).hex(), "mode": status.st_mode, "modified": status.st_mtime}, content

    def _walk(self) -> Iterator[tuple[str, str, os.stat_result]]:
        """Yield the path of each folder, file and link, its path in the workspace and its status."""

        def note(error: OSError) -> None:
            relative = os.path.relpath(error.filename, session_folders.data)
            self._lost[f"files in {relative}"] = error.strerror or type(error).__name__

        for folder, folders, files in os.walk(session_folders.data, onerror=note):
            folders[:] = [name for name in folders if name != "__pycache__"]
            for name in sorted([*folders, *files]):
                path = os.path.join(folder, name)
                relative = os.path.relpath(path, session_folders.data)
                if relative.startswith((*left_out,)):
                    continue
                try:
                    yield path, relative, os.lstat(path)
                except OSError as error:
                    self._lost[f"file {relative}"] = error.strerror or type(error).__name__

    def _content(self, path: str, relative: str, status: os.stat_result) -> bytes | None:
        """Return what a file has, or the target of a link, or nothing for a folder. Return None, and name it as lost, if that fails."""
        try:
            if stat.S_ISREG(status.st_mode):
                with open(path, "rb") as file:
                    return file.read()
            if stat.S_ISDIR(status.st_mode):
                return b""
            if stat.S_ISLNK(status.st_mode):
                return os.fsencode(os.readlink(path))
            self._lost[f"file {relative}"] = "pipes, sockets and devices cannot be saved"
        except MemoryError:
            self._lost[f"file {relative}"] = "it does not fit in the session's memory"
        except OSError as error:
            self._lost[f"file {relative}"] = error.strerror or type(error).__name__
        return None


def _changed_at(path: str) -> float:
    """Return when a file, or the list of what is in a folder, changed last. Cells cannot set this time."""
    try:
        return os.lstat(path).st_ctime
    except OSError:  # it was deleted
        return time.time()


def _is_unchanged(path: str, before: os.stat_result) -> bool:
    try:
        now = os.lstat(path)
    except OSError:
        return False
    return all(getattr(now, name) == getattr(before, name) for name in ("st_ino", "st_size", "st_mtime_ns", "st_ctime_ns"))


def _restore_file(header: dict[str, Any], content: bytearray, missing: dict[str, str], folders: list[tuple[str, int, float]]) -> None:
    relative = os.fsdecode(bytes.fromhex(header["path"]))
    if relative.startswith("/") or ".." in relative.split("/"):
        missing[f"file {relative}"] = "its path leads out of the workspace"
        return
    path, mode, modified = os.path.join(session_folders.data, relative), header["mode"], header["modified"]
    try:
        if stat.S_ISDIR(mode):
            os.makedirs(path, exist_ok=True)
            folders.append((path, mode, modified))
            return
        if stat.S_ISLNK(mode):
            os.symlink(os.fsdecode(bytes(content)), path)
            return
        if not stat.S_ISREG(mode):
            missing[f"file {relative}"] = "it is neither a file, nor a folder, nor a link"
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
        "environment": _changed_environment(),
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


def _changed_environment() -> dict[str, str | None]:
    """Return the environment variables that cells have set, and None for those that they have removed."""
    changed: dict[str, str | None] = dict.fromkeys(environment.keys() - os.environ.keys())
    return changed | {name: value for name, value in os.environ.items() if environment.get(name) != value}


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


def _set_environment(changed: dict[str, str | None], _shell: Shell) -> None:
    # If this session trusts an authority, bundles that another session chose would lack it.
    own = _OWN_VARIABLES | (CERTIFICATE_VARIABLES.keys() & environment.keys())
    for name, value in changed.items():
        if name in own:
            continue
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


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
