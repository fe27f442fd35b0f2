"""Places to run attempts in: sessions, other sandboxes of this machine, and no sandbox at all."""

import contextlib
import hashlib
import importlib.util
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from aca_sessions import Policy, SessionPool, open_pool
from aca_sessions.errors import ACASessionsError
from aca_sessions.sandbox.policy import Mount

from ..roots import root_tar
from .escapes import CALLS, PRELUDE, Attempt

PYTHON = "/usr/bin/python3"  # the host's Python, which every sandbox can show; sessions run their own
SHARED = "/mnt/shared"
_NOTE = b"as the host wrote it"
SECRET = "ACA_REDTEAM_SECRET"
_CORE_PATTERN = Path("/proc/sys/kernel/core_pattern")
_SECONDS = 60
# Each part runs in a child, so that its changes to its own process do not affect the other part, and a signal counts as a refusal.
_RUNNER = """
import json
def tried(part):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(20)
        try:
            part()
            said = 'reached'
        except OSError as error:
            said = errno.errorcode.get(error.errno) or type(error).__name__
        except BaseException as error:
            said = f'broken: {error!r}'
        os.write(writing, said.encode()[:500])
        os._exit(0)
    os.close(writing)
    status = os.waitpid(child, 0)[1]
    return os.read(reading, 500).decode() or signal.Signals(status & 127).name
print('VERDICT', json.dumps([part and tried(part) for part in (surface, escape)]))
"""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of an attempt: contained, partly (its precondition was met), not contained, or broken; and what refused it."""

    word: str
    detail: str = ""


@dataclass(slots=True)
class Host:
    """What attempts try to reach: a flag, services, a process, a folder that sandboxes may read."""

    folder: Path
    flag: str = field(default_factory=lambda: secrets.token_hex(16))
    secret: str = field(default_factory=lambda: secrets.token_hex(16))
    mark: str = field(default_factory=lambda: secrets.token_hex(16))
    abstract: str = field(default_factory=lambda: f"aca-redteam-{secrets.token_hex(8)}")
    port: int = 0
    process: "subprocess.Popen[bytes] | None" = None
    program: bytes = b""

    @property
    def shared(self) -> Path:
        """Return the folder that sandboxes see read-only."""
        return self.folder / "shared"

    def constants(self, shared: str) -> str:
        """Return the names that attempts use, as Python."""
        hashes = {name: hashlib.sha256(value.encode()).hexdigest() for name, value in self._secrets().items()}
        programs = [path for name in ("bwrap", "firejail", "podman", "runc", "conmon") if (path := shutil.which(name))]
        files = {(found.st_dev, found.st_ino) for path in (*programs, PYTHON, sys.executable) if (found := os.stat(path))}
        names = {
            "CALLS": CALLS,
            "SHARED": shared,
            "FLAG_FILE": str(self.folder / "flag.txt"),
            "HOST_PROGRAMS": files,
            "HOST_PORT": self.port,
            "HOST_SOCKET": str(self.folder / "docker.sock"),
            "HOST_ABSTRACT": self.abstract,
        }
        return "\n".join(f"{name} = {value!r}" for name, value in {**names, **hashes}.items())

    def _secrets(self) -> dict[str, str]:
        return {"FLAG_HASH": self.flag, "SECRET_HASH": self.secret, "MARK_HASH": self.mark}

    def harm(self) -> str:
        """Return the harm done to the host, as the host sees it; empty if there is none."""
        assert self.process is not None
        found = {
            "the flag was changed": (self.folder / "flag.txt").read_text() != self.flag,
            "the shared folder was changed": {p.name: p.read_bytes() for p in self.shared.iterdir()}
            != {"note": _NOTE, "attempt.py": self.program},
            "a process of the host was ended": self.process.poll() is not None,
        }
        return ", ".join(name for name, happened in found.items() if happened)

    def repair(self) -> None:
        """Put back what an attempt outside any sandbox changed."""
        for path in self.shared.iterdir():
            path.unlink()
        (self.shared / "note").write_bytes(_NOTE)
        (self.shared / "attempt.py").write_bytes(self.program)

    def offer(self, program: str) -> None:
        """Put the next attempt's program where sandboxes find it."""
        self.program = program.encode()
        self.repair()


