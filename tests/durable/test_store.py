"""Test the promises of a store with each kind of it."""

import asyncio
import fcntl
import hashlib
import os
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import cast

import pytest
from redis import Redis

from aca_sessions.durable import folder_store, redis_store
from aca_sessions.durable.redis_store import RedisStore
from aca_sessions.durable.store import PIECE, SMALL, Store, open_store
from aca_sessions.errors import ConfigurationError, InvalidArgumentError, RecordNotFoundError, StorageError

from ..agent.conftest import RedisServer
from .conftest import ACCOUNT
from .streams import all_of, contents, failing, of

LONG = os.urandom(PIECE + 1)


@pytest.mark.parametrize("data", [b"", b"x", LONG], ids=["empty", "short", "two pieces"])
async def test_a_written_content_is_read_back(store: Store, data: bytes) -> None:
    await store.write("blobs/a/1", of(data[:1], b"", data[1:]))
    assert await all_of(store.read("blobs/a/1")) == data
    assert await store.size("blobs/a/1") == len(data)


async def test_a_missing_key_has_no_size_and_cannot_be_read(store: Store) -> None:
    assert await store.size("a/b") is None
    assert await store.keys() == await store.keys("a") == []
    await store.delete("a/b")
    with pytest.raises(RecordNotFoundError, match="no such record"):
        await all_of(store.read("a/b"))


async def test_a_later_content_replaces_an_earlier_one(store: Store) -> None:
    for data in (LONG, b"short", LONG, b""):
        await store.write("a", of(data))
        assert await all_of(store.read("a")) == data
    await store.delete("a")
    assert await store.size("a") is None


@pytest.mark.parametrize("chunks", [(), (b"x",), (LONG,), (LONG, LONG)], ids=["nothing", "short", "a piece", "more"])
async def test_a_stream_that_fails_leaves_the_key_as_it_was(store: Store, chunks: tuple[bytes, ...]) -> None:
    for before in ({}, {"a/b": b"before"}):
        for key, data in before.items():
            await store.write(key, of(data))
        with pytest.raises(RuntimeError, match="the guest died"):
            await store.write("a/b", failing(*chunks))
        assert await contents(store) == before


async def test_a_cancelled_write_leaves_the_key_as_it_was(store: Store) -> None:
    blocked = asyncio.Event()

    async def blocking():
        yield LONG
        blocked.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(store.write("a/b", blocking()))
    await blocked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await contents(store) == {}


async def test_keys_are_those_below_a_folder(store: Store) -> None:
    keys = ["heads/aa", "blobs/aa/1", "blobs/aa/2", "blobs/aa1/1", "blobs/a/1"]
    for key in keys:
        await store.write(key, of(b"x"))
    await store.swap("heads/bb", None, b"y")
    assert await store.keys() == sorted([*keys, "heads/bb"])
    assert await store.keys("blobs/aa") == ["blobs/aa/1", "blobs/aa/2"]
    assert await store.keys("heads") == ["heads/aa", "heads/bb"]
    for key in keys:
        await store.delete(key)
    assert await store.keys() == ["heads/bb"]


async def test_a_swap_replaces_only_the_expected_value(store: Store) -> None:
    assert not await store.swap("h/a", b"x", b"y")
    assert await store.swap("h/a", None, None)
    assert await store.swap("h/a", None, b"")
    assert not await store.swap("h/a", None, b"other")
    assert await store.swap("h/a", b"", bytes(range(256)))
    assert not await store.swap("h/a", b"", b"other")
    assert not await store.swap("h/a", b"", None)
    assert not await store.swap("h/a", None, None)
    assert await store.swap("h/a", bytes(range(256)), b"z" * SMALL)
    assert await all_of(store.read("h/a")) == b"z" * SMALL
    assert await store.size("h/a") == SMALL
    assert await store.swap("h/a", b"z" * SMALL, None)
    assert await contents(store) == {}


async def test_only_one_of_many_swaps_at_once_succeeds(store: Store, store_url: str) -> None:
    async with open_store(store_url) as other:
        for old in (None, b"winner"):
            new = [b"winner" if old is None else b"%d" % number for number in range(10)]
            swaps = [(store, other)[number % 2].swap("h/a", old, new[number]) for number in range(10)]
            assert sum(await asyncio.gather(*swaps)) == 1


async def test_concurrent_writers_leave_one_whole_content(store: Store, store_url: str) -> None:
    async with open_store(store_url) as other:
        # Azure's blocks of one blob exclude each other, so one of these can fail there. Saves never write a key twice.
        results = await asyncio.gather(store.write("a", of(LONG)), other.write("a", of(LONG[::-1])), return_exceptions=True)
        assert all(result is None or isinstance(result, StorageError) for result in results)
        assert await all_of(store.read("a")) in (LONG, LONG[::-1])


