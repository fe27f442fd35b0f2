"""The command `aca-sessions run`: run a cell or a file, print its result, and copy files out of the session."""

import argparse
import asyncio
import base64
import contextlib
import getpass
import itertools
import json
import os
import re
import signal
import stat
import sys
import tomllib
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TypeVar

from ..client.executions import AnswerInput, Execution, events_of
from ..client.interpreter import CodeInterpreter
from ..client.session import Session
from ..connect import access_of, open_interpreter
from ..contract.extensions import encode_full_result
from ..errors import ACASessionsError, ConfigurationError, InvalidArgumentError, NotFoundError
from ..guest_text import TerminalFilter, printable, shown_name
from ..hints import Remedies, hint
from ..interactive import handle_ctrl_c
from ..models import CodeExecutionResult, Display, Event, Prompt, State
from ..network.denials import Answer, Denial, OnDenied
from ..rendering import hint_note, split_traceback, state_note
from ..settings import Settings
from .sessions import reserved, settings_at, settings_with_endpoint
from .streams import code_from_argument, code_from_input, is_closed, progress, standard_input, write_error

_SUCCESSES = ("", "0", "None")  # messages of a SystemExit that counts as success
_EXIT_NUMBER = re.compile("-?[0-9]{1,10}")
_IMAGES = {"image/png": "png", "image/jpeg": "jpg", "image/gif": "gif"}  # without SVG, which may hold scripts

Question = TypeVar("Question")
Reply = TypeVar("Reply")


def show(result: CodeExecutionResult) -> None:
    """Print the result of a cell that has ended, and save its images in the current folder."""
    printer = CellPrinter()
    for event in events_of(result):
        printer.print_event(event)
    printer.finish(result, *save_images(result, Path()))


def show_json(result: CodeExecutionResult) -> None:
    """Print the result of a cell as one line of JSON."""
    shown = {
        "success": result.success,
        "exit_code": program_exit_code(result),
        "duration": result.duration,
        **encode_full_result(result),
        "state": str(result.state),
        "hint": result.hint,
    }
    print(json.dumps(shown), flush=True)


def program_exit_code(result: CodeExecutionResult) -> int:
    """Return the exit code that Python would have after the cell: the number of `sys.exit`, 0 after a success, otherwise 1."""
    message = _exit_message(result)
    if message is None:
        return result.exit_code
    if message in _SUCCESSES:
        return 0
    return int(message) & 0xFF if _EXIT_NUMBER.fullmatch(message) else 1


def as_program(result: CodeExecutionResult) -> CodeExecutionResult:
    """Return the result of a cell that called `sys.exit` with what Python shows then: the text that was given, and nothing for a number.

    Return other results unchanged.
    """
    message = _exit_message(result)
    if message is None or result.error is None:
        return result
    text = "" if message in _SUCCESSES or _EXIT_NUMBER.fullmatch(message) else f"{message}\n"
    error = replace(result.error, traceback=text) if program_exit_code(result) else None
    return replace(result, stderr=result.written_to_stderr + text, error=error)


def _exit_message(result: CodeExecutionResult) -> str | None:
    return result.error.message if result.error is not None and result.error.name == "SystemExit" else None


def save_images(result: CodeExecutionResult, folder: Path, taken: Collection[str] = ()) -> Iterator[str]:
    """Save each image of a result as a new file `image-NUMBER` in a folder. Yield a message for the user about each image.

    The message has the path, or says why the image was not saved. The names in `taken` are not used.
    """
    images = ((ending, content) for one in result.displays for kind, ending in _IMAGES.items() if (content := one.data.get(kind)))
    for ending, content in images:
        try:
            yield f"[image saved: {_save_image(base64.b64decode(str(content)), folder, ending, taken)}]"
        except (OSError, ValueError) as error:  # code in the session may display anything as an image
            yield f"[image not saved: {error.strerror if isinstance(error, OSError) else 'it is not an image'}]"


