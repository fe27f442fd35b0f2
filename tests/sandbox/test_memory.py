"""Test limits for a whole session and for all sessions together, whether the kernel or the host counts."""

import asyncio
import contextlib
import errno
import glob
import os
import socket
import stat
import statistics
import struct
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from aca_sessions import Limits, Policy, Session, open_pool
from aca_sessions.sandbox.limits.cgroup import CgroupV1, CgroupV2, GroupLimits, Groups, kills_in
from aca_sessions.sandbox.limits.watchdog import SocketMemory, Watchdog
from aca_sessions.sandbox.policy import MB, Together
from aca_sessions.sandbox.sandboxes import Sandboxes
from aca_sessions.sandbox.session.descriptors import host_pid

from ..conftest import ROOT, descendants, mostly_long

pytestmark = pytest.mark.slow
PRIVATE = ["Private_Dirty", "Private_Clean"]
SMALL = Policy(limits=replace(Limits(), memory=512 * MB, disk=32 * MB, temporary=16 * MB), preload=(), spares=0)
HOG = "import sys, time; x = bytearray(200 << 20); x[::4096] = b'x' * len(x[::4096]); time.sleep(300)"
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


async def test_one_process_over_the_limit_gets_a_memory_error_and_continues(small: Session) -> None:
    await small.run("x = 1")
    assert (await small.run("bytearray(600 << 20)")).error.name == "MemoryError"
    assert str((await small.run("x")).state) == "kept"


async def test_several_processes_together_are_limited_like_one(small: Session) -> None:
    result = await small.run(FOUR_HOGS, timeout=200)
    assert result.value == "killed" or str(result.state) == "lost: memory"
    assert (await small.run("6 * 7")).value == 42


