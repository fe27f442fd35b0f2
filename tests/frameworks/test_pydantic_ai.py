"""Test workspaces and code mode for Pydantic AI: by its own suite, unmodified, and by what that does not test."""

import asyncio
import base64
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

pytest.importorskip("pydantic_ai.workspaces", reason="make test-integrations installs it")

from pydantic_ai import Agent, BinaryContent, ModelResponse, RunContext, TextPart, ToolCallPart
from pydantic_ai.exceptions import UsageLimitExceeded
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.test import TestModel
from pydantic_ai.toolsets import FunctionToolset
from pydantic_ai.usage import RunUsage, UsageLimits
from pydantic_ai.workspaces import WorkspaceRef, WorkspaceUnavailableError
from pydantic_ai.workspaces.conformance import WorkspaceBackendSuite
from samples.scripted_model import ScriptedModel, Step

from aca_sessions import SessionPool, Settings, open_pool
from aca_sessions.integrations.pydantic_ai import SessionWorkspace
from aca_sessions.integrations.pydantic_ai_code import CodeToolset, SessionCodeMode
from aca_sessions.testing import IntegrationSuite, Run

from ..conftest import ROOT, until

pytestmark = pytest.mark.slow


class TestSuite(WorkspaceBackendSuite):
    @pytest.fixture
    def backend(self, pool: SessionPool) -> SessionWorkspace:
        return SessionWorkspace(pool)

    @pytest.fixture
    def fresh_backend(self, pool: SessionPool) -> Callable[[], SessionWorkspace]:
        return lambda: SessionWorkspace(pool)

    @pytest.fixture
    def attach_backend(self, pool: SessionPool) -> Callable[[WorkspaceRef], SessionWorkspace]:
        return lambda ref: SessionWorkspace(pool, ref)

    @pytest.fixture
    def destroy_environment(self) -> Callable[[SessionWorkspace], Awaitable[None]]:
        return SessionWorkspace.delete


async def test_no_operation_uses_a_session_that_took_the_place_of_an_ended_one(pool: SessionPool) -> None:
    operations: list[Callable[[SessionWorkspace], Awaitable[object]]] = [
        lambda one: one.run(["true"]),
        lambda one: one.read_bytes("/etc/passwd"),
        lambda one: one.write_bytes("/mnt/data/a", b""),
        lambda one: one.stat("/mnt/data"),
        lambda one: one.list_dir("/mnt/data"),
        lambda one: one.make_dir("/mnt/data/b"),
        lambda one: one.remove("/mnt/data/a"),
        lambda one: one.exists("/mnt/data"),
        lambda one: one.realpath("/mnt/data"),
    ]
    for operation in operations:
        workspace = SessionWorkspace(pool)
        await workspace.write_bytes("/mnt/data/a", b"")
        await workspace.delete()
        for _ in range(2):
            with pytest.raises(WorkspaceUnavailableError, match="has ended: lost: terminated"):
                await operation(workspace)
        assert workspace.ref is not None
        with pytest.raises(WorkspaceUnavailableError):  # though there is a new session of the name now
            await SessionWorkspace(pool, workspace.ref).exists("/mnt/data")


async def test_a_workspace_survives_the_death_of_its_interpreter(pool: SessionPool) -> None:
    workspace = SessionWorkspace(pool)
    await workspace.write_bytes("/mnt/data/a", b"kept")
    [info] = pool.active()
    async with pool.session(info.session_id) as session:
        await session.run("import os; os._exit(1)")
    assert await workspace.read_bytes("/mnt/data/a") == b"kept"
    assert (await workspace.run(["cat", "a"])).stdout == "kept"


async def test_another_pool_finds_a_saved_workspace_again(tmp_path: Path) -> None:
    settings = Settings(Durable={"Store": f"file://{tmp_path}/saves"})  # type: ignore[arg-type]
    async with open_pool(settings) as pool:
        workspace = SessionWorkspace(pool)
        await workspace.write_bytes("/mnt/data/a", b"saved")
    assert workspace.ref is not None
    async with open_pool(settings) as pool:
        assert await SessionWorkspace(pool, workspace.ref).read_bytes("/mnt/data/a") == b"saved"
    async with open_pool() as pool:
        with pytest.raises(WorkspaceUnavailableError):
            await SessionWorkspace(pool, workspace.ref).exists("/mnt/data/a")


async def test_a_caller_that_is_cancelled_leaves_one_session_that_the_ref_names(pool: SessionPool) -> None:
    workspace = SessionWorkspace(pool)
    first = asyncio.ensure_future(workspace.working_dir())
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    await until(lambda: asyncio.sleep(0, workspace.ref is not None))
    assert await workspace.working_dir() == "/mnt/data"
    assert len(pool.active()) == 1


