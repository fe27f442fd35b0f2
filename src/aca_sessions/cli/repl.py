"""The command `aca-sessions repl`, which runs cells that the user types in a session."""

import argparse
import shlex
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ..connect import access_of
from ..errors import ACASessionsError, ConfigurationError, InvalidArgumentError, NotFoundError
from ..guest_text import printable, shown_caption, shown_name
from ..hints import Remedies, hint
from ..interactive import InteractiveSession, LiveCell, handle_ctrl_c
from ..models import Access, Checkpoint, Completions
from .prompt import COMMANDS, EXITS, CellPrompt, open_history
from .run import CellPrinter, Question, Reply, read_answer, read_decision, save_images, show
from .sessions import free_path, reserved, settings_at, settings_with_endpoint
from .streams import progress

_COMPLETION_SECONDS = 60.0
_GREETING = """\
An isolated Python session. Tab completes, Ctrl-C interrupts, exit or Ctrl-D leaves, %help explains.
%get NAME [PATH], %put PATH [NAME], %install PACKAGE, %checkpoint [NAME], %checkpoints, %rollback [NAME], %undo."""
_HELP = f"""\
{_GREETING}
%get and %put copy a file out of the session and into it; %get --force replaces a file here. %install adds packages.
%checkpoint keeps variables and files, %rollback and %undo return to them, %checkpoints lists them. %magic lists IPython's own commands."""
_REMEDIES = Remedies(
    "install a missing package with %install PACKAGE",
    "bring data in with %put PATH",
    "a session sees no files of this machine: bring them in with %put PATH",
)
_LEFT = "[session state unknown: the command did not wait for the result]"


def repl(options: argparse.Namespace) -> int:
    """Run cells from the terminal until the user leaves. Raise ConfigurationError if standard input or output is no terminal."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ConfigurationError("repl needs a terminal: `aca-sessions run -` runs code from standard input")
    history = open_history(options.history, kept=not options.no_history)
    settings = settings_with_endpoint(options.endpoint, "--session") if options.session else settings_at(options.endpoint)
    session = InteractiveSession.join(options.session, settings=settings) if options.session else InteractiveSession(settings)
    with progress("starting the sandbox"):
        session.open()
    with session:

        def complete(code: str, cursor: int) -> Completions:
            return session.complete(code, cursor, timeout=_COMPLETION_SECONDS)

        def list_files() -> list[str]:
            return [file.name for file in session.list_files() if not file.is_directory]

        prompt = CellPrompt(history, complete, list_files, session._cancel_calls)
        print(_GREETING)
        while (code := _read(prompt)) is not None and code.strip() not in EXITS:
            if code.strip():
                _execute(session, code, access_of(settings))
    return 0


def _read(prompt: CellPrompt) -> str | None:
    """Read the next cell. Return None at Ctrl-D. At Ctrl-C, discard the typed text and start again."""
    while True:
        try:
            return prompt.read()
        except KeyboardInterrupt:
            continue
        except EOFError:
            return None


def _execute(session: InteractiveSession, code: str, access: Access) -> None:
    try:
        if code.split()[0] not in COMMANDS:
            _run(session, code, access)
        elif code.strip() == "%help":
            print(_HELP)
        elif (message := _time_travel(session, code)) is not None:
            print(message)
        else:
            _transfer(session, code)
    except ACASessionsError as error:
        print(f"aca-sessions: {printable(str(error), colours=False)}", file=sys.stderr)
    except KeyboardInterrupt:
        print(_LEFT, file=sys.stderr)


def _time_travel(session: InteractiveSession, code: str) -> str | None:
    """Run a command about checkpoints, such as %undo or %rollback, and return its message. Return None if `code` is not such a command."""
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


def _transfer(session: InteractiveSession, code: str) -> None:
    """Execute `%get`, `%put` or `%install`. Raise InvalidArgumentError if its arguments are wrong."""
    try:
        command, *words = shlex.split(code)
    except ValueError as error:
        raise InvalidArgumentError(f"the command has no closing quotation mark: {error}") from error
    if "\n" in code.strip():
        raise InvalidArgumentError(f"{command} must be alone in its cell: enter the other lines as a cell of their own")
    match command, *words:
        case ["%install", _, *_]:
            with progress(f"installing {' '.join(words)}"):
                result = session.install(*words)
            show(result)
        case ["%get", "--force", name, *rest] if len(rest) < 2:
            _get(session, name, *rest, force=True)
        case ["%get", name, *rest] if len(rest) < 2:
            _get(session, name, *rest)
        case ["%put", path, *rest] if len(rest) < 2:
            _put(session, Path(path).expanduser(), *rest)
        case _:
            raise InvalidArgumentError("expected %get [--force] NAME [PATH], %put PATH [NAME] or %install PACKAGE…")


def _get(session: InteractiveSession, name: str, path: str = ".", *, force: bool = False) -> None:
    target = free_path(name, str(Path(path).expanduser()), force=force)
    try:
        with progress(f"getting {name}"), reserved(target, force=force):
            session.save_file(name, target)
    except NotFoundError as error:
        raise InvalidArgumentError(f"the session has no file {shown_name(name)}: `!ls` lists its files") from error
    except OSError as error:
        raise InvalidArgumentError(f"{target} cannot be written: {error.strerror}: choose another path") from error
    print(f"[file saved: {shown_name(str(target))}]")


def _put(session: InteractiveSession, path: Path, name: str = "") -> None:
    try:
        with progress(f"sending {path}"):
            session.upload_file(name or path.name, path)
    except OSError as error:
        raise InvalidArgumentError(f"{path} cannot be read: {error.strerror}: name a file that you may read") from error
    print(f"[file sent: {shown_name(name or path.name)}]")


def _run(session: InteractiveSession, code: str, access: Access) -> None:
    printer = CellPrinter()
    cell = session.stream(
        code,
        on_input=lambda prompt: _answer(cell, printer, read_answer, prompt),
        on_denied=lambda denial: _answer(cell, printer, read_decision, denial),
    )
    with cell.interrupted_by_ctrl_c():
        for event in cell:
            printer.print_event(event)
            if event.result is not None:
                result = replace(event.result, hint=hint(event.result, access, _REMEDIES))
                printer.finish(result, *save_images(result, Path()))


def _answer(cell: LiveCell, printer: CellPrinter, read: Callable[[CellPrinter, Question], Reply], question: Question) -> Reply | None:
    """Ask the user by calling `read`. At Ctrl-C, interrupt the cell and return None."""
    try:
        with handle_ctrl_c(signal.default_int_handler):
            if cell.is_cancelled:  # by a Ctrl-C between the question and this block
                return None
            return read(printer, question)
    except KeyboardInterrupt:
        cell.cancel()
        return None
