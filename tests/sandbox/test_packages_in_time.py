"""Test installed packages with rollback and branches: packages belong to the session, not to a checkpoint of it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aca_sessions import PackageSource, Policy, Session, open_pool

from ..wheels import make_wheel

pytestmark = [pytest.mark.slow, pytest.mark.long]


@pytest.fixture
async def session(tmp_path: Path) -> AsyncIterator[Session]:
    make_wheel(tmp_path / "wheels", "alpha")
    async with (
        open_pool(policy=Policy(packages=PackageSource(wheels=str(tmp_path / "wheels")), preload=(), spares=0)) as pool,
        pool.session() as leased,
    ):
        yield leased


async def test_a_rollback_leaves_packages_installed(session: Session) -> None:
    await session.run("x = 1")
    await session.checkpoint()
    await session.install("alpha")
    await session.rollback()
    assert [package.name for package in await session.packages()] == ["alpha"]
    assert (await session.run("import alpha; x, alpha.version")).text == "(1, '1.0')"


async def test_a_rollback_does_not_restore_an_uninstalled_package(session: Session) -> None:
    await session.install("alpha")
    await session.checkpoint()
    await session.uninstall("alpha")
    await session.rollback()
    assert await session.packages() == []
    assert not (await session.run("import alpha")).success


async def test_a_branch_has_the_packages_of_its_session(session: Session) -> None:
    await session.install("alpha")
    (branch,) = await session.branch()
    assert [package.name for package in await branch.packages()] == ["alpha"]
    await session.uninstall("alpha")
    assert (await branch.run("import alpha; alpha.version")).value == "1.0"
