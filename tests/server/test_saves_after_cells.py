"""Test that sessions are saved in the background after their cells, and that no cell waits for it or is disturbed by it."""

import asyncio
import signal
from pathlib import Path
from typing import Any

import pytest

from aca_sessions import CodeInterpreter, Session, Settings, open_pool
from aca_sessions.durable.saves import Saves, Writer
from aca_sessions.errors import SnapshotError, StorageError
from aca_sessions.server import saved_sessions, session_saves
from aca_sessions.server.hosted_session import HostedSession

from ..cli.test_cli import Server
from .test_saved_sessions import client_of, opening, server, text

pytestmark = pytest.mark.slow
SLOW = "class Slow:\n def __reduce__(self): import time; time.sleep(0.5); return int, (5,)\nslow = Slow()"


def hosted(interpreter: CodeInterpreter, name: str = "alice") -> HostedSession:
    return interpreter._http._client._transport.app._sessions._sessions[name]


async def saved(interpreter: CodeInterpreter, name: str = "alice") -> None:
    """Wait until the background save of a session has ended."""
    await hosted(interpreter, name).saves.finish()


@pytest.fixture
def short_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let another server have a session at once, as if this one had been killed some time ago."""
    monkeypatch.setattr(saved_sessions, "_RENEW_SECONDS", 1000.0)
    monkeypatch.setattr(saved_sessions, "_LEASE_SECONDS", 0.0)


async def test_a_killed_server_loses_nothing_of_a_session_that_was_saved_after_its_cells(tmp_path: Path, short_leases: None) -> None:
    async with server(tmp_path, Save="cell") as killed:
        session = Session(killed, "alice")
        for number in range(3):
            await session.run(f"x = {number}")
        await session.upload_file("f.txt", b"content")
        await saved(killed)
        async with server(tmp_path, Save="never") as other:
            assert await text(Session(other, "alice"), "x, open('f.txt').read()") == ("(2, 'content')", "restored: restart")


async def test_cells_do_not_wait_for_a_save_and_one_more_follows_it(tmp_path: Path, short_leases: None) -> None:
    async with server(tmp_path, Save="cell") as killed:
        session = Session(killed, "alice")
        await session.run(f"{SLOW}\nx = 0")
        background = hosted(killed).saves._background
        assert background is not None
        for number in range(5):
            await session.run(f"x = {number}")
        assert hosted(killed).saves._background is background
        assert not background.done()
        await saved(killed)
        assert [one.cells for one in await killed.saved()] == [6]
        async with server(tmp_path, Save="never") as other:
            assert (await Session(other, "alice").run("x, slow")).text == "(4, 5)"


async def test_the_state_tells_how_many_cells_began_after_the_save_that_was_restored(tmp_path: Path, short_leases: None) -> None:
    async with client_of(*(opening(tmp_path, Save="never") for _ in range(3))) as (interpreter, use):
        session = Session(interpreter, "alice")
        await use(0)
        await session.run("x = 0")
        await session.save()
        for number in (1, 2):
            await session.run(f"x = {number}")
        await session.run("import threading; end = threading.Event(); threading.Thread(target=end.wait).start()")
        refused = await session.run("x = 3", transactional=True)
        assert "the cell was not run" in str(refused.error)
        await use(1)
        result = await session.run("x")
        assert (result.text, result.state.unsaved) == ("0", 3)  # the one that was refused has not begun
        assert result.state.consequence.endswith(" UTC, before 3 later cells")
        assert (await session.run("x = 5")).state.unsaved == 0
        await session.save()
        assert [one.cells for one in await interpreter.saved()] == [3]
        await use(2)
        result = await session.run("x")
        assert (result.text, result.state.kind, result.state.unsaved) == ("5", "restored", 0)


WAITS = """import os, sys, time
saves = sys.modules['aca_sessions.sandbox.guest.saves']
saves._FILES_MILLISECONDS, content = 100, saves._Files._content
def wait(*arguments):
    while not os.path.exists('/mnt/data/z'): time.sleep(0.01)
    return content(*arguments)
