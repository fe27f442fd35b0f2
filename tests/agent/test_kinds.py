"""Test tools described by YAML files: programs, HTTP endpoints and MCP servers."""

import http.server
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from aca_sessions import AgentSession, SessionPool
from aca_sessions.agent.approval import Approval
from aca_sessions.agent.toolbox import ToolBox
from aca_sessions.agent.tools import mcp
from aca_sessions.agent.tools.command import Option, Program
from aca_sessions.agent.tools.http import Endpoint, HttpApi
from aca_sessions.agent.tools.mcp import McpServer
from aca_sessions.agent.tools.tool import Parameter
from aca_sessions.agent.tools.yaml_files import read_tools_file, read_tools_folder
from aca_sessions.bridge.host import ToolFailedError
from aca_sessions.errors import ConfigurationError

from ..conftest import mostly_long

SHOW = [sys.executable, "-c", "import json, sys; print(json.dumps(sys.argv[1:]))"]
MCP = """
from mcp.types import ToolAnnotations
import sys
kind, place = sys.argv[1] if len(sys.argv) > 1 else "stdio", {"host": "127.0.0.1", "port": int(sys.argv[2])} if len(sys.argv) > 2 else {}
try:  # version 1 of the SDK
    from mcp.server.fastmcp import FastMCP
    from mcp.server.fastmcp.exceptions import ToolError
    server, place = FastMCP("numbers", **place), {}
except ImportError:
    from mcp.server import MCPServer
    from mcp.server.mcpserver.exceptions import ToolError
    server = MCPServer("numbers")

@server.tool(annotations=ToolAnnotations(readOnlyHint=True))
def add(a: int, b: int = 1) -> int:
    "Adds two numbers"
    return a + b

@server.tool(annotations=ToolAnnotations(destructiveHint=True))
def wipe() -> str:
    "Deletes everything"
    return "gone"

@server.tool()
def fail() -> str:
    raise ToolError("no such number")

server.run(kind, **place)
"""

SILENT = """
import json, sys

FIRST = {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": {"name": "silent", "version": "1"}}
ANSWERS = {"initialize": FIRST, "tools/list": {"tools": [{"name": "wait", "inputSchema": {"type": "object"}}]}}
for line in sys.stdin:
    asked = json.loads(line)
    if asked["method"] in ANSWERS:
        print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": ANSWERS[asked["method"]]}), flush=True)
"""


@pytest.fixture
def show() -> Program:
    """Return a program that prints how it was called."""
    return Program(
        name="show",
        command=SHOW,
        options=(Option(name="loud", type="boolean", short="l"), Option(name="header", type="array"), Option(name="data", short="d")),
        positional=(
            Parameter(name="url", schema={"type": "string"}),
            Parameter(name="more", schema={"type": "array"}, required=False),
            Parameter(name="last", schema={"type": "string"}, required=False),
        ),
    )


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("tools.show('x')", ["x"]),
        ("tools.show('x', loud=True, header=['a: b', '-c'], data='-d; rm')", ["-l", "--header=a: b", "--header=-c", "-d-d; rm", "x"]),
        ("tools.show('$(id) `id` ; id | id > /tmp/x && \\n*', more=['a b', '2'])", ["$(id) `id` ; id | id > /tmp/x && \n*", "a b", "2"]),
        ("tools.show('x', loud=False)", ["x"]),
    ],
)
async def test_a_program_gets_separate_arguments_and_never_a_shell_line(
    pool: SessionPool, show: Program, call: str, words: list[str]
) -> None:
    async with AgentSession(pool, tools=show.tools()) as agent:
        assert (await agent.run(f"import json; json.loads({call})")).text == repr(words)


@pytest.mark.parametrize(
    ("call", "said"),
    mostly_long(
        [
            ("tools.show('-o/etc/passwd')", "would be read as an option"),
            ("tools.show('x', more=['--all'])", "would be read as an option"),
            ("tools.show('a\\0b')", "null character"),
            ("tools.show('x' * 200_000)", "128 KB"),
            ("tools.show('x', output='y')", "takes no argument output"),
            ("tools.show(5)", "url must be of type string, got 5"),
            ("tools.show('x', header=[{}])", "text or a number"),
            ("tools.show('x', last='y')", "more must be given"),
            ("tools.show('x', more=[], last='y')", "more must be given"),
            ("tools.show('x', data='')", "data must not be empty"),
            ("tools.show('x', data='=')", "data must not be empty"),
        ],
        every=4,
    ),
)
async def test_an_argument_that_a_program_does_not_accept_is_refused(pool: SessionPool, show: Program, call: str, said: str) -> None:
    async with AgentSession(pool, tools=show.tools()) as agent:
        assert said in str((await agent.run(call)).error)


@pytest.mark.parametrize(
    "longest",
    [{"url": "x" * 131_071}, {"url": "x" + "ä" * 65_535}, {"url": "x", "header": ["y" * 131_062]}, {"url": "x", "data": "z" * 131_069}],
)
async def test_an_argument_may_be_as_long_as_the_kernel_takes_it_and_no_longer(show: Program, longest: dict[str, Any]) -> None:
    (tool,) = show.tools()
    assert len(await tool.act(longest)) > 131_000
    name, value = longest.popitem()
    longer = [value[0] + "x"] if isinstance(value, list) else value + "x"
    with pytest.raises(ToolFailedError, match="shorter than 128 KB"):
        await tool.act({**longest, name: longer})


