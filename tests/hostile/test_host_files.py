"""Attack the host's files: a session sees only /usr, a few settings and the Python environment, and can write to none."""

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from aca_sessions import Policy, Session, open_pool

from ..conftest import IMAGE, ROOT, aca_sessions, mostly_long
from .attempts import PRELUDE, outcome

pytestmark = pytest.mark.slow
SECRET = "the host's own: 5e1f"
PLACES = {
    "password hashes": "/etc/shadow",
    "password hashes' copy": "/etc/shadow-",
    "host's accounts": "/etc/login.defs",
    "host's name": "/etc/hostname",
    "machine's id": "/etc/machine-id",
    "home of root": "/root/.bashrc",
    "keys of root": "/root/.ssh/id_ed25519",
    "home of this user": f"{Path.home()}/.profile",
    "logs": "/var/log/dpkg.log",
    "package database": "/var/lib/dpkg/status",
    "container engine's socket": "/var/run/docker.sock",
    "kernel's tree of devices": "/sys/kernel/mm",
    "kernel itself": "/boot",
    "checkout": f"{ROOT}/pyproject.toml",
    "checkout's history": f"{ROOT}/.git/HEAD",
    "processes' table of the host": f"/proc/{os.getpid()}/environ",
}
DETOURS = {
    "its own path": "open(SECRET).read()",
    "the first process's root": "open('/proc/1/root' + SECRET).read()",
    "the first process's folder": "open('/proc/1/cwd' + SECRET).read()",
    "its own root, upwards": "open('/proc/self/root/../../..' + SECRET).read()",
    "its own folder, upwards": "open('/proc/self/cwd/' + '../' * 30 + SECRET).read()",
    "an open folder, upwards": "os.open('../' * 30 + SECRET, os.O_RDONLY, dir_fd=os.open('/', os.O_RDONLY))",
    "a folder that only marks a place": "os.open('../' * 30 + SECRET, os.O_RDONLY, dir_fd=os.open('/tmp', os.O_PATH))",
    "two slashes": "open('//' + SECRET).read()",
    "a symbolic link": "os.symlink(SECRET, 'link'); open('link').read()",
    "a symbolic link in /tmp": "os.symlink(SECRET, '/tmp/link'); open('/tmp/link').read()",
    "a hard link": "os.link(SECRET, 'link')",
    "a rename": "os.rename(SECRET, 'moved')",
    "another program": "import subprocess; subprocess.run(['cat', SECRET], check=True)",
    "a URL": "import urllib.request; urllib.request.urlopen('file://' + SECRET).read()",
    "the dynamic loader": "ctypes.CDLL(SECRET)",
    "its own descriptors": "open(f'/proc/self/fd/0/../../../..{SECRET}').read()",
    "a search": "next(p for top in ('mnt', 'home', 'root', 'run', 'tmp', 'var') for p, _, f in os.walk('/' + top) if 'secret.txt' in f)",
}
WRITES = {
    "write a program": "open('/usr/bin/true', 'r+b')",
    "add a program": "open('/usr/local/bin/evil', 'w')",
    "take a program away": "os.unlink('/usr/bin/true')",
    "rename a program": "os.rename('/usr/bin/true', '/usr/bin/false')",
    "change a program's mode": "os.chmod('/usr/bin/true', 0o4777)",
    "change a program's time": "os.utime('/usr/bin/true')",
    "change a program's owner": "os.chown('/usr/bin/true', 1000, 1000)",
    "add an attribute": "os.setxattr('/usr/bin/true', 'user.evil', b'1')",
    "cut a program off": "os.truncate('/usr/bin/true', 0)",
    "link a program into /tmp": "os.link('/usr/bin/true', '/tmp/true')",
    "write a module": "open(os.__file__, 'r+b')",
    "add a module": "open(os.path.dirname(os.__file__) + '/evil.py', 'w')",
    "change the mode of its Python": "os.chmod(os.path.realpath(sys.executable), 0o4777)",
    "change the mode of its environment": "os.chmod(sys.prefix + '/lib', 0o777)",
    "write its own code": "open('/.guest/aca_sessions/sandbox/guest/isolation/init.py', 'a')",
    "change the mode of its own code": "os.chmod('/.guest', 0o777)",
    "write to its root": "open('/evil', 'w')",
    "write a setting": "open('/etc/passwd', 'a')",
    "make a folder in its root": "os.mkdir('/home/evil')",
    "change the mode of a device": "os.chmod('/dev/null', 0)",
    "take a device away": "os.unlink('/dev/null')",
}
REFUSALS = ("EROFS", "EACCES", "EPERM", "EXDEV", "EBUSY", "ENOTSUP")


@pytest.fixture
def secret(tmp_path: Path) -> Iterator[Path]:
    """A file of the host that every user may read, and a socket beside it."""
    (tmp_path / "secret.txt").write_text(SECRET)
    with socket.socket(socket.AF_UNIX) as listener:
        os.chdir(tmp_path)
        listener.bind("secret.sock")  # the whole path may be too long for a socket's name
        listener.listen()
        yield tmp_path / "secret.txt"


