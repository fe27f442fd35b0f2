"""Run the tests of this folder with version 2 of the SDK, in the environment of `make test-core`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from aca_sessions.mcp.sdk import HAS_STATELESS

from ..conftest import COMMAND, LIGHT, ROOT

PYTHON = ROOT / ".venv-core" / "bin" / "python"
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not PYTHON.exists() or HAS_STATELESS, reason="needs .venv-core: make test-long makes it"),
]
# A client of version 1 or 2, which begins with a handshake, for a server of the other version.
CLIENT = """
import asyncio, sys, warnings
warnings.simplefilter("error")
from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client

async def main():
    async with stdio_client(StdioServerParameters(command=sys.argv[1], args=sys.argv[2:])) as (reading, writing):
        async with ClientSession(reading, writing) as client:
            await client.initialize()
            await client.list_tools()
            print((await client.call_tool("run_python_code", {"code": "6 * 7"})).content[0].text)

asyncio.run(main())
"""
BEST = """
import asyncio, sys, warnings
warnings.simplefilter("error")
from mcp import Client, StdioServerParameters

async def main():
    async with Client(StdioServerParameters(command=sys.argv[1], args=sys.argv[2:])) as client:
        await client.list_tools()
        print((await client.call_tool("run_python_code", {"code": "6 * 7"})).content[0].text, client.protocol_version)

asyncio.run(main())
"""

TASK = """
import asyncio, sys, warnings
from mcp import ClientSession, StdioServerParameters, types
from mcp.client.stdio import stdio_client

async def main():
    async with stdio_client(StdioServerParameters(command=sys.argv[1], args=sys.argv[2:])) as (reading, writing):
        async with ClientSession(reading, writing) as client:
            await client.initialize()
            with warnings.catch_warnings(action="ignore"):
                tasks = client.experimental
            made = await tasks.call_tool_as_task("run_python_code", {"code": "import time; time.sleep(1); 6 * 7"})
            async for state in tasks.poll_task(made.task.taskId):
                pass
            print(state.status, (await tasks.get_task_result(made.task.taskId, types.CallToolResult)).content[0].text)

asyncio.run(main())
"""


def used(client: Path | str, code: str, server: Path | str) -> str:
    """Let the Python `client` run a client, with a server that the Python `server` runs. Return what it printed, and check for warnings."""
    command = [client, "-c", code, server, *COMMAND[1:], "mcp"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=os.environ | LIGHT, check=False)
    assert (done.returncode, "arning" in done.stderr) == (0, False), done.stderr
    return done.stdout.strip()


def test_clients_of_each_version_use_servers_of_each() -> None:
    one, two = sys.executable, PYTHON
    assert used(one, CLIENT, two) == "42"
    assert used(two, CLIENT, one) == "42"
    assert used(two, BEST, one) == "42 2025-11-25"
    assert used(two, BEST, two) == "42 2026-07-28"
    assert used(one, TASK, two) == "completed 42"


@pytest.mark.timeout(1600)
def test_the_tests_of_this_folder_pass_with_version_2() -> None:
    ignored = [f"--ignore=tests/mcp/{name}" for name in ("test_other_clients.py", "test_fastmcp.py")]
    command = [PYTHON, "-m", "pytest", "tests/mcp", "-m", "", "-n", "2", "-p", "no:cacheprovider", *ignored]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == 0, done.stdout[-8000:]
