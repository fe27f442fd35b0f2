"""A cell in a thread of the session. It has what a notebook's cell has: magics, top-level await, a last value, displays, a traceback."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import ctypes
import inspect
import re
import sys
import threading
from collections.abc import Callable, Sequence
from types import CodeType, SimpleNamespace, TracebackType
from typing import Any

from ...sandbox.guest import tracebacks
from ...sandbox.guest.collected import Collected, no_late_displays
from ...sandbox.guest.loop import Loop, is_needed
from ...sandbox.wire import Cleared, Message, Shown
from .diverted import Diverted

_OWN_CODE = __file__.rpartition("/")[0] + "/"
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_loop = Loop()
_late = no_late_displays()


class ThreadedCell:
    """A cell that runs once, when `start` is called. `told` is its outcome, or None while it runs."""

    def __init__(self, shell: Any, code: str, transformers: Sequence[ast.NodeTransformer], ended: Callable[[], None]) -> None:
        """Prepare a cell.

        Args:
            shell: The IPython shell.
            code: The source of the cell.
            transformers: Applied to the syntax tree.
            ended: Called when the cell has ended.
        """
        self.told: dict[str, Any] | None = None
        self._shell = shell
        self._code = code
        self._transformers = transformers
        self._ended = ended
        self._displays: list[tuple[dict[str, str], str | None]] = []
        self._collected = Collected("", self._take, _late)
        self._diverted = Diverted(shell, self._collected)
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._turn = threading.Lock()
        self._is_users = True  # whether the thread runs the user's code, and not what follows it

    def start(self) -> None:
        """Start the thread. If the system has no thread left, that is the outcome of the cell."""
        self._diverted.begin()
        self._collected.show_late()
        try:
            self._thread.start()
        except RuntimeError as error:
            self._finish(error)

    def interrupt(self) -> None:
        """Raise KeyboardInterrupt in the user's code, as soon as it runs Python code again."""
        with self._turn:
            if self._is_users:
                _raise_in(self._thread, KeyboardInterrupt)
        _wake_loops_of(self._thread)

    def leave(self) -> None:
        """Let the cell keep its event loop if it still runs, because another cell will run beside it."""
        if self.told is None:
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
            self.told = self.told or {}
            self._ended()

    def _close(self) -> None:
        """Ignore interrupts from now on. One that was raised asynchronously has arrived by now, or is removed."""
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
        self._evaluate(self._compiled(tree, file, "exec"))
        if isinstance(last, ast.Expr):
            self._show(self._evaluate(self._compiled(ast.Expression(last.value), file, "eval")))

    def _compiled(self, tree: ast.Module | ast.Expression, file: str, mode: str) -> CodeType:
        flags = self._shell.compile.flags | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        return compile(tree, file, mode, flags=flags, dont_inherit=True)  # type: ignore[no-any-return]

    def _evaluate(self, code: CodeType) -> Any:
        names = self._shell.user_ns
        if code.co_flags & inspect.CO_COROUTINE:
            return _loop(eval(code, names))  # noqa: S307

        async def inside() -> Any:
            return eval(code, names)  # noqa: S307

        return _loop(inside()) if is_needed(self._code) else eval(code, names)  # noqa: S307

    def _show(self, value: Any) -> None:
        if value is None or self._code.rstrip().endswith(";"):
            return
        formats, _ = self._shell.displayhook.compute_format_data(value)
        self._shell.displayhook.update_user_ns(value)
        if formats:
            self._collected.take_value(SimpleNamespace(result=value), formats)

    def _take(self, message: Message) -> None:
        """Add a display, update an earlier one of the same name, or clear all."""
        names = [name for _, name in self._displays]
        if isinstance(message, Cleared):
            self._displays.clear()
        elif isinstance(message, Shown) and message.update and message.name in names:
            last = len(names) - 1 - names[::-1].index(message.name)
            self._displays[last] = (message.data, message.name)
        elif isinstance(message, Shown):
            self._displays.append((message.data, message.name))

    def _finish(self, error: BaseException | None) -> None:
        if error is not None:
            self._collected.take_error(error, _traceback(self._shell, error))
        self._collected.code_has_run = True
        try:
            self._diverted.end()
        finally:
            self._collected.finished([], [])
            self.told = {
                "value": self._collected.value,
                "text": self._collected.text,
                "error": self._collected.error,
                "displays": self._displays,
                "stdout": self._diverted.stdout.text(),
                "stderr": self._diverted.stderr.text(),
            }


def _raise_in(thread: threading.Thread, error: type[BaseException] | None) -> None:
    """Raise an exception in a thread's code, or remove one that was not raised yet (PyThreadState_SetAsyncExc)."""
    raised = None if error is None else ctypes.py_object(error)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), raised)


def _wake_loops_of(thread: threading.Thread) -> None:
    """Wake the event loops of a thread. A loop that waits runs no Python code, so no exception could be raised in it."""
    frame = sys._current_frames().get(thread.ident or 0)
    while frame is not None:
        loop, frame = frame.f_locals.get("self"), frame.f_back
        if isinstance(loop, asyncio.AbstractEventLoop):
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(lambda: None)


def _traceback(shell: Any, error: BaseException) -> str:
    traceback = _of_the_user(error.__traceback__)
    try:
        return _COLOUR.sub("", _laid_out(shell, error, traceback))
    except Exception:  # the user's objects may fail when they are shown
        return tracebacks.native(error, traceback)


def _laid_out(shell: Any, error: BaseException, traceback: TracebackType | None) -> str:
    kind, layout = type(error), shell.InteractiveTB
    if isinstance(error, SystemExit) or kind.__name__ == "UsageError":
        return "".join(layout.get_exception_only(kind, error)).rstrip("\n")
    if traceback is None and isinstance(error, SyntaxError):
        return str(layout.stb2text(shell.SyntaxTB.structured_traceback(kind, error, [])))
    tracebacks.explain(error)
    tracebacks.cut_own(traceback)
    if tracebacks.holds_group(error):
        return tracebacks.native(error, traceback)
    return str(layout.stb2text(layout.structured_traceback(kind, error, traceback, tb_offset=0)))


def _of_the_user(traceback: TracebackType | None) -> TracebackType | None:
    """Return the traceback from the first frame that is not of this package."""
    while traceback is not None and traceback.tb_frame.f_code.co_filename.startswith(_OWN_CODE):
        traceback = traceback.tb_next
    return traceback
