"""Test every tool over both transports: its results, and its errors."""

import asyncio
import base64
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from functools import partial
from typing import Any

import jsonschema
import pytest
from mcp import ClientSession
from mcp.types import CallToolResult
from pydantic import AnyUrl

from aca_sessions import Limits, Policy, Settings, open_pool
from aca_sessions.errors import ExecutionError, InvalidArgumentError, PoolTimeoutError
from aca_sessions.mcp import resources
from aca_sessions.mcp.clients import Client, Options, SharedState
from aca_sessions.mcp.server import _tools
from aca_sessions.mcp.session_tools import check_kernel_responsiveness, get_kernel_health, restart_kernel
from aca_sessions.mcp.state_tools import code_completion
from aca_sessions.mcp.tool import Call
from aca_sessions.models import Access

from .clients import ProtocolError, Running, answer_of, http_client_session, http_server, run, start, stdio_client_session, text_of

pytestmark = pytest.mark.slow

Connected = Callable[[], AbstractAsyncContextManager[ClientSession]]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with http_server("--tools", "all") as running:
        yield running


@pytest.fixture(params=[pytest.param("stdio", marks=pytest.mark.long), "http"])
def connected(request: pytest.FixtureRequest) -> Connected:
    """Connect to a server with all tools."""
    if request.param == "stdio":
        return partial(stdio_client_session, "--tools", "all")
    return partial(http_client_session, request.getfixturevalue("server"))


async def ask(client: ClientSession, name: str, /, **arguments: Any) -> dict[str, Any]:
    result = await client.call_tool(name, arguments)
    assert not result.isError, text_of(result)
    return result.structuredContent


async def read(client: ClientSession, path: str, **arguments: Any) -> list[str]:
    result = await client.call_tool("read_file", {"path": path, **arguments})
    assert not result.isError, text_of(result)
    return [block.text for block in result.content]


async def refused(client: ClientSession, name: str, /, **arguments: Any) -> str:
    result: CallToolResult = await client.call_tool(name, arguments)
    assert result.isError, result
    return text_of(result)


async def test_sessions_are_created_selected_and_deleted(connected: Connected) -> None:
    async with connected() as client:
        made = await ask(client, "create_session", session_id="work", description="for work")
        assert (made["status"], made["description"], made["active_session"]) == ("created", "for work", "default")
        assert (await ask(client, "create_session"))["session_id"] == "session_1"
        assert await ask(client, "switch_session", session_id="work") == {
            "previous_session": "default",
            "current_session": "work",
            "status": "switched",
        }
        await run(client, "x = 1")
        listed = await ask(client, "list_sessions")
        assert (listed["active_session"], listed["total_sessions"], listed["max_sessions"]) == ("work", 3, 20)
        assert listed["sessions"]["work"]["execution_count"] == 1
        await run(client, "1", session_id="default")
        listed = (await ask(client, "list_sessions"))["sessions"]
        assert {name: (one["active"], one["started"]) for name, one in listed.items()} == {
            "default": (False, True), "work": (True, True), "session_1": (False, False),
        }  # fmt: skip
        ended = await ask(client, "delete_session", session_id="work")
        assert (ended["was_active"], ended["new_active_session"]) == (True, "default")
        assert "no session of that name" in text_of(await run(client, "x", session_id="work"))


async def test_an_invalid_session_is_refused_and_the_rest_continues(connected: Connected) -> None:
    async with connected() as client:
        await ask(client, "create_session", session_id="work")
        assert "choose another" in await refused(client, "create_session", session_id="work")
        assert "choose another" in await refused(client, "create_session", session_id="default")
        assert "use restart_kernel" in await refused(client, "delete_session", session_id="default")
        assert "no session of that name" in await refused(client, "delete_session", session_id="other")
        assert "no session of that name" in await refused(client, "switch_session", session_id="other")
        for name in ("", "../x", "a/b", "a b", "-x", "x" * 65, "é", "a\nb", "mcp-1;"):
            assert "1 to 64 letters" in await refused(client, "create_session", session_id=name)
        for _ in range(18):
            await ask(client, "create_session")
        assert "at most" in await refused(client, "create_session")
        assert text_of(await run(client, "6 * 7")) == "42"