@pytest.mark.long
async def test_children_killed_at_the_limit_are_not_the_reason_of_a_later_death(small: Session) -> None:
    for _ in range(2):
        await small.run(f"{FOUR_HOGS}\nfor hog in hogs:\n    hog.kill(); hog.wait()", timeout=200)
        result = await small.run("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
        assert str(result.state) == "lost: killed"


async def test_memory_outside_of_address_spaces_is_counted_or_refused(small: Session) -> None:
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
            time.sleep(600)
        count += 1
except OSError:
    pass
count
"""


def already_there() -> int:
    """Count the other threads of this user, which the kernel counts with ours. The fork server of root has a user of its own."""
    if os.geteuid() == 0:
        return 0
    found = 0
    for status in glob.glob("/proc/[0-9]*/status"):
        with contextlib.suppress(OSError):
            told = dict(line.split(":", 1) for line in Path(status).read_text().splitlines() if ":" in line)
            uid = int(told["Uid"].split()[0])
            found += int(told["Threads"]) * (uid == os.getuid())
    return found


async def test_resets_and_branches_leave_no_control_group() -> None:
    def groups() -> int:
        tops = [top for groups in Groups._shared.values() for top in groups._folders]
        return sum(len(folders) for top in tops for _, folders, _ in os.walk(top))

    async with open_pool(policy=SMALL) as pool, pool.session() as session:
        await session.run("1")
        before = groups()
        for _ in range(3):
            (branch,) = await session.branch()
            await branch.run("1")
            await branch.close()
            await session.reset()
            await session.run("1")
        assert groups() == before


@pytest.mark.skipif(CgroupV1.find() is None and CgroupV2.find() is None, reason="this user may make no control groups")
async def test_a_group_is_removed_a_moment_after_its_last_process() -> None:
    groups = Groups.shared(Together())
    group = groups.make(Limits())
    with subprocess.Popen(["sleep", "60"]) as process:
        await group.add_first_process(process.pid)
        group.remove()
        assert all(folder.exists() for folder in group._folders)
        process.kill()
    async with asyncio.timeout(120):
        while any(folder.exists() for folder in group._folders):
            await asyncio.sleep(0.05)
    groups.release()


@pytest.mark.skipif(CgroupV1.find() is None and CgroupV2.find() is None, reason="this user may make no control groups")
async def test_one_thread_waits_for_all_groups_that_are_removed() -> None:
    groups = Groups.shared(Together())
    made = [groups.make(Limits()) for _ in range(20)]
    with subprocess.Popen(["sleep", "60"]) as process:
        for group in made:
            await group.add_first_process(process.pid)
            group.remove()
        assert sum(isinstance(thread, threading.Timer) for thread in threading.enumerate()) <= 2  # one, and the one before it
        process.kill()
    async with asyncio.timeout(120):
        while any(folder.exists() for group in made for folder in group._folders):
            await asyncio.sleep(0.05)
    groups.release()


@pytest.mark.long
async def test_all_sessions_together_are_limited_in_processes() -> None:
    async with open_pool(policy=replace(SMALL, together=Together(processes=already_there() + 60))) as pool:
        async with pool.session() as first, pool.session() as second:
            await second.run("1")
            counts = [(await session.run(BOMB)).value for session in (first, second)]
            assert 30 < sum(counts) < 70
            assert (await second.run("6 * 7")).value == 42
        async with pool.session() as third:
            assert (await third.run("6 * 7")).value == 42


@pytest.mark.skipif(CgroupV1.find() is None and CgroupV2.find() is None, reason="this user may make no control groups")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may look at the memory of a session's processes here")
@pytest.mark.parametrize(("count", "rows"), mostly_long([(10, PRIVATE), (40, ["Pss"])], (10, PRIVATE)), ids=["private", "proportional"])
async def test_memory_of_an_idle_session_is_counted(count: int, rows: list[str]) -> None:
    """The group counts what a session does not share. Of the pages that all share with the fork server, many sessions have small parts."""
    async with open_pool(policy=SMALL, max_concurrent_sessions=count) as pool:
        before = descendants(os.getpid())
        sessions = [await pool.get_or_create(f"idle-{number}") for number in range(count)]
        for session in sessions:
            await session.run("x = 1")
        size = sum(kilobytes(pid, row) for pid in descendants(os.getpid()) - before for row in rows) << 10
        counted = sum(info.memory for info in await pool._interpreter.list_sessions())
    assert size <= 1.3 * counted
    assert counted <= 3 * size


def kilobytes(pid: int, name: str) -> int:
    """Return the value of a row of a process's smaps_rollup."""
    rows = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(row.split()[1]) for row in rows if row.startswith(f"{name}:"))


