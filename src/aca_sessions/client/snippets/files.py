"""Snippets that run commands, and read and change files anywhere in a session.

Each reads its request, and prints its reply, as JSON. What is too large for that is in a file of /mnt/data, which lists of files leave out.
"""

import base64
import builtins
import contextlib
import errno
import fnmatch
import json
import os
import re
import select
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

_MOST_BYTES = 384 << 10  # in one reply: as base64 it must fit in a cell's output, of which a megabyte is kept
_CHUNK = 1 << 16
_DRAIN_SECONDS = 0.05


def workspace() -> str:
    """Return the folder of the session's files, which is /mnt/data except in sessions without namespaces."""
    return "/mnt/data" if os.path.isdir("/mnt/data") else os.path.expanduser("~")


def add_import_folder(user: dict, folder: str) -> None:
    """Add a folder of /mnt/data to the end of the import path, unless it is there."""
    sys.path.extend({os.path.join(workspace(), folder)}.difference(sys.path))


def run_script(user: dict, path: str, *arguments: str) -> None:
    """Run a Python file in a process of its own, and print its exit code after its output. `path` is relative to /mnt/data."""
    sys.stdout.flush()  # otherwise what the session wrote before would come after the script's output
    # Without -u, what it has printed would be lost if it is interrupted.
    code = subprocess.run([sys.executable, "-u", path, *arguments], stdin=subprocess.DEVNULL, check=False, cwd=workspace()).returncode
    print("\n" + json.dumps(code))


# A command runs beside cells: one cell starts it, and others fetch its output until it has ended. So no thread of the session is needed, in
# whose presence no checkpoint could be taken.


class _Command:
    """A command that was started: its process, and the ends of the pipes that its output comes from."""

    def __init__(self, process: Any) -> None:
        self.process = process
        self.interpreter = os.getpid()
        self.pipes = {process.stdout.fileno(): "stdout", process.stderr.fileno(): "stderr"}
        self.drained_until = 0.0
        for pipe in self.pipes:
            os.set_blocking(pipe, False)


def start_command(user: dict, request: str) -> None:
    """Start a command and print what `fetch_command` prints, after it has ended or `wait` seconds have passed.

    `request` has `id`, `arguments` (a list, or text for the shell), `folder`, `variables` for the environment, `input` (base64) or
    `input_file`, and `wait`.
    """
    wanted = json.loads(request)
    folder = None if wanted["folder"] is None else _absolute(wanted["folder"])
    try:
        started = _Command(_start(wanted, folder))
    except OSError as error:
        print(json.dumps({"errno": error.errno, "program": folder is None or error.filename != folder}))
        return
    _commands()[wanted["id"]] = started
    try:
        _fetch(wanted["id"], started, time.monotonic() + wanted["wait"])
    except BaseException:  # the cell was interrupted
        _kill(started)
        _forget(wanted["id"])
        raise


def fetch_command(user: dict, id: str, kill: int) -> None:
    """Print, as JSON, the output of a command that came since the last call, and its exit code if it has ended. Kill it first if asked to.

    Print null if the command was not started, or was lost with the process that started it.
    """
    command = _commands().get(id)
    if command is None or command.interpreter != os.getpid():  # a restored interpreter has a copy of what an earlier one knew
        _commands().pop(id, None)
        print("null")
        return
    if kill:
        _kill(command)
    _fetch(id, command, time.monotonic())


def _commands() -> "dict[str, _Command]":
    commands: dict[str, _Command] = builtins.__dict__.setdefault("_aca_sessions_commands", {})
    return commands


def _start(wanted: dict, folder: "str | None") -> "subprocess.Popen[bytes]":
    arguments = ["/bin/sh", "-c", wanted["arguments"]] if isinstance(wanted["arguments"], str) else wanted["arguments"]
    # A group of its own is killed as a whole. Not a session, if possible: see sched(7) on autogroups.
    group: dict[str, Any] = {"process_group": 0} if sys.version_info >= (3, 11) else {"start_new_session": True}
    variables = {**os.environ, **wanted["variables"]}
    with _open_input(wanted) as source:
        return subprocess.Popen(arguments, stdin=source, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=folder, env=variables, **group)


def _open_input(wanted: dict) -> Any:
    """Return the open file that a command reads from. Its name is gone, so it ends with the last process that has it open."""
    if "input_file" in wanted:
        path = os.path.join(workspace(), wanted["input_file"])
        file = open(path, "rb")  # noqa: SIM115 - the caller closes it
        os.remove(path)
        return file
    sent = tempfile.TemporaryFile()  # noqa: SIM115
    sent.write(base64.b64decode(wanted["input"]))
    sent.seek(0)
    return sent


