"""Test sessions that are saved in a store and restored: by the same server, by another one, and after a fault."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from aca_sessions import CodeInterpreter, Policy, Session, SessionPool, Settings, open_pool
from aca_sessions.client.http import SessionsHttpClient
from aca_sessions.connect import Opening, open_server
from aca_sessions.contract.records import ProblemError
from aca_sessions.durable.saves import Saves, Writer
from aca_sessions.durable.sealing import Sealer
from aca_sessions.durable.store import open_store
from aca_sessions.errors import ACASessionsError, NotFoundError, NotSupportedError, SnapshotError
from aca_sessions.hosting import Hosting
from aca_sessions.ledger import CallerPosition
from aca_sessions.models import SavedSession
from aca_sessions.sandbox.policy import Limits
from aca_sessions.sandbox.sandbox import Sandbox
from aca_sessions.server import saved_sessions
from aca_sessions.server.app import Service

from ..cli.test_cli import Server

pytestmark = pytest.mark.slow


def settings(folder: Path, **durable: object) -> Settings:
    return Settings(Durable={"Store": f"file://{folder}/store", **durable})


@asynccontextmanager
async def server(
    folder: Path,
    *,
    hosting: Hosting = Hosting(),  # noqa: B008
    patience: float = 0,
    **durable: object,
) -> AsyncIterator[CodeInterpreter]:
    """A server over the store in a folder, in this process, and a client of it, which repeats refused requests for `patience` seconds."""
    async with AsyncExitStack() as stack:
        policy = Policy(preload=(), spares=0, limits=replace(Limits(), memory=256 << 20))
        app = await stack.enter_async_context(open_server(settings(folder, **durable), policy=policy, hosting=hosting))
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")
        yield await stack.enter_async_context(CodeInterpreter(SessionsHttpClient(client, patience=patience)))


@asynccontextmanager
async def pool(folder: Path, **durable: object) -> AsyncIterator[SessionPool]:
    async with open_pool(settings(folder, **durable)) as opened:
        yield opened


async def text(session: Session, code: str) -> tuple[str | None, str]:
    result = await session.run(code)
    assert result.error is None, result.stderr
    return result.text, str(result.state)


@pytest.mark.parametrize("key", [None, "00" * 32])
async def test_a_session_goes_on_after_its_program_has_ended(tmp_path: Path, key: str | None) -> None:
    async with pool(tmp_path, Key=key) as first, first.session("alice") as session:
        await session.run("x = {'secret': [1]}; y = x; gen = (i for i in 'ab'); open('f.txt', 'w').write('content' * 10_000)")
    async with pool(tmp_path, Key=key) as second:
        async with second.session("bob") as other:
            assert await text(other, "'x' in globals()") == ("False", "kept")
        async with second.session("alice") as session:
            result = await session.run("x is y, open('f.txt').read()[:7], 'gen' in globals()")
            assert (result.text, str(result.state)) == ("(True, 'content', False)", "restored: restart")
            assert result.state.missing == ("gen",)
            assert "were restored from a saved state of 20" in result.state.consequence
            assert result.state.consequence.endswith(" UTC, without gen")
            assert await text(session, "x") == ("{'secret': [1]}", "kept")
    stored = b"".join(file.read_bytes() for file in (tmp_path / "store").rglob("*") if file.is_file())
    assert (b"secret" in stored) is (key is None)


async def test_a_save_says_what_it_has_and_is_listed_and_forgotten(tmp_path: Path) -> None:
    async with pool(tmp_path) as opened, opened.session("alice") as session:
        await session.run("x = 1; lock = __import__('threading').Lock(); x")
        saved = await session.save()
        assert (saved.session_id, saved.variables, saved.cells) == ("alice", 1, 1)
        assert saved.lost == {"lock": "TypeError: cannot pickle '_thread.lock' object"}
        assert saved.size > 0
        assert [(one.session_id, one.created) for one in await opened.saved()] == [("alice", saved.created)]
        assert await text(session, "x") == ("1", "kept")
        await opened.forget("alice")
        assert await opened.saved() == []
        with pytest.raises(NotFoundError):
            await opened.forget("alice")
        await session.save()
    async with pool(tmp_path) as opened:
        async with opened.session("alice") as session:
            assert await text(session, "x") == ("1", "restored: restart")
        await opened.terminate("alice")
        assert await opened.saved() == []
        async with opened.session("alice") as session:
            await session.save()
    async with pool(tmp_path) as opened:
        assert [one.session_id for one in await opened.saved()] == ["alice"]
        await opened.terminate("alice")  # it is not live, so nothing of it is deleted
        assert [one.session_id for one in await opened.saved()] == ["alice"]
        await opened.forget("alice")
        assert await opened.saved() == []


async def test_without_a_store_a_save_names_the_setting() -> None:
    async with open_pool() as opened, opened.session() as session:
        with pytest.raises(NotSupportedError, match="set ACASessions:Durable:Store"):
            await session.save()
        with pytest.raises(NotSupportedError, match="set ACASessions:Durable:Store"):
            await opened.saved()


async def test_an_idle_session_is_saved_when_it_expires(tmp_path: Path) -> None:
    async with server(tmp_path, hosting=Hosting(cooldown=0.2)) as interpreter:
        session = Session(interpreter, "alice")
        await session.run("x = 1")
        while await interpreter.list_sessions():
            await asyncio.sleep(0.05)
        assert await text(session, "x") == ("1", "restored: expired")
        assert await text(session, "x") == ("1", "kept")


@pytest.mark.long
async def test_a_session_that_gives_way_to_another_is_saved(tmp_path: Path) -> None:
    async with server(tmp_path, hosting=Hosting(max_sessions=1), patience=60) as interpreter:
        one, other = Session(interpreter, "one"), Session(interpreter, "other")
        for number in range(3):
            assert (await one.run("x = globals().get('x', 0) + 1; x")).text == str(number + 1)
            assert (await other.run("x = globals().get('x', 0) + 1; x")).text == str(number + 1)


async def test_a_loss_before_the_save_is_still_reported_after_the_restore(tmp_path: Path) -> None:
    async with server(tmp_path) as interpreter:
        session = Session(interpreter, "alice")
        await session.run("x = 1; open('f.txt', 'w').close()")
        await (await session.start("import os; os._exit(1)")).wait()
        # another client receives a result, and this one does not know yet
        unaware = Session(interpreter, "alice")
        await session.save()
    async with server(tmp_path) as interpreter:
        unaware = Session(interpreter, "alice")
        result = await unaware.run("import os; 'x' in globals(), os.path.exists('f.txt')")
        assert result.text == "(False, True)"
        assert result.state.files == "restored"


async def test_with_save_never_only_a_request_saves(tmp_path: Path) -> None:
    async with pool(tmp_path, Save="never") as opened, opened.session("alice") as session:
        await session.run("x = 1")
        await session.save()
        await session.run("x = 2")
    async with pool(tmp_path, Save="never") as opened, opened.session("alice") as session:
        assert await text(session, "x") == ("1", "restored: restart")


@pytest.mark.parametrize("ends", ["restored", "replaced", "deleted"])
async def test_a_save_that_cannot_be_restored_is_a_loss_with_its_reason_and_stays(tmp_path: Path, ends: str) -> None:
    async with pool(tmp_path) as opened, opened.session("alice") as session:
        await session.run("import os; x = os.urandom(100_000)")
    [blob] = [file for file in (tmp_path / "store" / "blobs").rglob("*") if file.is_file()]
    whole = blob.read_bytes()
    blob.write_bytes(whole[:-20] + bytes(20))
    async with pool(tmp_path, Save="cell") as opened, opened.session("alice") as session:
        assert await text(session, "'x' in globals()") == ("False", "lost: restore failed")
        assert await text(session, "x = 2; x") == ("2", "kept")
        assert len(await opened.saved()) == 1
        if ends == "replaced":
            await session.save()
            await session.run("x = 3")
        elif ends == "deleted":
            await opened.forget("alice")
            await session.run("x = 4")
    blob.parent.mkdir(exist_ok=True)
    blob.write_bytes(whole)
    async with pool(tmp_path) as opened, opened.session("alice") as session:
        expected = {"restored": "1", "replaced": "3", "deleted": "4"}[ends]
        assert await text(session, "x if type(x) is int else len(x) // 100_000") == (expected, "restored: restart")


@pytest.mark.long
async def test_a_save_whose_lease_cannot_be_read_stays_when_the_store_is_repaired_meanwhile(tmp_path: Path) -> None:
    async with pool(tmp_path) as opened, opened.session("alice") as session:
        await session.run("x = 1")
    [head] = (tmp_path / "store" / "heads").iterdir()
    whole = head.read_bytes()
    head.write_bytes(whole[:-20] + bytes(20))
    async with pool(tmp_path) as opened, opened.session("alice") as session:
        assert await text(session, "'x' in globals()") == ("False", "lost: restore failed")
        head.write_bytes(whole)
    async with pool(tmp_path) as opened, opened.session("alice") as session:
        assert await text(session, "x") == ("1", "restored: restart")


async def test_two_servers_do_not_have_one_session(tmp_path: Path) -> None:
    async with server(tmp_path) as first:
        session = Session(first, "alice")
        await session.run("x = 1")
        async with server(tmp_path) as second:
            with pytest.raises(ACASessionsError, match="another server has this session"):
                await Session(second, "alice").run("x")
            assert await second.list_sessions() == []  # it counts as a session of the first one only
            assert await text(session, "x") == ("1", "kept")
            await first.delete_session("alice", saved=True)
            assert await text(Session(second, "alice"), "x") == ("1", "restored: restart")


async def test_a_request_during_the_save_at_a_sessions_end_gets_the_saved_session(tmp_path: Path) -> None:
    async with server(tmp_path) as interpreter:
        session = Session(interpreter, "alice")
        await session.run("x = 0\nclass Slow:\n def __reduce__(self): import time; time.sleep(0.5); return int, (5,)\nslow = Slow()")
        ending = asyncio.ensure_future(interpreter.delete_session("alice", expired=True))
        await asyncio.sleep(0.1)
        assert (await session.run("x, slow")).text == "(0, 5)"
        await ending


async def test_a_session_that_ends_while_it_is_opened_does_not_wait_for_its_own_end(tmp_path: Path) -> None:
    async with asyncio.timeout(60), server(tmp_path) as interpreter:
        running = asyncio.ensure_future(Session(interpreter, "alice").run("6 * 7"))
        while not await interpreter.list_sessions():
            await asyncio.sleep(0)
        await interpreter.delete_session("alice")
        assert (await running).text == "42"  # in another session of this name


async def test_a_session_is_not_evicted_while_it_is_restored(tmp_path: Path) -> None:
    async with asyncio.timeout(60), server(tmp_path, hosting=Hosting(max_sessions=1)) as interpreter:
        running = asyncio.ensure_future(Session(interpreter, "alice").run("6 * 7"))
        while not await interpreter.list_sessions():
            await asyncio.sleep(0)
        with pytest.raises(ACASessionsError, match="SessionsCountExceedsLimit"):
            await Session(interpreter, "bob").run("1")
        assert (await running).text == "42"


@asynccontextmanager
async def client_of(*servers: Opening[Service]) -> AsyncIterator[tuple[CodeInterpreter, Callable[[int], Awaitable[None]]]]:
    """A client of one of these servers at a time. The function opens one by its number, if it is not open, and sends requests there."""
    async with AsyncExitStack() as stack:
        transports: dict[int, httpx.ASGITransport] = {}
        client = httpx.AsyncClient(transport=httpx.ASGITransport(lambda *_: None), base_url="http://test")

        async def use(number: int) -> None:
            if number not in transports:
                transports[number] = httpx.ASGITransport(await stack.enter_async_context(servers[number]))
            client._transport = transports[number]

        yield await stack.enter_async_context(CodeInterpreter(SessionsHttpClient(client, patience=0))), use


def opening(folder: Path, **durable: object) -> Opening[Service]:
    return open_server(settings(folder, **durable), policy=Policy(preload=(), spares=0))


async def test_each_restore_of_one_save_is_reported(tmp_path: Path) -> None:
    servers = [opening(tmp_path, Save="never") for _ in range(3)]
    async with client_of(*servers) as (interpreter, use):
        session = Session(interpreter, "alice")
        await use(0)
        await session.run("x = 1; gen = (i for i in 'ab')")
        await session.save()
        await interpreter._http.request("DELETE", "session", identifier="alice", headers={"x-aca-sessions-cause": "closed"})
        for number in (1, 2):
            await use(number)
            result = await session.run("x += 1; x")
            assert (result.text, result.state.kind, result.state.missing) == ("2", "restored", ("gen",))
            await interpreter._http.request("DELETE", "session", identifier="alice", headers={"x-aca-sessions-cause": "closed"})


async def test_a_session_that_comes_back_to_a_server_is_reported_as_restored(tmp_path: Path) -> None:
    async with client_of(*(opening(tmp_path) for _ in range(2))) as (interpreter, use):
        session = Session(interpreter, "alice")
        for number in (0, 1, 0, 1, 0):
            await use(number)
            result = await session.run("gen = (i for i in 'ab'); x = globals().get('x', 0) + 1; x")
            if result.text != "1":
                assert (str(result.state), result.state.missing, result.state.processes) == ("restored: restart", ("gen",), "ended")
            await interpreter._http.request("DELETE", "session", identifier="alice", headers={"x-aca-sessions-cause": "closed"})
        assert result.text == "5"


async def test_the_loss_of_a_session_whose_saves_another_server_deleted_is_reported(tmp_path: Path) -> None:
    async with client_of(*(opening(tmp_path) for _ in range(2))) as (interpreter, use):
        session = Session(interpreter, "alice")
        for number in (0, 1):
            await use(number)
            await session.run("x = 1")
            await interpreter._http.request("DELETE", "session", identifier="alice", headers={"x-aca-sessions-cause": "closed"})
        await interpreter.forget("alice")
        await use(0)
        result = await session.run("'x' in globals()")
        assert result.state.kind == "lost"


async def test_a_session_that_is_reset_before_its_state_is_written_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = Sandbox.save
    async with pool(tmp_path) as opened, opened.session("alice") as session:

        async def reset_and_save(*arguments: Any, **options: Any) -> Any:
            await session.reset()
            return await save(*arguments, **options)

        await session.run("x = 1")
        with monkeypatch.context() as patched:
            patched.setattr(Sandbox, "save", reset_and_save)
            with pytest.raises(SnapshotError, match="lost its variables or files before it could be saved"):
                await session.save()
        assert await opened.saved() == []
        await session.save()


async def test_a_session_is_closed_and_released_whatever_fails_in_its_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object) -> None:
        raise ProblemError(503, "Other", "another server has this session")

    async with server(tmp_path) as first, server(tmp_path) as second:
        await Session(first, "alice").run("x = 1")
        with monkeypatch.context() as patched:
            patched.setattr(Saves, "begin", fail)
            await first.delete_session("alice", saved=True)
        assert (await Session(second, "alice").run("'x' in globals()")).text == "False"


async def test_a_session_that_begins_while_another_of_its_name_is_deleted_gets_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget, begun = Saves.forget, asyncio.Event()

    async def slow_forget(*arguments: Any) -> bool:
        begun.set()
        await asyncio.sleep(0.5)
        return await forget(*arguments)

    monkeypatch.setattr(Saves, "forget", slow_forget)
    async with server(tmp_path) as interpreter:
        session = Session(interpreter, "alice")
        await session.run("x = 1")
        await session.save()
        ending = asyncio.ensure_future(interpreter.delete_session("alice"))
        await begun.wait()
        assert await text(session, "'x' in globals()") == ("False", "lost: terminated")
        await ending
        await session.save()


async def test_a_server_that_lost_a_session_to_another_refuses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saved_sessions, "_RENEW_SECONDS", 1000.0)
    monkeypatch.setattr(saved_sessions, "_LEASE_SECONDS", 0.2)
    async with server(tmp_path) as first, server(tmp_path, patience=60) as second:
        session, other = Session(first, "alice"), Session(second, "alice")
        await session.run("x = 1")
        await session.save()
        await session.run("x = 2")
        monkeypatch.setattr(saved_sessions, "_LEASE_SECONDS", 60.0)
        assert await text(other, "x += 10; x") == ("11", "restored: restart")  # when the lease of the first server is over
        saved = first._http._client._transport.app._sessions.saved
        await saved._renew("alice", saved._leases["alice"], asyncio.Semaphore(1))  # as it does every few seconds
        with pytest.raises(ACASessionsError, match="another server has this session"):
            await session.run("x")
        await second.delete_session("alice", saved=True)
        assert await text(session, "x") == ("11", "restored: restart")


async def test_the_saves_of_a_session_at_another_server_are_not_deleted(tmp_path: Path) -> None:
    async with server(tmp_path) as first, server(tmp_path) as second:
        session = Session(first, "alice")
        await session.run("x = 1")
        await session.save()
        with pytest.raises(ACASessionsError, match="another server has this session"):
            await second.forget("alice")
        await session.save()
        await first.delete_session("alice", saved=True)
        await second.forget("alice")
        with pytest.raises(NotFoundError):
            await second.forget("alice")
        assert (await Session(first, "alice").run("'x' in globals()")).text == "False"


async def test_a_server_counts_the_sessions_that_are_being_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin, may_begin = Saves.begin, asyncio.Event()

    async def wait_and_begin(*arguments: Any) -> Writer:
        await may_begin.wait()
        return await begin(*arguments)

    monkeypatch.setattr(Saves, "begin", wait_and_begin)
    async with server(tmp_path, hosting=Hosting(max_sessions=1)) as interpreter:
        for name in ("one", "two"):
            await Session(interpreter, name).run("x = 1")
        with pytest.raises(ACASessionsError, match="1 sessions are being saved"):
            await Session(interpreter, "three").run("x = 1")
        may_begin.set()


async def test_what_a_session_says_about_its_losses_is_shown_in_one_plain_line(tmp_path: Path) -> None:
    async with pool(tmp_path) as opened, opened.session("alice") as session:
        await session.run("class Bad:\n def __reduce__(self): raise ValueError('\\ud800\\x1b[2J\\n')\nbad = Bad()")
        lost = (await session.save()).lost
        assert [*lost] == ["bad"]
        assert lost["bad"].isprintable()
        assert (await opened.saved())[0].lost == lost


async def test_a_branch_is_saved_like_its_session(tmp_path: Path) -> None:
    async with pool(tmp_path) as opened, opened.session("alice") as session:
        await session.run("x = 1")
        [branch] = await session.branch()
        await branch.run("x = 2")
        await branch.save()
        assert {one.session_id: one.variables for one in await opened.saved()} == {branch.session_id: 1}


async def test_a_branch_is_at_one_server_only_and_does_not_replace_a_saved_session(tmp_path: Path) -> None:
    async with server(tmp_path) as first, server(tmp_path) as second:
        await Session(first, "bob").run("x = 'bob'")
        await first.delete_session("bob", saved=True)
        session = Session(first, "alice")
        await session.run("x = 'alice'")
        with pytest.raises(ACASessionsError, match="was saved"):
            await first._branch("alice", ["bob"], CallerPosition(), reseed=True)
        assert (await Session(second, "bob").run("x")).text == "'bob'"
        [branch] = await session.branch()
        with pytest.raises(ACASessionsError, match="another server has this session"):
            await Session(second, branch.session_id).run("x")
        await first.delete_session(branch.session_id)
        assert (await Session(second, branch.session_id).run("'x' in globals()")).text == "False"


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # it has ended
        return ""


async def test_a_session_whose_fork_server_died_is_free_for_another_server(tmp_path: Path) -> None:
    async with server(tmp_path) as first:
        session = Session(first, "alice")
        await session.run("x = 1")
        await session.save()
        await session.run("import subprocess; marked = subprocess.Popen(['sleep', '98765'])")
        [process] = [path.parent for path in Path("/proc").glob("[0-9]*/cmdline") if _read(path) == "sleep\00098765\0"]
        while "zygote" not in (process / "cmdline").read_text():  # other tests of this process may keep other fork servers
            process = Path(f"/proc/{(process / 'stat').read_text().split()[3]}")
        while "zygote" in Path(f"/proc/{(parent := (process / 'stat').read_text().split()[3])}/cmdline").read_text():
            process = Path(f"/proc/{parent}")
        fork_server = int(process.name)
        os.kill(fork_server, signal.SIGKILL)
        while await first.list_sessions():
            await asyncio.sleep(0.05)
        async with server(tmp_path) as second:
            assert await text(Session(second, "alice"), "x") == ("1", "restored: restart")


@pytest.mark.long
async def test_packages_are_there_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ..wheels import make_wheel

    make_wheel(tmp_path / "wheels", "alpha")
    monkeypatch.setenv("ACASessions__Packages__WheelFolder", str(tmp_path / "wheels"))
    async with pool(tmp_path) as opened, opened.session("alice") as session:
        assert (await session.install("alpha")).success
        await session.run("import alpha; a = alpha")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache of another host"))
    async with pool(tmp_path) as opened, opened.session("alice") as session:
        result = await session.run("a.version")
        assert (result.text, result.state.missing) == ("'1.0'", ())
        assert [package.name for package in await session.packages()] == ["alpha"]


@pytest.mark.long
async def test_a_killed_server_loses_only_what_was_not_saved_and_says_restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACASessions__Durable__Store", f"file://{tmp_path}/store")
    with Server("--port", "0", "--api-key", "key") as one:
        options = Settings(SessionsHttpClient={"Endpoint": one.endpoint, "ApiKey": "key", "PatienceSeconds": 60})
        async with open_pool(options) as opened, opened.session("alice") as session:
            await session.run("x = 1")
            await session.save()
            for number in range(20):
                await session.run(f"x = {number}")
            one.process.send_signal(signal.SIGKILL)
            one.process.wait()
            port = one.endpoint.rpartition(":")[2]
            with Server("--port", port, "--api-key", "key"):
                assert await text(session, "x") == ("1", "restored: restart")
                assert await text(session, "x") == ("1", "kept")


async def saved_twice(session: Session) -> SavedSession:
    """Save a session until it is found at rest: after a save its interpreter may still have to wait for a processor."""
    for _ in range(100):
        if (saved := await session.save()) == await session.save():
            return saved
    raise AssertionError("each save is written, although nothing runs")


async def test_a_session_in_which_nothing_ran_is_not_written_again(tmp_path: Path) -> None:
    async with pool(tmp_path) as opened, opened.session("alice") as session:
        await session.run("x = 1")
        first = await saved_twice(session)
        await session.upload_file("data.csv", "1")
        second = await session.save()
        assert second.created > first.created
        await session.variables()  # its own cell may change things
        third = await saved_twice(session)
        assert third.created > second.created
        await opened.forget("alice")
        assert (await session.save()).created > third.created
        await session.run("import threading; t = threading.Thread(target=threading.Event().wait, daemon=True); t.start()")
        fourth = await session.save()
        assert (await session.save()).created > fourth.created
        await session.run("import subprocess; p = subprocess.Popen(['sleep', '60'])")
        fifth = await session.save()
        assert (await session.save()).created > fifth.created
    async with pool(tmp_path) as opened, opened.session("alice") as session:
        assert await text(session, "x") == ("1", "restored: restart")


async def test_a_session_whose_lease_another_server_took_while_it_was_free_is_fenced(tmp_path: Path) -> None:
    async with open_store(f"file://{tmp_path}") as store:
        here, there = (saved_sessions.SavedSessions(Saves(store, Sealer(), max_bytes=1), server=name) for name in ("here", "there"))
        await here.take("alice")
        await Saves(store, Sealer(), max_bytes=1).forget(here._owner("alice"))
        await there.take("alice")
        with pytest.raises(ProblemError, match="another server has this session"):
            await here.take("alice")
        assert here.is_fenced("alice")
