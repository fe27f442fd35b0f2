"""Run a cell in a thread of the session, for endpoints without events, where the host cannot get calls during an execution.

This module is sent to sessions as text and never imported on the host. The cell has what a notebook's cell has: magics, top-level await,
the value of the last expression, displays, a traceback. Its output is collected for its result.

While the cell runs, the host polls the session: each poll is a short execution in the main thread, which delivers answers to host calls and
prints the unanswered calls, or the cell's result. If the host does not receive what a poll printed, it polls again. The session then prints
the same calls or the same result, so that no call is lost and no cell runs twice.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import ctypes
import inspect
import itertools
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import CodeType, SimpleNamespace, TracebackType
from typing import Any, ClassVar

from ..sandbox.guest.folders import DATA, session_folders
from ..sandbox.guest.notebook import tracebacks
from ..sandbox.guest.notebook.cell_output import CellOutput, new_late_displays
from ..sandbox.guest.notebook.loop import Loop, needs_loop
from ..sandbox.wire import Cleared, Message, Shown
from . import codec, guest

_OWN_CODE = __file__.rpartition("/")[0] + "/"
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_HALF = 1 << 19  # characters of a stream's head, and of its tail
_LONGEST_LINE = 3000  # characters; every service keeps at least that much of an output
_changed = threading.Condition()
_numbers = itertools.count(1)
_loop = Loop()
_late = new_late_displays()


class TruncatedText:
    """A text stream that stores what is written to it, up to a limit. In a longer text, a note replaces the middle."""

    def __init__(self) -> None:
        self._head: list[str] = []
        self._tail = ""
        self._room = _HALF
        self._dropped = 0
        self._turn = threading.Lock()

    def write(self, text: str) -> int:
        """Add a text and return its length, like the method of a text stream. Raise TypeError for any other value."""
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        with self._turn:
            if self._room > 0:
                self._head.append(text[: self._room])
            rest = text[max(self._room, 0) :]
            self._room -= len(text)
            self._tail += rest
            if len(self._tail) > 4 * _HALF:
                self._cut()
        return len(text)

    def text(self) -> str:
        """Return the text that was written, without its middle if it is too long."""
        with self._turn:
            self._cut()
            cut = f"\n[… {self._dropped} characters cut …]\n" if self._dropped else ""
            return "".join(self._head) + cut + self._tail

    def _cut(self) -> None:
        excess = max(len(self._tail) - _HALF, 0)
        self._dropped += excess
        self._tail = self._tail[excess:]


class OutputCapture:
    """Collects the output of one cell that runs in a thread: what it writes to the streams and what IPython displays.

    Until the cell ends, the callbacks of IPython's events, such as `post_execute`, are not called, because each poll of the host would
    trigger them. Only the `write` methods of `sys.stdout` and `sys.stderr` are replaced, because other code keeps references to these
    objects, and some sessions set `sys.stdout` and `sys.stderr` again.
    """

    current: ClassVar[OutputCapture | None] = None

    def __init__(self, shell: Any, collected: CellOutput) -> None:
        self.stdout, self.stderr = TruncatedText(), TruncatedText()
        self._shell = shell
        self._output = collected
        self.own_stdout = sys.stdout
        self._streams = [(sys.stdout, self.stdout), (sys.stderr, self.stderr)]

    def start(self) -> None:
        """Start collecting this cell's output. Stop collecting the output of an earlier cell that still runs."""
        if OutputCapture.current is not None:
            OutputCapture.current.restore()
        OutputCapture.current = self
        for stream, kept in self._streams:
            with contextlib.suppress(AttributeError):  # guest code may have replaced the stream by anything
                stream.write = kept.write  # type: ignore[method-assign]
        self._shell.display_pub.publish = self._publish
        self._shell.display_pub.clear_output = self._output.clear
        self._shell.display_trap.hook = self._show
        self._shell.ask_exit = _end_the_cell  # `exit` must not end the session
        # At the end of each execution figures are shown and closed. Polls are executions, but not the end of the cell.
        self._shell.events.trigger = _nothing

    def finish(self) -> None:
        """Show what IPython shows at the end of a cell, such as open figures, then stop collecting.

        Do nothing if another cell has started.
        """
        if OutputCapture.current is not self:
            return
        events = self._shell.events
        try:
            type(events).trigger(events, "post_execute")  # only for this thread: the main thread may be at the end of an execution, too
        finally:
            self.restore()

    def restore(self) -> None:
        """Undo `start`: give the shell its own streams, displays, events and `exit` again."""
        OutputCapture.current = None
        self._shell.display_trap.hook = self._shell.displayhook
        self._shell.__dict__.pop("ask_exit", None)
        self._shell.events.__dict__.pop("trigger", None)
        for name in ("publish", "clear_output"):
            self._shell.display_pub.__dict__.pop(name, None)
        for stream, _ in self._streams:
            getattr(stream, "__dict__", {}).pop("write", None)

    def _show(self, value: object) -> None:
        """Show the value of an expression statement: through IPython in the main thread, but as text on stdout in a cell's thread.

        If a cell runs doctests, their examples run in the cell's thread, and doctest reads the values from stdout.
        """
        hook = self._shell.displayhook if threading.current_thread() is threading.main_thread() else sys.__displayhook__
        hook(value)

    def _publish(self, data: dict[str, Any], *_: object, **options: Any) -> None:
        name = (options.get("transient") or {}).get("display_id")
        self._output.add_display(data, None if name is None else str(name), update=bool(options.get("update")))