CASES: list[tuple[str, dict[str, Any], str]] = [
    ("run_python_code", {}, "code: Field required"),
    ("run_python_code", {"code": 5}, "code: Input should be a valid string"),
    ("run_python_code", {"code": None}, "code: Input should be a valid string"),
    ("run_python_code", {"code": "1", "session": "x"}, "session: Extra inputs are not permitted"),
    ("run_python_code", {"code": "1", "timeout": -1}, "timeout: Input should be greater than 0"),
    ("run_python_code", {"code": "1", "timeout": "soon"}, "timeout: Input should be a valid number"),
    ("run_python_code", {"code": "secret" * 200_000}, "code: String should have at most 1000000 characters"),
    ("run_python_code", {"code": "1", "session_id": {"a": 1}}, "session_id: Input should be a valid string"),
    ("run_python_code", {"code": "1", "session_id": "x" * 10_000}, "session_id: String should have at most 256 characters"),
    ("install_dependencies", {"packages": []}, "packages: Value should have at least 1 item"),
    ("install_dependencies", {"packages": ["--index-url=http://evil"]}, "without options"),
    ("install_dependencies", {"packages": [1]}, "packages.0: Input should be a valid string"),
    ("save_script", {"name": "../x", "content": "1"}, "name no folder"),
    ("save_script", {"name": ".hidden", "content": "1"}, "name no folder"),
    ("run_script", {"path": "../../etc/passwd"}, "and stay in it"),
    ("run_script", {"path": "nothing"}, "script nothing was not found"),
    ("check_kernel_responsiveness", {"timeout": 0}, "timeout: Input should be greater than 0"),
    ("no_such_tool", {}, "unknown tool 'no_such_tool'"),
]


async def test_an_invalid_argument_is_reported_without_repeating_it(connected: Connected) -> None:
    async with connected() as client:
        for name, arguments, told in CASES:
            message = await refused(client, name, **arguments)
            assert told in message
            assert "secret" not in message
        assert text_of(await run(client, "6 * 7")) == "42"


REQUIRED: dict[str, dict[str, Any]] = {
    "save_script": {"name": "report", "content": "print(1)"},
    "run_script": {"path": "report"},
    "run_python_code": {"code": "x = 1"},
    "switch_session": {"session_id": "session_1"},
    "delete_session": {"session_id": "session_1"},
    "install_dependencies": {"packages": ["pip"]},
    "write_file": {"path": "a.txt", "content": "a"},
    "read_file": {"path": "a.txt"},
    "delete_file": {"path": "a.txt"},
    "inspect_object": {"code": "x", "cursor_pos": 1},
    "code_completion": {"code": "x", "cursor_pos": 1},
}


async def test_null_stands_for_each_argument_that_may_be_left_out(connected: Connected) -> None:
    async with connected() as client:
        tools = {tool.name: tool.inputSchema for tool in (await client.list_tools()).tools}
        await ask(client, "create_session", session_id="session_1")
        await run(client, "1")
        await ask(client, "checkpoint")
        for name in [*REQUIRED, *(name for name in tools if name not in REQUIRED)]:
            optional = dict.fromkeys(tools[name]["properties"].keys() - set(tools[name].get("required", [])))
            jsonschema.validate(optional | REQUIRED.get(name, {}), tools[name])
            result = await client.call_tool(name, optional | REQUIRED.get(name, {}))
            assert not result.isError, (name, text_of(result))


async def test_an_empty_cell_succeeds(connected: Connected) -> None:
    async with connected() as client:
        for code in ("", " \n", "# nothing"):
            answer = await run(client, code)
            assert (answer_of(answer)["success"], text_of(answer)) == (True, "(no output)")


