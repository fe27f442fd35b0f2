"""Test clients of other projects, and clients that send malformed messages."""

import asyncio
import json
import os
import subprocess

import pytest
from semantic_kernel import Kernel
from semantic_kernel.connectors.mcp import MCPStdioPlugin

from ..conftest import COMMAND, descendants
from .test_http import INITIALIZE

pytestmark = pytest.mark.slow


@pytest.mark.long
async def test_semantic_kernel_uses_the_server_as_a_plugin() -> None:
    async with MCPStdioPlugin(name="Python", description="Python sessions", command=COMMAND[0], args=[*COMMAND[1:], "mcp"]) as plugin:
        kernel = Kernel()
        functions = kernel.add_plugin(plugin, plugin_name="Python")
        await kernel.invoke(functions["run_python_code"], code="x = 20")
        result = await kernel.invoke(functions["run_python_code"], code="x + 22")
    assert result.value[0].text == "42"
    assert {parameter.name for parameter in functions["run_python_code"].parameters} == {"code", "session_id", "timeout", "transactional"}


READY = {"jsonrpc": "2.0", "method": "notifications/initialized"}
ENDLESS = "print('begun')\nwhile True: pass"
BAD = [b"{", b"nothing", b"[]", b"5", b"\xff\xfe", b"[" * 100_000, b'{"jsonrpc": "2.0", "id": 7, "method": "no/such"}', b""]


@pytest.mark.long
async def test_a_malformed_message_does_not_end_the_server() -> None:
    call = {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {"name": "run_python_code", "arguments": {"code": "6 * 7"}}}
    process = await asyncio.create_subprocess_exec(
        *COMMAND, "mcp", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, limit=1 << 24
    )
    for line in [*BAD, *(json.dumps(message).encode() for message in (INITIALIZE, READY)), *BAD, json.dumps(call).encode()]:
        process.stdin.write(line + b"\n")
    answer = {}
    while answer.get("id") != 2:
        answer = json.loads(await asyncio.wait_for(process.stdout.readline(), 30))
    process.stdin.close()
    assert await asyncio.wait_for(process.wait(), 15) == 0
    assert answer["result"]["content"][0]["text"] == "42"


@pytest.mark.long
async def test_a_request_of_a_later_protocol_is_logged_as_one_line() -> None:
    process = await asyncio.create_subprocess_exec(*COMMAND, "mcp", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    probe = {"jsonrpc": "2.0", "id": 1, "method": "server/discover", "params": {}}  # as FastMCP 4 sends it first
    process.stdin.write(json.dumps(probe).encode() + b"\n")
    answer = json.loads(await asyncio.wait_for(process.stdout.readline(), 60))
    process.stdin.close()
    (line,) = (await process.stderr.read()).splitlines()
    assert (answer["id"], answer["error"]["message"]) == (1, "Invalid request parameters")
    assert line.startswith(b"WARNING root: Failed to validate request: ")
    assert await process.wait() == 0


@pytest.mark.long
async def test_a_client_that_vanishes_during_a_cell_leaves_nothing() -> None:
    call = {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {"name": "run_python_code", "arguments": {"code": ENDLESS}}}
    process = await asyncio.create_subprocess_exec(*COMMAND, "mcp", stdin=subprocess.PIPE, stdout=subprocess.PIPE, limit=1 << 24)
    for message in (INITIALIZE, READY, call):
        process.stdin.write(json.dumps(message).encode() + b"\n")
    async with asyncio.timeout(120):
        async for line in process.stdout:
            if b"begun" in line:
                break
    below = descendants(process.pid)
    process.stdin.close()
    assert await asyncio.wait_for(process.wait(), 15) == 0
    assert below
    assert not any(os.path.exists(f"/proc/{pid}") for pid in below)
