"""Test the server with clients whose requests stand alone: the revision 2026-07-28, which the version 2 of the SDK speaks.

Over HTTP they have no connection, and handles for their sessions. On standard input and output they have names and an active session.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from aca_sessions import open_interpreter
from aca_sessions.mcp.sdk import HAS_STATELESS

from .clients import ProtocolError, Running, http_server, httpx, text_of

if not HAS_STATELESS:
    pytest.skip("needs version 2 of the SDK: tests/mcp/test_version_2.py runs these tests", allow_module_level=True)

from mcp import Client
from mcp.server.subscriptions import ResourcesListChanged, ResourceUpdated
from mcp.types import ElicitResult

from .stateless import create, http_client, stdio_client, text_from

pytestmark = pytest.mark.slow

ALICE, BOB = "the-key-of-alice", "the-key-of-bob"
REFUSED = "session_id must be one that create_session returned to you, of a session that has not ended"
Connected = Callable[..., AbstractAsyncContextManager[Client]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    keys = tmp_path_factory.mktemp("keys") / "keys.txt"
    keys.write_text(f"{ALICE}\n{BOB}\n")
    keys.chmod(0o600)
    with http_server("--tools", "all", "--api-key-file", str(keys)) as running:
        yield running


@pytest.fixture(params=["stdio", "http"])
def connected(request: pytest.FixtureRequest) -> Connected:
    """Connect to a server with all tools."""
    if request.param == "stdio":
        return partial(stdio_client, "--tools", "all")

    @asynccontextmanager
    async def connect(**options: Any) -> AsyncIterator[Client]:
        async with http_client(request.getfixturevalue("server").address, ALICE, **options) as client:
            yield client

    return connect


async def test_a_handle_names_a_session_that_keeps_its_variables(server: Running) -> None:
    async with http_client(server.address, ALICE) as client:
        work, other = await create(client, session_id="work"), await create(client, session_id="work")
        assert work != other
        assert await text_from(client, "x = 20", session_id=work) == "(no output)"
        assert await text_from(client, "x + 22", session_id=work) == "42"
        assert await text_from(client, "'x' in globals()", session_id=other) == "False"
        assert await text_from(client, "'x' in globals()") == "False"
        listed = (await client.call_tool("list_sessions", {})).structuredContent
        assert {"default", work, other} <= set(listed["sessions"])
        await client.call_tool("delete_session", {"session_id": work})
        assert (await text_from(client, "x", session_id=work)).startswith(REFUSED)


async def test_the_client_of_a_process_names_its_sessions_and_has_an_active_one() -> None:
    async with stdio_client() as client:
        assert await create(client, session_id="work") == "work"
        assert "got that of another session" in text_of(await client.call_tool("create_session", {"session_id": "work"}))
        switched = (await client.call_tool("switch_session", {"session_id": "work"})).structuredContent
        assert (switched["previous_session"], switched["current_session"]) == ("default", "work")
        await text_from(client, "x = 20")
        assert await text_from(client, "x + 22", session_id="work") == await text_from(client, "x + 22") == "42"
        assert await text_from(client, "'x' in globals()", session_id="default") == "False"
        listed = (await client.call_tool("list_sessions", {})).structuredContent
        assert ({*listed["sessions"]}, listed["active_session"]) == ({"default", "work"}, "work")
        ended = (await client.call_tool("delete_session", {"session_id": "work"})).structuredContent
        assert (ended["was_active"], ended["new_active_session"]) == (True, "default")
        assert "no session of that name" in await text_from(client, "x", session_id="work")
        assert await text_from(client, "'x' in globals()") == "False"


async def test_models_read_that_conversations_of_one_process_share_the_active_session() -> None:
    async with stdio_client("--tools", "all") as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert "switch_session" in tools
        assert "active" in tools["run_python_code"].inputSchema["properties"]["session_id"]["description"]
        assert "All conversations of the program that started this server share the active session" in client.instructions


async def test_nothing_is_saved_when_the_process_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = {"ACASessions__Durable__Store": f"file://{tmp_path}"}
    async with stdio_client("--tools", "all", environment=store) as client:
        await create(client, session_id="work")
        await text_from(client, "x = 1", session_id="work")
        await text_from(client, "x = 1")
        branch = (await client.call_tool("branch", {"session_id": "work"})).structuredContent["session_id"]
        await text_from(client, "x = 2", session_id=branch)
    monkeypatch.setenv(*store.popitem())
    async with open_interpreter() as interpreter:
        assert await interpreter.saved() == []


async def test_tools_that_need_a_connection_are_neither_listed_nor_run(server: Running) -> None:
    async with http_client(server.address, ALICE) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        handle = await create(client)
        assert "switch_session" not in tools
        assert not [tool.name for tool in tools.values() if "active" in f"{tool.description} {tool.inputSchema}"]
        assert "give session_id to each call" in text_of(await client.call_tool("switch_session", {"session_id": handle}))
        assert "active" not in client.instructions


async def test_a_running_cell_streams_its_output(connected: Connected) -> None:
    told, logged = [], []

    async def on_progress(_done: float, _total: float | None, message: str | None) -> None:
        told.append(message)

    async def on_log(message: Any) -> None:
        logged.append(message.data["text"])

    async with connected(log_level="info", logging_callback=on_log) as client:
        result = await client.call_tool("run_python_code", {"code": "print('hello')"}, progress_callback=on_progress)
    assert (text_of(result), told, logged) == ("hello", ["hello\n"], ["hello\n"])


async def test_a_client_that_asks_for_no_log_gets_none(connected: Connected) -> None:
    logged = []

    async def on_log(message: Any) -> None:
        logged.append(message)

    async with connected(logging_callback=on_log) as client:
        await text_from(client, "print('hello')")
    assert logged == []


async def test_a_cancelled_call_interrupts_its_cell(connected: Connected) -> None:
    begun = asyncio.Event()

    async def on_progress(*_: object) -> None:
        begun.set()

    async with connected() as client:
        handle = await create(client)
        code = {"code": "x = 1\nprint('begun')\nimport time; time.sleep(600)", "session_id": handle}
        waiting = asyncio.create_task(client.call_tool("run_python_code", code, progress_callback=on_progress))
        async with asyncio.timeout(120):
            await begun.wait()
            waiting.cancel()
            assert await text_from(client, "x", session_id=handle) == "1"


async def test_input_asks_the_user_as_often_as_the_cell_asks(connected: Connected) -> None:
    asked, told = [], []

    async def answer(_context: object, params: Any) -> ElicitResult:
        asked.append(params.message)
        return ElicitResult(action="accept", content={"answer": f"line {len(asked)}"})

    async def on_progress(_done: float, _total: float | None, message: str | None) -> None:
        told.append(message)

    code = "first = input('one?')\nprint(first)\nsecond = input('two?')\nprint(second)\nfirst + second"
    async with connected(elicitation_callback=answer) as client:
        handle = await create(client)
        given = {"code": code, "session_id": handle}
        result = await client.call_tool("run_python_code", given, progress_callback=on_progress)
        assert text_of(result).endswith("'line 1line 2'")
        assert (await client.call_tool("get_kernel_health", {"session_id": handle})).structuredContent["execution_count"] == 1
    assert asked == ["The code asks: one?", "The code asks: two?"]
    assert "line 1\n" in "".join(told)
    assert "line 2\n" in "".join(told)


async def test_input_raises_if_the_user_declines_or_cannot_be_asked(connected: Connected) -> None:
    async def decline(*_: object) -> ElicitResult:
        return ElicitResult(action="decline")

    async with connected(elicitation_callback=decline) as client:
        assert "EOFError" in await text_from(client, "input('name?')")
    async with connected() as client:
        assert "EOFError" in await text_from(client, "input('name?')")


async def test_an_answer_continues_only_the_call_of_its_own_client_and_only_once(server: Running) -> None:
    async def run(client: Client, **options: Any) -> Any:
        return await client.session.call_tool("run_python_code", {"code": "input('?')"}, allow_input_required=True, **options)

    async def answer(*_: object) -> None:
        raise AssertionError("the test answers by itself")

    given = {"question": ElicitResult(action="accept", content={"answer": "x"})}
    async with (
        http_client(server.address, ALICE, elicitation_callback=answer) as alice,
        http_client(server.address, BOB, elicitation_callback=answer) as bob,
    ):
        state = (await run(alice)).request_state
        for client, one in ((bob, state), (alice, state[:-1]), (alice, "")):
            with pytest.raises(ProtocolError, match="requestState must be that of a call of yours"):
                await run(client, request_state=one, input_responses=given)
        again = await run(alice, request_state=state, input_responses={"other": given["question"]})
        assert (again.request_state, list(again.input_requests)) == (state, ["question"])
        assert text_of(await run(alice, request_state=state, input_responses=given)).endswith("'x'")
        with pytest.raises(ProtocolError, match="requestState must be that of a call of yours"):
            await run(alice, request_state=state, input_responses=given)


async def test_a_server_stops_while_a_cell_waits_for_an_answer() -> None:
    async def answer(*_: object) -> None:
        raise AssertionError("the test does not answer")

    with http_server("--api-key", ALICE) as server:
        async with http_client(server.address, ALICE, elicitation_callback=answer) as client:
            asked = await client.session.call_tool("run_python_code", {"code": "input('?')"}, allow_input_required=True)
            assert asked.request_state


async def test_files_are_resources_below_the_session_and_changes_are_announced(connected: Connected) -> None:
    async with connected() as client:
        handle = await create(client, session_id="Work")
        uri = f"session://{handle}/files/a.txt"
        async with client.listen(resources_list_changed=True, resource_subscriptions=[uri]) as changes, asyncio.timeout(120):
            await text_from(client, "open('a.txt', 'w').write('made')", session_id=handle)
            seen = [await anext(aiter(changes)) for _ in range(2)]
        assert [type(one) for one in seen] == [ResourcesListChanged, ResourceUpdated]
        assert uri in [one.uri for one in (await client.list_resources()).resources]
        assert (await client.read_resource(uri)).contents[0].text == "made"


async def test_a_branch_is_a_session_of_its_own(connected: Connected) -> None:
    async with connected() as client:
        handle = await create(client)
        await text_from(client, "x = 1", session_id=handle)
        made = (await client.call_tool("branch", {"session_id": handle, "new_session_id": "other"})).structuredContent["session_id"]
        await text_from(client, "x = 2", session_id=made)
        again = (await client.call_tool("branch", {"session_id": made})).structuredContent["session_id"]
        assert [await text_from(client, "x", session_id=one) for one in (handle, made, again)] == ["1", "2", "2"]


async def test_sessions_of_one_server_share_outputs(connected: Connected) -> None:
    async with connected() as client:
        one, two = await create(client), await create(client)
        await text_from(client, "open('outputs/a.txt', 'w').write('shared')", session_id=one)
        assert await text_from(client, "open('outputs/a.txt').read()", session_id=two) == "'shared'"


async def test_the_handle_of_another_client_is_refused_like_one_that_does_not_exist(server: Running) -> None:
    async with http_client(server.address, ALICE) as alice, http_client(server.address, BOB) as bob:
        handle = await create(alice, session_id="work")
        await text_from(alice, "x = 'mine'", session_id=handle)
        await text_from(alice, "y = 'mine'")
        invented = handle[:-4] + "AAAA"
        for tool, more in (("run_python_code", {"code": "x"}), ("delete_session", {}), ("list_variables", {}), ("branch", {})):
            answers = [await bob.call_tool(tool, {"session_id": one, **more}) for one in (handle, invented)]
            assert [text_of(one).startswith(REFUSED) for one in answers] == [True, True]
            assert answers[0].content == answers[1].content
        with pytest.raises(Exception, match="session_id must be one that create_session returned to you"):
            await bob.read_resource(f"session://{handle}/files/x")
        assert await text_from(bob, "'y' in globals()") == "False"
        assert handle not in (await bob.call_tool("list_sessions", {})).structuredContent["sessions"]
        assert await text_from(alice, "x", session_id=handle) == "'mine'"


async def test_a_client_may_leave_and_return(server: Running) -> None:
    async with http_client(server.address, ALICE) as client:
        handle = await create(client)
        await text_from(client, "x = 1", session_id=handle)
        await text_from(client, "kept = 1")
    async with http_client(server.address, ALICE) as client:
        assert await text_from(client, "x", session_id=handle) == "1"
        assert await text_from(client, "kept") == "1"


async def test_a_client_with_a_connection_and_one_without_have_sessions_of_their_own(server: Running) -> None:
    async with http_client(server.address, ALICE) as client:
        handle = await create(client)
        await text_from(client, "z = 1")
        http = httpx.AsyncClient(headers={"Authorization": f"Bearer {ALICE}"}, timeout=60)
        from mcp.client.streamable_http import streamable_http_client

        async with http, Client(streamable_http_client(server.address, http_client=http), mode="legacy") as older:
            assert await text_from(older, "'z' in globals()") == "False"
            assert "no session of that name" in await text_from(older, "1", session_id=handle)


async def test_a_client_creates_no_more_sessions_than_allowed(server: Running) -> None:
    async with http_client(server.address, BOB) as client:
        made = [await create(client) for _ in range(19)]
        assert "at most 20 sessions" in text_of(await client.call_tool("create_session", {}))
        for handle in made:
            await client.call_tool("delete_session", {"session_id": handle})
        await create(client)


async def test_a_handle_outlives_the_server_with_a_store(tmp_path: Path) -> None:
    settings = {"ACASessions__Durable__Store": f"file://{tmp_path}"}
    with http_server("--api-key", ALICE, **settings) as first:
        async with http_client(first.address, ALICE) as client:
            handle = await create(client, session_id="work")
            await text_from(client, "x = 41", session_id=handle)
            gone = await create(client)
            await client.call_tool("delete_session", {"session_id": gone})
    with http_server("--api-key", ALICE, **settings) as second:
        async with http_client(second.address, ALICE) as client:
            assert (await text_from(client, "x + 1", session_id=handle)).startswith("42")
            assert (await text_from(client, "1", session_id=gone)).startswith(REFUSED)
    with http_server("--api-key", ALICE) as without:
        async with http_client(without.address, ALICE) as client:
            assert (await text_from(client, "x", session_id=handle)).startswith(REFUSED)


@pytest.mark.long
async def test_a_session_that_expired_is_refused() -> None:
    with http_server("--api-key", ALICE, ACASessions__SessionPool__SessionTimeoutMinutes="0.01") as server:
        async with http_client(server.address, ALICE) as client:
            handle = await create(client)
            while not (await text_from(client, "1", session_id=handle)).startswith(REFUSED):
                await asyncio.sleep(2)
