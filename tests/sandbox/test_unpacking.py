"""Test what an archive may leave in the folder that it is unpacked into."""

import io
import os
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from aca_sessions.sandbox.images.unpacking import UnpackingError, unpack

SECRET = "the host's own"


def member(name: str, kind: bytes = tarfile.REGTYPE, *, link: str = "", mode: int = 0o644, size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode, info.size, info.uid, info.mtime = kind, link, mode, size, 0x7000_0001, 1_000_000_000
    return info


def archive(*members: tarfile.TarInfo) -> io.BytesIO:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info in members:
            tar.addfile(info, io.BytesIO(b"x" * info.size))
    buffer.seek(0)
    return buffer


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_text(SECRET)
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


FOLDER, LINK, HARD_LINK = tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
ESCAPES: dict[str, Callable[[Path], list[tarfile.TarInfo]]] = {
    "a name upwards": lambda _: [member("../secret", size=1)],
    "a name upwards inside": lambda _: [member("usr/../../secret", size=1)],
    "a file through a link": lambda root: [member("out", LINK, link=str(root.parent)), member("out/secret", size=1)],
    "a file through a relative link": lambda _: [member("out", LINK, link=".."), member("out/secret", size=1)],
    "a folder through a link": lambda root: [member("out", LINK, link=str(root.parent)), member("out/new/file", size=1)],
    "a folder in the place of a link": lambda root: [
        member("out", LINK, link=str(root.parent)),
        member("out", FOLDER),
        member("out/secret"),
    ],
    "a hard link upwards": lambda _: [member("name", HARD_LINK, link="../secret")],
    "a hard link through a link": lambda root: [member("out", LINK, link=str(root.parent)), member("name", HARD_LINK, link="out/secret")],
    "a hard link to the host's file": lambda root: [member("name", HARD_LINK, link=str(root.parent / "secret"))],
    "a hard link to nothing": lambda _: [member("name", HARD_LINK, link="nothing")],
    "a file in the place of a folder": lambda _: [member("usr", FOLDER), member("usr", size=1)],
    "a link in the place of a folder": lambda _: [member("usr", FOLDER), member("usr", LINK, link="/")],
    "layers": lambda _: [member("manifest.json", size=1)],
}


@pytest.mark.parametrize("escape", ESCAPES)
def test_an_archive_that_leads_out_is_refused(root: Path, escape: str) -> None:
    with pytest.raises(UnpackingError):
        unpack(archive(*ESCAPES[escape](root)), str(root))
    assert (root.parent / "secret").read_text() == SECRET
    assert sorted(path.name for path in root.parent.iterdir()) == ["root", "secret"]
    assert os.stat(root.parent / "secret").st_nlink == 1


def test_a_hard_link_to_a_link_is_a_second_name_of_the_link(root: Path) -> None:
    unpack(archive(member("out", LINK, link=str(root.parent / "secret")), member("name", HARD_LINK, link="out")), str(root))
    assert (root / "name").is_symlink()
    assert os.stat(root.parent / "secret").st_nlink == 1


def test_a_file_replaces_an_earlier_link_and_is_not_written_through_it(root: Path) -> None:
    unpack(archive(member("name", LINK, link=str(root.parent / "secret")), member("name", size=3)), str(root))
    assert (root / "name").read_bytes() == b"xxx"
    assert (root.parent / "secret").read_text() == SECRET


def test_devices_pipes_and_special_rights_are_left_out(root: Path) -> None:
    kinds = [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.CONTTYPE]
    unpack(archive(*(member(f"dev/{kind!r}", kind) for kind in kinds[:3]), member("usr/bin/su", mode=0o6755, size=1)), str(root))
    assert [path for path in root.rglob("*") if not path.is_dir() and not path.is_file()] == []
    assert stat.S_IMODE((root / "usr/bin/su").stat().st_mode) == 0o755


def test_every_file_belongs_to_this_user_and_keeps_its_time(root: Path) -> None:
    unpack(
        archive(member("./usr", FOLDER, mode=0o555), member("/usr/module.py", mode=0o000, size=1), member("bin", LINK, link="usr/bin")),
        str(root),
    )
    assert {path.lstat().st_uid for path in root.rglob("*")} == {os.geteuid()}
    assert (root / "usr/module.py").stat().st_mtime == 1_000_000_000
    assert os.readlink(root / "bin") == "usr/bin"


def test_an_absolute_link_is_unchanged(root: Path) -> None:
    unpack(archive(member("etc/python", LINK, link="/usr/bin/python3.9")), str(root))
    assert os.readlink(root / "etc/python") == "/usr/bin/python3.9"


@pytest.mark.parametrize("cut", [1, 511, 600])
def test_an_incomplete_tar_is_refused(root: Path, cut: int) -> None:
    whole = archive(member("a", size=2000)).getvalue()
    with pytest.raises(UnpackingError, match="tar"):
        unpack(io.BytesIO(whole[:cut]), str(root))


def test_a_compressed_tar_is_read_as_well(root: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        tar.addfile(member("a", size=2), io.BytesIO(b"xx"))
    buffer.seek(0)
    unpack(buffer, str(root))
    assert (root / "a").read_bytes() == b"xx"
