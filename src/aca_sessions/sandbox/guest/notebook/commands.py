"""Run programs in a session: commands in place of a cell, `!` lines in a cell, and `%%bash` cells."""

from __future__ import annotations

import ast
import codecs
import contextlib
import functools
import os
import re
import select
import selectors
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any, TextIO, TypeVar

from IPython.core.inputtransformer2 import TransformerManager
from IPython.core.magics.script import ScriptMagics
from IPython.utils.process import arg_split  # type: ignore[attr-defined]

from ...wire import Command, Finished, Message, Started
from ..folders import session_folders
from ..link import interrupts
from . import changes

_Process = subprocess.Popen[bytes]
_Result = TypeVar("_Result")
_Utf8Decoder = codecs.getincrementaldecoder("utf-8")
_CHUNK = 1 << 16
# A process group, and if possible no session: with setsid(2) the program would get a share of the processors of its own, see sched(7).
_OWN_GROUP: dict[str, Any] = {"process_group": 0} if sys.version_info >= (3, 11) else {"start_new_session": True}
_NOT_FOUND, _NOT_EXECUTABLE = 127, 126
_BY_SIGNAL = 128  # a shell reports a death by signal N as 128 + N
# pip is not in the list: it refuses by itself, see children/no_pip.py.
_INSTALLER = re.compile(r"\s*(?:uv|conda|mamba|micromamba)\s+(?:pip\s+)?(?:install|add|sync)\b")


def run_command(command: Command, send: Callable[[Message], None]) -> Finished:
    """Run a program in place of a cell. Return a cell's result, whose value is the exit code.

    An interrupt kills the program's process group. The error of the result is then KeyboardInterrupt. `send` sends a message to the host.
    """
    before = changes.list_files()
    error: tuple[str | None, str] = (None, "")
    code = None
    try:
        with interrupts.allowed():
            send(Started(command.execution))
            code = _exit_code(command)
    except KeyboardInterrupt:
        error = ("KeyboardInterrupt", "the command was interrupted")
    text = None if code is None else str(code)
    return Finished(command.execution, code, text, *error, "", changes.file_changes(before, changes.list_files()), changes.list_processes())


def _exit_code(command: Command) -> int:
    text = command.stdin.encode()
    try:
        status, _ = _run(command.arguments, lambda process: process.communicate(text), stdin=subprocess.PIPE, cwd=session_folders.data)
    except OSError as error:
        os.write(2, f"{command.arguments[0]}: {error.strerror}\n".encode())
        return _NOT_FOUND if isinstance(error, FileNotFoundError) else _NOT_EXECUTABLE
    return status if status >= 0 else _BY_SIGNAL - status


def _run(program: str | list[str], attend: Callable[[_Process], _Result], **options: Any) -> tuple[int, _Result]:
    """Start a program in a process group of its own, call `attend` with it and wait until it ends.

    If this is interrupted or fails, kill the process group. `options` are those of `subprocess.Popen`. Return the exit status, or -N if
    signal N killed the program, and the result of `attend`.
    """
    # Delayed, because an interrupt inside of Popen would leave a program that runs on, and no way to find it.
    with interrupts.delayed(), subprocess.Popen(program, **_OWN_GROUP, **options) as process:
        try:
            with interrupts.not_delayed():
                result = attend(process)
                return process.wait(), result
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if isinstance(error, KeyboardInterrupt):
                raise error.with_traceback(None)  # noqa: B904  # the frames below this one only wait
            raise


def _run_in_shell(command: str, attend: Callable[[_Process], _Result], **options: Any) -> tuple[int, _Result]:
    return _run(command, attend, shell=True, executable=os.environ.get("SHELL"), **options)  # noqa: S604


