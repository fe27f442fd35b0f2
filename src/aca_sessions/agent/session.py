"""A session for an agent: its cells can call tools of the host, and keep skills, artifacts and dependencies that outlive it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from ..bridge.host import CallHandler, HostCalls
from ..bridge.threaded_host import ThreadedRunner, send_modules
from ..client.pool import SessionPool
from ..client.session import Session
from ..connect import open_pool
from ..errors import ACASessionsError, InvalidArgumentError, NotSupportedError, SnapshotError
from ..models import CodeExecutionResult
from .approval import Approval, Approve, CallRecord
from .library.artifacts import Artifacts
from .library.dependencies import Deps, PackageChanges, install, uninstall
from .library.search import Embed
from .library.skills import Skills
from .library.storage import FileStorage, MemoryStorage, Storage
from .toolbox import ToolBox, host_calls
from .tools.tool import Tool, ToolSource
from .tools.tool import tool as make_tool

AnyTool = Tool | ToolSource | Callable[..., Any]
Run = Callable[[HostCalls, str, float | None], Awaitable[CodeExecutionResult]]
_TRIAL_SECONDS = 10.0
_NOT_IN_TRIALS = {"skills.create", "skills.delete", "artifacts.save", "artifacts.delete", "deps.add", "deps.remove", "deps.sync"}
# A session's capabilities, by py-code-mode's names. One is listed only if the endpoint reports that it is enforced.
_BY_EXTENSION = {
    "reset": "reset",
    "deps_install": "packages",
    "deps_uninstall": "packages",
    "interrupt": "interrupt",
    "live_output": "events",
    "checkpoint": "checkpoint",
}
_BY_ISOLATION = {
    "process_isolation": "pid namespace",
    "network_isolation": "no host network",
    "filesystem_isolation": "host files",
    "memory_limit": "memory of a session",
}


class AgentSession:
    """A session whose cells can call tools of the host, and save functions, data and packages for later sessions.

    Cells do this through the objects `tools`, `skills`, `artifacts` and `deps`, and cannot use the host in any other way.
    """

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
            storage: Where skills, artifacts and dependencies are kept. By default in memory, for as long as this object exists.
            tools: Tools, sources of tools such as an MCP server, or plain functions, which become tools.
            approve: A function, sync or async, that allows or refuses calls of tools, except those with the effect `read`. It gets a list
                of calls, and returns one bool for all of them, or a list with one bool for each. By default, only calls of tools with the
                effect `irreversible` are refused.
            embed: A function that returns a vector for each text, so that searches compare meanings. By default searches compare words.
            sync_deps_on_start: Whether `start` installs the dependencies that are in the storage.
            allow_runtime_deps: Whether dependencies can be added and removed, by cells or by methods of this object.
        """
        self._given_tools = _checked_list(tools)
        _check_types(pool, storage, approve)
        self._pool = pool
        self._approval = Approval(approve)
        self._embed = embed
        self._sync = sync_deps_on_start
        self._storage: Storage = MemoryStorage() if storage is None else storage
        self._skills = Skills(self._storage, lambda name, source: self._live.run_examples(name, source), embed)
        self._artifacts = Artifacts(self._storage)
        self._deps = Deps(self._storage, locked=not allow_runtime_deps)
        self._toolbox = ToolBox([], self._approval)  # until the start
        self._leased: LeasedSession | None = None
        self._stack = AsyncExitStack()
        self._starting = asyncio.Lock()

    @classmethod
    def from_base(cls, path: Path | str, pool: SessionPool | None = None, **options: Any) -> Self:
        """Create a session whose tools, skills, artifacts and dependencies are in a folder.

        The folder has `tools/` with a YAML file for each tool, `skills/`, `artifacts/`, and `requirements.txt`. Each of these may be
        missing. The file `requirements.txt` is used until a dependency is added or removed.

        Args:
            path: The folder.
            pool: The pool to lease from. By default a pool is opened from the settings.
            options: Further arguments of the constructor. `tools` are added to those of the folder.
        """
        from .tools.yaml_files import read_tools_folder

        base = Path(path)
        made = cls(pool, storage=FileStorage(base), tools=[*read_tools_folder(base / "tools"), *options.pop("tools", ())], **options)
        made._deps.set_initial_file(base / "requirements.txt")
        return made

    async def start(self) -> None:
        """Lease the session and open its tools, such as MCP servers. `async with` calls this. Do nothing if the session is started already.

        Raise NotSupportedError if there are tools, but cells at this endpoint cannot call them.
        """
        async with self._starting:
            if self._leased is None:
                async with AsyncExitStack() as stack:
                    opened = await self._open(stack)
                    if self._sync:
                        await install(opened.session, await self.list_deps())
                    self._leased, self._stack = opened, stack.pop_all()

    async def _open(self, stack: AsyncExitStack) -> "LeasedSession":
        pool = await stack.enter_async_context(open_pool()) if self._pool is None else self._pool
        live = await LeasedSession.create(pool, await stack.enter_async_context(pool.session()))
        if self._given_tools and live.why_no_tools:
            said = f"this endpoint has no live executions, and {live.why_no_tools}, so cells cannot call tools"
            raise NotSupportedError(f"{said}: use the embedded default or aca-sessions serve, or give no tools")
        self._toolbox = ToolBox(await _open_tools(self._given_tools, stack), self._approval, self._embed)
        live.set_call_handlers(host_calls(self._toolbox, self._skills, self._artifacts, self._deps, live.packages))
        return live

    async def close(self) -> None:
        """Wait until a running `start` has ended, then end the session and close its tools.

        Saved skills, artifacts and dependencies stay in the storage.
        """
        async with self._starting:
            self._leased = None
            await self._stack.aclose()

    async def run(self, code: str, timeout: float | None = None) -> CodeExecutionResult:
        """Run a cell and return its result. Cancelling the call interrupts the cell.

        The time in which the cell waits for a tool or for an approval does not count against `timeout`.
        """
        return await self._live.run(code, timeout)

    async def reset(self) -> None:
        """Clear the variables of the session. Files, `tools`, `skills`, `artifacts` and `deps` stay."""
        await self._live.session.reset()

    def supports(self, capability: str) -> bool:
        """Return whether the session has a capability, such as `network_isolation`. Must be called after the start.

        The names are those of the package py-code-mode, and a few others such as `checkpoint`.
        """
        return capability in self._live.capabilities

    def supported_capabilities(self) -> set[str]:
        """Return the names of all capabilities for which `supports` returns True. Must be called after the start."""
        return set(self._live.capabilities)

    @property
    def storage(self) -> Storage:
        """Return the storage of skills, artifacts and dependencies."""
        return self._storage

    async def list_skills(self) -> list[dict[str, Any]]:
        """Return a dict for each skill, sorted by name, with its name, description, parameters and origin, but without its source."""
        return await self._skills.list()

    async def search_skills(self, query: str, limit: int = 5) -> list[dict[str, Any]]:
        """Return the skills that match a query best, at most `limit`, the best first. Each is a dict without its source."""
        return await self._skills.search(query, limit)

    async def get_skill(self, name: str) -> dict[str, Any] | None:
        """Return a skill as a dict with its source, or None if no skill has that name."""
        return await self._skills.get(name)

    async def add_skill(self, name: str, source: str, description: str = "") -> dict[str, Any]:
        """Save a skill and return it as a dict. A skill of the same name is replaced.

        Raise InvalidArgumentError if an example in the docstring of its `run` fails, or if the name or the source is invalid.

        Args:
            name: A Python name of up to 64 characters.
            source: Python source that defines `run`. Examples in its docstring are run first.
            description: What the skill does. By default the first paragraph of the docstring.
        """
        return await self._skills.add(name, source, description)

    async def remove_skill(self, name: str) -> bool:
        """Remove a skill. Return whether it existed."""
        return await self._skills.remove(name)

    async def list_artifacts(self) -> list[dict[str, Any]]:
        """Return a dict for each artifact, sorted by name: name, path, description, metadata and created_at, but not its data."""
        return await self._artifacts.list()

    async def save_artifact(self, name: str, data: Any, description: str = "", metadata: dict[str, Any] | None = None) -> dict[str, Any]:
        """Save text, bytes, a JSON value or a DataFrame under a name. Return a dict that describes the artifact, as in `list_artifacts`.

        Args:
            name: The name. An artifact of the same name is replaced.
            data: The content.
            description: What the artifact is.
            metadata: Further facts about the artifact, such as `{"source": "sales.csv"}`. They must be values that JSON can hold.
        """
        return await self._artifacts.save(name, data, description, metadata)

    async def load_artifact(self, name: str) -> Any:
        """Return the content of an artifact as it was saved. Raise InvalidArgumentError if no artifact has that name."""
        return await self._artifacts.load(name)

    async def delete_artifact(self, name: str) -> None:
        """Delete an artifact. Do nothing if no artifact has that name."""
        await self._artifacts.delete(name)

    async def list_deps(self) -> list[str]:
        """Return the package requirements in the storage, such as `pandas>=2`, in the order in which they were added."""
        return await self._deps.list()

    async def add_dep(self, package: str) -> dict[str, Any]:
        """Install a package and, if that succeeds, add its requirement to the storage.

        Return a dict with the lists `installed`, `already_present` and `failed`. The package is in one of them.
        """
        self._deps.check_unlocked()
        outcome = await install(self._live.session, [package])
        if not outcome["failed"]:
            await self._deps.add(package)
        return outcome

    async def remove_dep(self, package: str) -> dict[str, Any]:
        """Uninstall a package and remove its requirement from the storage.

        Return a dict with the lists `removed`, `not_found` and `failed`. The package is in one of them. The dict also has the bool
        `removed_from_config`: whether the storage had the requirement.
        """
        configured = await self._deps.remove(package)
        return await uninstall(self._live.session, package, configured=configured)

    async def sync_deps(self) -> dict[str, Any]:
        """Install all requirements in the storage. Return a dict with the lists `installed`, `already_present` and `failed`."""
        return await self.install_all(await self.list_deps())

    async def install_all(self, requirements: Sequence[str]) -> dict[str, Any]:
        """Install packages into this session without adding their requirements to the storage.

        Return a dict with the lists `installed`, `already_present` and `failed`.
        """
        return await install(self._live.session, requirements)

    @property
    def calls(self) -> list[CallRecord]:
        """Return the records of the latest 10,000 calls of tools, the oldest first.

        If all arguments take more than 64 MB, the arguments of the oldest calls are replaced by a note.
        """
        return list(self._approval.records)

    async def list_tools(self) -> list[dict[str, Any]]:
        """Return a dict for each tool, with its name, description, tags, effect and signature.

        If the session is not started, connect to sources of tools, such as MCP servers, only while this call lasts.
        """
        async with self._open_toolbox() as toolbox:
            return toolbox.list()

    async def search_tools(self, query: str, limit: int = 10) -> list[dict[str, Any]]:
        """Return at most `limit` tools that match a query, the best match first, as dicts like those of `list_tools`.

        If the session is not started, connect to sources of tools, such as MCP servers, only while this call lasts.
        """
        async with self._open_toolbox() as toolbox:
            return await toolbox.search(query, limit)

    @asynccontextmanager
    async def _open_toolbox(self) -> AsyncIterator[ToolBox]:
        if self._leased is not None:
            yield self._toolbox
            return
        async with self._starting, AsyncExitStack() as stack:  # the lock keeps a concurrent `start` from opening the same servers
            yield ToolBox(await _open_tools(self._given_tools, stack), self._approval, self._embed)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def _live(self) -> "LeasedSession":
        if self._leased is None:
            name = type(self).__name__
            raise ACASessionsError(f"the session is not started: use 'async with {name}(...) as session', or await start()")
        return self._leased