@pytest.mark.parametrize(
    "key", ["", "/a", "a/", "a//b", "..", "a/../b", ".new/x", "A", "a_b", "a\n", "a" * 129, "a/b/c/d/e/f", "a\0", "-a"]
)
async def test_an_invalid_key_is_refused_without_naming_it(folder: Store, key: str) -> None:
    with pytest.raises(InvalidArgumentError, match="a key of a store must have") as raised:
        await folder.write(key, of(b""))
    assert len(key) < 3 or key not in str(raised.value)
    for attempt in (folder.size(key), folder.delete(key), folder.swap(key, None, b""), all_of(folder.read(key))):
        with pytest.raises(InvalidArgumentError):
            await attempt


async def test_a_value_that_is_too_large_to_swap_is_refused(store: Store) -> None:
    with pytest.raises(InvalidArgumentError, match="must be at most 65536 bytes"):
        await store.swap("a", None, b"x" * (SMALL + 1))


@pytest.mark.parametrize(
    "url",
    [
        "file://host/a",
        "file:a",
        "file:///a?b",
        "/a",
        "http://a",
        pytest.param("azure-blob://account", marks=pytest.mark.long),  # importing Azure's library takes a second
        pytest.param("azure-blob://account/", marks=pytest.mark.long),
        pytest.param("azure-blob://a:b@c/d", marks=pytest.mark.long),
        "redis://host:secretport",
        "redis://[secretport",
        "file:///a%00b",
    ],
)
def test_an_invalid_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="the URL of") as raised:
        open_store(url)
    assert "secretport" not in str(raised.value)


@pytest.mark.parametrize(
    ("library", "url"),
    [
        ("redis", "redis://host"),
        ("aiohttp", "azure-blob://a/b"),
        pytest.param("azure.storage", "azure-blob://a/b", marks=pytest.mark.long),
    ],
)
def test_a_missing_library_is_named_with_the_line_to_paste(library: str, url: str) -> None:
    code = f"import sys; sys.modules[{library!r}] = None; from aca_sessions.durable.store import open_store; open_store({url!r})"
    failed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert f"pip install 'aca-sessions-core[{'redis' if library == 'redis' else 'azure-blob'}]'" in failed.stderr.splitlines()[-1]


@pytest.mark.long
def test_a_connection_string_of_another_account_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", "AccountName=other;AccountKey=c2VjcmV0")
    with pytest.raises(ConfigurationError, match="of the account 'other'"):
        open_store(f"azure-blob://{ACCOUNT}/container")
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", f"AccountName={ACCOUNT};nonsense")
    with pytest.raises(ConfigurationError, match="is invalid"):
        open_store(f"azure-blob://{ACCOUNT}/container")


# A folder


async def test_only_the_owner_can_read_a_folder(folder: Store, tmp_path: Path) -> None:
    await folder.write("blobs/a/1", of(b"x"))
    await folder.swap("heads/a", None, b"y")
    for path in (tmp_path / "store").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


@pytest.mark.parametrize("target", ["blobs", "blobs/a", "blobs/a/1"])
async def test_no_symbolic_link_is_followed(folder: Store, tmp_path: Path, target: str) -> None:
    (tmp_path / "outside" / "a").mkdir(parents=True)
    for secret in ("outside/1", "outside/a/1"):
        (tmp_path / secret).write_text("secret")
    link = tmp_path / "store" / target
    link.parent.mkdir(parents=True)
    outside = {"blobs": "outside", "blobs/a": "outside/a", "blobs/a/1": "outside/1"}[target]
    link.symlink_to(tmp_path / outside)
    with pytest.raises(StorageError):
        await all_of(folder.read("blobs/a/1"))
    assert await folder.keys() == []
    if target != "blobs/a/1":
        for attempt in (folder.write("blobs/a/2", of(b"x")), folder.delete("blobs/a/1"), folder.swap("blobs/a/1", None, b"x")):
            with pytest.raises(StorageError, match="a symbolic link"):
                await attempt
    else:
        await folder.write("blobs/a/1", of(b"x"))  # replaces the link
        assert await all_of(folder.read("blobs/a/1")) == b"x"
    assert {path.read_text() for path in (tmp_path / "outside").rglob("1")} == {"secret"}
    assert len(list((tmp_path / "outside").rglob("*"))) == 3


async def test_the_folder_itself_may_be_a_symbolic_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    async with open_store(f"file://{tmp_path}/link") as store:
        await store.write("a", of(b"x"))
    assert (tmp_path / "elsewhere" / "a").read_bytes() == b"x"


async def test_a_pipe_in_the_place_of_a_record_is_refused(folder: Store, tmp_path: Path) -> None:
    await folder.write("a/b", of(b"x"))
    os.mkfifo(tmp_path / "store" / "a" / "c")
    with pytest.raises(StorageError, match="not a file"):
        await all_of(folder.read("a/c"))


async def test_old_leftovers_of_killed_writers_are_deleted(tmp_path: Path) -> None:
    new = tmp_path / "store" / ".new"
    new.mkdir(parents=True)
    for name, age in (("old", 3601), ("young", 3000)):
        (new / name).write_bytes(b"x")
        os.utime(new / name, (time.time() - age,) * 2)
    async with open_store(f"file://{tmp_path}/store") as store:
        await store.write("a", of(b"x"))
    assert [path.name for path in new.iterdir()] == ["young"]


