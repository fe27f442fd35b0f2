"""Test packages that a session installs while it runs, from wheels made by the test."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aca_sessions import Package, PackageSource, Policy, Session, SessionPool, open_pool
from aca_sessions.sandbox.sandboxes import Sandboxes

from ..conftest import end_between_cells
from ..wheels import index_of, make_wheel

pytestmark = [pytest.mark.slow, pytest.mark.long]


def policy_of(wheels: Path) -> Policy:
    return Policy(packages=PackageSource(wheels=str(wheels)), preload=(), spares=0)


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    folder = tmp_path / "wheels"
    make_wheel(folder, "alpha", "1.0")
    make_wheel(folder, "alpha", "2.0")
    make_wheel(folder, "beta", requires=["alpha>=1"])
    return folder


@pytest.fixture
async def pool(wheels: Path) -> AsyncIterator[SessionPool]:
    async with open_pool(policy=policy_of(wheels)) as opened:
        yield opened


def kind(result: object) -> str | None:
    error = getattr(result, "error", None)
    return error.name if error else None


async def test_a_package_is_installed_with_its_dependencies_and_importable_at_once(session: Session) -> None:
    assert await session.supports("install")
    await session.run("x = 1")
    installed = await session.install("beta")
    assert (installed.stdout, str(installed.state)) == ("installed alpha 2.0\ninstalled beta 1.0\n", "kept")
    assert (await session.run("import beta, alpha; x, alpha.version")).text == "(1, '2.0')"
    assert await session.packages() == [Package(name="alpha", version="2.0"), Package(name="beta", version="1.0")]


async def test_an_installed_package_is_not_installed_again(session: Session) -> None:
    assert "is there already" in (await session.install("ipython")).stdout
    await session.install("alpha<2")
    assert (await session.install("alpha>=1")).stdout == "alpha 1.0 is there already\n"
    assert (await session.install("beta")).stdout == "installed beta 1.0\n"
    assert await session.packages() == [Package(name="alpha", version="1.0"), Package(name="beta", version="1.0")]


async def test_a_second_session_gets_the_same_set_without_an_index(pool: SessionPool, wheels: Path) -> None:
    async with pool.session() as one, pool.session() as other:
        await other.run("1")
        await one.install("beta")
        for wheel in wheels.iterdir():
            wheel.unlink()
        assert (await other.install("beta")).success
        assert (await other.run("import beta; beta.__file__")).value == (await one.run("import beta; beta.__file__")).value


async def test_parallel_sessions_that_install_the_same_package_all_get_it(pool: SessionPool) -> None:
    async with pool.session() as one, pool.session() as two, pool.session() as three, pool.session() as four:
        results = await asyncio.gather(*(session.install("beta") for session in (one, two, three, four)))
    assert [result.success for result in results] == [True] * 4


async def test_packages_survive_a_reset_and_a_loss(session: Session) -> None:
    await session.install("alpha==1.0")
    await session.reset()
    assert (await session.run("import alpha; alpha.version")).value == "1.0"
    assert str((await session.run("import os; os._exit(1)")).state) == "lost: exit"
    assert (await session.run("import alpha; alpha.version")).value == "1.0"


async def test_a_loss_before_an_install_is_reported_with_the_next_cell(session: Session) -> None:
    await session.run("x = 1")
    await end_between_cells(session)
    assert (await session.install("alpha")).success
    assert str((await session.run("'x' in globals()")).state) == "lost: exit"


async def test_a_file_larger_than_the_cache_is_refused(wheels: Path, tmp_path: Path) -> None:
    make_wheel(wheels, "large", files={"large.py": "#" * (3 << 20)})
    source = PackageSource(wheels=str(wheels), cache=str(tmp_path / "cache"), cache_size=1 << 20)
    async with open_pool(policy=Policy(packages=source, preload=(), spares=0)) as pool, pool.session() as session:
        assert kind(await session.install("large")) == "PackageTooLargeError"
        assert (await session.install("alpha")).success


async def test_programs_started_by_the_session_find_the_packages_too(session: Session) -> None:
    await session.install("alpha")
    script = "import alpha, typing; print(alpha.version, typing.__file__.startswith('/.packages'))"
    assert (await session.run(f'import subprocess, sys; subprocess.run([sys.executable, "-c", "{script}"])')).stdout == "2.0 False\n"


async def test_a_pth_file_is_processed_in_the_session(session: Session, wheels: Path) -> None:
    make_wheel(
        wheels, "hooked", files={"hooked.pth": "import os; os.environ['HOOKED'] = 'yes'\nhooked_more\n", "hooked_more/deeper.py": "x = 5"}
    )
    assert (await session.install("hooked")).success
    assert (await session.run("import os, deeper; os.environ['HOOKED'], deeper.x")).text == "('yes', 5)"


async def test_a_pth_file_that_ends_the_interpreter_has_no_other_effect(session: Session, wheels: Path) -> None:
    make_wheel(wheels, "quits", files={"quits.pth": "import os; os._exit(3)\n"})
    failed = await session.install("quits")
    assert (kind(failed), str(failed.state)) == ("InterpreterDied", "lost: exit")
    assert await session.packages() == []
    assert (await session.run("6 * 7")).value == 42


async def test_an_uninstalled_package_cannot_be_imported_again(session: Session) -> None:
    await session.install("beta")
    assert (await session.uninstall("beta")).stdout.startswith("uninstalled beta 1.0")
    assert kind(await session.run("import beta")) == "ModuleNotFoundError"
    assert (await session.run("import alpha; alpha.version")).value == "2.0"
    assert (await session.uninstall("alpha")).success
    assert await session.packages() == []


async def test_only_packages_installed_by_the_session_can_be_uninstalled(session: Session) -> None:
    environment, nothing = await session.uninstall("ipython"), await session.uninstall("no-such-package")
    assert "belongs to the sessions' environment" in str(environment.error)
    assert "not installed in this session" in str(nothing.error)


async def test_another_version_replaces_one_that_is_not_imported(session: Session) -> None:
    await session.install("beta")
    assert (await session.install("alpha==1.0")).stdout == "installed alpha 1.0\n"
    assert (await session.run("import alpha, beta; alpha.version")).value == "1.0"


async def test_an_imported_module_is_not_replaced(session: Session) -> None:
    await session.install("alpha==1.0")
    await session.run("import alpha")
    refused = await session.install("alpha==2.0")
    assert kind(refused) == "PackageConflictError"
    assert "alpha is loaded in another version: reset the session" in str(refused.error)
    assert await session.packages() == [Package(name="alpha", version="1.0")]
    await session.reset()
    assert (await session.install("alpha==2.0")).success


async def test_libraries_are_installed_before_the_cell_runs(session: Session) -> None:
    assert (await session.run("import beta; beta.version", libraries=["beta", "ipython"])).value == "1.0"
    refused = await session.run("print('ran')", libraries=["no-such-package"])
    assert (kind(refused), refused.stdout) == ("PackageNotFoundError", "")


async def test_a_failed_install_reports_the_reason_and_changes_nothing(session: Session, wheels: Path) -> None:
    make_wheel(wheels, "elsewhere", tag="cp311-cp311-win_amd64")
    make_wheel(wheels, "picky", requires=["alpha<2"])
    make_wheel(wheels, "old-fashioned", requires=["ipython<1"])
    (wheels / "source-1.0.tar.gz").write_bytes(b"")
    reasons = {text: str((await session.install(*text.split())).error) for text in _FAILURES}
    assert {text: reasons[text] for text, reason in _FAILURES.items() if reason not in reasons[text]} == {}
    assert await session.packages() == []


_FAILURES = {
    "no-such-package": "PackageNotFoundError: the index does not have a package no-such-package",
    "alpha>=9": "PackageNotFoundError: no version fits alpha>=9: ask for one that has a wheel for the sessions' Python: 1.0, 2.0",
    "elsewhere": "NoWheelError: elsewhere has no wheel for the sessions' Python",
    "source": "NoWheelError: source has no wheel",
    "picky alpha>1": "picky 1.0 depends on alpha<2",
    "ipython<1": "PackageConflictError: ipython<1 does not fit ipython",
    "old-fashioned": "the sessions' environment has ipython==",
    "alpha===1.0": "InvalidRequirementError",
}


async def test_a_configured_index_is_used(wheels: Path) -> None:
    with index_of(wheels) as address:
        async with (
            open_pool(policy=Policy(packages=PackageSource(index_url=address), preload=(), spares=0)) as pool,
            pool.session() as session,
        ):
            assert (await session.install("beta")).stdout == "installed alpha 2.0\ninstalled beta 1.0\n"


async def test_an_unreachable_index_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_RETRIES", "0")
    source = PackageSource(index_url="http://127.0.0.1:9/simple/")
    async with open_pool(policy=Policy(packages=source, preload=(), spares=0)) as pool, pool.session() as session:
        assert kind(await session.install("alpha")) == "IndexUnreachableError"


async def test_an_install_over_its_time_ends_and_the_session_continues(session: Session) -> None:
    late = await session.install("beta", timeout=0.01)
    assert (kind(late), str(late.state)) == ("TimeoutError", "kept")
    assert (await session.install("beta")).success


async def test_a_cancelled_install_leaves_the_session_as_it_was(session: Session) -> None:
    call = asyncio.create_task(session.install("beta"))
    await asyncio.sleep(0.2)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert (await session.install("beta")).success


async def test_an_install_waits_for_the_running_cell(session: Session) -> None:
    await session.install("alpha")
    busy = asyncio.create_task(session.run("import time; time.sleep(0.6); 'done'"))
    await asyncio.sleep(0.1)
    assert (await session.install("beta")).success
    assert (await busy).value == "done"


async def test_a_cache_folder_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    source = PackageSource(cache=str(tmp_path / "file" / "cache"))
    async with open_pool(policy=Policy(packages=source, preload=(), spares=0)) as pool, pool.session() as session:
        assert "ACASessions:Packages:CacheFolder" in str((await session.install("alpha")).error)
        assert (await session.run("6 * 7")).value == 42


async def test_sessions_with_packages_leave_nothing(wheels: Path, nothing_left: None) -> None:
    async with open_pool(policy=policy_of(wheels)) as pool, pool.session() as session:
        await session.install("beta")
        await session.uninstall("alpha")
        await session.reset()
        assert (await session.run("import beta; beta.version")).value == "1.0"


async def test_the_progress_of_an_install_can_be_followed(wheels: Path) -> None:
    told: list[str] = []
    async with Sandboxes(policy_of(wheels)) as sandboxes:
        sandbox = await sandboxes.open()
        assert (await sandbox.packages.install(["beta"], timeout=300, on_progress=told.append)).success
        await sandbox.close()
    assert told[0] == "resolving beta"
    assert "fetching alpha==2.0, beta==1.0" in told
    assert "Processing beta-1.0-py3-none-any.whl" in told
    assert str(wheels) not in str(told)


@pytest.mark.skipif(os.geteuid() == 0, reason="the users that root's sessions run as may not read everybody's Python")
async def test_sessions_without_namespaces_can_install_packages_too(wheels: Path) -> None:
    policy = Policy(packages=PackageSource(wheels=str(wheels)), isolation="no-namespaces", preload=(), spares=0)
    async with open_pool(policy=policy) as pool, pool.session() as session:
        assert (await session.install("beta")).success
        script = "import beta, alpha; print(alpha.version)"
        assert (await session.run(f'import beta, subprocess, sys; subprocess.run([sys.executable, "-c", "{script}"])')).stdout == "2.0\n"
        path = (await session.run("beta.__file__")).value
        assert not (await session.run(f"open({path!r}, 'w')")).success
        assert not (await session.run(f"import os; os.chmod({path!r}, 0o777)")).success


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a small disk")
async def test_a_full_disk_is_reported(wheels: Path, tmp_path: Path) -> None:
    make_wheel(wheels, "large", files={"large.py": "#" * (4 << 20)})
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m,mode=700", "tmpfs", str(disk)], check=True)
    try:
        source = PackageSource(wheels=str(wheels), cache=str(disk))
        async with open_pool(policy=Policy(packages=source, preload=(), spares=0)) as pool, pool.session() as session:
            full = await session.install("large")
            assert (kind(full), str(full.state)) == ("DiskFullError", "kept")
            assert (await session.install("alpha")).success
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


async def test_a_remembered_answer_is_used_while_no_index_is_reachable(
    wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_RETRIES", "0")
    with index_of(wheels) as address:
        policy = Policy(packages=PackageSource(index_url=address, cache=str(tmp_path / "cache")), preload=(), spares=0)
        async with open_pool(policy=policy) as pool, pool.session() as session:
            await session.install("alpha")
    for answer in (tmp_path / "cache" / "answers").iterdir():
        os.utime(answer, (0, 0))
    async with open_pool(policy=policy) as pool, pool.session() as session:
        assert (await session.install("alpha")).stdout == "installed alpha 2.0\n"
        assert kind(await session.install("beta")) == "IndexUnreachableError"


async def test_a_newer_version_is_found_after_a_day_unless_a_version_was_given(wheels: Path, tmp_path: Path) -> None:
    policy = Policy(packages=PackageSource(wheels=str(wheels), cache=str(tmp_path / "cache")), preload=(), spares=0)
    async with open_pool(policy=policy) as pool:
        for text in ("alpha", "alpha==2.0"):
            async with pool.session() as session:
                await session.install(text)
        make_wheel(wheels, "alpha", "3.0")
        async with pool.session() as session:
            assert (await session.install("alpha")).stdout == "installed alpha 2.0\n"
        for answer in (tmp_path / "cache" / "answers").iterdir():
            os.utime(answer, (0, 0))
        async with pool.session() as session:
            assert (await session.install("alpha==2.0")).stdout == "installed alpha 2.0\n"
        async with pool.session() as session:
            assert (await session.install("alpha")).stdout == "installed alpha 3.0\n"


async def test_a_script_of_a_package_is_found_as_a_command(session: Session, wheels: Path) -> None:
    entry = {
        "tool_x-1.0.dist-info/entry_points.txt": "[console_scripts]\ntool-x = tool_x:main\n",
        "tool_x.py": "def main(): print('ran')\n",
    }
    make_wheel(wheels, "tool-x", files=entry)
    await session.install("tool-x")
    assert (await session.run("!tool-x")).stdout == "ran\n"
    await session.uninstall("tool-x")
    assert "not found" in str(await session.run("!tool-x"))


_INSTALL = """
import asyncio, sys
from aca_sessions import PackageSource, Policy, open_pool
async def main():
    policy = Policy(packages=PackageSource(wheels=sys.argv[1], cache=sys.argv[2]), preload=(), spares=0)
    async with open_pool(policy=policy) as pool, pool.session() as session:
        (await session.install("beta")).raise_for_error()
        print((await session.run("import alpha, beta; alpha.version")).raise_for_error().value)
asyncio.run(main())
"""


def test_processes_that_install_the_same_package_at_once_do_not_interfere(wheels: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", _INSTALL, str(wheels), str(tmp_path / "cache")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate()[0] for process in running] == ["2.0\n"] * 3
    assert len(list((tmp_path / "cache" / "labels").iterdir())) == 1
