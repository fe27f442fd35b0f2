"""Attack other sessions, and the host's view of a session's files."""

import asyncio
import subprocess
import sys

import pytest

from aca_sessions import Policy, Session, SessionPool, open_pool
from aca_sessions.errors import ACASessionsError

from ..conftest import IMAGE, mostly_long
from .attempts import is_well, outcome

pytestmark = pytest.mark.slow

LEFT_BEHIND = """
import multiprocessing.shared_memory as m, socket, subprocess
open('/mnt/data/secret.txt', 'w').write('secret'); open('/tmp/secret.txt', 'w').write('secret')
open('/dev/shm/secret', 'w').write('secret')
memory = m.SharedMemory('secret-memory', create=True, size=10)
server = socket.socket(socket.AF_UNIX); server.bind('\\0secret'); server.listen()
loopback = socket.create_server(('127.0.0.1', 5555)); sleeping = subprocess.Popen(['sleep', '60'])
"""
LOOKING = {
    "its files": "open('/mnt/data/secret.txt').read()",
    "its temporary files": "open('/tmp/secret.txt').read()",
    "its shared memory by path": "open('/dev/shm/secret').read()",
    "its shared memory by name": "import multiprocessing.shared_memory as m; m.SharedMemory('secret-memory')",
    "its abstract socket": "import socket; socket.socket(socket.AF_UNIX).connect('\\0secret')",
    "its loopback": "import socket; socket.create_connection(('127.0.0.1', 5555), 2)",
    "all sessions' folders": "import os; os.listdir('/.sess') and open('/.sess/1')",
}


# The kernel counts these for a user, and the sessions of an ordinary user are all that user's: try to take one more than there are.
COUNTED = {
    "inotify instances": ("libc.inotify_init1(0)", 128),
    "pending signals, by timers": ("libc.timer_create(0, None, ctypes.byref(ctypes.c_void_p()))", 200_000),
}
_TAKE = """
import ctypes, os, signal
ctypes.CDLL("librt.so.1", mode=ctypes.RTLD_GLOBAL)  # which has timers before glibc 2.34
libc = ctypes.CDLL(None, use_errno=True)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGRTMIN])
taken = 0
while taken < {most} and {take} >= 0: taken += 1
taken
"""


@pytest.mark.parametrize("what", COUNTED)
async def test_one_session_cannot_take_all_that_a_user_may_have(pool: SessionPool, what: str) -> None:
    """Of what Linux counts for a user (inotify, pending signals, timers) one session takes a share: others and the host have theirs."""
    take, most = COUNTED[what]
    async with pool.session() as greedy, pool.session() as also_greedy, pool.session() as other:
        for session in (greedy, also_greedy):
            assert 0 < (await session.run(_TAKE.format(take=take, most=most))).value < most // 2
        assert (await other.run(_TAKE.format(take=take, most=1))).value == 1
        on_this_host = [sys.executable, "-c", f"{_TAKE.format(take=take, most=1)}\nraise SystemExit(taken - 1)"]
        assert subprocess.run(on_this_host, timeout=30, check=False).returncode == 0


@pytest.mark.parametrize("what", mostly_long(LOOKING, every=2))
async def test_a_session_finds_nothing_of_another(pool: SessionPool, what: str) -> None:
    """A session finds no file, shared memory, socket, port or process of another."""
    async with pool.session() as one, pool.session() as other:
        assert (await one.run(LEFT_BEHIND)).success
        assert await outcome(other, LOOKING[what]) in ("ENOENT", "ECONNREFUSED", "EACCES", "got: []", "FileNotFoundError")
        seen = await other.run("import subprocess; subprocess.run(['ps', 'ax'], capture_output=True, text=True).stdout")
        assert "sleep 60" not in str(seen.value)


@pytest.mark.long
async def test_tenants_have_no_address_layout_in_common() -> None:
    """Sessions of different tenants have different parents: nothing that one learns of its own addresses or hashes holds for another
    tenant's.
    """
    layout = "next(line.split('-')[0] for line in open('/proc/self/maps') if '/libc.so' in line or '/libc-2' in line), hash('aca')"
    told = []
    for tenant in ("one", "other", None):
        policy = Policy(image=IMAGE, preload=("numbers",), spares=0, tenant=tenant)
        async with (
            open_pool(policy=policy) as pool,
            open_pool(policy=policy) as another,
            pool.session() as first,
            another.session() as second,
        ):
            told.append((await first.run(layout)).text)
            assert (await second.run(layout)).text == told[-1], "pools of one tenant share a fork server"
    assert None not in told
    assert len(set(told)) == 3


TRAPS = {
    "a link to a file of the host": "import os; os.symlink('/etc/passwd', 'trap')",
    "a link to itself": "import os; os.symlink('trap', 'trap')",
    "a link by way of /proc": "import os; os.symlink('/proc/self/root/etc/passwd', 'trap')",
    "a pipe": "import os; os.mkfifo('trap')",
    "a socket": "import socket; s = socket.socket(socket.AF_UNIX); s.bind('trap')",
    "a folder": "import os; os.mkdir('trap')",
    "a file that nobody may read": "import os; open('trap', 'w').close(); os.chmod('trap', 0)",
}


@pytest.mark.parametrize("trap", TRAPS)
async def test_the_host_reads_only_plain_files(session: Session, trap: str) -> None:
    """The host's file API follows no link and opens no pipe, socket or folder of a session's."""
    assert (await session.run(TRAPS[trap])).success
    async with asyncio.timeout(120):
        with pytest.raises(ACASessionsError):
            await session.download_file("trap")
    assert await is_well(session)


async def test_a_folder_that_turns_into_a_link_leads_nowhere(session: Session) -> None:
    """A folder that is swapped for a link while the host looks leads to the session's own file or to none."""
    await session.run("import os; os.makedirs('real'); open('real/passwd', 'w').write('own')")
    swap = "import os, threading\ndef swap():\n    while True:\n        os.rename('real', 'held'); os.symlink('/etc', 'real')\n"
    await session.run(swap + "        os.remove('real'); os.rename('held', 'real')\nthreading.Thread(target=swap, daemon=True).start()")
    read = set()
    for _ in range(300):
        try:
            read.add(await session.download_file("real/passwd"))
        except ACASessionsError:
            read.add(b"")
    assert read <= {b"own", b""}


async def test_a_sparse_file_is_not_read_into_the_hosts_memory(session: Session) -> None:
    """A file cannot claim more than /mnt/data holds, so that the host reads no terabyte of nothing."""
    assert await outcome(session, "import os; os.truncate(os.open('big', os.O_CREAT | os.O_RDWR), 1 << 40)") == "EFBIG"
    assert await is_well(session)
