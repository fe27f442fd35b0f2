"""Test sessions that are exported into a file and imported elsewhere: at servers with extensions and without, and with faults."""

import asyncio
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from aca_sessions import CodeInterpreter, Policy, Session, SessionPool, Settings
from aca_sessions.client import exports
from aca_sessions.client.http import EmbeddedTransport, SessionsHttpClient
from aca_sessions.connect import open_interpreter, open_pool, open_server
from aca_sessions.durable.records import encode_notebook, encode_record
from aca_sessions.durable.sealed_stream import seal
from aca_sessions.errors import (
    ACASessionsError,
    InvalidArgumentError,
    NotFoundError,
    SaveCorruptedError,
    ServiceError,
    ServiceUnavailableError,
    SnapshotError,
)
from aca_sessions.hosting import Hosting
from aca_sessions.sandbox.policy import Limits
from aca_sessions.sandbox.sandbox import Sandbox

from ..cli.test_cli import Server
from ..conftest import aca_sessions as run
from ..durable.streams import all_of, of
from ..sandbox.test_saved_state import KINDS

pytestmark = pytest.mark.slow
MAKE = """
import os, functools
os.environ['TOKEN'] = 't'; os.mkdir('d'); open('d/f.txt', 'w').write('content')
x = {'a': [1]}; y = x; gen = (i for i in 'ab'); k = 2
def f(n): return n + k
class A: pass
a, g = A(), functools.lru_cache(f)
"""
LOOK = "import os; k = 3; (x is y, x, f(1), g(1), type(a) is A, open('d/f.txt').read(), os.environ['TOKEN'], sorted(os.listdir('.')), _2)"
SEEN = "(True, {'a': [1]}, 4, 4, True, 'content', 't', ['d'], 'value')"
CELLS = [MAKE, "'value'"]


@asynccontextmanager
async def server(*, memory: int = 256, store: Path | None = None, **hosting: Any) -> AsyncIterator[CodeInterpreter]:
    """A server in this process, and a client of it, which does not repeat refused requests."""
    async with AsyncExitStack() as stack:
        policy = Policy(preload=(), spares=0, limits=replace(Limits(), memory=memory << 20))
        durable = {"Store": f"file://{store}"} if store else {}
        durable |= {"MaxMegabytes": hosting.pop("max_megabytes")} if "max_megabytes" in hosting else {}
        opening = open_server(Settings(Durable=durable), policy=policy, hosting=Hosting(**hosting))
        client = httpx.AsyncClient(transport=EmbeddedTransport(await stack.enter_async_context(opening)), base_url="http://test")
        yield await stack.enter_async_context(CodeInterpreter(SessionsHttpClient(client, patience=0)))


async def make(interpreter: CodeInterpreter, name: str = "alice") -> Session:
    session = Session(interpreter, name)
    for cell in CELLS:
        result = await session.run(cell)
        assert result.error is None, result.stderr
    return session


async def forge(path: Path, *state: bytes, **manifest: Any) -> Path:
    """Write a file that is whole, with other records."""
    manifest = {"created": "2026-01-01T00:00:00+00:00", "packages": [], "cells": 0, "gone": [], "missing": []} | manifest
    records = encode_record({"kind": "manifest", "format": 1, **manifest}), encode_notebook(b""), *state
    path.write_bytes(await all_of(seal(of(b"".join(records)))))
    return path


async def names(interpreter: CodeInterpreter) -> list[str]:
    return [one.session_id for one in await interpreter.list_sessions()]


