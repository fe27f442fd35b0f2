"""Test checkpoints that are saved in a store: found and restored after a restart, with faults at each step."""

import asyncio
import signal
from pathlib import Path
from typing import Any

import pytest

from aca_sessions import InteractiveSession, Session, Settings, open_pool
from aca_sessions.durable.folder_store import FolderStore
from aca_sessions.durable.saves import Saves, Writer
from aca_sessions.errors import NotFoundError, NotSupportedError, ServiceError, SnapshotError, StorageError
from aca_sessions.sandbox.sandbox import Sandbox
from aca_sessions.server import saved_sessions

from ..cli.test_cli import Server
from ..wheels import make_wheel
from .test_saved_sessions import client_of, opening, pool, server, settings, text

pytestmark = pytest.mark.slow


async def names(session: Session) -> list[tuple[str | None, bool]]:
    return [(one.name, one.durable) for one in await session.checkpoints()]


async def test_a_durable_checkpoint_is_found_and_restored_after_a_restart(tmp_path: Path) -> None:
    async with pool(tmp_path) as first, first.session("alice") as session:
        await session.run("x = 1; gen = (i for i in 'ab'); open('f.txt', 'w').write('one')")
        await session.checkpoint("live")
        before = await session.checkpoint("before", durable=True)
        assert (before.durable, before.left_behind) == (True, ("gen",))
        await session.run("x = 2; open('f.txt', 'w').write('two'); open('more.txt', 'w').close()")
        assert await names(session) == [("live", False), ("before", True)]
    async with pool(tmp_path) as second, second.session("alice") as session:
        assert await session.checkpoints() == [before]
        assert await session.rollback("before") == before
        result = await session.run("import os; x, open('f.txt').read(), sorted(os.listdir()), 'gen' in globals()")
        assert (result.text, str(result.state)) == ("(1, 'one', ['f.txt'], False)", "rolled_back: rollback")
        assert (result.state.checkpoint, result.state.missing) == (before.id, ("gen",))
        assert result.state.saved is not None
        assert result.state.consequence.endswith(" UTC, without gen; background processes were ended")
        assert await text(session, "x") == ("1", "kept")


@pytest.mark.long
async def test_an_endpoint_without_a_store_refuses_a_durable_checkpoint() -> None:

    async with open_pool() as opened, opened.session("alice") as session:
        with pytest.raises(NotSupportedError, match="set ACASessions:Durable:Store"):
            await session.checkpoint(durable=True)
        with pytest.raises(ServiceError, match="this server has no store: set ACASessions:Durable:Store"):
            await session._interpreter._request_checkpoints("POST", "session/checkpoints", "alice", {"durable": True})
        with pytest.raises(ServiceError, match="'durable' must be true or false, got a number"):
            await session._interpreter._request_checkpoints("POST", "session/checkpoints", "alice", {"durable": 1})
        assert await session.checkpoints() == []


@pytest.mark.long
async def test_a_rollback_finds_the_latest_checkpoint_wherever_it_is(tmp_path: Path) -> None:
    async with pool(tmp_path) as opened, opened.session("alice") as session:
        for number in range(1, 4):
            await session.run(f"x = {number}")
            await session.checkpoint("same", durable=number < 3)
        assert await names(session) == [("same", True), ("same", True), ("same", False)]
        await session.run("x = 4")
        await session.rollback("same")
        assert await text(session, "x") == ("3", "kept")  # this checkpoint is in the sandbox, so nothing was lost
        [first, second, _] = await session.checkpoints()
        await session.rollback(second)
        assert await text(session, "x") == ("2", "kept")
        await session.reset()
        assert await session.checkpoints() == [first, second]
        with pytest.raises(SnapshotError, match=r"'other' does not exist. The session has 'same', 'same'"):
            await session.rollback("other")
        await session.rollback()
        assert await text(session, "x") == ("2", "rolled_back: rollback")
        await session.rollback(first.id)
        assert await text(session, "x") == ("1", "rolled_back: rollback")
        assert await text(session, "x") == ("1", "kept")
        taken = await session.checkpoint()
        await session.run("x = 5")
        assert await session.rollback() == taken
        assert await text(session, "x") == ("1", "kept")


