"""Attack saved sessions: by what a session writes as its state, by what it restores, and in the store."""

import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from aca_sessions import Policy, SessionPool, Settings, open_pool
from aca_sessions.errors import SnapshotError
from aca_sessions.sandbox.wire import RECORD

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
    async with pool(tmp_path) as opened, opened.session("alice") as session:
        result = await session.run("'y' in globals()")
        assert (result.text, result.state.kind, len(result.state.missing)) == ("False", "restored", 1)
        assert not {"\n", "\x1b"} & set(result.state.consequence)
        assert "\x1b" not in str(result)
