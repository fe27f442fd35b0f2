"""Test downloads: a host file is replaced whole or not at all, and all parts are of one version."""

import asyncio
import os
import stat
from collections.abc import Awaitable
from pathlib import Path
from typing import TypeVar

import httpx
import pytest

from aca_sessions import Session
from aca_sessions.errors import InvalidArgumentError, NotFoundError, ServiceError
from aca_sessions.integrations.model_session import write_below

from ..ports import KEY, QUERY, TARGET, cell, serving

Content = TypeVar("Content")
LARGE = 20 << 20  # more than two parts

# Files that each repeat one byte, every one of them whole before it replaces the previous one. Some are shorter.
REWRITING = """
import itertools, os
for number in itertools.count(1):
    if os.path.exists("stop"):
        break
    with open("new", "wb") as file:
        file.write(bytes([number % 250]) * (10_000_000 if number % 2 else 9_000_000))
    os.replace("new", "data")
    print(number, end=" ", flush=True)
"""


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "important.txt"
    path.write_text("years of work")
    path.chmod(0o640)
    return path


def only(path: Path) -> bool:
    return os.listdir(path.parent) == [path.name]


async def test_a_download_that_fails_leaves_the_hosts_file(session: Session, target: Path) -> None:
    with pytest.raises(NotFoundError):
        await session.save_file("missing.txt", target)
    assert (target.read_text(), only(target)) == ("years of work", True)


async def test_a_download_that_is_cancelled_leaves_the_hosts_file(session: Session, target: Path) -> None:
    await session.run(f"open('data', 'wb').truncate({LARGE})")
    saving = asyncio.create_task(session.save_file("data", target))
    while only(target) and not saving.done():
        await asyncio.sleep(0)
    saving.cancel()
    await asyncio.wait({saving})
    assert saving.cancelled()
    assert (target.read_text(), only(target)) == ("years of work", True)


async def test_a_replaced_file_keeps_its_permissions(session: Session, target: Path) -> None:
    await session.upload_file("data", b"new")
    assert await session.save_file("data", target) == 3
    assert (target.read_bytes(), stat.S_IMODE(target.stat().st_mode), only(target)) == (b"new", 0o640, True)


