"""Use one session without `await`, in scripts and notebooks.

The session's event loop runs in its own thread. Any other thread may call the session's methods.
"""

import asyncio
import atexit
import contextlib
import inspect
import queue
import re
import signal
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import AbstractAsyncContextManager, AbstractContextManager, ExitStack, asynccontextmanager, contextmanager
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeVar

import anyio
from anyio.from_thread import BlockingPortal

from .client.executions import Execution
from .client.filesystem import Filesystem
from .client.history import History
from .client.interpreter import CodeInterpreter
from .client.pool import SessionPool
from .client.replay import ReplayReport, replay
from .client.session import Session
from .connect import Opening, open_interpreter, open_pool
from .errors import ACASessionsError, ExecutionError
from .guest_text import for_terminal
from .lifetime import OwnerProcess, find_calling_line
from .models import CodeExecutionResult, Event, Prompt
from .network.denials import Answer as DenialAnswer
from .network.denials import Denial, OnDenied, decide
from .settings import Settings

if TYPE_CHECKING:
    from .network.rules import Network
    from .sandbox.policy import Policy


_ERRORS_NAME = re.compile(r"[A-Za-z_]\w{0,99}", re.ASCII)
# What a traceback shows in colour. Pygments would take minutes for some texts of 20,000 characters.
_COLOURED = re.compile(
    r"^(?:(?P<red>-{20,200}$|[A-Za-z_]\w{0,99}(?=: |$| +Traceback \())|-{4,20}> \d+|File \S{1,500}|Cell In\[\d{1,9}\], line \d{1,9})",
    re.MULTILINE | re.ASCII,
)


class LoopThread:
    """An event loop in its own thread. A `with` block starts the loop, returns a portal for calling it, and stops it at the end.

    This is a class and not a generator such as `anyio.from_thread.start_blocking_portal`, because Python closes a generator when nothing
    refers to it any more. If that happened in a forked process, closing would wait forever for the thread, which exists only in the parent.
    """

    def __init__(self) -> None:
        self._started: Future[BlockingPortal] = Future()
        self._thread = threading.Thread(target=self._work, daemon=True, name="aca-sessions-loop")

    def __enter__(self) -> BlockingPortal:
        self._thread.start()
        return self._started.result()

    def __exit__(self, *_: object) -> None:
        portal = self._started.result()
        portal.call(portal.stop)
        self._thread.join()

    def _work(self) -> None:
        try:
            anyio.run(self._run)
        except BaseException as error:
            if self._started.done():
                raise
            self._started.set_exception(error)  # for example: no descriptor is left for a loop

    async def _run(self) -> None:
        async with BlockingPortal() as portal:
            self._started.set_result(portal)
            await portal.sleep_until_stopped()


