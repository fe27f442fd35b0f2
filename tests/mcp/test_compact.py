"""Test that a model reads what it needs once, and what its session can reach and install."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from mcp import ClientSession
from mcp.types import CallToolResult

from aca_sessions import PythonCodeInterpreterPlugin
from aca_sessions.mcp.code_tools import RUN_CODE
from aca_sessions.mcp.server import _tools
from aca_sessions.models import Access

from ..conftest import mostly_long
from .clients import Running, answer_of, http_client_session, http_server, run, text_of

pytestmark = pytest.mark.slow

REQUEST = "import urllib.request\nurllib.request.urlopen('https://example.org')"
NO_NETWORK = "this session has no network, so trying again does not help: work with the files in /mnt/data"
INSTALL = "install a missing package with the tool install_dependencies, then run the code again"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with http_server() as running:
        yield running


def length_of_both(result: CallToolResult) -> tuple[int, int]:
    """Return the length of what a model reads, and of what a program reads."""
    return len(text_of(result)), len(json.dumps(answer_of(result), ensure_ascii=False))


async def ask(client: ClientSession, code: str) -> CallToolResult:
    return await run(client, code)


async def test_a_failed_request_is_short(server: Running) -> None:
    async with http_client_session(server) as client:
        result = await ask(client, REQUEST)
    assert length_of_both(result) < (450, 150)
    assert text_of(result).startswith("Cell In[1], line 2")
    assert "frames in libraries]\nURLError: <urlopen error [Errno -3] Temporary failure in name resolution>\n" in text_of(result)
    assert text_of(result).endswith(f"\n[hint] {NO_NETWORK}")
    assert answer_of(result)["error"] == "URLError"


async def test_a_model_reads_a_result_once_and_in_the_layout_of_the_plugin(server: Running) -> None:
    """A client that shows structured content and text would show a result twice; one that shows only the former, no image."""
    code = "import sys; print('out'); print('err', file=sys.stderr); open('a.txt', 'w').close(); 6 * 7"
    async with http_client_session(server) as client:
        result = await ask(client, code)
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    async with PythonCodeInterpreterPlugin() as plugin:
        assert text_of(result) == str(await plugin.execute_python(code))
    assert (result.structuredContent, tools["run_python_code"].outputSchema) == (None, None)
    assert not {"out", "err", "42"} & {*map(str, answer_of(result).values())}


@pytest.mark.filterwarnings("ignore:Use `streamable_http_client`:DeprecationWarning")
async def test_the_openai_agents_sdk_shows_a_result_once_however_it_is_set(server: Running) -> None:
    agents, tool_context = pytest.importorskip("agents.mcp"), pytest.importorskip("agents.tool_context")
    parameters = {"url": server.address, "headers": {"Authorization": f"Bearer {server.key}"}, "timeout": 120}
    shown = []
    for use_structured_content in (False, True):
        async with agents.MCPServerStreamableHttp(
            params=parameters, use_structured_content=use_structured_content, client_session_timeout_seconds=120
        ) as agent_server:
            context = tool_context.ToolContext(None, tool_name="run_python_code", tool_call_id="1", tool_arguments="{}")
            tools = {tool.name: tool for tool in await agent_server.list_tools()}
            given = json.dumps({"code": "print('out'); 42"})
            shown.append(str(await agents.MCPUtil.invoke_mcp_tool(agent_server, tools["run_python_code"], context, given)))
    assert [(one.count("out"), one.count("42")) for one in shown] == [(2, 1)] * 2  # the heading is [stdout]


async def test_what_programs_read_has_no_empty_fields_and_no_long_numbers(server: Running) -> None:
    async with http_client_session(server) as client:
        answer = answer_of(await ask(client, "6 * 7"))
        health = (await client.call_tool("get_kernel_health")).structuredContent
    seconds = [answer.pop("execution_time"), health["uptime"], health["average_execution_time"], health["kernel_process"]["memory_mb"]]
    assert seconds == [round(one, 3) for one in seconds]
    assert answer == {"session_id": "default", "success": True, "state": "kept"}


async def test_all_output_and_all_lists_of_files_are_bounded(server: Running) -> None:
    async with http_client_session(server) as client:
        result = await ask(client, "import sys; print('x' * 50_000); print('y' * 50_000, file=sys.stderr); 'z' * 50_000")
        assert max(length_of_both(result)) < 11_500
        assert text_of(result).count("characters cut") == 3
        result = await ask(client, "for n in range(100): open(f'file-{n:03}', 'w').close()")
        answer = answer_of(result)
        assert answer["new_files"] == [f"file-{n:03}" for n in range(20)]
        assert answer["more_files"] == 80
        result = await ask(client, "for n in range(100): open('long' * 50 + str(n), 'w').close()")
        assert len(answer_of(result)["new_files"]) + answer_of(result)["more_files"] == 100
        assert length_of_both(result)[1] < 3000
        result = await ask(client, "raise ValueError('m' * 100_000)")
        assert max(length_of_both(result)) < 13_500
        assert text_of(await ask(client, "raise ValueError")).splitlines()[-1] == "ValueError"


async def test_a_missing_package_ends_with_the_tool_that_installs(server: Running) -> None:
    async with http_client_session(server) as client:
        assert "install_dependencies" in {tool.name for tool in (await client.list_tools()).tools}
        result = await ask(client, "import humanizzze")
        assert text_of(result).splitlines()[-1] == f"[hint] {INSTALL}"
        await client.call_tool("save_script", {"name": "needy", "content": "import humanizzze"})
        ran = await client.call_tool("run_script", {"path": "needy"})
        assert (answer_of(ran)["success"], f"[hint] {INSTALL}" in text_of(ran).splitlines()) == (False, True)
        assert text_of(await ask(client, "print('[hint] do this')")) == "(printed) [hint] do this"


@pytest.mark.long
async def test_mounted_folders_are_named_to_the_model(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("from the host")
    mounts = {"ACASessions__Sandbox__Mounts": json.dumps([{"Host": str(tmp_path), "Guest": "/mnt/srv"}])}
    tmp_path.chmod(0o755)
    sentence = "Code sees these folders of the host: /mnt/srv (read-only)."
    with http_server("--tools", "all", **mounts) as server:
        async with http_client_session(server) as client:
            tools = {tool.name: tool.description for tool in (await client.list_tools()).tools}
            info = (await client.call_tool("get_workspace_info")).structuredContent
            refused = [
                text_of(await client.call_tool(name, {"path": path}))
                for name, path in (("list_files", "/mnt/srv"), ("list_files", "/mnt/srv/"), ("read_file", "/mnt/srv/a.txt"))
            ]
            read = text_of(await run(client, "open('/mnt/srv/a.txt').read()"))
    assert {name for name, description in tools.items() if description.endswith(sentence)} == {*RUN_CODE}
    assert info["mounts"] == ["/mnt/srv (read-only)"]
    assert refused == ["/mnt/srv is a folder of the host, outside of /mnt/data: use run_python_code to read /mnt/srv"] * 3
    assert read == "'from the host'"


IMPORT_WITHOUT_MEMORY = """
import os, resource
old = resource.getrlimit(resource.RLIMIT_AS)
used = int(open('/proc/self/statm').read().split()[0]) * os.sysconf('SC_PAGE_SIZE')
resource.setrlimit(resource.RLIMIT_AS, (used + 200_000, old[1]))
try:
    import sqlite3
