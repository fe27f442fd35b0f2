"""Test the saves of sessions: leases, versions, crashes at every step, and damage of each byte."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from aca_sessions.durable.saves import Blob, Lease, Save, Saves, Writer
from aca_sessions.durable.sealing import Sealer
from aca_sessions.durable.store import Store, open_store
from aca_sessions.errors import (
    FencedError,
    InvalidArgumentError,
    RecordNotFoundError,
    SaveCorruptedError,
    SaveKeyError,
    SaveTooLargeError,
    StorageError,
)

from ..conftest import ROOT
from .streams import OTHER, OWNER, FaultyStore, contents, failing, of

KEY = bytes(range(32))
SEALERS = pytest.mark.parametrize("sealer", [Sealer(), Sealer(KEY)], ids=["plain", "encrypted"])


def make_saves(store: Store, sealer: Sealer | None = None, max_bytes: int = 100_000_000, inline_bytes: int = 0) -> Saves:
    return Saves(store, sealer or Sealer(KEY), max_bytes=max_bytes, inline_bytes=inline_bytes)


async def lease_of(saves: Saves, owner: str = OWNER, server: str = "server") -> Lease:
    lease = await saves.take(owner, server, 60)
    assert lease is not None
    return lease


async def commit(saves: Saves, lease: Lease, number: int, *, most_pinned: int = 0, **blobs: bytes) -> Save:
    async with await saves.begin(lease.owner, lease.fence) as writer:
        for name, data in blobs.items():
            await writer.add(name, data)
        return await writer.commit({"number": number}, most_pinned=most_pinned)


async def blobs_of(saves: Saves, save: Save | None) -> dict[str, bytes]:
    assert save is not None
    return {name: bytes(await saves.read(save.owner, blob)) for name, blob in save.blobs.items()}


@SEALERS
async def test_a_save_is_read_back(store: Store, sealer: Sealer) -> None:
    saves = make_saves(store, sealer)
    assert await saves.newest(OWNER) is None
    assert await saves.older(OWNER) is None
    lease = await lease_of(saves)
    assert await saves.newest(OWNER) is None
    blobs = {"variables": os.urandom(100), "files": os.urandom(2_000_000), "nothing": b""}
    save = await commit(saves, lease, 1, **blobs)
    assert await saves.newest(OWNER) == save
    assert save.manifest == {"number": 1}
    assert save.size == sum(map(len, blobs.values()))
    assert await blobs_of(saves, save) == blobs
    assert await saves.older(OWNER) is None


async def test_the_two_newest_saves_are_kept_and_nothing_else(store: Store) -> None:
    saves = make_saves(store)
    lease = await lease_of(saves)
    for number in range(4):
        await commit(saves, lease, number, variables=b"%d" % number, files=b"same")
    newest, older = await saves.newest(OWNER), await saves.older(OWNER)
    assert newest is not None
    assert older is not None
    assert (newest.manifest["number"], older.manifest["number"]) == (3, 2)
    assert await blobs_of(saves, newest) == {"variables": b"3", "files": b"same"}
    assert await blobs_of(saves, older) == {"variables": b"2", "files": b"same"}
    assert newest.blobs["files"] == older.blobs["files"]
    assert len(await store.keys()) == 6  # the head, two records, three blobs


async def test_small_contents_are_in_the_record_of_a_save(folder: Store) -> None:
    saves = make_saves(folder, inline_bytes=10)
    lease = await lease_of(saves)
    async with await saves.begin(OWNER, lease.fence) as writer:
        await writer.add_all(of(b"12345", b"6", b"12345", b"too long", b""))
        save = await writer.commit({})
    assert len(await folder.keys()) == 4  # the head, the record and two blobs
    assert await saves.newest(OWNER) == save
    assert [bytes(data) async for data in saves.read_all(save)] == [b"12345", b"6", b"12345", b"too long", b""]


async def test_an_unchanged_content_is_not_stored_again(folder: Store) -> None:
    counted = FaultyStore(folder)
    saves = make_saves(counted)
    lease = await lease_of(saves)
    large = os.urandom(5_000_000)
    await commit(saves, lease, 1, files=large, copy=large, variables=b"x")
    assert len(counted.written) == 3  # two blobs, one record
    await commit(saves, lease, 2, files=large, variables=b"y")
    assert len(counted.written) == 5
    await commit(saves, lease, 3, files=large, variables=b"x")  # as in the older save
    assert len(counted.written) == 6
    assert await blobs_of(saves, await saves.newest(OWNER)) == {"files": large, "variables": b"x"}


async def test_a_lost_content_is_stored_again(folder: Store) -> None:
    saves = make_saves(folder)
    lease = await lease_of(saves)
    save = await commit(saves, lease, 1, files=b"files")
    await folder.delete(f"blobs/{OWNER}/{save.blobs['files'].id}")
    with pytest.raises(RecordNotFoundError):
        await blobs_of(saves, await saves.newest(OWNER))
    assert await blobs_of(saves, await commit(saves, lease, 2, files=b"files")) == {"files": b"files"}


async def test_a_pinned_save_stays_until_it_is_unpinned(folder: Store) -> None:
    counted = FaultyStore(folder)
    saves = make_saves(counted)
    lease = await lease_of(saves)
    large = os.urandom(5_000_000)
    first = await commit(saves, lease, 1, most_pinned=2, files=large, variables=b"x")
    second = await commit(saves, lease, 2, most_pinned=2, files=large, variables=b"y")
    for number in range(3, 6):
        await commit(saves, lease, number, files=b"z", variables=b"z")
    assert (await saves.pinned(OWNER), (await lease_of(saves)).has_pinned) == ([first, second], True)
    assert await blobs_of(saves, first) == {"files": large, "variables": b"x"}
    lease = await lease_of(saves)
    written = len(counted.written)
    third = await commit(saves, lease, 6, most_pinned=2, files=large, variables=b"y")  # what a pinned save has is not stored again
    assert len(counted.written) == written + 1
    assert await saves.pinned(OWNER) == [second, third]
    await saves.unpin(OWNER, lease.fence, third.id)  # it is the newest save still
    assert (await saves.newest(OWNER), await saves.pinned(OWNER)) == (third, [second])
    with pytest.raises(FencedError):
        await saves.unpin(OWNER, lease.fence - 1, second.id)
    await saves.unpin(OWNER, lease.fence, second.id)
    await saves.unpin(OWNER, lease.fence, second.id)
    assert await blobs_of(saves, third) == {"files": large, "variables": b"y"}
    assert (await saves.pinned(OWNER), len(await folder.keys())) == ([], 6)  # the head, two saves and three contents
    await commit(saves, lease, 7, most_pinned=2, files=b"f")
    await saves.release(lease)
    await saves.forget(OWNER)
    assert await folder.keys() == []


@pytest.mark.long
@pytest.mark.parametrize("when", ["before", "half", "after"])
@pytest.mark.parametrize("step", ["pin", "unpin"])
async def test_a_crash_leaves_a_pinned_save_whole_or_harmless(memory_path: Path, when: str, step: str) -> None:
    for fail_at in range(1, 100):
        async with open_store(f"file://{memory_path}/{fail_at}") as store:
            saves = make_saves(store)
            lease = await lease_of(saves)
            first = await commit(saves, lease, 1, most_pinned=2, variables=b"1", files=b"same")
            for number in (2, 3):
                await commit(saves, lease, number, variables=b"%d" % number, files=b"same")
            faulty = FaultyStore(store, fail_at=fail_at, when=when)
            try:
                if step == "pin":
                    await commit(make_saves(faulty), lease, 4, most_pinned=2, variables=b"4", files=b"same")
                else:
                    await make_saves(faulty).unpin(OWNER, lease.fence, first.id)
            except StorageError:
                pass
            pinned = await saves.pinned(OWNER)
            for save in pinned:
                assert await blobs_of(saves, save) == {"variables": b"%d" % save.manifest["number"], "files": b"same"}
            assert [save.manifest["number"] for save in pinned] in ([[1], [1, 4]] if step == "pin" else [[1], []])
            for number in (8, 9):
                await commit(saves, lease, number, variables=b"%d" % number)
            assert await saves.pinned(OWNER) == pinned
            assert len(await store.keys()) == 5 + 2 * len(pinned) + bool(pinned)  # the leftovers are gone
            if faulty.operations < fail_at:
                assert fail_at > 5
                return
    pytest.fail("the crashes have no end")


async def test_a_save_that_is_too_large_is_refused(folder: Store) -> None:
    saves = make_saves(folder, max_bytes=3_000_000)
    lease = await lease_of(saves)
    before = await commit(saves, lease, 1, files=b"x")
    stored = await contents(folder)
    for sizes in ([3_000_001], [2_000_000, 1_000_001], [3_000_000]):  # the last one has no room for its manifest
        with pytest.raises(SaveTooLargeError, match=r"\(3 MB\).*ACASessions:Durable:MaxMegabytes"):
            await commit(saves, lease, 2, **{f"blob{number}": os.urandom(size) for number, size in enumerate(sizes)})
    async with await saves.begin(OWNER, lease.fence) as writer:
        with pytest.raises(SaveTooLargeError):
            await writer.add_all(of(*(os.urandom(700_000) for _ in range(5))))
    assert await saves.newest(OWNER) == before
    assert await contents(folder) == stored


async def test_an_abandoned_save_leaves_nothing(store: Store) -> None:
    saves = make_saves(store)
    lease = await lease_of(saves)
    await commit(saves, lease, 1, files=b"x")
    stored = await contents(store)
    async with await saves.begin(OWNER, lease.fence) as writer:
        await writer.add("one", b"one")
        with pytest.raises(RuntimeError, match="the guest died"):
            await writer.add_all(failing(*(os.urandom(1_000_000) for _ in range(5))))
    assert await contents(store) == stored


async def test_a_save_that_is_cancelled_leaves_nothing_after_the_next_one(folder: Store) -> None:
    saves = make_saves(folder)
    lease = await lease_of(saves)

    async def save() -> None:
        async with await saves.begin(OWNER, lease.fence) as writer:
            await writer.add_all(of(*(os.urandom(700_000) for _ in range(5))))
            await asyncio.sleep(60)

    for steps in range(1, 60, 4):
        saving = asyncio.create_task(save())
        for _ in range(steps):
            await asyncio.sleep(0.0005)
        saving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await saving
        await commit(saves, lease, steps, files=b"x")
        assert len([key for key in await folder.keys() if key.startswith("blobs/")]) == 1


async def test_what_cannot_be_saved_is_refused(folder: Store) -> None:
    saves = make_saves(folder)
    lease = await lease_of(saves)
    async with await saves.begin(OWNER, lease.fence) as writer:
        await writer.add("a", b"x")
        with pytest.raises(InvalidArgumentError, match="same name"):
            await writer.add("a", b"y")
        for manifest, message in (({"a": object()}, "values that JSON has"), ({"a": "x" * 5_000_000}, "at most 4194304 bytes")):
            with pytest.raises(InvalidArgumentError, match=message):
                await writer.commit(manifest)
        await writer.commit({"number": 1})
        with pytest.raises(InvalidArgumentError, match="after `commit`"):
            await writer.add("b", b"x")
    for owner in ("", "../etc", "AB" * 16, "ab/cd" * 5, "ab" * 65):
        for attempt in (saves.take(owner, "s", 1), saves.begin(owner, 1), saves.newest(owner), saves.forget(owner)):
            with pytest.raises(InvalidArgumentError, match="an owner of saves must be"):
                await attempt
    with pytest.raises(InvalidArgumentError, match="got 257"):
        await saves.take(OWNER, "s" * 257, 1)


# Leases


async def test_a_lease_keeps_other_servers_out_until_it_ends(store: Store) -> None:
    saves = make_saves(store)
    first = await lease_of(saves, server="one")
    assert await saves.take(OWNER, "two", 60) is None
    again = await lease_of(saves, server="one")
    assert again.fence > first.fence
    with pytest.raises(FencedError, match="another server has taken this session"):
        await saves.renew(first, 60)
    await saves.release(first)  # does nothing
    assert await saves.take(OWNER, "two", 60) is None
    renewed = await saves.renew(again, -1)
    assert renewed.fence == again.fence
    other = await lease_of(saves, server="two")
    assert other.fence > again.fence
    await saves.release(other)
    assert await store.keys() == []  # nothing is left of a session that was not saved
    assert (await lease_of(saves, server="one")).fence > other.fence


async def test_a_server_that_lost_its_lease_cannot_save(store: Store, store_url: str) -> None:
    async with open_store(store_url) as other_store:
        first, second = make_saves(store), make_saves(other_store)
        late = await lease_of(first, server="one")
        late_writer = await first.begin(OWNER, late.fence)
        await late_writer.add("variables", b"late")
        await first.renew(late, -1)
        lease = await lease_of(second, server="two")
        writer = await second.begin(OWNER, lease.fence)
        await writer.add("variables", b"newer")
        with pytest.raises(FencedError, match="another server has taken this session"):
            await late_writer.commit({})
        await late_writer.abandon()
        for attempt in (first.begin(OWNER, late.fence), first.renew(late, 60), commit(first, late, 1)):
            with pytest.raises(FencedError):
                await attempt
        await writer.commit({"number": 2})
        assert await blobs_of(first, await first.newest(OWNER)) == {"variables": b"newer"}
        assert len(await store.keys()) == 3


async def test_a_save_keeps_its_lease_and_a_lease_its_saves(store: Store) -> None:
    saves = make_saves(store)
    lease = await lease_of(saves, server="one")
    save = await commit(saves, lease, 1, files=b"x")
    assert await saves.take(OWNER, "two", 60) is None
    await saves.release(lease)
    with pytest.raises(FencedError, match="was released"):  # by a task that renews leases meanwhile
        await saves.renew(lease, 60)
    other = await lease_of(saves, server="two")
    assert await saves.newest(OWNER) == save
    await commit(saves, other, 2, files=b"y")
    assert await saves.older(OWNER) == save


async def test_only_one_of_many_servers_gets_a_free_lease(store: Store) -> None:
    saves = make_saves(store)
    leases = await asyncio.gather(*(saves.take(OWNER, f"server {number}", 60) for number in range(8)))
    assert sum(lease is not None for lease in leases) == 1


async def test_of_two_writers_of_a_lease_one_commits(folder: Store) -> None:
    saves = make_saves(folder)
    lease = await lease_of(saves)
    writers = [await saves.begin(OWNER, lease.fence) for _ in range(2)]
    for number, writer in enumerate(writers):
        await writer.add("variables", b"%d" % number)
    await writers[0].commit({"number": 0})
    with pytest.raises(StorageError, match="another save of this session was committed"):
        await writers[1].commit({"number": 1})
    await writers[1].abandon()
    assert await blobs_of(saves, await saves.newest(OWNER)) == {"variables": b"0"}
    assert len(await folder.keys()) == 3


async def test_cleaning_leaves_what_a_later_lease_writes(folder: Store) -> None:
    """The server that lost its lease just after its commit must not delete what its successor is writing."""
    saves = make_saves(folder)
    lease = await lease_of(saves, server="one")
    await saves.renew(lease, -1)
    successor = await lease_of(saves, server="two")
    writer = await saves.begin(OWNER, successor.fence)
    await writer.add("variables", b"newer")
    await saves._delete_ids(OWNER, kept=set(), newest=lease.fence)
    save = await writer.commit({})
    assert await blobs_of(saves, save) == {"variables": b"newer"}


# All owners


async def test_all_owners_are_listed_and_one_is_forgotten(store: Store) -> None:
    saves = make_saves(store)
    for number, owner in enumerate((OWNER, OTHER)):
        await commit(saves, await lease_of(saves, owner), number, files=owner.encode())
    await lease_of(saves, "ef" * 16)  # never saved
    listed = await saves.list()
    assert {(save.owner, save.manifest["number"]) for save in listed} == {(OWNER, 0), (OTHER, 1)}
    assert await saves.forget(OWNER)
    assert not await saves.forget(OWNER)
    assert [save.owner for save in await saves.list()] == [OTHER]
    assert not any(OWNER in key for key in await store.keys())
    assert await blobs_of(saves, await saves.newest(OTHER)) == {"files": OTHER.encode()}


async def test_a_forgotten_session_cannot_be_saved_by_the_server_that_has_it(folder: Store) -> None:
    saves = make_saves(folder)
    lease = await lease_of(saves)
    writer = await saves.begin(OWNER, lease.fence)
    await writer.add("variables", b"x")
    assert await saves.forget(OWNER)
    with pytest.raises(FencedError, match="were deleted"):
        await writer.commit({})
    await writer.abandon()
    assert await folder.keys() == []
    newer = await lease_of(saves)
    assert newer.fence > lease.fence
    with pytest.raises(FencedError):
        await saves.begin(OWNER, lease.fence)


async def test_a_damaged_save_is_left_out_of_the_list_and_can_be_forgotten(folder: Store, caplog: pytest.LogCaptureFixture) -> None:
    saves = make_saves(folder)
    for owner in (OWNER, OTHER):
        await commit(saves, await lease_of(saves, owner), 1, files=b"x")
    for damage in (b"junk", b"x" * 70_000):
        await folder.write(f"heads/{OWNER}", of(damage))
        assert [save.owner for save in await saves.list()] == [OTHER]
        assert caplog.messages[-1] == "1 saved sessions are left out of the list, because they cannot be read"
        for attempt in (saves.newest(OWNER), saves.take(OWNER, "server", 60)):
            with pytest.raises(SaveCorruptedError):
                await attempt
    assert await saves.forget(OWNER)
    assert not any(OWNER in key for key in await folder.keys())
    await commit(saves, await lease_of(saves), 1, files=b"x")


async def test_a_server_with_another_key_changes_nothing(folder: Store) -> None:
    saves = make_saves(folder)
    lease = await lease_of(saves)
    await commit(saves, lease, 1, files=b"x")
    stored = await contents(folder)
    for sealer in (Sealer(), Sealer(bytes(32))):
        other = make_saves(folder, sealer)
        for attempt in (other.newest(OWNER), other.list(), other.take(OWNER, "server", 60), other.begin(OWNER, lease.fence)):
            with pytest.raises(SaveKeyError):
                await attempt
    assert await contents(folder) == stored


# Damage


@SEALERS
@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.long), 13])
async def test_each_damaged_byte_of_a_save_is_an_error(folder: Store, tmp_path: Path, sealer: Sealer, step: int) -> None:
    saves = make_saves(folder, sealer)
    await commit(saves, await lease_of(saves), 1, v=b"variables")
    for key in await folder.keys():
        path = tmp_path / "store" / key
        whole = path.read_bytes()
        damaged = [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(0, len(whole), step)]
        damaged += [whole[:at] for at in range(0, len(whole), step)] + [whole + b"x", b"x" + whole]
        for data in damaged:
            path.write_bytes(data)
            with pytest.raises(StorageError):
                await blobs_of(saves, await saves.newest(OWNER))
        path.write_bytes(whole)
    assert await blobs_of(saves, await saves.newest(OWNER)) == {"v": b"variables"}


@SEALERS
async def test_contents_that_change_places_are_an_error(folder: Store, tmp_path: Path, sealer: Sealer) -> None:
    saves = make_saves(folder, sealer)
    keys = []
    for owner in (OWNER, OTHER):
        save = await commit(saves, await lease_of(saves, owner), 1, a=b"a" * 10, b=b"b" * 10)
        keys += [f"heads/{owner}", f"saves/{owner}/{save.id}", *(f"blobs/{owner}/{blob.id}" for blob in save.blobs.values())]
    stored = await contents(folder)
    for one in keys:
        for other in keys:
            if one != other:
                (tmp_path / "store" / one).write_bytes(stored[other])
                with pytest.raises(SaveCorruptedError):
                    await blobs_of(saves, await saves.newest(one.split("/")[1]))
        (tmp_path / "store" / one).write_bytes(stored[one])


async def test_a_damaged_newest_save_leaves_the_older_one_and_the_next_save_keeps_that(folder: Store, tmp_path: Path) -> None:
    saves = make_saves(folder)
    lease = await lease_of(saves)
    whole = await commit(saves, lease, 1, files=b"x")
    damaged = await commit(saves, lease, 2, files=b"y")
    (tmp_path / "store" / "saves" / OWNER / damaged.id).write_bytes(b"junk")
    with pytest.raises(SaveCorruptedError):
        await saves.newest(OWNER)
    assert await saves.older(OWNER) == whole
    await commit(saves, lease, 3, files=b"z")
    assert await saves.older(OWNER) == whole
    assert len(await folder.keys()) == 5


# Crashes


@pytest.mark.parametrize("when", ["before", "half", "after"])
@pytest.mark.parametrize("dies", [True, pytest.param(False, marks=pytest.mark.long)], ids=["dead after it", "works after it"])
async def test_a_crash_at_every_step_leaves_a_whole_save(memory_path: Path, when: str, dies: bool) -> None:
    for fail_at in range(1, 100):
        async with open_store(f"file://{memory_path}/{fail_at}") as store:
            saves = make_saves(store)
            lease = await lease_of(saves)
            for number in (1, 2):
                await commit(saves, lease, number, variables=b"%d" % number, files=b"same")
            faulty = FaultyStore(store, fail_at=fail_at, when=when, dies=dies)
            try:
                await commit(make_saves(faulty), lease, 3, variables=b"3", files=b"same")
                numbers = {3}
            except StorageError:
                numbers = {2, 3}  # a save whose swap was done, but not confirmed, is committed too
            await check_whole(saves, numbers)
            await commit(saves, lease, 8, variables=b"8")
            await commit(saves, lease, 9, variables=b"9")
            assert len(await store.keys()) == 5  # the leftovers are gone
            if faulty.operations < fail_at:
                assert fail_at > 10
                return
    pytest.fail("the crashes have no end")


async def check_whole(saves: Saves, numbers: set[int]) -> None:
    newest, older = await saves.newest(OWNER), await saves.older(OWNER)
    assert newest is not None
    assert older is not None
    assert newest.manifest["number"] in numbers
    assert older.manifest["number"] == newest.manifest["number"] - 1
    for save in (newest, older):
        assert await blobs_of(saves, save) == {"variables": b"%d" % save.manifest["number"], "files": b"same"}


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_crash_while_a_session_is_forgotten_can_be_repaired(memory_path: Path, when: str) -> None:
    for fail_at in range(1, 50):
        async with open_store(f"file://{memory_path}/{fail_at}") as store:
            saves = make_saves(store)
            await commit(saves, await lease_of(saves), 1, variables=b"1", files=b"x")
            faulty = FaultyStore(store, fail_at=fail_at, when=when)
            try:
                await make_saves(faulty).forget(OWNER)
            except StorageError:
                await saves.forget(OWNER)
            assert await store.keys() == []
            if faulty.operations < fail_at:
                assert fail_at > 5
                return


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_commit_that_failed_can_be_repeated(memory_path: Path, when: str) -> None:
    for fail_at in range(1, 50):
        async with open_store(f"file://{memory_path}/{fail_at}") as store:
            faulty = FaultyStore(store, fail_at=0, when=when, dies=False)
            saves = make_saves(faulty)
            lease = await lease_of(saves)
            writer = await saves.begin(OWNER, lease.fence)
            await writer.add("variables", b"x")
            faulty.operations, faulty._fail_at = 0, fail_at
            try:
                await writer.commit({"number": 1})
            except StorageError:
                await writer.commit({"number": 1})
            await writer.abandon()  # does nothing
            assert await blobs_of(make_saves(store), await make_saves(store).newest(OWNER)) == {"variables": b"x"}
            if faulty.operations < fail_at:
                return


def test_a_killed_process_leaves_a_whole_save(memory_path: Path) -> None:
    command = [sys.executable, "-m", "tests.durable.killed_writer", f"file://{memory_path}/store"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    last, keys = map(int, done.stdout.split())
    assert last > 0
    assert keys == 5


async def test_a_full_disk_keeps_the_save_before(small_disk: Path) -> None:
    async with open_store(f"file://{small_disk}") as store:
        saves = make_saves(store)
        lease = await lease_of(saves)
        save = await commit(saves, lease, 1, files=b"x" * 500_000)
        with pytest.raises(StorageError, match="No space left on device"):
            await commit(saves, lease, 2, files=os.urandom(2_000_000))
        assert await saves.newest(OWNER) == save
        assert await blobs_of(saves, save) == {"files": b"x" * 500_000}
        subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
        with pytest.raises(StorageError, match="Read-only file system"):
            await commit(saves, lease, 2, files=b"y")
        assert await saves.newest(OWNER) == save
        subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
        await commit(saves, lease, 2, files=b"y" * 500_000)


def test_the_classes_show_no_key() -> None:
    assert KEY.hex() not in repr(Sealer(KEY))
    assert repr(Blob("ab", 1, "cd")) == "Blob(sha256='ab', size=1, id='cd')"
    assert Writer.__doc__
