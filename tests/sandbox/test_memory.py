"""Limits that count for a whole session, and for all of them together, whoever counts."""

import contextlib
import glob
import os
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from aca_sessions import Limits, Policy, Session, open_pool
from aca_sessions.sandbox.cgroup import GroupLimits, Groups, VersionOne, VersionTwo
from aca_sessions.sandbox.policy import MB, Together

from ..conftest import ROOT

pytestmark = pytest.mark.slow
SMALL = Policy(limits=replace(Limits(), memory=512 * MB, disk=32 * MB, temporary=16 * MB), preload=(), spares=0)
HOG = "import sys, time; x = bytearray(200 << 20); x[::4096] = b'x' * len(x[::4096]); time.sleep(30)"
FOUR_HOGS = f"""
import subprocess, sys, time
hogs = [subprocess.Popen([sys.executable, "-c", {HOG!r}]) for _ in range(5)]
while all(hog.poll() is None for hog in hogs):
    time.sleep(0.05)
"killed"
"""


@pytest.fixture
async def small() -> AsyncIterator[Session]:
    async with open_pool(policy=SMALL) as pool, pool.session() as session:
        yield session


async def test_one_process_over_the_limit_gets_a_memory_error_and_goes_on(small: Session) -> None:
    await small.run("x = 1")
    assert (await small.run("bytearray(600 << 20)")).error.name == "MemoryError"
    assert str((await small.run("x")).state) == "kept"


async def test_several_processes_do_not_have_more_than_the_session_may(small: Session) -> None:
    result = await small.run(FOUR_HOGS, timeout=20)
    assert result.value == "killed" or str(result.state) == "lost: memory"
    assert (await small.run("6 * 7")).value == 42


