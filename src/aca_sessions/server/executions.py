"""The executions of one session. They belong to the server: handlers wait for them, and a caller that disconnects does not change them."""

import asyncio
import contextlib
import logging
import time
import traceback
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Protocol, TypeVar

from .. import telemetry
from ..contract.records import Execution, ExecutionCall, ProblemError, Status
from ..errors import GuestDiedError, IsolationError, SnapshotError
from ..ledger import Ledger, with_state
from ..models import NO_REPLY, CodeError, CodeExecutionResult
from ..sandbox.cell import CellNotSentError, CellNotStartedError
from ..sandbox.interpreter import Interpreter
from ..sandbox.sandbox import Sandbox
from ..tasks import Tasks
from .events import Events
from .journal import Journal

# How many results a session keeps, and their size in bytes.
_FETCHED_RESULTS, _FETCHED_BYTES = 50, 16 << 20
_KEPT_RESULTS, _KEPT_BYTES = 1000, 64 << 20  # including those that were not fetched yet
_REMEMBERED_IDS = 10_000
_TRIES = 3
Answer = TypeVar("Answer")
_logger = logging.getLogger("aca_sessions")


class Home(Protocol):
    """What executions need of their session."""

    identifier: str
    ledger: Ledger
    has_state: bool

    async def sandbox(self) -> Sandbox:
        """Return the sandbox, once it is open."""

    async def renew(self) -> bool:
        """Open another sandbox if this one died before anything could be lost, and return whether that was so."""


class RunningExecution:
    """An execution from the moment it was accepted. `start` and `end` are positions in the session's ledger."""

    def __init__(self, id: str, session: Home, call: ExecutionCall, *, cancelled: bool) -> None:
        self.id = id
        self.call = call
        self.cancelled = cancelled
        self.status: Status = "NotStarted"
        self.done = asyncio.Event()
        self.events = Events()
        self.size = len(call.code)
        self.fetched = False
        self._identifier = session.identifier
        self._ledger = session.ledger
        self.start = self.end = session.ledger.position
        # The position of a caller that names none, when it asked. What others fetch before its answer is made is still news to it.
        self._known = session.ledger.fetched
        self._result: CodeExecutionResult | None = None

    @property
    def result(self) -> CodeExecutionResult:
        """Return the result. Raise RuntimeError before the execution is done."""
        if self._result is None:
            raise RuntimeError("asked for a result before there was one")
        return self._result

    def snapshot(self, since: str | None = None) -> Execution:
        """Return what is known now.

        The result's state is what happened since the position that the caller names, or since the last fetch if it names none.
        """
        result = self._result
        if result is not None and result.state != NO_REPLY:
            state, record = self._ledger.seen_from(since, self.start, self.end, otherwise=self._known)
            result = with_state(result, state, record=record)
        return Execution(id=self.id, identifier=self._identifier, status=self.status, asynchronous=self.call.asynchronous, result=result)

    def note_fetched(self) -> None:
        """Note that the result was sent to a caller. Later callers that name no position do not read of earlier losses again."""
        if self._result is not None:
            self.fetched = True
            self._ledger.fetched = max(self._ledger.fetched, self.end)

    def begin(self) -> None:
        """Note that its turn has come."""
        self.start = self._ledger.position

    def finish(self, result: CodeExecutionResult) -> None:
        """Store the result and wake all that wait for it. Its state is what happened from the execution's start until now."""
        self.end = self._ledger.position
        if result.state == NO_REPLY:
            self._result = replace(result, session_id=self._identifier)
        else:
            self._result = with_state(result, self._ledger.between(self.start, self.end), session_id=self._identifier)
        self.status = "Succeeded" if result.success else "Failed"
        shown = sum(len(content) for display in result.displays for content in display.data.values() if isinstance(content, str))
        self.size += len(result.stdout) + len(result.stderr) + shown + self.events.size
        self.events.close()
        self.done.set()