@contextmanager
def handle_ctrl_c(handler: Callable[..., object]) -> Iterator[None]:
    """Call `handler` on Ctrl-C during a `with` block. Do nothing outside the main thread, because only that one gets signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    outer = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, outer)


_REACTION_SECONDS = 2.0  # after which a notebook's user reads that the cell has not reacted to an interrupt

OnInput = Callable[[Prompt], "str | None"]


class LiveCell:
    """A running cell. A `for` loop over it yields its events as they happen, without `await`.

    The last event has the result. Leaving the `for` loop early interrupts the cell.

    Attributes:
        following: The task that reads the cell's events. It ends with the cell.
    """

    def __init__(
        self,
        portal: BlockingPortal,
        session: Session,
        code: str,
        *,
        timeout: float | None,
        on_input: OnInput | None,
        on_denied: OnDenied | None = None,
        transactional: bool = False,
        sanitize: bool = True,
    ) -> None:
        """Start the cell.

        Args:
            portal: Calls functions on the event loop of the session.
            session: The session.
            code: The source text.
            timeout: The time limit in seconds, by default the endpoint's.
            on_input: Called with the prompt of `input()`. It returns the line, or None for an EOFError in the cell.
            on_denied: Called with each request that the rules of the session's network refuse.
            transactional: Undo the cell's changes if it fails.
            sanitize: Remove Markdown fences around the code.
        """
        self._owner = OwnerProcess("the cell")
        self._portal = portal
        self._session = session
        self._on_input, self._on_denied = on_input, on_denied
        self._events: queue.SimpleQueue[Event | BaseException | Callable[[], object] | None] = queue.SimpleQueue()
        self._execution: Execution | None = None
        self._cancelled = self._gentle = self._left = False
        # These only announce which questions are answered. The caller's thread calls the functions: on the loop they would block others.
        options: dict[str, Any] = {"timeout": timeout, "on_input": on_input, "on_denied": on_denied}
        options |= {"transactional": transactional, "sanitize": sanitize}
        self.following = portal.start_task_soon(self._follow, partial(session.start, code, **options))

    def cancel(self) -> None:
        """Interrupt the cell without blocking, so a signal handler may call this. A loop over the cell still gets its result."""
        self._cancelled, self._gentle = True, False
        if self._execution is not None:
            self._portal.start_task_soon(self._session._cancel_quietly, self._execution)

    async def _cancel_gently(self, on_delay: Callable[[], object]) -> None:
        """Interrupt the cell by SIGINT alone. If it still runs after 2 s, have the loop over the cell call `on_delay`."""
        if self._execution is not None:  # otherwise `_follow` interrupts it
            with contextlib.suppress(ACASessionsError):
                await self._execution._interrupt(True)
        await asyncio.sleep(_REACTION_SECONDS)
        if self._gentle and not self.following.done():
            self._events.put(on_delay)

    @property
    def is_cancelled(self) -> bool:
        """Return whether `cancel` was called."""
        return self._cancelled

    def interrupted_by_ctrl_c(self, on_delay: Callable[[], object] | None = None) -> AbstractContextManager[None]:
        """Make the first Ctrl-C in a `with` block interrupt the cell, and a second one raise KeyboardInterrupt.

        After the first Ctrl-C, the `for` loop over the cell continues until it has got the result.

        With `on_delay`, one more Ctrl-C comes before these two. It sends only SIGINT, which never kills the interpreter. The loop calls
        `on_delay` if the cell has not ended 2 s later.
        """

        def interrupt(*_: object) -> None:
            if on_delay is not None and not self._cancelled:
                self._cancelled = self._gentle = True
                self._portal.start_task_soon(self._cancel_gently, on_delay)
                return
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self.cancel()

        return handle_ctrl_c(interrupt)

    def __iter__(self) -> Iterator[Event]:
        self._owner.check()
        result = None
        try:
            while (event := self._events.get()) is not None:
                if isinstance(event, BaseException):
                    raise event
                if not isinstance(event, Event):
                    event()
                    continue
                if event.kind == "input" and self._on_input is not None:
                    self._answer(event, self._on_input)
                elif event.kind == "network" and self._on_denied is not None:
                    self._decide(event, self._on_denied)
                result = event.result
                yield event
        finally:
            self._left = result is None
            self.following.cancel()
            if self._left:
                self._undo_unread_delivery()

    def _undo_unread_delivery(self) -> None:
        """Treat a result that the caller did not read as not received: the next result then reports lost variables and files again."""
        with contextlib.suppress(queue.Empty, RuntimeError):  # RuntimeError: the session was closed
            while True:
                event = self._events.get_nowait()
                if isinstance(event, Event) and event.result is not None:
                    self._portal.call(self._session._undo_delivery, event.result)

    async def _follow(self, start: Callable[[], Coroutine[Any, Any, Execution]]) -> None:
        ended = False
        try:
            started = await start()
            self._execution = started.answering(None)
            if self._cancelled:
                await (self._execution._interrupt(True) if self._gentle else self._session._cancel_quietly(self._execution))
            async for event in self._execution.events():
                ended = event.kind == "result"
                self._events.put(event)
                # The reader left before this was in the queue, so it did not take it back.
                if self._left and event.result is not None:
                    self._session._undo_delivery(event.result)
        except Exception as error:
            self._events.put(error)
        finally:
            self._events.put(None)
            if not ended and self._execution is not None:
                await self._session._cancel_quietly(self._execution)

    def _answer(self, event: Event, on_input: OnInput) -> None:
        if self._execution is None:
            return
        try:
            self._portal.call(self._execution.reply, event, on_input(event.prompt))
        except EOFError:
            self._portal.call(partial(self._execution.reply, event, None, is_end=True))

    def _decide(self, event: Event, on_denied: OnDenied) -> None:
        if self._execution is None:
            return
        denial, answer = Denial.from_json(event.text, self._session.session_id), None
        try:
            answer = on_denied(denial)
        finally:  # on the loop, because `decide` awaits the answer of an async function
            decision = self._portal.call(decide, lambda _: answer, denial)
            self._portal.call(self._execution.reply, event, None if decision == "refuse" else decision)


class CellError(ExecutionError):
    """The error of a cell in a session. A notebook shows it like an error of its own code, with the traceback from the session.

    Each instance belongs to a subclass that has the name of the exception in the session, such as ValueError.
    """

    def __init__(self, result: CodeExecutionResult) -> None:
        """Create the error for the `result` of a failed cell."""
        super().__init__(for_terminal(result.error.message) if result.error else "")
        self.result = result

    @classmethod
    def of(cls, result: CodeExecutionResult) -> "CellError":
        """Create the error for a failed cell, in a new subclass that has the name of the exception in the session."""
        name = result.error.name if result.error and _ERRORS_NAME.fullmatch(result.error.name) else "SessionError"
        kind: type[CellError] = type(name, (cls,), {"__module__": __name__})
        return kind(result)

    def _render_traceback_(self) -> list[str]:
        """Return the lines that IPython shows as the traceback: the session's, because nothing failed in this process."""
        error = self.result.error
        return _COLOURED.sub(_coloured, for_terminal((error.traceback or str(error)).strip("\n"))).split("\n") if error else []


