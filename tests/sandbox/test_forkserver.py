"""The zygote's host side."""

import asyncio
import os
import threading
import time

import pytest

from aca_sessions import Policy, open_pool
from aca_sessions.errors import ConfigurationError, GuestDiedError
from aca_sessions.sandbox.forkserver import ForkServer
from aca_sessions.sandbox.policy import Limits

from ..conftest import aca_sessions, descendants


async def test_pools_of_one_process_share_one_fork_server(fork_server: ForkServer) -> None:
    before = len(descendants(os.getpid()))
    async with open_pool(), open_pool():
        assert len(descendants(os.getpid())) == before
    assert fork_server.alive


def test_threads_may_ask_at_the_same_time(fork_server: ForkServer) -> None:
    trees = []
    threads = [threading.Thread(target=lambda: trees.append(fork_server.make_tree(Limits()))) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({tree.number for tree in trees}) == 20
    for tree in trees:
        fork_server.drop_tree(tree)


def test_it_outlives_the_thread_that_started_it() -> None:
    servers = []
    thread = threading.Thread(target=lambda: servers.append(ForkServer.shared(Policy(preload=("this",)))))
    thread.start()
    thread.join()
    servers[0].drop_tree(servers[0].make_tree(Limits()))
    servers[0].release()


@pytest.mark.usefixtures("nothing_left")
def test_the_last_release_ends_it() -> None:
    server = ForkServer.shared(Policy(preload=("colorsys",)))
    assert ForkServer.shared(Policy(preload=("colorsys",))) is server
    server.release()
    server.drop_tree(server.make_tree(Limits()))
    server.release()
    assert not server.alive


async def test_preloaded_modules_are_there() -> None:
    async with open_pool(policy=Policy(preload=("colorsys",))) as pool, pool.session() as session:
        assert (await session.run("import sys; 'colorsys' in sys.modules")).value is True


def test_a_module_that_cannot_be_preloaded_is_named() -> None:
    run = aca_sessions("run", "1", env=os.environ | {"ACASessions__Sandbox__Preload": "nosuchmodule"})
    assert run.returncode == 2
    assert "nosuchmodule" in run.stderr
    assert "Preload" in run.stderr


async def test_a_python_that_is_none_is_named() -> None:
    with pytest.raises(ConfigurationError, match="ACASessions:Sandbox:Python"):
        async with open_pool(policy=Policy(python="/nonexistent")):
            pass


async def test_a_dead_zygote_is_told_and_a_new_pool_works() -> None:
    policy = Policy(preload=("cmd",))
    async with open_pool(policy=policy) as pool, pool.session() as session:
        assert (await session.run("1")).success
        ForkServer._shared[next(key for key in ForkServer._shared if key[2] == ("cmd",))]._process.kill()
        await asyncio.sleep(0.3)
        result = await session.run("1")
        assert not result.success
        assert result.state.kind == "lost"
    async with open_pool(policy=policy) as pool, pool.session() as session:
        assert (await session.run("1")).success


def test_a_request_to_a_dead_zygote_says_so() -> None:
    server = ForkServer.shared(Policy(preload=("sched",)))
    server.wait_until_ready()
    server._process.kill()
    server._process.wait()
    time.sleep(0.1)
    with pytest.raises(GuestDiedError):
        server.make_tree(Limits())
    server.release()
