"""Test /mnt/data from the host's side, with a guest that lays traps in it."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from aca_sessions import CodeInterpreter, Session
from aca_sessions.errors import InvalidArgumentError, NotFoundError, ServiceError
from aca_sessions.sandbox.forkserver import ForkServer
from aca_sessions.sandbox.policy import KB, Limits
from aca_sessions.sandbox.session.files import Files, UnusableNameError

from ..conftest import uncharged


@pytest.fixture
def files(fork_server: ForkServer):
    workspace = fork_server.make_workspace(Limits(disk=64 * KB, files=20))
    yield Files(workspace)
    fork_server.drop_workspace(workspace)


def content_of(files: Files, name: str, start: int = 0, length: int = 1 << 20) -> bytes:
    with contextlib.closing(files.open(name)) as reading:
        return reading.chunk(start, length)


def test_a_written_file_can_be_read(files: Files) -> None:
    written = files.write("a.txt", [b"hel", b"lo"], "", uncharged)
    assert (written.name, written.size, written.content_type) == ("a.txt", 5, "text/plain")
    assert content_of(files, "a.txt") == b"hello"
    assert [file.name for file in files.listing()] == ["a.txt"]


def test_a_part_of_a_file_is_read(files: Files) -> None:
    files.write("a.txt", [b"0123456789"], "", uncharged)
    assert content_of(files, "a.txt", 3, 4) == b"3456"
    assert content_of(files, "a.txt", 8, 4) == b"89"


def test_open_downloads_do_not_outlive_their_session(files: Files) -> None:
    files.write("a.txt", [b"0123456789"], "", uncharged)
    reading = files.open("a.txt")
    before = len(os.listdir("/proc/self/fd"))
    files.close()
    assert len(os.listdir("/proc/self/fd")) == before - 1
    with pytest.raises(FileNotFoundError):
        reading.chunk(0, 1)
    reading.close()


def test_a_full_disk_leaves_the_old_file(files: Files) -> None:
    files.write("a.txt", [b"old"], "", uncharged)
    with pytest.raises(OSError, match="No space left"):
        files.write("a.txt", [b"x" * 32 * KB, b"x" * 64 * KB], "", uncharged)
    assert content_of(files, "a.txt") == b"old"
    assert [file.name for file in files.listing()] == ["a.txt"]


def test_an_upload_that_fails_says_why_whatever_the_guest_does_to_its_file(files: Files) -> None:
    def chunks() -> Iterator[bytes]:
        with files.as_guest() as top:
            for name in os.listdir(top):
                os.unlink(name, dir_fd=top)
        yield b"x" * 128 * KB

    with pytest.raises(OSError, match="No space left"):
        files.write("a.txt", chunks(), "", uncharged)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc/passwd", "../x", "a\0b", "x" * 300, "\ud800"])
def test_a_name_must_be_one_usable_path_component(files: Files, name: str) -> None:
    with pytest.raises(UnusableNameError):
        files.write(name, [b""], "", uncharged)


@pytest.mark.parametrize("folder", ["..", "a/../..", "/../etc"])
def test_a_folder_cannot_lead_upwards(files: Files, folder: str) -> None:
    with pytest.raises(UnusableNameError):
        files.listing(folder)


TRAPS = {
    "a link to a host file": "os.symlink('/etc/passwd', 'trap')",
    "a relative link": "os.symlink('../../etc/passwd', 'trap')",
    "a link through the process table": "os.symlink('/proc/1/root/etc/passwd', 'trap')",
    "a link to a neighbour": "open('real', 'w').write('x'); os.symlink('real', 'trap')",
    "a pipe": "os.mkfifo('trap')",
    "a socket": "import socket; socket.socket(socket.AF_UNIX).bind('trap')",
    "a folder": "os.mkdir('trap')",
}


@pytest.mark.parametrize("trap", TRAPS)
async def test_the_host_does_not_read_a_trap(session: Session, trap: str) -> None:
    await session.run(f"import os; {TRAPS[trap]}")
    with pytest.raises(ServiceError):
        await session.download_file("trap")


async def test_the_host_does_not_follow_a_linked_folder(session: Session) -> None:
    await session.run("import os; os.symlink('/tmp', 'outside'); os.mkdir('real'); os.symlink('real', 'inside')")
    for folder in ("outside", "inside"):
        with pytest.raises(ServiceError):
            await session.upload_file(f"{folder}/file", b"x")


async def test_an_upload_replaces_a_link_and_not_its_target(session: Session) -> None:
    await session.run("import os; open('target', 'w').write('old'); os.symlink('target', 'name')")
    await session.upload_file("name", b"new")
    assert (await session.run("open('target').read(), os.path.islink('name')")).text == "('old', False)"


async def test_links_and_pipes_are_not_listed(session: Session) -> None:
    await session.run("import os; os.symlink('/etc', 'link'); os.mkfifo('pipe'); os.mkdir('folder'); open('file', 'w').close()")
    assert [(file.name, file.is_directory) for file in await session.list_files()] == [("file", False), ("folder", True)]


async def test_an_uploaded_file_belongs_to_the_guest(session: Session) -> None:
    await session.upload_file("a.txt", b"x")
    assert (await session.run("open('a.txt', 'a').write('y'); import os; os.stat('a.txt').st_uid")).value == 1000


async def test_files_in_folders_are_reached_by_path(session: Session) -> None:
    await session.run("import os; os.makedirs('a/b')")
    uploaded = await session.upload_file("a/b/c.txt", "text")
    assert uploaded.full_path == "/mnt/data/a/b/c.txt"
    assert await session.download_file("a/b/c.txt") == b"text"
    assert [file.name for file in await session.list_files("a/b")] == ["c.txt"]
    await session.delete_file("a/b/c.txt")
    assert await session.list_files("a/b") == []


@pytest.mark.parametrize("name", ["with space.txt", "percent%20.txt", "ünïcode-文.txt", "a+b&c=d;e#f.txt", "quote'.txt"])
async def test_unusual_names_survive(session: Session, name: str) -> None:
    await session.upload_file(name, b"content")
    assert [file.name for file in await session.list_files()] == [name]
    assert await session.download_file(name) == b"content"
    await session.delete_file(name)
    assert await session.list_files() == []


async def test_a_large_file_comes_back_whole(session: Session) -> None:
    data = bytes(range(256)) * (1 << 16) + b"tail"  # a little more than 16 MB: three parts
    await session.upload_file("large.bin", data)
    assert await session.download_file("large.bin") == data
    exact = data[: 8 << 20]
    await session.upload_file("exact.bin", exact)
    assert await session.download_file("exact.bin") == exact
    await session.upload_file("empty.bin", b"")
    assert await session.download_file("empty.bin") == b""


async def test_a_missing_file_is_not_found(interpreter: CodeInterpreter) -> None:
    with pytest.raises(NotFoundError):
        await interpreter.download_file("someone", "nothing.txt")
    with pytest.raises(NotFoundError):
        await interpreter.delete_file("someone", "nothing.txt")


@pytest.mark.parametrize(
    "odd",
    [
        "os.utime('file', (3e11, 3e11))",
        "os.utime('file', (-6e10, -6e10))",
        "os.mkdir(b'\\xff'); open(b'\\xff/inside', 'w')",
        "os.mkdir('closed'); os.chmod('closed', 0)",
        "[os.mkdir('x' * 200) or os.chdir('x' * 200) for _ in range(30)]; os.chdir('/mnt/data')",
    ],
)
async def test_special_files_do_not_hide_the_others(http: httpx.AsyncClient, odd: str) -> None:
    await http.post("/executions", json={"code": f"import os; open('file', 'w').write('x'); {odd}"})
    listed = await http.get("/files", params={"recursive": "true"})
    assert "file" in [file["name"] for file in listed.json()["value"]]


async def test_missing_folders_are_made_for_an_upload(session: Session) -> None:
    await session.upload_file("package/deep/__init__.py", "value = 7")
    assert (await session.run("import package.deep; package.deep.value")).value == 7


async def test_files_are_copied_from_disk_to_disk_in_parts(session: Session, tmp_path: Path) -> None:
    data = bytes(range(256)) * (1 << 16) + b"tail"
    (tmp_path / "local.bin").write_bytes(data)
    uploaded = await session.upload_file("remote.bin", tmp_path / "local.bin")
    assert uploaded.size == len(data)
    assert await session.save_file("remote.bin", tmp_path / "back.bin") == len(data)
    assert (tmp_path / "back.bin").read_bytes() == data


async def test_a_path_that_is_not_a_file_is_refused(session: Session, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(InvalidArgumentError):
            await session.upload_file("remote.bin", path)
