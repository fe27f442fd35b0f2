"""Start, follow and interrupt executions (runs of cells).

Each cell is sent once: if the response is lost, the client does not send the cell again but asks for the execution by its id.
"""

import asyncio
import contextlib
import inspect
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ..contract import extensions, flat
from ..contract.records import MAX_SYNCHRONOUS_SECONDS, ExecutionRequest, ExecutionResponse
from ..contract.versions import Version
from ..errors import ACASessionsError, InvalidArgumentError, NotSupportedError, ServiceError, ServiceUnavailableError
from ..ledger import CallerPosition
from ..lifetime import Tasks
from ..models import NO_REPLY, CodeError, CodeExecutionResult, Event, Prompt
from ..network.denials import Denial, OnDenied, decide
from .http import MAY_SPEAK_TLS, SessionsHttpClient, decode_response

AnswerInput = Callable[[Prompt], "str | Awaitable[str | None] | None"]
AnswerCall = Callable[[str], Coroutine[Any, Any, str]]
Page = tuple[list[Event], int, CodeExecutionResult | None]
_BEHIND_ALL = 10**17  # an event number that no execution reaches: asking behind it returns the result and no events
_AT_ONCE = 0.005  # seconds in which a host call has to return for its answer and the next page to go in one request


async def _cannot(*_: object) -> None:
    raise NotSupportedError("this endpoint cannot take answers while a cell runs: use the embedded default or `aca-sessions serve`")


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """A handle to one execution. The cell continues if the handle is garbage-collected; `cancel` interrupts the cell.

    Attributes:
        id: The id of the execution.
        session_id: The identifier of the session.
    """

    id: str
    session_id: str
    # Returns the events behind a number, waiting until there are some, and the result once there is one.
    _page: Callable[[int], Awaitable[Page]]
    _interrupt: Callable[[bool], Awaitable[None]]  # with `gentle`: whether the interrupt never kills the interpreter
    _reply: Callable[[int, str | None, bool], Awaitable[None]] = _cannot
    # Replies to an event, and returns the events behind a number in the same request.
    _reply_and_read: Callable[[int, str | None, int], Awaitable[Page]] = _cannot  # type: ignore[assignment]
    _on_input: AnswerInput | None = None
    _on_call: AnswerCall | None = None
    _on_denied: OnDenied | None = None
    _amend: Callable[[CodeExecutionResult], CodeExecutionResult] = lambda result: result

    async def events(self) -> AsyncIterator[Event]:
        """Yield the cell's events in order, from its beginning, as they happen.

        The last event has the result. If the cell failed, the event before it has the error. Each call of `events` begins with the first
        event again. While events are read, the functions given to `answering` answer the questions of the cell.
        """
        calls = Tasks()
        try:
            page = await self._page(0)
            while True:
                events, after, result = page
                decided = {event.number for event in events if event.kind == "decision"}
                for event in events:
                    if event.kind == "input":
                        await self._answer(event)
                    elif event.kind == "network" and event.number not in decided:
                        await self._decide(event)
                    yield event
                if result is not None:
                    break
                page = await self._answer_calls([event for event in events if event.kind == "call"], after, calls)
        finally:
            await calls.cancel()
        if result.error is not None:
            yield Event(kind="error", error=result.error)
        yield Event(kind="result", result=self._amend(result))

    async def wait(self) -> CodeExecutionResult:
        """Wait for the result and return it. Meanwhile, the functions given to `answering` answer the questions of the cell."""
        result = None
        if self._is_answered:
            async for event in self.events():
                result = event.result
        while result is None:
            _, _, result = await self._page(_BEHIND_ALL)
        return result if self._is_answered else self._amend(result)

    async def cancel(self) -> None:
        """Interrupt the cell, unless it has ended. The result shows whether the interrupt stopped it."""
        await self._interrupt(False)

    async def reply(self, event: Event, text: str | None, *, is_end: bool = False) -> None:
        """Send the answer to an `input` or `network` event.

        Args:
            event: The event.
            text: The answer. None raises EOFError in the cell, with a message that the question was not answered. For `network`, it is
                `once` or `always`, and everything else refuses.
            is_end: Whether the input has ended. If so, the message of the EOFError is Python's own.
        """
        if not (text is None or isinstance(text, str)):
            raise InvalidArgumentError(f"the answer must be text or None, got {type(text).__name__}")
        await self._reply(event.number, text, is_end)

    def answering(self, on_input: AnswerInput | None, on_call: AnswerCall | None = None, on_denied: OnDenied | None = None) -> "Execution":
        """Return a copy with functions that answer the cell's questions while its events are read.

        Args:
            on_input: Returns the line for a prompt of `input()` or `getpass()`, or None to raise EOFError in the cell. At the end of
                its input, it may raise EOFError itself. Prompts are answered one after the other. For `getpass()`, the prompt's `password`
                is True.
            on_call: Returns the answer to a host call. Several calls may run at the same time.
            on_denied: Returns whether to allow a request that the rules of the session's network refuse: `"once"`, `"always"`, or None to
                refuse it.
        """
        return replace(self, _on_input=on_input, _on_call=on_call, _on_denied=on_denied)

    def amending(self, amend: Callable[[CodeExecutionResult], CodeExecutionResult]) -> "Execution":
        """Return a copy of this handle that calls `amend` with the result, and gives callers what `amend` returns.

        If this handle comes from `amending` itself, `amend` is called with what the earlier function returned.
        """
        earlier = self._amend
        return replace(self, _amend=lambda result: amend(earlier(result)))

    @property
    def _is_answered(self) -> bool:
        return not (self._on_input is None and self._on_call is None and self._on_denied is None)

    async def _answer_calls(self, asked: list[Event], after: int, calls: Tasks) -> Page:
        """Call the caller's function for each new host call (a call of the cell to a tool of the host), and return the next page of events.

        The answers are sent when they are ready. If there is only one host call and its answer is ready within 5 ms, one request sends the
        answer and gets the events.

        Args:
            asked: The events of the new host calls.
            after: The number of the last event so far.
            calls: The tasks that answer host calls. Those for the new ones are added.
        """
        if self._on_call is None:
            return await self._page(after)
        if len(asked) == 1 and not calls:
            answering = calls.start_awaited(self._on_call(asked[0].text))
            await asyncio.wait({answering}, timeout=_AT_ONCE)
            if answering.done() and not answering.cancelled() and answering.exception() is None:
                return await self._reply_and_read(asked[0].number, answering.result(), after)
            calls.start(self._answer_call(asked[0], answering))
        else:
            for event in asked:
                calls.start(self._answer_call(event, self._on_call(event.text)))
        return await self._page(after)

    async def _answer_call(self, event: Event, answering: Awaitable[str]) -> None:
        """Wait for `answering`, which computes the answer to a host call, and send the answer to the cell.

        If `answering` raises an exception, send None, because the cell waits for an answer.
        """
        answer = None
        try:
            answer = await answering
        finally:
            await self._reply(event.number, answer, False)

    async def _answer(self, event: Event) -> None:
        """Send the cell an answer to its `input()`, from the function that the caller gave. Do nothing if the caller gave none.

        If the function raises EOFError, so does the cell's `input()`. If it raises another exception, the cell gets an EOFError and the
        caller gets the exception.
        """
        if self._on_input is None:
            return
        try:
            answer = self._on_input(event.prompt)
            text = await answer if inspect.isawaitable(answer) else answer
            await self.reply(event, text)
        except EOFError:
            await self.reply(event, None, is_end=True)
        except BaseException:
            await self.reply(event, None)
            raise

    async def _decide(self, event: Event) -> None:
        """Send the decision about a refused request, from the function that the caller gave. Do nothing if the caller gave none.

        If the function raises an exception, the request is refused and the caller gets the exception.
        """
        if self._on_denied is None:
            return
        decision = None
        try:
            decision = await decide(self._on_denied, Denial.from_json(event.text, self.session_id))
        finally:
            await self.reply(event, None if decision == "refuse" else decision)


