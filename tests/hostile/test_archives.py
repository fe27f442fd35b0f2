"""Attack with archives that are small and claim to be large: wheels, and the tar of an image."""

import gzip
import io
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from aca_sessions import PackageSource, Policy, open_pool
from aca_sessions.sandbox.images.unpacking import UnpackingError, unpack
from aca_sessions.sandbox.policy import MB

from ..conftest import mostly_long
from ..wheels import index_of, make_wheel

pytestmark = pytest.mark.slow


def deflated(folder: Path, name: str, files: dict[str, int]) -> None:
    """Make a wheel whose files are that many zeros."""
    about = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as wheel:
        wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")
        for place, size in files.items():
            with wheel.open(place, "w", force_zip64=True) as file:
                for _ in range(size // MB):
                    file.write(bytes(MB))


BOMBS = {
    "files that are large together": {f"bomb/{number}": 6 * MB for number in range(8)},
    "a file that is larger than the cache": {"bomb/0": 60 * MB},
    "many files": dict.fromkeys(map("bomb/{}".format, range(500_001)), 0),
    "metadata": {"bomb-1.0.dist-info/entry_points.txt": 80 * MB},
}


@pytest.mark.parametrize("bomb", mostly_long(BOMBS, "a file that is larger than the cache"))
@pytest.mark.long
async def test_a_small_wheel_does_not_fill_the_disk(bomb: str, tmp_path: Path) -> None:
    """A wheel that holds more than the cache may, too many files, or too much metadata, is refused before it is unpacked."""
    wheels, cache = tmp_path / "wheels", tmp_path / "cache"
    make_wheel(wheels, "alpha")
    deflated(wheels, "bomb", BOMBS[bomb])
    size = 40 * MB if bomb != "metadata" else 400 * MB
    source = PackageSource(wheels=str(wheels), cache=str(cache), cache_size=size)
    async with open_pool(policy=Policy(preload=(), spares=0, packages=source)) as pool, pool.session() as session:
        refused = await session.install("bomb")
        assert refused.error.name == ("UnsafeWheelError" if bomb == "metadata" else "PackageTooLargeError")
        assert sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()) < MB
        assert (await session.install("alpha")).success


LARGE = "x" * (4 * MB)


def many_versions(wheels: Path) -> None:
    """Each version but the oldest has a missing dependency, so each is fetched to find that out."""
    make_wheel(wheels, "bomb")
    for number in range(2, 16):
        make_wheel(wheels, "bomb", f"{number}.0", requires=["absent"], files={"bomb.py": LARGE})


def large_metadata(wheels: Path) -> None:
    """Make wheels that are each within the limit for one wheel."""
    make_wheel(wheels, "bomb", requires=["bomb-1", "bomb-2"])
    for number in (1, 2):
        make_wheel(wheels, f"bomb-{number}", requires=["alpha\nSummary: " + "x" * (40 * MB)])


def many_packages(wheels: Path) -> None:
    """Make wheels without contents."""
    make_wheel(wheels, "bomb", requires=[f"bomb-{number}" for number in range(1000)])
    for number in range(1000):
        make_wheel(wheels, f"bomb-{number}")


@pytest.mark.parametrize(
    ("make", "error"),
    mostly_long(
        [(many_versions, "PackageTooLargeError"), (large_metadata, "UnsafeWheelError"), (many_packages, "PackageTooLargeError")],
        (many_versions, "PackageTooLargeError"),
    ),
)
@pytest.mark.long
async def test_wheels_that_are_too_large_together_are_not_installed(make: Callable[[Path], None], error: str, tmp_path: Path) -> None:
    """Of the wheels that one request leads to, no more is fetched than the cache may hold, and at most 1,000 with 64 MB of metadata."""
    wheels, cache = tmp_path / "wheels", tmp_path / "cache"
    make_wheel(wheels, "alpha")
    make(wheels)
    with index_of(wheels) as address:
        source = PackageSource(index_url=address, cache=str(cache), cache_size=40 * MB if make is many_versions else 400 * MB)
        async with open_pool(policy=Policy(preload=(), spares=0, packages=source)) as pool, pool.session() as session:
            refused = await session.install("bomb")
            assert (refused.error and refused.error.name) == error
            assert sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()) < MB
            assert (await session.install("alpha")).success


def member(kind: bytes, size: int, name: str = "x") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


def zeros(size: int) -> Iterable[bytes]:
    return (bytes(MB) for _ in range(size // MB))


def holes(blocks: int) -> Iterable[bytes]:
    """Return a member with holes, whose map never ends."""
    entry = b"%011o\0" % 512 + b"%011o\0" % 1
    first = bytearray(member(tarfile.GNUTYPE_SPARSE, 0))
    first[386 : 386 + 4 * 24], first[482] = entry * 4, 1
    first[148:156] = b"%06o\0 " % sum(first[:148] + b" " * 8 + first[156:512])
    yield bytes(first)
    for _ in range(blocks // 2048):
        yield (entry * 21 + b"\1" + bytes(7)) * 2048


def listed_holes(size: int) -> Iterable[bytes]:
    """The same in the newer format, in which the map is the beginning of the content."""
    fields = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "x", "GNU.sparse.realsize": "1"}
    yield pax(fields, size)
    yield b"99999999\n"
    for _ in range(size // MB):
        yield b"1\n" * (MB // 2)


def pax(fields: dict[str, str], size: int) -> bytes:
    info = tarfile.TarInfo("x")
    info.size, info.pax_headers = size, fields
    return info.tobuf(tarfile.PAX_FORMAT)


TARS = {
    "an extended header": lambda: [member(tarfile.XHDTYPE, 200 * MB), *zeros(200 * MB)],
    "a header for all": lambda: [member(tarfile.XGLTYPE, 200 * MB), *zeros(200 * MB)],
    "a long name": lambda: [member(tarfile.GNUTYPE_LONGNAME, 200 * MB), *zeros(200 * MB)],
    "a long link": lambda: [member(tarfile.GNUTYPE_LONGLINK, 200 * MB), *zeros(200 * MB)],
    "many long names for one member": lambda: (member(tarfile.GNUTYPE_LONGNAME, 400) + bytes(512) for _ in range(100_000)),
    "a map of holes": lambda: holes(200_000),
    "a listed map of holes": lambda: listed_holes(100 * MB),
    "a file larger than the disk": lambda: [member(tarfile.REGTYPE, 1 << 42), *zeros(4 * MB)],
    "many files": lambda: (member(tarfile.REGTYPE, 0, f"f{number}") for number in range(3000)),
    "folders in folders": lambda: (member(tarfile.REGTYPE, 0, f"{number}{'/d' * 40}/f") for number in range(60)),
}


@pytest.mark.parametrize("tar", mostly_long(TARS, "a long name", "many files", "a file larger than the disk"))
def test_a_small_tar_takes_neither_memory_nor_disk(tar: str, tmp_path: Path) -> None:
    """The tar of an image whose headers, files or number of files are too large is refused before they are read or written."""
    archive = io.BytesIO()
    with gzip.GzipFile(fileobj=archive, mode="wb", compresslevel=1) as packed:
        for data in TARS[tar]():
            packed.write(data)
    archive.seek(0)
    tracemalloc.start()
    try:
        with pytest.raises(UnpackingError, match=r"larger than|more than|recursion"):
            unpack(archive, str(tmp_path), most_entries=2000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 30 * MB
    assert sum(path.lstat().st_size for path in tmp_path.rglob("*") if path.is_file()) < MB
