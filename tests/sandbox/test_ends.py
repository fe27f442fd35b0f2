"""Test that the host releases all resources of a session, whatever fails on the way."""

import asyncio
import contextlib
import os
import signal
import socket

import pytest

from aca_sessions.errors import GuestDiedError, IsolationError
from aca_sessions.lifetime import _Handover, create_in_thread
from aca_sessions.sandbox.forkserver import ForkServer
from aca_sessions.sandbox.limits.watchdog import Watchdog
from aca_sessions.sandbox.policy import Limits
from aca_sessions.sandbox.session.descriptors import SpawnedSession, host_pid
from aca_sessions.sandbox.session.interpreter import start

from ..conftest import descendants

pytestmark = pytest.mark.slow


class Refusing(Watchdog):
    """Memory that cannot be counted."""

    async def start(self, *_: object) -> None:
        raise OSError(13, "Permission denied")


async def gone(pidfd: int) -> None:
    """Wait until a process has ended."""
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(pidfd, ended.set)
    await ended.wait()
    asyncio.get_running_loop().remove_reader(pidfd)


def spawned_by(fork_server: ForkServer) -> tuple[SpawnedSession, object]:
    place = fork_server.make_session_resources(Limits())
    return fork_server.spawn(place[0], Limits()), place


def test_what_a_thread_makes_for_an_ended_loop_is_undone() -> None:
    undone: list[int] = []
    begun, go_on, ended = socket.socketpair(), socket.socketpair(), socket.socketpair()

    def make() -> int:
        begun[0].send(b"x")
        go_on[1].recv(1)
        return 7

    def undo(made: int) -> None:
        undone.append(made)
        ended[0].send(b"x")

    async def leave_it() -> None:
        asyncio.get_running_loop().task = asyncio.create_task(create_in_thread(make, undo))
        await asyncio.get_running_loop().sock_recv(_unblocked(begun[1]), 1)

    asyncio.run(leave_it())
    go_on[0].send(b"x")
    ended[1].recv(1)
    assert undone == [7]
    for end in (*begun, *go_on, *ended):
        end.close()


def _unblocked(end: socket.socket) -> socket.socket:
    end.setblocking(False)
    return end


def test_what_is_made_and_no_longer_wanted_is_undone() -> None:
    undone: list[int] = []
    handover = _Handover(lambda: 7, undone.append)
    handover.make()
    handover.abandon()
    assert undone == [7]


@pytest.mark.usefixtures("nothing_left")
def test_a_spawned_session_that_is_not_taken_over_ends(fork_server: ForkServer) -> None:
    spawned, place = spawned_by(fork_server)
    spawned.close()
    fork_server.drop_session_resources(place)


@pytest.mark.usefixtures("nothing_left")
async def test_a_start_whose_memory_cannot_be_counted_leaves_nothing(fork_server: ForkServer) -> None:
    spawned, place = spawned_by(fork_server)
    memory = Refusing(Limits(), fork_server._together)
    with pytest.raises(IsolationError, match="control group"):
        await start(spawned, Limits(), workspace=place[0].number, memory=memory, proxy=None, mount=fork_server.mount_workspace)
    fork_server.drop_session_resources(place)


@pytest.mark.usefixtures("nothing_left")
async def test_a_start_that_is_cancelled_leaves_nothing(fork_server: ForkServer) -> None:
    for turns in range(1, 6):
        spawned, place = spawned_by(fork_server)
        starting = asyncio.create_task(
            start(spawned, Limits(), workspace=place[0].number, memory=place[1], proxy=None, mount=fork_server.mount_workspace)
        )
        for _ in range(turns):
            await asyncio.sleep(0)
        starting.cancel()
        await asyncio.wait((starting,))
        fork_server.drop_session_resources(place)


@pytest.mark.usefixtures("nothing_left")
async def test_a_cancelled_close_still_releases_everything(fork_server: ForkServer) -> None:
    spawned, place = spawned_by(fork_server)
    interpreter, init = (
        await start(spawned, Limits(), workspace=place[0].number, memory=place[1], proxy=None, mount=fork_server.mount_workspace),
        os.dup(spawned.init),
    )
    closing = asyncio.create_task(interpreter.close())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait((closing,))
    await gone(init)
    os.close(init)
    fork_server.drop_session_resources(place)


@pytest.mark.usefixtures("nothing_left")
async def test_a_process_that_has_ended_has_no_number(fork_server: ForkServer) -> None:
    """The descriptor of an ended process shows -1, or 0 for one of another namespace. Written to a control group, that would mean this
    process.
    """
    spawned, place = spawned_by(fork_server)
    assert host_pid(spawned.init) in descendants(os.getpid())
    signal.pidfd_send_signal(spawned.init, signal.SIGKILL)
    await gone(spawned.init)
    async with asyncio.timeout(120):
        with contextlib.suppress(GuestDiedError):
            while host_pid(spawned.init):  # its parent reaps it a moment later
                await asyncio.sleep(0.01)
    with pytest.raises(GuestDiedError):
        host_pid(spawned.init)
    spawned.close()
    fork_server.drop_session_resources(place)


@pytest.mark.usefixtures("nothing_left")
async def test_two_parallel_closes_remove_no_reader_of_others(fork_server: ForkServer) -> None:
    spawned, place = spawned_by(fork_server)
    interpreter = await start(spawned, Limits(), workspace=place[0].number, memory=place[1], proxy=None, mount=fork_server.mount_workspace)
    number, heard = spawned.init, asyncio.Event()
    closing = [asyncio.create_task(interpreter.close()) for _ in range(2)]
    await asyncio.wait(closing, return_when=asyncio.FIRST_COMPLETED)
    end, other_end = os.pipe()
    os.dup2(end, number)  # stands for the next file that is opened and gets the number
    asyncio.get_running_loop().add_reader(number, heard.set)
    await asyncio.wait(closing)
    os.write(other_end, b"x")
    await asyncio.wait_for(heard.wait(), 120)
    asyncio.get_running_loop().remove_reader(number)
    for descriptor in (number, end, other_end):
        os.close(descriptor)
    fork_server.drop_session_resources(place)


@pytest.mark.usefixtures("nothing_left")
async def test_a_late_report_of_a_kill_does_not_change_its_cause(fork_server: ForkServer) -> None:
    """On a busy machine the end of the guest's frames may be noticed a second before the report of its death arrives."""
    spawned, place = spawned_by(fork_server)
    interpreter = await start(spawned, Limits(), workspace=place[0].number, memory=place[1], proxy=None, mount=fork_server.mount_workspace)
    interpreter.runtime.kill("memory")
    interpreter._record_death("crash")  # called when the guest has been silent for a second
    assert interpreter.cause_of_death == "memory"
    await interpreter.close()
    fork_server.drop_session_resources(place)