class Executions:
    """The executions of one session. They run one at a time, in the order of their requests. Results are kept within bounds."""

    def __init__(self, session: Home, default_timeout: float, *, journal: Journal) -> None:
        self._session = session
        self._default_timeout = default_timeout
        self._journal = journal
        self._known: OrderedDict[str, RunningExecution] = OrderedDict()
        self._forgotten: OrderedDict[str, None] = OrderedDict()  # the ids of executions whose results are not kept any more
        self._journaled = session.ledger.position
        self._turn = asyncio.Lock()
        self._tasks = Tasks()

    @property
    def unfinished(self) -> int:
        """Return how many executions run or wait."""
        return sum(not execution.done.is_set() for execution in self._known.values())

    @property
    def running(self) -> str | None:
        """Return the id of the execution that runs now, or None."""
        return next((execution.id for execution in self._known.values() if execution.status == "Running"), None)

    def start(self, id: str, call: ExecutionCall, *, cancelled: bool) -> RunningExecution:
        """Accept a cell. The same id returns the same execution: no id runs twice while the session lives.

        Raise ProblemError (410) if the id ended and its result is not kept any more. A new execution that is `cancelled` never starts its
        cell.
        """
        self._check_not_forgotten(id)
        if id not in self._known:
            self._known[id] = RunningExecution(id, self._session, call, cancelled=cancelled)
            self._tasks.start(self._run(self._known[id]))
        return self._known[id]

    def find(self, id: str) -> RunningExecution:
        """Return an execution by its id. Raise ProblemError: 410 if its result is not kept any more, 404 if there never was one."""
        self._check_not_forgotten(id)
        execution = self._known.get(id)
        if execution is None:
            raise no_execution()
        return execution

    def _check_not_forgotten(self, id: str) -> None:
        if id in self._forgotten:
            raise ProblemError(
                410,
                "ExecutionResultGone",
                "this execution ended and its result is not kept any more: fetch results sooner, or run the code under another id",
            )

    def interrupt(self, execution: RunningExecution) -> None:
        """Interrupt an execution, or keep it from starting. The result shows what that did."""
        execution.cancelled = True
        if execution.status == "Running":
            self._tasks.start(self._interrupt(execution))

    def interrupt_running(self) -> None:
        """Interrupt the execution that runs now. Those that wait for their turn are left alone."""
        for execution in self._known.values():
            if execution.status == "Running":
                self.interrupt(execution)

    async def answer(self, execution: RunningExecution, number: int, text: str | None) -> None:
        """Reply to a question of a cell. Raise ProblemError (409) if the cell does not wait for this reply."""
        interpreter = (await self._session.sandbox()).running if execution.status == "Running" else None
        if interpreter is None or not interpreter.answer(execution.id, number, text):
            raise ProblemError(
                409, "QuestionNotOpen", "the execution does not wait for this answer: it has one already, or continued without"
            )

    async def finish(self) -> None:
        """Wait until all executions have their results."""
        await self._tasks.finish()

    async def in_turn(self, act: Callable[[Sandbox], Awaitable[Answer]]) -> Answer:
        """Act between two cells, in the order of requests. It completes even if its caller is cancelled."""
        return await self._tasks.to_its_end(self._in_turn(act))

    def later_in_turn(self, act: Callable[[Sandbox], Awaitable[object]]) -> None:
        """Act in turn as `in_turn` does, in the background: for a caller that was cancelled and must not wait."""
        self._tasks.start(self._in_turn(act))

    async def _in_turn(self, act: Callable[[Sandbox], Awaitable[Answer]]) -> Answer:
        async with self._turn:
            return await act(await self._session.sandbox())

    async def _run(self, execution: RunningExecution) -> None:
        try:
            async with self._turn:
                execution.begin()
                with self._journal.running():
                    execution.finish(await self._result(execution))
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            _logger.error("a cell's result could not be made: %s at %s:%s", type(error).__name__, where.filename, where.lineno)
            _logger.debug("a cell's result could not be made", exc_info=error)
            failed = _no_result("the server failed while it made this result; its log says more")
            execution.finish(replace(failed, state=NO_REPLY))
        finally:
            if not execution.done.is_set():
                execution.finish(_no_result("the server was stopped"))
            self._note_ended(execution)
            self._forget_results()

    def _note_ended(self, execution: RunningExecution) -> None:
        """Report the execution to operators, with what happened to the session since its previous cell.

        So a death between two cells is counted, too.
        """
        result = execution.result
        if result.state != NO_REPLY and self._journaled < execution.start:
            result = replace(result, state=self._session.ledger.between(self._journaled, execution.end))
        self._journaled = max(self._journaled, execution.end)
        self._journal.cell_ended(self._session.identifier, execution.call, result)

    async def _result(self, execution: RunningExecution) -> CodeExecutionResult:
        try:
            for _ in range(_TRIES - 1):
                with contextlib.suppress(CellNotSentError):  # a reset or a death of the interpreter came first
                    return await self._executed(execution)
            return await self._executed(execution)
        except CellNotStartedError:
            return CodeExecutionResult(error=CodeError("KeyboardInterrupt", "the cell was cancelled before it began"))
        except SnapshotError as error:
            told = CodeError("SnapshotError", f"the cell was not run: {error}")
            return CodeExecutionResult(error=told, stderr=str(told))
        except (GuestDiedError, IsolationError) as error:
            return _no_result(str(error))

    async def _executed(self, execution: RunningExecution) -> CodeExecutionResult:
        sandbox = await self._ready_sandbox()
        # The wait for the interpreter is over: an interrupt that came meanwhile must keep the cell from starting.
        if execution.cancelled:
            raise CellNotStartedError
        execution.status = "Running"
        self._session.has_state = True
        return await sandbox.execute(lambda live: self._ran_by(live, execution), transactional=execution.call.transactional)

    async def _ready_sandbox(self) -> Sandbox:
        """Return the sandbox with a live interpreter.

        If the fork server died before the session had any state, another sandbox is opened. Otherwise the loss is recorded and
        GuestDiedError is raised.
        """
        sandbox = await self._session.sandbox()
        try:
            await _started(sandbox)
        except GuestDiedError:
            if not await self._session.renew():
                sandbox.note_lost_workspace()
                raise
            sandbox = await self._session.sandbox()
            await _started(sandbox)
        return sandbox

    async def _ran_by(self, interpreter: Interpreter, execution: RunningExecution) -> CodeExecutionResult:
        call, timeout = execution.call, execution.call.timeout or self._default_timeout
        tell = execution.events.add if call.asynchronous else None

        def is_cancelled() -> bool:
            return execution.cancelled

        if call.command is not None:
            arguments, stdin = call.command.arguments, call.command.stdin
            return await interpreter.execute(execution.id, arguments, stdin, timeout=timeout, tell=tell, is_cancelled=is_cancelled)
        return await interpreter.run(execution.id, call.code, timeout, tell=tell, answered=call.answered, is_cancelled=is_cancelled)

    async def _interrupt(self, execution: RunningExecution) -> None:
        interpreter = (await self._session.sandbox()).running
        if interpreter is not None:
            await interpreter.interrupt(execution.id)

    def _forget_results(self) -> None:
        """Drop results beyond the limits; those that were not fetched are kept longer.

        The last result is always kept, because its response may have been lost.
        """
        done = [execution for execution in self._known.values() if execution._result is not None][:-1]
        fetched = [execution for execution in done if execution.fetched]
        are_all_fetched = len(fetched) == len(done)
        self._forget_some(fetched, _FETCHED_RESULTS, _FETCHED_BYTES)
        if not are_all_fetched:
            self._forget_some([execution for execution in done if execution.id in self._known], _KEPT_RESULTS, _KEPT_BYTES)

    def _forget_some(self, done: list[RunningExecution], most: int, most_bytes: int) -> None:
        """Drop the oldest results if there are too many, and the largest if they are too large. Their ids are remembered for longer."""
        size = sum(execution.size for execution in done)
        while len(done) > most or size > most_bytes:
            gone = done[0] if len(done) > most else max(done, key=lambda execution: execution.size)
            done.remove(gone)
            size -= gone.size
            del self._known[gone.id]
            self._forgotten[gone.id] = None
        while len(self._forgotten) > _REMEMBERED_IDS:
            self._forgotten.popitem(last=False)


def no_execution() -> ProblemError:
    """Return the problem of an id that no execution of the session has."""
    return ProblemError(404, "ExecutionNotFound", "there is no such execution in this session")


async def _started(sandbox: Sandbox) -> Interpreter:
    """Return the live interpreter. Count a cold start if it has to be forked first."""
    begun, running = time.perf_counter(), sandbox.running
    interpreter = await sandbox.interpreter()
    if interpreter is not running:
        telemetry.interpreter_started("cold", time.perf_counter() - begun)
    return interpreter


def _no_result(message: str) -> CodeExecutionResult:
    return CodeExecutionResult(error=CodeError("InterpreterDied", message), stderr=f"InterpreterDied: {message}")
