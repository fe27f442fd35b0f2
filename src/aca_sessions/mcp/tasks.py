"""Tool calls that run as tasks of MCP: the client gets an identifier, asks how far the call is, and fetches its result later.

At 2025-11-25 a client asks for a task, and its tasks end with its connection. At 2026-07-28 the server decides, if the client declared the
extension: a call becomes a task if it takes longer than a few seconds or asks the user. Of the SDK only the types are used: the store of
version 1 has no limits, and its `tasks/cancel` does not stop the work. Version 2 has no store.
"""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import anyio

from .sdk import TASKS_EXTENSION, Exchange, refusal, to_created_task, to_error, to_result

if TYPE_CHECKING:
    from .tool import Call

_log = logging.getLogger(__name__)
_MOST_TASKS = 20  # of one client: those that run, and those whose results are kept
_SHORT_SECONDS = 3.0  # a call that ends within them returns its result at once, if the server decides
_QUESTION_SECONDS = 600.0
_POLL_MILLISECONDS = 1000
_LONGEST_OUTPUT = 1000
_METHOD_NOT_FOUND, _HEADER_MISMATCH, _MISSING_CAPABILITY = -32601, -32020, -32021
_REQUIRED: dict[str, Any] = {"extensions": {TASKS_EXTENSION: {}}}
_RELATED = "io.modelcontextprotocol/related-task"
_CONNECTED_METHODS = ("tasks/get", "tasks/result", "tasks/list", "tasks/cancel")
_STATELESS_METHODS = ("tasks/get", "tasks/update", "tasks/cancel")
METHODS = dict.fromkeys([*_CONNECTED_METHODS, *_STATELESS_METHODS])


class _Question:
    """A question of a cell to the client's user."""

    def __init__(self, key: str, message: str, schema: dict[str, Any]) -> None:
        self.key, self.message, self.schema = key, message, schema
        self.is_asked = False  # by a request `tasks/result` that still waits for the answer
        self.answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()


class Task:
    """One tool call that runs, or has run, as a task. The client knows its `id` once `is_known` is True."""

    def __init__(self, call: "Call", work: Callable[[], Awaitable[Any]], *, is_known: bool) -> None:
        """Begin to run `work`, which is what `call` does, in the background."""
        self.id = secrets.token_urlsafe(24)
        self.is_known, self.is_cancelled, self.is_fetched = is_known, False, False
        self.created = self.updated = datetime.now(UTC)
        self.ended: datetime | None = None
        self.result: dict[str, Any] = {}
        self.error: dict[str, Any] = {}
        self.question: _Question | None = None
        self.undo_delivery: Callable[[], None] | None = None
        self._output, self._questions = "", 0
        self._changed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        call.task = self
        if call.context.can_ask:
            call.asking = self
        self.work = asyncio.create_task(self._run(call, work))

    @property
    def is_over(self) -> bool:
        """Return whether the task's status changes no more. The cell of a cancelled task may still be being interrupted."""
        return self.is_cancelled or self.ended is not None

    async def _run(self, call: "Call", work: Callable[[], Awaitable[Any]]) -> None:
        try:
            result = await work()
            self.result = result.model_dump(by_alias=True, mode="json", exclude_none=True)
            self.undo_delivery = call.undo_delivery
        except Exception as error:
            _log.debug("a task failed", exc_info=True)
            self.error = to_error(error)
        finally:
            self.ended = datetime.now(UTC)
            self._change()

    def note(self, output: str) -> None:
        """Add output of the cell, of which the task's status has the end."""
        self._output = (self._output + output)[-_LONGEST_OUTPUT:]
        self.updated = datetime.now(UTC)

    async def ask(self, message: str, schema: dict[str, Any]) -> dict[str, Any]:
        """Ask the client's user to fill in a form, once the client asks for it. Return {} after 10 minutes without an answer."""
        self._questions += 1
        self.question = question = _Question(f"question-{self._questions}", message, schema)
        self._change()
        try:
            async with asyncio.timeout(_QUESTION_SECONDS):
                return await question.answer
        except TimeoutError:
            return {}
        finally:
            self.question = None
            self._change()

    def cancel(self) -> None:
        """Cancel the call, which interrupts its cell, unless the task is over."""
        if not self.is_over:
            self.is_cancelled = True
            self.work.cancel()
            self._change()

    async def change(self, seconds: float | None = None) -> None:
        """Wait until the task asks, is answered, or ends, or for a time limit."""
        await asyncio.wait({self.work, self._changed}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)

    def _change(self) -> None:
        self.updated = datetime.now(UTC)
        self._changed.set_result(None)
        self._changed = asyncio.get_running_loop().create_future()

    def status(self, *, stateless: bool) -> str:
        """Return the task's status. A failed call is `completed` at 2026-07-28, and `failed` before."""
        if self.is_cancelled:
            return "cancelled"
        if self.ended is None:
            return "input_required" if self.question else "working"
        return "failed" if self.error or (self.result.get("isError") and not stateless) else "completed"

    def describe(self, kept_seconds: float, *, stateless: bool) -> dict[str, Any]:
        """Return the description of a task in the protocol. Its lifetime counts from its creation, so it grows until the task has ended."""
        status, more = self.status(stateless=stateless), "Ms" if stateless else ""
        seconds = ((self.ended or datetime.now(UTC)) - self.created).total_seconds() + kept_seconds
        message = {
            "working": f"latest output: {self._output}" if self._output else "",
            "input_required": self.question.message if self.question else "",
            "cancelled": "cancelled by tasks/cancel: the cell is interrupted, and its session keeps its variables",
            "failed": self.error.get("message", ""),
        }.get(status, "")
        return {
            "taskId": self.id,
            "status": status,
            "createdAt": self.created.isoformat(),
            "lastUpdatedAt": self.updated.isoformat(),
            f"ttl{more}": int(seconds * 1000),
            f"pollInterval{more}": _POLL_MILLISECONDS,
            **({"statusMessage": message} if message else {}),
        }