async def test_a_session_moves_to_a_server_without_extensions_and_back(tmp_path: Path) -> None:
    there, back = tmp_path / "there.session", tmp_path / "back.session"
    async with server() as rich, server(plain=True) as plain:
        session = await make(rich)
        exported = await session.export(there)
        assert ([*exported.lost], exported.variables, exported.size) == (["gen"], 9, there.stat().st_size)
        assert there.stat().st_mode & 0o777 == 0o600
        assert (await session.run("k")).state.kind == "kept"
        for target, source in ((plain, there), (rich, back)):
            with pytest.raises(InvalidArgumentError, match=r"runs the code in its file, in the sandbox.*trust=True"):
                await target.import_(source, "moved")
            imported = await target.import_(source, "moved", trust=True)
            moved = Session(target, "moved")
            result = await moved.run(LOOK)
            assert (result.text, str(result.state), result.state.missing) == (SEEN, "restored: import", (*imported.lost,))
            assert result.state.saved == imported.created
            assert (await moved.run("k, len(_ih), 'gen' in dir(), [name for name in dir() if 'session' in name]")).state.kind == "kept"
            with pytest.raises(ServiceError, match=r"409 SessionExists.*choose another name"):
                await target.import_(source, "moved", trust=True)
            if target is plain:
                await moved.run("k = 2; gen = (i for i in 'ab'); files = __import__('os').listdir(), __import__('sys').modules.keys()")
                await moved.export(back)
                assert (await moved.run("import sys; [m for m in sys.modules if m.startswith('_aca_sessions_state')]")).text == "[]"
                assert [one.name for one in await moved.list_files()] == ["d"]


async def test_a_pool_continues_the_history_and_a_failed_import_leaves_no_session(tmp_path: Path) -> None:
    path = tmp_path / "alice.session"
    async with server() as interpreter, SessionPool(interpreter) as pool:
        async with pool.session("alice") as session:
            await session.run("x = 1")
            await session.export(path)
        with pytest.raises(ServiceError, match="SessionExists"):
            await pool.import_(path, "alice", trust=True)
        assert [one.session_id for one in pool.active()] == ["alice"]
        await pool.import_(path, "bob", trust=True)
        async with pool.session("bob") as session:
            assert [step.code for step in session.history.cells] == ["x = 1"]
            assert str((await session.run("x")).state) == "restored: import"
        whole = path.read_bytes()
        for damaged in (whole[:-1], b"x" + whole[1:], whole + b"x", b"", await whole_but_forged(tmp_path)):
            path.write_bytes(damaged)
            with pytest.raises((SaveCorruptedError, SnapshotError, ServiceError)) as raised:
                await pool.import_(path, "carl", trust=True)
            assert not isinstance(raised.value, ServiceError) or raised.value.code != "SessionExists"
            assert "carl" not in [*(one.session_id for one in pool.active()), *await names(interpreter)]
        path.write_bytes(whole)
        await pool.import_(path, "carl", trust=True)
        async with pool.session("carl") as session:
            result = await session.run("x")
            assert (result.text, str(result.state)) == ("1", "restored: import")


async def whole_but_forged(folder: Path) -> bytes:
    """A file that is whole, whose state no session can read."""
    start, end = encode_record({"kind": "start", "python": "3"}), encode_record({"kind": "end", "saved": 1})
    return (await forge(folder / "forged", start, encode_record({"kind": "group"}, b"x"), end)).read_bytes()


async def test_a_loss_that_was_not_reported_before_the_export_is_reported_after_the_import(tmp_path: Path) -> None:
    path = tmp_path / "alice.session"
    async with server() as rich, server(plain=True) as plain:
        for number, source in enumerate((rich, plain)):
            session = Session(source, "alice")
            await session.run("x = 1; open('f.txt', 'w').close()")
            other = Session(source, "alice")
            await other.run("import os; os._exit(1)")
            await session.export(path)
            for target in (rich, plain):
                await target.import_(path, f"moved{number}", trust=True)
                state = (await Session(target, f"moved{number}").run("1")).state
                assert (state.variables, state.files, state.reason) == ("lost", "restored", "before the export")


