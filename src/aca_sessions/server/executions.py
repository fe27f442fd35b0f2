"""The executions of one session. An execution continues on the server if the caller that waits for it disconnects."""

import asyncio
import contextlib
import copy
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, TypeVar

from .. import telemetry
from ..client.snippets import CELL_PREFIX
from ..contract.extensions import QUESTIONS
from ..contract.records import ExecutionRequest, ExecutionResponse, ProblemError, Status
from ..errors import GuestDiedError, IsolationError, SnapshotError
from ..ledger import state_between, with_state
from ..lifetime import Tasks, log_failure
from ..models import NO_REPLY, CodeError, CodeExecutionResult, Display, Event
from ..sandbox.sandbox import Sandbox
from ..sandbox.session.cell import CellNotSentError, CellNotStartedError
from ..sandbox.session.interpreter import Interpreter
from .journal import Journal

if TYPE_CHECKING:
    from .hosted_session import HostedSession

_MAX_TEXT = 4 << 20  # characters of text
_MAX_DISPLAYS = 32 << 20  # characters of displays: as much as may be part of one cell's result
_MAX_MERGED = 64 << 10
_EVENT_OVERHEAD = 64


class Events:
    """The numbered events of one execution. A reader gives the number of the last event that it has, and gets the events after it."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque()
        self._first_number = 1
        self._read_to = 0
        self.text_size = self.display_size = 0  # about how many characters of text and of displays are kept
        self._skipped_characters = self._skipped_displays = 0
        self._questions: list[Event] = []  # that were dropped before they were read
        self._display_numbers: dict[str, int] = {}  # the number of the latest display of each name
        self._changed = asyncio.Event()
        self.closed = False

    def add(self, event: Event) -> None:
        """Add an event. Drop the oldest events if more than 4 Mi characters of text or 32 Mi characters of displays are kept.

        If the latest event is text of the same stream (stdout or stderr) and was not read yet, append the new text to it. If an unread
        event has a display of the same name, replace that event.
        """
        place = self._find_unread_index(event)
        if place is None:
            self._events.append(event)
            place = len(self._events) - 1
        else:
            self._add_to_sizes(self._events[place], -1)
            earlier = self._events[place]
            event = replace(event, text=earlier.text + event.text, update=earlier.update)  # new, as the one that was not shown
            self._events[place] = event
        self._add_to_sizes(event, 1)
        if event.kind == "clear":
            self._display_numbers.clear()
        if event.kind == "decision":  # its question needs no reply any more
            self._questions = [question for question in self._questions if question.number != event.number]
        if name := _display_name(event):
            self._display_numbers[name] = self._first_number + place
        while (self.text_size > _MAX_TEXT or self.display_size > _MAX_DISPLAYS) and len(self._events) > 1:
            self._drop_oldest()
        self._changed.set()

    def close(self) -> None:
        """Mark the execution's events as complete, and wake the readers that wait for more."""
        self.closed = True
        self._changed.set()

    async def read_after(self, number: int, *, within: float) -> tuple[list[Event], int]:
        """Return the events after event number `number`, and the number of the latest event.

        If there are no such events yet, wait for one, at most `within` seconds. If some were dropped before they were read, the list begins
        with an event `skipped`, whose text tells how much output is missing. After it come the questions of the cell (`input()`, host
        calls, refused requests) that were dropped before they were read, because the cell waits for replies to them.
        """
        await asyncio.sleep(0)  # in process, a caller that reads in a loop would not yield to other tasks
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within):
                while self._last_number <= number and not self.closed:
                    self._changed.clear()
                    await self._changed.wait()
        start = max(0, number + 1 - self._first_number)
        found = [*self._events][start:]
        self._read_to = max(self._read_to, self._last_number)
        questions, self._questions = self._questions, []
        found = questions + found
        if number + 1 < self._first_number and (dropped := self._describe_dropped()):
            found.insert(0, Event(kind="skipped", text=dropped))
        return found, max(number, self._last_number)

    def read_all(self) -> list[Event]:
        """Return all events that are still kept. If some were dropped, an event `skipped` comes first.

        This does not mark events as read, so it has no effect on what `read_after` returns later.
        """
        dropped = self._describe_dropped()
        return [*([Event(kind="skipped", text=dropped)] if dropped else []), *self._events]

    @property
    def _last_number(self) -> int:
        return self._first_number + len(self._events) - 1

    def _find_unread_index(self, event: Event) -> int | None:
        """Return the index in `_events` of the unread event that `event` continues or replaces. Return None if there is none."""
        number = self._display_numbers.get(_display_name(event) or "")
        if number is None and self._events and _is_continuation(self._events[-1], event):
            number = self._last_number
        return None if number is None or number <= self._read_to else number - self._first_number

    def _add_to_sizes(self, event: Event, sign: int) -> None:
        self.text_size += sign * (len(event.text) + _EVENT_OVERHEAD)
        self.display_size += sign * _display_size(event.display)

    def _drop_oldest(self) -> None:
        oldest = self._events.popleft()
        self._first_number += 1
        self._add_to_sizes(oldest, -1)
        if oldest.kind in QUESTIONS and self._first_number - 1 > self._read_to:
            self._questions.append(oldest)  # the cell waits for its reply; the sandbox limits how many can be open
        else:
            self._skipped_characters += len(oldest.text)
            self._skipped_displays += oldest.display is not None
            if self._display_numbers.get(_display_name(oldest) or "") == self._first_number - 1:
                del self._display_numbers[_display_name(oldest) or ""]

    def _describe_dropped(self) -> str:
        parts = [f"{self._skipped_characters} characters of output"] * bool(self._skipped_characters)
        parts += [f"{self._skipped_displays} displays (the result has those that the cell ended with)"] * bool(self._skipped_displays)
        return f"{' and '.join(parts)} were dropped before they were read" if parts else ""


