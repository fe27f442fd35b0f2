"""Attack the level below full isolation in the same ways: Landlock, seccomp and limits must contain them alone."""

import asyncio
import os
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from aca_sessions import Session, SessionPool, open_pool
from aca_sessions.errors import ACASessionsError
from aca_sessions.network.rules import Network
from aca_sessions.sandbox.guest.isolation import seccomp

from ..conftest import mostly_long
from ..without_namespaces import BARE
from .attempts import PRELUDE, is_well, outcome
from .system_calls import REFUSED, refusal
from .test_bombs import BOMBS, SMALL
from .test_host_files import SECRET
from .test_network_walls import ADDRESSES, FAMILIES, ODD_SOCKETS
from .test_other_sessions import TRAPS
from .test_privileges import CAPABILITIES, MOUNTS, NAMESPACES, NUMBERED

pytestmark = pytest.mark.slow
READS = {
    "by its path": "open(SECRET).read()",
    "by its own path upwards": "open('../' * 30 + SECRET).read()",
    "by a folder that only marks a place": "os.open('..' + SECRET, os.O_RDONLY, dir_fd=os.open('/', os.O_PATH))",
    "by a symbolic link": "os.symlink(SECRET, 'link'); open('link').read()",
    "by a hard link": "os.link(SECRET, 'hard'); open('hard').read()",
    "by a rename": "os.rename(SECRET, 'moved'); open('moved').read()",
    "by its root in /proc": "open('/proc/self/root' + SECRET).read()",
    "by its parent's folder in /proc": "open(f'/proc/{os.getppid()}/cwd' + SECRET).read()",
    "by another program": "import subprocess; subprocess.run(['cat', SECRET], check=True)",
    "by a program of its own folder": "import shutil, subprocess; os.open('c', os.O_CREAT, 0o755); shutil.copyfile('/bin/cat', 'c'); "
    "subprocess.run(['./c', SECRET], check=True)",
    "by the dynamic loader": "ctypes.CDLL(SECRET)",
    "by listing its folder": "os.listdir(os.path.dirname(SECRET))",
    "by watching its folder": "checked(libc.inotify_init()); checked(libc.inotify_add_watch(3, os.path.dirname(SECRET).encode(), 0xFFF))",
    "by its attributes": "os.getxattr(SECRET, 'user.secret')",
    "accounts": "open('/etc/passwd').read()",
    "password hashes": "open('/etc/shadow').read()",
    "its root": "os.listdir('/')",
    "all sessions' folders": "os.listdir('../..')",
    "its processes": "os.listdir('/proc')",
    "its environment": "open(f'/proc/{os.getppid()}/environ').read()",
    "another process's memory": "open(f'/proc/{os.getppid()}/mem', 'rb').read(1)",
    "its devices": "os.listdir('/sys/class')",
    "its shared memory": "os.listdir('/dev/shm')",
    "its terminals": "os.openpty()",
}
WRITES = {
    "write to it": "open(SECRET, 'a')",
    "write to it in place": "open(SECRET, 'r+b')",
    "cut it off": "os.truncate(SECRET, 0)",
    "cut it off by opening": "os.open(SECRET, os.O_RDONLY | os.O_TRUNC)",
    "take it away": "os.unlink(SECRET)",
    "rename it": "os.rename(SECRET, SECRET + '2')",
    "put another in its place": "open('own', 'w').close(); os.rename('own', SECRET)",
    "link it elsewhere": "os.link(SECRET, SECRET + '2')",
    "change its mode": "os.chmod(SECRET, 0)",
    "change its mode by a link": "os.symlink(SECRET, 'l'); os.chmod('l', 0o777)",
    "change its owner": "os.chown(SECRET, 1000, 1000)",
    "change its time": "os.utime(SECRET, (1, 1))",
    "add an attribute": "os.setxattr(SECRET, 'user.evil', b'1')",
    "add a file beside it": "open(os.path.dirname(SECRET) + '/evil', 'w')",
    "add a folder beside it": "os.mkdir(os.path.dirname(SECRET) + '/evil')",
    "change its folder's mode": "os.chmod(os.path.dirname(SECRET), 0o777)",
    "write to /tmp": "open('/tmp/evil-of-a-session', 'w')",
    "write to shared memory": "open('/dev/shm/evil-of-a-session', 'w')",
    "write to the home": f"open({str(Path.home())!r} + '/evil', 'w')",
    "write a program": "open('/usr/bin/true', 'r+b')",
    "change its Python's mode": "os.chmod(os.path.realpath(sys.executable), 0o4777)",
    "change an open file's mode": "os.fchmod(os.open(os.__file__, os.O_RDONLY), 0o777)",
    "change an open file's time": "os.utime(os.open(os.__file__, os.O_RDONLY), (1, 1))",
    "change an open file's flags": "import fcntl; fcntl.ioctl(os.open(os.__file__, os.O_RDONLY), 0x40086602, bytes(8))",
    "seal an open file": "import fcntl; fcntl.ioctl(os.open(os.__file__, os.O_RDONLY), 0x40806685, bytes(128))",
    "write a module": "open(os.__file__, 'r+b')",
    "write its own code": "open('../../code/evil.py', 'w')",
    "write beside its folder": "open('../evil', 'w')",
    "set a kernel parameter": "open('/proc/sys/kernel/core_pattern', 'w')",
    "change its score before the out-of-memory killer": "open('/proc/self/oom_score_adj', 'w')",
    "send its own program away": "os.rename(sys.executable, sys.executable + '2')",
}
UNIX = {
    "a socket of a path": "socket.socket(socket.AF_UNIX).connect(PATH)",
    "a datagram to a path": "socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'x', PATH)",
    "half a pair of datagrams": "socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].sendto(b'x', PATH)",
    "half a pair of packets": "socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)[0].connect(PATH)",
    "half a pair of streams": "socket.socketpair()[0].connect(PATH)",
    "half a pair whose other end is gone": "a, b = socket.socketpair(); b.close(); a.connect(PATH)",
    "half a pair that sends elsewhere": "socket.socketpair()[0].sendto(b'x', PATH)",
    "an abstract name": "socket.socket(socket.AF_UNIX).connect('\\0' + PATH)",
}
PIDS = {"the host": os.getpid(), "its init": "os.getppid()", "the first process": 1}
REACHES = {
    "signal": "os.kill(PID, 0)",
    "kill": "os.kill(PID, 18)",
    "signal by descriptor": "signal.pidfd_send_signal(os.pidfd_open(PID), 0)",
    "stop": "os.kill(PID, 28)",
    "signal a thread": "call({'x86_64': 234}.get(os.uname().machine, 131), PID, PID, 0)",
    "limit": "import resource; resource.prlimit(PID, resource.RLIMIT_CPU, (1 << 30, 1 << 30))",
    "bind to a processor": "os.sched_setaffinity(PID, os.sched_getaffinity(0))",
    "slow down": "os.setpriority(os.PRIO_PROCESS, PID, 19)",
    "slow down all of the user's": "os.setpriority(os.PRIO_USER, 0, os.getpriority(os.PRIO_PROCESS, 0) - 1)",
    "schedule": "os.sched_setscheduler(PID, os.SCHED_BATCH, os.sched_param(0))",
    "trace": "checked(libc.ptrace(16, PID, 0, 0))",
    "read": "open(f'/proc/{PID}/status').read()",
}
# Files count to no limit here, as SECURITY.md says: they are on the host's own disk.
UNLIMITED = {"many files", "many folders", "folders in folders"}