async def test_a_new_file_has_default_permissions(session: Session, tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    await session.upload_file("data", b"new")
    await session.save_file("data", tmp_path / "saved")
    assert stat.S_IMODE((tmp_path / "saved").stat().st_mode) == stat.S_IMODE((tmp_path / "other").stat().st_mode)


async def test_a_link_is_kept_and_its_target_is_replaced(session: Session, target: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    link = tmp_path_factory.mktemp("links") / "link"
    link.symlink_to(target)
    await session.upload_file("data", b"new")
    await session.save_file("data", link)
    assert (link.is_symlink(), target.read_bytes(), only(link)) == (True, b"new", True)


async def test_a_device_is_written_to_and_a_folder_is_refused(session: Session, tmp_path: Path) -> None:
    await session.upload_file("data", b"new")
    assert await session.save_file("data", Path("/dev/null")) == 3
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    with pytest.raises(IsADirectoryError):
        await session.save_file("data", tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        await session.save_file("data", tmp_path / "nowhere" / "data")


def test_a_plugins_download_replaces_a_whole_file(target: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="cannot be written"):
        write_below(target.parent, f"{target.name}/below", b"x")
    write_below(target.parent, target.name, b"new")
    assert (target.read_bytes(), stat.S_IMODE(target.stat().st_mode), only(target)) == (b"new", 0o640, True)


async def whole_or_refused(download: Awaitable[Content]) -> Content | None:
    """Return what a download returns, or None if it reports that the file kept changing."""
    try:
        return await download
    except ServiceError as error:
        if error.code != "FileChanged":
            raise
        return None


@pytest.mark.long
async def test_no_download_mixes_two_versions(session: Session, tmp_path: Path) -> None:
    """Check that a download returns one of the versions, or reports that the file kept changing."""
    saved = tmp_path / "saved"
    saved.write_bytes(b"earlier")
    async for event in session.stream(REWRITING):
        if event.kind != "stdout":
            continue
        for _ in range(3):
            content = await whole_or_refused(session.download_file("data"))
            size = await whole_or_refused(session.save_file("data", saved))
            assert content is None or len(set(content)) == 1
            assert saved.read_bytes() == b"earlier" if size is None else len(set(saved.read_bytes())) == 1
            saved.write_bytes(b"earlier")
        await session.upload_file("stop", b"")
    size = await session.save_file("data", saved)
    assert (len(set(saved.read_bytes())), saved.stat().st_size, only(saved)) == (1, size, True)


async def test_a_part_belongs_to_the_requested_version(http: httpx.AsyncClient) -> None:
    await http.post("/files", files={"file": ("a.txt", b"hello")})
    while (first := await http.get("/files/a.txt/content", headers={"range": "bytes=0-1"})).headers["etag"].startswith("W/"):
        pass  # written within this tick of the kernel's clock
    tag = first.headers["etag"]

    async def part(name: str, value: str) -> tuple[int, bytes]:
        answer = await http.get("/files/a.txt/content", headers={"range": "bytes=2-3", name: value})
        return answer.status_code, answer.content if answer.is_success else answer.json()["error"]["code"]

    assert await part("if-match", tag) == await part("if-range", tag) == await part("if-match", f'"other", {tag}') == (206, b"ll")
    assert (await http.get("/files/a.txt/content")).headers["etag"] == tag
    await http.post("/files", files={"file": ("a.txt", b"other")})
    assert await part("if-match", tag) == (412, "FileChanged")
    assert await part("if-range", tag) == (200, b"other")
    assert await part("if-match", "*") == (206, b"he")


async def test_a_weak_tag_matches_no_part(http: httpx.AsyncClient) -> None:
    """A change within the same tick of the kernel's clock leaves the same times, so no part may be joined with another."""
    await http.post("/files", files={"file": ("a.txt", b"hello")})
    written = (await http.post("/executions", json={"code": "open('a.txt', 'w').write('other')"})).json()
    assert written["status"] == "Succeeded"
    answer = await http.get("/files/a.txt/content", headers={"if-match": 'W/"1"'})
    assert answer.status_code == 412


@pytest.mark.long
async def test_no_part_of_a_file_that_shrank_is_missed(session: Session) -> None:
    """Check that the file is as long as its first part reported, or that it is read again."""
    shrinking = f"""
import os
while not os.path.exists("stop"):
    with open("data", "r+b" if os.path.exists("data") else "wb") as file:
        file.truncate({LARGE})
        file.truncate({LARGE // 2})
"""
    await session.run(f"open('data', 'wb').truncate({LARGE})")
    execution = await session.start(shrinking)
    for _ in range(5):
        content = await whole_or_refused(session.download_file("data"))
        assert content is None or len(content) in (LARGE, LARGE // 2)
    await session.upload_file("stop", b"")
    await execution.wait()
    assert len(await session.download_file("data")) == LARGE // 2


@pytest.mark.parametrize(("wanted", "kept"), [({}, True), ({"range": f"bytes=1-{64 << 20}"}, False), ({"if-match": "*"}, False)])
async def test_a_large_file_that_changes_while_it_is_sent_is_not_taken_for_one_version(wanted: dict[str, str], kept: bool) -> None:
    """Parts of a requested version end early. Without a requested version everything is sent, with a tag that matches no part."""
    size = 64 << 20
    async with serving() as (_, port):
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=KEY, params=QUERY, timeout=120) as client:
            await client.post("/executions", json=cell(f"open('z', 'wb').truncate({size}); import time; time.sleep(0.1)"))
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 12)
            lines = "".join(f"{name}: {value}\r\n" for name, value in wanted.items())
            writer.write(f"GET /files/z/content{TARGET}{lines}Connection: close\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            assert (b'etag: w/"' in head.lower()) == kept
            await client.post("/executions", json=cell("open('z', 'r+b').write(b'new')"))
        received = 0
        while data := await reader.read(1 << 20):
            received += len(data)
        assert (received == size) == kept
        writer.close()


async def test_a_large_file_that_is_truncated_while_it_is_sent_is_not_taken_for_whole() -> None:
    async with (
        serving() as (_, port),
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=KEY, params=QUERY, timeout=120) as client,
    ):
        await client.post("/executions", json=cell(f"open('z', 'wb').truncate({64 << 20})"))
        async with client.stream("GET", "/files/z/content") as answer:
            await client.post("/executions", json=cell("open('z', 'wb').truncate(5)"))
            with pytest.raises(httpx.RemoteProtocolError):
                await answer.aread()
