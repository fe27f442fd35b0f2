"""Test that a sealed value is opened as it was, or not at all."""

import base64
import hashlib
import os
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aca_sessions.durable.sealing import Sealer, parse_key
from aca_sessions.errors import ConfigurationError, SaveCorruptedError, SaveKeyError, StorageError

KEY = bytes(range(32))
SEALERS = pytest.mark.parametrize("sealer", [Sealer(), Sealer(KEY)], ids=["plain", "encrypted"])
WHERE = b"blobs/ab/1"


def seal(sealer: Sealer, data: bytes, context: bytes = WHERE) -> bytes:
    return b"".join(sealer.seal(data, context))


def open_sealed(sealer: Sealer, data: bytes, context: bytes = WHERE) -> bytes:
    return bytes(sealer.open(data, context))


@SEALERS
@pytest.mark.parametrize("size", [0, 1, 1000, 5_000_000])
def test_a_value_is_opened_as_it_was(sealer: Sealer, size: int) -> None:
    data = os.urandom(size)
    sealed = seal(sealer, data)
    assert len(sealed) == sealer.sealed_length(size)
    assert open_sealed(sealer, sealed) == data
    known = b"".join(sealer.seal(bytearray(data), WHERE, hashlib.sha256(data).digest()))
    assert open_sealed(sealer, known) == data


@SEALERS
def test_each_changed_byte_is_an_error(sealer: Sealer) -> None:
    sealed = seal(sealer, b"some variables")
    for position in range(len(sealed)):
        for bits in (1, 128, 255):
            changed = bytearray(sealed)
            changed[position] ^= bits
            with pytest.raises(StorageError):
                open_sealed(sealer, bytes(changed))


@SEALERS
def test_each_missing_or_added_byte_is_an_error(sealer: Sealer) -> None:
    sealed = seal(sealer, b"some variables")
    changed = [sealed[:position] for position in range(len(sealed))]
    changed += [sealed[:position] + sealed[position + 1 :] for position in range(len(sealed))]
    changed += [sealed[:position] + b"\0" + sealed[position:] for position in range(len(sealed) + 1)]
    changed += [sealed + sealed, sealed + b"x" * 100]
    for data in {*changed} - {sealed}:
        with pytest.raises(StorageError):
            open_sealed(sealer, data)


@SEALERS
def test_a_value_cannot_take_the_place_of_another(sealer: Sealer) -> None:
    one, other = seal(sealer, b"one" * 100), seal(sealer, b"other" * 100, b"blobs/ab/2")
    for sealed, context in ((one, b"blobs/ab/2"), (other, WHERE), (one, b"")):
        with pytest.raises(SaveCorruptedError, match="belongs elsewhere"):
            open_sealed(sealer, sealed, context)
    header = sealer._header_length()
    with pytest.raises(SaveCorruptedError):
        open_sealed(sealer, one[:header] + other[header:])


@SEALERS
@settings(max_examples=25)
@given(data=st.binary(max_size=300), edit=st.data())
def test_no_edit_of_a_value_gives_other_data(sealer: Sealer, data: bytes, edit: st.DataObject) -> None:
    sealed = seal(sealer, data)
    draw = partial(edit.draw, st.integers(0, len(sealed)))
    start, end = sorted((draw(), draw()))
    changed = sealed[:start] + edit.draw(st.binary(max_size=50)) + sealed[end:]
    try:
        opened = open_sealed(sealer, changed)
    except StorageError:
        return
    assert opened == data
    assert changed == sealed


@SEALERS
@settings(max_examples=25)
@given(junk=st.binary(max_size=400))
def test_junk_is_an_error(sealer: Sealer, junk: bytes) -> None:
    for data in (junk, b"ACAS\x01\x00" + junk, b"ACAS\x01\x01" + junk):
        with pytest.raises(StorageError):
            open_sealed(sealer, data)


def test_an_encrypted_value_does_not_show_its_content() -> None:
    first, second = [seal(Sealer(KEY), b"secret" * 100) for _ in range(2)]
    assert b"secret" not in first + second
    assert first != second


def test_errors_say_which_key_is_missing() -> None:
    plain, encrypted = seal(Sealer(), b"x"), seal(Sealer(KEY), b"x")
    cases = [(Sealer(), encrypted, "no key"), (Sealer(KEY), plain, "not encrypted"), (Sealer(bytes(32)), encrypted, "another key")]
    for sealer, data, message in cases:
        with pytest.raises(SaveKeyError, match=message):
            open_sealed(sealer, data)


def test_a_newer_format_is_named() -> None:
    with pytest.raises(SaveCorruptedError, match="has format 2, expected 1"):
        open_sealed(Sealer(), b"ACAS\x02\x00" + bytes(100))


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