def write_uncaptured(text: str) -> None:
    """Write a text to the session's own stdout, even while a cell's output is collected, or if the cell redirected or closed stdout."""
    streams: list[Any] = [sys.stdout, sys.__stdout__]
    if OutputCapture.current is not None:
        streams.insert(0, OutputCapture.current.own_stdout)
    for stream in streams:
        with contextlib.suppress(Exception):
            type(stream).write(stream, text)
            stream.flush()
            return


def _end_the_cell() -> None:
    raise SystemExit


def _restore_in_child() -> None:
    """Stop collecting output in a forked process, because nothing in it reads the collected output."""
    if OutputCapture.current is not None:
        OutputCapture.current.restore()


os.register_at_fork(after_in_child=_restore_in_child)


def _nothing(*_: object, **__: object) -> None: ...


class ThreadedCell:
    """A cell that runs once in a thread of its own. `outcome` is None until the cell has ended, then a dict with its result."""

    def __init__(self, shell: Any, code: str, transformers: Sequence[ast.NodeTransformer], ended: Callable[[], None]) -> None:
        """Prepare a cell without starting it.

        Args:
            shell: The session's IPython shell.
            code: The source of the cell.
            transformers: AST transformers that change the cell's syntax tree before it is compiled, in this order.
            ended: Called in the cell's thread after the cell has ended.
        """
        self.outcome: dict[str, Any] | None = None
        self._shell = shell
        self._code = code
        self._transformers = transformers
        self._ended = ended
        self._displays: list[tuple[dict[str, str], str | None]] = []
        self._clear_next = False
        self._output = CellOutput("", self._store_display, _late)
        self._capture = OutputCapture(shell, self._output)
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._turn = threading.Lock()
        self._is_users = True  # whether the thread runs the user's code, and not what follows it

    def start(self) -> None:
        """Run the cell in a new thread and collect its output. If no thread can be started, store that error as the cell's result."""
        self._capture.start()
        self._output.show_late()
        try:
            self._thread.start()
        except RuntimeError as error:
            self._finish(error)

    def interrupt(self) -> None:
        """Raise KeyboardInterrupt in the user's code, as soon as that code runs Python again. Do nothing if it has ended."""
        with self._turn:
            if self._is_users:
                _raise_in(self._thread, KeyboardInterrupt)
        _wake_loops_of(self._thread)

    def abandon_loop(self) -> None:
        """If this cell still runs, let it keep its event loop and give the next cell a new one."""
        if self.outcome is None:
            _loop.abandon()

    def _work(self) -> None:
        error = None
        try:
            try:
                self._run()
            finally:
                self._close()
        except BaseException as raised:
            error = raised
        self._close()
        try:
            self._finish(error)
        finally:
            self.outcome = self.outcome or {}
            self._ended()

    def _close(self) -> None:
        """Ignore interrupts from now on, because the user's code has ended. Cancel an interrupt that was requested and not raised yet."""
        with self._turn:
            self._is_users = False
            _raise_in(self._thread, None)

    def _run(self) -> None:
        code = self._shell.transform_cell(self._code)
        file = self._shell.compile.cache(code, self._shell.execution_count, self._code)
        flags = self._shell.compile.flags | ast.PyCF_ONLY_AST
        tree: ast.Module = compile(code, file, "exec", flags=flags, dont_inherit=True)
        for transformer in self._transformers:
            tree = transformer.visit(tree)
        tree = self._shell.transform_ast(tree)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        self._evaluate(self._compile(tree, file, "exec"))
        if isinstance(last, ast.Expr):
            self._show(self._evaluate(self._compile(ast.Expression(last.value), file, "eval")))

    def _compile(self, tree: ast.Module | ast.Expression, file: str, mode: str) -> CodeType:
        flags = self._shell.compile.flags | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        return compile(tree, file, mode, flags=flags, dont_inherit=True)  # type: ignore[no-any-return]

    def _evaluate(self, code: CodeType) -> Any:
        names = self._shell.user_ns
        if code.co_flags & inspect.CO_COROUTINE:
            return _loop(eval(code, names))  # noqa: S307

        async def inside() -> Any:
            return eval(code, names)  # noqa: S307

        return _loop(inside()) if needs_loop(self._code) else eval(code, names)  # noqa: S307

    def _show(self, value: Any) -> None:
        if value is None or self._code.rstrip().endswith(";"):
            return
        formats, _ = self._shell.displayhook.compute_format_data(value)
        self._shell.displayhook.update_user_ns(value)
        if formats:
            self._output.store_value(SimpleNamespace(result=value), formats)

    def _store_display(self, message: Message) -> None:
        """Store the display that a `Shown` message holds, or remove all displays on `Cleared`: now, or before the next one is stored.

        If the message updates a display, replace the latest one with the same name.
        """
        if self._clear_next or message == Cleared(""):
            self._displays.clear()
        self._clear_next = message == Cleared("", wait=True)
        names = [name for _, name in self._displays]
        if isinstance(message, Shown) and message.update and message.name in names:
            last = len(names) - 1 - names[::-1].index(message.name)
            self._displays[last] = (message.data, message.name)
        elif isinstance(message, Shown):
            self._displays.append((message.data, message.name))

    def _finish(self, error: BaseException | None) -> None:
        if error is not None:
            self._output.store_error(error, _traceback(self._shell, error))
        self._output.code_has_run = True
        try:
            self._capture.finish()
        finally:
            self._output.finish([], [], [], 0)
            self.outcome = {
                "value": self._output.value,
                "text": self._output.text,
                "error": self._output.error,
                "displays": self._displays,
                "stdout": self._capture.stdout.text(),
                "stderr": self._capture.stderr.text(),
            }


