"""Attack saved sessions: by what a session writes as its state, by what it restores, and in the store."""

import asyncio
import json
import pickle
import random
import shutil
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from aca_sessions import Policy, SessionPool, Settings, open_pool
from aca_sessions.durable.records import encode_notebook
from aca_sessions.durable.sealed_stream import seal
from aca_sessions.errors import ACASessionsError, InvalidArgumentError, SaveCorruptedError, SnapshotError
from aca_sessions.sandbox.policy import Limits
from aca_sessions.sandbox.wire import RECORD

from ..conftest import mostly_long

pytestmark = pytest.mark.slow
FORGES = "import os, sys; sys.modules['aca_sessions.sandbox.guest.saves']._write = "


@asynccontextmanager
async def pool(folder: Path, *, tenant: str | None = None, **durable: object) -> AsyncIterator[SessionPool]:
    settings = Settings(Durable={"Store": f"file://{folder}/store", **durable})
    async with open_pool(settings, policy=Policy(preload=(), spares=0, tenant=tenant)) as opened:
        yield opened


def record(header: dict[str, object], payload: bytes = b"") -> bytes:
    encoded = json.dumps(header).encode()
    return RECORD.pack(len(encoded), len(payload)) + encoded + payload


async def test_a_saved_session_runs_code_only_in_the_sandbox_that_restores_it(tmp_path: Path) -> None:
    """Code in a saved state runs when the session is restored, in its own sandbox: the host unpickles nothing."""
    outside = tmp_path / "outside"
    does = "import os, contextlib\nopen('/mnt/data/ran', 'w').write(str(os.getuid()))\n"
    does += f"with contextlib.suppress(OSError): open({str(outside)!r}, 'w')"
    code = f"class Evil:\n def __reduce__(self): return exec, ({does!r},)\nevil = Evil()"
    async with pool(tmp_path) as opened:
        async with opened.session("alice") as session:
            assert (await session.run(code)).error is None
            await session.save()
        await opened.saved()
    async with pool(tmp_path) as opened:
        async with opened.session("bob") as other:
            assert (await other.run("import os; os.path.exists('ran')")).text == "False"
        async with opened.session("alice") as session:
            result = await session.run("import os; open('ran').read() == str(os.getuid())")
            assert (result.text, result.state.variables) == ("True", "restored")
    assert not outside.exists()


async def test_a_saved_session_is_restored_under_its_own_name_and_tenant_only(tmp_path: Path) -> None:
    """A saved session is found by its own name and tenant only, and copied in the store to another's place it is refused."""
    async with pool(tmp_path, tenant="one") as opened:
        for name in ("alice", "mallory"):
            async with opened.session(name) as session:
                await session.run(f"import os; x, large = {name!r}, os.urandom(100_000)")
    async with pool(tmp_path, tenant="two") as opened:
        assert await opened.saved() == []
        async with opened.session("alice") as session:
            assert (await session.run("'x' in globals()")).text == "False"
        await opened.terminate("alice")
    owners = [file.name for file in (tmp_path / "store" / "heads").iterdir()]
    assert len(owners) == 2
    for kind in ("heads", "saves", "blobs"):
        first, second = (tmp_path / "store" / kind / owner for owner in owners)
        shutil.rmtree(first) if first.is_dir() else first.unlink()
        shutil.copytree(second, first) if second.is_dir() else shutil.copy(second, first)
    async with pool(tmp_path, tenant="one", Save="never") as opened:
        states = []
        for name in ("alice", "mallory"):
            async with opened.session(name) as session:
                result = await session.run("globals().get('x')")
                states.append(str(result.state))
                assert result.value in (None, name)
        assert sorted(states) == ["lost: restore failed", "restored: restart"]


async def test_with_a_key_the_store_shows_nothing_and_takes_no_changed_byte(tmp_path: Path) -> None:
    """With a key, nothing of a saved session is in the store in the clear, and one changed byte anywhere makes the restore fail."""
    async with pool(tmp_path, Key="ab" * 32) as opened, opened.session("a-secret-name") as session:
        await session.run("secret = 'a-secret-value' * 10_000; open('a-secret-file', 'w').write('a-secret-content')")
    files = [file for kind in ("saves", "blobs") for file in (tmp_path / "store" / kind).rglob("*") if file.is_file()]
    assert len(files) >= 2
    stored = b"".join(file.read_bytes() for file in (tmp_path / "store").rglob("*") if file.is_file())
    assert b"a-secret" not in stored
    for file in files:
        whole = file.read_bytes()
        file.write_bytes(whole[:-40] + bytes([whole[-40] ^ 1]) + whole[-39:])
        async with pool(tmp_path, Key="ab" * 32, Save="never") as opened, opened.session("a-secret-name") as session:
            result = await session.run("'secret' in globals()")
            assert (result.text, str(result.state)) == ("False", "lost: restore failed")
        file.write_bytes(whole)
    async with pool(tmp_path, Key="ab" * 32) as opened, opened.session("a-secret-name") as session:
        assert (await session.run("secret[:8]")).text == "'a-secret'"


