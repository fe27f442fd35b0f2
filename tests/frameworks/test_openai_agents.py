"""Test the sandbox client for the OpenAI Agents SDK: by the SDK's own tests that take a client, by agents, and by what can be lost."""

import asyncio
import io
import os
import re
import subprocess
import sys
import tarfile
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

pytest.importorskip("agents.sandbox", reason="make test-integrations installs it")

from agents import RunConfig, Runner, RunResult, ToolCallOutputItem, function_tool
from agents.run_state import RunState
from agents.sandbox import Manifest, SandboxAgent, SandboxRunConfig
from agents.sandbox.capabilities import Filesystem, Shell
from agents.sandbox.entries import Dir, File
from agents.sandbox.errors import (
    ExecTimeoutError,
    ExecTransportError,
    InvalidManifestPathError,
    WorkspaceArchiveWriteError,
    WorkspaceReadNotFoundError,
    WorkspaceStartError,
)
from agents.sandbox.manifest import Environment
from agents.sandbox.session import SandboxSession
from agents.sandbox.snapshot import LocalSnapshotSpec
from agents.sandbox.types import User
from agents.testing import ScriptedModel, assistant_message, function_call
from openai.types.responses import ResponseCustomToolCall

from aca_sessions import PythonTool, SessionPool, open_pool
from aca_sessions.errors import InvalidArgumentError
from aca_sessions.integrations.openai_agents import SessionSandboxClient, SessionSandboxClientOptions

from .pages import run_example
from .sources import fetch_source

pytestmark = pytest.mark.long

FILES = Manifest(
    entries={"a.txt": File(content=b"hello\n"), "folder": Dir(children={"b.txt": File(content=b"b")})},
    environment=Environment(value={"COLOUR": "red"}),
)
_SUITES = ("test_runtime.py", "test_memory.py", "test_run_cwd.py")


@pytest.fixture
async def pool() -> AsyncIterator[SessionPool]:
    async with open_pool() as pool:
        yield pool


@pytest.fixture
def client(pool: SessionPool) -> SessionSandboxClient:
    return SessionSandboxClient(pool)


@pytest.fixture
async def sandbox(client: SessionSandboxClient) -> AsyncIterator[SandboxSession]:
    sandbox = await client.create(manifest=FILES, options=SessionSandboxClientOptions(session_name="alice"))
    await sandbox.start()
    yield sandbox
    await client.delete(sandbox)


def calls(tool: str, **arguments: object) -> list:
    return [function_call(tool, call_id=str(uuid.uuid4()), arguments=arguments)]


def outputs_of(result: RunResult) -> list[str]:
    return [str(item.output) for item in result.new_items if isinstance(item, ToolCallOutputItem)]


def config_for(client: SessionSandboxClient, **options: object) -> RunConfig:
    return RunConfig(sandbox=SandboxRunConfig(client=client, **options), tracing_disabled=True)


def test_the_example_of_the_page_prints_its_output(tmp_path: Path) -> None:
    command = "python -c \"import csv; print(sum(int(row['sold']) for row in csv.DictReader(open('sales.csv'))))\""
    model = run_example("openai-agents.md", [[("exec_command", {"cmd": command})], "255 were sold."], tmp_path)
    assert "\n255\n" in model.tool_messages()[0]


def test_the_tests_of_the_sdk_that_take_a_client_pass(tmp_path: Path) -> None:
    """Run them in a process of their own, because their folder is a package named `tests`, too."""
    source = fetch_source("openai-agents")
    plugin = "aca_sandboxes"
    (tmp_path / f"{plugin}.py").write_text((Path(__file__).parent / "openai_agents_clients.py").read_text())
    files = [f"tests/sandbox/{name}" for name in _SUITES]
    command = [sys.executable, "-m", "pytest", "-q", "-rf", "-p", plugin, "-p", "no:randomly", "-p", "no:cacheprovider", *files]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    run = subprocess.run(command, capture_output=True, text=True, timeout=540, check=False, cwd=source, env=environment)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr
    assert int(re.search(r"(\d+) passed", run.stdout)[1]) >= 32


