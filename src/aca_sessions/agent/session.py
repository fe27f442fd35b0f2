"""A session for an agent: its cells call tools of the host, and what it makes outlives it."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any, Self

from ..client.pool import SessionPool
from ..client.session import Session
from ..connect import open_pool
from ..errors import ACASessionsError, NotSupportedError
from ..models import CodeExecutionResult
from .approval import Approval, Approve, CallRecord
from .outside import Outside
from .toolbox import ToolBox
from .tools.functions import tool as make_tool
from .tools.tool import Tool, ToolSource

AnyTool = Tool | ToolSource | Callable[..., Any]


class AgentSession:
    """A session whose code has `tools`; everything that it may do outside was given to it here."""

    def __init__(self, pool: SessionPool | None = None, *, tools: Sequence[AnyTool] = (), approve: Approve | None = None) -> None:
        """Opens nothing yet. Without a pool it opens what the settings say."""
        self._pool = pool
        self._given = list(tools)
        self._approval = Approval(approve)
        self._stack = AsyncExitStack()
        self._session: Session | None = None
        self._outside: Outside | None = None
        self._starting = asyncio.Lock()

    async def start(self) -> None:
        """Leases the session and opens the tools; `async with` does it."""
        async with self._starting:
            if self._session is not None:
                return
            async with AsyncExitStack() as stack:
                pool = await stack.enter_async_context(open_pool()) if self._pool is None else self._pool
                session = await stack.enter_async_context(pool.session())
                self._toolbox = ToolBox(await _opened(self._given, stack), self._approval)
                calls = await session.supports("events")
                if self._given and not calls:
                    raise NotSupportedError(
                        "this endpoint has no live executions, so cells cannot call tools: use the embedded default or aca-sessions serve"
                    )
                self._outside = Outside(self._table()) if calls else None
                self._session = session
                self._stack = stack.pop_all()

    async def close(self) -> None:
        """Ends the session and closes its tools."""
        self._session = None
        await self._stack.aclose()

    async def run(self, code: str, timeout: float | None = None) -> CodeExecutionResult:
        """What became of a cell. While it waits for a tool or a decision its clock stands still; cancelling the call interrupts it."""
        session, outside = self._live(), self._outside
        if outside is None:
            return await session.run(code, timeout=timeout)
        execution = await session.start(code, timeout=timeout, on_call=lambda text: outside.answer(session, text))
        try:
            return await execution.wait()
        except BaseException:
            await session.cancel_quietly(execution)
            raise

    async def reset(self) -> None:
        """Clears the variables; files and the four namespaces stay."""
        await self._live().reset()

    @property
    def calls(self) -> list[CallRecord]:
        """What was called so far, whatever became of it; the latest ten thousand."""
        return list(self._approval.records)

    async def list_tools(self) -> list[dict[str, Any]]:
        """All tools, each with name, description, tags."""
        self._live()
        return self._toolbox.list()

    async def search_tools(self, query: str, limit: int = 10) -> list[dict[str, Any]]:
        """The tools that fit a description best."""
        self._live()
        return self._toolbox.search(query, limit)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _live(self) -> Session:
        if self._session is None:
            raise ACASessionsError("the session is not started: use 'async with AgentSession(...) as agent', or await start()")
        return self._session

    def _table(self) -> dict[str, Callable[..., Any]]:
        """What code in the session can call, by name."""

        async def listed() -> object:
            return self._toolbox.list()

        async def searched(query: str, limit: int = 10) -> object:
            return self._toolbox.search(query, limit)

        async def described(name: str) -> object:
            return self._toolbox.describe(name)

        async def batch(calls: list[dict[str, Any]]) -> object:
            return await self._toolbox.batch([(one["name"], one["arguments"]) for one in calls])

        return {
            "tools.list": listed,
            "tools.search": searched,
            "tools.describe": described,
            "tools.call": self._toolbox.call,
            "tools.batch": batch,
        }


async def _opened(given: Sequence[AnyTool], stack: AsyncExitStack) -> list[Tool]:
    tools: list[Tool] = []
    for one in given:
        if isinstance(one, Tool):
            tools.append(one)
        elif hasattr(one, "open") and hasattr(one, "close"):
            tools += await one.open()
            stack.push_async_callback(one.close)
        else:
            tools.append(make_tool(one))
    return tools
