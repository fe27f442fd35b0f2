"""Test reading and changing files anywhere in a session, at the embedded server and at an endpoint without extensions."""

import asyncio
import contextlib
import gc
from typing import Any

import pytest

from aca_sessions import Session, open_pool
from aca_sessions.client.filesystem import Filesystem
from aca_sessions.errors import InvalidArgumentError, PathError, ServiceError

from ..conftest import mostly_long


@pytest.fixture
def session(any_session: Session) -> Session:
    return any_session


@pytest.fixture
def files(session: Session) -> Filesystem:
    return session.filesystem


PATHS = ["a.txt", "deep/er/b.txt", "/tmp/c.txt", "sp ace/ü'\"\\\n.txt"]


@pytest.mark.parametrize("path", mostly_long(PATHS, PATHS[-1]), ids=ascii)
async def test_a_file_is_written_and_read_anywhere(files: Filesystem, path: str) -> None:
    for data in (b"", b"one\r\n", bytes(range(256)) * 8192):  # 2 MB
        status = await files.write(path, data)
        assert (status.size, status.kind, status.mode) == (len(data), "file", 0o644)
        assert await files.read(path) == data
    assert [one.name for one in await files.list_folder() if one.name.startswith(".")] == []


async def test_a_write_keeps_permissions_and_follows_links(files: Filesystem, session: Session) -> None:
    await files.write("run.sh", "exit 3", mode=0o750)
    await session.run("import os; os.symlink('run.sh', 'link')")
    await files.write("link", "exit 4")
    assert (await files.stat("run.sh")).mode == 0o750
    assert (await files.stat("link", follow_links=False)).target == "run.sh"
    assert (await session.execute_command("./link")).exit_code in (4, 126)  # some systems run no program without a first line


MISTAKES: list[tuple[str, type[OSError]]] = [
    ("read none", FileNotFoundError),
    ("read folder", IsADirectoryError),
    ("read file/below", NotADirectoryError),
    ("read secret", PermissionError),
    ("read pipe", OSError),
    ("read loop", OSError),
    ("write folder", IsADirectoryError),
    ("write file/below", NotADirectoryError),
    ("write secret", PermissionError),
    ("write pipe", OSError),
    ("write /new", OSError),
    ("list_folder file", NotADirectoryError),
    ("list_folder none", FileNotFoundError),
    ("stat none", FileNotFoundError),
    ("make_folder file", FileExistsError),
    ("make_folder file/below", NotADirectoryError),
    ("remove none", FileNotFoundError),
    ("remove folder", OSError),
    ("move none", FileNotFoundError),
    ("edit none", FileNotFoundError),
    ("edit folder", IsADirectoryError),
    ("glob none", FileNotFoundError),
    ("grep none", FileNotFoundError),
]
PREPARED = """
import os
open('file', 'w').close(); os.makedirs('folder/inner'); os.mkfifo('pipe'); os.symlink('loop', 'loop')
open('secret', 'w').close(); os.chmod('secret', 0)
"""


@pytest.mark.preloaded
async def test_a_mistake_raises_the_error_of_python_and_this_package(files: Filesystem, session: Session) -> None:
    await session.run(PREPARED)
    more: dict[str, list[Any]] = {"write": [b""], "move": ["target"], "edit": ["a", "b"], "glob": [], "grep": []}
    for mistake, kind in MISTAKES:
        name, path = mistake.split()
        arguments = ["*", path] if name in ("glob", "grep") else [path, *more.get(name, [])]
        with pytest.raises(PathError) as raised:
            await getattr(files, name)(*arguments)
        assert isinstance(raised.value, kind), (mistake, raised.value)
        assert repr(path) in str(raised.value)
    for path in ("a\0b", 7):
        with pytest.raises(InvalidArgumentError):
            await files.read(path)  # type: ignore[arg-type]


async def test_a_text_is_replaced_only_where_that_is_clear(files: Filesystem) -> None:
    await files.write("a.py", "x = 1\r\ny = 1\r\n")
    assert await files.edit("a.py", "x = 1", "x = 2") == 1
    assert await files.edit("a.py", "= ", "== ") == 2
    assert await files.edit("a.py", "z", "") == 0
    assert await files.read("a.py") == b"x = 2\r\ny = 1\r\n"
    assert await files.edit("a.py", "= ", "== ", replace_all=True) == 2
    assert await files.read("a.py") == b"x == 2\r\ny == 1\r\n"
    with pytest.raises(InvalidArgumentError, match="old must be a text to look for"):
        await files.edit("a.py", "", "x")


async def test_folders_are_listed_moved_and_deleted(files: Filesystem, session: Session) -> None:
    await session.run(PREPARED)
    assert [(one.name, one.kind) for one in await files.list_folder()] == [
        ("file", "file"),
        ("folder", "folder"),
        ("loop", "link"),
        ("pipe", "other"),
        ("secret", "file"),
    ]
    await files.move("folder", "/tmp/moved/folder")  # another file system
    assert [one.name for one in await files.list_folder("/tmp/moved/folder")] == ["inner"]
    await files.remove("/tmp/moved", recursive=True)
    await files.remove("loop")
    assert not await files.exists("/tmp/moved")
    assert not await files.exists("file/below")
    assert await files.resolve("x/../folder") == (await files.resolve("folder"))
    await session.run("os.makedirs('one/two'); os.symlink('/mnt/data/one/two', 'link')")
    assert await files.resolve("link/..") == (await files.resolve("one"))
    assert (await files.stat("link/../two")).kind == "folder"