@contextlib.contextmanager
def host() -> Iterator[Host]:
    """Set up what attempts try to reach, readable by every user, so that file permissions do not do the sandbox's work.

    It is not below /tmp or /var/tmp, since some sandboxes have their own.
    """
    place = "/srv" if os.geteuid() == 0 else Path.home()
    with tempfile.TemporaryDirectory(dir=place, prefix="redteam-") as name, contextlib.ExitStack() as stack:
        made = Host(Path(name))
        os.chmod(name, 0o755)
        (made.folder / "flag.txt").write_text(made.flag)
        made.shared.mkdir(mode=0o755)
        made.repair()
        os.environ[SECRET] = made.secret
        stack.callback(os.environ.pop, SECRET)
        addresses: list[tuple[int, object]] = [
            *((socket.AF_UNIX, address) for address in (str(made.folder / "docker.sock"), f"\0{made.abstract}")),
            (socket.AF_INET, ("127.0.0.1", 0)),
        ]
        for family, address in addresses:
            listener = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            listener.bind(address)
            listener.listen()
            threading.Thread(target=_give_the_flag, args=(listener, made.flag), daemon=True).start()
        made.port = listener.getsockname()[1]
        os.chmod(made.folder / "docker.sock", 0o666)
        made.process = subprocess.Popen([PYTHON, "-c", "import time; time.sleep(7200)", made.mark])
        try:
            yield made
        finally:
            made.process.kill()
            made.process.wait()
            for left in Path("/tmp").glob("aca-redteam-attempt-*"):
                shutil.rmtree(left, ignore_errors=True)


def _give_the_flag(listener: socket.socket, flag: str) -> None:
    with contextlib.suppress(OSError):
        while True:
            peer, _ = listener.accept()
            with peer, contextlib.suppress(OSError):
                peer.sendall(flag.encode())


def program(attempt: Attempt, host: Host, shared: str) -> str:
    """Return an attempt as a whole program."""
    parts = []
    for name, body in (("surface", attempt.surface), ("escape", attempt.escape)):
        parts.append(f"def {name}():\n{textwrap.indent(body.strip(), '    ')}" if body else f"{name} = None")
    return "\n".join([host.constants(shared), PRELUDE, *parts, _RUNNER])


def _judged(output: str, host: Host, otherwise: str) -> Verdict:
    if harm := host.harm():
        return Verdict("not", harm)
    last = next((line for line in output.splitlines() if line.startswith("VERDICT ")), None)
    if last is None:
        return Verdict("broken", otherwise.strip()[-300:])
    surface, escape = json.loads(last.removeprefix("VERDICT "))
    if broken := [said for said in (surface, escape) if said and said.startswith("broken")]:
        return Verdict("broken", broken[0])
    if escape == "reached":
        return Verdict("not")
    if surface == "reached":
        return Verdict("partly", f"then {escape}" if escape else "")
    return Verdict("contained", " ".join(dict.fromkeys(said for said in (surface, escape) if said)))


async def in_sessions(attempts: list[Attempt], host: Host) -> list[Verdict]:
    """Run each attempt in a session of its own."""
    verdicts = []
    async with open_pool(policy=replace(Policy(), mounts=(Mount(str(host.shared), SHARED),))) as pool:
        for attempt in attempts:
            verdicts.append(await _in_session(attempt, host, pool))
    return verdicts


async def _in_session(attempt: Attempt, host: Host, pool: SessionPool) -> Verdict:
    async with pool.session() as session:
        result = await session.run(program(attempt, host, SHARED), timeout=_SECONDS)
        verdict = _judged(result.stdout, host, str(result.error))
        if not attempt.collects:
            return verdict
        listed = [file.name for file in await session.list_files()]
        names = [*listed, "link", "magic", *(f"folder{host.folder}/flag.txt", f"../../..{host.folder}/flag.txt", f"{host.folder}/flag.txt")]
        for name in names:
            with contextlib.suppress(ACASessionsError, ValueError):
                if host.flag.encode() in await session.download_file(name):
                    return Verdict("not", f"the host copied {name}")
        return Verdict("contained", f"{len(names)} names refused")


@dataclass(frozen=True, slots=True)
class Place:
    """A sandbox that a program is run in by a command line.

    Args:
        name: The heading of its column.
        command: What stands before `python3 SHARED/attempt.py`; `{shared}` is the folder that it is shown.
        shared: Where the folder is inside.
        install: How to get it, if it is missing.
        shown: The command line for the page; by default the command itself.
    """

    name: str
    command: tuple[str, ...]
    shared: str
    install: str
    shown: str = ""

    def run(self, attempt: Attempt, host: Host) -> Verdict:
        """Run an attempt and judge it."""
        if attempt.collects:
            return Verdict("none", "nothing is copied out")
        shared = self.shared.format(shared=host.shared)
        command = [part.format(shared=host.shared) for part in self.command]
        command += [PYTHON, f"{shared}/attempt.py"]
        host.offer(program(attempt, host, shared))
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False, cwd="/", stdin=subprocess.DEVNULL)
        except subprocess.TimeoutExpired:
            return Verdict("broken", f"no end after {_SECONDS} seconds")
        return _judged(done.stdout, host, done.stderr)


