"""Attack checkpoints, rollback and branches with hostile code in the session."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from aca_sessions import Policy, Session, SessionPool, open_pool
from aca_sessions.errors import ACASessionsError, SnapshotError
from aca_sessions.models import CodeExecutionResult
from aca_sessions.sandbox.policy import MB, Limits
from aca_sessions.sandbox.sandbox import Sandbox
from aca_sessions.sandbox.sandboxes import Sandboxes

from ..conftest import IMAGE, mostly_long

pytestmark = pytest.mark.slow


@pytest.fixture
async def pool() -> AsyncIterator[SessionPool]:
    async with open_pool(policy=Policy(image=IMAGE, preload=(), spares=0)) as opened:
        yield opened


@pytest.fixture
async def session(pool: SessionPool) -> AsyncIterator[Session]:
    async with pool.session() as leased:
        await leased.run("x = 1")
        yield leased


LINKS = """import os, socket
os.symlink('/etc/passwd', 'file'); os.symlink('/', 'folder'); os.symlink('/proc/self/root', 'magic')
os.mkfifo('pipe'); socket.socket(socket.AF_UNIX).bind('socket')"""


async def test_files_are_copied_and_restored_through_no_link(session: Session) -> None:
    """Keeping a session and going back copies its own files alone: links stay links, pipes and sockets are left out and reported."""
    await session.run(LINKS)
    checkpoint = await session.checkpoint()
    await session.run("import shutil; [os.unlink(name) for name in os.listdir()]; os.mkdir('folder'); open('folder/new', 'w').close()")
    await session.rollback()
    found = await session.run("sorted(os.listdir()), [os.readlink(name) for name in ('file', 'folder', 'magic')]")
    assert found.text == "(['file', 'folder', 'magic'], ['/etc/passwd', '/', '/proc/self/root'])"
    assert checkpoint.size == 0
    assert "2 pipes, sockets or devices among the files" in checkpoint.left_behind


@pytest.mark.parametrize("forged", mostly_long(["1", "os.getpid()", "2**31", "-1", "0", "None", "'text'"], every=2))
async def test_a_checkpoint_can_only_be_a_process_of_its_own_session(pool: SessionPool, session: Session, forged: str) -> None:
    """A session that forges which process its snapshot is names none but its own, harms no other, and is usable after a reset."""
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


async def test_a_rollback_removes_folders_too_deep_to_be_named(session: Session) -> None:
    """Folders that are too deep to be named are no obstacle to going back, and are refused when they are to be kept."""
    await session.checkpoint()
    await session.run(DEEP)
    with pytest.raises(SnapshotError, match="cannot copy"):
        await session.checkpoint("deep")
    await session.rollback()
    assert (await session.run("import os; x, os.listdir()")).text == "(1, [])"


SWAP = """import ctypes, os, time
libc = ctypes.CDLL(None)
os.mkdir('folder', 0o777); open('folder/key', 'w').write('mine'); os.symlink(VICTIM, 'link')
for number in range(200): open(f'{number}', 'w').close()  # so that a while passes between a look at the folder and what follows
def start():
    if not os.fork():
        while True:
            libc.renameat2(-100, b'/mnt/data/folder', -100, b'/mnt/data/link', 2)  # RENAME_EXCHANGE: each is always a folder or a link
            time.sleep(0.003)
    while not os.path.islink('folder'): time.sleep(0.0001)"""
FOUND = """import glob
{open(path).read() for path in glob.glob('*/key')}"""


@pytest.fixture
def victim() -> Iterator[Path]:
    """A folder of the host that a session's user may change, at a path that every user may enter. As root it is given to that user."""
    with TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        made = Path(folder, "victim")
        made.mkdir(0o750)
        (made / "key").write_text("secret")
        (made / "key").chmod(0o640)
        yield made


def seen_of(folder: Path) -> list[tuple[str, int, int, str]]:
    looked = [(path, path.stat()) for path in (folder, *sorted(folder.iterdir()))]
    return [(path.name, found.st_mode, found.st_mtime_ns, path.read_text() if path.is_file() else "") for path, found in looked]


