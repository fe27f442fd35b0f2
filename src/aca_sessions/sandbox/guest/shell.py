"""The IPython shell of a session: it runs cells and collects what they show."""

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


_OWN_CELL = "(lambda scope: (exec("  # begins cells of the client itself: output of imports in them would not be seen
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
        super().__init__(input_transformer_manager=commands.Syntax(), **options)
        self._variables.of(self.user_ns, self.user_ns_hidden)
        # First in the list: the inline backend's callback shows the figures that are open at a cell's end.
        self.events.callbacks["post_execute"].insert(0, self._code_has_run)

    def init_display_formatter(self) -> None:
        self.display_formatter = Formatter(parent=self)
        self.configurables.append(self.display_formatter)  # type: ignore[arg-type]

    def init_traceback_handlers(self, custom_exceptions: Any) -> None:
        super().init_traceback_handlers(custom_exceptions)
        tracebacks.shorten(self.InteractiveTB)

    def system(self, command: str) -> None:
        """Run a command of a cell on descriptors 1 and 2, without a terminal in between. Remember its exit status."""
        self.user_ns["_exit_code"] = self.last_command.run(self.var_expand(command, depth=1))

    def run(self, cell: Run, send: Callable[[Message], None], ask: questions.Ask = questions.nobody) -> Finished:
        """Run a cell and return its result, whatever the code raises.

        Args:
            cell: The cell, and which questions the host answers.
            send: Sends a message to the host.
            ask: Asks the host a question.
        """
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
            error = result.error_before_exec or result.error_in_exec or self.last_command.failure()
        except KeyboardInterrupt as interrupt:
            error = interrupt
        if error is not None and self.collected.error is None:
            self.collected.take_error(error, "".join(self.InteractiveTB.get_exception_only(type(error), error)))
        self._forget_oldest_inputs()
        return self.collected.finished(changes.between(before, changes.listing()), self._variables.changes())

    @contextlib.contextmanager
    def showing(self, several: bool = True) -> Iterator[None]:
        """Print exceptions of the block on stderr and do not fail the cell, if `several`: the object then has other forms to show."""
        outer, self._is_showing = self._is_showing, several
        try:
            yield
        finally:
            self._is_showing = outer

    def showtraceback(self, exc_tuple: Any = None, *arguments: Any, **options: Any) -> None:
        """Show a traceback without this package's frames at its end.

        An interrupt is raised in one of them, in the middle of the user's code.
        """
        etype, value, traceback = self._get_exc_info(exc_tuple)
        tracebacks.explain(value)
        tracebacks.cut_own(traceback)
        if tracebacks.holds_group(value) and not options.get("exception_only"):
            self._showtraceback(etype, value, [tracebacks.native(value, traceback)])
        else:
            self.InteractiveTB.chained = 0
            if tracebacks.is_long(value):  # IPython searches the chain for groups by recursion, and would report its own RecursionError
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
        """Return the traceback that was shown, to be stored for `%notebook`. IPython 9 would format it once more."""
        name, message, text = self.collected.error or (type(exception).__name__, "", "")
        return {"ename": name, "evalue": message, "traceback": [text]}

    def show_usage_error(self, exc: BaseException) -> None:
        """Show the error of a magic once, without a traceback."""
        self._showtraceback(type(exc), exc, [f"UsageError: {exc}"])

    async def run_ast_nodes(self, nodelist: list[ast.stmt], *arguments: Any, **options: Any) -> Any:
        """Run the statements of a cell. Note whether the last one is a call or a command."""
        last = nodelist[-1] if nodelist else None
        self.ends_with_call = isinstance(last, ast.Expr) and isinstance(last.value, (ast.Call, ast.Await))
        failed = await super().run_ast_nodes(nodelist, *arguments, **options)
        self.last_command.is_last_statement = commands.is_command(last)  # now, since a statement may run a cell of its own
        return failed

    async def run_code(self, *arguments: Any, **options: Any) -> Any:
        """Run one statement of a cell. Forget the commands of those before it."""
        self.last_command = commands.ShellCommand()
        return await super().run_code(*arguments, **options)

    def should_run_async(self, raw_cell: str, **options: Any) -> bool:
        """Return whether a cell needs the event loop: only if it awaits or starts tasks."""
        if loop.is_needed(raw_cell):
            return True
        return ("await" in raw_cell or "async" in raw_cell) and bool(super().should_run_async(raw_cell, **options))

    def _show_import_error(self, error: BaseException) -> None:
        """Print why a changed module cannot be imported. The traceback begins at the first frame of the session's own files."""
        traceback = error.__traceback__
        while traceback is not None and not traceback.tb_frame.f_code.co_filename.startswith(place.data):
            traceback = traceback.tb_next
        with self.showing():
            self.showtraceback((type(error), error, traceback), tb_offset=0)

    @contextlib.contextmanager
    def _tee(self, channel: str) -> Iterator[None]:
        """Replace IPython's copy of what cells write: no second copy is kept."""
        yield

    def enable_gui(self, gui: str | None = None) -> None:
        """Do nothing: a session has no window to draw in."""

    def warm_up(self, cells: Sequence[str] = _WARM_UP_AGAIN) -> None:
        """Run cells that leave nothing behind except loaded code and touched memory."""
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            for code in cells:
                self.run(Run("", code, []), lambda _message: None)
        streams.flush()
        self.reset(new_session=True)
        self.execution_count = 1
        self._variables.changes()

    def reset(self, new_session: bool = True, aggressive: bool = False) -> None:
        """Clear the variables; `%reset` calls it as well."""
        super().reset(new_session, aggressive)
        self.user_module.__spec__ = None  # multiprocessing's spawn method reads it

    def remember(self, cells: int) -> None:
        """Set how many inputs `In` and how many values `Out` keep."""
        self.displayhook.cache_size = cells

    def _code_has_run(self) -> None:
        self.collected.code_has_run = True

    def ask_exit(self) -> None:
        """End the cell on `exit` and `quit`. Only the host ends a session."""
        raise SystemExit

    def _forget_oldest_inputs(self) -> None:
        """Replace the oldest inputs by empty texts, so that the numbers of the others stay the same."""
        inputs = (self.history_manager.input_hist_parsed, self.history_manager.input_hist_raw)
        number = self.execution_count - 1 - self.displayhook.cache_size
        while number > 0 and self.user_ns.pop(f"_i{number}", None) is not None:
            for known in inputs:
                known[number : number + 1] = [""]
            number -= 1


