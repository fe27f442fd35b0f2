"""The handle of an execution: it yields events, waits for the result, replies to the cell and cancels it."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any

from ..errors import InvalidArgumentError, NotSupportedError
from ..models import NO_REPLY, CodeError, CodeExecutionResult, Event
from ..tasks import Tasks

AnswerInput = Callable[[str], "str | Awaitable[str | None] | None"]
AnswerCall = Callable[[str], Coroutine[Any, Any, str]]
Page = tuple[list[Event], int, CodeExecutionResult | None]
_BEHIND_ALL = 10**17  # an event number that no execution reaches: asking behind it returns the result and no events
_AT_ONCE = 0.005  # seconds in which a host call has to return for its answer and the next page to go in one request


async def _cannot(*_: object) -> None:
    raise NotSupportedError("this endpoint takes no answers while a cell runs: the embedded default and `aca-sessions serve` do")


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """The handle of one execution. Dropping it does not end the cell: `cancel` does."""

    id: str
    session_id: str
    # Returns the events behind a number, waiting until there are some, and the result once there is one.
    _page: Callable[[int], Awaitable[Page]]
    _interrupt: Callable[[], Awaitable[None]]
    _reply: Callable[[int, str | None], Awaitable[None]] = _cannot
    # Replies to an event, and returns the events behind a number in the same request.
    _reply_and_read: Callable[[int, str | None, int], Awaitable[Page]] = _cannot  # type: ignore[assignment]
    _on_input: AnswerInput | None = None
    _on_call: AnswerCall | None = None
    _amend: Callable[[CodeExecutionResult], CodeExecutionResult] = lambda result: result

    async def events(self) -> AsyncIterator[Event]:
        """Yield the cell's events from its beginning, as they happen. The last one is its result. It can be called again."""
        calls = Tasks()
        try:
            page = await self._page(0)
            while True:
                events, after, result = page
                for event in events:
                    if event.kind == "input":
                        await self._answer(event)
                    yield event
                if result is not None:
                    break
                page = await self._after_calls([event for event in events if event.kind == "call"], after, calls)
        finally:
            await calls.cancel()
        yield Event(kind="result", result=self._amend(result))

    async def wait(self) -> CodeExecutionResult:
        """Wait for the result and return it."""
        result = None
        if self._is_answered:
            async for event in self.events():
                result = event.result
        while result is None:
            _, _, result = await self._page(_BEHIND_ALL)
        return result if self._is_answered else self._amend(result)

    async def cancel(self) -> None:
        """Interrupt the cell. Its result shows what that did. A cell that has ended stays as it is."""
        await self._interrupt()

    async def reply(self, event: Event, text: str | None) -> None:
        """Answer an `input` event. None refuses to answer, which raises EOFError in the cell."""
        if not (text is None or isinstance(text, str)):
            raise InvalidArgumentError("an answer to input() is text, or None")
        await self._reply(event.number, text)

    def answering(self, on_input: AnswerInput | None, on_call: AnswerCall | None = None) -> "Execution":
        """Return a copy with functions that answer the cell while its events are read.

        Args:
            on_input: Returns the line for a prompt of `input()`, or None to refuse. Lines are answered one after the other.
            on_call: Returns the answer to a host call. Calls are answered at the same time.
        """
        return replace(self, _on_input=on_input, _on_call=on_call)

    def amending(self, amend: Callable[[CodeExecutionResult], CodeExecutionResult]) -> "Execution":
        """Return a copy with one more function that the result passes through."""
        earlier = self._amend
        return replace(self, _amend=lambda result: amend(earlier(result)))

    @property
    def _is_answered(self) -> bool:
        return self._on_input is not None or self._on_call is not None

    async def _after_calls(self, asked: list[Event], after: int, calls: Tasks) -> Page:
        """Answer host calls and return the next page of events.

        A single call that is answered within 5 ms costs one request: the answer is sent and the next page comes back with it.
        """
        if self._on_call is None:
            return await self._page(after)
        if len(asked) == 1 and not calls:
            answering = calls.own(self._on_call(asked[0].text))
            await asyncio.wait({answering}, timeout=_AT_ONCE)
            if answering.done() and not answering.cancelled() and answering.exception() is None:
                return await self._reply_and_read(asked[0].number, answering.result(), after)
            calls.start(self._answer_call(asked[0], answering))
        else:
            for event in asked:
                calls.start(self._answer_call(event, self._on_call(event.text)))
        return await self._page(after)

    async def _answer_call(self, event: Event, answering: Awaitable[str]) -> None:
        """Send the answer to a host call, or None if the function failed: otherwise the cell would wait for it."""
        answer = None
        try:
            answer = await answering
        finally:
            await self._reply(event.number, answer)

    async def _answer(self, event: Event) -> None:
        """Answer an `input` event. An exception of the caller's own function is raised to the caller, and the cell gets an EOFError."""
        if self._on_input is None:
            return
        try:
            answer = self._on_input(event.text)
            text = await answer if inspect.isawaitable(answer) else answer
            await self.reply(event, text)
        except BaseException:
            await self.reply(event, None)
            raise


def ended(result: CodeExecutionResult) -> Execution:
    """Return the handle of an execution that has its result already."""

    async def page(_after: int) -> Page:
        return events_of(result), 0, result

    return Execution(id="", session_id=result.session_id, _page=page, _interrupt=_nothing)


def in_background(session_id: str, running: "asyncio.Task[CodeExecutionResult]") -> Execution:
    """Return the handle of a task that waits for a result, for endpoints without events. All events come at its end."""

    async def page(after: int) -> Page:
        try:
            # Shielded: a reader that is cancelled does not cancel the cell.
            result = await asyncio.shield(running)
        except asyncio.CancelledError:
            if not running.cancelled():
                raise
            error = CodeError("KeyboardInterrupt", "the cell was cancelled")
            result = CodeExecutionResult(session_id=session_id, error=error, stderr=str(error), state=NO_REPLY)
        return ([] if after else events_of(result)), _BEHIND_ALL, result

    async def cancel() -> None:
        running.cancel()

    return Execution(id="", session_id=session_id, _page=page, _interrupt=cancel)


def events_of(result: CodeExecutionResult) -> list[Event]:
    """Return the events that a result still shows after its cell ended: its output and its displays."""
    written = [Event(kind="stdout", text=result.stdout), Event(kind="stderr", text=result.stderr)]
    return [event for event in written if event.text] + [Event(kind="display", display=display) for display in result.displays]


async def _nothing() -> None: ...
