"""The IPython shell of a session: it runs cells and collects their output, displays and errors."""

from __future__ import annotations

import ast
import builtins
import codeop
import contextlib
import getpass
import importlib
import io
import logging
import mmap
import pdb
import shlex
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO

from IPython.core import debugger, pylabtools
from IPython.core.events import EventManager, available_events
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.text import LSString, SList
from traitlets.config import Config

from ....bridge.guest import ToolError, define_names, refuse_call
from ...wire import Finished, Message, Run, Started
from ..folders import session_folders
from ..link import AnswerError, flush_streams, interrupts
from . import changes, commands, loop, modules, tracebacks
from .cell_output import CellOutput, clip, new_late_displays, sent_in_order
from .displays import PLAIN_TYPES, Formatter, PlainText, Publisher, ValueHook

# In bytes. To format a traceback takes about 1 MB, and reading the source files that it shows more.
_RESERVED = tuple(megabytes << 20 for megabytes in (16, 12, 9, 7, 5, 4, 3, 2))
_MAX_PROMPT = 1 << 16  # characters; the host ends an interpreter whose question is larger than its limit
_WARM_UP = ("1+1", "1/0", "1/0", "print(1)", "import asyncio; await asyncio.sleep(0)", "%pwd")
_OWN_CELL = "(lambda scope: (exec("  # begins cells of the client itself: output of imports in them would not be seen
_WARM_UP_AGAIN = ("1+1", "x = 1", "print(1)")
_WARM_UP_OF = {
    "pandas": "import pandas; pandas.DataFrame({'a': [1.5], 'b': ['x']})",
    "matplotlib.pyplot": "import matplotlib.pyplot as p; p.plot([1, 2]); p.title('t'); p.show(); p.close('all')",
}

Ask = Callable[[str, str, str], str]


def _refuse_input(execution: str, about: str, text: str) -> str:
    raise AnswerError("input() is not answered here: put the values into the code")


class Events(EventManager):
    """Callbacks before and after cells. Unlike with IPython's own class, an interrupt during a callback ends the cell."""

    def trigger(self, event: str, *arguments: Any, **options: Any) -> None:
        """Call the callbacks of an event. If one fails, report its error and go on with the next one."""
        for function in self.callbacks[event][:]:
            try:
                function(*arguments, **options)
            except Exception:
                print(f"Error in callback {function} (for {event}):")
                self.shell.showtraceback()