@pytest.fixture
def secret(tmp_path: Path) -> Iterator[str]:
    """A file of the host, in a folder, that every user may read and write."""
    folder = Path(os.path.realpath(f"/tmp/of-the-host-{os.urandom(8).hex()}"))
    folder.mkdir()
    folder.chmod(0o777)
    (folder / "secret.txt").write_text(SECRET)
    (folder / "secret.txt").chmod(0o666)
    yield str(folder / "secret.txt")
    shutil.rmtree(folder)


@pytest.mark.parametrize("way", mostly_long(READS, every=3))
async def test_contents_of_host_files_cannot_be_read(bare: Session, secret: str, way: str) -> None:
    """Without namespaces too, a session reads no file and lists no folder of the host but /usr, a few settings and its environment."""
    result = await bare.run(f"{PRELUDE}\nSECRET = {secret!r}\n{READS[way]}")
    assert not result.success
    assert result.error.name in ("PermissionError", "OSError", "CalledProcessError")
    assert SECRET not in repr(result)


@pytest.mark.parametrize("write", mostly_long(WRITES, every=4))
async def test_nothing_outside_can_be_changed(bare: Session, secret: str, write: str) -> None:
    """Without namespaces too, a session writes to no file outside its own folders, nor changes its mode, time, owner or name."""
    watched = [Path(path) for path in (secret, os.path.dirname(secret), os.__file__, "/usr/bin/true", sys.executable)]
    before = [_attributes(path) for path in watched]
    ended = await outcome(bare, f"SECRET = {secret!r}\n{WRITES[write]}", prelude=PRELUDE)
    assert ended in ("EACCES", "EPERM", "EXDEV", "EROFS", "ENOTTY", "ENOTSUP")
    assert [_attributes(path) for path in watched] == before


