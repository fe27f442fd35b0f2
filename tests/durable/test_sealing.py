"""Test that a sealed stream is opened as it was, or not at all."""

import base64
import os
from collections.abc import AsyncIterator
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aca_sessions.durable.sealing import PIECE, Sealer, parse_key
from aca_sessions.errors import ConfigurationError, SaveCorruptedError, SaveKeyError, StorageError

from .streams import all_of, failing, of

KEY = bytes(range(32))
SEALERS = pytest.mark.parametrize("sealer", [Sealer(), Sealer(KEY)], ids=["plain", "encrypted"])
WHERE = b"blobs/ab/1"


async def seal(sealer: Sealer, data: bytes, context: bytes = WHERE) -> bytes:
    return await all_of(sealer.seal(of(data), context))


async def open_sealed(sealer: Sealer, data: bytes, context: bytes = WHERE) -> bytes:
    return await all_of(sealer.open(of(data), context))


async def in_pieces(data: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def collect(chunks: AsyncIterator[bytes], collected: bytearray) -> None:
    async for chunk in chunks:
        collected += chunk


@SEALERS
@pytest.mark.parametrize("size", [0, 1, 1000, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE])
async def test_a_stream_is_opened_as_it_was(sealer: Sealer, size: int) -> None:
    data = os.urandom(size)
    sealed = await all_of(sealer.seal(in_pieces(data, 300_000), WHERE))
    assert len(sealed) == sealer.sealed_length(size)
    assert await all_of(sealer.open(in_pieces(sealed, 70_001), WHERE)) == data
    if size <= 1000:
        assert await all_of(sealer.open(in_pieces(sealed, 1), WHERE)) == data


@SEALERS
def test_a_value_is_opened_as_it_was(sealer: Sealer) -> None:
    for data in (b"", b"value"):
        assert sealer.open_value(sealer.seal_value(data, WHERE), WHERE) == data


@SEALERS
async def test_a_stream_that_fails_is_not_sealed_as_a_whole_one(sealer: Sealer) -> None:
    sealed = bytearray()
    with pytest.raises(RuntimeError):
        await collect(sealer.seal(failing(bytes(PIECE + 1)), WHERE), sealed)
    with pytest.raises(SaveCorruptedError):
        await open_sealed(sealer, bytes(sealed))


@SEALERS
async def test_each_changed_byte_is_an_error(sealer: Sealer) -> None:
    sealed = await seal(sealer, b"some variables")
    for position in range(len(sealed)):
        for bits in (1, 128, 255):
            changed = bytearray(sealed)
            changed[position] ^= bits
            with pytest.raises(StorageError):
                await open_sealed(sealer, bytes(changed))


@SEALERS
async def test_each_missing_or_added_byte_is_an_error(sealer: Sealer) -> None:
    sealed = await seal(sealer, b"some variables")
    changed = [sealed[:position] for position in range(len(sealed))]
    changed += [sealed[:position] + sealed[position + 1 :] for position in range(len(sealed))]
    changed += [sealed[:position] + b"\0" + sealed[position:] for position in range(len(sealed) + 1)]
    changed += [sealed + sealed, sealed + b"x" * 100]
    for data in {*changed} - {sealed}:
        with pytest.raises(StorageError):
            await open_sealed(sealer, data)


@SEALERS
async def test_pieces_cannot_be_moved_cut_off_or_repeated(sealer: Sealer) -> None:
    data = os.urandom(3 * PIECE)
    sealed = await seal(sealer, data)
    header = sealer.sealed_length(0) - (len(await seal(sealer, b"")) - sealer._header_length())
    length = (len(sealed) - header) // 3
    start, pieces = sealed[:header], [sealed[header + number * length :][:length] for number in range(3)]
    for order in ([1, 0, 2], [0, 2], [0, 1], [0, 0, 1, 2], [0, 1, 1, 2], [2], [], [0, 1, 2, 2], [2, 1, 0]):
        opened = bytearray()
        with pytest.raises(SaveCorruptedError):
            await collect(sealer.open(of(start, *(pieces[number] for number in order)), WHERE), opened)
        assert data.startswith(opened)  # what came before the error is right
    assert await all_of(sealer.open(of(start, *pieces), WHERE)) == data


@SEALERS
async def test_a_stream_cannot_take_the_place_of_another(sealer: Sealer) -> None:
    one, other = await seal(sealer, b"one" * 100), await seal(sealer, b"other" * 100, b"blobs/ab/2")
    for sealed, context in ((one, b"blobs/ab/2"), (other, WHERE), (one, b"")):
        with pytest.raises(SaveCorruptedError, match="belongs elsewhere"):
            await open_sealed(sealer, sealed, context)
    header = sealer._header_length()
    with pytest.raises(SaveCorruptedError):
        await open_sealed(sealer, one[:header] + other[header:])


@SEALERS
@settings(max_examples=25)
@given(data=st.binary(max_size=300), edit=st.data())
async def test_no_edit_of_a_stream_gives_other_data(sealer: Sealer, data: bytes, edit: st.DataObject) -> None:
    sealed = await seal(sealer, data)
    draw = partial(edit.draw, st.integers(0, len(sealed)))
    start, end = sorted((draw(), draw()))
    changed = sealed[:start] + edit.draw(st.binary(max_size=50)) + sealed[end:]
    try:
        opened = await open_sealed(sealer, changed)
    except StorageError:
        return
    assert opened == data
    assert changed == sealed


@SEALERS
@settings(max_examples=25)
@given(junk=st.binary(max_size=400))
async def test_junk_is_an_error(sealer: Sealer, junk: bytes) -> None:
    for data in (junk, b"ACAS\x01\x00" + junk, b"ACAS\x01\x01" + junk):
        with pytest.raises(StorageError):
            await open_sealed(sealer, data)


async def test_an_encrypted_stream_does_not_show_its_content() -> None:
    first, second = [await seal(Sealer(KEY), b"secret" * 100) for _ in range(2)]
    assert b"secret" not in first + second
    assert first != second


async def test_errors_say_which_key_is_missing() -> None:
    plain, encrypted = await seal(Sealer(), b"x"), await seal(Sealer(KEY), b"x")
    cases = [(Sealer(), encrypted, "no key"), (Sealer(KEY), plain, "not encrypted"), (Sealer(bytes(32)), encrypted, "another key")]
    for sealer, data, message in cases:
        with pytest.raises(SaveKeyError, match=message):
            await open_sealed(sealer, data)


async def test_a_newer_format_is_named() -> None:
    with pytest.raises(SaveCorruptedError, match="has format 2, expected 1"):
        await open_sealed(Sealer(), b"ACAS\x02\x00" + bytes(100))


@pytest.mark.parametrize(
    "text",
    [KEY.hex(), KEY.hex().upper(), base64.b64encode(KEY).decode(), f"  {base64.b64encode(bytes([251] * 32)).decode()}\n"],
)
def test_a_key_is_hex_digits_or_base64(text: str) -> None:
    assert len(parse_key(text)) == 32
    assert parse_key(text) in (KEY, bytes([251] * 32))
    assert parse_key(base64.urlsafe_b64encode(bytes([251] * 32)).decode()) == bytes([251] * 32)


@pytest.mark.parametrize("text", ["", "password", KEY.hex()[:-2], KEY.hex()[:-1] + "x", base64.b64encode(KEY[:-1]).decode(), "é" * 64])
def test_another_key_is_refused_without_naming_it(text: str) -> None:
    with pytest.raises(ConfigurationError, match="must be 32 bytes as 64 hex digits or as base64") as raised:
        parse_key(text)
    assert not text or text not in str(raised.value)
    with pytest.raises(ConfigurationError, match="must have 32 bytes, got 31"):
        Sealer(KEY[1:])
