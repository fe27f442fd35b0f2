"""A cell in the background, as its caller holds it: followed event by event, or waited for."""

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
_BEHIND_ALL = 10**17
_AT_ONCE = 0.005  # seconds


async def _cannot(*_: object) -> None:
    raise NotSupportedError("this endpoint takes no answers while a cell runs: the embedded default and `aca-sessions serve` do")


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """Follow, wait for or cancel a cell that runs. Dropping this object does not end the cell: `cancel` does."""

    id: str
    session_id: str
    # The events behind a number, as soon as there are any, with the result once there is one.
    _page: Callable[[int], Awaitable[Page]]
    _interrupt: Callable[[], Awaitable[None]]
    _reply: Callable[[int, str | None], Awaitable[None]] = _cannot
    # The same, and the events behind a number with it.
    _reply_and_read: Callable[[int, str | None, int], Awaitable[Page]] = _cannot  # type: ignore[assignment]
    _on_input: AnswerInput | None = None
    _on_call: AnswerCall | None = None
    _amend: Callable[[CodeExecutionResult], CodeExecutionResult] = lambda result: result

    async def events(self) -> AsyncIterator[Event]:
        """Yield the cell's events from its beginning, as they happen; the last one is its result. It may be called again."""
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
        """Interrupt the cell; its result says what that did. A cell that has ended stays as it is."""
        await self._interrupt()

    async def reply(self, event: Event, text: str | None) -> None:
        """Answer an `input` event. None refuses, which is an EOFError in the cell."""
        if not (text is None or isinstance(text, str)):
            raise InvalidArgumentError("an answer to input() is text, or None")
        await self._reply(event.number, text)

    def answering(self, on_input: AnswerInput | None, on_call: AnswerCall | None = None) -> "Execution":
        """Return the same with functions that answer while its events are read: calls at the same time, lines one by one."""
        return replace(self, _on_input=on_input, _on_call=on_call)

    def amending(self, amend: Callable[[CodeExecutionResult], CodeExecutionResult]) -> "Execution":
        """Return the same with a function that its result goes through."""
        earlier = self._amend
        return replace(self, _amend=lambda result: amend(earlier(result)))

    @property
    def _is_answered(self) -> bool:
        return self._on_input is not None or self._on_call is not None

    async def _after_calls(self, asked: list[Event], after: int, calls: Tasks) -> Page:
        """The next page. One call alone that is answered at once costs one request: its answer goes and the page comes with it."""
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
        answer = None
        try:
            answer = await answering
        finally:
            await self._reply(event.number, answer)

    async def _answer(self, event: Event) -> None:
        """An exception of the caller's own function reaches the caller, and the cell does not wait for it."""
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
    """One that has its result already."""

    async def page(_after: int) -> Page:
        return events_of(result), 0, result

    return Execution(id="", session_id=result.session_id, _page=page, _interrupt=_nothing)


def in_background(session_id: str, running: "asyncio.Task[CodeExecutionResult]") -> Execution:
    """A call that waits for its answer, as one that is followed: all comes at the end."""

    async def page(after: int) -> Page:
        try:
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
    """What can be told of a cell after the fact."""
    written = [Event(kind="stdout", text=result.stdout), Event(kind="stderr", text=result.stderr)]
    return [event for event in written if event.text] + [Event(kind="display", display=display) for display in result.displays]


async def _nothing() -> None: ...
