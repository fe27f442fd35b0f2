"""`aca-sessions repl`: a session at the terminal."""

import argparse
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from IPython.core.inputtransformer2 import TransformerManager
from prompt_toolkit import PromptSession
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import has_focus
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.lexers import PygmentsLexer
from pygments.lexers.python import PythonLexer

from ..errors import ACASessionsError, ConfigurationError, InvalidArgumentError
from ..guest_text import printable, shown_caption, shown_name
from ..interactive import InteractiveSession, LiveCell
from ..models import Checkpoint
from .run import CellPrinter, save_images
from .sessions import settings_at, settings_with_endpoint

_FOR_THIS_USER = 0o600


class Prompt:
    """A prompt that reads cells from the terminal."""

    def __init__(self, history: Path | None = None) -> None:
        """Create the prompt. Store typed lines in the file `history`, or only in memory if it is None."""
        self._session = PromptSession[str](
            ">>> ",
            multiline=True,
            prompt_continuation="... ",
            lexer=PygmentsLexer(PythonLexer),
            key_bindings=_keys(),
            history=_history(history),
        )

    def read(self) -> str:
        """Return the next cell that the user types. Ctrl-C raises KeyboardInterrupt, and Ctrl-D on an empty prompt raises EOFError."""
        return self._session.prompt()


def is_complete(code: str) -> bool:
    """Return whether a cell is complete, so that Enter sends it instead of adding a line.

    Invalid code counts as complete, so that the session reports its error.
    """
    lines = code.lstrip().split("\n")
    if lines[0].startswith("%%"):
        return len(lines) > 1 and not lines[-1].strip()
    return str(TransformerManager().check_complete(code)[0]) != "incomplete"


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter", filter=has_focus(DEFAULT_BUFFER))
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        code = buffer.document.text
        if buffer.document.on_last_line and is_complete(code):
            buffer.validate_and_handle()
        else:
            indent = TransformerManager().check_complete(buffer.document.text_before_cursor)[1] or 0
            buffer.insert_text("\n" + " " * indent)

    return keys


def _history(path: Path | None) -> History:
    if path is None:
        return InMemoryHistory()
    try:
        path.touch(_FOR_THIS_USER)
        path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"--history {path} cannot be used: {error.strerror}: name a file that you may write") from error
    return FileHistory(path)


_GREETING = "An isolated Python session. Ctrl-C interrupts, Ctrl-D ends; %checkpoint [NAME], %checkpoints, %rollback [NAME], %undo."
_LEFT = "[session state unknown: the command did not wait for the result]"


def repl(options: argparse.Namespace) -> int:
    """Read and run cells until the end of input. Raise ConfigurationError if the streams are not a terminal."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ConfigurationError("repl needs a terminal: `aca-sessions run -` runs code from standard input")
    prompt = Prompt(options.history)
    with _session(options) as session:
        print(_GREETING)
        while (code := _read(prompt)) is not None:
            if code.strip():
                _execute(session, code)
    return 0


def _session(options: argparse.Namespace) -> InteractiveSession:
    if options.session:
        return InteractiveSession.join(options.session, settings=settings_with_endpoint(options.endpoint, "--session"))
    return InteractiveSession(settings_at(options.endpoint))


def _read(prompt: Prompt) -> str | None:
    """Return the next cell, or None at the end of input. Ctrl-C discards the text typed so far."""
    while True:
        try:
            return prompt.read()
        except KeyboardInterrupt:
            continue
        except EOFError:
            return None


def _execute(session: InteractiveSession, code: str) -> None:
    try:
        if (message := _time_travel(session, code)) is not None:
            print(message)
        else:
            _run(session, code)
    except ACASessionsError as error:
        print(f"aca-sessions: {printable(str(error), colours=False)}", file=sys.stderr)
    except KeyboardInterrupt:
        print(_LEFT, file=sys.stderr)


def _time_travel(session: InteractiveSession, code: str) -> str | None:
    """Execute a checkpoint command, such as %undo, and return its message. Return None if the code is not such a command."""
    match code.split():
        case ["%checkpoint"]:
            return f"kept: {_named(session.checkpoint())}"
        case ["%checkpoint", name]:
            return f"kept: {_named(session.checkpoint(name))}"
        case ["%checkpoints"]:
            return "\n".join(map(_named, session.checkpoints())) or "no checkpoint"
        case ["%rollback"]:
            return f"back at {_named(session.rollback())}"
        case ["%rollback", name]:
            return f"back at {_named(session.rollback(name))}"
        case ["%undo"]:
            return f"back at {_named(session.undo())}, which is removed"
        case ["%checkpoint" | "%checkpoints" | "%rollback" | "%undo" as command, *_]:
            raise InvalidArgumentError(
                f"{command} must be alone on its line: only %checkpoint and %rollback accept a name, which has no spaces"
            )
    return None


def _named(checkpoint: Checkpoint) -> str:
    left = f" (not kept: {', '.join(map(shown_caption, checkpoint.left_behind))})" if checkpoint.left_behind else ""
    name = f" {shown_name(checkpoint.name)}" if checkpoint.name is not None else ""
    return f"checkpoint {checkpoint.id}{name}{left}"


def _run(session: InteractiveSession, code: str) -> None:
    printer = CellPrinter()
    cell = session.stream(code, on_input=lambda _: _answer(cell))
    with _interrupting(cell):
        for event in cell:
            printer.print_event(event)
            if event.result is not None:
                printer.finish(event.result, *save_images(event.result, Path()))


def _answer(cell: LiveCell) -> str | None:
    """Return the line that the user types for the cell's `input()`. Return None at Ctrl-D, or at Ctrl-C, which also interrupts the cell."""
    outer = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return input()
    except EOFError:
        return None
    except KeyboardInterrupt:
        cell.cancel()
        return None
    finally:
        signal.signal(signal.SIGINT, outer)


@contextmanager
def _interrupting(cell: LiveCell) -> Iterator[None]:
    """Interrupt the cell at the first Ctrl-C and still wait for its result. A second Ctrl-C raises KeyboardInterrupt at once."""

    def interrupt(*_: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        cell.cancel()

    outer = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, outer)
