"""An interpreter: the live Python process of a session. The host starts or forks it, runs cells in it, and can interrupt and end it.

Nothing that arrives from the guest is trusted before `wire.decode` has validated it. An invalid frame ends the interpreter.

The host sends cells through a socket. Once guest code runs, the guest sends its frames through a pipe, because through a socket it could
send open files. The host would have to close them, and such a close can block for as long as the guest likes (SO_LINGER in socket(7)).
"""

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

from ...errors import GuestDiedError, SnapshotError
from ...lifetime import create_in_thread
from ...models import CodeExecutionResult, Event, RunningProcess
from ...network.denials import Decision, Denial
from .. import wire
from ..forkserver import refusal_error
from ..limits.capacity import explained_shortage, shortage_error
from ..limits.memory import MemoryLimit
from ..policy import ANSWER_SECONDS, Limits
from ..proxy.proxy import DirectSockets, Proxy
from .cell import Cell, CellNotSentError, CellNotStartedError, Clock, GracePeriod, death_reason
from .channel import Channel
from .descriptors import (
    MOST_REPORTED,
    ForkDescriptors,
    SpawnedSession,
    Workspace,
    exit_status,
    has_ended,
    list_processes,
    open_process_of_session,
    pid_in_session,
    processor_time,
    queued_time,
    set_autogroup_nice,
)
from .processes import KillResult
from .runtime import RegisteredInterpreter, SharedRuntime

_START_SECONDS = 30.0
_FAILED = "the user declined to answer or did not answer in time, or the handler of the question failed: put the values into the code"
_END = "EOF when reading a line"
_NOT_ANSWERED = "the cell has ended, or was run without a handler of its questions, such as on_input: pass one to the call that runs it"
_NOT_READY = (
    "a session ended before it was ready: try again. If it ends again, standard error of the program that runs the sessions has the cause"
)
_OWN_SECONDS = 30.0  # the timeout of the host's own requests
_ASK_SECONDS, _MOST_ASK_SECONDS = 0.02, 1.0  # between two tries to lower the weight, which double from the first to the second
_GRACES_TO_START = 3
_REPORT_SECONDS = 1.0  # in which a death is reported
_REPORT_LOOKS = 30  # of one second each, at a process that has ended and was not reported: on a busy machine the report takes longer
_MOST_NAMED = 10
_MAX_UNREAD = 256  # answers that a guest has not read
_MAX_UNREAD_BYTES = 256 << 20  # the same in bytes; an honest guest waits for at most 32 answers of up to 8 MB
_LOOK_SECONDS = 0.05  # between two looks at the clock of a cell that waits for an answer, and may compute meanwhile
_PROXY_SOCKETS, _MOST_DESCRIPTORS = 4, 16  # that come with `Ready`
_MAX_IDLE = 2 << 20  # bytes of a frame while no cell runs: only questions may come then


def _never() -> bool:
    return False


