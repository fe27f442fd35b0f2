"""`aca-sessions repl`: a session at the terminal."""

import argparse
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import ACASessionsError, ConfigurationError, InvalidArgumentError
from ..guest_text import printable, shown_caption, shown_name
from ..models import Checkpoint
from .endpoints import lasting, settings_at
from .interactive import InteractiveSession
from .live_cell import LiveCell
from .prompt import Prompt
from .shown import Shown, save_images

_GREETING = "An isolated Python session. Ctrl-C interrupts, Ctrl-D ends; %checkpoint [NAME], %checkpoints, %rollback [NAME], %undo."
_LEFT = "[session state unknown: what became of this was not waited for]"


def repl(options: argparse.Namespace) -> int:
    """Read and run cells until the end of input. Raise ConfigurationError if the streams are not a terminal."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ConfigurationError("repl needs a terminal: `aca-sessions run -` runs code from standard input")
    prompt = Prompt(options.history)
    with _session(options) as session:
        print(_GREETING)
        while (code := _read(prompt)) is not None:
            if code.strip():
                _carry_out(session, code)
    return 0


def _session(options: argparse.Namespace) -> InteractiveSession:
    if options.session:
        return InteractiveSession.join(options.session, settings=lasting(options.endpoint, "--session"))
    return InteractiveSession(settings_at(options.endpoint))


def _read(prompt: Prompt) -> str | None:
    """Return the next cell, or None at the end of input. Ctrl-C drops what was typed so far."""
    while True:
        try:
            return prompt.read()
        except KeyboardInterrupt:
            continue
        except EOFError:
            return None


def _carry_out(session: InteractiveSession, code: str) -> None:
    try:
        if (told := _travelled(session, code)) is not None:
            print(told)
        else:
            _run(session, code)
    except ACASessionsError as error:
        print(f"aca-sessions: {printable(str(error), colours=False)}", file=sys.stderr)
    except KeyboardInterrupt:
        print(_LEFT, file=sys.stderr)


def _travelled(session: InteractiveSession, code: str) -> str | None:
    """Carry out a command about checkpoints and return its message. Return None if the code is not such a command."""
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
            return f"back at {_named(session.undo())}, which is used up"
        case ["%checkpoint" | "%checkpoints" | "%rollback" | "%undo" as command, *_]:
            raise InvalidArgumentError(f"{command} stands alone on its line; %checkpoint and %rollback take a name without spaces")
    return None


def _named(checkpoint: Checkpoint) -> str:
    left = f" (not kept: {', '.join(map(shown_caption, checkpoint.left_behind))})" if checkpoint.left_behind else ""
    name = f" {shown_name(checkpoint.name)}" if checkpoint.name is not None else ""
    return f"checkpoint {checkpoint.id}{name}{left}"


def _run(session: InteractiveSession, code: str) -> None:
    shown = Shown()
    cell = session.stream(code, on_input=lambda _: _answer(cell))
    with _interrupting(cell):
        for event in cell:
            shown.take(event)
            if event.result is not None:
                shown.finish(event.result, *save_images(event.result, Path()))


def _answer(cell: LiveCell) -> str | None:
    """Read a line that answers the cell's question, which is on the terminal already. Return None to refuse."""
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
