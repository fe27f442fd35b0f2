"""Test that an exported session is read as it was written, or not at all."""

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest

from aca_sessions.durable.records import ExportReader, Manifest, encode_notebook, encode_record
from aca_sessions.durable.sealed_stream import seal
from aca_sessions.errors import SaveCorruptedError, SaveTooLargeError, SnapshotError

from .streams import all_of, of

MANIFEST = Manifest(created=datetime(2026, 1, 2, tzinfo=UTC), packages=["alpha==1"], cells=3, gone=["files"], missing=["old"])
START, END = encode_record({"kind": "start", "python": "3.12"}), encode_record({"kind": "end", "saved": 1})
STATE = START + encode_record({"kind": "lost", "names": ["gen"], "why": "a generator"}) + END


async def sealed(*records: bytes) -> bytes:
    return await all_of(seal(of(b"".join(records))))


async def whole(*state: bytes) -> bytes:
    return await sealed(MANIFEST.encode(), encode_notebook(b"{}"), *state)


async def read(data: bytes, *, size: int = 70, max_bytes: int = 1 << 30) -> tuple[Manifest, bytes, bytes, ExportReader]:
    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(data), size):
            yield data[start : start + size]

    async with ExportReader(chunks(), max_bytes=max_bytes) as reader:
        manifest, notebook = await reader.read_manifest()
        return manifest, notebook, await all_of(reader.parts()), reader


async def test_an_exported_session_is_read_as_it_was_written() -> None:
    for size in (1, 70, 1 << 20):
        manifest, notebook, state, reader = await read(data := await whole(STATE), size=size)
        assert (manifest, notebook, state, reader.size, reader.is_whole) == (MANIFEST, b"{}", STATE, len(data), True)
        assert (reader.variables.python, reader.variables.saved, reader.variables.lost) == ("3.12", 1, {"gen": "a generator"})


async def test_each_changed_and_each_missing_byte_is_found() -> None:
    data = await whole(STATE)
    for place in range(len(data)):
        for changed in (data[:place], data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :], data[:place] + data[place + 1 :]):
            with pytest.raises(SaveCorruptedError, match="this is not a whole exported session"):
                await read(changed)
    for added in (b"\0", data):
        with pytest.raises(SaveCorruptedError):
            await read(data + added)


def manifest(**fields: object) -> bytes:
    return encode_record({**json.loads(MANIFEST.encode()[12:]), **fields})


FORGED = {
    "nothing": [],
    "no manifest": [STATE],
    "a manifest in the end": [STATE, MANIFEST.encode(), encode_notebook(b"")],
    "a state without end": [MANIFEST.encode(), encode_notebook(b""), START],
    "two states": [MANIFEST.encode(), encode_notebook(b""), STATE, STATE],
    "another kind": [MANIFEST.encode(), encode_notebook(b""), encode_record({"kind": "other"}), END],
    "no notebook": [MANIFEST.encode(), STATE],
    "a header that is too long": [MANIFEST.encode(), encode_notebook(b""), (1 << 30).to_bytes(4, "little"), bytes(8), END],
    "a header that is nested too deeply": [
        MANIFEST.encode(),
        encode_notebook(b""),
        (90_000).to_bytes(4, "little"),
        bytes(8),
        b"[" * 90_000,
    ],
    "a time without a zone": [manifest(created="2026-01-01"), encode_notebook(b""), STATE],
    "a time that is too early": [manifest(created="0001-01-01T00:00:00+23:59"), encode_notebook(b""), STATE],
    "packages that are no texts": [manifest(packages=[[1]]), encode_notebook(b""), STATE],
    "packages that are a number": [manifest(packages=3), encode_notebook(b""), STATE],
    "a number of cells that is too large": [manifest(cells=1 << 60), encode_notebook(b""), STATE],
    "another format": [manifest(format=2), encode_notebook(b""), STATE],
    "a notebook that is too long": [MANIFEST.encode(), encode_record({"kind": "notebook"})[:4], (1 << 40).to_bytes(8, "little"), STATE],
}


@pytest.mark.parametrize("forged", [*FORGED])
async def test_a_forged_content_is_refused(forged: str) -> None:
    with pytest.raises((SaveCorruptedError, SaveTooLargeError)):
        await read(await sealed(*FORGED[forged]), size=1 << 16)


async def test_sizes_are_limited_before_they_are_read() -> None:
    bomb = encode_record({"kind": "buffer"})[:4] + (1 << 50).to_bytes(8, "little") + json.dumps({"kind": "buffer"}).encode()
    with pytest.raises(SaveTooLargeError, match="at most 1 MB"):
        await read(await whole(START, bomb), max_bytes=1 << 20)
    with pytest.raises(SaveTooLargeError):
        await read(await whole(START, *[encode_record({"kind": "buffer"}, bytes(1 << 19))] * 3, END), max_bytes=1 << 20)


async def test_an_export_that_failed_says_why() -> None:
    with pytest.raises(SnapshotError, match="the session cannot be saved: no room"):
        await read(await whole(START, encode_record({"kind": "failed", "why": "no room"})))
