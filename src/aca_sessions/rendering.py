"""Turn a result into text for a model, and into text, images and HTML for a notebook.

The text for a model is compact, separates the streams, has a limited length and contains no image data. Only the host writes lines that
begin with a label (`[state] …`): guest text passes through `for_model` and names through `shown_name`, so that they cannot look like such a
line.
"""

import base64
import re
from html import escape
from typing import Literal

from .clean_html import cleaned, cleaned_latex, cleaned_markdown
from .guest_text import for_model, for_terminal, shown_caption, shown_name
from .models import CodeExecutionResult, CommandResult, Display, FileChange, State

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
