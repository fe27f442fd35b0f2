"""Build deploy/Dockerfile and run it with Podman. `make test-containers` runs these tests: they need minutes, root and Debian packages."""

import asyncio
import contextlib
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import pytest

from aca_sessions import Settings, open_pool
from aca_sessions.sandbox import hosts
from aca_sessions.sandbox.syscalls import Namespace

from ..conftest import ROOT
from ..roots import ASKED_FOR, root_tar

NEEDED = ("podman", "buildah", "runc", "conmon")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not ASKED_FOR, reason="takes minutes: make test-containers"),
    pytest.mark.skipif(os.geteuid() != 0 or not all(map(shutil.which, NEEDED)), reason="needs root; sudo apt install podman buildah runc"),
]
BASE, SERVER, TESTED = (f"localhost/aca-sessions-test-{name}:latest" for name in ("base", "server", "tested"))
# runc may not raise these on every machine.
LIMITS = ("--ulimit=nofile=1024:1024", "--ulimit=nproc=4096:4096")
OPEN = ("--security-opt", f"seccomp={ROOT}/deploy/seccomp.json", "--security-opt", "unmask=ALL")
PUBLISHED = ("-p", "127.0.0.1:8080:8080")
CLOSED = ("--cap-drop=ALL", "--security-opt=no-new-privileges", "--read-only", "--tmpfs=/tmp", "--tmpfs=/home/sessions")
KEY = "a-key-of-this-test"
# A session has a process 1 as well, so a host process in these tests must have a number that no process of the session has.
_HIGH_PID = "i=0; while [ $i -lt 400 ]; do (:); i=$((i+1)); done"


def command(*arguments: str, within: float = 600) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(arguments, capture_output=True, text=True, timeout=within, check=False, cwd=ROOT)


def run(*flags: str, image: str = SERVER, words: tuple[str, ...] = ()) -> "subprocess.CompletedProcess[str]":
    return command("podman", "--runtime", "runc", "run", "--rm", "--network=none", *LIMITS, *flags, image, *words, within=1800)


def build(tag: str, dockerfile: Path, context: Path, *arguments: str) -> None:
    built = command(
        *("buildah", "--runtime", "runc", "bud", "--isolation", "chroot", "--format", "docker", "-t", tag, "-f", str(dockerfile)),
        *(word for one in arguments for word in ("--build-arg", one)),
        *_as_this_machine_finds_packages(),
        str(context),
    )
    assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-3000:]