@pytest.mark.long
@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import sys; sys.exit('went wrong')", "ended with status 1: went wrong"),
        ("print('x' * 6_000_000)", "wrote more than 4 MB"),
        ("import time; print('on', flush=True); time.sleep(60)", "did not answer within 0.5 s"),
        ("import os; os.kill(os.getpid(), 9)", "was killed by signal 9"),
    ],
)
async def test_a_failing_program_reports_its_error(pool: SessionPool, code: str, said: str) -> None:
    program = Program(name="run", command=[sys.executable, "-c", code], seconds=0.5 if "sleep" in code else 30)
    async with AgentSession(pool, tools=program.tools()) as agent:
        assert said in str((await agent.run("tools.run()")).error)


async def test_a_missing_program_is_reported(pool: SessionPool, tmp_path: Path) -> None:
    async with AgentSession(pool, tools=Program(name="none", command=[str(tmp_path / "none")]).tools()) as agent:
        assert "could not be started: No such file" in str((await agent.run("tools.none()")).error)


YAML = """
name: show
description: Shows how it was called
command: ["{python}", "-c", "import json, sys; print(json.dumps(sys.argv[1:]))"]
effect: read
tags: [test]
schema:
  options:
    quiet: {{type: boolean, short: q}}
    request: {{type: string, short: X}}
  positional:
    - {{name: url, required: true, description: Where to}}
recipes:
  post: {{description: Posts, preset: {{quiet: true, request: POST}}, params: {{url: {{}}}}}}
"""


async def test_a_recipe_sets_options_that_callers_cannot(pool: SessionPool, tmp_path: Path) -> None:
    (tmp_path / "show.yaml").write_text(YAML.format(python=sys.executable))
    async with AgentSession(pool, tools=read_tools_folder(tmp_path)) as agent:
        assert (await agent.run("import json; json.loads(tools.show.post(url='x'))")).text == "['-q', '-XPOST', 'x']"
        assert (await agent.run("tools.show.list()")).text == "[{'name': 'post', 'description': 'Posts'}]"
        assert "takes no argument request" in str((await agent.run("tools.show.post(url='x', request='PUT')")).error)
        assert "url: Where to" in (await agent.run("help(tools.show)")).stdout


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "must describe a tool"),
        ("[1]", "must describe a tool"),
        ("{", "cannot be read as YAML"),
        ("name: x", "must have the key 'command'"),
        ("{name: x, command: y, comand: z}", "unknown keys: comand"),
        ("{name: x, command: y, effect: harmless}", "one of read, write, irreversible"),
        ("{name: x, type: magic}", "must describe a tool"),
        ("{name: x, type: mcp}", "either a command or a url"),
        ("{name: 1 2, command: y}", "a tool's name must have"),
        ("name: !!python/object/apply:os.system [id]\ncommand: y", "cannot be read as YAML"),
    ],
)
def test_an_error_in_a_description_names_its_place(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "tool.yaml").write_text(text)
    with pytest.raises(ConfigurationError, match=said):
        read_tools_file(tmp_path / "tool.yaml")


class _Api(http.server.BaseHTTPRequestHandler):
    seen: ClassVar[list[tuple[str, str, str, str]]] = []

    def do_GET(self) -> None:
        size = int(self.headers.get("content-length", 0))
        self.seen.append((self.command, self.path, self.rfile.read(size).decode(), self.headers.get("authorization", "")))
        answers = {"/moved": (302, "text/plain", b""), "/bytes": (200, "image/png", b"\x89PNG"), "/no": (404, "text/plain", b"none")}
        status, kind, body = answers.get(self.path, (200, "application/json", json.dumps({"path": self.path}).encode()))
        self.send_response(status)
        if status == 302:
            self.send_header("location", "http://127.0.0.1:1/")
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def api() -> Iterator[str]:
    _Api.seen.clear()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Api)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def described(api: str) -> HttpApi:
    endpoints = [
        Endpoint(name="user", path="/users/{login}", parameters={"page": {"type": "integer"}}, effect="read"),
        Endpoint(name="add", method="POST", path="/users", parameters={"login": {"type": "string", "required": True}}),
        Endpoint(name="repository", path="/{owner}/{name}", parameters={"name": {"type": "string"}}),
        *(Endpoint(name=name, path=f"/{name}") for name in ("bytes", "no", "moved")),
    ]
    return HttpApi("hub", api, endpoints, headers={"authorization": "Bearer secret"})