class Shell(InteractiveShell):
    """An IPython shell whose values, displays and errors go to the host."""

    displayhook_class = ValueHook
    display_pub_class = Publisher
    compiler_class = tracebacks.Compiler
    compile: tracebacks.Compiler
    InteractiveTB: Any

    def __init__(self, **options: Any) -> None:
        self._late = new_late_displays()
        self._tracker = changes.VariableTracker()
        self.last_command = commands.ShellCommand()
        self._prints_errors = False
        self._reported_interrupt: BaseException | None = None  # must end the cell
        self._raised_interrupt: BaseException | None = None  # was reported, then raised again
        self._reserve: mmap.mmap | None = None
        super().__init__(input_transformer_manager=commands.CellTransformer(), **options)
        self._tracker.watch(self.user_ns, self.user_ns_hidden)
        # First in the list: the inline backend's callback shows the figures that are open at a cell's end.
        self.events.callbacks["post_execute"].insert(0, self._mark_code_finished)

    def init_events(self) -> None:
        self.events = Events(self, available_events)
        self.events.register("pre_execute", self._clear_warning_registry)

    def init_magics(self) -> None:
        super().init_magics()
        self.register_magics(commands.Scripts)

    def init_display_formatter(self) -> None:
        self.display_formatter = Formatter(parent=self)
        self.configurables.append(self.display_formatter)  # type: ignore[arg-type]

    def init_traceback_handlers(self, custom_exceptions: Any) -> None:
        super().init_traceback_handlers(custom_exceptions)
        tracebacks.shorten_tracebacks(self.InteractiveTB)

    def system(self, command: str) -> None:
        """Run a `!` command of a cell, which writes directly to the session's stdout and stderr.

        Store the exit status in the user's variable `_exit_code`.
        """
        self.user_ns["_exit_code"] = self.last_command.run(self.var_expand(command, depth=1))

    def getoutput(self, cmd: str, split: bool = True, depth: int = 0) -> SList | LSString:
        """Run a command for `x = !command`, `!!command` or `%sx`, and return what it wrote, as lines if `split` is true.

        Unlike with IPython's own method, an interrupt ends the cell. `depth` is the number of frames between the caller and the frame
        whose variables are expanded in the command.
        """
        if cmd.rstrip().endswith("&"):
            raise OSError("Background processes not supported.")
        output, status = commands.read_output(self.var_expand(cmd, depth=depth + 1))
        if getattr(self, "system_raise_on_error", False):  # older releases of IPython have no such setting
            self.user_ns["_exit_code"] = status
            if status:
                raise subprocess.CalledProcessError(status, cmd)
        return SList(output.splitlines()) if split else LSString(output)

    def run(self, cell: Run, send: Callable[[Message], None], ask: Ask = _refuse_input) -> Finished:
        """Run a cell and return its result. Its exceptions become the error of the result.

        `send` sends a message to the host. `ask` sends a question of the cell, such as an `input()`, to the host and returns the answer.
        """
        self._cell, self._ask = cell, ask
        self._reported_interrupt = self._raised_interrupt = None
        define_names(self.ast_transformers, self._send_call if "call" in cell.answered else None)
        self.collected = CellOutput(cell.execution, sent_in_order(send), self._late)
        modules.clear_listings()
        self.compile.begin_cell()
        self.last_command = commands.ShellCommand()
        before, number = changes.list_files(), self.execution_count
        try:
            with interrupts.allowed():
                send(Started(cell.execution))
                self.collected.show_late()
                is_own = cell.code.startswith(_OWN_CELL)
                if not is_own:
                    modules.import_changed(self._show_import_error)
                result = self.run_cell(cell.code, store_history=not is_own)  # `In` and its numbers are for the cells of users
            error = result.error_before_exec or result.error_in_exec or self.last_command.failure()
        except KeyboardInterrupt as interrupt:
            error = interrupt
        self._free_reserve()  # reading the next request needs memory as well
        if error is not None and self.collected.error is None:
            self.collected.store_error(error, "".join(self.InteractiveTB.get_exception_only(type(error), error)))
        self._forget_oldest_inputs()
        files = changes.file_changes(before, changes.list_files())
        count = 0 if self.execution_count == number else number  # an empty cell has no number, nor has one of the host
        return self.collected.finish(files, changes.list_processes(), self._tracker.changes(), count)

    def _send_call(self, text: str) -> str:
        """Send a tool call to the host and return the answer, both as JSON text. Raise ToolError if the host does not answer."""
        if "call" not in self._cell.answered:
            return refuse_call(text)
        try:
            return self._ask(self._cell.execution, "call", text)
        except AnswerError as refused:
            raise ToolError(str(refused)) from None

    def read_line(self, prompt: object = "", /) -> str:
        """Print a prompt and return a line of text from the caller of the cell, as `input` does. Raise EOFError if there is no answer."""
        text = str(prompt)
        print(text, end="")
        flush_streams()
        return self._read("input", text)

    def read_secret(self, prompt: str = "Password: ", stream: TextIO | None = None) -> str:
        """Ask the caller of the cell for a line of text, as `getpass` does, and return it. The caller hides what is typed."""
        flush_streams()
        return self._read("password", str(prompt))

    def _read(self, about: str, prompt: str) -> str:
        ask = self._ask if "input" in self._cell.answered else _refuse_input
        try:
            return ask(self._cell.execution, about, clip(prompt, _MAX_PROMPT))
        except AnswerError as refused:
            raise EOFError(str(refused)) from None

    @contextlib.contextmanager
    def redirect_errors(self, has_other_forms: bool = True) -> Iterator[None]:
        """Choose what happens to an error while an object is formatted for display in the `with` block.

        If `has_other_forms` is true, the error is printed on stderr, because the object may still be shown in another format. Otherwise it
        is stored as the cell's error.
        """
        outer, self._prints_errors = self._prints_errors, has_other_forms
        try:
            yield
        finally:
            self._prints_errors = outer

    def showtraceback(self, exc_tuple: Any = None, *arguments: Any, **options: Any) -> None:
        """Report an error with its traceback. Remove frames of this package at the traceback's end, such as that of the SIGINT handler."""
        self._free_reserve()
        etype, value, traceback = self._get_exc_info(exc_tuple)
        tracebacks.explain_missing_folder(value)
        tracebacks.cut_own_frames(traceback)
        if isinstance(value, KeyboardInterrupt):
            self._reported_interrupt = value
            if value is self._raised_interrupt:
                return
        if tracebacks.has_group(value) and not options.get("exception_only"):
            self._showtraceback(etype, value, [tracebacks.format_natively(value, traceback)])
        else:
            self.InteractiveTB.chained = 0
            # IPython searches the chain for groups by recursion, and would report its own RecursionError.
            if tracebacks.is_long_chain(value):
                self._showtraceback(etype, value, self.InteractiveTB.structured_traceback(etype, value, traceback))
            else:
                super().showtraceback((etype, value, traceback), *arguments, **options)

    def get_exception_only(self, exc_tuple: Any = None) -> str:
        """Return an error as text without a traceback. Raise KeyboardInterrupt if that is the present error, so that it ends the cell."""
        # IPython calls this, without an argument, only to print an interrupt of its own code, for example while it formats a traceback.
        if exc_tuple is None and isinstance(sys.exc_info()[1], KeyboardInterrupt):
            raise
        return str(super().get_exception_only(exc_tuple))

    def _showtraceback(self, etype: type[BaseException], evalue: BaseException, stb: list[str]) -> None:
        text = self.InteractiveTB.stb2text(stb)
        if self._prints_errors:
            print(text, file=sys.stderr)
        else:
            self.collected.store_error(evalue, text)

    def _format_exception_for_storage(self, exception: BaseException, *_: Any, **__: Any) -> dict[str, Any]:
        """Return an error as a dict for `%notebook`, with the traceback that was shown. IPython's own method would format it again."""
        name, message, text = self.collected.error or (type(exception).__name__, "", "")
        return {"ename": name, "evalue": message, "traceback": [text]}

    def show_usage_error(self, exc: BaseException) -> None:
        """Store a usage error of a magic command as the cell's error, without a traceback. IPython's own method prints it on stderr."""
        self._showtraceback(type(exc), exc, [f"UsageError: {exc}"])

    async def run_ast_nodes(self, nodelist: list[ast.stmt], *arguments: Any, **options: Any) -> Any:
        last = nodelist[-1] if nodelist else None
        self.ends_with_call = isinstance(last, ast.Expr) and isinstance(last.value, (ast.Call, ast.Await))
        failed = await super().run_ast_nodes(nodelist, *arguments, **options)
        self.last_command.is_last_statement = commands.is_command(last)  # now, since a statement may run a cell of its own
        return failed

    async def run_code(self, *arguments: Any, **options: Any) -> Any:
        """Run one statement of a cell. First forget the `!` commands of earlier statements, because their failures are not reported.

        Return True, which means that the cell has failed, without running the statement if an interrupt was reported before.
        """
        self.last_command = commands.ShellCommand()
        self._reserve_memory()  # of what the statement before this one may have freed
        return self._reported_interrupt is not None or await super().run_code(*arguments, **options)

    # IPython reports an interrupt of a script or nested cell, and goes on with the code after it. `%run` does so to keep the variables of
    # the script, so the interrupt is raised later: before another script begins, and at the end of a nested cell.
    def safe_execfile(self, *arguments: Any, **options: Any) -> None:
        self._raise_reported_interrupt()
        super().safe_execfile(*arguments, **options)

    def safe_run_module(self, *arguments: Any, **options: Any) -> None:
        self._raise_reported_interrupt()
        super().safe_run_module(*arguments, **options)

    def run_cell(self, *arguments: Any, **options: Any) -> Any:
        result = super().run_cell(*arguments, **options)
        self._raise_reported_interrupt()
        return result

    def transform_cell(self, raw_cell: str) -> str:
        """Return a cell without `%` and `!`. The client's own cells have none, and to look for them would take longer than to run them."""
        return raw_cell if raw_cell.startswith(_OWN_CELL) else super().transform_cell(raw_cell)

    def _raise_reported_interrupt(self) -> None:
        interrupt, self._reported_interrupt = self._reported_interrupt, None
        if interrupt is not None:
            self._raised_interrupt = interrupt
            raise interrupt

    def should_run_async(self, raw_cell: str, **options: Any) -> bool:
        if loop.needs_loop(raw_cell):
            return True
        return ("await" in raw_cell or "async" in raw_cell) and bool(super().should_run_async(raw_cell, **options))

    def _show_import_error(self, error: BaseException) -> None:
        """Print on stderr why a changed module cannot be imported, with a traceback that begins in the workspace's code."""
        traceback = error.__traceback__
        while traceback is not None and not traceback.tb_frame.f_code.co_filename.startswith(session_folders.data):
            traceback = traceback.tb_next
        with self.redirect_errors():
            self.showtraceback((type(error), error, traceback), tb_offset=0)

    @contextlib.contextmanager
    def _tee(self, channel: str) -> Iterator[None]:
        """Do nothing: IPython's own method would keep a second copy of all output of cells."""
        yield

    def enable_gui(self, gui: str | None = None) -> None:
        """Do nothing, because a session has no window to draw in."""

    def warm_up(self, cells: Sequence[str] = _WARM_UP_AGAIN) -> None:
        """Run `cells`, so that a user's first cell runs faster. Then remove the variables that they defined."""
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            for code in cells:
                self.run(Run("", code, []), lambda _message: None)
        flush_streams()
        self.reset(new_session=True)
        self.execution_count = 1
        self._tracker.changes()

    def reset(self, new_session: bool = True, aggressive: bool = False) -> None:
        """Clear the variables, and set `__spec__` again, which multiprocessing reads. `%reset` calls this method."""
        super().reset(new_session, aggressive)
        self.user_module.__spec__ = None  # multiprocessing's spawn method reads it

    def forget_changes(self) -> None:
        """Leave out of the next cell's result the changes of variables so far, because no cell of the user made them."""
        self._tracker.changes()

    def set_history_size(self, cells: int) -> None:
        """Set how many cells' inputs `In` keeps, and how many values `Out` keeps."""
        self.displayhook.cache_size = cells

    def _mark_code_finished(self) -> None:
        self.collected.code_has_run = True

    def ask_exit(self) -> None:
        """Raise SystemExit, so that `exit` and `quit` end the cell. Only the host can end the session."""
        raise SystemExit

    def _reserve_memory(self) -> None:
        """Reserve address space, so that a cell which uses up all of it can still be reported.

        Leave a quarter of what is left to the cell, which may free memory.
        """
        if self._reserve is not None and len(self._reserve) == _RESERVED[0]:
            return
        self._free_reserve()
        for size in _RESERVED:
            with contextlib.suppress(OSError, MemoryError):
                mmap.mmap(-1, size + size // 3).close()
                self._reserve = mmap.mmap(-1, size)  # is never written to, so it takes no memory
                return

    def _free_reserve(self) -> None:
        if self._reserve is not None:
            self._reserve.close()
            self._reserve = None

    def _forget_oldest_inputs(self) -> None:
        """Replace the oldest inputs in `In` by empty texts, so that the other inputs keep their numbers.

        Also add an empty text for a cell that was interrupted before IPython stored its input.
        """
        inputs = (self.history_manager.input_hist_parsed, self.history_manager.input_hist_raw)
        for known in inputs:
            if len(known) == self.execution_count - 1:  # IPython counts a cell first, then calls callbacks, then stores it
                known.append("")
        number = self.execution_count - 1 - self.displayhook.cache_size
        while number > 0 and self.user_ns.pop(f"_i{number}", None) is not None:
            for known in inputs:
                known[number : number + 1] = [""]
            number -= 1


class StandardInput(io.RawIOBase):
    """The bytes of `sys.stdin`: each read asks the caller of the cell for a line, as `input` does. Without an answer, it is at its end."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell
        self._rest = b""

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        """Return the descriptor that processes of the cell inherit, which is /dev/null."""
        return 0

    def readinto(self, buffer: Any) -> int:
        """Read the rest of the latest line, or if there is none, the next line."""
        if not self._rest:
            try:
                self._rest = f"{self._shell.read_line()}\n".encode()
            except EOFError:
                return 0
        part, self._rest = self._rest[: len(buffer)], self._rest[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)


def _read_commands(prompt: Any) -> None:
    """Read and run the commands of a debugger prompt. Unlike pdb's own method, let an interrupt end the prompt and the cell."""
    prompt.nosigint = True  # else `continue` installs a SIGINT handler that opens another prompt
    prompt.cmdloop()


def build_shell(preload: list[str]) -> Shell:
    """Build the shell in the zygote. Import `preload` and run typical cells once, so that first cells start fast.

    Also replace `input`, `getpass` and `sys.stdin`, which then ask the caller of the cell.
    """
    for module in preload:
        importlib.import_module(module)
    with contextlib.suppress(ImportError):  # without cloudpickle, sessions cannot be saved
        importlib.import_module(f"{__package__.rpartition('.')[0]}.pickling")
    config = Config()
    config.HistoryManager.enabled = False
    config.InteractiveShell.colors = "nocolor"
    config.InteractiveShell.cache_size = 1000
    config.InteractiveShell.banner1 = ""
    warnings.filterwarnings("ignore", message="To exit: use")
    # On a busy machine, a first figure's cell would report on stderr that matplotlib builds its font cache.
    logging.getLogger("matplotlib.font_manager").addFilter(lambda record: "building the font cache" not in str(record.msg))
    vars(pylabtools).setdefault("backend2gui", {})  # matplotlib before 3.9 reads it, IPython since 9 lacks it
    shell = Shell.instance(config=config)
    # Since Python 3.12 this flag makes incomplete code raise an error of codeop's own, meant for prompts that read another line.
    shell.compile.flags &= ~getattr(codeop, "PyCF_ALLOW_INCOMPLETE_INPUT", 0)
    shell.loop_runner = own_loop = loop.Loop()
    formatters = shell.display_formatter.formatters
    formatters["text/plain"] = plain = PlainText(parent=shell.display_formatter)
    printers: dict[Any, Any] = plain.type_printers
    ValueHook.stock_printers = {kind: printers.get(kind) for kind in PLAIN_TYPES}
    shell.warm_up([*_WARM_UP, *(code for module, code in _WARM_UP_OF.items() if module in preload)])
    own_loop.close()
    prompts: tuple[Any, ...] = (pdb.Pdb, debugger.Pdb)
    for prompt in prompts:
        prompt._cmdloop = _read_commands
    # IPython's own would read a terminal.
    builtins.input = shell.read_line
    getpass.getpass = shell.read_secret
    sys.stdin = sys.__stdin__ = io.TextIOWrapper(io.BufferedReader(StandardInput(shell)), encoding="utf-8")  # type: ignore[misc]
    # IPython's own %pip prints that packages were installed, even if pip failed.
    shell.magics_manager.register_function(lambda line: shell.system(f"{shlex.quote(sys.executable)} -m pip {line}"), magic_name="pip")
    sys.argv[:] = [""]
    sys.dont_write_bytecode = True  # .pyc files compare seconds: a file uploaded again within one would be taken for the old one
    return shell