@pytest.mark.parametrize("family", mostly_long([*FAMILIES, "unix", "internet", "internet 6"], "unix", "internet", every=5))
async def test_no_socket_can_be_made(bare: Session, family: str) -> None:
    """Without namespaces a session makes no socket of any family, and of pairs only connected streams of Unix sockets."""
    number = {"unix": 1, "internet": 2, "internet 6": 10}.get(family) or FAMILIES[family]
    for kind in (1, 2, 3, 5):
        assert await outcome(bare, f"socket.socket({number}, {kind})", prelude=PRELUDE) == "EAFNOSUPPORT"
    pair = f"checked(libc.socketpair({number}, 2, 0, (ctypes.c_int * 2)()))"
    assert await outcome(bare, pair, prelude=PRELUDE) in ("EAFNOSUPPORT", "ESOCKTNOSUPPORT")
    assert await outcome(bare, "a, b = socket.socketpair(); a.send(b'x'); b.recv(1)", prelude=PRELUDE) == "got: b'x'"


async def test_no_address_is_reached(bare: Session) -> None:
    """Without namespaces a session reaches no address and looks up no name, unless its policy shares the host's network."""
    for address in ADDRESSES.values():
        family = "socket.AF_INET6" if "::" in address else "socket.AF_INET"
        assert await outcome(bare, f"socket.socket({family}).connect({address})", prelude=PRELUDE) == "EAFNOSUPPORT"
    assert await outcome(bare, "socket.getaddrinfo('example.org', 80)", prelude=PRELUDE) == "gaierror"


@pytest.mark.parametrize("way", mostly_long(UNIX, every=3))
async def test_no_unix_socket_of_the_host_is_reached(bare: Session, secret: str, way: str) -> None:
    """Without namespaces a session reaches no Unix socket of the host, which Landlock alone would not hold."""
    path = f"{os.path.dirname(secret)}/socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM if "datagram" in way else socket.SOCK_STREAM) as listener:
        listener.bind(path)
        os.chmod(path, 0o777)
        listener.setblocking(False)
        if listener.type == socket.SOCK_STREAM:
            listener.listen()
        ended = await outcome(bare, f"PATH = {path!r}\n{UNIX[way]}", prelude=PRELUDE)
        assert ended in ("EAFNOSUPPORT", "ESOCKTNOSUPPORT", "EPERM", "EISCONN", "EOPNOTSUPP", "EPIPE", "ENOTSUP")
        with pytest.raises(BlockingIOError):
            listener.accept() if listener.type == socket.SOCK_STREAM else listener.recv(1)


@pytest.mark.parametrize("pid", PIDS)
@pytest.mark.parametrize("way", mostly_long(REACHES, every=4))
async def test_no_other_process_is_reached(bare: Session, way: str, pid: str) -> None:
    """Without namespaces a session signals, limits, binds, slows, traces and reads no process but its own."""
    limits, priority = Path("/proc/self/limits").read_text(), os.getpriority(os.PRIO_PROCESS, 0)
    ended = await outcome(bare, f"PID = {PIDS[pid]}\n{REACHES[way]}", prelude=PRELUDE)
    assert ended in ("EPERM", "EACCES", "ESRCH")
    assert Path("/proc/self/limits").read_text() == limits
    assert os.getpriority(os.PRIO_PROCESS, 0) == priority
    assert await is_well(bare)