def computed(pid: int) -> int:
    """Return how many nanoseconds a process had a processor."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])


@pytest.mark.long
@pytest.mark.skipif("cpu" not in getattr(CgroupV1.find(), "_controllers", ()), reason="no control group of version 1 for processors here")
async def test_the_weight_of_sessions_applies_to_each_processor() -> None:
    """One busy session of a host with two processors gets as much as any other process, if all sessions weigh 0.5 on each of them."""
    busy = (
        "import time; end, start = time.time() + 4, time.process_time_ns()\nwhile time.time() < end: pass\ntime.process_time_ns() - start"
    )
    policy = replace(SMALL, together=Together(cpu_weight=1 / os.cpu_count()))
    async with open_pool(policy=policy) as pool, pool.session() as session:
        await session.run("1")
        others = [subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True) for _ in range(3 * os.cpu_count())]
        try:
            before = [computed(other.pid) for other in others]
            result = await session.run(busy, timeout=60)
            theirs = statistics.median(computed(other.pid) - earlier for other, earlier in zip(others, before, strict=True))
        finally:
            for other in others:
                other.kill()
                other.wait()
    assert result.value > theirs / 2


async def gives_way() -> bool:
    """Check in autogroup that a session and its branch have the weight of their policy while their cells run."""
    async with Sandboxes(SMALL) as sandboxes:
        sandbox = await sandboxes.open()
        branch = await sandbox.branch()
        wanted = sandbox.memory.nice
        other = subprocess.Popen(["sleep", "60"], start_new_session=True)  # setsid gives the process an autogroup; this one may have none
        given = []
        for interpreter in (sandbox.running, branch.running):
            weight = Path(f"/proc/{host_pid(interpreter.pidfd)}/autogroup")
            cell = asyncio.create_task(interpreter.run("cell", "import time; time.sleep(10)", 20))
            for _ in range(100):  # the kernel refuses another change by an ordinary user meanwhile
                with contextlib.suppress(BlockingIOError):
                    Path(f"/proc/{other.pid}/autogroup").write_text("0")
                await asyncio.sleep(0.005)
            while weight.read_text().split()[-1] != str(wanted) and not cell.done():
                await asyncio.sleep(0.01)
            given.append(not cell.done())
            await interpreter.interrupt("cell")
            await cell
        other.kill()
        other.wait()
        await branch.close()
        await sandbox.close()
    return given == [True] * 2


@pytest.mark.skipif(
    CgroupV1.find() is not None or CgroupV2.find() is not None,
    reason="only for hosts without control groups, which have a share of their own",
)
@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="this kernel has no autogroups")
async def test_without_control_groups_sessions_give_way_to_the_host() -> None:
    assert await gives_way()


@pytest.mark.long
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make and hide control groups here")
def test_without_control_groups_the_host_polls_memory() -> None:
    """Run the same attempts in a mount namespace that shows no control group."""
    hidden = f"umount -a -t cgroup,cgroup2; exec {sys.executable} -c '{textwrap.dedent(_LOOKED_AT)}'"
    done = subprocess.run(["unshare", "--mount", "sh", "-c", hidden], capture_output=True, text=True, timeout=240, cwd=ROOT, check=False)
    assert done.stdout.splitlines() == ["None", "lost: memory", "PermissionError", "42", "True"], done.stderr


_LOOKED_AT = """
import asyncio
from aca_sessions import open_pool
from aca_sessions.sandbox.limits.cgroup import Groups
from aca_sessions.sandbox.policy import Together
from tests.sandbox.test_memory import FOUR_HOGS, SMALL, gives_way

async def main():
    print(Groups.shared(Together()))
    async with open_pool(policy=SMALL) as pool, pool.session() as session:
        print((await session.run(FOUR_HOGS)).state)
        print((await session.run("import os; os.memfd_create(str(1))")).error.name)
        print((await session.run("6 * 7")).value)
    print(await gives_way())