@pytest.mark.long
async def test_durable_checkpoints_are_deleted_on_request_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACASessions__Sandbox__Limits__Checkpoints", "2")

    def stored() -> bytes:
        return b"".join(file.read_bytes() for file in (tmp_path / "store").rglob("*") if file.is_file())

    async with pool(tmp_path) as opened:
        async with opened.session("alice") as session:
            for name in ("one", "two", "three"):
                await session.run(f"x = b'secret' * 10_000 + b'-{name}'")
                taken = await session.checkpoint(name, durable=True)
                await session.run("x = None")
            assert await names(session) == [("two", True), ("three", True)]
            [branch] = await session.branch()
            assert await branch.checkpoints() == []
            for _ in range(2):
                await session.save()
            assert (b"secret-one" in stored(), b"secret-two" in stored(), b"secret-three" in stored()) == (False, True, True)
            await session._interpreter.delete_checkpoint("alice", taken.id)
            assert b"secret-three" not in stored()
            with pytest.raises(SnapshotError, match="does not exist"):
                await session._interpreter.delete_checkpoint("alice", taken.id)
            assert await names(session) == [("two", True)]
            await opened.forget("alice")
            assert await names(session) == [("two", False)]  # the session itself goes on, with what is in its sandbox
            await session.checkpoint("four", durable=True)
        await opened.terminate("alice")
        await opened.terminate(branch.session_id)
    assert [*(tmp_path / "store" / "saves").rglob("*")] == []


@pytest.mark.long
async def test_undo_uses_a_durable_checkpoint_once(tmp_path: Path) -> None:
    def run() -> None:
        with InteractiveSession(settings=settings(tmp_path), session_id="alice") as session:
            session.run("x = 1")
            session.checkpoint(durable=True)
            session.run("x = 2")
        with InteractiveSession(settings=settings(tmp_path), session_id="alice") as session:
            session.undo()
            assert session.run("x").text == "1"
            assert session.checkpoints() == []

    await asyncio.to_thread(run)


@pytest.mark.long
async def test_a_loss_before_a_durable_checkpoint_is_still_reported_after_the_rollback(tmp_path: Path) -> None:
    async with server(tmp_path) as interpreter:
        session, unaware = Session(interpreter, "alice"), Session(interpreter, "alice")
        await session.run("x = 1")
        assert await text(unaware, "x") == ("1", "kept")
        await (await session.start("import os; os._exit(1)")).wait()
        taken = await session.checkpoint(durable=True)
        await session.reset()
        await session.rollback(taken)
        result = await unaware.run("'x' in globals()")
        assert (result.text, str(result.state)) == ("False", "lost: exit")
        assert await text(session, "'x' in globals()") == ("False", "rolled_back: rollback")


@pytest.mark.long
async def test_a_durable_checkpoint_is_taken_completely_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise StorageError("the disk is full")

    async with server(tmp_path) as interpreter:
        session = Session(interpreter, "alice")
        await session.run("import os; x = os.urandom(100_000)")
        for place, name in ((Saves, "begin"), (Writer, "add"), (FolderStore, "write"), (FolderStore, "swap"), (Sandbox, "save")):
            with monkeypatch.context() as patched:
                patched.setattr(place, name, fail)
                with pytest.raises(ServiceError, match="the disk is full"):
                    await session.checkpoint("before", durable=True)
            assert await session.checkpoints() == []
        await session.checkpoint("before", durable=True)
        assert await names(session) == [("before", True)]
        assert await text(session, "len(x)") == ("100000", "kept")
        assert len([file for file in (tmp_path / "store" / "blobs").rglob("*") if file.is_file()]) == 1


