"""A session's cells: owned here, waited for by handlers. A caller that goes away changes nothing about its cell."""

import asyncio
import logging
import time
import traceback
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

from .. import telemetry
from ..contract.records import Execution, ExecutionCall, ProblemError, Status
from ..errors import GuestDiedError, IsolationError, SnapshotError
from ..models import CodeError, CodeExecutionResult, State
from ..sandbox.interpreter import Interpreter
from ..sandbox.sandbox import Sandbox
from ..tasks import Tasks
from .events import Events
from .journal import Journal

_REMEMBERED = 50
_REMEMBERED_BYTES = 16 << 20
Answer = TypeVar("Answer")
_logger = logging.getLogger("aca_sessions")


class RunningExecution:
    """A cell from the moment it was accepted."""

    def __init__(self, id: str, identifier: str, call: ExecutionCall, *, cancelled: bool) -> None:
        """Starts waiting for its turn; one that was cancelled before it came never gets it."""
        self.id = id
        self.call = call
        self.cancelled = cancelled
        self.status: Status = "NotStarted"
        self.done = asyncio.Event()
        self.events = Events()
        self.size = len(call.code)
        self._identifier = identifier
        self._result: CodeExecutionResult | None = None

    @property
    def result(self) -> CodeExecutionResult:
        """What became of it, once it is done."""
        if self._result is None:
            raise RuntimeError("asked for a result before there was one")
        return self._result

    def snapshot(self) -> Execution:
        """What can be told of it now."""
        asynchronous = self.call.asynchronous
        return Execution(id=self.id, identifier=self._identifier, status=self.status, asynchronous=asynchronous, result=self._result)

    def finish(self, result: CodeExecutionResult) -> None:
        """Gives all who wait the result."""
        self._result = replace(result, session_id=self._identifier)
        self.status = "Succeeded" if result.success else "Failed"
        shown = sum(len(content) for display in result.displays for content in display.data.values() if isinstance(content, str))
        self.size += len(result.stdout) + len(result.stderr) + shown + self.events.size
        self.events.close()
        self.done.set()