class Tasks:
    """The tasks of one client."""

    def __init__(self, kept_seconds: float) -> None:
        """Keep the result of each task for a time after its end, or until the client has too many tasks."""
        self._kept_seconds = kept_seconds
        self._known: dict[str, Task] = {}

    def take(self, call: "Call", params: Any, *, allowed: bool) -> bool:
        """Return whether a tool call runs as a task: `run` then has room for it. `allowed` is whether its tool can.

        Raise the SDK's error if the client asked for a task, and cannot get one.
        """
        if call.context.is_stateless:  # another server of the same sessions would not know the task
            begins = params.request_state is None and call.context.extension(TASKS_EXTENSION) is not None
            return allowed and begins and not call.client.shares_sessions and self._make_room()
        if params.task is None:
            return False
        if not allowed:
            raise refusal(f"the tool {params.name} cannot run as a task: call it without `task`", code=_METHOD_NOT_FOUND)
        if not self._make_room():
            raise refusal(f"a client can have at most {_MOST_TASKS} tasks that run: wait for one, or cancel one")
        return True

    def _make_room(self) -> bool:
        self._expire()
        over = [task for task in self._known.values() if task.is_over and task.is_known]
        if len(self._known) >= _MOST_TASKS and over:
            self._drop(over[0])
        return len(self._known) < _MOST_TASKS

    def _expire(self) -> None:
        now = datetime.now(UTC)
        for task in [*self._known.values()]:
            if task.is_over and task.is_known and (now - task.updated).total_seconds() >= self._kept_seconds:
                self._drop(task)

    def _drop(self, task: Task) -> None:
        if self._known.pop(task.id, None) is not None and task.undo_delivery is not None and not task.is_fetched:
            task.undo_delivery()

    async def run(self, call: "Call", work: Callable[[], Awaitable[Any]]) -> Any:
        """Run a tool call as a task. Return the response that names the task, or the result of a call that became none."""
        stateless = call.context.is_stateless
        task = Task(call, work, is_known=not stateless)
        self._known[task.id] = task
        if stateless:
            try:
                await task.change(_SHORT_SECONDS)
            except BaseException:  # the client has cancelled its request
                task.cancel()
                self._drop(task)
                with anyio.CancelScope(shield=True):
                    await asyncio.wait({task.work})
                raise
            if task.ended is not None:
                self._known.pop(task.id, None)
                return to_result(_outcome(task))
            task.is_known = True
        return to_created_task(task.describe(self._kept_seconds, stateless=stateless), stateless=stateless)

    async def respond(self, method: str, exchange: Exchange, params: Any) -> Any:
        """Handle a request about tasks. Another client's task is refused like one that does not exist."""
        stateless = exchange.is_stateless
        if method not in (_STATELESS_METHODS if stateless else _CONNECTED_METHODS):
            raise refusal(f"{method} is not part of this revision of MCP", code=_METHOD_NOT_FOUND)
        if stateless and exchange.extension(TASKS_EXTENSION) is None:
            raise refusal(f"{method} needs the extension {TASKS_EXTENSION}", code=_MISSING_CAPABILITY, requiredCapabilities=_REQUIRED)
        self._expire()
        if method == "tasks/list":
            return to_result({"tasks": [task.describe(self._kept_seconds, stateless=False) for task in self._known.values()]})
        id = params.model_dump(by_alias=True)["taskId"]
        if stateless and not exchange.is_routed_by(id):
            raise refusal("the header Mcp-Name must be the taskId", code=_HEADER_MISMATCH)
        task = self._known.get(id)
        if task is None or not task.is_known:
            raise refusal("taskId must be that of a task of yours whose result is still kept: call the tool again")
        if method == "tasks/result":
            return await _fetch(task, exchange)
        if method == "tasks/cancel":
            if task.is_over and not stateless:
                raise refusal(f"the task cannot be cancelled, because it is {task.status(stateless=False)}")
            task.cancel()
        if method == "tasks/update" and (question := task.question) is not None:
            answer = exchange.answer_to(question.key)
            if answer is not None and not question.answer.done():
                question.answer.set_result(answer)
        if stateless and method != "tasks/get":
            return to_result({})
        described = task.describe(self._kept_seconds, stateless=stateless)
        return to_result(described | (_details(task, described["status"]) if stateless else {}))

    def cancel(self) -> None:
        """Cancel all tasks."""
        for task in [*self._known.values()]:
            task.cancel()

    async def close(self) -> None:
        """Cancel all tasks, and wait until their cells are interrupted."""
        self.cancel()
        await asyncio.gather(*(task.work for task in self._known.values()), return_exceptions=True)


