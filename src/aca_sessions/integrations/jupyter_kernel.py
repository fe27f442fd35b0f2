"""A Jupyter kernel whose cells run in a session: JupyterLab, VS Code, nbclient and others use it like any kernel.

`aca-sessions kernel install` makes Jupyter find it. Jupyter starts this module as a program, one process for each kernel.
"""

import argparse
import asyncio
import contextlib
import fnmatch
import os
import re
import secrets
import shlex
from collections import deque
from collections.abc import Coroutine, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from IPython.core.inputtransformer2 import TransformerManager

from .. import __version__
from ..client.executions import Execution
from ..client.pool import SessionPool
from ..client.session import Session
from ..connect import open_pool, settings_for_notebook
from ..errors import ACASessionsError, ServiceUnavailableError, imports_of
from ..guest_text import for_terminal, printable
from ..hints import Remedies, hint
from ..interactive import CellError
from ..lifetime import Tasks
from ..models import CodeExecutionResult, Event, Prompt
from ..rendering import CANNOT_ASK, STILL_RUNS, CellView, Html

with imports_of("jupyter"):
    import zmq
    from ipykernel.kernelapp import IPKernelApp
    from ipykernel.kernelbase import Kernel

_ANSWER_SECONDS = 5.0  # that completions and help may take
_REACTION_SECONDS = 2.0  # after which the user reads that a cell has not reacted to an interrupt
_LOOK_SECONDS = 0.02  # between two looks for the user's answer
_MOST_HISTORY = 1000
_END_OF_FILE = "\x04"
_HELP = re.compile(r"\s*(?:\?{1,2}[\w.]+|[\w.]+\?{1,2})\s*")
_INSTALL = re.compile(r"\s*[%!]pip +install +([^\n]+?)\s*")
_NO_WIDGETS = "[widgets are not available in this kernel: their outputs are text that does not change]"
_REMEDIES = Remedies("install a missing package with `%pip install PACKAGE`, in a cell of its own")
Answer = TypeVar("Answer")