class CellPrinter:
    """Prints the output of one cell: text and displays while the cell runs, and its value and error when it has ended."""

    def __init__(self, *, shows_libraries: bool = True) -> None:
        """Create a printer. If `shows_libraries` is false, tracebacks are without the frames in libraries."""
        self._shows_libraries = shows_libraries
        self._open: dict[str, bool] = {}
        self._displayed: str | None = None
        self._written = ""
        self._screen = TerminalFilter()  # one for both streams: at a terminal one continues where the other stopped
        self._on_screen = "stderr"  # the latest stream that wrote to it

    def print_event(self, event: Event) -> None:
        """Print the text or display of an event. Print nothing for images, which the caller may save."""
        match event:
            case Event(kind="stdout" | "stderr" as name, text=text) if text:
                self.write(name, text)
            case Event(kind="skipped", text=text):
                self.write_notes(f"[{text}]")
            case Event(kind="display", display=Display(data={"text/plain": str(text), **others})) if not _is_image(others):
                self._write_line("stdout", text)
                self._displayed = text if others else None  # a value with other forms is displayed, too: not printed again

    def before_answer(self, prompt: Prompt) -> str:
        """Print what the cell wrote before `input()` or `getpass()` asks the user. Return the prompt that the caller must still print.

        For `input()` this is '', because the cell prints that prompt itself. For `getpass()` it is the prompt without harmful control
        sequences.
        """
        self._flush()
        self._open.clear()  # the answer ends the line
        return self._screen.filter(prompt) + self._screen.flush() if prompt.password else ""

    def finish(self, result: CodeExecutionResult, *notes: str) -> None:
        """Print the value and the error of a cell that has ended, unless they are printed already. Then print each note on its own line.

        An open line is ended only at a terminal or before more text, so that a pipe or a file gets exactly what the cell wrote.
        """
        if result.text and result.text != self._displayed:
            self._write_line("stdout", result.text)
        error, left_out = _shown_error(result), ""
        if not self._written.endswith(error):  # without live events all of stderr comes at the end, and ends with the error already
            if not self._shows_libraries:
                error, left_out = _without_libraries(error)
            self._end_line_on_screen("stdout")
            self._write_line("stderr", error.removesuffix("\n"))
        self._end_line_on_screen("stdout")
        self._end_line_on_screen("stderr")
        self.write_notes(left_out, *notes, state_note(result), hint_note(result))

    def write(self, name: str, text: str) -> None:
        """Print text of the cell on the stream `name`, `stdout` or `stderr`. Remember whether the text ended with a newline."""
        if _is_terminal(name):
            if name != self._on_screen:
                self._flush()
                self._on_screen = name
            _put(name, self._screen.filter(text))
        else:
            _put(name, text)
        self._open[name] = not text.endswith("\n")
        self._written = text if name == "stderr" else self._written

    def write_notes(self, *notes: str) -> None:
        """Print messages of this program on standard error, each on its own line. Reset colours of the terminal that the cell has set."""
        if any(notes):
            self._end_line("stderr")
        self._flush()
        if reset := self._screen.reset():
            _put(self._on_screen, reset)
        for note in filter(None, notes):
            write_error(note)

    def _write_line(self, name: str, text: str) -> None:
        self._end_line(name)
        self.write(name, f"{text}\n")

    def _end_line(self, name: str) -> None:
        if self._open.get(name):
            self.write(name, "\n")

    def _end_line_on_screen(self, name: str) -> None:
        if _is_terminal(name):
            self._end_line(name)

    def _flush(self) -> None:
        if held := self._screen.flush():
            _put(self._on_screen, held)


def _shown_error(result: CodeExecutionResult) -> str:
    if result.error is None:
        return ""
    return result.error.traceback or ("" if result.error.name == "SystemExit" else str(result.error))


def _without_libraries(traceback: str) -> tuple[str, str]:
    """Return a traceback without the frames in libraries, and a note that says so. Return it unchanged if all frames are in libraries."""
    header, kept, dropped, conclusion = split_traceback(traceback)
    if not (kept and dropped):
        return traceback, ""
    note = f"[{dropped} frame{'s' if dropped > 1 else ''} in libraries not shown; --full-traceback shows all]"
    return header + "\n\n".join((*kept, conclusion)), note


