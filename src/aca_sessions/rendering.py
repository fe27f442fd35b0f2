"""Turn a result into text for a model, and into text, images and HTML for a notebook.

The text for a model is compact, separates the streams, has a limited length and contains no image data. Only the host writes lines that
begin with a label (`[state] …`): guest text passes through `for_model` and names through `shown_name`, so that they cannot look like such a
line.
"""

import base64
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from hashlib import blake2b
from html import escape
from typing import Literal

from .clean_html import cleaned, cleaned_latex, cleaned_markdown
from .guest_text import TerminalFilter, for_model, for_terminal, printable, shown_caption, shown_name
from .models import CodeExecutionResult, CommandResult, Display, Event, FileChange, Prompt, State

_FRAME = re.compile(r"\n(?=Cell In\[|File )")
_OF_THE_USER = re.compile(r"Cell In\[|File (?:/mnt/data|~)/")
_HEADER = re.compile(r"\A-{10,}\n.*Traceback \(most recent call last\)\n", re.MULTILINE)
_OBJECT = re.compile(r"<IPython\.core\.display\.\w+ object>")
_IMAGES = frozenset(("image/png", "image/jpeg", "image/gif"))
_CHARTS = ("application/vnd.plotly", "application/vnd.vega", "application/vnd.bokeh")  # beginnings of MIME types
_SOURCES = ("text/markdown", "text/latex", "application/json")  # what can be read as it is
_MAX_NAMED = 10
_RUNS_SCRIPTS = 'from aca_sessions.rendering import mimebundle; display(mimebundle(result, html="raw"), raw=True)'
Html = Literal["clean", "raw"]


def render(result: CodeExecutionResult) -> str:
    """Return the text of a result for a model. Put a heading such as `[stdout]` above each part if there are several, and always above
    stderr.
    """
    error = error_text(result)
    streams = {
        "stdout": for_model(result.stdout),
        "stderr": for_model(result.written_to_stderr),
        "displayed": _displayed(result),
        "value": "" if _is_described(result) else for_model(result.text or ""),
    }
    shown = {name: text.strip("\n") for name, text in streams.items() if text.strip()}
    room = share(result.max_output - len(error), len(shown))
    parts = [_section(name, clip(text, room), headed=len(shown) > 1 or name == "stderr") for name, text in shown.items()]
    parts += [clip(error, result.max_output), *_notes(result)]
    return "\n".join(part for part in parts if part) or "(no output)"


def clip(text: str, room: int) -> str:
    """Return a text, shortened to about `room` characters if it is longer.

    A shortened text has the beginning and the end, and between them a note on how to read the rest.
    """
    if len(text) <= room:
        return text
    half = room // 2
    cut = len(text) - 2 * half
    rest = "" if text[-half - 1] in "\r\n" else "…"  # the middle of a line must not look like the beginning of one
    return f"{text[:half]}\n[… {cut} characters cut; to read them, write them to a file and print a part of it …]\n{rest}{text[-half:]}"


def _section(name: str, text: str, *, headed: bool) -> str:
    return f"[{name}]\n{text}" if headed else text


