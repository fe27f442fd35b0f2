"""Run the same tests of storage against files and a real Redis."""

import asyncio
import os
from pathlib import Path

import pytest
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from aca_sessions import FileStorage, RedisStorage
from aca_sessions.agent.library.artifacts import Artifacts
from aca_sessions.agent.library.dependencies import Deps
from aca_sessions.agent.library.skills import Skills
from aca_sessions.agent.library.storage import MemoryStorage, Storage
from aca_sessions.errors import ACASessionsError, ConfigurationError, InvalidArgumentError, StorageError

from .conftest import RedisServer

AnyStorage = FileStorage | MemoryStorage | RedisStorage
HOSTILE = ["", ".", "..", "../x", "/etc/passwd", "a/b", "a\\b", "a\0b", ".hidden", "a..b", "x" * 200, "a\n", " ", 5, None, "ä", "a."]
DOUBLE = "def run(n):\n    return n * 2\n"


async def test_a_record_exists_until_it_is_deleted(storage: Storage) -> None:
    await storage.write("skills", "one", b"\x00 first")
    await storage.write("skills", "one", b"second")
    assert (await storage.read("skills", "one"), await storage.names("skills")) == (b"second", ["one"])
    assert [await storage.delete("skills", "one") for _ in range(2)] == [True, False]
    assert (await storage.read("skills", "one"), await storage.names("skills")) == (None, [])


@pytest.mark.parametrize("name", HOSTILE)
async def test_every_operation_refuses_a_hostile_name(storage: Storage, name: str) -> None:
    for act in (storage.read("artifacts", name), storage.write("artifacts", name, b""), storage.delete("artifacts", name)):
        with pytest.raises(InvalidArgumentError, match="a name must have up to 128"):
            await act


async def test_the_stamp_changes_with_the_content(storage: Storage) -> None:
    before = await storage.stamp("skills")
    await storage.write("skills", "one", b"")
    assert await storage.stamp("skills") != before


@pytest.mark.long
async def test_a_lock_makes_read_and_write_back_exclusive(storage: Storage) -> None:
    async def count() -> None:
        async with storage.locked("deps"):
            before = int(await storage.read("deps", "count") or b"0")
            await storage.write("deps", "count", b"%d" % (before + 1))

    await asyncio.gather(*(count() for _ in range(20)))
    assert await storage.read("deps", "count") == b"20"


@pytest.mark.parametrize("data", ["text ä", b"\x00\xff", {"a": [1, None]}, [1.5], 7, None, ""])
async def test_an_artifact_comes_back_unchanged(storage: Storage, data: object) -> None:
    artifacts = Artifacts(storage)
    told = await artifacts.save("result.json", data, "what it is", {"rows": 2})
    assert await artifacts.load("result.json") == data
    assert await artifacts.list() == [told]
    assert (told["name"], told["description"], told["metadata"]) == ("result.json", "what it is", {"rows": 2})
    await artifacts.delete("result.json")
    assert (await artifacts.list(), await storage.names("content")) == ([], [])


async def test_one_of_several_parallel_writers_wins_and_nothing_of_the_others_remains(storage: Storage) -> None:
    artifacts = Artifacts(storage)
    await asyncio.gather(*(artifacts.save("one", str(number) * 1000) for number in range(10)))
    assert len(set(await artifacts.load("one"))) == 1
    assert len(await storage.names("content")) == 1


async def test_a_replaced_artifact_keeps_nothing_of_the_old_one(storage: Storage) -> None:
    artifacts = Artifacts(storage)
    await artifacts.save("one", b"bytes")
    await artifacts.save("one", {"now": "json"})
    assert await artifacts.load("one") == {"now": "json"}
    assert len(await storage.names("content")) == 1


@pytest.mark.parametrize("data", [object(), {1, 2}, {"a": object()}])
async def test_a_value_that_cannot_be_stored_is_refused(storage: Storage, data: object) -> None:
    with pytest.raises(InvalidArgumentError, match="cannot be saved"):
        await Artifacts(storage).save("one", data)
    assert await storage.names("content") == []


async def test_a_skill_is_stored_with_its_earlier_versions(storage: Storage) -> None:
    skills = Skills(storage)
    await skills.add("double", DOUBLE, "Two times a number")
    second = await skills.add("double", DOUBLE.replace("2", "3 - n"), "Two times a number")
    assert (second["version"], second["origin"], second["uses"]) == (2, "host", 0)
    assert await skills.source("double") == DOUBLE.replace("2", "3 - n")
    (told,) = await Skills(storage).search("times of numbers", 5)
    assert (told["name"], told["uses"], "source" in told) == ("double", 1, False)
    assert told["parameters"] == [{"name": "n", "type": None, "required": True, "default": None}]
    assert [await skills.remove("double") for _ in range(2)] == [True, False]
    assert await skills.get("double") is None


