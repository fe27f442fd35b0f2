"""Test a server that drains: it serves the sessions that it has and starts no new ones."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from functools import partial

import httpx
import pytest

from aca_sessions import Settings, open_interpreter, open_server
from aca_sessions.cli.serving import GRACE_SECONDS
from aca_sessions.hosting import Hosting
from aca_sessions.server.app import Service

from ..cli.test_cli import Server
from ..conftest import until

MINE = {"api-version": "2025-10-02-preview", "identifier": "mine"}
NEW = MINE | {"identifier": "new"}
CELL = {"codeInputType": "Inline", "executionType": "Synchronous", "code": "6 * 7"}


@pytest.fixture
async def draining() -> AsyncIterator[tuple[Service, httpx.AsyncClient]]:
    """A draining server with one session."""
    async with open_server() as app, httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        assert (await client.post("/executions", params=MINE, json=CELL)).status_code == 200
        app.refuse_new_sessions()
        yield app, client


async def test_an_existing_session_continues(draining: tuple[Service, httpx.AsyncClient]) -> None:
    _, client = draining
    answer = await client.post("/executions", params=MINE, json=CELL)
    assert (answer.status_code, answer.json()["result"]["executionResult"]) == (200, 42)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "executions"),
        ("GET", "executions/1"),
        ("GET", "files"),
        ("GET", "session"),
        ("DELETE", "session"),
        ("POST", "session/reset"),
    ],
)
async def test_a_new_session_is_refused_with_advice_to_go_elsewhere(
    draining: tuple[Service, httpx.AsyncClient], method: str, path: str
) -> None:
    _, client = draining
    answer = await client.request(method, f"/{path}", params=NEW, json=CELL if path == "executions" else None)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json()["error"]["code"] == "ServerDraining"


async def test_a_new_mcp_environment_is_refused_as_well(draining: tuple[Service, httpx.AsyncClient]) -> None:
    _, client = draining
    for tool, arguments in (("launchShell", {}), ("runShellCommandInRemoteEnvironment", {"environmentId": "new", "shellCommand": "ls"})):
        call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool, "arguments": arguments}}
        assert (await client.post("/mcp", json=call)).status_code == 503


async def test_health_reports_draining(draining: tuple[Service, httpx.AsyncClient]) -> None:
    _, client = draining
    answer = await client.get("/health")
    assert (answer.status_code, answer.json()["status"], answer.json()["sessions"]) == (503, "draining", 1)


async def test_probes_need_no_key_and_only_readiness_ends_with_the_drain() -> None:
    hosting = Hosting(api_key="key", allowed_hosts=frozenset({"sessions.example"}))
    async with (
        open_server(hosting=hosting) as app,
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://10.0.0.1") as client,
    ):
        before = [await client.get(path) for path in ("/livez", "/readyz", "/health")]
        app.refuse_new_sessions()
        after = [await client.get(path) for path in ("/livez", "/readyz")]
    assert [(answer.status_code, answer.json()) for answer in before[:2]] == [(200, {"status": "alive"}), (200, {"status": "healthy"})]
    assert [(answer.status_code, answer.json()) for answer in after] == [(200, {"status": "alive"}), (503, {"status": "draining"})]
    assert before[2].status_code == 403  # /health counts sessions, so its Host is checked


async def test_the_server_may_stop_when_its_last_session_has_ended(draining: tuple[Service, httpx.AsyncClient]) -> None:
    app, client = draining
    assert app.session_count == 1
    assert (await client.delete("/session", params=MINE)).status_code == 204
    assert app.session_count == 0


@pytest.mark.slow
@pytest.mark.long
async def test_a_first_signal_lets_sessions_finish_and_the_server_stops_with_the_last() -> None:
    with Server("--port", "0", "--api-key", "key", "--drain-seconds", "600") as server:
        async with open_interpreter(Settings(Endpoint=server.endpoint, ApiKey="key")) as interpreter:
            await interpreter.execute("mine", "x = 20")
            running = asyncio.create_task(interpreter.execute("mine", "open('begun', 'w').close(); import time; time.sleep(0.5); x + 22"))
            await until(partial(interpreter.list_files, "mine"))
            server.process.send_signal(signal.SIGTERM)
            assert (await running).value == 42
            assert (await interpreter.execute("mine", "x")).value == 20
            await interpreter.delete_session("mine")
        assert server.process.wait(120) == 0


@pytest.mark.long
async def test_a_cell_that_outlasts_the_drain_is_reported_as_killed() -> None:
    with Server("--port", "0", "--api-key", "key", "--drain-seconds", "0.2") as server:
        async with open_interpreter(Settings(Endpoint=server.endpoint, ApiKey="key")) as interpreter:
            running = asyncio.create_task(interpreter.execute("mine", "import time; time.sleep(60)"))
            while not await interpreter.list_sessions():
                await asyncio.sleep(0.02)
            server.process.send_signal(signal.SIGTERM)
            result = await running
        assert (result.success, str(result.state)) == (False, "lost: killed")
        assert server.process.wait(120) == 0


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("drain", [pytest.param((), marks=pytest.mark.long), ("--drain-seconds", "0.2")], ids=["at once", "after a drain"])
async def test_running_cells_get_five_seconds_more_after_the_drain(drain: tuple[str, ...]) -> None:
    assert GRACE_SECONDS == 5
    with Server("--port", "0", "--api-key", "key", *drain) as server:
        async with open_interpreter(Settings(Endpoint=server.endpoint, ApiKey="key")) as interpreter:
            await interpreter.execute("mine", "x = 42")
            running = await interpreter.start("mine", "import time; print('begun', flush=True); time.sleep(1); x")
            await anext(running.events())
            waiting = asyncio.create_task(running.wait())
            await interpreter.list_files("mine")  # on another connection, after the request of `waiting` was sent
            server.process.send_signal(signal.SIGTERM)
            result = await waiting
        assert (result.value, str(result.state)) == (42, "kept")
        assert server.process.wait(120) == 0


@pytest.mark.long
async def test_an_idle_session_keeps_a_server_only_until_the_end_of_the_drain() -> None:
    with Server("--port", "0", "--api-key", "key", "--drain-seconds", "1") as server:
        httpx.post(f"{server.endpoint}/executions", params=MINE, json=CELL, headers={"authorization": "Bearer key"}, timeout=120)
        begun = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(120) == 0
        assert time.monotonic() - begun >= 1


@pytest.mark.slow
@pytest.mark.long
def test_a_second_signal_stops_the_server_at_once() -> None:
    with Server("--port", "0", "--api-key", "key", "--drain-seconds", "600") as server:
        httpx.post(f"{server.endpoint}/executions", params=MINE, json=CELL, headers={"authorization": "Bearer key"}, timeout=120)
        server.process.send_signal(signal.SIGTERM)
        while httpx.get(f"{server.endpoint}/health").json()["status"] != "draining":
            time.sleep(0.02)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(120) == 0
