"""A session for an agent: its cells call tools of the host, and what it saves outlives it."""

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
from .deps import Deps, install
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
    """A session whose code has `tools`, `skills`, `artifacts` and `deps`. It can reach nothing else of the host."""

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
        """Prepare a session; `start` or `async with` opens it.

        Args:
            pool: The pool to lease from. By default a pool is opened from the settings.
            storage: Where skills, artifacts and dependencies are kept. By default in memory, until this object is gone.
            tools: Tools, sources of tools such as an MCP server, or plain functions.
            approve: Called before calls of tools that write, with one call or a whole batch. Returns whether they are allowed.
            embed: Makes vectors of texts, so that searches are by meaning and not by words.
            sync_deps_on_start: Whether `start` installs the dependencies that are kept.
            allow_runtime_deps: Whether dependencies can be added and removed.
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
        """Create a session over a folder.

        The folder has `tools/` with a YAML file for each tool, `skills/`, `artifacts/`, and `requirements.txt` with the dependencies to
        begin with.

        Args:
            path: The folder.
            pool: The pool to lease from. By default a pool is opened from the settings.
            options: Further arguments of the constructor. `tools` are added to those of the folder.
        """
        from .tools.described import tools_in

        base = Path(path)
        made = cls(pool, storage=FileStorage(base), tools=[*tools_in(base / "tools"), *options.pop("tools", ())], **options)
        made._deps.begin_with(base / "requirements.txt")
        return made

    async def start(self) -> None:
        """Lease the session and open the tools. `async with` does this. A second call does nothing.

        Raise NotSupportedError if there are tools and the endpoint's cells cannot call them.
        """
        async with self._starting:
            if self._opened is None:
                async with AsyncExitStack() as stack:
                    opened = await self._open(stack)
                    if self._sync:
                        await install(opened.session, await self.list_deps())
                    self._opened, self._stack = opened, stack.pop_all()

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
        """End the session and close its tools, after a `start` that is still running. What was saved stays in the storage."""
        async with self._starting:
            self._opened = None
            await self._stack.aclose()

    async def run(self, code: str, timeout: float | None = None) -> CodeExecutionResult:
        """Run a cell and return its result. Cancelling the call interrupts the cell.

        The cell's clock stands still while it waits for a tool or for an approval.
        """
        return await self._live.run(code, timeout)

    async def reset(self) -> None:
        """Clear the variables. Files and the four namespaces stay."""
        await self._live.session.reset()

    def supports(self, capability: str) -> bool:
        """Return whether the session has a capability, by py-code-mode's names or the own ones. Each is true only if it is enforced."""
        return capability in self._live.capabilities

    def supported_capabilities(self) -> set[str]:
        """Return the names of all capabilities that the session has."""
        return set(self._live.capabilities)

    @property
    def calls(self) -> list[CallRecord]:
        """Return the latest 10,000 calls with their outcome. The oldest may be without their arguments."""
        return list(self._approval.records)

    async def list_tools(self) -> list[dict[str, Any]]:
        """Return all tools with name, description, tags, effect and signature.

        Before the start, tools that are servers are opened for this call.
        """
        async with self._tools() as toolbox:
            return toolbox.list()

    async def search_tools(self, query: str, limit: int = 10) -> list[dict[str, Any]]:
        """Return the tools that fit a description, the best first. Before the start, tools that are servers are opened for this call."""
        async with self._tools() as toolbox:
            return await toolbox.search(query, limit)

    @asynccontextmanager
    async def _tools(self) -> AsyncIterator[ToolBox]:
        if self._opened is not None:
            yield self._toolbox
            return
        async with self._starting, AsyncExitStack() as stack:  # the lock keeps a concurrent `start` from opening the same servers
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
