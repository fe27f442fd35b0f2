"""One session for scripts and notebooks, without `await`: its event loop runs in a thread, and calls may come from any other."""

import warnings
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from anyio.from_thread import BlockingPortal

from ..client.history import History
from ..client.interpreter import CodeInterpreter
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
    """A session with state, for `with`. Ctrl-C interrupts the cell that runs and keeps the variables."""

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        policy: "Policy | None" = None,
        endpoint: str | None = None,
        session_id: str | None = None,
        timeout: float | None = None,
    ) -> None:
        """Opens nothing yet. Cells without a time limit of their own get `timeout`, or else the endpoint's."""
        opening = open_pool(settings, policy=policy, endpoint=endpoint, spares=0)
        self._opening: Callable[[], AbstractAsyncContextManager[Session]] = partial(_leased, opening, session_id)
        self._timeout = timeout
        self._stack = ExitStack()
        self._opened: tuple[BlockingPortal, Session] | None = None
        self._running: set[Future[Any]] = set()
        self._owner = Owner("the session")

    @classmethod
    def join(cls, session_id: str, *, settings: Settings | None = None, endpoint: str | None = None, timeout: float | None = None) -> Self:
        """One that may have begun before, and goes on at its endpoint when this object is closed."""
        joined = cls(settings, endpoint=endpoint, timeout=timeout)
        joined._opening = partial(_joined, open_interpreter(settings, endpoint=endpoint), session_id)
        return joined

    def open(self) -> Self:
        """Begins the session, where it has not begun."""
        if self._opened is None:
            with ExitStack() as stack:
                portal = stack.enter_context(LoopThread())
                session = stack.enter_context(portal.wrap_async_context_manager(self._opening()))
                self._opened, self._owner = (portal, session), Owner("the session")
                self._stack = stack.pop_all()
        return self

    def close(self) -> None:
        """End the session; cells that run in other threads are interrupted. In a forked process the session is its parent's and goes on."""
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
        """What became of a cell. `on_stdout` and `on_stderr` get what it writes while it runs, in this thread; `on_input` answers it.

        What is missing of the libraries is installed first; where that fails, its result is the answer and the cell is not run. A
        transactional cell that fails, runs too long or is killed leaves variables and files as they were.
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
        """What a cell does, while it does it, for a `for` loop; the last event is its result. Leaving it early interrupts the cell."""
        limit = self._timeout if timeout is None else timeout
        cell = LiveCell(*self._live(), code, timeout=limit, on_input=on_input, transactional=transactional)
        self._track(cell.following)
        return cell

    def interrupt(self) -> None:
        """Interrupts the cells that other threads run here; each gets its result, and the variables are kept where Python could stop it."""
        self._call(lambda session: session.interrupt())

    def reset(self) -> None:
        """Clears the variables and keeps the files."""
        self._call(lambda session: session.reset())

    def install(self, *requirements: str) -> CodeExecutionResult:
        """What became of installing packages."""
        return self._call(lambda session: session.install(*requirements))

    def uninstall(self, *names: str) -> CodeExecutionResult:
        """What became of taking away what was installed here."""
        return self._call(lambda session: session.uninstall(*names))

    def packages(self) -> list[Package]:
        """What was installed here."""
        return self._call(lambda session: session.packages())

    def execute_command(self, command: str, *, timeout: float | None = None) -> CommandResult:
        """What became of a command of the session's shell."""
        return self._call(lambda session: session.execute_command(command, timeout=timeout))

    def checkpoint(self, name: str | None = None) -> Checkpoint:
        """Keeps variables and files as they are now; SnapshotError says what is in the way."""
        return self._call(lambda session: session.checkpoint(name))

    def checkpoints(self) -> list[Checkpoint]:
        """What `rollback` can go back to, the oldest first."""
        return self._call(lambda session: session.checkpoints())

    def rollback(self, checkpoint: Checkpoint | str | None = None) -> Checkpoint:
        """Variables and files are as they were at a checkpoint, or at the latest; it stays."""
        return self._call(lambda session: session.rollback(checkpoint))

    def undo(self) -> Checkpoint:
        """Back to the latest checkpoint, which is used up: once more goes further back."""
        return self._call(lambda session: session.undo())

    def branch(self, count: int = 1, *, reseed: bool = True) -> "list[InteractiveSession]":
        """So many sessions that go on from here, each with its own variables and files; each ends with its block, or with this session."""
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
        """The user's variables, by name."""
        return self._call(lambda session: session.variables())

    def health(self) -> SessionHealth:
        """How the session fares."""
        return self._call(lambda session: session.health())

    def upload_file(self, name: str, data: bytes | str | Path) -> RemoteFile:
        """Writes a file into /mnt/data."""
        return self._call(lambda session: session.upload_file(name, data))

    def download_file(self, name: str) -> bytes:
        """A file's content."""
        return self._call(lambda session: session.download_file(name))

    def save_file(self, name: str, path: Path) -> int:
        """Write a file's content to a path on this machine and return its size. What is there is replaced whole or not at all."""
        return self._call(lambda session: session.save_file(name, path))

    def list_files(self, folder: str = "") -> list[RemoteFile]:
        """The files in /mnt/data, or in a folder of it."""
        return self._call(lambda session: session.list_files(folder))

    def delete_file(self, name: str) -> None:
        """Deletes a file."""
        self._call(lambda session: session.delete_file(name))

    @property
    def history(self) -> History:
        """What was done in this session, in order."""
        return self._live()[1].history

    def write_notebook(self, path: str | Path) -> None:
        """The same as an .ipynb file: cells with their outputs, and the files that were uploaded."""
        self._live()[1].write_notebook(path)

    def write_script(self, path: str | Path) -> None:
        """The cells as Python in the percent format."""
        self._live()[1].write_script(path)

    def replay(self, notebook: str | Path | Mapping[str, Any], *, timeout: float | None = None) -> ReplayReport:
        """Runs a notebook's cells here, and tells what came out differently."""
        return self._call(lambda session: replay(notebook, session, timeout=timeout))

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_opened", None) is not None and self._owner.is_here:
            warnings.warn(f"{self!r} was never closed: use 'with'", ResourceWarning, source=self, stacklevel=2)
            self.close()

    def __repr__(self) -> str:
        return f"<InteractiveSession {'open' if self._opened else 'closed'}>"

    def _call(self, act: Callable[[Session], Coroutine[Any, Any, Answer]]) -> Answer:
        """Acts in the session's own thread, and takes an interrupt of the caller's on to it."""
        portal, session = self._live()
        acting: Future[Answer] = self._track(portal.start_task_soon(act, session))
        try:
            return acting.result()
        except KeyboardInterrupt:
            if not acting.cancel() and acting.exception() is None and isinstance(result := acting.result(), CodeExecutionResult):
                portal.call(session.take_back, result)  # it arrived at the moment of the interrupt, and the caller does not get it
            raise
        except CancelledError:
            raise ACASessionsError("the session was closed while this call waited") from None

    def _track(self, acting: "Future[Answer]") -> "Future[Answer]":
        """Closing the session cancels it."""
        self._running.add(acting)
        acting.add_done_callback(self._running.discard)
        return acting

    def _live(self) -> tuple[BlockingPortal, Session]:
        if self._opened is None:
            raise ACASessionsError("the session is not open: use 'with InteractiveSession() as session', or call open()")
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
