"""Test the server over HTTP: several clients, a key, and no foreign page."""

import asyncio
from collections.abc import Callable, Iterator

import anyio
import httpx
import pytest
from mcp import types

from aca_sessions import SessionPool, Settings
from aca_sessions.mcp.clients import Options, SharedState
from aca_sessions.mcp.server import _Connections

from ..conftest import descendants
from .clients import Running, answer_of, cancel, http_client_session, http_server, run, start, text_of

pytestmark = pytest.mark.slow

HELLO = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
INITIALIZE = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": HELLO}
ACCEPT = {"Accept": "application/json, text/event-stream"}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with http_server() as running:
        yield running


@pytest.mark.long
async def test_two_clients_are_separate(server) -> None:
    async with http_client_session(server) as one, http_client_session(server) as other:
        await one.call_tool("create_session", {"session_id": "work"})
        await one.call_tool("switch_session", {"session_id": "work"})
        await run(one, "x = 'mine'; open('outputs/mine.txt', 'w').write('mine')")
        await run(one, "y = 'mine'", session_id="default")
        assert text_of(await run(other, "'y' in globals() or __import__('os').listdir('outputs')")) == "[]"
        assert "no session of that name" in text_of(await run(other, "x", session_id="work"))
        listed = (await other.call_tool("list_sessions")).structuredContent
        assert (list(listed["sessions"]), listed["active_session"]) == (["default"], "default")
        assert (await other.list_resources()).resources == []
        await other.call_tool("create_session", {"session_id": "work"})
        assert text_of(await run(other, "'x' in globals()", session_id="work")) == "False"
        assert text_of(await run(one, "x")) == "'mine'"


async def test_a_shared_session_is_reachable_by_others_and_outlives_its_creator(server) -> None:
    async with http_client_session(server) as other:
        async with http_client_session(server) as maker:
            await maker.call_tool("create_session", {"session_id": "team", "shared": True})
            await run(maker, "x = 'ours'", session_id="team")
        assert text_of(await run(other, "x", session_id="team")) == "'ours'"
        assert (await other.call_tool("create_session", {"session_id": "team"})).isError
        await other.call_tool("switch_session", {"session_id": "team"})
        async with http_client_session(server) as third:
            await third.call_tool("delete_session", {"session_id": "team"})
        listed = (await other.call_tool("list_sessions")).structuredContent
        assert (list(listed["sessions"]), listed["active_session"]) == (["default"], "default")


async def test_each_client_is_told_that_a_shared_session_lost_its_variables(server) -> None:
    async with http_client_session(server) as other, http_client_session(server) as maker:
        await maker.call_tool("create_session", {"session_id": "team", "shared": True})
        await run(maker, "x = 1", session_id="team")
        await run(other, "x", session_id="team")
        assert "[state] lost: exit" in text_of(await run(maker, "import os; os._exit(1)", session_id="team"))
        assert "[state] lost: exit" in text_of(await run(other, "1", session_id="team"))
        assert "[state]" not in text_of(await run(maker, "1", session_id="team")) + text_of(await run(other, "1", session_id="team"))


async def test_a_server_that_cannot_start_raises(pool: SessionPool) -> None:
    connections = _Connections(SharedState(pool, Options.of(Settings().Mcp)))
    async with connections._manager.run():
        pass
    with pytest.raises(RuntimeError, match="only be called once"):
        async with asyncio.timeout(120), connections:
            pass


@pytest.mark.long
async def test_shared_sessions_end_with_their_creator_if_so_configured() -> None:
    with http_server(ACASessions__Mcp__KeepShared="false") as server:
        async with http_client_session(server) as other:
            async with http_client_session(server) as maker:
                await maker.call_tool("create_session", {"session_id": "team", "shared": True})
                assert not (await run(other, "1", session_id="team")).isError
            assert (await run(other, "1", session_id="team")).isError


async def test_the_sessions_of_a_client_end_when_it_disconnects() -> None:
    with http_server(ACASessions__Sandbox__Spares="0", ACASessions__Sandbox__Preload="[]") as server:
        before = len(descendants(server.pid))
        async with http_client_session(server) as client:
            await run(client, "1")
            assert len(descendants(server.pid)) > before
        await until(lambda: len(descendants(server.pid)) <= before)


@pytest.mark.long
async def test_a_client_that_vanishes_during_a_cell_is_removed_after_a_while() -> None:
    with http_server(
        ACASessions__Mcp__ClientIdleMinutes="0.02", ACASessions__Sandbox__Spares="0", ACASessions__Sandbox__Preload="[]"
    ) as server:
        before = len(descendants(server.pid))
        async with http_client_session(server, leaves=False) as client:
            await start(client, "import time; time.sleep(60)")
        await until(lambda: len(descendants(server.pid)) <= before)
        async with http_client_session(server) as client:
            assert text_of(await run(client, "6 * 7")) == "42"