finally:
    resource.setrlimit(resource.RLIMIT_AS, old)
"""


@pytest.mark.parametrize(
    ("code", "told"),
    mostly_long(
        [
            ("bytearray(10 << 30)", "the session's limit of memory (2 GB) was reached: "),
            (
                "import subprocess, sys; subprocess.run([sys.executable, '-c', 'bytearray(10 << 30)'])",
                "the session's limit of memory (2 GB) ",
            ),
            (IMPORT_WITHOUT_MEMORY, "the session's limit of memory (2 GB) was reached: "),
            (
                "open('large', 'wb').truncate(1 << 30)",
                "a limit of the session's files (/mnt/data 256 MB and 16384 files, /tmp 64 MB) was reached: ",
            ),
            (
                "import os; os.posix_fallocate(os.open('/tmp/large', os.O_CREAT | os.O_RDWR), 0, 100 << 20)",
                "a limit of the session's files (/mnt",
            ),
            (
                "import subprocess; started = [subprocess.Popen(['sleep', '60']) for _ in range(200)]",
                "processes and threads (128) was reached: ",
            ),
            ("open('data.csv')", "this session sees only its own files: list them with os.listdir()"),
            ("raise ValueError('not a MemoryError')", None),
        ],
        every=3,
    ),
)
async def test_a_cell_that_reaches_a_limit_or_misses_a_file_ends_with_a_hint(server: Running, code: str, told: str | None) -> None:
    async with http_client_session(server) as client:
        result = await ask(client, code)
    hints = [line for line in text_of(result).splitlines() if line.startswith("[hint] ")]
    assert hints == [] if told is None else told in hints[0]
    assert told is None or text_of(result).endswith(hints[0])


async def test_the_tools_that_run_code_say_what_the_network_is(server: Running) -> None:
    async with http_client_session(server) as client:
        tools = (await client.list_tools()).tools
    told = {tool.name: tool.description for tool in tools}
    assert {name for name, description in told.items() if description.endswith(" There is no network.")} == {*RUN_CODE}
    timeouts = {tool.name: tool.inputSchema["properties"]["timeout"]["description"] for tool in tools if tool.name in RUN_CODE}
    assert timeouts == dict.fromkeys(RUN_CODE, "Interrupt it after this many seconds. By default 100.")
    assert told["install_dependencies"].endswith("The host fetches them, so the session needs no network.")


@pytest.mark.parametrize(
    ("network", "sentence"),
    [
        (("host",), "The network of the host is reachable."),
        (tuple(f"d{n}.example" for n in range(12)), "d9.example and 2 more."),
        (None, "Files below outputs/ are copied to your other sessions."),
    ],
)
def test_a_description_says_nothing_of_a_network_that_is_not_known(network: tuple[str, ...] | None, sentence: str) -> None:
    assert " ".join(_tools("session", Access(network=network))["run_python_code"].listed.description.split()).endswith(sentence)