@pytest.mark.long
async def test_a_folder_swapped_for_a_link_gives_access_to_no_folder_of_the_host(victim: Path) -> None:
    """Of a folder that code swaps for a link while the host copies, uploads or puts back files, it reads and changes nothing behind it."""
    async with Sandboxes(Policy(image=IMAGE, spares=0, preload=())) as sandboxes:
        sandbox = await sandboxes.open()
        if (owner := sandbox.files._workspace.owner) is not None:
            for path in (victim, victim / "key"):
                os.chown(path, owner, owner)
        before, found = seen_of(victim), set()
        await run_in(sandbox, SWAP.replace("VICTIM", repr(str(victim))))
        await sandbox.checkpoint()
        for _ in range(20):
            await run_in(sandbox, "start()")
            for _ in range(5):
                with contextlib.suppress(OSError):
                    await sandbox.write("new", [b"new"], "folder")
            with contextlib.suppress(SnapshotError):
                branch = await sandbox.branch()
                found.add((await run_in(branch, FOUND)).text)
                await branch.close()
            await sandbox.roll_back()
        await sandbox.close()
    assert found <= {"{'mine'}", "set()"}
    assert seen_of(victim) == before


LEFT_RUNNING = {
    "in loops": "for _ in range(20): subprocess.Popen(['sh', '-c', '(while :; do echo again >> late; sleep 0.01; done) &'])",
    "in short lives": "subprocess.Popen(['sh', '-c', 'f() { echo again >> late; sleep 0.01; f & }; for i in 1 2 3 4 5 6; do f & done'])",
}
RUNS = "\nwhile not os.path.exists('late') or os.path.getsize('late') < 1000: time.sleep(0.001)"


@pytest.mark.parametrize("how", LEFT_RUNNING)
async def test_processes_that_were_undone_do_not_continue(session: Session, how: str) -> None:
    """Processes of what was undone write nothing into the files that are put back, not even those that left their parents."""
    await session.run("import os, subprocess, time")
    await session.checkpoint()
    await session.run(LEFT_RUNNING[how] + RUNS)
    await session.rollback()
    result = await session.run("time.sleep(0.2); os.listdir()")
    assert (result.text, result.processes) == ("[]", ())


HOPS = """import os, signal, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
def hop():  # each makes two and ends, so that no list of processes is ever right
    made = 0
    while made < 2:
        try: made = made + 1 if os.fork() else 0
        except OSError: time.sleep(0.00002)
    os._exit(0)
if not os.fork(): hop()
time.sleep(0.5)
raise ValueError"""


@pytest.mark.long
async def test_undoing_a_fork_bomb_does_not_block_the_hosts_event_loop(session: Session) -> None:
    """While a bomb of forks is undone, the host's event loop works or blocks for 0.1 s at most, besides its wait for a processor."""
    longest = []
    for _ in range(3):  # a thread may lose its processor while it has Python's lock; what the loop does itself shows up every time
        longest.append(0.0)
        run = asyncio.create_task(session.run(HOPS, transactional=True))
        last, waited = time.perf_counter(), on_run_queue()
        while not run.done():
            await asyncio.sleep(0.005)
            now, queued = time.perf_counter(), on_run_queue()
            longest[-1] = max(longest[-1], now - last - (queued - waited))
            last, waited = now, queued
        await run
        if longest[-1] < 0.1:
            return
    pytest.fail(f"the loop was busy for {longest} s")


def on_run_queue() -> float:
    """Return how many seconds this thread was ready to run and had no processor: the load of the machine, and not what the thread does."""
    return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9


AS_MANY_AS_THERE_ARE = """import subprocess
started = []
try:
    while True: started.append(subprocess.Popen(['sleep', '60']))
except OSError: pass
len(started)"""


