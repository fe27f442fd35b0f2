"""The format of saved streams. A reader gets no byte that was not verified.

A stream has a header and pieces. Each piece has a word of four bytes, which is its length and whether it is the last one, then up to
1 MB of content, then a tag. All but the last piece have exactly 1 MB.

Without a key, a tag is the SHA-256 of the tag before it, the word and the content, so it depends on all before it. The first one depends
on the header and the context. This detects damage and mistakes, but a program that can write into the store can forge a stream.

With a key, a piece is encrypted by AES-256-GCM. Its nonce is its number. Each stream has a key of its own, derived by HKDF-SHA256 (RFC
5869) from the key, a random salt of 32 bytes in the header, and the context. So no nonce is used twice with a key, however many streams
there is. A random prefix of the nonce, which is the alternative, has only a few bytes, and two equal ones would reveal the contents.
"""

import contextlib
import hashlib
import hmac
import secrets
from base64 import b64decode
from collections.abc import AsyncIterable, AsyncIterator
from functools import partial
from typing import Protocol

from ..errors import ConfigurationError, SaveCorruptedError, SaveKeyError
from .chunks import closing, compute, split

PIECE = 1024 * 1024
_MAGIC = b"ACAS"
_FORMAT = 1
_PLAIN, _ENCRYPTED = 0, 1
_LAST = 1 << 31
_WORD = 4
_SALT = 32
_FINGERPRINT = 8
_KEY = 32


def parse_key(text: str) -> bytes:
    """Return the key that a text has as hex digits or base64. Raise ConfigurationError, without the text, if it is not 32 bytes."""
    text = text.strip()
    key = b""
    with contextlib.suppress(ValueError):  # its message would show a part of the key
        key = bytes.fromhex(text) if len(text) == 2 * _KEY else b64decode(text.replace("-", "+").replace("_", "/"), validate=True)
    if len(key) != _KEY:
        raise ConfigurationError(
            "the key of saved sessions must be 32 bytes as 64 hex digits or as base64. Make one with `openssl rand -base64 32`"
        )
    return key