def _as_this_machine_finds_packages() -> list[str]:
    """Return options that give pip in the container the index of this machine's pip, and the folders and certificates of its settings."""
    told = [line.partition("=")[::2] for line in command(sys.executable, "-m", "pip", "config", "list").stdout.splitlines()]
    settings = {name.rpartition(".")[2]: value.strip("'\"").replace("\\n", " ") for name, value in told}
    conf = Path(os.environ["XDG_CACHE_HOME"], "pip.conf")
    conf.write_text("[global]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items()))
    words = [word for value in settings.values() for word in value.split()]
    # the files of a local index lie beside it
    places = {Path(word.removeprefix("file://")).parent if word.startswith("file://") else Path(word) for word in words}
    shown = [place for place in places if place.is_absolute() and place.exists()]
    return [f"--volume={place}:{place}:ro" for place in shown] + [f"--volume={conf}:/etc/pip.conf:ro"]


@pytest.fixture(scope="module", autouse=True)
def images() -> Iterator[None]:
    """Build the container as it is shipped, on Debian's Python and with few packages for sessions. Remove it afterwards."""
    subprocess.run(["podman", "import", "--quiet", str(root_tar("bookworm")), BASE], check=True, capture_output=True)
    build(SERVER, ROOT / "deploy" / "Dockerfile", ROOT, f"BASE={BASE}", "GUESTS=ipython matplotlib-inline")
    yield
    command("podman", "rmi", "--force", TESTED, SERVER, BASE)


@contextlib.contextmanager
def serving(flags: Sequence[str] = (*OPEN, *PUBLISHED)) -> Iterator[tuple[str, str]]:
    """Run a container that serves on a free port of loopback instead of 8080, and yield its name and endpoint."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    name = f"aca-sessions-test-{os.getpid()}"
    own = ("--name", name, "--env", f"ACA_SESSIONS_API_KEY={KEY}", *LIMITS)
    given = [flag.replace(PUBLISHED[1], f"127.0.0.1:{port}:8080") for flag in flags]
    started = command("podman", "--runtime", "runc", "run", "--detach", *own, *given, SERVER)
    try:
        assert started.returncode == 0, started.stderr
        _wait_for(f"http://127.0.0.1:{port}/health")
        yield name, f"http://127.0.0.1:{port}"
    finally:
        command("podman", "rm", "--force", name)


def _wait_for(url: str) -> None:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(url).status_code == 200:
                return
        time.sleep(0.2)
    raise AssertionError("the container does not answer")


@pytest.mark.parametrize(
    "flags",
    [OPEN, (*OPEN, *CLOSED), (*OPEN, "--user=4321"), hosts.PODMAN.line.split()],
    ids=["its two flags", "closed further", "another user", "the line of docs/reference/hosts.md"],
)
def test_isolation_is_full_inside(flags: tuple[str, ...]) -> None:
    told = run(*flags, words=("doctor",))
    assert told.returncode == 0, told.stdout + told.stderr
    assert "\nisolation: full\nready: " in told.stdout


def _as_docker_refuses(folder: Path) -> tuple[str, ...]:
    """Return the system calls that Docker's default profile refuses without capabilities, and its masked /proc."""
    names = ["unshare", "setns", "mount", "umount2", "pivot_root", "sethostname", "mount_setattr", "open_tree", "move_mount"]
    refused: list[dict[str, object]] = [{"names": names, "action": "SCMP_ACT_ERRNO"}]
    refused += [{"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}]
    for bit in Namespace:
        with_it = {"index": 0, "value": int(bit), "valueTwo": int(bit), "op": "SCMP_CMP_MASKED_EQ"}
        refused += [{"names": ["clone"], "action": "SCMP_ACT_ERRNO", "args": [with_it]}]
    path = folder / "docker.json"
    path.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": refused}))
    return ("--security-opt", f"seccomp={path}")


@pytest.mark.parametrize("missing", ["both", "the profile", "the whole /proc", "both, as in Docker"])
def test_a_missing_flag_is_one_error_that_names_it(missing: str, tmp_path: Path) -> None:
    flags = {
        "both": (),
        "the profile": OPEN[2:],
        "the whole /proc": OPEN[:2],
        "both, as in Docker": _as_docker_refuses(tmp_path),
    }[missing]
    told = run(*flags, words=("run", "1"))
    assert told.returncode != 0
    said = told.stderr[told.stderr.index("aca-sessions:") :]
    assert said.count("cannot isolate sessions") == 1
    assert hosts.PODMAN.row in said
    assert hosts.PODMAN.line in said
    assert "Traceback" not in said


async def test_a_session_is_reachable_over_http_from_outside() -> None:
    with serving() as (name, endpoint):
        async with open_pool(Settings(Endpoint=endpoint, ApiKey=KEY)) as pool, pool.session() as session:
            assert (await session.run("x = 20; x + 22")).value == 42
            await session.upload_file("a.txt", b"sent")
            assert await session.download_file("a.txt") == b"sent"
            assert (await session.run("import os; os.listdir('/home'), os.getuid(), os.path.exists('/opt/aca-sessions')")).text == (
                "([], 1000, False)"
            )
            assert (await session.health()).isolation["level"] == "full"
        assert httpx.get(f"{endpoint}/files", params={"api-version": "2025-10-02-preview", "identifier": "x"}).status_code == 401
        assert command("podman", "healthcheck", "run", name).returncode == 0
        assert command("podman", "exec", name, "id", "-u").stdout == "10001\n"


def test_the_command_line_of_the_page_serves() -> None:
    line = next(line for line in (ROOT / "docs" / "guides" / "containers.md").read_text().splitlines() if line.startswith("$ podman run"))
    *flags, image = shlex.split(line.removeprefix("$ podman run "))
    assert image == "aca-sessions"
    assert PUBLISHED[1] in flags
    with serving(flags) as (_, endpoint):
        assert httpx.get(f"{endpoint}/health").json()["status"] == "healthy"


async def test_sessions_leave_nothing_behind_in_the_container() -> None:
    with serving() as (name, endpoint):
        async with open_pool(Settings(Endpoint=endpoint, ApiKey=KEY)) as pool:
            for _ in range(5):
                async with pool.session() as session:
                    await session.run("import subprocess; subprocess.Popen(['sleep', '1000'])")
        states = ""
        for _ in range(50):
            states = command("podman", "exec", name, "sh", "-c", "cat /proc/[0-9]*/stat 2>/dev/null").stdout
            if "(sleep)" not in states and ") Z " not in states:
                break
            await asyncio.sleep(0.2)
        assert "(sleep)" not in states
        assert ") Z " not in states


def test_the_container_stops_on_sigterm() -> None:
    with serving() as (name, _):
        assert (
            command("podman", "stop", "--time", "60", name).returncode == 0
        )  # after 60 seconds podman would kill it, and it would end with 137
        assert command("podman", "inspect", name, "--format", "{{.State.ExitCode}}").stdout == "0\n"


def test_the_health_check_fails_if_nothing_answers() -> None:
    check = json.loads(command("podman", "image", "inspect", SERVER).stdout)[0]["Healthcheck"]["Test"]
    assert check[:2] == ["CMD", "python"]
    assert run("--entrypoint=python", words=tuple(check[2:])).returncode != 0


def test_the_hostile_tests_pass_inside_the_container() -> None:
    build(TESTED, ROOT / "tests" / "container" / "Dockerfile", ROOT / "tests" / "container", f"BASE={SERVER}")
    told = run(
        *(*OPEN, f"--volume={ROOT}:/checkout:ro", "--workdir=/checkout", "--env=HYPOTHESIS_STORAGE_DIRECTORY=/tmp/hypothesis"),
        "--entrypoint=sh",
        image=TESTED,
        words=("-c", f"{_HIGH_PID}; python -m pytest -q -p no:cacheprovider tests/hostile; exit $?"),
    )
    assert told.returncode == 0, told.stdout[-6000:]
