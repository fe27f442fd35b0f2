"""Clients that run tool calls as tasks: of the SDK's version 1 at 2025-11-25, and of version 2 at both revisions."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Literal

from mcp import ClientSession, types
from pydantic import ConfigDict

from aca_sessions.mcp.sdk import HAS_STATELESS, TASKS_EXTENSION

from .clients import text_of

Answer = Callable[[str], str | None]


class Connected:
    """A client at 2025-11-25. It asks for tasks."""

    unfinished = 1  # seconds that a cell takes at least to become a task

    def __init__(self, session: ClientSession) -> None:
        self.session = session

    async def _send(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a request of version 2, whose client knows no result of `tools/call` but the usual one at this revision."""
        return await self.session._dispatcher.send_raw_request(method, params, {})

    async def begin(self, tool: str, **arguments: Any) -> str:
        """Call a tool as a task, and return the task's identifier."""
        if HAS_STATELESS:
            return (await self._send("tools/call", name=tool, arguments=arguments, task={"ttl": 1}))["task"]["taskId"]
        return (await self.session.experimental.call_tool_as_task(tool, arguments, ttl=1)).task.taskId

    async def get(self, task: str) -> dict[str, Any]:
        """Return the status of a task."""
        if HAS_STATELESS:
            return await self._send("tasks/get", taskId=task)
        return (await self.session.experimental.get_task(task)).model_dump(mode="json", exclude_none=True)

    async def result(self, task: str) -> types.CallToolResult:
        """Wait for a task and return its result."""
        if HAS_STATELESS:
            return types.CallToolResult.model_validate(await self._send("tasks/result", taskId=task))
        return await self.session.experimental.get_task_result(task, types.CallToolResult)

    async def cancel(self, task: str) -> dict[str, Any]:
        """Cancel a task."""
        if HAS_STATELESS:
            return await self._send("tasks/cancel", taskId=task)
        return (await self.session.experimental.cancel_task(task)).model_dump(mode="json", exclude_none=True)

    async def list(self) -> list[str]:
        """Return the identifiers of all tasks."""
        if HAS_STATELESS:
            return [one["taskId"] for one in (await self._send("tasks/list"))["tasks"]]
        return [one.taskId for one in (await self.session.experimental.list_tasks()).tasks]

    async def read(self, tool: str, **arguments: Any) -> str:
        """Call a tool without a task, and return what a model reads."""
        return text_of(await self.session.call_tool(tool, arguments))


def elicitation(answer: Answer) -> Callable[..., Awaitable[types.ElicitResult]]:
    """Return the SDK's callback that asks the user."""

    async def ask(_context: object, params: Any) -> types.ElicitResult:
        given = answer(params.message)
        return types.ElicitResult(action="decline") if given is None else types.ElicitResult(action="accept", content={"answer": given})

    return ask


if HAS_STATELESS:
    from mcp import Client
    from mcp.client.extension import ClaimContext, ClientExtension, ResultClaim

    class Created(types.Result):
        """The response to a tool call that has become a task."""

        result_type: Literal["task"] = "task"
        task_id: str

    class Fields(types.Result):
        """A result with any fields."""

        model_config = ConfigDict(extra="allow")

    class Params(types.RequestParams):
        """The parameters of requests about a task."""

        task_id: str
        input_responses: dict[str, Any] | None = None

    class AboutTask(types.Request[Params, str]):
        """A request about a task, which HTTP names in a header."""

        name_param = "taskId"

    async def send(session: Any, method: str, task: str, **params: Any) -> dict[str, Any]:
        """Send a request about a task and return the fields of its result."""
        result = await session.send_request(AboutTask(method=method, params=Params(task_id=task, **params)), Fields)
        return result.model_extra

    class Extension(ClientExtension):
        """The extension for tasks, as an application adds it to the SDK's client: it polls, and answers questions."""

        identifier = TASKS_EXTENSION

        def __init__(self, answer: Answer = lambda _: None) -> None:
            self._answer = answer

        def claims(self) -> list[ResultClaim[Any]]:
            return [ResultClaim(result_type="task", model=Created, resolve=self._resolve)]

        async def _resolve(self, created: Created, context: ClaimContext) -> types.CallToolResult:
            return await self.wait(context.session, created.task_id)

        async def wait(self, session: Any, task: str) -> types.CallToolResult:
            """Wait for a task and return its result."""
            while True:
                state = await send(session, "tasks/get", task)
                match state["status"]:
                    case "completed":
                        return types.CallToolResult.model_validate(state["result"])
                    case "input_required":
                        callback = elicitation(self._answer)
                        answers = {}
                        for key, one in state["inputRequests"].items():
                            given = await callback(None, types.ElicitRequestFormParams.model_validate(one["params"]))
                            answers[key] = given.model_dump(by_alias=True, exclude_none=True)
                        await send(session, "tasks/update", task, input_responses=answers)
                    case "cancelled" | "failed":
                        raise RuntimeError(state)
                await asyncio.sleep(0.1)

    class Stateless:
        """A client at 2026-07-28. The server decides which of its calls become tasks."""

        unfinished = 5

        def __init__(self, client: Client, extension: Extension) -> None:
            self.client, self.session, self._extension = client, client.session, extension

        async def begin(self, tool: str, **arguments: Any) -> str:
            """Call a tool until the call becomes a task, and return the task's identifier."""
            return (await self.session.call_tool(tool, arguments, allow_claimed=True)).task_id

        async def get(self, task: str) -> dict[str, Any]:
            """Return the status of a task."""
            return await send(self.session, "tasks/get", task)

        async def result(self, task: str) -> types.CallToolResult:
            """Wait for a task and return its result."""
            return await self._extension.wait(self.session, task)

        async def cancel(self, task: str) -> dict[str, Any]:
            """Cancel a task."""
            return await send(self.session, "tasks/cancel", task)

        async def read(self, tool: str, **arguments: Any) -> str:
            """Call a tool, and return what a model reads, also if the call becomes a task."""
            return text_of(await self.client.call_tool(tool, arguments))


@asynccontextmanager
async def in_process(server: Any, era: str) -> AsyncIterator[Any]:
    """Yield a client that is connected to a server of the SDK in this process."""
    if not HAS_STATELESS:
        from mcp.shared.memory import create_connected_server_and_client_session

        async with create_connected_server_and_client_session(server) as session:
            yield Connected(session)
    elif era == "connected":
        async with Client(server, mode="legacy") as client:
            yield Connected(client.session)
    else:
        async with Client(server, extensions=[extension := Extension()]) as client:
            yield Stateless(client, extension)