def _raise_in(thread: threading.Thread, error: type[BaseException] | None) -> None:
    """Make the interpreter raise an exception in a thread. If `error` is None, cancel an exception that was requested but not raised."""
    raised = None if error is None else ctypes.py_object(error)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), raised)


def _wake_loops_of(thread: threading.Thread) -> None:
    """Wake the event loops that run in a thread, because a loop that waits runs no Python code in which an interrupt could be raised."""
    frame = sys._current_frames().get(thread.ident or 0)
    while frame is not None:
        loop, frame = frame.f_locals.get("self"), frame.f_back
        if isinstance(loop, asyncio.AbstractEventLoop):
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(lambda: None)


def _traceback(shell: Any, error: BaseException) -> str:
    traceback = _skip_own_frames(error.__traceback__)
    try:
        return _COLOUR.sub("", _format_traceback(shell, error, traceback))
    except Exception:  # the user's objects may fail when they are shown
        return tracebacks.format_natively(error, traceback)


def _format_traceback(shell: Any, error: BaseException, traceback: TracebackType | None) -> str:
    kind, layout = type(error), shell.InteractiveTB
    if isinstance(error, SystemExit) or kind.__name__ == "UsageError":
        return "".join(layout.get_exception_only(kind, error)).rstrip("\n")
    if traceback is None and isinstance(error, SyntaxError):
        return str(layout.stb2text(shell.SyntaxTB.structured_traceback(kind, error, [])))
    tracebacks.explain_missing_folder(error)
    tracebacks.cut_own_frames(traceback)
    if tracebacks.has_group(error):
        return tracebacks.format_natively(error, traceback)
    return str(layout.stb2text(layout.structured_traceback(kind, error, traceback, tb_offset=0)))