def ended_execution(result: CodeExecutionResult) -> Execution:
    """Create a handle to an execution that has ended with `result`."""

    async def page(_after: int) -> Page:
        return events_of(result), 0, result

    return Execution(id="", session_id=result.session_id, _page=page, _interrupt=_nothing)


def background_execution(session_id: str, running: "asyncio.Task[CodeExecutionResult]") -> Execution:
    """Create a handle to an execution whose result the task `running` returns. All events arrive when the task ends."""

    async def page(after: int) -> Page:
        try:
            # Shielded: a reader that is cancelled does not cancel the cell.
            result = await asyncio.shield(running)
        except asyncio.CancelledError:
            if not running.cancelled():
                raise
            error = CodeError("KeyboardInterrupt", "the call was cancelled before its result came: the cell may still run")
            result = CodeExecutionResult(session_id=session_id, error=error, stderr=str(error), state=NO_REPLY)
        return ([] if after else events_of(result)), _BEHIND_ALL, result

    async def cancel(_gentle: bool) -> None:
        running.cancel()

    return Execution(id="", session_id=session_id, _page=page, _interrupt=cancel)


def events_of(result: CodeExecutionResult) -> list[Event]:
    """Convert the result of an ended cell to events: stdout, stderr, then one event for each display."""
    written = [Event(kind="stdout", text=result.stdout), Event(kind="stderr", text=result.written_to_stderr)]
    return [event for event in written if event.text] + [Event(kind="display", display=display) for display in result.displays]