saves._Files._content = wait
_ = open('/mnt/data/a', 'w').write('old')"""


async def test_a_save_does_not_mix_the_files_of_two_cells(
    tmp_path: Path, short_leases: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(session_saves, "_FIRST_PAUSE", 0.0)
    monkeypatch.setattr(session_saves, "_PAUSE_FACTOR", 0.0)
    async with server(tmp_path, Save="cell") as killed:
        session = await begin_slow(killed, WAITS)  # its files are read when the next cell has changed them
        await session.run("for name in 'az': _ = open(f'/mnt/data/{name}', 'w').write('new')")
        await saved(killed)
        assert sum("was not saved after a cell" in record.getMessage() for record in caplog.records) == 1
        async with server(tmp_path, Save="never") as other:
            assert (await Session(other, "alice").run("[open(name).read() for name in 'az']")).text == "['new', 'new']"


async def begin_slow(interpreter: CodeInterpreter, code: str = "x = 1") -> Session:
    """Run a cell after which a save is being written in the background for half a second."""
    session = Session(interpreter, "alice")
    await session.run(f"{SLOW}\n{code}")
    while not hosted(interpreter).saves._covered:  # until the fork
        await asyncio.sleep(0.01)
    return session


async def test_a_save_in_the_background_is_stopped_when_its_session_is_terminated(tmp_path: Path) -> None:
    async with server(tmp_path, Save="cell") as interpreter:
        session = await begin_slow(interpreter)
        await interpreter.delete_session("alice")
        assert await interpreter.saved() == []
        assert await text(session, "'x' in globals()") == ("False", "lost: terminated")


@pytest.mark.long
async def test_a_save_in_the_background_is_dropped_when_saves_are_deleted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with server(tmp_path, Save="cell") as interpreter:
        session = await begin_slow(interpreter)
        await session.save()
        await session.run("x = 2")
        await interpreter.forget("alice")
        await saved(interpreter)
        assert await interpreter.saved() == []
        await session.run("x = 3")
        await saved(interpreter)
        assert len(await interpreter.saved()) == 1
    assert not caplog.records


@pytest.mark.long
async def test_a_session_that_ends_during_a_save_is_saved_as_it_ended(tmp_path: Path) -> None:
    async with server(tmp_path, Save="cell", patience=60) as interpreter:
        session = await begin_slow(interpreter)
        await session.run("x = 2")
        await interpreter.delete_session("alice", expired=True)
        assert await text(session, "x, slow") == ("(2, 5)", "restored: expired")


async def test_a_save_in_the_background_is_no_process_of_the_session(tmp_path: Path) -> None:
    async with server(tmp_path, Save="cell") as interpreter:
        session = await begin_slow(interpreter)
        result = await session.run("1")
        assert (result.processes, str(result.state), result.state.processes) == ((), "kept", "kept")
        checkpoint = await session.checkpoint()
        assert checkpoint.left_behind == ()
        await session.run("x = 2")
        await session.rollback(checkpoint)
        result = await session.run("x")
        assert (result.text, result.state.processes) == ("1", "kept")


@pytest.mark.long
async def test_a_save_in_the_background_keeps_no_pipe_open_that_a_cell_closes(tmp_path: Path) -> None:
    waits = "class Waits:\n def __reduce__(self):\n  while not os.path.exists('/mnt/data/go'): time.sleep(0.01)\n  return int, (5,)\n"
    async with server(tmp_path, Save="cell") as interpreter:
        session = await begin_slow(interpreter, f"import os, select, time\n{waits}waits, (read, write) = Waits(), os.pipe()")
        assert (await session.run("os.close(write); select.select([read], [], [], 10)[0] == [read]")).text == "True"
        await session.run("_ = open('/mnt/data/go', 'w')")


@pytest.mark.long
@pytest.mark.parametrize(("change", "look"), [("reset", "'x' in globals()"), ("rollback", "x == 2"), ("exit", "'x' in globals()")])
async def test_a_save_follows_a_reset_a_rollback_and_a_death(tmp_path: Path, short_leases: None, change: str, look: str) -> None:
    async with server(tmp_path, Save="cell") as killed:
        session = Session(killed, "alice")
        await session.run("x = 1")
        if change == "rollback":
            checkpoint = await session.checkpoint()
            await begin_slow(killed, "x = 2")
            await session.rollback(checkpoint)
        else:
            await begin_slow(killed, "x = 2")
            await (session.reset() if change == "reset" else session.run("import os; os._exit(1)"))
        await saved(killed)
        async with server(tmp_path, Save="never") as other:
            assert (await Session(other, "alice").run(look)).text == "False"


@pytest.mark.long
async def test_a_branch_is_saved_in_the_background_too(tmp_path: Path, short_leases: None) -> None:
    async with server(tmp_path, Save="cell") as killed:
        session = await begin_slow(killed, "x = 1; _ = open('f.txt', 'w').write('1')")
        [branch] = await session.branch()
        await branch.run("x = 2; _ = open('f.txt', 'w').write('2')")
        await saved(killed, branch.session_id)
        await saved(killed)
        async with server(tmp_path, Save="never") as other:
            for number, name in enumerate(("alice", branch.session_id), 1):
                assert (await Session(other, name).run("x, open('f.txt').read()")).text == f"({number}, '{number}')"


@pytest.mark.long
async def test_a_save_in_the_background_does_not_replace_those_of_another_server(tmp_path: Path, short_leases: None) -> None:
    async with server(tmp_path, Save="cell") as first, server(tmp_path, Save="never") as second:
        await begin_slow(first)
        other = Session(second, "alice")
        await other.run("x = 'of the second'")
        await other.save()
        await saved(first)
        assert [one.cells for one in await second.saved()] == [1]
    async with server(tmp_path, Save="never") as third:
        assert (await Session(third, "alice").run("x")).text == "'of the second'"


@pytest.mark.long
async def test_a_failed_save_disturbs_no_cell_and_is_tried_again(
    tmp_path: Path, short_leases: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    begin, tries = Saves.begin, 0

    async def fail_twice(*arguments: Any) -> Writer:
        nonlocal tries
        tries += 1
        if tries <= 2:
            raise StorageError("the store has no room for alice")
        return await begin(*arguments)

    monkeypatch.setattr(Saves, "begin", fail_twice)
    monkeypatch.setattr(session_saves, "_FIRST_PAUSE", 0.0)
    async with server(tmp_path, Save="cell") as killed:
        session = Session(killed, "alice")
        assert await text(session, "x = 1; x") == ("1", "kept")
        await saved(killed)
        async with server(tmp_path, Save="never") as other:
            assert await text(Session(other, "alice"), "x") == ("1", "restored: restart")
    failures = [record.getMessage() for record in caplog.records]
    assert sum("was not saved after a cell" in one for one in failures) == 2
    assert not any("alice" in one for one in failures)


@pytest.mark.long
async def test_a_session_that_is_too_large_is_not_tried_at_every_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin, tries = Saves.begin, 0

    async def count(*arguments: Any) -> Writer:
        nonlocal tries
        tries += 1
        return await begin(*arguments)

    monkeypatch.setattr(Saves, "begin", count)
    monkeypatch.setattr(session_saves, "_FIRST_PAUSE", 60.0)
    async with server(tmp_path, Save="cell", MaxMegabytes=1) as interpreter:
        session = Session(interpreter, "alice")
        await session.run("x = __import__('os').urandom(2_000_000)")
        for number in range(20):
            assert (await session.run(f"y = {number}")).state.kind == "kept"
        assert tries == 1
        with pytest.raises(SnapshotError, match="larger than a save may be"):
            await session.save()
        await session.run("del x")
        await session.save()
        assert tries == 3


async def test_only_so_many_sessions_are_saved_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit, at_once, most, two = Writer.commit, 0, 0, asyncio.Event()

    async def count(*arguments: Any, **options: Any) -> Any:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        if at_once == 2:
            two.set()
        await two.wait()
        await asyncio.sleep(0.05)
        at_once -= 1
        return await commit(*arguments, **options)

    monkeypatch.setattr(Writer, "commit", count)
    monkeypatch.setattr(saved_sessions, "_SAVED_AT_ONCE", 2)
    async with server(tmp_path) as interpreter:
        for number in range(6):
            await Session(interpreter, f"session-{number}").run("x = 1")
    assert most == 2
    async with server(tmp_path, Save="never") as interpreter:
        assert len(await interpreter.saved()) == 6


@pytest.mark.long
async def test_a_save_that_is_stopped_while_it_waits_keeps_no_slot(tmp_path: Path) -> None:
    async with server(tmp_path) as interpreter:
        await Session(interpreter, "alice").run("x = 1")
        executions, slots = hosted(interpreter).executions, asyncio.Semaphore(1)
        goes_on = asyncio.Event()
        await executions._turn.acquire()
        action = asyncio.ensure_future(executions.run_in_turn(lambda _: goes_on.wait()))
        while not executions._turn._waiters:
            await asyncio.sleep(0)
        waiting = asyncio.ensure_future(executions.take_turn(slots))  # it begins when the action has the turn, but does not run yet
        executions.release_turn()
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait({waiting})
        goes_on.set()
        await action
        async with asyncio.timeout(120):
            await executions.take_turn(slots)
        executions.release_turn()


@pytest.mark.long
async def test_saves_without_end_hold_up_no_others_nor_the_end_of_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(saved_sessions, "_SAVED_AT_ONCE", 1)
    monkeypatch.setattr(saved_sessions, "_SLOT_SECONDS", 0.1)
    async with server(tmp_path, CloseSeconds=5) as interpreter:
        endless = "class Endless:\n def __reduce__(self): import time; time.sleep(1000)\nx = Endless()"
        await Session(interpreter, "endless").run(endless)
        await Session(interpreter, "other").run("x = 1")
    assert "sessions_not_saved sessions=1" in caplog.text
    async with server(tmp_path, Save="never") as interpreter:
        assert [one.session_id for one in await interpreter.saved()] == ["other"]


@pytest.mark.long
async def test_a_server_that_is_killed_loses_the_cell_that_ran_at_most_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACASessions__Durable__Store", f"file://{tmp_path}/store")
    monkeypatch.setenv("ACASessions__Durable__Save", "cell")
    with Server("--port", "0", "--api-key", "key") as one:
        options = Settings(SessionsHttpClient={"Endpoint": one.endpoint, "ApiKey": "key", "PatienceSeconds": 60})
        async with open_pool(options) as opened, opened.session("alice") as session:
            for number in range(1, 4):
                await session.run(f"x = {number}")
                while not (listed := await opened.saved()) or listed[0].cells < number:
                    await asyncio.sleep(0.05)
            await session.run("x = 4")
            one.process.send_signal(signal.SIGKILL)
            one.process.wait()
            with Server("--port", one.endpoint.rpartition(":")[2], "--api-key", "key"):
                result = await session.run("x")
                assert result.value in (3, 4)
                assert (str(result.state), result.state.unsaved) == ("restored: restart", 4 - int(result.value))
