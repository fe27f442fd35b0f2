"""Test the client of FastMCP, which `make test-long` installs in an environment of its own, over both transports."""

import json
import os
import subprocess

import pytest

from ..conftest import COMMAND, LIGHT, ROOT
from .clients import http_server

PYTHON = ROOT / ".venv-others" / "bin" / "python"
FASTMCP = [*PYTHON.parent.parent.glob("lib/python3*/site-packages/fastmcp")]
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not FASTMCP, reason="needs FastMCP in .venv-others: make test-long installs it"),
]

CLIENT = """
import asyncio, json, os, sys
from fastmcp import Client
from fastmcp.client.transports import StdioTransport, StreamableHttpTransport
from fastmcp.exceptions import ToolError

given = json.loads(sys.argv[1])
server = StreamableHttpTransport(given["url"], auth=given["key"]) if "url" in given else StdioTransport(**given)
logged, progress = [], []

async def on_log(message):
    logged.append(str(message.data))

async def main():
    async with Client(server, log_handler=on_log, timeout=240) as client:
        async def run(code):
            return await client.call_tool("run_python_code", {"code": code}, raise_on_error=False)

        tools = await client.list_tools()
        await run("x = 41")
        value = await run("x + 1")
        failed = await run("1 / 0")
        plot = await run("import base64; from IPython.display import Image; Image(base64.b64decode('iVBORw0KGgo='), format='png')")
        await run("open('outputs/a.txt', 'w').write('made here')")
        (file,) = [one for one in await client.list_resources() if str(one.uri).endswith("a.txt")]
        content = await client.read_resource(file.uri)
        await run("import time\\nprint('begun', flush=True)\\ntime.sleep(0.5)")
        try:
            await client.call_tool("no_such_tool", {})
            wrong = "accepted"
        except ToolError as error:
            wrong = str(error)
        print(json.dumps({
            "tools": [tool.name for tool in tools],
            "described": all(tool.description for tool in tools),
            "value": [value.content[0].text, value.structured_content, value.meta["aca-sessions/result"]["state"], value.is_error],
            "failed": ["ZeroDivisionError" in failed.content[0].text, failed.is_error],
            "plot": plot.content[-1].type,
            "file": content[0].text,
            "logged": any("begun" in one for one in logged),
            "wrong": "no_such_tool" in wrong,
        }))

asyncio.run(main())
"""


def played(**server: object) -> dict[str, object]:
    """Use a server as FastMCP's client does, and return what came of it."""
    command = [PYTHON, "-c", CLIENT, json.dumps(server)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=480, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


EXPECTED = {
    "described": True,
    "value": ["42", None, "kept", False],
    "failed": [True, False],  # the tool has succeeded if it reports the exception of a cell
    "plot": "image",
    "file": "made here",
    "logged": True,
    "wrong": True,
}


def test_over_stdio() -> None:
    environment = LIGHT | {name: os.environ[name] for name in ("XDG_CACHE_HOME", "PYTHONPATH") if name in os.environ}
    seen = played(command=COMMAND[0], args=[*COMMAND[1:], "mcp"], env=environment)
    assert "run_python_code" in seen.pop("tools")
    assert seen == EXPECTED


def test_over_http_with_a_key(capfd: pytest.CaptureFixture[str]) -> None:
    with http_server() as server:
        seen = played(url=server.address, key=server.key)
    assert "run_python_code" in seen.pop("tools")
    assert seen == EXPECTED
    assert "Traceback" not in capfd.readouterr().err  # in the server's log


def test_a_wrong_key_is_refused() -> None:
    with http_server() as server, pytest.raises(AssertionError, match="MCPError: Server returned an error response"):
        played(url=server.address, key="wrong")