async def _nothing(_gentle: bool) -> None: ...


_OUTPUT_LIMIT = 1 << 20  # characters of each stream; Azure cuts at 4096 unless a request sets a limit
ANSWER_MARGIN = 30.0  # an answer may come this much later than the cell's time limit
DEFAULT_WAIT = MAX_SYNCHRONOUS_SECONDS + ANSWER_MARGIN
_CANCEL_SECONDS = 10.0  # how long a cancelled call waits for the endpoint to take the interrupt
_FIRST_POLL, _SLOWEST_POLL = 0.05, 2.0
_GATEWAY = (502, 504)
_GONE = 410
_RICH = {extensions.RICH_REQUEST_HEADER: "1"}


class Executions:
    """A client that starts, follows and interrupts executions at one endpoint, in one api-version."""

    def __init__(self, http: SessionsHttpClient, version: Version) -> None:
        self._http = http
        self._version = version
        self._dialect = version.dialect
        self._tasks = Tasks()

    async def run(
        self,
        session_id: str,
        call: ExecutionRequest,
        caller: CallerPosition | None = None,
        *,
        on_denied: OnDenied | None = None,
    ) -> CodeExecutionResult:
        """Run a cell and return its result. Cancelling the call interrupts the cell, if the endpoint can interrupt cells.

        Args:
            session_id: The session.
            call: The cell.
            caller: A position in the session's ledger (the list of what happened to the session). The result's state reports what happened
                after that position.
            on_denied: Decides about refused requests. If it raises an exception, the cell is interrupted.
        """
        caller = caller or CallerPosition()
        id = str(uuid.uuid4())
        handle = self.open_handle(session_id, id, caller).answering(None, None, on_denied)
        try:
            record = await self._send(session_id, id, call, caller, asynchronous=(call.timeout or 0) > MAX_SYNCHRONOUS_SECONDS)
            result = record.result
            if result is None and on_denied is not None:  # the response came before the result, because the cell asks a question
                result = await handle.wait()
            while result is None:
                result = (await self._poll(session_id, record.id, caller)).result
        except BaseException as error:
            if on_denied is not None or isinstance(error, asyncio.CancelledError):
                await self.cancel_quietly(handle)
            raise
        return result if result.session_id == session_id else replace(result, session_id=session_id)

    async def start(self, session_id: str, call: ExecutionRequest, caller: CallerPosition) -> Execution:
        """Start a cell in the background and return a handle to its execution.

        Raise NotSupportedError if the api-version cannot run cells in the background.
        """
        id = str(uuid.uuid4())
        try:
            record = await self._send(session_id, id, call, caller, asynchronous=True)
        except asyncio.CancelledError:
            await self.cancel_quietly(self.open_handle(session_id, id, caller))
            raise
        return (
            self.open_handle(session_id, id, caller)
            if record.result is None
            else ended_execution(replace(record.result, session_id=session_id))
        )

    def open_handle(self, session_id: str, id: str, caller: CallerPosition) -> Execution:
        """Create a handle to an execution that this or another client started earlier, without sending a request."""
        return Execution(
            id=id,
            session_id=session_id,
            _page=lambda after: self._page(session_id, id, after, caller),
            _interrupt=lambda gentle: self.interrupt(session_id, id, gentle=gentle),
            _reply=lambda number, text, is_end: self._reply(session_id, id, extensions.encode_reply(number, text, is_end=is_end)),
            _reply_and_read=lambda number, text, after: self._reply_and_read(
                session_id, id, extensions.encode_reply(number, text), after, caller
            ),
        )

    async def interrupt(self, session_id: str, id: str | None, *, gentle: bool = False) -> None:
        """Interrupt the execution `id`, or the one that runs now if `id` is None. A `gentle` interrupt never kills the interpreter.

        Raise NotSupportedError if the endpoint cannot interrupt cells.
        """
        await self._http.require("interrupt", "interrupt a cell")
        path = extensions.INTERRUPT_SESSION_PATH if id is None else extensions.INTERRUPT_PATH.format(id=id)
        headers = {extensions.GENTLE_HEADER: "1"} if gentle else {}
        await self._http.request("POST", path, identifier=session_id, headers=headers)

    async def cancel_quietly(self, execution: Execution) -> None:
        """Interrupt an execution whose caller was cancelled. Ignore errors.

        Try for at most 10 s, even if the caller is cancelled again.
        """
        with contextlib.suppress(asyncio.CancelledError):
            await self._tasks.run_shielded(_try_to_cancel(execution))

    async def close(self) -> None:
        """Wait for the interrupts that `cancel_quietly` has started."""
        await self._tasks.finish()

    async def _send(
        self, session_id: str, id: str, call: ExecutionRequest, caller: CallerPosition, *, asynchronous: bool
    ) -> ExecutionResponse:
        """Send a cell and return its execution, which has a result if the cell has ended already.

        If the response is lost, do not send the cell again, because it may have run. Instead, fetch the execution by the `id` that this
        client chose. Raise NotSupportedError if the api-version cannot run the cell asynchronously.
        """
        if asynchronous and not self._dialect.HAS_EXECUTIONS:
            long = (call.timeout or 0) > MAX_SYNCHRONOUS_SECONDS
            what = f"with a timeout of {call.timeout:g} s, only up to {MAX_SYNCHRONOUS_SECONDS:g} s" if long else "in the background"
            raise NotSupportedError(
                f"api-version {self._version.name} cannot run a cell {what}: set ACASessions:SessionsHttpClient:ApiVersion to "
                "2024-10-02-preview or later"
            )
        call = replace(call, asynchronous=asynchronous, output_limit=_OUTPUT_LIMIT)
        headers = {flat.OPERATION_HEADER: id, **extension_headers(caller)}
        if call.answered:
            headers[extensions.ANSWERED_HEADER] = ", ".join(call.answered)
        if call.transactional:
            headers[extensions.TRANSACTIONAL_HEADER] = "1"
        if call.gentle:
            headers[extensions.GENTLE_HEADER] = "1"
        path, body = self._dialect.EXECUTE_PATH, self._dialect.encode_request(call)
        wait = DEFAULT_WAIT if call.timeout is None else call.timeout + ANSWER_MARGIN
        await self._http._networks.prepare(session_id)
        try:
            response = await self._http.request("POST", path, identifier=session_id, headers=headers, json=body, timeout=wait)
        except (ServiceUnavailableError, ServiceError) as error:
            if not _may_have_run(error):
                raise
            return await self._recover_execution(session_id, id, caller)
        return decode_response(response, partial(self._dialect.decode_execution, id=id, identifier=session_id))

    async def _recover_execution(self, session_id: str, id: str, caller: CallerPosition) -> ExecutionResponse:
        """Fetch an execution whose cell was sent, but for which no response arrived.

        If that fails too, return an execution whose result has the state `unknown`.
        """
        try:
            if not self._dialect.HAS_EXECUTIONS:
                raise NotSupportedError(f"api-version {self._version.name} has no executions to ask for")
            return await self._fetch(session_id, id, caller)
        except ACASessionsError as error:
            return ExecutionResponse(id=id, identifier=session_id, status="Failed", result=_no_reply_result(session_id, error))

    async def _poll(self, session_id: str, id: str, caller: CallerPosition) -> ExecutionResponse:
        """Fetch an execution again and again until it has a result.

        If a request fails, return an execution whose result has the state `unknown`.
        """
        wait = _FIRST_POLL
        try:
            while (record := await self._fetch(session_id, id, caller)).result is None:
                await asyncio.sleep(wait)
                wait = min(wait * 1.5, _SLOWEST_POLL)
        except (ServiceUnavailableError, ServiceError) as error:
            return ExecutionResponse(id=id, identifier=session_id, status="Failed", result=_no_reply_result(session_id, error))
        return record

    async def _fetch(self, session_id: str, id: str, caller: CallerPosition) -> ExecutionResponse:
        path = f"{self._dialect.EXECUTE_PATH}/{id}"
        response = await self._http.request("GET", path, identifier=session_id, headers=extension_headers(caller))
        return decode_response(response, partial(self._dialect.decode_execution, id=id, identifier=session_id))

    async def _page(self, session_id: str, id: str, after: int, caller: CallerPosition) -> Page:
        """Return the events with numbers above `after`, the number of the last event, and the result if the cell has ended.

        If the endpoint does not offer events, wait for the result and convert it to events.
        """
        try:
            if not await self._http.offers("events"):
                result = (await self._poll(session_id, id, caller)).result or _no_reply_result(session_id)
                return ([] if after else events_of(result)), after, replace(result, session_id=session_id)
            query = {"after": str(after), "wait": str(extensions.LONGEST_POLL)}
            path, wait = extensions.EVENTS_PATH.format(id=id), extensions.LONGEST_POLL + ANSWER_MARGIN
            response = await self._http.request(
                "GET", path, identifier=session_id, query=query, headers=extension_headers(caller), timeout=wait
            )
        except (ServiceUnavailableError, ServiceError) as error:
            return [], after, _no_reply_result(session_id, error)
        return decode_response(response, partial(self._decode_page, session_id=session_id))

    def _decode_page(self, body: dict[str, object], session_id: str) -> Page:
        found, last = extensions.decode_events(body)
        member = body.get(extensions.EXECUTION_MEMBER)
        result = self._dialect.decode_execution(member).result if isinstance(member, dict) else None
        return found, last, replace(result, session_id=session_id) if result else None

    async def _reply_and_read(self, session_id: str, id: str, reply: dict[str, object], after: int, caller: CallerPosition) -> Page:
        """Send the reply to a host call and get the next events in one request.

        If the request fails, request only the events, so that no reply is sent twice.
        """
        query = {"after": str(after), "wait": str(extensions.LONGEST_POLL)}
        path, wait = extensions.REPLIES_PATH.format(id=id), extensions.LONGEST_POLL + ANSWER_MARGIN
        try:
            headers = extension_headers(caller)
            response = await self._http.request("POST", path, identifier=session_id, query=query, headers=headers, json=reply, timeout=wait)
        except (ServiceUnavailableError, ServiceError):
            return await self._page(session_id, id, after, caller)
        return decode_response(response, partial(self._decode_page, session_id=session_id))

    async def _reply(self, session_id: str, id: str, reply: dict[str, object]) -> None:
        """Send the reply to a prompt or a host call of a cell. Ignore a 409: the cell no longer waits for a reply."""
        try:
            await self._http.request("POST", extensions.REPLIES_PATH.format(id=id), identifier=session_id, json=reply)
        except ServiceError as error:
            if error.status_code != 409:
                raise