async def test_scripts_are_saved_and_run_with_arguments(connected: Connected) -> None:
    async with connected() as client:
        saved = await ask(
            client, "save_script", name="report", content="import sys\nprint(sys.argv[1:])\nopen('made.txt', 'w')\nsys.exit(3)"
        )
        assert saved["script"] == "scripts/report.py"
        for path in ("report", "report.py", "scripts/report", "scripts/report.py", "/mnt/data/scripts/report.py"):
            result = await client.call_tool("run_script", {"path": path, "args": ["a b", "$HOME; ls"]})
            ran = answer_of(result)
            printed, *_, code = text_of(result).splitlines()
            assert (printed, code) == ("['a b', '$HOME; ls']", "[exit code] 3")
            assert (ran["returncode"], ran["success"]) == (3, False)
        assert "and stay in it" in await refused(client, "run_script", path="/etc/passwd")
        assert text_of(await client.call_tool("run_script", {"path": "report", "args": '["x"]'})).startswith("['x']\n")


async def test_a_saved_script_is_imported_and_run_by_its_name_in_each_session(connected: Connected) -> None:
    async with connected() as client:
        saved = await ask(client, "save_script", name="rates", content="rate = 42\nprint(rate)")
        assert (saved["shared"], saved["how_to_import"]) == (True, "import rates")
        assert text_of(await run(client, f"{saved['how_to_import']}; rates.rate")) == "[stdout]\n42\n[value]\n42"
        await ask(client, "create_session", session_id="other")
        await ask(client, "create_session", session_id="third")
        assert text_of(await client.call_tool("run_script", {"path": "rates", "session_id": "third"})) == "42"
        assert text_of(await run(client, "import rates; rates.rate + 1", session_id="other")).endswith("43")
        await asyncio.gather(*(ask(client, "save_script", name="rates", content=f"rate = {n}", session_id="other") for n in (1, 2)))
        for session in ("default", "other"):  # imported modules are reloaded
            assert text_of(await run(client, "rates.rate in (1, 2)", session_id=session)) == "True"
        await ask(client, "restart_kernel", session_id="other")
        assert text_of(await run(client, "import rates; rates.rate in (1, 2)", session_id="other")) == "True"
        await ask(client, "delete_file", path="scripts/rates.py", session_id="other")
        await run(client, "1")
        assert "script rates was not found" in await refused(client, "run_script", path="rates")
        assert (await ask(client, "get_workspace_info"))["shared"] == ["outputs", "scripts"]


async def test_the_name_of_a_script_is_a_file_name_that_cannot_hide_a_module_of_python(connected: Connected) -> None:
    async with connected() as client:
        for name in ("\x1b[31mred", "a\nb", "a/b", "a\\b", "..", "", "é", "\u202eyp.x", " a"):
            message = await refused(client, "save_script", name=name, content="1")
            assert message.isprintable()
        assert "at most 100 characters" in await refused(client, "save_script", name="x" * 100_000, content="1")
        imports = [(await ask(client, "save_script", name=name, content="x = 1")).get("how_to_import") for name in ("json", "class", "a-b")]
        assert imports == ["from scripts import json", None, None]
        assert text_of(await run(client, "import json; json.dumps(1)")) == "'1'"
        assert text_of(await run(client, "from scripts import json as own; own.x")) == "1"


@pytest.mark.long
async def test_a_script_that_is_interrupted_keeps_its_output_and_has_no_return_code(connected: Connected) -> None:
    code = "import time\nprint('[exit code] \"1\"')\nopen('made.txt', 'w').close()\ntime.sleep(10_000)"
    async with connected() as client:
        await ask(client, "save_script", name="slow", content=code)
        result = await client.call_tool("run_script", {"path": "slow", "timeout": 20})
    ran = answer_of(result)
    assert (ran["success"], ran["returncode"], ran["error"]) == (False, None, "TimeoutError")
    text, link = result.content
    printed, error, *_ = text.text.splitlines()
    assert printed == '(printed) [exit code] "1"'
    assert error.startswith("TimeoutError: the cell ran longer than 20 s and was interrupted")
    assert (link.name, ran["new_files"]) == ("made.txt", ["made.txt"])