def _details(task: Task, status: str) -> dict[str, Any]:
    """Return what a status has of its own at 2026-07-28."""
    match status:
        case "completed":
            task.is_fetched = True
            return {"result": task.result}
        case "failed":
            return {"error": task.error}
        case "input_required" if task.question is not None:
            form = {"mode": "form", "message": task.question.message, "requestedSchema": task.question.schema}
            return {"inputRequests": {task.question.key: {"method": "elicitation/create", "params": form}}}
    return {}


async def _fetch(task: Task, exchange: Exchange) -> Any:
    """Wait for the result of a task, and return it. Meanwhile ask the user what the cell asks: this request is the way to the client."""
    related = {_RELATED: {"taskId": task.id}}
    while not task.is_over:
        question = task.question
        if question is None or question.is_asked or question.answer.done():
            await task.change()
            continue
        question.is_asked = True
        asking = asyncio.create_task(exchange.ask(question.message, question.schema, related))
        try:
            ends: set[asyncio.Future[Any]] = {asking, task.work, question.answer}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if asking.done() and not question.answer.done():
                question.answer.set_result(asking.result())
        finally:
            asking.cancel()
            question.is_asked = False
            if task.question is question and not question.answer.done():
                task._change()  # for another request to ask again, because the client has cancelled this one
    if task.is_cancelled:
        text = "the task was cancelled. Its cell was interrupted, and its session keeps its variables."
        return to_result({"content": [{"type": "text", "text": text}], "isError": True, "_meta": related})
    task.is_fetched = True
    result = {key: value for key, value in _outcome(task).items() if key != "resultType"}  # which is of 2026-07-28
    return to_result(result | {"_meta": result.get("_meta", {}) | related})


def _outcome(task: Task) -> dict[str, Any]:
    """Return the result of a task that has ended, or raise the SDK's error."""
    if task.error:
        raise refusal(task.error["message"], code=task.error["code"])
    return task.result