asyncio.run(main())
"""


@pytest.mark.skipif(CgroupV1.find() is None and CgroupV2.find() is None, reason="this user may make no control groups")
def test_the_group_of_all_sessions_is_removed_when_its_host_is_killed() -> None:
    start = "import time\nfrom aca_sessions.sandbox.limits.cgroup import Groups\nfrom aca_sessions.sandbox.policy import *\n"
    start += "groups = Groups.shared(Together())\ngroups.make(Limits())\nprint(*groups._folders, flush=True)\ntime.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", start], stdout=subprocess.PIPE, text=True) as host:
        tops = host.stdout.readline().split()
        assert tops
        assert all(map(os.path.isdir, tops))
        host.kill()
    janitor = subprocess.run(["sh", "-c", 'while [ -d "$1" ]; do sleep 0.05; done', "sh", tops[-1]], timeout=120, check=False)
    assert janitor.returncode == 0
    assert not any(map(os.path.isdir, tops))


@pytest.mark.skipif(CgroupV1.find() is None and CgroupV2.find() is None, reason="this user may make no control groups")
def test_processor_time_is_limited_if_configured() -> None:
    groups = Groups.shared(Together())
    group = groups.make(replace(Limits(), cpu=0.5))
    try:
        files = [folder / name for folder in group._folders for name in ("cpu.cfs_quota_us", "cpu.max")]
        assert [file.read_text().split()[0] for file in files if file.exists()] == ["50000"]
    finally:
        group.remove()
        groups.release()


@pytest.mark.skipif(CgroupV1.find() is None, reason="version 1 of control groups is not here, or not for this user")
def test_without_the_cpu_controller_memory_and_processes_are_counted_and_each_session_has_the_weight() -> None:
    parents = {name: path for name, path in CgroupV1.find()._parents.items() if name in ("memory", "pids")}
    groups = Groups(CgroupV1(parents), Together(cpu_weight=0.125))
    groups._users = 1
    group = groups.make(replace(Limits(), cpu=0.5))
    try:
        assert [folder.is_dir() for folder in group._folders] == [True, True]
        assert (group.limits_cpu, group.nice) == (False, Together(cpu_weight=0.125).nice) == (False, 9)
    finally:
        group.remove()
        groups.release()


def with_read_only_cpu(script: str) -> list[str]:
    """Return what a program prints that may not make groups in the cpu hierarchy of version 1."""
    if os.geteuid() != 0 or CgroupV1.find() is None:
        pytest.skip("only root may make a mount read-only, and only version 1 has one for the cpu controller")
    command = f'mount -o remount,bind,ro "$0" && exec {sys.executable} -c "$1"'
    cpu = str(CgroupV1.find()._parents["cpu"])
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", command, cpu, script], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_cpu_hierarchy_that_cannot_be_written_does_not_hide_the_others() -> None:
    (found,) = with_read_only_cpu("from aca_sessions.sandbox.limits.cgroup import CgroupV1; print(*CgroupV1.find()._parents)")
    assert found.removesuffix(" trees") == "memory pids"


@pytest.mark.long
def test_the_report_says_that_processor_time_is_not_limited() -> None:
    script = """