async def test_files_are_written_read_listed_and_deleted(connected: Connected) -> None:
    async with connected() as client:
        await ask(client, "write_file", path="folder/text.txt", content="grüße")
        await ask(client, "write_file", path="raw.bin", content=base64.b64encode(b"\xff\x00").decode(), binary_base64=True)
        assert await read(client, "folder/text.txt") == ["grüße"]
        assert await read(client, "folder/text.txt", max_bytes=3) == ["gr", "[file] bytes 0 to 2 of 7, read on with offset=2"]
        assert await read(client, "folder/text.txt", offset=2) == ["üße", "[file] bytes 2 to 7 of 7"]
        assert (await read(client, "folder/text.txt", offset=2, max_bytes=1))[0] == base64.b64encode("ü".encode()[:1]).decode()
        await ask(client, "write_file", path="long.txt", content="[file] \x1b[31m" + "x" * 20_000)
        text, note = await read(client, "long.txt")
        assert (len(text), "\x1b" in text, note) == (9_995, False, "[file] bytes 0 to 10000 of 20012, read on with offset=10000")
        await ask(client, "delete_file", path="long.txt")
        text, note = await read(client, "raw.bin")
        assert (base64.b64decode(text), note) == (b"\xff\x00", "[file] the text before this is base64, because the file is not UTF-8")
        assert await refused(client, "read_file", path="folder") == "folder is a folder: list its files with list_files"
        assert (await refused(client, "read_file", path="folder/none")).startswith("'folder/none': the session has no file")
        for missing in ("none", "folder/text.txt"):
            assert (await refused(client, "list_files", path=missing)).startswith(f"'{missing}': the session has no folder at this path")
        flat = {one["path"] for one in (await ask(client, "list_files"))["files"]}
        deep = {one["path"] for one in (await ask(client, "list_files", recursive=True))["files"]}
        assert deep - flat == {"folder/text.txt"}
        await ask(client, "delete_file", path="raw.bin")
        info = await ask(client, "get_workspace_info")
        assert (info["workspace"], info["files"], info["shared"]) == ("/mnt/data", 1, ["outputs"])


async def test_a_picture_is_read_as_an_image_and_a_file_without_an_ending_by_its_content(connected: Connected) -> None:
    picture = b"\x89PNG\r\n\x1a\n" + bytes(100)
    contents = {"plot": picture, "large.png": picture + bytes(1 << 20), "fake.png": b"\x00\xff", "README": b"text"}
    async with connected() as client:
        for path, data in contents.items():
            await ask(client, "write_file", path=path, content=base64.b64encode(data).decode(), binary_base64=True)
        text, image = (result := await client.call_tool("read_file", {"path": "plot"})).content
        assert (text.text, answer_of(result)["kind"]) == ("plot: image/png, 108 bytes", "image")
        assert (base64.b64decode(image.data), image.mimeType) == (picture, "image/png")
        assert "a result has room for 0.5 MB: save a smaller copy" in await refused(client, "read_file", path="large.png")
        assert base64.b64decode((await read(client, "fake.png"))[0]) == b"\x00\xff"
        resources = [await client.read_resource(AnyUrl(f"session://default/files/{path}")) for path in ("plot", "README")]
        assert [one.contents[0].mimeType for one in resources] == ["application/octet-stream", "text/plain"]


async def test_paths_that_lead_elsewhere_are_refused(connected: Connected) -> None:
    async with connected() as client:
        await run(client, "import os; os.symlink('/etc', 'way'); os.symlink('/etc/passwd', 'file')")
        for path in ("../x", "/etc/passwd", "a/../../x", "a//b", "", ".", "..", "/mnt/data/../x", "a\x00b", 'a"b', "a\\b"):
            assert await refused(client, "read_file", path=path)
            assert await refused(client, "write_file", path=path, content="x")
            assert await refused(client, "delete_file", path=path)
        assert (await refused(client, "write_file", path="x" * 300, content="x")).startswith("a file name must be one path component")
        for path in ("way/passwd", "file"):
            assert await refused(client, "read_file", path=path)
        assert "must be base64" in await refused(client, "write_file", path="x", content="!", binary_base64=True)
        assert await refused(client, "list_files", path="../..")