def _fetch(id: str, command: _Command, deadline: float) -> None:
    """Print the reply of `fetch_command`. Until the deadline, wait for the command to end."""
    output: dict[str, bytes] = {"stdout": b"", "stderr": b""}
    code, full = None, False
    while True:
        full = _read(command, output)
        code = _exit_code(command)
        if full or code is not None or time.monotonic() >= deadline:
            break
        # Without pipes it ends at once. With them, look now and then: a process that it leaves behind may keep them open.
        select.select([*command.pipes], [], [], max(0.0, min(0.005 if command.pipes else 0.0005, deadline - time.monotonic())))
    if code is not None and not full:
        # What it wrote is in the pipes. A process that it left behind may hold them open: it is not waited for.
        command.drained_until = command.drained_until or time.monotonic() + _DRAIN_SECONDS
        while not (full := _read(command, output)) and command.pipes and time.monotonic() < command.drained_until:
            select.select([*command.pipes], [], [], _DRAIN_SECONDS / 5)
    ended = code is not None and not full
    if ended:
        _forget(id)
    texts = {name: base64.b64encode(data).decode() for name, data in output.items()}
    print(json.dumps({**texts, "exit_code": code if ended else None, "more": full}))


def _read(command: _Command, output: "dict[str, bytes]") -> bool:
    """Read what is in the pipes. Return whether there may be more, because the reply is full."""
    for pipe, name in [*command.pipes.items()]:
        while True:
            room = _MOST_BYTES - sum(map(len, output.values()))
            if room <= 0:
                return True
            try:
                data = os.read(pipe, min(room, _CHUNK))
            except BlockingIOError:
                break
            if not data:
                del command.pipes[pipe]
                break
            output[name] += data
    return False


