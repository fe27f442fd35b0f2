"""The sets of packages that a session holds, and those that it lets go."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from aca_sessions import CodeExecutionResult, PackageSource, Policy
from aca_sessions.sandbox.packages.requirements import Wheel
from aca_sessions.sandbox.packages.store import Packages, SessionPackages


async def shown(_paths: Sequence[str], _replaced: Sequence[str]) -> CodeExecutionResult:
    return CodeExecutionResult()


def having(packages: Packages, *sets: str) -> SessionPackages:
    """A session with some sets: each has a wheel of its name, and another one."""
    session = SessionPackages(packages, shown)
    for name in sets:
        with packages.cache.work_folder() as place:
            (place / "unpacked").mkdir()
            packages.cache.add_set(name, [Wheel(name, "1.0"), Wheel(f"{name}-more", "1.0")], place / "unpacked")
        held = packages.cache.lock_set(name)
        assert held is not None
        session._sets.append(held)
    return session


def locks(cache: Path) -> int:
    return sum(os.path.realpath(f"/proc/self/fd/{entry}").startswith(str(cache / "labels")) for entry in os.listdir("/proc/self/fd"))


async def test_a_change_that_fails_halfway_lets_go_of_what_it_held(tmp_path: Path) -> None:
    packages = Packages(Policy(packages=PackageSource(cache=str(tmp_path))))
    session = having(packages, "one", "two")
    shutil.rmtree(Path(packages.cache.sets_folder) / "two")
    result = await session.uninstall(["one", "two"])
    assert result.error is not None
    assert result.error.name == "PackageCacheError"
    assert [package.name for package in session.installed] == ["one", "one-more", "two", "two-more"]
    assert locks(tmp_path) == 2
    await session.close()
    assert locks(tmp_path) == 0


async def test_a_branch_that_cannot_hold_all_packages_lets_go_of_those_that_it_held(tmp_path: Path) -> None:
    packages = Packages(Policy(packages=PackageSource(cache=str(tmp_path))))
    session, branch = having(packages, "one", "two"), SessionPackages(packages, shown)
    (tmp_path / "labels" / "two").unlink()
    (tmp_path / "labels" / "two").mkdir()
    with pytest.raises(IsADirectoryError):
        branch.inherit(session)
    await branch.close()
    assert locks(tmp_path) == 2
    await session.close()