async def test_names_are_listed_inspected_and_completed(connected: Connected) -> None:
    async with connected() as client:
        await run(client, "value = [1, 2]\ndef double(x):\n    'Twice x.'\n    return 2 * x")
        (variable, _) = sorted((await ask(client, "list_variables"))["variables"], key=lambda one: one["name"] != "value")
        assert (variable["type"], variable["shape"], variable["text"]) == ("list", [2], "[1, 2]")
        assert "Twice x." in (await ask(client, "inspect_object", code="double(1)", cursor_pos=3))["text"]
        assert "return 2 * x" in (await ask(client, "inspect_object", code="double(1)", cursor_pos=3, detail_level=1))["text"]
        assert (await ask(client, "inspect_object", code="nothing", cursor_pos=10**9))["found"] is False
        completed = await ask(client, "code_completion", code="value.app", cursor_pos=9)
        assert (completed["matches"], completed["cursor_start"], completed["cursor_end"]) == (["append"], 6, 9)


async def test_a_session_is_rolled_back_branched_and_reset(connected: Connected) -> None:
    async with connected() as client:
        await run(client, "x = 1")
        await ask(client, "checkpoint", name="before")
        await run(client, "x = 2")
        await ask(client, "branch", new_session_id="other")
        assert (await ask(client, "rollback", checkpoint="before"))["name"] == "before"
        assert text_of(await run(client, "x")) == "1"
        assert text_of(await run(client, "x", session_id="other")) == "2"
        kept = await ask(client, "restart_kernel", preserve_state=True)
        assert (kept["preserved"], kept["preserved_vars"]) == (True, ["x"])
        assert text_of(await run(client, "x")) == "1"
        await ask(client, "restart_kernel")
        assert text_of(await run(client, "'x' in globals()")) == "False"
        assert (await ask(client, "get_kernel_health"))["restart_causes"] == ["rolled back", "asked for, variables kept", "asked for"]
        assert "does not exist" in await refused(client, "rollback", checkpoint="nothing")


async def test_a_restart_that_preserves_state_removes_no_checkpoint() -> None:
    async with open_pool(policy=Policy(preload=(), spares=0, limits=Limits(checkpoints=1))) as pool:
        client = Client(SharedState(pool, Options.of(Settings().Mcp)))
        async with client.lease(client.find(None)) as session:
            await session.run("x = 1; import os; first = os.getpid()")
            kept = await session.checkpoint()
        answer = await restart_kernel(Call(client, context=None), preserve_state=True)
        assert answer.preserved_vars == ["first", "x"]
        async with client.lease(client.find(None)) as session:
            after = await session.run("x, os.getpid() == first")
            assert (after.text, str(after.state)) == ("(1, False)", "kept")
            assert [one.id for one in await session.checkpoints()] == [kept.id]


@pytest.mark.long
async def test_a_session_whose_outputs_cannot_be_saved_is_not_restarted(connected: Connected) -> None:
    async with connected() as client:
        await run(client, "import threading, time; x = 1; threading.Thread(target=time.sleep, args=(60,), daemon=True).start()")
        assert "cannot be preserved: threads are running" in await refused(client, "restart_kernel", preserve_state=True)
        assert text_of(await run(client, "x")) == "1"


async def test_health_reports_the_last_execution(connected: Connected) -> None:
    async with connected() as client:
        await run(client, "1 / 0")
        health = await ask(client, "get_kernel_health")
        assert (health["status"], health["execution_count"], health["last_error"]) == ("healthy", 1, "ZeroDivisionError")
        assert health["memory_usage"] > 1 << 20
        assert health["kernel_process"]["memory_mb"] > 1
        assert health["uptime"] > 0
        assert health["cpu_time"] > 0
        assert health["isolation"] == "full"
        answer = await ask(client, "check_kernel_responsiveness", timeout=60)
        assert (answer["responsive"], answer["busy"]) == (True, False)
        assert answer["response_time"] > 0


