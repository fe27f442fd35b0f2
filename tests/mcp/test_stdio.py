"""Test the server as a process of its own, with the protocol's own client."""

import base64
import os
import subprocess
from typing import Any

import pytest
from mcp import types
from pydantic import AnyUrl

from ..conftest import COMMAND, mostly_long
from .clients import ProtocolError, answer_of, cancel, run, start, stdio_client_session, text_of

pytestmark = pytest.mark.slow

PAGE = {
    "create_session", "switch_session", "list_sessions", "delete_session", "run_python_code", "install_dependencies", "save_script",
    "run_script", "restart_kernel", "get_kernel_health", "check_kernel_responsiveness",
}  # fmt: skip
MORE = {
    "list_files", "read_file", "write_file", "delete_file", "list_variables", "inspect_object", "code_completion",
    "interrupt", "get_workspace_info", "ping", "checkpoint", "rollback", "branch",
}  # fmt: skip


async def test_a_session_keeps_its_variables_between_calls() -> None:
    async with stdio_client_session() as client:
        await run(client, "x = 20")
        result = await run(client, "x + 22")
    assert text_of(result) == "42"
    assert answer_of(result).items() >= {"session_id": "default", "success": True, "state": "kept"}.items()


@pytest.mark.parametrize(("kind", "names"), mostly_long([("session", PAGE), ("all", PAGE | MORE)], every=2))
async def test_every_tool_is_described(kind: str, names: set[str]) -> None:
    async with stdio_client_session("--tools", kind) as client:
        tools = (await client.list_tools()).tools
    assert {tool.name for tool in tools} == names
    for tool in tools:
        assert len(tool.description) > 20
        assert tool.inputSchema["additionalProperties"] is False
        shows = tool.name in ("run_python_code", "run_script", "install_dependencies", "read_file")
        assert tool.outputSchema is None if shows else tool.outputSchema["type"] == "object"
        assert tool.annotations.title == tool.title
    takes_a_session = {tool.name for tool in tools if "session_id" in tool.inputSchema["properties"]}
    assert names - takes_a_session <= {"list_sessions", "ping"}


@pytest.mark.long
async def test_a_failed_cell_is_a_result_that_shows_the_error() -> None:
    async with stdio_client_session() as client:
        result = await run(client, "print('before')\n1 / 0")
    assert not result.isError
    assert answer_of(result)["success"] is False
    assert answer_of(result)["error"] == "ZeroDivisionError"
    assert "before" in text_of(result)


@pytest.mark.long
async def test_an_image_is_shown_and_other_displays_are_resources() -> None:
    code = """
        from IPython.display import HTML, display
        import matplotlib.pyplot as plt
        display(HTML("<b>bold</b>"))
        plt.title("Sales")
        plt.show()
    """
    async with stdio_client_session() as client:
        result = await run(client, code)
        (image,) = [block for block in result.content if block.type == "image"]
        (link,) = [block for block in result.content if block.type == "resource_link"]
        html = await client.read_resource(link.uri)
        (drawn,) = answer_of(result)["images"]
        stored = await client.read_resource(AnyUrl(drawn["uri"]))
    assert base64.b64decode(image.data).startswith(b"\x89PNG")
    assert (html.contents[0].mimeType, html.contents[0].text) == ("text/html", "<b>bold</b>")
    assert (link.mimeType, link.size) == ("text/html", 11)
    assert answer_of(result)["outputs"] == [str(link.uri)]
    assert (drawn["sent"], drawn["title"]) == (True, "Figure Sales")
    assert (stored.contents[0].mimeType, stored.contents[0].blob) == ("image/png", image.data)


NOISE = """
    import base64, os, struct, zlib
    from IPython.display import Image, display

    def noise(size):
        def chunk(kind, data):
            return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        head = chunk(b"IHDR", struct.pack(">IIBBBBB", size, size, 8, 0, 0, 0, 0))
        rows = chunk(b"IDAT", zlib.compress(b"".join(b"\\0" + os.urandom(size) for _ in range(size))))
        data = b"\\x89PNG\\r\\n\\x1a\\n" + head + rows + chunk(b"IEND", b"")
        return {"image/png": base64.b64encode(data).decode(), "text/plain": f"Figure {size}"}

    for size in (1000, 500, 600, 300):
        display(noise(size), raw=True)
"""


