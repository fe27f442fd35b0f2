"""Test generations of the fork server, and spare sessions."""

import asyncio
import os
import signal
import sys
from dataclasses import replace

import pytest

from aca_sessions import Policy
from aca_sessions.models import State
from aca_sessions.sandbox import environment
from aca_sessions.sandbox.forkserver import ForkServer
from aca_sessions.sandbox.sandboxes import Sandboxes

from .test_descriptors import trees_of_sessions

pytestmark = pytest.mark.slow
ALONE = Policy(spares=0, tenant="of its own")  # so that its fork servers are shared with no other test
IMPORTED = "import sys; 'pandas' in sys.modules"


async def value(sandbox, code: str) -> object:
    return (await (await sandbox.interpreter()).run("e", code, 20.0)).value


async def test_the_light_generation_serves_at_once_and_the_heavy_one_replaces_it(fork_server: ForkServer, nothing_left: None) -> None:
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


async def coming(sandboxes: Sandboxes, after: ForkServer | None = None) -> ForkServer:
    """Return the fork server with the heavy libraries while it boots."""
    while sandboxes._starting_heavy in (None, after):
        await asyncio.sleep(0.01)
    assert not sandboxes._starting_heavy._ready
    return sandboxes._starting_heavy


@pytest.mark.long
async def test_a_heavy_fork_server_that_dies_while_it_boots_is_started_again(nothing_left: None, caplog: pytest.LogCaptureFixture) -> None:
    async with Sandboxes(ALONE) as sandboxes:
        first = await coming(sandboxes)
        first.process.kill()
        await coming(sandboxes, first)
        assert await value(await sandboxes.open(), "6 * 7") == 42, "the light one serves meanwhile"
        while sandboxes._starting_heavy is not None:
            await asyncio.sleep(0.02)
        assert await value(await sandboxes.open(), IMPORTED) is True
        await asyncio.gather(*(sandbox.close() for generation in sandboxes._generations for sandbox in [*generation._sandboxes]))
    assert "without preloaded" not in caplog.text


async def test_a_dead_fork_server_is_replaced_once_by_callers_at_the_same_time(nothing_left: None) -> None:
    async with Sandboxes(ALONE) as sandboxes:
        light = sandboxes._generations[0].fork_server
        light.process.kill()
        light.process.wait()
        await asyncio.gather(sandboxes.start(), sandboxes.start())
        assert len(sandboxes._generations) == 2
        assert len(sandboxes._background) == 1, "the libraries are preloaded once"
        assert sandboxes._generations[-1].fork_server._users == 1


@pytest.mark.long
async def test_a_heavy_fork_server_that_dies_twice_is_not_started_again(nothing_left: None, caplog: pytest.LogCaptureFixture) -> None:
    async with Sandboxes(ALONE) as sandboxes:
        first = await coming(sandboxes)
        first.process.kill()
        (await coming(sandboxes, first)).process.kill()
        while not caplog.records:
            await asyncio.sleep(0.02)
        assert [record.message for record in caplog.records] == [
            "cannot preload the usual libraries (GuestDiedError): sessions start without them, and import them more slowly"
        ]
        assert sandboxes._starting_heavy is None
        sandbox = await sandboxes.open()
        assert await value(sandbox, IMPORTED) is False
        await sandbox.close()


@pytest.mark.long
async def test_closing_while_a_heavy_fork_server_is_restarted_leaves_nothing(nothing_left: None) -> None:
    for pause in (0.0, 0.05, 0.3):
        async with Sandboxes(ALONE) as sandboxes:
            first = await coming(sandboxes)
            first.process.kill()
            await asyncio.sleep(pause)


@pytest.mark.long
async def test_sessions_closed_after_retire_do_not_release_their_trees_one_by_one(nothing_left: None) -> None:
    async with Sandboxes(replace(ALONE, preload=())) as sandboxes:
        opened = [await sandboxes.open() for _ in range(3)]
        trees = trees_of_sessions()
        sandboxes.retire()
        await asyncio.gather(*(sandbox.close() for sandbox in opened))
        assert trees_of_sessions() == trees
        another = await sandboxes.open()  # one that comes late is a session like any other
        assert await value(another, "6 * 7") == 42
        await another.close()


