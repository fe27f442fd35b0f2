"""Test the host's side of the fork server."""

import asyncio
import os
import signal
import socket
import subprocess
import threading
import time

import pytest

from aca_sessions import Policy, open_pool
from aca_sessions.errors import ConfigurationError, GuestDiedError, IsolationError
from aca_sessions.sandbox import forkserver
from aca_sessions.sandbox.forkserver import ForkServer, NumberAllocator
from aca_sessions.sandbox.policy import Limits

from ..conftest import aca_sessions, descendants, until

pytestmark = pytest.mark.slow


async def test_pools_of_one_process_share_one_fork_server(fork_server: ForkServer) -> None:
    before = descendants(os.getpid())
    async with open_pool(), open_pool():
        assert not descendants(os.getpid()) - before
    assert fork_server.alive


def test_threads_may_use_it_at_the_same_time(fork_server: ForkServer) -> None:
    trees = []
    threads = [threading.Thread(target=lambda: trees.append(fork_server.make_workspace(Limits()))) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({workspace.number for workspace in trees}) == 20
    for workspace in trees:
        fork_server.drop_workspace(workspace)


async def test_user_numbers_in_use_are_not_assigned_again() -> None:
    """Use three users instead of 65,535. Neither checkpoints of a session nor other sessions get the user of another session."""
    server = ForkServer.shared(policy := Policy(preload=("colorsys",), spares=0))
    server._numbers = NumberAllocator(3)
    async with open_pool(policy=policy) as pool:
        old = await pool.get_or_create("old")
        await old.run("x = 1; open('a', 'w').write('one')")
        for number in range(4):
            async with pool.session() as other:
                assert (await other.run("import os; os.listdir()")).text == "[]"
            assert (await old.run(f"y = {number}", transactional=True)).success
            assert (await old.run("1 / 0", transactional=True)).state.kind == "rolled_back"
        both = [await pool.get_or_create(name) for name in ("second", "third")]
        assert all([(await session.run("1")).success for session in both])
        with pytest.raises(IsolationError, match="all 3 users"):
            server.make_workspace(Limits())
        await old.checkpoint()
        assert (await old.run("x, y, open('a').read()")).text == "(1, 3, 'one')"
    server.release()


def test_a_user_is_free_again_after_its_last_tree() -> None:
    numbers = NumberAllocator(2)
    number, user = numbers.allocate()
    kept, _ = numbers.allocate(user)
    assert number == user != kept
    assert numbers.allocate()[1] != user
    numbers.release(user)
    with pytest.raises(IsolationError, match="in use"):
        numbers.allocate()
    numbers.release(user)
    assert numbers.allocate() == (user, user)


def test_it_outlives_the_thread_that_started_it() -> None:
    servers = []
    thread = threading.Thread(target=lambda: servers.append(ForkServer.shared(Policy(preload=("this",)))))
    thread.start()
    thread.join()
    servers[0].drop_workspace(servers[0].make_workspace(Limits()))
    servers[0].release()


@pytest.mark.usefixtures("nothing_left")
def test_the_last_release_ends_it() -> None:
    server = ForkServer.shared(Policy(preload=("colorsys",)))
    assert ForkServer.shared(Policy(preload=("colorsys",))) is server
    server.release()
    server.drop_workspace(server.make_workspace(Limits()))
    server.release()
    assert not server.alive


@pytest.mark.usefixtures("nothing_left")
def test_one_that_dies_before_it_is_sent_its_plan_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    start = forkserver._start

    def start_and_kill(python: str, control: socket.socket) -> "subprocess.Popen[bytes]":
        process = start(python, control)
        process.kill()
        process.wait()
        return process

    monkeypatch.setattr(forkserver, "_start", start_and_kill)
    server = ForkServer.shared(Policy(preload=("colorsys",)))
    assert failure_of(server) is GuestDiedError
    server.release()


@pytest.mark.long
def test_a_release_while_libraries_load_leaves_no_process() -> None:
    for processes in (1, 2, 3, 3, 3, 3, 3, 3):
        server = ForkServer.shared(Policy(preload=("numpy", "pandas")))
        own = server.process.pid
        below = descendants_while_it_boots(server, processes - 1)
        server.release()
        wait_for_end(below | {own})


def test_a_release_while_a_thread_waits_for_it_leaves_no_process() -> None:
    for _ in range(8):
        server = ForkServer.shared(Policy(preload=("numpy", "pandas")))
        own, failures = server.process.pid, []
        waiting = threading.Thread(target=lambda server=server, failures=failures: failures.append(failure_of(server)))
        waiting.start()
        below = descendants_while_it_boots(server, 2)
        server.release()
        wait_for_end(below | {own})
        waiting.join()
        assert failures in ([GuestDiedError], [None])  # on a busy machine it may have been ready first


def wait_for_end(processes: set[int]) -> None:
    """Wait until processes that were killed have ended: on a busy machine that takes a moment. pytest's timeout ends a wait that hangs."""
    while any(os.path.exists(f"/proc/{pid}") for pid in processes):
        time.sleep(0.01)


def descendants_while_it_boots(server: ForkServer, number: int) -> set[int]:
    """Return the processes below a fork server once there are so many. After its boot there are fewer, which a busy machine may meet."""
    deadline = time.monotonic() + 10
    while len(below := descendants(server.process.pid)) < number and time.monotonic() < deadline:
        assert server.alive
    return below


def failure_of(server: ForkServer) -> type[Exception] | None:
    try:
        server.wait_until_ready()
    except Exception as error:
        return type(error)
    return None


async def test_preloaded_modules_are_available() -> None:
    async with open_pool(policy=Policy(preload=("colorsys",))) as pool, pool.session() as session:
        assert (await session.run("import sys; 'colorsys' in sys.modules")).value is True


def test_a_module_that_cannot_be_preloaded_is_named() -> None:
    run = aca_sessions("run", "1", env=os.environ | {"ACASessions__Sandbox__Preload": "nosuchmodule"})
    assert run.returncode == 2
    assert "nosuchmodule" in run.stderr
    assert "Preload" in run.stderr


async def test_an_invalid_python_is_named() -> None:
    with pytest.raises(ConfigurationError, match="ACASessions:Sandbox:Python"):
        async with open_pool(policy=Policy(python="/nonexistent")):
            pass


def kill(preload: tuple[str, ...]) -> None:
    key = next(key for key in ForkServer._shared if key[2] == preload)
    ForkServer._shared[key].process.kill()


async def test_a_dead_zygote_is_replaced_and_the_loss_is_reported() -> None:
    async with open_pool(policy=Policy(preload=("cmd",))) as pool, pool.session() as session:
        await session.run("x = 1")
        server = next(server for key, server in ForkServer._shared.items() if key[2] == ("cmd",))
        below = descendants(server.process.pid)
        kill(("cmd",))
        await until(lambda: asyncio.sleep(0, not below & descendants(os.getpid())))
        await asyncio.sleep(0.1)  # the session's end is read by the event loop
        result = await session.run("'x' in globals()")
        assert (result.value, str(result.state)) == (False, "lost: crash")
        assert str((await session.run("1")).state) == "kept"
        async with pool.session() as another:
            assert (await another.run("1")).success


async def test_a_zygote_that_dies_ends_its_cells_and_their_results_report_it() -> None:
    async with open_pool(policy=Policy(preload=("code",))) as pool, pool.session() as session:
        async for event in session.stream("print('before', flush=True)\nwhile True: pass"):
            if event.kind == "stdout":
                kill(("code",))
            elif event.kind == "result":
                result = event.result
        assert (result.success, result.stdout, str(result.state)) == (False, "before\n", "lost: crash")


def test_an_unanswered_request_ends_the_zygote() -> None:
    """Otherwise a late answer would be taken for that of the next request."""
    server = ForkServer.shared(Policy(preload=("shlex",)))
    server.wait_until_ready()
    for pid in descendants(server.process.pid) | {server.process.pid}:
        os.kill(pid, signal.SIGSTOP)
    server._control.settimeout(0.1)
    for _ in range(2):
        with pytest.raises(GuestDiedError):
            server.make_workspace(Limits())
    assert not server.alive
    server.release()


async def test_a_terminals_interrupt_does_not_reach_the_sandbox(fork_server: ForkServer) -> None:
    assert os.getpgid(fork_server.process.pid) != os.getpgid(0)


def test_an_error_at_the_start_is_raised_for_every_caller() -> None:
    server = ForkServer.shared(Policy(preload=("nosuchmodule",)))
    for _ in range(3):
        with pytest.raises(IsolationError, match="nosuchmodule"):
            server.wait_until_ready()
    server.release()


def test_a_request_to_a_dead_zygote_is_an_error() -> None:
    server = ForkServer.shared(Policy(preload=("sched",)))
    server.wait_until_ready()
    server.process.kill()
    server.process.wait()

    def ask() -> None:
        for _ in range(1000):  # processes that it has started end a moment later
            server.drop_workspace(server.make_workspace(Limits()))
            time.sleep(0.01)

    with pytest.raises(GuestDiedError):
        ask()
    server.release()