async def until(holds: Callable[[], bool]) -> None:
    """Wait until something is true, for at most a minute."""
    with anyio.fail_after(120):
        while not holds():
            await anyio.sleep(0.05)


async def test_while_a_cell_runs_the_host_reports_the_health_of_its_session(server) -> None:
    async with http_client_session(server) as client:
        await start(client, "import time; time.sleep(60)")
        answer = (await client.call_tool("check_kernel_responsiveness")).structuredContent
        health = (await client.call_tool("get_kernel_health")).structuredContent
        assert (answer["responsive"], answer["busy"]) == (False, True)
        assert (health["status"], health["responsive"]) == ("busy", False)
        assert health["memory_usage"] > 1 << 20


async def test_a_running_cell_streams_its_output(server) -> None:
    told, logged = [], []

    async def on_progress(_done: float, _total: float | None, message: str | None) -> None:
        told.append(message)

    async def on_log(message: types.LoggingMessageNotificationParams) -> None:
        logged.append(message.data["text"])

    async with http_client_session(server, logging_callback=on_log) as client:
        await client.call_tool("run_python_code", {"code": "print('hello')"}, progress_callback=on_progress)
    assert told == logged == ["hello\n"]


async def test_a_cancelled_call_interrupts_its_cell(server) -> None:
    async with http_client_session(server) as client:
        await run(client, "x = 1")
        await cancel(client, await start(client, "import time; time.sleep(600)"))
        with anyio.fail_after(120):
            assert text_of(await run(client, "x + 1")) == "2"


async def test_a_session_deleted_during_a_cell_is_reported_to_the_waiting_caller(server) -> None:
    async with http_client_session(server) as client:
        await client.call_tool("create_session", {"session_id": "work"})
        answers = []

        async def wait() -> None:
            answers.append(await run(client, "import time; time.sleep(60)", session_id="work"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            with anyio.fail_after(120):
                while not (await client.call_tool("list_sessions")).structuredContent["sessions"]["work"]["busy"]:
                    await anyio.sleep(0.05)
                assert not (await client.call_tool("delete_session", {"session_id": "work"})).isError
        assert answer_of(answers[0])["state"].startswith(("lost", "unknown"))
        assert text_of(await run(client, "6 * 7")) == "42"


@pytest.mark.long
async def test_a_server_stops_on_a_signal_with_clients_connected() -> None:
    with http_server() as server:
        async with http_client_session(server, leaves=False) as client:
            await start(client, "import time; time.sleep(600)")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": "Bearer"}, 401),
        ({"Authorization": "Basic KEY"}, 401),
        ({"Authorization": "Bearer KEY", "Host": "evil.example"}, 403),
        ({"Authorization": "Bearer KEY", "Host": "127.0.0.1.evil.example:80"}, 403),
        ({"Authorization": "Bearer KEY", "Host": "["}, 403),
        ({"Authorization": "Bearer KEY", "Origin": "https://evil.example"}, 403),
        ({"Authorization": "Bearer KEY", "Origin": "http://localhost.evil.example"}, 403),
        ({"Authorization": "Bearer KEY", "Origin": "null"}, 403),
        ({"Authorization": "Bearer KEY", "Origin": "http://localhost:3000"}, 200),
        ({"Authorization": "bearer KEY"}, 200),
    ],
)
async def test_unauthorized_clients_are_refused(server, headers: dict[str, str], status: int) -> None:
    sent = {name: value.replace("KEY", server.key) for name, value in headers.items()} | ACCEPT
    async with httpx.AsyncClient(timeout=120) as http:
        answer = await http.post(server.address, json=INITIALIZE, headers=sent)
    assert answer.status_code == status
    assert server.key not in answer.text


@pytest.mark.parametrize("body", [b"{", b"[]", b"5", b'{"jsonrpc": "2.0"}', b"\xff", b'{"jsonrpc": "2.0", "id": 1, "method": "nothing"}'])
async def test_a_malformed_message_is_refused_and_the_server_continues(server, body: bytes) -> None:
    headers = {"Authorization": f"Bearer {server.key}", "Content-Type": "application/json"} | ACCEPT
    async with httpx.AsyncClient(headers=headers, timeout=120) as http:
        assert (await http.post(server.address, content=body)).status_code >= 400
        assert (await http.post(server.address, json=INITIALIZE)).status_code == 200
        assert (await http.post(server.address, json=INITIALIZE, headers={"Mcp-Session-Id": "0" * 32})).status_code == 404
        assert (await http.get(server.address.replace("/mcp", "/else"))).status_code == 404