def _coloured(found: "re.Match[str]") -> str:
    return f"\x1b[{31 if found['red'] else 32}m{found[0]}\x1b[0m"


class _Denials:
    """Passes denials of one cell from the event loop to the thread that waits for the cell. That thread decides about them."""

    def __init__(self, on_denied: OnDenied) -> None:
        self._on_denied = on_denied
        self._asked: queue.SimpleQueue[tuple[Denial, Future[Any]] | None] = queue.SimpleQueue()

    async def ask(self, denial: Denial) -> DenialAnswer:
        """Return what `on_denied` returns in the thread. Call this on the event loop."""
        answer: Future[Any] = Future()
        self._asked.put((denial, answer))
        found = await asyncio.wrap_future(answer)
        return await found if inspect.isawaitable(found) else found  # type: ignore[no-any-return]

    def decide_until_done(self, call: "Future[Any]") -> None:
        """Call `on_denied` with each denial until `call` is done. Call this in the thread. `ask` raises its exceptions."""
        call.add_done_callback(lambda _: self._asked.put(None))
        while (asked := self._asked.get()) is not None:
            denial, answer = asked
            if not answer.set_running_or_notify_cancel():  # the cell has ended
                continue
            try:
                answer.set_result(self._on_denied(denial))
            except Exception as error:
                answer.set_exception(error)
            except BaseException:
                call.cancel()
                raise


Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")
Method = Callable[Concatenate[Session, Arguments], Coroutine[Any, Any, Answer]]
OnText = Callable[[str], object]


def blocking(method: Method[Arguments, Answer]) -> "Callable[Concatenate[InteractiveSession, Arguments], Answer]":
    """Return a method of InteractiveSession that calls an async method of Session and waits for its result.

    The returned method has the signature and the docstring of the async one, because `inspect.signature` follows `__wrapped__`.
    """

    @wraps(method)
    def wait(self: "InteractiveSession", /, *arguments: Arguments.args, **options: Arguments.kwargs) -> Answer:
        return self._call(method, *arguments, **options)

    wait.__module__, wait.__qualname__ = __name__, f"InteractiveSession.{method.__name__}"
    return wait


def _blocking_file(
    method: Callable[Concatenate[Filesystem, Arguments], Coroutine[Any, Any, Answer]],
) -> "Callable[Concatenate[InteractiveFilesystem, Arguments], Answer]":
    """Return a method of InteractiveFilesystem that calls an async method of Filesystem and waits for its result."""

    @wraps(method)
    def wait(self: "InteractiveFilesystem", /, *arguments: Arguments.args, **options: Arguments.kwargs) -> Answer:
        async def call(session: Session) -> Answer:
            return await method(session.filesystem, *arguments, **options)

        return self._session._call(call)

    wait.__module__, wait.__qualname__ = __name__, f"InteractiveFilesystem.{method.__name__}"
    return wait