class Interpreter:
    """A live interpreter, which runs one cell at a time. Once its process is dead, it can run no more cells: start or fork another one."""

    def __init__(
        self, runtime: SharedRuntime, channel: Channel, process: int, *, workspace: int, forked: bool = False, has_run_cells: bool = False
    ) -> None:
        """Take over the connection to an interpreter, and its pidfd (`process`). `workspace` is the number of its workspace (a
        session's or branch's files at /mnt/data).

        `forked` tells whether it was forked from another interpreter. `has_run_cells` tells whether that other interpreter had run cells.
        """
        self.runtime = runtime
        self.session_pid = pid_in_session(process)
        self.workspace = workspace
        self._channel = channel
        self._process: int | None = process
        self._forked = forked
        self._cell: Cell | None = None
        self._death: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._killed_for: str | None = None
        self.has_run_cells = has_run_cells  # if not, its death loses nothing
        self._is_nice_set = False
        self._priority_timer: asyncio.TimerHandle | None = None
        self.on_dead: Callable[[Interpreter, str], None] = lambda _interpreter, _cause: None
        self._busy = asyncio.Lock()
        channel.listen(self._on_frame, most=_MAX_IDLE, on_refused=lambda: self._kill("crash"), on_end=self._on_pipe_end)
        runtime.register(self.session_pid, RegisteredInterpreter(process, workspace, self._on_death))
        if forked:  # the session's first process reports its own children only, and a fork is a child of another interpreter
            asyncio.get_running_loop().add_reader(process, self._on_pidfd_readable)

    @property
    def alive(self) -> bool:
        """Return whether the interpreter can run another cell: it has not died, and neither it nor its session is being killed."""
        return not self._death.done() and self._killed_for is None and self.runtime.killed_for is None

    @property
    def cause_of_death(self) -> str:
        """Return why the interpreter died or is being killed, as in `State.reason`. Return `killed` if no cause is known."""
        return self._death.result() if self._death.done() else self._killed_for or self.runtime.killed_for or "killed"

    @property
    def pidfd(self) -> int:
        """Return the pidfd of the process. Raise GuestDiedError after `close` or `abandon`, which close the pidfd."""
        if self._process is None:
            raise GuestDiedError("the interpreter has ended, and the next cell starts a new one")
        return self._process

    async def run(
        self,
        execution: str,
        code: str,
        timeout: float,
        *,
        tell: Callable[[Event], None] | None = None,
        question_kinds: Sequence[str] = (),
        is_cancelled: Callable[[], bool] = _never,
    ) -> CodeExecutionResult:
        """Run a cell and return its result. At the deadline interrupt the cell. If it still runs after that, kill the interpreter.

        Raise CellNotSentError if the interpreter ended before the cell was sent.

        Args:
            execution: The id of the execution.
            code: The source of the cell.
            timeout: Seconds on the cell's clock (`Clock`), which starts when the cell is sent.
            tell: Receives each event as it happens.
            question_kinds: The kinds of questions that the caller answers (`input`, `call`, `network`). Others are refused at once.
            is_cancelled: Called right before the cell is sent. If it returns True, CellNotStartedError is raised.
        """
        async with self._busy:
            cell = Cell(execution, tell, question_kinds=question_kinds)
            return await self._run(wire.Run(execution, code, [*question_kinds]), timeout, cell, is_cancelled=is_cancelled)

    async def execute(
        self,
        execution: str,
        arguments: Sequence[str],
        stdin: str = "",
        *,
        timeout: float,
        tell: Callable[[Event], None] | None = None,
        is_cancelled: Callable[[], bool] = _never,
    ) -> CodeExecutionResult:
        """Run a program instead of a cell. The value of the result is the program's exit code.

        `arguments` are the program and its arguments, and `stdin` is the text that it reads. `run` describes the other arguments and the
        errors.
        """
        async with self._busy:
            message = wire.Command(execution, list(arguments), stdin)
            return await self._run(message, timeout, Cell(execution, tell), is_cancelled=is_cancelled)

    async def extend(self, paths: Sequence[str], replaced: Sequence[str] = ()) -> CodeExecutionResult:
        """Make the packages in the folders `paths` importable. These folders replace those of an earlier call.

        `replaced` names the modules whose version this call changes. If the session has imported one of them already, nothing changes, and
        the result has an error.
        """
        async with self._busy:
            return await self._run(wire.Extend("packages", list(paths), list(replaced)), _OWN_SECONDS, Cell("packages"))

    async def warm_up(self) -> None:
        """Make the guest run a few small cells in advance, so that the user's first cell is fast.

        The kernel copies memory that the guest shares with the fork server when the guest first writes to it. These cells cause most of
        that copying.
        """
        async with self._busy:
            await self._run(wire.WarmUp("warm-up"), _OWN_SECONDS, Cell("warm-up"))

    async def ping(self) -> None:
        """Wait until the interpreter responds. Raise GuestDiedError if it is dead or does not respond within 30 s."""
        async with self._busy:
            result = await self._run(wire.Ping("ping"), _OWN_SECONDS, Cell("ping"))
        if result.error is not None:
            raise GuestDiedError(f"the interpreter does not respond ({result.error})")

    async def fork(self, ends: Sequence[int], *, reseed: bool) -> tuple[int, list[str]]:
        """Fork the interpreter. Return the fork's pid in the session, and lines that name what differs in the fork.

        Each line names something that the fork lacks (such as child processes) or shares with this interpreter (such as open sockets). The
        guest reports the pid and the lines, and may lie. Raise SnapshotError if the interpreter cannot be forked.

        Args:
            ends: The descriptors that the fork uses to talk to the host (`ForkDescriptors.guest_ends`).
            reseed: Whether the fork seeds its random numbers anew.
        """
        async with self._busy:
            result = await self._run(wire.Fork("fork", reseed), _OWN_SECONDS, Cell("fork"), descriptors=ends)
        if result.error is not None or type(result.value) is not int:
            prevented = "the session's code prevents the fork of its interpreter: reset the session, and try again"
            raise SnapshotError(result.error.message if result.error else prevented)
        return result.value, [line for line in (result.text or "").splitlines() if line]

    async def begin_saving(self, pipe: int, *, background: bool, is_cancelled: Callable[[], bool]) -> int:
        """Let a fork write the state to `pipe`. Return its pid in the session. The guest reports the pid, and may lie."""
        number = (await self._transfer(wire.Save("save", background), pipe, _OWN_SECONDS, is_cancelled)).value
        return number if type(number) is int else 0

    async def restore(self, pipe: int, *, timeout: float) -> str:
        """Restore the state in `pipe`, and return the guest's report. Raise SnapshotError if that fails or takes too long."""
        return (await self._transfer(wire.Restore("restore"), pipe, timeout)).text or ""

    async def _transfer(
        self, message: wire.Save | wire.Restore, pipe: int, timeout: float, is_cancelled: Callable[[], bool] = _never
    ) -> CodeExecutionResult:
        async with self._busy:
            result = await self._run(message, timeout, Cell(message.execution), descriptors=[pipe], is_cancelled=is_cancelled)
        if result.error is not None:
            raise SnapshotError(result.error.message)
        return result

    async def _run(
        self,
        message: wire.Message,
        timeout: float,
        cell: Cell,
        *,
        descriptors: Sequence[int] = (),
        is_cancelled: Callable[[], bool] = _never,
    ) -> CodeExecutionResult:
        async with self.runtime.cell_turn(self.workspace):
            if not self.alive:
                raise CellNotSentError("the interpreter has ended, and the next cell starts a new one")
            if is_cancelled():  # while it waited for its turn. From here until the frame is sent there is no await
                raise CellNotStartedError
            self.has_run_cells = self.has_run_cells or isinstance(message, wire.Run | wire.Command | wire.Restore)
            self._cell, self._channel.inbox.most = cell, wire.MAX_FROM_GUEST
            started = time.perf_counter()
            cell.clock = Clock(partial(self._processor_seconds, time.clock_gettime(time.CLOCK_BOOTTIME)))
            cell.clock.start()
            if cell.tell is not None:
                self._forward_output(cell)
            self.runtime.decide_in_cell = partial(self._decide, cell)
            sending = self._channel.send(message, descriptors)
            self.runtime.memory.set_cell_running(True)
            if not self._is_nice_set:
                self._lower_priority()
            try:
                await self._until_deadline(cell, timeout)
                if not cell.finished.done() and self.alive:
                    cell.overran = timeout
                    await self.interrupt(cell.execution)
                if not cell.finished.done():
                    await _first_of(cell.finished, self._death)
            finally:
                sending.cancel()
                if self._priority_timer is not None:
                    self._priority_timer.cancel()
                self.runtime.memory.set_cell_running(False)
                self._cell, self._channel.inbox.most = None, _MAX_IDLE
                self.runtime.decide_in_cell = None
                cell.end_questions()
            self._channel.drain()
            self._forward_output(None)
            left: tuple[RunningProcess, ...] = ()
            if cell.finished.done() and (cell.processes or not self.runtime.has_namespaces):
                left = self._left_running(cell)
            out, err = self._channel.streams
            stdout, stderr = out.take_text(), err.take_text()
            if ended := self.runtime.ended.pop(self.workspace, ()):
                names = ", ".join(f"{process.pid} {process.name}" for process in ended[:_MOST_NAMED])
                stderr += f"{len(ended)} processes were ended, since they could not be stopped for a cell of a branch: {names}\n"
            cause = None if cell.finished.done() else self._death.result()
            return cell.result(cause, stdout=stdout, stderr=stderr, processes=left, duration=time.perf_counter() - started)

    def _lower_priority(self, pause: float = _ASK_SECONDS) -> None:
        """Lower the interpreter's share of processor time, so that the host's own processes come first.

        If the kernel refuses, retry after `pause` seconds, and then at longer intervals, as long as the cell runs.
        """
        # The kernel refuses all but ten such requests a second, of all ordinary users together.
        self._is_nice_set = self._death.done() or set_autogroup_nice(self.pidfd, self.runtime.memory.nice)
        if not self._is_nice_set:
            self._priority_timer = asyncio.get_running_loop().call_later(pause, self._lower_priority, min(2 * pause, _MOST_ASK_SECONDS))

    def _forward_output(self, cell: Cell | None) -> None:
        stdout, stderr = self._channel.streams
        stdout.forward(partial(cell.report_output, "stdout") if cell else None)
        stderr.forward(partial(cell.report_output, "stderr") if cell else None)

    async def _until_deadline(self, cell: Cell, timeout: float) -> None:
        """Wait until the cell ends, the interpreter dies, or the cell's clock has reached `timeout`.

        While questions are open, the clock is stopped, so they have a deadline of their own: if no question was asked or answered for
        ANSWER_SECONDS, all open questions fail, and the clock runs again.
        """
        changed, since = cell.changed, time.perf_counter()
        while not (cell.finished.done() or self._death.done()):
            if cell.changed is not changed:
                changed, since = cell.changed, time.perf_counter()
            left = timeout - cell.clock.used
            if left <= 0:
                return
            if not cell.open:
                await asyncio.wait((cell.finished, self._death, changed), timeout=left, return_when=asyncio.FIRST_COMPLETED)
                continue
            unanswered = since + ANSWER_SECONDS - time.perf_counter()
            await _first_of(cell.finished, self._death, changed, within=min(max(left, _LOOK_SECONDS), max(unanswered, 0.0)))
            if unanswered <= 0 and not changed.done():
                for number in [*cell.open]:
                    self.answer(cell.execution, number, None)

    def _processor_seconds(self, since: float) -> float:
        """Return how many processor seconds this interpreter and processes started since `since` have used (`processor_time`).

        Return 0 if that cannot be read, for example because the interpreter has ended.
        """
        with contextlib.suppress(OSError, GuestDiedError):
            return processor_time(self.runtime.init, self.pidfd, since)
        return 0.0

    def answer(self, execution: str, number: int, text: str | None, *, is_end: bool = False) -> bool:
        """Answer a question of the running cell. Return False, and send nothing, if this question is not open.

        If `text` is None, the cell gets an error instead of an answer. If `is_end` is true, it is that of Python at the end of the input.
        """
        cell = self._cell
        return cell is not None and cell.execution == execution and cell.answer(number, text, is_end=is_end)

    def open_questions(self, execution: str) -> list[int]:
        """Return the numbers of the questions that an execution waits for, or [] if this execution is not the one that runs now."""
        cell = self._cell
        return sorted(cell.open) if cell is not None and cell.execution == execution else []

    def _send_answer(self, number: int, text: str | None, is_end: bool) -> None:
        self._channel.send(wire.Answer(number, text is not None, text if text is not None else _END if is_end else _FAILED))

    async def _decide(self, cell: Cell, denial: Denial) -> Decision:
        self._channel.drain()  # first report what the cell wrote before its request
        return await cell.decide(denial)

    async def interrupt(self, execution: str, *, gentle: bool = False) -> None:
        """Interrupt a cell by SIGINT. If it does not end within the `GracePeriod`, kill the interpreter and the processes that it started.

        Do nothing if the execution with this id is not the one that runs now. If `gentle`, only send the signal: never kill anything.
        """
        cell = self._cell
        if cell is None or cell.execution != execution or not self.alive:
            return
        # Before `Started`, a SIGINT would not reach the cell: a callback of an earlier cell may still run, and gets some more time.
        if gentle:
            await _first_of(cell.started, cell.finished, self._death)
        else:
            for _ in range(_GRACES_TO_START):
                await self._wait_for_reaction(cell.started)
        if cell is not self._cell or cell.finished.done():
            return  # the cell ended meanwhile, and the signal would hit the next one
        self._signal(signal.SIGINT)
        if gentle:
            return
        await self._wait_for_reaction(cell.finished)
        if not cell.finished.done():
            self._kill("killed")

    async def _wait_for_reaction(self, done: asyncio.Future[Any]) -> None:
        """Wait until `done` is done or the interpreter has died, but no longer than the interpreter's `GracePeriod`."""
        grace = GracePeriod(self._seconds_queued)
        while not (done.done() or self._death.done()) and (left := grace.left) > 0:
            await _first_of(done, self._death, within=left)

    def _seconds_queued(self) -> float:
        return queued_time(self._process) if self._process is not None else 0.0

    async def kill(self, cause: str = "killed") -> KillResult:
        """Kill the interpreter, and all other processes of its workspace except interpreters. The caller must still call `close`.

        Return which processes have ended, and which are still alive although they were killed. If this is the last interpreter of the
        session and its branches, kill all processes, and return an empty `KillResult`. `cause` is recorded as the reason of death if no
        other reason is known.
        """
        if self.runtime.is_last_interpreter(self.session_pid):
            self._kill(cause)
            return KillResult()
        self._killed_for = self._killed_for or cause
        self._signal(signal.SIGKILL)  # without its children, which the next step ends and names
        try:
            return await self.runtime.end_processes(self.workspace)
        finally:
            self._kill(cause)

    async def close(self, cause: str = "killed") -> None:
        """End the interpreter and the processes that it started, and close its descriptors, even if the caller is cancelled.

        If this is the last interpreter of the session and its branches, end all their other processes too. `cause` is recorded as the
        reason of death if no other reason is known.
        """
        self._kill(cause)
        try:
            await _first_of(self._death, within=_REPORT_SECONDS)
            self._record_death(cause)
            await self.runtime.unregister(self.session_pid)
            if self._cell is not None:  # it ran, and still makes its result from what was written. One that waits for its turn was not sent
                async with self._busy:
                    pass
        finally:
            self._record_death(cause)
            self.runtime.abandon(self.session_pid)
            self._close_descriptors()

    def abandon(self) -> None:
        """Kill the interpreter and close its descriptors without waiting for tasks. Call this only when its event loop is closed."""
        self._kill("killed")
        self.runtime.unregister_without_loop(self.session_pid)
        self._close_descriptors()

    def _close_descriptors(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            os.close(process)
            self._channel.close()

    def _on_pipe_end(self) -> None:
        """Give the session's first process 1 s to report how the interpreter ended. Then record what the host knows of its death."""
        asyncio.get_running_loop().call_later(_REPORT_SECONDS, self._record_unreported, "crash")

    def _record_unreported(self, cause: str, looks: int = _REPORT_LOOKS) -> None:
        """Record the death of an interpreter whose end was not reported in time: how it ended, or `cause` if that stays unknown.

        If it lives, kill it: a guest could close the pipe and live on in silence.
        """
        if self._death.done():
            return
        status = exit_status(self.pidfd)
        if status is not None:
            self._on_death(status)
        elif looks > 0 and has_ended(self.pidfd):  # the first process will report it as soon as it gets processor time
            asyncio.get_running_loop().call_later(_REPORT_SECONDS, self._record_unreported, cause, looks - 1)
        else:
            self._record_death(cause)

    def _on_frame(self, payload: bytes) -> None:
        message = wire.decode(payload, wire.Started, wire.Shown, wire.Cleared, wire.Asked, wire.Finished)
        cell = self._cell
        # Events keep the order in which the guest wrote. Before a display, it has waited until its text was read: what is there came later.
        if cell is not None and isinstance(message, wire.Asked | wire.Finished):
            self._channel.drain()
        if isinstance(message, wire.Asked):
            self._on_question(message, cell)
            return
        if cell is None or cell.finished.done():
            raise wire.WireError(f"expected no frame while no cell runs, got {type(message).__name__}")
        match message:
            case wire.Started(cell.execution) if not cell.started.done():
                cell.started.set_result(None)
            case wire.Shown(cell.execution):
                cell.add_display(message)
            case wire.Cleared(cell.execution):
                if message.wait and cell.tell is None:
                    self._forward_output(cell)  # from now on the cell has to know of output
                cell.clear_displays(wait=message.wait)
            case wire.Finished(cell.execution):
                cell.finish(message)
                self._channel.inbox.most = _MAX_IDLE
            case _:
                raise wire.WireError(f"expected a frame of the cell that runs, and Started only once, got {type(message).__name__}")

    def _on_question(self, asked: wire.Asked, cell: Cell | None) -> None:
        """Register a question of the running cell. Refuse it if the cell has ended or the caller does not answer this kind of question.

        Raise WireError if the guest leaves too many answers unread.
        """
        # A thread may ask at the moment when its cell ends. So a question of a cell that has ended is not treated as a forged frame.
        frames, size = self._channel.unread
        if frames >= _MAX_UNREAD or size >= _MAX_UNREAD_BYTES:
            raise wire.WireError(f"the guest must read its answers: {frames} are unread, with {size} bytes")
        reply = partial(self._send_answer, asked.number)
        if cell is None or cell.execution != asked.execution or cell.finished.done() or not cell.add_question(asked, reply):
            self._channel.send(wire.Answer(asked.number, False, _NOT_ANSWERED))

    def _on_pidfd_readable(self) -> None:
        """Record the death of a forked interpreter. The event loop calls this when the pidfd becomes readable."""
        # If its parent has not collected it yet, its status can be read. Else the first process may report it in a moment.
        self._stop_watching_pidfd()
        status = exit_status(self.pidfd)
        if status is not None:
            self._on_death(status)
        else:
            asyncio.get_running_loop().call_later(_REPORT_SECONDS, self._record_unreported, "killed")

    def _on_death(self, status: int | None) -> None:
        reason = death_reason(status)
        if reason == "killed" and not self._killed_for and self.runtime.memory.was_exceeded():
            reason = "memory"
        self._record_death(reason)

    def _record_death(self, cause: str) -> None:
        """Record the death of the interpreter, stop reading, and kill what it started. Do nothing if its death is recorded already.

        If the host itself has killed the interpreter, record the host's reason instead of `cause`. Otherwise the end of the guest's
        pipe would be recorded as a crash.
        """
        if self._death.done():
            return
        cause = self._killed_for or self.runtime.killed_for or cause
        self._channel.drain()
        self._channel.stop()
        self._stop_watching_pidfd()
        self._kill(cause)
        self._death.set_result(cause)
        self.on_dead(self, cause)

    def _stop_watching_pidfd(self) -> None:
        if self._forked and self._process is not None:
            self._forked = False
            asyncio.get_running_loop().remove_reader(self._process)

    def _kill(self, reason: str) -> None:
        """Kill the interpreter and the processes that it started. Record `reason` if none is recorded yet.

        If this is the last interpreter of the session and its branches, kill all their processes.
        """
        self._killed_for = self._killed_for or reason
        if self.runtime.is_last_interpreter(self.session_pid):
            self.runtime.kill(reason)
        elif self._process is not None:
            self.runtime.kill_with_children(self.session_pid, self._process)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, GuestDiedError):
            signal.pidfd_send_signal(self.pidfd, number)

    def _left_running(self, cell: Cell) -> tuple[RunningProcess, ...]:
        """Return at most 100 processes that still run after a cell, started by this cell or an earlier one.

        With namespaces the guest lists them, and processes of other workspaces (such as those of branches) are left out. Without
        namespaces the host lists them.
        """
        foreign_pids, init = self.runtime.foreign_pids(self.workspace), self.runtime.init
        found = cell.processes if self.runtime.has_namespaces else list_processes(init, besides=self.pidfd)
        return tuple(islice((process for process in found if process.pid not in foreign_pids), MOST_REPORTED))


