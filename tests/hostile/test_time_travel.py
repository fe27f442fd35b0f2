"""Hostile code in sessions that are kept, gone back to and branched."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aca_sessions import Policy, Session, SessionPool, open_pool
from aca_sessions.errors import ACASessionsError, SnapshotError

from ..conftest import IMAGE

pytestmark = pytest.mark.slow


@pytest.fixture
async def pool() -> AsyncIterator[SessionPool]:
    async with open_pool(policy=Policy(image=IMAGE, spares=0)) as opened:
        yield opened


@pytest.fixture
async def session(pool: SessionPool) -> AsyncIterator[Session]:
    async with pool.session() as leased:
        await leased.run("x = 1")
        yield leased


LINKS = """import os, socket
os.symlink('/etc/passwd', 'file'); os.symlink('/', 'folder'); os.symlink('/proc/self/root', 'magic')
os.mkfifo('pipe'); socket.socket(socket.AF_UNIX).bind('socket')"""


async def test_files_are_copied_and_put_back_through_no_link(session: Session) -> None:
    """Keeping a session and going back copies its own files alone: links stay links, pipes and sockets are left out and told."""
    await session.run(LINKS)
    checkpoint = await session.checkpoint()
    await session.run("import shutil; [os.unlink(name) for name in os.listdir()]; os.mkdir('folder'); open('folder/new', 'w').close()")
    await session.rollback()
    found = await session.run("sorted(os.listdir()), [os.readlink(name) for name in ('file', 'folder', 'magic')]")
    assert found.text == "(['file', 'folder', 'magic'], ['/etc/passwd', '/', '/proc/self/root'])"
    assert checkpoint.size == 0
    assert "2 pipes, sockets or devices among the files" in checkpoint.left_behind


@pytest.mark.parametrize("forged", ["1", "os.getpid()", "2**31", "-1", "0", "None", "'text'"])
async def test_a_snapshot_is_a_process_of_its_own_session(pool: SessionPool, session: Session, forged: str) -> None:
    """A session that forges which process its snapshot is names none but its own, harms nobody else, and is usable after a reset."""
    await session.run(f"import os; real = os.fork; os.fork = lambda: {forged}")
    async with pool.session() as other:
        await other.run("y = 2")
        for act in (session.checkpoint, session.rollback, session.branch):
            try:
                await act()
            except ACASessionsError:
                continue
        assert (await other.run("y")).value == 2
    await session.reset()
    assert (await session.run("6 * 7")).value == 42


DEEP = """import os
for _ in range(3000):
    os.mkdir('d' * 20); os.chdir('d' * 20)
os.chdir('/mnt/data')"""


async def test_going_back_removes_what_is_too_deep_to_be_named(session: Session) -> None:
    """Folders that are too deep to be named are no obstacle to going back, and are refused when they are to be kept."""
    await session.checkpoint()
    await session.run(DEEP)
    with pytest.raises(SnapshotError, match="cannot be copied"):
        await session.checkpoint("deep")
    await session.rollback()
    assert (await session.run("import os; x, os.listdir()")).text == "(1, [])"


SWAP = """import os
top, names, armed = os.open('/mnt/data', os.O_RDONLY), [f'{number:02}' for number in range(50)], [True]
for name in names: os.mkdir(name); os.chmod(name, 0o777)
def swap():
    if not armed or not armed.pop() or os.fork():
        return
    def each(change):
        for name in names:
            try: change(name, 'x' + name)
            except OSError: pass
    while True:
        each(lambda name, aside: os.rename(name, aside, src_dir_fd=top, dst_dir_fd=top))
        each(lambda name, aside: os.symlink(VICTIM, name, dir_fd=top))
        each(lambda name, aside: os.unlink(name, dir_fd=top))
        each(lambda name, aside: os.rename(aside, name, src_dir_fd=top, dst_dir_fd=top))"""


async def test_a_folder_that_becomes_a_link_leads_going_back_to_no_other_folder(session: Session, tmp_path: Path) -> None:
    """While files are put back, a process of a branch that swaps folders for links changes the mode and time of no folder of the host's."""
    victim = tmp_path / "victim"
    victim.mkdir(0o750)
    before = victim.stat()
    await session.run(SWAP.replace("VICTIM", repr(str(victim))))
    await session.checkpoint()
    await session.run("os.register_at_fork(after_in_child=swap)")
    await session.branch()
    for _ in range(50):
        with contextlib.suppress(SnapshotError):
            await session.rollback()
    after = victim.stat()
    assert (after.st_mode, after.st_mtime_ns, os.listdir(victim)) == (before.st_mode, before.st_mtime_ns, [])


STRAYS = """import subprocess
for _ in range(20):
    subprocess.Popen(['sh', '-c', '(while :; do echo again >> late; sleep 0.01; done) &'])"""


async def test_what_was_undone_goes_on_nowhere(session: Session) -> None:
    """Processes of what was undone write nothing into the files that are put back, not even those that left their parents."""
    await session.checkpoint()
    await session.run(STRAYS)
    await session.rollback()
    await asyncio.sleep(0.2)
    result = await session.run("import os; os.listdir()")
    assert (result.text, result.processes) == ("[]", ())


AS_MANY_AS_THERE_ARE = """import subprocess
started = []
try:
    while True: started.append(subprocess.Popen(['sleep', '60']))
except OSError: pass
len(started)"""


async def test_a_family_has_the_limits_of_one_session(session: Session) -> None:
    """A session, its checkpoints and its branches have one session's processes and memory together."""
    branches = await session.branch(3)
    counts = [(await branch.run(AS_MANY_AS_THERE_ARE)).value for branch in branches]
    assert sum(count for count in counts if isinstance(count, int)) < 128


async def test_a_branch_finds_no_file_of_its_siblings(session: Session) -> None:
    """Each branch has its own /mnt/data and finds no other's by any name; what was open when it began is shared."""
    await session.run("import os")
    first, second = await session.branch(2)
    await first.run("open('secret', 'w').write('mine')")
    found = await second.run("os.listdir(), os.path.exists('/mnt/data/secret'), os.listdir('/')")
    assert "secret" not in str(found.text)


POLLER = """import subprocess
looks = 'ls /mnt/data; cat /mnt/data/secret 2>/dev/null; echo planted > /mnt/data/planted'
subprocess.run(['sh', '-c', f'(while :; do {looks}; done) >> /tmp/seen 2>/dev/null &'])
while not os.path.getsize('/tmp/seen'): pass"""
BRANCH = """open('/mnt/data/secret', 'w').write('TOPSECRET'); before = os.path.getsize('/tmp/seen')
time.sleep(0.3); os.listdir('/mnt/data'), os.path.getsize('/tmp/seen') - before"""


async def test_what_a_session_left_running_reaches_no_file_of_its_branch(session: Session) -> None:
    """What a session left running sees, reads and changes no file of its branch by name: it runs only while its own files are shown."""
    await session.run("import os, time")
    (branch,) = await session.branch()
    await session.run(POLLER)
    for _ in range(3):
        assert (await branch.run(BRANCH)).text == "(['secret'], 0)"
        own = await session.run("before = os.path.getsize('/tmp/seen')\nwhile os.path.getsize('/tmp/seen') == before: pass\nos.listdir()")
        assert own.text == "['planted']"
    assert (await session.run("set(open('/tmp/seen').read().split())")).text == "{'planted'}"
