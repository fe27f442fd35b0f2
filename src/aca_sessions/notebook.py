"""Notebook magics: `%%session` and `%session` run code in an isolated session; `%session_get`, `%session_put` and others manage it.

IPython does not await magics, and the notebook runs an event loop of its own. So sessions run on another loop, in a thread.

Completions and help inside code of a session come from that session. The kernel's own IPython would look for the notebook's variables.
"""

import atexit
import contextlib
import getpass
import math
import re
import secrets
import shlex
import signal
import sys
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from functools import partial, wraps
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import anyio
from anyio.from_thread import BlockingPortal
from IPython.core.completer import Completion
from IPython.core.error import StdinNotImplementedError, UsageError
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import Magics, line_cell_magic, line_magic, magics_class, no_var_expand
from IPython.core.magic_arguments import argument, magic_arguments, parse_argstring
from IPython.display import clear_output, display

from .client.pool import SessionPool
from .client.session import Session
from .connect import open_pool, settings_for_notebook
from .errors import ACASessionsError, NotFoundError, ServiceError
from .guest_text import for_terminal, printable, shown_caption, shown_name
from .hints import Remedies, hint
from .interactive import CellError, InteractiveSession, LiveCell, LoopThread, handle_ctrl_c
from .lifetime import OwnerProcess
from .models import Checkpoint, CodeExecutionResult, Prompt
from .rendering import CANNOT_ASK, NO_WIDGETS, STILL_RUNS, CellView, Html
from .transfer import checked_name, is_plain, pass_in, pass_out

_DEFAULT = "notebook"
_LEFT = "[session state unknown: the notebook did not wait for the result]"
_NAME = argument("-n", "--name", default=_DEFAULT, metavar="NAME", help="the session (default: notebook)")
_VARIABLES = r"(?<!\S)(-[io]|--input|--output)(\s+|=)([^\s,]+(?:\s*,\s*[^\s,]+)*)"  # an option and its variables: `-i a, b`
# What may stand before the code of a line: options with their values.
_LINE_OPTIONS = re.compile(rf"\s*(?:(?:{_VARIABLES}|(?:-n|--(?:name|file|timeout|html))(?:\s+|=)(?:\"[^\"]*\"|'[^']*'|\S+))\s+)*(?=\S|$)")
_NAME_AFTER_VARIABLES = re.compile(rf"{_VARIABLES}\s+(?!-)(\S+)")
# A path below /mnt/data at the end of a message about a missing file, of Python or polars. Other paths are not looked for on this machine.
_NO_FILE = re.compile(r"No such file or directory.{0,20}: '?(?:/mnt/data/)?(\w[\w./ -]{0,200}[\w])'?\Z")
_CELL = re.compile(r"\s*%%session(?P<line>(?:[ \t][^\n]*)?)\n")
_LINE = re.compile(r"[ \t]*(?:[^\n%#'\"]*=[ \t]*)?%session[ \t]+")
_OPTION = re.compile(r"[ \t]*(?:[^\n%#'\"]*=[ \t]*)?%%?session[ \t](?:.*[ \t])?(?P<word>-[\w-]*)\Z")
_ANSWER_SECONDS = 5.0  # that completions and help block the kernel
_MOST_NAMED, _MOST_MATCHES, _LONGEST_MATCH = 10, 200, 500  # sessions in a message, completions, and characters of one
_NOT_RETURNED = "the value is not returned to the notebook, only a number, a bool or text: `%session -o NAME` copies a variable"
_UNDEFINED = re.compile(r"name '(\w+)' is not defined")

Answer = TypeVar("Answer")


def load(shell: object) -> None:
    """Register the magics in a shell of IPython. The first magic that is used opens the pool.

    `%reload_ext` changes nothing, because new magics would not have the sessions.
    """
    if isinstance(shell, InteractiveShell) and SessionMagics.__name__ not in shell.magics_manager.registry:
        shell.register_magics(SessionMagics(shell))


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ArgumentTypeError(f"must be a number of seconds above 0, got {text!r}")
    return seconds