async def test_a_session_and_its_branches_have_the_limits_of_one_session(session: Session) -> None:
    """A session, its checkpoints and its branches have one session's processes and memory together."""
    branches = await session.branch(3)
    counts = [(await branch.run(AS_MANY_AS_THERE_ARE)).value for branch in branches]
    assert sum(count for count in counts if isinstance(count, int)) < 128


async def test_branches_and_checkpoints_hold_at_most_twice_a_sessions_files() -> None:
    """However often a session is branched and kept, the host holds at most twice the files that one session may have, uploads included."""
    async with open_pool(policy=Policy(image=IMAGE, spares=0, preload=(), limits=Limits(disk=8 * MB))) as small, small.session() as session:
        await session.run("open('file', 'wb').write(bytes(3 << 20))")
        branches = await session.branch(3)
        await session.run("open('more', 'wb').write(bytes(2 << 20))")
        for make in (session.checkpoint, session.branch):
            with pytest.raises(SnapshotError, match="room for 2 MB more"):
                await make()
        with pytest.raises(ACASessionsError, match="cannot have more files or more memory together"):
            await branches[0].upload_file("file", bytes(5 << 20))
        assert (await branches[0].run("import os; os.listdir('.'), os.path.getsize('file')")).text == f"(['file'], {3 << 20})"
        await branches[0].close()
        await session.checkpoint()


FILES = Limits(disk=64 * MB)
WRITE = f"open('file', 'wb').write(bytes({20 * MB}))"


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandboxes(Policy(image=IMAGE, spares=0, preload=(), limits=FILES)) as sandboxes:
        opened = await sandboxes.open()
        await run_in(opened, WRITE)
        yield opened
        await opened.close()


async def run_in(sandbox: Sandbox, code: str) -> CodeExecutionResult:
    return await sandbox.execute(lambda interpreter: interpreter.run("cell", code, 20))


async def test_files_that_the_host_writes_are_charged_to_the_session(sandbox: Sandbox) -> None:
    """Uploads, and the files of checkpoints and branches, count to the memory of the session, as what its code writes does."""
    used = sandbox.memory.used()

    def grown() -> float:
        nonlocal used
        before, used = used, sandbox.memory.used()
        return (used - before) / MB

    await sandbox.checkpoint()
    assert grown() > 15
    branch = await sandbox.branch()
    assert grown() > 15
    await sandbox.write("upload", [bytes(MB) for _ in range(20)])
    assert grown() > 15
    await run_in(sandbox, "import os; os.remove('file'); os.remove('upload')")
    grown()
    await sandbox.roll_back()
    assert grown() > 15
    await branch.close()
    await sandbox.reset()
    grown()
    await sandbox.write("upload", [bytes(20 * MB)])
    assert grown() > 15  # its first process is another one


async def test_code_cannot_prevent_that_files_are_charged(sandbox: Sandbox) -> None:
    """Code cannot stop, end or confuse the process that allocates the memory of files which the host writes."""
    await run_in(sandbox, "import os, signal\nfor n in range(1, 65):\n    try: os.kill(1, n)\n    except OSError: pass")
    await run_in(sandbox, "for _ in range(100_000): os.kill(1, signal.SIGUSR1)")
    used = sandbox.memory.used()
    await sandbox.write("upload", [bytes(20 * MB)])
    assert sandbox.memory.used() - used > 15 * MB


FILL_MEMORY = """import os, time
held = bytearray(300 << 20); held[::4096] = b'x' * len(held[::4096])
for _ in range(4):
    done, filled = os.pipe()
    if not os.fork():
        more = bytearray(70 << 20); more[::4096] = b'x' * len(more[::4096])
        os.write(filled, b'x')
        time.sleep(60)
    os.close(filled)
    os.read(done, 1)  # it has its memory, or was ended for it"""