@pytest.mark.long
async def test_a_fork_server_in_use_by_others_gets_its_resources_back(nothing_left: None) -> None:
    async with Sandboxes(replace(ALONE, preload=())) as others, Sandboxes(replace(ALONE, preload=())) as sandboxes:
        theirs = await others.open()
        await value(theirs, "x = 42")
        trees = trees_of_sessions()
        opened = [await sandboxes.open() for _ in range(3)]
        sandboxes.retire()
        await asyncio.gather(*(sandbox.close() for sandbox in opened))
        assert trees_of_sessions() == trees
        await sandboxes.close()
        assert await value(theirs, "x") == 42
        await theirs.close()


@pytest.mark.long
async def test_a_replaced_fork_server_is_not_ended_for_others(nothing_left: None) -> None:
    async with Sandboxes(replace(ALONE, preload=())) as others, Sandboxes(ALONE) as sandboxes:
        while len(sandboxes._generations) < 2:
            await asyncio.sleep(0.05)
        await sandboxes._generations[0].finish()
        sandboxes.retire()
        await others.wait_until_ready()
        trees = trees_of_sessions()
        await (await others.open()).close()
        assert trees_of_sessions() == trees


@pytest.mark.long
async def test_a_heavy_fork_server_that_is_ready_first_is_used(nothing_left: None) -> None:
    modules = environment.worth_preloading(sys.executable)
    async with Sandboxes(replace(ALONE, preload=modules)) as ready:
        await ready.wait_until_ready()
        async with Sandboxes(ALONE) as sandboxes, asyncio.timeout(120):
            os.kill(sandboxes._generations[0].fork_server.process.pid, signal.SIGSTOP)
            await sandboxes.wait_until_ready()
            sandbox = await sandboxes.open()
            assert await value(sandbox, IMPORTED) is True
            await sandbox.close()


@pytest.mark.long
async def test_an_open_after_a_fork_server_was_retired_uses_another(nothing_left: None) -> None:
    async with Sandboxes(replace(ALONE, preload=())) as sandboxes:
        sandboxes.retire()
        async with Sandboxes(replace(ALONE, preload=())) as others:
            assert others._generations[-1].fork_server is not sandboxes._generations[-1].fork_server
            sandbox = await others.open()
            await sandboxes.close()
            assert await value(sandbox, "6 * 7") == 42
            await sandbox.close()


async def test_a_sandbox_whose_caller_is_cancelled_while_it_is_forked_is_closed(nothing_left: None) -> None:
    async with Sandboxes(Policy(preload=(), spares=0)) as sandboxes:
        opening = asyncio.create_task(sandboxes.open())
        while not len(sandboxes._tasks):
            await asyncio.sleep(0)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        await sandboxes._tasks.finish()
        assert sandboxes._generations[0]._sandboxes == set()


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


async def test_a_spare_that_died_is_not_used(nothing_left: None) -> None:
    async with Sandboxes(Policy(preload=(), spares=1)) as sandboxes:
        await (await sandboxes.open()).close()
        while not sandboxes._spares:
            await asyncio.sleep(0.02)
        await sandboxes._spares[0].reset()
        given = await sandboxes.open()
        assert await value(given, "6 * 7") == 42
        await given.close()


async def test_no_more_spares_are_made_than_configured() -> None:
    async with Sandboxes(Policy(preload=(), spares=2)) as sandboxes:
        opened = [await sandboxes.open() for _ in range(5)]
        while len(sandboxes._spares) < 2:
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.1)
        assert len(sandboxes._spares) == 2
        await asyncio.gather(*(sandbox.close() for sandbox in opened))


@pytest.mark.long
async def test_closing_at_any_moment_leaves_nothing(nothing_left: None) -> None:
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


@pytest.mark.long
async def test_many_sessions_leave_nothing(nothing_left: None) -> None:
    async with Sandboxes(Policy(preload=())) as sandboxes:

        async def one() -> None:
            for _ in range(10):
                sandbox = await sandboxes.open()
                assert await value(sandbox, "6 * 7") == 42
                await sandbox.close()

        await asyncio.gather(*(one() for _ in range(8)))


async def test_the_death_of_an_interpreter_that_ran_no_cell_loses_nothing(nothing_left: None) -> None:
    async with Sandboxes(Policy(preload=())) as sandboxes:
        sandbox = await sandboxes.open()
        interpreter = await sandbox.interpreter()
        signal.pidfd_send_signal(interpreter.pidfd, signal.SIGKILL)
        while interpreter.alive:
            await asyncio.sleep(0.02)
        assert sandbox.ledger.contains("died", since=0) or sandbox.ledger.contains("killed", since=0)
        assert sandbox.ledger.between(0, sandbox.ledger.position) == State()
        await sandbox.close()
