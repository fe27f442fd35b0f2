"""The output of a cell as a shell shows it: each part on the stream where a shell expects it.

A terminal gets guest text through a `Screen`, which lets colours through and no other control sequence. A pipe or a file gets what the
program wrote, as `cat` would write it.
"""

import base64
import contextlib
import itertools
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..contract.extensions import encode_rich
from ..guest_text import Screen
from ..models import CodeExecutionResult, Display, Event, State
from .standard_streams import tell

_IMAGES = {"image/png": "png", "image/jpeg": "jpg", "image/gif": "gif"}  # without SVG, which may hold scripts


def show(result: CodeExecutionResult) -> None:
    """Print a result after its cell has ended."""
    shown = Shown()
    for name, text in (("stdout", result.output), ("stderr", result.stderr.rstrip("\n"))):
        if text:
            shown.write(name, text if text.endswith("\n") else f"{text}\n")
    shown.tell(images_of(result), state_of(result))


def show_json(result: CodeExecutionResult) -> None:
    """Print a result as one line of JSON."""
    shown = {"success": result.success, "duration": result.duration, **encode_rich(result), "state": str(result.state)}
    print(json.dumps(shown), flush=True)


def images_of(result: CodeExecutionResult) -> str:
    """Return a note that there were images, which are not shown here, or ''."""
    count = sum(_is_image(display.data) for display in result.displays)
    return f"[{count} image(s) shown; --json has them]" if count else ""


def save_images(result: CodeExecutionResult, folder: Path) -> Iterator[str]:
    """Write the images into files with names that are free. Yield a note about each."""
    images = ((ending, content) for one in result.displays for kind, ending in _IMAGES.items() if (content := one.data.get(kind)))
    for ending, content in images:
        try:
            yield f"[image saved: {_save(base64.b64decode(str(content)), folder, ending)}]"
        except (OSError, ValueError) as error:  # code in the session may display anything as an image
            yield f"[image not saved: {error.strerror if isinstance(error, OSError) else 'it is none'}]"


def state_of(result: CodeExecutionResult) -> str:
    """Return a note about the session's state if it changed, or ''."""
    return f"[session state {result.state}; {result.state.consequence}]" if result.state != State() else ""


class Shown:
    """The display of a cell that runs. What it writes and displays is printed as it happens, and the rest at its end."""

    def __init__(self) -> None:
        self._open: dict[str, bool] = {}
        self._displayed: str | None = None
        self._written = ""
        self._screen = Screen()  # one for both streams: at a terminal one continues where the other stopped
        self._on_screen = "stderr"  # the latest stream that wrote to it

    def take(self, event: Event) -> None:
        """Print an event of the cell. Images are left to the caller."""
        match event:
            case Event(kind="stdout" | "stderr" as name, text=text) if text:
                self.write(name, text)
            case Event(kind="skipped", text=text):
                self._end_line("stderr")
                self.tell(f"[{text}]")
            case Event(kind="input"):
                self._flush()
                self._open.clear()  # the answer ends the line
            case Event(kind="display", display=Display(data={"text/plain": str(text), **others})) if not _is_image(others):
                self._write_line("stdout", text)
                self._displayed = text

    def finish(self, result: CodeExecutionResult, *notes: str) -> None:
        """Print the value, the error and the notes, each on a line of its own."""
        if result.text and result.text != self._displayed:
            self._write_line("stdout", result.text)
        self._end_line("stdout")
        error = (result.error.traceback or str(result.error)) if result.error else ""
        if not self._written.endswith(error):  # without live events all of stderr comes at the end, and ends with the error already
            self._write_line("stderr", error)
        self._end_line("stderr")
        self.tell(*notes, state_of(result))

    def write(self, name: str, text: str) -> None:
        """Write guest text on a stream, and remember whether it ended its line."""
        if _is_terminal(name):
            if name != self._on_screen:
                self._flush()
                self._on_screen = name
            _put(name, self._screen.take(text))
        else:
            _put(name, text)
        self._open[name] = not text.endswith("\n")
        self._written = text if name == "stderr" else self._written

    def tell(self, *notes: str) -> None:
        """Write notes of the host, each on a line of its own and in none of the guest's colours."""
        self._flush()
        if reset := self._screen.reset():
            _put(self._on_screen, reset)
        for note in filter(None, notes):
            tell(note)

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
        tell(text, end="")


def _is_image(data: Mapping[str, object]) -> bool:
    return not _IMAGES.keys().isdisjoint(data)


def _save(image: bytes, folder: Path, ending: str) -> Path:
    for number in itertools.count(1):
        path = folder / f"image-{number}.{ending}"
        with contextlib.suppress(FileExistsError), path.open("xb") as file:
            file.write(image)
            break
    return path