async def test_commands_run_in_the_workspace_with_exact_bytes_and_exit_codes(sandbox: SandboxSession) -> None:
    done = await sandbox.exec(r"pwd; cat a.txt; printf '\0\377' | tee /dev/stderr; echo $COLOUR; kill -TERM $$")
    assert done.stdout == b"/mnt/data/workspace\nhello\n\0\xffred\n"
    assert (done.stderr, done.exit_code) == (b"\0\xff", 143)
    assert (await sandbox.exec("no-such-program", shell=False)).exit_code == 127
    with pytest.raises(ExecTimeoutError):
        await sandbox.exec("sleep 601 & sleep 602", timeout=1)
    assert (await sandbox.exec("pgrep -c sleep")).stdout == b"0\n"


async def test_commands_run_beside_each_other(sandbox: SandboxSession) -> None:
    each_waits = "mkfifo {0} 2>/dev/null; echo > {1} & cat {0}"
    await sandbox.exec("mkfifo a b")
    await asyncio.gather(sandbox.exec(each_waits.format("a", "b"), timeout=60), sandbox.exec(each_waits.format("b", "a"), timeout=60))


async def test_files_are_read_and_written_and_paths_outside_are_refused(sandbox: SandboxSession) -> None:
    await sandbox.write(Path("new/large.bin"), io.BytesIO(b"\0\xff" * 1_000_000))
    assert (await sandbox.read(Path("new/large.bin"))).read() == b"\0\xff" * 1_000_000
    assert await sandbox.read_bounded(Path("new/large.bin"), max_bytes=3) == b"\0\xff\0"
    assert [Path(entry.path).name for entry in await sandbox.ls("folder")] == ["b.txt"]
    await sandbox.exec("ln -s /etc/passwd link; ln -s / root")
    for path in ("../x", "/etc/passwd", "link", "root/tmp/x"):
        with pytest.raises(InvalidManifestPathError):
            await sandbox.read(Path(path))
        with pytest.raises(InvalidManifestPathError):
            await sandbox.write(Path(path), io.BytesIO(b"x"))
    for missing in (sandbox.read(Path("none")), sandbox.read_bounded(Path("none"), max_bytes=9)):
        with pytest.raises(WorkspaceReadNotFoundError):
            await missing
    with pytest.raises(WorkspaceArchiveWriteError):
        await sandbox.write(Path("folder"), io.BytesIO(b"x"))


async def test_an_agent_edits_files_with_the_tools_of_the_sdk(client: SessionSandboxClient) -> None:
    patch = "*** Begin Patch\n*** Update File: a.txt\n@@\n-hello\n+changed\n*** End Patch"
    steps = [
        [ResponseCustomToolCall(type="custom_tool_call", call_id="0", name="apply_patch", input=patch)],
        calls("exec_command", cmd="cat a.txt; exit 3"),
        [assistant_message("done")],
    ]
    model = ScriptedModel(steps)
    agent = SandboxAgent(name="Editor", model=model, default_manifest=FILES, capabilities=[Shell(), Filesystem()])
    result = await Runner.run(agent, "Change it.", run_config=config_for(client))
    last = outputs_of(result)[-1]
    assert "Process exited with code 3" in last
    assert last.endswith("changed\n")
    assert client._pool.active() == []


async def test_a_workspace_is_restored_from_its_snapshot_after_its_session_has_ended(
    client: SessionSandboxClient, pool: SessionPool, tmp_path: Path
) -> None:
    sandbox = await client.create(manifest=FILES, snapshot=LocalSnapshotSpec(base_path=tmp_path))
    async with sandbox:
        await sandbox.exec(
            "echo new > new.txt; ln new.txt hard; ln -s new.txt soft; chmod 750 new.txt; rm a.txt; mkfifo pipe; ln -s /usr/bin/env out"
        )
    stored = client.serialize_session_state(sandbox.state)
    await client.delete(sandbox)
    async with await client.resume(client.deserialize_session_state(stored)) as resumed:
        assert (
            await resumed.exec("cat new.txt hard soft; stat -c %a new.txt; ls")
        ).stdout == b"new\nnew\nnew\n750\nfolder\nhard\nnew.txt\nout\npipe\nsoft\n"
    await client.delete(resumed)