def _is_terminal(name: str) -> bool:
    return (sys.stdout if name == "stdout" else sys.stderr).isatty()


def _put(name: str, text: str) -> None:
    if name == "stdout":
        print(text, end="", flush=True)
    else:
        write_error(text, end="")


def _is_image(data: Mapping[str, object]) -> bool:
    return not _IMAGES.keys().isdisjoint(data)


def _save_image(image: bytes, folder: Path, ending: str, taken: Collection[str]) -> Path:
    for number in itertools.count(1):
        path = folder / f"image-{number}.{ending}"
        if path.name in taken:
            continue
        with contextlib.suppress(FileExistsError), path.open("xb") as file:
            file.write(image)
            break
    return path


_INTERRUPTED, _UNUSABLE = 130, 2
_LONGEST_LINE = 1 << 20  # bytes of standard input that answer one `input()`
_PATH = re.compile(r"\.{0,2}/|~|[\w./-]+\.(txt|csv|tsv|json|ipynb|md|rst|sh|toml|yaml|yml|ini|cfg|log|html|xlsx|zip)\Z")
_SCRIPT = re.compile(r"^# /// script[ \t]*\n((?:#(?: .*)?\n)+?)# ///[ \t]*$", re.MULTILINE)
_MAIN = "__main__.py"
_MOST_FILES, _MOST_BYTES = 1000, 100 << 20  # of a folder that is copied into the session
_MOST_NAMED = 3
_PYTHON_SECONDS = 60.0
_COMMA = re.compile(r",\s*(?=[A-Za-z])(?![^\[]*\])")  # between packages, and not in thing[one,two] or thing>1,<2
_NO_MODULE = re.compile(r"\ANo module named '(\w+)'")
_NO_FILE = re.compile(r"\A\[Errno 2\] No such file or directory: '([^']{1,500})'\Z")
_REMEDIES = Remedies(
    "install a missing package with --with PACKAGE",
    "bring data in with --file PATH",
    "a session sees no files of this machine: bring them in with --file PATH",
)
# Runs a file with `%run`, whose tracebacks name the file and leave out IPython. The magic is called as a function, because `%run` in a cell
# would replace `$name` and `{name}` in arguments. Sessions without namespaces have their files elsewhere, in their working directory.
_RUN_FILE = (
    "(lambda path: get_ipython().find_line_magic('run')('-G -- ' + __import__('shlex').join("
    "[path if __import__('os').path.isfile(path) else {name!r}, *{arguments!r}])))('/mnt/data/' + {name!r})"
)


async def run(options: argparse.Namespace) -> int:
    """Run a cell or a file in the session `--session`, or in a new one that is ended afterwards. Return the exit code.

    Copy the files that `--get` names out of the session, even if the cell failed.
    """
    settings = _settings(options)
    files = [file for given in options.file for file in _given_files(given)]
    code = _code(options, files)
    targets = _targets(options.get, force=options.force)
    packages = [name for given in options.packages for name in _COMMA.split(given)]
    requires_python = ""
    if _program(options):
        dependencies, requires_python = _script_needs(options.code, files[-1][1])
        packages += dependencies
    opening, name = open_interpreter(settings), options.session or str(uuid.uuid4())
    with progress("starting the sandbox"):
        interpreter = await opening.__aenter__()
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_exit(opening)
        if not options.session:
            stack.push_async_callback(_end_quietly, interpreter, name)
        session = Session(interpreter, name)
        if requires_python:
            await _require_python(session, requires_python, settings)
        if packages and not (installed := await _install(session, packages)).success:
            show_json(installed) if options.json else show(installed)
            return installed.exit_code
        for file_name, content in files:
            await session.upload_file(file_name, content)
        status = await (_run_to_its_end if options.json else _run_live)(session, code, options)
        for file_name, target in targets.items():
            saved = await _bring_out(session, file_name, target, force=options.force)
            status = status or (0 if saved else _UNUSABLE)
        return status


def _settings(options: argparse.Namespace) -> Settings:
    settings = settings_with_endpoint(options.endpoint, "--session") if options.session else settings_at(options.endpoint)
    if options.network is None:
        return settings
    if settings.SessionsHttpClient.Endpoint:
        raise ConfigurationError("--network is for sessions of this machine: give it to `aca-sessions serve`, or leave out the Endpoint")
    return Settings(Sandbox={"Network": options.network})