@magics_class
class SessionMagics(Magics):
    """Magics for sessions by name. All of them share one pool."""

    def __init__(self, shell: InteractiveShell) -> None:
        super().__init__(shell)
        for magics in self.magics.values():
            magics.update({name: _with_help(magic) for name, magic in magics.items()})
        self._shell = shell
        self._stack = ExitStack()
        self._opened: tuple[BlockingPortal, SessionPool] | None = None
        self._sessions: dict[str, Session] = {}  # with their histories, which %session_export writes
        self._secret = secrets.token_bytes(16)
        self._timeout: float | None = None
        self._html: dict[str, Html] = {}  # for each session, what `--html` said last
        self._in_use: set[str] = set()  # sessions that run something for this notebook
        self._asked: Future[Any] | None = None  # the latest request for completions or help
        completer: Any = shell.Completer
        self._complete_here, completer.completions = completer.completions, self._complete
        if (kernel := getattr(shell, "kernel", None)) is not None:
            self._inspect_here, kernel.do_inspect = kernel.do_inspect, self._inspect

    @no_var_expand  # `{x}` of the code is the session's
    @magic_arguments()
    @argument("positional", nargs="?", metavar="NAME", help="the session, in a cell; its variables and files are kept from cell to cell")
    @_NAME
    @argument("-i", "--input", action="append", default=[], metavar="VARIABLE", help="set a variable of the session first; may be repeated")
    @argument("-o", "--output", action="append", default=[], metavar="VARIABLE", help="set a variable here afterwards; may be repeated")
    @argument("--file", action="append", default=[], metavar="PATH", help="a file to copy to /mnt/data first; may be repeated")
    @argument("--timeout", type=_seconds, metavar="SECONDS", help="interrupt the cell after this time")
    @argument("--html", choices=("clean", "raw"), help="raw lets scripts of this and later cells run, in frames, with your network")
    @line_cell_magic
    def session(self, line: str, cell: str | None = None) -> object:
        """Run a cell in an isolated session, and show what it writes and displays while it runs.

        `%session CODE` runs one line, and returns its value if that is a number, a bool or text. Write options before the code.
        `%session -o VARIABLE` without code only copies variables or files.
        """
        if cell is None:
            found = _LINE_OPTIONS.match(f"{line} ")
            end = found.end() if found else 0
            options, code = _parsed(self.session, line[:end]), line[end:]
            if not (code or options.input or options.output or options.file):
                raise UsageError("%session needs code on its line: use %%session for a cell")
            return self._run(options, code, returns=True, is_assigned=self._is_assigned(line))
        line = self._shell.var_expand(line)
        options = _parsed(self.session, line)
        self._check_name_after_variables(options, line)
        return self._run(options, cell.removesuffix("\n"), returns=False)

    def _is_assigned(self, line: str) -> bool:
        """Return whether the notebook's cell assigns the value of `%session` with this line. IPython does not say it to a magic."""
        source = self._shell.history_manager.input_hist_raw[-1] if self._shell.history_manager else ""
        return re.search(rf"^[^\n%#'\"]*=[ \t]*%session[ \t]+{re.escape(line.strip())}[ \t]*$", source, re.MULTILINE) is not None

    def _run(self, options: Namespace, code: str, *, returns: bool, is_assigned: bool = False) -> object:
        files = [(Path(path).name, _content(Path(path), "--file")) for path in options.file]
        inputs, outputs = _names(options.input), _names(options.output)
        for name in inputs:
            if name not in self._shell.user_ns:
                raise UsageError(f"-i {name}: this notebook has no variable of that name")
        with self._leased(options.name) as session:
            for file, content in files:
                session.upload_file(file, content)
            html = self._html[options.name] = options.html or self._html.get(options.name, "clean")
            shown = Shown(self._shell, html, self._secret + options.name.encode())
            for name in inputs:
                if set_by := session._call(partial(pass_in, name=name, value=self._shell.user_ns[name])):
                    shown.finish(set_by)
            result = None
            if code or not returns:
                timeout = options.timeout or self._timeout
                advise = partial(self._advise, options.name, is_assigned=is_assigned)
                result = shown.run(session, code, timeout, shows_plain=not returns, advise=advise)
            for name in outputs:
                self._shell.push({name: session._call(partial(pass_out, name=name))})
            return result.value if result is not None and returns and is_plain(result) else None

    @magic_arguments()
    @argument("positional", nargs="?", metavar="NAME", help="the session")
    @_NAME
    @line_magic
    def session_files(self, line: str) -> list[str]:
        """Return the names of the files in a session's /mnt/data."""
        with self._leased(_parsed(self.session_files, line).name, starts=False) as session:
            return [file.name for file in session.list_files()]

    @magic_arguments()
    @argument("positional", nargs="?", metavar="NAME", help="the session")
    @_NAME
    @line_magic
    def session_reset(self, line: str) -> None:
        """End a session by name. The next cell with that name starts a new one."""
        name = _parsed(self.session_reset, line).name
        portal, pool = self._open()
        unknown = self._describe_unknown(name)
        self._sessions.pop(name, None), self._html.pop(name, None)
        portal.call(pool.terminate, name)
        print(unknown or f"the session {shown_name(name)} was ended: its next cell starts a new one")

    @magic_arguments()
    @_NAME
    @argument("file", help="a file in the session's /mnt/data")
    @argument("target", nargs="?", default=".", help="a file or folder on this machine (default: the current folder)")
    @line_magic
    def session_get(self, line: str) -> Path:
        """Copy a file from the session to this machine and return its path here. An existing file at that path is replaced.

        Missing folders of the path are created. A path that ends with `/` is a folder.
        """
        options = _parsed(self.session_get, line)
        target = Path(options.target)
        target = target / Path(options.file).name if target.is_dir() or options.target.endswith("/") else target
        with self._leased(options.name, starts=False) as session:
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                session.save_file(options.file, target)
            except NotFoundError as error:
                raise UsageError(f"the session has no file {shown_name(options.file)}: %session_files lists those that it has") from error
            except OSError as error:
                raise UsageError(f"{target} cannot be written: {error.strerror}") from error
        return target

    @magic_arguments()
    @_NAME
    @argument("file", help="a file on this machine")
    @argument("target", nargs="?", help="its name in the session's /mnt/data (default: the same)")
    @line_magic
    def session_put(self, line: str) -> None:
        """Copy a file into the session's /mnt/data."""
        options = _parsed(self.session_put, line)
        path = Path(options.file)
        target = options.target or path.name
        with self._leased(options.name) as session:
            try:
                session.upload_file(target, path)
            except OSError as error:
                raise UsageError(f"{path} cannot be read: {error.strerror}") from error
        print(f"copied to the session {shown_name(options.name)}: {shown_name(target)}")

    @magic_arguments()
    @_NAME
    @argument("package", nargs="+", help="a requirement, such as humanize or 'humanize>=4'")
    @line_magic
    def session_install(self, line: str) -> None:
        """Install packages in the session."""
        options = _parsed(self.session_install, line)
        with self._leased(options.name) as session:
            result = session.install(*options.package)
            Shown(self._shell, "clean", self._secret).finish(result, is_streamed=False)

    @magic_arguments()
    @_NAME
    @argument("checkpoint", nargs="?", help="a name for it")
    @line_magic
    def session_checkpoint(self, line: str) -> None:
        """Take a checkpoint of the session's variables and files."""
        options = _parsed(self.session_checkpoint, line)
        with self._leased(options.name) as session:
            print(f"taken: {_described(session.checkpoint(options.checkpoint))}")

    @magic_arguments()
    @argument("positional", nargs="?", metavar="NAME", help="the session")
    @_NAME
    @line_magic
    def session_checkpoints(self, line: str) -> None:
        """List the session's checkpoints, the oldest first."""
        with self._leased(_parsed(self.session_checkpoints, line).name, starts=False) as session:
            print("\n".join(map(_described, session.checkpoints())) or "no checkpoint")

    @magic_arguments()
    @_NAME
    @argument("checkpoint", nargs="?", help="its name or id (default: the latest)")
    @line_magic
    def session_rollback(self, line: str) -> None:
        """Roll the session's variables and files back to a checkpoint."""
        options = _parsed(self.session_rollback, line)
        with self._leased(options.name, starts=False) as session:
            print(f"back at {_described(session.rollback(options.checkpoint))}")

    @magic_arguments()
    @_NAME
    @argument("file", help="an .ipynb file, or a .py file for the cells alone")
    @line_magic
    def session_export(self, line: str) -> Path:
        """Write the session's cells, outputs and uploaded files as a notebook, or only the cells as a .py file. Return the path."""
        options = _parsed(self.session_export, line)
        path = Path(options.file)
        if path.suffix not in (".ipynb", ".py"):
            raise UsageError(f"%session_export writes an .ipynb or a .py file, got {path.name!r}")
        with self._leased(options.name, starts=False) as session:
            try:
                (session.write_script if path.suffix == ".py" else session.write_notebook)(path)
            except OSError as error:
                raise UsageError(f"{path} cannot be written: {error.strerror}") from error
        return path

    def _find_code(self, text: str, cursor: int) -> tuple[str, int, int] | None:
        """Return the session in whose code the cursor is, and the positions where this code begins and ends. Return None elsewhere."""
        if (cell := _CELL.match(text)) is not None:
            options, begin, end = cell["line"], cell.end(), len(text)
        else:
            start, end = text.rfind("\n", 0, cursor) + 1, text.find("\n", cursor)
            end = len(text) if end < 0 else end
            if (line := _LINE.match(text, start, end)) is None:
                return None
            found = _LINE_OPTIONS.match(f"{text[line.end() : end]} ")
            begin = min(line.end() + (found.end() if found else 0), end)
            options = text[line.end() : begin]
        try:
            return (_parsed(self.session, options).name, begin, end) if cursor >= begin else None
        except UsageError:
            return None

    def _complete(self, text: str, cursor: int) -> Iterator[Completion]:
        """Yield completions at the cursor, as the method `completions` of IPython's completer does."""
        place = self._find_code(text, cursor)
        option = _OPTION.match(text, text.rfind("\n", 0, cursor) + 1, cursor)
        if option is not None and (place is None or place[1] == option.start("word")):
            parser: Any = self.session.parser
            names = [name for action in parser._actions for name in action.option_strings]
            yield from (Completion(option.start("word"), cursor, name) for name in names if name.startswith(option["word"]))
        elif place is not None:
            yield from self._complete_in_session(text, cursor, *place)
        else:
            yield from self._complete_here(text, cursor)

    def _complete_in_session(self, text: str, cursor: int, name: str, begin: int, end: int) -> Iterator[Completion]:
        """Yield completions from a session: only those that continue the typed text, and stay code of the session.

        Code in the session can offer any completions. One that begins with `--file` must not become an option of the magic.
        """
        found = self._ask(name, lambda session: session.complete(text[begin:end], cursor - begin))
        if found is None or not 0 <= found.start <= cursor - begin == found.end:
            return
        start = begin + found.start
        typed = text[start:cursor]
        for match in found.matches[:_MOST_MATCHES]:
            continues = match.casefold().startswith(typed.casefold()) or typed.startswith("\\")
            if len(match) <= _LONGEST_MATCH and match.isprintable() and continues and "\n" not in typed:
                made = self._find_code(text[:start] + match + text[cursor:], start + len(match))
                if made is not None and made[:2] == (name, begin):
                    yield Completion(start, cursor, match)

    def _inspect(self, code: str, cursor_pos: int, detail_level: int = 0, omit_sections: tuple[str, ...] = ()) -> Any:
        """Reply to the kernel's request for help about the name at the cursor (Shift+Tab)."""
        place = self._find_code(code, cursor_pos)
        if place is None:
            return self._inspect_here(code, cursor_pos, detail_level, omit_sections)
        name, begin, end = place
        text = self._ask(name, lambda session: session.inspect(code[begin:end], cursor_pos - begin, detail=detail_level))
        data = {} if text is None else {"text/plain": for_terminal(text)}
        return {"status": "ok", "found": text is not None, "data": data, "metadata": {}}

    def _ask(self, name: str, question: Callable[[Session], Coroutine[Any, Any, Answer]]) -> Answer | None:
        """Return a session's answer. Return None if it has not started, is in use, does not answer in time, or fails."""
        if self._opened is None or name not in self._sessions or name in self._in_use:
            return None
        portal, pool = self._opened

        async def ask() -> Answer | None:
            try:
                async with pool.session(name):
                    return await question(self._sessions[name])
            except ACASessionsError:
                return None

        # A late answer is awaited until the next cell: asking again would begin it anew.
        if self._asked is not None and not self._asked.done() and wait([self._asked], _ANSWER_SECONDS).not_done:
            return None
        self._asked = asked = portal.start_task_soon(ask)
        return asked.result() if wait([asked], _ANSWER_SECONDS).done else None

    def _check_name_after_variables(self, options: Namespace, line: str) -> None:
        """Raise UsageError for `-i a b` if the notebook has no session `b`: probably both words were meant as variables."""
        name = options.positional
        found = [match for match in _NAME_AFTER_VARIABLES.finditer(line) if _unquoted(match[4]) == name]
        if found and name not in self._sessions:
            option, variables = found[0][1], found[0][3]
            raise UsageError(
                f"`{name}` would be a new session: write several variables as `{option} {variables},{name}`, "
                f"or the name of the session first, as `{name} {option} {variables}`"
            )

    def _describe_unknown(self, name: str) -> str:
        """Return a message that lists the sessions, or '' if there is a session of that name.

        Also return '' for sessions at an endpoint, because other programs may have started them there.
        """
        if name in self._sessions or self._open()[1].access.network is None:
            return ""
        names = [*map(shown_name, self._sessions)][-_MOST_NAMED:]
        known = ", ".join(names) or "none yet, a cell with %%session starts one"
        return f"unknown session {shown_name(name)}: this notebook has {known}"

    def _advise(self, name: str, result: CodeExecutionResult, *, is_assigned: bool = False) -> str:
        if is_assigned and result.error is None and result.text is not None and not is_plain(result):
            return _NOT_RETURNED
        if result.error is not None and result.error.name == "NameError" and (found := _UNDEFINED.match(result.error.message)):
            value = None if found[1] in self._shell.user_ns_hidden else self._shell.user_ns.get(found[1])
            if value is not None and not callable(value) and not isinstance(value, ModuleType):
                return f"{found[1]} is a variable of the notebook: pass it in with -i {found[1]}"
        if result.error is not None and result.error.name == "ImportError" and "IProgress not found" in result.error.message:
            return NO_WIDGETS
        option = "" if name == _DEFAULT else f"-n {name} "
        remedies = Remedies(
            f"install a missing package with %session_install {option}PACKAGE",
            f"bring data in with %session_put {option}PATH",
            f"a session sees no files of this machine: copy them in with %session_put {option}{_missing_file(result) or 'PATH'}",
        )
        return hint(result, self._open()[1]._access_of(name), remedies)

    @contextmanager
    def _leased(self, name: str, *, starts: bool = True) -> Iterator[InteractiveSession]:
        """Lease the session with this name for a `with` block. Convert this package's errors, except CellError, to UsageError.

        If `starts` is false, raise UsageError if the notebook has no session of that name. IPython shows a UsageError without a traceback.
        """
        portal, pool = self._open()
        if not starts and (unknown := self._describe_unknown(name)):
            raise UsageError(unknown)
        leased: Future[Session] = Future()

        async def hold() -> None:
            try:
                async with pool.session(name) as session:
                    self._sessions[name] = self._sessions.pop(name, session)  # the latest is the last
                    leased.set_result(self._sessions[name])
                    await anyio.sleep_forever()
            except Exception as error:
                if not leased.done():
                    leased.set_exception(error)

        holding = portal.start_task_soon(hold)
        self._in_use.add(name)
        if self._asked is not None:
            self._asked.cancel()
        try:
            session = InteractiveSession._wrap(portal, leased.result())
            with contextlib.closing(session):
                yield session
        except CellError:
            raise
        except ACASessionsError as error:
            message = error.message if isinstance(error, ServiceError) else str(error)
            raise UsageError(printable(message, colours=False)) from error
        finally:
            self._in_use.discard(name)
            holding.cancel()  # ends the lease, also if the wait for it was interrupted

    def _open(self) -> tuple[BlockingPortal, SessionPool]:
        """Open the pool if it is not open."""
        if self._opened is None:
            try:
                settings, self._timeout = settings_for_notebook()
                portal = self._stack.enter_context(LoopThread())
                opening: AbstractContextManager[SessionPool] = portal.wrap_async_context_manager(open_pool(settings))
                self._opened = portal, self._stack.enter_context(opening)
            except ACASessionsError as error:
                raise UsageError(printable(str(error), colours=False)) from error
            atexit.register(_close_here, self._stack, OwnerProcess())
        return self._opened


