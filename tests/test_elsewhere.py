"""Test systems other than Linux: everything but the embedded sandbox works there, with an Endpoint over TCP."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client

from aca_sessions.sandbox import hosts
from aca_sessions.sandbox.hosts import HostCondition

from .cli.test_cli import Server
from .conftest import ROOT
from .test_architecture import FILES, module_name

SYSTEMS = ["win32", pytest.param("darwin", marks=pytest.mark.long)]
PLUGIN = """
import asyncio
from semantic_kernel import Kernel
from aca_sessions import PythonCodeInterpreterPlugin
from tests.elsewhere import loaded_of_the_wall

async def main():
    async with PythonCodeInterpreterPlugin() as python:
        plugin = Kernel().add_plugin(python, "PythonInterpreter")
        await python.execute_python("x = 20")
        print((await python.execute_python("x + 22")).output, sorted(plugin.functions), loaded_of_the_wall())

asyncio.run(main())
"""
# A module that uses one of these must be listed here, and must use it only in code that other systems do not reach.
OF_UNIX = {"geteuid", "getuid", "fork", "killpg", "pidfd_open", "sched_getaffinity", "O_CLOEXEC", "AF_UNIX", "SIGKILL", "SIGHUP", "SIGPIPE"}
WHERE_UNIX_IS_USED = {"client.snippets.files", "cli.serving", "agent.tools.command", "agent.library.storage", "durable.folder_store"}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[dict[str, str]]:
    with Server("--port", "0", "--api-key", "key") as server:
        yield {"ACASessions__Endpoint": server.endpoint, "ACASessions__ApiKey": "key"}


def on(system: str, *arguments: str, stdin: str = "", **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "tests.elsewhere", system, *arguments]
    options = {"capture_output": True, "text": True, "timeout": 240, "check": False, "cwd": ROOT}
    return subprocess.run(command, input=stdin, env=os.environ | environment, **options)


@pytest.mark.long
@pytest.mark.parametrize("system", SYSTEMS)
def test_the_command_line_works_against_an_endpoint(endpoint: dict[str, str], system: str) -> None:
    put = on(system, "files", "put", "-", "a.txt", "--session", system, stdin="words", **endpoint)
    assert put.returncode == 0, put.stderr
    run = on(system, "run", "--session", system, "--live", "open('a.txt').read()", **endpoint)
    assert (run.returncode, run.stdout) == (0, "'words'\n"), run.stderr


@pytest.mark.slow
@pytest.mark.needs("semantic_kernel")
@pytest.mark.parametrize("system", SYSTEMS)
def test_the_plugin_works_against_an_endpoint(endpoint: dict[str, str], system: str, tmp_path: Path) -> None:
    (tmp_path / "plugin.py").write_text(PLUGIN)
    done = on(system, str(tmp_path / "plugin.py"), **endpoint)
    assert done.stdout == "42 ['execute_python', 'execute_python_with_files'] set()\n", done.stderr


@pytest.mark.long
@pytest.mark.parametrize("system", SYSTEMS)
async def test_the_mcp_server_works_against_an_endpoint(endpoint: dict[str, str], system: str) -> None:
    parameters = StdioServerParameters(command=sys.executable, args=["-m", "tests.elsewhere", system, "mcp"], env=endpoint, cwd=ROOT)
    async with stdio_client(parameters, errlog=sys.__stderr__) as streams, ClientSession(*streams) as client:
        await client.initialize()
        await client.call_tool("run_python_code", {"code": "x = 20"})
        result = await client.call_tool("run_python_code", {"code": "x + 22"})
    assert result.content[0].text == "42"


@pytest.mark.slow
@pytest.mark.parametrize(("system", "host"), [("darwin", hosts.MACOS), ("win32", hosts.WINDOWS), ("freebsd14", hosts.NOT_LINUX)])
def test_the_embedded_default_is_one_error_with_advice(system: str, host: HostCondition) -> None:
    run = on(system, "run", "1")
    assert (run.returncode, run.stdout, len(run.stderr.splitlines())) == (2, "", 1)
    assert run.stderr.startswith("aca-sessions: the embedded sandbox needs Linux. ")
    assert f": {host.line}. See {host.row}." in run.stderr


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("command", ["doctor", "serve", "mcp"])
def test_every_command_without_an_endpoint_gives_the_same_error(command: str) -> None:
    run = on("win32", command)
    assert run.returncode == 2
    assert "the embedded sandbox needs Linux" in run.stderr.splitlines()[-1]
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize("file", [file for file in FILES if not module_name(file).startswith(("sandbox", "server"))], ids=module_name)
def test_unix_modules_are_used_only_where_listed(file: Path) -> None:
    used = {node.attr for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Attribute)} & OF_UNIX
    assert not used or module_name(file) in WHERE_UNIX_IS_USED