async def test_a_running_cell_is_interrupted_and_hides_only_what_its_interpreter_knows(connected: Connected) -> None:
    async with connected() as client:
        await run(client, "import time")
        before = await ask(client, "get_kernel_health")
        assert (await ask(client, "interrupt"))["status"] == "nothing was running"
        await start(client, "while True: time.sleep(0.01)")
        health = await ask(client, "get_kernel_health")
        assert (health["status"], health["responsive"], health["cpu_time"]) == ("busy", False, None)
        assert health["memory_usage"] > 1 << 20
        assert health["uptime"] > before["uptime"]
        assert (await ask(client, "interrupt"))["status"] == "interrupted"
        assert text_of(await run(client, "6 * 7")) == "42"


async def test_an_interrupt_leaves_a_completion_alone_and_a_check_does_not_wait_for_it(connected: Connected) -> None:
    code = """
        import os, time
        class Slow:
            def __dir__(self):
                open("begun", "w").close()
                while not os.path.exists("go"):
                    time.sleep(0.01)
                return ["found"]
        slow = Slow()
    """
    async with connected() as client:
        await run(client, code)
        looking = asyncio.create_task(ask(client, "code_completion", code="slow.", cursor_pos=5))
        while "begun" not in [file["path"] for file in (await ask(client, "list_files"))["files"]]:
            await asyncio.sleep(0.05)
        assert (await ask(client, "interrupt"))["status"] == "nothing was running"
        assert (await ask(client, "check_kernel_responsiveness", timeout=0.1))["responsive"] is False
        assert not looking.done()
        await ask(client, "write_file", path="go", content="")
        assert (await looking)["matches"] == ["found"]


async def test_a_lookup_that_takes_too_long_fails_and_keeps_the_variables() -> None:
    async with open_pool(policy=Policy(preload=(), spares=0)) as pool:
        client = Client(SharedState(pool, replace(Options.of(Settings().Mcp), lookup_seconds=0.5)))
        client.find(None).is_started = True
        async with client.lease(client.find(None)) as session:
            await session.run("import time\nclass Slow:\n    def __dir__(self): time.sleep(10_000)\nslow, x = Slow(), 42")
            with pytest.raises(ExecutionError, match=r"nothing was found within 0.5 s, .* Variables are kept"):
                await code_completion(Call(client, context=None), "slow.", 5)
            result = await session.run("x")
            assert (result.value, str(result.state)) == (42, "kept")


@pytest.mark.long
async def test_an_expired_session_is_reported_to_calls_that_read() -> None:
    environment = {"ACASessions__SessionPool__SessionTimeoutMinutes": "0.01"}
    async with stdio_client_session("--tools", "all", environment=environment) as client:
        await ask(client, "save_script", name="report", content="print(1)")
        while (await ask(client, "list_sessions"))["sessions"]["default"]["health"] != "expired":
            await asyncio.sleep(0.1)
        for name, arguments in {
            "list_variables": {},
            "code_completion": {"code": "x", "cursor_pos": 1},
            "read_file": {"path": "scripts/report.py"},
            "list_files": {},
        }.items():
            assert (await refused(client, name, **arguments)).startswith("the session has expired, because it was not used")
        assert text_of(await client.call_tool("run_script", {"path": "report"})).startswith("1")
        assert text_of(await run(client, "6 * 7")) == "42"


async def test_a_session_that_a_full_pool_has_no_place_for_is_not_responsive_after_the_timeout() -> None:
    async with open_pool(Settings(MaxConcurrentSessions=1), policy=Policy(preload=(), spares=0)) as pool, pool.session("busy"):
        client = Client(SharedState(pool, Options.of(Settings().Mcp)))
        async with asyncio.timeout(50):  # the pool itself lets callers wait for a minute
            answer = await check_kernel_responsiveness(Call(client, context=None), timeout=0.05)
    assert (answer.responsive, answer.busy) == (False, False)