import asyncio
from dataclasses import replace
from aca_sessions import Limits, Policy
from aca_sessions.sandbox.probe import report
told = asyncio.run(report(Policy(limits=replace(Limits(), cpu=0.5), preload=(), spares=0)))
print(told.full, *(finding.how for finding in told.findings if not finding.enforced))
"""
    assert with_read_only_cpu(script) == ["False not limited to 0.5 processors: that needs control groups with the cpu controller"]


@pytest.mark.parametrize(
    ("had", "handed_down"), [("cpuset cpu io memory pids\n", "+memory +pids +cpu"), ("memory pids\n", "+memory +pids")]
)
def test_the_cpu_controller_is_handed_down_where_the_parent_has_it(tmp_path: Path, had: str, handed_down: str) -> None:
    (tmp_path / "cgroup.controllers").write_text(had)
    (tmp_path / "cgroup.subtree_control").touch()
    CgroupV2(tmp_path.parent).enable_controllers([tmp_path])
    assert (tmp_path / "cgroup.subtree_control").read_text() == handed_down


def test_a_group_of_the_second_version_without_the_cpu_controller_says_so(tmp_path: Path) -> None:
    version = CgroupV2(tmp_path.parent)
    version.limit([tmp_path], GroupLimits(cpu=0.5, weight=0.125))
    assert not version.has_cpu([tmp_path])
    (tmp_path / "cpu.max").touch()
    assert version.has_cpu([tmp_path])


def test_the_common_memory_limit_of_version_two_does_not_kill_all_sessions(tmp_path: Path) -> None:
    """The kernel kills all of the topmost group with memory.oom.group that is within the exceeded limit."""
    for name in ("memory.max", "memory.oom.group"):
        (tmp_path / name).touch()
    CgroupV2(tmp_path.parent).limit([tmp_path], GroupLimits(memory=512 * MB))
    assert (tmp_path / "memory.oom.group").read_text() == "0"


def test_version_two_of_control_groups_is_written_in_its_own_format(tmp_path: Path) -> None:
    """Not every machine has a delegated hierarchy, so these are plain files."""
    names = ("memory.max", "memory.swap.max", "memory.oom.group", "pids.max", "cpu.max", "cpu.weight", "memory.events")
    for name in names:
        (tmp_path / name).touch()
    CgroupV2(tmp_path.parent).limit([tmp_path], GroupLimits(memory=512 * MB, processes=64, cpu=1.5, weight=0.5, kills_all=True))
    written = {name: (tmp_path / name).read_text() for name in names[:-1]}
    assert written == {
        "memory.max": str(512 * MB), "memory.swap.max": "0", "memory.oom.group": "1",
        "pids.max": "64", "cpu.max": "150000 100000", "cpu.weight": "50",
    }  # fmt: skip
    assert CgroupV2(tmp_path.parent).kill_count_file([tmp_path]) == str(tmp_path / "memory.events")
    assert kills_in("low 0\nhigh 0\nmax 7\noom 2\noom_kill 3\noom_group_kill 1\n") == 3


async def asked(kernel: socket.socket) -> int:
    """Return the number of the next request to list sockets: netlink(7)."""
    return int(struct.unpack_from("=I", await asyncio.get_running_loop().sock_recv(kernel, 1 << 12), 8)[0])


def answer(kernel: socket.socket, request: int, error: int = 0) -> None:
    """Answer that there are no sockets, or that they cannot be listed."""
    kernel.send(struct.pack("=IHHIIi", 20, 2 if error else 3, 0, request, 0, -error))


@pytest.mark.parametrize("earlier", [0, 5], ids=["first", "later"])
async def test_the_socket_that_lists_sockets_is_closed_after_the_last_listing(earlier: int) -> None:
    kernel, asking = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    kernel.setblocking(False)
    descriptor = asking.detach()
    watchdog = Watchdog(Limits(), Together(), lists_sockets=True)
    with kernel:
        beginning = ending = asyncio.create_task(watchdog.start(os.getpid(), lambda: None, descriptor))
        for _ in range(earlier):
            answer(kernel, await asked(kernel))
        request = await asked(kernel)
        if earlier:
            await beginning
            ending = asyncio.create_task(watchdog.stop(os.getpid()))
        else:
            beginning.cancel()
        for _ in range(10):
            await asyncio.sleep(0)
        assert stat.S_ISSOCK(os.fstat(descriptor).st_mode)  # a thread waits for an answer
        answer(kernel, request)
        for _ in range(4):
            answer(kernel, await asked(kernel))
        await asyncio.wait({ending})
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_sockets_that_cannot_be_listed_are_told_once_until_they_can(caplog: pytest.LogCaptureFixture) -> None:
    kernel, asking = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    memory = SocketMemory(asking.detach())
    with kernel, contextlib.closing(memory):
        told = []
        for request, error in enumerate((errno.ENOMEM, errno.ENOMEM, 0, errno.ENOMEM), 1):
            answer(kernel, request, error)
            memory.used(["TCP", "UDP"])
            told.append(len(caplog.records))
    assert told == [1, 1, 1, 2]


@pytest.mark.skipif(
    CgroupV1.find() is None and CgroupV2.find() is None,
    reason="this user may make no control groups: the host counts the memory, and may kill the session first (`lost: memory`)",
)
async def test_memory_used_up_by_small_values_is_an_error_that_keeps_the_session() -> None:
    """The traceback needs memory as well: of an interpreter that has none left to report the error, the variables would be lost."""
    limits = replace(Limits(), memory=128 * MB)
    async with open_pool(policy=Policy(limits=limits, preload=(), spares=0)) as pool, pool.session() as session:
        for cell in range(1, 4):
            result = await session.run("values = []\nwhile True: values.append(' ' * 1000 + str(len(values)))")
            assert (result.error.name, str(result.state)) == ("MemoryError", "kept")
            assert f"Cell In[{2 * cell - 1}], line 2" in result.error.traceback
            assert (await session.run("len(values) > 1000")).value is True
        for _ in range(2):  # with little left from the start
            result = await session.run("while True: values.append(' ' * 1000 + str(len(values)))")
            assert (result.error.name, str(result.state)) == ("MemoryError", "kept")
        assert (await session.run("del values; 1")).value == 1
