"""Let a tool ask the client's user although a server cannot send requests: at the revision 2026-07-28 the question is the response.

The client then repeats its call with the answer, and with the state that it was given. Meanwhile the tool goes on in a task.
"""

import asyncio
import secrets
from collections.abc import Coroutine
from typing import Any

import anyio

from .sdk import question_response, refusal
from .tool import Call

_MOST_SECONDS = 600.0
_MOST_WAITING = 100
_Question = tuple[str, dict[str, Any]]


class Asking:
    """One tool call that can ask."""

    def __init__(self, call: Call, calls: "AskingCalls", name: str) -> None:
        """Let `call`, of the tool `name`, ask through its attribute `asking`."""
        self.call, self.name, self._calls = call, name, calls
        self.state = ""
        self.asked: _Question = ("", {})  # the latest question
        self.question: asyncio.Future[_Question] = asyncio.get_running_loop().create_future()
        self.answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self.task: asyncio.Task[Any] | None = None
        call.asking = self

    async def ask(self, message: str, schema: dict[str, Any]) -> dict[str, Any]:
        """Ask the client's user to fill in a form. Return {} after 10 minutes without an answer, or if too many calls wait for one."""
        if len(self._calls.waiting) >= _MOST_WAITING:
            return {}
        self.answer = asyncio.get_running_loop().create_future()
        self.question.set_result((message, schema))
        try:
            async with asyncio.timeout(_MOST_SECONDS):
                return await self.answer
        except TimeoutError:
            return {}
        finally:
            self._calls.waiting.pop(self.state, None)


class AskingCalls:
    """The tool calls that can ask. Those that wait for an answer are in `waiting`, by the states that their clients were given."""

    def __init__(self) -> None:
        self.waiting: dict[str, Asking] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self, asking: Asking, work: Coroutine[Any, Any, Any]) -> Any:
        """Run a tool call until it ends or asks. Return its result, or the response that has the question."""
        asking.task = task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return await self._follow(asking, task)

    async def resume(self, call: Call, name: str, state: str) -> Any:
        """Continue a call with the answer in the request of `call`. Return its result, or the response that has its next question.

        Each state can be used for one answer. Without an answer in the request, return the same response again. Raise the SDK's error if no
        call of this client to the tool `name` waits with this state.
        """
        asking = self.waiting.get(state)
        if asking is None or asking.task is None or asking.call.client is not call.client or asking.name != name:
            raise refusal("requestState must be that of a call of yours that still waits for an answer: call the tool again without it")
        answer = call.context.answer
        if answer is None:
            return question_response(*asking.asked, state)
        del self.waiting[state]
        asking.call.context = call.context
        asking.answer.set_result(answer)
        return await self._follow(asking, asking.task)

    async def close(self) -> None:
        """Cancel all calls, and wait until their cells are interrupted."""
        tasks = [*self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, asking: Asking, task: "asyncio.Task[Any]") -> Any:
        try:
            await asyncio.wait({task, asking.question}, return_when=asyncio.FIRST_COMPLETED)
        except BaseException:  # the client has cancelled its request
            task.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.wait({task})
            raise
        if task.done():
            return task.result()
        asking.asked = asking.question.result()
        asking.question = asyncio.get_running_loop().create_future()
        asking.state = secrets.token_urlsafe(24)
        self.waiting[asking.state] = asking
        return question_response(*asking.asked, asking.state)

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # so that asyncio does not log it: its request may have ended
