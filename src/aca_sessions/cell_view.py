"""Show a cell of a session in a notebook: guest output is made safe first, and the host adds its own lines about the session."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from hashlib import blake2b

from .guest_text import TerminalFilter, printable
from .models import CodeExecutionResult, Display, Event, Prompt
from .rendering import Html, hint_note, state_note, trusted

CANNOT_ASK = "this front end cannot ask for a line, so `input()` fails: put the values into the code"
NO_WIDGETS = (
    "widgets of a session are only shown as text that does not change: for a progress bar use `from tqdm import tqdm`, "
    "instead of a slider run the cell with another value"
)
STILL_RUNS = "[hint] the cell runs code that cannot be interrupted yet: wait, or interrupt again to kill it, which loses the variables"
_LONGEST_PROMPT = 200
_WIDGET = "application/vnd.jupyter.widget-view+json"


class CellView(ABC):
    """The view of one cell in a notebook: it shows output while the cell runs, then the value and the session's state."""

    def __init__(self, html: Html, secret: bytes, *, runs_scripts: str, named: set[str] | None = None) -> None:
        """Prepare to show a cell.

        Args:
            html: As in `rendering.trusted`.
            secret: The key of the hash that turns the names of the session's displays into display ids of the notebook.
            runs_scripts: As in `rendering.trusted`.
            named: The names of earlier cells' displays, which this cell may replace. The names of its own are added.
        """
        self._html = html
        self._secret = secret
        self._runs_scripts = runs_scripts
        self._screen = TerminalFilter()  # one for both streams: a notebook may show one right below the other
        self._stream = "stdout"
        self._is_clearing = False
        self._known = set() if named is None else named
        self._named: set[str] = set()  # by this cell
        self._texts: set[object] = set()
        self._skipped: list[str] = []
        self._has_widgets = False
        self._printed = ""  # the end of what the cell wrote to stdout

    @abstractmethod
    def _show_text(self, stream: str, text: str) -> None:
        """Add text to the cell's stdout or stderr."""

    @abstractmethod
    def _show_data(self, data: Mapping[str, str], id: str | None, *, update: bool, is_value: bool) -> None:
        """Show a display by MIME type, or replace the displays with this id. If `is_value` is true, it is the last expression's value."""

    @abstractmethod
    def _show_value(self, result: CodeExecutionResult) -> None:
        """Show the value of the last expression, which has only text."""

    @abstractmethod
    def _clear(self, *, wait: bool) -> None:
        """Remove the cell's outputs: now, or if `wait` is true, at the next output."""

    def show(self, event: Event) -> None:
        """Show what an event of a cell reports, such as output or a display."""
        match event:
            case Event(kind="stdout" | "stderr" as name, text=text) if text:
                self._write(name, text)
            case Event(kind="display", display=Display() as shown):
                self._display(shown, update=event.update, is_value=event.is_value)
            case Event(kind="clear"):
                self.end()
                self._known -= self._named
                self._named.clear()
                self._texts.clear()
                self._is_clearing = True
                self._clear(wait=True)  # at the next output, so that an animation does not flicker
            case Event(kind="skipped", text=text):
                self._skipped.append(text)

    def finish(self, result: CodeExecutionResult, *, is_streamed: bool = True, shows_value: bool = True) -> CodeExecutionResult:
        """Show the value of a cell that has ended, and the session's state. Return the result, with a hint about widgets.

        Args:
            result: The result.
            is_streamed: Whether the output was shown while the cell ran. Otherwise it is shown now.
            shows_value: Whether to show the value, if it has only text.
        """
        if not is_streamed:
            self._write("stdout", result.stdout)
            self._write("stderr", result.written_to_stderr)
        self.end()
        if self._is_clearing:
            self._clear(wait=False)
        if result.text is not None and result.text not in self._texts and shows_value:
            self._show_value(result)
        if self._has_widgets and not result.hint:
            result = replace(result, hint=NO_WIDGETS)
        notes = [*(f"[{printable(text, colours=False)}]" for text in self._skipped), state_note(result), hint_note(result)]
        self.note("\n".join(filter(None, notes)))
        return result

    def note(self, text: str) -> None:
        """Show lines of the host, below what the cell wrote so far. Do nothing if there are none."""
        if text:
            self.end()
            self._show_text("stderr", f"{text}\n")

    def end(self) -> None:
        """Write the text that the terminal filter keeps back, and end the guest's colours."""
        self._put(self._screen.flush() + self._screen.reset())

    def question(self, prompt: Prompt) -> str:
        """Return the text with which to ask for a line. It is empty if the cell has just printed it."""
        self.end()
        is_printed = not prompt.password and self._printed.endswith(prompt[-_LONGEST_PROMPT:])
        return "" if is_printed else f"{' '.join(printable(prompt, colours=False).split())[-_LONGEST_PROMPT:]} "

    def _write(self, name: str, text: str) -> None:
        if name == "stdout":
            self._printed = (self._printed + text)[-_LONGEST_PROMPT:]
        if name != self._stream:
            self._put(self._screen.flush())
            self._stream = name
        self._put(self._screen.filter(text))

    def _put(self, text: str) -> None:
        if text:
            self._is_clearing = False
            self._show_text(self._stream, text)

    def _display(self, shown: Display, *, update: bool, is_value: bool) -> None:
        self._put(self._screen.flush())
        self._has_widgets |= _WIDGET in shown.data
        data = trusted(shown, self._html, runs_scripts=self._runs_scripts)
        if not data:
            return
        self._is_clearing = False
        self._texts.add(shown.data.get("text/plain"))
        if shown.name is None:
            self._show_data(data, None, update=False, is_value=is_value)
            return
        # An id of the notebook's, so that the session can update its own displays and no others.
        id = blake2b(shown.name.encode("utf-8", "replace"), key=blake2b(self._secret).digest(), digest_size=16).hexdigest()
        self._show_data(data, id, update=update and shown.name in self._known, is_value=False)
        self._named.add(shown.name)
        self._known.add(shown.name)
