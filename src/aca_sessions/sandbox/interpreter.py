"""One live Python in a sandbox: run a cell, interrupt it, end it.

Nothing that arrives from the guest is believed before `wire.decode` let it through; a frame that it does not let through ends it.
Cells go by a socket; once guest code runs, frames come by a pipe. Into a socket a guest could put open files with them: whoever receives
those closes them, and that takes as long as the guest likes (SO_LINGER in socket(7)).
"""

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Self

from ..errors import GuestDiedError, IsolationError
from ..models import CodeExecutionResult, Event, RunningProcess, State
from ..tasks import Tasks
from . import wire
from .cell import Cell, changes_of, check, error_of, processes_of, reason_of, variables_of
from .channel import Channel
from .ends import Spawned, host_pid, running_below
from .forkserver import refusal
from .memory import Memory
from .policy import ANSWER_SECONDS, INTERRUPT_GRACE, Limits
from .proxy import Proxy, Serving
from .remedy import remedy_for

_REPORT_BYTES = 8
_MET_DESCRIPTORS = 4
_START_SECONDS = 30.0
_REPORT_SECONDS = 1.0
_MAX_UNREAD = 256  # answers on their way to a guest that does not read them


class Interpreter:
    """Serves one cell at a time; once it is dead, it stays dead."""

    def __init__(self, spawned: Spawned, limits: Limits, *, memory: Memory, proxy: Proxy | None) -> None:
        """Takes over the ends of a spawned session; `start` makes it usable."""
        self._link = spawned.link
        self._report = spawned.report
        self._init = spawned.init
        self._ending = spawned.ending
        self._sees_processes = spawned.namespaces
        self._limits = limits
        self._memory = memory
        self._proxy = proxy
        self._serving: Serving | None = None
        self._pid: int | None = None
        self._channel: Channel | None = None
        self._cell: Cell | None = None
        self._death: asyncio.Future[State] = asyncio.get_running_loop().create_future()
        self._hears_of_death = False
        self._answering = Tasks()
        self._killed_for: str | None = None
        self._death_told = False
        self._busy = asyncio.Lock()
        self._closed = False

    @classmethod
    async def start(cls, spawned: Spawned, limits: Limits, *, memory: Memory, proxy: Proxy | None) -> Self:
        """The interpreter, confined and waiting for cells; its memory is counted, and what leaves it does so by the proxy, if any."""
        interpreter = cls(spawned, limits, memory=memory, proxy=proxy)
        try:
            async with asyncio.timeout(_START_SECONDS):
                await interpreter._meet()
        except BaseException as error:
            await interpreter.close()
            if isinstance(error, TimeoutError):
                raise GuestDiedError("a session did not start within 30 s; the machine may be overloaded: try again") from None
            raise
        return interpreter

    @property
    def alive(self) -> bool:
        """Whether it can take another cell."""
        return not self._death.done() and self._killed_for is None

    @property
    def untold_death(self) -> State | None:
        """How it died, unless a result has said so."""
        return self._death.result() if self._death.done() and not self._death_told else None

    @property
    def pidfd(self) -> int:
        """Names the interpreter's process on this host."""
        if self._pid is None:
            raise GuestDiedError("the interpreter has ended; the next cell gets a fresh one")
        return self._pid

    async def run(
        self, execution: str, code: str, timeout: float, *, tell: Callable[[Event], None] | None = None, answered: bool = False
    ) -> CodeExecutionResult:
        """What became of a cell: interrupted at its deadline, and killed where that changes nothing.

        What it does is told as it happens; what it asks for is `answered` by somebody, or refused.
        """
        async with self._busy:
            return await self._run(wire.Run(execution, code, answered), timeout, Cell(execution, tell, answered=answered))

    async def execute(
        self,
        execution: str,
        arguments: Sequence[str],
        stdin: str = "",
        *,
        timeout: float,
        tell: Callable[[Event], None] | None = None,
    ) -> CodeExecutionResult:
        """The same for a program: its exit code is the value."""
        async with self._busy:
            return await self._run(wire.Command(execution, list(arguments), stdin), timeout, Cell(execution, tell))

    async def extend(self, paths: Sequence[str], replaced: Sequence[str] = ()) -> CodeExecutionResult:
        """Has it find the packages in these folders; it refuses where one of the replaced modules is loaded."""
        async with self._busy:
            return await self._run(wire.Extend("packages", list(paths), list(replaced)), _START_SECONDS, Cell("packages"))

    async def warm_up(self) -> None:
        """Has it touch, and so copy, the memory that every first cell would wait for."""
        async with self._busy:
            await self._run(wire.WarmUp("warm-up"), _START_SECONDS, Cell("warm-up"))

    async def _run(self, message: wire.Run | wire.Command | wire.WarmUp | wire.Extend, timeout: float, cell: Cell) -> CodeExecutionResult:
        channel = self._channel
        if not self.alive or channel is None:
            raise GuestDiedError("the interpreter has ended; the next cell gets a fresh one")
        started = time.perf_counter()
        self._cell = cell
        self._follow(cell)
        sending = asyncio.ensure_future(channel.send(message))
        self._memory.cell_runs(True)
        try:
            await self._until_deadline(cell, timeout)
            if not cell.finished.done() and self.alive:
                cell.overran = timeout
                await self.interrupt(message.execution)
            await _first_of(cell.finished, self._death)
        finally:
            sending.cancel()
            self._memory.cell_runs(False)
            self._cell = None
        channel.drain()
        self._follow(None)
        return self._result(cell, channel, time.perf_counter() - started)

    def _follow(self, cell: Cell | None) -> None:
        """Streams are told as they come only to those who listen."""
        stdout, stderr = self._channel.streams if self._channel is not None else (None, None)
        if stdout is not None and stderr is not None and (cell is None or cell.tell is not None):
            stdout.follow(partial(cell.wrote, "stdout") if cell else None)
            stderr.follow(partial(cell.wrote, "stderr") if cell else None)

    async def _until_deadline(self, cell: Cell, timeout: float) -> None:
        """Whoever was asked has a time of their own; then there is no answer, and the cell's clock goes on."""
        while not (cell.finished.done() or self._death.done()):
            turned, asked = cell.turned, bool(cell.open)
            left = ANSWER_SECONDS if asked else timeout - cell.clock.used
            if left <= 0:
                return
            await _first_of(cell.finished, self._death, turned, within=left)
            if asked and not turned.done():
                for number in [*cell.open]:
                    self.answer(cell.execution, number, None)

    def answer(self, execution: str, number: int, text: str | None) -> bool:
        """Gives a cell what it asked for, or None; False where it no longer waits for that."""
        cell = self._cell
        if cell is None or cell.execution != execution or not cell.answered(number):
            return False
        self._send_answer(wire.Answer(number, text is not None, text if text is not None else "nobody answered"))
        return True

    def _send_answer(self, answer: wire.Answer) -> None:
        if self._channel is not None:
            self._answering.start(self._channel.send(answer))

    async def interrupt(self, execution: str) -> None:
        """SIGINT for a cell, if it runs; where it has not ended after a grace period, SIGKILL for the session's processes."""
        cell = self._cell
        if cell is None or cell.execution != execution or not self.alive:
            return
        await _first_of(cell.started, self._death, within=INTERRUPT_GRACE)
        self._signal(signal.SIGINT)
        await _first_of(cell.finished, self._death, within=INTERRUPT_GRACE)
        if not cell.finished.done():
            self._kill("killed")

    async def close(self) -> None:
        """Ends every process of the session, and lets go of its ends even if it is cancelled meanwhile."""
        self._kill("killed")
        try:
            if self._hears_of_death:
                await _first_of(self._death, within=_REPORT_SECONDS)
            self._bury(State("lost", "killed"))
            await self._last_one_gone()
            await self._memory.end()
            await self._answering.cancel()
            if self._serving is not None:
                await self._serving.close()
            async with self._busy:  # a cell that ran still makes its result of what was written
                pass
        finally:
            self._bury(State("lost", "killed"))
            self._let_go()

    async def _last_one_gone(self) -> None:
        """The first process of a pid namespace outlives all others: when its pidfd is readable, there is none left."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_REPORT_SECONDS):
                await _readable(self._init)

    def _let_go(self) -> None:
        if self._closed:
            return
        self._closed = True
        for descriptor in (self._report, self._init, self._pid):
            if descriptor is not None:
                os.close(descriptor)
        self._pid = None
        (self._channel or self._link).close()

    async def _meet(self) -> None:
        """Waits for the confined interpreter's first frame, the last one that comes from code of ours alone."""
        self._link.setblocking(False)
        await _readable(self._link.fileno())
        data, descriptors, _, _ = socket.recv_fds(self._link, 1 << 16, 8)
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        with contextlib.ExitStack() as unused:
            for descriptor in descriptors:
                unused.callback(os.close, descriptor)
            self._check_met(wire.Frames(wire.MAX_FROM_GUEST).feed(data), len(descriptors))
            unused.pop_all()
        self._pid, said, stdout, stderr, *listeners = descriptors
        self._link.shutdown(socket.SHUT_RD)
        self._channel = Channel(self._link, said, (stdout, stderr), limit=self._limits.output)
        if self._proxy is not None:
            self._serving = await self._proxy.serve(socket.socket(fileno=listeners[0]))
        await self._count_memory()
        self._listen(self._channel)

    def _check_met(self, payloads: list[bytes], descriptors: int) -> None:
        if not payloads:
            raise GuestDiedError("a session ended before it was ready; see the process's standard error for the cause")
        match wire.decode(payloads[0], wire.Ready, wire.Refused):
            case wire.Refused() as refused:
                raise refusal(refused)
        if descriptors != _MET_DESCRIPTORS + (self._proxy is not None):
            raise GuestDiedError("this process has no descriptor left for another session: end some and try again")

    async def _count_memory(self) -> None:
        try:
            await self._memory.begin(host_pid(self._init), host_pid(self.pidfd), lambda: self._kill("memory"))
        except OSError as error:
            raise IsolationError("control group", str(error.strerror), remedy_for("session", error.errno or 0)) from None

    def _listen(self, channel: Channel) -> None:
        channel.listen(self._take, forged=lambda: self._kill("crash"), silent=self._fell_silent)
        asyncio.get_running_loop().add_reader(self._report, self._on_report)
        self._hears_of_death = True

    def _fell_silent(self) -> None:
        """Its init will say how it ended. Closing the link alone would be a way to stay alive and silent: the kill is certain."""
        asyncio.get_running_loop().call_later(_REPORT_SECONDS, self._bury, State("lost", "crash"))

    def _take(self, payload: bytes) -> None:
        message = wire.decode(payload, wire.Started, wire.Shown, wire.Cleared, wire.Asked, wire.Finished)
        cell = self._cell
        if cell is not None and cell.tell is not None and self._channel is not None:
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
        if len(self._answering) >= _MAX_UNREAD:
            raise wire.WireError("questions whose answers are not read")
        if cell is None or cell.execution != asked.execution or cell.finished.done() or not cell.ask(asked):
            self._send_answer(wire.Answer(asked.number, False, "nobody is there to answer"))

    def _on_report(self) -> None:
        report = os.read(self._report, _REPORT_BYTES)
        status = int.from_bytes(report[4:], "little") if len(report) == _REPORT_BYTES else None
        reason = reason_of(status)
        if reason == "killed" and self._memory.was_exceeded():
            reason = "memory"
        self._bury(State("lost", self._killed_for or reason))

    def _bury(self, state: State) -> None:
        """It is dead: nothing more is read, and whatever of the session still lives is killed."""
        if self._death.done():
            return
        if self._channel is not None:
            self._channel.drain()
            self._channel.stop()
        if self._hears_of_death:
            asyncio.get_running_loop().remove_reader(self._report)
        self._kill(state.reason or "killed")
        self._death.set_result(state)

    def _kill(self, reason: str) -> None:
        """Ends the session's first process, and so all of them."""
        self._killed_for = self._killed_for or reason
        if not self._closed:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._init, self._ending)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, GuestDiedError):
            signal.pidfd_send_signal(self.pidfd, number)

    def _left_running(self, finished: wire.Finished) -> tuple[RunningProcess, ...]:
        """As the guest tells it, where it sees its processes; else as they are seen from here."""
        if self._sees_processes:
            return processes_of(finished)
        return running_below(self._init, besides=self.pidfd)

    def _result(self, cell: Cell, channel: Channel, duration: float) -> CodeExecutionResult:
        stdout, stderr = (stream.take() for stream in channel.streams)
        finished = cell.finished.result() if cell.finished.done() else None
        state = State() if finished else self._death.result()
        self._death_told = finished is None
        error = error_of(cell, finished, state)
        told = "\n".join(part for part in (stderr.rstrip("\n"), error.traceback or str(error)) if part) if error else stderr
        return CodeExecutionResult(
            stdout=stdout,
            stderr=told,
            value=finished.value if finished else None,
            text=finished.text if finished else None,
            displays=tuple(cell.displays),
            files=changes_of(finished) if finished else (),
            processes=self._left_running(finished) if finished else (),
            variables=variables_of(finished) if finished else (),
            error=error,
            state=state,
            duration=duration,
        )


async def _first_of(*futures: asyncio.Future[Any], within: float | None = None) -> None:
    await asyncio.wait(futures, timeout=within, return_when=asyncio.FIRST_COMPLETED)


async def _readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(descriptor, lambda: None if ready.done() else ready.set_result(None))
    try:
        await ready
    finally:
        loop.remove_reader(descriptor)
