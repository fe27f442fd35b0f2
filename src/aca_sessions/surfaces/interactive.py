"""One session for scripts and notebooks, without `await`. Its event loop runs in a thread of its own, and any other thread may call it."""

from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from anyio.from_thread import BlockingPortal

from ..client.history import History
from ..client.interpreter import CodeInterpreter
from ..client.made_at import caller
from ..client.pool import SessionPool
from ..client.replay import ReplayReport, replay
from ..client.session import Session
from ..connect import Opening, open_interpreter, open_pool
from ..errors import ACASessionsError
from ..models import Checkpoint, CodeExecutionResult, CommandResult, Package, RemoteFile, SessionHealth, Variable
from ..owner import Owner
from ..settings import Settings
from .live_cell import LiveCell, OnInput
from .loop_thread import LoopThread

if TYPE_CHECKING:
    from ..sandbox.policy import Policy

Answer = TypeVar("Answer")
OnText = Callable[[str], object]


class InteractiveSession:
    """A session that runs cells and keeps files without `await`, in a `with` block. Ctrl-C interrupts the cell and keeps the variables.

    In a process that is forked from the one that opened it, its methods raise ForkedProcessError, and closing it does nothing.
    """

    _name = "InteractiveSession"  # the class that errors and warnings name

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        policy: "Policy | None" = None,
        endpoint: str | None = None,
        session_id: str | None = None,
        timeout: float | None = None,
    ) -> None:
        """Prepare a session, which `open` starts.

        Args:
            settings: Where sessions run. By default the ACASessions section of appsettings.json and of the environment.
            policy: Limits and network of the embedded sandbox.
            endpoint: The URL of a server, in place of the one in the settings.
            session_id: The session's name, by default a new one.
            timeout: The time limit in seconds of cells that set none, by default the endpoint's.
        """
        opening = open_pool(settings, policy=policy, endpoint=endpoint, spares=0)
        self._opening: Callable[[], AbstractAsyncContextManager[Session]] = partial(_leased, opening, session_id)
        self._timeout = timeout
        self._made_at = caller()
        self._stack = ExitStack()
        self._opened: tuple[BlockingPortal, Session] | None = None
        self._running: set[Future[Any]] = set()
        self._owner = Owner("the session")

    @classmethod
    def join(cls, session_id: str, *, settings: Settings | None = None, endpoint: str | None = None, timeout: float | None = None) -> Self:
        """Return an object for a session that may exist already. Closing the object leaves the session at its endpoint.

        Args:
            session_id: The session's name.
            settings: Where sessions run.
            endpoint: The URL of a server, in place of the one in the settings.
            timeout: The time limit in seconds of cells that set none, by default the endpoint's.
        """
        joined = cls(settings, endpoint=endpoint, timeout=timeout)
        joined._opening = partial(_joined, open_interpreter(settings, endpoint=endpoint), session_id)
        return joined

    def open(self) -> Self:
        """Start the session, unless it is open. Return this object."""
        if self._opened is None:
            with ExitStack() as stack:
                portal = stack.enter_context(LoopThread())
                session = stack.enter_context(portal.wrap_async_context_manager(self._opening()))
                self._opened, self._owner = (portal, session), Owner("the session")
                self._stack = stack.pop_all()
        return self

    def close(self) -> None:
        """End the session, and interrupt cells that run in other threads. In a forked process do nothing."""
        self._opened = None
        if not self._owner.is_here:
            self._running.clear()
            self._stack.pop_all()
            return
        for running in [*self._running]:
            running.cancel()
        self._stack.close()

    def run(
        self,
        code: str,
        *,
        libraries: Sequence[str] = (),
        timeout: float | None = None,
        on_stdout: OnText | None = None,
        on_stderr: OnText | None = None,
        on_input: OnInput | None = None,
        transactional: bool = False,
    ) -> CodeExecutionResult:
        """Run a cell and return its result.

        Args:
            code: The source text.
            libraries: Packages to install first, if they are missing. If that fails, its result is returned and the cell is not run.
            timeout: The time limit in seconds, by default the session's.
            on_stdout: Called in this thread with what the cell writes while it runs.
            on_stderr: The same for its standard error.
            on_input: Called in this thread with the prompt of `input()`; returns the line, or None for an EOFError in the cell.
            transactional: Undo the cell if it fails, runs too long or is killed. `state` reports if that was not possible.
        """
        if libraries and not (installed := self._call(lambda session: session.install_missing(*libraries))).success:
            return installed
        limit = self._timeout if timeout is None else timeout
        if on_stdout is None and on_stderr is None and on_input is None:
            return self._call(lambda session: session.run(code, timeout=limit, transactional=transactional))
        followers = {"stdout": on_stdout, "stderr": on_stderr}
        for event in self.stream(code, timeout=limit, on_input=on_input, transactional=transactional):
            follower = followers.get(event.kind)
            if follower is not None:
                follower(event.text)
            if event.result is not None:
                return event.result
        raise ACASessionsError("the session was closed while this cell ran")

    def stream(self, code: str, *, timeout: float | None = None, on_input: OnInput | None = None, transactional: bool = False) -> LiveCell:
        """Run a cell and return its events, for a `for` loop. The last event is its result. Leaving the loop early interrupts the cell.

        Args:
            code: The source text.
            timeout: The time limit in seconds, by default the session's.
            on_input: Called in this thread with the prompt of `input()`; returns the line, or None for an EOFError in the cell.
            transactional: Undo the cell if it fails, runs too long or is killed.
        """
        limit = self._timeout if timeout is None else timeout
        cell = LiveCell(*self._live(), code, timeout=limit, on_input=on_input, transactional=transactional)
        self._track(cell.following)
        return cell

    def interrupt(self) -> None:
        """Interrupt the cell that another thread runs here. It gets its result. Variables are kept if Python could stop it."""
        self._call(lambda session: session.interrupt())

    def reset(self) -> None:
        """Clear the variables and keep the files. Our own server also ends background processes and removes all checkpoints."""
        self._call(lambda session: session.reset())

    def install(self, *requirements: str) -> CodeExecutionResult:
        """Install packages and return the result."""
        return self._call(lambda session: session.install(*requirements))

    def uninstall(self, *names: str) -> CodeExecutionResult:
        """Uninstall packages that were installed here and return the result."""
        return self._call(lambda session: session.uninstall(*names))

    def packages(self) -> list[Package]:
        """Return the packages that were installed here."""
        return self._call(lambda session: session.packages())

    def execute_command(self, command: str, *, timeout: float | None = None) -> CommandResult:
        """Run a command in the session's shell and return its result."""
        return self._call(lambda session: session.execute_command(command, timeout=timeout))

    def checkpoint(self, name: str | None = None) -> Checkpoint:
        """Keep variables and files in /mnt/data as they are now, and return the checkpoint. SnapshotError names what prevents that."""
        return self._call(lambda session: session.checkpoint(name))

    def checkpoints(self) -> list[Checkpoint]:
        """Return the checkpoints, the oldest first."""
        return self._call(lambda session: session.checkpoints())

    def rollback(self, checkpoint: Checkpoint | str | None = None) -> Checkpoint:
        """Return variables and files to a checkpoint, by default the latest, and end background processes. The checkpoint stays.

        A text is looked up as a checkpoint's name first, then as its id.
        """
        return self._call(lambda session: session.rollback(checkpoint))

    def undo(self) -> Checkpoint:
        """Roll back to the latest checkpoint and remove it, so that the next call goes further back."""
        return self._call(lambda session: session.undo())

    def branch(self, count: int = 1, *, reseed: bool = True) -> "list[InteractiveSession]":
        """Return new sessions that continue from here, each with its own variables and files in /mnt/data.

        They share /tmp. Each ends with its block, or with this session.

        Args:
            count: How many, 1 to 64.
            reseed: Let each draw other random numbers.
        """
        portal, _ = self._live()
        branches = []
        for session in self._call(lambda session: session.branch(count, reseed=reseed)):
            branch = InteractiveSession(timeout=self._timeout)
            branch._opened = portal, session
            branch._stack.callback(portal.call, session.close)
            self._stack.callback(branch.close)
            branches.append(branch)
        return branches

    def variables(self) -> list[Variable]:
        """Return the user's variables, by name."""
        return self._call(lambda session: session.variables())

    def health(self) -> SessionHealth:
        """Return how the session is doing."""
        return self._call(lambda session: session.health())

    def upload_file(self, name: str, data: bytes | str | Path) -> RemoteFile:
        """Write a file into /mnt/data."""
        return self._call(lambda session: session.upload_file(name, data))

    def download_file(self, name: str) -> bytes:
        """Return a file's content."""
        return self._call(lambda session: session.download_file(name))

    def save_file(self, name: str, path: Path) -> int:
        """Write a file's content to a path on this machine and return its size. A file at that path is replaced whole or not at all."""
        return self._call(lambda session: session.save_file(name, path))

    def list_files(self, folder: str = "") -> list[RemoteFile]:
        """Return the files in /mnt/data, or in a folder of it."""
        return self._call(lambda session: session.list_files(folder))

    def delete_file(self, name: str) -> None:
        """Delete a file."""
        self._call(lambda session: session.delete_file(name))

    @property
    def history(self) -> History:
        """Return what was done in this session, in order."""
        return self._live()[1].history

    def write_notebook(self, path: str | Path) -> None:
        """Write what was done here as an .ipynb file: cells with their outputs, and the files that were uploaded."""
        self._live()[1].write_notebook(path)

    def write_script(self, path: str | Path) -> None:
        """Write the cells as Python in the percent format."""
        self._live()[1].write_script(path)

    def replay(self, notebook: str | Path | Mapping[str, Any], *, timeout: float | None = None) -> ReplayReport:
        """Run a notebook's cells here, and return what came out differently. `timeout` is the limit of each cell in seconds."""
        return self._call(lambda session: replay(notebook, session, timeout=timeout))

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_opened", None) is not None and self._owner.is_here:
            self._made_at.warn_unclosed(repr(self), "with", source=self)
            self.close()

    def __repr__(self) -> str:
        return f"<{self._name} {'open' if self._opened else 'closed'}>"

    def _call(self, act: Callable[[Session], Coroutine[Any, Any, Answer]]) -> Answer:
        """Call a function in the session's own thread and return its result. An interrupt of the caller cancels the call."""
        portal, session = self._live()
        acting: Future[Answer] = self._track(portal.start_task_soon(act, session))
        try:
            return acting.result()
        except KeyboardInterrupt:
            if not acting.cancel() and acting.exception() is None and isinstance(result := acting.result(), CodeExecutionResult):
                portal.call(session.take_back, result)  # it arrived at the moment of the interrupt: the caller does not get it
            raise
        except CancelledError:
            raise ACASessionsError("the session was closed while this call waited") from None

    def _track(self, acting: "Future[Answer]") -> "Future[Answer]":
        """Let closing the session cancel this call."""
        self._running.add(acting)
        acting.add_done_callback(self._running.discard)
        return acting

    def _live(self) -> tuple[BlockingPortal, Session]:
        if self._opened is None:
            raise ACASessionsError(f"the session is not open: use 'with {self._name}() as session', or call open()")
        self._owner.check()
        return self._opened


@asynccontextmanager
async def _leased(opening: Opening[SessionPool], session_id: str | None) -> AsyncIterator[Session]:
    async with opening as pool, pool.session(session_id) as session:
        yield session


@asynccontextmanager
async def _joined(opening: Opening[CodeInterpreter], session_id: str) -> AsyncIterator[Session]:
    async with opening as interpreter:
        yield Session(interpreter, session_id)