@pytest.mark.long
async def test_images_that_exceed_the_limit_of_a_result_are_linked_and_named() -> None:
    async with stdio_client_session() as client:
        result = await run(client, NOISE)
        images = answer_of(result)["images"]
        (large, _) = links = [block for block in result.content if block.type == "resource_link"]
        stored = (await client.read_resource(large.uri)).contents[0]
    assert [(one["title"], one["sent"]) for one in images] == [(f"Figure {n}", n in (500, 300)) for n in (1000, 500, 600, 300)]
    assert [str(link.uri) for link in links] == [one["uri"] for one in images if not one["sent"]]
    assert (large.name, large.mimeType, large.size) == ("display 1: Figure 1000", "image/png", len(base64.b64decode(stored.blob)))
    assert sum(len(block.data) for block in result.content if block.type == "image") < 700_000
    seen, left = text_of(result).splitlines()
    assert seen == "[images] 2 images, not in this text: Figure 500; Figure 300"
    assert left == (
        "[images] too large to send, because a result has room for 0.5 MB of images: Figure 1000 (1.0 MB); Figure 600 (0.4 MB). "
        "Lower the resolution, for example with dpi=100"
    )


@pytest.mark.long
async def test_images_that_a_session_does_not_keep_are_named_with_the_limit() -> None:
    code = "for n in (1, 2): display({'image/png': 'A' * (9 << 20), 'text/plain': f'Figure {n}'}, raw=True)"
    limit = "a session keeps its last 50 displays, of at most 16 Mi characters in all"
    async with stdio_client_session() as client:
        result = await run(client, code)
        with pytest.raises(ProtocolError, match=f"the display 1 is not kept any more: {limit}. Run its code again"):
            await client.read_resource(AnyUrl("session://default/displays/1"))
    assert text_of(result).splitlines()[-1] == f"[images] not kept either, because {limit}: Figure 1 (7.1 MB)"
    assert [one.get("uri") for one in answer_of(result)["images"]] == [None, "session://default/displays/2"]


@pytest.mark.long
def test_lines_that_are_no_messages_before_the_end_of_the_input_end_the_server_quietly() -> None:
    ended = subprocess.run([*COMMAND, "mcp"], input=b"garbage\nmore\n", capture_output=True, timeout=300, check=True)
    assert b"Traceback" not in ended.stderr


@pytest.mark.long
async def test_processes_that_still_run_are_in_the_result() -> None:
    async with stdio_client_session() as client:
        result = await run(client, "import subprocess; process = subprocess.Popen(['sleep', '60']); process.pid")
    assert answer_of(result)["processes"] == [{"pid": int(text_of(result).splitlines()[0]), "name": "sleep"}]


@pytest.mark.long
async def test_a_table_has_no_link_because_the_result_has_it_as_text() -> None:
    async with stdio_client_session() as client:
        result = await run(client, "import pandas as pd; pd.DataFrame({'a': [1]})")
        (uri,) = answer_of(result)["outputs"]
        stored = (await client.read_resource(AnyUrl(uri))).contents[0]
    assert [block.type for block in result.content] == ["text"]
    assert "<table" in stored.text


@pytest.mark.long
async def test_files_are_resources_that_can_be_listed_read_and_subscribed_to() -> None:
    told = []

    async def heard(message: Any) -> None:
        told.append(type(getattr(message, "root", message)).__name__)

    async with stdio_client_session(message_handler=heard) as client:
        assert (await client.list_resources()).resources == []
        await run(client, "open('a b.csv', 'w').write('x,y'); open('raw.bin', 'wb').write(b'\\xff\\x00')")
        listed = {str(one.uri): one for one in (await client.list_resources()).resources}
        assert {one.name for one in listed.values()} == {"a b.csv", "raw.bin"}
        (text,) = (await client.read_resource(AnyUrl("session://default/files/a%20b.csv"))).contents
        (raw,) = (await client.read_resource(AnyUrl("session://default/files/raw.bin"))).contents
        assert (text.text, base64.b64decode(raw.blob)) == ("x,y", b"\xff\x00")
        await client.subscribe_resource(AnyUrl("session://default/files/raw.bin"))
        await run(client, "open('raw.bin', 'w').write('other')")
        await run(client, "1")
    assert told.count("ResourceListChangedNotification") == 2
    assert told.count("ResourceUpdatedNotification") == 1


STRANGE = [
    "session://default/files/../../etc/passwd",
    "session://default/files/%2e%2e/%2e%2e/etc/passwd",
    "session://default/files//etc/passwd",
    "session://nobody/files/a",
    "session://default/displays/1",
    "session://default/displays/-1",
    "session://default/",
    "file:///etc/passwd",
]


@pytest.mark.long
async def test_an_invalid_resource_is_refused() -> None:
    async with stdio_client_session() as client:
        for uri in STRANGE:
            with pytest.raises(ProtocolError):
                await client.read_resource(AnyUrl(uri))
        assert text_of(await run(client, "6 * 7")) == "42"