@pytest.mark.long
async def test_what_a_session_with_a_store_exports_and_imports(tmp_path: Path) -> None:
    path = tmp_path / "alice.session"
    async with server(store=tmp_path / "store") as interpreter:
        session = await make(interpreter)
        await session.export(path)
        await interpreter.delete_session("alice", saved=True)
        with pytest.raises(ServiceError, match="SessionExists"):  # it is saved
            await interpreter.import_(path, "alice", trust=True)
        await interpreter.export("alice", path)  # restores it first
        await interpreter.delete_session("alice")
        await interpreter.import_(path, "alice", trust=True)
    async with server(store=tmp_path / "store") as interpreter:
        result = await Session(interpreter, "alice").run(LOOK)
        assert (result.text, result.state.kind) == (SEEN, "restored")


@pytest.mark.long
async def test_packages_move_too_or_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ..wheels import make_wheel

    make_wheel(tmp_path / "wheels", "alpha")
    path = tmp_path / "alice.session"
    with monkeypatch.context() as patched:
        patched.setenv("ACASessions__Packages__WheelFolder", str(tmp_path / "wheels"))
        async with open_pool(spares=0) as pool:
            async with pool.session("alice") as session:
                assert (await session.install("alpha")).success
                await session.run("import alpha; a = alpha; b = 1")
                await session.export(path)
            await pool.import_(path, "bob", trust=True)
            async with pool.session("bob") as session:
                assert (await session.run("a.version")).text == "'1.0'"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache of another host"))
    async with server() as rich, server(plain=True) as plain:
        for target in (rich, plain):
            imported = await target.import_(path, "alice", trust=True)
            assert sorted(imported.lost) == ["a", "alpha", "package alpha==1.0"]
            assert (await Session(target, "alice").run("b")).text == "1"


@pytest.mark.long
@pytest.mark.parametrize("plain", [False, True])
async def test_a_large_session_moves_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain: bool) -> None:
    monkeypatch.setattr(exports, "_FILE_BYTES", 1 << 20)
    path = tmp_path / "alice.session"
    async with server(memory=1024, plain=plain) as interpreter:
        session = Session(interpreter, "alice")
        await session.run("import os, zlib; x = [os.urandom(100) for _ in range(30_000)]; open('f', 'wb').write(os.urandom(5_000_001))")
        await session.run("import hashlib; check = lambda: hashlib.sha256(b''.join(x) + open('f', 'rb').read()).hexdigest()")
        expected = (await session.run("check()")).text
        assert (await session.export(path)).size > 8_000_000
        await interpreter.import_(path, "bobby", trust=True)
        assert (await Session(interpreter, "bobby").run("check()")).text == expected


@pytest.mark.long
async def test_an_export_is_limited_in_size_and_says_so(tmp_path: Path) -> None:
    path, small = tmp_path / "alice.session", tmp_path / "small.session"
    path.write_text("as before")
    async with server(max_megabytes=1) as limited, server() as interpreter:
        session = Session(limited, "alice")
        await session.run("open('f', 'wb').write(bytes(2_000_000))")
        with pytest.raises(SnapshotError, match="at most 1 MB, got more"):
            await session.export(path)
        assert path.read_text() == "as before"
        assert [*tmp_path.iterdir()] == [path]
        assert (await session.run("import os; os.remove('f')")).state.kind == "kept"
        await session.export(small)
        large = Session(interpreter, "alice")
        await large.run("open('f', 'wb').write(bytes(2_000_000))")
        await large.export(path)
        with pytest.raises(ServiceError, match="413"):
            await limited.import_(path, "bob", trust=True)
        assert await names(limited) == ["alice"]


@pytest.mark.long
@pytest.mark.parametrize("plain", [False, True])
async def test_two_imports_of_one_name_make_one_session(tmp_path: Path, plain: bool) -> None:
    path = tmp_path / "alice.session"
    async with server(plain=plain) as interpreter:
        session = Session(interpreter, "alice")
        await session.run("x = 1")
        await session.export(path)
        done = await asyncio.gather(*(interpreter.import_(path, "bobby", trust=True) for _ in range(4)), return_exceptions=True)
        assert sorted(type(one).__name__ for one in done) == ["SavedSession", *["ServiceError"] * 3]
        assert (await Session(interpreter, "bobby").run("x")).text == "1"