@pytest.mark.long
async def test_a_rollback_that_fails_leaves_the_session_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with server(tmp_path) as interpreter:
        session = Session(interpreter, "alice")
        await session.run("import os; x = os.urandom(100_000); open('f.txt', 'w').write('one')")
        await session.checkpoint("before", durable=True)
        await session.reset()
        await session.run("y = 1; open('f.txt', 'w').write('two')")
        live = await session.checkpoint("live")
        [blob] = [file for file in (tmp_path / "store" / "blobs").rglob("*") if file.is_file()]
        whole = blob.read_bytes()
        blob.write_bytes(whole[:-20] + bytes(20))
        with pytest.raises(SnapshotError, match=r"cannot return to the checkpoint 'saved-.*', and nothing was changed: .*was changed"):
            await session.rollback("before")

        async def fail(*_: object, **__: object) -> Any:
            raise StorageError("the disk is gone")

        for place, name in ((Saves, "pinned"), (Saves, "read"), (Sandbox, "restore")):
            with monkeypatch.context() as patched:
                patched.setattr(place, name, fail)
                with pytest.raises(ServiceError, match="StoreUnavailable"):
                    await session.rollback("before")
                await session.rollback(live)  # needs no store
        assert await text(session, "y, 'x' in globals(), open('f.txt').read()") == ("(1, False, 'two')", "kept")
        blob.write_bytes(whole)
        await session.rollback("before")
        assert await text(session, "'y' in globals(), len(x), open('f.txt').read()") == ("(False, 100000, 'one')", "rolled_back: rollback")


@pytest.mark.long
@pytest.mark.parametrize("is_lost", [False, True])
async def test_a_session_that_could_not_be_restored_can_be_rolled_back_to_a_durable_checkpoint(tmp_path: Path, is_lost: bool) -> None:
    servers = [opening(tmp_path) for _ in range(2)]
    async with client_of(*servers) as (interpreter, use):
        await use(0)
        session, unaware = Session(interpreter, "alice"), Session(interpreter, "alice")
        await session.run("import os; x = 1")
        assert await text(unaware, "x") == ("1", "kept")
        if is_lost:  # between two cells, so that no result says it
            await session.run("import threading; threading.Timer(0.2, os._exit, (1,)).start()")
            hosted = interpreter._http._client._transport.app._sessions.get("alice")
            while (await hosted.sandbox()).running.alive:
                await asyncio.sleep(0.05)
        await session.checkpoint("before", durable=True)
        for number in range(2):
            await session.run(f"import os; x = os.urandom(100_000 + {number})")
            await session.save()
        await interpreter._http.request("DELETE", "session", identifier="alice", headers={"x-aca-sessions-cause": "closed"})
        for blob in (tmp_path / "store" / "blobs").rglob("*"):
            if blob.is_file():
                blob.write_bytes(bytes(100))
        await use(1)
        assert (await session.run("'x' in globals()")).state.kind == "lost"
        await session.rollback("before")
        expected = ("None", "lost: exit") if is_lost else ("1", "rolled_back: rollback")
        assert await text(session, "print(globals().get('x'))") == (None, expected[1])
        assert await text(unaware, "str(globals().get('x'))") == (f"'{expected[0]}'", expected[1])


@pytest.mark.long
async def test_requests_that_come_during_a_rollback_wait_or_end_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    restore, begun, may_go_on = Sandbox.restore, asyncio.Event(), asyncio.Event()

    async def slow_restore(*arguments: Any, **options: Any) -> Any:
        begun.set()
        await may_go_on.wait()
        return await restore(*arguments, **options)

    async with asyncio.timeout(120), server(tmp_path) as interpreter:
        session = Session(interpreter, "alice")
        await session.run("x = 1")
        await session.checkpoint("before", durable=True)
        await session.reset()
        await session.run("x = 2")
        monkeypatch.setattr(Sandbox, "restore", slow_restore)
        # two rollbacks, one of them cancelled, and a cell
        first, second = (asyncio.ensure_future(session.rollback("before")) for _ in range(2))
        await begun.wait()
        cell = asyncio.ensure_future(session.run("x += 10; x"))
        first.cancel()
        await asyncio.sleep(0.1)
        assert not cell.done()
        may_go_on.set()
        await second
        assert (await cell).text == "11"
        assert await names(session) == [("before", True)]
        # a checkpoint that is deleted during the rollback to it
        await session.run("import os; big = os.urandom(9_000_000)")
        large = await session.checkpoint("large", durable=True)
        await session.reset()
        for number in range(2):
            await session.run(f"y = {number}")
            await session.save()
        may_go_on.clear()
        begun.clear()
        rollback = asyncio.ensure_future(session.rollback("large"))
        await begun.wait()
        deletion = asyncio.ensure_future(interpreter.delete_checkpoint("alice", large.id))
        while [*(tmp_path / "store" / "blobs").rglob("*-*")]:
            await asyncio.sleep(0.01)
        may_go_on.set()
        with pytest.raises(SnapshotError, match="nothing was changed"):
            await rollback
        await deletion
        assert await text(session, "'x' in globals(), 'big' in globals()") == ("(False, False)", "kept")
        await session.rollback("before")
        await session.run("x = 11")
        # a session that ends during the rollback
        may_go_on.clear()
        begun.clear()
        third = asyncio.ensure_future(session.rollback("before"))
        await begun.wait()
        ending = asyncio.ensure_future(interpreter.delete_session("alice", expired=True))
        while await interpreter.list_sessions():
            await asyncio.sleep(0)
        may_go_on.set()
        with pytest.raises(SnapshotError, match="the session was ended meanwhile"):
            await third
        await ending
        assert (await session.run("x")).text == "11"
        # a session that is deleted with its saves
        may_go_on.clear()
        begun.clear()
        fourth = asyncio.ensure_future(session.rollback("before"))
        await begun.wait()
        ending = asyncio.ensure_future(interpreter.delete_session("alice"))
        while await interpreter.list_sessions():
            await asyncio.sleep(0)
        may_go_on.set()
        with pytest.raises(SnapshotError, match="the session was ended meanwhile"):
            await fourth
        await ending
        with pytest.raises(NotFoundError):
            await interpreter.forget("alice")
        assert (await session.run("'x' in globals()")).text == "False"
        assert await session.checkpoints() == []


