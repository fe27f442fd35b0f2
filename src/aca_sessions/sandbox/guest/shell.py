"""IPython in a session: runs a cell and collects what it showed."""

from __future__ import annotations

import ast
import codeop
import contextlib
import importlib
import io
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from IPython.core import pylabtools
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from ..wire import Finished, Message, Run, Started
from . import bridge, changes, commands, loop, modules, questions, streams, tracebacks
from .collected import Collected, no_late_displays
from .displays import PLAIN_TYPES, Formatter, Hook, PlainText, Publisher
from .link import interrupts
from .place import place
from .variables import Variables

_WARM_UP = ("1+1", "1/0", "1/0", "print(1)", "import asyncio; await asyncio.sleep(0)", "%pwd")


_OWN_CELL = "(lambda scope: (exec("  # the client's: nobody reads what modules print in it
_WARM_UP_AGAIN = ("1+1", "x = 1", "print(1)")
_WARM_UP_OF = {
    "pandas": "import pandas; pandas.DataFrame({'a': [1.5], 'b': ['x']})",
    "matplotlib.pyplot": "import matplotlib.pyplot as p; p.plot([1, 2]); p.title('t'); p.show(); p.close('all')",
}


class Shell(InteractiveShell):
    """An IPython shell whose output goes to the host."""

    displayhook_class = Hook
    display_pub_class = Publisher
    compiler_class = tracebacks.Compiler
    compile: tracebacks.Compiler
    InteractiveTB: Any

    def __init__(self, **options: Any) -> None:
        self._late = no_late_displays()
        self._variables = Variables()
        self.last_command = commands.ShellCommand()
        self._is_showing = False
        super().__init__(**options)
        self._variables.of(self.user_ns, self.user_ns_hidden)
        # Before the figures that are open at a cell's end are shown.
        self.events.callbacks["post_execute"].insert(0, self._code_has_run)

    def init_display_formatter(self) -> None:
        self.display_formatter = Formatter(parent=self)
        self.configurables.append(self.display_formatter)  # type: ignore[arg-type]

    def init_traceback_handlers(self, custom_exceptions: Any) -> None:
        super().init_traceback_handlers(custom_exceptions)
        tracebacks.shorten(self.InteractiveTB)

    def system(self, command: str) -> None:
        """Run a command of a cell straight on descriptors 1 and 2, without a terminal in between. Remember how it ended."""
        self.user_ns["_exit_code"] = self.last_command.run(self.var_expand(command, depth=1))

    def run(self, cell: Run, send: Callable[[Message], None], ask: questions.Ask = questions.nobody) -> Finished:
        """Runs a cell; whatever it does, an answer comes back."""
        questions.begin(cell, ask)
        bridge.begin(self.ast_transformers, questions.call if "call" in cell.answered else None)
        self.collected = Collected(cell.execution, send, self._late)
        modules.forget_listings()
        self.compile.begin_cell()
        self.last_command = commands.ShellCommand()
        before = changes.listing()
        try:
            with interrupts.allowed():
                send(Started(cell.execution))
                self.collected.show_late()
                if not cell.code.startswith(_OWN_CELL):
                    modules.import_changed(self._show_import_error)
                result = self.run_cell(cell.code, store_history=True)
            error = result.error_before_exec or result.error_in_exec or self.last_command.failure(self._last_source())
        except KeyboardInterrupt as interrupt:
            error = interrupt
        if error is not None and self.collected.error is None:
            self.collected.take_error(error, "".join(self.InteractiveTB.get_exception_only(type(error), error)))
        self._forget_oldest_inputs()
        return self.collected.finished(changes.between(before, changes.listing()), self._variables.changes())

    @contextlib.contextmanager
    def showing(self, several: bool = True) -> Iterator[None]:
        """What fails here is told, and does not fail the cell, where an object has several forms."""
        outer, self._is_showing = self._is_showing, several
        try:
            yield
        finally:
            self._is_showing = outer

    def showtraceback(self, exc_tuple: Any = None, *arguments: Any, **options: Any) -> None:
        """Without our own frames at its end: an interrupt is raised in one of ours, in the middle of the user's code."""
        etype, value, traceback = self._get_exc_info(exc_tuple)
        tracebacks.explain(value)
        tracebacks.cut_own(traceback)
        if tracebacks.holds_group(value) and not options.get("exception_only"):
            self._showtraceback(etype, value, [tracebacks.native(value, traceback)])
        else:
            self.InteractiveTB.chained = 0
            if tracebacks.is_long(value):  # IPython looks for groups in it by recursion, and would report its own RecursionError
                self._showtraceback(etype, value, self.InteractiveTB.structured_traceback(etype, value, traceback))
            else:
                super().showtraceback((etype, value, traceback), *arguments, **options)

    def _showtraceback(self, etype: type[BaseException], evalue: BaseException, stb: list[str]) -> None:
        text = self.InteractiveTB.stb2text(stb)
        if self._is_showing:
            print(text, file=sys.stderr)
        else:
            self.collected.take_error(evalue, text)

    def _format_exception_for_storage(self, exception: BaseException, *_: Any, **__: Any) -> dict[str, Any]:
        """Store the traceback that was shown for `%notebook`. IPython 9 would format it once more."""
        name, message, text = self.collected.error or (type(exception).__name__, "", "")
        return {"ename": name, "evalue": message, "traceback": [text]}

    def show_usage_error(self, exc: BaseException) -> None:
        """Without a traceback, and once."""
        self._showtraceback(type(exc), exc, [f"UsageError: {exc}"])

    async def run_ast_nodes(self, nodelist: list[ast.stmt], *arguments: Any, **options: Any) -> Any:
        """Note whether the last statement is a call."""
        last = nodelist[-1] if nodelist else None
        self.ends_with_call = isinstance(last, ast.Expr) and isinstance(last.value, (ast.Call, ast.Await))
        return await super().run_ast_nodes(nodelist, *arguments, **options)

    def should_run_async(self, raw_cell: str, **options: Any) -> bool:
        """Only what awaits, or starts tasks, needs an event loop."""
        if loop.is_needed(raw_cell):
            return True
        return ("await" in raw_cell or "async" in raw_cell) and bool(super().should_run_async(raw_cell, **options))

    def _show_import_error(self, error: BaseException) -> None:
        """Print why a module cannot be imported again, from its first own frame on."""
        traceback = error.__traceback__
        while traceback is not None and not traceback.tb_frame.f_code.co_filename.startswith(place.data):
            traceback = traceback.tb_next
        with self.showing():
            self.showtraceback((type(error), error, traceback), tb_offset=0)

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
                self.run(Run("", code, []), lambda _message: None)
        streams.flush()
        self.reset(new_session=True)
        self.execution_count = 1
        self._variables.changes()

    def reset(self, new_session: bool = True, aggressive: bool = False) -> None:
        """Also `%reset`."""
        super().reset(new_session, aggressive)
        self.user_module.__spec__ = None  # multiprocessing's spawn asks for it

    def remember(self, cells: int) -> None:
        """How many cells `In` keeps, and values `Out`."""
        self.displayhook.cache_size = cells

    def _last_source(self) -> str:
        """Return the Python that the last cell became."""
        parsed = self.history_manager.input_hist_parsed
        return parsed[-1] if parsed else ""

    def _code_has_run(self) -> None:
        self.collected.code_has_run = True

    def ask_exit(self) -> None:
        """`exit` and `quit` end the cell; the session is the host's to end."""
        raise SystemExit

    def _forget_oldest_inputs(self) -> None:
        """Numbers stay as they are: of a cell that is forgotten an empty text is left."""
        inputs = (self.history_manager.input_hist_parsed, self.history_manager.input_hist_raw)
        number = self.execution_count - 1 - self.displayhook.cache_size
        while number > 0 and self.user_ns.pop(f"_i{number}", None) is not None:
            for known in inputs:
                known[number : number + 1] = [""]
            number -= 1


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
    # From 3.12 on a code that ends too early would be an error of codeop's own, for prompts that ask for another line.
    shell.compile.flags &= ~getattr(codeop, "PyCF_ALLOW_INCOMPLETE_INPUT", 0)
    shell.loop_runner = own_loop = loop.Loop()
    formatters = shell.display_formatter.formatters
    formatters["text/plain"] = plain = PlainText(parent=shell.display_formatter)
    printers: dict[Any, Any] = plain.type_printers
    Hook.stock = {kind: printers.get(kind) for kind in PLAIN_TYPES}
    shell.warm_up([*_WARM_UP, *(code for module, code in _WARM_UP_OF.items() if module in preload)])
    own_loop.forget()
    questions.take_over()
    # IPython's own prints a note about what it has installed, whatever came of it.
    shell.magics_manager.register_function(lambda line: shell.system(f"{shlex.quote(sys.executable)} -m pip {line}"), magic_name="pip")
    sys.argv[:] = [""]
    sys.dont_write_bytecode = True  # a file uploaded twice within a second would be taken for its first version
    return shell