def _is_continuation(earlier: Event, event: Event) -> bool:
    if earlier.kind != event.kind:
        return False
    return event.kind == "clear" or (event.kind in ("stdout", "stderr") and len(earlier.text) < _MAX_MERGED)


def _display_name(event: Event) -> str | None:
    return event.display.name if event.display is not None else None


def _display_size(display: Display | None) -> int:
    if display is None:
        return 0
    return sum(len(kind) + len(form) for kind, form in display.data.items() if isinstance(form, str))


def _without_page(display: Display) -> Display:
    """Return a chart of plotly without its page, which repeats its data beside a script of 5 MB. Return other displays unchanged."""
    page = display.data.get("text/html")
    if _PLOTLY not in display.data or not isinstance(page, str) or len(page) <= _MUCH_OUTPUT:
        return display
    return replace(display, data={mime: form for mime, form in display.data.items() if mime != "text/html"})


_PLOTLY = "application/vnd.plotly.v1+json"
# How many results a session keeps, and their size in bytes.
_FETCHED_RESULTS, _FETCHED_BYTES = 50, 16 << 20
_HISTORY_CELLS, _HISTORY_BYTES = 500, 16 << 20  # in its history, fetched or not
_SHORT_TEXT = 8 << 10  # characters of an error's message, and of its traceback, are kept if the output of a cell is dropped
_MUCH_OUTPUT = 4 * _SHORT_TEXT  # of less output, nothing is dropped
_REQUESTED_CAUSES = ("reset", "rollback")  # causes of entries of a ledger that a caller asked for, unless they were made while a cell ran
_HISTORY_RESPONSE_BYTES = 8 << 20  # of one response
_KEPT_RESULTS, _KEPT_BYTES = 1000, 64 << 20  # including those that were not fetched yet
_REMEMBERED_IDS = 10_000
_MAX_TRIES = 3
Answer = TypeVar("Answer")