class Sealer:
    """Seals and opens streams, with a key or without.

    A context says what a stream is, such as its owner and its name. A stream can be opened only with the context it was sealed with.
    """

    def __init__(self, key: bytes | None = None) -> None:
        """Store a key of 32 bytes, which encrypts all streams. Without one, they are only protected against damage."""
        if key is not None and len(key) != _KEY:
            raise ConfigurationError(f"the key of saved sessions must have 32 bytes, got {len(key)}: see parse_key")
        self._key = key

    async def seal(self, chunks: AsyncIterable[bytes], context: bytes) -> AsyncIterator[bytes]:
        """Yield the sealed form of a stream."""
        header, cipher = self._begin(context)
        yield header
        held: bytes | None = None
        async with closing(split(chunks, PIECE)) as pieces:
            async for piece in pieces:
                if held is not None:
                    yield await compute(partial(_seal_piece, cipher, last=False), held)
                held = piece
        yield await compute(partial(_seal_piece, cipher, last=True), held or b"")

    async def open(self, chunks: AsyncIterable[bytes], context: bytes) -> AsyncIterator[bytes]:
        """Yield the content of a sealed stream. Each chunk was verified, but a stream that was cut off raises only at its end.

        Raise SaveCorruptedError if the stream was changed or has another context. Raise SaveKeyError if it has another key.
        """
        opener = _Opener(self, context)
        async with closing(chunks):
            async for chunk in chunks:
                for piece in await compute(opener.feed, chunk):
                    yield piece
        opener.finish()

    def seal_value(self, data: bytes, context: bytes) -> bytes:
        """Return the sealed form of a value of up to 1 MB."""
        header, cipher = self._begin(context)
        return header + _seal_piece(cipher, data, last=True)

    def open_value(self, data: bytes, context: bytes) -> bytes:
        """Return the content of a sealed value. Raise errors as `open` does."""
        opener = _Opener(self, context)
        pieces = opener.feed(data)
        opener.finish()
        return b"".join(pieces)

    def sealed_length(self, size: int) -> int:
        """Return the length of the sealed form of a stream of `size` bytes."""
        tag = _Hashing.tag if self._key is None else _Encryption.tag
        return self._header_length() + size + max(1, -(-size // PIECE)) * (_WORD + tag)

    def _begin(self, context: bytes) -> tuple[bytes, "_Cipher"]:
        start = _MAGIC + bytes([_FORMAT])
        if self._key is None:
            header = start + bytes([_PLAIN])
            return header, _Hashing(header, context)
        header = start + bytes([_ENCRYPTED]) + _fingerprint(self._key) + secrets.token_bytes(_SALT)
        return header, _Encryption(self._key, header, context)

    def _header_length(self) -> int:
        """Return the length of a header in bytes."""
        return len(_MAGIC) + 2 + (0 if self._key is None else _FINGERPRINT + _SALT)

    def _check_start(self, start: bytes) -> None:
        """Validate the first bytes of a header: what it is, its format, and whether it is encrypted."""
        if start[: len(_MAGIC)] != _MAGIC:
            raise _corrupted("it does not begin as a save does")
        form, mode = start[len(_MAGIC)], start[len(_MAGIC) + 1]
        if form != _FORMAT:
            raise SaveCorruptedError(f"a saved session has format {form}, expected {_FORMAT}: update aca-sessions, or use an older save")
        if mode not in (_PLAIN, _ENCRYPTED):
            raise _corrupted("its header is damaged")
        if mode == _ENCRYPTED and self._key is None:
            raise SaveKeyError("a saved session is encrypted, and this server has no key: set the key of the server that saved it")
        if mode == _PLAIN and self._key is not None:
            raise SaveKeyError("a saved session is not encrypted, and this server has a key: remove the key, or delete those saves")

    def _open_header(self, header: bytes, context: bytes) -> "_Cipher":
        """Return the cipher for the pieces after a header."""
        if self._key is None:
            return _Hashing(header, context)
        start = len(_MAGIC) + 2
        if header[start : start + _FINGERPRINT] != _fingerprint(self._key):
            raise SaveKeyError("a saved session is encrypted with another key: set the key of the server that saved it")
        return _Encryption(self._key, header, context)


class _Cipher(Protocol):
    tag: int

    def seal(self, word: bytes, content: bytes) -> bytes: ...

    def open(self, word: bytes, sealed: bytes) -> bytes: ...


class _Hashing:
    """Add hashes that depend on all before them."""

    tag = 32

    def __init__(self, header: bytes, context: bytes) -> None:
        self._before = hashlib.sha256(header + context).digest()

    def seal(self, word: bytes, content: bytes) -> bytes:
        return content + self._hash(word, content)

    def open(self, word: bytes, sealed: bytes) -> bytes:
        content = sealed[: -self.tag]
        if self._hash(word, content) != sealed[-self.tag :]:
            raise _corrupted("it was changed, or belongs elsewhere")
        return content

    def _hash(self, word: bytes, content: bytes) -> bytes:
        digest = hashlib.sha256(self._before + word)
        digest.update(content)
        self._before = digest.digest()
        return self._before


class _Encryption:
    """Encrypt pieces with the key of one stream."""

    tag = 16

    def __init__(self, key: bytes, header: bytes, context: bytes) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        extracted = hmac.digest(header[-_SALT:], key, "sha256")
        self._cipher = AESGCM(hmac.digest(extracted, context + b"\x01", "sha256"))
        self._header = header
        self._number = 0

    def seal(self, word: bytes, content: bytes) -> bytes:
        return self._cipher.encrypt(self._count(), content, self._header + word)

    def open(self, word: bytes, sealed: bytes) -> bytes:
        from cryptography.exceptions import InvalidTag

        try:
            return self._cipher.decrypt(self._count(), sealed, self._header + word)
        except InvalidTag:
            raise _corrupted("it was changed, or belongs elsewhere") from None

    def _count(self) -> bytes:
        self._number += 1
        return self._number.to_bytes(12, "big")


def _seal_piece(cipher: _Cipher, content: bytes, *, last: bool) -> bytes:
    word = (len(content) | (_LAST if last else 0)).to_bytes(_WORD, "big")
    return word + cipher.seal(word, content)


class _Opener:
    """Parses a sealed stream that arrives in chunks of any length."""

    def __init__(self, sealer: Sealer, context: bytes) -> None:
        self._sealer = sealer
        self._context = context
        self._waiting = bytearray()
        self._cipher: _Cipher | None = None
        self._ended = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """Add a chunk. Return the pieces that it completes."""
        self._waiting += chunk
        if self._cipher is None and not self._read_header():
            return []
        pieces = []
        while (piece := self._read_piece()) is not None:
            pieces.append(piece)
        return pieces

    def finish(self) -> None:
        """Raise SaveCorruptedError if the stream was cut off."""
        if not self._ended:
            raise _corrupted("its end is missing")

    def _read_header(self) -> bool:
        if len(self._waiting) < len(_MAGIC) + 2:
            return False
        self._sealer._check_start(bytes(self._waiting[: len(_MAGIC) + 2]))
        if len(self._waiting) < self._sealer._header_length():
            return False
        self._cipher = self._sealer._open_header(self._remove(self._sealer._header_length()), self._context)
        return True

    def _read_piece(self) -> bytes | None:
        cipher = self._cipher
        if self._ended and self._waiting:
            raise _corrupted("there is something after its end")
        if cipher is None or len(self._waiting) < _WORD:
            return None
        number = int.from_bytes(self._waiting[:_WORD], "big")
        last, length = bool(number & _LAST), number & ~_LAST
        if length > PIECE or (length < PIECE and not last):
            raise _corrupted("the length of a piece is wrong")
        if len(self._waiting) < _WORD + length + cipher.tag:
            return None
        word = self._remove(_WORD)
        self._ended = last
        return cipher.open(word, self._remove(length + cipher.tag))

    def _remove(self, count: int) -> bytes:
        removed = bytes(memoryview(self._waiting)[:count])
        del self._waiting[:count]
        return removed


def _fingerprint(key: bytes) -> bytes:
    """Return what shows that two keys differ, but not what they are."""
    return hmac.digest(key, b"aca-sessions fingerprint of the key", "sha256")[:_FINGERPRINT]


def _corrupted(reason: str) -> SaveCorruptedError:
    return SaveCorruptedError(f"a saved session cannot be used, because {reason}: use an older save, or delete the saves of this session")
