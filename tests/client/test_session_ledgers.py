"""Test sessions at an endpoint without extensions, which reports no more than Azure does."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from aca_sessions import CodeInterpreter, SessionPool, SessionsHttpClient, open_server
from aca_sessions.hosting import Hosting

from ..conftest import mostly_long

pytestmark = pytest.mark.slow
VERSIONS = ["2024-02-02-preview", "2025-10-02-preview"]


@asynccontextmanager
async def plain_interpreter(version: str, cooldown: float = 300) -> AsyncIterator[CodeInterpreter]:
    async with open_server(hosting=Hosting(plain=True, cooldown=cooldown)) as app:
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")
        async with CodeInterpreter(SessionsHttpClient(client, api_version=version), verify_after=0.2) as interpreter:
            yield interpreter


@pytest.fixture(params=mostly_long(VERSIONS, VERSIONS[-1]))
async def plain(request: pytest.FixtureRequest) -> AsyncIterator[CodeInterpreter]:
    async with plain_interpreter(request.param) as interpreter:
        yield interpreter


@pytest.mark.long
@pytest.mark.parametrize("version", VERSIONS)
async def test_a_session_that_was_recreated_is_noticed(version: str) -> None:
    async with plain_interpreter(version, cooldown=1.5) as plain:
        assert str((await plain.execute("alice", "x = 1")).state) == "kept"
        await asyncio.sleep(3.3)
        result = await plain.execute("alice", "'x' in globals()")
        assert (result.value, str(result.state)) == (False, "lost: expired")
        assert str((await plain.execute("alice", "1")).state) == "kept"


async def test_a_session_that_continues_is_not_reported_as_lost(plain: CodeInterpreter) -> None:
    await plain.execute("alice", "x = 1")
    for _ in range(4):
        await asyncio.sleep(0.22)
        result = await plain.execute("alice", "x")
        assert (result.value, str(result.state)) == (1, "kept")


async def test_an_interpreter_that_died_is_reported_once_with_its_cell(plain: CodeInterpreter) -> None:
    await plain.execute("alice", "x = 1")
    died = await plain.execute("alice", "import os; os._exit(1)")
    assert (died.success, died.state.kind) == (False, "lost")
    result = await plain.execute("alice", "'x' in globals()")
    assert (result.value, str(result.state)) == (False, "kept")


async def test_after_a_timeout_the_client_finds_out_whether_the_variables_are_kept(plain: CodeInterpreter) -> None:
    await plain.execute("alice", "x = 1")
    assert str((await plain.execute("alice", "while True: pass", timeout=0.3)).state) == "unknown: no reply"
    result = await plain.execute("alice", "x")
    assert (result.value, str(result.state)) == (1, "kept")


async def test_files_are_importable_and_in_the_working_directory(plain: CodeInterpreter) -> None:
    await plain.upload_file("alice", "data.py", "values = [1, 2, 3]")
    assert (await plain.execute("alice", "import data, os; (sum(data.values), os.getcwd())")).text == "(6, '/mnt/data')"


async def test_the_clients_own_cells_leave_no_variable(plain: CodeInterpreter) -> None:
    result = await plain.execute("alice", "[name for name in globals() if not name.startswith('_') and name not in ('In', 'Out')]")
    assert set(eval(result.text)) <= {"get_ipython", "exit", "quit", "open"}


async def test_a_deleted_session_is_not_a_loss() -> None:
    async with open_server(hosting=Hosting(plain=True)) as app:
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")
        async with CodeInterpreter(SessionsHttpClient(client), verify_after=0) as interpreter:
            await interpreter.execute("alice", "x = 1")
            await interpreter.delete_session("alice")
            assert str((await interpreter.execute("alice", "1")).state) == "kept"


@pytest.mark.parametrize(("version", "told"), [("2024-02-02-preview", (True, "kept")), ("2025-10-02-preview", (False, "lost: expired"))])
async def test_a_pool_whose_service_cannot_end_sessions_does_not_claim_that_it_did(version: str, told: tuple[bool, str]) -> None:
    async with open_server(hosting=Hosting(plain=True)) as app:
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")
        async with (
            CodeInterpreter(SessionsHttpClient(client, api_version=version)) as interpreter,
            SessionPool(interpreter, session_timeout=0.2) as pool,
        ):
            async with pool.session("alice") as session:
                await session.run("x = 1")
            async with asyncio.timeout(120):
                while pool.active():
                    await asyncio.sleep(0.02)
            async with pool.session("alice") as session:
                result = await session.run("'x' in globals()")
    assert (result.value in (True, "True"), str(result.state)) == told


class Servers(httpx.AsyncBaseTransport):
    """Two servers behind one address, as a proxy has them. The second answers when the first is gone."""

    def __init__(self, *apps: object) -> None:
        self._transports = [httpx.ASGITransport(app) for app in apps]

    def lose_one(self) -> None:
        self._transports.pop(0)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await self._transports[0].handle_async_request(request)


@pytest.fixture(params=[*VERSIONS, "rich"])
async def moving(request: pytest.FixtureRequest) -> AsyncIterator[tuple[CodeInterpreter, Servers]]:
    hosting = Hosting(plain=request.param != "rich")
    async with open_server(hosting=hosting) as first, open_server(hosting=hosting) as second:
        servers = Servers(first, second)
        version = request.param if request.param in VERSIONS else "2025-10-02-preview"
        http = SessionsHttpClient(httpx.AsyncClient(transport=servers, base_url="http://test"), api_version=version)
        async with CodeInterpreter(http) as interpreter:
            yield interpreter, servers


async def test_a_session_that_another_server_recreated_is_reported_as_lost_once(moving: tuple[CodeInterpreter, Servers]) -> None:
    interpreter, servers = moving
    await interpreter.execute("alice", "x = 1")
    servers.lose_one()
    result = await interpreter.execute("alice", "'x' in globals()")
    assert (result.value, str(result.state)) == (False, "lost: expired")
    assert str((await interpreter.execute("alice", "1")).state) == "kept"


async def test_a_move_noticed_by_an_upload_is_reported_with_the_next_cell(moving: tuple[CodeInterpreter, Servers]) -> None:
    interpreter, servers = moving
    await interpreter.execute("alice", "x = 1")
    servers.lose_one()
    await interpreter.upload_file("alice", "data.txt", "content")
    assert str((await interpreter.execute("alice", "open('/mnt/data/data.txt').read()")).state) == "lost: expired"
    assert str((await interpreter.execute("alice", "1")).state) == "kept"


async def test_a_move_is_reported_by_a_streamed_cell(moving: tuple[CodeInterpreter, Servers]) -> None:
    interpreter, servers = moving
    await interpreter.execute("alice", "x = 1")
    servers.lose_one()
    execution = await interpreter.start("alice", "1")
    assert str((await execution.wait()).state) == "lost: expired"


async def test_a_move_noticed_by_the_clients_own_cell_is_reported_with_the_next_user_cell(moving: tuple[CodeInterpreter, Servers]) -> None:
    interpreter, servers = moving
    await interpreter.execute("alice", "x = 1")
    servers.lose_one()
    await interpreter._execute_snippet("alice", "variables")
    assert str((await interpreter.execute("alice", "1")).state) == "lost: expired"
