"""An execution that is followed without `await`, from any thread but the session's own."""

import contextlib
import queue
from collections.abc import Callable, Iterator

from anyio.from_thread import BlockingPortal

from ..client.execution import Execution
from ..client.session import Session
from ..models import Event
from ..owner import Owner

OnInput = Callable[[str], "str | None"]


class LiveCell:
    """The events of a cell, for a thread that waits for them. The last one is its result. Leaving the loop earlier interrupts the cell."""

    def __init__(
        self,
        portal: BlockingPortal,
        session: Session,
        code: str,
        *,
        timeout: float | None,
        on_input: OnInput | None,
        transactional: bool = False,
    ) -> None:
        """Start the cell.

        Args:
            portal: The event loop of the session.
            session: The session.
            code: The source text.
            timeout: The time limit in seconds, by default the endpoint's.
            on_input: Returns the line for a prompt of `input()`, or None for an EOFError in the cell.
            transactional: Undo the cell if it fails.
        """
        self._owner = Owner("the cell")
        self._portal = portal
        self._session = session
        self._on_input = on_input
        self._events: queue.SimpleQueue[Event | BaseException | None] = queue.SimpleQueue()
        self._execution: Execution | None = None
        self._cancelled = self._left = False
        self.following = portal.start_task_soon(self._follow, code, timeout, transactional)

    def cancel(self) -> None:
        """Interrupt the cell, whose events continue up to its result. Do not block: a signal handler may call this."""
        self._cancelled = True
        if self._execution is not None:
            self._portal.start_task_soon(self._session.cancel_quietly, self._execution)

    def __iter__(self) -> Iterator[Event]:
        self._owner.check()
        result = None
        try:
            while (event := self._events.get()) is not None:
                if isinstance(event, BaseException):
                    raise event
                if event.kind == "input" and self._on_input is not None:
                    self._answer(event, self._on_input)
                result = event.result
                yield event
        finally:
            self._left = result is None
            self.following.cancel()
            if self._left:
                self._take_back_unread()

    def _take_back_unread(self) -> None:
        """Take back a result that is not read any more, so that the next result reports the same again."""
        with contextlib.suppress(queue.Empty, RuntimeError):  # RuntimeError: the session was closed
            while True:
                event = self._events.get_nowait()
                if isinstance(event, Event) and event.result is not None:
                    self._portal.call(self._session.take_back, event.result)

    async def _follow(self, code: str, timeout: float | None, transactional: bool) -> None:
        ended = False
        try:
            # `on_input` only announces that input is answered. It is called in the caller's thread: here it would block the loop.
            started = await self._session.start(code, timeout=timeout, on_input=self._on_input, transactional=transactional)
            self._execution = started.answering(None)
            if self._cancelled:
                await self._session.cancel_quietly(self._execution)
            async for event in self._execution.events():
                ended = event.kind == "result"
                self._events.put(event)
                # The reader left before this was in the queue, so it did not take it back.
                if self._left and event.result is not None:
                    self._session.take_back(event.result)
        except Exception as error:
            self._events.put(error)
        finally:
            self._events.put(None)
            if not ended and self._execution is not None:
                await self._session.cancel_quietly(self._execution)

    def _answer(self, event: Event, on_input: OnInput) -> None:
        if self._execution is not None:
            self._portal.call(self._execution.reply, event, on_input(event.text))