_READABLE = ["/usr", "/lib", "/lib64", "/bin", "/etc", "/proc", "/dev"]
_SANDLOCK = """
import sys
from sandlock import Sandbox
done = Sandbox(fs_readable=[*{readable}, sys.argv[1]], fs_writable=["/tmp"]).run(sys.argv[2:], timeout=60)
sys.stdout.buffer.write(done.stdout)
sys.stderr.buffer.write(done.stderr)
"""


def places() -> list[Place]:
    """Return the sandboxes to compare with, whether this machine has them or not."""
    usr = ("--ro-bind", "/usr", "/usr", "--symlink", "usr/bin", "/bin", "--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64")
    alone = ("--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp", "--unshare-all", "--clearenv", "--new-session", "--die-with-parent")
    closed = ("--private-dev", "--net=none", "--caps.drop=all", "--seccomp", "--nonewprivs", "--noroot")
    readable = ", ".join(f'"{path}"' for path in _READABLE)
    limits = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096")
    return [
        Place(
            "bubblewrap",
            ("bwrap", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--unshare-all"),
            "{shared}",
            _APT.format("bubblewrap"),
        ),
        Place("bubblewrap, /usr alone", ("bwrap", *usr, *alone, "--ro-bind", "{shared}", SHARED), SHARED, _APT.format("bubblewrap")),
        Place("firejail", ("firejail", "--quiet", "--read-only={shared}"), "{shared}", _APT.format("firejail")),
        Place(
            "firejail, closed", ("firejail", "--quiet", "--noprofile", *closed, "--read-only={shared}"), "{shared}", _APT.format("firejail")
        ),
        Place(
            "sandlock",
            (sys.executable, "-c", _SANDLOCK.replace("{readable}", str(_READABLE)), "{shared}"),
            "{shared}",
            "pip install sandlock",
            f'Sandbox(fs_readable=[{readable}, SHARED], fs_writable=["/tmp"]).run([…])',
        ),
        Place(
            "podman",
            ("podman", "--runtime", "runc", "run", "--rm", "--network", "none", *limits, "-v", f"{{shared}}:{SHARED}:ro", _IMAGE),
            SHARED,
            "apt install podman runc conmon debootstrap",
        ),
        # Run as root in a mount namespace of its own, so that no mount of an attempt remains.
        Place("no sandbox", ("unshare", "-m") if os.geteuid() == 0 else (), "{shared}", "", "the program itself"),
    ]


_APT = "apt install {}"
_IMAGE = "localhost/aca-redteam"


def missing(place: Place) -> str:
    """Return why a sandbox cannot be had on this machine; empty if it can."""
    if place.name == "sandlock" and importlib.util.find_spec("sandlock") is None:
        return f"not installed here: {place.install}"
    if place.command and shutil.which(place.command[0]) is None:
        return f"not installed here: {place.install}"
    if place.name == "podman" and (reason := _without_image()):
        return reason
    trial = subprocess.run(
        [part.format(shared="/usr") for part in place.command] + [PYTHON, "-c", "print(6 * 7)"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd="/",
        stdin=subprocess.DEVNULL,
    )
    said = (trial.stderr.strip().splitlines() or ["nothing was said"])[-1]
    return "" if "42" in trial.stdout else f"does not start here: {said[:160]}"


def _without_image() -> str:
    """Build the image for podman from Debian's own packages, since no registry is used. Return why there is none."""
    if subprocess.run(["podman", "image", "exists", _IMAGE], capture_output=True, check=False).returncode == 0:
        return ""
    try:
        tar = root_tar("bookworm")
    except pytest.skip.Exception as skipped:
        return f"has no image here: {skipped.msg}"
    done = subprocess.run(["podman", "import", str(tar), _IMAGE], capture_output=True, text=True, timeout=300, check=False)
    return "" if done.returncode == 0 else f"has no image here: {done.stderr.strip()[-160:]}"


def version(place: Place) -> str:
    """Return the version that a sandbox reports."""
    if place.name == "sandlock":
        from importlib.metadata import version as of

        return of("sandlock")
    if not place.command:
        return ""
    said = subprocess.run([place.command[0], "--version"], capture_output=True, text=True, check=False).stdout
    return next((word for word in said.split() if word[0].isdigit()), "")