async def _first_of(*futures: asyncio.Future[Any], within: float | None = None) -> None:
    if not any(future.done() for future in futures):  # if one is done, waiting would cost a turn of the event loop
        await asyncio.wait(futures, timeout=within, return_when=asyncio.FIRST_COMPLETED)


async def start(
    spawned: SpawnedSession, limits: Limits, *, workspace: int, memory: MemoryLimit, proxy: Proxy | None, mount: Callable[[int, int], None]
) -> Interpreter:
    """Wait until a new session is isolated and ready for cells, and return its interpreter. On failure close `spawned`.

    Raise GuestDiedError if the session ends, or is not ready within 30 s. Raise IsolationError if this host refuses a part of the
    isolation. Raise ConfigurationError if the container image lacks something.

    Args:
        spawned: The new session. This call takes over its descriptors.
        limits: The limits of the session.
        workspace: The number of the session's workspace.
        memory: Counts and limits the memory of the session.
        proxy: The proxy through which the session reaches allowed domains, or None if there is none.
        mount: Mounts a workspace at /mnt/data. It is called with the pidfd of the session's first process and the workspace's number.
    """
    runtime = SharedRuntime(spawned, workspace, memory, mount)
    try:
        with explained_shortage("another session"):
            async with asyncio.timeout(_START_SECONDS):
                return await _receive_ready(spawned.link, runtime, limits, workspace, proxy)
    except BaseException as error:
        spawned.link.close()
        await runtime.unregister(0)
        if isinstance(error, ConnectionError):  # the session's end is noticed here first
            raise GuestDiedError(_NOT_READY) from error
        if isinstance(error, TimeoutError):
            raise GuestDiedError(
                f"a session did not start within {_START_SECONDS:g} s: end others if this machine is busy, and try again"
            ) from error
        raise