def build_shell(preload: list[str]) -> Shell:
    """Return a shell with everything loaded that a first cell would otherwise wait for."""
    for module in preload:
        importlib.import_module(module)
    config = Config()
    config.HistoryManager.enabled = False
    config.InteractiveShell.colors = "nocolor"
    config.InteractiveShell.cache_size = 1000
    config.InteractiveShell.banner1 = ""
    warnings.filterwarnings("ignore", message="To exit: use")
    vars(pylabtools).setdefault("backend2gui", {})  # matplotlib before 3.9 reads it, IPython since 9 lacks it
    shell = Shell.instance(config=config)
    # Since Python 3.12 this flag makes incomplete code raise an error of codeop's own, meant for prompts that read another line.
    shell.compile.flags &= ~getattr(codeop, "PyCF_ALLOW_INCOMPLETE_INPUT", 0)
    shell.loop_runner = own_loop = loop.Loop()
    formatters = shell.display_formatter.formatters
    formatters["text/plain"] = plain = PlainText(parent=shell.display_formatter)
    printers: dict[Any, Any] = plain.type_printers
    Hook.stock = {kind: printers.get(kind) for kind in PLAIN_TYPES}
    shell.warm_up([*_WARM_UP, *(code for module, code in _WARM_UP_OF.items() if module in preload)])
    own_loop.forget()
    questions.take_over()
    # IPython's own %pip prints that packages were installed, even if pip failed.
    shell.magics_manager.register_function(lambda line: shell.system(f"{shlex.quote(sys.executable)} -m pip {line}"), magic_name="pip")
    sys.argv[:] = [""]
    sys.dont_write_bytecode = True  # .pyc files compare seconds: a file uploaded again within one would be taken for the old one
    return shell