class InteractiveFilesystem:
    """The files of a session anywhere, as in `Session.filesystem`, without `await`."""

    def __init__(self, session: "InteractiveSession") -> None:
        self._session = session

    read = _blocking_file(Filesystem.read)
    write = _blocking_file(Filesystem.write)
    edit = _blocking_file(Filesystem.edit)
    stat = _blocking_file(Filesystem.stat)
    exists = _blocking_file(Filesystem.exists)
    list_folder = _blocking_file(Filesystem.list_folder)
    resolve = _blocking_file(Filesystem.resolve)
    make_folder = _blocking_file(Filesystem.make_folder)
    remove = _blocking_file(Filesystem.remove)
    move = _blocking_file(Filesystem.move)
    glob = _blocking_file(Filesystem.glob)
    grep = _blocking_file(Filesystem.grep)


class InteractiveSession:
    """A session whose methods work without `await`. Use it in a `with` block. Ctrl-C interrupts the cell and keeps the variables.

    In a process that is forked from the one that opened the session, methods raise ForkedProcessError, and `close` does nothing.
    """

    _name = "InteractiveSession"  # the class that errors and warnings name

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        policy: "Policy | None" = None,
        endpoint: str | None = None,
        session_id: str | None = None,
        network: "Network | None" = None,
        timeout: float | None = None,
        on_denied: OnDenied | None = None,
    ) -> None:
        """Prepare a session. `open` or a `with` block starts it.

        Args:
            settings: The settings; by default they are read from appsettings.json and the environment.
            policy: The limits, network and other rights of an embedded session. It replaces the policy in the settings.
            endpoint: The URL of a server. It replaces the one in the settings.
            session_id: The session's name, by default a new one.
            network: What this session can reach, also at a server: see `set_network`.
            timeout: The time limit in seconds of cells that set none, by default the endpoint's.
            on_denied: Called in the thread of the cell's caller with each request that the rules of the session's network refuse. It gets a
                `Denial` and returns `"once"`, `"always"`, or None to refuse it.
        """
        opening = open_pool(settings, policy=policy, endpoint=endpoint, spares=0)
        self._opening: Callable[[], AbstractAsyncContextManager[Session]] = partial(_leased, opening, session_id, network)
        self._timeout, self._on_denied = timeout, on_denied
        self._created_at = find_calling_line()
        self._stack = ExitStack()
        self._opened: tuple[BlockingPortal, Session] | None = None
        self._running: set[Future[Any]] = set()
        self._owner = OwnerProcess("the session")

    @classmethod
    def join(
        cls,
        session_id: str,
        *,
        settings: Settings | None = None,
        endpoint: str | None = None,
        timeout: float | None = None,
        on_denied: OnDenied | None = None,
    ) -> Self:
        """Use the session with a given name, which may exist already at its endpoint. `open` or a `with` block connects to it.

        Closing the returned object does not end the session.

        Args:
            session_id: The session's name.
            settings: The settings; by default they are read from appsettings.json and the environment.
            endpoint: The URL of a server. It replaces the one in the settings.
            timeout: The time limit in seconds of cells that set none, by default the endpoint's.
            on_denied: Called with each request that the rules of the session's network refuse, as in the constructor.
        """
        joined = cls(settings, endpoint=endpoint, timeout=timeout, on_denied=on_denied)
        joined._opening = partial(_joined, open_interpreter(settings, endpoint=endpoint), session_id)
        return joined

    @classmethod
    def _wrap(cls, portal: BlockingPortal, session: Session, *, timeout: float | None = None, on_denied: OnDenied | None = None) -> Self:
        """Create an open InteractiveSession that calls an async session through a portal. Closing it does not end the session."""
        opened = cls(timeout=timeout, on_denied=on_denied)
        opened._opened = portal, session
        return opened

    def open(self) -> Self:
        """Start the session, unless it is started already, and return this object."""
        if self._opened is None:
            with ExitStack() as stack:
                portal = stack.enter_context(LoopThread())
                session = stack.enter_context(portal.wrap_async_context_manager(self._opening()))
                self._opened, self._owner = (portal, session), OwnerProcess("the session")
                self._stack = stack.pop_all()
                _open_sessions.add(self)
        return self

    def close(self) -> None:
        """End the session and interrupt cells that run in other threads. Do nothing in a forked process.

        A session from `join` is not ended.
        """
        self._opened = None
        if not self._owner.is_current:
            self._running.clear()
            self._stack.pop_all()
            return
        self._cancel_calls()
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
        on_denied: OnDenied | None = None,
        transactional: bool = False,
    ) -> CodeExecutionResult:
        """Run a cell and return its result.

        Args:
            code: The source text.
            libraries: Packages to install first, if they are missing. If that fails, return its result and do not run the cell.
            timeout: The time limit in seconds, by default the session's.
            on_stdout: Called in this thread with what the cell writes to stdout, while it runs.
            on_stderr: Called in this thread with what the cell writes to stderr, while it runs.
            on_input: Called in this thread with the prompt of `input()`. It returns the line, or None for an EOFError in the cell.
            on_denied: Called in this thread with each refused request, instead of the session's own function.
            transactional: Undo the cell's changes if it fails, runs too long or is killed. If that is impossible, the result's `state` says
                so.
        """
        if libraries and not (installed := self._call(Session.install_missing, *libraries)).success:
            return installed
        limit = self._timeout if timeout is None else timeout
        if on_stdout is None and on_stderr is None and on_input is None:
            if (decides := on_denied or self._on_denied) is None:
                return self._call(Session.run, code, timeout=limit, transactional=transactional)
            denials = _Denials(decides)
            options: dict[str, Any] = {"timeout": limit, "transactional": transactional, "on_denied": denials.ask}
            return self._call_with(denials.decide_until_done, Session.run, code, **options)
        followers = {"stdout": on_stdout, "stderr": on_stderr}
        for event in self.stream(code, timeout=limit, on_input=on_input, on_denied=on_denied, transactional=transactional):
            follower = followers.get(event.kind)
            if follower is not None:
                follower(event.text)
            if event.result is not None:
                return event.result
        raise ACASessionsError(
            "the session was closed while this cell ran, so its result is lost: keep the 'with' block open until the cell has ended, then "
            "open a new session and run it again"
        )

    def stream(
        self,
        code: str,
        *,
        timeout: float | None = None,
        on_input: OnInput | None = None,
        on_denied: OnDenied | None = None,
        transactional: bool = False,
        sanitize: bool = True,
    ) -> LiveCell:
        """Start a cell. A `for` loop over the returned object yields the cell's events as they happen, and the last one has the result.

        Leaving the loop early interrupts the cell.

        Args:
            code: The source text.
            timeout: The time limit in seconds, by default the session's.
            on_input: Called in this thread with the prompt of `input()`. It returns the line, or None for an EOFError in the cell.
            on_denied: Called in this thread with each refused request, instead of the session's own function.
            transactional: Undo the cell's changes if it fails, runs too long or is killed.
            sanitize: Remove Markdown fences around the code.
        """
        limit = self._timeout if timeout is None else timeout
        options: dict[str, Any] = {"on_input": on_input, "on_denied": on_denied or self._on_denied, "transactional": transactional}
        cell = LiveCell(*self._require_open(), code, timeout=limit, sanitize=sanitize, **options)
        self._cancel_on_close(cell.following)
        return cell

    @property
    def filesystem(self) -> InteractiveFilesystem:
        """Return the session's files anywhere, not only in /mnt/data."""
        return InteractiveFilesystem(self)

    interrupt = blocking(Session.interrupt)
    reset = blocking(Session.reset)
    set_network = blocking(Session.set_network)
    execute_command = blocking(Session.execute_command)
    install = blocking(Session.install)
    uninstall = blocking(Session.uninstall)
    packages = blocking(Session.packages)
    supports = blocking(Session.supports)
    variables = blocking(Session.variables)
    complete = blocking(Session.complete)
    inspect = blocking(Session.inspect)
    health = blocking(Session.health)
    checkpoint = blocking(Session.checkpoint)
    checkpoints = blocking(Session.checkpoints)
    export = blocking(Session.export)
    save = blocking(Session.save)
    rollback = blocking(Session.rollback)
    undo = blocking(Session.undo)
    upload_file = blocking(Session.upload_file)
    download_file = blocking(Session.download_file)
    save_file = blocking(Session.save_file)
    list_files = blocking(Session.list_files)
    delete_file = blocking(Session.delete_file)

    def branch(self, count: int = 1, *, reseed: bool = True) -> "list[InteractiveSession]":
        """Return copies of this session, each with its own variables and files in /mnt/data from now on.

        All share /tmp with this session. Each ends at the end of its own `with` block, or when this session ends.

        Args:
            count: How many copies, 1 to 64.
            reseed: Seed the random generators of each copy anew. Otherwise all of them draw the same random numbers.
        """
        portal, _ = self._require_open()
        branches = []
        for session in self._call(Session.branch, count, reseed=reseed):
            branch = InteractiveSession._wrap(portal, session, timeout=self._timeout, on_denied=self._on_denied)
            branch._stack.callback(portal.call, session.close)
            self._stack.callback(branch.close)
            branches.append(branch)
        return branches

    @property
    def history(self) -> History:
        """Return the history of the cells and other actions of this object, in order."""
        return self._require_open()[1].history

    def write_notebook(self, path: str | Path) -> None:
        """Write an .ipynb file with the cells that this object ran, their outputs, and the files that it uploaded."""
        self._require_open()[1].write_notebook(path)

    def write_script(self, path: str | Path) -> None:
        """Write the cells that this object ran as a Python script, with `# %%` before each, but without outputs and uploaded files."""
        self._require_open()[1].write_script(path)

    def replay(self, notebook: str | Path | Mapping[str, Any], *, timeout: float | None = None) -> ReplayReport:
        """Run a notebook's cells in this session, and compare each cell's outputs with those in the notebook. Return a report on all cells.

        Uploads, deletions, installations and resets that the notebook records are repeated too. A cell that fails does not stop the replay.
        `timeout` is the time limit of each cell in seconds, by default the endpoint's.
        """
        return self._call(lambda session: replay(notebook, session, timeout=timeout))

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_opened", None) is not None and self._owner.is_current:
            self._created_at.warn_unclosed(repr(self), "with", source=self)
            self.close()

    def __repr__(self) -> str:
        return f"<{self._name} {'open' if self._opened else 'closed'}>"

    def _call(self, method: Method[Arguments, Answer], *arguments: Arguments.args, **options: Arguments.kwargs) -> Answer:
        """Call an async method of Session on the event loop's thread, and return its result.

        KeyboardInterrupt in this thread cancels the call.
        """
        return self._call_with(lambda _: None, method, *arguments, **options)

    def _call_with(
        self,
        meanwhile: Callable[[Future[Answer]], None],
        method: Method[Arguments, Answer],
        *arguments: Arguments.args,
        **options: Arguments.kwargs,
    ) -> Answer:
        """Call an async method like `_call`. Before waiting for its result, call `meanwhile` in this thread."""
        portal, session = self._require_open()
        call: Future[Answer] = self._cancel_on_close(portal.start_task_soon(partial(method, session, *arguments, **options)))
        try:
            meanwhile(call)
            return call.result()
        except KeyboardInterrupt:
            if not call.cancel() and call.exception() is None and isinstance(result := call.result(), CodeExecutionResult):
                portal.call(session._undo_delivery, result)  # it arrived at the moment of the interrupt: the caller does not get it
            raise
        except CancelledError as error:
            raise ACASessionsError(
                "the session was closed while this call waited, so its result is lost: keep the 'with' block open until the call has "
                "returned, then open a new session and call it again"
            ) from error

    def _cancel_calls(self) -> None:
        """Cancel the calls that run in other threads, and interrupt their cells."""
        for running in [*self._running]:
            running.cancel()

    def _cancel_on_close(self, call: "Future[Answer]") -> "Future[Answer]":
        self._running.add(call)
        call.add_done_callback(self._running.discard)
        return call

    def _require_open(self) -> tuple[BlockingPortal, Session]:
        if self._opened is None:
            raise ACASessionsError(f"the session is not open: use 'with {self._name}() as session', or call open()")
        self._owner.check()
        return self._opened


_open_sessions: "weakref.WeakSet[InteractiveSession]" = weakref.WeakSet()


@atexit.register
def _close_open_sessions() -> None:
    """Close the sessions that the program left open. After this point their threads stop, and `close` would wait for them forever."""
    for session in [*_open_sessions]:
        session.__del__()


@asynccontextmanager
async def _leased(opening: Opening[SessionPool], session_id: str | None, network: "Network | None") -> AsyncIterator[Session]:
    async with opening as pool, pool.session(session_id, network=network) as session:
        yield session


@asynccontextmanager
async def _joined(opening: Opening[CodeInterpreter], session_id: str) -> AsyncIterator[Session]:
    async with opening as interpreter:
        yield Session(interpreter, session_id)