def _code(options: argparse.Namespace, files: list[tuple[str, bytes]]) -> str:
    """Return the source of the cell to run, from the command line or standard input.

    If the command line names a Python file, or a folder with `__main__.py`, add its files to `files`, the one to run as the last one, and
    return a cell that runs it. The caller must write `files` into the session before the cell runs.
    """
    given, arguments = options.code, [code_from_argument(one) for one in options.arguments]
    if program := _program(options):
        if program != Path(given):
            folder = _folder_name(given)
            files += sorted(_folder_files(given, given, folder), key=lambda file: file[0] == f"{folder}/{_MAIN}")
        else:
            files.append((code_from_argument(program.name), _content(given, program)))
        return _RUN_FILE.format(name=files[-1][0], arguments=arguments)
    if arguments:
        raise InvalidArgumentError(
            "only a file can have arguments, as in `aca-sessions run analyse.py 2026`: put CODE into quotes, and options of `run` before it"
        )
    if options.is_code:
        return code_from_argument(given)
    if given != "-" and _looks_like_path(given, is_new=not options.session):
        if os.path.isdir(given):
            raise ConfigurationError(f"{shown_name(given)} is a folder without {_MAIN}: name a file in it")
        raise ConfigurationError(
            f"{shown_name(given)} is not a file: name a file that exists, or - for standard input, or add -c before it if it is code"
        )
    return code_from_input() if given == "-" else code_from_argument(given)


def _program(options: argparse.Namespace) -> Path | None:
    """Return the Python file that the command line names, or `__main__.py` in the folder that it names. Return None if it has code."""
    text = options.code
    if options.is_code or text == "-":
        return None
    if (not options.session or "/" in text) and os.path.isfile(os.path.join(text, _MAIN)):
        return Path(text, _MAIN)
    is_file = os.path.isfile(text) or (os.path.exists(text) and stat.S_ISFIFO(os.stat(text).st_mode))
    return Path(text) if is_file or (text.endswith(".py") and "\n" not in text) else None


def _script_needs(name: str, content: bytes) -> tuple[list[str], str]:
    """Return the packages and the versions of Python that the block `# /// script` of a file asks for (PEP 723).

    Raise ConfigurationError if the block is wrong.
    """
    block = _SCRIPT.search(content.decode(errors="replace").replace("\r\n", "\n"))
    if block is None:
        return [], ""
    what = f"the block `# /// script` of {shown_name(name)}"
    try:
        found = tomllib.loads("\n".join(line[2:] for line in block[1].splitlines()))
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{what} must be TOML: {error}") from error
    dependencies, requires_python = found.get("dependencies", []), found.get("requires-python", "")
    if not isinstance(dependencies, list) or not all(isinstance(one, str) for one in dependencies):
        raise ConfigurationError(f"`dependencies` in {what} must be a list of texts")
    if not isinstance(requires_python, str):
        raise ConfigurationError(f"`requires-python` in {what} must be a text such as '>=3.11'")
    return dependencies, requires_python


async def _require_python(session: Session, wanted: str, settings: Settings) -> None:
    """Raise ConfigurationError if the Python of a session is not one of the versions `wanted`, such as '>=3.11'."""
    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    try:
        specifier = SpecifierSet(wanted)
    except InvalidSpecifier as error:
        raise ConfigurationError(f"`requires-python` in the block `# /// script` must be like '>=3.11', got {wanted!r:.80}") from error
    python = (await session.health(timeout=_PYTHON_SECONDS)).python
    if python and not specifier.contains(python, prereleases=True):
        is_remote = bool(settings.SessionsHttpClient.Endpoint)
        advice = "use an Endpoint that has one" if is_remote else "name one with `export ACASessions__Sandbox__Python=PATH`"
        raise ConfigurationError(f"the file requires Python {specifier}, and the session has Python {shown_name(python)}: {advice}")