@pytest.mark.parametrize("place", mostly_long(PLACES, every=2))
async def test_the_hosts_files_are_not_visible(session: Session, place: str) -> None:
    """A session sees no file of the host but /usr, a few settings from /etc and its Python environment."""
    path = PLACES[place]
    found = await outcome(session, f"import os; found = os.stat({path!r}); print(found.st_dev, found.st_ino)")
    if IMAGE:  # it has such files of its own
        assert found != _outcome_if_found(path)
    else:
        assert found == "ENOENT"
        assert await outcome(session, f"import os; os.access({path!r}, os.F_OK)") == "got: False"


@pytest.mark.parametrize("detour", mostly_long(DETOURS, every=2))
async def test_no_detour_leads_to_a_file_of_the_host(session: Session, secret: Path, detour: str) -> None:
    """No link, magic link, open folder, other program or loader leads to a file of the host."""
    result = await session.run(f"{PRELUDE}\nSECRET = {str(secret)!r}\n{DETOURS[detour]}")
    assert not result.success
    assert SECRET not in repr(result)
    assert secret.read_text() == SECRET


async def test_a_socket_of_the_host_cannot_be_connected_to_by_its_path(session: Session, secret: Path) -> None:
    """A session reaches no Unix socket of the host by its path."""
    attempt = f"import socket; socket.socket(socket.AF_UNIX).connect({os.path.relpath(secret.with_suffix('.sock'), '/')!r})"
    assert await outcome(session, f"import os; os.chdir('/'); {attempt}") == "ENOENT"


@pytest.mark.parametrize("write", mostly_long(WRITES, every=2))
async def test_visible_host_files_are_read_only(session: Session, write: str) -> None:
    """What a session sees of the host it can neither write to nor change in mode, time, owner or name."""
    watched = [Path(path) for path in ("/usr/bin/true", "/usr/bin", os.__file__, os.path.realpath(sys.executable), "/dev/null")]
    before = [_attributes(path) for path in watched]
    ended = await outcome(session, WRITES[write], prelude=PRELUDE)
    assert ended in REFUSALS
    assert [_attributes(path) for path in watched] == before


async def test_the_sessions_own_program_gives_no_access_to_the_hosts_mount(tmp_path: Path) -> None:
    """The file of a session's own running program cannot be changed by way of /proc/self/exe, even where it belongs to the same user."""
    python = _python_of_this_user(tmp_path / "own")
    before = _attributes(python)
    async with open_pool(policy=Policy(python=str(python), preload=(), spares=0)) as pool, pool.session() as session:
        assert await outcome(session, "import os; os.path.samefile('/proc/self/exe', __import__('sys').executable)") == "got: True"
        for change in ("os.chmod(exe, 0o4777)", "os.utime(exe)", "os.setxattr(exe, 'user.evil', b'1')", "os.chown(exe, 1000, 1000)"):
            assert await outcome(session, f"import os; exe = '/proc/self/exe'; {change}") in ("EROFS", "ENOTSUP")
        for change in ("open(exe, 'r+b')", "open(exe, 'wb')", "os.truncate(exe, 0)"):
            assert await outcome(session, f"import os; exe = '/proc/self/exe'; {change}") in ("EACCES", "EROFS", "ETXTBSY")
    assert _attributes(python) == before


async def test_nothing_of_the_hosts_environment_is_in_the_guest() -> None:
    """No environment variable of the host is in a session's environment, processes or memory."""
    token = "hunter2-" + os.urandom(8).hex()
    search = f"""
    import glob, re
    token = {token[::-1]!r}[::-1].encode()
    print(any(token in open(path, "rb").read() for path in ("/proc/self/environ", "/proc/self/cmdline", "/proc/1/cmdline")))
    me = open("/proc/self/mem", "rb", buffering=0)
    found = searched = 0
    for line in open("/proc/self/maps"):
        start, end = (int(edge, 16) for edge in line.split()[0].split("-"))
        if " rw" in line:
            me.seek(start)
            part = me.read(end - start)
            searched += len(part)
            found += len(re.findall(re.escape(token), part))
    print(searched > 1 << 20, found <= 3)  # what is sought is itself in memory: here, in its reverse's copy, and in a match
    """
    run = await asyncio.to_thread(aca_sessions, "run", textwrap.dedent(search), env=os.environ | {"SECRET_OF_THE_HOST": f"x{token * 50}"})
    assert run.stdout.split() == ["False", "True", "True"], run.stderr


def _outcome_if_found(path: str) -> str:
    """Return the outcome of an attempt that found this file of the host."""
    return f"got: {os.stat(path).st_dev} {os.stat(path).st_ino}\n" if os.path.exists(path) else ""


def _attributes(path: Path) -> tuple[int, ...]:
    found = path.stat()
    return found.st_mode, found.st_uid, found.st_size, found.st_mtime_ns, found.st_nlink


def _python_of_this_user(folder: Path) -> Path:
    """Return an environment like this one, whose program belongs to this user, as those of uv and pyenv do."""
    (folder / "bin").mkdir(parents=True)
    shutil.copy(os.path.realpath(sys.executable), folder / "bin" / "python")
    shutil.copy(Path(sys.prefix, "pyvenv.cfg"), folder)
    (folder / "lib").symlink_to(Path(sys.prefix, "lib"))
    subprocess.run([folder / "bin" / "python", "-c", "import IPython"], check=True)
    return folder / "bin" / "python"