class RunningExecution:
    """One execution, from the moment its request is accepted.

    `start` and `end` are the positions in the session's ledger (the list of what happened to the session) before and after the cell.
    """

    def __init__(self, id: str, session: "HostedSession", call: ExecutionRequest, *, cancelled: bool) -> None:
        self.id = id
        self.number = 0  # in the history, from 1 on; 0 for a cell that a client sent for itself
        self.session = session
        self.call = call
        self.cancelled = asyncio.Event()
        if cancelled:
            self.cancelled.set()
        self.is_skipped = False  # because a cell before it failed
        self.is_withdrawn = False  # it was cancelled before it began, and so has not failed
        self.status: Status = "NotStarted"
        self.began: float | None = None  # when the cell began to run, by `time.monotonic()`
        self.done = asyncio.Event()
        self.has_response = asyncio.Event()  # set for a synchronous caller when the execution has ended or asks a question
        self.events = Events()
        self.result: CodeExecutionResult | None = None
        self.size = len(call.code)  # about as many characters as are kept
        self.was_fetched = False
        self.start = self.end = session.ledger.position
        self.previous_end = self.start  # the position at which the previous cell of the history ended, once this one has
        # The position of a caller that names none, when it asked. What others fetch before its answer is made is still news to it.
        self._default_since = session.ledger.fetched
        self._ledger_id = session.ledger.id  # a restored session adopts the one of its save

    @property
    def elapsed(self) -> float | None:
        """Return how many seconds ago the cell began to run, or None if it still waits for its turn."""
        return None if self.began is None else round(time.monotonic() - self.began, 3)

    @property
    def output_size(self) -> int:
        """Return about how many characters of output are kept."""
        return self.size - len(self.call.code)

    def begin_turn(self) -> None:
        """Store the position at which the execution begins, when no other runs and a saved session is restored."""
        ledger = self.session.ledger
        self.start = ledger.position
        if ledger.id != self._ledger_id:
            self._default_since = ledger.fetched

    def fetch(self, since: str | None = None) -> ExecutionResponse:
        """Return the execution as it is now, to send it to a caller. If it has a result, mark the result as fetched.

        The result's state reports what happened to the session after `since`, the latest position in the session's ledger that the caller
        knows. If the caller sent no position, the state reports what happened after the last result that was fetched before this execution
        was accepted. So a loss of variables or files is reported once to callers without a position.
        """
        session, result = self.session, self.result
        if result is not None:
            if result.state != NO_REPLY:
                state, record = session.ledger.state_and_record(since, self.start, self.end, default=self._default_since)
                result = with_state(result, state, record=record)
            session.ledger.fetched = max(session.ledger.fetched, self.end)
            if not self.was_fetched:
                self.was_fetched = True
                session.executions.count_fetched(self)
        return ExecutionResponse(
            id=self.id, identifier=session.identifier, status=self.status, asynchronous=self.call.asynchronous, result=result
        )

    def finish(self, result: CodeExecutionResult) -> None:
        """Store the result and wake the callers that wait for it.

        Set the result's state from what the session's ledger recorded since the cell began. But if the result has the state NO_REPLY, which
        means that its state is unknown, keep that.
        """
        ledger = self.session.ledger
        self.end = ledger.position
        large = (
            [event.display for event in self.events.read_all() if _display_size(event.display) > _MUCH_OUTPUT] if result.displays else []
        )
        if large:  # a large display is kept once, and not in its event and in the result
            result = replace(result, displays=tuple(next((one for one in large if one == display), display) for display in result.displays))
        if result.state == NO_REPLY:
            self.result = replace(result, session_id=self.session.identifier)
        else:
            self.result = with_state(result, ledger.between(self.start, self.end), session_id=self.session.identifier)
        self.status = "Succeeded" if result.error is None else "Failed"
        self.size += len(result.stdout) + len(result.stderr) + self.events.text_size + self.events.display_size
        self.size += sum(_display_size(display) for display in result.displays if not any(display is one for one in large))
        self.events.close()
        self.done.set()
        self.has_response.set()

    def add_question(self, event: Event) -> None:
        """Add an event of a synchronous execution if it is a question or a decision. The caller then follows the execution."""
        if event.kind in (*QUESTIONS, "decision"):
            self.events.add(event)
            self.has_response.set()

    def without_pages(self) -> "RunningExecution":
        """Return a copy of this ended execution, for the history: large pages of charts are left out. Return itself if it has none."""
        if self.size < _MUCH_OUTPUT:
            return self
        events, result = self.events.read_all(), self.result
        displays = [event.display for event in events if event.display is not None] + [*(result.displays if result else ())]
        without = {id(display): _without_page(display) for display in displays}
        if result is None or all(without[id(display)] is display for display in displays):
            return self
        slim = copy.copy(self)
        slim.events = Events()
        for event in events:
            slim.events.add(event if event.display is None else replace(event, display=without[id(event.display)]))
        slim.events.close()
        slim.result = replace(result, displays=tuple(without[id(display)] for display in result.displays))
        each = {id(display): display for display in displays}.values()
        slim.size -= sum(_display_size(display) - _display_size(without[id(display)]) for display in each)
        return slim

    def without_output(self) -> "RunningExecution":
        """Return a copy of this ended execution, for the history: with its source, error and state, and a note in place of its output."""
        slim = copy.copy(self)
        slim.events = Events()
        dropped = f"{self.size / 1e6:.1f} MB of output are not kept: run the cell again to see it"
        slim.events.add(Event(kind="skipped", text=dropped))
        slim.events.close()
        slim.size = len(self.call.code)
        if self.result is not None:
            error = self.result.error
            if error is not None:
                error = replace(error, message=error.message[:_SHORT_TEXT], traceback=error.traceback[-_SHORT_TEXT:])
                slim.size += len(error.message) + len(error.traceback)
            slim.result = replace(self.result, stdout="", stderr="", value=None, text=None, displays=(), error=error)
        return slim


