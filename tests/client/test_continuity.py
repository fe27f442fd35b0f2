"""Sessions at an endpoint that says no more than Azure does."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from aca_sessions import CodeInterpreter, SessionPool, SessionsHttpClient, open_server
from aca_sessions.hosting import Hosting

pytestmark = pytest.mark.slow
VERSIONS = ["2024-02-02-preview", "2025-10-02-preview"]


@pytest.fixture(params=VERSIONS)
async def plain(request: pytest.FixtureRequest) -> AsyncIterator[CodeInterpreter]:
    async with open_server(hosting=Hosting(plain=True, cooldown=1.5)) as app:
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")
        async with CodeInterpreter(SessionsHttpClient(client, api_version=request.param), verify_after=0.2) as interpreter:
            yield interpreter


async def test_a_session_that_was_begun_anew_is_noticed(plain: CodeInterpreter) -> None:
    assert str((await plain.execute("alice", "x = 1")).state) == "kept"
    await asyncio.sleep(3.3)
    result = await plain.execute("alice", "'x' in globals()")
    assert (result.value, str(result.state)) == (False, "lost: expired")
    assert str((await plain.execute("alice", "1")).state) == "kept"


async def test_a_session_that_lives_on_is_not_doubted(plain: CodeInterpreter) -> None:
    await plain.execute("alice", "x = 1")
    for _ in range(4):
        await asyncio.sleep(0.22)
        result = await plain.execute("alice", "x")
        assert (result.value, str(result.state)) == (1, "kept")


async def test_an_interpreter_that_died_is_told_with_its_cell_and_once(plain: CodeInterpreter) -> None:
    await plain.execute("alice", "x = 1")
    died = await plain.execute("alice", "import os; os._exit(1)")
    assert (died.success, died.state.kind) == (False, "lost")
    result = await plain.execute("alice", "'x' in globals()")
    assert (result.value, str(result.state)) == (False, "kept")


async def test_after_a_time_out_it_is_found_out_whether_the_variables_are_kept(plain: CodeInterpreter) -> None:
    await plain.execute("alice", "x = 1")
    assert str((await plain.execute("alice", "while True: pass", timeout=0.3)).state) == "unknown: no reply"
    result = await plain.execute("alice", "x")
    assert (result.value, str(result.state)) == (1, "kept")


async def test_files_are_importable_and_in_the_working_directory(plain: CodeInterpreter) -> None:
    await plain.upload_file("alice", "data.py", "values = [1, 2, 3]")
    assert (await plain.execute("alice", "import data, os; (sum(data.values), os.getcwd())")).text == "(6, '/mnt/data')"


async def test_our_own_cells_leave_no_variable(plain: CodeInterpreter) -> None:
    result = await plain.execute("alice", "[name for name in globals() if not name.startswith('_') and name not in ('In', 'Out')]")
    assert set(eval(result.text)) <= {"get_ipython", "exit", "quit", "open"}


async def test_a_session_that_was_deleted_is_no_loss() -> None:
    async with open_server(hosting=Hosting(plain=True)) as app:
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")
        async with CodeInterpreter(SessionsHttpClient(client), verify_after=0) as interpreter:
            await interpreter.execute("alice", "x = 1")
            await interpreter.delete_session("alice")
            assert str((await interpreter.execute("alice", "1")).state) == "kept"


@pytest.mark.parametrize(("version", "told"), [("2024-02-02-preview", (True, "kept")), ("2025-10-02-preview", (False, "lost: expired"))])
async def test_a_pool_whose_service_cannot_end_sessions_does_not_say_that_it_did(version: str, told: tuple[bool, str]) -> None:
    async with open_server(hosting=Hosting(plain=True)) as app:
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")
        async with (
            CodeInterpreter(SessionsHttpClient(client, api_version=version)) as interpreter,
            SessionPool(interpreter, session_timeout=0.2) as pool,
        ):
            async with pool.session("alice") as session:
                await session.run("x = 1")
            async with asyncio.timeout(10):
                while pool.active():
                    await asyncio.sleep(0.02)
            async with pool.session("alice") as session:
                result = await session.run("'x' in globals()")
    assert (result.value in (True, "True"), str(result.state)) == told