async def test_files_are_found_by_pattern_and_by_text(files: Filesystem) -> None:
    for path in ("src/a.py", "src/deep/b.py", "src/c.txt"):
        await files.write(path, f"# {path}\nimport os\n")
    await files.write("src/binary.py", b"import os\0")
    found, more = await files.glob("**/*.py", "src")
    assert ([one.path.rpartition("src/")[2] for one in found], more) == (["a.py", "binary.py", "deep/b.py"], False)
    lines, more = await files.grep("import", "src", glob="*.py")
    assert [(one.path.rpartition("src/")[2], one.line, one.text) for one in lines] == [
        ("a.py", 2, "import os"),
        ("deep/b.py", 2, "import os"),
    ]
    assert (len((await files.grep("OS$", regex=True, ignore_case=True, most=2))[0]), more) == (2, False)
    assert await files.grep(".*", "src") == ([], False)
    assert len((await files.glob("*", "src", most=1))[0]) == 1
    assert (await files.glob("*", "src", most=1))[1]
    with pytest.raises(InvalidArgumentError, match="relative to the folder"):
        await files.glob("/etc/*")


@pytest.mark.long
async def test_a_folder_with_many_files_is_listed_whole(files: Filesystem, session: Session) -> None:
    await session.run("import os; os.mkdir('many')\nfor n in range(5000): open(f'many/{n:0200}', 'w').close()")
    assert len(await files.list_folder("many")) == 5000


@pytest.mark.long
async def test_a_full_disk_keeps_the_earlier_content(session: Session, files: Filesystem) -> None:
    await files.write("/tmp/a", "kept")
    await session.run("import shutil; open('/tmp/filler', 'wb').write(bytes(shutil.disk_usage('/tmp').free - 65536))")
    with pytest.raises(PathError, match="No space left on device"):
        await files.write("/tmp/a", bytes(1 << 20))
    assert await files.read("/tmp/a") == b"kept"


FORGERIES = [
    '{"value": {"is_in": "copy"}}',
    '{"is_in": "copy"}',
    '{"value": {"data": "no base64"}}',
    '{"value": [["/x", "file", 1, 1, 1e300, ""]]}',
    '{"errno": 10000000000000}',
    '{"errno": -1, "program": true}',
    '{"exit_code": null, "more": true, "stdout": "", "stderr": ""}',
    '{"exit_code": null, "more": true, "stdout": "YQ==", "stderr": ""}',
    '{"exit_code": null, "more": false}',
    '{"exit_code": "0", "more": false}',
    '{"exit_code": null, "more": false, "stdout": 1}',
    "[" * 10_000,
]


@pytest.mark.parametrize("forgery", mostly_long(FORGERIES, *FORGERIES[:2]), ids=lambda text: text[:40])
async def test_a_forged_reply_is_an_error_or_data(forgery: str) -> None:
    async with open_pool() as pool, pool.session() as session:
        await session.run(f"import json; json.dumps = lambda *_, **__: {forgery!r}")
        for call in (
            session.filesystem.read("a"),
            session.filesystem.list_folder(""),
            session.filesystem.write("b", bytes(1 << 20)),
            session.execute_command("true", stdin=bytes(1 << 20), timeout=0.2),
        ):
            with contextlib.suppress(ServiceError, PathError):
                await call
        await session.run("import importlib; importlib.reload(json)")
        assert await left_behind(session) == []


async def left_behind(session: Session) -> list[str]:
    """Return the names of files that are not in lists of files."""
    return [name for name in (await session.run("import os; os.listdir('/mnt/data')")).value if name.startswith(".call-")]


async def test_a_cancelled_read_leaves_no_copy_behind(files: Filesystem, session: Session) -> None:
    await files.write("large", bytes(4 << 20))
    for turns in range(0, 60, 6):
        reading = asyncio.ensure_future(files.read("large"))
        for _ in range(turns):
            await asyncio.sleep(0.002)
        reading.cancel()
        await asyncio.wait([reading])
        assert await left_behind(session) == []
    assert await files.read("large") == bytes(4 << 20)


# starlette closes the file of a cancelled upload while a thread may write it, and so open another, which the garbage collection closes.
@pytest.mark.filterwarnings("ignore:Unclosed file <tempfile.SpooledTemporaryFile", "ignore:unclosed file <_io.BufferedRandom")
@pytest.mark.long
async def test_a_cancelled_write_leaves_nothing_behind_and_a_whole_file(files: Filesystem, session: Session) -> None:
    for turns in range(0, 60, 6):
        writing = asyncio.ensure_future(files.write("large", bytes(2 << 20)))
        for _ in range(turns):
            await asyncio.sleep(0.002)
        writing.cancel()
        await asyncio.wait([writing])
        assert await left_behind(session) == []
    assert (await files.write("large", bytes(2 << 20))).size == 2 << 20
    gc.collect()  # here, where the warnings are ignored
