"""Executions: owned here, waited for by handlers. A caller that goes away changes nothing about its cell."""

import asyncio
from collections import OrderedDict
from dataclasses import replace

from ..contract.records import Execution, ExecutionCall, ProblemError, Status
from ..errors import GuestDiedError, IsolationError
from ..models import CodeError, CodeExecutionResult, State
from .sessions import HostedSession
from .tasks import Tasks

_REMEMBERED = 1000


class RunningExecution:
    """A cell from the moment it was accepted."""

    def __init__(self, id: str, session: HostedSession, call: ExecutionCall) -> None:
        """Starts waiting for its turn."""
        self.id = id
        self.session = session
        self.call = call
        self.status: Status = "NotStarted"
        self.cancelled = False
        self.result: CodeExecutionResult | None = None
        self.done = asyncio.Event()

    def snapshot(self) -> Execution:
        """What can be told of it now."""
        return Execution(
            id=self.id,
            identifier=self.session.identifier,
            status=self.status,
            asynchronous=self.call.asynchronous,
            result=self.result,
        )

    def finish(self, result: CodeExecutionResult) -> None:
        """Gives all who wait the result."""
        self.result = replace(result, session_id=self.session.identifier)
        self.status = "Succeeded" if result.success else "Failed"
        self.done.set()


class Executions:
    """Runs cells, one at a time in each session, in the order they came."""

    def __init__(self, default_timeout: float) -> None:
        """Cells without a time limit of their own get the given one."""
        self._default_timeout = default_timeout
        self._executions: OrderedDict[tuple[str, str], RunningExecution] = OrderedDict()
        self._tasks = Tasks()

    def start(self, id: str, session: HostedSession, call: ExecutionCall) -> RunningExecution:
        """Accepts a cell for a session that was entered for it. A known id is answered with its cell: none runs twice."""
        key = (session.identifier, id)
        if key in self._executions:
            session.leave()
            return self._executions[key]
        execution = self._executions[key] = RunningExecution(id, session, call)
        self._forget_oldest()
        self._tasks.start(self._run(execution))
        return execution

    def find(self, identifier: str, id: str) -> RunningExecution:
        """An execution of a session."""
        execution = self._executions.get((identifier, id))
        if execution is None:
            raise ProblemError(404, "ExecutionNotFound", "there is no such execution in this session")
        return execution

    def interrupt(self, execution: RunningExecution) -> None:
        """Interrupts the cell, or keeps it from starting; what became of it is in its result."""
        execution.cancelled = True
        if execution.status == "Running":
            self._tasks.start(_interrupt(execution))

    async def close(self) -> None:
        """Lets go of all that still run; their sessions end after this."""
        await self._tasks.close()

    async def _run(self, execution: RunningExecution) -> None:
        try:
            async with execution.session.turn:
                execution.finish(await self._result(execution))
        finally:
            execution.session.leave()
            if not execution.done.is_set():
                execution.finish(_aborted("the server was stopped", State("lost", "killed")))

    async def _result(self, execution: RunningExecution) -> CodeExecutionResult:
        session, call = execution.session, execution.call
        try:
            sandbox = await session.sandbox()
            interpreter = await sandbox.interpreter()
            if execution.cancelled:
                return CodeExecutionResult(error=CodeError("KeyboardInterrupt", "the cell was cancelled before it began"))
            execution.status = "Running"
            result = await interpreter.run(execution.id, call.code, call.timeout or self._default_timeout)
        except (GuestDiedError, IsolationError) as error:
            return _aborted(str(error), State("lost", "crash"))
        return _with_earlier_loss(result, session.take_loss() or sandbox.take_loss())

    def _forget_oldest(self) -> None:
        while len(self._executions) > _REMEMBERED:
            oldest = next((key for key, execution in self._executions.items() if execution.done.is_set()), None)
            if oldest is None:
                return
            del self._executions[oldest]


async def _interrupt(execution: RunningExecution) -> None:
    sandbox = await execution.session.sandbox()
    interpreter = await sandbox.interpreter()
    await interpreter.interrupt(execution.id)


def _with_earlier_loss(result: CodeExecutionResult, loss: State | None) -> CodeExecutionResult:
    """Variables that were lost between two cells are told with the later one."""
    return replace(result, state=loss) if loss and result.state.kind == "kept" else result


def _aborted(message: str, state: State) -> CodeExecutionResult:
    return CodeExecutionResult(error=CodeError("InterpreterDied", message), stderr=message, state=state)