async def test_files_that_are_not_records_are_not_listed(folder: Store, tmp_path: Path) -> None:
    await folder.write("a/b", of(b"x"))
    (tmp_path / "store" / "a" / ".nfs0001").touch()
    (tmp_path / "store" / "lost+found").mkdir()
    assert await folder.keys() == ["a/b"]


async def test_an_empty_folder_is_deleted_while_others_write_into_it(folder: Store, tmp_path: Path) -> None:
    async def write_and_delete(number: int) -> None:
        for _ in range(20):
            await folder.write(f"blobs/a/{number}", of(b"x"))
            await folder.delete(f"blobs/a/{number}")

    await asyncio.gather(*map(write_and_delete, range(4)))
    assert not (tmp_path / "store" / "blobs" / "a").exists()
    assert list((tmp_path / "store" / ".new").iterdir()) == []


async def test_a_lock_that_another_process_keeps_is_reported(folder: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await folder.swap("a", None, b"x")
    name = hashlib.sha256(b"a").hexdigest()[:2]
    with open(tmp_path / "store" / ".locks" / name) as file:  # a lock belongs to an open file, so this is as another process
        fcntl.flock(file, fcntl.LOCK_EX)
        monkeypatch.setattr(folder_store, "_LOCK_SECONDS", 0.05)
        with pytest.raises(StorageError, match="cannot lock"):
            await folder.swap("a", b"x", b"y")
    assert await folder.swap("a", b"x", b"y")


async def test_a_full_disk_is_reported_and_keeps_what_is_there(small_disk: Path) -> None:
    async with open_store(f"file://{small_disk}") as store:
        await store.write("a/b", of(b"before"))
        with pytest.raises(StorageError, match="No space left on device"):
            await store.write("a/b", of(bytes(3 * 1024 * 1024)))
        assert await contents(store) == {"a/b": b"before"}
        await store.write("a/b", of(bytes(1024 * 1024)))
        subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
        for attempt in (store.write("a/b", of(b"x")), store.delete("a/b"), store.swap("h/a", None, b"x")):
            with pytest.raises(StorageError, match="Read-only file system"):
                await attempt
        assert await all_of(store.read("a/b")) == bytes(1024 * 1024)


# Redis


async def test_what_a_killed_writer_left_in_redis_expires(redis_server: RedisServer) -> None:
    with Redis.from_url(redis_server.url) as client:
        client.flushall()
        async with open_store(redis_server.url) as store:
            ages = []

            async def chunks():
                yield LONG
                ages.extend(client.ttl(name) for name in client.keys("*:piece:*"))

            await store.write("a", chunks())
            assert all(0 < age <= 3600 for age in ages)
            assert len(ages) == 1
            assert {client.ttl(name) for name in client.keys("*")} == {-1}  # published: nothing expires
            await store.write("a", of(b"short"))
            assert len(client.keys("*:piece:*")) == 1
            await store.delete("a")
            assert client.keys("*") == []


async def test_a_content_whose_pieces_expired_is_not_published(redis_server: RedisServer) -> None:
    with Redis.from_url(redis_server.url) as client:
        client.flushall()

        async def chunks():
            yield LONG
            client.flushall()

        async with open_store(redis_server.url) as store:
            with pytest.raises(StorageError, match="was deleted while it was written"):
                await store.write("a", chunks())
            assert await store.size("a") is None


async def test_publishing_again_after_a_lost_response_keeps_the_content(redis_server: RedisServer) -> None:
    """The client sends a command again if the connection broke."""
    async with open_store(redis_server.url) as opened:
        store = cast(RedisStore, opened)
        await store.write("a", of(LONG))
        entry = await store._send("GET", redis_store._entry("a"))
        assert await store._evaluate(redis_store._PUBLISH, [redis_store._entry("a"), redis_store._INDEX], redis_store._PIECES, "a", entry)
        assert await all_of(store.read("a")) == LONG


async def test_a_full_redis_is_reported_and_keeps_what_is_there(redis_server: RedisServer) -> None:
    with Redis.from_url(redis_server.url) as client:
        client.flushall()
        async with open_store(redis_server.url) as store:
            await store.write("a", of(b"before"))
            client.config_set("maxmemory", 1_000_000)
            try:
                for attempt in (store.write("a", of(LONG)), store.swap("b", None, b"x")):
                    with pytest.raises(StorageError, match="it is full"):
                        await attempt
                assert await all_of(store.read("a")) == b"before"
                await store.delete("a")
            finally:
                client.config_set("maxmemory", 0)
            assert await store.keys() == []


async def test_a_server_that_does_not_run_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_store, "_ATTEMPTS", 1)
    async with open_store("redis://secret:password@127.0.0.1:1") as store:
        with pytest.raises(StorageError, match="check that the server runs") as raised:
            await store.size("a")
    assert "secret" not in str(raised.value)