@pytest.mark.long
async def test_an_export_waits_for_the_cell_that_runs_and_can_be_cancelled(tmp_path: Path) -> None:
    path = tmp_path / "alice.session"
    async with server() as interpreter:
        session = await make(interpreter)
        running = asyncio.ensure_future(session.run("import time; time.sleep(1); late = 1"))
        await asyncio.sleep(0.3)
        exporting = asyncio.ensure_future(session.export(path))
        await asyncio.sleep(0.3)
        exporting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await exporting
        await session.export(path)
        assert (await running).error is None
        await session.run("class Slow:\n def __reduce__(self): import time; time.sleep(1000); return int, ()\nslow = Slow()")
        exporting = asyncio.ensure_future(session.export(path))
        await asyncio.sleep(0.5)
        exporting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await exporting
        result = await session.run("del slow; late")  # the fork has ended: it would have held the session for minutes
        assert (result.text, result.processes, [*tmp_path.iterdir()]) == ("1", (), [path])
        await interpreter.import_(path, "bob", trust=True)
        assert (await Session(interpreter, "bob").run("late")).text == "1"


@pytest.mark.long
@pytest.mark.parametrize("plain", [False, True])
async def test_an_import_that_is_cancelled_or_fails_leaves_no_session(tmp_path: Path, plain: bool) -> None:
    path = tmp_path / "alice.session"
    async with server() as source, server(plain=plain) as interpreter:
        session = Session(source, "alice")
        slow = "class Slow:\n def __reduce__(self): import time; return time.sleep, (1000,)\nslow = Slow()"
        await session.run(slow)
        await session.export(path)
        importing = asyncio.ensure_future(interpreter.import_(path, "bobby", trust=True))
        await asyncio.sleep(1)
        assert await names(interpreter) == ["bobby"]
        importing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await importing
        assert await names(interpreter) == []
        await session.run("class Dies:\n def __reduce__(self): import os; return os._exit, (1,)\ndel slow; dies = Dies()")
        await session.export(path)
        with pytest.raises(ACASessionsError):
            await interpreter.import_(path, "bobby", trust=True)
        assert await names(interpreter) == []
        with pytest.raises(NotFoundError):
            await interpreter.get_session("bobby")
        assert (await Session(interpreter, "bobby").run("1")).state.kind == "kept"


@pytest.mark.long
async def test_a_session_that_is_ended_while_it_is_imported_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, restore, begun = tmp_path / "alice.session", Sandbox.restore, asyncio.Event()

    async def slow_restore(*arguments: Any, **options: Any) -> dict[str, str]:
        begun.set()
        await asyncio.sleep(0.5)
        return await restore(*arguments, **options)

    async with server() as interpreter:
        await (await make(interpreter)).export(path)
        monkeypatch.setattr(Sandbox, "restore", slow_restore)
        importing = asyncio.ensure_future(interpreter.import_(path, "bob", trust=True))
        await begun.wait()
        waiting = asyncio.ensure_future(Session(interpreter, "bob").run("'x' in globals()"))  # a cell waits for the whole import
        await asyncio.sleep(0.1)
        await interpreter.delete_session("bob")
        with pytest.raises(SnapshotError, match="was ended while it was imported"):
            await importing
        assert (await waiting).text in (None, "False")
        await interpreter.import_(path, "carl", trust=True)
        assert (await Session(interpreter, "carl").run(LOOK)).text == SEEN


@pytest.mark.long
async def test_a_session_that_dies_while_it_is_exported_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "alice.session"
    async with server() as rich, server(plain=True) as plain:
        for interpreter in (rich, plain):
            session = await make(interpreter, "dying")
            await session.run("class Dies:\n def __reduce__(self): import os; os._exit(1)\ndies = Dies()")
            with pytest.raises((SnapshotError, SaveCorruptedError, ServiceUnavailableError)):
                await session.export(path)
            assert [*tmp_path.iterdir()] == []
            result = await session.run("del dies; import os; os.listdir('.')")
            assert (result.text, result.state.kind) == ("['d']", "kept")
            await session.export(path)
            path.unlink()


