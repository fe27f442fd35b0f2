"""Notebook magics: `%%session` runs a cell in an isolated session; `%session_files` lists its files, and `%session_reset` ends it.

IPython does not await magics, and the notebook runs its own event loop. So sessions run on another loop, in a thread.
"""

import atexit
import math
import sys
from argparse import ArgumentTypeError
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TypeVar

from anyio.from_thread import BlockingPortal
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import Magics, cell_magic, line_magic, magics_class
from IPython.core.magic_arguments import argument, magic_arguments, parse_argstring
from IPython.display import display

from .client.pool import SessionPool
from .client.session import Session
from .connect import open_pool
from .errors import ACASessionsError
from .guest_text import for_terminal
from .interactive import LoopThread
from .lifetime import Owner
from .models import CodeExecutionResult
from .rendering import Html, state_note, trusted

Answer = TypeVar("Answer")
_DEFAULT = "notebook"


def load(shell: object) -> None:
    """Register the magics in an IPython shell. The first magic that is used opens the pool."""
    if isinstance(shell, InteractiveShell):
        shell.register_magics(SessionMagics(shell))


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ArgumentTypeError(f"must be a number of seconds above 0, got {text!r}")
    return seconds


@magics_class
class SessionMagics(Magics):
    """Magics that use sessions by their names. All of them share one pool."""

    def __init__(self, shell: InteractiveShell) -> None:
        super().__init__(shell)
        self._stack = ExitStack()
        self._opened: tuple[BlockingPortal, SessionPool] | None = None

    @magic_arguments()
    @argument("name", nargs="?", default=_DEFAULT, help="the session; its variables and files are kept from cell to cell")
    @argument("--file", action="append", default=[], metavar="PATH", help="a file to copy to /mnt/data first; may be repeated")
    @argument("--timeout", type=_seconds, metavar="SECONDS", help="interrupt the cell after this time")
    @argument("--html", choices=("clean", "raw"), default="clean", help="raw lets scripts of displays run, in a frame, with your network")
    @cell_magic
    def session(self, line: str, cell: str) -> None:
        """Run the cell in an isolated session."""
        options = parse_argstring(self.session, line)
        files = [(Path(path).name, _content(Path(path))) for path in options.file]

        async def run(session: Session) -> CodeExecutionResult:
            for name, content in files:
                await session.upload_file(name, content)
            return await session.run(cell, timeout=options.timeout, sanitize=False)

        _show(self._in_session(options.name, run), options.html)

    @magic_arguments()
    @argument("name", nargs="?", default=_DEFAULT, help="the session")
    @line_magic
    def session_files(self, line: str) -> list[str]:
        """Return the names of the files in a session's /mnt/data."""

        async def listed(session: Session) -> list[str]:
            return [file.name for file in await session.list_files()]

        return self._in_session(parse_argstring(self.session_files, line).name, listed)

    @magic_arguments()
    @argument("name", nargs="?", default=_DEFAULT, help="the session")
    @line_magic
    def session_reset(self, line: str) -> None:
        """End a session by name. The next cell with that name starts a new one."""
        portal, pool = self._open()
        portal.call(pool.terminate, parse_argstring(self.session_reset, line).name)

    def _in_session(self, name: str, act: Callable[[Session], Awaitable[Answer]]) -> Answer:
        """Lease a session by name, call `act` with it and return the result. Interrupting the notebook cell cancels the call."""
        portal, pool = self._open()

        async def lease() -> Answer:
            async with pool.session(name) as session:
                return await act(session)

        acting = portal.start_task_soon(lease)
        try:
            return acting.result()
        except ACASessionsError as error:
            raise UsageError(str(error)) from error
        except KeyboardInterrupt:
            acting.cancel()
            raise

    def _open(self) -> tuple[BlockingPortal, SessionPool]:
        if self._opened is None:
            portal = self._stack.enter_context(LoopThread())
            opening: AbstractContextManager[SessionPool] = portal.wrap_async_context_manager(open_pool())
            self._opened = portal, self._stack.enter_context(opening)
            atexit.register(_close_here, self._stack, Owner())
        return self._opened


def _close_here(stack: ExitStack, owner: Owner) -> None:
    """Close the stack, but only in the process that opened it. A forked process lacks the event loop's thread and would wait forever."""
    if owner.is_here:
        stack.close()


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"--file {path} cannot be read: {error.strerror}") from error


def _show(result: CodeExecutionResult, html: Html) -> None:
    """Show a result as a notebook shows the results of its own cells, or as text in IPython at a terminal."""
    print(for_terminal(result.stdout), end="")
    print(for_terminal(result.stderr), end="\n" if result.stderr and not result.stderr.endswith("\n") else "", file=sys.stderr)
    for shown in result.displays:
        display(trusted(shown, html), raw=True)
    if result.text is not None and not any(shown.data.get("text/plain") == result.text for shown in result.displays):
        display({"text/plain": for_terminal(result.text)}, raw=True)
    if note := state_note(result):
        print(note, file=sys.stderr)
