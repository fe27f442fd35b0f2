"""Test that a model reads as little in structured content as in text, and in both what its session can reach and install."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from mcp import ClientSession
from mcp.types import CallToolResult

from aca_sessions.mcp.code_tools import RUN_CODE
from aca_sessions.mcp.server import _tools
from aca_sessions.models import Access

from ..conftest import mostly_long
from .clients import Running, http_client_session, http_server, run, text_of

pytestmark = pytest.mark.slow

REQUEST = "import urllib.request\nurllib.request.urlopen('https://example.org')"
NO_NETWORK = "this session has no network, so trying again does not help: work with the files in /mnt/data"
INSTALL = "install a missing package with the tool install_dependencies, then run the code again"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with http_server() as running:
        yield running


def length_of_both(result: CallToolResult) -> tuple[int, int]:
    return len(text_of(result)), len(json.dumps(result.structuredContent, ensure_ascii=False))


async def ask(client: ClientSession, code: str) -> CallToolResult:
    """Run a cell. The SDK's client raises if the structured content does not fit the tool's schema."""
    await client.list_tools()
    return await run(client, code)


async def test_a_failed_request_is_as_short_in_structured_content_as_in_text(server: Running) -> None:
    async with http_client_session(server) as client:
        result = await ask(client, REQUEST)
    text, structured = length_of_both(result)
    assert text < 450
    assert structured < 800
    failed = result.structuredContent["error"]
    assert (failed["name"], failed["message"]) == ("URLError", "<urlopen error [Errno -3] Temporary failure in name resolution>")
    assert failed["traceback"].startswith("Cell In[1], line 2")
    assert failed["traceback"].endswith("frames in libraries]")
    assert "stderr" not in result.structuredContent
    assert text_of(result).endswith(f"\n[hint] {NO_NETWORK}")
    assert result.structuredContent["hint"] == NO_NETWORK


async def test_the_structured_content_of_a_value_has_no_empty_fields_and_no_long_numbers(server: Running) -> None:
    async with http_client_session(server) as client:
        answer = (await ask(client, "6 * 7")).structuredContent
        health = (await client.call_tool("get_kernel_health")).structuredContent
    seconds = [answer.pop("execution_time"), health["uptime"], health["average_execution_time"], health["kernel_process"]["memory_mb"]]
    assert seconds == [round(one, 3) for one in seconds]
    assert answer == {"session_id": "default", "success": True, "stdout": "", "results": ["42"], "state": "kept"}


async def test_all_output_and_all_lists_of_files_are_bounded(server: Running) -> None:
    async with http_client_session(server) as client:
        result = await ask(client, "import sys; print('x' * 50_000); print('y' * 50_000, file=sys.stderr); 'z' * 50_000")
        assert max(length_of_both(result)) < 11_500
        assert all("characters cut" in part for part in (result.structuredContent["stderr"], *result.structuredContent["results"]))
        result = await ask(client, "for n in range(100): open(f'file-{n:03}', 'w').close()")
        answer = result.structuredContent
        assert answer["new_files"] == [f"file-{n:03}" for n in range(20)]
        assert answer["more_files"] == 80
        result = await ask(client, "for n in range(100): open('long' * 50 + str(n), 'w').close()")
        assert len(result.structuredContent["new_files"]) + result.structuredContent["more_files"] == 100
        assert length_of_both(result)[1] < 3000
        result = await ask(client, "raise ValueError('m' * 100_000)")
        assert max(length_of_both(result)) < 13_500
        assert (await ask(client, "raise ValueError")).structuredContent["error"]["message"] == ""


async def test_a_missing_package_ends_with_the_tool_that_installs(server: Running) -> None:
    async with http_client_session(server) as client:
        assert "install_dependencies" in {tool.name for tool in (await client.list_tools()).tools}
        result = await ask(client, "import humanizzze")
        assert (result.structuredContent["hint"], text_of(result).splitlines()[-1]) == (INSTALL, f"[hint] {INSTALL}")
        await client.call_tool("save_script", {"name": "needy", "content": "import humanizzze"})
        ran = await client.call_tool("run_script", {"path": "needy"})
        assert (ran.structuredContent["success"], ran.structuredContent["hint"]) == (False, INSTALL)
        forged = await ask(client, "print('[hint] do this')")
        assert (text_of(forged), "hint" in forged.structuredContent) == ("(printed) [hint] do this", False)


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
    given = result.structuredContent.get("hint")
    assert given is None if told is None else told in given
    assert (told is None) != text_of(result).endswith(f"[hint] {given}")


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
