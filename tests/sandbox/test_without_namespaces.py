"""Test the level below full isolation: it must be chosen by name, and then sessions work as usual except for /mnt/data."""

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from aca_sessions import Limits, PackageSource, Policy, Session, SessionPool, isolation_report, open_pool, open_server
from aca_sessions.errors import ConfigurationError, IsolationError
from aca_sessions.hosting import Hosting
from aca_sessions.network.rules import Network
from aca_sessions.sandbox import forkserver
from aca_sessions.sandbox.policy import MB, Mount
from aca_sessions.sandbox.sandboxes import Sandboxes
from aca_sessions.settings import Settings

from ..conftest import COMMAND, ROOT, descendants, until
from ..wheels import make_wheel
from ..without_namespaces import BARE
from ..without_namespaces import COMMAND as REFUSING

pytestmark = pytest.mark.slow


def on_a_host_that_refuses(*arguments: str, **settings: str) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {f"ACASessions__Sandbox__{key}": value for key, value in settings.items()}
    command = [*REFUSING, *COMMAND, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, cwd=ROOT, env=environment)


def test_a_host_that_refuses_namespaces_is_an_error_and_nothing_less_is_chosen_silently() -> None:
    run = on_a_host_that_refuses("run", "1")
    assert run.returncode == 2
    assert "namespace: " in run.stderr
    assert "ACASessions:Sandbox:Isolation=no-namespaces" in run.stderr


@pytest.mark.long
def test_a_host_that_refuses_namespaces_can_run_the_lesser_level_if_it_is_chosen(public_python: str) -> None:
    run = on_a_host_that_refuses("run", "print(6 * 7)", Isolation="no-namespaces", Python=public_python)
    assert (run.returncode, run.stdout) == (0, "42\n"), run.stderr
    assert "no-namespaces" in run.stderr, "a warning"


@pytest.mark.long
def test_doctor_reports_what_is_not_enforced(public_python: str) -> None:
    run = on_a_host_that_refuses("doctor", Isolation="no-namespaces", Python=public_python)
    assert run.returncode == 1
    assert run.stdout.rstrip().endswith("isolation: NOT full. It is no-namespaces, which the settings name.")
    told = {line[4:].split("  ")[0]: line[:3] for line in run.stdout.splitlines()[:-1]}
    missing = {name for name, mark in told.items() if mark == "NO "} - {"uid"}
    namespaces = {f"{name} namespace" for name in ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup")}
    assert missing == namespaces | {"names of host files", "/mnt/data", "disk of a session"}
    assert (told["uid"] == "ok ") is (os.geteuid() == 0)
    assert told["Landlock"] == told["system calls"] == told["no signals to others"] == "ok "


@pytest.mark.parametrize("level", ["none", "full ", "no_namespaces", "NO-NAMESPACES", "less"])
def test_no_other_name_is_accepted(level: str) -> None:
    with pytest.raises(ConfigurationError, match="ACASessions:Sandbox:Isolation"):
        Settings(Sandbox={"Isolation": level})


async def test_a_warning_is_logged_once(public_python: str, caplog: pytest.LogCaptureFixture) -> None:
    forkserver._warn_of_weaker_isolation.cache_clear()
    with caplog.at_level(logging.WARNING, logger="aca_sessions"):
        for tenant in ("one", "other"):
            async with open_pool(policy=replace(BARE, python=public_python, tenant=tenant)):
                pass
    assert [record.message for record in caplog.records if "no-namespaces" in record.message] == [caplog.records[0].message]


async def test_health_and_metadata_name_the_level(bare: Session) -> None:
    health = await bare.health()
    assert health.responsive
    assert health.isolation["level"] == "no-namespaces"
    assert health.isolation["user namespace"].startswith("NOT ENFORCED")


@pytest.mark.parametrize("asked", [{"network": Network.allow("example.org")}, {"mounts": (Mount("/usr", "/mnt/usr"),)}])
def test_a_policy_that_needs_a_namespace_is_refused(asked: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match=r"Isolation. full"):
        Policy(isolation="no-namespaces", **asked)


async def test_a_plain_server_which_promises_azures_paths_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="/mnt/data"):
        async with open_server(policy=BARE, hosting=Hosting(plain=True)):
            pass


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user's sessions read what that user reads")
async def test_a_python_that_sessions_may_not_read_is_named(tmp_path: Path) -> None:
    private = tmp_path / "private"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", private], check=True)
    private.chmod(0o700)
    with pytest.raises(IsolationError, match="Python environment"):
        async with open_pool(policy=replace(BARE, python=str(private / "bin" / "python"))):
            pass


