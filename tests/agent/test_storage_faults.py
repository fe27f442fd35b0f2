"""Test storage that others write at the same time, that is full, read-only or gone, and writers that are killed in the middle."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from redis.asyncio import Redis

from aca_sessions import AgentSession, FileStorage, RedisStorage, SessionPool, tool
from aca_sessions.agent.library import redis_storage
from aca_sessions.agent.library.artifacts import Artifacts
from aca_sessions.agent.library.dependencies import Deps
from aca_sessions.agent.library.skills import Skills
from aca_sessions.agent.library.storage import Storage
from aca_sessions.errors import StorageError

from ..conftest import mostly_long
from .conftest import RedisServer
from .writers import opened

pytestmark = pytest.mark.slow
WRITERS = [sys.executable, str(Path(__file__).with_name("writers.py"))]
SMALL_DISK = """
mount -t tmpfs -o size=512k,nr_inodes=64 tmpfs "$1" && python="$2" writers="$3" folder="$1"
"$python" "$writers" full "$folder" && mount -o remount,bind,ro "$folder" && "$python" "$writers" read-only "$folder"
"""


@pytest.fixture(params=mostly_long(["files", "redis"], "files"))
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return where other processes find the storage."""
    if request.param == "files":
        return str(tmp_path / "kept")
    return f"redis://127.0.0.1:{request.getfixturevalue('redis_server').port} {tmp_path.name}"


@pytest.mark.long
async def test_writes_of_two_processes_at_the_same_time_are_both_kept(place: str) -> None:
    both = [subprocess.Popen([*WRITERS, "write", place, who]) for who in "ab"]
    storage = opened(place)
    artifacts, skills = Artifacts(storage), Skills(storage)
    while any(writer.poll() is None for writer in both):
        for told in await artifacts.list():
            assert len(set(await artifacts.load(told["name"]))) == 1
        assert all(told["version"] for told in await skills.list())
    assert [writer.wait() for writer in both] == [0, 0]
    shared = await skills.get("shared")
    assert shared is not None
    assert (len(await Deps(storage).list()), shared["version"], len(await storage.names("content"))) == (40, 40, 1)
    await closed(storage)


@pytest.mark.long
async def test_a_writer_killed_at_any_moment_leaves_nothing_half_written(place: str) -> None:
    assert await asyncio.to_thread(subprocess.call, [*WRITERS, "crash", place]) == 0
    storage = opened(place)
    await Artifacts(storage).save("one", "whole")
    assert await Artifacts(storage).load("one") == "whole"
    await closed(storage)


async def test_a_full_or_read_only_disk_is_reported_and_still_read(tmp_path: Path) -> None:
    unshared = next((one for one in (["unshare", "-m"], ["unshare", "-rm"]) if subprocess.call([*one, "true"]) == 0), None)
    if unshared is None:
        pytest.skip("this host gives no mount namespaces")
    command = [*unshared, "sh", "-c", SMALL_DISK, "sh", str(tmp_path), *WRITERS]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (
        0,
        "the storage cannot be written: No space left on device. Check the owner, mode and free space of its folder\n"
        "the storage cannot be written: Read-only file system. Check the owner, mode and free space of its folder\n",
    ), done.stderr


async def test_a_session_survives_storage_that_cannot_be_written(pool: SessionPool, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    async with AgentSession(pool, storage=FileStorage(tmp_path / "file")) as agent:
        for call in ("artifacts.save('a', 1)", "skills.create('a', 'def run(): pass')", "deps.add('humanize')"):
            said = str((await agent.run(call)).error)
            assert "ToolError: the storage cannot be" in said
            assert str(tmp_path) not in said
        assert (await agent.run("6 * 7")).value == 42


async def test_a_full_redis_is_reported_and_can_be_read_and_deleted_from(
    pool: SessionPool, redis_server: RedisServer, tmp_path: Path
) -> None:
    storage, server = RedisStorage(redis_server.url, prefix=tmp_path.name), Redis.from_url(redis_server.url)
    async with AgentSession(pool, storage=storage) as agent:
        await agent.run("skills.create('double', 'def run(n): return n * 2')\nartifacts.save('kept', 'before')")
        await server.config_set("maxmemory", "1")
        try:
            assert "it is full: raise its maxmemory" in str((await agent.run("artifacts.save('more', 'x')")).error)
            read = await agent.run("artifacts.load('kept'), skills.double(21), skills.search('double')[0]['name']")
            deleted = await agent.run("artifacts.delete('kept'), artifacts.list()")
            assert await agent.remove_skill("double")
        finally:
            await server.config_set("maxmemory", "0")
        assert deleted.error is None
        assert (read.text, deleted.text) == ("('before', 42, 'double')", "(None, [])")
        assert (await agent.run("artifacts.save('more', 'x')['name']")).text == "'more'"
    await server.aclose()
    await storage.close()


@pytest.mark.long
async def test_redis_may_go_and_return_in_the_middle_of_a_cell(pool: SessionPool, redis_server: RedisServer, tmp_path: Path) -> None:
    storage = RedisStorage(redis_server.url, prefix=tmp_path.name)
    tools = [tool(name=name)(act) for name, act in (("stop", redis_server.stop), ("start", redis_server.start))]
    gone = "try: artifacts.load('one')\nexcept ToolError as error: said = str(error)\n"
    code = f"artifacts.save('one', 'before')\ntools.stop()\n{gone}tools.start()\n"
    async with AgentSession(pool, storage=storage, tools=tools) as agent:
        assert (await agent.run(f"{code}(said.partition(': ')[2], artifacts.load('one'))")).text == (
            "('check that the server runs and that the URL is right', 'before')"
        )
        assert (await agent.run("artifacts.save('one', 'after'); artifacts.load('one')")).text == "'after'"
    await storage.close()


async def test_redis_may_restart_between_calls(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_storage, "_ATTEMPTS", 120)  # about two minutes
    storage = RedisStorage(redis_server.url, prefix="restart")
    await storage.write("skills", "one", b"kept")
    redis_server.stop()
    reading = asyncio.create_task(storage.read("skills", "one"))
    await asyncio.sleep(0)
    await asyncio.to_thread(redis_server.start)
    assert await reading == b"kept"
    await storage.close()


@pytest.mark.long
async def test_a_missing_redis_is_reported() -> None:
    storage = RedisStorage("redis://127.0.0.1:1")
    with pytest.raises(StorageError, match="check that the server runs"):
        await storage.read("skills", "one")
    await storage.close()


@pytest.mark.parametrize("wait", [0.0, 0.001, 0.003, 0.01])
async def test_a_caller_cancelled_while_a_file_is_locked_releases_it(tmp_path: Path, wait: float) -> None:
    storage = FileStorage(tmp_path)

    async def hold() -> None:
        async with storage.locked("deps"):
            await asyncio.Event().wait()

    holders = [asyncio.create_task(hold()) for _ in range(5)]
    await asyncio.sleep(wait)
    for holder in holders:
        holder.cancel()
    await asyncio.gather(*holders, return_exceptions=True)
    async with asyncio.timeout(120), storage.locked("deps"):
        pass


async def closed(storage: Storage) -> None:
    if isinstance(storage, RedisStorage):
        await storage.close()