def _checked_list(tools: Iterable[AnyTool]) -> list[AnyTool]:
    if isinstance(tools, str) or not isinstance(tools, Iterable):
        raise InvalidArgumentError(f"tools must be a list, as in tools=[weather], got {type(tools).__name__}")
    given = list(tools)
    for one in given:
        if not (isinstance(one, Tool) or callable(one) or hasattr(one, "open")):
            raise InvalidArgumentError(
                f"each of tools must be a function, a tool or a source of tools such as McpServer(…), got {type(one).__name__}"
            )
    return given


def _check_types(pool: object, storage: object, approve: object) -> None:
    """Raise InvalidArgumentError if an argument of an AgentSession has a type that would fail only later, far from the mistake."""
    wrong = None
    if pool is not None and not isinstance(pool, SessionPool):
        wrong = "pool must be a SessionPool, as in `async with open_pool() as pool`", pool
    elif storage is not None and not hasattr(storage, "read"):
        wrong = "storage must be a storage, as in storage=FileStorage('./data')", storage
    elif approve is not None and not callable(approve):
        wrong = "approve must be a function that gets a list of calls and returns True or False", approve
    if wrong is not None:
        raise InvalidArgumentError(f"{wrong[0]}, got {type(wrong[1]).__name__}")


async def _open_tools(given: Sequence[AnyTool], stack: AsyncExitStack) -> list[Tool]:
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


