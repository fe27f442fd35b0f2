"""A session for an agent: its cells call tools of the host, and what it makes outlives it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Self

from ..client.pool import SessionPool
from ..connect import open_pool
from ..errors import ACASessionsError, NotSupportedError
from ..models import CodeExecutionResult
from .approval import Approval, Approve
from .artifacts import Artifacts
from .deps import Deps
from .kept import Kept
from .live import Live
from .memory_storage import MemoryStorage
from .namespaces import table
from .records import CallRecord
from .search import Embed
from .skills import Skills
from .storage import FileStorage, Storage
from .toolbox import ToolBox
from .tools.functions import tool as make_tool
from .tools.tool import Tool, ToolSource

AnyTool = Tool | ToolSource | Callable[..., Any]


class AgentSession(Kept):
    """A session whose code has `tools`, `skills`, `artifacts` and `deps`. It reaches nothing outside but what it is given here."""

    def __init__(
        self,
        pool: SessionPool | None = None,
        *,
        storage: Storage | None = None,
        tools: Sequence[AnyTool] = (),
        approve: Approve | None = None,
        embed: Embed | None = None,
        sync_deps_on_start: bool = False,
        allow_runtime_deps: bool = True,
    ) -> None:
        """Opens nothing yet. Without a pool it opens what the settings say; without a storage, what is kept ends with this object.

        `approve` sees calls that write before they are made; `embed` makes vectors of texts, for a search by meaning.
        """
        self._pool = pool
        self._given = list(tools)
        self._approval = Approval(approve)
        self._embed = embed
        self._sync = sync_deps_on_start
        self._storage: Storage = MemoryStorage() if storage is None else storage
        self._skills = Skills(self._storage, lambda name, source: self._live.attempt(name, source), embed)
        self._artifacts = Artifacts(self._storage)
        self._deps = Deps(self._storage, locked=not allow_runtime_deps)
        self._toolbox = ToolBox([], self._approval)  # until the start
        self._opened: Live | None = None
        self._stack = AsyncExitStack()
        self._starting = asyncio.Lock()

    @classmethod
    def from_base(cls, path: Path | str, pool: SessionPool | None = None, **options: Any) -> Self:
        """Over a folder: `tools/` with a YAML file for each tool, `skills/`, `artifacts/`, and `requirements.txt` to begin with."""
        from .tools.described import tools_in

        base = Path(path)
        made = cls(pool, storage=FileStorage(base), tools=[*tools_in(base / "tools"), *options.pop("tools", ())], **options)
        made._deps.begin_with(base / "requirements.txt")
        return made

    async def start(self) -> None:
        """Leases the session and opens the tools; `async with` does it."""
        async with self._starting:
            if self._opened is None:
                async with AsyncExitStack() as stack:
                    self._opened = await self._open(stack)
                    self._stack = stack.pop_all()
                if self._sync:
                    await self.sync_deps()

    async def _open(self, stack: AsyncExitStack) -> Live:
        pool = await stack.enter_async_context(open_pool()) if self._pool is None else self._pool
        live = await Live.of(pool, await stack.enter_async_context(pool.session()))
        if self._given and live.why_no_tools:
            said = f"this endpoint has no live executions, and {live.why_no_tools}, so cells cannot call tools"
            raise NotSupportedError(f"{said}: use the embedded default or aca-sessions serve, or give no tools")
        self._toolbox = ToolBox(await _opened(self._given, stack), self._approval, self._embed)
        live.answer_with(table(self._toolbox, self._skills, self._artifacts, self._deps, live))
        return live

    async def close(self) -> None:
        """Ends the session and closes its tools; what was kept is in the storage."""
        self._opened = None
        await self._stack.aclose()

    async def run(self, code: str, timeout: float | None = None) -> CodeExecutionResult:
        """What became of a cell. While it waits for a tool or a decision its clock stands still; cancelling the call interrupts it."""
        return await self._live.run(code, timeout)

    async def reset(self) -> None:
        """Clears the variables; files and the four namespaces stay."""
        await self._live.session.reset()

    def supports(self, capability: str) -> bool:
        """Whether the session has it, by py-code-mode's names and those of its own: each only where it is enforced."""
        return capability in self._live.capabilities

    def supported_capabilities(self) -> set[str]:
        """All that it has."""
        return set(self._live.capabilities)

    @property
    def calls(self) -> list[CallRecord]:
        """Return the latest 10,000 calls with their outcome. The oldest may be without their arguments."""
        return list(self._approval.records)

    async def list_tools(self) -> list[dict[str, Any]]:
        """Return all tools, each with name, description, tags. Before the start, tools that are servers are opened for this call."""
        async with self._tools() as toolbox:
            return toolbox.list()

    async def search_tools(self, query: str, limit: int = 10) -> list[dict[str, Any]]:
        """Return the tools that fit a description, the best first. It needs no start either."""
        async with self._tools() as toolbox:
            return await toolbox.search(query, limit)

    @asynccontextmanager
    async def _tools(self) -> AsyncIterator[ToolBox]:
        if self._opened is not None:
            yield self._toolbox
            return
        async with self._starting, AsyncExitStack() as stack:  # a start meanwhile would open the same servers
            yield ToolBox(await _opened(self._given, stack), self._approval, self._embed)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def _live(self) -> Live:  # type: ignore[override]
        if self._opened is None:
            name = type(self).__name__
            raise ACASessionsError(f"the session is not started: use 'async with {name}(...) as session', or await start()")
        return self._opened


async def _opened(given: Sequence[AnyTool], stack: AsyncExitStack) -> list[Tool]:
    tools: list[Tool] = []
    for one in given:
        if isinstance(one, Tool):
            tools.append(one)
        elif hasattr(one, "open") and hasattr(one, "close"):
            stack.push_async_callback(one.close)
            tools += await one.open()
        else:
            tools.append(make_tool(one))
    return tools