def _looks_like_path(text: str, *, is_new: bool) -> bool:
    """Return whether a text is meant as a path: it begins as no code does, or has the ending of a file.

    The name of a folder is code if the session is not new, because it may have a variable of this name.
    """
    is_one_word = not re.search(r"[\s()\[\]'\"]", text)
    return is_one_word and (bool(_PATH.match(text)) or (is_new and os.path.isdir(text)))


async def _install(session: Session, packages: Sequence[str]) -> CodeExecutionResult:
    with progress(f"installing {' '.join(packages)}"):
        return await session.install_missing(*packages)


async def _end_quietly(interpreter: CodeInterpreter, name: str) -> None:
    with contextlib.suppress(ACASessionsError):  # it may never have started
        await interpreter.delete_session(name)


async def _run_to_its_end(session: Session, code: str, options: argparse.Namespace) -> int:
    result = hinted(await session.run(code, timeout=options.timeout), options)
    show_json(as_program(result))
    return program_exit_code(result)


async def _run_live(session: Session, code: str, options: argparse.Namespace) -> int:
    """Run a cell, print its output while it runs, and return the exit code. Ctrl-C interrupts the cell, and its result is still printed."""
    printer = CellPrinter(shows_libraries=options.full_traceback)
    answers = {"on_input": _answering(options, printer), "on_denied": _deciding(options, printer)}
    execution = await session.start(code, timeout=options.timeout, **answers)  # type: ignore[arg-type]
    amended = execution.amending(partial(hinted, options=options)).amending(partial(_without_state, options=options))
    following = asyncio.create_task(_follow(session, amended, printer, options))
    try:
        return await asyncio.shield(following)
    except asyncio.CancelledError:
        # `asyncio.run` turns the first Ctrl-C into a cancellation of this task. It is taken back: the cell's result is still to come.
        # The second Ctrl-C raises KeyboardInterrupt.
        if (task := asyncio.current_task()) is not None:
            task.uncancel()
        await session._cancel_quietly(execution)
        await following
        return _INTERRUPTED


async def _follow(session: Session, execution: Execution, printer: CellPrinter, options: argparse.Namespace) -> int:
    status, is_complete = 1, True
    try:
        async for event in execution.events():
            printer.print_event(event)
            is_complete = is_complete and event.kind != "skipped"
            if event.result is not None:
                status, shown = program_exit_code(event.result), as_program(event.result)
                notes = [*save_images(event.result, Path(), _names(options.get)), _not_copied(event.result, options)]
                printer.finish(shown, *notes)
    except BaseException:
        await session._cancel_quietly(execution)
        raise
    return status if is_complete else status or 1


def _not_copied(result: CodeExecutionResult, options: argparse.Namespace) -> str:
    """Return a note for a user at a terminal about files that the cell wrote and that end with the session, or '' if there are none."""
    if options.session or not sys.stderr.isatty():
        return ""
    copied = {PurePosixPath("/mnt/data", name) for name in options.get}
    written = (PurePosixPath("/mnt/data", file.path) for file in result.files if file.kind != "deleted")
    names = [shown_name(str(path)[len("/mnt/data/") :]) for path in written if path not in copied and "__pycache__" not in path.parts]
    if not names:
        return ""
    rest = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    copies = f"--get {names[0]} copies it" if len(names) == 1 else "--get NAME copies one"
    return f"[not copied: {', '.join(names[:_MOST_NAMED])}{rest}; {copies}]"


def _answering(options: argparse.Namespace, printer: CellPrinter) -> AnswerInput:
    """Return a function that answers `input()` and `getpass()` of the cell: the user at a terminal, otherwise a line of standard input.

    The function raises EOFError at the end of the input. This is at once if standard input is closed, or has the code.
    """
    return partial(_asking, asyncio.current_task(), printer, read_answer) if _can_ask(options) else _next_line


def _deciding(options: argparse.Namespace, printer: CellPrinter) -> OnDenied | None:
    """Return a function that asks the user about refused requests. Without a terminal, return None, so that they are refused."""
    can_ask = _can_ask(options) and not is_closed("stderr") and sys.stderr.isatty()
    return partial(_asking, asyncio.current_task(), printer, read_decision) if can_ask else None


