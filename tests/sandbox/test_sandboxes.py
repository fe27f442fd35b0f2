"""Generations of the fork server, and sessions kept ready."""

import asyncio

import pytest

from aca_sessions import Policy
from aca_sessions.sandbox.forkserver import ForkServer
from aca_sessions.sandbox.sandboxes import Sandboxes

pytestmark = pytest.mark.slow
IMPORTED = "import sys; 'pandas' in sys.modules"


async def value(sandbox, code: str) -> object:
    return (await (await sandbox.interpreter()).run("e", code, 20.0)).value


async def test_the_light_generation_serves_at_once_and_the_heavy_one_takes_over(fork_server: ForkServer, nothing_left: None) -> None:
    async with Sandboxes(Policy()) as sandboxes:
        first = await sandboxes.open()
        assert await value(first, IMPORTED) is False
        while True:
            later = await sandboxes.open()
            heavy = await value(later, IMPORTED)
            await later.close()
            if heavy:
                break
            await asyncio.sleep(0.2)
        assert await value(first, "6 * 7") == 42, "a session of the earlier generation goes on"
        await first.close()
    assert fork_server.alive, "others use it as well"


async def test_a_spare_is_a_session_like_any_other(nothing_left: None) -> None:
    async with Sandboxes(Policy(preload=(), spares=1)) as sandboxes:
        forked = await sandboxes.open()
        while not sandboxes._spares:
            await asyncio.sleep(0.02)
        spare = await sandboxes.open()
        look = "get_ipython().execution_count, sorted(n for n in globals() if n[:1] != '_'), __import__('os').getcwd(), In, Out"
        assert await value(spare, look) == await value(forked, look)
        assert await value(spare, "open('a.txt', 'w').write('mine'); __import__('random').random()") != await value(
            forked, "__import__('random').random()"
        )
        assert await value(forked, "__import__('os').path.exists('a.txt')") is False
        await spare.close()
        await forked.close()


async def test_a_spare_that_died_is_not_given_out(nothing_left: None) -> None:
    async with Sandboxes(Policy(preload=(), spares=1)) as sandboxes:
        await (await sandboxes.open()).close()
        while not sandboxes._spares:
            await asyncio.sleep(0.02)
        await sandboxes._spares[0].reset()
        given = await sandboxes.open()
        assert await value(given, "6 * 7") == 42
        await given.close()


async def test_no_more_spares_are_made_than_are_wanted() -> None:
    async with Sandboxes(Policy(preload=(), spares=2)) as sandboxes:
        opened = [await sandboxes.open() for _ in range(5)]
        while len(sandboxes._spares) < 2:
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.1)
        assert len(sandboxes._spares) == 2
        await asyncio.gather(*(sandbox.close() for sandbox in opened))


async def test_closing_in_the_middle_of_anything_leaves_nothing(nothing_left: None) -> None:
    for pause in (0.0, 0.05, 0.11, 0.13, 0.16, 0.3, 1.01, 1.05, 1.3):
        async with Sandboxes(Policy()) as sandboxes:
            sandbox = await sandboxes.open()
            await asyncio.sleep(pause)
            await sandbox.close()


async def test_closing_at_the_moment_when_a_spare_is_ready_leaves_nothing(nothing_left: None) -> None:
    async with Sandboxes(Policy(preload=(), spares=1)) as sandboxes:
        sandboxes._refill()
        while not len(sandboxes._tasks):
            await asyncio.sleep(0.01)
        while len(sandboxes._tasks):
            await asyncio.sleep(0)


async def test_many_sessions_leave_nothing(nothing_left: None) -> None:
    async with Sandboxes(Policy(preload=())) as sandboxes:

        async def one() -> None:
            for _ in range(10):
                sandbox = await sandboxes.open()
                assert await value(sandbox, "6 * 7") == 42
                await sandbox.close()

        await asyncio.gather(*(one() for _ in range(8)))
