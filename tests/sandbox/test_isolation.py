"""Test what code in a session cannot do. Each line of the table is code, and the error that it must end with."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from aca_sessions import Session, SessionPool, isolation_report

from ..conftest import COMMAND, ROOT, aca_sessions, descendants, mostly_long

REFUSED = {
    "read the password file": ("open('/etc/shadow').read()", "FileNotFoundError"),
    "read the home of root": ("import os; os.listdir('/root')[:0] or open('/root/.bashrc')", "FileNotFoundError"),
    "read the environment of its first process": ("open('/proc/1/environ').read()", "PermissionError"),
    "read the memory of its first process": ("open('/proc/1/mem', 'rb').read(1)", "PermissionError"),
    "kill its first process": ("import os; os.kill(1, 9)", "PermissionError"),
    "write to the system": ("open('/usr/bin/evil', 'w')", "OSError"),
    "write to its Python": ("import sys; open(sys.prefix + '/evil', 'w')", "OSError"),
    "write to the root folder": ("open('/evil', 'w')", "OSError"),
    "set a kernel parameter": ("open('/proc/sys/kernel/core_pattern', 'w')", "PermissionError"),
    "change its own score before the out-of-memory killer": ("open('/proc/self/oom_score_adj', 'w').write('0')", "PermissionError"),
    "become root": ("import os; os.setuid(0)", "OSError"),
    "make a device": ("import os; os.mknod('/mnt/data/d', 0o20644, 259)", "PermissionError"),
    "reach the network": ("import socket; socket.create_connection(('192.0.2.1', 80), 2)", "OSError"),
    "reach the host's loopback": ("import socket; socket.create_connection(('127.0.0.1', PORT), 2)", "ConnectionRefusedError"),
    "look up a name": ("import socket; socket.getaddrinfo('example.org', 80)", "gaierror"),
    "open a raw socket": ("import socket; socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)", "OSError"),
    "open a netlink socket": ("import socket; socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)", "OSError"),
    "open a vsock": ("import socket; socket.socket(40, socket.SOCK_STREAM)", "OSError"),
}
SYSTEM_CALLS = {
    "unshare": "libc.unshare(0x10000000)",
    "mount": "libc.mount(b'tmpfs', b'/tmp', b'tmpfs', 0, 0)",
    "umount": "libc.umount2(b'/mnt/data', 2)",
    "chroot": "libc.chroot(b'/tmp')",
    "ptrace": "libc.ptrace(16, 1, 0, 0)",
    "setns": "libc.setns(0, 0)",
    "sethostname": "libc.sethostname(b'x', 1)",
    "bpf": "libc.syscall(321, 0, 0, 0)",
    "add_key": "libc.syscall(248, 0, 0, 0, 0, 0)",
    "process_vm_readv": "libc.process_vm_readv(1, 0, 0, 0, 0, 0)",
    "perf_event_open": "libc.syscall(298, 0, 0, 0, 0, 0)",
}


@pytest.mark.parametrize("attempt", mostly_long(REFUSED, every=3))
async def test_a_session_cannot(session: Session, attempt: str) -> None:
    code, error = REFUSED[attempt]
    with subprocess.Popen([sys.executable, "-c", _LISTENER], stdout=subprocess.PIPE, text=True) as listener:
        port = listener.stdout.readline().strip() if "PORT" in code else ""
        result = await session.run(code.replace("PORT", port))
        listener.kill()
    assert result.error is not None
    assert result.error.name == error


_LISTENER = "import socket, time; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); time.sleep(60)"


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the bare numbers are x86_64's; tests/sandbox/test_seccomp.py has both tables")
@pytest.mark.parametrize("call", SYSTEM_CALLS)
async def test_a_session_cannot_call(session: Session, call: str) -> None:
    result = await session.run(
        f"import ctypes, errno\nlibc = ctypes.CDLL(None, use_errno=True)\n{SYSTEM_CALLS[call]}, errno.errorcode[ctypes.get_errno()]"
    )
    assert result.text == "(-1, 'EPERM')"


async def test_a_session_sees_its_own_processes_only(session: Session) -> None:
    result = await session.run("import os; sorted(int(p) for p in os.listdir('/proc') if p.isdigit())")
    assert result.text == "[1, 2]"


async def test_a_session_has_no_descriptor_of_the_host(session: Session) -> None:
    code = """
    import os
    kinds = []
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            kinds.append(os.readlink(f"/proc/self/fd/{descriptor}").split(":")[0])
        except FileNotFoundError:
            pass  # the listing's own
    ",".join(sorted(kinds))"""
    result = await session.run(textwrap.dedent(code))
    assert result.value == "/dev/null,pipe,pipe,pipe,socket"


def test_all_descriptors_but_those_named_are_closed_whatever_the_limit_is_now() -> None:
    script = (
        "import os, resource\nfrom aca_sessions.sandbox.guest.isolation import confine\n"
        "for number in (3, 4, 7, 8, 200): os.dup2(0, number)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))\n"
        "confine.close_other_descriptors(8, 7, 3)\n"
        "print([number for number in range(3, 300) if os.path.exists(f'/proc/self/fd/{number}')])"
    )
    ran = subprocess.run([sys.executable, "-c", script], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
    assert ran.stdout == "[3, 7, 8]\n"


async def test_a_session_has_nothing_of_the_hosts_environment(pool: SessionPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_HOST", "hunter2")
    run = aca_sessions("run", "import os; print(dict(os.environ)); print(open('/proc/self/environ').read())")
    assert "PATH" in run.stdout
    assert "hunter2" not in run.stdout


@pytest.mark.long
async def test_a_session_sees_python_and_nothing_else_of_the_checkout(session: Session) -> None:
    code = f"import os; [os.path.join(d, f) for d, _, fs in os.walk({str(ROOT)!r}) for f in fs if '/.venv' not in d]"
    assert (await session.run(code)).text == "[]"


async def test_sessions_do_not_see_each_other(pool: SessionPool) -> None:
    async with pool.session() as one, pool.session() as other:
        await one.run("x = 1; open('mine', 'w').write('secret'); open('/tmp/mine', 'w').write('secret')")
        result = await other.run("import os; os.path.exists('/mnt/data/mine'), os.path.exists('/tmp/mine'), 'x' in globals()")
        assert result.text == "(False, False, False)"


async def test_a_guest_is_nobody_on_the_host(pool: SessionPool) -> None:
    """As root each session has a uid of its own, never 0. As an ordinary user it has that user's."""
    async with pool.session() as one, pool.session() as other:
        await one.run("import os; os.getuid()")
        await other.run("import os; os.getuid()")
        uids = []
        for pid in descendants(os.getpid()):
            with contextlib.suppress(OSError):  # a process that has ended since
                if _name(pid) == "2":
                    uids.append(_uid(pid))
    uids.sort()
    if os.geteuid() == 0:
        assert len(set(uids[-2:])) == 2
    assert 0 not in uids