def _close_here(stack: ExitStack, owner: OwnerProcess) -> None:
    """Close the stack if this process opened it. In a forked process, do nothing: the event loop's thread does not exist there."""
    if owner.is_current:
        stack.close()


def _with_help(magic: Callable[..., object]) -> Callable[..., object]:
    """Return a magic that prints its help if its line is `-h` or `--help`, and otherwise calls `magic`. Options need their whole names."""
    magic.parser.allow_abbrev = False  # type: ignore[attr-defined]

    @wraps(magic)
    def call(line: str, *cell: str) -> object:
        return print(magic.__doc__) if line.strip() in ("-h", "--help") else magic(line, *cell)

    return call


def _parsed(magic: Any, line: str) -> Namespace:
    """Parse the arguments of a magic, and remove the quotes around them, which IPython leaves there."""
    line = re.sub(_VARIABLES, lambda found: found[1] + found[2] + "".join(found[3].split()), line)
    try:
        options: Namespace = parse_argstring(magic, line)
    except UsageError as error:
        raise UsageError(f"{error}: %{magic.__name__} -h prints the options") from error
    for key, value in vars(options).items():
        if isinstance(value, str | list):
            setattr(options, key, _unquoted(value) if isinstance(value, str) else [_unquoted(one) for one in value])
    options.name = getattr(options, "positional", None) or options.name
    return options


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