@pytest.mark.long
@pytest.mark.parametrize("plain", [False, True])
async def test_full_disks_are_named(tmp_path: Path, plain: bool) -> None:
    async with server(memory=1024, plain=plain) as interpreter:
        session = await make(interpreter)
        with pytest.raises(OSError, match="No space left"):
            await session.export(Path("/dev/full"))
        assert (await session.run("import os; os.listdir('.')")).text == "['d']"
        if plain:
            await session.run("import os; f = open('filled', 'wb')\ntry:\n while True: f.write(bytes(1 << 20))\nexcept OSError: pass")
            await session.run("f = None")
            with pytest.raises(SnapshotError, match="No space left"):
                await session.export(tmp_path / "alice.session")
            assert sorted(one.name for one in await session.list_files()) == ["d", "filled"]


@pytest.mark.long
async def test_the_command_line_moves_a_session_between_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bobby.session"
    with Server("--port", "0", "--api-key", "key") as rich, Server("--port", "0", "--api-key", "key", "--plain") as plain:
        monkeypatch.setenv("ACASessions__ApiKey", "key")
        rich_options, plain_options = ("--endpoint", rich.endpoint), ("--endpoint", plain.endpoint)
        assert run("run", *rich_options, "--session", "alice", "import os; x = os.urandom(30_000_000); gen = iter('')").returncode == 0
        done = run("sessions", "export", "alice", str(path), *rich_options)
        assert (done.returncode, done.stderr, done.stdout[:20]) == (0, "", "exported 3 variables")
        refused = run("sessions", "export", "alice", str(path), *rich_options)
        assert (refused.returncode, "add --force" in refused.stderr) == (2, True)
        missing = run("sessions", "export", "nobody", str(tmp_path / "other"), *rich_options)
        assert (missing.returncode, "lists them" in missing.stderr, (tmp_path / "other").exists()) == (2, True, False)
        for options in (plain_options, rich_options):
            refused = run("sessions", "import", str(path), *options)
            assert (refused.returncode, "add --trust" in refused.stderr) == (2, True)
            done = run("sessions", "import", str(path), "--trust", *options)
            assert (done.returncode, done.stdout[:20]) == (0, "imported 3 variables"), done.stderr
            assert run("run", *options, "--session", "bobby", "len(x)").stdout == "30000000\n"
            exists = run("sessions", "import", str(path), "--trust", *options)
            assert (exists.returncode, "SessionExists" in exists.stderr) == (2, True), exists.stderr


@pytest.mark.long
async def test_a_client_that_goes_away_in_the_middle_leaves_no_session_and_holds_none(tmp_path: Path) -> None:
    path = tmp_path / "alice.session"
    with Server("--port", "0", "--api-key", "key") as served:
        options = Settings(SessionsHttpClient={"Endpoint": served.endpoint, "ApiKey": "key"})
        async with asyncio.timeout(120), open_interpreter(options) as interpreter:
            session = Session(interpreter, "alice")
            await session.run("import os; x = os.urandom(20_000_000)")
            await session.export(path)
            await session.run("class Slow:\n def __reduce__(self): import time; time.sleep(1000); return int, ()\nzz = Slow()")
            address = httpx.URL(served.endpoint)
            common = f"?api-version=2025-10-02-preview&identifier=ALICE HTTP/1.1\r\nhost: {address.host}\r\nx-ms-apikey: key\r\n"
            reader, writer = await asyncio.open_connection(address.host, address.port)
            writer.write(f"POST /session/export{common.replace('ALICE', 'alice')}content-length: 0\r\n\r\n".encode())
            assert b"200" in await reader.readline()
            await reader.readexactly(1 << 20)  # the session goes on to write
            writer.close()
            result = await session.run("del zz; len(x)")
            assert (result.text, result.state.kind) == ("20000000", "kept")
            content = path.read_bytes()
            for cut in (0, 5, 1 << 20, len(content) - 1):
                reader, writer = await asyncio.open_connection(address.host, address.port)
                head = f"POST /session/import{common.replace('ALICE', 'bob')}content-length: {len(content)}\r\n\r\n"
                writer.write(head.encode() + content[:cut])
                await writer.drain()
                while "bob" not in await names(interpreter):
                    await asyncio.sleep(0.02)
                writer.close()
                while "bob" in await names(interpreter):
                    await asyncio.sleep(0.02)
            await interpreter.import_(path, "bob", trust=True)
            assert str((await Session(interpreter, "bob").run("len(x)")).state) == "restored: import"