@pytest.mark.long
async def test_a_host_write_that_does_not_fit_is_refused_and_ends_no_session() -> None:
    """A checkpoint, a branch or an upload that does not fit into what a session's processes left is refused, and the session goes on."""
    limits = Limits(memory=512 * MB, disk=64 * MB, temporary=16 * MB)
    async with open_pool(policy=Policy(image=IMAGE, spares=0, preload=(), limits=limits)) as pool, pool.session() as session:
        if "counted by cgroup" not in str(await session.health()):
            pytest.skip("files share the memory's limit only in a control group, which this user may not make")
        await session.run("open('file', 'wb').write(bytes(50 << 20))")
        assert (await session.run(FILL_MEMORY, timeout=30)).success
        for make in (session.checkpoint, session.branch):
            with pytest.raises(SnapshotError, match="room for"):
                await make()
        with pytest.raises(ACASessionsError, match="cannot have more files or more memory together"):
            await session.upload_file("upload", bytes(50 << 20))
        result = await session.run("len(held) >> 20, os.listdir()")
        assert (str(result.state), result.text) == ("kept", "(300, ['file'])")


async def test_a_session_can_end_while_its_first_process_does_not_answer(sandbox: Sandbox) -> None:
    """A write that waits for its memory holds up neither the end of its session nor the host."""
    runtime = sandbox.running.runtime
    if not runtime.memory.is_charged:
        pytest.skip("only a control group is charged for what is written, and this user may make none")
    signal.pidfd_send_signal(runtime.init, signal.SIGSTOP)
    writing = asyncio.create_task(sandbox.write("upload", [bytes(MB)]))
    await asyncio.sleep(0.2)
    assert not writing.done()
    await sandbox.close()
    with contextlib.suppress(OSError):
        await writing


async def test_a_branch_finds_no_file_of_its_siblings(session: Session) -> None:
    """Each branch has its own /mnt/data and finds no other's by any name; what was open when it began is shared."""
    await session.run("import os")
    first, second = await session.branch(2)
    await first.run("open('secret', 'w').write('mine')")
    found = await second.run("os.listdir(), os.path.exists('/mnt/data/secret'), os.listdir('/')")
    assert "secret" not in str(found.text)


MAKES_FILES = """import os, subprocess, sys, time
code = "import itertools\\nfor n in itertools.count(): open(f'/mnt/data/{n % 5000}', 'w').close()"
racers = [subprocess.Popen([sys.executable, '-c', code]) for _ in range(2)]
while len(os.listdir('/mnt/data')) < 1000: time.sleep(0.01)"""


@pytest.mark.long
async def test_processes_that_make_files_without_end_delay_no_rollback(session: Session) -> None:
    """A session goes back to a checkpoint while processes of its own and of a branch make files without end."""
    await session.checkpoint()
    (branch,) = await session.branch()
    for making in (branch, session):
        await making.run(MAKES_FILES)
    await session.run("open('marker', 'w').close()")
    async with asyncio.timeout(100):
        await session.rollback()
    assert (await session.run("import os; os.listdir()")).text == "[]"


POLLER = """import subprocess
looks = 'ls /mnt/data; cat /mnt/data/secret 2>/dev/null; echo planted > /mnt/data/planted'
subprocess.run(['sh', '-c', f'(while :; do {looks}; done) >> /tmp/seen 2>/dev/null &'])
while not os.path.getsize('/tmp/seen'): time.sleep(0.01)"""
BRANCH = """open('/mnt/data/secret', 'w').write('TOPSECRET'); before = os.path.getsize('/tmp/seen')
time.sleep(0.3); os.listdir('/mnt/data'), os.path.getsize('/tmp/seen') - before"""


async def test_processes_left_by_a_session_reach_no_file_of_its_branch(session: Session) -> None:
    """What a session left running sees, reads and changes no file of its branch by name: it runs only while its own files are shown."""
    await session.run("import os, time")
    (branch,) = await session.branch()
    await session.run(POLLER)
    for _ in range(3):
        assert (await branch.run(BRANCH)).text == "(['secret'], 0)"
        look = "before = os.path.getsize('/tmp/seen')\nwhile os.path.getsize('/tmp/seen') == before: time.sleep(0.001)\nos.listdir()"
        own = await session.run(look)
        assert own.text == "['planted']"
    assert (await session.run("set(open('/tmp/seen').read().split())")).text == "{'planted'}"