def _name(pid: int) -> str:
    """Return the pid of a process in the innermost namespace."""
    return _status(pid, "NSpid").split()[-1]


def _uid(pid: int) -> int:
    return int(_status(pid, "Uid").split()[0])


def _status(pid: int, field: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.partition(":")[2].strip() for line in lines if line.startswith(field + ":"))


async def test_memory_beyond_the_limit_is_a_memory_error_and_the_session_continues(session: Session) -> None:
    await session.run("x = 1")
    result = await session.run("bytearray(8 << 30)")
    assert result.error.name == "MemoryError"
    assert (await session.run("x")).value == 1


async def test_a_fork_bomb_ends_at_the_limit_and_the_session_continues(session: Session) -> None:
    bomb = """
    import os, time
    count = 0
    try:
        while count < 5000:
            if os.fork() == 0:
                time.sleep(60); os._exit(0)
            count += 1
    except BlockingIOError:
        print('refused', count < 200)
    """
    result = await session.run(textwrap.dedent(bomb))
    assert result.stdout == "refused True\n"
    assert (await session.run("1 + 1")).value == 2


async def test_a_full_disk_is_an_error_and_the_session_continues(session: Session) -> None:
    result = await session.run("f = open('big', 'wb')\nfor _ in range(300): f.write(bytes(1 << 20))")
    assert result.error.name == "OSError"
    assert (await session.run("import os; os.remove('big'); 1 + 1")).value == 2


def test_killing_the_host_leaves_no_guest_behind() -> None:
    program = """
    import asyncio
    from aca_sessions import open_pool
    async def main():
        async with open_pool() as pool:
            async with pool.session() as session:
                await session.run("import subprocess; subprocess.Popen(['sleep', '600'])")
                print("ready", flush=True)
                await session.run("while True: pass")
    asyncio.run(main())
    """
    host = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True)
    assert host.stdout.readline() == "ready\n"
    guests = descendants(host.pid)
    assert len(guests) >= 4
    host.send_signal(signal.SIGKILL)
    host.wait()
    host.stdout.close()
    deadline = time.monotonic() + 120  # a fork server that still imports checks for its host after that
    while (left := [pid for pid in guests if Path(f"/proc/{pid}").exists()]) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert left == []


async def test_this_host_isolates_fully() -> None:
    report = await isolation_report()
    assert report.full, str(report)


def in_a_user_namespace(script: str) -> "subprocess.CompletedProcess[str]":
    """Run the command line in a user namespace whose only user is root, after a script has changed something there."""
    command = ["unshare", "--user", "--map-root-user", "sh", "-c", f'{script}; exec "$@"', "sh", *COMMAND, "run", "1"]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


def test_a_host_without_user_namespaces_is_refused_with_advice() -> None:
    run = in_a_user_namespace("echo 0 > /proc/sys/user/max_user_namespaces")  # a limit that belongs to the namespace
    assert run.returncode == 2
    assert "user namespace" in run.stderr
    assert "sudo sysctl user.max_user_namespaces=15000" in run.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be the root of a namespace and of the host at once")
def test_a_root_without_any_other_uid_is_refused() -> None:
    run = in_a_user_namespace("true")
    assert run.returncode == 2
    assert "would run as root" in run.stderr


def test_an_environment_without_ipython_is_refused_with_advice(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    run = aca_sessions("run", "1", env=os.environ | {"ACASessions__Sandbox__Python": str(tmp_path / "bare" / "bin" / "python")})
    assert run.returncode == 2
    assert "IPython" in run.stderr
    assert "Install ipython" in run.stderr
