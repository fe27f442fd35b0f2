"""Test artifacts: tables stored as parquet, and files that a person put into the folder."""

import asyncio
import contextlib
import importlib.util
import pickle
from pathlib import Path

import pandas as pd
import pytest

from aca_sessions import AgentSession, FileStorage, SessionPool
from aca_sessions.agent.library.artifacts import Artifacts
from aca_sessions.agent.library.storage import Kind, MemoryStorage
from aca_sessions.errors import InvalidArgumentError, StorageError

FRAME = "import pandas as pd\nframe = pd.DataFrame({'n': [1, 2], 'text': ['x', None], 'when': pd.to_datetime(['2026-01-01', None])})\n"


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, ("open('ran', 'w').close()",)


@pytest.mark.slow
async def test_a_table_is_stored_as_parquet_and_loads_on_host_and_guest(pool: SessionPool, tmp_path: Path) -> None:
    async with AgentSession(pool, storage=FileStorage(tmp_path)) as agent:
        await agent.run(f"{FRAME}artifacts.save('inside', frame)")
        await agent.save_artifact("outside", await agent.load_artifact("inside"))
        same = "import pandas as pd\nx = artifacts.load('{}')\n(x.n.tolist(), x.text[0], str(x.when[0].date()), str(x.n.dtype))"
        for name in ("inside", "outside"):
            assert (await agent.run(same.format(name))).text == "([1, 2], 'x', '2026-01-01', 'int64')"
    kept = [file.read_bytes()[:4] for file in (tmp_path / "content").iterdir()]
    assert kept == [b"PAR1", b"PAR1"]


@pytest.mark.slow
async def test_a_table_that_parquet_cannot_store_is_stored_as_json(pool: SessionPool) -> None:
    async with AgentSession(pool) as agent:
        await agent.run("import pandas as pd\nartifacts.save('mixed', pd.DataFrame({'a': [{'b': 1}, [2]], 'x': [1 / 3, 1e-7 / 7]}))")
        mixed = await agent.load_artifact("mixed")
        assert mixed.a.tolist() == [{"b": 1}, [2]]
        assert mixed.x.tolist() == pytest.approx([1 / 3, 1e-7 / 7], rel=1e-8, abs=1e-15)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("pyarrow") is not None, reason="pyarrow, which is installed here, takes any names of columns")
async def test_a_table_that_no_format_can_store_is_refused(pool: SessionPool) -> None:
    async with AgentSession(pool) as agent:
        await agent.run("import pandas as pd")
        refused = "artifacts.save('numbers', pd.DataFrame([[1, 2]]))"
        assert "must be named by text" in str((await agent.run(refused)).error)
        with pytest.raises(InvalidArgumentError, match="must be named by text"):
            await agent.save_artifact("numbers", pd.DataFrame([[1, 2]]))


async def test_files_that_a_person_put_into_the_folder_are_artifacts(pool: SessionPool, tmp_path: Path) -> None:
    folder = tmp_path / "artifacts"
    folder.mkdir()
    files = {"a.json": b'{"b": 1}', "b.csv": b"n\n1\n", "c.png": b"\x89PNG", "d.json": b"{"}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    async with AgentSession.from_base(tmp_path, pool) as agent:
        told = await agent.list_artifacts()
        assert [(one["name"], one["path"]) for one in told] == [(name, str(folder / name)) for name in files]
        assert (await agent.run("[artifacts.load(one['name']) for one in artifacts.list()]")).text == (
            "[{'b': 1}, 'n\\n1\\n', b'\\x89PNG', '{']"
        )
        await agent.save_artifact("b.csv", "n\n2\n")
        assert await agent.load_artifact("b.csv") == "n\n2\n"
        await agent.delete_artifact("c.png")
        assert [one["name"] for one in await agent.list_artifacts()] == ["a.json", "b.csv", "d.json"]


@pytest.mark.parametrize("name", ["evil.parquet", "evil.json", "evil.pkl"])
async def test_a_file_of_any_name_is_never_unpickled(tmp_path: Path, name: str) -> None:
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts" / name).write_bytes(pickle.dumps(Evil(), protocol=0))
    with contextlib.suppress(StorageError):
        assert isinstance(await Artifacts(FileStorage(tmp_path)).load(name), str)
    assert not Path("ran").exists()


class Counting(MemoryStorage):
    """Count how many contents are being loaded at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.reading = self.most = 0

    async def read(self, kind: Kind, name: str) -> bytes | None:
        if kind != "content":
            return await super().read(kind, name)
        self.reading += 1
        self.most = max(self.most, self.reading)
        await asyncio.sleep(0.02)
        self.reading -= 1
        return await super().read(kind, name)


async def test_a_session_loads_one_artifact_at_a_time(pool: SessionPool) -> None:
    storage = Counting()
    code = "import asyncio\nasync def go(): return len(await artifacts.load('a'))\nawait asyncio.gather(*(go() for _ in range(8)))"
    async with AgentSession(pool, storage=storage) as agent:
        await agent.save_artifact("a", bytes(1 << 20))
        assert (await agent.run(code)).text == str([1 << 20] * 8)
    assert storage.most == 1