class Executions:
    """The cells of one session, one at a time, in the order they came."""

    def __init__(
        self,
        identifier: str,
        sandbox: Callable[[], Awaitable[Sandbox]],
        default_timeout: float,
        *,
        journal: Journal,
        loss: State | None,
    ) -> None:
        """Runs in the given sandbox; a loss that the session's owner has not heard of is told with the first result."""
        self._identifier = identifier
        self._sandbox = sandbox
        self._default_timeout = default_timeout
        self._journal = journal
        self._loss = loss
        self._known: OrderedDict[str, RunningExecution] = OrderedDict()
        self._turn = asyncio.Lock()
        self._tasks = Tasks()

    @property
    def unfinished(self) -> int:
        """How many run or wait."""
        return sum(not execution.done.is_set() for execution in self._known.values())

    @property
    def running(self) -> str | None:
        """The id of the one whose turn it is."""
        return next((execution.id for execution in self._known.values() if execution.status == "Running"), None)

    def start(self, id: str, call: ExecutionCall, *, cancelled: bool) -> RunningExecution:
        """Accepts a cell. A known id is answered with its cell: none runs twice."""
        if id not in self._known:
            self._known[id] = RunningExecution(id, self._identifier, call, cancelled=cancelled)
            self._tasks.start(self._run(self._known[id]))
        return self._known[id]

    def find(self, id: str) -> RunningExecution:
        """One of them."""
        execution = self._known.get(id)
        if execution is None:
            raise ProblemError(404, "ExecutionNotFound", "there is no such execution in this session")
        return execution

    def interrupt(self, execution: RunningExecution) -> None:
        """Interrupts the cell, or keeps it from starting; what became of it is in its result."""
        execution.cancelled = True
        if execution.status == "Running":
            self._tasks.start(self._interrupt(execution))

    def interrupt_running(self) -> None:
        """Interrupts the cell whose turn it is; those that wait for theirs go on waiting."""
        for execution in self._known.values():
            if execution.status == "Running":
                self.interrupt(execution)

    async def answer(self, execution: RunningExecution, number: int, text: str | None) -> None:
        """Gives a cell what it asked for."""
        interpreter = (await self._sandbox()).running if execution.status == "Running" else None
        if interpreter is None or not interpreter.answer(execution.id, number, text):
            raise ProblemError(409, "QuestionNotOpen", "the execution does not wait for this answer: it has one, or went on without")

    async def finish(self) -> None:
        """Waits until all have their results."""
        await self._tasks.finish()

    async def _run(self, execution: RunningExecution) -> None:
        try:
            async with self._turn:
                with self._journal.running():
                    result = await self._result(execution)
                execution.finish(result)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            _logger.error("a cell's result could not be made: %s at %s:%s", type(error).__name__, where.filename, where.lineno)
            execution.finish(_no_result("the server failed while it made this result; its log says more", State("unknown", "no reply")))
        finally:
            if not execution.done.is_set():
                execution.finish(_no_result("the server was stopped", State("lost", "killed")))
            self._journal.cell_ended(self._identifier, execution.call, execution.result)
            self._forget_oldest()

    async def _result(self, execution: RunningExecution) -> CodeExecutionResult:
        try:
            sandbox = await self._sandbox()
            interpreter = await _started(sandbox)
            if execution.cancelled:
                return CodeExecutionResult(error=CodeError("KeyboardInterrupt", "the cell was cancelled before it began"))
            execution.status = "Running"
            result = await sandbox.recovered(await self._ran(sandbox, interpreter, execution))
        except SnapshotError as error:
            told = CodeError("SnapshotError", f"the cell was not run: {error}")
            return CodeExecutionResult(error=told, stderr=str(told))
        except (GuestDiedError, IsolationError) as error:
            return _no_result(str(error), State("lost", "killed"))
        return self._with_earlier_loss(result, sandbox.take_loss())

    async def in_turn(self, act: Callable[[Sandbox], Awaitable[Answer]]) -> Answer:
        """Acts between two cells, in the order in which they and this were asked for; goes on to its end if its caller does not wait."""
        return await self._tasks.to_its_end(self._in_turn(act))

    async def _in_turn(self, act: Callable[[Sandbox], Awaitable[Answer]]) -> Answer:
        async with self._turn:
            return await act(await self._sandbox())

    async def _ran(self, sandbox: Sandbox, interpreter: Interpreter, execution: RunningExecution) -> CodeExecutionResult:
        if execution.call.transactional:
            return await sandbox.attempt(lambda live: self._ran_by(live, execution))
        return await self._ran_by(interpreter, execution)

    async def _ran_by(self, interpreter: Interpreter, execution: RunningExecution) -> CodeExecutionResult:
        call, timeout = execution.call, execution.call.timeout or self._default_timeout
        tell = execution.events.add if call.asynchronous else None
        if call.command is not None:
            return await interpreter.execute(execution.id, call.command.arguments, call.command.stdin, timeout=timeout, tell=tell)
        return await interpreter.run(execution.id, call.code, timeout, tell=tell, answered=call.answered)

    def _with_earlier_loss(self, result: CodeExecutionResult, loss: State | None) -> CodeExecutionResult:
        """Variables that were lost between two cells are told with the later one."""
        loss, self._loss = loss or self._loss, None
        return replace(result, state=loss) if loss and result.state.kind == "kept" else result

    async def _interrupt(self, execution: RunningExecution) -> None:
        interpreter = (await self._sandbox()).running
        if interpreter is not None:
            await interpreter.interrupt(execution.id)

    def _forget_oldest(self) -> None:
        """The last result is always remembered: its caller may have lost the answer."""
        done = [execution for execution in self._known.values() if execution.done.is_set()]
        size = sum(execution.size for execution in done)
        for execution in done[:-1]:
            if len(done) <= _REMEMBERED and size <= _REMEMBERED_BYTES:
                return
            done.remove(execution)
            size -= execution.size
            del self._known[execution.id]


async def _started(sandbox: Sandbox) -> Interpreter:
    """The interpreter; one that has to be forked first is a cold start."""
    begun, running = time.perf_counter(), sandbox.running
    interpreter = await sandbox.interpreter()
    if interpreter is not running:
        telemetry.interpreter_started("cold", time.perf_counter() - begun)
    return interpreter


def _no_result(message: str, state: State) -> CodeExecutionResult:
    return CodeExecutionResult(error=CodeError("InterpreterDied", message), stderr=f"InterpreterDied: {message}", state=state)