async def test_an_index_notices_skills_that_others_write(storage: Storage) -> None:
    one, other = Skills(storage), Skills(storage)
    assert await one.search("double", 5) == []
    await other.add("double", DOUBLE)
    assert [told["name"] for told in await one.search("double", 5)] == ["double"]
    await other.remove("double")
    assert await one.search("double", 5) == []


async def test_a_skill_may_be_named_in_camel_case(storage: Storage) -> None:
    skills = Skills(storage)
    assert (await skills.add("FetchJSON", DOUBLE))["name"] == "FetchJSON"
    assert [told["name"] for told in await skills.list()] == ["FetchJSON"]


@pytest.mark.parametrize(
    "source",
    [
        'def run(url):\n    """Fetch and parse JSON from a URL."""\n',
        '"""Fetch and parse JSON from a URL."""\n\nasync def run(url: str, headers: dict = None) -> dict:\n    ...\n',
    ],
)
async def test_a_skill_described_by_its_docstring_alone_is_found(storage: Storage, source: str) -> None:
    await Skills(storage).add("one", source)
    (told,) = await Skills(storage).search("parse JSON", 5)
    assert told["description"] == "Fetch and parse JSON from a URL."


async def test_the_rest_of_a_docstring_is_searched_too(storage: Storage) -> None:
    await Skills(storage).add("one", '"""Measures rainfall."""\ndef run():\n    """From a gauge."""\n', "Weather")
    for query in ("weather", "rainfall", "gauge"):
        assert [told["description"] for told in await Skills(storage).search(query, 5)] == ["Weather"]


async def test_a_library_reads_and_writes_skills_synchronously(storage: AnyStorage) -> None:
    library = storage.get_skill_library()
    assert (len(library), library.list(), [*library], library.get("double")) == (0, [], [], None)
    await Skills(storage).add("double", DOUBLE, "Two times a number")
    library.add("half", "def run(n: int = 2):\n    return n / 2\n", "The half of a number")
    library.refresh()
    assert (len(library), [skill.name for skill in library], "half" in library) == (2, ["double", "half"], True)
    assert library.list() == [*library]
    (best,) = library.search("half of", limit=1)
    assert (best.name, best.description, best.parameters[0]["type"]) == ("half", "The half of a number", "int")
    found = await Skills(storage).get("half")
    assert found is not None
    assert found["source"] == best.source
    assert [library.remove("half") for _ in range(2)] == [True, False]
    assert len(library) == 1


async def test_a_library_copies_the_skills_of_another(storage: AnyStorage, tmp_path: Path) -> None:
    files = FileStorage(tmp_path / "others")
    await Skills(files).add("double", DOUBLE, "Two times a number")
    library = storage.get_skill_library()
    for skill in files.get_skill_library():
        library.add(skill)
    assert [(skill.name, skill.source, skill.description) for skill in library] == [("double", DOUBLE, "Two times a number")]


@pytest.mark.parametrize(
    ("name", "source", "said"),
    [
        ("list", DOUBLE, "none of create"),
        ("import", DOUBLE, "a Python name"),
        ("_double", DOUBLE, "begins with a letter"),
        ("__init__", DOUBLE, "a Python name"),
        ("../x", DOUBLE, "a Python name"),
        ("x", "def (", "valid Python: invalid syntax"),
        ("x", "x = 1", "define 'def run"),
        ("x", "def run(): pass\0", "null"),
        ("x", "x" * 70_000, "at most 65536"),
        ("x", "-" * 60_000 + "1", "nested that deeply|valid Python"),
        ("x", "(" * 60_000, "nested that deeply|valid Python"),
        ("x", 5, "must be text"),
    ],
)
async def test_source_that_is_not_a_skill_is_refused(storage: Storage, name: str, source: str, said: str) -> None:
    with pytest.raises(InvalidArgumentError, match=said):
        await Skills(storage).add(name, source)
    assert await storage.names("skills") == []


async def test_no_code_of_a_skill_runs_on_the_host(storage: Storage, tmp_path: Path) -> None:
    mark = f"open({str(tmp_path / 'ran')!r}, 'w').close()"
    await Skills(storage).add("evil", f"{mark}\ndef run(a: {mark} = {mark}):\n    '''>>> {mark}'''\n{mark}")
    await Skills(storage).list()
    assert not (tmp_path / "ran").exists()


async def test_a_session_does_not_replace_skills_of_its_owner(storage: Storage) -> None:
    skills = Skills(storage)
    await skills.add("double", DOUBLE)
    for act in (skills.add("double", DOUBLE, origin="session"), skills.remove("double", origin="session")):
        with pytest.raises(InvalidArgumentError, match="belongs to the session's owner"):
            await act