async def test_no_descriptor_sends_a_signal(bare: Session) -> None:
    """Without namespaces a session has no signal sent to another process by way of a descriptor that it owns."""
    seen: list[int] = []
    before = signal.signal(signal.SIGIO, lambda number, _frame: seen.append(number))
    try:
        send = "fcntl.fcntl(a, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK); b.send(b'x'); os.read(a.fileno(), 1)"
        owned = f"import fcntl; a, b = socket.socketpair(); fcntl.fcntl(a, fcntl.F_SETOWN, {os.getpid()})"
        ended = await outcome(bare, f"{owned}; {send}", prelude=PRELUDE)
    finally:
        signal.signal(signal.SIGIO, before)
    assert ended in ("got: b'x'", "EPERM")
    assert seen == []


@pytest.mark.parametrize("attempt", mostly_long(MOUNTS, every=4))
async def test_nothing_can_be_mounted(bare: Session, attempt: str) -> None:
    """Without namespaces too, a session mounts nothing, unmounts nothing and exchanges no root."""
    before = Path("/proc/self/mounts").read_text()
    assert await outcome(bare, MOUNTS[attempt], prelude=PRELUDE) in ("EPERM", "CalledProcessError")
    assert Path("/proc/self/mounts").read_text() == before


@pytest.mark.parametrize("name", mostly_long(NAMESPACES, every=3))
async def test_no_namespace_can_be_made(bare: Session, name: str) -> None:
    """Without namespaces of its own a session makes none, where it would have power over mounts and networks."""
    assert await outcome(bare, f"checked(libc.unshare({NAMESPACES[name]}))", prelude=PRELUDE) == "EPERM"
    if name != "time":
        assert await outcome(bare, f"call(CLONE, {NAMESPACES[name]} | 17, 0, 0, 0, 0) or os._exit(0)", prelude=NUMBERED) == "EPERM"


@pytest.mark.parametrize("attempt", mostly_long(CAPABILITIES, every=3))
async def test_no_capability_and_no_other_user_is_available(bare: Session, attempt: str) -> None:
    """Without namespaces too, a session has no capability, gets none, and becomes no other user or group; it is never root."""
    to_somebody_else = CAPABILITIES[attempt].replace("1001", str(os.getuid() + 1))
    assert await outcome(bare, to_somebody_else, prelude=NUMBERED) in ("EPERM", "EINVAL", "EACCES", "ENOENT", "ENOTSUP")
    ids = await outcome(bare, "import os; print(*{*os.getresuid(), *os.getresgid()})")
    assert ids == f"got: {os.getuid()}\n" if os.geteuid() else ids not in ("got: 0\n", "got: 65534\n")


async def test_each_session_has_its_own_user_if_the_host_is_root(bare_pool: SessionPool) -> None:
    """Without namespaces too, each session has a user of its own where the host is root."""
    async with bare_pool.session() as one, bare_pool.session() as other:
        uids = {(await session.run("import os; os.getuid()")).value for session in (one, other)}
    assert uids == {os.getuid()} if os.geteuid() else len(uids - {0}) == 2


async def test_set_user_id_programs_give_nothing(bare: Session) -> None:
    """Without namespaces too, set-user-id programs run with no other right than the session's."""
    told = """
    import glob, os, stat, subprocess
    found = [p for p in glob.glob("/usr/bin/*") if os.stat(p).st_mode & (stat.S_ISUID | stat.S_ISGID)]
    said = {subprocess.run([p, *a], capture_output=True, text=True, input="").stdout for p in found for a in ([], ["-c", "id -u"])
            if os.path.basename(p) in ("su", "sudo", "pkexec", "newgrp")}
    status = subprocess.run(["cat", "/dev/null"]).returncode
    len(found) > 2, all("0\\n" != s for s in said), status
    """
    assert await outcome(bare, told) == "got: (True, True, 0)"
    assert "root" not in (await bare.run("subprocess.run(['su', '-c', 'whoami'], capture_output=True, text=True, input='').stdout")).output


@pytest.mark.parametrize("name", mostly_long(REFUSED, every=10))
async def test_a_call_outside_the_list_is_refused(bare: Session, name: str) -> None:
    """Without namespaces too, the filter refuses calls that trace, load, mount or share rings, handles, keys or queues with the kernel."""
    assert await outcome(bare, f"call({REFUSED[name]}, 0, 0, 0, 0, 0, 0)", prelude=PRELUDE) == refusal(REFUSED[name])