@pytest.mark.long
async def test_a_server_that_closes_ends_an_import_and_its_session(tmp_path: Path) -> None:
    path = tmp_path / "alice.session"
    async with asyncio.timeout(120):
        async with server() as source:
            session = Session(source, "alice")
            await session.run("class Slow:\n def __reduce__(self): import time; return time.sleep, (1000,)\nslow = Slow()")
            await session.export(path)
        async with server() as interpreter:
            importing = asyncio.ensure_future(interpreter.import_(path, "bob", trust=True))
            while not await names(interpreter):
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.5)  # it is being restored
        with pytest.raises((ACASessionsError, asyncio.CancelledError)):
            await importing


@pytest.mark.long
@pytest.mark.parametrize("plain", [False, True])
async def test_a_moved_session_is_never_whole_in_memory(tmp_path: Path, plain: bool) -> None:
    path = tmp_path / "alice.session"
    async with server(memory=2048, plain=plain) as interpreter:
        session = Session(interpreter, "alice")
        await session.run("import os; x = os.urandom(150_000_000)")
        tracemalloc.start()
        try:
            await session.export(path)
            assert tracemalloc.get_traced_memory()[1] < 100_000_000
            await interpreter.delete_session("alice")
            tracemalloc.reset_peak()
            await interpreter.import_(path, "bobby", trust=True)
            assert tracemalloc.get_traced_memory()[1] < 100_000_000
        finally:
            tracemalloc.stop()


@pytest.mark.long
async def test_a_session_that_a_plain_endpoint_replaces_is_never_taken_for_the_exported_one(tmp_path: Path) -> None:
    path = tmp_path / "alice.session"
    async with server(plain=True, cooldown=1.0) as interpreter:
        session = Session(interpreter, "alice")
        await session.run("x = 1")
        while await interpreter.list_sessions():
            await asyncio.sleep(0.1)
        interpreter._ledgers._verify_after = 0.0  # as after 200 s
        await session.export(path)  # of the empty session that takes its place
        imported = await interpreter.import_(path, "bobby", trust=True)
        result = await Session(interpreter, "bobby").run("'x' in globals()")
        assert (result.text, str(result.state), imported.variables) == ("False", "lost: before the export", 0)
        while await interpreter.list_sessions():
            await asyncio.sleep(0.1)
        result = await Session(interpreter, "bobby").run("1")
        assert str(result.state) == "lost: expired"


@pytest.mark.long
@pytest.mark.parametrize("kind", [*KINDS])
async def test_each_kind_of_value_moves_to_a_plain_server_and_back(tmp_path: Path, kind: str) -> None:
    code, look, expected = KINDS[kind]
    look = "print(_1, Out[1])" if kind == "outputs" else look  # the numbers of cells go on in another way
    expected = "value value" if kind == "outputs" else expected
    there, back = tmp_path / "there.session", tmp_path / "back.session"
    async with server(memory=512) as rich, server(memory=512, plain=True) as plain:
        session = Session(rich, "alice")
        assert (await session.run(code)).error is None
        await session.export(there)
        for name in ("seen", "unseen"):
            assert (await plain.import_(there, name, trust=True)).lost == {}
        assert (await Session(plain, "seen").run(look)).stdout.strip() == expected
        assert (await Session(plain, "unseen").export(back)).lost == {}
        assert (await rich.import_(back, "back", trust=True)).lost == {}
        assert (await Session(rich, "back").run(look)).stdout.strip() == expected
