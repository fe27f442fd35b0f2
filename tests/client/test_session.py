"""Test one leased session, at an endpoint with extensions."""

import asyncio
from contextlib import aclosing

import pytest

from aca_sessions import Session, SessionPool
from aca_sessions.errors import ExecutionError

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("code", ["", " \n\t", "# nothing", "```python\n```"])
async def test_an_empty_cell_succeeds_and_changes_nothing(session: Session, code: str) -> None:
    await session.run("x = 20; x + 22")
    result = await session.run(code)
    assert (result.success, result.output, result.stderr, result.value, str(result.state)) == (True, "", "", None, "kept")
    assert (await session.run("x, _")).text == "(20, 42)"
    assert (await (await session.start(code)).wait()).success


async def test_reset_ends_a_cell_that_does_not_end(session: Session) -> None:
    code = "import signal; signal.pthread_sigmask(0, [2])\nopen('begun', 'w')\nwhile True: pass"
    endless = asyncio.create_task(session.run(code))
    while not await session.list_files():
        await asyncio.sleep(0.01)
    await session.reset()
    assert str((await endless).state) == "lost: reset"
    assert str((await session.run("1")).state) == "kept"


async def test_reset_ends_what_cells_left_running(session: Session) -> None:
    await session.run("import subprocess; p = subprocess.Popen(['sleep', '60'])")
    assert (await session.run("p.poll() is None")).value is True
    await session.reset()
    counted = "import os; sum(name.isdecimal() for name in os.listdir('/proc'))"
    assert (await session.run(counted)).value == 2


async def test_a_busy_session_is_not_responsive_and_its_cell_continues(session: Session) -> None:
    busy = await session.start("import os, time; print('begun', flush=True)\nwhile not os.path.exists('go'): time.sleep(0.01)\n'done'")
    async with aclosing(busy.events()) as events:
        await anext(events)
    assert not (await session.health(timeout=0.1)).responsive
    await session.upload_file("go", b"")
    assert (await busy.wait()).value == "done"
    assert (await session.health()).responsive


async def test_an_unsupported_operation_raises_the_reason(pool: SessionPool) -> None:
    async with pool.session() as session:
        await session.run("import builtins; builtins.exec = None")
        with pytest.raises(ExecutionError, match="TypeError"):
            await session.variables()
        await session.reset()
        assert await session.variables() == []