@pytest.mark.parametrize("id", ["alice:a:1", "workspace-1", "workspace-1:a", "workspace-1:a:b", ""])
async def test_a_ref_leads_to_no_other_session_of_the_pool(pool: SessionPool, id: str) -> None:
    with pytest.raises(ValueError, match="ref must be the one of a SessionWorkspace"):
        SessionWorkspace(pool, WorkspaceRef(provider="aca-sessions", id=id))


class TestCodeMode(IntegrationSuite):
    @asynccontextmanager
    async def open(self, settings: Settings) -> AsyncIterator[Run]:
        context = RunContext(deps=None, model=TestModel(), usage=RunUsage())
        async with open_pool(settings) as pool, CodeToolset(FunctionToolset(), pool=pool) as toolset:

            async def run(code: str) -> object:
                tools = await toolset.get_tools(context)
                return await toolset.call_tool("run_code", {"code": code}, context, tools["run_code"])

            yield run


def agent_that_runs(pool: SessionPool, *cells: str, **restart: bool) -> tuple[Agent, list[str], list[AgentInfo]]:
    """Return an agent whose model runs each of the cells, and lists of what it reads and what it was offered."""
    read: list[str] = []
    offered: list[AgentInfo] = []

    def model(messages: list, info: AgentInfo) -> ModelResponse:
        offered.append(info)
        read.extend(part.content for part in messages[-1].parts if part.part_kind == "tool-return")
        done = len(read)
        if done == len(cells):
            return ModelResponse([TextPart("done")])
        arguments: dict = {"code": cells[done]}
        return ModelResponse([ToolCallPart("run_code", arguments | (restart if done == len(cells) - 1 else {}))])

    return Agent(FunctionModel(model), capabilities=[SessionCodeMode(pool)]), read, offered


async def test_code_calls_the_tools_of_the_agent(pool: SessionPool) -> None:
    cells = "x = [tools.double(number=n) for n in range(3)]; x", "sum(x) + tools.double(number='2')", "tools.double(number='none')", "x"
    agent, read, offered = agent_that_runs(pool, *cells, restart=True)
    seen: list[object] = []

    @agent.tool
    def double(ctx: RunContext[int], number: int) -> int:
        """Return twice a number."""
        seen.append((ctx.deps, number))
        return 2 * number

    @agent.tool_plain(requires_approval=True)
    def launch() -> None: ...

    await agent.run("go", deps=7)
    assert seen == [(7, 0), (7, 1), (7, 2), *seen[3:]]
    assert read[0] == "[0, 2, 4]"
    assert "number must be of type integer, got '2'" in read[1]
    assert "NameError" in read[3]
    tools = {one.name: one for one in offered[0].function_tools}
    assert tools.keys() == {"run_code", "launch"}
    assert "tools.double(number: integer): Return twice a number." in (tools["run_code"].description or "")
    assert pool.active() == []


async def test_a_result_has_its_images_and_reports_what_was_lost(pool: SessionPool) -> None:
    agent, read, _ = agent_that_runs(pool, "from IPython.display import Image; Image(tools.chart())", "import os; os._exit(1)", "1")

    @agent.tool_plain
    def chart() -> bytes:
        return PNG

    run = await agent.run("go")
    prompts = [part for message in run.all_messages() for part in message.parts if part.part_kind == "user-prompt"]
    assert [one.data for part in prompts for one in part.content if isinstance(one, BinaryContent)] == [PNG]
    assert "1 image" in read[0]
    assert "lost: exit" in read[1]
    assert read[2] == "1"


async def test_the_limit_of_calls_ends_the_run_of_code_that_calls_in_a_loop(pool: SessionPool) -> None:
    agent, _, _ = agent_that_runs(pool, "while True: tools.count()")
    counted: list[int] = []

    @agent.tool_plain
    def count() -> None:
        counted.append(1)

    with pytest.raises(UsageLimitExceeded):
        await agent.run("go", usage_limits=UsageLimits(tool_calls_limit=5))
    assert len(counted) == 4  # and `run_code` itself


PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")
EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "integrations" / "pydantic-ai.md").read_text(), re.DOTALL)
SCRIPTS: list[list[Step]] = [
    [
        [("run_command", {"command": "printf '2\\n3\\n5\\n' > primes.txt"})],
        "written",
        [("run_command", {"command": "wc -l < primes.txt"})],
        lambda messages: messages[-1]["content"],
    ],
    [
        [("run_code", {"code": "max(['Oslo', 'Bergen'], key=lambda city: tools.temperature(city=city))"})],
        lambda messages: messages[-1]["content"],
    ],
]


@pytest.mark.parametrize(("example", "script", "output"), [*zip(EXAMPLES, SCRIPTS, ["3\nexit code 0\n", "'Bergen'\n"], strict=True)])
def test_the_examples_of_the_page_work(tmp_path: Path, example: str, script: list[Step], output: str) -> None:
    with ScriptedModel(script) as model:
        environment = {**os.environ, "OPENAI_BASE_URL": model.base_url, "OPENAI_API_KEY": "scripted"}
        run = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert run.stdout == output, run.stderr