async def test_a_sandbox_is_resumed_in_its_session_while_that_lives(client: SessionSandboxClient) -> None:
    sandbox = await client.create(manifest=FILES)
    await sandbox.start()
    await sandbox.exec("echo 1 > new.txt; echo 1 > /tmp/outside")
    stored = client.serialize_session_state(sandbox.state)
    resumed = await client.resume(client.deserialize_session_state(stored))
    async with resumed:
        assert (await resumed.exec("cat new.txt /tmp/outside a.txt")).stdout == b"1\n1\nhello\n"
    await client.delete(resumed)
    await client.delete(sandbox)


async def test_a_session_of_the_same_name_is_not_taken_for_the_one_that_ended(client: SessionSandboxClient, pool: SessionPool) -> None:
    sandbox = await client.create(manifest=FILES, options=SessionSandboxClientOptions(session_name="alice"))
    await sandbox.start()
    await sandbox.exec("echo 1 > new.txt")
    await pool.terminate("alice")
    for _ in range(2):
        with pytest.raises(ExecTransportError, match="lost: terminated; variables and files from before are gone"):
            await sandbox.exec("ls")
        assert not await sandbox.running()
    with pytest.raises(ExecTransportError):
        await sandbox.write(Path("x"), io.BytesIO(b"x"))
    async with await client.resume(sandbox.state) as resumed:  # without a snapshot it begins with the manifest
        assert (await resumed.exec("ls")).stdout == b"a.txt\nfolder\n"


async def test_an_agent_that_was_paused_goes_on_with_its_files(client: SessionSandboxClient, tmp_path: Path) -> None:
    @function_tool(needs_approval=True)
    def publish() -> str:
        return "published"

    def agent_for(steps: list) -> SandboxAgent:
        model = ScriptedModel(steps)
        return SandboxAgent(name="Worker", model=model, default_manifest=FILES, capabilities=[Shell()], tools=[publish])

    config = config_for(client, snapshot=LocalSnapshotSpec(base_path=tmp_path))
    paused = await Runner.run(agent_for([calls("exec_command", cmd="echo 1 > new.txt"), calls("publish")]), "Go.", run_config=config)
    assert client._pool.active() == []
    agent = agent_for([calls("exec_command", cmd="cat new.txt"), [assistant_message("done")]])
    state = await RunState.from_json(agent, paused.to_state().to_json())
    state.approve(state.get_interruptions()[0])
    result = await Runner.run(agent, state, run_config=config)
    assert any(output.endswith("1\n") for output in outputs_of(result))
    assert client._pool.active() == []


async def test_python_with_variables_works_in_the_same_sandbox(sandbox: SandboxSession, pool: SessionPool) -> None:
    python = PythonTool(pool, "alice")
    await python.execute_python("text = open('/mnt/data/workspace/a.txt').read()")
    await python.execute_python("open('/mnt/data/workspace/python.txt', 'w').write(text.upper())")
    assert (await sandbox.read(Path("python.txt"))).read() == b"HELLO\n"


async def test_an_archive_that_leads_out_of_the_workspace_is_refused(sandbox: SandboxSession) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("../outside"), io.BytesIO())
    packed.seek(0)
    with pytest.raises(WorkspaceArchiveWriteError):
        await sandbox.hydrate_workspace(packed)
    assert (await sandbox.exec("ls -A .. | grep -v '^.sandbox'")).stdout == b"workspace\n"


async def test_a_root_outside_of_the_session_s_files_is_refused(client: SessionSandboxClient) -> None:
    sandbox = await client.create(manifest=Manifest(root="/srv/work"))
    with pytest.raises(WorkspaceStartError, match="must be a folder in /mnt/data"):
        await sandbox.start()
    await client.delete(sandbox)


async def test_a_manifest_with_users_is_refused(client: SessionSandboxClient) -> None:
    with pytest.raises(InvalidArgumentError, match="users and groups"):
        await client.create(manifest=Manifest(users=[User(name="ann")]))


async def test_a_client_without_a_pool_opens_one_and_closes_it() -> None:
    async with SessionSandboxClient() as client:
        first, second = await asyncio.gather(client.create(), client.create())
        for sandbox in (first, second):
            await sandbox.start()
        assert (await first.exec("ls -A")).stdout == b""
    with pytest.raises(ExecTransportError):
        await first.exec("true")
