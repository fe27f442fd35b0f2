"""An interpreter: the live Python process of a session, which runs cells, and can be interrupted, forked and ended.

Nothing that arrives from the guest is trusted before `wire.decode` has validated it. An invalid frame ends the interpreter.

Cells are sent by a socket. Once guest code runs, frames arrive by a pipe. Through a socket, a guest could send open files with its frames.
The receiver has to close them, and a close takes as long as the guest likes (SO_LINGER in socket(7)).
"""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from typing import Any

from ..errors import GuestDiedError, SnapshotError
from ..models import CodeExecutionResult, Event, RunningProcess
from . import wire
from .cell import Cell, CellNotSentError, CellNotStartedError, Clock, Grace, check, processes_of, reason_of, result_of
from .channel import Channel
from .ends import MOST_TOLD, exit_status, gives_way, number_of, processor_time, queued_time, running_below
from .home import Home, Member
from .policy import ANSWER_SECONDS
from .processes import Ended

_OWN_SECONDS = 30.0  # the timeout of the host's own requests
_ASK_SECONDS, _MOST_ASK_SECONDS = 0.02, 1.0  # between two tries to lower the weight, which double from the first to the second
_REPORT_SECONDS = 1.0  # in which a death is reported
_MOST_NAMED = 10
_MAX_UNREAD = 256  # answers that a guest has not read
_MAX_UNREAD_BYTES = 256 << 20  # the same in bytes; an honest guest waits for at most 32 answers of up to 8 MB
_LOOK_SECONDS = 0.05  # between two looks at the clock of a cell that waits for an answer, and may compute meanwhile
_MAX_IDLE = 2 << 20  # bytes of a frame while no cell runs: only questions may come then


def _never() -> bool:
    return False