@pytest.mark.parametrize("trap", TRAPS)
async def test_the_host_reads_only_plain_files(bare: Session, trap: str) -> None:
    """Without namespaces too, the host's file API follows no link and opens no pipe, socket or folder of a session's."""
    made = await bare.run(TRAPS[trap].replace("os.chmod('trap', 0)", "os.mkdir('trap', 0)" if os.geteuid() else "os.chmod('trap', 0)"))
    async with asyncio.timeout(120):
        with pytest.raises(ACASessionsError):
            await bare.download_file("trap" if made.success else "no such file")
    assert await is_well(bare)


async def test_sharing_the_hosts_network_allows_only_tcp_and_udp_sockets(public_python: str) -> None:
    """Without namespaces, sharing the host's network gives sockets of TCP and UDP, and none of other protocols or of Unix."""
    async with open_pool(policy=replace(BARE, python=public_python, network=Network.host())) as pool, pool.session() as session:
        plain = "socket.socket().close(), socket.socket(type=socket.SOCK_DGRAM).close()"
        assert await outcome(session, plain, prelude=PRELUDE) == "got: (None, None)"
        assert await outcome(session, "socket.socket(socket.AF_UNIX)", prelude=PRELUDE) == "EAFNOSUPPORT"
        for family, kind, protocol in ODD_SOCKETS.values():
            ended = await outcome(session, f"socket.socket(socket.{family}, {kind}, {protocol})", prelude=PRELUDE)
            assert ended in ("ESOCKTNOSUPPORT", "EPROTONOSUPPORT")


@pytest.fixture
async def small(public_python: str) -> AsyncIterator[SessionPool]:
    async with open_pool(policy=replace(BARE, limits=SMALL, python=public_python)) as pool:
        yield pool


@pytest.mark.parametrize("bomb", mostly_long([bomb for bomb in BOMBS if bomb not in UNLIMITED], "processes", "a list"))
async def test_a_bomb_ends_at_its_limit(small: SessionPool, bomb: str) -> None:
    """Without namespaces too, what a session uses up ends at its limit, but for files: it answers afterwards, and others notice nothing."""
    async with small.session() as session, small.session() as other:
        await other.run("x = 1")
        await session.upload_file("kept.txt", b"kept")
        result = await session.run(BOMBS[bomb], timeout=3)
        assert len(result.stdout) + len(result.stderr) < 300_000
        assert str((await other.run("x")).state) == "kept"
        if result.state.kind == "kept" and result.processes:
            await session.reset()
        again = await session.run("open('kept.txt').read()")
        if again.state.kind == "lost":
            again = await session.run("open('kept.txt').read()")
        assert again.value == "kept"
        assert await is_well(other)


async def test_a_session_finds_nothing_of_another(bare_pool: SessionPool) -> None:
    """Without namespaces too, a session reads, lists and signals nothing of another's."""
    async with bare_pool.session() as one, bare_pool.session() as other:
        await one.run("import os, subprocess; open('secret.txt', 'w').write('secret'); left = subprocess.Popen(['sleep', '60'])")
        folder, pid = (await one.run("os.getcwd()")).value, (await one.run("left.pid")).value
        for attempt in (f"open('{folder}/secret.txt')", f"os.listdir('{folder}')", f"os.chmod('{folder}', 0o777)", f"os.kill({pid}, 9)"):
            assert await outcome(other, f"import os; {attempt}") in ("EACCES", "EPERM")
        assert await outcome(one, "left.poll()") == "got: "


def _attributes(path: Path) -> tuple[int, ...]:
    found = path.stat()
    return found.st_mode, found.st_uid, found.st_size, found.st_mtime_ns, found.st_nlink


def test_no_signal_can_be_sent_without_a_user_or_a_scope_of_its_own() -> None:
    """Without namespaces, and with neither a user of its own nor a Landlock that scopes signals, a session sends none."""
    barriers = seccomp.Barriers(own_user=False, own_signals=False)
    assert {"kill", "tkill", "tgkill", "pidfd_send_signal"} <= set(seccomp._refused_without_barriers(barriers))
    assert not {"kill", "tkill"} & set(seccomp._refused_without_barriers(replace(barriers, own_signals=True)))
