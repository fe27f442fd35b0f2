"""The prompt of `aca-sessions repl`: it reads cells, completes names with Tab, and keeps a history of the cells typed."""

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from threading import Thread

from IPython.core.inputtransformer2 import TransformerManager
from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import has_focus
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.lexers import PygmentsLexer
from pygments.lexers.python import PythonLexer

from ..client.files import replace_file
from ..errors import ACASessionsError, ConfigurationError
from ..models import Completions
from ..sandbox.policy import user_folder

EXITS = ("exit", "quit", "exit()", "quit()")
# The first words that the repl itself acts on. No completion by code in the session may turn a cell into one of these.
COMMANDS = ("%checkpoint", "%checkpoints", "%get", "%help", "%install", "%put", "%rollback", "%undo")
_MOMENT = 0.3  # seconds
_MOST_HISTORY = 4 << 20  # bytes; a longer file is cut to its latest half
_FOR_THIS_USER, _FOLDER_FOR_THIS_USER = 0o600, 0o700

Complete = Callable[[str, int], Completions]
ListFiles = Callable[[], Iterable[str]]


class CellPrompt:
    """A prompt that reads cells from the terminal."""

    def __init__(self, history: History, complete: Complete, list_files: ListFiles, abandon: Callable[[], object]) -> None:
        """Create the prompt.

        Args:
            history: The cells typed earlier. Each new cell is added.
            complete: Returns the session's completions of a text at a cursor position. Called in another thread.
            list_files: Returns the names of the session's files. Called in another thread.
            abandon: Ends the running calls of `complete` and `list_files`. Called if the prompt ends before they return.
        """
        self._session = PromptSession[str](
            ">>> ",
            multiline=True,
            prompt_continuation="... ",
            lexer=PygmentsLexer(PythonLexer),
            key_bindings=_keys(),
            history=history,
            completer=(completer := CellCompleter(complete, list_files, abandon)),
            rprompt=lambda: "looking for names ..." if completer.is_looking else "",
            complete_while_typing=False,
        )

    def read(self) -> str:
        """Read the next cell from the user. Raise KeyboardInterrupt at Ctrl-C, and EOFError at Ctrl-D on an empty prompt."""
        return self._session.prompt()


def is_complete(code: str) -> bool:
    """Return whether Enter should run the cell instead of adding a line. Invalid code is run, so that the session reports its error."""
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

    @keys.add("tab", filter=has_focus(DEFAULT_BUFFER))
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.complete_state:
            buffer.complete_next()
        elif buffer.document.current_line_before_cursor.strip():
            buffer.start_completion(insert_common_part=True)
        else:
            buffer.insert_text("    ")

    return keys


class CellCompleter(Completer):
    """Completes cells with names from the session, and the commands of the repl with names of files.

    Code in the session can offer any completions. So only those are shown that continue the typed text, and do not turn it into a command
    of the repl. Otherwise a completion could become `%put FILE`, and Enter would send a file of this machine into the session.
    """

    def __init__(self, complete: Complete, list_files: ListFiles, abandon: Callable[[], object]) -> None:
        self._complete = complete
        self._list_files = list_files
        self._abandon = abandon
        self.is_looking = False  # for longer than a moment
        self._paths = PathCompleter(expanduser=True)

    async def get_completions_async(self, document: Document, complete_event: CompleteEvent) -> AsyncGenerator[Completion, None]:
        """Yield the commands of the repl, and then the completions that another thread asks for.

        If the prompt ends meanwhile, do not wait for them.
        """
        for one in _own_commands(document):
            yield one
        found = Future[list[Completion]]()

        def ask() -> None:
            try:
                found.set_result([*self._get_others(document, complete_event)])
            except BaseException as error:
                found.set_exception(error)

        found.set_running_or_notify_cancel()
        # A thread of an executor would be waited for: code in the session decides how long a completion takes.
        Thread(target=ask, daemon=True).start()
        try:
            waiting = asyncio.wrap_future(found)
            await asyncio.wait({waiting}, timeout=_MOMENT)
            self._set_looking(not waiting.done())
            completions = await waiting
        except asyncio.CancelledError:
            self._abandon()
            raise
        finally:
            self._set_looking(False)
        for one in completions:
            yield one

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        """Yield the completions at the cursor: commands of the repl, and others as `_get_others` does."""
        yield from _own_commands(document)
        yield from self._get_others(document, complete_event)

    def _set_looking(self, is_looking: bool) -> None:
        if is_looking != self.is_looking:
            self.is_looking = is_looking
            get_app().invalidate()  # draws the prompt again

    def _get_others(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        """Yield names of the session or of files. Yield none if asking the session for them fails."""
        before = document.text_before_cursor
        words = before.split()
        argument = before.rpartition(" ")[2]
        if "\n" in document.text or not words or words[0] not in COMMANDS or before == words[0]:
            try:
                yield from self._of_session(document)
            except ACASessionsError:  # no completion is better than an error in the middle of a line
                return
        elif words[0] == "%put":
            yield from self._paths.get_completions(Document(argument), complete_event)
        elif words[0] == "%get":
            try:
                names = [name for name in self._list_files() if name.startswith(argument) and name.isprintable() and " " not in name]
            except ACASessionsError:
                return
            yield from (Completion(name, start_position=-len(argument)) for name in names)

    def _of_session(self, document: Document) -> Iterator[Completion]:
        text, cursor = document.text, document.cursor_position
        first = next(iter(text.split()), "")
        found = self._complete(text, cursor)
        typed = text[found.start : cursor]
        if not 0 <= found.start <= cursor == found.end or "\n" in typed:
            return
        for match in found.matches:
            if not match.isprintable() or not (match.casefold().startswith(typed.casefold()) or typed.startswith("\\")):
                continue
            made = next(iter(f"{text[: found.start]}{match}{text[cursor:]}".split()), "")
            if made not in (*COMMANDS, *EXITS) or (made.startswith(first) and " " not in match):
                yield Completion(match, start_position=found.start - cursor)


def _own_commands(document: Document) -> Iterator[Completion]:
    text = document.text
    if text.startswith("%") and document.cursor_position == len(text):
        yield from (Completion(one, start_position=-len(text)) for one in COMMANDS if one.startswith(text))


def open_history(path: Path | None, *, kept: bool) -> History:
    """Open the history of typed cells. If `kept` is False, it is only in this process's memory.

    Otherwise it is in the file `path`; raise ConfigurationError if that cannot be used. Without `path`, it is in a file in this user's
    state folder, or in memory if that file cannot be used. A file that is created here can be read only by this user; an existing one
    keeps its permissions.
    """
    if not kept:
        return InMemoryHistory()
    try:
        if path is not None:
            return _file(path)
        folder = user_folder("XDG_STATE_HOME", ".local", "state")
        if folder is None:
            return InMemoryHistory()
        own = Path(folder, "aca-sessions")
        own.mkdir(_FOLDER_FOR_THIS_USER, parents=True, exist_ok=True)
        return _file(own / "repl-history")
    except OSError as error:
        if path is None:
            return InMemoryHistory()
        raise ConfigurationError(f"--history {path} cannot be used: {error.strerror}: name a file that you may write") from error


def _file(path: Path) -> FileHistory:
    path.touch(_FOR_THIS_USER)
    content = path.read_bytes()
    with path.open("ab"):  # raises an error now if it cannot be written
        pass
    if len(content) > _MOST_HISTORY:
        latest = content[-_MOST_HISTORY // 2 :]
        with replace_file(path) as file:
            file.write(latest[latest.find(b"\n# ") + 1 :])
    return FileHistory(os.fspath(path))
