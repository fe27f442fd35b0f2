"""`aca-sessions run`: run one cell, and print it when it has ended or while it runs."""

import argparse
import asyncio
import base64
import contextlib
import itertools
import json
import sys
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..client.executions import Execution
from ..client.interpreter import CodeInterpreter
from ..connect import open_interpreter
from ..contract.extensions import encode_rich
from ..errors import ACASessionsError, ConfigurationError
from ..guest_text import Screen
from ..models import CodeExecutionResult, Display, Event
from ..rendering import state_note
from .sessions import settings_at, settings_with_endpoint
from .streams import code_from_argument, code_from_input, write_error

_IMAGES = {"image/png": "png", "image/jpeg": "jpg", "image/gif": "gif"}  # without SVG, which may hold scripts


def show(result: CodeExecutionResult) -> None:
    """Print the result of a cell that has ended."""
    printer = CellPrinter()
    for name, text in (("stdout", result.output), ("stderr", result.stderr.rstrip("\n"))):
        if text:
            printer.write(name, text if text.endswith("\n") else f"{text}\n")
    printer.write_notes(images_of(result), state_note(result))


def show_json(result: CodeExecutionResult) -> None:
    """Print a result as one line of JSON."""
    shown = {"success": result.success, "duration": result.duration, **encode_rich(result), "state": str(result.state)}
    print(json.dumps(shown), flush=True)


def images_of(result: CodeExecutionResult) -> str:
    """Return a note with the number of images in a result, or '' if it has none. Images themselves are not printed."""
    count = sum(_is_image(display.data) for display in result.displays)
    return f"[{count} image(s) shown; --json has them]" if count else ""


def save_images(result: CodeExecutionResult, folder: Path) -> Iterator[str]:
    """Write each image of a result to a new file `image-NUMBER` in a folder. Yield a note about each: its path, or why it was not saved."""
    images = ((ending, content) for one in result.displays for kind, ending in _IMAGES.items() if (content := one.data.get(kind)))
    for ending, content in images:
        try:
            yield f"[image saved: {_save(base64.b64decode(str(content)), folder, ending)}]"
        except (OSError, ValueError) as error:  # code in the session may display anything as an image
            yield f"[image not saved: {error.strerror if isinstance(error, OSError) else 'it is not an image'}]"


class CellPrinter:
    """Prints the output of one cell: what it writes and displays while it runs, and the rest when it has ended."""

    def __init__(self) -> None:
        self._open: dict[str, bool] = {}
        self._displayed: str | None = None
        self._written = ""
        self._screen = Screen()  # one for both streams: at a terminal one continues where the other stopped
        self._on_screen = "stderr"  # the latest stream that wrote to it

    def print_event(self, event: Event) -> None:
        """Print an event of the cell. Ignore images, which the caller may save or count."""
        match event:
            case Event(kind="stdout" | "stderr" as name, text=text) if text:
                self.write(name, text)
            case Event(kind="skipped", text=text):
                self._end_line("stderr")
                self.write_notes(f"[{text}]")
            case Event(kind="input"):
                self._flush()
                self._open.clear()  # the answer ends the line
            case Event(kind="display", display=Display(data={"text/plain": str(text), **others})) if not _is_image(others):
                self._write_line("stdout", text)
                self._displayed = text

    def finish(self, result: CodeExecutionResult, *notes: str) -> None:
        """Print the value and the error of the result unless they are printed already. Then print each note on a line of its own."""
        if result.text and result.text != self._displayed:
            self._write_line("stdout", result.text)
        self._end_line("stdout")
        error = (result.error.traceback or str(result.error)) if result.error else ""
        if not self._written.endswith(error):  # without live events all of stderr comes at the end, and ends with the error already
            self._write_line("stderr", error)
        self._end_line("stderr")
        self.write_notes(*notes, state_note(result))

    def write(self, name: str, text: str) -> None:
        """Write guest text to the stream `name` (stdout or stderr), and remember whether the text ends in a newline."""
        if _is_terminal(name):
            if name != self._on_screen:
                self._flush()
                self._on_screen = name
            _put(name, self._screen.take(text))
        else:
            _put(name, text)
        self._open[name] = not text.endswith("\n")
        self._written = text if name == "stderr" else self._written

    def write_notes(self, *notes: str) -> None:
        """Write notes of the host to standard error, each on a line of its own and without the colours of the guest's text."""
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


def _save(image: bytes, folder: Path, ending: str) -> Path:
    for number in itertools.count(1):
        path = folder / f"image-{number}.{ending}"
        with contextlib.suppress(FileExistsError), path.open("xb") as file:
            file.write(image)
            break
    return path


_INTERRUPTED = 130


async def run(options: argparse.Namespace) -> int:
    """Run a cell in the session that `--session` names, or in a new one that is ended afterwards. Return the exit code."""
    settings = settings_with_endpoint(options.endpoint, "--session") if options.session else settings_at(options.endpoint)
    code = code_from_input() if options.code == "-" else code_from_argument(options.code)
    files = [(path.name, _content(path)) for path in options.file]
    session = options.session or str(uuid.uuid4())
    async with open_interpreter(settings) as interpreter:
        try:
            for name, content in files:
                await interpreter.upload_file(session, name, content)
            return await (_run_live if options.live else _run_to_its_end)(interpreter, session, code, options)
        finally:
            if not options.session:
                with contextlib.suppress(ACASessionsError):  # it may never have started
                    await interpreter.delete_session(session)


async def _run_to_its_end(interpreter: CodeInterpreter, session: str, code: str, options: argparse.Namespace) -> int:
    result = await interpreter.execute(session, code, timeout=options.timeout)
    show_json(result) if options.json else show(result)
    return result.exit_code


async def _run_live(interpreter: CodeInterpreter, session: str, code: str, options: argparse.Namespace) -> int:
    """Run the cell, print it while it runs, and return the exit code. Ctrl-C interrupts the cell, whose result is still printed."""
    execution = await interpreter.start(session, code, timeout=options.timeout)
    following = asyncio.create_task(_follow(interpreter, execution))
    try:
        return await asyncio.shield(following)
    except asyncio.CancelledError:
        # `asyncio.run` turns the first Ctrl-C into a cancellation of this task. It is taken back: the cell's result is still to come.
        # The second Ctrl-C raises KeyboardInterrupt.
        if (task := asyncio.current_task()) is not None:
            task.uncancel()
        await interpreter.cancel_quietly(execution)
        await following
        return _INTERRUPTED


async def _follow(interpreter: CodeInterpreter, execution: Execution) -> int:
    printer, status = CellPrinter(), 1
    try:
        async for event in execution.events():
            printer.print_event(event)
            if event.result is not None:
                printer.finish(event.result, images_of(event.result))
                status = event.result.exit_code
    except BaseException:
        await interpreter.cancel_quietly(execution)
        raise
    return status


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"--file {path} cannot be read: {error.strerror}: name a file that you may read") from error