@pytest.mark.long
async def test_a_server_that_lost_a_session_takes_no_durable_checkpoint_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saved_sessions, "_RENEW_SECONDS", 1000.0)
    monkeypatch.setattr(saved_sessions, "_LEASE_SECONDS", 0.2)
    async with server(tmp_path) as first, server(tmp_path, patience=60) as second:
        session, other = Session(first, "alice"), Session(second, "alice")
        await session.run("x = 1")
        taken = await session.checkpoint("before", durable=True)
        monkeypatch.setattr(saved_sessions, "_LEASE_SECONDS", 60.0)
        await other.run("x = 2")  # when the lease of the first server is over
        with pytest.raises(SnapshotError, match="another server has taken this session"):
            await session.checkpoint("late", durable=True)
        with pytest.raises(SnapshotError, match="another server has taken this session"):
            await first.delete_checkpoint("alice", taken.id)
        assert await other.checkpoints() == [taken]
        await other.rollback("before")
        assert await text(other, "x") == ("1", "rolled_back: rollback")


@pytest.mark.long
async def test_a_killed_server_keeps_durable_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACASessions__Durable__Store", f"file://{tmp_path}/store")
    monkeypatch.setenv("ACASessions__Durable__Save", "never")
    with Server("--port", "0", "--api-key", "key") as one:
        options = Settings(SessionsHttpClient={"Endpoint": one.endpoint, "ApiKey": "key", "PatienceSeconds": 60})
        async with open_pool(options) as opened, opened.session("alice") as session:
            await session.run("x = 1")
            before = await session.checkpoint("before", durable=True)
            await session.run("x = 2")
            await session.save()
            await session.run("x = 3")
            one.process.send_signal(signal.SIGKILL)
            one.process.wait()
            with Server("--port", one.endpoint.rpartition(":")[2], "--api-key", "key"):
                assert await text(session, "x") == ("2", "restored: restart")
                assert await session.rollback("before") == before
                assert await text(session, "x") == ("1", "rolled_back: rollback")


@pytest.mark.long
async def test_packages_become_those_of_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("alpha", "beta"):
        make_wheel(tmp_path / "wheels", name)
    monkeypatch.setenv("ACASessions__Packages__WheelFolder", str(tmp_path / "wheels"))
    async with pool(tmp_path) as opened, opened.session("alice") as session:
        assert (await session.install("alpha")).success
        await session.run("import alpha; a = alpha")
        await session.checkpoint("before", durable=True)
    async with pool(tmp_path) as opened, opened.session("alice") as session:
        assert (await session.install("beta")).success
        await session.rollback("before")
        result = await session.run("a.version")
        assert (result.text, str(result.state), result.state.missing) == ("'1.0'", "rolled_back: rollback", ())
        assert [package.name for package in await session.packages()] == ["alpha"]
