"""Test folders of the host that a policy mounts into its sessions."""

import os
from pathlib import Path

import pytest

from aca_sessions import Mount, Policy, open_pool
from aca_sessions.errors import ConfigurationError

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.txt").write_text("weights")
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "secret.txt").chmod(0o600)
    for path in (tmp_path, *tmp_path.parents):
        if os.stat(path).st_uid == os.getuid():
            path.chmod(path.stat().st_mode | 0o005)
    return tmp_path


async def test_a_mount_can_be_read_and_not_written(folder: Path) -> None:
    async with (
        open_pool(policy=Policy(mounts=(Mount(str(folder), "/mnt/models"),), preload=(), spares=0)) as pool,
        pool.session() as session,
    ):
        assert (await session.run("open('/mnt/models/model.txt').read()")).value == "weights"
        assert "Errno 30" in str((await session.run("open('/mnt/models/new.txt', 'w')")).error)
        assert "Errno 30" in str((await session.run("import os; os.chmod('/mnt/models', 0o777)")).error)


async def test_a_writable_mount_is_shared_by_sessions_and_host(folder: Path) -> None:
    folder.chmod(0o777)
    policy = Policy(mounts=(Mount(str(folder), "/mnt/shared", "writable"),), preload=(), spares=0)
    async with open_pool(policy=policy) as pool, pool.session() as one, pool.session() as other:
        await one.run("open('/mnt/shared/new.txt', 'w').write('hello')")
        assert (await other.run("open('/mnt/shared/new.txt').read()")).value == "hello"
        assert (folder / "new.txt").read_text() == "hello"
        assert not (await one.run("import os; os.mknod('/mnt/shared/d', 0o20644, 259)")).success


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user's sessions run as that user")
async def test_a_session_of_a_root_host_has_the_rights_of_other_users(folder: Path) -> None:
    policy = Policy(mounts=(Mount(str(folder), "/mnt/shared", "writable"),), preload=(), spares=0)
    async with open_pool(policy=policy) as pool, pool.session() as session:
        assert "Errno 13" in str((await session.run("open('/mnt/shared/secret.txt').read()")).error)
        assert "Errno 13" in str((await session.run("open('/mnt/shared/new.txt', 'w')")).error)


@pytest.mark.parametrize("guest", ["/mnt", "/mnt/data", "/mnt/data/x", "/etc", "/mnt/../etc", "mnt/x", "/mnt/x/../../etc", "/mnt//x"])
def test_a_mount_target_must_be_under_mnt_and_outside_data(tmp_path: Path, guest: str) -> None:
    with pytest.raises(ConfigurationError, match="Sandbox:Mounts"):
        Mount(str(tmp_path), guest)


def test_a_mount_source_must_be_an_existing_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="must be an existing folder of this host"):
        Mount(str(tmp_path / "nothing"), "/mnt/x")