class Executions:
    """The executions of one session. They run one at a time, in the order of their requests.

    If the results that are kept become too many or too large, the oldest or the largest ones are dropped.
    """

    def __init__(self, session: "HostedSession", default_timeout: float, *, journal: Journal) -> None:
        self._session = session
        self._default_timeout = default_timeout
        self._journal = journal
        self._by_id: OrderedDict[str, RunningExecution] = OrderedDict()
        self._unfinished: dict[str, RunningExecution] = {}
        self._dropped_ids: OrderedDict[str, None] = OrderedDict()  # the ids of executions whose results are not kept any more
        # Of the results that are kept, and of those that were fetched: their number, and their size.
        self._kept_count = self._kept_size = self._fetched_count = self._fetched_size = 0
        self.accepted_count = 0  # cells, without those that clients sent for themselves
        self._history: OrderedDict[int, RunningExecution] = OrderedDict()  # the history: those that have ended, by their numbers
        self._history_size = 0
        self._history_end = session.ledger.fetched  # the position at which the latest cell of the history ended
        # The positions up to which the audit log and the metric of losses cover the ledger. The audit log states what callers read, and the
        # first result of a session reports how an earlier session of this name ended. That loss was counted when it happened.
        self._recorded_position, self._counted_position = session.ledger.fetched, session.ledger.position
        self._turn = asyncio.Lock()
        self._tasks = Tasks()

    def follow_adopted_ledger(self) -> None:
        """Go on in the ledger that the session has adopted from its save. What it says was recorded by the server that wrote it."""
        here = self._session.ledger.position - 1  # before the entry about the restore
        self._history_end = self._recorded_position = self._counted_position = here

    @property
    def unfinished_count(self) -> int:
        """Return how many executions run or wait for their turn."""
        return len(self._unfinished)

    @property
    def running(self) -> RunningExecution | None:
        """Return the execution that runs now, or None."""
        return next((execution for execution in self._unfinished.values() if execution.status == "Running"), None)

    def start(self, id: str, call: ExecutionRequest, *, cancelled: bool) -> RunningExecution:
        """Accept a cell and return its execution. The cell runs in the background when its turn comes, or never if `cancelled` is true.

        If there was an execution with this id already, start nothing, so that no cell runs twice. Then return that execution, or raise
        ProblemError (410) if its result was dropped.
        """
        if id in self._by_id or id in self._dropped_ids:
            return self.find(id)
        execution = self._by_id[id] = self._unfinished[id] = RunningExecution(id, self._session, call, cancelled=cancelled)
        if not call.code.startswith(CELL_PREFIX):
            self.accepted_count += 1
            execution.number = self.accepted_count
        self._tasks.start(self._run(execution))
        return execution

    def find(self, id: str) -> RunningExecution:
        """Return the execution with the given id. Raise ProblemError: 410 if its result was dropped, 404 if the id is unknown."""
        if id in self._dropped_ids:
            said = "this execution ended and its result is not kept any more: fetch results sooner, or run the code under another id"
            raise ProblemError(410, "ExecutionResultGone", said)
        execution = self._by_id.get(id)
        if execution is None:
            raise unknown_execution(id)
        return execution

    def read_history(self, after: int) -> tuple[list[RunningExecution], int]:
        """Return the executions whose number in the history is above `after`, in order, and how many executions the history has dropped.

        Return at most about 8 MB of executions, but at least one if there is any. Their results do not count as fetched by this.
        """
        kept = self._history | {one.number: one for one in self._unfinished.values() if one.number}
        found, size = [], 0
        for number in sorted(number for number in kept if number > after):
            found.append(kept[number])
            size += kept[number].size
            if size > _HISTORY_RESPONSE_BYTES:
                break
        return found, self.accepted_count - len(kept)

    def result_in_history(self, execution: RunningExecution) -> CodeExecutionResult | None:
        """Return an execution's result, or None while it runs. Its state covers the time since the previous execution in the history ended.

        The state leaves out resets and rollbacks that a caller requested in that time, because the history lists them as separate entries.
        """
        result = execution.result
        if result is None or result.state == NO_REPLY:
            return result
        _, record = self._session.ledger.state_and_record(None, execution.start, execution.end, default=execution.previous_end)
        requested = {entry.position for entry in record.entries if entry.cause in _REQUESTED_CAUSES and entry.position <= execution.start}
        state = state_between(record.entries, execution.previous_end, execution.end, requested=requested)
        return with_state(result, state, record=record)

    def interrupt(self, execution: RunningExecution, *, gentle: bool = False) -> None:
        """Interrupt the cell of an execution. If the cell has not started yet, keep it from starting. If it has ended, do nothing.

        The execution's result shows whether the cell was stopped. If the cell does not react, the interpreter is killed, unless the
        interrupt or the request of the cell is `gentle`.
        """
        if execution.done.is_set():
            return
        execution.cancelled.set()
        if execution.status == "Running":
            self._tasks.start(self._interrupt(execution, gentle=gentle or execution.call.gentle))

    @property
    def all_fetched(self) -> bool:
        """Return whether every result that is kept was fetched."""
        return self._kept_count == self._fetched_count

    async def send_reply(self, execution: RunningExecution, number: int, text: str | None, *, is_end: bool = False) -> None:
        """Send a reply to a question of a cell. Raise ProblemError (409) if the question is not open any more.

        Args:
            execution: The execution of the cell.
            number: The number of the question, from its event.
            text: The reply, or None if the caller has none.
            is_end: Whether the caller has none because its input has ended.
        """
        interpreter = (await self._session.sandbox()).running if execution.status == "Running" else None
        if interpreter is None or not interpreter.answer(execution.id, number, text, is_end=is_end):
            said = f"the execution does not wait for a reply to question {number}: it has one already, or continued without: drop the reply"
            raise ProblemError(409, "QuestionNotOpen", said)

    async def question_numbers(self) -> tuple[int, list[int]]:
        """Return the number of the running cell's latest question, and the numbers of those without a reply.

        Return 0 and an empty list if no cell runs.
        """
        running = self.running
        if running is None:
            return 0, []
        latest = max((event.number for event in running.events.read_all()), default=0)
        interpreter = (await self._session.sandbox()).running
        return latest, interpreter.open_questions(running.id) if interpreter is not None else []

    async def finish(self) -> None:
        """Wait until all executions of the session have their results."""
        await self._tasks.finish()

    async def run_in_turn(self, action: Callable[[Sandbox], Awaitable[Answer]], *, cancellable: bool = False) -> Answer:
        """Wait until no cell runs, call `action` with the session's sandbox, and return what `action` returns.

        Cells and actions run one at a time, in the order of their requests. If the caller is cancelled, the action continues, unless it is
        `cancellable`.
        """
        if cancellable:
            return await self._call_in_turn(action)
        return await self._tasks.run_shielded(self._call_in_turn(action))

    def schedule_in_turn(self, action: Callable[[Sandbox], Awaitable[object]]) -> None:
        """Arrange that `action` is called with the session's sandbox as soon as no cell runs. Return without waiting.

        A caller that was cancelled uses this instead of `run_in_turn`, because it must not wait any more.
        """
        self._tasks.start(self._call_in_turn(action))

    async def take_turn(self, slots: asyncio.Semaphore) -> None:
        """Wait until no cell runs and one of `slots` is free, and acquire that and the turn. The caller releases both.

        Cells do not wait while this waits for a slot, and slots are not held while this waits for a cell.
        """
        while True:
            await slots.acquire()
            try:
                if not self._turn.locked() and not self._unfinished:
                    await self._turn.acquire()  # at once, or after an action that has waited for it
                    return
            except BaseException:
                slots.release()
                raise
            slots.release()
            await self._turn.acquire()
            if not slots.locked():
                await slots.acquire()  # at once
                return
            self._turn.release()

    def release_turn(self) -> None:
        """Let the next cell run after `take_turn`."""
        self._turn.release()

    async def _call_in_turn(self, action: Callable[[Sandbox], Awaitable[Answer]]) -> Answer:
        async with self._turn:
            return await action(await self._session.sandbox())

    async def _run(self, execution: RunningExecution) -> None:
        try:
            async with self._turn:
                with contextlib.suppress(Exception):  # `_execute` raises it again
                    await self._session.sandbox()  # its ledger may be that of a save
                execution.begin_turn()
                with telemetry.count_active_cell():
                    execution.finish(await self._run_with_retries(execution))
                if execution.status == "Failed":
                    self._skip_waiting_for(execution)
        except Exception as error:
            id = log_failure("an execution has no result", error)
            failed = _interpreter_died(f"the server failed while it made this result: its log has the cause under the id {id}")
            execution.finish(replace(failed, state=NO_REPLY))
            self._skip_waiting_for(execution)  # the next cell has its turn, and runs after this
        finally:
            if not execution.done.is_set():
                execution.finish(
                    _interpreter_died(
                        "the server was stopped before the cell ended: run it again at another server, or once this one is back"
                    )
                )
            self._record_finished(execution)

    def _skip_waiting_for(self, ended: RunningExecution) -> None:
        """After a failed cell, keep those from starting that wait for their turn and are to run only if the cells before them succeed."""
        if ended.number and not ended.is_withdrawn:
            for execution in self._unfinished.values():
                execution.is_skipped |= execution.call.after_success and not execution.done.is_set()

    def _record_finished(self, execution: RunningExecution) -> None:
        """Record a finished execution in the history, the metrics and the audit log. If too many results are kept then, drop some.

        The state in the metrics and the audit log also covers losses between the previous execution and this one, as a caller reads it.
        """
        del self._unfinished[execution.id]
        if execution.number:
            self._add_to_history(execution)
        result = execution.result
        if result is not None:
            if result.state != NO_REPLY and self._recorded_position < execution.start:
                result = replace(result, state=self._session.ledger.between(self._recorded_position, execution.end))
            self._recorded_position = max(self._recorded_position, execution.end)
            telemetry.record_server_execution(result)
            if self._session.ledger.position != self._counted_position:
                self.count_losses()
            if self._journal.has_audit_log:
                self._journal.record_cell(self._session.identifier, execution.call, result)
        # The latest result is not fetched yet and is always kept, because its response may be lost: so it is counted behind the limits.
        while self._fetched_count > _FETCHED_RESULTS or self._fetched_size > _FETCHED_BYTES:
            self._drop_result(execution, fetched=True, oldest=self._fetched_count > _FETCHED_RESULTS)
        while self._kept_count > _KEPT_RESULTS or self._kept_size > _KEPT_BYTES:
            self._drop_result(execution, fetched=False, oldest=self._kept_count > _KEPT_RESULTS)
        self._kept_count += 1
        self._kept_size += execution.size
        if execution.began is not None:
            self._session.saves.note_change()

    def count_losses(self) -> None:
        """Count in the metrics a loss of variables that the session's ledger has recorded since the last call."""
        ledger = self._session.ledger
        telemetry.count_loss(ledger.between(self._counted_position, ledger.position))
        self._counted_position = ledger.position

    def _add_to_history(self, execution: RunningExecution) -> None:
        """Add an ended execution to the history. If the history is too large then, drop its largest outputs, and then its largest cells.

        The results of dropped executions can still be fetched by id, and so can pages of charts.
        """
        execution.previous_end = self._history_end
        self._history_end = execution.end
        execution = execution.without_pages()
        while self._history and (len(self._history) >= _HISTORY_CELLS or self._history_size + execution.size > _HISTORY_BYTES):
            if len(self._history) >= _HISTORY_CELLS:
                self._history_size -= self._history.popitem(last=False)[1].size
                continue
            largest = max(self._history.values(), key=attrgetter("output_size", "size"))
            self._history_size -= largest.size
            if largest.output_size > _MUCH_OUTPUT:
                slim = self._history[largest.number] = largest.without_output()  # in its place, so that the oldest is dropped first
                self._history_size += slim.size
            else:
                del self._history[largest.number]
        self._history[execution.number] = execution
        self._history_size += execution.size

    def count_fetched(self, execution: RunningExecution) -> None:
        """Count a result as fetched, so that it is dropped before results that were not fetched. Do nothing if it was dropped already."""
        if execution.id in self._by_id:
            self._fetched_count += 1
            self._fetched_size += execution.size

    def _drop_result(self, latest: RunningExecution, *, fetched: bool, oldest: bool) -> None:
        """Drop the result of one ended execution. Keep the execution's id, so that later requests for the result get the status 410.

        Args:
            latest: The execution that ended last. Its result is never dropped here, because the response that contains it may get lost.
            fetched: Whether to choose only among results that were fetched.
            oldest: Whether to drop the oldest result, instead of the largest.
        """
        kept = (one for one in self._by_id.values() if one.done.is_set() and one is not latest and (one.was_fetched or not fetched))
        gone = next(kept) if oldest else max(kept, key=attrgetter("size"))
        del self._by_id[gone.id]
        self._kept_count -= 1
        self._kept_size -= gone.size
        self._fetched_count -= gone.was_fetched
        self._fetched_size -= gone.size * gone.was_fetched
        self._dropped_ids[gone.id] = None
        if len(self._dropped_ids) > _REMEMBERED_IDS:
            self._dropped_ids.popitem(last=False)

    async def _run_with_retries(self, execution: RunningExecution) -> CodeExecutionResult:
        try:
            for _ in range(_MAX_TRIES - 1):
                with contextlib.suppress(CellNotSentError):  # a reset or a death of the interpreter came first
                    return await self._execute(execution)
            return await self._execute(execution)
        except CellNotStartedError:
            if execution.is_skipped and not execution.cancelled.is_set():
                return CodeExecutionResult(error=CodeError("NotRun", "a cell before this one failed"))
            execution.is_withdrawn = True
            return CodeExecutionResult(error=CodeError("KeyboardInterrupt", "the cell was cancelled before it began"))
        except SnapshotError as error:
            refused = CodeError("SnapshotError", f"the cell was not run: {error}")
            return CodeExecutionResult(error=refused, stderr=str(refused))
        except (GuestDiedError, IsolationError) as error:
            return _interpreter_died(str(error))

    async def _execute(self, execution: RunningExecution) -> CodeExecutionResult:
        sandbox = await self._session.sandbox()
        has_interpreter = sandbox.running is not None and sandbox.running.alive
        if not has_interpreter and not execution.cancelled.is_set() and not execution.is_skipped:
            sandbox = await self._start_interpreter(sandbox)
        # The wait for the interpreter is over: an interrupt that came meanwhile must keep the cell from starting.
        if execution.cancelled.is_set() or execution.is_skipped:
            raise CellNotStartedError
        execution.status = "Running"
        execution.began = execution.began or time.monotonic()
        self._session.has_state = True
        return await sandbox.execute(partial(self._run_in_interpreter, execution), transactional=execution.call.transactional)

    async def _start_interpreter(self, sandbox: Sandbox) -> Sandbox:
        """Start the session's interpreter and return the sandbox in which it runs.

        If the fork server died before the session had anything to lose, such as variables or files, continue in a new sandbox.
        """
        started = time.perf_counter()
        try:
            await sandbox.interpreter()
        except GuestDiedError:
            if not await self._session.replace_dead_sandbox():
                sandbox.record_lost_workspace()
                raise
            sandbox = await self._session.sandbox()
            await sandbox.interpreter()
        telemetry.record_interpreter_start("cold", time.perf_counter() - started)
        return sandbox

    async def _run_in_interpreter(self, execution: RunningExecution, interpreter: Interpreter) -> CodeExecutionResult:
        call, timeout, is_cancelled = execution.call, execution.call.timeout or self._default_timeout, execution.cancelled.is_set
        tell = execution.events.add if call.asynchronous else execution.add_question if call.answered else None
        ledger, counted = self._session.ledger, bool(execution.number)
        ledger.cells += counted
        try:
            if (command := call.command) is None:
                kinds = call.answered
                return await interpreter.run(execution.id, call.code, timeout, tell=tell, question_kinds=kinds, is_cancelled=is_cancelled)
            arguments, stdin = command.arguments, command.stdin
            return await interpreter.execute(execution.id, arguments, stdin, timeout=timeout, tell=tell, is_cancelled=is_cancelled)
        except (CellNotStartedError, CellNotSentError):
            ledger.cells -= counted
            raise

    async def _interrupt(self, execution: RunningExecution, *, gentle: bool) -> None:
        interpreter = (await self._session.sandbox()).running
        if interpreter is not None:
            await interpreter.interrupt(execution.id, gentle=gentle)


def unknown_execution(id: str) -> ProblemError:
    """Return the error (404) for an execution id that the session does not have."""
    said = f"this session has no execution {id!r:.140}: check its id and the session's identifier"
    return ProblemError(404, "ExecutionNotFound", said)


def _interpreter_died(message: str) -> CodeExecutionResult:
    return CodeExecutionResult(error=CodeError("InterpreterDied", message), stderr=f"InterpreterDied: {message}")