def _skip_own_frames(traceback: TracebackType | None) -> TracebackType | None:
    """Return a traceback without the leading entries of this package, or None if nothing is left."""
    while traceback is not None and traceback.tb_frame.f_code.co_filename.startswith(_OWN_CODE):
        traceback = traceback.tb_next
    return traceback


class _PollState:
    """The state that is kept between the host's polls.

    It is the latest cell, the cell's unanswered host calls, and answers that the cell has not read yet.
    """

    def __init__(self) -> None:
        self.id = ""
        self.cell: ThreadedCell | None = None
        self.interrupted = False
        self.open: dict[int, str] = {}
        self.answers: dict[int, str] = {}
        self.file = ""
        self.computed_before = 0.0


_state = _PollState()


def answer_poll(marker: str, request: str) -> None:
    """Answer one poll of the host: carry out `request`, then print `marker` and the state of the cell on one line.

    The state is a JSON object with the cell's unanswered calls or its result. If it is long, it is written to a file in the session, and
    the line holds the name of this file. The next poll deletes the file.

    Args:
        marker: A random text by which the host finds the line in the output.
        request: The arguments of `_handle_request`, as JSON that `codec.pack` has encoded.
    """
    if _state.file:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(session_folders.data, _state.file))
        _state.file = ""
    session_folders.data = DATA if os.path.isdir(DATA) else os.path.expanduser("~")
    line = json.dumps(_handle_request(**json.loads(codec.unpack(json.loads(request), guest.read_file))))
    if len(line) > _LONGEST_LINE:
        _state.file = guest.write_file(line.encode())
        line = json.dumps({"file": _state.file})
    write_uncaptured(f"\n{marker}{line}\n")


def _handle_request(
    cell: str, begin: str | None, answers: dict[str, str], known: list[int], interrupt: bool, wait: float
) -> dict[str, Any]:
    if begin is not None and cell != _state.id:
        _start_cell(cell, begin)
    running = _state.cell
    if running is None or cell != _state.id:
        return {"cell": "unknown"}
    with _changed:
        _state.answers.update({int(number): answer for number, answer in answers.items() if int(number) in _state.open})
        _state.interrupted = _state.interrupted or interrupt
        _changed.notify_all()
    if interrupt:
        running.interrupt()
    started = time.perf_counter()
    with _changed:
        _changed.wait_for(lambda: running.outcome is not None or any(number not in known for number in _unanswered_calls()), wait)
        if running.outcome is not None:
            return {"cell": "over", "result": running.outcome}
        calls = [[number, _state.open[number]] for number in _unanswered_calls()]
        return {
            "cell": "runs",
            "calls": calls,
            "waited": time.perf_counter() - started,
            "computed": _processor_seconds() - _state.computed_before,
        }


def _start_cell(id: str, code: str) -> None:
    shell = sys.modules["IPython"].get_ipython()
    if _state.cell is not None:
        _state.cell.abandon_loop()
    transformers: list[Any] = []
    guest.define_names(transformers, _send_call)
    _state.cell, _state.computed_before = ThreadedCell(shell, code, transformers, _wake), _processor_seconds()
    _state.id, _state.interrupted, _state.open, _state.answers = id, False, {}, {}
    _state.cell.start()


def _processor_seconds() -> float:
    """Return the processor seconds of this process and its ended children, without those of this thread, which answers the host's polls."""
    times = os.times()
    return time.process_time() - time.thread_time() + times.children_user + times.children_system


def _unanswered_calls() -> list[int]:
    return [number for number in _state.open if number not in _state.answers]


def _send_call(text: str) -> str:
    """Wait until the host has answered a host call of the cell, and return the answer. May be called from any thread.

    Raise ToolError if no cell runs, or if the cell was interrupted or ends before the answer comes.
    """
    with _changed:
        cell, number = _state.cell, next(_numbers)
        if cell is None or not _can_be_answered(cell):
            return guest.refuse_call(text)
        _state.open[number] = text
        _changed.notify_all()
        try:
            _changed.wait_for(lambda: number in _state.answers or not _can_be_answered(cell))
            if number not in _state.answers:
                raise guest.ToolError(
                    "the cell ended before this call was answered: check whether it had an effect before you make it again"
                )
            return _state.answers.pop(number)
        finally:
            _state.open.pop(number, None)


def _can_be_answered(cell: ThreadedCell) -> bool:
    return cell is _state.cell and cell.outcome is None and not _state.interrupted


def _wake() -> None:
    with _changed:
        _changed.notify_all()