def _can_ask(options: argparse.Namespace) -> bool:
    return options.code != "-" and not is_closed("stdin") and sys.stdin.isatty()


def _asking(
    running: "asyncio.Task[object] | None", printer: CellPrinter, read: Callable[[CellPrinter, Question], Reply], question: Question
) -> Reply | None:
    """Ask the user by calling `read`. At Ctrl-C, cancel the task `running` and return None."""
    try:
        with handle_ctrl_c(signal.default_int_handler):
            return read(printer, question)
    except KeyboardInterrupt:
        if running is not None:
            running.cancel()  # as asyncio does at Ctrl-C
        return None


def read_answer(printer: CellPrinter, prompt: Prompt) -> str:
    """Ask the user for the line that `input()` or `getpass()` returns in a cell. For `getpass()` the line is not shown.

    Raise EOFError at Ctrl-D.
    """
    text = printer.before_answer(prompt)
    # getpass itself writes the text, after it has turned off the echo: what is typed before that would be shown, or discarded.
    return getpass.getpass(text) if prompt.password else input()


def read_decision(printer: CellPrinter, denial: Denial) -> Answer:
    """Ask the user whether to allow a request that the rules of the session's network refuse. Ctrl-D refuses."""
    first, *others = denial.described().split("\n")
    printer.write_notes(f"[network] {first}", *others)
    with contextlib.suppress(ImportError):  # Windows has no termios
        import termios

        termios.tcflush(sys.stdin, termios.TCIFLUSH)  # drop input that was typed before the question
    sys.stderr.write("Allow it once, or from now on? [y/N/always] ")
    sys.stderr.flush()
    try:
        answer = input().strip().lower()
    except EOFError:
        return None
    return "always" if answer == "always" else answer in ("y", "yes")


def _next_line(_prompt: Prompt) -> str:
    """Return the next line of standard input. Raise EOFError at its end. Bytes that are not UTF-8 are replaced."""
    line = b"" if is_closed("stdin") else standard_input().readline(_LONGEST_LINE)
    if not line:
        raise EOFError
    return line.decode(errors="replace").removesuffix("\n").removesuffix("\r")


def hinted(result: CodeExecutionResult, options: argparse.Namespace) -> CodeExecutionResult:
    """Return the result with a hint for the user, if the cell lacked a file of this machine, a package or the network.

    An example of a hint is "install a missing package with --with PACKAGE". Return other results without one.
    """
    missing = _NO_MODULE.search(result.error.message) if result.error is not None else None
    program = _program(options)
    if missing and program is not None:
        for path in (program.with_name(f"{missing[1]}.py"), program.with_name(missing[1])):
            if path.exists():
                return replace(result, hint=f"{path.name} is not in the session: bring it in with --file {shown_name(str(path))}")
    if given := _missing_file(result):
        return replace(result, hint=f"{shown_name(given)} is not in the session: bring it in with --file {shown_name(_as_given(given))}")
    return replace(result, hint=hint(result, access_of(_settings(options)), _REMEDIES))


def _missing_file(result: CodeExecutionResult) -> str:
    """Return the relative name of a file of this machine that the cell did not find. Return '' if there is none.

    The cell chooses the name. So only files below the current folder count, and no hidden ones: the cell must not make this program advise
    to bring in a private key, for example.
    """
    found = _NO_FILE.search(result.error.message) if result.error is not None and result.error.name == "FileNotFoundError" else None
    name = found[1].removeprefix("/mnt/data/") if found else ""
    is_here = not PurePosixPath(name).is_absolute() and not any(part.startswith(".") for part in PurePosixPath(name).parts)
    return name if name.isprintable() and is_here and os.path.isfile(name) else ""


def _as_given(name: str) -> str:
    return f"{name}={name}" if "/" in name else name  # without =NAME, only the last part of a path is kept


def _without_state(result: CodeExecutionResult, *, options: argparse.Namespace) -> CodeExecutionResult:
    """Return a result that the host ended without what happened to variables and files, if the session ends with the command anyway.

    Return all other results unchanged.
    """
    error = result.error
    if options.session or options.get or error is None or error.traceback:
        return result
    message = error.message.removesuffix(f"; {result.state.consequence}")
    return replace(result, error=replace(error, message=message), state=State())