@pytest.mark.slow
async def test_an_endpoint_is_a_tool_and_its_headers_stay_on_the_host(pool: SessionPool, api: str) -> None:
    async with AgentSession(pool, tools=[described(api)]) as agent:
        assert (await agent.run("tools.hub.user(login='a/../b?c=d', page=2)")).text == "{'path': '/users/a%2F..%2Fb%3Fc%3Dd?page=2'}"
        assert (await agent.run("tools.hub.add(login='ada')")).success
        assert (await agent.run("tools.hub.bytes()")).text == "b'\\x89PNG'"
        refused = {"no()": "answered 404: none", "moved()": "answered 302", "user(login='..')": "only dots", "user()": "needs login"}
        for call, said in refused.items():
            assert said in str((await agent.run(f"tools.hub.{call}")).error)
        assert "secret" not in str((await agent.run("str(tools.list()) + tools.hub.user.__doc__")).text)
    assert _Api.seen[1] == ("POST", "/users", '{"login":"ada"}', "Bearer secret")


async def test_an_api_has_the_tags_and_the_time_limit_of_its_file_and_an_endpoint_its_own(tmp_path: Path) -> None:
    endpoints = "[{name: a}, {name: b, tags: [slow], seconds: 90}]"
    (tmp_path / "hub.yaml").write_text(
        f"{{name: hub, type: http, base_url: 'http://127.0.0.1', tags: [web], timeout: 5, endpoints: {endpoints}}}"
    )
    (api,) = read_tools_folder(tmp_path)
    assert isinstance(api, HttpApi)
    assert [(one.tags, one.seconds) for one in await api.open()] == [(("web",), 5), (("slow",), 90)]
    await api.close()


async def test_an_mcp_server_has_the_tags_and_the_time_limit_of_its_file(tmp_path: Path) -> None:
    (tmp_path / "server.py").write_text(SILENT)
    command = f"command: {sys.executable}, args: [{tmp_path}/server.py]"
    (tmp_path / "silent.yaml").write_text(f"{{name: silent, type: mcp, {command}, tags: [quiet], timeout: 0.01}}")
    (server,) = read_tools_folder(tmp_path)
    assert isinstance(server, McpServer)
    toolbox = ToolBox(await server.open(), Approval(None))
    assert [one["tags"] for one in toolbox.list()] == [["quiet"]]
    with pytest.raises(ToolFailedError, match=r"did not answer within 0\.01 s"):
        await toolbox.call("silent.wait", {})
    await server.close()


@pytest.mark.parametrize("given", [{"owner": "ada"}, {"name": "engine"}])
async def test_every_parameter_in_a_path_is_required(given: dict[str, str]) -> None:
    api = described("http://127.0.0.1")
    (tool,) = [one for one in await api.open() if one.name == "hub.repository"]
    await api.close()
    with pytest.raises(TypeError, match="repository needs"):
        tool.check(given)
    tool.check({"owner": "ada", "name": "engine"})


@pytest.mark.long
@pytest.mark.slow
async def test_an_mcp_server_that_is_a_program_gives_its_tools(pool: SessionPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mcp, "_OPENING_SECONDS", 300.0)
    (tmp_path / "server.py").write_text(MCP)
    described = f"{{name: numbers, type: mcp, transport: stdio, command: {sys.executable}, args: [{tmp_path}/server.py]}}"
    (tmp_path / "numbers.yaml").write_text(described)
    async with AgentSession(pool, tools=read_tools_file(tmp_path / "numbers.yaml")) as agent:
        assert (await agent.run("tools.numbers.add(2, b=40)")).value == 42
        assert "no such number" in str((await agent.run("tools.numbers.fail()")).error)
        assert "irreversible" in str((await agent.run("tools.numbers.wipe()")).error)
        assert [one["effect"] for one in await agent.list_tools()] == ["read", "irreversible", "write"]


@pytest.mark.long
async def test_tools_of_an_mcp_server_are_listed_and_found_before_the_start(pool: SessionPool, tmp_path: Path) -> None:
    (tmp_path / "server.py").write_text(MCP)
    agent = AgentSession(pool, tools=[McpServer("numbers", command=[sys.executable, f"{tmp_path}/server.py"])])
    before = await agent.list_tools()
    assert [one["name"] for one in await agent.search_tools("add two numbers", limit=1)] == ["numbers.add"]
    async with agent:
        assert await agent.list_tools() == before
        assert (await agent.run("tools.numbers.add(2, b=40)")).value == 42
    assert await agent.list_tools() == before


@pytest.mark.long
@pytest.mark.slow
async def test_an_mcp_server_at_a_url_gives_its_tools(pool: SessionPool, tmp_path: Path) -> None:
    (tmp_path / "server.py").write_text(MCP)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with subprocess.Popen([sys.executable, tmp_path / "server.py", "streamable-http", str(port)], stderr=subprocess.DEVNULL) as server:
        try:
            _wait_for(port)
            async with AgentSession(pool, tools=[McpServer("numbers", url=f"http://127.0.0.1:{port}/mcp")]) as agent:
                assert (await agent.run("tools.numbers.add(a=41)")).value == 42
        finally:
            server.kill()


@pytest.mark.slow
async def test_an_mcp_server_that_does_not_start_is_reported(pool: SessionPool) -> None:
    with pytest.raises(ConfigurationError, match="numbers could not be opened"):
        await AgentSession(pool, tools=[McpServer("numbers", command=[sys.executable, "-c", "raise SystemExit"])]).start()


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
