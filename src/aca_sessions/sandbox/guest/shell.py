"""IPython in a session: runs a cell and collects what it showed."""

import asyncio
import base64
import contextlib
import importlib
import io
import json
import os
import sys
import warnings
from collections.abc import Callable, Coroutine, Iterator, Sequence
from importlib.machinery import FileFinder
from types import TracebackType
from typing import Any, ClassVar

from IPython.core import pylabtools
from IPython.core.displayhook import DisplayHook
from IPython.core.displaypub import DisplayPublisher
from IPython.core.formatters import PlainTextFormatter
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from ..wire import Finished, Message, Run, Scalar, Shown, Started
from . import changes, processes, questions, streams
from .link import interrupts
from .place import DATA, place

_OWN_CODE = os.path.join(os.path.dirname(__file__), "")
_MAX_TEXT = 1 << 20
_MAX_DISPLAYED = 24 << 20  # in one cell; the wire's own limit lies above
_MAX_TYPES = 50  # of one display
_MAX_INTEGER_BITS = 4096
_WARM_UP = ("1+1", "1/0", "1/0", "print(1)", "import asyncio; await asyncio.sleep(0)", "%pwd")


_WARM_UP_AGAIN = ("1+1", "x = 1", "print(1)")
_WARM_UP_OF = {
    "pandas": "import pandas; pandas.DataFrame({'a': [1.5], 'b': ['x']})",
    "matplotlib.pyplot": "import matplotlib.pyplot as p; p.plot([1, 2]); p.title('t'); p.show(); p.close('all')",
}


_PLAIN_TYPES = (int, float, bool, str)


