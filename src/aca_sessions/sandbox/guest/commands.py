"""A program in a session: its output goes the way of a cell's, its exit code is the value."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable

from ..wire import Command, Finished, Message, Started
from . import changes, processes
from .link import interrupts
from .place import place

_NOT_FOUND, _NOT_EXECUTABLE = 127, 126
_BY_SIGNAL = 128


def run(command: Command, send: Callable[[Message], None]) -> Finished:
    """Runs it to its end, or until it is interrupted; then all that it started in its own process group ends with it."""
    before = changes.listing()
    error: tuple[str | None, str] = (None, "")
    code = None
    try:
        with interrupts.allowed():
            send(Started(command.execution))
            code = _exit_code(command)
    except KeyboardInterrupt:
        error = ("KeyboardInterrupt", "the command was interrupted")
    text = None if code is None else str(code)
    return Finished(command.execution, code, text, *error, "", changes.between(before, changes.listing()), processes.others())


def _exit_code(command: Command) -> int:
    try:
        process = subprocess.Popen(command.arguments, stdin=subprocess.PIPE, cwd=place.data, start_new_session=True)
    except OSError as error:
        os.write(2, f"{command.arguments[0]}: {error.strerror}\n".encode())
        return _NOT_FOUND if isinstance(error, FileNotFoundError) else _NOT_EXECUTABLE
    try:
        process.communicate(command.stdin.encode())
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    return process.returncode if process.returncode >= 0 else _BY_SIGNAL - process.returncode