def _given_files(given: str) -> Iterator[tuple[str, bytes]]:
    """Yield the name in the session and the content of each file that PATH or PATH=NAME of `--file` means.

    PATH is a file or a folder. Without NAME, its last part is the name in the session.
    """
    source, name = given, ""
    if "=" in given and not os.path.lexists(given):
        source, _, name = given.rpartition("=")
    name = name or _folder_name(source)
    if os.path.isdir(source):
        yield from _folder_files(f"--file {source}", source, name)
    else:
        yield name, _content(f"--file {source}", Path(source))


def _folder_name(path: str) -> str:
    return os.path.basename(os.path.abspath(path))


def _content(what: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{what} cannot be read: {error.strerror}: name a file that you may read") from error


def _folder_files(what: str, folder: str, name: str) -> Iterator[tuple[str, bytes]]:
    """Yield each file in a folder and its folders, with its path in the session and its content.

    Leave out links, hidden files and `__pycache__`. Raise ConfigurationError if the files are too many or too large, where `what` names
    the folder.
    """
    count = size = links = 0
    for parent, folders, names in os.walk(folder):  # which does not follow links
        links += sum(os.path.islink(os.path.join(parent, one)) for one in (*folders, *names))
        folders[:] = sorted(one for one in folders if not one.startswith(".") and one != "__pycache__")
        for path in (Path(parent, one) for one in sorted(names) if not one.startswith(".")):
            if path.is_symlink() or not path.is_file():
                continue
            count, size = count + 1, size + path.stat().st_size
            if count > _MOST_FILES or size > _MOST_BYTES:
                most = f"{_MOST_FILES} files with {_MOST_BYTES >> 20} MB in all"
                raise ConfigurationError(f"{what} must have at most {most}: name only what the cell needs, with a --file for each")
            yield f"{name}/{path.relative_to(folder).as_posix()}", _content(what, path)
    if links:
        write_error(f"[not copied: {links} link{'s' if links > 1 else ''} in {shown_name(folder)}]")


# --- files that --get brings out ---


def _names(files: Sequence[str]) -> list[str]:
    return [PurePosixPath(file).name for file in files]


def _targets(files: Sequence[str], *, force: bool) -> dict[str, Path]:
    """Return the path in the current folder to which each file of the session will be copied.

    Raise InvalidArgumentError if a path exists and may not be replaced, or if a name is invalid or would be written twice.
    """
    targets: dict[str, Path] = {}
    for file, name in zip(files, _names(files), strict=True):
        target = Path(name)
        if name in ("", "..") or target.name != name:  # on Windows, a name can hold a drive or a backslash
            raise InvalidArgumentError(f"--get must name a file of the session, got {shown_name(file)}")
        if target in targets.values() and file not in targets:
            raise InvalidArgumentError(f"--get {shown_name(file)}: another --get writes {shown_name(name)} already: run the command twice")
        is_file = target.is_file() and not target.is_symlink()
        if os.path.lexists(target) and not (force and is_file):
            problem = "exists: move it, or add --force" if is_file else "exists and is not a file: move it"
            raise InvalidArgumentError(f"--get {shown_name(file)}: {shown_name(name)} {problem}")
        targets[file] = target
    return targets


async def _bring_out(session: Session, name: str, target: Path, *, force: bool) -> bool:
    """Copy a file of the session to `target`. Return whether that succeeded. If not, print the error and do not raise it."""
    try:
        with reserved(target, force=force):
            await session.save_file(name, target)
    except (ACASessionsError, OSError) as error:
        problem = "the session has no such file" if isinstance(error, NotFoundError) else _reason(error, target)
        write_error(f"aca-sessions: --get {shown_name(name)}: {problem}")
        return False
    write_error(f"[file saved: {shown_name(str(target))}]")
    return True


def _reason(error: Exception, target: Path) -> str:
    if isinstance(error, OSError):
        return f"{shown_name(str(target))} cannot be written: {error.strerror}"
    return printable(str(error), colours=False)