class _Hook(DisplayHook):
    """Takes a cell's last value instead of printing it."""

    def start_displayhook(self) -> None: ...
    def write_output_prompt(self) -> None: ...
    def finish_displayhook(self) -> None: ...

    stock: ClassVar[dict[type, Any]] = {}  # how a shell that nobody changed shows plain values

    def quiet(self) -> bool:
        """Whether the cell ends with a semicolon; without one in it, it need not be taken apart to know."""
        parsed = self.shell.history_manager.input_hist_parsed
        return bool(parsed) and ";" in parsed[-1] and bool(super().quiet())

    def compute_format_data(self, result: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """A plain value has one form, and none of a dozen formatters to be asked, unless the user taught one of them."""
        kind = type(result)
        if kind not in _PLAIN_TYPES or self._is_shown_in_another_way(kind):
            return super().compute_format_data(result)  # type: ignore[no-any-return]
        return {"text/plain": repr(result)}, {}

    def _is_shown_in_another_way(self, kind: type) -> bool:
        display = self.shell.display_formatter
        plain = display.formatters["text/plain"]
        taught = any(kind in one.type_printers or object in one.type_printers for one in display.formatters.values() if one is not plain)
        own_way = plain.type_printers.get(kind) is not self.stock.get(kind) or plain.float_format != "%r" or not plain.pprint
        return bool(taught or own_way or display.ipython_display_formatter.type_printers)

    def write_format_data(self, format_dict: dict[str, Any], md_dict: dict[str, Any] | None = None) -> None:
        self.shell.collected.take_value(self.shell.displayhook.exec_result, format_dict)


class _Publisher(DisplayPublisher):
    """Takes what a cell displays."""

    def publish(self, data: dict[str, Any], metadata: object = None, **_: object) -> None:
        self.shell.collected.take_display(data)

    def clear_output(self, wait: bool = False) -> None: ...


class _PlainText(PlainTextFormatter):
    """Numbers as numbers, and figures in words. (The inline backend takes out what is registered for figures.)"""

    def __call__(self, value: Any) -> str:
        if type(value) not in self.type_printers:
            if type(value).__module__ == "numpy" and isinstance(value, (sys.modules["numpy"].number, sys.modules["numpy"].bool_)):
                return str(value)
            if type(value).__module__ == "matplotlib.figure" and hasattr(value, "get_axes"):
                return _describe_figure(value)
        return str(super().__call__(value))


class _Collected:
    """What one cell has shown so far."""

    def __init__(self, execution: str, send: Callable[[Message], None]) -> None:
        self.execution = execution
        self.value: Scalar = None
        self.text: str | None = None
        self.error: tuple[str, str, str] | None = None
        self._send = send
        self._room = _MAX_DISPLAYED

    def take_value(self, result: Any, formats: dict[str, Any]) -> None:
        self.text = clip(str(formats.get("text/plain", "")))
        value = _scalar(getattr(result, "result", None))
        self.value = self.text if value is None else value
        if formats.keys() - {"text/plain"}:
            self.take_display(formats)

    def take_display(self, data: dict[str, Any]) -> None:
        sendable = {str(mime): _sendable(content) for mime, content in data.items()}
        size = sum(map(len, sendable.values()))
        if size > self._room or len(sendable) > _MAX_TYPES:
            sendable = {"text/plain": f"[a display of {size} characters was dropped: a cell may show {_MAX_DISPLAYED} in all]"}
        else:
            self._room -= size
        self._send(Shown(self.execution, sendable))

    def take_error(self, error: BaseException, traceback: str) -> None:
        try:
            message = str(error)
        except Exception as broken:
            message = f"<{type(broken).__name__} while reading the message>"
        self.error = (type(error).__name__, clip(message), clip(traceback))

    def finished(self, files: list[str]) -> Finished:
        name, message, traceback = self.error or (None, "", "")
        return Finished(self.execution, self.value, self.text, name, message, traceback, files, processes.others())


class Shell(InteractiveShell):
    """An IPython shell whose output goes to the host."""

    displayhook_class = _Hook
    display_pub_class = _Publisher
    system = InteractiveShell.system_raw  # straight to descriptors 1 and 2, without a terminal in between

    def run(self, cell: Run, send: Callable[[Message], None], ask: questions.Ask = questions.nobody) -> Finished:
        """Runs a cell; whatever it does, an answer comes back."""
        questions.begin(cell, ask)
        self.collected = _Collected(cell.execution, send)
        self._forget_listings()
        before = changes.listing()
        try:
            with interrupts.allowed():
                send(Started(cell.execution))
                result = self.run_cell(cell.code, store_history=True)
            error = result.error_before_exec or result.error_in_exec
        except KeyboardInterrupt as interrupt:
            error = interrupt
        if error is not None and self.collected.error is None:
            self.collected.take_error(error, "".join(self.InteractiveTB.get_exception_only(type(error), error)))
        return self.collected.finished(changes.between(before, changes.listing()))

    def showtraceback(self, exc_tuple: Any = None, *arguments: Any, **options: Any) -> None:
        """Without our own frames at its end: an interrupt is raised in one of ours, in the middle of the user's code."""
        etype, value, traceback = self._get_exc_info(exc_tuple)
        _explain(value)
        _cut_own_frames(traceback)
        super().showtraceback((etype, value, traceback), *arguments, **options)

    def _showtraceback(self, etype: type[BaseException], evalue: BaseException, stb: list[str]) -> None:
        self.collected.take_error(evalue, self.InteractiveTB.stb2text(stb))

    def should_run_async(self, raw_cell: str, **options: Any) -> bool:
        """Only what awaits needs an event loop."""
        return ("await" in raw_cell or "async" in raw_cell) and bool(super().should_run_async(raw_cell, **options))

    @contextlib.contextmanager
    def _tee(self, channel: str) -> Iterator[None]:
        """Keeps no second copy of what cells write."""
        yield

    def enable_gui(self, gui: str | None = None) -> None:
        """There is no window to draw in."""

    def warm_up(self, cells: Sequence[str] = _WARM_UP_AGAIN) -> None:
        """Runs cells that leave nothing behind but loaded code and touched memory."""
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            for code in cells:
                self.run(Run("", code, False), lambda _message: None)
        streams.flush()
        self.reset(new_session=True)
        self.execution_count = 1
        self.user_module.__spec__ = None  # multiprocessing's spawn asks for it

    def ask_exit(self) -> None:
        """`exit` and `quit` end the cell; the session is the host's to end."""
        raise SystemExit

    def _forget_listings(self) -> None:
        """Lets a module that was written a moment ago be found: folders are listed once and remembered."""
        finder = sys.path_importer_cache.get(place.data)
        if isinstance(finder, FileFinder):
            finder.invalidate_caches()


def build_shell(preload: list[str]) -> Shell:
    """A shell with everything loaded that a first cell would otherwise wait for."""
    for module in preload:
        importlib.import_module(module)
    config = Config()
    config.HistoryManager.enabled = False
    config.InteractiveShell.colors = "nocolor"
    config.InteractiveShell.cache_size = 1000
    config.InteractiveShell.banner1 = ""
    warnings.filterwarnings("ignore", message="To exit: use")
    vars(pylabtools).setdefault("backend2gui", {})  # matplotlib before 3.9 asks for it, IPython from 9 on has none
    shell = Shell.instance(config=config)
    shell.loop_runner = loop = _Loop()
    formatters = shell.display_formatter.formatters
    formatters["text/plain"] = plain = _PlainText(parent=shell.display_formatter)
    printers: dict[Any, Any] = plain.type_printers
    _Hook.stock = {kind: printers.get(kind) for kind in _PLAIN_TYPES}
    shell.warm_up([*_WARM_UP, *(code for module, code in _WARM_UP_OF.items() if module in preload)])
    loop.forget()
    questions.take_over()
    sys.argv[:] = [""]
    sys.dont_write_bytecode = True  # a file uploaded twice within a second would be taken for its first version
    return shell


def settle() -> None:
    """Makes a session's own folder the first place where modules are sought, and what it installs there the last."""
    sys.path.insert(0, place.data)
    sys.path.append(f"{place.data}/.packages")


def clip(text: str, limit: int = _MAX_TEXT) -> str:
    """The text, without its middle where it is too long."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half} characters cut …]\n{text[-half:]}"


def _explain(error: BaseException) -> None:
    """Without a root of its own a session has no /mnt/data. Nothing pretends that it had: who looks for it is told where its files are."""
    sought = str(getattr(error, "filename", None) or "")
    if place.data != DATA and (sought == DATA or sought.startswith(f"{DATA}/")):
        error.add_note(f"There is no {DATA} in this session: its files are in the working directory, {place.data}. Use relative names.")


def _cut_own_frames(traceback: TracebackType | None) -> None:
    last_of_others = None
    while traceback is not None:
        if not traceback.tb_frame.f_code.co_filename.startswith(_OWN_CODE):
            last_of_others = traceback
        traceback = traceback.tb_next
    if last_of_others is not None:
        last_of_others.tb_next = None


class _Loop:
    """The session's one event loop: tasks that a cell started go on while a later one awaits."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._abandoned: list[asyncio.AbstractEventLoop | None] = []

    def __call__(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Runs a cell's awaiting code; an interrupt ends that code, not only the wait for it."""
        if self._loop is None or self._loop.is_closed():
            self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)
        task = self._loop.create_task(coroutine)
        try:
            return self._loop.run_until_complete(task)
        except KeyboardInterrupt:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                self._loop.run_until_complete(task)
            raise

    def abandon(self) -> None:
        """For a fork: closed or collected, the loop would take the parent's descriptors out of the epoll that both share."""
        self._abandoned.append(self._loop)
        self._loop = None
        asyncio.set_event_loop(None)

    @property
    def sockets(self) -> int:
        """How many it has open for itself."""
        return 0 if self._loop is None or self._loop.is_closed() else 2

    def unfinished(self) -> int:
        """How many tasks go on when a cell awaits."""
        return 0 if self._loop is None or self._loop.is_closed() else len(asyncio.all_tasks(self._loop))

    def forget(self) -> None:
        """A fork must not share its parent's loop: both would wait on one epoll descriptor."""
        if self._loop is not None:
            self._loop.close()
        self._loop = None
        asyncio.set_event_loop(None)


def _describe_figure(figure: Any) -> str:
    """In words, for those who do not see it: what it is called and what is drawn along its axes."""
    parts = [figure.get_suptitle()] if hasattr(figure, "get_suptitle") else []
    for axes in figure.get_axes()[:4]:
        labels = " by ".join(label for label in (axes.get_ylabel(), axes.get_xlabel()) if label)
        legend = axes.get_legend()
        lines = ", ".join(text.get_text() for text in legend.get_texts()[:8]) if legend else ""
        parts.append(" ".join(part for part in (axes.get_title(), f"({labels})" if labels else "", f"[{lines}]" if lines else "") if part))
    described = "; ".join(part for part in parts if part)
    return f"Figure {described}" if described else f"Figure with {len(figure.get_axes())} axes"


def _scalar(value: Any) -> Scalar:
    """A plain value as itself; None for everything that only a text can stand for."""
    if type(value).__module__ == "numpy" and hasattr(value, "item") and not getattr(value, "shape", (1,)):
        value = value.item()
    match value:
        case bool() | float() if type(value) in (bool, float):
            return value
        case int() if type(value) is int and value.bit_length() <= _MAX_INTEGER_BITS:
            return value
        case str() if type(value) is str:
            return clip(value)
    return None


def _sendable(content: Any) -> str:
    """As text: bytes in base64, what is not text as JSON where it can be."""
    match content:
        case str():
            return content
        case bytes():
            return base64.b64encode(content).decode()
    try:
        return json.dumps(content)
    except (TypeError, ValueError, RecursionError):
        return clip(str(content))