class LeasedSession:
    """Runs the cells of a leased session and answers their host calls (calls from a cell to functions of the host)."""

    def __init__(self, pool: SessionPool | None, session: Session, *, runner: Callable[[Session], Run], why_no_tools: str) -> None:
        """Store a leased session and prepare to run its cells. Cells cannot make host calls before `set_call_handlers` is called.

        `runner` takes a session and returns a function that runs cells in it. `why_no_tools` is the reason why cells cannot call tools, or
        "" if they can.
        """
        self.session = session
        self.capabilities = frozenset[str]()
        self.why_no_tools = why_no_tools
        self.packages = PackageChanges(session)
        self._pool = pool
        self._calls = self._trial_calls = HostCalls({})
        self._runner = runner
        self._run = runner(session)
        self._running_cells = 0

    @classmethod
    async def create(cls, pool: SessionPool | None, session: Session) -> "LeasedSession":
        """Create the object for a session that was leased from a pool. Without the pool, the examples of skills cannot be run.

        Ask the endpoint whether it sends events, and choose by this how cells run. If it sends none, send modules to the session, through
        which cells can make host calls.
        """
        runner, why_no_tools = _run_with_events, ""
        if not await session.supports("events"):
            why_no_tools = await send_modules(session)
            runner = _run_without_calls if why_no_tools else _run_in_thread
        live = cls(pool, session, runner=runner, why_no_tools=why_no_tools)
        live.capabilities = await _find_capabilities(session, host_tools=not why_no_tools)
        return live

    def set_call_handlers(self, table: Mapping[str, CallHandler]) -> None:
        """Set the functions that answer host calls, by name. From now on, cells can call all of them.

        The examples in a skill's docstring can call them too, except those that change the storage or packages, such as `artifacts.save`.
        """
        self._calls = HostCalls(table)
        self._trial_calls = HostCalls({name: answer for name, answer in table.items() if name not in _NOT_IN_TRIALS})

    async def run(self, code: str, timeout: float | None) -> CodeExecutionResult:
        """Run a cell and return its result.

        Before the return, install and remove the packages that cells requested, unless another cell still runs.
        """
        self._running_cells += 1
        try:
            result = await self._run(self._calls, code, timeout)
        finally:
            self._running_cells -= 1
        if self._running_cells or not self.packages:
            return result
        try:
            return await self._apply_package_changes(result)
        except BaseException:
            self.session._undo_delivery(result)  # the caller does not get it, so what it reported must be reported again
            raise

    async def run_examples(self, name: str, source: str) -> None:
        """Run the examples in a skill's docstring in another session, so that this session's variables stay as they are.

        Raise InvalidArgumentError if an example fails, and NotSupportedError if cells of this session cannot make host calls.
        """
        if self.why_no_tools:
            raise NotSupportedError(f"the examples of a skill cannot run here, because cells cannot make host calls: {self.why_no_tools}")
        async with self._open_trial_session() as session:
            result = await self._runner(session)(self._trial_calls, f"skills.try_examples({name!r}, {source!r})", _TRIAL_SECONDS)
        if result.error is not None:
            raise InvalidArgumentError(
                f"the skill {name} was not saved: correct the examples in its docstring, which failed: {result.error}"
            )

    async def _apply_package_changes(self, result: CodeExecutionResult) -> CodeExecutionResult:
        note = await self.packages.apply()
        return replace(result, stderr=result.stderr + note) if note else result

    @asynccontextmanager
    async def _open_trial_session(self) -> AsyncIterator[Session]:
        """Yield a temporary session in which the examples of a skill can run.

        It is a branch (a copy of this session with its variables) if one can be made and no cell runs. Otherwise it is a new session.
        """
        if not self._running_cells and "checkpoint" in self.capabilities:
            try:
                (branch,) = await self.session.branch(1)
            except SnapshotError:
                pass
            else:
                async with branch:
                    yield branch
                return
        if self._pool is None:
            raise NotSupportedError("the examples of a skill cannot run here, because the session cannot be branched now")
        async with self._pool.session() as fresh:
            yield fresh