async def fork(interpreter: Interpreter, workspace: Workspace, limits: Limits, *, reseed: bool = False) -> tuple[Interpreter, list[str]]:
    """Fork an interpreter between two cells. Return the fork, and lines that name what differs in it.

    Each line names something that the fork lacks (such as child processes) or shares with `interpreter` (such as open sockets). Raise
    SnapshotError if the interpreter cannot be forked, as in a session without namespaces.

    Args:
        interpreter: The interpreter to fork.
        workspace: The workspace of the fork. It must have the same owner as the interpreter's.
        limits: The limits of the session.
        reseed: Whether the fork seeds its random numbers anew.
    """
    runtime = interpreter.runtime
    if not runtime.has_namespaces:
        raise SnapshotError(
            "checkpoints and branches need namespaces, which this session does not have: set ACASessions:Sandbox:Isolation to full"
        )
    with explained_shortage("a checkpoint or branch", SnapshotError), contextlib.ExitStack() as on_failure:
        ends = await create_in_thread(lambda: ForkDescriptors(workspace.owner), ForkDescriptors.close)
        on_failure.callback(ends.close)  # a fork whose link is closed ends
        number, left = await interpreter.fork(ends.guest_ends, reseed=reseed)
        ends.close_guest_ends()
        pidfd = open_process_of_session(runtime.init, number)
        on_failure.callback(os.close, pidfd)
        channel = Channel(ends.link, ends.said, ends.streams, limit=limits.output)
        with _stop_on_failure(channel):
            forked = Interpreter(runtime, channel, pidfd, workspace=workspace.number, forked=True, has_run_cells=interpreter.has_run_cells)
        on_failure.pop_all()
    return forked, left