def _names(given: list[str]) -> list[str]:
    try:
        return [checked_name(name) for text in given for name in text.split(",") if name]
    except ACASessionsError as error:
        raise UsageError(str(error)) from error


def _missing_file(result: CodeExecutionResult) -> str:
    """Return the arguments of %session_put for the file that a cell missed, if it is in this notebook's folder or below it. Else return ''.

    Only the notebook's user may learn this, so it must not be in any text that a session or model reads.
    """
    found = _NO_FILE.search(result.error.message) if result.error is not None else None
    if found is None or any(part.startswith(".") for part in Path(found[1]).parts) or not Path(found[1]).is_file():
        return ""
    path = shlex.quote(found[1])
    return path if "/" not in path else f"{path} {path}"


def _content(path: Path, option: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{option} {path} cannot be read: {error.strerror}") from error


def _described(checkpoint: Checkpoint) -> str:
    left = f" (not kept: {', '.join(map(shown_caption, checkpoint.left_behind))})" if checkpoint.left_behind else ""
    name = f" {shown_name(checkpoint.name)}" if checkpoint.name is not None else ""
    return f"checkpoint {checkpoint.id}{name}{left}"


class Shown(CellView):
    """The view of one cell in the current output of a shell of IPython."""

    def __init__(self, shell: InteractiveShell, html: Html, secret: bytes) -> None:
        """Prepare to show a cell. `html` and `secret` are as in CellView."""
        super().__init__(html, secret, runs_scripts="--html=raw")
        self._shell = shell

    def run(
        self,
        session: InteractiveSession,
        code: str,
        timeout: float | None,
        *,
        shows_plain: bool,
        advise: Callable[[CodeExecutionResult], str],
    ) -> CodeExecutionResult:
        """Run a cell and show its output. Return its result, or raise CellError if it failed.

        Interrupting the notebook's kernel interrupts the cell. Only a second interrupt may kill the interpreter.
        `shows_plain` is whether to show a plain value, such as a number. `advise` returns the hint for a result.
        """
        # The kernel knows by this attribute whether the frontend can ask, which nbclient and papermill cannot.
        can_ask = getattr(getattr(self._shell, "kernel", None), "_allow_stdin", True)

        def answer(prompt: Prompt) -> str | None:
            return self._answer(cell, prompt)

        cell: LiveCell = session.stream(code, timeout=timeout, on_input=answer if can_ask else None, sanitize=False)
        result = None
        try:
            with cell.interrupted_by_ctrl_c(on_delay=partial(self.note, STILL_RUNS)):
                for event in cell:
                    self.show(event)
                    result = event.result
        except KeyboardInterrupt:
            self.note(_LEFT)
            raise
        if result is None:
            raise UsageError("the session's loop was stopped while the cell ran, so its result is lost: restart the kernel")
        advice = CANNOT_ASK if not can_ask and result.error is not None and result.error.name == "EOFError" else advise(result)
        return self.finish(replace(result, hint=advice), shows_value=shows_plain or not is_plain(result))

    def finish(self, result: CodeExecutionResult, *, is_streamed: bool = True, shows_value: bool = True) -> CodeExecutionResult:
        """Show the end of a cell like CellView. Then raise CellError if the cell failed."""
        result = super().finish(result, is_streamed=is_streamed, shows_value=shows_value)
        if result.error is not None:
            raise CellError.of(result)
        return result

    def _show_text(self, stream: str, text: str) -> None:
        if stream == "stderr":
            sys.stdout.flush()
        print(text, end="", file=sys.stdout if stream == "stdout" else sys.stderr)
        if stream == "stderr":
            sys.stderr.flush()

    def _show_data(self, data: Mapping[str, str], id: str | None, *, update: bool, is_value: bool) -> None:
        display(data, raw=True, **({} if id is None else {"display_id": id, "update": update}))

    def _clear(self, *, wait: bool) -> None:
        clear_output(wait=wait)

    def _show_value(self, result: CodeExecutionResult) -> None:
        """Show the result's value as the notebook's `Out`. Also set `_` to it if it is a plain value, such as a number."""
        hook: Any = self._shell.displayhook
        hook.start_displayhook()
        hook.write_output_prompt()
        hook.write_format_data({"text/plain": for_terminal(result.text or "")}, {})
        if is_plain(result):
            hook.update_user_ns(result.value)
        hook.finish_displayhook()

    def _answer(self, cell: LiveCell, prompt: Prompt) -> str | None:
        """Return the line that the user types for the session's `input()` or `getpass()`.

        Return None at the end of input, or after an interrupt, which also interrupts the cell.
        """
        asked = f"the session asks: {self.question(prompt)}"
        try:
            with handle_ctrl_c(signal.default_int_handler):
                return getpass.getpass(asked) if prompt.password else input(asked)
        except (EOFError, StdinNotImplementedError):
            return None
        except KeyboardInterrupt:
            cell.cancel()
            return None
