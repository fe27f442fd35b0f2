"""IPython in a session: runs a cell and collects what it showed."""

import contextlib
import importlib
import io
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import FileFinder
from types import TracebackType
from typing import Any

from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from ..wire import Finished, Message, Run, Started
from . import changes, questions, streams
from .collected import Collected
from .displays import PLAIN_TYPES, Hook, PlainText, Publisher
from .link import interrupts
from .loop import Loop

_OWN_CODE = "/.guest/"
_WARM_UP = ("1+1", "1/0", "1/0", "print(1)", "import asyncio; await asyncio.sleep(0)", "%pwd")


_WARM_UP_AGAIN = ("1+1", "x = 1", "print(1)")
_WARM_UP_OF = {
    "pandas": "import pandas; pandas.DataFrame({'a': [1.5], 'b': ['x']})",
    "matplotlib.pyplot": "import matplotlib.pyplot as p; p.plot([1, 2]); p.title('t'); p.show(); p.close('all')",
}


class Shell(InteractiveShell):
    """An IPython shell whose output goes to the host."""

    displayhook_class = Hook
    display_pub_class = Publisher
    system = InteractiveShell.system_raw  # straight to descriptors 1 and 2, without a terminal in between

    def run(self, cell: Run, send: Callable[[Message], None], ask: questions.Ask = questions.nobody) -> Finished:
        """Runs a cell; whatever it does, an answer comes back."""
        questions.begin(cell, ask)
        self.collected = Collected(cell.execution, send)
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
        finder = sys.path_importer_cache.get("/mnt/data")
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
    shell = Shell.instance(config=config)
    shell.loop_runner = loop = Loop()
    formatters = shell.display_formatter.formatters
    formatters["text/plain"] = plain = PlainText(parent=shell.display_formatter)
    printers: dict[Any, Any] = plain.type_printers
    Hook.stock = {kind: printers.get(kind) for kind in PLAIN_TYPES}
    shell.warm_up([*_WARM_UP, *(code for module, code in _WARM_UP_OF.items() if module in preload)])
    loop.forget()
    questions.take_over()
    sys.argv[:] = [""]
    sys.path.insert(0, "/mnt/data")
    sys.path.append("/mnt/data/.packages")  # what a session installed
    sys.dont_write_bytecode = True  # a file uploaded twice within a second would be taken for its first version
    return shell


def _cut_own_frames(traceback: TracebackType | None) -> None:
    last_of_others = None
    while traceback is not None:
        if not traceback.tb_frame.f_code.co_filename.startswith(_OWN_CODE):
            last_of_others = traceback
        traceback = traceback.tb_next
    if last_of_others is not None:
        last_of_others.tb_next = None
