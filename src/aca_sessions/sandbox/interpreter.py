"""One live Python in a sandbox: run a cell, interrupt it, fork it, end it.

Nothing that arrives from the guest is believed before `wire.decode` let it through; a frame that it does not let through ends it.
Cells go by a socket; once guest code runs, frames come by a pipe. Into a socket a guest could put open files with them: whoever receives
those closes them, and that takes as long as the guest likes (SO_LINGER in socket(7)).
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
from .cell import Cell, CellNotSentError, CellNotStartedError, Clock, check, processes_of, reason_of, result_of
from .channel import Channel
from .ends import MOST_TOLD, exit_status, gives_way, number_of, processor_time, running_below
from .home import Home, Member
from .policy import ANSWER_SECONDS, INTERRUPT_GRACE
from .processes import Ended

_OWN_SECONDS = 30.0  # for what is no cell of the user's
_ASK_SECONDS, _MOST_ASK_SECONDS = 0.02, 1.0
_REPORT_SECONDS = 1.0
_MOST_NAMED = 10
_MAX_UNREAD = 256  # answers on their way to a guest that does not read them
_MAX_UNREAD_BYTES = 256 << 20  # the same; an honest guest waits for at most 32 answers of up to 8 MB
_LOOK_SECONDS = 0.05  # between two looks at what a cell computes that waits for an answer
_MAX_IDLE = 2 << 20  # bytes of a frame while no cell runs: only questions may come then


def _never() -> bool:
    return False


class Interpreter:
    """Serves one cell at a time; once it is dead, it stays dead."""

    def __init__(self, home: Home, channel: Channel, process: int, *, tree: int, forked: bool = False, has_run_cells: bool = False) -> None:
        """Take over the ends of a live interpreter: its channel and its pidfd. Its /mnt/data is the tree of that number."""
        self.home = home
        self.number = number_of(process)
        self.tree = tree
        self._channel = channel
        self._process: int | None = process
        self._forked = forked
        self._cell: Cell | None = None
        self._death: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._killed_for: str | None = None
        self.has_run_cells = has_run_cells  # else its death loses nothing
        self._gives_way = False
        self._asking: asyncio.TimerHandle | None = None
        self.when_dead: Callable[[Interpreter, str], None] = lambda _interpreter, _cause: None
        self._busy = asyncio.Lock()
        channel.listen(self._take, most=self._most, forged=lambda: self._kill("crash"), silent=self._fell_silent)
        home.take_in(self.number, Member(process, tree, self._on_death))
        if forked:
            asyncio.get_running_loop().add_reader(process, self._on_own_end)

    @property
    def alive(self) -> bool:
        """Whether it can take another cell."""
        return not self._death.done() and self._killed_for is None and self.home.killed_for is None

    @property
    def cause_of_death(self) -> str:
        """Return why it died, or is about to."""
        return self._death.result() if self._death.done() else self._killed_for or self.home.killed_for or "killed"

    @property
    def pidfd(self) -> int:
        """Names the interpreter's process on this host."""
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
        """Run a cell and return its result. At its deadline it is interrupted, and killed if that does not end it.

        Args:
            execution: The id of the execution.
            code: The source of the cell.
            timeout: Seconds from the moment the cell starts.
            tell: Receives each event as it happens.
            answered: The kinds of questions that wait for an answer; other kinds are refused at once.
            is_cancelled: Asked right before the cell is sent. CellNotStartedError is raised if it returns True.
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
        """Run a program in the place of a cell. Its exit code is the value."""
        async with self._busy:
            message = wire.Command(execution, list(arguments), stdin)
            return await self._run(message, timeout, Cell(execution, tell), is_cancelled=is_cancelled)

    async def extend(self, paths: Sequence[str], replaced: Sequence[str] = ()) -> CodeExecutionResult:
        """Make the packages in these folders importable. The guest refuses if one of the replaced modules is loaded."""
        async with self._busy:
            return await self._run(wire.Extend("packages", list(paths), list(replaced)), _OWN_SECONDS, Cell("packages"))

    async def warm_up(self) -> None:
        """Have the guest touch, and so copy, the memory that every first cell would wait for."""
        async with self._busy:
            await self._run(wire.WarmUp("warm-up"), _OWN_SECONDS, Cell("warm-up"))

    async def ping(self) -> None:
        """Return once it has answered; raise GuestDiedError if it does not."""
        async with self._busy:
            result = await self._run(wire.Ping("ping"), _OWN_SECONDS, Cell("ping"))
        if result.error is not None:
            raise GuestDiedError(f"the interpreter does not answer: {result.error}")

    async def fork(self, ends: Sequence[int], *, reseed: bool) -> tuple[int, list[str]]:
        """Fork it. Return the number of the fork, which takes over the given ends, and what could not be taken along.

        SnapshotError is raised if it cannot be forked.
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
            if is_cancelled():  # while it waited for its turn; from here to the frame there is no await
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
        """Have it give way to the host. The kernel refuses all but ten such requests a second: ask again while the cell runs."""
        self._gives_way = self._gives_way or self._death.done() or gives_way(self.pidfd, self.home.memory.nice)
        if not self._gives_way:
            self._asking = asyncio.get_running_loop().call_later(pause, self._give_way, min(2 * pause, _MOST_ASK_SECONDS))

    def _follow(self, cell: Cell | None) -> None:
        """Report streams as they come, if the cell has a listener."""
        if cell is None or cell.tell is not None:
            stdout, stderr = self._channel.streams
            stdout.follow(partial(cell.wrote, "stdout") if cell else None)
            stderr.follow(partial(cell.wrote, "stderr") if cell else None)

    async def _until_deadline(self, cell: Cell, timeout: float) -> None:
        """Wait for the end or the deadline. A question has a deadline of its own; after that it has no answer and the clock runs again."""
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
        """Return the processor time in seconds of the interpreter, and of the processes that the cell, which began then, has started."""
        with contextlib.suppress(OSError, GuestDiedError):
            return processor_time(self.home.init, self.pidfd, since)
        return 0.0

    def answer(self, execution: str, number: int, text: str | None) -> bool:
        """Give a cell the answer to a question, or None. Return False if it no longer waits for that."""
        cell = self._cell
        if cell is None or cell.execution != execution or not cell.answered(number):
            return False
        self._send_answer(wire.Answer(number, text is not None, text if text is not None else "nobody answered"))
        return True

    def _send_answer(self, answer: wire.Answer) -> None:
        self._channel.send(answer)

    async def interrupt(self, execution: str) -> None:
        """Send SIGINT to a cell, if it runs. If it has not ended after a grace period, kill the session's processes."""
        cell = self._cell
        if cell is None or cell.execution != execution or not self.alive:
            return
        await _first_of(cell.started, self._death, within=INTERRUPT_GRACE)
        if cell is not self._cell or cell.finished.done():
            return  # it ended meanwhile, and the signal would hit the next one
        self._signal(signal.SIGINT)
        await _first_of(cell.finished, self._death, within=INTERRUPT_GRACE)
        if not cell.finished.done():
            self._kill("killed")

    async def kill(self, cause: str = "killed") -> Ended:
        """Kill it and all processes of its tree but other interpreters; `close` is still to be called.

        No code of it runs from here on. Return which processes ended, and which live on although they were killed; if it is the last one of
        its home, all end with it and none is named.
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
        """End it and what it started, and close its descriptors even if the caller is cancelled. The last one ends its home."""
        self._kill(cause)
        try:
            await _first_of(self._death, within=_REPORT_SECONDS)
            self._bury(cause)
            await self.home.leave(self.number)
            async with self._busy:  # a cell that ran still makes its result of what was written
                pass
        finally:
            self._bury(cause)
            self.home.abandon(self.number)
            self._let_go()

    def abandon(self) -> None:
        """End it at once and let go of its ends, where the event loop that it belongs to is closed."""
        self._kill("killed")
        self.home.end_now(self.number)
        self._let_go()

    def _let_go(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            os.close(process)
            self._channel.close()

    def _fell_silent(self) -> None:
        """Its init will say how it ended. Closing the link alone would be a way to stay alive and silent: the kill is certain."""
        asyncio.get_running_loop().call_later(_REPORT_SECONDS, self._bury, "crash")

    def _most(self) -> int:
        """Return the size of the largest frame that may come now."""
        return _MAX_IDLE if self._cell is None or self._cell.finished.done() else wire.MAX_FROM_GUEST

    def _take(self, payload: bytes) -> None:
        message = wire.decode(payload, wire.Started, wire.Shown, wire.Cleared, wire.Asked, wire.Finished)
        cell = self._cell
        if cell is not None and cell.tell is not None:
            self._channel.drain()  # what was written before this is told before it
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
        """A thread may ask at the moment when its cell ends: that is no forgery, and there is no answer."""
        frames, size = self._channel.unread
        if frames >= _MAX_UNREAD or size >= _MAX_UNREAD_BYTES:
            raise wire.WireError("questions whose answers are not read")
        if cell is None or cell.execution != asked.execution or cell.finished.done() or not cell.ask(asked):
            self._send_answer(wire.Answer(asked.number, False, "nobody is there to answer"))

    def _on_own_end(self) -> None:
        """A fork's parent may be there to collect it, or else its init tells of it, in a moment."""
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
        self._bury(self._killed_for or self.home.killed_for or reason)

    def _bury(self, cause: str) -> None:
        """Record that it is dead: stop reading, and kill what is left of it."""
        if self._death.done():
            return
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
        """Kill it. If it is the last interpreter, kill the session's first process and so all others."""
        self._killed_for = self._killed_for or reason
        if self.home.is_alone(self.number):
            self.home.kill(reason)
        elif self._process is not None:
            self.home.kill_with_children(self.number, self._process)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, GuestDiedError):
            signal.pidfd_send_signal(self.pidfd, number)

    def _left_running(self, finished: wire.Finished) -> tuple[RunningProcess, ...]:
        """Return what a cell left running: as the guest reports it, or without namespaces as this host sees it."""
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
    """Return the line that reports processes which ended because they did not stop for a relative's cell."""
    names = ", ".join(f"{process.pid} {process.name}" for process in ended[:_MOST_NAMED])
    return f"{len(ended)} processes were ended, since they could not be stopped for a cell of a branch: {names}\n" if ended else ""


async def _first_of(*futures: asyncio.Future[Any], within: float | None = None) -> None:
    if not any(future.done() for future in futures):  # else waiting would cost a turn of the event loop
        await asyncio.wait(futures, timeout=within, return_when=asyncio.FIRST_COMPLETED)