def extension_headers(caller: CallerPosition) -> dict[str, str]:
    """Return the headers that ask for an extended result, and for what happened to the session after the position `caller`.

    The position is one in the session's ledger (the list of what happened to the session).
    """
    if caller.ledger is None:
        return _RICH
    return {**_RICH, extensions.SINCE_HEADER: f"{caller.ledger}:{caller.position}"}


async def _try_to_cancel(execution: Execution) -> None:
    with contextlib.suppress(ACASessionsError, TimeoutError):
        async with asyncio.timeout(_CANCEL_SECONDS):
            await execution.cancel()


def _may_have_run(error: ServiceUnavailableError | ServiceError) -> bool:
    """Return whether a cell may have run although the request that sent it failed with `error`.

    A gateway that answers 502 or 504 may have passed the request on.
    """
    return error.sent if isinstance(error, ServiceUnavailableError) else error.status_code in _GATEWAY


def _no_reply_result(session_id: str, error: ACASessionsError | None = None) -> CodeExecutionResult:
    # 410: the server knows that the execution ended, but has dropped its result.
    if isinstance(error, ServiceError) and error.status_code == _GONE:
        lost = CodeError("ResultGone", "the cell ran, but the server has dropped its result: fetch results sooner")
    else:
        advice = f". {MAY_SPEAK_TLS}" if MAY_SPEAK_TLS in str(error) else ""
        lost = CodeError(
            "ConnectionError",
            f"the answer was lost: the cell may have run or not, so look at what it changes before you run it again{advice}",
        )
    return CodeExecutionResult(session_id=session_id, error=lost, stderr=str(lost), state=NO_REPLY)