def share(room: int, parts: int) -> int:
    """Divide `room` characters equally among `parts` texts. Return how many each text may have, but at least 200."""
    return max(200, room // max(1, parts))


def error_text(result: CodeExecutionResult) -> str:
    """Return a result's error as text for a model, or '' if there is no error.

    The text is the traceback without frames in libraries, if there are frames in the user's code.
    """
    if result.error is None:
        return ""
    text = _keep_user_frames(for_model(result.error.traceback)) or for_model(str(result.error))
    return text if result.error.message else text.removesuffix(": ")  # of an exception without a message, such as MemoryError


def _keep_user_frames(traceback: str) -> str:
    """Return a traceback with only the frames in the user's code, or the whole traceback if there are none."""
    header, kept, dropped, conclusion = split_traceback(traceback)
    if not kept:
        return traceback.removeprefix(header).strip("\n")
    note = f"[{dropped} frame{'s' if dropped > 1 else ''} in libraries]" if dropped else ""
    return "\n".join(part for part in (*kept, note, conclusion) if part)


def split_traceback(traceback: str) -> tuple[str, list[str], int, str]:
    """Split IPython's traceback. Return its header, its frames in the user's code, the number of its other frames, and its last part.

    The last part is the error, with the chain of errors before it if these have no frames in the user's code.
    """
    header = found[0] if (found := _HEADER.match(traceback)) else ""
    *frames, last = _FRAME.split(traceback.removeprefix(header).strip("\n"))
    last, separator, conclusion = last.rpartition("\n\n")
    frames.append(last if separator else "")
    kept = [frame.strip("\n") for frame in frames if _OF_THE_USER.match(frame)]
    dropped = sum(1 for frame in frames if frame.startswith("File ")) - sum(frame.startswith("File ") for frame in kept)
    return header, kept, dropped, conclusion


def _displayed(result: CodeExecutionResult) -> str:
    """Return what a cell displayed, as text for a model. Leave out images, and a display that repeats the last value."""
    texts = [_describe_display(display) for display in result.displays if not _is_image(display)]
    value = for_model(result.text or "")
    return "\n".join(text for text in texts if text and text != value)


def _is_described(result: CodeExecutionResult) -> bool:
    """Return whether the last value was displayed, and the text for a model has another description of it than its plain text."""
    text = for_model(result.text or "")
    return any(
        display.data.get("text/plain") == result.text and (_is_image(display) or _describe_display(display) != text)
        for display in result.displays
    )


def _is_image(display: Display) -> bool:
    return display.png is not None or any(isinstance(display.data.get(mime), str) for mime in ("image/jpeg", "image/svg+xml"))


def _describe_display(display: Display) -> str:
    """Return a display as text for a model: its plain text, unless that only names the object. Add a note to a chart of plotly or Vega.

    In place of a text such as `<IPython.core.display.HTML object>`, return the display's source (such as Markdown) or a note on its HTML.
    """
    text = display.data.get("text/plain")
    if any(mime.startswith(_CHARTS) for mime in display.data):
        return f"{for_model(str(text or ''))}\n[an interactive chart, not in this text]".lstrip()
    if isinstance(text, str) and not _OBJECT.fullmatch(text):
        return for_model(text)
    for mime in _SOURCES:
        if isinstance(source := display.data.get(mime), str):
            return for_model(source)
    html = display.data.get("text/html")
    return f"[an HTML page of {len(html)} characters, not in this text]" if isinstance(html, str) else for_model(str(text or ""))


def _notes(result: CodeExecutionResult) -> list[str]:
    notes = []
    if result.files:
        notes.append(f"[files] {_listed([_file(file) for file in result.files])}")
    if result.processes:
        running = _listed([f"{shown_name(process.name)} ({process.pid})" for process in result.processes])
        notes.append(f"[processes] {len(result.processes)} still running: {running}")
    if images := [display for display in result.displays if _is_image(display)]:
        described = [shown_caption(str(display.data.get("text/plain", ""))) for display in images]
        count = f"{len(images)} image{'s' if len(images) > 1 else ''}, not in this text"
        notes.append(f"[images] {count}: {_listed([text for text in described if text])}".rstrip(": "))
    return [*notes, state_line(result.state), hint_note(result)]


def state_line(state: State) -> str:
    """Return the host's line for a model about the state of the session, or '' if the state is unchanged."""
    return f"[state] {state}; {state.consequence}" if state != State() else ""


def _file(file: FileChange) -> str:
    return f"{shown_name(file.path)} {file.kind}" + (f" ({_size(file.size)})" if file.kind != "deleted" else "")


def _listed(items: list[str]) -> str:
    rest = len(items) - _MAX_NAMED
    return "; ".join(items[:_MAX_NAMED]) + (f"; and {rest} more" if rest > 0 else "")


def _size(size: int) -> str:
    return f"{size} bytes" if size < 10_000 else f"{size / 1000:.0f} kB" if size < 10_000_000 else f"{size / 1_000_000:.0f} MB"


def mimebundle(result: CodeExecutionResult, html: Html = "clean") -> dict[str, str]:
    """Return a result for a notebook, by MIME type: as plain text and as HTML.

    The HTML has stdout, stderr, the displays, the value unless a display shows it, the error, and the state of the session.
    """
    parts = [_preformatted(result.stdout), _preformatted(result.written_to_stderr)]
    for display in result.displays:
        parts += _as_html(trusted(display, html))
    if all(display.data.get("text/plain") != result.text for display in result.displays):
        parts.append(_preformatted(result.text or ""))
    if result.error is not None:
        parts.append(_preformatted(result.error.traceback or str(result.error)))
    if note := state_note(result):
        parts.append(f"<pre>{escape(note)}</pre>")
    return {"text/plain": render(result), "text/html": "\n".join(filter(None, parts))}


def _preformatted(text: str) -> str:
    return f"<pre>{escape(for_terminal(text))}</pre>" if text else ""


def state_note(result: CodeExecutionResult | CommandResult) -> str:
    """Return the host's line about the state of the session, or '' if the state is unchanged."""
    return f"[session state {result.state}; {result.state.consequence}]" if result.state != State() else ""


def hint_note(result: CodeExecutionResult) -> str:
    """Return the host's line about what the caller can do about a missing package or network, or '' if there is none."""
    return f"[hint] {result.hint}" if result.hint else ""


def trusted(display: Display, html: Html = "clean", *, runs_scripts: str = _RUNS_SCRIPTS) -> dict[str, str]:
    """Return the parts of a display that a page may show, by MIME type: images, text, and HTML that runs nothing and loads nothing.

    All other types are left out, because they run code or load files from the network: widgets, charts of plotly and Vega, maps. If `html`
    is "raw", HTML that runs or loads something is put into an <iframe> without cleaning it. The <iframe> has its own origin: its scripts
    cannot reach the page, but they can use the reader's network. `runs_scripts` is what a reader must type to see HTML with its scripts,
    for the note that they do not run.
    """
    data = {mime: content for mime, content in display.data.items() if isinstance(content, str)}
    shown = {mime: content for mime, content in data.items() if mime in _IMAGES and _is_base64(content)}
    if "text/plain" in data:
        shown["text/plain"] = for_terminal(data["text/plain"])
    if "text/html" in data:
        shown |= _html(data["text/html"], shown.get("text/plain", ""), html, runs_scripts)
    elif "image/svg+xml" in data and not shown.keys() & _IMAGES:
        encoded = base64.b64encode(data["image/svg+xml"].encode("utf-8", "replace")).decode()
        shown["text/html"] = f'<img src="data:image/svg+xml;base64,{encoded}">'  # an image runs no scripts
    elif mime := next((mime for mime in (*_SOURCES, "application/javascript") if mime in data), ""):
        source = data[mime]
        rendered = _RENDERED[mime](source) if mime in _RENDERED else ""
        shown["text/html"] = rendered or f"<pre>{escape(source)}</pre>"
        if _OBJECT.fullmatch(shown.get("text/plain", "")):
            shown["text/plain"] = for_terminal(source)
    return shown


# What runs or loads something. A table of pandas does neither, and looks better outside of a frame.
_ACTIVE = re.compile(r"<(?:script|iframe|video|audio|object|embed|link|form|input|button)\b|\bsrc\s*=(?!\s*[\"']?\s*data:)", re.IGNORECASE)
_RENDERED = {"text/markdown": cleaned_markdown, "text/latex": cleaned_latex}


def _html(source: str, text: str, html: Html, runs_scripts: str) -> dict[str, str]:
    """Return a display's HTML as a dict with the key `text/html`, or an empty dict if there is nothing to show.

    If `html` is `raw` and the HTML runs or loads something, put `source` into an <iframe>. Otherwise clean it and, if it has scripts, add a
    note that they do not run. If it has only scripts, show `text` before the note.
    """
    if html == "raw" and _ACTIVE.search(source):
        return {"text/html": sandboxed(source)}
    written = cleaned(source)
    if "<script" in source.lower():
        note = f"<p><i>Scripts of this output do not run here; <code>{escape(runs_scripts)}</code> runs them.</i></p>"
        return {"text/html": (written or f"<pre>{escape(text)}</pre>") + note}
    return {"text/html": written} if written else {}


def _as_html(shown: dict[str, str]) -> list[str]:
    for mime in _IMAGES:
        if mime in shown:
            return [f'<img src="data:{mime};base64,{escape(shown[mime])}">']
    if "text/html" in shown:
        return [shown["text/html"]]
    return [f"<pre>{escape(shown['text/plain'])}</pre>"] if "text/plain" in shown else []


def _is_base64(text: str) -> bool:
    try:
        return bool(base64.b64decode("".join(text.split()), validate=True))
    except ValueError:
        return False


def sandboxed(html: str) -> str:
    """Return an <iframe> for HTML that may run scripts. The frame has its own origin, so scripts cannot reach the page around it.

    The page cannot read the height of such a frame's content. Charts of plotly have 450 pixels unless they set a height.
    """
    style = "border: 0; width: 100%; height: 480px; resize: vertical; background: white; color-scheme: light"
    return f'<iframe sandbox="allow-scripts" style="{style}" srcdoc="{escape(html)}"></iframe>'


# --- a cell in a notebook, while it runs ---

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