async def test_a_session_that_writes_no_state_of_its_own_fills_neither_store_nor_memory(tmp_path: Path) -> None:
    """A session that writes something else, or without end, in place of its state is not saved, and nothing of it stays in the store."""
    endless = "lambda pipe, *_: [os.write(pipe.fileno(), b) for b in [{start!r}] + [bytes(1 << 20)] * 10_000]"
    starts = (
        record({"kind": "buffer"})[: RECORD.size - 8] + (1 << 40).to_bytes(8, "little") + record({"kind": "buffer"})[RECORD.size :],
        b"x" * 100,
    )
    async with pool(tmp_path, MaxMegabytes=8, Save="never") as opened:
        for start in starts:
            async with opened.session("mallory") as session:
                await session.run(f"{FORGES}{endless.format(start=start)}")
                with pytest.raises(SnapshotError):
                    await session.save()
                assert (await session.run("6 * 7")).text == "42"
        async with opened.session("alice") as session:
            await session.run("x = 1")
            await session.save()
            assert [one.session_id for one in await opened.saved()] == ["alice"]
    assert sum(file.stat().st_size for file in (tmp_path / "store").rglob("*") if file.is_file()) < 1 << 20


async def test_what_a_state_says_is_missing_forges_no_line_of_the_host(tmp_path: Path) -> None:
    """Names in a saved state are the session's words: where a result names what is missing, they have no control characters or lines."""
    name = "x\n[state] kept\x1b[2J"
    state = (
        record({"kind": "start", "python": "3"})
        + record({"kind": "lost", "names": [name], "why": "\x1b[2J"})
        + record({"kind": "end", "saved": 0})
    )
    async with pool(tmp_path) as opened, opened.session("alice") as session:
        await session.run("y = 1")
        await session.run(f"{FORGES}lambda pipe, *_: (os.write(pipe.fileno(), {state!r}), os._exit(0))")
        saved = await session.save()
        assert ["\n" in one or "\x1b" in one for one in saved.lost] == [False]
        failed = record({"kind": "failed", "why": name + "\udcff"})
        await session.run(f"{FORGES}lambda pipe, *_: (os.write(pipe.fileno(), {failed!r}), os._exit(0))")
        with pytest.raises(SnapshotError) as caught:
            await session.save()
        assert str(caught.value).isprintable()
    async with pool(tmp_path) as opened, opened.session("alice") as session:
        result = await session.run("'y' in globals()")
        assert (result.text, result.state.kind, len(result.state.missing)) == ("False", "restored", 1)
        assert not {"\n", "\x1b"} & set(result.state.consequence)
        assert "\x1b" not in str(result)


async def forge(path: Path, *state: bytes, **manifest: object) -> Path:
    """Write a file that is whole, as a stranger can: a seal without a key shows damage only."""
    manifest = {"created": "2026-01-01T00:00:00+00:00", "packages": [], "cells": 0, "gone": [], "missing": []} | manifest
    records = record({"kind": "manifest", "format": 1, **manifest}) + encode_notebook(b"")
    records += record({"kind": "start", "python": "3"}) + b"".join(state) + record({"kind": "end", "saved": 1})

    async def content() -> AsyncIterator[bytes]:
        yield records

    path.write_bytes(b"".join([chunk async for chunk in seal(content())]))
    return path


def file_record(path: str, content: bytes = b"x", mode: int = stat.S_IFREG | 0o644) -> bytes:
    return record({"kind": "file", "path": path.encode().hex(), "mode": mode, "modified": 5.0}, content)


@asynccontextmanager
async def storeless() -> AsyncIterator[SessionPool]:
    policy = Policy(preload=(), spares=0, limits=replace(Limits(), memory=256 << 20))
    async with open_pool(Settings(Durable={"MaxMegabytes": 64}), policy=policy) as opened:
        yield opened


async def test_a_file_with_a_changed_or_missing_byte_is_refused_before_its_code_runs(tmp_path: Path) -> None:
    """An exported session with a changed, added or missing byte is refused before anything of it reaches a session."""
    path = tmp_path / "alice.session"
    async with storeless() as opened:
        async with opened.session("alice") as session:
            await session.run("x = 1")
            await session.export(path)
        whole = path.read_bytes()
        places = random.Random(7).sample(range(len(whole)), 60)  # each byte: tests/durable/test_records.py
        for place in (0, len(whole) - 1, *places):
            for damaged in (whole[:place], whole[:place] + bytes([whole[place] ^ 128]) + whole[place + 1 :]):
                path.write_bytes(damaged)
                with pytest.raises(SaveCorruptedError):
                    await opened.import_(path, "bob", trust=True)
        with pytest.raises(InvalidArgumentError, match="runs the code in its file"):
            await opened.import_(path, "bob")
        assert [one.session_id for one in await opened._interpreter.list_sessions()] == ["alice"]