@pytest.mark.long
async def test_a_running_cell_streams_its_output() -> None:
    progress, logged = [], []

    async def on_progress(done: float, _total: float | None, message: str | None) -> None:
        progress.append((done, message))

    async def on_log(message: types.LoggingMessageNotificationParams) -> None:
        logged.append(message.data)

    async with stdio_client_session(logging_callback=on_log) as client:
        code = "import time\nfor i in range(3):\n    print(i)\n    time.sleep(0.2)"
        await client.call_tool("run_python_code", {"code": code}, progress_callback=on_progress)
        assert "".join(message for _, message in progress) == "0\n1\n2\n"
        assert [done for done, _ in progress] == sorted({done for done, _ in progress})
        assert "".join(data["text"] for data in logged) == "0\n1\n2\n"
        await client.set_logging_level("error")
        await run(client, "print('quiet')")
    assert not any("quiet" in data["text"] for data in logged)


@pytest.mark.long
async def test_a_cancelled_call_interrupts_its_cell() -> None:
    async with stdio_client_session() as client:
        await run(client, "import time; x = 1")
        started = await start(client, "while True: time.sleep(0.01)")
        await cancel(client, started)
        assert text_of(await run(client, "x + 1")) == "2"


@pytest.mark.long
async def test_a_cell_over_its_time_is_interrupted_and_reports_the_state_of_its_variables() -> None:
    async with stdio_client_session() as client:
        await run(client, "x = 1")
        result = await run(client, "import time; time.sleep(30)", timeout=0.3)
        assert answer_of(result)["success"] is False
        assert answer_of(result)["state"] == "kept"
        assert text_of(await run(client, "x")) == "1"


@pytest.mark.long
async def test_a_transactional_cell_that_fails_leaves_no_trace() -> None:
    async with stdio_client_session() as client:
        await run(client, "x = 1")
        result = await run(client, "x = 2; open('outputs/a', 'w').write('x'); 1 / 0", transactional=True)
        assert answer_of(result)["state"] == "rolled_back"
        assert text_of(await run(client, "import os; (x, os.listdir('outputs'))")) == "(1, [])"


@pytest.mark.long
async def test_a_cell_that_ends_its_interpreter_reports_that_its_variables_are_lost() -> None:
    async with stdio_client_session() as client:
        await run(client, "x = 1; open('kept.txt', 'w').write('still here')")
        result = await run(client, "import os; os._exit(7)")
        assert answer_of(result)["state"].startswith("lost")
        assert "variables from before are gone" in text_of(result)
        assert text_of(await run(client, "open('kept.txt').read()")) == "'still here'"
        health = (await client.call_tool("get_kernel_health")).structuredContent
    assert health["status"] == "healthy"
    assert health["restarts"] == 1


@pytest.mark.long
async def test_input_is_requested_from_the_user_if_the_client_supports_it() -> None:
    async def answer(_context: Any, asked: types.ElicitRequestParams) -> types.ElicitResult:
        assert "Your name?" in asked.message
        return types.ElicitResult(action="accept", content={"answer": "Ada"})

    async with stdio_client_session(elicitation_callback=answer) as client:
        assert text_of(await run(client, "input('Your name? ')")).endswith("'Ada'")


@pytest.mark.long
async def test_input_that_the_user_declines_is_an_end_of_file() -> None:
    async def decline(_context: Any, _asked: types.ElicitRequestParams) -> types.ElicitResult:
        return types.ElicitResult(action="decline")

    async with stdio_client_session(elicitation_callback=decline) as client:
        result = await run(client, "input()")
    assert answer_of(result)["error"] == "EOFError"
    assert "EOFError: the user declined to answer" in text_of(result)


@pytest.mark.long
async def test_input_without_a_user_is_an_end_of_file() -> None:
    async with stdio_client_session() as client:
        assert answer_of(await run(client, "input()"))["error"] == "EOFError"


@pytest.mark.long
async def test_ten_megabytes_of_output_stay_within_the_budget() -> None:
    logged = []

    async def on_log(message: types.LoggingMessageNotificationParams) -> None:
        logged.append(message.data["text"])

    async with stdio_client_session(logging_callback=on_log) as client:
        result = await run(client, "for _ in range(100): print('x' * 100_000)")
        assert len(text_of(result)) < 12_000
        assert sum(map(len, logged)) < 100_000
        assert text_of(await run(client, "1")) == "1"


@pytest.mark.long
def test_a_person_who_starts_it_on_a_terminal_reads_that_it_waits_for_a_client() -> None:
    terminal, end = os.openpty()
    with subprocess.Popen([*COMMAND, "mcp"], stdin=end, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        os.close(end)
        assert "waiting for an MCP client on standard input" in process.stderr.readline()
        os.write(terminal, b"\x04")  # Ctrl-D
        process.wait(120)
    os.close(terminal)
