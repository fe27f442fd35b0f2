"""Test a process with few or no descriptors left: a request that needs one fails with a clear error, and nothing else does."""

import contextlib
import os
import re
import resource
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aca_sessions import Policy, Session, SessionPool, open_pool
from aca_sessions.errors import ACASessionsError, GuestDiedError
from aca_sessions.sandbox.forkserver import ForkServer
from aca_sessions.sandbox.limits.capacity import DESCRIPTORS
from aca_sessions.sandbox.sandboxes import Sandboxes

from ..conftest import descendants, mostly_long

pytestmark = pytest.mark.slow
POLICY = Policy(preload=(), spares=0)
FEW = range(21)
_CEILING = 512


@contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """Leave this process that many free descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (_CEILING, hard))
    ballast: list[int] = []
    try:
        with contextlib.suppress(OSError):
            while True:
                ballast.append(os.dup(0))
        for _ in range(count):
            os.close(ballast.pop())
        yield
    finally:
        for descriptor in ballast:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def open_now() -> dict[str, str]:
    """Return what is open, by number."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the listing itself
            found[name] = os.readlink(f"/proc/self/fd/{name}")
    return found


def trees_of_sessions() -> int:
    """Count the /mnt/data that the fork servers of this process keep."""
    seen = [_read(Path(f"/proc/{pid}/mountinfo")) for pid in descendants(os.getpid())]
    return len({line for text in seen for line in text.splitlines() if " /.sess/" in line})  # several processes see the same mount


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


@pytest.fixture
async def few() -> AsyncIterator[SessionPool]:
    async with open_pool(policy=POLICY, max_concurrent_sessions=60) as pool:
        yield pool


async def open_another(pool: SessionPool, session: Session) -> None:
    """Open a session as a server does that did not foresee the shortage."""
    async with Sandboxes(POLICY) as sandboxes:
        sandbox = await sandboxes.open()
        try:
            await sandbox.interpreter()
        finally:
            await sandbox.close()


async def take_checkpoint(pool: SessionPool, session: Session) -> None:
    await session.checkpoint()


async def branch(pool: SessionPool, session: Session) -> None:
    for one in await session.branch():
        await one.close()


async def reset(pool: SessionPool, session: Session) -> None:
    await session.reset()
    result = await session.run("x = 1")
    if result.error is not None:
        raise ACASessionsError(result.error.message)


async def upload(pool: SessionPool, session: Session) -> None:
    await session.upload_file("f.txt", b"x" * 100_000)


OPERATIONS: dict[str, Callable[[SessionPool, Session], Awaitable[None]]] = {
    function.__name__: function for function in (open_another, take_checkpoint, branch, reset, upload)
}


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("operation", mostly_long(OPERATIONS, "branch"))
@pytest.mark.long
async def test_an_operation_that_fails_for_lack_of_descriptors_leaves_nothing_open(few: SessionPool, operation: str) -> None:
    act, failed = OPERATIONS[operation], []
    beside = await few.get_or_create("beside")
    await beside.run("y = 2")
    await act(few, await few.get_or_create("first"))  # after this, what is imported and read once has been
    await few.terminate("first")
    for count in FEW:
        session = await few.get_or_create("first")
        await session.run("x = 1")
        before, trees = open_now(), trees_of_sessions()
        with descriptors_left(count):
            try:
                await act(few, session)
            except ACASessionsError as error:
                failed.append(str(error))
        assert str((await beside.run("y")).state) == "kept"
        if operation != "reset":
            assert str((await session.run("x")).state) == "kept"
        await few.terminate("first")
        assert trees_of_sessions() == trees - 1
        session = await few.get_or_create("first")
        await session.run("x = 1")
        assert (count, open_now().keys()) == (count, before.keys())
    assert len(failed) in range(1, len(FEW))
    assert [said for said in failed if not re.search("no (file )?descriptor left", said)] == []


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4])
async def test_a_session_that_cannot_open_leaves_the_state_of_others(few: SessionPool, fork_server: ForkServer, count: int) -> None:
    first, second = await few.get_or_create("first"), await few.get_or_create("second")
    await first.run("x = 1")
    await second.run("y = 2")
    with descriptors_left(count):
        with pytest.raises(GuestDiedError, match="no descriptor left"):
            await open_another(few, first)
        assert (await first.run("x")).value == 1
    assert fork_server.alive
    assert [(await first.run("x")).value, (await second.run("y")).value] == [1, 2]
    assert (await (await few.get_or_create("one more")).run("6 * 7")).value == 42


async def test_a_session_takes_no_more_descriptors_than_are_reserved_for_it(few: SessionPool) -> None:
    sessions = [await few.get_or_create(str(number)) for number in range(6)]
    await sessions[0].run("x = 1")
    before = len(open_now())
    for session in sessions[1:]:
        await session.run("x = 1")
    assert len(open_now()) - before <= 5 * DESCRIPTORS


MANY = """
import asyncio
from aca_sessions import Policy, open_pool

async def main():
    async with open_pool(policy=Policy(spares=0, preload=()), max_concurrent_sessions=30) as pool:
        sessions = [await pool.get_or_create(str(number)) for number in range(30)]
        print([(await session.run("6 * 7")).value for session in sessions] == [42] * 30)

asyncio.run(main())
"""


@pytest.mark.long
def test_a_low_soft_limit_is_raised_when_a_pool_opens() -> None:
    limited = f"ulimit -Sn 100; exec {sys.executable} -c '{MANY}'"
    done = subprocess.run(["sh", "-c", limited], capture_output=True, text=True, timeout=100, check=False)
    assert (done.stdout, done.stderr) == ("True\n", "")