def _exit_code(command: _Command) -> "int | None":
    """Return the exit code, or -N after a death by signal N. Return None while the command runs.

    Raise ChildProcessError if code of the session has fetched the exit code. `Popen.poll` would return 0 then.
    """
    if command.process.returncode is None:
        os.waitid(os.P_PID, command.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    code: int | None = command.process.poll()
    return code


def _kill(command: _Command) -> None:
    if command.process.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(command.process.pid, signal.SIGKILL)
        command.process.wait()


def _forget(id: str) -> None:
    command = _commands().pop(id)
    for pipe in (command.process.stdout, command.process.stderr):
        if pipe is not None:
            pipe.close()


# --- files ---


def read_path(user: dict, copy: str, path: str) -> None:
    """Print a file's content as base64. If it is large, copy the file to `copy` in /mnt/data."""
    _reply(copy, lambda: _content_of(_absolute(path), copy))


def write_path(user: dict, copy: str, path: str, request: str) -> None:
    """Write a file and print its status. `request` has `mode` or null, and `data` (base64) or `data_file`, a file in /mnt/data."""
    wanted = json.loads(request)
    full = _absolute(path)

    def write() -> Any:
        sent = os.path.join(workspace(), wanted["data_file"]) if "data_file" in wanted else ""
        try:
            data = Path(sent).read_bytes() if sent else base64.b64decode(wanted["data"])
            _write(full, data, wanted["mode"])
        finally:
            if sent:
                os.remove(sent)
        return _status(full, follow=True)

    _reply(copy, write)


def edit_path(user: dict, copy: str, path: str, request: str) -> None:
    """Replace a text in a file, and print how often it was found. `request` has `old`, `new` and `all`.

    The file is not changed if the text is not found, or is found more than once and `all` is false.
    """
    wanted = json.loads(request)
    full = _absolute(path)

    def edit() -> int:
        old, new = wanted["old"].encode(), wanted["new"].encode()
        _check_regular(full)
        data = Path(full).read_bytes()
        count = data.count(old)
        if count == 1 or (count and wanted["all"]):
            _write(full, data.replace(old, new), None)
        return count

    _reply(copy, edit)


def stat_path(user: dict, copy: str, path: str, follow: int) -> None:
    """Print the status of a file or folder."""
    _reply(copy, lambda: _status(_absolute(path), follow=bool(follow)))


def list_folder(user: dict, copy: str, path: str) -> None:
    """Print the status of everything in a folder, sorted by name."""
    full = _absolute(path)
    _reply(copy, lambda: [_status(os.path.join(full, name), follow=False) for name in sorted(os.listdir(full))])


def resolve_path(user: dict, copy: str, path: str) -> None:
    """Print the absolute path without symbolic links. It need not exist."""
    _reply(copy, lambda: os.path.realpath(_absolute(path)))


def make_folder(user: dict, copy: str, path: str) -> None:
    """Create a folder, and those above it. Do nothing if it exists."""
    _reply(copy, lambda: os.makedirs(_absolute(path), exist_ok=True))


def remove_path(user: dict, copy: str, path: str, recursive: int) -> None:
    """Delete a file, a link, or a folder, which must be empty unless `recursive` is 1."""
    full = _absolute(path)

    def remove() -> None:
        if not stat.S_ISDIR(os.lstat(full).st_mode):
            os.remove(full)
        elif recursive:
            shutil.rmtree(full)
        else:
            os.rmdir(full)

    _reply(copy, remove)


def move_path(user: dict, copy: str, path: str, target: str) -> None:
    """Move a file or folder to another path, and replace a file there."""

    def move() -> None:
        _make_folders_above(_absolute(target))
        try:
            os.replace(_absolute(path), _absolute(target))
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            shutil.move(_absolute(path), _absolute(target))

    _reply(copy, move)


def glob_paths(user: dict, copy: str, folder: str, pattern: str, most: int) -> None:
    """Print the paths below a folder that match a pattern such as `**/*.py`, sorted, with their status."""
    top = Path(_absolute(folder))

    def find() -> Any:
        os.listdir(top)  # raises an error if it is not a folder
        found = [str(path) for path in islice(top.glob(pattern), 20 * most)]
        return [_status(path, follow=False) for path in sorted(found)[: most + 1]]

    _reply(copy, find)


def grep_paths(user: dict, copy: str, folder: str, request: str) -> None:
    """Print the lines of text files that have a text: path, number and line. Skip binary files, and files above 10 MB.

    `folder` may be a file. `request` has `pattern`, `glob` or null, `regex`, `ignore_case` and `most`.
    """
    wanted = json.loads(request)
    top = _absolute(folder)
    pattern = wanted["pattern"] if wanted["regex"] else re.escape(wanted["pattern"])
    matches = re.compile(pattern, re.IGNORECASE if wanted["ignore_case"] else 0).search

    def find() -> Any:
        os.stat(top)
        lines = (line for path in _text_files(top, wanted["glob"]) for line in _lines(path))
        return [*islice(([path, number, line[:2000]] for path, number, line in lines if matches(line)), wanted["most"] + 1)]

    _reply(copy, find)


def _absolute(path: str) -> str:
    full = os.path.join(workspace(), path)
    if ".." not in full.split("/"):
        return os.path.normpath(full)
    folder, name = os.path.split(full)  # '..' after a link goes up from its target
    return os.path.realpath(full) if name in ("", "..") else os.path.join(os.path.realpath(folder), name)


def _reply(copy: str, work: "Callable[[], Any]") -> None:
    """Print the value that `work` returns, or the error number of the OSError that it raises, as JSON.

    If that is too long, write it to the file `copy` in /mnt/data. The client chose its name, and deletes it.
    """
    try:
        text = json.dumps({"value": work()})
    except OSError as error:
        text = json.dumps({"errno": error.errno or errno.EIO})
    except RecursionError:
        text = json.dumps({"errno": errno.ELOOP})
    if len(text) > 2 * _MOST_BYTES:
        Path(workspace(), copy).write_text(text, encoding="utf-8")
        text = json.dumps({"is_in": "copy"})
    print(text)


def _check_regular(path: str) -> None:
    """Raise an OSError if `path` is not a file: opening a pipe would wait for a process that writes to it."""
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


def _content_of(path: str, copy: str) -> "dict[str, str]":
    _check_regular(path)
    with open(path, "rb") as file:
        data = file.read(_MOST_BYTES + 1)
        if len(data) <= _MOST_BYTES:
            return {"data": base64.b64encode(data).decode()}
        with open(os.path.join(workspace(), copy), "wb") as target:
            target.write(data)
            shutil.copyfileobj(file, target)
    return {"is_in": "copy"}


def _make_folders_above(path: str) -> None:
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
    except FileExistsError:  # it is a file
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from None


def _write(path: str, data: bytes, mode: "int | None") -> None:
    """Write a file in place, so that links lead to it, with its permissions unless there is a `mode`. Create missing folders."""
    _make_folders_above(path)
    earlier = 0
    if os.path.exists(path):
        _check_regular(path)
        earlier = os.path.getsize(path)
    if len(data) > earlier + shutil.disk_usage(os.path.dirname(path)).free:  # otherwise the earlier content would be lost, too
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with open(path, "wb") as file:
        file.write(data)
        if mode is not None:
            os.fchmod(file.fileno(), mode)


def _status(path: str, *, follow: bool) -> Any:
    """Return what is known of a path: path, kind, size, mode, time of change, and where a link leads to."""
    found = os.stat(path, follow_symlinks=follow)
    kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "link"}
    kind = kinds.get(stat.S_IFMT(found.st_mode), "other")
    target = os.readlink(path) if kind == "link" else ""
    return [_sendable(path), kind, found.st_size, stat.S_IMODE(found.st_mode), found.st_mtime, _sendable(target)]


def _sendable(path: str) -> str:
    return path.encode("utf-8", "replace").decode()  # a name of other bytes has surrogates, which JSON of the client refuses


def _text_files(top: str, pattern: "str | None") -> "Iterator[str]":
    if not os.path.isdir(top):
        yield top
        return
    for folder, folders, names in os.walk(top):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(folder, name)
            relative = os.path.relpath(path, top)
            if pattern is None or any(fnmatch.fnmatchcase(one, pattern.removeprefix("**/")) for one in (name, relative)):
                yield path


def _lines(path: str) -> "Iterator[tuple[str, int, str]]":
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode) or found.st_size > 10 << 20:
            return
        data = Path(path).read_bytes()
    except OSError:
        return
    if b"\0" not in data[:8192]:
        for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
            yield _sendable(path), number, line
