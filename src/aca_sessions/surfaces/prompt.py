"""A line editor for cells: further lines until the code is complete, colours, and a history."""

from pathlib import Path

from IPython.core.inputtransformer2 import TransformerManager
from prompt_toolkit import PromptSession
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import has_focus
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.lexers import PygmentsLexer
from pygments.lexers.python import PythonLexer

from ..errors import ConfigurationError

_FOR_THIS_USER = 0o600


class Prompt:
    """A prompt that reads cells from the terminal."""

    def __init__(self, history: Path | None = None) -> None:
        """Keep what is typed in the file `history`, or only in this object if there is none."""
        self._session = PromptSession[str](
            ">>> ",
            multiline=True,
            prompt_continuation="... ",
            lexer=PygmentsLexer(PythonLexer),
            key_bindings=_keys(),
            history=_history(history),
        )

    def read(self) -> str:
        """Read the next cell. Ctrl-C raises KeyboardInterrupt, and Ctrl-D on an empty prompt EOFError."""
        return self._session.prompt()


def is_complete(code: str) -> bool:
    """Return whether a cell can be sent as it is. Code that cannot become valid counts as complete: the session reports its error."""
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
        raise ConfigurationError(f"--history {path} cannot be used: {error.strerror}") from None
    return FileHistory(path)