class SessionKernel(Kernel):
    """A kernel that runs the cells of one notebook in one session, which ends with the kernel."""

    implementation = "aca_sessions"
    implementation_version = __version__
    banner = f"Python in an isolated session of aca-sessions {__version__}"
    language_info = {  # noqa: RUF012 - so in the base class
        "name": "python",
        "version": "3",  # which one is the session's, and is not known here
        "mimetype": "text/x-python",
        "file_extension": ".py",
        "codemirror_mode": {"name": "ipython", "version": 3},
        "pygments_lexer": "ipython3",
        "nbconvert_exporter": "python",
    }
    html: Html = "clean"

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._stack = contextlib.AsyncExitStack()
        self._opening = asyncio.Lock()
        self._opened: tuple[SessionPool, Session] | None = None
        self._timeout: float | None = None
        self._execution: Execution | None = None
        self._interrupts = 0  # of the cell that runs
        self._asking = asyncio.Lock()
        self._tasks = Tasks()
        self._secret = secrets.token_bytes(16)
        self._named: set[str] = set()
        self._history: deque[tuple[int, str, str | None]] = deque(maxlen=_MOST_HISTORY)
        self.shell_handlers |= {"comm_open": self._refuse_comm, "comm_msg": _ignore, "comm_close": _ignore}

    @property
    def kernel_info(self) -> dict[str, Any]:
        """Describe the kernel. It has no debugger and no subshells, whose cells would run in threads of their own."""
        return {**super().kernel_info, "supported_features": []}

    async def do_execute(
        self,
        code: str,
        silent: bool,
        store_history: bool = True,
        user_expressions: Mapping[str, str] | None = None,
        allow_stdin: bool = False,
        *,
        cell_meta: object = None,
        cell_id: object = None,
    ) -> dict[str, Any]:
        """Run a cell, and return the content of the reply. A silent cell shows no value, and neither counts nor is in the history."""
        self._interrupts = 0
        view = _View(self, is_silent=silent, pages=_HELP.fullmatch(code) is not None)
        is_kept = store_history and not silent and bool(code.strip())
        packages = _packages(code)
        try:
            pool, session = await self._open()
            if packages:
                result = await session.install(*packages)
                view.show(Event(kind="stdout", text=result.stdout))
                view.show(Event(kind="stderr", text=result.written_to_stderr))
            else:
                result = await self._run(session, view, code if is_kept else _uncounted(code, silent), allow_stdin=allow_stdin)
        except ACASessionsError as error:
            return self._failed(type(error).__name__, str(error), [f"{type(error).__name__}: {printable(str(error), colours=False)}"])
        if result.execution_count is not None:
            self.execution_count = result.execution_count  # as in its tracebacks, also after the session was lost
        elif not silent and (packages or not is_kept):
            self.execution_count -= 1  # the base class has counted it, and the session has not
        can_ask = allow_stdin or result.error is None or result.error.name != "EOFError"
        told = hint(result, pool._access_of(session.session_id), _REMEDIES) if can_ask else CANNOT_ASK
        result = view.finish(replace(result, hint=told), shows_value=not silent)
        if is_kept:
            self._history.append((self.execution_count, code, result.text))
        if result.error is not None:
            error_of_cell = CellError.of(result)
            return self._failed(type(error_of_cell).__name__, str(error_of_cell), error_of_cell._render_traceback_())
        pages = [{"source": "page", "data": {"text/plain": view.page}, "start": 0}] if view.page else []
        refused = {"status": "error", "ename": "NotSupportedError", "evalue": "this kernel evaluates no user_expressions", "traceback": []}
        expressions = dict.fromkeys(user_expressions or (), refused)
        return {"status": "ok", "execution_count": self.execution_count, "payload": pages, "user_expressions": expressions}

    async def _run(self, session: Session, view: "_View", code: str, *, allow_stdin: bool) -> CodeExecutionResult:
        """Run a cell and show what happens. Return its result."""
        on_input = _announced if allow_stdin else None
        execution = await session.start(code, timeout=self._timeout, sanitize=False, on_input=on_input)
        self._execution = execution = execution.answering(None)
        if self._interrupts:  # while it started
            await execution._interrupt(True)
        answers = Tasks()  # beside the events, because an interrupt ends a cell that waits for an answer
        try:
            async for event in execution.events():
                view.show(event)
                if event.kind == "input" and allow_stdin:
                    answers.start(self._answer(execution, event, view.question(event.prompt)))
                if event.result is not None:
                    return event.result
        finally:
            self._execution = None
            await answers.cancel()
        raise ServiceUnavailableError("the cell's events ended without a result: run the cell again", sent=True)

    async def _open(self) -> tuple[SessionPool, Session]:
        async with self._opening:
            if self._opened is None:
                settings, self._timeout = settings_for_notebook()
                pool = await self._stack.enter_async_context(open_pool(settings, spares=0))
                self._opened = pool, await self._stack.enter_async_context(pool.session())
            return self._opened

    def _failed(self, name: str, message: str, traceback: list[str]) -> dict[str, Any]:
        content = {"ename": name, "evalue": message, "traceback": traceback}
        self.send_response(self.iopub_socket, "error", content)
        return {"status": "error", "execution_count": self.execution_count, **content, "payload": [], "user_expressions": {}}

    async def _answer(self, execution: Execution, event: Event, question: str) -> None:
        """Send the cell the line that the user types. The methods of the base class would block the event loop."""
        async with self._asking:
            with contextlib.suppress(zmq.Again):
                while True:  # answers to earlier questions
                    self.stdin_socket.recv_multipart(zmq.NOBLOCK)
            content = {"prompt": question, "password": event.password}
            self.session.send(self.stdin_socket, "input_request", content, self.get_parent("shell"), ident=self._parent_ident["shell"])
            reply = None
            while reply is None:
                await asyncio.sleep(_LOOK_SECONDS)
                _, reply = self.session.recv(self.stdin_socket)
        text = str(reply["content"].get("value", ""))
        is_end = text == _END_OF_FILE
        with contextlib.suppress(ACASessionsError):  # the cell has ended
            await execution.reply(event, None if is_end else text, is_end=is_end)

    async def interrupt_request(self, stream: Any, ident: Any, parent: Any) -> None:
        """Interrupt the cell that runs. Only a second request may kill the interpreter."""
        await self._call(self._interrupt())
        if self.session is not None:
            self.session.send(stream, "interrupt_reply", {"status": "ok"}, parent, ident=ident)

    async def _interrupt(self) -> None:
        self._interrupts += 1
        if (execution := self._execution) is not None:
            if self._interrupts == 1:
                self._tasks.start(self._say_that_it_runs(execution))
            try:
                await execution._interrupt(self._interrupts == 1)
            except ACASessionsError as error:
                self._say(f"[hint] the cell was not interrupted: {printable(str(error), colours=False)}")

    async def _say_that_it_runs(self, execution: Execution) -> None:
        await asyncio.sleep(_REACTION_SECONDS)
        if self._execution is execution and self._interrupts == 1:
            self._say(STILL_RUNS)

    def _say(self, line: str) -> None:
        self.send_response(self.iopub_socket, "stream", {"name": "stderr", "text": f"{line}\n"}, channel="shell")

    async def do_shutdown(self, restart: bool) -> dict[str, Any]:
        """End the session. A restart starts another kernel."""
        await self._call(self._close())
        return {"status": "ok", "restart": restart}

    async def _close(self) -> None:
        await self._tasks.cancel()
        async with self._opening:
            self._opened = None
            await self._stack.aclose()

    async def _call(self, work: Coroutine[Any, Any, Answer]) -> Answer:
        """Await something on the event loop of the session. The control channel has a loop of its own, in another thread."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self.io_loop.asyncio_loop))  # type: ignore[attr-defined]

    async def do_complete(self, code: str, cursor_pos: int) -> dict[str, Any]:
        """Return completions from the session, or none if it does not answer in time."""
        matches, start, end = [], cursor_pos, cursor_pos
        with contextlib.suppress(ACASessionsError):
            _, session = await self._open()
            found = await session.complete(code, cursor_pos, timeout=_ANSWER_SECONDS)
            matches, start, end = [match for match in found.matches if match.isprintable()], found.start, found.end
        return {"status": "ok", "matches": matches, "cursor_start": start, "cursor_end": end, "metadata": {}}

    async def do_inspect(self, code: str, cursor_pos: int, detail_level: int = 0, omit_sections: object = ()) -> dict[str, Any]:
        """Return help from the session about the name at the cursor."""
        text = None
        with contextlib.suppress(ACASessionsError, TimeoutError):
            _, session = await self._open()
            async with asyncio.timeout(_ANSWER_SECONDS):
                text = await session.inspect(code, cursor_pos, detail=detail_level)
        data = {} if text is None else {"text/plain": for_terminal(text)}
        return {"status": "ok", "found": text is not None, "data": data, "metadata": {}}

    async def do_is_complete(self, code: str) -> dict[str, Any]:
        """Return whether a cell that is typed line by line is complete."""
        status, indent = TransformerManager().check_complete(code)
        return {"status": status, "indent": " " * (indent or 0)}

    async def do_history(
        self,
        hist_access_type: str,
        output: bool,
        raw: bool,
        session: object = None,
        start: int | None = None,
        stop: int | None = None,
        n: int | None = None,
        pattern: str | None = None,
        unique: bool = False,
    ) -> dict[str, Any]:
        """Return cells of this kernel: the last ones, those with a number from `start` to `stop`, or those that match a pattern."""
        rows = [*self._history]
        if hist_access_type == "range":
            rows = [row for row in rows if row[0] >= (start or 0) and (stop is None or row[0] < stop)]
        elif hist_access_type == "search":
            rows = [row for row in rows if fnmatch.fnmatchcase(row[1], pattern or "*")]
            if unique:
                rows = [*{row[1]: row for row in rows}.values()]
        if hist_access_type != "range" and n is not None:
            rows = rows[max(0, len(rows) - n) :]
        return {"status": "ok", "history": [(0, number, (code, text) if output else code) for number, code, text in rows]}

    async def create_subshell_request(self, socket: Any, ident: Any, parent: Any) -> None:
        """Refuse a subshell, because the session runs one cell at a time."""
        if self.session is not None:
            content = {"status": "error", "ename": "NotSupportedError", "evalue": "this kernel has no subshells", "traceback": []}
            self.session.send(socket, "create_subshell_reply", content, parent, ident=ident)

    def _refuse_comm(self, _stream: Any, _ident: Any, parent: Any) -> None:
        """Close a comm, the connection of a widget, at once."""
        content = {"comm_id": parent["content"].get("comm_id", ""), "data": {}}
        self.send_response(self.iopub_socket, "comm_close", content)
        self._say(_NO_WIDGETS)


class _View(CellView):
    """The view of one cell in the front ends of a kernel. If `pages` is true, what the cell writes to stdout becomes `page`."""

    def __init__(self, kernel: SessionKernel, *, is_silent: bool, pages: bool) -> None:
        runs_scripts = "aca-sessions kernel install --html raw"
        super().__init__(kernel.html, kernel._secret, runs_scripts=runs_scripts, named=kernel._named)
        self._kernel = kernel
        self._is_silent = is_silent
        self._pages = pages
        self.page = ""

    def _send(self, kind: str, content: dict[str, Any]) -> None:
        self._kernel.send_response(self._kernel.iopub_socket, kind, content)

    def _show_text(self, stream: str, text: str) -> None:
        if self._pages and stream == "stdout":
            self.page += text
        else:
            self._send("stream", {"name": stream, "text": text})

    def _show_data(self, data: Mapping[str, str], id: str | None, *, update: bool, is_value: bool) -> None:
        if is_value:
            self._show_result(data)
            return
        kind = "update_display_data" if update else "display_data"
        self._send(kind, {"data": data, "metadata": {}, "transient": {} if id is None else {"display_id": id}})

    def _show_value(self, result: CodeExecutionResult) -> None:
        self._show_result({"text/plain": for_terminal(result.text or "")})

    def _show_result(self, data: Mapping[str, str]) -> None:
        if not self._is_silent:
            self._send("execute_result", {"data": data, "metadata": {}, "execution_count": self._kernel.execution_count})

    def _clear(self, *, wait: bool) -> None:
        self._send("clear_output", {"wait": wait})


def _uncounted(code: str, silent: bool) -> str:
    """Return a cell that runs `code` without a number of its own and without an entry in the session's `In`."""
    # The session does not count cells that begin like this.
    return f"(lambda scope: (exec({f'get_ipython().run_cell({code!r}, silent={silent!r}, store_history=False)'!r}, scope)))(globals())"


