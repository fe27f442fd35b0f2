"""Test restarts of nginx and of the only server behind it, while a client is patient."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from aca_sessions import CodeInterpreter, open_interpreter

from ..conftest import until
from .cluster import Cluster, answers, needs_nginx

pytestmark = [pytest.mark.slow, pytest.mark.long, needs_nginx]
WAITING = "import os, time; open('begun', 'w').close()\nwhile not os.path.exists('go'): time.sleep(0.05)\nx += 1; x"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(1) as running:
        yield running


@pytest.fixture
async def interpreter(cluster: Cluster) -> AsyncIterator[CodeInterpreter]:
    async with open_interpreter(cluster.settings(PatienceSeconds=300)) as opened:
        yield opened


async def has_failed_once() -> None:
    """Let a client meet what is not there: it tries again after 0.05 s at the earliest."""
    for _ in range(20):
        await asyncio.sleep(0.05)


async def test_a_cell_waits_for_nginx_and_its_session_is_kept(cluster: Cluster, interpreter: CodeInterpreter) -> None:
    await interpreter.execute("patient", "x = 41")
    cluster.stop_nginx()
    running = asyncio.create_task(interpreter.execute("patient", "x + 1"))
    await has_failed_once()
    assert not running.done()
    cluster.start_nginx()
    result = await running
    assert (result.value, str(result.state)) == (42, "kept")


async def test_a_cell_that_runs_while_nginx_is_restarted_runs_once_and_its_result_is_fetched(
    cluster: Cluster, interpreter: CodeInterpreter
) -> None:
    async with cluster.members[0].direct() as direct:
        await interpreter.execute("runs on", "x = 41")
        running = await interpreter.start("runs on", WAITING)

        async def has_begun() -> bool:
            return any(file.name == "begun" for file in await direct.list_files("runs on"))

        waiting = asyncio.create_task(running.wait())
        await until(has_begun)
        cluster.stop_nginx()
        await has_failed_once()
        cluster.start_nginx()
        await direct.upload_file("runs on", "go", b"")
        result = await waiting
    assert (result.value, str(result.state)) == (42, "kept")


async def test_a_cell_waits_for_the_only_server_and_is_told_that_its_session_is_lost(
    cluster: Cluster, interpreter: CodeInterpreter
) -> None:
    (member,) = cluster.members
    await interpreter.execute("lost", "x = 41")
    member.end()
    running = asyncio.create_task(interpreter.execute("lost", "'x' in globals()"))
    await has_failed_once()
    assert not running.done()
    member.start()
    result = await running
    assert (result.value, str(result.state)) == (False, "lost: expired")
    assert answers(member.port)