async def test_a_tool_that_only_reads_starts_no_session() -> None:
    reading = {name: tool for name, tool in _tools("all", Access()).items() if tool.listed.annotations.readOnlyHint}
    async with open_pool(policy=Policy(preload=(), spares=0)) as pool:
        client = Client(SharedState(pool, Options.of(Settings().Mcp)))
        call = Call(client, context=None)
        results = {name: await tool(call, REQUIRED.get(name, {})) for name, tool in reading.items()}
        refused = {name for name, result in results.items() if result.isError}
        assert refused == {"read_file", "inspect_object", "code_completion"}
        assert all("run code in it, or write a file, to start it" in text_of(results[name]) for name in refused)
        with pytest.raises(ProtocolError, match="to start it"):
            await resources.read(client, AnyUrl("session://default/files/a.txt"))
        assert await pool._interpreter.list_sessions() == []
        assert results["get_kernel_health"].structuredContent["started"] is False
        async with client.lease(named := client.find(None)) as session:
            await session.upload_file("a.txt", "a")
        named.is_started = True
        await pool._interpreter.delete_session(named.id)  # as a server does that has been started again
        assert (await get_kernel_health(call)).memory_usage is None
        assert await pool._interpreter.list_sessions() == []


async def test_a_session_that_dies_during_a_call_is_reported_once(connected: Connected) -> None:
    async with connected() as client:
        await run(client, "import os, time; x = 1")
        waiting = asyncio.create_task(run(client, "time.sleep(10_000)"))
        while (await ask(client, "get_kernel_health"))["status"] != "busy":
            await asyncio.sleep(0.05)
        first, second = await asyncio.gather(ask(client, "restart_kernel"), ask(client, "restart_kernel"))
        assert first["restarted"]
        assert second["restarted"]
        assert "[state] lost" in text_of(await waiting)
        assert text_of(await run(client, "'x' in globals()")) == "False"
        assert (await ask(client, "get_kernel_health"))["status"] == "healthy"


async def test_the_server_answers(connected: Connected) -> None:
    async with connected() as client:
        assert await ask(client, "ping") == {"session_id": "default", "status": "ok"}


async def test_a_branch_has_no_name_before_it_exists() -> None:
    async with open_pool(policy=Policy(preload=(), spares=0)) as pool:
        client = Client(SharedState(pool, Options.of(Settings().Mcp)))
        origin = client.find(None)
        branching = asyncio.create_task(client.branch(origin, "other"))
        await asyncio.sleep(0)
        with pytest.raises(InvalidArgumentError, match="no session of that name"):
            client.find("other")
        await client.create("other")  # another call takes the name
        with pytest.raises(InvalidArgumentError, match="choose another"):
            await branching
        assert [info.session_id for info in await pool._interpreter.list_sessions()] == [origin.id]
        assert [info.session_id for info in pool.active()] == [origin.id]


@pytest.mark.long
async def test_a_branch_that_exceeds_the_limit_of_the_pool_leaves_nothing() -> None:
    """Let another client take the only place between the branch and its first lease."""
    settings = Settings(MaxConcurrentSessions=1, SessionPool={"AcquireTimeoutSeconds": 3})
    async with open_pool(settings, policy=Policy(preload=(), spares=0)) as pool:
        client = Client(SharedState(pool, Options.of(settings.Mcp)))
        named = client.find(None)
        held = await pool.get_or_create(named.id)
        await held.run("x = 1")
        branching = asyncio.create_task(client.branch(named, "other"))  # into a session that is leased already
        await asyncio.sleep(0)
        waiting = asyncio.create_task(pool.get_or_create("busy"))
        await asyncio.sleep(0)
        await pool.release(named.id)
        await waiting
        with pytest.raises(PoolTimeoutError):
            await branching
        assert set(client.sessions()) == {"default"}
        assert [info.session_id for info in await pool._interpreter.list_sessions()] == [named.id]