async def test_a_session_does_not_remove_what_its_owner_is_just_giving() -> None:
    storage = MemoryStorage()
    skills = Skills(storage)
    await skills.add("double", DOUBLE, origin="session")
    async with storage.locked("skills"):  # as `add` holds it
        removing = asyncio.create_task(skills.remove("double", origin="session"))
        for _ in range(10):
            await asyncio.sleep(0)
        await storage.write("skills", "double", DOUBLE.encode())
    with pytest.raises(InvalidArgumentError, match="belongs to the session's owner"):
        await removing
    assert await skills.get("double") is not None


async def test_each_requirement_is_stored_once(storage: Storage) -> None:
    deps = Deps(storage)
    for package in ("pandas", "Humanize>=4", "pandas>=2"):
        await deps.add(package)
    assert await deps.list() == ["Humanize>=4", "pandas>=2"]
    assert [await deps.remove("humanize") for _ in range(2)] == [True, False]


@pytest.mark.parametrize("package", ["", "-r file", "a b", "--index-url=http://x", "../wheel.whl"])
async def test_an_invalid_requirement_is_refused(storage: Storage, package: str) -> None:
    with pytest.raises(InvalidArgumentError, match="a dependency must be a requirement"):
        await Deps(storage).add(package)


async def test_locked_requirements_stay(storage: Storage) -> None:
    with pytest.raises(ACASessionsError, match="locked"):
        await Deps(storage, locked=True).add("pandas")


async def test_files_are_readable_and_plain_python_files_are_skills(tmp_path: Path) -> None:
    (tmp_path / "skills").mkdir()
    (tmp_path / "skills" / "own.py").write_text('def run():\n    """Mine.\n\n    More.\n    """\n')
    (tmp_path / "skills" / "broken.py").write_text("def (")
    (tmp_path / "skills" / "spoilt.py").write_text("# aca-sessions: {\n" + DOUBLE)
    skills = Skills(FileStorage(tmp_path))
    assert [(told["name"], told["description"]) for told in await skills.list()] == [("own", "Mine.")]
    await skills.add("double", DOUBLE)
    assert (tmp_path / "skills" / "double.py").read_text().endswith(DOUBLE)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
async def test_a_folder_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="cannot be written"):
        await FileStorage(tmp_path).write("skills", "x", b"")


async def test_a_file_in_the_place_of_the_folder_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        await FileStorage(tmp_path / "file").write("skills", "x", b"")


async def test_a_given_redis_client_is_used_and_left_open(redis_server: RedisServer, tmp_path: Path) -> None:
    client = AsyncRedis.from_url(redis_server.url)
    storage = RedisStorage(redis=client, prefix=tmp_path.name)
    await Skills(storage).add("double", DOUBLE)
    assert [skill.name for skill in storage.get_skill_library()] == ["double"]
    await storage.close()
    assert await client.hlen(f"{tmp_path.name}:skills") == 1
    await client.aclose()


async def test_close_ends_only_the_connections_that_it_opened(redis_server: RedisServer, tmp_path: Path) -> None:
    name = tmp_path.name.replace("_", "")
    with Redis.from_url(redis_server.url) as server:

        def connections() -> int:
            return sum(client["name"] == name for client in server.client_list())

        opened = RedisStorage(f"{redis_server.url}?client_name={name}", prefix=name)
        await opened.write("skills", "double", DOUBLE.encode())
        assert len(opened.get_skill_library()) == 1
        assert connections() == 1
        await opened.close()
        async with asyncio.timeout(120):
            while connections():  # the server notices only later
                await asyncio.sleep(0.01)
        with Redis.from_url(redis_server.url, client_name=name) as client:
            given = RedisStorage(redis=client, prefix=name)
            assert len(given.get_skill_library()) == 1
            await given.close()
            assert connections() == 1


async def test_a_redis_storage_takes_a_url_or_a_client_that_can_carry_bytes(redis_server: RedisServer) -> None:
    with Redis.from_url(redis_server.url, decode_responses=True) as client:
        with pytest.raises(ConfigurationError, match="without decode_responses=True"):
            RedisStorage(redis=client)
        with pytest.raises(ConfigurationError, match="either a URL"):
            RedisStorage(redis_server.url, redis=client)
    with pytest.raises(ConfigurationError, match="either a URL"):
        RedisStorage()


async def test_a_redis_lock_acquired_for_a_cancelled_caller_is_released(redis_server: RedisServer, tmp_path: Path) -> None:
    lock = f"{tmp_path.name}:deps:lock"
    with Redis.from_url(redis_server.url) as client:
        storage = RedisStorage(redis=client, prefix=tmp_path.name)

        async def hold() -> None:
            async with storage.locked("deps"):
                await asyncio.Event().wait()

        holder = asyncio.create_task(hold())
        waiting = asyncio.create_task(hold())
        async with asyncio.timeout(120):
            while not client.persist(lock):  # it does not expire any more, so it has to be released
                await asyncio.sleep(0.01)
        for task in (waiting, holder):
            task.cancel()
        await asyncio.gather(holder, waiting, return_exceptions=True)
        client.persist(lock)  # one that is left does not expire either
        async with storage.locked("deps"):
            pass