def read_output(command: str) -> tuple[str, int]:
    """Run a command in a shell. Return what it wrote to stdout and stderr, and its exit status, or -N if signal N killed it."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    status, (output, _) = _run_in_shell(command, lambda process: process.communicate(), **pipes)
    return output.decode(errors="replace"), status


class Scripts(ScriptMagics):
    """The magics `%%script`, `%%bash` and such. Unlike with IPython's own class, an interrupt kills the program and ends the cell."""

    shell: Any

    @functools.wraps(ScriptMagics.shebang)  # for IPython, which reads the parser of the line from it, and for `%%script?`
    def shebang(self, line: str, cell: str) -> None:
        """Run a program with `cell` as its stdin. `line` is the program, its arguments and the options of the magic."""
        options, program = self.shebang.parser.parse_known_args(arg_split(line, posix=True))  # type: ignore[attr-defined]
        if options.bg or not program:
            super().shebang(line, cell)
            return
        text = (cell if cell.endswith("\n") else f"{cell}\n").encode(errors="replace")
        show_output, show_errors = self._printer(sys.stdout, options.out), self._printer(sys.stderr, options.err)
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        try:
            status, _ = _run(program, lambda process: _communicate(process, text, show_output, show_errors), **pipes)
        except FileNotFoundError:
            print(f"Couldn't find program: {program[0]!r}")
            return
        if status and options.raise_error:
            raise subprocess.CalledProcessError(status, text)

    def _printer(self, stream: TextIO, variable: str | None) -> Callable[[str], None]:
        """Return a function that writes text to a stream, or if `variable` is given, appends it to this variable."""
        names = self.shell.user_ns
        if variable:
            names[variable] = ""

        def show(text: str) -> None:
            if variable:
                names[variable] += text
            else:
                stream.write(text)
                stream.flush()

        return show


def _communicate(process: Any, text: bytes, show_output: Callable[[str], None], show_errors: Callable[[str], None]) -> None:
    """Write `text` to a program's stdin. Show what it writes as soon as it does, until it has closed its stdout and stderr."""
    rest = memoryview(text)
    with selectors.DefaultSelector() as pending:
        pending.register(process.stdin, selectors.EVENT_WRITE)
        for pipe, show in ((process.stdout, show_output), (process.stderr, show_errors)):
            pending.register(pipe, selectors.EVENT_READ, (_Utf8Decoder("replace"), show))
        while pending.get_map():
            for key, _ in pending.select():
                if key.data is not None:
                    decoder, show = key.data
                    data = os.read(key.fd, _CHUNK)
                    show(decoder.decode(data, final=not data))
                    if not data:
                        pending.unregister(key.fileobj)
                    continue
                try:
                    rest = rest[os.write(key.fd, rest[: select.PIPE_BUF]) :]  # a pipe that is ready takes so much without waiting
                except BrokenPipeError:  # the program does not read all of it
                    rest = rest[:0]
                if not rest:
                    pending.unregister(key.fileobj)
                    process.stdin.close()


class CellTransformer(TransformerManager):
    """Translates IPython's syntax in cells, such as `%pwd`, `!ls` and `str?`, to Python."""

    _PLAIN = TransformerManager().token_transformers  # type: ignore[no-untyped-call]

    def do_token_transforms(self, lines: list[str]) -> list[str]:
        """Translate IPython's commands in the lines of a cell to Python. Return the lines unchanged if they cannot contain a command.

        IPython's own method would split every cell into tokens to search for commands.
        """
        if self.token_transformers == self._PLAIN and not any(map(_may_hold_command, lines)):
            return lines
        return super().do_token_transforms(lines)  # type: ignore[no-any-return, no-untyped-call]


def _may_hold_command(line: str) -> bool:
    return "%" in line or "!" in line or "?" in line or line.lstrip()[:1] in (",", ";", "/")


class ShellCommand:
    """Runs the `!` commands of one statement of a cell, and stores the last one and its exit status."""

    def __init__(self) -> None:
        self.is_last_statement = False
        self._command = ""
        self._status = 0

    def run(self, command: str) -> int:
        """Run a command in a shell, but refuse `uv` and `conda` installs. Return the exit status, or -N if signal N killed the command."""
        self._command = command
        if _INSTALLER.match(command):
            status, _ = _run([sys.executable, "-m", "pip", "install"], lambda process: process.wait())  # prints what to use instead
        else:
            status, _ = _run_in_shell(command, lambda process: process.wait())
        self._status = status if status <= _BY_SIGNAL else _BY_SIGNAL - status
        return self._status

    def failure(self) -> subprocess.CalledProcessError | None:
        """Return an error if the cell's last statement is a `!` or `%` line whose command failed, else None.

        Failures of `!` commands in earlier statements are ignored, because they may be intended.
        """
        if self._status == 0 or not self.is_last_statement:
            return None
        return subprocess.CalledProcessError(self._status, self._command)


def is_command(statement: ast.stmt | None) -> bool:
    """Return whether IPython translated a statement from a `!` or `%` line, for example to `get_ipython().system('ls')`."""
    call = statement.value if isinstance(statement, ast.Expr) else None
    function = call.func if isinstance(call, ast.Call) else None
    if not isinstance(function, ast.Attribute) or function.attr not in ("system", "run_line_magic"):
        return False
    return ast.unparse(function.value) == "get_ipython()"