async def test_a_strangers_file_reaches_only_its_own_sandbox(tmp_path: Path) -> None:
    """Whatever an imported file has, such as code, links, devices and paths with `..`, stays in the sandbox of its session."""
    outside = tmp_path / "outside"

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return exec, (f"import os\ntry: open({str(outside)!r}, 'w')\nexcept OSError: pass\nopen('/mnt/data/ran', 'w').close()",)

    climbing = "../" * 20 + str(outside).lstrip("/")
    path = await forge(
        tmp_path / "a.session",
        *(file_record(name) for name in (climbing, str(outside), "a/../../b", "")),
        file_record("device", b"", stat.S_IFBLK | 0o666),
        file_record("pipe", b"", stat.S_IFIFO | 0o666),
        file_record("link", str(tmp_path).encode(), stat.S_IFLNK | 0o777),
        file_record("link/outside"),
        file_record("root", b"#!/bin/sh", stat.S_IFREG | 0o6755),
        record({"kind": "group", "names": ["x"], "buffers": 0}, pickle.dumps({"x": Evil()})),
        packages=["-r /etc/passwd", "alpha @ file:///etc/passwd", "--index-url=http://127.0.0.1:1/"],
    )
    async with storeless() as opened:
        async with opened.session("bob") as other:
            await other.run("open('own', 'w').close()")
            imported = await opened.import_(path, "mallory", trust=True)
            assert (await other.run("import os; os.listdir('/mnt/data')")).text == "['own']"
        async with opened.session("mallory") as session:
            seen = await session.run(
                "import os, stat; sorted(name for name in os.listdir('.')), os.getuid() != 0 and 'ran' in os.listdir('.')"
            )
            assert seen.text == "(['link', 'ran', 'root'], True)", seen
            assert seen.state.missing == (*imported.lost,)
    assert not outside.exists()
    assert len([name for name in imported.lost if name.startswith("package ")]) == 3
    assert {"'file device'", "'file pipe'", "'file a/../../b'"} < {*imported.lost}


BOMBS = {
    "a payload of 1 EB": [record({"kind": "buffer"})[:4] + (1 << 60).to_bytes(8, "little") + b'{"kind": "buffer"}'],
    "a large payload that is no pickle": [record({"kind": "group", "names": ["x"], "buffers": 0}, bytes(63 << 20))],
    "a group with 10^12 buffers": [record({"kind": "group", "names": ["x"], "buffers": 10**12}, pickle.dumps({"x": 1}))],
    "a pickle that needs more than the memory": [
        record({"kind": "group", "names": ["x"], "buffers": 0}, b"cbuiltins\nbytearray\n(L10000000000L\ntR.")
    ],
    "names that are a number": [record({"kind": "group", "names": 7, "buffers": 0}, b"x")],
    "settings that are none": [record({"kind": "settings"}, b"x")],
    "a path that is no text": [record({"kind": "file", "path": "xyz", "mode": 0, "modified": 0})],
    "a mode that is none": [record({"kind": "file", "path": "61", "mode": "a", "modified": []})],
    "a code that ends the session": [record({"kind": "group", "names": ["x"], "buffers": 0}, b"cos\nabort\n(tR.")],
    "20,000 records": [record({"kind": "lost", "names": ["x"], "why": "y"})] * 20_000,
}


@pytest.mark.parametrize("bomb", mostly_long([*BOMBS], "a payload of 1 EB"))
async def test_a_strangers_file_that_is_a_bomb_costs_its_own_session_only(tmp_path: Path, bomb: str) -> None:
    """An imported file with huge sizes, counts or values fails, or is restored in the limits of its session; others go on."""
    path = await forge(tmp_path / "a.session", *BOMBS[bomb])
    async with storeless() as opened, opened.session("alice") as session:
        await session.run("x = 1")
        [done] = await asyncio.gather(opened.import_(path, "mallory", trust=True), return_exceptions=True)
        live = [one.session_id for one in await opened._interpreter.list_sessions()]
        assert sorted(live) == (["alice"] if isinstance(done, ACASessionsError) else ["alice", "mallory"]), done
        assert len(str(done)) < 600
        assert str((await session.run("x")).state) == "kept"


async def test_what_a_strangers_file_names_forges_no_line_of_the_host(tmp_path: Path) -> None:
    """Names and reasons in an imported file have no control characters or lines where the host shows them."""
    name = "x\n[state] kept\x1b[2J\u202e\ud800"
    lost = record({"kind": "lost", "names": [name], "why": name})
    path = await forge(
        tmp_path / "a.session", lost, packages=[f"{name}=={name}"], missing=[f"y{name}"], created="2020-01-01T00:00:00+00:00"
    )
    async with storeless() as opened:
        imported = await opened.import_(path, "mallory", trust=True)
        async with opened.session("mallory") as session:
            result = await session.run("1")
    assert (len(imported.lost), result.state.kind, len(result.state.missing)) == (3, "restored", 3)
    for text in (*imported.lost, *imported.lost.values(), result.state.consequence, str(result)):
        assert not {"\x1b", "\u202e", "\ud800"} & set(text), text
    assert not any("\n" in text for text in (*imported.lost, *imported.lost.values(), result.state.consequence))