async def test_files_are_in_the_working_directory(bare: Session) -> None:
    await bare.upload_file("own.py", b"answer = 42")
    assert (await bare.run("import own; own.answer")).value == 42
    result = await bare.run("import os; os.makedirs('a'); open('a/b.txt', 'w').write('b'); os.getcwd() == os.environ['HOME']")
    assert result.value is True
    assert [change.path for change in result.files] == ["a/b.txt"]
    assert await bare.download_file("a/b.txt") == b"b"
    await bare.reset()
    assert (await bare.run("import os; sorted(os.listdir())")).text == "['a', 'own.py']"
    await bare.delete_file("own.py")
    assert [file.name for file in await bare.list_files()] == ["a"]


async def test_code_that_opens_mnt_data_gets_the_real_folder_in_the_error(bare: Session) -> None:
    result = await bare.run("open('/mnt/data/a.txt')")
    assert result.error.name == "FileNotFoundError"
    assert "There is no /mnt/data in this session: its files are in the working directory" in result.error.traceback


async def test_each_session_has_its_own_temporary_files(bare_pool: SessionPool) -> None:
    async with bare_pool.session() as one, bare_pool.session() as other:
        path = (await one.run("import tempfile; kept = tempfile.NamedTemporaryFile(); kept.name")).value
        assert (await other.run(f"open({path!r})")).error.name == "PermissionError"


async def test_a_cell_is_interrupted_and_its_state_kept(bare: Session) -> None:
    await bare.run("x = 1")
    result = await bare.run("while True: pass", timeout=0.2)
    assert (result.error.name, str(result.state)) == ("TimeoutError", "kept")
    assert (await bare.run("x")).value == 1


async def test_processes_left_by_a_cell_are_reported_and_end_with_a_reset(bare: Session) -> None:
    start = "import os, subprocess\nif os.fork() == 0:\n    subprocess.Popen(['sleep', '61'], start_new_session=True)\n"
    orphan = f"{start}    os._exit(0)\nos.wait()"
    result = await bare.run(orphan)
    assert [process.name for process in result.processes] == ["sleep"]
    await bare.reset()
    assert not Path(f"/proc/{result.processes[0].pid}").exists()
    assert (await bare.run("1")).processes == ()


async def test_an_interpreter_that_ends_ends_its_processes(bare: Session) -> None:
    pid = (await bare.run("import subprocess; subprocess.Popen(['sleep', '62'], start_new_session=True)")).processes[0].pid
    result = await bare.run("import os; os._exit(3)")
    assert str(result.state) == "lost: exit"
    await bare.run("1")
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.long
async def test_a_closed_pool_leaves_nothing(public_python: str) -> None:
    deep = "import os\nfor _ in range(300): os.mkdir('d' * 100); os.chdir('d' * 100)\nos.mkdir('closed', 0)"
    async with open_pool(policy=replace(BARE, python=public_python, tenant="of its own")) as pool, pool.session() as session:
        folder = Path((await session.run("import os; os.getcwd()")).value)
        assert (await session.run(deep)).success
        await session.run("import subprocess; subprocess.Popen(['sleep', '60'], start_new_session=True)")
        assert folder.exists()
    assert not folder.parents[1].exists()


HOST = """
import asyncio, sys
from tests.without_namespaces import BARE
from dataclasses import replace
from aca_sessions import open_pool
async def main():
    async with open_pool(policy=replace(BARE, python=sys.argv[1])) as pool, pool.session() as session:
        await session.run("import subprocess; subprocess.Popen(['sleep', '600'], start_new_session=True)")
        print((await session.run("import os; os.getcwd()")).value, flush=True)
        await session.run("while True: pass")
asyncio.run(main())
"""