class Interpreter:
    """A live interpreter. It runs one cell at a time. Once it is dead, it stays dead."""

    def __init__(self, home: Home, channel: Channel, process: int, *, tree: int, forked: bool = False, has_run_cells: bool = False) -> None:
        """Take over the ends of a live interpreter.

        Args:
            home: What it shares with the other interpreters of its session.
            channel: The connection to it.
            process: Its pidfd.
            tree: The number of its workspace.
            forked: Whether another interpreter was forked to make it.
            has_run_cells: Whether that one had run cells.
        """
        self.home = home
        self.number = number_of(process)
        self.tree = tree
        self._channel = channel
        self._process: int | None = process
        self._forked = forked
        self._cell: Cell | None = None
        self._death: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._killed_for: str | None = None
        self.has_run_cells = has_run_cells  # if not, its death loses nothing
        self._gives_way = False
        self._asking: asyncio.TimerHandle | None = None
        self.when_dead: Callable[[Interpreter, str], None] = lambda _interpreter, _cause: None
        self._busy = asyncio.Lock()
        channel.listen(self._take, most=self._most, forged=lambda: self._kill("crash"), silent=self._fell_silent)
        home.take_in(self.number, Member(process, tree, self._on_death))
        if forked:  # the session's first process reports its own children only, and a fork is a child of another interpreter
            asyncio.get_running_loop().add_reader(process, self._on_own_end)

    @property
    def alive(self) -> bool:
        """Return whether it can run another cell."""
        return not self._death.done() and self._killed_for is None and self.home.killed_for is None

    @property
    def cause_of_death(self) -> str:
        """Return why it died, or is about to die."""
        return self._death.result() if self._death.done() else self._killed_for or self.home.killed_for or "killed"

    @property
    def pidfd(self) -> int:
        """Return the pidfd of the process. Raise GuestDiedError if it is closed."""
        if self._process is None:
            raise GuestDiedError("the interpreter has ended; the next cell gets a fresh one")
        return self._process

    async def run(
        self,
        execution: str,
        code: str,
        timeout: float,
        *,
        tell: Callable[[Event], None] | None = None,
        answered: Sequence[str] = (),
        is_cancelled: Callable[[], bool] = _never,
    ) -> CodeExecutionResult:
        """Run a cell and return its result. At its deadline the cell is interrupted, and killed if that does not end it.

        Raise CellNotSentError if the interpreter ended before the cell was sent.

        Args:
            execution: The id of the execution.
            code: The source of the cell.
            timeout: Seconds on the cell's clock (`Clock`), which starts when the cell is sent.
            tell: Receives each event as it happens.
            answered: The kinds of questions that wait for an answer; other kinds are refused at once.
            is_cancelled: Called right before the cell is sent. If it returns True, CellNotStartedError is raised.
        """
        async with self._busy:
            cell = Cell(execution, tell, answered=answered)
            return await self._run(wire.Run(execution, code, [*answered]), timeout, cell, is_cancelled=is_cancelled)

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
        """Run a program instead of a cell. The value of the result is its exit code. See `run` for the other arguments and errors.

        Args:
            execution: The id of the execution.
            arguments: The program and its arguments.
            stdin: The program's standard input.
            timeout: Seconds on the clock of the execution.
            tell: Receives each event as it happens.
            is_cancelled: Called right before the request is sent.
        """
        async with self._busy:
            message = wire.Command(execution, list(arguments), stdin)
            return await self._run(message, timeout, Cell(execution, tell), is_cancelled=is_cancelled)

    async def extend(self, paths: Sequence[str], replaced: Sequence[str] = ()) -> CodeExecutionResult:
        """Make the packages in these folders importable, and no others that were installed before.

        Args:
            paths: The folders of the packages.
            replaced: Modules that come in another version. If one of them is loaded, the guest refuses, and the result has an error.
        """
        async with self._busy:
            return await self._run(wire.Extend("packages", list(paths), list(replaced)), _OWN_SECONDS, Cell("packages"))

    async def warm_up(self) -> None:
        """Make the guest touch the memory that a first cell needs, so that the first cell does not wait while the kernel copies it."""
        async with self._busy:
            await self._run(wire.WarmUp("warm-up"), _OWN_SECONDS, Cell("warm-up"))

    async def ping(self) -> None:
        """Wait until it answers. Raise GuestDiedError if it does not."""
        async with self._busy:
            result = await self._run(wire.Ping("ping"), _OWN_SECONDS, Cell("ping"))
        if result.error is not None:
            raise GuestDiedError(f"the interpreter does not answer: {result.error}")

    async def fork(self, ends: Sequence[int], *, reseed: bool) -> tuple[int, list[str]]:
        """Fork the interpreter. Return the fork's pid in the session, as the guest reports it, and what the fork could not take along.

        Raise SnapshotError if the interpreter cannot be forked.

        Args:
            ends: The guest's half of `ForkEnds`, which the fork takes over.
            reseed: Whether the fork gets random seeds of its own.
        """
        async with self._busy:
            result = await self._run(wire.Fork("fork", reseed), _OWN_SECONDS, Cell("fork"), bring=ends)
        if result.error is not None or type(result.value) is not int:
            raise SnapshotError(result.error.message if result.error else "the session's code is in the way")
        return result.value, [line for line in (result.text or "").splitlines() if line]

    async def _run(
        self, message: wire.Message, timeout: float, cell: Cell, *, bring: Sequence[int] = (), is_cancelled: Callable[[], bool] = _never
    ) -> CodeExecutionResult:
        async with self.home.turn(self.tree):
            if not self.alive:
                raise CellNotSentError("the interpreter has ended; the next cell gets a fresh one")
            if is_cancelled():  # while it waited for its turn. From here until the frame is sent there is no await
                raise CellNotStartedError
            self.has_run_cells = self.has_run_cells or isinstance(message, wire.Run | wire.Command)
            started = time.perf_counter()
            cell.clock = Clock(partial(self._computed, time.clock_gettime(time.CLOCK_BOOTTIME)))
            cell.clock.go_on()
            self._cell = cell
            self._follow(cell)
            sending = asyncio.ensure_future(self._channel.send(message, bring))
            self.home.memory.cell_runs(True)
            self._give_way()
            try:
                await self._until_deadline(cell, timeout)
                if not cell.finished.done() and self.alive:
                    cell.overran = timeout
                    await self.interrupt(cell.execution)
                await _first_of(cell.finished, self._death)
            finally:
                sending.cancel()
                if self._asking is not None:
                    self._asking.cancel()
                self.home.memory.cell_runs(False)
                self._cell = None
            self._channel.drain()
            self._follow(None)
            return self._result(cell, time.perf_counter() - started)

    def _give_way(self, pause: float = _ASK_SECONDS) -> None:
        """Lower the weight of the interpreter's processes, once. Retry while the cell runs."""
        # The kernel refuses all but ten such requests a second, of all ordinary users together.
        self._gives_way = self._gives_way or self._death.done() or gives_way(self.pidfd, self.home.memory.nice)
        if not self._gives_way:
            self._asking = asyncio.get_running_loop().call_later(pause, self._give_way, min(2 * pause, _MOST_ASK_SECONDS))

    def _follow(self, cell: Cell | None) -> None:
        """Pass on the streams of a cell as they are written, if it has a listener. None ends that."""
        if cell is None or cell.tell is not None:
            stdout, stderr = self._channel.streams
            stdout.follow(partial(cell.wrote, "stdout") if cell else None)
            stderr.follow(partial(cell.wrote, "stderr") if cell else None)

    async def _until_deadline(self, cell: Cell, timeout: float) -> None:
        """Wait for the end of the cell or its deadline.

        Questions have a deadline of their own, ANSWER_SECONDS after the latest question or answer. Then all open questions are answered
        with None, and the clock runs again.
        """
        turned, since = cell.turned, time.perf_counter()
        while not (cell.finished.done() or self._death.done()):
            if cell.turned is not turned:
                turned, since = cell.turned, time.perf_counter()
            left = timeout - cell.clock.used
            if left <= 0:
                return
            if not cell.open:
                await _first_of(cell.finished, self._death, turned, within=left)
                continue
            unanswered = since + ANSWER_SECONDS - time.perf_counter()
            await _first_of(cell.finished, self._death, turned, within=min(max(left, _LOOK_SECONDS), max(unanswered, 0.0)))
            if unanswered <= 0 and not turned.done():
                for number in [*cell.open]:
                    self.answer(cell.execution, number, None)

    def _computed(self, since: float) -> float:
        """Return the processor time in seconds of the interpreter, and of processes that started after the cell began at `since`."""
        with contextlib.suppress(OSError, GuestDiedError):
            return processor_time(self.home.init, self.pidfd, since)
        return 0.0

    def answer(self, execution: str, number: int, text: str | None) -> bool:
        """Send a cell the answer to a question. Return False if the cell no longer waits for it.

        Args:
            execution: The id of the execution.
            number: The number of the question.
            text: The answer, or None if nothing answers.
        """
        cell = self._cell
        if cell is None or cell.execution != execution or not cell.answered(number):
            return False
        self._send_answer(wire.Answer(number, text is not None, text if text is not None else "nobody answered"))
        return True

    def _send_answer(self, answer: wire.Answer) -> None:
        self._channel.send(answer)

    async def interrupt(self, execution: str) -> None:
        """Send SIGINT to a cell, if it runs. If it does not end in time (`Grace`), kill the interpreter and what it started."""
        cell = self._cell
        if cell is None or cell.execution != execution or not self.alive:
            return
        # Before `Started`, a SIGINT would not reach the cell.
        await self._obeys(cell.started)
        if cell is not self._cell or cell.finished.done():
            return  # the cell ended meanwhile, and the signal would hit the next one
        self._signal(signal.SIGINT)
        await self._obeys(cell.finished)
        if not cell.finished.done():
            self._kill("killed")

    async def _obeys(self, done: asyncio.Future[Any]) -> None:
        """Wait for a future as long as the interpreter has to obey a signal, or until it dies."""
        grace = Grace(self._queued)
        while not (done.done() or self._death.done()) and (left := grace.left) > 0:
            await _first_of(done, self._death, within=left)

    def _queued(self) -> float:
        return queued_time(self._process) if self._process is not None else 0.0

    async def kill(self, cause: str = "killed") -> Ended:
        """Kill it and all processes of its workspace except other interpreters. The caller must still call `close`.

        No code of it runs from here on. Return which processes ended, and which live on although they were killed. If it is the last
        interpreter of its home, all processes end with it, and none is named.
        """
        if self.home.is_alone(self.number):
            self._kill(cause)
            return Ended()
        self._killed_for = self._killed_for or cause
        self._signal(signal.SIGKILL)  # without its children, which the next step ends and names
        try:
            return await self.home.end_processes(self.tree)
        finally:
            self._kill(cause)

    async def close(self, cause: str = "killed") -> None:
        """End it and what it started, and close its descriptors even if the caller is cancelled. The last interpreter ends its home."""
        self._kill(cause)
        try:
            await _first_of(self._death, within=_REPORT_SECONDS)
            self._bury(cause)
            await self.home.leave(self.number)
            async with self._busy:  # a cell that ran still makes its result from what was written
                pass
        finally:
            self._bury(cause)
            self.home.abandon(self.number)
            self._let_go()

    def abandon(self) -> None:
        """End it at once and close its ends. For an interpreter whose event loop is closed."""
        self._kill("killed")
        self.home.end_now(self.number)
        self._let_go()

    def _let_go(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            os.close(process)
            self._channel.close()

    def _fell_silent(self) -> None:
        """Handle the end of the guest's frames. The interpreter is killed if no report of its death arrives within 1 s."""
        # The session's first process reports how it ended. The kill has to follow: a guest could close the pipe and live on in silence.
        asyncio.get_running_loop().call_later(_REPORT_SECONDS, self._bury, "crash")

    def _most(self) -> int:
        """Return the size of the largest frame that may come now."""
        return _MAX_IDLE if self._cell is None or self._cell.finished.done() else wire.MAX_FROM_GUEST

    def _take(self, payload: bytes) -> None:
        message = wire.decode(payload, wire.Started, wire.Shown, wire.Cleared, wire.Asked, wire.Finished)
        cell = self._cell
        if cell is not None and cell.tell is not None:
            self._channel.drain()  # so that events keep the order in which the guest wrote
        if isinstance(message, wire.Asked):
            self._take_question(message, cell)
            return
        if cell is None or cell.finished.done():
            raise wire.WireError("a frame while no cell runs")
        match message:
            case wire.Started(cell.execution) if not cell.started.done():
                cell.started.set_result(None)
            case wire.Shown(cell.execution):
                cell.show(message)
            case wire.Cleared(cell.execution):
                cell.clear()
            case wire.Finished(cell.execution):
                check(message)
                cell.finished.set_result(message)
            case _:
                raise wire.WireError("a frame of another cell")

    def _take_question(self, asked: wire.Asked, cell: Cell | None) -> None:
        """Register a question with its cell, or refuse it at once."""
        # A thread may ask at the moment when its cell ends. So a question of a cell that has ended is not treated as a forged frame.
        frames, size = self._channel.unread
        if frames >= _MAX_UNREAD or size >= _MAX_UNREAD_BYTES:
            raise wire.WireError("questions whose answers are not read")
        if cell is None or cell.execution != asked.execution or cell.finished.done() or not cell.ask(asked):
            self._send_answer(wire.Answer(asked.number, False, "nobody is there to answer"))

    def _on_own_end(self) -> None:
        """Handle the end of a fork's process."""
        # If its parent has not collected it yet, its status can be read. Else the first process may report it in a moment.
        self._stop_looking()
        status = exit_status(self.pidfd)
        if status is not None:
            self._on_death(status)
        else:
            asyncio.get_running_loop().call_later(_REPORT_SECONDS, self._on_death, None)

    def _on_death(self, status: int | None) -> None:
        reason = reason_of(status)
        if reason == "killed" and not self._killed_for and self.home.memory.was_exceeded():
            reason = "memory"
        self._bury(reason)

    def _bury(self, cause: str) -> None:
        """Record that it is dead, once. Stop reading, and kill what is left of it."""
        if self._death.done():
            return
        # The reason may be known already although the report is late, and only the end of its frames has been seen.
        cause = self._killed_for or self.home.killed_for or cause
        self._channel.drain()
        self._channel.stop()
        self._stop_looking()
        self._kill(cause)
        self._death.set_result(self._killed_for or cause)
        self.when_dead(self, self._death.result())

    def _stop_looking(self) -> None:
        if self._forked and self._process is not None:
            self._forked = False
            asyncio.get_running_loop().remove_reader(self._process)

    def _kill(self, reason: str) -> None:
        """Kill it. If it is the last interpreter, kill the session's first process, and so all others."""
        self._killed_for = self._killed_for or reason
        if self.home.is_alone(self.number):
            self.home.kill(reason)
        elif self._process is not None:
            self.home.kill_with_children(self.number, self._process)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, GuestDiedError):
            signal.pidfd_send_signal(self.pidfd, number)

    def _left_running(self, finished: wire.Finished) -> tuple[RunningProcess, ...]:
        """Return the processes that a cell left running: as the guest reports them, or without namespaces as this host sees them."""
        if self.home.has_namespaces:
            reported = processes_of(finished)
            elsewhere = self.home.elsewhere(self.tree) if reported else set()
            return tuple(islice((process for process in reported if process.pid not in elsewhere), MOST_TOLD))
        return running_below(self.home.init, besides=self.pidfd)

    def _result(self, cell: Cell, duration: float) -> CodeExecutionResult:
        stdout, stderr = (stream.take() for stream in self._channel.streams)
        stderr += ended_for_others(self.home.take_ended(self.tree))
        finished = cell.finished.result() if cell.finished.done() else None
        left, cause = (self._left_running(finished), None) if finished else ((), self._death.result())
        return result_of(cell, finished, cause, streams=(stdout, stderr), processes=left, duration=duration)


def ended_for_others(ended: Sequence[RunningProcess]) -> str:
    """Return the line for stderr that names processes which were ended because they did not stop for a branch's cell. "" if none was."""
    names = ", ".join(f"{process.pid} {process.name}" for process in ended[:_MOST_NAMED])
    return f"{len(ended)} processes were ended, since they could not be stopped for a cell of a branch: {names}\n" if ended else ""


async def _first_of(*futures: asyncio.Future[Any], within: float | None = None) -> None:
    if not any(future.done() for future in futures):  # if one is done, waiting would cost a turn of the event loop
        await asyncio.wait(futures, timeout=within, return_when=asyncio.FIRST_COMPLETED)