@contextlib.contextmanager
def _stop_on_failure(channel: Channel) -> Iterator[None]:
    """If the `with` block raises, stop reading from `channel`, so that the caller can close the channel's descriptors."""
    try:
        yield
    except BaseException:
        channel.stop()
        raise


async def _receive_ready(link: socket.socket, runtime: SharedRuntime, limits: Limits, workspace: int, proxy: Proxy | None) -> Interpreter:
    """Wait for the first frame of a new session, and return an interpreter made of the descriptors that come with the frame.

    Until this frame, only trusted code has run in the session. Later frames may come from the user's code, so the host accepts no
    descriptors with them.
    """
    link.setblocking(False)
    init = await runtime.count_first_process()
    # The session's first process has waited for this byte: it is in its control group now. If it has died, what it sent before shows why.
    with contextlib.suppress(OSError):
        link.send(b"\0")
    await _readable(link.fileno())
    data, descriptors, flags, _ = socket.recv_fds(link, 1 << 16, _MOST_DESCRIPTORS)
    taken: set[int] = set()  # these have an owner by now, which closes them
    with contextlib.ExitStack() as at_the_end:
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
            at_the_end.callback(_close_unless, taken, descriptor)
        _check_first_frame([*wire.Frames(wire.MAX_FROM_GUEST).feed(data)], not flags & socket.MSG_CTRUNC)
        process, said, stdout, stderr, *further = descriptors
        # Frames come by a pipe from now on. Into a socket a guest could put open files, and closing these can block (SO_LINGER).
        link.shutdown(socket.SHUT_RD)
        if runtime.has_namespaces:
            taken.add(further[0])
            runtime.use_proc(further.pop(0))
        if proxy is not None:
            taken.update(further[:_PROXY_SOCKETS])
            listener, *direct = (socket.socket(fileno=further.pop(0)) for _ in range(_PROXY_SOCKETS))
            runtime.proxy_connections = await proxy.serve(listener, DirectSockets(*direct), runtime.decide)
        sockets = further.pop() if runtime.memory.lists_sockets and further else None  # not all kernels list sockets
        taken |= {sockets} if sockets is not None else set()
        await runtime.count_memory(init, sockets)
        channel = Channel(link, said, (stdout, stderr), limit=limits.output)
        with _stop_on_failure(channel):
            interpreter = Interpreter(runtime, channel, process, workspace=workspace)
        taken |= {process, said, stdout, stderr}
        return interpreter


async def _readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(descriptor, lambda: None if ready.done() else ready.set_result(None))
    try:
        await ready
    finally:
        loop.remove_reader(descriptor)


def _close_unless(taken: set[int], descriptor: int) -> None:
    if descriptor not in taken:
        os.close(descriptor)


def _check_first_frame(payloads: list[bytes], complete: bool) -> None:
    """Raise an error unless the first frame of a session is `Ready` and all of its descriptors have arrived (`complete`).

    The error is GuestDiedError if no frame has come, because the session has ended, or if descriptors are missing, because this process has
    too many open.
    """
    if not payloads:
        raise GuestDiedError(_NOT_READY)
    match wire.decode(payloads[0], wire.Ready, wire.Refused):
        case wire.Refused() as refused:
            raise refusal_error(refused)
    if not complete:
        raise shortage_error("another session")