@pytest.fixture
def host(public_python: str) -> "Iterator[subprocess.Popen[str]]":
    with subprocess.Popen([sys.executable, "-c", HOST, public_python], stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        yield process
        process.kill()


@pytest.mark.long
@pytest.mark.parametrize("killed", ["host", "host and fork server"])
def test_a_killed_host_leaves_no_process_and_no_folder(host: "subprocess.Popen[str]", killed: str) -> None:
    folder = Path(host.stdout.readline().strip()).parents[1]
    guests = descendants(host.pid)
    assert folder.exists()
    fork_server = max(guests, key=lambda pid: len(descendants(pid)))
    os.kill(host.pid, signal.SIGKILL)
    if killed == "host and fork server":
        os.kill(fork_server, signal.SIGKILL)
    deadline = time.monotonic() + 120
    while (folder.exists() or any(map(_is_alive, guests))) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not folder.exists()
    assert [pid for pid in guests if _is_alive(pid)] == []


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


async def test_a_session_whose_init_is_killed_from_outside_leaves_nothing_to_the_next(bare: Session) -> None:
    """Kill it as the out-of-memory killer might. The fork server adopts the processes that lost it."""
    left = (await bare.run("import subprocess; subprocess.Popen(['sleep', '63'], start_new_session=True)")).processes[0].pid
    parent = int(Path(f"/proc/{left}/stat").read_text().rpartition(")")[2].split()[1])
    init = int(Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(init, signal.SIGKILL)
    while _is_alive(parent):
        await asyncio.sleep(0.01)

    async def is_kept() -> bool:
        return str((await bare.run("1")).state) == "kept"

    await until(is_kept)
    assert not _is_alive(left)


@pytest.mark.long
async def test_packages_come_from_a_folder_that_sessions_may_enter(public_python: str, tmp_path: Path) -> None:
    make_wheel(tmp_path / "wheels", "alpha")
    with tempfile.TemporaryDirectory(dir="/tmp") as public:
        os.chmod(public, 0o711)
        packages = PackageSource(wheels=str(tmp_path / "wheels"), cache=f"{public}/cache")
        async with open_pool(policy=replace(BARE, python=public_python, packages=packages)) as pool, pool.session() as session:
            assert (await session.install("alpha")).error is None
            assert (await session.run("import alpha; alpha.version")).value == "1.0"
            assert not (await session.run("open(alpha.__file__, 'w')")).success


async def test_memory_is_counted(public_python: str) -> None:
    limits = replace(Limits(), memory=256 * MB)
    async with open_pool(policy=replace(BARE, python=public_python, limits=limits)) as pool, pool.session() as session:
        assert (await session.run("bytearray(300 << 20)")).error.name == "MemoryError"
        assert (await session.run("6 * 7")).value == 42


CONTAINERS_CAPABILITIES = (
    "-all,+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid,+setpcap,+net_bind_service,+net_raw,+sys_chroot,+mknod,"
    "+audit_write,+setfcap"
)
IN_A_CONTAINER = """
import asyncio, sys
from dataclasses import replace
from aca_sessions import open_pool
from tests.sandbox.test_memory import FOUR_HOGS, SMALL
from tests.without_namespaces import BARE

async def main():
    async with open_pool(policy=replace(BARE, limits=SMALL.limits, python=sys.argv[1])) as pool, pool.session() as session:
        print((await session.run(FOUR_HOGS)).state)
        await session.upload_file("a.txt", b"a")
        print((await session.run("open('a.txt').read()")).value)

asyncio.run(main())
"""


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="only root has capabilities to lose")
@pytest.mark.long
def test_the_root_of_a_default_container_contains_its_sessions(public_python: str) -> None:
    """Run with the default capabilities of containers, without namespaces, and without control groups to write to."""
    program = [*REFUSING, sys.executable, "-c", IN_A_CONTAINER, public_python]
    lose = ["setpriv", f"--bounding-set={CONTAINERS_CAPABILITIES}", *program]
    command = ["unshare", "--mount", "sh", "-c", 'umount -a -t cgroup,cgroup2; exec "$@"', "sh", *lose]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=ROOT, check=False)
    assert done.stdout.split("\n")[:2] == ["lost: memory", "a"], done.stderr


async def test_a_session_that_was_killed_for_its_memory_says_so_if_its_end_is_reported_late(bare_policy: Policy) -> None:
    async with Sandboxes(bare_policy) as sandboxes:
        sandbox = await sandboxes.open()
        interpreter = await sandbox.interpreter()
        runtime = interpreter.runtime
        signal.pidfd_send_signal(runtime.init, signal.SIGSTOP)  # as on a machine too busy to run it, it ends and reports nothing
        runtime.kill("memory")  # as the watchdog does
        signal.pidfd_send_signal(interpreter.pidfd, signal.SIGKILL)
        while not interpreter._death.done():
            await asyncio.sleep(0.01)
        assert interpreter.cause_of_death == "memory"
        with contextlib.suppress(ProcessLookupError):  # it may have been killed already
            signal.pidfd_send_signal(runtime.init, signal.SIGCONT)
        await sandbox.close()


async def test_the_hosts_network_must_be_chosen_explicitly(public_python: str) -> None:
    listen = "import socket; socket.create_server(('127.0.0.1', 0)).getsockname()[0]"
    async with open_pool(policy=replace(BARE, python=public_python, network=Network.host())) as pool, pool.session() as session:
        assert (await session.run(listen)).value == "127.0.0.1"
        assert (await session.run("socket.socket(socket.AF_UNIX)")).error.name == "OSError"


async def test_a_report_of_full_isolation_is_not_of_the_lesser_level() -> None:
    assert (await isolation_report()).level == "full"