def _packages(code: str) -> list[str]:
    """Return the packages of a cell that is one line `%pip install PACKAGE`, without other options. Return an empty list otherwise.

    The host installs them, because cells have no network by default.
    """
    found = _INSTALL.fullmatch(code)
    try:
        names = [name for name in shlex.split(found[1]) if name not in ("-q", "--quiet")] if found else []
    except ValueError:  # a quote that is not closed
        return []
    return [] if any(name.startswith("-") for name in names) else names


def _announced(_prompt: Prompt) -> None:
    """Announce that `input()` is answered, which `_answer` does."""


def _ignore(*_: object) -> None:
    """Ignore a message to a comm that was refused."""


def main() -> None:
    """Run a kernel until Jupyter ends it. The options are those of kernel.json."""
    parser = argparse.ArgumentParser(prog="aca_sessions.integrations.jupyter_kernel")
    parser.add_argument("--folder", required=True)
    parser.add_argument("--html", choices=("clean", "raw"), default="clean")
    parser.add_argument("-f", required=True)
    options = parser.parse_args()
    # Jupyter starts kernels in the notebook's folder, and a notebook may come from a stranger. Settings there could open the sandbox.
    os.chdir(options.folder)
    SessionKernel.html = options.html
    IPKernelApp.launch_instance(["-f", options.f], kernel_class=SessionKernel, capture_fd_output=False)


if __name__ == "__main__":
    main()