async def test_children_over_the_limit_are_no_reason_for_a_later_death(small: Session) -> None:
    for _ in range(2):
        await small.run(f"{FOUR_HOGS}\nfor hog in hogs:\n    hog.kill(); hog.wait()", timeout=20)
        result = await small.run("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
        assert str(result.state) == "lost: killed"


async def test_memory_without_an_address_is_counted_or_refused(small: Session) -> None:
    await small.run("open('kept.txt', 'w').write('kept')")
    fill = "import os\nfor n in range(1000):\n    os.write(os.memfd_create(str(n)), b'x' * (1 << 20))"
    result = await small.run(fill)
    assert result.error.name == "PermissionError" or str(result.state) == "lost: memory"
    assert (await small.run("open('kept.txt').read()")).value == "kept"


FILL = """
for name in ('/mnt/data/f', '/tmp/f', '/dev/shm/f'):
    try:
        open(name, 'wb').write(bytes(64 << 20))
    except OSError:
        pass
x = bytearray(300 << 20)
x[::4096] = b'x' * len(x[::4096])
len(x) >> 20
"""


async def test_full_folders_and_full_memory_fit_at_the_same_time(small: Session) -> None:
    result = await small.run(FILL)
    assert (result.value, str(result.state)) == (300, "kept")


BOMB = """
import os, time
count = 0
try:
    while True:
        if os.fork() == 0:
            time.sleep(20)
        count += 1
except OSError:
    pass
count
"""


def already_there() -> int:
    """Threads that the kernel counts with ours: of nobody and of sessions where the host is root, else of this user."""
    found = 0
    for status in glob.glob("/proc/[0-9]*/status"):
        with contextlib.suppress(OSError):
            told = dict(line.split(":", 1) for line in Path(status).read_text().splitlines() if ":" in line)
            uid = int(told["Uid"].split()[0])
            found += int(told["Threads"]) * (uid >= 65534 if os.geteuid() == 0 else uid == os.getuid())
    return found


async def test_all_sessions_together_have_no_more_processes_than_they_may() -> None:
    async with open_pool(policy=replace(SMALL, together=Together(processes=already_there() + 60))) as pool:
        async with pool.session() as first, pool.session() as second:
            await second.run("1")
            counts = [(await session.run(BOMB)).value for session in (first, second)]
            assert 30 < sum(counts) < 70
            assert (await second.run("6 * 7")).value == 42
        async with pool.session() as third:
            assert (await third.run("6 * 7")).value == 42


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make and hide control groups here")
def test_without_control_groups_somebody_looks() -> None:
    """The same attempts in a mount namespace that shows no control group."""
    hidden = f"umount -a -t cgroup,cgroup2; exec {sys.executable} -c '{textwrap.dedent(_LOOKED_AT)}'"
    done = subprocess.run(["unshare", "--mount", "sh", "-c", hidden], capture_output=True, text=True, timeout=60, cwd=ROOT, check=False)
    assert done.stdout.splitlines() == ["None", "lost: memory", "PermissionError", "42"], done.stderr


_LOOKED_AT = """
import asyncio
from aca_sessions import open_pool
from aca_sessions.sandbox.cgroup import Groups
from aca_sessions.sandbox.policy import Together
from tests.sandbox.test_memory import FOUR_HOGS, SMALL

async def main():
    print(Groups.shared(Together()))
    async with open_pool(policy=SMALL) as pool, pool.session() as session:
        print((await session.run(FOUR_HOGS)).state)
        print((await session.run("import os; os.memfd_create(str(1))")).error.name)
        print((await session.run("6 * 7")).value)

asyncio.run(main())
"""


@pytest.mark.skipif(VersionOne.find() is None and VersionTwo.find() is None, reason="this user may make no control groups")
def test_the_group_of_all_sessions_is_gone_when_its_host_is_killed() -> None:
    start = "import time\nfrom aca_sessions.sandbox.cgroup import Groups\nfrom aca_sessions.sandbox.policy import *\n"
    start += "groups = Groups.shared(Together())\ngroups.make(Limits())\nprint(*groups._tops, flush=True)\ntime.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", start], stdout=subprocess.PIPE, text=True) as host:
        tops = host.stdout.readline().split()
        assert tops
        assert all(map(os.path.isdir, tops))
        host.kill()
    janitor = subprocess.run(["sh", "-c", 'while [ -d "$1" ]; do sleep 0.05; done', "sh", tops[-1]], timeout=5, check=False)
    assert janitor.returncode == 0
    assert not any(map(os.path.isdir, tops))


@pytest.mark.skipif(VersionOne.find() is None and VersionTwo.find() is None, reason="this user may make no control groups")
def test_processor_time_is_limited_where_it_is_wanted() -> None:
    groups = Groups.shared(Together())
    group = groups.make(replace(Limits(), cpu=0.5))
    try:
        files = [folder / name for folder in group._folders for name in ("cpu.cfs_quota_us", "cpu.max")]
        assert [file.read_text().split()[0] for file in files if file.exists()] == ["50000"]
    finally:
        group.remove()
        groups.release()


def test_the_second_version_of_control_groups_is_written_to_in_its_own_words(tmp_path: Path) -> None:
    """A delegated hierarchy is not at hand everywhere: here are its files alone."""
    names = ("memory.max", "memory.swap.max", "memory.oom.group", "pids.max", "cpu.max", "cpu.weight", "memory.events")
    for name in names:
        (tmp_path / name).touch()
    VersionTwo(tmp_path.parent).limit([tmp_path], GroupLimits(memory=512 * MB, processes=64, cpu=1.5, weight=0.5))
    written = {name: (tmp_path / name).read_text() for name in names[:-1]}
    assert written == {
        "memory.max": str(512 * MB), "memory.swap.max": "0", "memory.oom.group": "1",
        "pids.max": "64", "cpu.max": "150000 100000", "cpu.weight": "50",
    }  # fmt: skip
    (tmp_path / "memory.events").write_text("low 0\nhigh 0\nmax 7\noom 2\noom_kill 3\n")
    assert VersionTwo(tmp_path.parent).kills([tmp_path]) == 3
