"""Test tools that a program calls from one event loop after another, as synchronous frameworks do."""

import asyncio
import threading

import pytest

from aca_sessions import Settings, open_pool
from aca_sessions.errors import PoolError
from aca_sessions.integrations.model_session import PythonTool

OWN_FORK_SERVER = Settings(Sandbox={"Preload": [], "Spares": 1, "Tenant": "another fork server"})


async def say(tool: PythonTool) -> str:
    return await tool.execute_python("6 * 7")


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(Settings(), id="a fork server of others", marks=pytest.mark.long),
        pytest.param(OWN_FORK_SERVER, id="its own fork server"),
    ],
)
def test_a_tool_is_refused_in_another_loop_and_closed_there(nothing_left: None, settings: Settings) -> None:
    tool = PythonTool(settings=settings)
    assert asyncio.run(say(tool)) == "42"
    with pytest.raises(PoolError, match="another event loop"):
        asyncio.run(say(tool))
    asyncio.run(tool.close())
    assert asyncio.run(say(tool)) == "42"
    asyncio.run(tool.close())


def test_what_a_closed_loop_left_open_is_closed(nothing_left: None) -> None:
    opening = open_pool()

    async def use() -> None:
        pool = await opening.__aenter__()
        one, other = await pool.get_or_create(), await pool.get_or_create("named")
        await one.run("import subprocess; subprocess.Popen(['sleep', '60'])")
        await other.run("x = 1")
        await other.checkpoint()
        await other.branch(2)

    asyncio.run(use())
    asyncio.run(opening.__aexit__(None, None, None))


def test_a_loop_that_runs_in_another_thread_closes_what_it_opened(nothing_left: None) -> None:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    tool = PythonTool()
    try:
        assert asyncio.run_coroutine_threadsafe(say(tool), loop).result() == "42"
        asyncio.run(tool.close())
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


def test_a_stopped_loop_is_run_to_close_what_it_opened(nothing_left: None) -> None:
    loop, tool = asyncio.new_event_loop(), PythonTool()
    assert loop.run_until_complete(say(tool)) == "42"
    asyncio.run(tool.close())
    loop.close()