def _run_with_events(session: Session) -> Run:
    """Return a function that runs cells in a session and answers their host calls (calls from cells to functions of the host).

    The endpoint must send events while a cell runs, because host calls arrive as events.
    """

    async def run(calls: HostCalls, code: str, timeout: float | None) -> CodeExecutionResult:
        execution = await session.start(code, timeout=timeout, on_call=lambda text: calls.answer(session, text))
        try:
            return await execution.wait()
        except BaseException:
            await session._cancel_quietly(execution)
            raise

    return run


def _run_in_thread(session: Session) -> Run:
    """Return a function that runs cells and answers their host calls, for endpoints that send no events while a cell runs.

    The cell runs in a thread inside the session. Meanwhile the host starts short executions in the same session, which fetch the host calls
    and deliver the answers.
    """
    return ThreadedRunner(session).run


def _run_without_calls(session: Session) -> Run:
    return lambda _, code, timeout: session.run(code, timeout=timeout)


async def _find_capabilities(session: Session, *, host_tools: bool) -> frozenset[str]:
    found = {"timeout"} | {name for name, extension in _BY_EXTENSION.items() if await session.supports(extension)}
    if host_tools:
        found.add("host_tools")
    parts = (await session.health()).isolation or {}
    found |= {name for name, part in _BY_ISOLATION.items() if part in parts and not parts[part].startswith("NOT ENFORCED")}
    return frozenset(found)
