"""The command `aca-sessions run`: run a cell or a file, print its result, and copy files out of the session."""

import argparse
import asyncio
import base64
import contextlib
import itertools
import json
import os
import sys
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath

from ..client.executions import Execution
from ..client.interpreter import CodeInterpreter
from ..client.session import Session
from ..connect import access_of, open_interpreter
from ..contract.extensions import encode_full_result
from ..errors import ACASessionsError, ConfigurationError, InvalidArgumentError, NotFoundError
from ..guest_text import TerminalFilter, printable, shown_name
from ..hints import Remedies, hint
from ..models import CodeExecutionResult, Display, Event, Prompt
from ..rendering import hint_note, state_note
from .sessions import reserved, settings_at, settings_with_endpoint
from .streams import code_from_argument, code_from_input, progress, write_error

_IMAGES = {"image/png": "png", "image/jpeg": "jpg", "image/gif": "gif"}  # without SVG, which may hold scripts


def show(result: CodeExecutionResult, taken: Collection[str] = ()) -> None:
    """Print the result of a cell, and save its images in the current folder.

    The names in `taken` are not used for images. They belong to files that are copied out of the session later, for example.
    """
    printer = CellPrinter()
    for name, text in (("stdout", result.output), ("stderr", result.stderr.rstrip("\n"))):
        if text:
            printer.write(name, text if text.endswith("\n") else f"{text}\n")
    printer.write_notes(*save_images(result, Path(), taken), state_note(result), hint_note(result))


def show_json(result: CodeExecutionResult) -> None:
    """Print the result of a cell as one line of JSON."""
    shown = {
        "success": result.success,
        "duration": result.duration,
        **encode_full_result(result),
        "state": str(result.state),
        "hint": result.hint,
    }
    print(json.dumps(shown), flush=True)


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

    def __init__(self) -> None:
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
                self._end_line("stderr")
                self.write_notes(f"[{text}]")
            case Event(kind="display", display=Display(data={"text/plain": str(text), **others})) if not _is_image(others):
                self._write_line("stdout", text)
                self._displayed = text

    def before_answer(self, prompt: Prompt) -> str:
        """Print what the cell wrote before `input()` or `getpass()` asks the user. Return the prompt that the caller must still print.

        For `input()` this is '', because the cell prints that prompt itself. For `getpass()` it is the prompt without harmful control
        sequences.
        """
        self._flush()
        self._open.clear()  # the answer ends the line
        return self._screen.filter(prompt) + self._screen.flush() if prompt.password else ""

    def finish(self, result: CodeExecutionResult, *notes: str) -> None:
        """Print the value and the error of a cell that has ended, unless they are printed already. Then print each note on its own line."""
        if result.text and result.text != self._displayed:
            self._write_line("stdout", result.text)
        self._end_line("stdout")
        error = (result.error.traceback or str(result.error)) if result.error else ""
        if not self._written.endswith(error):  # without live events all of stderr comes at the end, and ends with the error already
            self._write_line("stderr", error)
        self._end_line("stderr")
        self.write_notes(*notes, state_note(result), hint_note(result))

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

    def _flush(self) -> None:
        if held := self._screen.flush():
            _put(self._on_screen, held)


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
_REMEDIES = Remedies("install a missing package with --with PACKAGE", "bring data in with --file PATH")
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
    settings = settings_with_endpoint(options.endpoint, "--session") if options.session else settings_at(options.endpoint)
    files = [(path.name, _content(f"--file {path}", path)) for path in options.file]
    code = _code(options, files)
    targets = _targets(options.get, force=options.force)
    opening, name = open_interpreter(settings), options.session or str(uuid.uuid4())
    with progress("starting the sandbox"):
        interpreter = await opening.__aenter__()
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_exit(opening)
        if not options.session:
            stack.push_async_callback(_end_quietly, interpreter, name)
        session = Session(interpreter, name)
        if options.packages and not (installed := await _install(session, options.packages)).success:
            show_json(installed) if options.json else show(installed)
            return installed.exit_code
        for file_name, content in files:
            await session.upload_file(file_name, content)
        status = await (_run_live if options.live else _run_to_its_end)(session, code, options)
        for file_name, target in targets.items():
            saved = await _bring_out(session, file_name, target, force=options.force)
            status = status or (0 if saved else _UNUSABLE)
        return status


def _code(options: argparse.Namespace, files: list[tuple[str, bytes]]) -> str:
    """Return the source of the cell to run, from the command line or standard input.

    If the command line names a Python file, add the file to `files` and return a cell that runs it. The caller must write `files` into the
    session before the cell runs.
    """
    given, arguments = options.code, [code_from_argument(one) for one in options.arguments]
    if given != "-" and _names_file(given):
        path = Path(given)
        files.append((code_from_argument(path.name), _content(given, path)))
        return _RUN_FILE.format(name=files[-1][0], arguments=arguments)
    if arguments:
        raise InvalidArgumentError("only a file can have arguments, as in `aca-sessions run analyse.py 2026`: put CODE into quotes")
    return code_from_input() if given == "-" else code_from_argument(given)


def _names_file(text: str) -> bool:
    return os.path.isfile(text) or (text.endswith(".py") and "\n" not in text)


async def _install(session: Session, packages: Sequence[str]) -> CodeExecutionResult:
    with progress(f"installing {' '.join(packages)}"):
        return await session.install_missing(*packages)


async def _end_quietly(interpreter: CodeInterpreter, name: str) -> None:
    with contextlib.suppress(ACASessionsError):  # it may never have started
        await interpreter.delete_session(name)


async def _run_to_its_end(session: Session, code: str, options: argparse.Namespace) -> int:
    result = hinted(await session.run(code, timeout=options.timeout), options.endpoint)
    show_json(result) if options.json else show(result, _names(options.get))
    return result.exit_code


async def _run_live(session: Session, code: str, options: argparse.Namespace) -> int:
    """Run a cell, print its output while it runs, and return the exit code. Ctrl-C interrupts the cell, and its result is still printed."""
    execution = (await session.start(code, timeout=options.timeout)).amending(partial(hinted, endpoint=options.endpoint))
    following = asyncio.create_task(_follow(session, execution, _names(options.get)))
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


async def _follow(session: Session, execution: Execution, taken: Collection[str]) -> int:
    printer, status = CellPrinter(), 1
    try:
        async for event in execution.events():
            printer.print_event(event)
            if event.result is not None:
                printer.finish(event.result, *save_images(event.result, Path(), taken))
                status = event.result.exit_code
    except BaseException:
        await session._cancel_quietly(execution)
        raise
    return status


def hinted(result: CodeExecutionResult, endpoint: str | None) -> CodeExecutionResult:
    """Return the result with a hint for the user, if the cell lacked a package or the network. Return other results without one.

    An example of a hint is "install a missing package with --with PACKAGE".
    """
    return replace(result, hint=hint(result, access_of(settings_at(endpoint)), _REMEDIES))


def _content(what: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{what} cannot be read: {error.strerror}: name a file that you may read") from error


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
